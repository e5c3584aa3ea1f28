//! Who holds a prediction, and what a cancel meets.

use std::collections::HashSet;

use prediction::{Event, Id, Numbered, Outcome, Status};

use super::{Handles, numbered, request, whole_run};
use crate::{Appended, CancelOutcome, LEASE_SECONDS, Renewed};

fn ids(leases: &[crate::Lease]) -> Vec<&str> {
    leases.iter().map(|lease| lease.prediction.request.id.as_str()).collect()
}

fn kept(id: &str) -> Renewed {
    Renewed { id: Id::from(id), lost: false, cancel_requested: false }
}

fn lost(id: &str) -> Renewed {
    Renewed { id: Id::from(id), lost: true, cancel_requested: false }
}

pub async fn the_oldest_is_leased_first(handles: Handles) {
    // Made out of order: what counts is when they were asked for.
    for number in [3, 1, 2] {
        handles.one.create(&request(number)).await.unwrap();
    }
    let first = handles.one.lease("a", 2).await.unwrap();
    assert_eq!(ids(&first), ["p1", "p2"]);
    assert_eq!(first[0].prediction, handles.one.get(&Id::from("p1")).await.unwrap().unwrap(), "with its input");
    assert!(first.iter().all(|lease| lease.attempt == 1 && !lease.cancel_requested));
    assert_eq!(handles.two.waiting().await.unwrap(), 1);
    assert_eq!(ids(&handles.two.lease("b", 9).await.unwrap()), ["p3"]);
    assert_eq!(handles.one.lease("a", 9).await.unwrap(), vec![]);
    assert_eq!(handles.one.waiting().await.unwrap(), 0);
}

pub async fn a_lease_runs_out_and_the_next_attempt_fences_the_last(handles: Handles) {
    handles.one.create(&request(1)).await.unwrap();
    let id = Id::from("p1");
    let events = whole_run(&["a"]);
    assert_eq!(handles.one.lease("a", 1).await.unwrap()[0].attempt, 1);
    assert_eq!(
        handles.one.append(&id, 0, &events[..1]).await.unwrap(),
        Appended::Fenced,
        "no attempt but the held one"
    );
    assert_eq!(handles.one.append(&id, 1, &events[..1]).await.unwrap(), Appended::Applied);
    handles.clock.advance_seconds(LEASE_SECONDS - 1);
    assert_eq!(handles.two.lease("b", 1).await.unwrap(), vec![]);
    handles.clock.advance_seconds(1);
    assert_eq!(handles.two.waiting().await.unwrap(), 1);
    let second = handles.two.lease("b", 1).await.unwrap().remove(0);
    assert_eq!((second.attempt, second.prediction.last_seq), (2, 1), "it goes on where the store stands");
    assert_eq!(handles.one.append(&id, 1, &events[1..]).await.unwrap(), Appended::Fenced);
    assert_eq!(handles.two.append(&id, 2, &events[1..]).await.unwrap(), Appended::Applied);
    assert_eq!(handles.one.get(&id).await.unwrap().unwrap().status, Status::Succeeded);
}

pub async fn a_renewed_lease_does_not_run_out(handles: Handles) {
    handles.one.create(&request(1)).await.unwrap();
    handles.one.lease("a", 1).await.unwrap();
    let held = [(Id::from("p1"), 1)];
    for _ in 0..4 {
        handles.clock.advance_seconds(LEASE_SECONDS - 1);
        assert_eq!(handles.one.renew("a", &held).await.unwrap(), [kept("p1")]);
    }
    assert_eq!(handles.two.lease("b", 1).await.unwrap(), vec![]);
    // Late, but nobody took it.
    handles.clock.advance_seconds(LEASE_SECONDS + 1);
    assert_eq!(handles.one.renew("a", &held).await.unwrap(), [kept("p1")]);
    assert_eq!(handles.two.lease("b", 1).await.unwrap(), vec![]);
}

pub async fn what_somebody_else_has_is_lost(handles: Handles) {
    for number in 1..=3 {
        handles.one.create(&request(number)).await.unwrap();
    }
    handles.one.lease("a", 3).await.unwrap();
    assert_eq!(handles.one.append(&Id::from("p2"), 1, &whole_run(&[])).await.unwrap(), Appended::Applied);
    handles.clock.advance_seconds(LEASE_SECONDS);
    assert_eq!(ids(&handles.two.lease("b", 1).await.unwrap()), ["p1"]);
    let held = ["p3", "p1", "p2", "nobody"].map(|id| (Id::from(id), 1));
    let renewed = handles.one.renew("a", &held).await.unwrap();
    assert_eq!(renewed, [kept("p3"), lost("p1"), lost("p2"), lost("nobody")], "in the order asked");
    assert_eq!(handles.one.renew("a", &[]).await.unwrap(), vec![]);
    // The same owner in a later attempt: the earlier one is lost all the same.
    handles.clock.advance_seconds(LEASE_SECONDS);
    handles.two.lease("a", 9).await.unwrap();
    assert_eq!(handles.one.renew("a", &held[..1]).await.unwrap(), [lost("p3")]);
}

pub async fn a_release_gives_back_what_this_owner_holds(handles: Handles) {
    for number in 1..=3 {
        handles.one.create(&request(number)).await.unwrap();
    }
    handles.one.lease("a", 2).await.unwrap();
    handles.two.lease("b", 1).await.unwrap();
    assert_eq!(handles.two.release("a").await.unwrap(), 2);
    assert_eq!(handles.one.waiting().await.unwrap(), 2);
    let again = handles.two.lease("b", 9).await.unwrap();
    assert_eq!(ids(&again), ["p1", "p2"]);
    assert!(again.iter().all(|lease| lease.attempt == 2));
    assert_eq!(handles.one.release("a").await.unwrap(), 0);
}

pub async fn two_handles_never_lease_the_same(handles: Handles) {
    const PREDICTIONS: i64 = 60;
    for number in 0..PREDICTIONS {
        handles.one.create(&request(number)).await.unwrap();
    }
    let mut tasks = tokio::task::JoinSet::new();
    for (store, owner) in [(&handles.one, "a"), (&handles.two, "b")].repeat(2) {
        let store = store.clone();
        tasks.spawn(async move {
            let mut mine = Vec::new();
            loop {
                let leases = store.lease(owner, 3).await.unwrap();
                if leases.is_empty() {
                    return mine;
                }
                mine.extend(leases.into_iter().map(|lease| lease.prediction.request.id));
            }
        });
    }
    let all: Vec<Id> = tasks.join_all().await.into_iter().flatten().collect();
    assert_eq!(all.len(), PREDICTIONS as usize);
    assert_eq!(all.into_iter().collect::<HashSet<_>>().len(), PREDICTIONS as usize);
}

pub async fn an_ended_prediction_is_neither_waiting_nor_leased(handles: Handles) {
    handles.one.create(&request(1)).await.unwrap();
    handles.one.create(&request(2)).await.unwrap();
    assert_eq!(handles.one.append(&Id::from("p1"), 0, &whole_run(&[])).await.unwrap(), Appended::Applied);
    assert_eq!(handles.two.waiting().await.unwrap(), 1);
    assert_eq!(ids(&handles.two.lease("a", 9).await.unwrap()), ["p2"]);
    assert_eq!(handles.two.append(&Id::from("p2"), 1, &whole_run(&[])).await.unwrap(), Appended::Applied);
    handles.clock.advance_seconds(LEASE_SECONDS + 1);
    assert_eq!(handles.one.lease("a", 9).await.unwrap(), vec![]);
    assert_eq!(handles.one.release("a").await.unwrap(), 0);
}

pub async fn a_cancel_of_a_waiting_prediction_ends_it(handles: Handles) {
    handles.one.create(&request(1)).await.unwrap();
    let id = Id::from("p1");
    assert_eq!(handles.one.append(&id, 0, &[numbered(1, Event::Log("w\n".into()))]).await.unwrap(), Appended::Applied);
    handles.clock.advance_seconds(9);
    let event = Event::Ended(Outcome::Canceled);
    let end = Numbered { seq: 2, at: handles.clock.now(), event };
    assert_eq!(handles.two.request_cancel(&id).await.unwrap(), CancelOutcome::Canceled(end.clone()));
    let ended = handles.one.get(&id).await.unwrap().unwrap();
    assert_eq!((ended.status, ended.completed_at), (Status::Canceled, Some(end.at)));
    assert_eq!(handles.one.events(&id, 1).await.unwrap(), [end]);
    assert_eq!(handles.one.lease("a", 1).await.unwrap(), vec![]);
    // Whose lease ran out is waiting again, and its last holder finds out.
    handles.one.create(&request(2)).await.unwrap();
    handles.one.lease("a", 1).await.unwrap();
    handles.clock.advance_seconds(LEASE_SECONDS);
    let id = Id::from("p2");
    assert!(matches!(handles.two.request_cancel(&id).await.unwrap(), CancelOutcome::Canceled(_)));
    assert_eq!(handles.one.append(&id, 1, &whole_run(&[])).await.unwrap(), Appended::Fenced);
    assert_eq!(handles.one.renew("a", &[(id, 1)]).await.unwrap(), [lost("p2")]);
}

pub async fn a_cancel_of_a_leased_prediction_reaches_its_holder(handles: Handles) {
    handles.one.create(&request(1)).await.unwrap();
    let id = Id::from("p1");
    handles.one.lease("a", 1).await.unwrap();
    assert_eq!(handles.two.request_cancel(&id).await.unwrap(), CancelOutcome::Requested);
    assert_eq!(handles.two.get(&id).await.unwrap().unwrap().status, Status::Starting);
    let renewed = handles.one.renew("a", &[(id.clone(), 1)]).await.unwrap();
    assert_eq!(renewed, [Renewed { id: id.clone(), lost: false, cancel_requested: true }]);
    // The holder dies before it acts: the next one is told.
    handles.clock.advance_seconds(LEASE_SECONDS);
    let next = handles.two.lease("b", 1).await.unwrap().remove(0);
    assert!(next.cancel_requested && next.attempt == 2);
}

pub async fn a_cancel_after_the_end_changes_nothing(handles: Handles) {
    handles.one.create(&request(1)).await.unwrap();
    let id = Id::from("p1");
    assert_eq!(handles.one.append(&id, 0, &whole_run(&["a"])).await.unwrap(), Appended::Applied);
    let ended = handles.one.get(&id).await.unwrap();
    assert_eq!(handles.two.request_cancel(&id).await.unwrap(), CancelOutcome::Ended);
    assert_eq!(handles.one.get(&id).await.unwrap(), ended);
    assert_eq!(handles.one.request_cancel(&Id::from("nobody")).await.unwrap(), CancelOutcome::NotFound);
}
