//! A stored file as an answer: whole or a range of it, in pieces. Knows HTTP's rules for ranges; refuses to know whose file
//! it is.

use std::io::SeekFrom;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::IntoResponse,
};
use bytes::Bytes;
use futures_util::stream;
use store::files::{File, Files};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::errors::{Answer, Problem};

/// Read from the disk at once.
const PIECE_BYTES: u64 = 64 << 10;

/// 200 or 206 with the bytes, 416 for a range that is not there.
pub async fn serve(files: &Files, file: File, method: &Method, headers: &HeaderMap) -> Answer {
    let etag = format!("\"{}\"", file.md5);
    let (status, first, length) = match wanted(headers, &etag, file.size) {
        Wanted::Whole => (StatusCode::OK, 0, file.size),
        Wanted::Part { first, last } => (StatusCode::PARTIAL_CONTENT, first, last - first + 1),
        Wanted::Nothing => {
            let mut problem = Problem::of_status(StatusCode::RANGE_NOT_SATISFIABLE).into_response();
            problem.headers_mut().insert(header::CONTENT_RANGE, text(format!("bytes */{}", file.size)));
            return Ok(problem);
        }
    };
    let body = match *method == Method::HEAD {
        true => Body::empty(),
        false => pieces(files, &file, first, length).await?,
    };
    let mut response = (status, body).into_response();
    let said = response.headers_mut();
    said.insert(header::CONTENT_TYPE, text(file.content_type));
    said.insert(header::CONTENT_LENGTH, length.into());
    said.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    said.insert(header::ETAG, text(etag));
    said.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=3600"));
    // A page that somebody made a model write, or uploaded, is no page of ours.
    said.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    said.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    if status == StatusCode::PARTIAL_CONTENT {
        let last = first + length - 1;
        said.insert(header::CONTENT_RANGE, text(format!("bytes {first}-{last}/{}", file.size)));
    }
    Ok(response)
}

/// For addresses that are themselves the right to read.
pub fn open_to_pages(headers: &mut HeaderMap) {
    const SAID: [(HeaderName, &str); 4] = [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, OPTIONS"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "*"),
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, "content-length, content-range, etag"),
    ];
    for (name, value) in SAID {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// What we have written ourselves, or checked when it came, is a header.
fn text(text: String) -> HeaderValue {
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("application/octet-stream"))
}

async fn pieces(files: &Files, file: &File, first: u64, length: u64) -> Result<Body, Problem> {
    let gone = |error: std::io::Error| {
        tracing::error!(%error, "a file's content cannot be read");
        Problem::file_not_found()
    };
    let mut content = tokio::fs::File::open(files.path(file)).await.map_err(gone)?;
    content.seek(SeekFrom::Start(first)).await.map_err(gone)?;
    let pieces = stream::unfold((content, length), |(mut content, left)| async move {
        if left == 0 {
            return None;
        }
        let mut piece = vec![0; left.min(PIECE_BYTES) as usize];
        match content.read_exact(&mut piece).await {
            Ok(read) => Some((Ok(Bytes::from(piece)), (content, left - read as u64))),
            // The caller sees a body that ends too early.
            Err(error) => Some((Err(error), (content, 0))),
        }
    });
    Ok(Body::from_stream(pieces))
}

#[derive(Debug, PartialEq)]
enum Wanted {
    Whole,
    /// The first and the last byte.
    Part {
        first: u64,
        last: u64,
    },
    /// A range outside of the file.
    Nothing,
}

/// One range is answered; several at once, and what is not understood, are answered with the whole, as HTTP allows.
fn wanted(headers: &HeaderMap, etag: &str, size: u64) -> Wanted {
    let said = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(range) = said(header::RANGE) else { return Wanted::Whole };
    // A part of an older state would not fit to what the caller has.
    if said(header::IF_RANGE).is_some_and(|state| state != etag) {
        return Wanted::Whole;
    }
    let Some((first, last)) = range.trim().strip_prefix("bytes=").and_then(|range| range.trim().split_once('-')) else {
        return Wanted::Whole;
    };
    let number = |text: &str| text.trim().parse::<u64>().ok();
    match (number(first), number(last)) {
        (Some(first), Some(last)) if last < first => Wanted::Whole,
        (Some(first), _) if first >= size => Wanted::Nothing,
        (Some(first), Some(last)) => Wanted::Part { first, last: last.min(size - 1) },
        (Some(first), None) if last.trim().is_empty() => Wanted::Part { first, last: size - 1 },
        (None, Some(0)) if first.trim().is_empty() => Wanted::Nothing,
        (None, Some(_)) if first.trim().is_empty() && size == 0 => Wanted::Nothing,
        (None, Some(count)) if first.trim().is_empty() => {
            Wanted::Part { first: size.saturating_sub(count), last: size - 1 }
        }
        _ => Wanted::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(range: &'static str, if_range: Option<&'static str>, size: u64) -> Wanted {
        let mut headers = HeaderMap::from_iter([(header::RANGE, HeaderValue::from_static(range))]);
        if_range.map(|state| headers.insert(header::IF_RANGE, HeaderValue::from_static(state)));
        wanted(&headers, "\"now\"", size)
    }

    #[test]
    fn a_range_is_read_as_http_reads_it() {
        let part = |first, last| Wanted::Part { first, last };
        for (range, size, answer) in [
            ("bytes=0-3", 10, part(0, 3)),
            ("bytes=4-", 10, part(4, 9)),
            ("bytes=4-99", 10, part(4, 9)),
            ("bytes=-3", 10, part(7, 9)),
            ("bytes=-99", 10, part(0, 9)),
            ("bytes=9-9", 10, part(9, 9)),
            ("bytes=10-", 10, Wanted::Nothing),
            ("bytes=-0", 10, Wanted::Nothing),
            ("bytes=0-", 0, Wanted::Nothing),
            ("bytes=-1", 0, Wanted::Nothing),
            ("bytes=3-1", 10, Wanted::Whole),
            ("bytes=0-1,3-4", 10, Wanted::Whole),
            ("bytes=x-4", 10, Wanted::Whole),
            ("lines=0-1", 10, Wanted::Whole),
            ("bytes=-", 10, Wanted::Whole),
        ] {
            assert_eq!(asked(range, None, size), answer, "{range} of {size}");
        }
        assert_eq!(asked("bytes=0-3", Some("\"now\""), 10), part(0, 3));
        assert_eq!(asked("bytes=0-3", Some("\"then\""), 10), Wanted::Whole);
        assert_eq!(wanted(&HeaderMap::new(), "\"now\"", 10), Wanted::Whole);
    }
}
