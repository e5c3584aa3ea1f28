//! Files that a prediction made, written where its caller wants them. Knows data URIs and names; refuses to know models.

use std::path::{Path, PathBuf};

use serde_json::Value;
use url::Url;

use crate::failure::Failure;

/// Files of any size: the model made them, nobody sent them.
const NO_LIMIT: u64 = u64::MAX;

/// Writes every data URI of an output that is a file or a list of files, and puts the file's address in its place. `wanted`
/// names one file; of several, each is numbered before its ending. Without it they have their own names, in the working
/// folder.
pub fn write(output: &mut Value, wanted: Option<&Path>) -> Result<Vec<PathBuf>, Failure> {
    let files: Vec<&mut Value> = match output {
        Value::Array(items) => items.iter_mut().collect(),
        one => vec![one],
    };
    let several = files.len() > 1;
    let mut written = Vec::new();
    for (index, file) in files.into_iter().enumerate() {
        let Some(uri) = file.as_str().filter(|uri| egress::is_data(uri)) else { continue };
        let data = egress::data(uri, NO_LIMIT).map_err(Failure::failed)?;
        let path = match wanted {
            None => format!("out-{index}.{}", files::ending_of_type(&data.content_type).unwrap_or("bin")).into(),
            Some(path) if several => numbered(path, index),
            Some(path) => path.to_owned(),
        };
        let failed = |why: &dyn std::fmt::Display| Failure::Failed(format!("{}: {why}", path.display()));
        std::fs::write(&path, data.bytes).map_err(|error| failed(&error))?;
        let whole = path.canonicalize().map_err(|error| failed(&error))?;
        let address = Url::from_file_path(whole).map_err(|()| failed(&"has no address"))?;
        *file = Value::String(address.into());
        written.push(path);
    }
    Ok(written)
}

fn numbered(path: &Path, index: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let ending = path.extension().map(|ending| format!(".{}", ending.to_string_lossy())).unwrap_or_default();
    path.with_file_name(format!("{stem}-{index}{ending}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_file_has_the_name_asked_for_and_several_are_numbered() {
        let folder = tempfile::tempdir().unwrap();
        let wanted = folder.path().join("out.png");
        let mut one = json!(["data:image/png;base64,YQ=="]);
        assert_eq!(write(&mut one, Some(&wanted)).unwrap(), std::slice::from_ref(&wanted));
        assert_eq!(std::fs::read(&wanted).unwrap(), b"a");
        assert!(one[0].as_str().unwrap().starts_with("file:///"), "{one}");
        let mut two = json!(["data:,b", "data:,c"]);
        let written = write(&mut two, Some(&wanted)).unwrap();
        assert_eq!(written, ["out-0.png", "out-1.png"].map(|name| folder.path().join(name)));
        assert_eq!(std::fs::read(&written[1]).unwrap(), b"c");
        let mut single = json!("data:,d");
        write(&mut single, Some(&wanted)).unwrap();
        assert_eq!(std::fs::read(&wanted).unwrap(), b"d");
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let wanted = folder.path().join("nowhere").join("out.png");
        let why = write(&mut json!(["data:,a"]), Some(&wanted)).unwrap_err();
        assert!(why.to_string().starts_with(&wanted.display().to_string()), "{why}");
    }
}
