//! The table of routes, and what stands before all of them.

use std::{any::Any, sync::Arc};

use axum::{
    Router,
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodFilter, any, get, on, post},
};
use tower::{Layer, util::MapRequestLayer};
use tower_http::catch_panic::CatchPanicLayer;

use crate::{App, auth, errors::Problem, home, models, origin, predictions, status, stream};

/// What the hosted API has and this server has not yet. They answer so, instead of as if they did not exist.
#[rustfmt::skip]
pub const NOT_THERE_YET: [(MethodFilter, &str, &str); 23] = [
    (MethodFilter::GET, "GET", "/collections"),
    (MethodFilter::GET, "GET", "/collections/{slug}"),
    (MethodFilter::GET, "GET", "/deployments"),
    (MethodFilter::POST, "POST", "/deployments"),
    (MethodFilter::GET, "GET", "/deployments/{owner}/{name}"),
    (MethodFilter::PATCH, "PATCH", "/deployments/{owner}/{name}"),
    (MethodFilter::DELETE, "DELETE", "/deployments/{owner}/{name}"),
    (MethodFilter::POST, "POST", "/deployments/{owner}/{name}/predictions"),
    (MethodFilter::GET, "GET", "/files"),
    (MethodFilter::POST, "POST", "/files"),
    (MethodFilter::GET, "GET", "/files/{id}"),
    (MethodFilter::DELETE, "DELETE", "/files/{id}"),
    (MethodFilter::GET, "GET", "/files/{id}/download"),
    (MethodFilter::POST, "POST", "/models"),
    (MethodFilter::PATCH, "PATCH", "/models/{owner}/{name}"),
    (MethodFilter::DELETE, "DELETE", "/models/{owner}/{name}"),
    (MethodFilter::GET, "GET", "/models/{owner}/{name}/examples"),
    (MethodFilter::DELETE, "DELETE", "/models/{owner}/{name}/versions/{id}"),
    (MethodFilter::POST, "POST", "/models/{owner}/{name}/versions/{id}/trainings"),
    (MethodFilter::GET, "GET", "/search"),
    (MethodFilter::GET, "GET", "/trainings"),
    (MethodFilter::GET, "GET", "/trainings/{id}"),
    (MethodFilter::POST, "POST", "/trainings/{id}/cancel"),
];

fn api() -> Router<Arc<App>> {
    let there = Router::new()
        .route("/predictions", get(predictions::list).post(predictions::create))
        .route("/predictions/{id}", get(predictions::get))
        .route("/predictions/{id}/cancel", post(predictions::cancel))
        .route("/models", any(models::list_or_search))
        .route("/models/{owner}/{name}", get(models::get))
        .route("/models/{owner}/{name}/predictions", post(predictions::create_by_model))
        .route("/models/{owner}/{name}/readme", get(models::readme))
        .route("/models/{owner}/{name}/versions", get(models::versions))
        .route("/models/{owner}/{name}/versions/{id}", get(models::get_version))
        .route("/account", get(home::account))
        .route("/hardware", get(home::hardware))
        .route("/webhooks/default/secret", get(home::webhook_secret))
        .route("/pinion/status", get(status::status));
    NOT_THERE_YET.iter().fold(there, |router, &(method, name, path)| {
        router.route(path, on(method, move || async move { not_there_yet(name, path) }))
    })
}

/// Paths that need no token: they say nothing, or are themselves the secret.
fn open() -> Router<Arc<App>> {
    Router::new()
        .route("/", get(home::home))
        .route("/readyz", get(status::ready))
        .route("/p/{id}", get(home::web))
        .route("/streams/{key}", get(stream::stream))
}

pub fn router(app: Arc<App>) -> Router {
    let routes = api()
        .route_layer(middleware::from_fn_with_state(app.clone(), auth::check))
        .merge(open())
        .method_not_allowed_fallback(async |method: Method, uri: Uri| wrong_method(&method, uri.path()))
        .fallback(async || Problem::not_found());
    around(routes.with_state(app))
}

/// What stands before and after every route.
fn around(routes: Router) -> Router {
    let routes = routes.layer(CatchPanicLayer::custom(panicked)).layer(middleware::from_fn(finish));
    // Outside of the routing, which has no prefix.
    Router::new().fallback_service(MapRequestLayer::new(origin::without_prefix).layer(routes))
}

fn not_there_yet(method: &str, path: &str) -> Problem {
    let detail = format!("{method} {path} is part of the hosted API, but this server does not have it yet.");
    Problem::titled(StatusCode::NOT_IMPLEMENTED, "Not there yet", detail)
}

pub fn wrong_method(method: &Method, path: &str) -> Problem {
    Problem::titled(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed", format!("{method} is not allowed on {path}"))
}

/// The panic itself was printed where it happened.
fn panicked(_: Box<dyn Any + Send + 'static>) -> Response {
    Problem::internal().into_response()
}

/// What every answer gets on its way out, and one line for the operator. The line names no input, no token, and of a
/// stream's path not the part that is its key.
async fn finish(request: Request, next: Next) -> Response {
    let began = std::time::Instant::now();
    let (method, path) = (request.method().clone(), loggable(request.uri().path()));
    let creates = method == Method::POST && path.ends_with("/predictions");
    let mut response = next.run(request).await;
    let status = response.status();
    let is_problem =
        |headers: &HeaderMap| headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/problem+json");
    if status.as_u16() >= 400 && !is_problem(response.headers()) {
        response = Problem::of_status(status).into_response();
    }
    tracing::debug!(%method, path, status = status.as_u16(), milliseconds = began.elapsed().as_millis() as u64, "answered");
    // Nothing is throttled here save by the queue, so these say what the hosted service says at first.
    let remaining = if creates { "599" } else { "2999" };
    response.headers_mut().insert("ratelimit-remaining", HeaderValue::from_static(remaining));
    response.headers_mut().insert("ratelimit-reset", HeaderValue::from_static("1"));
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    response
}

fn loggable(path: &str) -> String {
    match path.strip_prefix("/streams/") {
        Some(_) => "/streams/{key}".into(),
        None => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn a_panic_in_a_handler_is_a_500_in_the_same_form() {
        async fn broken() {
            panic!("on purpose")
        }
        let router = around(Router::new().route("/broken", get(broken)));
        let request = Request::builder().uri("/v1/broken").body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
    }

    #[test]
    fn a_streams_key_is_not_logged() {
        assert_eq!(loggable("/streams/0123"), "/streams/{key}");
        assert_eq!(loggable("/predictions/0123"), "/predictions/0123");
    }
}
