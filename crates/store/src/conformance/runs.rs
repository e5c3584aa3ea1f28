//! Under what predictions ran.

use prediction::{Id, Run};

use super::{Handles, request, whole_run};

pub async fn a_run_is_noted_replaced_and_outlives_the_sweep(handles: Handles) {
    let asked = request(1);
    handles.one.create(&asked).await.unwrap();
    assert_eq!(handles.two.run(&asked.id).await.unwrap(), None);
    let first = Run { version: Some("v".into()), device: "cpu".into(), seed: u64::MAX, ..Run::default() };
    handles.one.note_run(&asked.id, &first).await.unwrap();
    let second = Run { device: "cuda:1".into(), ..first };
    handles.two.note_run(&asked.id, &second).await.unwrap();
    let _ = handles.one.append(&asked.id, 0, &whole_run(&["a"])).await.unwrap();
    let ended = handles.one.get(&asked.id).await.unwrap().unwrap().completed_at.unwrap();
    assert_eq!(handles.one.sweep(ended.plus_millis(1)).await.unwrap(), 1);
    assert_eq!(handles.one.run(&asked.id).await.unwrap(), Some(second.clone()));
    // Nobody's run is noted nowhere.
    handles.one.note_run(&Id::from("nobody"), &second).await.unwrap();
    assert_eq!(handles.one.run(&Id::from("nobody")).await.unwrap(), None);
}
