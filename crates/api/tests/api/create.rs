//! Creating, waiting, reading and cancelling, in the recorded shapes.

use serde_json::{Value, json};

use crate::harness::{ALIAS, HOST, SHORT_ALIAS, Server, VERSION, keys, path_of};

const BY_MODEL: &str = "/v1/models/meta/meta-llama-3-70b-instruct/predictions";

#[tokio::test]
async fn an_async_create_answers_at_once_in_the_recorded_shape() {
    let server = Server::start().await;
    let reply = server.post(BY_MODEL, json!({ "input": { "text": "hi", "hold": true, "extra": [1] } })).await;
    assert_eq!(reply.status, 201);
    assert_eq!(reply.header("content-type"), Some("application/json; charset=utf-8"));
    assert_eq!(reply.header("vary"), Some("Accept-Encoding"));
    assert_eq!(reply.header("ratelimit-remaining"), Some("599"));
    assert_eq!(reply.header("ratelimit-reset"), Some("1"));
    assert_eq!(reply.header("preference-applied"), None);
    let body = reply.json();
    let recorded = [
        "id",
        "model",
        "version",
        "input",
        "logs",
        "output",
        "data_removed",
        "error",
        "source",
        "status",
        "created_at",
        "urls",
    ];
    assert_eq!(reply.keys(), recorded);
    assert_eq!(keys(&body["urls"]), ["cancel", "get", "stream", "web"]);
    let id = body["id"].as_str().unwrap();
    assert_eq!(id.len(), 26);
    assert_eq!(body["model"], "meta/meta-llama-3-70b-instruct", "the name that was asked for");
    assert_eq!(body["version"], VERSION);
    assert_eq!(body["input"], json!({ "text": "hi", "hold": true, "extra": [1] }), "as given, no defaults");
    let fresh = json!(["", null, false, null, "api", "starting"]);
    let got = ["logs", "output", "data_removed", "error", "source", "status"].map(|key| body[key].clone());
    assert_eq!(Value::from(got.to_vec()), fresh);
    assert_eq!(body["urls"]["get"], format!("http://{HOST}/v1/predictions/{id}"));
    assert_eq!(body["urls"]["cancel"], format!("http://{HOST}/v1/predictions/{id}/cancel"));
    assert_eq!(body["urls"]["web"], format!("http://{HOST}/p/{id}"));
    let stream = path_of(body["urls"]["stream"].as_str().unwrap());
    assert_eq!(stream.strip_prefix("/v1/streams/").map(str::len), Some(52), "a text model's stream is no file");
    assert_eq!(reply.header("location"), body["urls"]["get"].as_str());
}

#[tokio::test]
async fn a_waited_create_answers_the_end() {
    let server = Server::start().await;
    let body = json!({ "input": { "text": "one two", "pieces": 2, "log": "noted" } }).to_string();
    let reply = server.send("POST", BY_MODEL, &[("prefer", "wait=10")], body).await;
    assert_eq!((reply.status, reply.header("preference-applied")), (201, Some("wait=10")));
    let body = reply.json();
    assert_eq!((&body["status"], &body["output"]), (&json!("succeeded"), &json!(["one ", "two"])));
    assert!(body["logs"].as_str().unwrap().ends_with("noted\n"), "{}", body["logs"]);
    let ended = [
        "id",
        "model",
        "version",
        "input",
        "logs",
        "output",
        "data_removed",
        "error",
        "source",
        "status",
        "created_at",
        "started_at",
        "completed_at",
        "metrics",
        "urls",
    ];
    assert_eq!(reply.keys(), ended);
    assert_eq!(body["metrics"]["output_token_count"].to_string(), "2", "a count is an integer");
    for metric in ["predict_time", "total_time"] {
        assert!(body["metrics"][metric].is_number(), "{body}");
    }
    assert!(body["completed_at"].as_str().unwrap().ends_with('Z'));
    assert_eq!(server.get(path_of(body["urls"]["get"].as_str().unwrap())).await.json(), body);
}

/// Clients take every other status for the end and would read half an output.
#[tokio::test]
async fn when_the_wait_is_over_it_is_starting_without_output() {
    let server = Server::start().await;
    let body = json!({ "input": { "text": "half", "hold": true } }).to_string();
    let began = std::time::Instant::now();
    let reply = server.send("POST", BY_MODEL, &[("prefer", "wait=1")], body).await;
    assert!(began.elapsed().as_millis() < 1000, "answered within the second that was asked for");
    assert_eq!((reply.status, reply.header("preference-applied")), (201, Some("wait=1")));
    let body = reply.json();
    assert_eq!((&body["status"], &body["output"], &body["logs"]), (&json!("starting"), &Value::Null, &json!("")));
    assert_eq!(body.get("started_at"), None);
    let now = server.get(path_of(body["urls"]["get"].as_str().unwrap())).await;
    assert_eq!(now.header("content-type"), Some("application/json"), "no character set but on creates");
    let now = now.json();
    assert_eq!((&now["status"], &now["output"]), (&json!("processing"), &json!(["half"])));
}

#[tokio::test]
async fn every_shape_of_version_is_understood_and_echoed() {
    let server = Server::start().await;
    let llama = "meta/meta-llama-3-70b-instruct";
    for (sent, model, echoed) in [
        (VERSION.to_owned(), "pinion/echo", VERSION),
        (format!("{llama}:{VERSION}"), llama, VERSION),
        (llama.to_owned(), llama, VERSION),
        (ALIAS.to_owned(), llama, ALIAS),
        (format!("{llama}:{ALIAS}"), llama, ALIAS),
        (SHORT_ALIAS.to_owned(), "pinion/echo", SHORT_ALIAS),
    ] {
        let reply = server.post("/v1/predictions", json!({ "version": sent, "input": { "text": "hi" } })).await;
        assert_eq!(reply.status, 201, "{sent}: {}", reply.text());
        let body = reply.json();
        assert_eq!((body["model"].as_str(), body["version"].as_str()), (Some(model), Some(echoed)), "{sent}");
    }
}

#[tokio::test]
async fn what_old_clients_add_is_understood() {
    let server = Server::start().await;
    let hook = "http://127.0.0.1:9/hook";
    let create = async |more: Value| {
        let mut body = json!({ "input": { "text": "hi" } });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post(BY_MODEL, body).await
    };
    let reply = create(json!({ "stream": true, "webhook": null, "webhook_events_filter": null })).await;
    assert_eq!((reply.status, reply.json().get("webhook")), (201, None), "{}", reply.text());
    let body = create(json!({ "webhook_completed": hook })).await.json();
    assert_eq!((&body["webhook"], &body["webhook_events_filter"]), (&json!(hook), &json!(["completed"])));
    let body = create(json!({ "webhook": hook, "webhook_events_filter": ["start", "logs"] })).await.json();
    assert_eq!((&body["webhook"], &body["webhook_events_filter"]), (&json!(hook), &json!(["start", "logs"])));
    let order: Vec<_> = keys(&body).into_iter().rev().take(3).collect();
    assert_eq!(order, ["urls", "webhook_events_filter", "webhook"]);
}

#[tokio::test]
async fn the_prefix_may_stand_once_twice_or_not_at_all() {
    let server = Server::start().await;
    for prefix in ["", "/v1", "/v1/v1"] {
        let body = json!({ "version": VERSION, "input": { "text": "hi" } });
        let created = server.post(&format!("{prefix}/predictions"), body).await.json();
        let id = created["id"].as_str().unwrap();
        assert_eq!(created["urls"]["get"], format!("http://{HOST}/v1/predictions/{id}"));
        assert_eq!(server.get(&format!("{prefix}/predictions/{id}")).await.status, 200);
        assert_eq!(server.get(&format!("{prefix}/models")).await.status, 200);
    }
}

#[tokio::test]
async fn urls_are_rooted_where_the_caller_asks_from() {
    let server = Server::start().await;
    let id = server.run(json!({ "text": "hi" })).await["id"].as_str().unwrap().to_owned();
    let proxied = [("x-forwarded-proto", "https"), ("x-forwarded-host", "gpu.example")];
    let body = server.send("GET", &format!("/v1/predictions/{id}"), &proxied, "").await.json();
    assert_eq!(body["urls"]["get"], format!("https://gpu.example/v1/predictions/{id}"));
}

#[tokio::test]
async fn a_cancel_ends_it_and_a_second_one_changes_nothing() {
    let server = Server::start().await;
    let held = server.hold("half").await;
    let cancel = path_of(held["urls"]["cancel"].as_str().unwrap()).to_owned();
    // The two javascript-like clients send a content type and no body.
    let reply = server.send("POST", &cancel, &[("content-type", "application/json")], "").await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    server.stream(&held, &[]).await;
    let ended = server.get(path_of(held["urls"]["get"].as_str().unwrap())).await.json();
    assert_eq!((&ended["status"], &ended["error"]), (&json!("canceled"), &Value::Null));
    assert!(ended["completed_at"].is_string() && ended["metrics"]["total_time"].is_number());
    let again = server.send("POST", &cancel, &[], "").await;
    assert_eq!((again.status, again.json()), (200, ended));
}

#[tokio::test]
async fn a_failure_is_the_predictions_and_its_error_a_text() {
    let server = Server::start().await;
    let body = server.run(json!({ "text": "half", "fail": "it broke (E1000)" })).await;
    assert_eq!((&body["status"], &body["error"]), (&json!("failed"), &json!("it broke (E1000)")));
}

#[tokio::test]
async fn cancel_after_becomes_the_deadline() {
    let server = Server::start().await;
    let body = json!({ "input": { "text": "hi" } }).to_string();
    let reply = server.send("POST", BY_MODEL, &[("cancel-after", "1h30m45s")], body.clone()).await.json();
    let moment = |key: &str| prediction::Timestamp::parse(reply[key].as_str().unwrap()).unwrap();
    assert_eq!(moment("deadline").seconds_since(moment("created_at")), 5445.0);
    for bad in ["4s", "0", "soon", "-5", "9d", "999999999"] {
        let reply = server.send("POST", BY_MODEL, &[("cancel-after", bad)], body.clone()).await;
        let detail = reply.json()["detail"].as_str().unwrap().to_owned();
        assert_eq!(reply.status, 422, "{detail}");
        assert!(detail.contains(bad) && detail.contains("from 5s to 604800s"), "{detail}");
    }
}

#[tokio::test]
async fn after_the_sweep_the_fact_remains_and_the_data_is_gone() {
    use store::Store;

    let server = Server::start().await;
    let body = server.run(json!({ "text": "secret" })).await;
    server.store.sweep(prediction::Timestamp::now().plus_millis(1000)).await.unwrap();
    let swept = server.get(path_of(body["urls"]["get"].as_str().unwrap())).await.json();
    let got = ["input", "output", "logs", "data_removed", "status"].map(|key| swept[key].clone());
    assert_eq!(Value::from(got.to_vec()), json!([{}, null, null, true, "succeeded"]));
    let stream = server.stream(&body, &[]).await.text();
    assert!(stream.contains("event: done\n") && !stream.contains("secret"), "{stream}");
}
