//! Fetches a file over http(s), plain or by the hub's protocol, into a sink.
//!
//! Knows requests, redirects and who may see the token; refuses to know digests and caches. Redirects are followed by
//! hand, because the hub answers with the address of a blob store, and the token is the hub's alone. The hub's own client
//! (hf-hub) is not used: it believes what comes, while here size and digest are those of the lock, before and after, and
//! a half file goes on from wherever it ended, from whichever source.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::{Arc, Once, OnceLock};
use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, HeaderMap, LOCATION, RANGE};
use reqwest::{Client, Response, StatusCode};
use tokio::runtime::Runtime;
use url::Url;

use super::sink::{Fault, Sink};
use super::token::Token;
use super::{Options, Progress, ranges};

const CONNECT_SECONDS: u64 = 5;
/// A server that sends nothing for this long is taken for dead.
const SILENCE_SECONDS: u64 = 30;
const MAX_REDIRECTS: usize = 10;
/// Of what a server says about its refusal, in the error.
const MAX_QUOTED_CHARS: usize = 200;

/// The way out, made when the first network source is asked: a set that comes from a folder needs no certificates.
pub(super) struct Net {
    endpoint: String,
    token: Option<Token>,
    open: Option<Open>,
}

struct Open {
    runtime: Option<Runtime>,
    clients: Clients,
}

/// Reading the system's certificates takes longer than fetching a small set from a hub inside one network: they are read when
/// the first https address is asked.
#[derive(Clone, Default)]
pub(super) struct Clients {
    plain: Arc<OnceLock<Client>>,
    secure: Arc<OnceLock<Client>>,
}

impl Clients {
    fn of(&self, url: &Url) -> Result<&Client, Fault> {
        let builder = Client::builder()
            .user_agent(concat!("pinion/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            // Each part of a file has a connection of its own. Over one connection of HTTP/2 the parts that wait for their turn
            // would keep its window full, and the one that is written would starve.
            .http1_only()
            .connect_timeout(Duration::from_secs(CONNECT_SECONDS))
            .read_timeout(Duration::from_secs(SILENCE_SECONDS));
        let (made, builder) = match url.scheme() {
            "https" => (&self.secure, builder),
            _ if has_secure_proxy(|name| std::env::var(name).ok()) => (&self.secure, builder),
            // One that believes nobody.
            _ => (&self.plain, builder.tls_certs_only([])),
        };
        if let Some(client) = made.get() {
            return Ok(client);
        }
        let client = builder.build().map_err(|e| Fault::Refused(chain(&e)))?;
        Ok(made.get_or_init(|| client))
    }
}

/// Whether the environment, where the clients look for proxies, has http addresses asked through one that is itself asked over
/// TLS. That `NO_PROXY` may name the address does no harm: certificates are read that nobody shows.
fn has_secure_proxy(variable: impl Fn(&str) -> Option<String>) -> bool {
    let is_secure = |proxy: String| Url::parse(&proxy).is_ok_and(|proxy| proxy.scheme() == "https");
    ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"].into_iter().any(|name| variable(name).is_some_and(is_secure))
}

/// An address, and who is asked there.
#[derive(Clone)]
pub(super) struct Address {
    pub url: Url,
    /// The hub's repository, for whom it takes a token.
    pub repo: Option<String>,
    /// None: there is none, or it may not be sent there.
    pub token: Option<Token>,
}

/// A request's outcome that is not an answer to use.
pub(super) enum Stop {
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
        self.fetch(&Address { url: url.clone(), repo: None, token: None }, sink, report)
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
        let address = self.resolve(repo, commit, file)?;
        self.fetch(&address, sink, report)
    }

    /// Where the hub has a file of a repository at a commit.
    pub fn resolve(&self, repo: &str, commit: &str, file: &str) -> Result<Address, Fault> {
        self.at_hub(repo, repo.split('/').chain(["resolve", commit]).chain(file.split('/')))
    }

    /// An address of the hub, about `repo`.
    pub fn at_hub<'a>(&self, repo: &str, path: impl IntoIterator<Item = &'a str>) -> Result<Address, Fault> {
        let bad = |why: &dyn std::fmt::Display| Fault::Refused(format!("HF_ENDPOINT {}: {why}", self.endpoint));
        let mut url = Url::parse(&self.endpoint).map_err(|e| bad(&e))?;
        url.path_segments_mut().map_err(|()| bad(&"is not an http address"))?.pop_if_empty().extend(path);
        let token = self.token.clone().filter(|_| may_carry_a_token(&url));
        Ok(Address { url, repo: Some(repo.to_owned()), token })
    }

    fn fetch(&mut self, address: &Address, sink: &mut Sink, report: &mut dyn FnMut(Progress)) -> Result<(), Fault> {
        let (runtime, clients) = self.opened()?;
        runtime.block_on(async {
            match read(clients, address, sink, report).await {
                Ok(()) => Ok(()),
                Err(Stop::Fault(fault)) => Err(fault),
                Err(Stop::StartOver) => {
                    sink.restart().map_err(|e| Fault::Disk(e.to_string()))?;
                    match read(clients, address, sink, report).await {
                        Err(Stop::StartOver) => {
                            Err(Fault::Refused("it sends neither the part that is asked for nor the whole".into()))
                        }
                        Err(Stop::Fault(fault)) => Err(fault),
                        Ok(()) => Ok(()),
                    }
                }
            }
        })
    }

    /// A small document, and its headers. `range`: only its first bytes.
    pub fn document(
        &mut self,
        address: &Address,
        first: Option<u64>,
        limit: u64,
    ) -> Result<(Vec<u8>, HeaderMap), Fault> {
        let (runtime, clients) = self.opened()?;
        runtime.block_on(async {
            let range = first.map(|first| (0, Some(first)));
            let mut answer = follow(clients, address, range, |_| Ok(())).await?;
            if !matches!(answer.status(), StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
                return Err(refusal(&answer, address));
            }
            let (headers, mut bytes) = (answer.headers().clone(), Vec::new());
            while let Some(chunk) = answer.chunk().await.map_err(|e| Fault::Cut(chain(&e.without_url())))? {
                if (bytes.len() + chunk.len()) as u64 > limit {
                    return Err(Fault::Refused(format!("{} is more than {limit} bytes long", address.url.path())));
                }
                bytes.extend_from_slice(&chunk);
                if first.is_some_and(|first| bytes.len() as u64 >= first) {
                    break;
                }
            }
            Ok((bytes, headers))
        })
    }

    /// All of a file that nobody has a digest for, in order; the server's tag for it.
    pub fn save(
        &mut self,
        address: &Address,
        to: &mut std::fs::File,
        name: &str,
        report: &mut dyn FnMut(Progress),
    ) -> Result<Option<String>, Fault> {
        let (runtime, clients) = self.opened()?;
        runtime.block_on(async {
            let mut answer = follow(clients, address, None, |_| Ok(())).await?;
            if answer.status() != StatusCode::OK {
                return Err(refusal(&answer, address));
            }
            let tag = answer.headers().get("etag").and_then(|tag| tag.to_str().ok()).map(str::to_owned);
            let (mut done, total) = (0, answer.content_length().unwrap_or_default());
            while let Some(bytes) = answer.chunk().await.map_err(|e| Fault::Cut(chain(&e.without_url())))? {
                to.write_all(&bytes).map_err(|e| Fault::Disk(e.to_string()))?;
                done += bytes.len() as u64;
                report(Progress::Bytes { file: name, source: "https", done, total: total.max(done) });
            }
            Ok(tag)
        })
    }

    fn opened(&mut self) -> Result<(&Runtime, &Clients), Fault> {
        if self.open.is_none() {
            self.open = Some(Open::new()?);
        }
        match &self.open {
            Some(Open { runtime: Some(runtime), clients }) => Ok((runtime, clients)),
            _ => Err(Fault::Refused("the network client is gone".into())),
        }
    }
}

impl Open {
    fn new() -> Result<Self, Fault> {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // An error means that somebody else has chosen one already, which is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| Fault::Refused(chain(&e)))?;
        Ok(Self { runtime: Some(runtime), clients: Clients::default() })
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
    clients: &Clients,
    address: &Address,
    sink: &mut Sink<'_>,
    report: &mut dyn FnMut(Progress<'_>),
) -> Result<(), Stop> {
    let first = ranges::first(sink.done(), sink.file().size);
    let mut answer = follow(clients, address, first, |headers| announced(headers, sink)).await?;
    accept(&answer, address, sink)?;
    if answer.status() == StatusCode::PARTIAL_CONTENT && first.is_some_and(|(_, end)| end.is_some()) {
        return ranges::read(clients, address, answer, sink, report).await;
    }
    loop {
        match answer.chunk().await {
            Ok(Some(bytes)) => sink.write(bytes, report)?,
            Ok(None) => return Ok(()),
            Err(e) => return Err(Fault::Cut(format!("cut after {} bytes: {}", sink.done(), chain(&e))).into()),
        }
    }
}

/// Asks, and asks again wherever a redirect points. The token goes to the first address's origin only. `range` counts
/// from its first byte up to, without, its second; `seen` hears the headers of every answer.
pub(super) async fn follow(
    clients: &Clients,
    address: &Address,
    range: Option<(u64, Option<u64>)>,
    mut seen: impl FnMut(&HeaderMap) -> Result<(), Fault>,
) -> Result<Response, Fault> {
    let mut url = address.url.clone();
    for _ in 0..=MAX_REDIRECTS {
        let mut request = clients.of(&url)?.get(url.clone()).header(ACCEPT_ENCODING, "identity");
        if let Some((from, until)) = range {
            let last = until.map(|until| (until - 1).to_string()).unwrap_or_default();
            request = request.header(RANGE, format!("bytes={from}-{last}"));
        }
        if let Some(token) = address.token.as_ref().filter(|_| url.origin() == address.url.origin()) {
            request = request.header(AUTHORIZATION, token.bearer());
        }
        let answer = request.send().await.map_err(|e| Fault::Refused(chain(&e.without_url())))?;
        seen(answer.headers())?;
        if !answer.status().is_redirection() {
            return Ok(answer);
        }
        let to = answer.headers().get(LOCATION).and_then(|to| to.to_str().ok());
        let next = to.and_then(|to| url.join(to).ok()).filter(|next| matches!(next.scheme(), "https" | "http"));
        let Some(next) = next else {
            return Err(Fault::Refused(format!("HTTP {} to nowhere: {to:?}", answer.status().as_u16())));
        };
        if url.scheme() == "https" && next.scheme() == "http" {
            return Err(Fault::Refused("it redirects from https to http".into()));
        }
        url = next;
    }
    Err(Fault::Refused(format!("more than {MAX_REDIRECTS} redirects")))
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
fn accept(answer: &Response, address: &Address, sink: &mut Sink) -> Result<(), Stop> {
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
            sink.restart().map_err(|e| Fault::Disk(e.to_string()).into())
        }
        StatusCode::RANGE_NOT_SATISFIABLE => Err(Stop::StartOver),
        _ => Err(refusal(answer, address).into()),
    }
}

/// What a server refuses, whose permission is missing, and who can get it.
pub(super) fn refusal(answer: &Response, address: &Address) -> Fault {
    let code = answer.status().as_u16();
    let said = answer.headers().get("x-error-message").and_then(|said| said.to_str().ok());
    let said = said.map(|said| format!(" ({})", said.chars().take(MAX_QUOTED_CHARS).collect::<String>()));
    let said = said.unwrap_or_default();
    Fault::Refused(match (code, &address.repo, &address.token) {
        (401 | 403, Some(repo), None) => format!(
            "HTTP {code}: {repo} is private or gated, and no token is known here: put one that may read it into HF_TOKEN{said}"
        ),
        (401, Some(repo), Some(token)) => {
            format!(
                "HTTP 401: the hub does not take the token {token} for {repo}: it has run out, or was withdrawn{said}"
            )
        }
        (403, Some(repo), Some(token)) => {
            let mut page = address.url.clone();
            page.set_path(repo);
            format!("HTTP 403: the account of the token {token} has no access to {repo}: ask for it on {page}{said}")
        }
        (401 | 403, None, _) => {
            format!("HTTP {code}: it is private or gated (a token is sent to the hub and to nobody else){said}")
        }
        _ => format!("HTTP {code}{said}"),
    })
}

/// `bytes 5-9/10` is (5, Some(10)); the total may be `*`.
pub(super) fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
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
pub(super) fn chain(e: &dyn std::error::Error) -> String {
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
    fn only_a_proxy_for_http_that_is_asked_over_tls_needs_certificates() {
        let with = |name: &str, proxy: &str| has_secure_proxy(|asked| (asked == name).then(|| proxy.to_owned()));
        assert!(
            with("http_proxy", "https://proxy.example:3128") && with("ALL_PROXY", "HTTPS://user:word@proxy.example")
        );
        assert!(!with("HTTPS_PROXY", "https://proxy.example") && !with("HTTP_PROXY", "http://proxy.example"));
        assert!(!with("HTTP_PROXY", "proxy.example:3128") && !with("ALL_PROXY", "socks5://proxy.example"));
        assert!(!has_secure_proxy(|_| None));
    }

    #[test]
    fn a_token_is_not_sent_in_the_clear_to_another_machine() {
        let may = |url: &str| may_carry_a_token(&Url::parse(url).unwrap());
        assert!(may("https://hub.example.org/") && may("http://127.0.0.1:1/") && may("http://[::1]/"));
        assert!(!may("http://hub.example.org/"));
    }
}
