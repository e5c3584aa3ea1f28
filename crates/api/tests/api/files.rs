//! The Files API: every shape of upload, the recorded bodies, and an upload as an input.

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use store::Store;

use crate::harness::{HOST, Options, Reply, Server, path_of};

const BOUNDARY: &str = "f64a6c6ac4fed507b9430635c33d4f7c";
const FORM: (&str, &str) = ("content-type", "multipart/form-data; boundary=f64a6c6ac4fed507b9430635c33d4f7c");
const NOT_FOUND: &str = "{\"detail\":\"File not found\"}\n";

/// One part: what stands behind `form-data`, its type if it has one, and its bytes.
fn part(disposition: &str, kind: Option<&str>, bytes: &str) -> String {
    let kind = kind.map(|kind| format!("Content-Type: {kind}\r\n")).unwrap_or_default();
    format!("--{BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n{kind}\r\n{bytes}\r\n")
}

fn form(parts: &[String]) -> String {
    format!("{}--{BOUNDARY}--\r\n", parts.concat())
}

fn content(bytes: &str) -> String {
    part("name=\"content\"; filename=\"a talk.wav\"", Some("audio/wav"), bytes)
}

impl Server {
    pub async fn upload(&self, parts: &[String]) -> Reply {
        self.send("POST", "/v1/files", &[FORM], form(parts)).await
    }

    /// The description of a small file.
    pub async fn uploaded(&self, bytes: &str) -> Value {
        let reply = self.upload(&[content(bytes)]).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        reply.json()
    }
}

#[tokio::test]
async fn an_upload_has_the_recorded_shape_and_is_got_listed_and_deleted() {
    let server = Server::start().await;
    let reply = server.upload(&[content("hello")]).await;
    assert_eq!((reply.status, reply.header("content-type")), (201, Some("application/json; charset=UTF-8")));
    let keys =
        ["id", "name", "content_type", "size", "etag", "checksums", "metadata", "created_at", "expires_at", "urls"];
    assert_eq!(reply.keys(), keys);
    let file = reply.json();
    let id = file["id"].as_str().unwrap();
    let md5 = "5d41402abc4b2a76b9719d911017c592";
    let sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    assert_eq!((&file["name"], &file["content_type"]), (&json!("a talk.wav"), &json!("audio/wav")));
    assert_eq!((&file["size"], &file["etag"], &file["metadata"]), (&json!(5), &json!(md5), &json!({})));
    assert_eq!(file["checksums"], json!({ "sha256": sha256, "md5": md5 }));
    assert_eq!(file["urls"], json!({ "get": format!("http://{HOST}/v1/files/{id}") }));
    let second = server.uploaded("more").await;
    assert_eq!(server.get(path_of(file["urls"]["get"].as_str().unwrap())).await.json(), file);
    let list = server.get("/v1/files").await;
    assert_eq!(list.json(), json!({ "next": null, "previous": null, "results": [second, file] }));
    let path = format!("/v1/files/{id}");
    let deleted = server.send("DELETE", &path, &[], "").await;
    assert_eq!((deleted.status, deleted.bytes.len()), (204, 0));
    for method in ["DELETE", "GET"] {
        let gone = server.send(method, &path, &[], "").await;
        assert_eq!((gone.status, gone.text().as_str()), (404, NOT_FOUND), "{method}");
        assert_eq!(gone.header("content-type"), Some("application/problem+json"));
    }
    assert_eq!(server.get("/v1/files").await.json()["results"], json!([second]));
}

/// As the clients were seen to send them.
#[tokio::test]
async fn every_clients_form_is_understood() {
    let server = Server::start().await;
    let json_blob = part("name=\"metadata\"; filename=\"blob\"", Some("application/json"), "{\"customer\":123}");
    let text = part("name=\"metadata\"", None, "{\"customer\": 123}");
    let by_key = part("name=\"metadata[customer]\"", None, "123");
    let upload = part("name=\"content\"; filename=\"upload\"", Some("application/octet-stream"), "hello");
    let bare = part("name=\"content\"", None, "hello");
    let named = [part("name=\"filename\"", None, "b.mp3"), part("name=\"type\"", None, "audio/mpeg")];
    for (who, parts, name, kind, metadata) in [
        ("python", vec![text, content("hello")], "a talk.wav", "audio/wav", json!({ "customer": 123 })),
        ("node", vec![content("hello"), json_blob], "a talk.wav", "audio/wav", json!({ "customer": 123 })),
        ("python 2", vec![by_key, upload], "upload", "application/octet-stream", json!({ "customer": "123" })),
        ("curl", vec![bare.clone()], "file", "application/octet-stream", json!({})),
        ("fields", [vec![bare], named.to_vec()].concat(), "b.mp3", "audio/mpeg", json!({})),
    ] {
        let reply = server.upload(&parts).await;
        assert_eq!(reply.status, 201, "{who}: {}", reply.text());
        let file = reply.json();
        assert_eq!((&file["name"], &file["content_type"]), (&json!(name), &json!(kind)), "{who}");
        assert_eq!((&file["metadata"], &file["size"]), (&metadata, &json!(5)), "{who}");
    }
}

#[tokio::test]
async fn an_empty_file_is_a_file() {
    let file = Server::start().await.uploaded("").await;
    assert_eq!((&file["size"], &file["etag"]), (&json!(0), &json!("d41d8cd98f00b204e9800998ecf8427e")));
}

#[tokio::test]
async fn a_file_over_the_limit_is_refused_in_the_hosted_words_and_leaves_nothing() {
    let server = Server::with(Options { file_bytes: 1 << 20, ..Options::default() }).await;
    let (most, over) = ("x".repeat(1 << 20), "x".repeat((1 << 20) + 1));
    assert_eq!(server.upload(&[content(&most)]).await.status, 201);
    let reply = server.upload(&[content(&over)]).await;
    assert_eq!((reply.status, reply.text().as_str()), (413, "{\"detail\":\"Files must be less than 1MB in size\"}\n"));
    assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    // Refused by what it says of itself, before a byte of it was asked for.
    let announced = [FORM, ("content-length", "10000000000"), ("expect", "100-continue")];
    assert_eq!(server.send("POST", "/v1/files", &announced, "").await.status, 413);
    assert_eq!(server.get("/v1/files").await.json()["results"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_no_upload_is_refused_with_its_reason() {
    let server = Server::start().await;
    let metadata = |text: &str| part("name=\"metadata\"", None, text);
    let long = part("name=\"filename\"", None, &"n".repeat(256));
    let wide = part("name=\"metadata[x]\"", None, &"n".repeat(65 << 10));
    for (parts, reason) in [
        (vec![metadata("{}")], "- content is required\n"),
        (vec![content("x"), metadata("[1]")], "- metadata: Invalid type. Expected: object, given: array\n"),
        (vec![content("x"), metadata("{")], "- metadata: is not valid JSON: EOF"),
        (vec![content("x"), long], "- filename: String length must be less than or equal to 255\n"),
        (vec![content("x"), wide], "- metadata[x]: String length must be less than or equal to 65536\n"),
    ] {
        let reply = server.upload(&parts).await;
        let detail = reply.json()["detail"].as_str().unwrap().to_owned();
        assert!(reply.status == 422 && detail.starts_with(reason), "{}: {detail}", reply.status);
    }
    let reply = server.post("/v1/files", json!({ "content": "x" })).await;
    assert_eq!(reply.status, 415, "{}", reply.text());
    let cut = form(&[content("x")]).replace(&format!("--{BOUNDARY}--\r\n"), "");
    let reply = server.send("POST", "/v1/files", &[FORM], cut).await;
    assert_eq!(reply.status, 400, "{}", reply.text());
    assert_eq!(server.get("/v1/files").await.json()["results"], json!([]));
}

#[tokio::test]
async fn a_list_of_files_has_pages_of_a_hundred() {
    let server = Server::start().await;
    for number in 0..101 {
        server.uploaded(&number.to_string()).await;
    }
    let first = server.get("/v1/files").await.json();
    assert_eq!((first["results"].as_array().unwrap().len(), &first["previous"]), (100, &Value::Null));
    let second = server.get(path_of(first["next"].as_str().unwrap())).await.json();
    assert_eq!((second["results"].as_array().unwrap().len(), &second["next"]), (1, &Value::Null));
    assert_eq!(server.get(path_of(second["previous"].as_str().unwrap())).await.json()["results"], first["results"]);
    assert_eq!(server.get("/v1/files?cursor=foreign").await.status, 400);
}

#[tokio::test]
async fn an_expired_file_is_gone_for_everybody() {
    let server = Server::with(Options { file_seconds: 0, ..Options::default() }).await;
    let file = server.uploaded("hello").await;
    let url = file["urls"]["get"].as_str().unwrap();
    assert_eq!(server.get(path_of(url)).await.text(), NOT_FOUND);
    assert_eq!(server.get("/v1/files").await.json()["results"], json!([]));
    let failed = server.hear(url).await;
    let error = format!("input file: {url}: there is no such file; it was deleted or has expired");
    assert_eq!((&failed["status"], &failed["error"]), (&json!("failed"), &json!(error)));
}

fn signature(secret: &str, text: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(text.as_bytes());
    let base64 = STANDARD.encode(mac.finalize().into_bytes());
    base64.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D")
}

#[tokio::test]
async fn a_signed_address_downloads_without_a_token_until_it_expires() {
    let server = Server::with(Options { auth: api::Auth::Required, ..Options::default() }).await;
    let token = format!("Bearer {}", server.store.token_create("t").await.unwrap());
    let token = ("authorization", token.as_str());
    let file = server.send("POST", "/v1/files", &[FORM, token], form(&[content("hello")])).await.json();
    let id = file["id"].as_str().unwrap();
    let secret = server.store.secret("files").await.unwrap();
    let later = 9_999_999_999_u64;
    let signed = |owner: &str, of: &str, expiry: u64, secret: &str| {
        let signature = signature(secret, &format!("{owner} {of} {expiry}"));
        format!("/v1/files/{id}/download?expiry={expiry}&owner={owner}&signature={signature}")
    };
    let reply = server.get(&signed("pinion", id, later, &secret)).await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "hello"));
    assert_eq!((reply.header("content-type"), reply.header("content-length")), (Some("audio/wav"), Some("5")));
    let range = [("range", "bytes=1-2")];
    let part = server.send("GET", &signed("pinion", id, later, &secret), &range, "").await;
    assert_eq!((part.status, part.text().as_str()), (206, "el"));
    for wrong in [
        signed("somebody", id, later, &secret),
        signed("pinion", "other", later, &secret),
        signed("pinion", id, 1_708_515_345, &secret),
        signed("pinion", id, later, "whsec_other"),
        format!("/v1/files/{id}/download?expiry={later}&owner=pinion&signature=%25"),
        format!("/v1/files/{id}/download?signature=x"),
    ] {
        let reply = server.get(&wrong).await;
        assert_eq!((reply.status, reply.text().as_str()), (404, NOT_FOUND), "{wrong}");
    }
    let bare = format!("/v1/files/{id}/download");
    assert_eq!(server.get(&bare).await.status, 401, "without a signature it takes a token");
    assert_eq!(server.send("GET", &bare, &[token], "").await.text(), "hello");
}

#[tokio::test]
async fn every_route_of_files_asks_for_a_token() {
    let server = Server::with(Options { auth: api::Auth::Required, ..Options::default() }).await;
    for route in ["GET /files", "POST /files", "GET /files/f", "DELETE /files/f", "GET /files/f/download"] {
        let (method, path) = route.split_once(' ').unwrap();
        let reply = server.send(method, &format!("/v1{path}"), &[], "").await;
        assert_eq!(reply.status, 401, "{route}: {}", reply.text());
    }
}

impl Server {
    /// What the echo model hears in a file.
    pub async fn hear(&self, uri: &str) -> Value {
        let body = json!({ "input": { "file": uri } }).to_string();
        let reply = self.send("POST", "/v1/models/files/ear/predictions", &[("prefer", "wait=30")], body).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        reply.json()
    }
}

#[tokio::test]
async fn an_upload_and_a_data_uri_reach_the_model_and_are_echoed_as_they_were_sent() {
    let server = Server::start().await;
    let file = server.uploaded("hello").await;
    let heard = "5 bytes, sha256 2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    for uri in [file["urls"]["get"].as_str().unwrap(), "data:audio/wav;base64,aGVsbG8="] {
        let prediction = server.hear(uri).await;
        assert_eq!((&prediction["status"], &prediction["output"]), (&json!("succeeded"), &json!([heard])), "{uri}");
        assert_eq!(prediction["input"], json!({ "file": uri }), "as it was sent");
    }
}

#[tokio::test]
async fn what_is_no_file_is_a_422_before_there_is_a_prediction() {
    let server = Server::start().await;
    let format = "- input.file: Does not match format 'uri'\n";
    for (file, detail) in [
        (json!("ftp://gears.example/a.wav"), format),
        (json!("file:///etc/passwd"), format),
        (json!("aGVsbG8="), format),
        (json!({ "0": 104 }), "- input.file: Invalid type. Expected: string, given: object\n"),
    ] {
        let reply = server.post("/v1/models/files/ear/predictions", json!({ "input": { "file": file } })).await;
        assert_eq!((reply.status, reply.json()["detail"].as_str()), (422, Some(detail)), "{file}");
    }
    let input = json!({ "text": "hi" });
    let reply = server.post("/v1/models/files/ear/predictions", json!({ "input": input })).await;
    assert_eq!(reply.status, 201, "a file may be left out");
}
