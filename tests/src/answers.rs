//! What the test server answers: a function of the request alone, so that the client knows it too.

use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};

/// How a server answers. By the first part of the path:
///
/// | path | answer |
/// |---|---|
/// | `/echo` | the request's body |
/// | `/bytes/N` | N bytes with a Content-Length |
/// | `/chunked/N` | N bytes in chunks, and a trailer |
/// | `/delay/MS` | the request's body, after MS milliseconds |
/// | `/status/CODE` | that status, with an empty body |
/// | `/reset` | none: the server resets the connection |
/// | `/label` | JSON as a classifier would answer, made from the request's body |
/// | anything else | 404 |
///
/// An answer to HTTP/1.0 or to `Connection: close` ends with the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    /// The model's version in JSON answers.
    pub version: String,
    /// One label in so many is another than the other servers' (1 = every one).
    pub other_label_in: Option<u8>,
    /// All labels of bodies that begin with this byte are others.
    pub other_label_of: Option<u8>,
    /// Requests whose path and query contain this are answered with a 500.
    pub fails_on: Option<String>,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body; not sent where HTTP forbids it (HEAD, 204, 304).
    pub body: Vec<u8>,
    /// Whether the body is sent in chunks.
    pub chunked: bool,
    /// How long the server waits before it answers.
    pub delay: Duration,
}

impl Answers {
    /// Those of a version, all labels as everybody's.
    pub fn of(version: &str) -> Self {
        Self {
            version: version.to_owned(),
            other_label_in: None,
            other_label_of: None,
            fails_on: None,
        }
    }

    /// The answer to a request.
    pub fn to(&self, path: &str, body: &[u8]) -> Answer {
        let fails = |word: &String| path.contains(word.as_str());
        let fails = self.fails_on.as_ref().is_some_and(fails);
        let path = path.split('?').next().unwrap_or_default();
        let mut parts = path.trim_start_matches('/').split('/');
        let kind = parts.next().unwrap_or_default();
        let number = parts
            .next()
            .and_then(|number| number.parse().ok())
            .unwrap_or(0);
        let answer = |status, body: Vec<u8>| Answer {
            status,
            body,
            chunked: false,
            delay: Duration::ZERO,
        };
        match kind {
            _ if fails => answer(500, b"out of order".to_vec()),
            "echo" => answer(200, body.to_vec()),
            "bytes" => answer(200, pattern(number, 1)),
            "chunked" => Answer {
                chunked: true,
                ..answer(200, pattern(number, 2))
            },
            "delay" => Answer {
                delay: Duration::from_millis(number as u64),
                ..answer(200, body.to_vec())
            },
            "status" => answer(u16::try_from(number).unwrap_or(500), Vec::new()),
            "label" => answer(200, self.classification(body)),
            _ => answer(404, b"no such path".to_vec()),
        }
    }

    /// The label in the answer to `/label`, 0..=9: made from the body's hash.
    pub fn label(&self, body: &[u8]) -> u8 {
        let hash = Sha256::digest(body);
        let other = self.other_label_in.is_some_and(|n| hash[1] % n.max(1) == 0)
            || self.other_label_of.is_some() && self.other_label_of == body.first().copied();
        (hash[0] % 10 + u8::from(other)) % 10
    }

    /// A classifier's answer.
    fn classification(&self, body: &[u8]) -> Vec<u8> {
        let label = self.label(body);
        let likely = |digit: u8| if digit == label { 0.91 } else { 0.01 };
        let probabilities: Vec<f64> = (0..10).map(likely).collect();
        let answer = json!({
            "model_name": "digits",
            "model_version": self.version,
            "outputs": [
                { "name": "probabilities", "datatype": "FP32", "shape": [1, 10], "data": probabilities },
                { "name": "label", "datatype": "INT64", "shape": [1], "data": [label] },
            ],
        });
        answer.to_string().into_bytes()
    }
}

/// Bytes that look random and are the same each time: a piece that is missing, doubled or in the
/// wrong place changes their hash.
pub fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        // xorshift64 (Marsaglia, 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// SHA-256 in hexadecimal, as records have it.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_depend_on_the_request_alone() {
        let answers = Answers::of("v12");
        assert_eq!(
            answers.to("/bytes/9", b""),
            answers.to("/bytes/9?x", b"other")
        );
        assert_eq!(answers.to("/echo", b"body").body, b"body");
        assert_eq!(answers.to("/status/204", b"body").status, 204);
        assert_eq!(answers.to("/", b"").status, 404);
    }

    #[test]
    fn a_share_of_labels_is_another() {
        let (one, other) = (
            Answers::of("v12"),
            Answers {
                other_label_in: Some(10),
                ..Answers::of("v12")
            },
        );
        let differs = |n: u32| one.label(&n.to_be_bytes()) != other.label(&n.to_be_bytes());
        let different = (0..1000).filter(|&n| differs(n)).count();
        assert!((50..150).contains(&different), "{different}");
    }
}
