//! A fetch against a server that says exactly what the test wrote.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::Rules;

const HERE: Rules = Rules { allow_loopback: true, allow_private: false };
const LIMITS: FetchLimits = FetchLimits { bytes: 1000, idle: Duration::from_secs(60), whole: Duration::from_secs(120) };
/// Short: what it limits never happens in the test.
const NEVER: Duration = Duration::from_millis(50);

/// What the server says to one request, and whether it hangs up after it.
struct Says(String, bool);

fn says(text: impl Into<String>) -> Says {
    Says(text.into(), true)
}

fn answer(body: &str) -> Says {
    says(format!("HTTP/1.1 200 OK\r\ncontent-type: audio/wav\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
}

fn to(location: &str) -> Says {
    says(format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n"))
}

/// Answers one connection after the other with what stands next in the script, the last for ever. Hands over what it
/// heard.
async fn server(script: Vec<Says>) -> (String, UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://localhost:{}/talks/my%20talk.wav?key=1", listener.local_addr().unwrap().port());
    let (heard, hear) = unbounded_channel();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        for place in 0.. {
            let Ok((mut socket, _)) = listener.accept().await else { return };
            let mut text = vec![0; 4096];
            let read = socket.read(&mut text).await.unwrap_or(0);
            let _ = heard.send(String::from_utf8_lossy(&text[..read]).into_owned());
            let Says(text, hangs_up) = &script[place.min(script.len() - 1)];
            let _ = socket.write_all(text.as_bytes()).await;
            if !hangs_up {
                kept.push(socket);
            }
        }
    });
    (url, hear)
}

async fn fetch(url: &str, limits: FetchLimits) -> Result<(Fetched, Vec<u8>), EgressError> {
    let mut into = Vec::new();
    let fetched = Egress::new(HERE).unwrap().fetch(url, &limits, &mut into, |_, _| {}).await?;
    Ok((fetched, into))
}

async fn fails(url: &str, limits: FetchLimits) -> String {
    fetch(url, limits).await.unwrap_err().to_string()
}

#[tokio::test]
async fn a_file_comes_with_its_type_its_name_and_no_credentials() {
    let (url, mut hear) = server(vec![answer("hello")]).await;
    let mut heard = Vec::new();
    let egress = Egress::new(HERE).unwrap();
    let mut into = Vec::new();
    let fetched = egress.fetch(&url, &LIMITS, &mut into, |got, all| heard.push((got, all))).await.unwrap();
    let name = Some("my talk.wav".to_owned());
    assert_eq!(fetched, Fetched { bytes: 5, content_type: Some("audio/wav".into()), name });
    assert_eq!((into.as_slice(), heard.last()), (&b"hello"[..], Some(&(5, Some(5)))));
    let said = hear.recv().await.unwrap().to_lowercase();
    assert!(
        said.starts_with("get /talks/my%20talk.wav?key=1 http/1.1\r\n") && !said.contains("authorization"),
        "{said}"
    );
}

#[tokio::test]
async fn a_redirect_is_followed_and_a_ring_of_them_is_not() {
    let (url, mut hear) = server(vec![to("/elsewhere/talk.mp3"), answer("moved")]).await;
    let (fetched, bytes) = fetch(&url, LIMITS).await.unwrap();
    assert_eq!((fetched.name.as_deref(), bytes.as_slice()), (Some("talk.mp3"), &b"moved"[..]));
    hear.recv().await.unwrap();
    assert!(hear.recv().await.unwrap().starts_with("GET /elsewhere/talk.mp3 "));
    let (url, _hear) = server(vec![to("/round")]).await;
    assert_eq!(fails(&url, LIMITS).await, "redirects more than 5 times");
}

#[tokio::test]
async fn a_redirect_to_what_is_refused_is_not_followed() {
    for (location, why) in [
        ("http://10.0.0.7/x", "redirects to 10.0.0.7, which points to 10.0.0.7, a private address"),
        ("http://169.254.169.254/latest", "redirects to 169.254.169.254, which points to 169.254.169.254, an address"),
        ("file:///etc/passwd", "redirects to , which must be an http or https URL, not file"),
    ] {
        let (url, _hear) = server(vec![to(location)]).await;
        let said = fails(&url, LIMITS).await;
        assert!(said.starts_with(why), "{location}: {said}");
    }
}

#[tokio::test]
async fn a_name_that_resolves_to_a_refused_address_is_not_connected_to() {
    let (url, mut hear) = server(vec![answer("secret")]).await;
    let egress = Egress::new(Rules::default()).unwrap();
    // Past `check`, as a name would be whose address changed since: the resolver itself refuses.
    let error = sorted(egress.client.get(&url).send().await.unwrap_err());
    assert!(matches!(error, EgressError::Refused { address, .. } if address.is_loopback()), "{error}");
    let error = egress.fetch(&url, &LIMITS, &mut Vec::new(), |_, _| {}).await.unwrap_err();
    assert!(matches!(error, EgressError::Refused { .. }), "{error}");
    assert!(hear.try_recv().is_err(), "nobody called");
}

#[tokio::test]
async fn what_is_not_http_is_refused() {
    assert_eq!(fails("ftp://example.com/a", LIMITS).await, "must be an http or https URL, not ftp");
    assert_eq!(fails("talk.wav", LIMITS).await, "is not a URL");
}

#[tokio::test]
async fn an_answer_without_a_file_is_said_by_its_status() {
    let (url, _hear) = server(vec![says("HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\ngone")]).await;
    assert_eq!(fails(&url, LIMITS).await, "answered 404 Not Found");
    let (url, _hear) = server(vec![says("HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n")]).await;
    assert_eq!(fails(&url, LIMITS).await, "answered 302 Found");
}

#[tokio::test]
async fn ten_gigabytes_are_refused_before_the_first_byte() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 10000000000\r\n\r\n";
    // It never sends a body, and the connection stays open: only the header can be the reason.
    let (url, _hear) = server(vec![Says(head.into(), false)]).await;
    assert_eq!(fails(&url, LIMITS).await, "is 10000000000 bytes; at most 1000 may be");
}

#[tokio::test]
async fn an_endless_answer_is_cut_at_the_limit() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/endless", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let _ = socket.read(&mut [0; 4096]).await;
        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        let chunk = format!("100\r\n{}\r\n", "x".repeat(256));
        while socket.write_all(chunk.as_bytes()).await.is_ok() {}
    });
    let mut into = Vec::new();
    let error = Egress::new(HERE).unwrap().fetch(&url, &LIMITS, &mut into, |_, _| {}).await.unwrap_err();
    assert_eq!(error.to_string(), "is longer than 1000 bytes, which is the limit");
    assert!(into.len() <= 1000, "{}", into.len());
}

#[tokio::test]
async fn what_ends_too_early_is_not_a_file() {
    let (url, _hear) = server(vec![says("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")]).await;
    assert_eq!(fails(&url, LIMITS).await, "broke off after 4 bytes of 10");
    let (url, _hear) = server(vec![says("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n")]).await;
    assert_eq!(fails(&url, LIMITS).await, "broke off after 4 bytes");
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let (url, _hear) = server(vec![Says(String::new(), false)]).await;
    let limits = FetchLimits { idle: NEVER, ..LIMITS };
    assert_eq!(fails(&url, limits).await, "nothing came for 0.05 s");
}

#[tokio::test]
async fn a_server_that_stops_in_the_middle_is_given_up() {
    let (url, _hear) = server(vec![Says("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf".into(), false)]).await;
    let limits = FetchLimits { idle: NEVER, ..LIMITS };
    assert_eq!(fails(&url, limits).await, "nothing came for 0.05 s");
    let limits = FetchLimits { whole: NEVER, ..LIMITS };
    assert_eq!(fails(&url, limits).await, "not complete after 0.05 s, which is the limit");
}

#[tokio::test]
async fn a_disk_that_takes_nothing_is_said() {
    struct Full;
    impl AsyncWrite for Full {
        fn poll_write(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &[u8],
        ) -> std::task::Poll<std::io::Result<usize>> {
            std::task::Poll::Ready(Err(std::io::ErrorKind::StorageFull.into()))
        }
        fn poll_flush(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }
        fn poll_shutdown(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }
    }
    let (url, _hear) = server(vec![answer("hello")]).await;
    let error = Egress::new(HERE).unwrap().fetch(&url, &LIMITS, &mut Full, |_, _| {}).await.unwrap_err();
    assert!(matches!(error, EgressError::Disk(_)), "{error}");
}
