//! What is chosen, for every state of driver and executables, and the sentence where nothing is.

use std::process::Command;
use std::time::Duration;

use prediction::frame::BUILD;
use runner::device::probe::{Driver, Gpu, Probe};
use runner::device::{About, Built, Capability, CudaVersion, Family};

use super::ask::{Unanswered, answer};
use super::choose::choose;
use super::{Device, Executable};

fn gpu(number: u32, (major, minor): (u32, u32)) -> Gpu {
    let name = format!("GPU {number}");
    Gpu { number, name, capability: Capability::new(major, minor), total_bytes: 16 << 30, free_bytes: None }
}

fn ready(version: u32, gpus: &[(u32, u32)]) -> Driver {
    let gpus = gpus.iter().zip(0..).map(|(capability, number)| gpu(number, *capability)).collect();
    Driver::Ready { version: CudaVersion(version), gpus }
}

fn failed(code: i32, name: &str) -> Driver {
    Driver::Failed { call: "cuInit".into(), code, name: name.into(), version: None }
}

fn executable(family: &str, about: Result<About, Unanswered>) -> Executable {
    let family = Family::named(family).unwrap();
    Executable { family, path: format!("/opt/{}", family.executable()).into(), about }
}

fn good(family: &str) -> Executable {
    let cuda = Some(Built { family: family.into(), toolkit: CudaVersion(13_000) });
    executable(family, Ok(About { build: BUILD.into(), cuda }))
}

fn chosen(driver: Driver, executables: &[Executable], visible: Option<&str>) -> (Vec<Device>, Vec<String>) {
    choose(&Ok(Probe { release: Some("535.104.05".into()), driver }), executables, visible)
}

#[test]
fn each_gpu_gets_the_executable_of_its_family() {
    let all = [good("75"), good("80")];
    let (devices, notes) = chosen(ready(13_000, &[(7, 5), (8, 0), (8, 6), (8, 9), (9, 0)]), &all, None);
    let served: Vec<(String, String)> =
        devices.into_iter().map(|device| (device.device, device.executable.unwrap().display().to_string())).collect();
    let expect = |number: u32, family: &str| (format!("cuda:{number}"), format!("/opt/pinion-cuda-{family}"));
    assert_eq!(served, [expect(0, "75"), expect(1, "80"), expect(2, "80"), expect(3, "80"), expect(4, "80")]);
    assert!(notes.is_empty(), "{notes:?}");
}

#[test]
fn a_gpu_that_cannot_be_served_costs_the_others_nothing_and_keeps_their_numbers() {
    let (devices, notes) = chosen(ready(13_000, &[(6, 1), (9, 0)]), &[good("80")], None);
    assert_eq!(devices.iter().map(|device| device.device.as_str()).collect::<Vec<_>>(), ["cuda:1"]);
    assert_eq!(notes.len(), 1, "{notes:?}");
}

#[test]
fn every_reason_is_one_sentence_that_says_what_to_do() {
    let absent = |why: &str| Driver::Absent { why: why.into() };
    let all = || vec![good("75"), good("80")];
    let other_build = executable("80", Ok(About { build: "0.0.9".into(), cuda: None }));
    let plain = executable("80", Ok(About { build: BUILD.into(), cuda: None }));
    let unlinked = Unanswered::Ended("libcublas.so.13: cannot open shared object file".into());
    type Case = (Driver, Vec<Executable>, Option<&'static str>, &'static [&'static str]);
    let cases: Vec<Case> = vec![
        (
            absent("libcuda.so.1: No such file or directory"),
            all(),
            None,
            &["no NVIDIA driver", "install", "--gpus all"],
        ),
        (absent("wrong ELF class"), all(), None, &["cannot be loaded (wrong ELF class)", "install it again"]),
        (failed(100, "NO_DEVICE"), all(), None, &["finds no GPU", "nvidia-smi -L"]),
        (failed(100, "NO_DEVICE"), all(), Some(""), &["CUDA_VISIBLE_DEVICES is empty", "unset it"]),
        (failed(100, "NO_DEVICE"), all(), Some("7"), &["CUDA_VISIBLE_DEVICES is \"7\"", "unset it"]),
        (ready(13_000, &[]), all(), Some("-1"), &["CUDA_VISIBLE_DEVICES is \"-1\"", "unset it"]),
        (failed(34, "STUB"), all(), None, &["stub", "LD_LIBRARY_PATH"]),
        (failed(803, "MISMATCH"), all(), None, &["cuInit says MISMATCH (803)", "restart the machine"]),
        (failed(999, "UNKNOWN"), all(), None, &["cuInit says UNKNOWN (999)", "nvidia-smi"]),
        (
            ready(12_020, &[(8, 0)]),
            all(),
            None,
            &[
                "cuda:0 (GPU 0, compute capability 8.0)",
                "the driver 535.104.05 is for CUDA 12.2 and pinion-cuda-80 was built with CUDA 13.0",
                "install driver 580 or newer",
            ],
        ),
        (ready(13_000, &[(6, 1)]), all(), None, &["compute capability 6.1", "7.5 (pinion-cuda-75) and 8.0 and later"]),
        (
            ready(13_000, &[(9, 0)]),
            vec![good("75")],
            None,
            &["pinion-cuda-80 is not beside this program", "cargo xtask cuda --family 80", "PINION_CUDA_WORKERS"],
        ),
        (ready(13_000, &[(9, 0)]), vec![other_build], None, &["is version 0.0.9", "install both from one build"]),
        (ready(13_000, &[(9, 0)]), vec![plain], None, &["/opt/pinion-cuda-80 was not built for it", "--family 80"]),
        (
            ready(13_000, &[(9, 0)]),
            vec![executable("80", Err(unlinked))],
            None,
            &["libcublas.so.13", "LD_LIBRARY_PATH"],
        ),
    ];
    for (driver, executables, visible, expected) in cases {
        let shown = format!("{driver:?}");
        let (devices, notes) = chosen(driver, &executables, visible);
        assert!(devices.is_empty(), "{shown}: {devices:?}");
        let [note] = notes.as_slice() else { panic!("{shown}: {notes:?}") };
        for part in expected {
            assert!(note.contains(part), "{shown}: {note:?} should say {part:?}");
        }
    }
}

#[test]
fn a_driver_that_takes_its_process_down_is_told_from_one_that_hangs() {
    for (why, part) in [
        (Unanswered::Crashed(11), "crashed (signal 11)"),
        (Unanswered::TimedOut(Duration::from_secs(10)), "within 10 s"),
    ] {
        let (devices, notes) = choose(&Err(why), &[good("80")], None);
        assert!(devices.is_empty() && notes[0].contains(part) && notes[0].contains("nvidia-smi"), "{notes:?}");
    }
}

#[test]
fn gpus_with_one_reason_share_its_sentence() {
    let (_, notes) = chosen(ready(13_000, &[(9, 0), (8, 6), (6, 1)]), &[], None);
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].starts_with("cuda:0 (GPU 0, compute capability 9.0), cuda:1 (GPU 1, compute capability 8.6) is"));
}

#[test]
fn who_is_asked_may_answer_hang_crash_or_say_why_not() {
    let ask = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        answer::<u32>(command, Duration::from_secs(60))
    };
    assert_eq!(ask("echo 7"), Ok(7));
    assert_eq!(ask("kill -SEGV $$"), Err(Unanswered::Crashed(11)));
    assert_eq!(ask("echo first >&2; echo no libcublas >&2; exit 127"), Err(Unanswered::Ended("no libcublas".into())));
    assert_eq!(ask("echo 7; exit 3"), Err(Unanswered::Ended("exit status: 3".into())));
    let mut hangs = Command::new("sleep");
    hangs.arg("600");
    assert_eq!(answer::<u32>(hangs, Duration::ZERO), Err(Unanswered::TimedOut(Duration::ZERO)));
    assert!(matches!(answer::<u32>(Command::new("/no/such"), Duration::ZERO), Err(Unanswered::NotStarted(_))));
}
