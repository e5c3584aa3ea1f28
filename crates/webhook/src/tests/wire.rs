//! Over real sockets, through egress, from a database that was closed and opened again.

use std::sync::Arc;

use egress::{Egress, Rules};
use prediction::{Event, Numbered, Outcome, Timestamp};
use store::feed::Feed;
use store::{SqliteStore, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::bench::{json_of, request};
use crate::sign::signature;
use crate::{Webhooks, check_url};

const HERE: Rules = Rules { allow_loopback: true, allow_private: false };

/// One call as it came over the wire: head in lower case, body as it is.
async fn read_call(socket: &mut TcpStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    loop {
        let mut part = [0; 4096];
        let count = socket.read(&mut part).await.unwrap();
        assert!(count > 0, "closed before the whole call was there");
        bytes.extend_from_slice(&part[..count]);
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let length: usize = header(&head, "content-length").parse().unwrap();
        if bytes.len() >= end + 4 + length {
            return (head, bytes[end + 4..].to_vec());
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> &'a str {
    let line = head.lines().find_map(|line| line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)));
    line.unwrap_or_else(|| panic!("no {name} in {head}")).1
}

#[tokio::test]
async fn what_was_not_sent_before_a_crash_is_sent_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pinion.db");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());

    // A life that ends between the last event and its webhook.
    let store = SqliteStore::open(&path).await.unwrap();
    store.create(&request("p", &url, None)).await.unwrap();
    let attempt = store.lease("me", 1).await.unwrap()[0].attempt;
    let ended = Numbered { seq: 1, at: Timestamp::now(), event: Event::Ended(Outcome::Succeeded) };
    let _ = store.append(&"p".into(), attempt, &[ended]).await.unwrap();
    drop(store);

    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&path).await.unwrap());
    let egress = Egress::new(HERE).unwrap();
    let webhooks = Webhooks::start(store.clone(), Feed::new(store.clone()), egress, Arc::new(json_of));
    let (mut socket, _) = listener.accept().await.unwrap();
    let (head, body) = read_call(&mut socket).await;
    socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();

    assert!(head.starts_with("POST /hook HTTP/1.1\r\n"), "{head}");
    assert_eq!(header(&head, "content-type"), "application/json");
    assert_eq!(header(&head, "user-agent"), concat!("pinion/", env!("CARGO_PKG_VERSION")));
    let (message, stamp) = (header(&head, "webhook-id"), header(&head, "webhook-timestamp").parse().unwrap());
    assert!(message.starts_with("msg_"), "{message}");
    let secret = store.secret("webhook").await.unwrap();
    assert_eq!(header(&head, "webhook-signature"), signature(&secret, message, stamp, &body).unwrap());
    assert_eq!(body, json_of(&store.get(&"p".into()).await.unwrap().unwrap()), "the bytes that GET answers");
    drop(webhooks);
}

#[test]
fn a_url_that_cannot_be_called_is_refused_with_a_reason() {
    let said = |url: &str| check_url(url, &Rules::default()).unwrap_err();
    assert_eq!(said("nonsense"), "is not a URL");
    assert_eq!(said("ftp://example.com/"), "must be an http or https URL, not ftp");
    assert!(said("http://127.0.0.1:1/").contains("127.0.0.1"), "{}", said("http://127.0.0.1:1/"));
    assert!(said("http://10.0.0.1/").contains("allow_private"), "{}", said("http://10.0.0.1/"));
    assert_eq!(check_url("https://example.com/hook", &Rules::default()), Ok(()));
}
