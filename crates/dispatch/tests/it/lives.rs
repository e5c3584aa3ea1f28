//! One data directory, several lives: what a crash and a clean stop leave, and what the next life makes of it.

use std::time::Duration;

use dispatch::{Settings, SubmitError};
use prediction::frame::ToWorker;
use prediction::{Event, Id, Outcome, Status};
use serde_json::json;
use store::Store;

use crate::puppet::{Bench, request, settings, settle, succeeded, text};

const INTERRUPTED: &str = "Prediction interrupted; please retry (code: PA)";

/// The process is gone, with all that it had not stored.
async fn crash(bench: Bench) -> std::sync::Arc<dyn Store> {
    let store = bench.store.clone();
    drop(bench);
    settle().await;
    store
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_what_waited_runs_and_what_was_read_is_over() {
    let mut bench = Bench::new().await;
    let mut worker = bench.loaded(2).await;
    for id in ["heard", "begun", "waiting"] {
        bench.submit(id).await;
    }
    worker.admits().await;
    worker.admits().await;
    worker.emits("heard", 1, [Event::Started, text("a")]);
    worker.emits("begun", 1, [Event::Started]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let store = crash(bench).await;

    let mut bench = Bench::on(store, settings()).await;
    let heard = bench.end("heard").await;
    assert_eq!((heard.error.as_deref(), heard.output), (Some(INTERRUPTED), Some(json!(["a"]))));
    let mut worker = bench.worker().await;
    worker.loads("echo", 1).await;
    assert_eq!(worker.admits().await, ("begun".into(), 2));
    worker.emits("begun", 2, [Event::Started, text("b"), succeeded()]);
    let begun = bench.end("begun").await;
    assert_eq!((begun.status, begun.output), (Status::Succeeded, Some(json!(["b"]))));
    assert!(begun.logs.starts_with("interrupted; running again\n"), "{}", begun.logs);
    assert_eq!(worker.admits().await, ("waiting".into(), 2));
}

#[tokio::test(start_paused = true)]
async fn a_prediction_that_began_in_two_lives_does_not_begin_in_a_third() {
    let mut store = Bench::new().await.store;
    for life in 1..=2 {
        let mut bench = Bench::on(store, settings()).await;
        if life == 1 {
            bench.submit("p").await;
        }
        let mut worker = bench.worker().await;
        worker.loads("echo", 1).await;
        assert_eq!(worker.admits().await, ("p".into(), life));
        worker.emits("p", life, [Event::Started]);
        tokio::time::sleep(Duration::from_secs(1)).await;
        store = crash(bench).await;
    }
    let bench = Bench::on(store, settings()).await;
    assert_eq!(bench.end("p").await.error.as_deref(), Some(INTERRUPTED));
}

#[tokio::test(start_paused = true)]
async fn a_prediction_that_only_waited_outlives_several_restarts() {
    let mut store = Bench::new().await.store;
    for life in 0..4 {
        let bench = Bench::on(store, settings()).await;
        if life == 0 {
            bench.submit("p").await;
        }
        settle().await;
        store = crash(bench).await;
    }
    let mut bench = Bench::on(store, settings()).await;
    let mut worker = bench.worker().await;
    worker.loads("echo", 1).await;
    assert_eq!(worker.admits().await.0, Id::from("p"));
}

#[tokio::test(start_paused = true)]
async fn draining_lets_what_runs_finish_and_leaves_what_waits_to_the_next_life() {
    let mut bench = Bench::new().await;
    let mut worker = bench.loaded(1).await;
    bench.submit("runs").await;
    bench.submit("waits").await;
    worker.admits().await;
    let drain = tokio::spawn({
        let dispatch = bench.dispatch.clone();
        async move { dispatch.drain().await }
    });
    assert_eq!(worker.frame().await, ToWorker::Drain);
    assert!(matches!(bench.dispatch.submit(request("late")).await, Err(SubmitError::Draining)));
    assert!(!drain.is_finished());
    worker.emits("runs", 1, [text("a"), succeeded()]);
    drain.await.unwrap();
    assert_eq!(bench.end("runs").await.status, Status::Succeeded);
    assert_eq!(bench.store.waiting().await.unwrap(), 1, "the lease was given back");

    let mut bench = Bench::on(crash(bench).await, settings()).await;
    let mut worker = bench.worker().await;
    worker.loads("echo", 1).await;
    assert_eq!(worker.admits().await.0, Id::from("waits"));
}

#[tokio::test(start_paused = true)]
async fn draining_ends_at_its_limit_and_what_was_read_is_over() {
    let mut bench = Bench::on(Bench::new().await.store, Settings { drain_seconds: 3, ..settings() }).await;
    let mut worker = bench.loaded(2).await;
    bench.submit("heard").await;
    bench.submit("silent").await;
    worker.admits().await;
    worker.admits().await;
    worker.emits("heard", 1, [text("a")]);
    settle().await;
    let began = tokio::time::Instant::now();
    bench.dispatch.drain().await;
    assert_eq!(began.elapsed().as_secs(), 3);
    assert_eq!(bench.end("heard").await.error.as_deref(), Some(INTERRUPTED));
    let mut bench = Bench::on(crash(bench).await, settings()).await;
    let mut worker = bench.worker().await;
    worker.loads("echo", 1).await;
    assert_eq!(worker.admits().await, ("silent".into(), 2));
    worker.emits("silent", 2, [Event::Ended(Outcome::Succeeded)]);
    assert_eq!(bench.end("silent").await.status, Status::Succeeded);
}
