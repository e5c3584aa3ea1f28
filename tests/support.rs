//! The program as a user starts it, and the clients' interpreters: what the integration tests and the benches of the whole
//! program share. Knows processes and ports, nothing of what is tested.

pub mod processes;
pub mod shelf;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Long enough for a loaded machine; every wait below ends by a signal first.
pub const PATIENCE: Duration = Duration::from_secs(300);

pub fn pinion() -> Command {
    let mut command = Command::new(built().join("pinion"));
    command.env_remove("PINION_TOKEN").env("RUST_LOG", "info").stdin(Stdio::null());
    command
}

/// A running `pinion serve` on a port of its own. Killed when dropped.
pub struct Server {
    pub base: String,
    child: Child,
    log: mpsc::Receiver<String>,
}

impl Server {
    /// Serves `data` on a free loopback port and waits until it says so. `more` are further words of the command line.
    pub fn start(data: &Path, more: &[&str]) -> Self {
        Self::start_as(pinion(), data, more)
    }

    /// The same with an environment of the test's own.
    pub fn start_as(mut command: Command, data: &Path, more: &[&str]) -> Self {
        let mut child = command
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(data)
            .args(more)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stderr = child.stderr.take().expect("piped");
        let (send, log) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let mut server = Self { base: String::new(), child, log };
        let line = server.wait_for_log("listening on http");
        let at = line.find("http").expect("the line names the address");
        server.base = line[at..].split_whitespace().next().unwrap_or_default().to_owned();
        server
    }

    /// The next line of the log that holds `text`.
    pub fn wait_for_log(&mut self, text: &str) -> String {
        let until = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        loop {
            match self.log.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => seen.push(line),
                Err(_) => panic!("the log never said {text:?}:\n{}", seen.join("\n")),
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL: no goodbye, no flush.
    pub fn kill(mut self) {
        self.child.kill().expect("it ran");
        self.child.wait().expect("it is our child");
    }

    /// SIGTERM, as whoever supervises a server sends it; how it exited.
    pub fn stop(mut self) -> ExitStatus {
        signal(&self.child, "TERM");
        self.child.wait().expect("it is our child")
    }

    pub fn get(&self, path: &str) -> (u16, Value) {
        http("GET", &format!("{}{path}", self.base), "")
    }

    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        http("POST", &format!("{}{path}", self.base), &body.to_string())
    }

    /// Polls a prediction until it has ended.
    pub fn finished(&self, id: &str) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let (code, prediction) = self.get(&format!("/v1/predictions/{id}"));
            assert_eq!(code, 200, "{prediction}");
            if !matches!(prediction["status"].as_str(), Some("starting" | "processing")) {
                return prediction;
            }
            assert!(Instant::now() < until, "never ended: {prediction}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn signal(child: &Child, name: &str) {
    output_of(Command::new("kill").args(["-s", name, &child.id().to_string()]));
}

/// One request on a connection of its own; the answer's body as JSON (null when it has none).
pub fn http(method: &str, url: &str, body: &str) -> (u16, Value) {
    let (code, body) = http_bytes(method, url, "Content-Type: application/json\r\n", body.as_bytes());
    (code, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

/// The same with the caller's header lines (each ended by CR LF) and the raw body of the answer.
pub fn http_bytes(method: &str, url: &str, headers: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let rest = url.strip_prefix("http://").expect("a plain address");
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut stream = TcpStream::connect(host).expect("the server listens");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!(
        "{method} /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    // A server that refuses a large body answers and closes before it has read all of it.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let split = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or_else(|| panic!("no answer from {url}"));
    let head = String::from_utf8_lossy(&answer[..split]).into_owned();
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
    let body = answer.split_off(split + 4);
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    (code, if chunked { unchunk(&body) } else { body })
}

fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(String::from_utf8_lossy(&rest[..end]).trim(), 16).unwrap_or(0);
        if size == 0 {
            break;
        }
        whole.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 2 + size + 2..];
    }
    whole
}

/// A web server that keeps what is posted to it and answers 204.
pub struct Inbox {
    pub url: String,
    pub posted: mpsc::Receiver<Value>,
}

impl Inbox {
    pub fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let (send, posted) = mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if let Some(body) = read_post(stream) {
                    let _ = send.send(body);
                }
            }
        });
        Self { url, posted }
    }
}

fn read_post(mut stream: TcpStream) -> Option<Value> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").ok()?;
    serde_json::from_slice(&body).ok()
}

/// What `cargo xtask test` installed: `python-VERSION/bin/python`, `node/node_modules`.
pub fn clients() -> PathBuf {
    beside("clients")
}

/// Real speech, fetched by `cargo xtask test`: jfk.wav and clips.
pub fn recordings() -> PathBuf {
    std::env::var_os("PINION_RECORDINGS").map_or_else(|| beside("recordings"), PathBuf::from)
}

/// Where cargo put the program of this build, `target/release`: what links this lies in a folder there.
fn built() -> PathBuf {
    let own = std::env::current_exe().expect("the system tells");
    own.ancestors().nth(2).expect("cargo's folders").to_owned()
}

fn beside(name: &str) -> PathBuf {
    let folder = built().parent().expect("a profile lies in the target folder").join(name);
    assert!(folder.exists(), "{} is missing: `cargo xtask test` sets it up", folder.display());
    folder
}

pub fn tests_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Runs to the end; panics with everything it printed unless it exits with 0.
pub fn output_of(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}
