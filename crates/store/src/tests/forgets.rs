//! What only the store in memory can do: leave nothing of a prediction.

use prediction::{Event, Numbered, Outcome};

use crate::conformance::{START, request};
use crate::{ListQuery, MemoryStore, Store};

#[tokio::test]
async fn what_has_ended_can_be_forgotten_and_what_runs_cannot() {
    let store = MemoryStore::new();
    for number in 1..=3 {
        store.create(&request(number)).await.unwrap();
    }
    let second = request(2).id;
    store.forget(&second);
    assert!(store.get(&second).await.unwrap().is_some(), "it has not ended");
    let attempt = store.lease("me", 3).await.unwrap()[1].attempt;
    let ended = Numbered { seq: 1, at: START, event: Event::Ended(Outcome::Succeeded) };
    let _ = store.append(&second, attempt, std::slice::from_ref(&ended)).await.unwrap();
    store.forget(&second);
    assert_eq!(store.get(&second).await.unwrap(), None);
    assert_eq!(store.by_stream_key(&request(2).stream_key).await.unwrap(), None);
    assert!(store.events(&second, 0).await.unwrap().is_empty());
    let left = store.list(&ListQuery { page_size: 10, ..ListQuery::default() }).await.unwrap().predictions;
    assert_eq!(left.iter().map(|left| left.request.id.clone()).collect::<Vec<_>>(), [request(3).id, request(1).id]);
    store.create(&request(2)).await.unwrap();
    assert_eq!(store.waiting().await.unwrap(), 1, "the id is free again");
}
