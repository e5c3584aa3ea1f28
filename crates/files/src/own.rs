//! URLs of this server's own files. What they name is read from the store: over HTTP it would be a description, or nothing
//! without a token.

use url::Url;

/// The id in a URL of ours, whatever address it was given out under: ids cannot be guessed, so who has one has the file.
pub fn id(url: &str) -> Option<String> {
    let url = Url::parse(url).ok()?;
    let mut parts: Vec<&str> = url.path_segments()?.collect();
    while parts.first() == Some(&"v1") {
        parts.remove(0);
    }
    match parts.as_slice() {
        ["files", id] | ["files", id, "download"] | ["outputs", id, _] => Some((*id).to_owned()),
        _ => None,
    }
}

/// Whether the URL was rooted at the address that the caller used.
pub fn is_ours(url: &str, origin: &str) -> bool {
    let origin_of = |text: &str| Url::parse(text).map(|url| url.origin()).ok();
    origin_of(url).is_some_and(|one| Some(one) == origin_of(origin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_urls_are_known_by_their_path() {
        for url in [
            "http://127.0.0.1:5000/v1/files/abc",
            "https://gpu.example/v1/v1/files/abc",
            "http://localhost/files/abc?x=1",
            "http://localhost/v1/files/abc/download?owner=pinion",
            "http://localhost/v1/outputs/abc/out-0.png",
        ] {
            assert_eq!(id(url).as_deref(), Some("abc"), "{url}");
        }
        for url in
            ["http://gears.example/a.wav", "http://gears.example/x/files/abc", "http://gears.example/", "nothing"]
        {
            assert_eq!(id(url), None, "{url}");
        }
    }

    #[test]
    fn an_address_is_ours_by_scheme_host_and_port() {
        let origin = "http://127.0.0.1:5000";
        assert!(is_ours("http://127.0.0.1:5000/v1/files/abc", origin));
        assert!(is_ours("http://gears.example:80/a", "http://gears.example"));
        for other in ["https://127.0.0.1:5000/", "http://127.0.0.1:5001/", "http://localhost:5000/", "x"] {
            assert!(!is_ours(other, origin), "{other}");
        }
    }
}
