//! The words between server and worker, as they will stand on a pipe. A change here is a change of the protocol.

use prediction::frame::{DeviceMemory, Emitted, FromWorker, Hello, ToWorker};
use prediction::{Event, Id, Job, LoadSpec, Map, Outcome, Output, PredictError, Weights};
use serde::de::DeserializeOwned;

/// It is written like this, and read back as the same.
fn stands<T: serde::Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(frame: T, text: &str) {
    assert_eq!(serde_json::to_string(&frame).unwrap(), text);
    assert_eq!(serde_json::from_str::<T>(text).unwrap(), frame);
}

fn hello() -> Hello {
    Hello {
        build: "0.1.0".into(),
        device: "cpu".into(),
        name: "a CPU".into(),
        memory: Some(DeviceMemory { total_bytes: 9, free_bytes: 4 }),
    }
}

#[test]
fn hello_names_build_and_device() {
    let text = r#"{"frame":"hello","with":{"build":"0.1.0","device":"cpu","name":"a CPU","memory":{"total_bytes":9,"free_bytes":4}}}"#;
    stands(ToWorker::Hello(hello()), text);
    stands(FromWorker::Hello(hello()), text);
}

#[test]
fn load_says_what_and_how() {
    let spec = LoadSpec {
        target: "smollm2".into(),
        model: "llama".into(),
        weights: Weights::Locked { name: "smollm2".into(), offline: false },
        device: "cpu".into(),
        precision: None,
        context_tokens: Some(2048),
        concurrency: None,
        threads: Some(2),
        batch_invariant: false,
        defaults: Map::new(),
        provenance: Box::default(),
    };
    stands(
        ToWorker::Load { spec: spec.clone(), room_bytes: Some(7) },
        r#"{"frame":"load","with":{"spec":{"target":"smollm2","model":"llama","weights":{"locked":{"name":"smollm2","offline":false}},"device":"cpu","precision":null,"context_tokens":2048,"concurrency":null,"threads":2,"defaults":{}},"room_bytes":7}}"#,
    );
    stands(
        ToWorker::Load { spec: LoadSpec { weights: Weights::Path("w.gguf".into()), ..spec }, room_bytes: None },
        r#"{"frame":"load","with":{"spec":{"target":"smollm2","model":"llama","weights":{"path":"w.gguf"},"device":"cpu","precision":null,"context_tokens":2048,"concurrency":null,"threads":2,"defaults":{}},"room_bytes":null}}"#,
    );
}

#[test]
fn admit_carries_the_job_and_its_attempt() {
    let input = serde_json::json!({"prompt": "hi"}).as_object().unwrap().clone();
    let job = Job { id: Id::from("p1"), input, seed: 7 };
    stands(
        ToWorker::Admit { target: "smollm2".into(), attempt: 2, job },
        r#"{"frame":"admit","with":{"target":"smollm2","attempt":2,"job":{"id":"p1","input":{"prompt":"hi"},"seed":7}}}"#,
    );
}

#[test]
fn the_short_words_to_a_worker() {
    stands(ToWorker::Unload { target: "smollm2".into() }, r#"{"frame":"unload","with":{"target":"smollm2"}}"#);
    stands(ToWorker::Cancel { id: Id::from("p1") }, r#"{"frame":"cancel","with":{"id":"p1"}}"#);
    stands(ToWorker::Drain, r#"{"frame":"drain"}"#);
    stands(ToWorker::Exit, r#"{"frame":"exit"}"#);
}

#[test]
fn the_words_about_loading() {
    let target = || "smollm2".to_owned();
    stands(
        FromWorker::Loading { target: target(), line: "mapping".into() },
        r#"{"frame":"loading","with":{"target":"smollm2","line":"mapping"}}"#,
    );
    stands(
        FromWorker::Loaded { target: target(), bytes: 9, capacity: 4, seconds: 0.5 },
        r#"{"frame":"loaded","with":{"target":"smollm2","bytes":9,"capacity":4,"seconds":0.5}}"#,
    );
    stands(
        FromWorker::LoadFailed { target: target(), error: PredictError::Operator("no file".into()) },
        r#"{"frame":"load_failed","with":{"target":"smollm2","error":{"who":"operator","why":"no file"}}}"#,
    );
    stands(
        FromWorker::NoRoom { target: target(), needed_bytes: 9, room_bytes: 7 },
        r#"{"frame":"no_room","with":{"target":"smollm2","needed_bytes":9,"room_bytes":7}}"#,
    );
    stands(
        FromWorker::Unloaded { target: target(), why: None },
        r#"{"frame":"unloaded","with":{"target":"smollm2","why":null}}"#,
    );
    stands(
        FromWorker::Unloaded { target: target(), why: Some(PredictError::OutOfMemory("full".into())) },
        r#"{"frame":"unloaded","with":{"target":"smollm2","why":{"who":"out_of_memory","why":"full"}}}"#,
    );
}

#[test]
fn events_keep_their_order_and_their_attempt() {
    let said = |event| Emitted { id: Id::from("p1"), attempt: 1, event };
    let events = vec![
        said(Event::Started),
        said(Event::Output(Output::text("a"))),
        said(Event::Output(Output::Whole("b".into()))),
        said(Event::Log("l\n".into())),
        said(Event::Metric { name: "n".into(), value: 3.into() }),
        said(Event::Ended(Outcome::Failed { error: "why".into() })),
    ];
    let text = [
        r#"{"frame":"events","with":["#,
        r#"{"id":"p1","attempt":1,"event":{"type":"started"}},"#,
        r#"{"id":"p1","attempt":1,"event":{"type":"output","value":{"as":"item","value":"a"}}},"#,
        r#"{"id":"p1","attempt":1,"event":{"type":"output","value":{"as":"whole","value":"b"}}},"#,
        r#"{"id":"p1","attempt":1,"event":{"type":"log","value":"l\n"}},"#,
        r#"{"id":"p1","attempt":1,"event":{"type":"metric","value":{"name":"n","value":3}}},"#,
        r#"{"id":"p1","attempt":1,"event":{"type":"ended","value":{"how":"failed","error":"why"}}}"#,
        r#"]}"#,
    ];
    stands(FromWorker::Events(events), &text.concat());
}

#[test]
fn the_short_words_from_a_worker() {
    stands(FromWorker::Heartbeat, r#"{"frame":"heartbeat"}"#);
    stands(FromWorker::HostCache { bytes: 7 }, r#"{"frame":"host_cache","with":{"bytes":7}}"#);
    stands(FromWorker::Bye, r#"{"frame":"bye"}"#);
    stands(FromWorker::Broken { why: "lost".into() }, r#"{"frame":"broken","with":{"why":"lost"}}"#);
}
