//! Bad input through the real server and the real model: a clear body, no device work, and the server goes on.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::processes::until;
use crate::support::{Server, http, http_bytes};

const MODEL: &str = "/v1/models/meta/meta-llama-3-8b-instruct/predictions";

fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(body).into_owned()
}

#[test]
fn each_bad_request_has_its_body_and_the_server_goes_on() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let good = json!({"prompt": "x"});
    let bad_version = "The specified version does not exist (or perhaps you don't have permission to use it?)";
    let cases: Vec<(&str, Value, u16, &str)> = vec![
        (MODEL, json!({"input": good, "model": "x"}), 422, "Additional property model is not allowed"),
        (MODEL, json!({"input": {"prompt": 7}}), 422, "Invalid type. Expected: string, given: integer"),
        (MODEL, json!({"input": {"prompt": "x", "max_tokens": "9"}}), 422, "Expected: integer, given: string"),
        (MODEL, json!({"input": {"prompt": "x", "temperature": 6}}), 422, "Must be less than or equal to 5"),
        (MODEL, json!({"input": {}}), 422, "prompt is required"),
        (MODEL, json!({"input": []}), 422, "Expected: object, given: array"),
        (MODEL, json!({"input": good, "webhook": "not a url"}), 422, "webhook"),
        (MODEL, json!({"input": good, "webhook": "ftp://example.com/"}), 422, "webhook"),
        ("/v1/predictions", json!({"version": "nope", "input": good}), 422, bad_version),
        ("/v1/models/meta/nothing/predictions", json!({"input": good}), 404, "could not be found"),
        ("/v1/predictions", json!({"input": good}), 422, "version is required"),
    ];
    for (path, body, code, expected) in cases {
        let (answered, problem) = server.post(path, &body);
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert_eq!(answered, code, "{body}: {problem}");
        assert_eq!(problem["status"], code, "{problem}");
        assert!(detail.contains(expected), "{body} should say {expected:?}: {problem}");
    }
    let json_header = "Content-Type: application/json\r\n";
    let (code, body) = http_bytes("POST", &format!("{}{MODEL}", server.base), json_header, b"{\"input\": {");
    assert!((400..=422).contains(&code), "{code}: {}", text(&body));
    assert_eq!(http("GET", &format!("{}/v1/predictions/nothing", server.base), "").0, 404);
    let (code, done) = server.post(MODEL, &json!({"input": {"prompt": "Say OK", "max_tokens": 2}}));
    assert_eq!(code, 201);
    assert_eq!(server.finished(done["id"].as_str().unwrap())["status"], "succeeded");
}

#[test]
fn a_200_mb_body_is_refused_with_the_limit_and_without_reading_it() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let body = vec![b'x'; 200 << 20];
    let began = Instant::now();
    let (code, answer) =
        http_bytes("POST", &format!("{}{MODEL}", server.base), "Content-Type: application/json\r\n", &body);
    assert_eq!(code, 413, "{}", text(&answer));
    assert!(text(&answer).contains("MB") || text(&answer).contains("MiB"), "names the limit: {}", text(&answer));
    assert!(began.elapsed() < Duration::from_secs(20));
    until("it serves", || (server.get("/readyz").0 == 200).then_some(()));
}

#[test]
fn a_prompt_the_model_cannot_take_fails_with_the_hosted_code() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let cases = [
        (json!({"prompt": ""}), "E1001"),
        (json!({"prompt": "gear ".repeat(20_000)}), "E1002"),
        (json!({"prompt": "x", "prompt_template": "no placeholder"}), "E1003"),
    ];
    for (input, code) in cases {
        let (answered, created) = server.post(MODEL, &json!({"input": input}));
        assert_eq!(answered, 201, "a model's refusal is the prediction's failure: {created}");
        let ended = server.finished(created["id"].as_str().unwrap());
        assert_eq!(ended["status"], "failed", "{code}");
        assert!(ended["error"].as_str().unwrap_or_default().contains(code), "{code}: {}", ended["error"]);
        assert_eq!(ended["output"], Value::Null);
    }
}
