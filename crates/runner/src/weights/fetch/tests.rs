//! Every source, well and badly behaved, against servers of a few lines on this machine.

mod altered;
mod hub;
mod large;
mod own;
mod pip;
mod server;

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::*;
use crate::weights::Token;
use crate::weights::lock::set_digest;
use server::{Request, Server, answer, cut, ok, part, ranged, redirect};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// 300 kB that no compression or repetition shortens: several reads and writes long.
fn content() -> Vec<u8> {
    (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn entry(files: &[(&str, &[u8])]) -> Entry {
    let locked = |(path, bytes): &(&str, &[u8])| LockedFile {
        path: (*path).into(),
        size: bytes.len() as u64,
        digest: format!("sha256:{}", hex::encode(Sha256::digest(bytes))),
        layer: None,
    };
    let files: Vec<LockedFile> = files.iter().map(locked).collect();
    let size = files.iter().map(|file| file.size).sum();
    Entry { name: "tiny".into(), set_digest: set_digest(&files), size, files, ..Entry::default() }
}

fn https(url: &str) -> Source {
    Source { place: Place::Https(url.parse().unwrap()), only: None }
}

fn path(path: &Path) -> Source {
    Source { place: Place::Path(path.to_owned()), only: None }
}

/// A cache of its own, and what was reported.
struct Here {
    options: Options,
    notes: Vec<String>,
    folder: TempDir,
}

impl Here {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            offline: false,
            cache_dir: folder.path().join("cache"),
            weights_dir: None,
            hub_endpoint: "http://127.0.0.1:9/".into(),
            hub_token: None,
            hub_cache: None,
        };
        Self { options, notes: Vec::new(), folder }
    }

    fn ensure(&mut self, entry: &Entry, mirrors: &[Source]) -> Result<PathBuf, String> {
        let notes = &mut self.notes;
        let mut report = |progress: Progress| match progress {
            Progress::Bytes { done, total, .. } => assert!(done <= total),
            Progress::Trying { source, .. } => notes.push(format!("trying {source}")),
            Progress::Failed { source, why, .. } => notes.push(format!("failed {source}: {why}")),
            Progress::Waiting { file } => notes.push(format!("waiting for {file}")),
        };
        ensure(entry, mirrors, &self.options, &mut report).map_err(|e| e.to_string())
    }

    fn cache(&self) -> Cache {
        Cache::at(&self.options.cache_dir)
    }

    /// No unfinished or scratch file is left behind.
    fn is_tidy(&self) -> bool {
        let blobs = std::fs::read_dir(self.options.cache_dir.join("blobs/sha256")).unwrap();
        let scratch = std::fs::read_dir(self.options.cache_dir.join("scratch"));
        let left = scratch.map_or(0, |found| found.count());
        left == 0 && blobs.flatten().all(|entry| !entry.path().to_string_lossy().contains("partial"))
    }
}

#[test]
fn a_file_is_fetched_once_and_found_from_then_on() {
    let content = content();
    let body = content.clone();
    let server = Server::start(move |_, _| ok(&body));
    let entry = entry(&[("a/w.gguf", &content)]);
    let mut here = Here::new();
    let folder = here.ensure(&entry, &[https(&server.url("/w"))]).unwrap();
    assert_eq!(std::fs::read(folder.join("a/w.gguf")).unwrap(), content);
    assert!(here.is_tidy());
    here.options.offline = true;
    assert_eq!(here.ensure(&entry, &[https(&server.url("/w"))]).unwrap(), folder);
    assert_eq!(here.cache().ready(&entry), Some(folder));
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn a_download_that_was_cut_goes_on_where_it_ended() {
    let content = content();
    let body = content.clone();
    let server = Server::start(move |request, before| match (before, request.from()) {
        (0, None) => cut(&body, 100_000),
        (1, Some(from)) => part(&body, from, 200_000),
        (_, Some(from)) => part(&body, from, body.len()),
        _ => answer("500 No", "", b""),
    });
    let mut here = Here::new();
    let folder = here.ensure(&entry(&[("w", &content)]), &[https(&server.url("/w"))]).unwrap();
    assert_eq!(std::fs::read(folder.join("w")).unwrap(), content);
    let ranges: Vec<Option<usize>> = server.seen().iter().map(Request::from).collect();
    assert_eq!(ranges, [None, Some(100_000), Some(200_000)]);
}

#[test]
fn what_came_before_a_cut_serves_the_next_start_and_another_source() {
    let content = content();
    let entry = entry(&[("w", &content)]);
    let body = content.clone();
    let dying =
        Server::start(move |_, before| if before == 0 { cut(&body, 120_000) } else { answer("503 Later", "", b"") });
    let mut here = Here::new();
    let said = here.ensure(&entry, &[https(&dying.url("/w"))]).unwrap_err();
    assert!(said.contains("HTTP 503"), "{said}");

    let body = content.clone();
    let other = Server::start(move |request, _| part(&body, request.from().unwrap(), body.len()));
    here.ensure(&entry, &[https(&other.url("/w"))]).unwrap();
    assert_eq!(other.seen()[0].from(), Some(120_000));
    assert!(here.is_tidy());
}

#[test]
fn a_server_that_ignores_ranges_is_read_from_the_start() {
    let content = content();
    let body = content.clone();
    let server = Server::start(move |_, before| if before == 0 { cut(&body, 50_000) } else { ok(&body) });
    let mut here = Here::new();
    here.ensure(&entry(&[("w", &content)]), &[https(&server.url("/w"))]).unwrap();
    assert_eq!(server.seen()[1].from(), Some(50_000));
}

#[test]
fn a_range_that_cannot_be_had_is_read_from_the_start() {
    let content = content();
    for strange in [
        answer("416 Range Not Satisfiable", "Content-Length: 0\r\n", b""),
        answer("206 Partial Content", "Content-Length: 1\r\n", b"x"),
        part(&content, 7, content.len()),
    ] {
        let body = content.clone();
        let server = Server::start(move |request, before| match (before, request.from()) {
            (0, _) => cut(&body, 60_000),
            (_, Some(_)) => strange.clone(),
            (_, None) => ok(&body),
        });
        Here::new().ensure(&entry(&[("w", &content)]), &[https(&server.url("/w"))]).unwrap();
    }
}

#[test]
fn a_source_is_not_blamed_for_what_another_left() {
    let content = content();
    let entry = entry(&[("w", &content)]);
    let mut here = Here::new();
    let poisoned = here.cache().partial(&entry.files[0]);
    std::fs::create_dir_all(poisoned.parent().unwrap()).unwrap();
    std::fs::write(&poisoned, vec![0; 70_000]).unwrap();
    let body = content.clone();
    let server = Server::start(move |request, _| match request.from() {
        Some(from) => part(&body, from, body.len()),
        None => ok(&body),
    });
    here.ensure(&entry, &[https(&server.url("/w"))]).unwrap();
    let ranges: Vec<Option<usize>> = server.seen().iter().map(Request::from).collect();
    assert_eq!(ranges, [Some(70_000), None]);
}

#[test]
fn the_hub_is_asked_by_its_protocol_and_its_token_goes_nowhere_else() {
    let content = content();
    let body = content.clone();
    let store = Server::start(move |_, _| ok(&body));
    let there = store.url("/blob?signature=1");
    let tag = hex::encode(Sha256::digest(&content));
    let hub = Server::start(move |request, before| match before {
        // A hub may first redirect within itself.
        0 => redirect(&format!("/again{}", request.path)),
        _ => {
            let headers = format!(
                "Location: {there}\r\nX-Linked-Size: 300000\r\nX-Linked-Etag: \"{tag}\"\r\nContent-Length: 0\r\n"
            );
            answer("302 Found", &headers, b"")
        }
    });
    let mut here = Here::new();
    here.options.hub_endpoint = hub.url("/");
    here.options.hub_token = Some(Token::new("hf_secret", "HF_TOKEN"));
    let source = |file: &str| Source {
        place: Place::Hub { repo: "org/re po".into(), commit: COMMIT.into(), file: Some(file.into()) },
        only: None,
    };
    here.ensure(&entry(&[("w", &content)]), &[source("sub/w.gguf")]).unwrap();
    let path = format!("/org/re%20po/resolve/{COMMIT}/sub/w.gguf");
    assert_eq!(
        hub.seen().iter().map(|request| request.path.clone()).collect::<Vec<_>>(),
        [path.clone(), format!("/again{path}")]
    );
    assert!(hub.seen().iter().all(|request| request.header("authorization") == Some("Bearer hf_secret")));
    assert_eq!(store.seen().len(), 1);
    assert_eq!(store.seen()[0].header("authorization"), None);
}

#[test]
fn what_the_hub_announces_wrongly_is_not_downloaded() {
    let content = content();
    let source = Source { place: Place::Hub { repo: "o/r".into(), commit: COMMIT.into(), file: None }, only: None };
    for (header, expected) in [
        ("X-Linked-Size: 299999".to_owned(), "it has 299999 bytes there; the lock says 300000"),
        (format!("X-Linked-Etag: \"{}\"", "ab".repeat(32)), "the hub has abababab"),
    ] {
        let hub = Server::start(move |_, _| answer("302 Found", &format!("Location: /blob\r\n{header}\r\n"), b""));
        let mut here = Here::new();
        here.options.hub_endpoint = hub.url("");
        let said = here.ensure(&entry(&[("w", &content)]), std::slice::from_ref(&source)).unwrap_err();
        assert!(said.contains(expected), "{said}");
        assert_eq!(hub.seen().len(), 1);
    }
}

#[test]
fn every_mirror_that_fails_is_named_with_its_reason_in_order() {
    let content = content();
    let mut wrong = content.clone();
    wrong[1_000] ^= 1;
    let expected = hex::encode(Sha256::digest(&content));
    let got = hex::encode(Sha256::digest(&wrong));
    let long = [&content[..], b"x"].concat();
    let server = Server::start(move |request, _| match request.path.as_str() {
        "/wrong" => ok(&wrong),
        "/short" => ok(&wrong[1..]),
        "/endless" => answer("200 OK", "", &long),
        "/gated" => answer("401 Unauthorized", "Content-Length: 0\r\n", b""),
        "/loop" => redirect("/loop"),
        "/nowhere" => redirect("ftp://x/y"),
        _ => answer("404 Not Found", "Content-Length: 0\r\n", b""),
    });
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut mirrors: Vec<Source> = ["wrong", "short", "endless", "gated", "loop", "nowhere", "absent"]
        .iter()
        .map(|path| https(&server.url(&format!("/{path}"))))
        .collect();
    mirrors.push(https(&format!("http://{closed}/w")));
    mirrors.push(path(Path::new("/nowhere/at/all")));
    let mut here = Here::new();
    let said = here.ensure(&entry(&[("w", &content)]), &mirrors).unwrap_err();
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].contains("weights tiny: w (300000 bytes, sha256:"), "{said}");
    for (line, why) in lines[1..].iter().zip([
        &*format!("wrong content: expected sha256 {expected}, got {got}"),
        "it sends 299999 bytes; the lock says 300000",
        "it sends more than the 300000 bytes that the lock says",
        "HTTP 401: it is private or gated (a token is sent to the hub and to nobody else)",
        "more than 10 redirects",
        "HTTP 302 to nowhere: Some(\"ftp://x/y\")",
        "HTTP 404",
        "refused",
        "path /nowhere/at/all: /nowhere/at/all: No such file",
    ]) {
        assert!(line.contains(why), "{line}\n  should contain: {why}");
    }
    assert_eq!(lines.len(), 10);
    assert!(here.is_tidy());
    assert_eq!(here.notes.iter().filter(|note| note.starts_with("failed")).count(), 9);
}

#[test]
fn mirrors_are_tried_in_order_until_one_delivers() {
    let content = content();
    let body = content.clone();
    let server = Server::start(move |request, _| match request.path.as_str() {
        "/second" => ok(&body),
        _ => answer("404 Not Found", "Content-Length: 0\r\n", b""),
    });
    let mut here = Here::new();
    let mirrors = ["/first", "/second", "/third"].map(|path| https(&server.url(path)));
    here.ensure(&entry(&[("w", &content)]), &mirrors).unwrap();
    let (first, second) = (server.url("/first"), server.url("/second"));
    assert_eq!(
        here.notes,
        [format!("trying {first}"), format!("failed {first}: HTTP 404"), format!("trying {second}")]
    );
}

#[test]
fn offline_says_what_is_missing_and_how_to_get_it() {
    let content = content();
    let mut here = Here::new();
    here.options.offline = true;
    let said = here.ensure(&entry(&[("w", &content)]), &[https("http://127.0.0.1:9/")]).unwrap_err();
    assert!(said.contains("weights tiny: w (300000 bytes, sha256:"), "{said}");
    assert!(said.contains("`pinion weights pull tiny`"), "{said}");
    assert!(here.notes.is_empty(), "{:?}", here.notes);
}

#[test]
fn a_set_comes_from_a_folder_even_offline() {
    let here_are = tempfile::tempdir().unwrap();
    std::fs::create_dir(here_are.path().join("unet")).unwrap();
    std::fs::write(here_are.path().join("unet/w"), b"unet").unwrap();
    std::fs::write(here_are.path().join("v"), b"vae").unwrap();
    let entry = entry(&[("unet/w", b"unet"), ("vae/v", b"vae")]);
    let mut here = Here::new();
    here.options.offline = true;
    here.options.weights_dir = Some(here_are.path().to_owned());
    // The second is found by its bare name.
    let folder = here.ensure(&entry, &[]).unwrap();
    assert_eq!(std::fs::read(folder.join("vae/v")).unwrap(), b"vae");
    assert_eq!(std::fs::read(folder.join("unet/w")).unwrap(), b"unet");

    let mut other = Here::new();
    let said = other.ensure(&self::entry(&[("v", b"longer")]), &[path(here_are.path())]).unwrap_err();
    assert!(said.contains("has 3 bytes; the lock says 6"), "{said}");
    let said = other.ensure(&self::entry(&[("u", b"longer")]), &[]).unwrap_err();
    assert!(said.contains("no mirror lists it"), "{said}");
}

#[test]
fn two_that_want_the_same_file_fetch_it_once() {
    let content = content();
    let body = content.clone();
    let (waits, waited) = std::sync::mpsc::channel::<()>();
    // The server answers only once the other one has said that it waits.
    let server = Server::start(move |_, _| {
        waited.recv().unwrap();
        ok(&body)
    });
    let entry = entry(&[("w", &content)]);
    let here = Here::new();
    let mirrors = [https(&server.url("/w"))];
    std::thread::scope(|scope| {
        let (started, starts) = std::sync::mpsc::channel::<()>();
        let (entry, mirrors, options) = (&entry, &mirrors, &here.options);
        scope.spawn(move || {
            let mut report = |progress: Progress| {
                if let Progress::Trying { .. } = progress {
                    started.send(()).unwrap();
                }
            };
            ensure(entry, mirrors, options, &mut report).unwrap();
        });
        starts.recv().unwrap();
        let mut report = |progress: Progress| {
            assert_eq!(progress, Progress::Waiting { file: "w" });
            waits.send(()).unwrap();
        };
        ensure(entry, mirrors, options, &mut report).unwrap();
    });
    assert_eq!(server.seen().len(), 1);
    assert_eq!(std::fs::read(here.folder.path().join("cache/sets").join(entry.set_hex()).join("w")).unwrap(), content);
}
