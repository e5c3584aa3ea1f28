//! Two stores that were asked the same things say the same things.

use prediction::{Event, Id, Numbered, Outcome, Output, Timestamp, WebhookEvent};
use proptest::prelude::*;

use super::{memory, two_sqlite_handles};
use crate::conformance::{Handles, START, request};
use crate::{Cursor, ListQuery};

#[derive(Debug, Clone)]
enum Step {
    Create { number: i64, webhook: bool },
    Append { number: i64, attempt: u32, first: u64, events: Vec<Event> },
    Cancel { number: i64 },
    Lease { owner: &'static str, max: usize },
    Renew { owner: &'static str, attempt: u32 },
    Release { owner: &'static str },
    OutboxDone,
    OutboxRetry { seconds: i64 },
    Sweep,
    Wait { seconds: i64 },
}

const PREDICTIONS: i64 = 4;

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Started),
        Just(Event::Output(Output::text("a"))),
        Just(Event::Output(Output::Whole(serde_json::json!({"b": [1, "\u{e9}"]})))),
        Just(Event::Log("c\n".into())),
        Just(Event::Metric { name: "n".into(), value: 3.into() }),
        Just(Event::Ended(Outcome::Succeeded)),
        Just(Event::Ended(Outcome::Failed { error: "boom".into() })),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    let number = 0..PREDICTIONS;
    let owner = prop_oneof![Just("a"), Just("b")];
    let events = prop::collection::vec(any_event(), 0..4);
    prop_oneof![
        3 => (number.clone(), any::<bool>()).prop_map(|(number, webhook)| Step::Create { number, webhook }),
        6 => (number.clone(), 0u32..3, 1u64..6, events)
            .prop_map(|(number, attempt, first, events)| Step::Append { number, attempt, first, events }),
        1 => number.prop_map(|number| Step::Cancel { number }),
        3 => (owner.clone(), 0usize..3).prop_map(|(owner, max)| Step::Lease { owner, max }),
        2 => (owner.clone(), 1u32..3).prop_map(|(owner, attempt)| Step::Renew { owner, attempt }),
        1 => owner.prop_map(|owner| Step::Release { owner }),
        1 => Just(Step::OutboxDone),
        1 => (0i64..40).prop_map(|seconds| Step::OutboxRetry { seconds }),
        1 => Just(Step::Sweep),
        2 => (0i64..40).prop_map(|seconds| Step::Wait { seconds }),
    ]
}

/// What the store answered, as text: all answers are values with `Debug`.
async fn take(handles: &Handles, step: &Step) -> String {
    // One handle writes, the other answers questions later.
    let (store, now) = (&handles.one, handles.clock.now());
    let id = |number: &i64| Id(format!("p{number}"));
    match step {
        Step::Create { number, webhook } => {
            let mut asked = request(*number);
            asked.webhook = webhook.then(|| "http://127.0.0.1:9/".into());
            asked.webhook_events_filter = (number % 2 == 1).then(|| vec![WebhookEvent::Completed]);
            format!("{:?}", store.create(&asked).await)
        }
        Step::Append { number, attempt, first, events } => {
            let events = events.iter().cloned().zip(*first..);
            let events: Vec<_> = events.map(|(event, seq)| Numbered { seq, at: now, event }).collect();
            format!("{:?}", store.append(&id(number), *attempt, &events).await)
        }
        Step::Cancel { number } => format!("{:?}", store.request_cancel(&id(number)).await),
        Step::Lease { owner, max } => format!("{:?}", store.lease(owner, *max).await),
        Step::Renew { owner, attempt } => {
            let held: Vec<_> = (0..PREDICTIONS).map(|number| (id(&number), *attempt)).collect();
            format!("{:?}", store.renew(owner, &held).await)
        }
        Step::Release { owner } => format!("{:?}", store.release(owner).await),
        Step::OutboxDone => match store.outbox_due(now, 1).await.unwrap().first() {
            Some(delivery) => format!("{:?}", store.outbox_done(delivery.key).await),
            None => String::new(),
        },
        Step::OutboxRetry { seconds } => match store.outbox_due(now, 1).await.unwrap().first() {
            Some(delivery) => {
                format!("{:?}", store.outbox_retry(delivery.key, now.plus_millis(seconds * 1000)).await)
            }
            None => String::new(),
        },
        Step::Sweep => format!("{:?}", store.sweep(now).await),
        Step::Wait { seconds } => {
            handles.clock.advance_seconds(*seconds);
            String::new()
        }
    }
}

/// Everything that can be asked, through the other handle.
async fn ask(handles: &Handles) -> String {
    let store = &handles.two;
    let mut said = format!("{:?}\n", store.waiting().await);
    let query = ListQuery { page_size: 3, created_after: Some(START), ..ListQuery::default() };
    let page = store.list(&query).await.unwrap();
    // Keys are a store's own; places in the list are not.
    let places =
        [page.next, page.previous].map(|cursor| cursor.map(|Cursor { created_at, back, .. }| (created_at, back)));
    said += &format!("{:?} {places:?}\n", page.predictions);
    for number in 0..PREDICTIONS {
        let id = Id(format!("p{number}"));
        said += &format!("{:?} {:?}\n", store.get(&id).await, store.events(&id, 1).await);
        said += &format!("{:?}\n", store.by_stream_key(&format!("k{number}")).await);
    }
    for delivery in store.outbox_due(Timestamp(i64::MAX), 9).await.unwrap() {
        said += &format!("{} {} {} {:?}\n", delivery.id, delivery.url, delivery.attempts, delivery.first_at);
    }
    said
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn sqlite_and_memory_agree(steps in prop::collection::vec(any_step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (sqlite, memory) = (two_sqlite_handles().await, memory().await);
            for step in &steps {
                assert_eq!(take(&sqlite, step).await, take(&memory, step).await, "{step:?}");
            }
            assert_eq!(ask(&sqlite).await, ask(&memory).await);
        });
    }
}
