//! Predictions are kept as they were asked for.

use prediction::{Event, Id, Outcome, Prediction, WebhookEvent};
use serde_json::json;

use super::{Handles, numbered, request};
use crate::StoreError;

pub async fn a_created_prediction_is_read_back_as_it_was_asked_for(handles: Handles) {
    let mut asked = request(1);
    let input = json!({
        "prompt": "Grüße \u{1F600} \"quoted\" \\ \u{0} \n",
        "top_p": 0.95, "count": 512, "big": u64::MAX, "nested": {"b": [1, null, true], "a": {}}
    });
    asked.input = input.as_object().cloned().unwrap_or_default();
    asked.deadline = Some(asked.created_at.plus_millis(30_000));
    asked.webhook = Some("https://example.com/hook?x=1".into());
    asked.webhook_events_filter = Some(vec![WebhookEvent::Start, WebhookEvent::Completed]);
    handles.one.create(&asked).await.unwrap();
    for store in [&handles.one, &handles.two] {
        let read = store.get(&asked.id).await.unwrap();
        assert_eq!(read, Some(Prediction::new(asked.clone())));
    }
    let keys: Vec<_> = asked.input.keys().collect();
    let read = handles.two.get(&asked.id).await.unwrap().unwrap();
    assert_eq!(read.request.input.keys().collect::<Vec<_>>(), keys, "in the caller's order");
}

pub async fn an_id_is_taken_once(handles: Handles) {
    let first = request(1);
    handles.one.create(&first).await.unwrap();
    let mut second = request(2);
    second.id = first.id.clone();
    for store in [&handles.one, &handles.two] {
        let refused = store.create(&second).await.unwrap_err();
        assert!(matches!(&refused, StoreError::Exists(what) if what.contains("p1")), "{refused}");
    }
    assert_eq!(handles.one.get(&first.id).await.unwrap().unwrap().request, first);
    assert_eq!(handles.one.waiting().await.unwrap(), 1);
}

pub async fn what_is_not_there_is_none(handles: Handles) {
    let nobody = Id::from("nobody");
    assert_eq!(handles.one.get(&nobody).await.unwrap(), None);
    assert_eq!(handles.one.by_stream_key("none").await.unwrap(), None);
    assert_eq!(handles.one.events(&nobody, 0).await.unwrap(), vec![]);
    assert_eq!(handles.one.waiting().await.unwrap(), 0);
    assert_eq!(handles.one.lease("a", 10).await.unwrap(), vec![]);
}

pub async fn a_stream_key_finds_its_prediction(handles: Handles) {
    for number in 1..=3 {
        handles.one.create(&request(number)).await.unwrap();
    }
    assert_eq!(handles.two.by_stream_key("k2").await.unwrap(), Some(Id::from("p2")));
    let end = [numbered(1, Event::Ended(Outcome::Canceled))];
    assert_eq!(handles.one.append(&Id::from("p2"), 0, &end).await.unwrap(), crate::Appended::Applied);
    assert_eq!(handles.two.by_stream_key("k2").await.unwrap(), Some(Id::from("p2")), "also when it has ended");
}

pub async fn creates_at_once_from_two_handles_are_all_kept(handles: Handles) {
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..64 {
        for store in [handles.one.clone(), handles.two.clone()] {
            tasks.spawn(async move { store.create(&request(number)).await });
        }
    }
    let done = tasks.join_all().await;
    assert_eq!(done.iter().filter(|created| created.is_ok()).count(), 64, "one of each two");
    assert!(done.iter().all(|created| !matches!(created, Err(StoreError::Unavailable(_)))), "{done:?}");
    assert_eq!(handles.two.waiting().await.unwrap(), 64);
}
