//! Content codings (RFC 9110, section 8.4.1): a body as it was before it was compressed. Pure.

use std::borrow::Cow;
use std::io::{self, Read};

use brotli_decompressor::Decompressor;
use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use ruzstd::decoding::StreamingDecoder;

use crate::shadow::message::Field;

/// Codings of one body. Nobody uses two; each costs a buffer.
const MAX_CODINGS: usize = 3;

/// What is read at once of a body that Brotli has compressed.
const BROTLI_BUFFER: usize = 4 << 10;

/// Why a body is left as it came.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Coded {
    /// A coding that is not known here.
    #[error("content-encoding {0}")]
    Unknown(String),
    /// Not what its coding says.
    #[error("content-encoding {coding}: {why}")]
    Broken {
        /// All of the body's codings.
        coding: String,
        /// What the decoder says.
        why: String,
    },
    /// Larger than what is read.
    #[error("content-encoding {0}: too large when decoded")]
    TooLarge(String),
}

/// Whether a body is coded, so that its length tells little.
pub(super) fn is_coded(headers: &[Field]) -> bool {
    !codings(headers).is_empty()
}

/// The body without its codings, at most `limit` bytes long where it has any.
///
/// # Errors
/// A coding is unknown, the body is not what it says, or too large.
pub(super) fn decode<'a>(
    headers: &[Field],
    body: &'a [u8],
    limit: usize,
) -> Result<Cow<'a, [u8]>, Coded> {
    let codings = codings(headers);
    // An answer to HEAD names the coding that its body would have.
    if codings.is_empty() || body.is_empty() {
        return Ok(body.into());
    }
    let named = || codings.join(", ");
    if codings.len() > MAX_CODINGS {
        return Err(Coded::Unknown(named()));
    }
    let broken = |error: &dyn ToString| Coded::Broken {
        coding: named(),
        why: error.to_string(),
    };
    let mut reader: Box<dyn Read + 'a> = Box::new(body);
    // The last one was applied last.
    for coding in codings.iter().rev() {
        reader = match coding.as_str() {
            "gzip" | "x-gzip" => Box::new(MultiGzDecoder::new(reader)),
            "deflate" => inflate(reader).map_err(|error| broken(&error))?,
            "br" => Box::new(Decompressor::new(reader, BROTLI_BUFFER)),
            "zstd" => Box::new(StreamingDecoder::new(reader).map_err(|error| broken(&error))?),
            _ => return Err(Coded::Unknown(named())),
        };
    }
    let mut decoded = Vec::new();
    let read = reader.take(limit as u64 + 1).read_to_end(&mut decoded);
    read.map_err(|error| broken(&error))?;
    if decoded.len() > limit {
        return Err(Coded::TooLarge(named()));
    }
    Ok(decoded.into())
}

/// Codings in the order in which they were applied, in lower case.
fn codings(headers: &[Field]) -> Vec<String> {
    headers
        .iter()
        .filter(|field| field.name.eq_ignore_ascii_case(b"content-encoding"))
        .flat_map(|field| field.value.split(|&byte| byte == b','))
        .map(|coding| String::from_utf8_lossy(coding.trim_ascii()).to_ascii_lowercase())
        .filter(|coding| !matches!(coding.as_str(), "" | "identity"))
        .collect()
}

/// `deflate` is zlib's format (RFC 1950); some send what is inside it (RFC 1951).
fn inflate<'a>(mut reader: Box<dyn Read + 'a>) -> io::Result<Box<dyn Read + 'a>> {
    let mut first = [0; 2];
    reader.read_exact(&mut first)?;
    let is_zlib = first[0] & 0x0f == 8 && u16::from_be_bytes(first).is_multiple_of(31);
    let whole = io::Cursor::new(first).chain(reader);
    Ok(if is_zlib {
        Box::new(ZlibDecoder::new(whole))
    } else {
        Box::new(DeflateDecoder::new(whole))
    })
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;
    use crate::shadow::compare::fixture::fields;

    const TEXT: &[u8] = br#"{"label": "cat", "scores": [0.5, 0.25, 0.25]}"#;

    #[track_caller]
    fn check(coding: &str, base64: &str, expected: Result<&[u8], &str>) {
        let body = STANDARD.decode(base64).unwrap();
        let headers = fields(&[("Content-Encoding", coding)]);
        let decoded = decode(&headers, &body, 100).map_err(|coded| coded.to_string());
        match (decoded, expected) {
            (Ok(decoded), Ok(expected)) => assert_eq!(
                String::from_utf8_lossy(&decoded),
                String::from_utf8_lossy(expected),
                "{coding}"
            ),
            (Err(coded), Err(expected)) => assert!(coded.starts_with(expected), "{coded}"),
            (decoded, expected) => panic!("{coding}: {decoded:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn codings_are_taken_off() {
        check(
            "gzip",
            "H4sIAAAAAAACA6tWyklMSs1RslJQSk4sUdJRUCpOzi9KLQYKRBvomeooGOgZQcnYWgCRtdDPLQAAAA==",
            Ok(TEXT),
        );
        check(
            "X-GZIP",
            "H4sIAAAAAAACA6tWyklMSs1RslJQSk4sUdJRUCpOzi9KLQYKRBvomeooGOgZQcnYWgCRtdDPLQAAAA==",
            Ok(TEXT),
        );
        check(
            "deflate",
            "eJyrVspJTErNUbJSUEpOLFHSUVAqTs4vSi0GCkQb6JnqKBjoGUHJ2FoAJ+0L+Q==",
            Ok(TEXT),
        );
        check(
            "deflate",
            "q1bKSUxKzVGyUlBKTixR0lFQKk7OL0otBgpEG+iZ6igY6BlBydhaAA==",
            Ok(TEXT),
        );
        check(
            "br",
            "CxaAeyJsYWJlbCI6ICJjYXQiLCAic2NvcmVzIjogWzAuNSwgMC4yNSwgMC4yNV19Aw==",
            Ok(TEXT),
        );
        check(
            "zstd",
            "KLUv/SAtaQEAeyJsYWJlbCI6ICJjYXQiLCAic2NvcmVzIjogWzAuNSwgMC4yNSwgMC4yNV19",
            Ok(TEXT),
        );
        check(
            "gzip, br",
            "ixyAH4sIAAAAAAACA6tWyklMSs1RslJQSk4sUdJRUCpOzi9KLQYKRBvomeooGOgZQcnYWgCRtdDPLQAAAAM=",
            Ok(TEXT),
        );
        check(
            "identity",
            "eyJsYWJlbCI6ICJjYXQiLCAic2NvcmVzIjogWzAuNSwgMC4yNSwgMC4yNV19",
            Ok(TEXT),
        );
    }

    #[test]
    fn what_unfolds_is_bounded() {
        check(
            "gzip",
            "H4sIAAAAAAACA0tMpAMAAHhrx6JlAAAA",
            Err("content-encoding gzip: too large"),
        );
    }

    #[test]
    fn an_answer_to_head_has_a_coding_and_no_body() {
        check("gzip", "", Ok(b""));
    }

    #[test]
    fn what_cannot_be_decoded_says_why() {
        check("compress", "AAAA", Err("content-encoding compress"));
        check("gzip", "AAAA", Err("content-encoding gzip: "));
        check("deflate", "AA==", Err("content-encoding deflate: "));
        check("br", "/////w==", Err("content-encoding br: "));
        check("zstd", "AAAA", Err("content-encoding zstd: "));
        check(
            "gzip, gzip, gzip, gzip",
            "AAAA",
            Err("content-encoding gzip, "),
        );
    }
}
