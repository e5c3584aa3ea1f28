//! What the headers of a create ask for: an answer in time, an end in time.

use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};
use prediction::Timestamp;

use crate::errors::Problem;

/// The longest wait that can be asked for; a longer one is this one.
const WAIT_SECONDS_MAX: u64 = 60;
/// A client that asked for the longest wait stops reading at about that time, and then sends the same create again.
const LONGEST_WAIT_MILLIS: u64 = 59_000;
/// Taken off every wait, for the way back.
const WAIT_MARGIN_MILLIS: u64 = 100;

/// `Cancel-After`, from the creation on.
const CANCEL_AFTER_SECONDS_MIN: u64 = 5;
const CANCEL_AFTER_SECONDS_MAX: u64 = 7 * 24 * 3600;

/// `Prefer: wait` or `wait=n`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    seconds: Option<u64>,
}

impl Wait {
    /// None for an answer at once. What is not understood is ignored, as preferences are.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let preferences = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
        preferences.flat_map(|value| value.split(',')).find_map(Self::parse)
    }

    fn parse(preference: &str) -> Option<Self> {
        let rest = preference.trim();
        let (name, seconds) = rest.split_once('=').map_or((rest, None), |(name, value)| (name, Some(value.trim())));
        if !name.trim().eq_ignore_ascii_case("wait") {
            return None;
        }
        let seconds = seconds.map(|text| text.trim_matches('"').parse::<u64>()).transpose().ok()?;
        Some(Self { seconds: seconds.map(|seconds| seconds.clamp(1, WAIT_SECONDS_MAX)) })
    }

    pub fn duration(self) -> Duration {
        let seconds = self.seconds.unwrap_or(WAIT_SECONDS_MAX);
        Duration::from_millis((seconds * 1000 - WAIT_MARGIN_MILLIS).min(LONGEST_WAIT_MILLIS))
    }

    /// `Preference-Applied`.
    pub fn applied(self) -> String {
        self.seconds.map_or("wait".into(), |seconds| format!("wait={seconds}"))
    }
}

/// The moment that `Cancel-After` means.
pub fn deadline(headers: &HeaderMap, created_at: Timestamp) -> Result<Option<Timestamp>, Problem> {
    let Some(header) = headers.get("cancel-after") else { return Ok(None) };
    let text = header.to_str().unwrap_or_default();
    let range = CANCEL_AFTER_SECONDS_MIN..=CANCEL_AFTER_SECONDS_MAX;
    match seconds(text).filter(|seconds| range.contains(seconds)) {
        Some(seconds) => Ok(Some(created_at.plus_millis(seconds as i64 * 1000))),
        None => {
            let detail = format!(
                "Cancel-After is \"{text}\"; a duration from {CANCEL_AFTER_SECONDS_MIN}s to {CANCEL_AFTER_SECONDS_MAX}s \
                 is expected, such as 30, 30s, 5m or 1h30m45s"
            );
            Err(Problem::titled(StatusCode::UNPROCESSABLE_ENTITY, "Invalid Cancel-After header", detail))
        }
    }
}

/// `30`, `30s`, `5m`, `1h30m45s`: units at most once each, in this order. A bare number is seconds.
fn seconds(text: &str) -> Option<u64> {
    let mut rest = text.trim();
    if let Ok(seconds) = rest.parse() {
        return Some(seconds);
    }
    let mut total: Option<u64> = None;
    for (unit, worth) in [('h', 3600), ('m', 60), ('s', 1)] {
        if let Some((number, after)) = rest.split_once(unit) {
            let part = number.parse::<u64>().ok()?.checked_mul(worth)?;
            total = Some(total.unwrap_or_default().checked_add(part)?);
            rest = after;
        }
    }
    total.filter(|_| rest.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_duration_is_read() {
        for (text, read) in [
            ("30", Some(30)),
            (" 30s ", Some(30)),
            ("5m", Some(300)),
            ("1h30m45s", Some(5445)),
            ("1h45s", Some(3645)),
            ("0", Some(0)),
            ("45s1h", None),
            ("5x", None),
            ("1h30", None),
            ("-5", None),
            ("1.5m", None),
            ("s", None),
            ("", None),
            ("99999999999999999999", None),
            ("9999999999999999999h", None),
        ] {
            assert_eq!(seconds(text), read, "{text:?}");
        }
    }

    #[test]
    fn a_wait_is_clamped_and_answered_in_time() {
        let of = |value: &'static str| {
            Wait::of(&HeaderMap::from_iter([("prefer".parse().unwrap(), value.parse().unwrap())]))
        };
        for (header, applied, millis) in [
            ("wait", "wait", 59_000),
            ("Wait", "wait", 59_000),
            ("wait=60", "wait=60", 59_000),
            ("wait=90", "wait=60", 59_000),
            ("wait=59", "wait=59", 58_900),
            ("wait=1", "wait=1", 900),
            ("wait=0", "wait=1", 900),
            ("respond-async, wait=5", "wait=5", 4_900),
        ] {
            let wait = of(header).expect(header);
            assert_eq!((wait.applied().as_str(), wait.duration().as_millis()), (applied, millis), "{header}");
        }
        for header in ["respond-async", "wait=soon", "wait=1.5", "waiting", ""] {
            assert_eq!(of(header), None, "{header}");
        }
        assert_eq!(Wait::of(&HeaderMap::new()), None);
    }
}
