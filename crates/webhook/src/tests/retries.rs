//! The completed webhook until it is taken, or until the last try.

use std::collections::HashSet;

use prediction::WebhookEvent;

use super::bench::{BEGIN, Bench, request};
use crate::sign::signature;

#[tokio::test(start_paused = true)]
async fn a_webhook_that_is_not_taken_is_tried_for_a_minute() {
    let mut bench = Bench::new();
    bench.open(request("p", "http://receiver.test/500", None)).await.end().await;
    let calls = bench.rest().await;
    let seconds: Vec<u64> = calls.iter().map(|call| call.at / 1000).collect();
    assert_eq!(seconds, [0, 1, 3, 7, 15, 31, 60]);
    let messages: HashSet<&str> = calls.iter().map(|call| call.header("webhook-id")).collect();
    assert_eq!(messages.len(), 1, "the same message each time");
    let due = bench.store.outbox_due(prediction::Timestamp(i64::MAX), 10).await.unwrap();
    assert!(due.is_empty(), "given up");
}

#[tokio::test(start_paused = true)]
async fn every_try_is_signed_for_its_own_moment() {
    let mut bench = Bench::new();
    bench.open(request("p", "http://receiver.test/500", None)).await.end().await;
    let secret = bench.store.secret("webhook").await.unwrap();
    for call in bench.rest().await {
        let stamp: i64 = call.header("webhook-timestamp").parse().unwrap();
        assert_eq!(stamp, BEGIN.0 / 1_000_000 + i64::try_from(call.at / 1000).unwrap());
        let made = signature(&secret, call.header("webhook-id"), stamp, &call.bytes).unwrap();
        assert_eq!(call.header("webhook-signature"), made);
    }
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_comes_back_is_told_once() {
    let mut bench = Bench::new();
    *bench.well_after.lock().unwrap() = 2;
    let completed = Some(vec![WebhookEvent::Completed]);
    bench.open(request("p", "http://receiver.test/refused", completed)).await.end().await;
    let at: Vec<u64> = bench.rest().await.iter().map(|call| call.at / 1000).collect();
    assert_eq!(at, [0, 1, 3]);
}

#[tokio::test(start_paused = true)]
async fn webhooks_before_the_end_are_not_tried_again() {
    let mut bench = Bench::new();
    let mut run = bench.open(request("p", "http://receiver.test/500", Some(vec![WebhookEvent::Output]))).await;
    run.put("a").await;
    assert_eq!(bench.rest().await.len(), 1);
}
