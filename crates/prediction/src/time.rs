//! A moment. Knows how the API writes it; refuses to know where "now" comes from beyond the system clock.

use serde::{Deserialize, Serialize};

/// Microseconds since the Unix epoch, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    pub fn now() -> Self {
        Self(jiff::Timestamp::now().as_microsecond())
    }

    /// RFC 3339 in UTC with `Z` and six fractional digits, as every known client parses it.
    pub fn rfc3339(self) -> String {
        let moment = jiff::Timestamp::from_microsecond(self.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        format!("{moment:.6}")
    }

    /// Any ISO 8601 moment with an offset or `Z`; `None` if it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        Some(Self(text.trim().parse::<jiff::Timestamp>().ok()?.as_microsecond()))
    }

    pub fn plus_millis(self, millis: i64) -> Self {
        Self(self.0.saturating_add(millis.saturating_mul(1000)))
    }

    /// Seconds from `earlier` to `self`; never negative.
    pub fn seconds_since(self, earlier: Self) -> f64 {
        (self.0 - earlier.0).max(0) as f64 / 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_written_with_z_and_read_back() {
        let moment = Timestamp(1_700_000_000_123_456);
        assert_eq!(moment.rfc3339(), "2023-11-14T22:13:20.123456Z");
        assert_eq!(Timestamp::parse(&moment.rfc3339()), Some(moment));
        assert_eq!(Timestamp::parse("2023-11-14T22:13:20+00:00"), Some(Timestamp(1_700_000_000_000_000)));
        assert_eq!(Timestamp::parse("yesterday"), None);
    }
}
