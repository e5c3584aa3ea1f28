//! The two servers on ports of their own: `pinion cog`, and the real one of Cog on a runner that does the same. Knows how each
//! is started and stopped.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::wire::{self, Request};
use crate::processes::until;
use crate::support::{self, clients, pinion, tests_folder};

/// A running server. Killed when dropped.
pub struct Container {
    pub base: String,
    child: Child,
    /// What it serves, unless that is the test's own.
    _folder: Option<TempDir>,
}

/// What a test asks of a start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Start<'a> {
    /// The setup waits until this file is there.
    pub load_waits_for: Option<&'a Path>,
    pub load_fails: Option<&'a str>,
    pub env: &'a [(&'a str, &'a str)],
    pub words: &'a [&'a str],
    /// In place of the echo's cog.yaml; ours only.
    pub yaml: Option<&'a str>,
}

/// A port that nobody has: bound and let go again. Somebody else may take it in between; then the start fails loudly.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}

fn cog(folder: &Path, words: &[&str]) -> Command {
    let mut command = pinion();
    command.current_dir(folder).args(["cog", "--host", "127.0.0.1"]).args(words);
    command
}

impl Container {
    pub fn ours(start: Start) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let defaults = serde_json::json!({
            "load_waits_for": start.load_waits_for, "load_fails": start.load_fails, "load_says": "warming up",
        });
        let echo = format!("native: {{ model: echo, synth: nothing, defaults: {defaults} }}\n");
        fs::write(folder.path().join("cog.yaml"), start.yaml.unwrap_or(&echo)).unwrap();
        let command = cog(folder.path(), start.words);
        Self::spawn(command, start, Some(folder))
    }

    /// Ours on a folder that holds a cog.yaml.
    pub fn of(folder: &Path) -> Self {
        Self::from(cog(folder, &[]))
    }

    /// Whatever `command` starts, with the port in its environment.
    pub fn from(command: Command) -> Self {
        Self::spawn(command, Start::default(), None)
    }

    pub fn real(start: Start, schema: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(".cog")).unwrap();
        fs::write(folder.path().join(".cog/openapi_schema.json"), schema.to_string()).unwrap();
        fs::write(folder.path().join("cog.yaml"), "build: { python_version: '3.11' }\nrun: 'run.py:Runner'\n").unwrap();
        fs::copy(tests_folder().join("cog/run.py"), folder.path().join("run.py")).unwrap();
        let home = clients().join("cog-0.23.1/bin");
        assert!(home.exists(), "{} is missing: `cargo xtask test` sets it up", home.display());
        let mut command = Command::new(home.join("python"));
        // It starts its worker as `python`.
        let path = format!("{}:{}", home.display(), std::env::var("PATH").unwrap_or_default());
        command.current_dir(folder.path()).args(["-m", "cog.server.http", "--host", "127.0.0.1"]).args(start.words);
        command.env("PATH", path).env("COG_PREDICT_TYPE_STUB", "run.py:Runner");
        start.load_waits_for.map(|path| command.env("ECHO_LOAD_WAITS_FOR", path));
        start.load_fails.map(|why| command.env("ECHO_LOAD_FAILS", why));
        Self::spawn(command, start, Some(folder))
    }

    fn spawn(mut command: Command, start: Start, folder: Option<TempDir>) -> Self {
        let port = free_port();
        command.env("PORT", port.to_string()).envs(start.env.iter().copied());
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        let base = format!("http://127.0.0.1:{port}");
        let container = Self { base, child, _folder: folder };
        until("it listens", || container.listens().then_some(()));
        container
    }

    pub fn listens(&self) -> bool {
        std::net::TcpStream::connect(self.base.trim_start_matches("http://")).is_ok()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn get(&self, path: &str) -> Value {
        let mut answer = wire::open(&self.base, &Request::new("GET", path));
        serde_json::from_str(&answer.rest()).unwrap_or(Value::Null)
    }

    /// The body as JSON, after the code.
    pub fn post(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> (u16, Value) {
        let headers: Vec<_> = [("Content-Type", "application/json")].iter().chain(headers).copied().collect();
        let mut answer = self.open("POST", path, &headers, body);
        (answer.code, serde_json::from_str(&answer.rest()).unwrap_or(Value::Null))
    }

    pub fn open(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> wire::Open {
        wire::open(&self.base, &Request { method, path, headers, body: &body.to_string() })
    }

    pub fn status(&self) -> String {
        self.get("/health-check")["status"].as_str().unwrap_or_default().to_owned()
    }

    pub fn wait_for(&self, status: &str) -> &Self {
        until(status, || (self.status() == status).then_some(()));
        self
    }

    pub fn term(&self) {
        support::signal(&self.child, "TERM");
    }

    /// How it ended.
    pub fn exit(mut self) -> ExitStatus {
        until("its end", || self.child.try_wait().expect("it is our child"))
    }

    /// SIGTERM, and how it ended.
    pub fn stop(self) -> ExitStatus {
        self.term();
        self.exit()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
