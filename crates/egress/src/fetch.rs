//! A file from a URL, in pieces and within limits: of size, of silence, of the whole time. Memory: one piece, whatever the
//! file's size. Every redirect is a new URL to the rules. Refuses to know where the pieces go.

use std::time::Duration;

use percent_encoding::percent_decode_str;
use reqwest::{Response, header};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use url::Url;

use crate::client::sorted;
use crate::{Egress, EgressError, check};

/// Servers that send a caller on, one after another.
const REDIRECTS: usize = 5;

/// What one fetch may take. Connecting has its own limit of five seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchLimits {
    pub bytes: u64,
    /// Without one byte.
    pub idle: Duration,
    /// From the first connection to the last byte.
    pub whole: Duration,
}

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    pub bytes: u64,
    pub content_type: Option<String>,
    /// The last part of the path that it came from in the end.
    pub name: Option<String>,
}

impl Egress {
    /// Fetches an http or https URL into `into`. `progress` hears of every piece: the bytes so far, and all if they were
    /// announced. What was written before an error stays: the caller throws it away.
    pub async fn fetch<W: AsyncWrite + Unpin>(
        &self,
        url: &str,
        limits: &FetchLimits,
        into: &mut W,
        progress: impl FnMut(u64, Option<u64>),
    ) -> Result<Fetched, EgressError> {
        let within = async { self.reach(url, limits).await?.receive(limits, into, progress).await };
        let late = |_| EgressError::TookTooLong(limits.whole.as_secs_f64());
        timeout(limits.whole, within).await.map_err(late)?
    }

    /// Follows redirects to an answer with a file in it.
    async fn reach(&self, url: &str, limits: &FetchLimits) -> Result<Arrived, EgressError> {
        let mut url = check(url, self.rules())?;
        for _ in 0..=REDIRECTS {
            let asked = self.client.get(url.clone()).send();
            let answer = timeout(limits.idle, asked).await.map_err(|_| silent(limits))?.map_err(sorted)?;
            match next(&url, &answer) {
                Some(to) => {
                    let place = |url: &Url| url.host_str().unwrap_or_default().to_owned();
                    let to = to.map_err(|_| EgressError::Status("with a redirect to what is not a URL".into()))?;
                    url = check(to.as_str(), self.rules())
                        .map_err(|why| EgressError::Redirected { to: place(&to), why: Box::new(why) })?;
                }
                None if answer.status().is_success() => return Ok(Arrived { url, answer }),
                None => return Err(EgressError::Status(answer.status().to_string())),
            }
        }
        Err(EgressError::Redirects(REDIRECTS))
    }
}

/// Where an answer sends its caller, if it does.
fn next(from: &Url, answer: &Response) -> Option<Result<Url, url::ParseError>> {
    let moved = matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let to = answer.headers().get(header::LOCATION).filter(|_| moved)?;
    Some(from.join(&String::from_utf8_lossy(to.as_bytes())))
}

fn silent(limits: &FetchLimits) -> EgressError {
    EgressError::Silent(limits.idle.as_secs_f64())
}

/// An answer whose body is still to come.
struct Arrived {
    url: Url,
    answer: Response,
}

impl Arrived {
    async fn receive<W: AsyncWrite + Unpin>(
        mut self,
        limits: &FetchLimits,
        into: &mut W,
        mut progress: impl FnMut(u64, Option<u64>),
    ) -> Result<Fetched, EgressError> {
        let disk = |error: std::io::Error| EgressError::Disk(error.to_string());
        let announced = self.answer.content_length();
        if let Some(bytes) = announced.filter(|bytes| *bytes > limits.bytes) {
            return Err(EgressError::TooLarge { bytes, limit: limits.bytes });
        }
        let mut got = 0;
        loop {
            let piece = timeout(limits.idle, self.answer.chunk()).await.map_err(|_| silent(limits))?;
            let Some(piece) = piece.map_err(|_| EgressError::CutShort { got, announced })? else { break };
            got += piece.len() as u64;
            if got > limits.bytes {
                return Err(EgressError::TooLong { limit: limits.bytes });
            }
            into.write_all(&piece).await.map_err(disk)?;
            progress(got, announced);
        }
        into.flush().await.map_err(disk)?;
        Ok(Fetched { bytes: got, content_type: self.content_type(), name: self.name() })
    }

    fn content_type(&self) -> Option<String> {
        let text = self.answer.headers().get(header::CONTENT_TYPE)?.to_str().ok()?.trim();
        Some(text.to_owned()).filter(|text| !text.is_empty())
    }

    fn name(&self) -> Option<String> {
        let last = self.url.path_segments()?.next_back()?;
        Some(percent_decode_str(last).decode_utf8_lossy().into_owned()).filter(|name| !name.is_empty())
    }
}

#[cfg(test)]
mod tests;
