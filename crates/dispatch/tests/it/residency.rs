//! Several models under one budget: who leaves, who stays, who waits and what they read meanwhile.

use std::time::Duration;

use dispatch::{ModelState, Served, Settings};
use prediction::frame::DeviceMemory;
use prediction::{Id, Status};

use crate::player::Player;
use crate::puppet::{Bench, Puppet, device, one_device, served, settings, settle};

async fn bench(budget: u64, served: Vec<Served>) -> Bench {
    Bench::on(Bench::new().await.store, one_device(budget, served)).await
}

/// Has it loaded for a prediction that succeeds.
async fn used(bench: &Bench, worker: &mut Puppet, target: &str, id: &str, bytes: u64) {
    bench.submit_to(target, id).await;
    worker.loads_bytes(target, bytes, 1).await;
    worker.runs(id).await;
    bench.end(id).await;
    settle().await;
}

async fn used_again(bench: &Bench, worker: &mut Puppet, target: &str, id: &str) {
    bench.submit_to(target, id).await;
    worker.runs(id).await;
    bench.end(id).await;
    settle().await;
}

#[tokio::test(start_paused = true)]
async fn the_least_recently_used_model_leaves_when_another_needs_its_room() {
    let mut bench = bench(10, vec![served("a"), served("b"), served("c")]).await;
    let mut worker = bench.worker().await;
    used(&bench, &mut worker, "a", "a1", 4).await;
    used(&bench, &mut worker, "b", "b1", 4).await;
    used_again(&bench, &mut worker, "a", "a2").await;
    bench.submit_to("c", "c1").await;
    worker.has_no_room("c", 5).await;
    worker.unloads("b").await;
    assert_eq!(worker.is_asked_to_load("c").await, Some(6));
    settle().await;
    let logs = bench.state("c1").await.logs;
    assert_eq!(logs, "loading c\nwaiting for memory: c needs 5 bytes, 2 of 10 are free; unloading b\nloading c\n");
}

#[tokio::test(start_paused = true)]
async fn a_size_that_was_measured_is_made_room_for_before_the_load() {
    let mut bench = bench(10, vec![served("a"), served("b")]).await;
    let mut worker = bench.worker().await;
    used(&bench, &mut worker, "a", "a1", 6).await;
    bench.submit_to("b", "b1").await;
    worker.has_no_room("b", 7).await;
    worker.unloads("a").await;
    worker.loads_bytes("b", 7, 1).await;
    worker.runs("b1").await;
    bench.submit_to("a", "a2").await;
    worker.unloads("b").await;
    assert_eq!(worker.is_asked_to_load("a").await, Some(10));
}

#[tokio::test(start_paused = true)]
async fn a_pinned_model_is_loaded_at_the_start_and_never_leaves() {
    let pinned = Served { pinned: true, keep_alive_seconds: Some(1), ..served("p") };
    let mut bench = bench(10, vec![served("a"), served("b"), pinned]).await;
    let mut worker = bench.worker().await;
    worker.loads_bytes("p", 6, 1).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    used(&bench, &mut worker, "a", "a1", 4).await;
    bench.submit_to("b", "b1").await;
    worker.has_no_room("b", 3).await;
    worker.unloads("a").await;
    worker.loads_bytes("b", 3, 1).await;
    worker.runs("b1").await;
    bench.submit_to("a", "a2").await;
    worker.unloads("b").await;
    worker.has_no_room("a", 5).await;
    let error = bench.end("a2").await.error.unwrap();
    assert_eq!(error, "a needs 5 bytes of memory; cpu has 4 free for it (6 more are kept by pinned models)");
    assert!(worker.hears_nothing());
}

#[tokio::test(start_paused = true)]
async fn a_model_larger_than_the_device_is_refused_with_both_numbers_and_nobody_leaves_for_it() {
    let mut bench = bench(10, vec![served("a"), served("huge")]).await;
    let mut worker = bench.worker().await;
    used(&bench, &mut worker, "a", "a1", 4).await;
    bench.submit_to("huge", "p").await;
    worker.has_no_room("huge", 11).await;
    let ended = bench.end("p").await;
    assert_eq!(ended.error.as_deref(), Some("huge needs 11 bytes of memory; cpu has 10 free for it"));
    bench.submit_to("huge", "q").await;
    let error = bench.end("q").await.error.unwrap();
    assert!(error.ends_with("free for it (loading is tried again in 1 s)"), "{error}");
    assert!(matches!(bench.model_state("huge"), Some(ModelState::Failed { .. })));
    used_again(&bench, &mut worker, "a", "a2").await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_model_leaves_after_its_keep_alive() {
    let table = [(Some(60), Some(60)), (Some(0), Some(0)), (None, None)];
    for (keep_alive_seconds, leaves_after) in table {
        let mut bench = bench(10, vec![Served { keep_alive_seconds, ..served("echo") }]).await;
        let mut worker = bench.worker().await;
        bench.submit("held").await;
        worker.loads("echo", 2).await;
        worker.admits().await;
        tokio::time::sleep(Duration::from_secs(100)).await;
        bench.submit("p").await;
        worker.runs("p").await;
        assert!(worker.hears_nothing(), "busy is not idle");
        worker.emits("held", 1, [crate::puppet::succeeded()]);
        let idle = tokio::time::Instant::now();
        let asked = tokio::time::timeout(Duration::from_secs(3600), worker.is_asked_to_unload("echo")).await;
        assert_eq!(asked.ok().map(|()| idle.elapsed().as_secs()), leaves_after);
        bench.end("held").await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_busy_models_room_is_told_and_newer_ones_do_not_go_before_it() {
    let mut bench = bench(10, vec![served("a"), served("b")]).await;
    let mut worker = bench.worker().await;
    bench.submit_to("a", "a1").await;
    worker.loads_bytes("a", 6, 4).await;
    bench.submit_to("a", "a2").await;
    worker.admits().await;
    worker.admits().await;
    bench.submit_to("b", "b1").await;
    worker.has_no_room("b", 7).await;
    settle().await;
    bench.submit_to("a", "a3").await;
    bench.submit_to("b", "b2").await;
    settle().await;
    assert!(worker.hears_nothing(), "a3 came after b1");
    let line = "waiting for memory: b needs 7 bytes, 4 of 10 are free; in use by a (2 running)\n";
    assert_eq!(bench.state("b1").await.logs, format!("loading b\n{line}"));
    assert_eq!(bench.state("b2").await.logs, line);
    assert_eq!(bench.target("b").waits_for.as_deref(), Some(line.trim_end().trim_start_matches("waiting for ")));
    worker.emits("a1", 1, [crate::puppet::succeeded()]);
    settle().await;
    assert!(worker.hears_nothing(), "a2 still runs");
    worker.emits("a2", 1, [crate::puppet::succeeded()]);
    worker.unloads("a").await;
    worker.loads_bytes("b", 7, 1).await;
    worker.runs("b1").await;
    // Between b2 and a3 the order of arrival decides again.
    worker.unloads("b").await;
    worker.loads_bytes("a", 6, 1).await;
    worker.runs("a3").await;
    worker.unloads("a").await;
    worker.loads_bytes("b", 7, 1).await;
    worker.runs("b2").await;
    for id in ["a1", "a2", "a3", "b1", "b2"] {
        assert_eq!(bench.end(id).await.status, Status::Succeeded);
    }
}

#[tokio::test(start_paused = true)]
async fn a_load_serves_all_who_waited_for_it() {
    let mut bench = bench(10, vec![served("a"), served("b")]).await;
    let mut worker = bench.worker().await;
    bench.submit_to("a", "a1").await;
    worker.loads_bytes("a", 6, 1).await;
    worker.admits().await;
    for (target, id) in [("b", "b1"), ("a", "a2"), ("b", "b2"), ("a", "a3"), ("b", "b3")] {
        bench.submit_to(target, id).await;
    }
    worker.has_no_room("b", 6).await;
    worker.emits("a1", 1, [crate::puppet::succeeded()]);
    worker.unloads("a").await;
    worker.loads_bytes("b", 6, 8).await;
    for id in ["b1", "b2", "b3"] {
        worker.runs(id).await;
    }
    worker.unloads("b").await;
    worker.loads_bytes("a", 6, 8).await;
    worker.runs("a2").await;
    worker.runs("a3").await;
}

#[tokio::test(start_paused = true)]
async fn what_is_preloaded_takes_what_is_free_and_leaves_when_asked_for_room() {
    let preloaded = |target| Served { preload: true, ..served(target) };
    let mut bench = bench(10, vec![preloaded("a"), preloaded("b"), served("c")]).await;
    let mut worker = bench.worker().await;
    worker.loads_bytes("a", 6, 1).await;
    worker.has_no_room("b", 7).await;
    settle().await;
    assert!(worker.hears_nothing(), "b does not push a out");
    bench.submit_to("b", "b1").await;
    worker.unloads("a").await;
    worker.loads_bytes("b", 7, 1).await;
    worker.runs("b1").await;
}

#[tokio::test(start_paused = true)]
async fn what_was_loaded_unasked_is_loaded_again_after_its_worker_was_lost() {
    let table = [Served { pinned: true, ..served("p") }, Served { preload: true, ..served("p") }];
    for served in table {
        let mut bench = bench(10, vec![served]).await;
        let mut worker = bench.worker().await;
        worker.loads_bytes("p", 6, 1).await;
        settle().await;
        drop(worker);
        let mut worker = bench.worker().await;
        worker.loads_bytes("p", 6, 1).await;
        settle().await;
        assert_eq!(bench.model_state("p"), Some(ModelState::Loaded { bytes: 6, capacity: 1 }));
    }
}

#[tokio::test(start_paused = true)]
async fn the_budget_is_what_was_set_or_what_the_worker_finds_free_less_a_reserve() {
    const GIB: u64 = 1 << 30;
    let memory = |total_bytes, free_bytes| Some(DeviceMemory { total_bytes, free_bytes });
    let table = [
        ("a set budget", Some(10), memory(100, 90), Some(10)),
        ("a set budget beyond the device", Some(200), memory(100, 90), Some(100)),
        ("a large device", None, memory(80 * GIB, 79 * GIB), Some(79 * GIB - GIB / 2)),
        ("a tiny device", None, memory(900, 800), Some(700)),
        ("a device that does not tell", None, None, None),
    ];
    for (what, set, memory, budget) in table {
        let settings = Settings { devices: vec![device("cpu", set)], ..settings() };
        let mut bench = Bench::on(Bench::new().await.store, settings).await;
        let mut worker = bench.launched().await.greets(memory).await;
        bench.submit("p").await;
        assert_eq!(worker.is_asked_to_load("echo").await, budget, "{what}");
        assert_eq!(bench.device("cpu").budget_bytes, budget, "{what}");
        assert_eq!(bench.device("cpu").total_bytes, memory.map(|memory| memory.total_bytes));
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_starts_before_its_predecessors_memory_is_back_does_not_shrink_the_budget() {
    let mut bench = Bench::new().await;
    let memory = |free_bytes| Some(DeviceMemory { total_bytes: 900, free_bytes });
    drop(bench.launched().await.greets(memory(800)).await);
    let _worker = bench.launched().await.greets(memory(80)).await;
    settle().await;
    assert_eq!(bench.device("cpu").budget_bytes, Some(700));
}

#[tokio::test(start_paused = true)]
async fn two_models_that_do_not_fit_together_take_turns_and_no_prediction_is_lost() {
    let mut bench = bench(10, vec![served("a"), served("b")]).await;
    let player = Player::new(10, &[("a", 6), ("b", 7)]);
    let worker = bench.worker().await;
    tokio::spawn(player.clone().play(worker, u64::MAX));
    for turn in 0..50 {
        let id = format!("p{turn}");
        bench.submit_to(["a", "b"][turn % 2], &id).await;
        assert_eq!(bench.end(&id).await.status, Status::Succeeded, "turn {turn}");
    }
    let seen = player.seen.lock().unwrap();
    assert_eq!((seen.loads.len(), seen.most_bytes, seen.wronged), (50, 7, false));
}

#[tokio::test(start_paused = true)]
async fn a_crowd_that_asks_for_two_models_in_turn_is_served_with_few_loads() {
    let mut bench = bench(10, vec![served("a"), served("b")]).await;
    let player = Player::new(10, &[("a", 6), ("b", 7)]);
    let worker = bench.worker().await;
    tokio::spawn(player.clone().play(worker, u64::MAX));
    for turn in 0..50 {
        bench.submit_to(["a", "b"][turn % 2], &format!("p{turn}")).await;
    }
    for turn in 0..50 {
        assert_eq!(bench.end(&format!("p{turn}")).await.status, Status::Succeeded, "turn {turn}");
    }
    let loads = player.seen.lock().unwrap().loads.len();
    assert!(loads <= 50 / crate::player::CAPACITY as usize + 1, "{loads} loads");
}

#[tokio::test(start_paused = true)]
async fn who_stops_waiting_for_room_leaves_the_busy_model_to_the_others() {
    let mut bench = bench(10, vec![served("a"), served("b")]).await;
    let mut worker = bench.worker().await;
    bench.submit_to("a", "a1").await;
    worker.loads_bytes("a", 6, 4).await;
    worker.admits().await;
    bench.submit_to("b", "b1").await;
    worker.has_no_room("b", 7).await;
    settle().await;
    bench.submit_to("a", "a2").await;
    settle().await;
    assert!(worker.hears_nothing());
    bench.dispatch.cancel(&Id::from("b1")).await.unwrap();
    worker.runs("a2").await;
}
