//! What retention removes and what it leaves.

use prediction::{Id, Map, Request, Status};

use super::{Handles, START, request, whole_run};
use crate::Appended;

pub async fn a_sweep_leaves_the_fact_and_removes_the_data(handles: Handles) {
    let asked = request(1);
    handles.one.create(&asked).await.unwrap();
    let events = whole_run(&["a"]);
    assert_eq!(handles.one.append(&asked.id, 0, &events).await.unwrap(), Appended::Applied);
    let before = handles.one.get(&asked.id).await.unwrap().unwrap();
    let end = before.completed_at.unwrap();
    assert_eq!(handles.two.sweep(end).await.unwrap(), 0, "ended at the moment is not before it");
    assert_eq!(handles.two.sweep(end.plus_millis(1)).await.unwrap(), 1);
    let mut swept = before.clone();
    swept.remove_data();
    let after = handles.one.get(&asked.id).await.unwrap().unwrap();
    assert_eq!(after, swept);
    assert_eq!((after.request.input, after.output, after.status), (Map::new(), None, Status::Succeeded));
    assert_eq!(handles.one.events(&asked.id, 0).await.unwrap(), vec![]);
    assert_eq!(handles.one.sweep(end.plus_millis(1)).await.unwrap(), 0);
    assert_eq!(handles.one.append(&asked.id, 0, &events).await.unwrap(), Appended::Fenced);
    assert_eq!(handles.one.by_stream_key("k1").await.unwrap(), Some(asked.id));
}

pub async fn a_sweep_touches_nothing_unfinished_young_or_unsent(handles: Handles) {
    let later = START.plus_millis(3_600_000);
    let webhook = Some("http://127.0.0.1:9/".to_owned());
    let unsent = Request { webhook, ..request(3) };
    for asked in [&request(1), &request(2), &unsent] {
        handles.one.create(asked).await.unwrap();
    }
    handles.one.lease("a", 1).await.unwrap();
    assert_eq!(handles.one.append(&Id::from("p1"), 1, &whole_run(&["a"])[..2]).await.unwrap(), Appended::Applied);
    assert_eq!(handles.one.append(&unsent.id, 0, &whole_run(&["a"])).await.unwrap(), Appended::Applied);
    let before = handles.one.list(&crate::ListQuery { page_size: 9, ..Default::default() }).await.unwrap();
    assert_eq!(handles.two.sweep(later).await.unwrap(), 0);
    assert_eq!(handles.one.list(&crate::ListQuery { page_size: 9, ..Default::default() }).await.unwrap(), before);
    let due = handles.one.outbox_due(later, 9).await.unwrap().remove(0);
    handles.one.outbox_done(due.key).await.unwrap();
    assert_eq!(handles.two.sweep(later).await.unwrap(), 1, "its webhook is done");
}

pub async fn a_long_sweep_counts_each_once(handles: Handles) {
    const PREDICTIONS: i64 = 150;
    for number in 0..PREDICTIONS {
        handles.one.create(&request(number)).await.unwrap();
        let id = Id(format!("p{number}"));
        assert_eq!(handles.one.append(&id, 0, &whole_run(&["a"])).await.unwrap(), Appended::Applied);
    }
    let later = START.plus_millis(3_600_000);
    let (one, two) = tokio::join!(handles.one.sweep(later), handles.two.sweep(later));
    assert_eq!(one.unwrap() + two.unwrap(), PREDICTIONS as u64);
}
