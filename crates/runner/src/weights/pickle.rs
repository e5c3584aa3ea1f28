//! Tells a Python pickle by its first bytes: loading one runs whatever code it carries, so it is never taken as weights.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// How many of a file's first bytes tell.
pub(super) const MARK_BYTES: u64 = 4;
const EXTENSIONS: [&str; 6] = ["bin", "pt", "pth", "ckpt", "pkl", "pickle"];

/// By name and by content, since `.bin` is used for harmless formats too: a pickle's own protocol mark, or the zip that
/// torch puts around one.
pub(crate) fn is_pickle(path: &Path) -> io::Result<bool> {
    if !may_be_one(path) {
        return Ok(false);
    }
    let mut first = Vec::new();
    File::open(path)?.take(MARK_BYTES).read_to_end(&mut first)?;
    Ok(begins_like_one(&first))
}

/// By its name alone.
pub(super) fn may_be_one(path: &Path) -> bool {
    path.extension().and_then(|extension| extension.to_str()).is_some_and(|name| EXTENSIONS.contains(&name))
}

/// `first` are its first `MARK_BYTES`.
pub(crate) fn begins_like_one(first: &[u8]) -> bool {
    matches!(first, [0x80, 2..=5, ..] | [b'P', b'K', 3, 4, ..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pickle_is_told_from_another_bin() {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes, expected) in [
            ("pytorch_model.bin", &b"PK\x03\x04rest"[..], true),
            ("old.pt", b"\x80\x02}q", true),
            ("model.bin", b"\x06\0\0\0\x0eWhisperSpec", false),
            ("model.safetensors", b"\x80\x02", false),
            ("empty.bin", b"", false),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(is_pickle(&path).unwrap(), expected, "{name}");
        }
    }
}
