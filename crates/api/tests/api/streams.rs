//! Streams over HTTP: open to whoever has the path, whole from the first event, resumed, kept alive.

use std::time::Duration;

use axum::body::Body;
use http_body_util::BodyExt;
use prediction::{Event, Id, Numbered, Timestamp};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{Options, Reply, Server, path_of};

/// Event name and data of every event, and its id.
fn events(reply: &Reply) -> Vec<(String, String, String)> {
    let field = |block: &str, name: &str| {
        let lines = block.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        lines.collect::<Vec<_>>().join("\n")
    };
    let text = reply.text();
    let blocks = text.split("\n\n").filter(|block| block.contains("event: "));
    blocks.map(|block| (field(block, "event"), field(block, "data"), field(block, "id"))).collect()
}

fn told(reply: &Reply) -> Vec<String> {
    events(reply).into_iter().map(|(event, data, _)| format!("{event} {data}")).collect()
}

#[tokio::test]
async fn a_stream_tells_everything_to_whoever_comes_late() {
    let server = Server::with(Options { auth: api::Auth::Required, ..Options::default() }).await;
    let token = store::Store::token_create(&*server.store, "t").await.unwrap();
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str()), ("prefer", "wait")];
    let body = json!({ "input": { "text": "a\nb c", "pieces": 2, "log": "noted" } }).to_string();
    let prediction = server.send("POST", "/v1/models/pinion/echo/predictions", &headers, body).await.json();
    let reply = server.stream(&prediction, &[]).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/event-stream")), "without a token");
    assert!(reply.text().starts_with(": hi\nevent: "), "{}", reply.text());
    assert!(!reply.text().contains('\r'));
    assert_eq!(told(&reply), ["output a\nb", "output  c", "done {}"]);
}

#[tokio::test]
async fn a_stream_is_resumed_after_the_last_event_seen() {
    let server = Server::start().await;
    let prediction = server.run(json!({ "text": "abcd", "pieces": 4, "fail": "boom" })).await;
    let all = events(&server.stream(&prediction, &[]).await);
    assert_eq!(all.len(), 6, "{all:?}");
    for (seen, (_, _, id)) in all.iter().enumerate().take(5) {
        let rest = server.stream(&prediction, &[("last-event-id", id)]).await;
        assert_eq!(events(&rest), all[seen + 1..], "after {id}");
    }
    let nonsense = server.stream(&prediction, &[("last-event-id", "99999999:99999999")]).await;
    assert_eq!(told(&nonsense), [r#"done {"reason":"error"}"#], "the end is always said");
}

#[tokio::test]
async fn a_live_stream_says_each_piece_as_it_comes_and_closes_at_the_end() {
    let server = Server::start().await;
    let held = server.hold("now").await;
    let path = path_of(held["urls"]["stream"].as_str().unwrap());
    let mut body = server.open("GET", path, &[], "").await.into_body();
    let mut text = String::new();
    while !text.contains("data: now\n\n") {
        let frame = body.frame().await.expect("it goes on").unwrap();
        text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
    assert!(!text.contains("done"), "{text}");
    server.send("POST", path_of(held["urls"]["cancel"].as_str().unwrap()), &[], "").await;
    let rest = body.collect().await.unwrap().to_bytes();
    assert!(rest.ends_with(b"data: {\"reason\":\"canceled\"}\n\n"), "{rest:?}");
}

/// A stream that said hello and has nothing more to say, from when on, with the time standing still.
async fn quiet(server: &Server) -> (Value, Body, Instant) {
    let held = server.hold("").await;
    let path = path_of(held["urls"]["stream"].as_str().unwrap()).to_owned();
    let mut body = server.open("GET", &path, &[], "").await.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().data_ref().unwrap(), ": hi\n");
    tokio::time::pause();
    (held, body, Instant::now())
}

async fn pings_in_time(mut body: Body, began: Instant) {
    assert_eq!(body.frame().await.unwrap().unwrap().data_ref().unwrap(), ": ping\n");
    assert!(began.elapsed() <= Duration::from_secs(11), "{:?}", began.elapsed());
}

/// One client gives up after 30 seconds without a byte; a blank line after the comment would confuse another.
#[tokio::test]
async fn silence_is_broken_by_a_lone_comment_line() {
    let server = Server::start().await;
    let (_, body, began) = quiet(&server).await;
    pings_in_time(body, began).await;
}

/// A prediction that waits for a place or for weights says so in its logs, which no stream carries.
#[tokio::test]
async fn what_is_only_logged_does_not_put_off_the_comment() {
    let server = Server::start().await;
    let (held, body, began) = quiet(&server).await;
    let (feed, id) = (server.feed.clone(), Id::from(held["id"].as_str().unwrap()));
    tokio::spawn(async move {
        for seq in 1000..1008 {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let line = Event::Log(format!("{seq}\n"));
            let _ = feed.publish(&id, Numbered { seq, at: Timestamp::now(), event: line });
        }
    });
    pings_in_time(body, began).await;
}

#[tokio::test]
async fn a_path_that_was_guessed_is_not_found() {
    let server = Server::start().await;
    let reply = server.get("/v1/streams/0123456789abcdefghjkmnpqrstvwxyz0123456789abcdefghjk").await;
    assert_eq!((reply.status, reply.header("content-type")), (404, Some("application/problem+json")));
}
