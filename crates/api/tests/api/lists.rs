//! Lists, models, versions, and the small routes.

use serde_json::{Value, json};

use crate::harness::{ALIAS, HOST, Options, SHORT_ALIAS, Server, VERSION, keys, path_of};

fn results(page: &Value) -> &[Value] {
    page["results"].as_array().unwrap()
}

#[tokio::test]
async fn an_empty_list_has_no_pages() {
    let server = Server::start().await;
    let empty = json!({ "next": null, "previous": null, "results": [] });
    assert_eq!(server.get("/v1/predictions").await.json(), empty);
    server.run(json!({ "text": "hi" })).await;
    assert_eq!(server.get("/v1/predictions?source=web").await.json(), empty, "nothing here comes from a web page");
}

#[tokio::test]
async fn a_list_item_is_a_prediction_without_logs() {
    let server = Server::start().await;
    let mut ended = server.run(json!({ "text": "hi", "log": "noted" })).await;
    ended.as_object_mut().unwrap().shift_remove("logs");
    assert_eq!(server.get("/v1/predictions").await.json()["results"], json!([ended]));
}

#[tokio::test]
async fn a_hundred_are_a_page_and_the_cursor_leads_on_and_back() {
    let server = Server::start().await;
    let mut ids = Vec::new();
    for _ in 0..101 {
        let body = json!({ "version": VERSION, "input": { "text": "hi" } });
        ids.push(server.post("/v1/predictions", body).await.json()["id"].clone());
    }
    ids.reverse();
    let first = server.get("/v1/predictions?created_after=2020-01-01").await.json();
    let on_page = |page: &Value| results(page).iter().map(|item| item["id"].clone()).collect::<Vec<_>>();
    assert_eq!(on_page(&first), ids[..100], "newest first");
    assert_eq!(first["previous"], Value::Null);
    let next = first["next"].as_str().unwrap();
    assert!(next.starts_with(&format!("http://{HOST}/v1/predictions?created_after=2020-01-01&cursor=")), "{next}");
    let second = server.get(path_of(next)).await.json();
    assert_eq!((on_page(&second).as_slice(), &second["next"]), (&ids[100..], &Value::Null));
    let back = server.get(path_of(second["previous"].as_str().unwrap())).await.json();
    assert_eq!(on_page(&back), ids[..100]);
}

#[tokio::test]
async fn the_list_is_bounded_by_moments() {
    let server = Server::start().await;
    let created = server.run(json!({ "text": "hi" })).await["created_at"].as_str().unwrap().to_owned();
    for (query, found) in [
        (format!("created_after={created}"), 1),
        (format!("created_before={created}"), 0),
        ("created_after=2099-01-01T00:00:00Z".into(), 0),
        ("created_before=2099-01-01T00:00:00%2B01:00".into(), 1),
    ] {
        let page = server.get(&format!("/v1/predictions?{query}")).await.json();
        assert_eq!(results(&page).len(), found, "{query}");
    }
    for bad in ["created_after=soon", "cursor=abc", "source=api"] {
        let reply = server.get(&format!("/v1/predictions?{bad}")).await;
        let (key, value) = bad.split_once('=').unwrap();
        let detail = reply.json()["detail"].as_str().unwrap().to_owned();
        assert_eq!(reply.status, 400, "{bad}");
        assert!(detail.contains(key) && detail.contains(value), "{detail}");
    }
}

#[tokio::test]
async fn a_model_is_shown_as_recorded() {
    let server = Server::start().await;
    let reply = server.get("/v1/models/meta/meta-llama-3-70b-instruct").await;
    let model = reply.json();
    for recorded in [
        "url",
        "owner",
        "name",
        "description",
        "visibility",
        "github_url",
        "paper_url",
        "license_url",
        "run_count",
        "cover_image_url",
        "default_example",
        "latest_version",
        "is_official",
    ] {
        assert!(model.get(recorded).is_some(), "{recorded} is missing");
    }
    assert_eq!(model["url"], format!("http://{HOST}/meta/meta-llama-3-70b-instruct"));
    assert_eq!((&model["owner"], &model["name"]), (&json!("meta"), &json!("meta-llama-3-70b-instruct")));
    let version = &model["latest_version"];
    assert_eq!(keys(version), ["id", "created_at", "cog_version", "openapi_schema"]);
    assert_eq!((&version["id"], &version["cog_version"]), (&json!(VERSION), &json!("0.16.0")));
}

/// What clients read to know whether a list is one text, which inputs are files, and which have choices.
#[tokio::test]
async fn a_versions_document_has_every_component() {
    let server = Server::start().await;
    let version = server.get(&format!("/v1/models/pinion/echo/versions/{VERSION}")).await.json();
    let document = &version["openapi_schema"];
    assert_eq!(keys(document), ["openapi", "info", "paths", "components"]);
    assert_eq!((&document["openapi"], &document["info"]["title"]), (&json!("3.0.2"), &json!("Cog")));
    let schemas = &document["components"]["schemas"];
    for component in [
        "Input",
        "Output",
        "style",
        "Status",
        "WebhookEvent",
        "PredictionRequest",
        "PredictionResponse",
        "HTTPValidationError",
        "ValidationError",
    ] {
        assert!(schemas[component].is_object(), "{component} is missing");
    }
    assert_eq!(schemas["Output"]["x-cog-array-display"], "concatenate");
    assert_eq!(schemas["Input"]["properties"]["style"]["allOf"][0]["$ref"], "#/components/schemas/style");
    assert_eq!(schemas["Input"]["required"], json!(["text"]));
    let text = document.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(schemas[name].is_object(), "{name} is referred to and missing");
    }
}

#[tokio::test]
async fn a_version_is_found_under_its_own_model_only() {
    let server = Server::start().await;
    let llama = "/v1/models/meta/meta-llama-3-70b-instruct/versions";
    let listed = server.get(llama).await.json();
    assert_eq!((results(&listed).len(), &results(&listed)[0]["id"]), (1, &json!(VERSION)));
    assert_eq!(server.get(&format!("{llama}/{ALIAS}")).await.json()["id"], ALIAS, "the pin is echoed");
    for (path, status) in [
        (format!("{llama}/{VERSION}"), 200),
        (format!("{llama}/{SHORT_ALIAS}"), 404),
        (format!("/v1/models/pinion/echo/versions/{ALIAS}"), 404),
        ("/v1/models/pinion/nothing/versions".into(), 404),
        ("/v1/models/pinion/nothing".into(), 404),
        ("/v1/models/pinion/nothing/readme".into(), 404),
    ] {
        assert_eq!(server.get(&path).await.status, status, "{path}");
    }
}

#[tokio::test]
async fn models_come_in_pages_and_in_order() {
    let server = Server::with(Options { models: 30, ..Options::default() }).await;
    let names = |page: &Value| results(page).iter().map(|m| m["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let first = server.get("/v1/models").await.json();
    assert_eq!((results(&first).len(), &first["previous"]), (25, &Value::Null));
    assert_eq!(names(&first)[..3], ["echo", "meta-llama-3-70b-instruct", "m30"], "the newest first");
    let second = server.get(path_of(first["next"].as_str().unwrap())).await.json();
    assert_eq!((results(&second).len(), &second["next"]), (7, &Value::Null));
    assert_eq!(server.get(path_of(second["previous"].as_str().unwrap())).await.json(), first);
    let ascending = server.get("/v1/models?sort_by=model_created_at&sort_direction=asc").await.json();
    assert_eq!(names(&ascending)[0], "m1");
    for bad in ["sort_by=name", "sort_direction=up", "cursor=x"] {
        assert_eq!(server.get(&format!("/v1/models?{bad}")).await.status, 400, "{bad}");
    }
}

#[tokio::test]
async fn a_query_searches_however_the_text_is_sent() {
    let server = Server::with(Options { models: 3, ..Options::default() }).await;
    for (kind, sent, found) in [
        ("text/plain", "llama 70b", "meta-llama-3-70b-instruct"),
        ("text/plain", "\"filler 2\"", "m2"),
        ("application/json", "\"M3\"", "m3"),
    ] {
        let page = server.send("QUERY", "/v1/models", &[("content-type", kind)], sent).await.json();
        let names: Vec<_> = results(&page).iter().map(|model| model["name"].as_str().unwrap()).collect();
        assert_eq!(names, [found], "{sent}");
    }
    let none = server.send("QUERY", "/v1/models", &[], "nothing of the kind").await.json();
    assert_eq!(none, json!({ "next": null, "previous": null, "results": [] }));
}

#[tokio::test]
async fn the_small_routes_answer() {
    let server = Server::start().await;
    let account = json!({ "type": "user", "username": "pinion", "name": "Pinion" });
    assert_eq!(server.get("/v1/account").await.json(), account);
    assert_eq!(server.get("/v1/hardware").await.json(), json!([{ "sku": "cpu", "name": "CPU" }]));
    let key = server.get("/v1/webhooks/default/secret").await.json()["key"].as_str().unwrap().to_owned();
    assert_eq!(key.split('_').count(), 2, "two clients split here: {key}");
    assert_eq!(server.get("/v1/webhooks/default/secret").await.json()["key"], key);
    assert_eq!(server.get("/readyz").await.status, 200);
    assert_eq!(server.get("/pinion/status").await.json()["waiting"], 0);
    assert_eq!(server.get("/").await.json()["api"], format!("http://{HOST}/v1"));
    let readme = server.get("/v1/models/pinion/echo/readme").await;
    assert_eq!(readme.header("content-type"), Some("text/plain; charset=utf-8"));
    assert!(readme.text().contains("# pinion/echo") && readme.text().contains("`text`, required"), "{}", readme.text());
    let web = server.get("/p/abc").await;
    assert!(web.text().contains(&format!("http://{HOST}/v1/predictions/abc")), "{}", web.text());
    assert_eq!(server.get("/p/%3Cb%3E").await.status, 404);
    assert_eq!(server.send("HEAD", "/v1/models", &[], "").await.status, 200);
}
