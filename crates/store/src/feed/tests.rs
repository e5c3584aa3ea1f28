//! Every follower sees every event once and in order, whatever the interleaving.

use std::sync::Arc;
use std::time::Duration;

use prediction::{Event, Id, Numbered, Outcome, Output, Prediction, Transition};
use proptest::prelude::*;

use super::{Feed, Reader, lock};
use crate::conformance::{numbered, request, whole_run};
use crate::{Appended, MemoryStore, Store};

fn new_feed() -> (Arc<MemoryStore>, Feed) {
    let store = Arc::new(MemoryStore::new());
    (store.clone(), Feed::with_poll(store, Duration::from_millis(1)))
}

async fn open(store: &MemoryStore, feed: &Feed) -> Id {
    let asked = request(1);
    store.create(&asked).await.unwrap();
    feed.open(Prediction::new(asked.clone()));
    asked.id
}

async fn follow(feed: &Feed, id: &Id, after: u64) -> Reader {
    feed.follow(id, after).await.unwrap().unwrap()
}

async fn rest(mut reader: Reader) -> Vec<Numbered> {
    let mut seen = Vec::new();
    while let Some(event) = reader.next().await {
        seen.push(event);
    }
    seen
}

/// Whether `next` has something now. The future is dropped where it has not, as a client that goes away does.
async fn try_next(reader: &mut Reader) -> Option<Option<Numbered>> {
    tokio::select! {
        biased;
        event = reader.next() => Some(event),
        () = tokio::task::yield_now() => None,
    }
}

fn tails(feed: &Feed) -> usize {
    lock(&feed.shared.tails).len()
}

async fn store_all(store: &MemoryStore, id: &Id, events: &[Numbered]) {
    assert_eq!(store.append(id, 0, events).await.unwrap(), Appended::Applied);
}

#[tokio::test]
async fn a_follower_sees_what_was_and_what_comes() {
    let (store, feed) = new_feed();
    let id = open(&store, &feed).await;
    let events = whole_run(&["a", "b"]);
    for event in &events[..2] {
        assert_eq!(feed.publish(&id, event.clone()), Transition::Applied);
    }
    let (all, later) = (follow(&feed, &id, 0).await, follow(&feed, &id, 1).await);
    let mut idle = follow(&feed, &id, 2).await;
    assert_eq!(try_next(&mut idle).await, None);
    let snapshot = feed.snapshot(&id).await.unwrap().unwrap();
    assert_eq!((snapshot.last_seq, snapshot.output), (2, Some(serde_json::json!(["a"]))), "before the store has it");
    assert_eq!(feed.publish(&id, events[1].clone()), Transition::TooLate);
    store_all(&store, &id, &events).await;
    for event in &events[2..] {
        assert_eq!(feed.publish(&id, event.clone()), Transition::Applied);
    }
    assert_eq!(rest(all).await, events);
    assert_eq!(rest(later).await, events[1..]);
    assert_eq!(rest(idle).await, events[2..]);
    assert_eq!(rest(follow(&feed, &id, 3).await).await, events[3..], "after the end, from the store");
    assert_eq!(rest(follow(&feed, &id, 99).await).await, vec![]);
    assert_eq!(feed.publish(&id, numbered(5, Event::Log("late".into()))), Transition::TooLate);
}

#[tokio::test]
async fn memory_goes_with_the_end_and_the_last_reader() {
    let (store, feed) = new_feed();
    let id = open(&store, &feed).await;
    let reader = follow(&feed, &id, 0).await;
    let events = whole_run(&["a"]);
    store_all(&store, &id, &events).await;
    for event in &events {
        let _ = feed.publish(&id, event.clone());
    }
    assert_eq!(tails(&feed), 0, "whoever comes now reads the store");
    assert_eq!(rest(reader).await, events, "whoever was there keeps it");
    // Followers of what waits elsewhere leave nothing behind either.
    let waiting = request(2);
    store.create(&waiting).await.unwrap();
    let (one, two) = (follow(&feed, &waiting.id, 0).await, follow(&feed, &waiting.id, 0).await);
    assert_eq!(tails(&feed), 1);
    drop(one);
    assert_eq!(tails(&feed), 1);
    drop(two);
    assert_eq!(tails(&feed), 0);
}

#[tokio::test]
async fn there_is_no_following_nobody() {
    let (_, feed) = new_feed();
    assert!(feed.follow(&Id::from("nobody"), 0).await.unwrap().is_none());
    assert_eq!(feed.snapshot(&Id::from("nobody")).await.unwrap(), None);
    assert_eq!(tails(&feed), 0);
}

#[tokio::test]
async fn a_follower_of_a_waiting_prediction_is_woken_when_it_goes_live() {
    let (store, feed) = new_feed();
    let asked = request(1);
    store.create(&asked).await.unwrap();
    let mut reader = follow(&feed, &asked.id, 0).await;
    assert_eq!(try_next(&mut reader).await, None);
    let next = tokio::spawn(async move { reader.next().await });
    tokio::task::yield_now().await;
    feed.open(Prediction::new(asked.clone()));
    let _ = feed.publish(&asked.id, numbered(1, Event::Started));
    assert_eq!(next.await.unwrap(), Some(numbered(1, Event::Started)));
}

#[tokio::test]
async fn what_was_before_it_went_live_is_read_from_the_store() {
    let (store, feed) = new_feed();
    let asked = request(1);
    let events = whole_run(&["a", "b", "c"]);
    store.create(&asked).await.unwrap();
    store_all(&store, &asked.id, &events[..3]).await;
    let waiting = follow(&feed, &asked.id, 1).await;
    feed.open(store.get(&asked.id).await.unwrap().unwrap());
    let live = follow(&feed, &asked.id, 0).await;
    store_all(&store, &asked.id, &events[3..]).await;
    for event in &events[3..] {
        assert_eq!(feed.publish(&asked.id, event.clone()), Transition::Applied);
    }
    assert_eq!(rest(waiting).await, events[1..]);
    assert_eq!(rest(live).await, events);
}

#[tokio::test]
async fn what_runs_elsewhere_is_followed_through_the_store() {
    let (store, feed) = new_feed();
    let asked = request(1);
    store.create(&asked).await.unwrap();
    let events = whole_run(&["a", "b"]);
    let reader = tokio::spawn(rest(follow(&feed, &asked.id, 0).await));
    for event in &events {
        tokio::task::yield_now().await;
        store_all(&store, &asked.id, std::slice::from_ref(event)).await;
    }
    assert_eq!(reader.await.unwrap(), events);
    assert_eq!(tails(&feed), 0);
}

#[tokio::test]
async fn followers_of_a_lost_prediction_go_on_from_the_store() {
    let (store, feed) = new_feed();
    let id = open(&store, &feed).await;
    let events = whole_run(&["a", "b"]);
    let reader = tokio::spawn(rest(follow(&feed, &id, 0).await));
    let _ = feed.publish(&id, events[0].clone());
    tokio::task::yield_now().await;
    feed.forget(&id);
    assert_eq!(feed.publish(&id, events[1].clone()), Transition::TooLate);
    store_all(&store, &id, &events).await;
    assert_eq!(reader.await.unwrap(), events);
    assert_eq!(tails(&feed), 0);
}

#[tokio::test]
async fn a_follower_of_swept_data_comes_to_an_end() {
    let (store, feed) = new_feed();
    let asked = request(1);
    store.create(&asked).await.unwrap();
    let mut reader = follow(&feed, &asked.id, 0).await;
    assert_eq!(try_next(&mut reader).await, None);
    store_all(&store, &asked.id, &whole_run(&["a"])).await;
    store.sweep(prediction::Timestamp(i64::MAX)).await.unwrap();
    assert_eq!(reader.next().await, None);
    assert_eq!(rest(follow(&feed, &asked.id, 0).await).await, vec![]);
}

#[tokio::test]
async fn what_goes_live_is_announced_once() {
    let (store, feed) = new_feed();
    let mut gone = feed.opened();
    let mut opened = feed.opened();
    gone.close();
    let id = open(&store, &feed).await;
    feed.open(Prediction::new(request(1)));
    feed.open(Prediction::new(request(2)));
    assert_eq!(opened.recv().await.unwrap().id, id);
    assert_eq!(opened.recv().await.unwrap(), request(2));
    assert!(opened.try_recv().is_err());
    assert_eq!(lock(&feed.shared.watchers).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_followers_on_other_threads_see_it_all() {
    const EVENTS: u64 = 300;
    let (store, feed) = new_feed();
    let id = open(&store, &feed).await;
    let mut readers = tokio::task::JoinSet::new();
    let texts: Vec<String> = (0..EVENTS).map(|number| number.to_string()).collect();
    let events = whole_run(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    for (number, event) in events.iter().enumerate() {
        for after in [0, number as u64, number as u64 + 1, number as u64 / 2] {
            let (feed, id) = (feed.clone(), id.clone());
            readers.spawn(async move { (after, rest(follow(&feed, &id, after).await).await) });
        }
        if matches!(event.event, Event::Ended(_)) {
            store_all(&store, &id, &events).await;
        }
        let _ = feed.publish(&id, event.clone());
    }
    while let Some(done) = readers.join_next().await {
        let (after, seen) = done.unwrap();
        assert_eq!(seen, events[after as usize..], "after {after}");
    }
    assert_eq!(tails(&feed), 0);
}

#[derive(Debug, Clone)]
enum Step {
    Publish,
    /// What was published so far reaches the store, as dispatch does in batches.
    Flush,
    Follow {
        after: u64,
    },
    /// One reader takes what is there, a number of times.
    Read {
        reader: usize,
        times: usize,
    },
    /// The lease is lost and taken up again here, as after a pause of the host.
    Reopen,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Publish),
        2 => Just(Step::Flush),
        2 => (0u64..12).prop_map(|after| Step::Follow { after }),
        4 => (0usize..8, 1usize..4).prop_map(|(reader, times)| Step::Read { reader, times }),
        1 => Just(Step::Reopen),
    ]
}

async fn play(steps: Vec<Step>, open_first: bool) {
    let (store, feed) = new_feed();
    let asked = request(1);
    store.create(&asked).await.unwrap();
    if open_first {
        feed.open(Prediction::new(asked.clone()));
    }
    let (id, mut published, mut flushed) = (asked.id.clone(), Vec::<Numbered>::new(), 0);
    let mut readers: Vec<(u64, Reader, Vec<Numbered>)> = Vec::new();
    let publish = |event: Event, published: &mut Vec<Numbered>| {
        let event = numbered(published.len() as u64 + 1, event);
        published.push(event.clone());
        event
    };
    for step in steps {
        match step {
            Step::Publish => {
                // Not live yet: opened now, as dispatch does before it publishes.
                feed.open(store.get(&id).await.unwrap().unwrap());
                let event = publish(Event::Output(Output::text("x")), &mut published);
                assert_eq!(feed.publish(&id, event), Transition::Applied);
            }
            Step::Flush => {
                store_all(&store, &id, &published[flushed..]).await;
                flushed = published.len();
            }
            Step::Follow { after } => readers.push((after, follow(&feed, &id, after).await, Vec::new())),
            Step::Read { reader, times } => {
                let count = readers.len().max(1);
                if let Some((_, reader, seen)) = readers.get_mut(reader % count) {
                    for _ in 0..times {
                        if let Some(event) = try_next(reader).await {
                            seen.push(event.expect("it has not ended"));
                        }
                    }
                }
            }
            Step::Reopen => {
                store_all(&store, &id, &published[flushed..]).await;
                flushed = published.len();
                feed.forget(&id);
                feed.open(store.get(&id).await.unwrap().unwrap());
            }
        }
    }
    feed.open(store.get(&id).await.unwrap().unwrap());
    let end = publish(Event::Ended(Outcome::Succeeded), &mut published);
    store_all(&store, &id, &published[flushed..]).await;
    assert_eq!(feed.publish(&id, end), Transition::Applied);
    readers.push((0, follow(&feed, &id, 0).await, Vec::new()));
    for (after, reader, mut seen) in readers {
        seen.extend(rest(reader).await);
        let due: Vec<_> = published.iter().filter(|event| event.seq > after).cloned().collect();
        assert_eq!(seen, due, "after {after}");
    }
    assert_eq!(tails(&feed), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn any_interleaving_shows_each_event_once_and_in_order(
        steps in prop::collection::vec(any_step(), 0..40),
        open_first: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(play(steps, open_first));
    }
}
