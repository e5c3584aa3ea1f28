//! What is sent, in which order, how often.

use std::time::Duration;

use prediction::{Event, WebhookEvent};

use super::bench::{Bench, request};

const HOOK: &str = "http://receiver.test/hook";

#[tokio::test(start_paused = true)]
async fn start_and_output_come_as_they_happen_and_completed_last() {
    use WebhookEvent::*;
    let mut bench = Bench::new();
    let mut run = bench.open(request("p", HOOK, Some(vec![Start, Output, Logs, Completed]))).await;
    run.say(Event::Started).await;
    assert_eq!(bench.call().await.state(), "processing null");
    run.put("a").await;
    assert_eq!(bench.call().await.state(), r#"processing ["a"]"#);
    run.end().await;
    assert_eq!(bench.call().await.state(), r#"succeeded ["a"]"#);
    assert!(bench.rest().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_body_of_start_is_the_state_at_the_start() {
    let mut bench = Bench::new();
    let mut run = bench.open(request("p", HOOK, Some(vec![WebhookEvent::Start]))).await;
    // All of it before the webhooks have their first turn.
    run.say(Event::Started).await;
    run.put("a").await;
    run.end().await;
    let calls = bench.rest().await;
    assert_eq!(calls.iter().map(super::bench::Call::state).collect::<Vec<_>>(), ["processing null"]);
}

#[tokio::test(start_paused = true)]
async fn output_and_logs_together_come_at_most_every_500_ms() {
    use WebhookEvent::*;
    let mut bench = Bench::new();
    let mut run = bench.open(request("p", HOOK, Some(vec![Output, Logs, Completed]))).await;
    for n in 0..20 {
        run.put(&n.to_string()).await;
        run.say(Event::Log(format!("{n}\n"))).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    run.end().await;
    let calls = bench.rest().await;
    let (completed, before) = calls.split_last().unwrap();
    let at: Vec<u64> = before.iter().map(|call| call.at).collect();
    assert_eq!(at, [0, 500, 1000, 1500]);
    assert_eq!((completed.at, completed.body["status"].as_str()), (2000, Some("succeeded")));
    assert_eq!(completed.body["output"].as_array().unwrap().len(), 20, "completed carries what was not told");
}

#[tokio::test(start_paused = true)]
async fn by_default_output_and_completed_are_told() {
    let mut bench = Bench::new();
    let mut run = bench.open(request("p", HOOK, None)).await;
    run.say(Event::Started).await;
    run.say(Event::Log("hm\n".into())).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    run.put("a").await;
    assert_eq!(bench.call().await.state(), r#"processing ["a"]"#);
    run.end().await;
    let rest = bench.rest().await;
    assert_eq!(rest.iter().map(super::bench::Call::state).collect::<Vec<_>>(), [r#"succeeded ["a"]"#]);
}

#[tokio::test(start_paused = true)]
async fn without_completed_the_last_output_is_told_all_the_same() {
    let mut bench = Bench::new();
    let mut run = bench.open(request("p", HOOK, Some(vec![WebhookEvent::Output]))).await;
    run.put("a").await;
    assert_eq!(bench.call().await.state(), r#"processing ["a"]"#);
    run.put("b").await;
    run.end().await;
    let last = bench.call().await;
    assert_eq!((last.at, last.state().as_str()), (500, r#"succeeded ["a","b"]"#), "and not before its time");
    assert!(bench.rest().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_empty_filter_is_no_webhook() {
    let mut bench = Bench::new();
    let mut run = bench.open(request("p", HOOK, Some(vec![]))).await;
    run.put("a").await;
    run.end().await;
    assert!(bench.rest().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn completed_waits_for_the_webhook_before_it() {
    let mut bench = Bench::new();
    let mut run = bench.open(request("p", "http://receiver.test/gate", None)).await;
    run.put("a").await;
    assert_eq!(bench.call().await.state(), r#"processing ["a"]"#);
    run.end().await;
    // Polls of the outbox pass while the first is still on the way.
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(bench.calls.try_recv().is_err());
    bench.gate.add_permits(2);
    assert_eq!(bench.call().await.state(), r#"succeeded ["a"]"#);
}

#[tokio::test(start_paused = true)]
async fn a_slow_receiver_holds_up_only_itself() {
    let mut bench = Bench::new();
    for n in 0..100 {
        let completed = Some(vec![WebhookEvent::Completed]);
        bench.open(request(&format!("slow{n}"), "http://slow.test/gate", completed)).await.end().await;
    }
    assert_eq!(bench.call().await.url, "http://slow.test/gate");
    bench.open(request("quick", HOOK, None)).await.end().await;
    let urls: Vec<String> = sent_within_a_second(&mut bench).await;
    assert!(urls.contains(&HOOK.to_owned()), "{urls:?}");
    assert!(urls.len() < 20, "the slow one has its share and no more: {urls:?}");
}

/// Where to.
async fn sent_within_a_second(bench: &mut Bench) -> Vec<String> {
    tokio::time::sleep(Duration::from_secs(1)).await;
    std::iter::from_fn(|| bench.calls.try_recv().ok()).map(|call| call.url).collect()
}
