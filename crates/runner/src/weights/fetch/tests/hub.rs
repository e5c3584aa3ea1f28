//! The hub's protocol: revisions, lists of files, gated repositories, its own tools' folder.

use super::*;
use crate::weights::{Declared, declared, pin};

const LARGE: &[u8] = b"weights, which are large";

/// A hub with `org/repo`: a branch `main`, a small file, a large one in the blob store, and a list in two pages.
fn hub() -> Server {
    let tag = hex::encode(Sha256::digest(LARGE));
    Server::start(move |request, _| {
        let json = |text: String, headers: &str| {
            answer("200 OK", &format!("{headers}Content-Length: {}\r\n", text.len()), text.as_bytes())
        };
        let tree = format!("/api/models/org/repo/tree/{COMMIT}?recursive=true");
        let resolve = format!("/org/repo/resolve/{COMMIT}/");
        match request.path.as_str() {
            "/api/models/org/repo/revision/main" => json(format!(r#"{{"sha": "{COMMIT}", "siblings": []}}"#), ""),
            "/api/models/org/repo/revision/odd" => json(r#"{"sha": "main"}"#.into(), ""),
            path if path == tree => json(
                r#"[{"type": "directory", "oid": "d", "size": 0, "path": "unet"},
                    {"type": "file", "oid": "g", "size": 2, "path": "config.json"},
                    {"type": "file", "oid": "h", "size": 9, "path": ".gitattributes"}]"#
                    .into(),
                &format!("Link: <{tree}&cursor=2>; rel=\"next\"\r\n"),
            ),
            path if path == format!("{tree}&cursor=2") => json(
                format!(
                    r#"[{{"type": "file", "oid": "p", "size": 134, "path": "unet/model.safetensors",
                         "lfs": {{"oid": "{tag}", "size": {}, "pointerSize": 134}}}},
                        {{"type": "file", "oid": "p", "size": 134, "path": "old.bin",
                         "lfs": {{"oid": "{tag}", "size": 4, "pointerSize": 134}}}}]"#,
                    LARGE.len()
                ),
                "",
            ),
            path if path == format!("{resolve}config.json") => ok(b"{}"),
            path if path == format!("{resolve}unet/model.safetensors") => {
                let headers = format!(
                    "Location: /blob\r\nX-Linked-Size: {}\r\nX-Linked-Etag: \"{tag}\"\r\nContent-Length: 0\r\n",
                    LARGE.len()
                );
                answer("302 Found", &headers, b"")
            }
            path if path == format!("{resolve}old.bin") => ok(b"PK\x03\x04"),
            "/blob" => ok(LARGE),
            _ => answer("404 Not Found", "X-Error-Message: Entry not found\r\nContent-Length: 0\r\n", b""),
        }
    })
}

fn set(source: &str) -> Declared {
    declared(&format!("weights: [{{ name: tiny, source: {source} }}]\n")).unwrap().remove(0)
}

fn pinned(here: &Here, source: &str) -> Result<Entry, String> {
    pin(&set(source), Path::new("/"), None, &here.options, &mut |_| {}).map_err(|e| e.to_string())
}

#[test]
fn a_revision_becomes_a_commit_and_its_files_a_lock() {
    let hub = hub();
    let mut here = Here::new();
    here.options.hub_endpoint = hub.url("");
    let entry = pinned(&here, "{ uri: hf://org/repo@main, exclude: ['*.bin'] }").unwrap();
    assert_eq!(entry.sources[0].fingerprint, format!("commit:{COMMIT}"));
    let files: Vec<_> = entry.files.iter().map(|file| (file.path.as_str(), file.size, file.hex().to_owned())).collect();
    let digest = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
    let large = ("unet/model.safetensors", LARGE.len() as u64, digest(LARGE));
    assert_eq!(files, [("config.json", 2, digest(b"{}")), large]);
    assert!(!hub.seen().iter().any(|request| request.path == "/blob"), "a large file is pinned by what the hub says");

    let own = crate::weights::Own { entry: entry.clone(), base: "/".into() };
    let folder = own.ensure(&here.options, &mut |_| {}).unwrap();
    assert_eq!(std::fs::read(folder.join("unet/model.safetensors")).unwrap(), LARGE);
    // The same again keeps its time.
    let again = pin(
        &set("{ uri: hf://org/repo@main, exclude: ['*.bin'] }"),
        Path::new("/"),
        Some(&entry),
        &here.options,
        &mut |_| {},
    );
    assert_eq!(again.unwrap(), entry);
}

#[test]
fn what_the_hub_has_and_a_lock_must_not_is_refused() {
    let hub = hub();
    let mut here = Here::new();
    here.options.hub_endpoint = hub.url("");
    for (source, expected) in [
        ("{ uri: hf://org/repo@main }", "old.bin: is a Python pickle"),
        ("{ uri: hf://org/repo@main, include: ['*.gguf'] }", "fits include and exclude"),
        ("{ uri: hf://org/repo@odd }", "is \"main\", which is no commit"),
        ("{ uri: hf://org/repo@v2 }", "HTTP 404 (Entry not found)"),
    ] {
        let said = pinned(&here, source).unwrap_err();
        assert!(said.starts_with("weights tiny: hf://org/repo") && said.contains(expected), "{said}");
    }
    here.options.offline = true;
    assert!(pinned(&here, "{ uri: hf://org/repo@main }").unwrap_err().contains("the network may not be used"));
}

#[test]
fn a_gated_repository_says_which_token_and_what_to_do() {
    let content = content();
    let source =
        Source { place: Place::Hub { repo: "org/repo".into(), commit: COMMIT.into(), file: None }, only: None };
    for (status, token, expected) in [
        (
            "401 Unauthorized",
            None,
            "HTTP 401: org/repo is private or gated, and no token is known here: put one that may read it into HF_TOKEN",
        ),
        (
            "401 Unauthorized",
            Some("hf_wrong0123456789"),
            "HTTP 401: the hub does not take the token of HF_TOKEN (…6789) for org/repo",
        ),
        ("403 Forbidden", Some("hf_right0123456789"), "has no access to org/repo: ask for it on http://127.0.0.1:"),
        ("403 Forbidden", Some("hf_right0123456789"), "(Access is restricted)"),
    ] {
        let hub = Server::start(move |_, _| {
            answer(status, "X-Error-Message: Access is restricted\r\nContent-Length: 0\r\n", b"")
        });
        let mut here = Here::new();
        here.options.hub_endpoint = hub.url("");
        here.options.hub_token = token.map(|token| Token::new(token, "HF_TOKEN"));
        let said = here.ensure(&entry(&[("w", &content)]), std::slice::from_ref(&source)).unwrap_err();
        assert!(said.contains(expected), "{said}");
        assert!(!said.contains("hf_"), "a token is nobody's business: {said}");
    }
}

#[test]
fn what_the_hubs_own_tools_have_fetched_is_used() {
    let content = content();
    let mut here = Here::new();
    let kept = here.folder.path().join("hub");
    let snapshot = kept.join("models--org--repo/snapshots").join(COMMIT).join("sub");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::write(snapshot.join("w"), &content).unwrap();
    here.options.hub_cache = Some(kept);
    here.options.offline = true;
    let source =
        Source { place: Place::Hub { repo: "org/repo".into(), commit: COMMIT.into(), file: None }, only: None };
    here.ensure(&entry(&[("sub/w", &content)]), std::slice::from_ref(&source)).unwrap();
    // Believed no more than any other source.
    std::fs::write(snapshot.join("w"), &content[1..]).unwrap();
    let said = here.ensure(&entry(&[("sub/w", b"another")]), &[source]).unwrap_err();
    assert!(said.contains("has 299999 bytes; the lock says 7"), "{said}");
}

#[test]
fn a_file_behind_an_address_is_pinned_by_reading_it() {
    let server = Server::start(|_, _| answer("200 OK", "ETag: \"v1\"\r\nContent-Length: 24\r\n", LARGE));
    let here = Here::new();
    let entry = pinned(&here, &format!("{{ uri: '{}' }}", server.url("/a/w.gguf"))).unwrap();
    assert_eq!((entry.files[0].path.as_str(), entry.sources[0].fingerprint.as_str()), ("w.gguf", "etag:\"v1\""));
    let own = crate::weights::Own { entry, base: "/".into() };
    let path = own.ensure(&here.options, &mut |_| {}).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), LARGE);
    assert_eq!(server.seen().len(), 1, "what was read for its digest is kept");
}
