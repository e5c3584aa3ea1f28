//! Pinned weights as a user meets them: pulled from a hub, carried in a bundle, edited behind our back, pulled twice at once.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

use crate::hub::{COMMIT, Hub};
use crate::support::{output_of, pinion};

const OFFLINE_HUB: &str = "http://127.0.0.1:9";

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The program with a cache of its own, and a hub.
fn with(cache: &Path, hub: &str, words: &[&str]) -> Command {
    let mut command = pinion();
    command.args(words).env("PINION_CACHE", cache).env("HF_ENDPOINT", hub).env("HF_HOME", cache.join("none"));
    command
}

/// A tiny model in a hub, and a folder with the cog.yaml that names it.
fn tiny_hub(folder: &Path) -> (Hub, String) {
    let weights = folder.join("made");
    output_of(pinion().args(["weights", "synth", "tiny", "-o"]).arg(&weights));
    let files = fs::read_dir(&weights).unwrap().map(|entry| entry.unwrap().path());
    let files: BTreeMap<_, _> = files
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), Arc::new(fs::read(path).unwrap())))
        .collect();
    fs::create_dir(folder.join("deployment")).unwrap();
    let config = folder.join("deployment/cog.yaml");
    let text = "weights:\n  - { name: mine, target: /weights/mine, source: { uri: hf://org/repo@main } }\n\
                native: { models: [{ name: mine, model: llama, weights: mine }] }\n";
    fs::write(&config, text).unwrap();
    (Hub::start(files, |_| {}), config.display().to_string())
}

fn answer(output: &Output) -> Value {
    let prediction: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", stderr(output)));
    assert_eq!(prediction["status"], "succeeded", "{prediction}");
    prediction["output"].clone()
}

const ASK: [&str; 6] = ["-i", "prompt=Hi", "-i", "max_tokens=4", "-i", "seed=5"];

#[test]
fn what_was_pulled_once_starts_without_a_network_and_travels_in_a_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let (hub, config) = tiny_hub(folder.path());
    let cache = folder.path().join("cache");
    let here =
        |hub: &str, words: &[&str]| with(&cache, hub, &[words, &["--config", &config]].concat()).output().unwrap();

    let said = here(&hub.url, &["models"]);
    assert_eq!(said.status.code(), Some(1));
    assert!(
        stderr(&said).contains("weights mine: pending") && stderr(&said).contains("pinion weights lock"),
        "{}",
        stderr(&said)
    );
    assert!(here(&hub.url, &["weights", "lock"]).status.success());
    let lock = fs::read_to_string(folder.path().join("deployment/weights.lock")).unwrap();
    assert!(lock.contains(&format!("commit:{COMMIT}")), "{lock}");

    let said = here(&hub.url, &["weights", "pull", "--offline"]);
    assert!(stderr(&said).contains("the network may not be used"), "{}", stderr(&said));
    let pulled = here(&hub.url, &["weights", "pull"]);
    assert!(pulled.status.success(), "{}", stderr(&pulled));
    let asked = hub.asked().len();

    let run = [&["run", "mine", "--json"], &ASK[..]].concat();
    let first = answer(&here(OFFLINE_HUB, &run));
    assert_eq!(answer(&here(OFFLINE_HUB, &[&run[..], &["--offline"]].concat())), first);
    assert_eq!(hub.asked().len(), asked, "nobody was asked again");
    let version = String::from_utf8(here(OFFLINE_HUB, &["models"]).stdout).unwrap();

    // To a machine with nothing on it.
    let bundle = folder.path().join("mine.bundle").display().to_string();
    let made = here(OFFLINE_HUB, &["weights", "bundle", "-o", &bundle]);
    assert!(made.status.success(), "{}", stderr(&made));
    let (there, other) = (folder.path().join("there"), folder.path().join("other-cache"));
    let to = there.display().to_string();
    let imported =
        with(&other, OFFLINE_HUB, &["weights", "import", &bundle, "--to", &to, "--offline"]).output().unwrap();
    assert!(imported.status.success(), "{}", stderr(&imported));
    let config = there.join("cog.yaml").display().to_string();
    let there = |words: &[&str]| {
        with(&other, OFFLINE_HUB, &[words, &["--offline", "--config", &config]].concat()).output().unwrap()
    };
    assert_eq!(String::from_utf8(there(&["models"]).stdout).unwrap(), version, "the same version id");
    assert_eq!(answer(&there(&run)), first);
    assert!(there(&["weights", "verify"]).status.success());
}

#[test]
fn a_lock_that_was_edited_or_does_not_fit_serves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (hub, config) = tiny_hub(folder.path());
    let cache = folder.path().join("cache");
    let here = |words: &[&str]| with(&cache, &hub.url, &[words, &["--config", &config]].concat()).output().unwrap();
    assert!(here(&["weights", "lock"]).status.success());
    let (lock, cog) = (folder.path().join("deployment/weights.lock"), folder.path().join("deployment/cog.yaml"));
    let (text, manifest) = (fs::read_to_string(&lock).unwrap(), fs::read_to_string(&cog).unwrap());
    let digest = text.split("\"digest\": \"sha256:").nth(1).unwrap()[..8].to_owned();
    for (locked, declared, expected) in [
        (text.replace(&digest, "00000000"), manifest.clone(), "the lock was edited"),
        (text.replace("\"mine\"", "\"gone\""), manifest.clone(), "weights gone: orphaned"),
        (
            text.clone(),
            manifest.replace("@main", "@other"),
            "weights mine: config-changed: the source is hf://org/repo@other",
        ),
        (text.clone(), manifest.replace("/weights/mine", "/w"), "config-changed: target is \"/w\""),
    ] {
        fs::write(&lock, locked).unwrap();
        fs::write(&cog, declared).unwrap();
        for words in
            [&["run", "mine", "-i", "prompt=x"][..], &["serve", "--listen", "127.0.0.1:0"], &["weights", "pull"]]
        {
            let said = here(words);
            assert_eq!(said.status.code(), Some(1), "{expected}: {}", stderr(&said));
            assert!(stderr(&said).contains(expected), "{expected}: {}", stderr(&said));
        }
    }
    // What is declared is pinned anew, and keeps its time where it is the same.
    fs::write(&lock, &text).unwrap();
    fs::write(&cog, &manifest).unwrap();
    assert!(here(&["weights", "lock"]).status.success());
    assert_eq!(fs::read_to_string(&lock).unwrap(), text);
}

/// A gate that is shut until somebody opens it.
#[derive(Default)]
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn open(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }

    fn pass(&self) {
        drop(self.1.wait_while(self.0.lock().unwrap(), |open| !*open).unwrap());
    }
}

#[test]
fn of_two_processes_that_pull_a_file_one_goes_on_where_the_other_died() {
    const SEGMENT: u64 = 8 << 20;
    let folder = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..3 * SEGMENT as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let gate = Arc::new(Gate::default());
    let shut = gate.clone();
    let files = BTreeMap::from([("w.bin".to_owned(), Arc::new(content))]);
    // The first segment comes; what is behind it waits.
    let hub = Hub::start(files, move |from| {
        if from > 0 {
            shut.pass()
        }
    });
    let config = folder.path().join("cog.yaml");
    let text = "weights: [{ name: w, source: { uri: hf://org/repo@main } }]\n\
                native: { models: [{ name: mine, model: llama, weights: w }] }\n";
    fs::write(&config, text).unwrap();
    let (config, cache) = (config.display().to_string(), folder.path().join("cache"));
    assert!(with(&cache, &hub.url, &["weights", "lock", "--config", &config]).output().unwrap().status.success());
    let pull = || {
        let mut command = with(&cache, &hub.url, &["weights", "pull", "--config", &config]);
        command.stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut first = pull();
    let partial = || {
        let blobs = fs::read_dir(cache.join("blobs/sha256")).into_iter().flatten().map(|entry| entry.unwrap());
        blobs
            .filter(|entry| entry.path().extension().is_some_and(|e| e == "partial"))
            .any(|entry| entry.metadata().unwrap().len() == SEGMENT)
    };
    while !partial() {
        assert!(first.try_wait().unwrap().is_none(), "it waits for the second segment");
        std::thread::yield_now();
    }
    let mut second = pull();
    let mut lines = BufReader::new(second.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("another process is fetching it")));
    let before = hub.asked().len();
    first.kill().unwrap();
    first.wait().unwrap();
    gate.open();
    let rest: Vec<String> = lines.collect();
    assert!(second.wait().unwrap().success(), "{rest:?}");
    let asked = &hub.asked()[before..];
    assert!(
        !asked.is_empty() && asked.iter().all(|&from| from >= SEGMENT),
        "the half file was gone on with: {asked:?}"
    );
}

/// A proxy for http addresses that is itself asked over TLS, with the certificate of this folder; the lines that it was asked.
fn secure_proxy(certificates: &Path) -> (String, Arc<Mutex<Vec<String>>>) {
    let chain = CertificateDer::pem_file_iter(certificates.join("server.pem")).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(certificates.join("server.key")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap();
    let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (config, log) = (config.clone(), log.clone());
            std::thread::spawn(move || pass(StreamOwned::new(ServerConnection::new(config).unwrap(), stream), &log));
        }
    });
    (url, asked)
}

/// One request to the host that its first line names, and the answer back. A client that goes early is its own business.
fn pass(stream: StreamOwned<ServerConnection, TcpStream>, log: &Mutex<Vec<String>>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let head = (&mut reader).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect::<Vec<_>>();
    let (host, path) = head.first()?.strip_prefix("GET http://")?.split_once('/')?;
    let mut to = TcpStream::connect(host).unwrap();
    write!(to, "GET /{path}\r\n{}\r\n\r\n", head[1..].join("\r\n")).unwrap();
    log.lock().unwrap().push(head[0].clone());
    let mut stream = reader.into_inner();
    io::copy(&mut to, &mut stream).ok()?;
    stream.conn.send_close_notify();
    stream.flush().ok()
}

#[test]
fn an_http_hub_is_reached_through_a_proxy_that_is_asked_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let (hub, config) = tiny_hub(folder.path());
    output_of(pinion().args(["tls", "init", "--data"]).arg(folder.path()));
    let tls = folder.path().join("tls");
    let (proxy, asked) = secure_proxy(&tls);
    let through = |trusted: &Path, words: &[&str]| {
        let mut command =
            with(&folder.path().join("cache"), &hub.url, &[&["weights"], words, &["--config", &config]].concat());
        command.env("HTTP_PROXY", &proxy).env("SSL_CERT_FILE", trusted).env_remove("NO_PROXY").env_remove("no_proxy");
        command.output().unwrap()
    };
    let nobody = folder.path().join("nobody.pem");
    fs::write(&nobody, "").unwrap();
    let said = through(&nobody, &["lock"]);
    assert!(!said.status.success() && stderr(&said).contains("certificate"), "{}", stderr(&said));
    assert!(asked.lock().unwrap().is_empty(), "a proxy that nobody vouches for is told nothing");
    for words in ["lock", "pull"] {
        let said = through(&tls.join("authority.pem"), &[words]);
        assert!(said.status.success(), "{}", stderr(&said));
    }
    let blobs = asked.lock().unwrap().iter().filter(|line| line.contains("/blobs/")).count();
    assert_eq!(blobs, hub.asked().len(), "nothing went by another way");
}
