//! A web server that hands out what it is told to: files, wrong promises, silence. Knows HTTP/1.1; refuses to know who asks.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

/// What a path is answered with.
pub enum Answer {
    /// Its type and its bytes.
    File(&'static str, Vec<u8>),
    /// So many bytes are announced, and bytes come until nobody wants them.
    Announced(u64),
    /// A file that never ends, in chunks.
    Endless,
    /// A file whose announced length is its own, and bytes behind it that nobody was told of.
    More(&'static str, Vec<u8>),
    /// 302 to this place.
    Elsewhere(&'static str),
    /// The connection stays open, and nothing comes.
    Nothing,
    Missing,
}

/// Serves until the process ends.
pub struct Shelf {
    /// Without a slash at its end.
    pub base: String,
}

impl Shelf {
    pub fn open(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let base = format!("http://{}", listener.local_addr().expect("bound"));
        let answer = std::sync::Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let answer = answer.clone();
                // Whoever asked may go away at any time.
                std::thread::spawn(move || serve(stream, &*answer).unwrap_or_default());
            }
        });
        Self { base }
    }
}

static PIECE: [u8; 64 << 10] = [b'x'; 64 << 10];

fn serve(stream: TcpStream, answer: &dyn Fn(&str) -> Answer) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    let mut out = stream;
    let head = |out: &mut TcpStream, status: &str, more: String| {
        write!(out, "HTTP/1.1 {status}\r\nConnection: close\r\n{more}\r\n")
    };
    let file = |kind: &str, length: usize| format!("Content-Type: {kind}\r\nContent-Length: {length}\r\n");
    match answer(path) {
        Answer::File(kind, bytes) => {
            head(&mut out, "200 OK", file(kind, bytes.len()))?;
            out.write_all(&bytes)
        }
        Answer::More(kind, bytes) => {
            head(&mut out, "200 OK", file(kind, bytes.len()))?;
            out.write_all(&bytes)?;
            forever(&mut out, &PIECE)
        }
        Answer::Announced(bytes) => {
            head(&mut out, "200 OK", format!("Content-Length: {bytes}\r\n"))?;
            forever(&mut out, &PIECE)
        }
        Answer::Endless => {
            head(&mut out, "200 OK", "Transfer-Encoding: chunked\r\n".into())?;
            forever(&mut out, &[format!("{:x}\r\n", PIECE.len()).as_bytes(), &PIECE, b"\r\n"].concat())
        }
        Answer::Elsewhere(place) => head(&mut out, "302 Found", format!("Location: {place}\r\nContent-Length: 0\r\n")),
        Answer::Nothing => reader.read_to_end(&mut Vec::new()).map(drop),
        Answer::Missing => head(&mut out, "404 Not Found", "Content-Length: 0\r\n".into()),
    }
}

fn forever(out: &mut TcpStream, piece: &[u8]) -> std::io::Result<()> {
    loop {
        out.write_all(piece)?;
    }
}
