//! Workers that are lost, models that break, a store that fails.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dispatch::{Settings, Silence};
use prediction::frame::{FromWorker, Hello, ToWorker};
use prediction::{Event, Id, Outcome, PredictError, Status};
use serde_json::json;
use tokio::time::Instant;

use crate::puppet::{Bench, Puppet, settings, settle, succeeded, text};
use crate::slow_store::SlowStore;

const INTERRUPTED: &str = "Prediction interrupted; please retry (code: PA)";

#[tokio::test(start_paused = true)]
async fn a_lost_worker_is_replaced_and_only_what_was_read_is_over() {
    let mut bench = Bench::new().await;
    let mut worker = bench.loaded(2).await;
    for id in ["silent", "heard", "waits"] {
        bench.submit(id).await;
    }
    worker.admits().await;
    worker.admits().await;
    worker.emits("silent", 1, [Event::Started]);
    worker.emits("heard", 1, [Event::Started, text("a")]);
    drop(worker);
    assert_eq!(bench.end("heard").await.error.as_deref(), Some(INTERRUPTED));
    let mut worker = bench.worker().await;
    worker.loads("echo", 1).await;
    assert_eq!(worker.admits().await.0.as_str(), "silent", "before those who came later");
    worker.emits("silent", 1, [text("b"), succeeded()]);
    let ended = bench.end("silent").await;
    assert_eq!((ended.status, ended.output), (Status::Succeeded, Some(json!(["b"]))));
    assert!(ended.logs.contains("the worker was lost; running again\n"), "{}", ended.logs);
    assert_eq!(worker.admits().await.0.as_str(), "waits");
}

#[tokio::test(start_paused = true)]
async fn a_prediction_takes_down_two_workers_and_no_third() {
    let mut bench = Bench::new().await;
    bench.submit("poison").await;
    for _ in 0..2 {
        let mut worker = bench.worker().await;
        worker.loads("echo", 1).await;
        assert_eq!(worker.admits().await.0.as_str(), "poison");
    }
    assert_eq!(bench.end("poison").await.error.as_deref(), Some(INTERRUPTED));
    bench.submit("next").await;
    let mut worker = bench.worker().await;
    worker.loads("echo", 1).await;
    assert_eq!(worker.admits().await.0.as_str(), "next");
}

#[tokio::test(start_paused = true)]
async fn a_model_that_takes_the_worker_down_as_it_loads_has_failed_to_load() {
    let mut bench = Bench::new().await;
    bench.submit("p").await;
    for _ in 0..2 {
        bench.worker().await.is_asked_to_load("echo").await;
    }
    let ended = bench.end("p").await;
    assert_eq!(ended.error.as_deref(), Some("the worker was lost while it loaded the model"));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_worker_is_told_when_none_lives() {
    let mut bench = Bench::new().await;
    bench.submit("p").await;
    drop(bench.launched().await);
    settle().await;
    assert_eq!(bench.state("p").await.logs, "", "one may die");
    drop(bench.launched().await);
    settle().await;
    let line = "waiting for a worker on cpu: the ones before did not start or did not live\n";
    assert_eq!(bench.state("p").await.logs, line);
    drop(bench.launched().await);
    let mut worker = bench.worker().await;
    worker.loads("echo", 1).await;
    worker.runs("p").await;
    assert_eq!(bench.end("p").await.logs, format!("{line}loading echo\nloaded echo in 0.2 s\n"));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_prediction_whose_worker_is_lost_is_cancelled() {
    let mut bench = Bench::new().await;
    let mut worker = bench.loaded(1).await;
    bench.submit("p").await;
    worker.admits().await;
    let id = Id::from("p");
    let lose = async {
        worker.is_asked_to_cancel("p").await;
        drop(worker);
    };
    let (after, ()) = tokio::join!(bench.dispatch.cancel(&id), lose);
    assert_eq!(after.unwrap().unwrap().status, Status::Canceled);
}

#[tokio::test(start_paused = true)]
async fn a_worker_of_another_build_is_not_used() {
    let mut bench = Bench::new().await;
    let mut stranger = bench.launched().await;
    assert!(matches!(stranger.frame().await, ToWorker::Hello(_)));
    stranger.say(FromWorker::Hello(Hello {
        build: "other".into(),
        device: "cpu".into(),
        name: String::new(),
        memory: None,
    }));
    bench.submit("p").await;
    let mut worker = bench.worker().await;
    worker.loads("echo", 1).await;
    assert_eq!(worker.admits().await.0.as_str(), "p");
}

#[tokio::test(start_paused = true)]
async fn a_model_that_broke_is_loaded_again_and_only_what_was_read_has_failed() {
    let mut bench = Bench::new().await;
    let mut worker = bench.loaded(3).await;
    for id in ["heard", "silent", "on the way"] {
        bench.submit(id).await;
        worker.admits().await;
    }
    worker.emits("silent", 1, [Event::Started]);
    worker.emits("heard", 1, [Event::Started, text("a")]);
    let why = PredictError::Operator("the model panicked: boom".into());
    worker.say(FromWorker::Unloaded { target: "echo".into(), why: Some(why) });
    // What the worker answers to an admission after that is for nobody.
    worker.emits("on the way", 1, [Event::Ended(Outcome::Failed { error: "echo is not loaded".into() })]);
    let heard = bench.end("heard").await;
    assert_eq!((heard.status, heard.error.as_deref()), (Status::Failed, Some("the model panicked: boom")));
    worker.loads("echo", 3).await;
    for id in ["silent", "on the way"] {
        worker.runs(id).await;
        let ended = bench.end(id).await;
        assert_eq!(ended.status, Status::Succeeded);
        assert!(ended.logs.contains("the model panicked: boom; running again\n"), "{}", ended.logs);
    }
}

#[tokio::test(start_paused = true)]
async fn a_prediction_breaks_its_model_twice_and_no_third_time() {
    let mut bench = Bench::new().await;
    let mut worker = bench.worker().await;
    bench.submit("poison").await;
    for _ in 0..2 {
        worker.loads("echo", 1).await;
        assert_eq!(worker.admits().await.0.as_str(), "poison");
        let why = Some(PredictError::Operator("boom".into()));
        worker.say(FromWorker::Unloaded { target: "echo".into(), why });
    }
    assert_eq!(bench.end("poison").await.error.as_deref(), Some("boom"));
    bench.submit("next").await;
    worker.loads("echo", 1).await;
    worker.runs("next").await;
}

#[tokio::test(start_paused = true)]
async fn an_end_is_told_when_it_is_stored_and_not_before() {
    let store = Arc::new(SlowStore::default());
    let mut bench = Bench::on(store.clone(), settings()).await;
    let mut worker = bench.loaded(1).await;
    bench.submit("p").await;
    worker.admits().await;
    store.failing.store(true, Ordering::SeqCst);
    worker.emits("p", 1, [Event::Started, text("a"), succeeded()]);
    let mut reader = bench.feed.follow(&Id::from("p"), 0).await.unwrap().unwrap();
    assert_eq!(reader.next().await.unwrap().event, Event::Started);
    assert_eq!(reader.next().await.unwrap().event, text("a"), "readers do not wait for the disk");
    assert!(tokio::time::timeout(Duration::from_secs(60), reader.next()).await.is_err(), "but for the end they do");
    assert_eq!(bench.state("p").await.status, Status::Processing);
    bench.submit_fails("q").await;
    store.failing.store(false, Ordering::SeqCst);
    assert_eq!(reader.next().await.unwrap().event, succeeded());
    assert_eq!(bench.end("p").await.output, Some(json!(["a"])));
    settle().await;
    bench.submit("q").await;
    assert_eq!(worker.admits().await.0.as_str(), "q");
}

fn impatient() -> Settings {
    Settings { silence: Some(Silence { worker_seconds: 8, load_seconds: 60 }), ..settings() }
}

/// Seconds until the next worker is launched, while this one says nothing and stays.
async fn replaced_after(bench: &mut Bench) -> (u64, Puppet) {
    let began = Instant::now();
    let next = bench.worker().await;
    (began.elapsed().as_secs(), next)
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_stops_answering_is_replaced_and_only_what_was_read_is_over() {
    let mut bench = Bench::on(Bench::new().await.store, impatient()).await;
    let mut hung = bench.loaded(2).await;
    bench.submit("silent").await;
    bench.submit("heard").await;
    hung.admits().await;
    hung.admits().await;
    hung.emits("heard", 1, [Event::Started, text("a")]);
    let (seconds, mut worker) = replaced_after(&mut bench).await;
    assert!((8..=10).contains(&seconds), "{seconds}");
    assert!(hung.is_ended().await, "its link was dropped: a process is killed by that");
    let heard = bench.end("heard").await;
    assert_eq!(heard.error.as_deref(), Some(INTERRUPTED));
    assert_eq!(heard.logs, "the worker stopped answering\n");
    hung.emits("silent", 1, [text("too late"), succeeded()]);
    worker.loads("echo", 1).await;
    assert_eq!(worker.admits().await.0.as_str(), "silent");
    worker.emits("silent", 1, [text("b"), succeeded()]);
    let silent = bench.end("silent").await;
    assert_eq!((silent.status, silent.output), (Status::Succeeded, Some(json!(["b"]))));
    assert!(silent.logs.contains("the worker stopped answering; running again\n"), "{}", silent.logs);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_says_it_is_alive_is_left_alone() {
    let mut bench = Bench::on(Bench::new().await.store, impatient()).await;
    let mut worker = bench.loaded(1).await;
    bench.submit("slow").await;
    worker.admits().await;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_secs(7)).await;
        worker.say(FromWorker::Heartbeat);
    }
    worker.emits("slow", 1, [succeeded()]);
    assert_eq!(bench.end("slow").await.status, Status::Succeeded);
    assert!(worker.hears_nothing());
}

#[tokio::test(start_paused = true)]
async fn a_load_may_take_its_time_and_progress_is_a_sign_of_life() {
    let mut bench = Bench::on(Bench::new().await.store, impatient()).await;
    bench.submit("p").await;
    let mut slow = bench.worker().await;
    slow.is_asked_to_load("echo").await;
    tokio::time::sleep(Duration::from_secs(55)).await;
    slow.say(FromWorker::Loading { target: "echo".into(), line: "half".into() });
    let (seconds, mut worker) = replaced_after(&mut bench).await;
    assert!((60..=64).contains(&seconds), "{seconds}");
    worker.is_asked_to_load("echo").await;
    let (seconds, _) = replaced_after(&mut bench).await;
    assert!((60..=64).contains(&seconds), "{seconds}");
    let error = bench.end("p").await.error;
    assert_eq!(error.as_deref(), Some("the worker stopped answering while it loaded the model"));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_takes_nothing_more_does_not_hold_up_a_stop() {
    let store = Arc::new(SlowStore::default());
    let mut bench = Bench::on(store.clone(), settings()).await;
    let mut worker = bench.loaded(1).await;
    bench.submit("p").await;
    worker.admits().await;
    store.failing.store(true, Ordering::SeqCst);
    worker.emits("p", 1, [Event::Started, text("a"), succeeded()]);
    settle().await;
    tokio::time::timeout(Duration::from_secs(60), bench.dispatch.drain()).await.expect("the drain ends");
    store.failing.store(false, Ordering::SeqCst);
    let mut next = Bench::on(store, settings()).await;
    let mut worker = next.worker().await;
    worker.loads("echo", 1).await;
    assert_eq!(worker.admits().await.0.as_str(), "p", "the next life repeats what the store never had");
}
