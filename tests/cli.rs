//! The words of the command line that scripts rely on: what goes to stdout, what to stderr, which exit code.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use crate::support::{Server, http_bytes, output_of, pinion};

fn run(words: &[&str]) -> Output {
    pinion().args(words).output().expect("the program starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The real weights, where `pinion weights pull` left them.
fn weights() -> PathBuf {
    PathBuf::from(output_of(pinion().args(["weights", "pull", "smollm2", "--print-path"])).trim())
}

#[test]
fn the_capital_of_france_is_paris() {
    let question = "prompt=What is the capital of France?";
    let output = run(&["run", "smollm2", "-i", question, "-i", "temperature=0"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(said.trim_end(), "The capital of France is Paris.", "only the text goes to stdout");
}

#[test]
fn json_prints_the_final_prediction() {
    let output = run(&["run", "smollm2", "-i", "prompt=Say OK", "-i", "max_tokens=5", "-i", "seed=3", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let prediction: Value = serde_json::from_slice(&output.stdout).expect("one JSON document on stdout");
    assert_eq!(prediction["status"], "succeeded");
    assert!(prediction["output"].as_array().is_some_and(|pieces| !pieces.is_empty()));
    assert!(prediction["metrics"]["output_token_count"].as_u64().is_some_and(|n| n <= 5), "{prediction}");
    assert_eq!(prediction["input"]["max_tokens"], 5);
}

#[test]
fn an_input_can_come_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("question.txt");
    fs::write(&file, "What is the capital of France?").unwrap();
    let output = run(&["run", "smollm2", "-i", &format!("prompt=@{}", file.display()), "-i", "temperature=0"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("Paris"), "{}", stderr(&output));
}

#[test]
fn bad_words_and_bad_input_exit_with_2_and_name_the_limit() {
    let cases: &[(&[&str], &str)] = &[
        (&["run"], "Usage"),
        (&["run", "gpt-5", "-i", "prompt=x"], "smollm2"),
        (&["run", "smollm2", "-i", "prompt"], "key=value"),
        (&["run", "smollm2", "-i", "prompt=x", "-i", "max_tokens=many"], "max_tokens"),
        (&["run", "smollm2", "-i", "prompt=x", "-i", "max_tokens=0"], "greater than or equal to 1"),
        (&["run", "smollm2", "-i", "prompt=x", "-i", "top_p=1.5"], "less than or equal to 1"),
        (&["run", "smollm2", "-i", "temperature=0"], "prompt is required"),
        (&["run", "smollm2", "-i", "prompt=@/no/such/file"], "/no/such/file"),
        (&["serve", "--listen", "nowhere"], "nowhere"),
        (&["token", "revoke"], "Usage"),
        (&["token", "create", ""], "NAME"),
    ];
    for (words, expected) in cases {
        let output = run(words);
        let shown = words.iter().map(|word| word.chars().take(40).collect::<String>()).collect::<Vec<_>>();
        assert_eq!(output.status.code(), Some(2), "{shown:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{shown:?} should say {expected:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{shown:?}");
    }
}

#[test]
fn a_prompt_the_model_refuses_exits_with_1_and_the_hosted_code() {
    let long = format!("prompt={}", "gear ".repeat(20_000));
    let cases: &[(&[&str], &str)] = &[
        (&["-i", "prompt="], "E1001"),
        (&["-i", &long], "E1002"),
        (&["-i", "prompt=x", "-i", "prompt_template=no placeholder"], "E1003"),
    ];
    for (words, code) in cases {
        let output = run(&[&["run", "smollm2"], *words].concat());
        assert_eq!(output.status.code(), Some(1), "{code}: {}", stderr(&output));
        assert!(stderr(&output).contains(code), "{code}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{code}");
    }
}

#[test]
fn broken_weight_files_are_named_before_device_work() {
    let good = fs::read(weights()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let header = good[..4_000_000].to_vec();
    let cases = [
        (write("cut.gguf", &good[..good.len() - 1_000_000]), "past the file's end"),
        (write("header.gguf", &header), "need more bytes than there are; the file has 4000000 bytes"),
        (write("short.gguf", &good[..1000]), "tensor_count is 272; at most 30 fit"),
        (write("noise.gguf", b"not a model at all"), "GGUF"),
        (folder.path().join("absent.gguf").display().to_string(), "absent.gguf"),
    ];
    for (path, expected) in cases {
        let output = run(&["run", "smollm2", "-i", "prompt=x", "--weights", &path]);
        assert_eq!(output.status.code(), Some(1), "{path}: {}", stderr(&output));
        assert!(stderr(&output).to_lowercase().contains(&expected.to_lowercase()), "{path}: {}", stderr(&output));
    }
}

#[test]
fn an_altered_file_in_the_cache_is_found_and_refused() {
    let cache = tempfile::tempdir().unwrap();
    let mirror = tempfile::tempdir().unwrap();
    fs::copy(weights(), mirror.path().join("SmolLM2-135M-Instruct.Q4_1.gguf")).unwrap();
    let with_cache = |words: &[&str]| {
        let mut command = pinion();
        command.args(words).env("PINION_CACHE", cache.path()).env("PINION_WEIGHTS_DIR", mirror.path());
        command.output().unwrap()
    };
    let pulled = with_cache(&["weights", "pull", "smollm2", "--print-path"]);
    assert_eq!(pulled.status.code(), Some(0), "{}", stderr(&pulled));
    let path = PathBuf::from(String::from_utf8_lossy(&pulled.stdout).trim());
    assert!(path.starts_with(cache.path()));
    assert_eq!(with_cache(&["weights", "verify", "smollm2"]).status.code(), Some(0));

    let real = fs::canonicalize(&path).unwrap();
    alter(&real);
    let verified = with_cache(&["weights", "verify", "smollm2"]);
    assert_eq!(verified.status.code(), Some(1));
    assert!(stderr(&verified).contains("b179c952"), "the expected digest is named: {}", stderr(&verified));
    assert!(with_cache(&["run", "smollm2", "-i", "prompt=Hi", "-i", "max_tokens=2"]).status.success(), "fetched anew");
}

/// One flipped byte in the middle, length kept.
fn alter(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn an_open_address_needs_a_token_and_a_revoked_one_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let folder = data.path().display().to_string();
    let refused = run(&["serve", "--listen", "0.0.0.0:0", "--data", &folder]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("pinion token create"), "{}", stderr(&refused));

    let token = output_of(pinion().args(["token", "create", "laptop", "--data", &folder])).trim().to_owned();
    assert!(token.starts_with("r8_"), "{token}");
    let listed = output_of(pinion().args(["token", "list", "--data", &folder]));
    assert!(listed.contains("laptop") && !listed.contains(&token), "{listed}");

    let server = Server::start(data.path(), &[]);
    let account = format!("{}/v1/account", server.base);
    let ask = |header: &str| http_bytes("GET", &account, header, b"").0;
    assert_eq!(ask(&format!("Authorization: Bearer {token}\r\n")), 200);
    assert_eq!(ask(&format!("Authorization: Token {token}\r\n")), 200);
    assert_eq!(ask("Authorization: Bearer r8_wrong\r\n"), 401);
    assert_eq!(ask(""), 401);
    output_of(pinion().args(["token", "revoke", "laptop", "--data", &folder]));
    assert_eq!(ask(&format!("Authorization: Bearer {token}\r\n")), 401, "revoked while the server runs");
}

#[test]
fn models_and_doctor_say_what_is_here() {
    let models = output_of(pinion().arg("models"));
    assert!(models.contains("smollm2") && models.contains("meta/meta-llama-3-70b-instruct"), "{models}");
    let doctor = output_of(pinion().arg("doctor"));
    for word in ["cpu", "memory", "cache", "smollm2"] {
        assert!(doctor.to_lowercase().contains(word), "{word}: {doctor}");
    }
}

#[test]
fn a_failed_run_leaves_the_file_of_an_earlier_one_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("answer.txt");
    fs::write(&file, "an earlier answer").unwrap();
    let run = |prompt: &str, output: &Path| {
        let words = ["run", "smollm2", "-i", prompt, "-i", "max_tokens=4", "-i", "temperature=0", "-o"];
        pinion().args(words).arg(output).output().unwrap()
    };
    assert_eq!(run("prompt=", &file).status.code(), Some(1));
    assert_eq!(fs::read_to_string(&file).unwrap(), "an earlier answer");
    let done = run("prompt=Say OK", &file);
    assert_eq!(done.status.code(), Some(0));
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    assert_eq!(fs::read_to_string(&file).unwrap(), text.strip_suffix('\n').unwrap());
    for nowhere in [folder.path().to_owned(), folder.path().join("no/such.txt")] {
        assert_eq!(run("prompt=x", &nowhere).status.code(), Some(2), "before any work");
    }
}

#[test]
fn doctor_says_that_a_path_of_cog_yaml_leads_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("cog.yaml");
    fs::write(&config, "native: {models: [{name: own, model: llama, path: /no/such.gguf}]}").unwrap();
    let said = output_of(pinion().arg("doctor").arg("--config").arg(&config));
    assert!(said.contains("own: weights missing: cog.yaml names /no/such.gguf"), "{said}");
}

#[test]
fn the_plain_program_links_no_cuda() {
    let listed = output_of(std::process::Command::new("ldd").arg(env!("CARGO_BIN_EXE_pinion")));
    assert!(!listed.contains("libcu") && !listed.contains("not found"), "{listed}");
}
