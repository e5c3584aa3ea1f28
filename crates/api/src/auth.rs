//! Who may call. Bearer and Token are one thing: older clients say Token.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header},
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
        let open = store.token_list().await?.iter().all(|token| token.revoked);
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

async fn allowed(app: &App, headers: &HeaderMap) -> Result<(), Problem> {
    if app.api.auth == Auth::OpenUntilToken && app.gate.is_open(&*app.api.store).await? {
        return Ok(());
    }
    let header = headers.get(header::AUTHORIZATION).ok_or_else(Problem::no_token)?;
    let token = header.to_str().ok().and_then(token).ok_or_else(Problem::bad_token)?;
    match app.api.store.token_check(token).await? {
        true => Ok(()),
        false => Err(Problem::bad_token()),
    }
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
