//! `data:` URIs (RFC 2397): a file inside its own name. Knows base64 and percent encoding; refuses to know what is in it.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use percent_encoding::percent_decode_str;

use crate::EgressError;

/// What a URI holds that names no type.
const PLAIN_TEXT: &str = "text/plain;charset=US-ASCII";

/// As browsers read it: with padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// A decoded `data:` URI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    /// With its parameters, save `base64` and `name`.
    pub content_type: String,
    /// The `name=` parameter, which is no standard but is what programs write.
    pub name: Option<String>,
    pub bytes: Vec<u8>,
}

pub fn is_data(uri: &str) -> bool {
    uri.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
}

/// Decodes a `data:` URI of at most `limit` bytes of content; refuses one that is larger before it decodes.
pub fn data(uri: &str, limit: u64) -> Result<Data, EgressError> {
    let rest = uri.get(5..).filter(|_| is_data(uri)).ok_or(EgressError::BadData("it does not begin with data:"))?;
    let (head, body) = rest.split_once(',').ok_or(EgressError::BadData("it has no comma"))?;
    let (mut content_type, mut name, mut is_base64) = (String::new(), None, false);
    for (place, part) in head.split(';').map(str::trim).enumerate() {
        if part.eq_ignore_ascii_case("base64") {
            is_base64 = true;
        } else if let Some(text) = part.strip_prefix("name=") {
            name = Some(percent_decode_str(text).decode_utf8_lossy().into_owned()).filter(|name| !name.is_empty());
        } else if place == 0 || !part.is_empty() {
            content_type.push_str(if place == 0 { "" } else { ";" });
            content_type.push_str(part);
        }
    }
    if content_type.is_empty() || content_type.starts_with(';') {
        content_type = PLAIN_TEXT.to_owned();
    }
    let bytes = if is_base64 { base64(body, limit)? } else { percent(body, limit)? };
    Ok(Data { content_type, name, bytes })
}

fn percent(body: &str, limit: u64) -> Result<Vec<u8>, EgressError> {
    let bytes = percent_decode_str(body).count() as u64;
    match bytes > limit {
        true => Err(EgressError::TooLarge { bytes, limit }),
        false => Ok(percent_decode_str(body).collect()),
    }
}

fn base64(body: &str, limit: u64) -> Result<Vec<u8>, EgressError> {
    let is_digit = |byte: &u8| !byte.is_ascii_whitespace();
    let digits: Vec<u8> = percent_decode_str(body).filter(is_digit).map(standard).collect();
    let bytes = digits.iter().filter(|digit| **digit != b'=').count() as u64 * 3 / 4;
    if bytes > limit {
        return Err(EgressError::TooLarge { bytes, limit });
    }
    BASE64.decode(digits).map_err(|_| EgressError::BadData("its base64 is broken"))
}

/// The URL-safe alphabet's two other digits.
fn standard(digit: u8) -> u8 {
    match digit {
        b'-' => b'+',
        b'_' => b'/',
        digit => digit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(uri: &str) -> (String, Vec<u8>) {
        let data = data(uri, 1000).unwrap_or_else(|error| panic!("{uri}: {error}"));
        (data.content_type, data.bytes)
    }

    #[test]
    fn every_spelling_of_a_data_uri_is_read() {
        for (uri, content_type, bytes) in [
            ("data:,hi", PLAIN_TEXT, &b"hi"[..]),
            ("data:,", PLAIN_TEXT, b""),
            ("data:;base64,aGk=", PLAIN_TEXT, b"hi"),
            ("data:text/plain,a%20b%2Cc", "text/plain", b"a b,c"),
            ("DATA:text/plain;base64,aGk", "text/plain", b"hi"),
            ("data:audio/wav;codecs=1;base64,aG\nk%3D", "audio/wav;codecs=1", b"hi"),
            ("data:application/octet-stream;base64,-_8=", "application/octet-stream", b"\xfb\xff"),
            ("data:image/png;name=a%20b.png;base64,", "image/png", b""),
        ] {
            assert_eq!(read(uri), (content_type.to_owned(), bytes.to_vec()), "{uri}");
        }
        assert_eq!(data("data:image/png;name=a%20b.png,x", 1).unwrap().name.as_deref(), Some("a b.png"));
    }

    #[test]
    fn what_is_no_data_uri_is_said() {
        for uri in
            ["", "data", "data:", "data:text/plain", "http://a/,", "data:;base64,a", "data:;base64,&&&&", "dätä:,"]
        {
            assert!(matches!(data(uri, 1000), Err(EgressError::BadData(_))), "{uri}");
        }
    }

    #[test]
    fn a_data_uri_over_the_limit_is_refused_with_both_numbers() {
        for uri in ["data:,12345", "data:;base64,MTIzNDU=", "data:,%31%32345"] {
            assert_eq!(data(uri, 5).unwrap().bytes, b"12345", "{uri}");
            assert_eq!(data(uri, 4).unwrap_err().to_string(), "is 5 bytes; at most 4 may be", "{uri}");
        }
    }
}
