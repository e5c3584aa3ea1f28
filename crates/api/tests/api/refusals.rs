//! Refusals: the exact bodies that programs match on, and what is not there yet.

use api::Auth;
use axum::body::Body;
use serde_json::{Value, json};
use store::Store;

use crate::harness::{ALIAS, BODY_BYTES, Options, Server, VERSION};

const BY_MODEL: &str = "/v1/models/pinion/echo/predictions";

async fn refused(server: &Server, path: &str, body: Value) -> (u16, Value) {
    let reply = server.post(path, body).await;
    assert_eq!(reply.header("content-type"), Some("application/problem+json"), "{}", reply.text());
    (reply.status, reply.json())
}

#[tokio::test]
async fn a_token_is_asked_for_in_the_recorded_words() {
    let server = Server::with(Options { auth: Auth::Required, ..Options::default() }).await;
    let token = server.store.token_create("t").await.unwrap();
    let none = r#"{"title":"Unauthenticated","detail":"You did not pass an authentication token","status":401}"#;
    let bad = r#"{"title":"Unauthenticated","detail":"You did not pass a valid authentication token","status":401}"#;
    let bearer = |scheme: &str| format!("{scheme} {token}");
    for (header, status, body) in [
        (None, 401, Some(none)),
        (Some("Bearer r8_wrong".to_owned()), 401, Some(bad)),
        (Some(format!("Basic {token}")), 401, Some(bad)),
        (Some("Bearer".to_owned()), 401, Some(bad)),
        (Some(bearer("Bearer")), 200, None),
        (Some(bearer("token")), 200, None),
    ] {
        let headers: Vec<_> = header.iter().map(|value| ("authorization", value.as_str())).collect();
        let reply = server.send("GET", "/v1/account", &headers, "").await;
        assert_eq!(reply.status, status, "{header:?}");
        if let Some(body) = body {
            assert_eq!(reply.text(), format!("{body}\n"));
        }
    }
    for path in ["/v1/collections", "/v1/predictions", "/v1/models", "/v1/webhooks/default/secret", "/pinion/status"] {
        assert_eq!(server.get(path).await.status, 401, "{path}");
    }
    for (path, status) in [("/readyz", 200), ("/", 200), ("/v1/nothing", 404)] {
        assert_eq!(server.get(path).await.status, status, "{path}");
    }
    server.store.token_revoke("t").await.unwrap();
    assert_eq!(server.send("GET", "/v1/account", &[("authorization", &bearer("Bearer"))], "").await.status, 401);
}

#[tokio::test]
async fn an_open_server_takes_any_token_or_none_until_one_is_made() {
    let server = Server::start().await;
    assert_eq!(server.get("/v1/account").await.status, 200);
    assert_eq!(server.send("GET", "/v1/account", &[("authorization", "Bearer x")], "").await.status, 200);
    let made = Server::start().await;
    made.store.token_create("t").await.unwrap();
    assert_eq!(made.get("/v1/account").await.status, 401);
    let revoked = Server::start().await;
    revoked.store.token_create("t").await.unwrap();
    revoked.store.token_revoke("t").await.unwrap();
    assert_eq!(revoked.get("/v1/account").await.status, 401, "revoking the last one opens nothing");
}

#[tokio::test]
async fn an_open_server_is_not_open_to_the_pages_of_other_sites() {
    let server = Server::start().await;
    let path = "/v1/models/pinion/echo/predictions";
    // What a page can send without asking first: a plain text.
    let from = |origin: &'static str| [("content-type", "text/plain"), ("origin", origin)];
    let body = json!({ "input": { "text": "a" } }).to_string();
    assert_eq!(server.send("POST", path, &from("https://gears.example"), body.clone()).await.status, 403);
    assert_eq!(server.send("POST", path, &from("http://localhost:3000"), body.clone()).await.status, 201);
    let server = Server::start().await;
    let bearer = format!("Bearer {}", server.store.token_create("page").await.unwrap());
    let headers = [("origin", "https://gears.example"), ("authorization", bearer.as_str())];
    assert_eq!(server.send("POST", path, &headers, body).await.status, 201, "with a token it may come from anywhere");
}

#[tokio::test]
async fn an_unknown_version_is_a_422_and_an_unknown_model_a_404() {
    let server = Server::start().await;
    let version = json!({
        "title": "Invalid version or not permitted",
        "detail": "The specified version does not exist (or perhaps you don't have permission to use it?)",
        "status": 422,
    });
    for sent in [
        "nope".into(),
        "".into(),
        "pinion/nothing".into(),
        format!("pinion/nothing:{VERSION}"),
        "pinion/echo:nope".into(),
        format!("pinion/echo:{ALIAS}"),
    ] {
        let body = json!({ "version": sent, "input": { "text": "hi" } });
        assert_eq!(refused(&server, "/v1/predictions", body).await, (422, version.clone()), "{sent}");
    }
    let missing = json!({ "detail": "The requested resource could not be found.", "status": 404 });
    let body = json!({ "input": { "text": "hi" } });
    assert_eq!(refused(&server, "/v1/models/pinion/nothing/predictions", body).await, (404, missing.clone()));
    for path in ["/v1/predictions/nothing", "/v1/nothing", "/v2/predictions", "/v1/predictions/a/b/c"] {
        assert_eq!((server.get(path).await.status, server.get(path).await.json()), (404, missing.clone()), "{path}");
    }
    assert_eq!(server.send("POST", "/v1/predictions/nothing/cancel", &[], "").await.json(), missing);
}

#[tokio::test]
async fn the_two_bodies_of_a_bad_create_are_the_recorded_ones() {
    let server = Server::start().await;
    let top = json!({
        "detail": "- version is required\n- Additional property model is not allowed\n",
        "status": 422,
        "title": "Input validation failed",
        "invalid_fields": [
            { "type": "required", "field": "", "description": "version is required" },
            {
                "type": "additional_property_not_allowed", "field": "",
                "description": "Additional property model is not allowed",
            },
        ],
    });
    let body = json!({ "model": "pinion/echo", "input": {} });
    assert_eq!(refused(&server, "/v1/predictions", body).await, (422, top.clone()));
    let input = json!({
        "detail": "- input: text is required\n- input.temperature: Must be less than or equal to 5\n",
        "status": 422,
        "title": "Input validation failed",
        "invalid_fields": [
            { "type": "required", "field": "input", "description": "text is required" },
            {
                "type": "number_lte", "field": "input.temperature",
                "description": "Must be less than or equal to 5",
            },
        ],
    });
    let body = json!({ "version": VERSION, "input": { "temperature": 6, "unknown": 1 } });
    let reply = server.post("/v1/predictions", body).await;
    assert_eq!((reply.status, reply.json()), (422, input));
    assert_eq!(reply.keys(), ["detail", "status", "title", "invalid_fields"]);
}

#[tokio::test]
async fn everything_wrong_around_the_input_is_said() {
    let server = Server::start().await;
    let good = json!({ "text": "hi" });
    let events = r#"must be one of the following: "start", "output", "logs", "completed""#;
    let cases = [
        (json!({}), "- input is required\n".to_owned()),
        (json!([]), "- Invalid type. Expected: object, given: array\n".into()),
        (json!({ "input": null }), "- input: Invalid type. Expected: object, given: null\n".into()),
        (json!({ "input": [] }), "- input: Invalid type. Expected: object, given: array\n".into()),
        (json!({ "input": good, "version": VERSION }), "- Additional property version is not allowed\n".into()),
        (
            json!({ "input": good, "stream": "yes" }),
            "- stream: Invalid type. Expected: boolean, given: string\n".into(),
        ),
        (json!({ "input": good, "webhook": 3 }), "- webhook: Invalid type. Expected: string, given: integer\n".into()),
        (
            json!({ "input": good, "webhook_events_filter": "completed" }),
            "- webhook_events_filter: Invalid type. Expected: array, given: string\n".into(),
        ),
        (
            json!({ "input": good, "webhook_events_filter": ["start", "end"] }),
            format!("- webhook_events_filter.1: webhook_events_filter.1 {events}\n"),
        ),
    ];
    for (body, detail) in cases {
        let (status, problem) = refused(&server, BY_MODEL, body.clone()).await;
        assert_eq!((status, problem["detail"].as_str()), (422, Some(detail.as_str())), "{body}");
    }
    let nothing = server.send("POST", "/v1/predictions", &[], "").await;
    assert_eq!(nothing.json()["detail"], "- version is required\n- input is required\n");
}

#[tokio::test]
async fn a_webhook_that_may_not_be_called_is_refused_with_the_rest() {
    let server = Server::start().await;
    for url in ["not a url", "", "ftp://example.com/", "http://10.0.0.1/", "http://169.254.169.254/latest"] {
        let (status, problem) =
            refused(&server, BY_MODEL, json!({ "input": { "temperature": -1, "text": "hi" }, "webhook": url })).await;
        let fields: Vec<_> = problem["invalid_fields"].as_array().unwrap().iter().map(|f| f["field"].clone()).collect();
        assert_eq!((status, fields), (422, vec![json!("input.temperature"), json!("webhook")]), "{url}: {problem}");
    }
}

#[tokio::test]
async fn malformed_json_is_refused_with_its_place() {
    let server = Server::start().await;
    for (body, place) in [("{\"input\": {", "line 1 column 11"), ("{\n  oops}", "line 2 column 3"), ("\u{0}", "line 1")]
    {
        let reply = server.send("POST", BY_MODEL, &[], body).await;
        assert_eq!((reply.status, reply.header("content-type")), (400, Some("application/problem+json")));
        assert!(reply.json()["detail"].as_str().unwrap().contains(place), "{}", reply.text());
    }
    let deep = format!("{{\"input\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
    assert_eq!(server.send("POST", BY_MODEL, &[], deep).await.status, 400);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_with_the_limit() {
    let server = Server::start().await;
    let over = vec![b' '; BODY_BYTES as usize + 1];
    let length = over.len().to_string();
    let announced = server.send("POST", BY_MODEL, &[("content-length", &length)], over.clone()).await;
    let chunks =
        futures_util::stream::iter(over.chunks(1000).map(|c| Ok::<_, std::io::Error>(c.to_vec())).collect::<Vec<_>>());
    let unannounced = server.send("POST", BY_MODEL, &[], Body::from_stream(chunks)).await;
    for reply in [announced, unannounced] {
        let detail = "Request bodies must be at most 0.06 MiB (65536 bytes)";
        assert_eq!((reply.status, reply.json()), (413, json!({ "detail": detail, "status": 413 })));
    }
    // Whoever asks first is answered before a byte was sent.
    let headers = [("content-length", "209715200"), ("expect", "100-continue")];
    let silent = Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>());
    assert_eq!(server.send("POST", BY_MODEL, &headers, silent).await.status, 413);
}

/// The javascript client 1.4.0 can send itself as the input, its token in clear.
#[tokio::test]
async fn a_client_sent_as_input_is_refused_and_its_token_kept_nowhere() {
    let server = Server::start().await;
    let client = json!({ "auth": "r8_secret", "userAgent": "x", "fileEncodingStrategy": "data-uri", "text": "hi" });
    for (path, body) in
        [(BY_MODEL, json!({ "input": client })), ("/v1/predictions", json!({ "version": VERSION, "input": client }))]
    {
        let (status, problem) = refused(&server, path, body).await;
        assert_eq!(status, 422);
        assert!(problem["detail"].as_str().unwrap().contains("fileEncodingStrategy"), "{problem}");
        assert!(!problem.to_string().contains("r8_secret"));
    }
    assert_eq!(server.get("/v1/predictions").await.json()["results"], json!([]));
}

#[tokio::test]
async fn a_full_queue_says_try_later() {
    let server = Server::with(Options { waiting_limit: 1, concurrency: 1, ..Options::default() }).await;
    // Until one is refused: how many are inside the model by then is the scheduler's business.
    let reply = loop {
        let reply = server.post(BY_MODEL, json!({ "input": { "text": "hi", "hold": true } })).await;
        if reply.status != 201 {
            break reply;
        }
    };
    assert_eq!((reply.status, reply.header("retry-after")), (429, Some("5")));
    let problem = reply.json();
    assert_eq!((&problem["status"], &problem["retry_after"]), (&json!(429), &json!(5)));
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.starts_with("Request was throttled. Your rate limit resets in ~5s."), "{detail}");
    assert!(detail.contains("at most 1 may"), "{detail}");
}

/// Section 1 of the hosted API, less what this server has.
#[tokio::test]
async fn what_is_not_there_yet_says_so() {
    let server = Server::start().await;
    for route in [
        "GET /collections",
        "GET /collections/vision-models",
        "GET /deployments",
        "POST /deployments",
        "GET /deployments/o/n",
        "PATCH /deployments/o/n",
        "DELETE /deployments/o/n",
        "POST /deployments/o/n/predictions",
        "GET /files",
        "POST /files",
        "GET /files/f",
        "DELETE /files/f",
        "GET /files/f/download?owner=o&expiry=1&signature=s",
        "POST /models",
        "PATCH /models/o/n",
        "DELETE /models/o/n",
        "GET /models/o/n/examples",
        "DELETE /models/o/n/versions/v",
        "POST /models/o/n/versions/v/trainings",
        "GET /search?query=llama",
        "GET /trainings",
        "GET /trainings/t",
        "POST /trainings/t/cancel",
    ] {
        let (method, path) = route.split_once(' ').unwrap();
        for prefix in ["/v1", "/v1/v1", ""] {
            let reply = server.send(method, &format!("{prefix}{path}"), &[], "{}").await;
            assert_eq!(reply.header("content-type"), Some("application/problem+json"), "{route}");
            let problem = reply.json();
            assert_eq!((reply.status, &problem["status"]), (501, &json!(501)), "{route}");
            assert!(problem["detail"].as_str().unwrap().contains("does not have it yet"), "{route}: {problem}");
        }
    }
}

/// The rest of section 1 is there: nothing falls through to the 404 of an unknown path, nor to a 501.
#[tokio::test]
async fn what_is_there_is_routed() {
    let server = Server::start().await;
    let id = server.run(json!({ "text": "hi" })).await["id"].as_str().unwrap().to_owned();
    for route in [
        "GET /account".to_owned(),
        "GET /hardware".into(),
        "GET /models".into(),
        "QUERY /models".into(),
        "GET /models/pinion/echo".into(),
        "GET /models/pinion/echo/readme".into(),
        "GET /models/pinion/echo/versions".into(),
        format!("GET /models/pinion/echo/versions/{VERSION}"),
        "GET /predictions".into(),
        format!("GET /predictions/{id}"),
        format!("POST /predictions/{id}/cancel"),
        "GET /webhooks/default/secret".into(),
        "GET /pinion/status".into(),
    ] {
        let (method, path) = route.split_once(' ').unwrap();
        assert_eq!(server.send(method, &format!("/v1{path}"), &[], "").await.status, 200, "{route}");
    }
}

#[tokio::test]
async fn a_wrong_method_is_a_405_in_the_same_form() {
    let server = Server::start().await;
    for route in ["PUT /predictions", "DELETE /account", "PUT /models", "POST /hardware", "PATCH /streams/k"] {
        let (method, path) = route.split_once(' ').unwrap();
        let reply = server.send(method, &format!("/v1{path}"), &[], "").await;
        assert_eq!((reply.status, reply.header("content-type")), (405, Some("application/problem+json")), "{route}");
        assert_eq!(reply.json()["status"], 405);
        assert_eq!(reply.header("ratelimit-remaining"), Some("2999"));
    }
    // What the framework itself refuses has the form too.
    let reply = server.get("/v1/predictions/%FF").await;
    assert_eq!((reply.status, reply.header("content-type")), (400, Some("application/problem+json")));
}
