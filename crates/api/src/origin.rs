//! Where the caller thinks we are. Every URL in an answer is absolute and rooted there: some clients refuse anything
//! else, or drop their token.

use std::convert::Infallible;

use axum::{
    extract::FromRequestParts,
    http::{Extensions, HeaderMap, Request, Uri, header, request::Parts},
};

/// Scheme and host that the caller used, no slash at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(pub String);

/// Beside a request that came over TLS, put there by whoever listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverTls;

/// For a request that names no host, which HTTP/1.0 allows.
const NAMELESS_HOST: &str = "localhost";

impl Origin {
    fn of(headers: &HeaderMap, uri: &Uri, extensions: &Extensions) -> Self {
        // Of a chain of proxies, the first entry is the one the caller spoke to.
        let first = |name: &str| Some(headers.get(name)?.to_str().ok()?.split(',').next()?.trim().to_owned());
        let scheme = first("x-forwarded-proto").filter(|scheme| scheme == "https" || scheme == "http");
        let own = if extensions.get::<OverTls>().is_some() { "https" } else { "http" };
        let scheme = scheme.unwrap_or_else(|| own.into());
        let named = uri.authority().map(|authority| authority.as_str().to_owned());
        let named = [first("x-forwarded-host"), first(header::HOST.as_str()), named];
        let host = named.into_iter().flatten().find(|host| is_host(host)).unwrap_or_else(|| NAMELESS_HOST.into());
        Self(format!("{scheme}://{host}"))
    }

    /// The address of an API path such as `/predictions`.
    pub fn api(&self, path: &str) -> String {
        format!("{}/v1{path}", self.0)
    }
}

/// It goes into URLs of ours: letters, digits, dots, a port, an IPv6 literal, and nothing that could end the host.
fn is_host(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b))
}

impl<S: Sync> FromRequestParts<S> for Origin {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.headers, &parts.uri, &parts.extensions))
    }
}

/// Clients disagree on whether a base URL holds `/v1`, so a path may begin with it twice, once or not at all; the
/// routes know none. A slash at the end means nothing.
pub fn without_prefix<B>(mut request: Request<B>) -> Request<B> {
    let path = request.uri().path();
    let mut rest = path;
    for _ in 0..2 {
        rest = rest.strip_prefix("/v1").filter(|rest| rest.is_empty() || rest.starts_with('/')).unwrap_or(rest);
    }
    let rest = rest.trim_end_matches('/');
    let rest = if rest.is_empty() { "/" } else { rest };
    if rest == path {
        return request;
    }
    let target = match request.uri().query() {
        Some(query) => format!("{rest}?{query}"),
        None => rest.to_owned(),
    };
    let mut parts = request.uri().clone().into_parts();
    // A part of a path that was valid is valid.
    if let Ok(target) = target.parse() {
        parts.path_and_query = Some(target);
    }
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    request
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn the_origin_is_the_address_the_caller_used() {
        let cases: &[(&[(&str, &str)], &str)] = &[
            (&[("host", "127.0.0.1:5000")], "http://127.0.0.1:5000"),
            (&[("host", "[::1]:5000")], "http://[::1]:5000"),
            (
                &[("host", "in:80"), ("x-forwarded-proto", "https"), ("x-forwarded-host", "gpu.example")],
                "https://gpu.example",
            ),
            (&[("host", "a"), ("x-forwarded-proto", "https, http"), ("x-forwarded-host", "b, c")], "https://b"),
            (&[("host", "a"), ("x-forwarded-proto", "javascript")], "http://a"),
            (&[("host", "a/../\"")], "http://localhost"),
            (&[("host", "a"), ("x-forwarded-host", "b@c")], "http://a"),
            (&[], "http://localhost"),
        ];
        for (headers, origin) in cases {
            let pairs = headers.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
            let headers: HeaderMap = pairs.collect();
            assert_eq!(Origin::of(&headers, &Uri::from_static("/"), &Extensions::new()).0, *origin, "{headers:?}");
        }
    }

    #[test]
    fn a_caller_over_tls_used_https_unless_a_proxy_says_otherwise() {
        let mut secure = Extensions::new();
        secure.insert(OverTls);
        let mut headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("localhost:5000"))]);
        assert_eq!(Origin::of(&headers, &Uri::from_static("/"), &secure).0, "https://localhost:5000");
        headers.insert("x-forwarded-proto", HeaderValue::from_static("http"));
        assert_eq!(Origin::of(&headers, &Uri::from_static("/"), &secure).0, "http://localhost:5000");
    }

    #[test]
    fn every_prefix_leads_to_the_same_route() {
        for (sent, routed) in [
            ("/predictions", "/predictions"),
            ("/v1/predictions", "/predictions"),
            ("/v1/v1/predictions?cursor=a%20b", "/predictions?cursor=a%20b"),
            ("/v1/v1/v1/predictions", "/v1/predictions"),
            ("/v1/predictions/", "/predictions"),
            ("/v1", "/"),
            ("/v1/?a=1", "/?a=1"),
            ("/v10/predictions", "/v10/predictions"),
            ("/", "/"),
            ("http://host/v1/account", "http://host/account"),
        ] {
            let request = Request::builder().uri(sent).body(()).unwrap();
            assert_eq!(without_prefix(request).uri().to_string(), routed, "{sent}");
        }
    }
}
