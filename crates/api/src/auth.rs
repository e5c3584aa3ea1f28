//! Who may call. Bearer and Token are one thing: older clients say Token.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

use store::{Store, StoreError};

use crate::{App, Auth, errors::Problem};

/// How old the knowledge may be that no token exists: one that another process made counts from then on.
const LOOK_AGAIN_MILLIS: u128 = 500;

/// Whether an open server has had its first token made.
#[derive(Default)]
pub struct Gate(Mutex<Option<(Instant, bool)>>);

impl Gate {
    async fn is_open(&self, store: &dyn Store) -> Result<bool, StoreError> {
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, open)) = known.filter(|(at, _)| at.elapsed().as_millis() < LOOK_AGAIN_MILLIS) {
            return Ok(open);
        }
        // Whoever revokes the last token wants one caller out, not everybody in.
        let open = store.token_list().await?.is_empty();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), open));
        Ok(open)
    }
}

/// Stands before every route except those whose path is itself the right: streams.
pub async fn check(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match allowed(&app, request.headers()).await {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// Whether the caller of a request with these headers may go on.
pub async fn allowed(app: &App, headers: &HeaderMap) -> Result<(), Problem> {
    if app.api.auth == Auth::OpenUntilToken && app.gate.is_open(&*app.api.store).await? {
        return match headers.get(header::ORIGIN).is_none_or(|origin| origin.to_str().is_ok_and(is_of_this_machine)) {
            true => Ok(()),
            false => Err(Problem::foreign_page()),
        };
    }
    let header = headers.get(header::AUTHORIZATION).ok_or_else(Problem::no_token)?;
    let token = header.to_str().ok().and_then(token).ok_or_else(Problem::bad_token)?;
    match app.api.store.token_check(token).await? {
        true => Ok(()),
        false => Err(Problem::bad_token()),
    }
}

/// Only browsers name an origin: the page that calls. Any page could otherwise use a server that is open to its reader.
fn is_of_this_machine(origin: &str) -> bool {
    let authority = origin.split_once("://").and_then(|(_, rest)| rest.parse::<Authority>().ok());
    authority.is_some_and(|authority| {
        let host = authority.host().trim_matches(['[', ']']);
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    })
}

/// The token of an `Authorization` header, if its scheme is one of ours.
fn token(header: &str) -> Option<&str> {
    let (scheme, token) = header.trim().split_once(char::is_whitespace)?;
    let known = ["bearer", "token"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    Some(token.trim()).filter(|token| known && !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_of_this_machine_or_foreign() {
        for own in ["http://localhost:3000", "http://127.0.0.1:5000", "https://[::1]", "http://localhost"] {
            assert!(is_of_this_machine(own), "{own}");
        }
        for foreign in ["https://gears.example", "http://localhost.gears.example", "http://10.0.0.1", "null", ""] {
            assert!(!is_of_this_machine(foreign), "{foreign}");
        }
    }

    #[test]
    fn both_schemes_carry_a_token_in_any_case() {
        for (header, found) in [
            ("Bearer r8_a", Some("r8_a")),
            ("bearer   r8_a ", Some("r8_a")),
            ("Token r8_a", Some("r8_a")),
            ("TOKEN r8_a", Some("r8_a")),
            ("Basic r8_a", None),
            ("r8_a", None),
            ("Bearer ", None),
            ("", None),
        ] {
            assert_eq!(token(header), found, "{header:?}");
        }
    }
}
