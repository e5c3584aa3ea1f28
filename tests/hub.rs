//! A model hub on a port of this machine, as far as its clients see it: revisions, lists of files, redirects to a blob store
//! that is another host, ranges. One repository, `org/repo`, at one commit. Knows nothing of who asks.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::json;
use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Files above this come from the blob store.
const SMALL_BYTES: usize = 1024;

type Files = BTreeMap<String, Arc<Vec<u8>>>;

struct File {
    hex: String,
    bytes: Arc<Vec<u8>>,
}

/// Serves until the process ends.
pub struct Hub {
    pub url: String,
    asked: Arc<Mutex<Vec<u64>>>,
}

impl Hub {
    /// `hold` is called with the first byte that is asked for before the blob store answers: it may wait.
    pub fn start(files: Files, hold: impl Fn(u64) + Send + Sync + 'static) -> Self {
        // Once: a hub knows the digests of what it has.
        let files: BTreeMap<String, File> = files
            .into_iter()
            .map(|(path, bytes)| (path, File { hex: hex::encode(Sha256::digest(&*bytes)), bytes }))
            .collect();
        let blobs: BTreeMap<_, _> = files.values().map(|file| (file.hex.clone(), file.bytes.clone())).collect();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        let store = listen(move |path, from, last, out| {
            let Some(content) = path.strip_prefix("/blobs/").and_then(|hex| blobs.get(hex)) else {
                return answer(out, "404 Not Found", "", b"");
            };
            log.lock().unwrap().push(from.unwrap_or(0));
            hold(from.unwrap_or(0));
            let (start, total) = (from.unwrap_or(0) as usize, content.len());
            let last = last.map_or(total - 1, |last| (last as usize).min(total - 1));
            match from {
                None => answer(out, "200 OK", "", content),
                Some(_) => {
                    let range = format!("Content-Range: bytes {start}-{last}/{total}\r\n");
                    answer(out, "206 Partial Content", &range, &content[start..=last]);
                }
            }
        });
        let url = listen(move |path, _, _, out| {
            let resolve = format!("/org/repo/resolve/{COMMIT}/");
            if path.starts_with("/api/models/org/repo/revision/") {
                return answer(out, "200 OK", "", json!({ "sha": COMMIT }).to_string().as_bytes());
            }
            if path.starts_with(&format!("/api/models/org/repo/tree/{COMMIT}")) {
                let rows: Vec<_> = files.iter().map(|(path, file)| row(path, file)).collect();
                return answer(out, "200 OK", "", json!(rows).to_string().as_bytes());
            }
            let Some(File { hex, bytes }) = path.strip_prefix(&resolve).and_then(|file| files.get(file)) else {
                return answer(out, "404 Not Found", "X-Error-Message: Entry not found\r\n", b"");
            };
            if bytes.len() <= SMALL_BYTES {
                return answer(out, "200 OK", "", bytes);
            }
            let size = bytes.len();
            let headers =
                format!("Location: {store}/blobs/{hex}\r\nX-Linked-Size: {size}\r\nX-Linked-Etag: \"{hex}\"\r\n");
            answer(out, "302 Found", &headers, b"");
        });
        Self { url, asked }
    }

    /// The first byte of each request to the blob store.
    pub fn asked(&self) -> Vec<u64> {
        self.asked.lock().unwrap().clone()
    }
}

fn row(path: &str, File { hex, bytes }: &File) -> serde_json::Value {
    let mut row = json!({ "type": "file", "path": path, "oid": "git", "size": bytes.len() });
    if bytes.len() > SMALL_BYTES {
        row["lfs"] = json!({ "oid": hex, "size": bytes.len(), "pointerSize": 134 });
    }
    row
}

/// An answer per connection, each on its own thread: `serve` gets path, first and last byte of the range, and the stream.
fn listen(serve: impl Fn(&str, Option<u64>, Option<u64>, &mut TcpStream) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let serve = serve.clone();
            std::thread::spawn(move || {
                let (mut path, mut from, mut last) = (String::new(), None, None);
                for line in BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()) {
                    if path.is_empty() {
                        path = line.split(' ').nth(1).unwrap_or_default().to_owned();
                    } else if let Some(range) = line.to_lowercase().strip_prefix("range: bytes=") {
                        let (first, end) = range.split_once('-').unwrap_or((range, ""));
                        (from, last) = (first.parse().ok(), end.parse().ok());
                    }
                }
                serve(&path, from, last, &mut stream);
            });
        }
    });
    url
}

/// A client that has gone needs no answer.
fn answer(out: &mut TcpStream, status: &str, headers: &str, body: &[u8]) {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
    let _ = out.write_all(head.as_bytes()).and_then(|()| out.write_all(body));
}
