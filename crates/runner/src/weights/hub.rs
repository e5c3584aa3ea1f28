//! What a repository of the hub holds: a revision resolved to its commit, and the files there with their sizes and digests.
//! Also the folder in which the hub's own tools keep what they fetched.
//!
//! Knows the hub's protocol; refuses to know what a lock is. A large file's digest is the hub's word until it is pulled;
//! small ones have none there, and are read.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};
use url::Url;

use super::http::Net;
use super::pickle;
use super::sink::Fault;

/// One page of the list of files, or what the hub says of a revision.
const MAX_DOCUMENT_BYTES: u64 = 32 << 20;
const MAX_PAGES: usize = 100;
/// A file that the hub keeps outside its large store is a configuration or a vocabulary.
const MAX_SMALL_BYTES: u64 = 64 << 20;

/// A file of a repository, as the hub lists it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub path: String,
    pub size: u64,
    /// sha256 in hex; none where the hub knows only git's own digest.
    pub digest: Option<String>,
}

#[derive(Deserialize)]
struct Revision {
    sha: String,
}

#[derive(Deserialize)]
struct Row {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    size: u64,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

/// The commit that a branch, a tag or a commit stands for: 40 hexadecimal digits.
pub(super) fn commit(net: &mut Net, repo: &str, revision: &str) -> Result<String, Fault> {
    let path = ["api", "models"].into_iter().chain(repo.split('/')).chain(["revision", revision]);
    let address = net.at_hub(repo, path)?;
    let (bytes, _) = net.document(&address, None, MAX_DOCUMENT_BYTES)?;
    let Revision { sha } = parse(&bytes)?;
    match is_commit(&sha) {
        true => Ok(sha.to_ascii_lowercase()),
        false => Err(Fault::Refused(format!("the hub says that {repo}@{revision} is {sha:?}, which is no commit"))),
    }
}

/// Every file at a commit.
pub(super) fn list(net: &mut Net, repo: &str, commit: &str) -> Result<Vec<Listed>, Fault> {
    let path = ["api", "models"].into_iter().chain(repo.split('/')).chain(["tree", commit]);
    let mut address = net.at_hub(repo, path)?;
    address.url.set_query(Some("recursive=true"));
    let home = address.url.origin();
    let mut found = Vec::new();
    for _ in 0..MAX_PAGES {
        let (bytes, headers) = net.document(&address, None, MAX_DOCUMENT_BYTES)?;
        for Row { kind, path, size, lfs } in parse::<Vec<Row>>(&bytes)? {
            if kind == "file" {
                let (size, digest) = lfs.map_or((size, None), |lfs| (lfs.size, Some(lfs.oid)));
                found.push(Listed { path, size, digest });
            }
        }
        let next = headers.get("link").and_then(|link| next_page(link.to_str().ok()?, &address.url));
        match next.filter(|next| next.origin() == home) {
            Some(next) => address.url = next,
            None => return Ok(found),
        }
    }
    Err(Fault::Refused(format!("the list of {repo}'s files has more than {MAX_PAGES} pages")))
}

/// The digest of a file that the hub has none for: it is read whole.
pub(super) fn digest(net: &mut Net, repo: &str, commit: &str, file: &Listed) -> Result<(String, u64), Fault> {
    if file.size > MAX_SMALL_BYTES {
        return Err(Fault::Refused(format!("{} has {} bytes and no sha256 there", file.path, file.size)));
    }
    let address = net.resolve(repo, commit, &file.path)?;
    let (bytes, _) = net.document(&address, None, MAX_SMALL_BYTES)?;
    if bytes.len() as u64 != file.size {
        let (path, listed, sent) = (&file.path, file.size, bytes.len());
        return Err(Fault::Refused(format!("{path} is listed with {listed} bytes, and {sent} are sent")));
    }
    Ok((hex::encode(Sha256::digest(&bytes)), file.size))
}

/// By its first bytes, where its name leaves the question open.
pub(super) fn is_pickle(net: &mut Net, repo: &str, commit: &str, file: &str) -> Result<bool, Fault> {
    if !pickle::may_be_one(Path::new(file)) {
        return Ok(false);
    }
    let address = net.resolve(repo, commit, file)?;
    let (first, _) = net.document(&address, Some(pickle::MARK_BYTES), MAX_SMALL_BYTES)?;
    Ok(pickle::begins_like_one(&first))
}

/// The file, if the hub's own tools have fetched it: `models--org--repo/snapshots/COMMIT/FILE`, a link to its content.
pub(super) fn kept(folder: &Path, repo: &str, commit: &str, file: &str) -> Option<PathBuf> {
    let repo = format!("models--{}", repo.replace('/', "--"));
    let path = folder.join(repo).join("snapshots").join(commit).join(file);
    path.is_file().then_some(path)
}

pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Fault> {
    serde_json::from_slice(bytes).map_err(|e| Fault::Refused(format!("the hub's answer is not understood: {e}")))
}

/// `<ADDRESS>; rel="next"` among the links of a header.
fn next_page(links: &str, here: &Url) -> Option<Url> {
    let next = links.split(',').find(|link| link.contains("rel=\"next\""))?;
    here.join(next.split_once('<')?.1.split_once('>')?.0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_among_links() {
        let here = Url::parse("http://hub/api/models/a/b/tree/c?recursive=true").unwrap();
        let links = "<http://hub/first>; rel=\"first\", </api/x?cursor=2>; rel=\"next\"";
        assert_eq!(next_page(links, &here).unwrap().as_str(), "http://hub/api/x?cursor=2");
        assert_eq!(next_page("<http://hub/first>; rel=\"first\"", &here), None);
    }
}
