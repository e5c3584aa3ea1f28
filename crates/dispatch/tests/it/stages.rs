//! A cancel at every stage of a prediction's way, and a crowd that is cancelled, broken and killed at random: everybody
//! ends exactly once, and nothing stands still.

use std::time::Duration;

use dispatch::{Settings, SubmitError};
use prediction::frame::FromWorker;
use prediction::{Event, Id, PredictError, Status};

use crate::player::{Dice, Player};
use crate::puppet::{Bench, Puppet, device, one_device, request_for, served, settings, settle, succeeded};

/// A device of 10 bytes where `a` takes 6 and `b` 7.
async fn bench() -> (Bench, Puppet) {
    let mut bench = Bench::on(Bench::new().await.store, one_device(10, vec![served("a"), served("b")])).await;
    let worker = bench.worker().await;
    (bench, worker)
}

/// `a` is loaded and runs `a1`; `b1` has found no room.
async fn blocked() -> (Bench, Puppet) {
    let (bench, mut worker) = bench().await;
    bench.submit_to("a", "a1").await;
    worker.loads_bytes("a", 6, 1).await;
    worker.admits().await;
    bench.submit_to("b", "b1").await;
    worker.has_no_room("b", 7).await;
    settle().await;
    (bench, worker)
}

async fn is_cancelled(bench: &Bench, id: &str) {
    let after = bench.dispatch.cancel(&Id::from(id)).await.unwrap().unwrap();
    assert_eq!((after.status, after.started_at), (Status::Canceled, None));
    assert_eq!(bench.end(id).await.status, Status::Canceled);
}

#[tokio::test(start_paused = true)]
async fn cancelled_while_it_is_being_written() {
    let (bench, mut worker) = bench().await;
    let id = Id::from("p");
    let (submitted, canceled) = tokio::join!(bench.dispatch.submit(request_for("a", "p")), bench.dispatch.cancel(&id));
    submitted.unwrap();
    assert_eq!(canceled.unwrap().unwrap().status, Status::Canceled);
    settle().await;
    assert!(worker.hears_nothing());
}

#[tokio::test(start_paused = true)]
async fn cancelled_before_there_is_a_worker() {
    let bench = Bench::new().await;
    bench.submit("p").await;
    settle().await;
    assert_eq!(bench.target("echo").waits_for.as_deref(), Some("a worker on cpu"));
    is_cancelled(&bench, "p").await;
}

#[tokio::test(start_paused = true)]
async fn cancelled_while_its_model_loads() {
    let (bench, mut worker) = bench().await;
    bench.submit_to("a", "p").await;
    worker.is_asked_to_load("a").await;
    is_cancelled(&bench, "p").await;
    worker.say(FromWorker::Loaded { target: "a".into(), bytes: 6, capacity: 1, seconds: 0.1 });
    bench.submit_to("a", "next").await;
    worker.runs("next").await;
}

#[tokio::test(start_paused = true)]
async fn cancelled_while_it_waits_for_memory() {
    let (bench, mut worker) = blocked().await;
    is_cancelled(&bench, "b1").await;
    worker.emits("a1", 1, [succeeded()]);
    bench.submit_to("a", "a2").await;
    worker.runs("a2").await;
    assert_eq!(bench.target("b").waits_for, None);
}

#[tokio::test(start_paused = true)]
async fn cancelled_while_another_is_unloaded_for_it() {
    let (bench, mut worker) = blocked().await;
    worker.emits("a1", 1, [succeeded()]);
    worker.is_asked_to_unload("a").await;
    is_cancelled(&bench, "b1").await;
    bench.submit_to("a", "a2").await;
    settle().await;
    assert!(worker.hears_nothing(), "a is on its way out");
    worker.say(FromWorker::Unloaded { target: "a".into(), why: None });
    worker.loads_bytes("a", 6, 1).await;
    worker.runs("a2").await;
}

#[tokio::test(start_paused = true)]
async fn cancelled_while_its_model_breaks() {
    let (bench, mut worker) = bench().await;
    bench.submit_to("a", "p").await;
    worker.loads_bytes("a", 6, 1).await;
    worker.admits().await;
    let id = Id::from("p");
    let breaks = async {
        worker.is_asked_to_cancel("p").await;
        let why = Some(PredictError::OutOfMemory("no memory".into()));
        worker.say(FromWorker::Unloaded { target: "a".into(), why });
    };
    let (after, ()) = tokio::join!(bench.dispatch.cancel(&id), breaks);
    assert_eq!(after.unwrap().unwrap().status, Status::Canceled);
    settle().await;
    assert!(worker.hears_nothing(), "nobody asks for it any more");
}

#[tokio::test(start_paused = true)]
async fn cancelled_after_its_worker_was_lost() {
    let (mut bench, mut worker) = bench().await;
    bench.submit_to("a", "p").await;
    worker.loads_bytes("a", 6, 1).await;
    worker.admits().await;
    drop(worker);
    let mut worker = bench.worker().await;
    worker.is_asked_to_load("a").await;
    is_cancelled(&bench, "p").await;
    worker.say(FromWorker::Loaded { target: "a".into(), bytes: 6, capacity: 1, seconds: 0.1 });
    settle().await;
    assert!(worker.hears_nothing());
}

fn out_of_memory() -> PredictError {
    PredictError::OutOfMemory("out of memory on cpu".into())
}

#[tokio::test(start_paused = true)]
async fn a_load_without_memory_is_tried_once_more_without_the_idle_models() {
    for second_works in [true, false] {
        let mut bench = Bench::on(Bench::new().await.store, settings()).await;
        let mut worker = bench.loaded(1).await;
        bench.submit_to("other", "p").await;
        worker.is_asked_to_load("other").await;
        let failed = || FromWorker::LoadFailed { target: "other".into(), error: out_of_memory() };
        worker.say(failed());
        worker.unloads("echo").await;
        worker.is_asked_to_load("other").await;
        if second_works {
            worker.say(FromWorker::Loaded { target: "other".into(), bytes: 1, capacity: 1, seconds: 0.1 });
            worker.runs("p").await;
            assert_eq!(bench.end("p").await.status, Status::Succeeded);
        } else {
            worker.say(failed());
            assert_eq!(bench.end("p").await.error.as_deref(), Some("out of memory on cpu"));
            assert!(worker.hears_nothing());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_without_memory_is_tried_once_more_without_the_idle_models() {
    let mut bench = Bench::on(Bench::new().await.store, settings()).await;
    let mut worker = bench.loaded(1).await;
    bench.submit_to("other", "p").await;
    worker.loads("other", 1).await;
    worker.admits().await;
    worker.emits("p", 1, [Event::Started]);
    let broke = || FromWorker::Unloaded { target: "other".into(), why: Some(out_of_memory()) };
    worker.say(broke());
    worker.unloads("echo").await;
    worker.loads("other", 1).await;
    worker.admits().await;
    worker.say(broke());
    assert_eq!(bench.end("p").await.error.as_deref(), Some("out of memory on cpu"));
    assert!(worker.hears_nothing());
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_says_its_device_is_lost_is_replaced_at_that_word() {
    let mut bench = Bench::new().await;
    let mut worker = bench.loaded(1).await;
    bench.submit("p").await;
    worker.admits().await;
    worker.say(FromWorker::Broken { why: "an illegal address was read".into() });
    assert!(worker.is_ended().await);
    let mut worker = bench.worker().await;
    worker.loads("echo", 1).await;
    worker.runs("p").await;
    let logs = bench.end("p").await.logs;
    assert!(logs.contains("an illegal address was read; running again\n"), "{logs}");
}

/// Sizes in bytes on devices of ten.
const SIZES: [(&str, u64); 5] = [("a", 3), ("b", 4), ("c", 6), ("d", 7), ("huge", 11)];

/// Workers for one device, one after the other, each of which dies after some frames.
fn players(mut player: Player, lives: u64) -> impl FnMut(Puppet) {
    move |puppet| {
        let frames = 5 + player.dice.below(lives);
        let next = Player { dice: Dice(player.dice.below(1 << 30)), ..player.clone() };
        tokio::spawn(async move {
            let puppet = puppet.greets(None).await;
            next.play(puppet, frames).await;
        });
    }
}

async fn crowd(seed: u64) {
    let mut dice = Dice(seed);
    let devices = (0..1 + seed % 3).map(|number| device(&format!("cuda:{number}"), 10)).collect();
    let mut models: Vec<_> = SIZES.iter().map(|(target, _)| served(target)).collect();
    models[0].pinned = seed.is_multiple_of(4);
    models[1].keep_alive_seconds = Some(seed % 5);
    models[2].preload = seed.is_multiple_of(2);
    let settings = Settings { devices, waiting_limit: 1000, ..Settings::new("test", models) };
    let mut bench = Bench::on(Bench::new().await.store, settings).await;
    let player = Player { seconds: 3, breaks: 5, dice: Dice(seed), ..Player::new(10, &SIZES) };
    let seen = player.seen.clone();
    // In half of the runs nobody dies.
    let mut play = players(player, if seed.is_multiple_of(2) { u64::from(u32::MAX) } else { 60 });
    let mut ids = Vec::new();
    while ids.len() < 60 {
        while let Some(puppet) = bench.launched_already() {
            play(puppet);
        }
        let id = format!("p{}", ids.len());
        let (target, _) = SIZES[dice.below(SIZES.len() as u64) as usize];
        match bench.dispatch.submit(request_for(target, &id)).await {
            Ok(_) => ids.push(id),
            Err(SubmitError::Full { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        if dice.below(5) == 0 {
            let who = Id::from(ids[dice.below(ids.len() as u64) as usize].as_str());
            bench.dispatch.cancel(&who).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(dice.below(700))).await;
    }
    let feed = bench.feed.clone();
    let mut ends = Box::pin(async {
        for id in &ids {
            let mut reader = feed.follow(&Id::from(id.as_str()), 0).await.unwrap().expect("it was accepted");
            while reader.next().await.is_some() {}
        }
    });
    let patience = tokio::time::Instant::now() + Duration::from_secs(1500);
    loop {
        tokio::select! {
            () = &mut ends => break,
            puppet = bench.launched() => play(puppet),
            () = tokio::time::sleep_until(patience) => panic!("seed {seed}: {:#?}", bench.dispatch.health()),
        }
    }
    drop(ends);
    assert!(!seen.lock().unwrap().wronged, "seed {seed}");
    for id in &ids {
        let ended = bench.end(id).await;
        let last = bench.events(id).await.into_iter().filter(|event| matches!(event.event, Event::Ended(_))).count();
        assert_eq!(last, 1, "seed {seed}: {id}");
        if ended.request.target == "huge" {
            assert_ne!(ended.status, Status::Succeeded);
        } else if ended.status == Status::Failed {
            let error = ended.error.unwrap();
            let known = ["out of memory", "no memory", "interrupted", "the worker was lost", "pinned"];
            assert!(known.iter().any(|known| error.contains(known)), "seed {seed}: {id}: {error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn in_a_crowd_with_cancels_breaks_and_deaths_everybody_ends_once() {
    for seed in 0..120 {
        crowd(seed).await;
    }
}
