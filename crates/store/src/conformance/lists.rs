//! Pages, newest first.

use prediction::Id;

use super::{Handles, request};
use crate::{Cursor, ListQuery, Page};

fn ids(page: &Page) -> Vec<&str> {
    page.predictions.iter().map(|prediction| prediction.request.id.as_str()).collect()
}

/// As a client sends it back.
fn over_the_wire(cursor: Option<Cursor>) -> Option<Cursor> {
    cursor.map(|cursor| Cursor::decode(&cursor.encode()).unwrap())
}

pub async fn a_list_is_newest_first_in_pages_and_back(handles: Handles) {
    let empty = handles.one.list(&ListQuery { page_size: 2, ..ListQuery::default() }).await.unwrap();
    assert_eq!(empty, Page::default());
    for number in [2, 1, 5, 4, 3] {
        handles.one.create(&request(number)).await.unwrap();
    }
    let page = async |cursor| {
        let query = ListQuery { cursor: over_the_wire(cursor), page_size: 2, ..ListQuery::default() };
        handles.two.list(&query).await.unwrap()
    };
    let first = page(None).await;
    assert_eq!((ids(&first), first.previous), (vec!["p5", "p4"], None));
    let second = page(first.next).await;
    assert_eq!(ids(&second), ["p3", "p2"]);
    let last = page(second.next).await;
    assert_eq!((ids(&last), last.next), (vec!["p1"], None));
    let back = page(last.previous).await;
    assert_eq!(ids(&back), ["p3", "p2"]);
    assert_eq!(page(back.next).await, last);
    // What is new meanwhile is found on the way back, and shifts nothing on the way on.
    handles.one.create(&request(6)).await.unwrap();
    assert_eq!(ids(&page(first.next).await), ["p3", "p2"]);
    let back = page(back.previous).await;
    assert_eq!(ids(&back), ["p5", "p4"]);
    let newest = page(back.previous).await;
    assert_eq!((ids(&newest), newest.previous), (vec!["p6"], None));
    assert_eq!(ids(&page(newest.next).await), ["p5", "p4"]);
    let whole = handles.two.list(&ListQuery { page_size: 6, ..ListQuery::default() }).await.unwrap();
    assert_eq!((whole.predictions.len(), whole.next), (6, None), "a page that is just full is the last");
    assert_eq!(Some(&whole.predictions[0]), handles.one.get(&Id::from("p6")).await.unwrap().as_ref(), "whole rows");
}

pub async fn a_list_keeps_to_its_times(handles: Handles) {
    for number in 1..=5 {
        handles.one.create(&request(number)).await.unwrap();
    }
    let at = |number| Some(request(number).created_at);
    let query = ListQuery { page_size: 2, created_after: at(2), created_before: at(5), ..ListQuery::default() };
    let first = handles.two.list(&query).await.unwrap();
    assert_eq!(ids(&first), ["p4", "p3"], "before is exclusive");
    let second = handles.two.list(&ListQuery { cursor: first.next, ..query.clone() }).await.unwrap();
    assert_eq!((ids(&second), second.next), (vec!["p2"], None), "after is inclusive");
    let back = handles.two.list(&ListQuery { cursor: second.previous, ..query }).await.unwrap();
    assert_eq!((ids(&back), back.previous), (vec!["p4", "p3"], None));
}

pub async fn predictions_of_one_moment_are_listed_once_each(handles: Handles) {
    for number in 1..=5 {
        let mut asked = request(number);
        asked.created_at = request(0).created_at;
        handles.one.create(&asked).await.unwrap();
    }
    let (mut cursor, mut seen) = (None, Vec::new());
    loop {
        let query = ListQuery { cursor, page_size: 2, ..ListQuery::default() };
        let page = handles.two.list(&query).await.unwrap();
        seen.extend(ids(&page).into_iter().map(str::to_owned));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["p5", "p4", "p3", "p2", "p1"]);
}
