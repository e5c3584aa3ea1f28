//! Where things lie when nobody says otherwise.

use std::path::PathBuf;

/// The database's folder: `--data`, else `$PINION_DATA`, else the user's data folder.
pub fn data(given: Option<PathBuf>) -> PathBuf {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    given
        .or_else(|| from("PINION_DATA"))
        .or_else(|| from("XDG_DATA_HOME").map(|home| home.join("pinion")))
        .or_else(|| from("HOME").map(|home| home.join(".local/share/pinion")))
        .unwrap_or_else(|| PathBuf::from("pinion-data"))
}

/// The database inside the data folder.
pub const DATABASE: &str = "pinion.sqlite";
