//! An HTTP server of a few lines, on a port of this machine, that can be told to misbehave.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// A request's first line and headers, names in lower case.
#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|header| header.0 == name).map(|header| header.1.as_str())
    }

    /// The N of `Range: bytes=N-` or `bytes=N-M`.
    pub fn from(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.split_once('-')?.0.parse().ok()
    }

    /// The bytes of `content` that the range asks for, up to, without, the second; all of them without a range.
    pub fn range(&self, content: &[u8]) -> (usize, usize) {
        let range = self.header("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let (from, last) = range.unwrap_or(("0", ""));
        (from.parse().unwrap(), last.parse::<usize>().map_or(content.len(), |last| (last + 1).min(content.len())))
    }
}

pub struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// `answer` is asked once per request, with the requests before it counted; its bytes go out, and the connection closes.
    pub fn start(mut answer: impl FnMut(&Request, usize) -> Vec<u8> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (log, stopped) = (seen.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                let Some(request) = read(&stream) else { continue };
                let before = {
                    let mut log = log.lock().unwrap();
                    log.push(request.clone());
                    log.len() - 1
                };
                let _ = stream.write_all(&answer(&request, before));
            }
        });
        Self { port, seen, stop, thread: Some(thread) }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes it up.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let path = first.split(' ').nth(1)?.to_owned();
    let mut headers = Vec::new();
    for line in lines {
        let line = line.ok()?;
        match line.split_once(": ") {
            Some((name, value)) => headers.push((name.to_lowercase(), value.to_owned())),
            None => break,
        }
    }
    Some(Request { path, headers })
}

pub fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n").into_bytes();
    bytes.extend(body);
    bytes
}

pub fn ok(body: &[u8]) -> Vec<u8> {
    answer("200 OK", &format!("Content-Length: {}\r\n", body.len()), body)
}

/// Promises all of it and sends the first `sent` bytes.
pub fn cut(body: &[u8], sent: usize) -> Vec<u8> {
    answer("200 OK", &format!("Content-Length: {}\r\n", body.len()), &body[..sent])
}

/// Honours the range that was asked for, as far as `until`.
pub fn part(body: &[u8], from: usize, until: usize) -> Vec<u8> {
    let (last, total) = (body.len() - 1, body.len());
    let headers = format!("Content-Range: bytes {from}-{last}/{total}\r\nContent-Length: {}\r\n", total - from);
    answer("206 Partial Content", &headers, &body[from..until])
}

/// As a server that knows ranges: what was asked for, and no more.
pub fn ranged(request: &Request, content: &[u8]) -> Vec<u8> {
    let (from, until) = request.range(content);
    if request.from().is_none() {
        return ok(content);
    }
    let (last, total) = (until - 1, content.len());
    let headers = format!("Content-Range: bytes {from}-{last}/{total}\r\nContent-Length: {}\r\n", until - from);
    answer("206 Partial Content", &headers, &content[from..until])
}

pub fn redirect(to: &str) -> Vec<u8> {
    answer("302 Found", &format!("Location: {to}\r\nContent-Length: 0\r\n"), b"")
}
