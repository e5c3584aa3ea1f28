//! The ordinary road: accepted, loaded, let in, told, ended.

use std::time::Duration;

use dispatch::{ModelState, Served, Settings, SubmitError};
use prediction::frame::{Emitted, FromWorker};
use prediction::{Event, Id, Request, Status};
use serde_json::json;

use crate::puppet::{Bench, request, served, settings, settle, succeeded, text};

#[tokio::test(start_paused = true)]
async fn a_prediction_loads_its_model_runs_and_ends() {
    let mut bench = Bench::new().await;
    let mut worker = bench.worker().await;
    bench.submit("p").await;
    worker.loads("echo", 1).await;
    let (id, attempt) = worker.admits().await;
    assert_eq!((id.as_str(), attempt), ("p", 1));
    worker.emits("p", 1, [Event::Started, text("a"), text("b"), succeeded()]);
    let ended = bench.end("p").await;
    assert_eq!((ended.status, ended.output), (Status::Succeeded, Some(json!(["a", "b"]))));
    assert_eq!(ended.logs, "loading echo\nloaded echo in 0.2 s\n");
}

#[tokio::test(start_paused = true)]
async fn readers_hear_events_at_once_and_the_store_soon() {
    let mut bench = Bench::new().await;
    let mut worker = bench.loaded(1).await;
    bench.submit("p").await;
    worker.admits().await;
    let mut reader = bench.feed.follow(&Id::from("p"), 0).await.unwrap().unwrap();
    worker.emits("p", 1, [Event::Started, text("a")]);
    assert_eq!(reader.next().await.unwrap().event, Event::Started);
    assert_eq!(reader.next().await.unwrap().event, text("a"));
    assert_eq!(bench.store.events(&Id::from("p"), 0).await.unwrap(), [], "nobody waited for the store");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(bench.store.events(&Id::from("p"), 0).await.unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_says_try_later() {
    let mut bench = Bench::on(Bench::new().await.store, Settings { waiting_limit: 2, ..settings() }).await;
    let _worker = bench.worker().await;
    bench.submit("a").await;
    bench.submit("b").await;
    let refused = bench.dispatch.submit(request("c")).await.unwrap_err();
    assert!(matches!(refused, SubmitError::Full { waiting: 2, limit: 2 }), "{refused}");
    assert_eq!(bench.store.get(&Id::from("c")).await.unwrap(), None);
    assert_eq!(bench.dispatch.health().waiting, 2);
}

#[tokio::test(start_paused = true)]
async fn capacity_is_kept_and_so_is_the_order_of_arrival() {
    let mut bench = Bench::new().await;
    let mut worker = bench.loaded(2).await;
    for id in ["a", "b", "c", "d"] {
        bench.submit(id).await;
    }
    assert_eq!(worker.admits().await.0.as_str(), "a");
    assert_eq!(worker.admits().await.0.as_str(), "b");
    settle().await;
    assert!(worker.hears_nothing());
    worker.emits("b", 1, [succeeded()]);
    assert_eq!(worker.admits().await.0.as_str(), "c");
    worker.emits("a", 1, [succeeded()]);
    assert_eq!(worker.admits().await.0.as_str(), "d");
}

#[tokio::test(start_paused = true)]
async fn a_busy_model_does_not_hold_up_another() {
    let mut bench = Bench::new().await;
    let mut worker = bench.loaded(1).await;
    bench.submit("a").await;
    bench.submit("b").await;
    worker.admits().await;
    bench.dispatch.submit(Request { target: "other".into(), ..request("c") }).await.unwrap();
    worker.loads("other", 1).await;
    assert_eq!(worker.admits().await.0.as_str(), "c");
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_told_for_what_in_few_lines() {
    let mut bench = Bench::new().await;
    let mut worker = bench.worker().await;
    for id in ["a", "b", "c", "d"] {
        bench.submit(id).await;
    }
    worker.is_asked_to_load("echo").await;
    let say = |line: &str| FromWorker::Loading { target: "echo".into(), line: line.into() };
    for percent in 0..100 {
        worker.say(say(&format!("fetching {percent}%")));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    worker.say(FromWorker::Loaded { target: "echo".into(), bytes: 1, capacity: 1, seconds: 5.0 });
    tokio::time::sleep(Duration::from_secs(10)).await;
    let logs = bench.state("d").await.logs;
    let said =
        ["loading echo", "loading echo: fetching 0%", "loading echo: fetching 40%", "loading echo: fetching 80%"];
    let then = ["loaded echo in 5.0 s", "waiting behind 3 others"];
    assert_eq!(logs.lines().collect::<Vec<_>>(), [&said[..], &then[..]].concat());
    for id in ["a", "b"] {
        worker.emits(id, 1, [succeeded()]);
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    assert!(bench.state("d").await.logs.ends_with("waiting behind 3 others\nwaiting behind 1 other\n"));
}

#[tokio::test(start_paused = true)]
async fn a_short_wait_leaves_no_line() {
    let mut bench = Bench::new().await;
    let mut worker = bench.loaded(1).await;
    bench.submit("a").await;
    bench.submit("b").await;
    for id in ["a", "b"] {
        assert_eq!(worker.admits().await.0.as_str(), id);
        worker.emits(id, 1, [succeeded()]);
    }
    assert_eq!(bench.end("b").await.logs, "");
}

#[tokio::test(start_paused = true)]
async fn what_is_said_for_another_attempt_or_after_the_end_is_dropped() {
    let mut bench = Bench::new().await;
    let mut worker = bench.loaded(1).await;
    bench.submit("p").await;
    worker.admits().await;
    worker.emits("p", 9, [text("late"), succeeded()]);
    worker.emits("p", 1, [text("a"), succeeded(), text("more"), succeeded()]);
    worker.say(FromWorker::Events(vec![Emitted { id: "nobody".into(), attempt: 1, event: succeeded() }]));
    assert_eq!(bench.end("p").await.output, Some(json!(["a"])));
}

#[tokio::test(start_paused = true)]
async fn a_preloaded_model_is_loaded_before_anybody_asks() {
    let preloaded = Served { preload: true, ..served("other") };
    let settings = Settings { served: vec![served("echo"), preloaded], ..settings() };
    let mut bench = Bench::on(Bench::new().await.store, settings).await;
    let mut worker = bench.worker().await;
    worker.loads("other", 3).await;
    settle().await;
    assert_eq!(bench.model_state("other"), Some(ModelState::Loaded { bytes: 1, capacity: 3 }));
    assert_eq!((bench.model_state("echo"), bench.device("cpu").worker), (None, true));
}

#[tokio::test(start_paused = true)]
async fn the_sweep_empties_what_is_past_retention() {
    let mut bench = Bench::on(Bench::new().await.store, Settings { retention_seconds: 0, ..settings() }).await;
    let mut worker = bench.worker().await;
    bench.submit("p").await;
    worker.loads("echo", 1).await;
    worker.admits().await;
    worker.emits("p", 1, [text("a"), succeeded()]);
    bench.end("p").await;
    tokio::time::sleep(Duration::from_secs(61)).await;
    let swept = bench.state("p").await;
    assert!(swept.data_removed && swept.output.is_none() && swept.status == Status::Succeeded);
}
