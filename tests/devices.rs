//! GPUs as users see them: a driver that is absent, old, broken or in order, executables beside the program or not; and
//! `pinion doctor`, which says it. The driver is `devices/libcuda.c`: no GPU is needed, and none is used.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::json;

use crate::support::{Server, output_of, pinion, tests_folder};

/// The folder of the fake driver, compiled once.
fn driver() -> &'static Path {
    static DRIVER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = DRIVER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("libcuda.so.1");
        let cc = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        output_of(
            Command::new(cc)
                .args(["-shared", "-fPIC", "-o"])
                .arg(library)
                .arg(tests_folder().join("devices/libcuda.c")),
        );
        folder
    });
    folder.path()
}

/// A folder with what passes for the executables of these families: each says what it is and can do nothing more.
fn workers(families: &[&str], version: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for family in families {
        let about = format!(r#"{{"build":"{version}","cuda":{{"family":"{family}","toolkit":13000}}}}"#);
        script(
            folder.path(),
            family,
            &format!("[ \"$1\" = probe ] && echo '{about}' && exit\necho no device >&2\nexit 3"),
        );
    }
    folder
}

fn script(folder: &Path, family: &str, text: &str) {
    let path = folder.join(format!("pinion-cuda-{family}"));
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

const OURS: &str = env!("CARGO_PKG_VERSION");

/// On a machine with these GPUs, a driver for CUDA 13.0 and these executables.
fn with_gpus(mut command: Command, capabilities: &str, workers: &Path) -> Command {
    command
        .env("LD_LIBRARY_PATH", driver())
        .env("FAKE_CUDA_VERSION", "13000")
        .env("FAKE_CUDA_CAPABILITIES", capabilities)
        .env("PINION_CUDA_WORKERS", workers)
        .env_remove("FAKE_CUDA_INIT")
        .env_remove("CUDA_VISIBLE_DEVICES");
    command
}

fn doctor(capabilities: &str, workers: &Path, more: &[(&str, &str)]) -> String {
    let mut command = with_gpus(pinion(), capabilities, workers);
    output_of(command.arg("doctor").envs(more.iter().copied()))
}

/// The one line that begins with `word`.
fn line<'a>(said: &'a str, word: &str) -> &'a str {
    let lines: Vec<&str> = said.lines().filter(|line| line.split_whitespace().next() == Some(word)).collect();
    assert_eq!(lines.len(), 1, "{word}: {said}");
    lines[0]
}

#[test]
fn a_gpu_is_served_by_the_executable_of_its_family() {
    let workers = workers(&["75", "80"], OURS);
    let said = doctor("75 90", workers.path(), &[]);
    let serves = |family: &str| format!("served by {}/pinion-cuda-{family}", workers.path().display());
    assert!(said.contains("driver ") && said.contains("for CUDA 13.0"), "{said}");
    assert!(said.contains("cuda:0 Testing GPU 0 (compute capability 7.5), 16.0 GiB, 15.0 GiB free"), "{said}");
    for (gpu, family) in [("cuda:0", "75"), ("cuda:1", "80")] {
        assert!(said.lines().any(|line| line.contains(gpu) && line.ends_with(&serves(family))), "{gpu}: {said}");
    }
    assert_eq!(line(&said, "device"), "device   cuda:0, cuda:1");
    assert!(!said.lines().any(|line| line.starts_with("note")), "{said}");
}

#[test]
fn whatever_keeps_a_gpu_from_working_is_said_with_what_to_do_and_the_cpu_serves() {
    let good = workers(&["75", "80"], OURS);
    let old = workers(&["80"], "0.0.1");
    let silent = tempfile::tempdir().unwrap();
    script(silent.path(), "80", "echo libcublas.so.13: cannot open shared object file >&2; exit 127");
    type Case<'a> = (&'a str, &'a tempfile::TempDir, &'a [(&'a str, &'a str)], &'a [&'a str]);
    let cases: &[Case] = &[
        (
            "90",
            &good,
            &[("FAKE_CUDA_VERSION", "12020")],
            &["for CUDA 12.2", "CUDA 13.0", "install driver 580 or newer"],
        ),
        ("61", &good, &[], &["compute capability 6.1", "7.5 (pinion-cuda-75)", "8.0 and later (pinion-cuda-80)"]),
        ("90", &good, &[("CUDA_VISIBLE_DEVICES", "")], &["CUDA_VISIBLE_DEVICES is empty", "unset it"]),
        ("", &good, &[("CUDA_VISIBLE_DEVICES", "7")], &["CUDA_VISIBLE_DEVICES is \"7\"", "unset it"]),
        ("", &good, &[], &["finds no GPU", "nvidia-smi -L"]),
        (
            "90",
            &good,
            &[("FAKE_CUDA_INIT", "803")],
            &["CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)", "restart the machine"],
        ),
        ("90", &good, &[("FAKE_CUDA_INIT", "999")], &["cuInit says CUDA error 999", "nvidia-smi"]),
        ("90", &good, &[("FAKE_CUDA_INIT", "crash")], &["NVIDIA's driver crashed (signal 6)", "nvidia-smi"]),
        ("90", &good, &[("FAKE_CUDA_INIT", "hang")], &["did not answer within 10 s", "nvidia-smi"]),
        ("90", &old, &[], &["is version 0.0.1", "install both from one build"]),
        ("90", &silent, &[], &["libcublas.so.13", "LD_LIBRARY_PATH"]),
    ];
    for (capabilities, workers, more, expected) in cases {
        let said = doctor(capabilities, workers.path(), more);
        let note = line(&said, "note");
        for part in *expected {
            assert!(note.contains(part), "{more:?}: {note:?} should say {part:?}");
        }
        assert!(line(&said, "device").starts_with("device   cpu: no GPU can be used"), "{said}");
    }
}

#[test]
fn a_file_that_is_no_library_is_a_driver_that_cannot_be_loaded() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("libcuda.so.1"), "no library").unwrap();
    let library_path = folder.path().display().to_string();
    let said = doctor("90", folder.path(), &[("LD_LIBRARY_PATH", &library_path)]);
    assert!(
        line(&said, "note").contains("cannot be loaded") && line(&said, "note").contains("install it again"),
        "{said}"
    );
}

/// Where the machine has a driver of its own, that one answers.
#[test]
fn without_a_driver_doctor_says_how_to_get_one() {
    let said = output_of(pinion().arg("doctor"));
    let has_driver = output_of(Command::new("sh").args(["-c", "PATH=$PATH:/sbin:/usr/sbin ldconfig -p"]));
    if !has_driver.contains("libcuda.so.1") {
        assert_eq!(line(&said, "driver"), "driver   none");
        assert!(line(&said, "note").contains("install NVIDIA's driver") && said.contains("--gpus all"), "{said}");
    }
}

#[test]
fn a_program_without_executables_beside_it_says_how_to_build_them() {
    let folder = tempfile::tempdir().unwrap();
    // Elsewhere: a developer may have built them beside the program under test.
    let program = folder.path().join("pinion");
    fs::copy(env!("CARGO_BIN_EXE_pinion"), &program).unwrap();
    let said = output_of(with_gpus(Command::new(&program), "86", folder.path()).arg("doctor"));
    let note = line(&said, "note");
    assert!(
        note.contains("pinion-cuda-80 is not beside this program: `cargo xtask cuda --family 80` builds it"),
        "{note}"
    );
    // Put there, it is found.
    let about = format!(r#"{{"build":"{OURS}","cuda":{{"family":"80","toolkit":13000}}}}"#);
    script(folder.path(), "80", &format!("echo '{about}'"));
    let said = output_of(with_gpus(Command::new(&program), "86", Path::new("")).arg("doctor"));
    assert_eq!(line(&said, "device"), "device   cuda:0");
}

#[test]
fn a_server_whose_gpu_cannot_be_used_says_why_and_serves_on_the_cpu() {
    let (data, none) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut server = Server::start_as(with_gpus(pinion(), "61", none.path()), data.path(), &[]);
    server.wait_for_log("compute capability 6.1");
    let input = json!({"prompt": "Say OK", "max_tokens": 4, "temperature": 0});
    let (code, created) = server.post("/v1/models/pinion/smollm2/predictions", &json!({ "input": input }));
    assert_eq!(code, 201, "{created}");
    let ended = server.finished(created["id"].as_str().expect("an id"));
    assert_eq!(ended["status"], "succeeded", "{ended}");
}

fn check(mut command: Command, more: &[&str]) -> Output {
    command.args(["doctor", "--check"]).args(more).output().unwrap()
}

fn golden() -> PathBuf {
    tests_folder().join("../models/llama/golden/smollm2_capital.safetensors")
}

#[test]
fn the_check_asks_the_cpu_and_says_loudly_that_there_was_no_gpu() {
    let none = tempfile::tempdir().unwrap();
    let done = check(with_gpus(pinion(), "", none.path()), &["--golden", golden().to_str().unwrap()]);
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert_eq!(done.status.code(), Some(0), "{said}{}", String::from_utf8_lossy(&done.stderr));
    assert!(said.contains("cpu: smollm2 loaded in") && said.contains("Paris"), "{said}");
    assert!(said.contains("cpu: last_logits ") && said.contains("allowed"), "{said}");
    assert!(said.contains("NO GPU WAS CHECKED"), "{said}");
}

#[test]
fn a_gpu_that_cannot_do_what_it_promised_fails_the_check() {
    let workers = workers(&["80"], OURS);
    let done = check(with_gpus(pinion(), "90", workers.path()), &[]);
    let (said, error) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert_eq!(done.status.code(), Some(1), "{said}{error}");
    assert!(error.contains("cuda:0: the worker stopped"), "{error}");
    assert!(said.contains("cpu: smollm2 loaded in") && !said.contains("NO GPU WAS CHECKED"), "{said}");
}
