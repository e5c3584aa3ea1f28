//! Files in cog.yaml: how large, for how long, and how answers name them.

use super::ConfigError;
use crate::read::Mapping;

/// Bytes and seconds of files. Stands among the other limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileLimits {
    /// Of one upload; a larger one gets a 413.
    pub file_bytes: u64,
    /// Uploads are removed after this long; the hosted service keeps them for a day.
    pub files_retention_seconds: u64,
    /// Of one file that an input names; with a larger one the prediction fails.
    pub input_bytes: u64,
    /// For fetching one of them.
    pub fetch_seconds: u64,
}

impl Default for FileLimits {
    fn default() -> Self {
        Self { file_bytes: 100 << 20, files_retention_seconds: 24 * 3600, input_bytes: 1 << 30, fetch_seconds: 300 }
    }
}

mod range {
    use std::ops::RangeInclusive;

    pub const BYTES: RangeInclusive<u64> = 1024..=1 << 40;
    pub const RETENTION_SECONDS: RangeInclusive<u64> = 1..=10 * 365 * 24 * 3600;
    pub const FETCH_SECONDS: RangeInclusive<u64> = 1..=24 * 3600;
}

impl FileLimits {
    pub(super) fn read(keys: &mut Mapping) -> Result<Self, ConfigError> {
        let default = Self::default();
        let retention = keys.number("files_retention_seconds", range::RETENTION_SECONDS)?;
        Ok(Self {
            file_bytes: keys.number("file_bytes", range::BYTES)?.unwrap_or(default.file_bytes),
            files_retention_seconds: retention.unwrap_or(default.files_retention_seconds),
            input_bytes: keys.number("input_bytes", range::BYTES)?.unwrap_or(default.input_bytes),
            fetch_seconds: keys.number("fetch_seconds", range::FETCH_SECONDS)?.unwrap_or(default.fetch_seconds),
        })
    }
}

/// How an answer names an output file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutputFiles {
    /// An https URL to a caller who uses https, else a data URI: the official clients make a file of nothing else.
    #[default]
    Auto,
    /// Always a data URI.
    Data,
    /// A URL, save in an answer to `Prefer: wait` over http.
    Url,
}

impl OutputFiles {
    pub(super) fn read(native: &mut Mapping) -> Result<Self, ConfigError> {
        match native.text("output_files")?.as_deref() {
            None | Some("auto") => Ok(Self::Auto),
            Some("data") => Ok(Self::Data),
            Some("url") => Ok(Self::Url),
            Some(other) => Err(native.bad("output_files", &other.into(), "auto, data or url is expected")),
        }
    }
}
