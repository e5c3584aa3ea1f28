//! Lines for the logs of who waits for a download that takes its time.

use std::time::Duration;

use tokio::time::Instant;

/// A download shorter than this is not worth a line; a longer one is worth one this often.
const SAY_EVERY: Duration = Duration::from_secs(2);

pub struct Progress<'a> {
    field: &'a str,
    say: &'a (dyn Fn(String) + Send + Sync),
    last: Instant,
}

impl<'a> Progress<'a> {
    pub fn new(field: &'a str, say: &'a (dyn Fn(String) + Send + Sync)) -> Self {
        Self { field, say, last: Instant::now() }
    }

    /// Another piece came: `got` bytes so far, of `all` if that is known.
    pub fn came(&mut self, got: u64, all: Option<u64>) {
        if self.last.elapsed() < SAY_EVERY {
            return;
        }
        self.last = Instant::now();
        let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
        let of = all.map_or_else(|| "MB so far".to_owned(), |all| format!("of {} MB", megabytes(all)));
        (self.say)(format!("fetching {}: {} {of}\n", self.field, got / 1_000_000));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_slow_download_is_talked_about() {
        let lines = Mutex::new(Vec::new());
        let say = |line: String| lines.lock().unwrap().push(line);
        let mut progress = Progress::new("audio", &say);
        progress.came(1_000_000, Some(9_500_000));
        tokio::time::advance(SAY_EVERY).await;
        progress.came(3_200_000, Some(9_500_000));
        progress.came(3_300_000, Some(9_500_000));
        tokio::time::advance(SAY_EVERY).await;
        progress.came(4_000_000, None);
        assert_eq!(*lines.lock().unwrap(), ["fetching audio: 3 of 10 MB\n", "fetching audio: 4 MB so far\n"]);
    }
}
