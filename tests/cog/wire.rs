//! HTTP as the comparison needs it: one request on a connection that is kept open for as long as the test reads, and a
//! receiver of webhooks. Knows nothing of what is asked.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;

use serde_json::{Value, json};

use crate::support::PATIENCE;

pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
    pub body: &'a str,
}

impl<'a> Request<'a> {
    pub fn new(method: &'a str, path: &'a str) -> Self {
        Self { method, path, headers: &[], body: "" }
    }
}

/// An answer whose body has not been read.
pub struct Open {
    pub code: u16,
    pub headers: BTreeMap<String, String>,
    reader: BufReader<TcpStream>,
}

/// Sends and reads the head of the answer.
pub fn open(base: &str, request: &Request) -> Open {
    send(base, request).answer()
}

/// A request that was sent. Dropping it closes the connection.
pub struct Sent(BufReader<TcpStream>);

pub fn send(base: &str, request: &Request) -> Sent {
    let host = base.strip_prefix("http://").expect("a plain address");
    let mut stream = TcpStream::connect(host).expect("the server listens");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut head = format!("{} {} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n", request.method, request.path);
    for (name, value) in request.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !request.body.is_empty() || !request.headers.is_empty() {
        head += &format!("Content-Length: {}\r\n", request.body.len());
    }
    stream.write_all(format!("{head}\r\n{}", request.body).as_bytes()).unwrap();
    Sent(BufReader::new(stream))
}

impl Sent {
    pub fn answer(self) -> Open {
        let mut reader = self.0;
        let (first, headers) = read_head(&mut reader).expect("an answer");
        let code = first.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
        Open { code, headers, reader }
    }
}

fn read_head(reader: &mut impl BufRead) -> Option<(String, BTreeMap<String, String>)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
    let (first, mut headers) = (line.trim_end().to_owned(), BTreeMap::new());
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.trim().to_owned()),
            None => return Some((first, headers)),
        };
    }
}

impl Open {
    fn is_chunked(&self) -> bool {
        self.headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked")
    }

    /// All of the body; what came of it if the server stopped in the middle.
    pub fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        if self.is_chunked() {
            while let Some(piece) = self.chunk() {
                bytes.extend(piece);
            }
        } else {
            let _ = self.reader.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut size = String::new();
        self.reader.read_line(&mut size).ok()?;
        let size = usize::from_str_radix(size.trim(), 16).ok().filter(|size| *size > 0)?;
        let mut piece = vec![0; size + 2];
        self.reader.read_exact(&mut piece).ok()?;
        piece.truncate(size);
        Some(piece)
    }

    /// Of a stream, what comes until it holds `text`.
    pub fn until(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            let piece = self.chunk().unwrap_or_else(|| panic!("the stream ended without {text:?}: {seen}"));
            seen += &String::from_utf8_lossy(&piece);
        }
        seen
    }
}

/// What arrived at a receiver.
#[derive(Debug)]
pub struct Posted {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Posted {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

/// A web server that keeps what is sent to it. A path that begins with `/no/N` is answered 500 the first N times, any
/// other 200.
pub struct Receiver {
    pub url: String,
    pub posted: mpsc::Receiver<Posted>,
}

impl Receiver {
    pub fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (send, posted) = mpsc::channel();
        std::thread::spawn(move || {
            let mut refused: BTreeMap<String, usize> = BTreeMap::new();
            for stream in listener.incoming().map_while(Result::ok) {
                let Some(post) = receive(stream, &mut refused) else { continue };
                if send.send(post).is_err() {
                    return;
                }
            }
        });
        Self { url, posted }
    }

    pub fn next(&self) -> Posted {
        self.posted.recv_timeout(PATIENCE).expect("something arrives")
    }
}

fn receive(stream: TcpStream, refused: &mut BTreeMap<String, usize>) -> Option<Posted> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let (first, headers) = read_head(&mut reader)?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut body = vec![0; headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    let most = path.strip_prefix("/no/").and_then(|rest| rest.split('/').next()?.parse().ok()).unwrap_or(0);
    let count = refused.entry(path.clone()).or_default();
    *count += 1;
    let answer = if *count <= most { "500 Internal Server Error" } else { "200 OK" };
    let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    (&stream).write_all(answer.as_bytes()).ok()?;
    Some(Posted { method, path, headers, body })
}

/// A stream's text as a list of its events.
pub fn events(text: &str) -> Value {
    let event = |block: &str| {
        let line = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
        let data = serde_json::from_str::<Value>(line("data: ")?).ok()?;
        Some(json!({ "event": line("event: ")?, "data": data }))
    };
    text.split("\n\n").filter_map(event).collect()
}
