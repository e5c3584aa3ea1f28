//! One small call: a post or a put with its headers, its body and its own limit of time. Follows no redirect; reads of the
//! answer its status and where it says that the thing now lies.

use std::time::Duration;

use reqwest::Method;
use reqwest::header::LOCATION;

use crate::client::sorted;
use crate::{Egress, EgressError, check};

/// What is sent, and how long all of it may take.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    pub url: &'a str,
    pub headers: &'a [(&'a str, String)],
    pub body: Vec<u8>,
    pub within: Duration,
}

/// The answer, whichever it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    pub status: u16,
    /// The `Location` header.
    pub location: Option<String>,
}

impl Egress {
    pub async fn post_within(&self, call: Call<'_>) -> Result<Answered, EgressError> {
        self.call(Method::POST, call).await
    }

    pub async fn put_within(&self, call: Call<'_>) -> Result<Answered, EgressError> {
        self.call(Method::PUT, call).await
    }

    async fn call(&self, method: Method, call: Call<'_>) -> Result<Answered, EgressError> {
        let url = check(call.url, self.rules())?;
        let request = self.client.request(method, url).timeout(call.within).body(call.body);
        let request = call.headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
        let answer = request.send().await.map_err(|error| match sorted(error) {
            EgressError::TimedOut(_) => EgressError::TimedOut(call.within.as_secs_f64()),
            other => other,
        })?;
        let location = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        Ok(Answered { status: answer.status().as_u16(), location: location.map(str::to_owned) })
    }
}
