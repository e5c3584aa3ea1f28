//! `pinion ps`: what people see of a server, and what they are told when there is none.

use std::fs;
use std::process::Output;

use serde_json::Value;

use crate::models;
use crate::processes::until;
use crate::support::{Server, output_of, pinion};

fn ps(words: &[&str], token: Option<&str>) -> Output {
    let mut command = pinion();
    command.env_remove("REPLICATE_API_TOKEN").envs(token.map(|token| ("PINION_TOKEN", token)));
    command.arg("ps").args(words).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn ps_shows_devices_models_memory_and_queues() {
    let folder = tempfile::tempdir().unwrap();
    let small = models::write(folder.path(), "small", 5);
    let config = folder.path().join("cog.yaml");
    let model = |name: &str, keys: &str| {
        format!("{{ name: {name}, model: llama, path: {}, context_tokens: 64, concurrency: 3{keys} }}", small.display())
    };
    let models = format!("[{}, {}]", model("kept", ", pinned: true"), model("other", ""));
    let devices = "[{ device: cpu, memory_bytes: 50000000 }]";
    fs::write(&config, format!("native:\n  devices: {devices}\n  models: {models}\n")).unwrap();
    let server = Server::start(&folder.path().join("data"), &["--config", config.to_str().unwrap()]);
    let status = until("it is loaded", || {
        let status: Value = serde_json::from_str(&output_of(pinion().args(["ps", "--json", "--server", &server.base])))
            .expect("one JSON document");
        (status["devices"][0]["models"][0]["state"] == "loaded").then_some(status)
    });
    assert_eq!(status["targets"], server.get("/pinion/status").1["targets"], "as the server says it");
    assert_eq!(status["devices"][0]["budget_bytes"], 50_000_000);

    let output = ps(&["--server", &format!("{}/", server.base)], None);
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let line = |start: &str| {
        let found = table.lines().find(|line| line.starts_with(start));
        found.unwrap_or_else(|| panic!("{start}: {table}")).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert!(line("cpu ").contains(" runs "), "{table}");
    assert!(line("cpu ").contains("50.0 MB"), "{table}");
    assert!(line("kept ").starts_with("kept cpu loaded, pinned "), "{table}");
    assert!(line("kept ").contains(" 0 of 3 "), "{table}");
    assert_eq!(line("other "), "other - not loaded - - - 0");
    assert!(table.ends_with("no prediction waits\n"), "{table}");
}

#[test]
fn a_pinned_model_that_cannot_be_loaded_is_shown_and_the_server_is_not_ready() {
    let folder = tempfile::tempdir().unwrap();
    let weights = models::write(folder.path(), "large", 5);
    let config = folder.path().join("cog.yaml");
    let model = format!("{{ name: kept, model: llama, path: {}, pinned: true }}", weights.display());
    let devices = "[{ device: cpu, memory_bytes: 3000000 }]";
    fs::write(&config, format!("native: {{ devices: {devices}, models: [{model}] }}\n")).unwrap();
    let server = Server::start(&folder.path().join("data"), &["--config", config.to_str().unwrap()]);
    let row = until("it has failed", || {
        let table = output_of(pinion().args(["ps", "--server", &server.base]));
        table.lines().find(|line| line.contains("failed, pinned")).map(str::to_owned)
    });
    assert!(row.starts_with("kept ") && row.contains("bytes of memory; cpu has 3000000 free for it"), "{row}");
    let (code, problem) = server.get("/readyz");
    assert_eq!((code, &problem["status"]), (503, &Value::from(503)), "{problem}");
    assert_eq!(problem["detail"], "Not ready: kept is pinned and could not be loaded.", "{problem}");
}

#[test]
fn ps_says_in_a_sentence_what_it_lacks() {
    let data = tempfile::tempdir().unwrap();
    let folder = data.path().display().to_string();
    let token = output_of(pinion().args(["token", "create", "laptop", "--data", &folder])).trim().to_owned();
    let server = Server::start(data.path(), &[]);
    let base = server.base.clone();
    let cases = [
        (None, 1, "it wants a token; put one that `pinion token create` made there into PINION_TOKEN"),
        (Some("r8_wrong"), 1, "it does not know the token"),
        (Some(token.as_str()), 0, ""),
    ];
    for (token, code, expected) in cases {
        let output = ps(&["--server", &base], token);
        assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains(expected), "{expected}: {}", text(&output.stderr));
    }
    let other = ps(&["--server", &format!("{base}/v1/account")], Some(&token));
    assert!(text(&other.stderr).contains("is no Pinion of this version"), "{}", text(&other.stderr));

    server.kill();
    let output = ps(&["--server", &base], None);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains(&base) && said.contains("is `pinion serve` running there?"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    let wrong = ps(&["--server", "nowhere"], None);
    assert_eq!(wrong.status.code(), Some(2), "{}", text(&wrong.stderr));
}
