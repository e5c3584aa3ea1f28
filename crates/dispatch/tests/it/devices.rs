//! Several devices: where a prediction goes, where a model goes, and what the loss of one worker costs the others.

use std::time::Duration;

use dispatch::{On, Served, Settings};
use prediction::frame::FromWorker;
use prediction::{Event, PredictError, Status};
use tokio::time::Instant;

use crate::puppet::{Bench, Puppet, device, served, settings, settle, succeeded, text};

async fn bench(budget: impl Into<Option<u64>>, served: Vec<Served>) -> (Bench, Puppet, Puppet) {
    let budget = budget.into();
    let devices = vec![device("cuda:0", budget), device("cuda:1", budget)];
    let mut bench = Bench::on(Bench::new().await.store, Settings { devices, served, ..settings() }).await;
    let (first, second) = (bench.worker_of("cuda:0").await, bench.worker_of("cuda:1").await);
    settle().await;
    (bench, first, second)
}

fn on(target: &str, device: &str) -> Served {
    Served { on: On::Device(device.into()), ..served(target) }
}

#[tokio::test(start_paused = true)]
async fn a_model_goes_to_the_emptiest_device_and_predictions_go_where_it_is() {
    let (bench, mut first, mut second) = bench(10, vec![served("a"), served("b")]).await;
    bench.submit_to("a", "a1").await;
    first.loads_bytes("a", 4, 2).await;
    first.runs("a1").await;
    bench.submit_to("b", "b1").await;
    second.loads_bytes("b", 4, 2).await;
    second.runs("b1").await;
    bench.submit_to("b", "b2").await;
    second.runs("b2").await;
    bench.submit_to("a", "a2").await;
    first.runs("a2").await;
}

/// Two devices of ten bytes, each with an idle model of nine that was used once, a before b; c may be on both.
async fn both_full() -> (Bench, Puppet, Puppet) {
    let (bench, mut first, mut second) = bench(10, vec![on("a", "cuda:0"), on("b", "cuda:1"), served("c")]).await;
    for (worker, target, id) in [(&mut first, "a", "a1"), (&mut second, "b", "b1")] {
        bench.submit_to(target, id).await;
        worker.loads_bytes(target, 9, 1).await;
        worker.runs(id).await;
        bench.end(id).await;
        settle().await;
    }
    (bench, first, second)
}

#[tokio::test(start_paused = true)]
async fn the_model_that_is_missed_least_leaves_whichever_device_it_is_on() {
    let (bench, mut first, mut second) = both_full().await;
    bench.submit_to("c", "c1").await;
    first.has_no_room("c", 8).await;
    first.unloads("a").await;
    first.loads_bytes("c", 8, 1).await;
    first.runs("c1").await;
    assert!(second.hears_nothing());
}

#[tokio::test(start_paused = true)]
async fn room_is_made_on_one_device_and_not_on_two() {
    let (bench, mut first, mut second) = both_full().await;
    bench.submit_to("c", "c1").await;
    first.has_no_room("c", 8).await;
    first.is_asked_to_unload("a").await;
    bench.submit_to("c", "c2").await;
    bench.submit_to("b", "b2").await;
    second.runs("b2").await;
    settle().await;
    assert!(second.hears_nothing() && first.hears_nothing());
    first.say(FromWorker::Unloaded { target: "a".into(), why: None });
    first.loads_bytes("c", 8, 2).await;
    first.runs("c1").await;
}

#[tokio::test(start_paused = true)]
async fn of_several_copies_one_is_pinned_and_another_takes_its_part_when_it_is_lost() {
    let pinned = Served { pinned: true, ..served("p") };
    let (mut bench, mut first, mut second) = bench(10, vec![pinned]).await;
    first.loads_bytes("p", 4, 1).await;
    for id in ["p1", "p2"] {
        bench.submit_to("p", id).await;
    }
    first.admits().await;
    second.loads_bytes("p", 4, 1).await;
    second.admits().await;
    settle().await;
    let is_pinned = |bench: &Bench, device| bench.model(device, "p").is_some_and(|model| model.pinned);
    assert!(is_pinned(&bench, "cuda:0") && !is_pinned(&bench, "cuda:1"));
    first.emits("p1", 1, [succeeded()]);
    bench.end("p1").await;
    drop(first);
    let mut next = bench.worker_of("cuda:0").await;
    settle().await;
    assert!(is_pinned(&bench, "cuda:1") && next.hears_nothing());
}

#[tokio::test(start_paused = true)]
async fn a_crowded_model_is_loaded_again_where_there_is_room() {
    let (bench, mut first, mut second) = bench(10, vec![served("a")]).await;
    for id in ["a1", "a2", "a3"] {
        bench.submit_to("a", id).await;
    }
    first.loads_bytes("a", 4, 2).await;
    first.admits().await;
    first.admits().await;
    settle().await;
    assert!(second.hears_nothing(), "one that waits is not worth a load for two");
    bench.submit_to("a", "a4").await;
    second.loads_bytes("a", 4, 2).await;
    second.runs("a3").await;
    second.runs("a4").await;
    bench.submit_to("a", "a5").await;
    second.runs("a5").await;
}

#[tokio::test(start_paused = true)]
async fn a_second_copy_pushes_nobody_out() {
    let (bench, mut first, mut second) = bench(10, vec![on("a", "cuda:0"), served("b")]).await;
    bench.submit_to("a", "a1").await;
    first.loads_bytes("a", 4, 1).await;
    first.runs("a1").await;
    for id in ["b1", "b2", "b3"] {
        bench.submit_to("b", id).await;
    }
    second.loads_bytes("b", 7, 1).await;
    second.admits().await;
    settle().await;
    assert!(first.hears_nothing());
}

#[tokio::test(start_paused = true)]
async fn a_model_that_is_bound_to_a_device_goes_there_or_nowhere() {
    let served = vec![on("a", "cuda:0"), on("b", "cuda"), on("c", "cuda:7"), on("d", "cpu")];
    let (bench, mut first, mut second) = bench(10, served).await;
    bench.submit_to("a", "a1").await;
    first.loads_bytes("a", 1, 1).await;
    bench.submit_to("b", "b1").await;
    second.loads_bytes("b", 1, 1).await;
    for (target, on) in [("c", "cuda:7"), ("d", "cpu")] {
        bench.submit_to(target, target).await;
        let error = bench.end(target).await.error.unwrap();
        assert_eq!(error, format!("{target} is to be on {on}, and there is only cuda:0, cuda:1"));
    }
}

#[tokio::test(start_paused = true)]
async fn when_one_worker_is_lost_the_other_goes_on_and_takes_over() {
    let (mut bench, mut first, mut second) = bench(10, vec![served("a")]).await;
    for id in ["a1", "a2", "a3"] {
        bench.submit_to("a", id).await;
    }
    first.loads_bytes("a", 4, 1).await;
    first.admits().await;
    second.loads_bytes("a", 4, 2).await;
    second.admits().await;
    second.admits().await;
    first.emits("a1", 1, [Event::Started]);
    second.emits("a2", 1, [Event::Started, text("x")]);
    second.emits("a3", 1, [succeeded()]);
    bench.end("a3").await;
    drop(first);
    assert_eq!(second.admits().await.0.as_str(), "a1", "it runs again where the model is");
    second.emits("a1", 1, [text("y"), succeeded()]);
    second.emits("a2", 1, [succeeded()]);
    for id in ["a1", "a2"] {
        assert_eq!(bench.end(id).await.status, Status::Succeeded);
    }
    let mut next = bench.worker_of("cuda:0").await;
    settle().await;
    assert!(next.hears_nothing());
}

#[tokio::test(start_paused = true)]
async fn a_late_word_of_one_device_is_not_taken_for_anothers() {
    let (bench, mut first, mut second) = bench(10, vec![served("a")]).await;
    bench.submit_to("a", "a1").await;
    first.loads_bytes("a", 4, 1).await;
    first.admits().await;
    first.say(FromWorker::Unloaded { target: "a".into(), why: Some(PredictError::Operator("boom".into())) });
    settle().await;
    // Both are empty again, and the first is asked first.
    first.is_asked_to_load("a").await;
    first.say(FromWorker::LoadFailed { target: "a".into(), error: PredictError::Operator("no".into()) });
    second.loads_bytes("a", 4, 1).await;
    second.admits().await;
    first.emits("a1", 1, [text("late"), succeeded()]);
    settle().await;
    second.emits("a1", 1, [text("right"), succeeded()]);
    assert_eq!(bench.end("a1").await.output, Some(serde_json::json!(["right"])));
}

#[tokio::test(start_paused = true)]
async fn a_model_that_does_not_load_on_one_device_is_tried_on_the_next() {
    let (bench, mut first, mut second) = bench(10, vec![served("a")]).await;
    bench.submit_to("a", "a1").await;
    let no = |why: &str| FromWorker::LoadFailed { target: "a".into(), error: PredictError::Operator(why.into()) };
    first.is_asked_to_load("a").await;
    first.say(no("not here"));
    second.is_asked_to_load("a").await;
    second.say(no("nor here"));
    assert_eq!(bench.end("a1").await.error.as_deref(), Some("nor here"));
}

#[tokio::test(start_paused = true)]
async fn what_is_loaded_unasked_is_tried_on_the_next_device_too() {
    for served in [Served { pinned: true, ..served("a") }, Served { preload: true, ..served("a") }] {
        let (_bench, mut first, mut second) = bench(10, vec![served]).await;
        first.is_asked_to_load("a").await;
        first.say(FromWorker::LoadFailed { target: "a".into(), error: PredictError::Operator("no".into()) });
        second.is_asked_to_load("a").await;
        second.say(FromWorker::LoadFailed { target: "a".into(), error: PredictError::Operator("no".into()) });
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert!(first.hears_nothing() && second.hears_nothing(), "and then only when it is asked for");
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_greets_and_dies_is_not_replaced_in_a_tight_loop() {
    let mut bench = Bench::new().await;
    let began = Instant::now();
    let mut workers = 0;
    while began.elapsed() < Duration::from_secs(30) {
        drop(bench.worker().await);
        workers += 1;
    }
    assert!((5..15).contains(&workers), "{workers} in 30 s");
    let good = bench.worker().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    drop(good);
    let lost = Instant::now();
    bench.worker().await;
    assert_eq!(lost.elapsed().as_millis(), 0, "one that lived is replaced at once");
}
