//! Completed webhooks wait in the outbox from the moment their prediction ends.

use prediction::{Id, Request, WebhookEvent};

use super::{Handles, START, request, whole_run};
use crate::{Appended, CancelOutcome};

fn with_webhook(number: i64, filter: Option<Vec<WebhookEvent>>) -> Request {
    let webhook = Some(format!("http://127.0.0.1:9/{number}"));
    Request { webhook, webhook_events_filter: filter, ..request(number) }
}

pub async fn an_end_with_a_webhook_is_in_the_outbox_once(handles: Handles) {
    let events = whole_run(&["a"]);
    let end = events.last().unwrap().at;
    handles.one.create(&with_webhook(1, None)).await.unwrap();
    let id = Id::from("p1");
    assert_eq!(handles.one.append(&id, 0, &events[..2]).await.unwrap(), Appended::Applied);
    assert_eq!(handles.one.outbox_due(end, 9).await.unwrap(), vec![], "it has not ended");
    for _ in 0..2 {
        assert_eq!(handles.one.append(&id, 0, &events).await.unwrap(), Appended::Applied);
    }
    let due = handles.two.outbox_due(end, 9).await.unwrap();
    assert_eq!(due.len(), 1);
    assert_eq!((&due[0].id, due[0].url.as_str()), (&id, "http://127.0.0.1:9/1"));
    assert_eq!((due[0].attempts, due[0].first_at), (0, end));
    assert!(due[0].msg_id.starts_with("msg_") && due[0].msg_id.len() >= 28, "{}", due[0].msg_id);
    // A cancel that ends a waiting one is an end as any other.
    handles.one.create(&with_webhook(2, None)).await.unwrap();
    handles.clock.advance_seconds(5);
    assert!(matches!(handles.two.request_cancel(&Id::from("p2")).await.unwrap(), CancelOutcome::Canceled(_)));
    let due = handles.one.outbox_due(handles.clock.now(), 9).await.unwrap();
    assert_eq!(due.iter().map(|delivery| delivery.id.as_str()).collect::<Vec<_>>(), ["p1", "p2"]);
    assert_ne!(due[0].msg_id, due[1].msg_id);
}

pub async fn only_a_wanted_webhook_is_in_the_outbox(handles: Handles) {
    let asked = [
        request(1),
        with_webhook(2, Some(vec![])),
        with_webhook(3, Some(vec![WebhookEvent::Start, WebhookEvent::Logs])),
        with_webhook(4, Some(vec![WebhookEvent::Completed])),
    ];
    for request in &asked {
        handles.one.create(request).await.unwrap();
        assert_eq!(handles.one.append(&request.id, 0, &whole_run(&[])).await.unwrap(), Appended::Applied);
    }
    let due = handles.two.outbox_due(START.plus_millis(1000), 9).await.unwrap();
    assert_eq!(due.into_iter().map(|delivery| delivery.id.0).collect::<Vec<_>>(), ["p4"]);
}

pub async fn a_delivery_keeps_its_message_id_until_it_is_done(handles: Handles) {
    for number in 1..=3 {
        handles.one.create(&with_webhook(number, None)).await.unwrap();
        let id = Id(format!("p{number}"));
        assert_eq!(handles.one.append(&id, 0, &whole_run(&[])).await.unwrap(), Appended::Applied);
    }
    let now = START.plus_millis(1000);
    let later = now.plus_millis(5000);
    let due = handles.one.outbox_due(now, 2).await.unwrap();
    assert_eq!(due.len(), 2, "at most the limit");
    let (first, second) = (&due[0], &due[1]);
    handles.one.outbox_retry(first.key, later).await.unwrap();
    handles.one.outbox_done(second.key).await.unwrap();
    let due = handles.two.outbox_due(now, 9).await.unwrap();
    assert_eq!(due.iter().map(|delivery| delivery.id.as_str()).collect::<Vec<_>>(), ["p3"]);
    let due = handles.two.outbox_due(later, 9).await.unwrap();
    assert_eq!(due.len(), 2);
    assert_eq!(due[1], crate::Delivery { attempts: 1, ..first.clone() }, "the longest due first");
    // Whoever was slower than another handle finds nothing to do.
    handles.two.outbox_done(second.key).await.unwrap();
    handles.two.outbox_retry(second.key, later).await.unwrap();
    assert_eq!(handles.one.outbox_due(later, 9).await.unwrap().len(), 2);
}
