//! Fetches a file over http(s), plain or by the hub's protocol, into a sink.
//!
//! Knows ranges, redirects and who may see the token; refuses to know digests and caches. Redirects are followed by
//! hand, because the hub answers with the address of a blob store, and the token is the hub's alone.

use std::fmt::Write as _;
use std::sync::Once;
use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, HeaderMap, LOCATION, RANGE};
use reqwest::{Client, Response, StatusCode};
use tokio::runtime::Runtime;
use url::Url;

use super::sink::{Fault, Sink};
use super::{Options, Progress};

const CONNECT_SECONDS: u64 = 5;
/// A server that sends nothing for this long is taken for dead.
const SILENCE_SECONDS: u64 = 30;
const MAX_REDIRECTS: usize = 10;

/// The way out, made when the first network source is asked: a set that comes from a folder needs no certificates.
pub(super) struct Net {
    endpoint: String,
    token: Option<String>,
    open: Option<Open>,
}

struct Open {
    runtime: Option<Runtime>,
    client: Client,
}

/// A request's outcome that is not an answer to use.
enum Stop {
    /// The range was not to be had: ask for the whole.
    StartOver,
    Fault(Fault),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Net {
    pub fn new(options: &Options) -> Self {
        Self { endpoint: options.hub_endpoint.clone(), token: options.hub_token.clone(), open: None }
    }

    pub fn https(&mut self, url: &Url, sink: &mut Sink, report: &mut dyn FnMut(Progress)) -> Result<(), Fault> {
        self.fetch(url.clone(), None, sink, report)
    }

    /// `{endpoint}/{repo}/resolve/{commit}/{file}`
    pub fn hub(
        &mut self,
        repo: &str,
        commit: &str,
        file: &str,
        sink: &mut Sink,
        report: &mut dyn FnMut(Progress),
    ) -> Result<(), Fault> {
        let bad = |why: &dyn std::fmt::Display| Fault::Refused(format!("HF_ENDPOINT {}: {why}", self.endpoint));
        let mut url = Url::parse(&self.endpoint).map_err(|e| bad(&e))?;
        url.path_segments_mut()
            .map_err(|()| bad(&"is not an http address"))?
            .pop_if_empty()
            .extend(repo.split('/'))
            .extend(["resolve", commit])
            .extend(file.split('/'));
        let token = self.token.clone().filter(|_| may_carry_a_token(&url));
        self.fetch(url, token, sink, report)
    }

    fn fetch(
        &mut self,
        url: Url,
        token: Option<String>,
        sink: &mut Sink,
        report: &mut dyn FnMut(Progress),
    ) -> Result<(), Fault> {
        if self.open.is_none() {
            self.open = Some(Open::new()?);
        }
        let Some(Open { runtime: Some(runtime), client }) = &self.open else {
            return Err(Fault::Refused("the network client is gone".into()));
        };
        runtime.block_on(async {
            match read(client, url.clone(), token.as_deref(), sink, report).await {
                Ok(()) => Ok(()),
                Err(Stop::Fault(fault)) => Err(fault),
                Err(Stop::StartOver) => {
                    sink.restart().map_err(|e| Fault::Refused(e.to_string()))?;
                    match read(client, url, token.as_deref(), sink, report).await {
                        Err(Stop::StartOver) => Err(Fault::Refused("it refuses even the whole file (HTTP 416)".into())),
                        Err(Stop::Fault(fault)) => Err(fault),
                        Ok(()) => Ok(()),
                    }
                }
            }
        })
    }
}

impl Open {
    fn new() -> Result<Self, Fault> {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // An error means that somebody else has chosen one already, which is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let refuse = |e: &dyn std::error::Error| Fault::Refused(chain(e));
        let client = Client::builder()
            .user_agent(concat!("pinion/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(CONNECT_SECONDS))
            .read_timeout(Duration::from_secs(SILENCE_SECONDS))
            .build()
            .map_err(|e| refuse(&e))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| refuse(&e))?;
        Ok(Self { runtime: Some(runtime), client })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // Without waiting: a name lookup that hangs would hold the caller.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn read(
    client: &Client,
    url: Url,
    token: Option<&str>,
    sink: &mut Sink<'_>,
    report: &mut dyn FnMut(Progress<'_>),
) -> Result<(), Stop> {
    let mut answer = follow(client, url, token, sink).await?;
    accept(&answer, sink)?;
    loop {
        match answer.chunk().await {
            Ok(Some(bytes)) => sink.write(&bytes, report)?,
            Ok(None) => return Ok(()),
            Err(e) => return Err(Fault::Cut(format!("cut after {} bytes: {}", sink.done(), chain(&e))).into()),
        }
    }
}

/// Asks, and asks again wherever a redirect points. The token goes to the first address's origin only.
async fn follow(client: &Client, first: Url, token: Option<&str>, sink: &Sink<'_>) -> Result<Response, Stop> {
    let mut url = first.clone();
    for _ in 0..=MAX_REDIRECTS {
        let mut request = client.get(url.clone()).header(ACCEPT_ENCODING, "identity");
        if sink.done() > 0 {
            request = request.header(RANGE, format!("bytes={}-", sink.done()));
        }
        if let Some(token) = token.filter(|_| url.origin() == first.origin()) {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let answer = request.send().await.map_err(|e| Fault::Refused(chain(&e.without_url())))?;
        announced(answer.headers(), sink)?;
        if !answer.status().is_redirection() {
            return Ok(answer);
        }
        let to = answer.headers().get(LOCATION).and_then(|to| to.to_str().ok());
        let next = to.and_then(|to| url.join(to).ok()).filter(|next| matches!(next.scheme(), "https" | "http"));
        let Some(next) = next else {
            return Err(Fault::Refused(format!("HTTP {} to nowhere: {to:?}", answer.status().as_u16())).into());
        };
        if url.scheme() == "https" && next.scheme() == "http" {
            return Err(Fault::Refused("it redirects from https to http".into()).into());
        }
        url = next;
    }
    Err(Fault::Refused(format!("more than {MAX_REDIRECTS} redirects")).into())
}

/// The hub says size and sha256 of a large file before it sends it: what cannot be right is not downloaded.
fn announced(headers: &HeaderMap, sink: &Sink) -> Result<(), Fault> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    let locked = sink.file();
    if let Some(size) = text("x-linked-size").and_then(|size| size.parse::<u64>().ok()).filter(|&s| s != locked.size) {
        return Err(Fault::Refused(format!("it has {size} bytes there; the lock says {}", locked.size)));
    }
    let digest = text("x-linked-etag").map(|tag| tag.trim_start_matches("W/").trim_matches('"'));
    if let Some(got) = digest.filter(|tag| tag.len() == 64 && *tag != locked.hex()) {
        return Err(Fault::Refused(format!("wrong content: expected sha256 {}, the hub has {got}", locked.hex())));
    }
    Ok(())
}

/// Is this answer what was asked for? Sets the sink to where its first byte belongs.
fn accept(answer: &Response, sink: &mut Sink) -> Result<(), Stop> {
    let size = sink.file().size;
    let sends = |bytes: u64| Fault::Refused(format!("it sends {bytes} bytes; the lock says {size}"));
    match answer.status() {
        StatusCode::PARTIAL_CONTENT => {
            let range = answer.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
            let Some((start, total)) = range.and_then(content_range) else {
                return Err(Stop::StartOver);
            };
            if let Some(total) = total.filter(|&total| total != size) {
                return Err(sends(total).into());
            }
            if start == sink.done() { Ok(()) } else { Err(Stop::StartOver) }
        }
        StatusCode::OK => {
            if let Some(length) = answer.content_length().filter(|&length| length != size) {
                return Err(sends(length).into());
            }
            // All of it, whatever was asked for.
            sink.restart().map_err(|e| Fault::Refused(e.to_string()).into())
        }
        StatusCode::RANGE_NOT_SATISFIABLE => Err(Stop::StartOver),
        status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
            let code = status.as_u16();
            Err(Fault::Refused(format!("HTTP {code}: it is private or gated (HF_TOKEN is sent to the hub)")).into())
        }
        status => Err(Fault::Refused(format!("HTTP {}", status.as_u16())).into()),
    }
}

/// `bytes 5-9/10` is (5, Some(10)); the total may be `*`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

/// Over plain http only to this machine itself.
fn may_carry_a_token(url: &Url) -> bool {
    let loopback = match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    };
    url.scheme() == "https" || loopback
}

/// An error with its causes: the outermost alone says "error sending request".
fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(inner) = cause {
        let _ = write!(text, ": {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 0-9/*"), Some((0, None)));
        assert_eq!(content_range("bytes */10"), None);
        assert_eq!(content_range("lines 1-2/3"), None);
    }

    #[test]
    fn a_token_is_not_sent_in_the_clear_to_another_machine() {
        let may = |url: &str| may_carry_a_token(&Url::parse(url).unwrap());
        assert!(may("https://hub.example.org/") && may("http://127.0.0.1:1/") && may("http://[::1]/"));
        assert!(!may("http://hub.example.org/"));
    }
}
