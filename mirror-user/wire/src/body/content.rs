//! What kind of content a body is, and how two bodies that are not both JSON are compared.

use std::borrow::Cow;

use crate::message::{Field, header};

use super::coding;
use super::json::{MAX_PARSED, Node, Unparsed};
use super::room::Room;
use super::words::excerpts;
use super::{streams, tensors};

/// A message's body without its content codings.
#[derive(Debug)]
pub struct Body<'a> {
    bytes: Cow<'a, [u8]>,
    /// Why its codings are still there, if they are.
    coded: Option<coding::Coded>,
    form: Form,
    /// The media type, in lower case.
    kind: String,
    /// Where what it becomes is taken from.
    room: &'a Room,
}

/// How a body is read, by its headers and its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// JSON, as its type says.
    Json,
    /// JSON, as it seems: sent as text or without a type.
    SeemsJson,
    /// JSON of so many bytes, and tensors behind it.
    Tensors(usize),
    /// Server-sent events.
    Events,
    /// JSON lines.
    Lines,
    Other,
}

/// A body as the comparison reads it.
#[derive(Debug)]
pub enum Content<'a> {
    /// JSON.
    Json(Node<'a>),
    /// UTF-8 that is read by the line; where it calls itself JSON, why it is not.
    Text(&'a str, Option<Unparsed>),
    /// Anything else, and why its content is not looked at, where that is not plain.
    Bytes(Option<String>),
}

impl<'a> Body<'a> {
    /// Takes the codings off.
    pub fn of(headers: &[Field], body: &'a [u8], room: &'a Room) -> Self {
        let (bytes, coded) = match coding::decode(headers, body, MAX_PARSED, room) {
            Ok(bytes) => (bytes, None),
            Err(coded) => (body.into(), Some(coded)),
        };
        let kind = token(header(headers, "content-type"));
        let form = Form::of(headers, &kind, &bytes);
        Self {
            bytes,
            coded,
            form,
            kind,
            room,
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes, owned where they had to be decoded.
    pub fn into_bytes(self) -> Cow<'a, [u8]> {
        self.bytes
    }

    /// The body as one JSON value, whatever its type says; of one with tensors the JSON before
    /// them. Nothing where a stream's pieces stand for themselves.
    pub fn document(&self) -> Option<Node<'_>> {
        let json = match self.form {
            Form::Tensors(length) => self.bytes.get(..length)?,
            Form::Events | Form::Lines => return None,
            Form::Json | Form::SeemsJson | Form::Other => &self.bytes,
        };
        Node::parse(json, self.room).ok()
    }

    /// Whether all of it is in the document.
    pub fn is_document(&self) -> bool {
        !matches!(self.form, Form::Tensors(_) | Form::Events | Form::Lines)
    }

    /// Whether it is a stream of pieces, each a value of its own.
    pub fn is_stream(&self) -> bool {
        matches!(self.form, Form::Events | Form::Lines)
    }

    /// What is compared.
    pub fn content(&self) -> Content<'_> {
        if let Some(coded) = &self.coded {
            return Content::Bytes(Some(coded.to_string()));
        }
        if self.bytes.len() > MAX_PARSED {
            return Content::Bytes(Some(Unparsed::TooLarge.to_string()));
        }
        let parsed = match self.form {
            Form::Json | Form::SeemsJson => Some(Node::parse(&self.bytes, self.room)),
            Form::Tensors(length) => Some(tensors::parse(&self.bytes, length, self.room)),
            Form::Events => Some(streams::events(&self.bytes, self.room)),
            Form::Lines => Some(streams::lines(&self.bytes, self.room)),
            Form::Other => None,
        };
        let why = match parsed {
            Some(Ok(node)) => return Content::Json(node),
            Some(Err(why)) if !matches!(self.form, Form::SeemsJson | Form::Events) => Some(why),
            _ => None,
        };
        if is_text(&self.kind)
            && !matches!(self.form, Form::Tensors(_))
            && let Ok(text) = std::str::from_utf8(&self.bytes)
            && !text.contains('\0')
        {
            return Content::Text(text, why);
        }
        Content::Bytes(why.map(|why| why.to_string()))
    }
}

impl Form {
    fn of(headers: &[Field], kind: &str, body: &[u8]) -> Self {
        let tensors = header(headers, "inference-header-content-length")
            .and_then(|length| std::str::from_utf8(length).ok()?.parse().ok());
        let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
        match (tensors, kind) {
            (Some(length), _) => Self::Tensors(length),
            (None, "text/event-stream") => Self::Events,
            (None, kind) if is_json_lines(kind) => Self::Lines,
            (None, kind) if is_json(kind) => Self::Json,
            (None, "" | "text/plain") if matches!(first, Some(b'{' | b'[')) => Self::SeemsJson,
            _ => Self::Other,
        }
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

/// There is no registered type; these are in use.
fn is_json_lines(kind: &str) -> bool {
    let name = kind.strip_prefix("application/").unwrap_or_default();
    let name = name.strip_prefix("x-").unwrap_or(name);
    matches!(
        name,
        "ndjson" | "jsonl" | "jsonlines" | "json-lines" | "json-stream"
    )
}

fn is_text(kind: &str) -> bool {
    kind.is_empty()
        || kind.starts_with("text/")
        || ["json", "xml", "yaml", "javascript", "x-www-form-urlencoded"]
            .iter()
            .any(|text| kind.contains(text))
}

/// A difference between two bodies, with the score.
pub struct Unequal {
    /// 0 = nothing alike, below 1.
    pub score: f64,
    /// What differs first.
    pub words: String,
}

/// Two texts, line by line; `quote` says whether the lines may be shown.
pub fn lines(production: &str, shadow: &str, quote: bool) -> Option<Unequal> {
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
pub fn bytes(production: &[u8], shadow: &[u8]) -> Option<Unequal> {
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
