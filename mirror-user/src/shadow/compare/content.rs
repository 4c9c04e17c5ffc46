//! What kind of content a body is, and how two bodies that are not both JSON are compared.

use crate::shadow::message::{Response, header};

use super::json::{MAX_PARSED, Node, Unparsed};
use super::words::excerpts;

/// A response's body as the comparison reads it.
#[derive(Debug)]
pub(super) enum Content<'a> {
    /// JSON.
    Json(Node<'a>),
    /// UTF-8 that is read by the line; where it calls itself JSON, why it is not.
    Text(&'a str, Option<Unparsed>),
    /// Anything else, and why its content is not looked at, where that is not plain.
    Bytes(Option<String>),
}

impl<'a> Content<'a> {
    /// Reads a body by its Content-Encoding, its Content-Type and what it looks like.
    pub(super) fn of(response: &'a Response) -> Self {
        let body = &response.body[..];
        let encoding = token(header(&response.headers, "content-encoding"));
        if !matches!(encoding.as_str(), "" | "identity") {
            return Self::Bytes(Some(format!("content-encoding {encoding}")));
        }
        if body.len() > MAX_PARSED {
            return Self::Bytes(Some(Unparsed::TooLarge.to_string()));
        }
        let kind = token(header(&response.headers, "content-type"));
        let mut why = None;
        if may_be_json(&kind, body) {
            match Node::parse(body) {
                Ok(node) => return Self::Json(node),
                Err(unparsed) if is_json(&kind) => why = Some(unparsed),
                Err(_) => {}
            }
        }
        if is_text(&kind)
            && let Ok(text) = std::str::from_utf8(body)
            && !text.contains('\0')
        {
            return Self::Text(text, why);
        }
        Self::Bytes(why.map(|why| why.to_string()))
    }
}

/// A header's value up to its parameters, in lower case.
fn token(value: Option<&[u8]>) -> String {
    let value = String::from_utf8_lossy(value.unwrap_or_default());
    let essence = value.split(';').next().unwrap_or_default();
    essence.trim().to_ascii_lowercase()
}

fn is_json(kind: &str) -> bool {
    kind == "application/json" || kind.ends_with("+json")
}

/// JSON that says so, and JSON that is sent as text or without a type.
fn may_be_json(kind: &str, body: &[u8]) -> bool {
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
    is_json(kind) || (matches!(kind, "" | "text/plain") && matches!(first, Some(b'{' | b'[')))
}

fn is_text(kind: &str) -> bool {
    kind.is_empty()
        || kind.starts_with("text/")
        || ["json", "xml", "yaml", "javascript", "x-www-form-urlencoded"]
            .iter()
            .any(|text| kind.contains(text))
}

/// A difference between two bodies, with the score.
pub(super) struct Unequal {
    pub(super) score: f64,
    pub(super) words: String,
}

/// Two texts, line by line; `quote` says whether the lines may be shown.
pub(super) fn lines(production: &str, shadow: &str, quote: bool) -> Option<Unequal> {
    let (mut p, mut s) = (production.split('\n'), shadow.split('\n'));
    let (mut number, mut agreeing) = (0_u64, 0_u64);
    let mut words = None;
    loop {
        let pair = (p.next(), s.next());
        if pair == (None, None) {
            break;
        }
        number += 1;
        if pair.0 == pair.1 {
            agreeing += 1;
        } else if words.is_none() {
            words = Some(match pair {
                (Some(_), None) => format!("line {number}: only in production's answer"),
                (None, _) => format!("line {number}: only in the shadow's answer"),
                (Some(p), Some(s)) if quote => {
                    let (p, s) = excerpts(p, s);
                    format!("line {number}: {p} became {s}")
                }
                (Some(_), Some(_)) => format!("line {number}: differs (redacted)"),
            });
        }
    }
    words.map(|words| Unequal {
        score: agreeing as f64 / number as f64,
        words,
    })
}

/// Any two bodies, byte for byte.
pub(super) fn bytes(production: &[u8], shadow: &[u8]) -> Option<Unequal> {
    if production == shadow {
        return None;
    }
    let pairs = || production.iter().zip(shadow);
    let agreeing = pairs().filter(|(p, s)| p == s).count();
    let length = production.len().max(shadow.len());
    let offset = pairs().position(|(p, s)| p != s);
    let words = match offset {
        Some(offset) if production.len() == shadow.len() => {
            format!("bytes differ from offset {offset} on, of {length}")
        }
        offset => {
            let (p, s) = (production.len(), shadow.len());
            let offset = offset.unwrap_or(p.min(s));
            format!("{p} bytes became {s}, different from offset {offset} on")
        }
    };
    Some(Unequal {
        score: agreeing as f64 / length as f64,
        words,
    })
}
