//! Events change a prediction, each once, and only those of its holder.

use prediction::{Event, Id, Outcome, Output, Prediction};
use serde_json::json;

use super::{Handles, numbered, request, whole_run};
use crate::{Appended, StoreError};

pub async fn the_row_is_the_fold_of_its_events(handles: Handles) {
    let asked = request(1);
    handles.one.create(&asked).await.unwrap();
    let lease = handles.one.lease("a", 1).await.unwrap().remove(0);
    let events: Vec<_> = vec![
        Event::Log("waiting for weights\n".into()),
        Event::Started,
        Event::Output(Output::text("Gr\u{fc}\u{df}e \u{1F600}")),
        Event::Output(Output::text("\u{0}\"\\")),
        Event::Metric { name: "output_token_count".into(), value: json!(2) },
        Event::Log(" 50%|#####     | 1/2\r".into()),
        Event::Output(Output::Item(json!({"deep": [1, 2.5, null]}))),
        Event::Ended(Outcome::Failed { error: "boom".into() }),
    ];
    let events: Vec<_> = events.into_iter().zip(1..).map(|(event, seq)| numbered(seq, event)).collect();
    let mut fold = Prediction::new(asked.clone());
    for batch in events.chunks(3) {
        let done = handles.one.append(&asked.id, lease.attempt, batch).await.unwrap();
        assert_eq!(done, Appended::Applied);
        for event in batch {
            let _ = fold.apply(event);
        }
        assert_eq!(handles.two.get(&asked.id).await.unwrap().as_ref(), Some(&fold));
    }
    assert_eq!(handles.two.events(&asked.id, 0).await.unwrap(), events);
}

pub async fn a_batch_sent_again_changes_nothing(handles: Handles) {
    let asked = request(1);
    handles.one.create(&asked).await.unwrap();
    let events = whole_run(&["a", "b"]);
    let (begin, rest) = events.split_at(2);
    assert_eq!(handles.one.append(&asked.id, 0, begin).await.unwrap(), Appended::Applied);
    let before = handles.one.get(&asked.id).await.unwrap();
    assert_eq!(handles.two.append(&asked.id, 0, begin).await.unwrap(), Appended::Applied);
    assert_eq!(handles.one.get(&asked.id).await.unwrap(), before);
    // Old and new in one batch: the new counts.
    assert_eq!(handles.one.append(&asked.id, 0, &events).await.unwrap(), Appended::Applied);
    let ended = handles.one.get(&asked.id).await.unwrap().unwrap();
    assert_eq!(ended.output, Some(json!(["a", "b"])));
    // An answer that was lost: the same end again is no conflict.
    assert_eq!(handles.two.append(&asked.id, 0, rest).await.unwrap(), Appended::Applied);
    assert_eq!(handles.two.events(&asked.id, 0).await.unwrap(), events);
    assert_eq!(handles.one.get(&asked.id).await.unwrap(), Some(ended));
    assert_eq!(handles.one.append(&asked.id, 0, &[]).await.unwrap(), Appended::Fenced, "nothing is not its end");
}

pub async fn a_gap_in_the_numbers_is_refused(handles: Handles) {
    let asked = request(1);
    handles.one.create(&asked).await.unwrap();
    let events = whole_run(&["a", "b"]);
    assert_eq!(handles.one.append(&asked.id, 0, &events[..1]).await.unwrap(), Appended::Applied);
    let refused = handles.one.append(&asked.id, 0, &events[2..]).await.unwrap_err();
    assert_eq!(refused, StoreError::Broken("event 3 of prediction p1 follows event 1".into()));
    let inside = [events[1].clone(), events[3].clone()];
    assert!(matches!(handles.one.append(&asked.id, 0, &inside).await, Err(StoreError::Broken(_))));
    assert_eq!(handles.two.events(&asked.id, 0).await.unwrap(), &events[..1], "nothing of a refused batch is kept");
    assert_eq!(handles.one.append(&asked.id, 0, &events[1..]).await.unwrap(), Appended::Applied);
}

pub async fn an_ended_prediction_takes_nothing_more(handles: Handles) {
    let asked = request(1);
    handles.one.create(&asked).await.unwrap();
    let end = numbered(1, Event::Ended(Outcome::Canceled));
    assert_eq!(handles.one.append(&asked.id, 0, std::slice::from_ref(&end)).await.unwrap(), Appended::Applied);
    let ended = handles.one.get(&asked.id).await.unwrap();
    let other_end = numbered(1, Event::Ended(Outcome::Succeeded));
    let later = numbered(2, Event::Log("late".into()));
    for late in [vec![other_end], vec![later.clone()], vec![end.clone(), later]] {
        assert_eq!(handles.two.append(&asked.id, 0, &late).await.unwrap(), Appended::Fenced, "{late:?}");
    }
    assert_eq!(handles.one.get(&asked.id).await.unwrap(), ended);
    assert_eq!(handles.one.events(&asked.id, 0).await.unwrap(), [end]);
}

pub async fn nothing_after_the_end_is_kept(handles: Handles) {
    let asked = request(1);
    handles.one.create(&asked).await.unwrap();
    let mut events = whole_run(&["a"]);
    let end = events.len();
    events.push(numbered(end as u64 + 1, Event::Log("late".into())));
    assert_eq!(handles.one.append(&asked.id, 0, &events).await.unwrap(), Appended::Applied);
    assert_eq!(handles.two.events(&asked.id, 0).await.unwrap(), &events[..end]);
    assert_eq!(handles.two.get(&asked.id).await.unwrap().unwrap().logs, "");
}

pub async fn events_are_read_from_a_number_on(handles: Handles) {
    let (first, second) = (request(1), request(2));
    let events = whole_run(&["a", "b", "c"]);
    for asked in [&first, &second] {
        handles.one.create(asked).await.unwrap();
        assert_eq!(handles.one.append(&asked.id, 0, &events).await.unwrap(), Appended::Applied);
    }
    for after in 0..=events.len() {
        assert_eq!(handles.two.events(&second.id, after as u64).await.unwrap(), &events[after..]);
    }
    assert_eq!(handles.two.events(&first.id, u64::MAX).await.unwrap(), vec![]);
}

pub async fn an_unknown_prediction_is_fenced(handles: Handles) {
    let done = handles.one.append(&Id::from("nobody"), 0, &whole_run(&[])).await.unwrap();
    assert_eq!(done, Appended::Fenced);
}
