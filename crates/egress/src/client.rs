//! The HTTP client behind the rules, and its errors. Refuses to read more of an answer than it was told.

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::{Call, Class, Rules, check, classify};

/// To reach the other side.
pub(crate) const CONNECT_SECONDS: u64 = 5;
/// For the whole of a small call.
const TOTAL_SECONDS: u64 = 10;
/// Idle connections kept per host; webhooks of one receiver come in bursts.
const IDLE_PER_HOST: usize = 4;

#[derive(Debug, Clone, thiserror::Error)]
pub enum EgressError {
    #[error("is not a URL")]
    NotAUrl,
    #[error("must be an http or https URL, not {0}")]
    Scheme(String),
    #[error("points to {address}, {class}")]
    Refused { address: IpAddr, class: &'static str },
    #[error("the address could not be resolved: {0}")]
    Unresolved(String),
    #[error("no answer within {0} s")]
    TimedOut(f64),
    #[error("no connection within {CONNECT_SECONDS} s")]
    Unreachable,
    #[error("nothing came for {0} s")]
    Silent(f64),
    #[error("not complete after {0} s, which is the limit")]
    TookTooLong(f64),
    #[error("answered {0}")]
    Status(String),
    #[error("is {bytes} bytes; at most {limit} may be")]
    TooLarge { bytes: u64, limit: u64 },
    #[error("is longer than {limit} bytes, which is the limit")]
    TooLong { limit: u64 },
    #[error("broke off after {got} bytes{}", .announced.map(|all| format!(" of {all}")).unwrap_or_default())]
    CutShort { got: u64, announced: Option<u64> },
    #[error("redirects more than {0} times")]
    Redirects(usize),
    /// The place that a redirect named, and what is wrong with it.
    #[error("redirects to {to}, which {why}")]
    Redirected { to: String, why: Box<EgressError> },
    #[error("is not a data URI: {0}")]
    BadData(&'static str),
    #[error("could not be written to disk: {0}")]
    Disk(String),
    #[error("{0}")]
    Failed(String),
}

impl EgressError {
    pub(crate) fn refused(address: IpAddr) -> Self {
        let class = match classify(address) {
            Class::Loopback => "this machine, which is allowed only while the server listens on loopback",
            Class::Private => "a private address, which is allowed only with `egress: allow_private` in cog.yaml",
            Class::Public | Class::Forbidden => "an address that is never called",
        };
        Self::Refused { address, class }
    }
}

/// The way out. Cheap to clone.
#[derive(Clone)]
pub struct Egress {
    pub(crate) client: reqwest::Client,
    rules: Rules,
}

impl Egress {
    pub fn new(rules: Rules) -> Result<Self, EgressError> {
        // Whoever was first in this process chose the cryptography; there is only ring here.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(CONNECT_SECONDS))
            .pool_max_idle_per_host(IDLE_PER_HOST)
            .user_agent(concat!("pinion/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(Arc::new(Allowed(rules)))
            .build()
            .map_err(|error| EgressError::Failed(chain(&error)))?;
        Ok(Self { client, rules })
    }

    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Sends and answers with the status, whichever it is.
    pub async fn post(&self, url: &str, headers: &[(&str, String)], body: Vec<u8>) -> Result<u16, EgressError> {
        let within = Duration::from_secs(TOTAL_SECONDS);
        Ok(self.post_within(Call { url, headers, body, within }).await?.status)
    }

    /// The status, whichever it is, and the body of at most `limit_bytes`.
    pub async fn get(
        &self,
        url: &str,
        headers: &[(&str, String)],
        limit_bytes: usize,
    ) -> Result<(u16, Vec<u8>), EgressError> {
        let request = self.client.get(check(url, &self.rules)?);
        let mut request = request.timeout(Duration::from_secs(TOTAL_SECONDS));
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let mut answer = request.send().await.map_err(sorted)?;
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(sorted)? {
            if body.len() + piece.len() > limit_bytes {
                return Err(EgressError::TooLong { limit: limit_bytes as u64 });
            }
            body.extend_from_slice(&piece);
        }
        Ok((answer.status().as_u16(), body))
    }
}

/// Resolves with the system's resolver and lets only allowed addresses through to the connector.
struct Allowed(Rules);

impl Resolve for Allowed {
    fn resolve(&self, name: Name) -> Resolving {
        let rules = self.0;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await;
            let found = found.map_err(|error| EgressError::Unresolved(error.to_string()))?;
            Ok(Box::new(permitted(found.collect(), &rules)?.into_iter()) as Addrs)
        })
    }
}

/// The allowed ones of a name's addresses; an error that names a refused one if none is left.
fn permitted(found: Vec<SocketAddr>, rules: &Rules) -> Result<Vec<SocketAddr>, EgressError> {
    let refused = found.iter().map(SocketAddr::ip).find(|address| !rules.allows(*address));
    let allowed: Vec<_> = found.into_iter().filter(|found| rules.allows(found.ip())).collect();
    match (allowed.is_empty(), refused) {
        (false, _) => Ok(allowed),
        (true, Some(address)) => Err(EgressError::refused(address)),
        (true, None) => Err(EgressError::Unresolved("the name has no address".to_owned())),
    }
}

/// Our own error if the resolver raised it, else a short account of what went wrong.
pub(crate) fn sorted(error: reqwest::Error) -> EgressError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        if let Some(ours) = current.downcast_ref::<EgressError>() {
            return ours.clone();
        }
        cause = current.source();
    }
    match error.is_timeout() {
        true if error.is_connect() => EgressError::Unreachable,
        true => EgressError::TimedOut(TOTAL_SECONDS as f64),
        false => EgressError::Failed(chain(&error.without_url())),
    }
}

/// An error with its causes in one line: reqwest's own text says only "error sending request".
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(current) = cause {
        text = format!("{text}: {current}");
        cause = current.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const HERE: Rules = Rules { allow_loopback: true, allow_private: false };

    /// Answers every call with `answer` and hands over what was read.
    async fn receiver(answer: &'static str) -> (String, tokio::sync::mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://localhost:{}/hook", listener.local_addr().unwrap().port());
        let (heard, hear) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut text = vec![0; 4096];
                let read = socket.read(&mut text).await.unwrap_or(0);
                let _ = heard.send(String::from_utf8_lossy(&text[..read]).into_owned());
                let _ = socket.write_all(answer.as_bytes()).await;
            }
        });
        (url, hear)
    }

    #[tokio::test]
    async fn a_post_carries_headers_body_and_our_name() {
        let (url, mut hear) = receiver("HTTP/1.1 204 No Content\r\n\r\n").await;
        let egress = Egress::new(HERE).unwrap();
        let headers = [("webhook-id", "msg_1".to_owned()), ("content-type", "application/json".to_owned())];
        assert_eq!(egress.post(&url, &headers, b"{\"a\":1}".to_vec()).await.unwrap(), 204);
        let said = hear.recv().await.unwrap().to_lowercase();
        assert!(said.starts_with("post /hook http/1.1\r\n"), "{said}");
        assert!(said.contains("webhook-id: msg_1\r\n"), "{said}");
        assert!(said.contains(concat!("user-agent: pinion/", env!("CARGO_PKG_VERSION"), "\r\n")), "{said}");
    }

    #[tokio::test]
    async fn a_get_gives_status_and_body_and_no_more_than_was_asked_for() {
        let (url, mut hear) = receiver("HTTP/1.1 401 Unauthorized\r\ncontent-length: 5\r\n\r\nhello").await;
        let egress = Egress::new(HERE).unwrap();
        let headers = [("authorization", "Bearer r8_a".to_owned())];
        assert_eq!(egress.get(&url, &headers, 5).await.unwrap(), (401, b"hello".to_vec()));
        let said = hear.recv().await.unwrap().to_lowercase();
        assert!(said.starts_with("get /hook") && said.contains("authorization: bearer r8_a\r\n"), "{said}");
        let refused = egress.get(&url, &[], 4).await.unwrap_err();
        assert_eq!(refused.to_string(), "is longer than 4 bytes, which is the limit");
    }

    #[tokio::test]
    async fn a_redirect_is_an_answer_not_an_errand() {
        let (url, mut hear) = receiver("HTTP/1.1 302 Found\r\nlocation: /other\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(Egress::new(HERE).unwrap().post(&url, &[], vec![]).await.unwrap(), 302);
        assert!(hear.recv().await.is_some());
        assert!(hear.try_recv().is_err(), "one call only");
    }

    #[tokio::test]
    async fn a_name_that_resolves_to_a_refused_address_is_not_connected_to() {
        // Past `check`, as a name would be whose address changed since: the resolver itself refuses.
        let error = Egress::new(Rules::default()).unwrap();
        let error = sorted(error.client.post("http://localhost:9/").send().await.unwrap_err());
        assert!(matches!(error, EgressError::Refused { address, .. } if address.is_loopback()), "{error}");
    }

    #[test]
    fn a_mixed_answer_keeps_only_what_is_allowed() {
        let [public, private]: [SocketAddr; 2] = ["8.8.8.8:0", "10.0.0.1:0"].map(|text| text.parse().unwrap());
        assert_eq!(permitted(vec![private, public], &Rules::default()).unwrap(), vec![public]);
        assert!(matches!(permitted(vec![private], &Rules::default()), Err(EgressError::Refused { .. })));
        assert!(matches!(permitted(vec![], &Rules::default()), Err(EgressError::Unresolved(_))));
    }

    #[tokio::test]
    async fn nobody_listening_is_an_error_with_its_cause() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        drop(listener);
        let error = Egress::new(HERE).unwrap().post(&url, &[], vec![]).await.unwrap_err();
        assert!(error.to_string().to_lowercase().contains("refused"), "{error}");
    }
}
