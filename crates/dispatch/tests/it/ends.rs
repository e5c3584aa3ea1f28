//! Ends that are not the model's: cancel, deadline, limits, a load that fails.

use std::time::Duration;

use dispatch::{ModelState, Settings};
use prediction::frame::FromWorker;
use prediction::{Event, Id, Outcome, PredictError, Request, Status, Timestamp};

use crate::puppet::{Bench, request, settings, settle, succeeded, text};

fn canceled() -> Event {
    Event::Ended(Outcome::Canceled)
}

#[tokio::test(start_paused = true)]
async fn a_waiting_prediction_is_cancelled_without_the_worker() {
    let mut bench = Bench::new().await;
    let mut worker = bench.loaded(1).await;
    bench.submit("a").await;
    bench.submit("b").await;
    worker.admits().await;
    let after = bench.dispatch.cancel(&Id::from("b")).await.unwrap().unwrap();
    assert_eq!((after.status, after.started_at), (Status::Canceled, None));
    worker.emits("a", 1, [succeeded()]);
    bench.end("a").await;
    assert!(worker.hears_nothing(), "b is not let in");
}

#[tokio::test(start_paused = true)]
async fn a_running_prediction_is_cancelled_by_the_worker_and_the_answer_shows_it() {
    let mut bench = Bench::new().await;
    let mut worker = bench.loaded(1).await;
    bench.submit("p").await;
    worker.admits().await;
    worker.emits("p", 1, [Event::Started]);
    let id = Id::from("p");
    let cancel = bench.dispatch.cancel(&id);
    let work = async {
        worker.is_asked_to_cancel("p").await;
        worker.emits("p", 1, [canceled()]);
    };
    let (after, ()) = tokio::join!(cancel, work);
    assert_eq!(after.unwrap().unwrap().status, Status::Canceled);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_takes_its_time_is_not_waited_for_long() {
    let mut bench = Bench::new().await;
    let mut worker = bench.loaded(1).await;
    bench.submit("p").await;
    worker.admits().await;
    worker.emits("p", 1, [Event::Started]);
    let asked = tokio::time::Instant::now();
    let after = bench.dispatch.cancel(&Id::from("p")).await.unwrap().unwrap();
    assert_eq!((after.status, asked.elapsed().as_secs()), (Status::Processing, 2));
    worker.is_asked_to_cancel("p").await;
    bench.dispatch.cancel(&Id::from("p")).await.unwrap();
    assert!(worker.hears_nothing(), "asked once");
    worker.emits("p", 1, [canceled()]);
    assert_eq!(bench.end("p").await.status, Status::Canceled);
}

#[tokio::test(start_paused = true)]
async fn cancelling_what_has_ended_changes_nothing_and_what_is_unknown_is_none() {
    let mut bench = Bench::new().await;
    let _worker = bench.loaded(1).await;
    let after = bench.dispatch.cancel(&Id::from("first")).await.unwrap().unwrap();
    assert_eq!(after, bench.end("first").await);
    assert_eq!(bench.dispatch.cancel(&Id::from("nobody")).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_model_that_ends_before_it_hears_the_cancel_has_ended() {
    let mut bench = Bench::new().await;
    let mut worker = bench.loaded(1).await;
    bench.submit("p").await;
    worker.admits().await;
    let id = Id::from("p");
    let work = async {
        worker.is_asked_to_cancel("p").await;
        worker.emits("p", 1, [text("a"), succeeded()]);
    };
    let (after, ()) = tokio::join!(bench.dispatch.cancel(&id), work);
    assert_eq!(after.unwrap().unwrap().status, Status::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_aborts_what_waits_and_cancels_what_runs() {
    let mut bench = Bench::new().await;
    let mut worker = bench.loaded(1).await;
    for id in ["runs", "waits"] {
        let deadline = Some(Timestamp::now().plus_millis(10_000));
        bench.dispatch.submit(Request { deadline, ..request(id) }).await.unwrap();
    }
    worker.admits().await;
    worker.emits("runs", 1, [Event::Started]);
    assert_eq!(bench.end("waits").await.status, Status::Aborted);
    worker.is_asked_to_cancel("runs").await;
    worker.emits("runs", 1, [canceled()]);
    assert_eq!(bench.end("runs").await.status, Status::Canceled);
}

#[tokio::test(start_paused = true)]
async fn a_run_beyond_its_limit_has_failed_and_the_limit_is_named() {
    let mut bench = Bench::on(Bench::new().await.store, Settings { run_seconds: 7, ..settings() }).await;
    let mut worker = bench.loaded(1).await;
    bench.submit("p").await;
    worker.admits().await;
    let began = tokio::time::Instant::now();
    worker.is_asked_to_cancel("p").await;
    assert_eq!(began.elapsed().as_secs(), 7);
    worker.emits("p", 1, [canceled()]);
    let ended = bench.end("p").await;
    assert_eq!(ended.error.as_deref(), Some("ran for 7 s, which is the limit (run_seconds)"));
}

#[tokio::test(start_paused = true)]
async fn a_failed_load_fails_who_waits_and_is_tried_again_later() {
    let mut bench = Bench::new().await;
    let mut worker = bench.worker().await;
    bench.submit("a").await;
    bench.submit("b").await;
    let broken = || FromWorker::LoadFailed { target: "echo".into(), error: PredictError::Operator("no disk".into()) };
    worker.is_asked_to_load("echo").await;
    worker.say(broken());
    for id in ["a", "b"] {
        let ended = bench.end(id).await;
        assert_eq!((ended.status, ended.error.as_deref()), (Status::Failed, Some("no disk")));
    }
    assert_eq!(bench.model_state("echo"), Some(ModelState::Failed { why: "no disk".into() }));
    bench.submit("at once").await;
    let error = bench.end("at once").await.error;
    assert_eq!(error.as_deref(), Some("no disk (loading is tried again in 1 s)"));
    assert!(worker.hears_nothing());
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.submit("later").await;
    worker.loads("echo", 1).await;
    assert_eq!(worker.admits().await.0.as_str(), "later");
}

#[tokio::test(start_paused = true)]
async fn who_is_no_longer_served_has_failed() {
    let bench = Bench::new().await;
    bench.dispatch.submit(Request { target: "gone".into(), ..request("p") }).await.unwrap();
    assert_eq!(bench.end("p").await.error.as_deref(), Some("gone is not served here any more"));
    settle().await;
    assert_eq!(bench.dispatch.health().waiting, 0);
}
