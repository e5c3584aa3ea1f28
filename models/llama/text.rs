//! Bytes of tokens to text that may be shown: whole characters only, and never a piece of a stop string.
//! Refuses to know tokenizers: bytes come in, text goes out.

/// Joins the bytes of tokens into characters. A token may end inside a character; that part waits for the next one.
#[derive(Debug, Default)]
pub struct Characters {
    /// The beginning of a character: at most 3 bytes between calls.
    pending: Vec<u8>,
}

impl Characters {
    /// What can be shown now. Bytes that no continuation can make valid become U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    let Some(bad) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[bad..];
                }
            }
        }
        self.pending = rest.to_vec();
        text
    }

    /// The end: a character that was begun and not finished becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// Cuts text at the first stop string to be completed, wherever token borders fall. Holds back the longest end of the
/// text that may yet grow into one.
#[derive(Debug, Default)]
pub struct StopCutter {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl StopCutter {
    /// `stops` as the caller wrote them; empty ones mean nothing.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        Self { stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(), ..Self::default() }
    }

    /// A stop string was met: all text that may be shown has been returned.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    pub fn push(&mut self, text: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(text);
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop).map(|at| (at + stop.len(), at))).min();
        if let Some((_, at)) = found {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let keep_from = self.held.len() - self.possible_stop();
        let tail = self.held.split_off(keep_from);
        std::mem::replace(&mut self.held, tail)
    }

    /// The end of the text: what was held back is text after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of `held` that begin some stop string.
    fn possible_stop(&self) -> usize {
        let longest = |stop: &String| {
            let borders = (1..stop.len().min(self.held.len() + 1)).rev().filter(|&n| stop.is_char_boundary(n));
            borders.into_iter().find(|&n| self.held.ends_with(&stop[..n])).unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn characters(parts: &[&[u8]]) -> Vec<String> {
        let mut stream = Characters::default();
        let mut out: Vec<String> = parts.iter().map(|part| stream.push(part)).collect();
        out.push(stream.finish());
        out
    }

    #[test]
    fn a_character_waits_for_its_last_byte() {
        assert_eq!(characters(&[b"a\xF0\x9F", b"\x99", b"\x82!"]), ["a", "", "\u{1F642}!", ""]);
    }

    #[test]
    fn bytes_that_cannot_become_a_character_are_replaced() {
        assert_eq!(characters(&[b"\xFFa", b"\xC3", b"b"]), ["\u{FFFD}a", "", "\u{FFFD}b", ""]);
        assert_eq!(characters(&[b"a\xE2\x82"]), ["a", "\u{FFFD}"]);
    }

    fn cut(stops: &[&str], parts: &[&str]) -> (String, bool) {
        let mut cutter = StopCutter::new(stops.iter().map(|s| s.to_string()));
        let mut text: String = parts.iter().map(|part| cutter.push(part)).collect();
        let stopped = cutter.stopped();
        text.push_str(&cutter.finish());
        (text, stopped)
    }

    #[test]
    fn a_stop_string_over_three_tokens_is_cut_exactly() {
        assert_eq!(cut(&["</end>"], &["one <", "/en", "d> two"]), ("one ".into(), true));
    }

    #[test]
    fn what_only_looked_like_a_stop_string_is_text() {
        assert_eq!(cut(&["</end>"], &["one <", "/en", "t> two"]), ("one </ent> two".into(), false));
        assert_eq!(cut(&["###"], &["#", "#"]), ("##".into(), false));
    }

    #[test]
    fn the_stop_string_that_is_complete_first_wins() {
        assert_eq!(cut(&["abcd", "bc"], &["xabcd"]), ("xa".into(), true));
        assert_eq!(cut(&["cd", "abcd"], &["xabcd"]), ("x".into(), true));
    }

    #[test]
    fn an_empty_stop_string_stops_nothing() {
        assert_eq!(cut(&["", "z"], &["text"]), ("text".into(), false));
    }

    proptest! {
        #[test]
        fn token_borders_change_nothing(
            text in "[ab\u{e9}]{0,24}",
            stops in prop::collection::vec("[ab\u{e9}]{1,4}", 0..3),
            cuts in prop::collection::vec(1usize..5, 0..24),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let mut parts = Vec::new();
            let mut rest = text.as_bytes();
            let mut stream = Characters::default();
            for n in cuts {
                let (part, after) = rest.split_at(n.min(rest.len()));
                parts.push(stream.push(part));
                rest = after;
            }
            parts.push(stream.push(rest));
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            prop_assert_eq!(parts.concat(), text.clone());
            prop_assert_eq!(cut(&stops, &parts), cut(&stops, &[&text]));
        }
    }
}
