//! `pinion rerun`: the same output again, or what stands in its way.

use std::fs;
use std::path::Path;
use std::process::Output;

use prediction::{Id, Timestamp};
use serde_json::{Value, json};
use store::files::{File, FileRows, referred};
use store::{SqliteStore, Store};

use crate::support::{Server, http, pinion};

fn rerun(data: &Path, config: &Path, id: &str) -> Output {
    pinion().args(["rerun", id, "--data"]).arg(data).arg("--config").arg(config).output().expect("the program starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A prediction over HTTP, awaited; its id.
fn created(server: &Server, model: &str, body: &str) -> String {
    let url = format!("{}/v1/models/pinion/{model}/predictions", server.base);
    let headers = "Content-Type: application/json\r\nPrefer: wait\r\n";
    let (code, prediction) = crate::support::http_bytes("POST", &url, headers, body.as_bytes());
    let prediction: Value = serde_json::from_slice(&prediction).unwrap();
    assert_eq!((code, &prediction["status"]), (201, &"succeeded".into()), "{prediction}");
    prediction["id"].as_str().unwrap().to_owned()
}

fn config(folder: &Path, more: &str) -> std::path::PathBuf {
    let path = folder.join("cog.yaml");
    let model = format!("{{ name: fake, model: llama, synth: tiny, precision: f32{more} }}");
    fs::write(&path, format!("native: {{ models: [{model}] }}")).unwrap();
    path
}

#[test]
fn a_prediction_is_repeated_to_the_same_output_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let (data, served) = (folder.path().join("data"), config(folder.path(), ""));
    fs::create_dir(&data).unwrap();
    let server = Server::start(&data, &["--config", served.to_str().unwrap()]);
    let ask = r#"{"input": {"prompt": "Hi", "max_tokens": 12, "temperature": 1.0}}"#;
    let (id, other) = (created(&server, "fake", ask), created(&server, "fake", ask));
    let (_, shown) = http("GET", &format!("{}/v1/predictions/{id}", server.base), "");
    for hidden in ["run", "device", "weights", "program"] {
        assert!(shown.get(hidden).is_none(), "what it ran on is not the caller's business: {shown}");
    }

    // While the server runs: nothing is written.
    for id in [&id, &other] {
        let again = rerun(&data, &served, id);
        assert_eq!(again.status.code(), Some(0), "{}", stderr(&again));
        assert!(stderr(&again).contains(&format!("{id}: the same output again")), "{}", stderr(&again));
    }

    let changed = rerun(&data, &config(folder.path(), ", context_tokens: 64"), &id);
    assert_eq!(changed.status.code(), Some(1));
    assert!(stderr(&changed).contains("cannot be repeated here: it ran as version"), "{}", stderr(&changed));
    let text = fs::read_to_string(config(folder.path(), "")).unwrap().replace("precision: f32", "precision: f16");
    fs::write(&served, text).unwrap();
    let changed = rerun(&data, &served, &id);
    assert!(stderr(&changed).contains("its weights were random weights"), "{}", stderr(&changed));
    let unknown = rerun(&data, &config(folder.path(), ""), "nobody");
    assert_eq!(unknown.status.code(), Some(2));

    server.kill();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = SqliteStore::open(&data.join("pinion.sqlite")).await.unwrap();
        let run = store.run(&Id::from(id.as_str())).await.unwrap().unwrap();
        assert_eq!((run.device.as_str(), run.precision.as_deref()), ("cpu", Some("f32")));
        assert!(run.version.is_some_and(|version| version.len() == 64) && !run.device_name.is_empty());
        store.sweep(Timestamp::now()).await.unwrap();
        store.close().await;
    });
    let removed = rerun(&data, &served, &id);
    assert_eq!(removed.status.code(), Some(1));
    assert!(
        stderr(&removed).contains("were removed after the retention time; it ran as version"),
        "{}",
        stderr(&removed)
    );
}

#[test]
fn files_are_repeated_byte_by_byte() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let served = folder.path().join("cog.yaml");
    let model = json!({ "name": "painter", "model": "sdxl", "synth": "sdxl-tiny" });
    fs::write(&served, json!({ "native": { "models": [model] } }).to_string()).unwrap();
    let server = Server::start(&data, &["--config", served.to_str().unwrap()]);
    let paint = |more: Value| {
        let mut input = json!({ "width": 64, "height": 64, "num_inference_steps": 2, "num_outputs": 2 });
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        created(&server, "painter", &json!({ "input": input }).to_string())
    };
    let (drawn, other) = (paint(json!({})), paint(json!({ "prompt": "something else" })));
    for id in [&drawn, &other] {
        let again = rerun(&data, &served, id);
        assert_eq!(again.status.code(), Some(0), "{}", stderr(&again));
    }

    // What is made anew is compared with what was kept, to the bit; and what was removed with nothing.
    server.kill();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = SqliteStore::open(&data.join("pinion.sqlite")).await.unwrap();
        for (id, replaced) in [(&drawn, true), (&other, false)] {
            let output = store.get(&Id::from(id.as_str())).await.unwrap().unwrap().output.unwrap();
            let file = store.file_get(referred(output[1].as_str().unwrap()).unwrap()).await.unwrap().unwrap();
            assert!(store.file_delete(&file.id).await.unwrap());
            if replaced {
                store.file_create(&File { sha256: "0".repeat(64), ..file }).await.unwrap();
            }
        }
        store.close().await;
    });
    for (id, expected) in [
        (&drawn, "another output than before; nothing that is recorded differs"),
        (&other, "was removed: there is nothing to compare with"),
    ] {
        let again = rerun(&data, &served, id);
        assert_eq!(again.status.code(), Some(1));
        assert!(stderr(&again).contains(expected), "{}", stderr(&again));
    }
}
