//! What a field section says (RFC 9113, section 8): the head of a request or of a response, or trailers.

use bytes::Bytes;
use mirror_common::tunnel::Direction;

use super::hpack;
use crate::http::{MAX_FIELDS, MAX_SECTION};
use crate::message::{DropReason, Field};

/// The fields of a block, as far as they are kept.
#[derive(Debug, Default)]
pub(super) struct Section {
    fields: Vec<hpack::Field>,
    size: usize,
    is_too_large: bool,
}

/// What begins a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asking {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) fields: Vec<Field>,
}

/// What a section is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Head {
    Request(Asking),
    Response { status: u16, fields: Vec<Field> },
    Trailers(Vec<Field>),
}

impl Head {
    /// Whether it is of an interim answer (RFC 9110, section 15.2).
    pub(super) fn is_interim(&self) -> bool {
        matches!(
            self,
            Self::Response {
                status: 100..200,
                ..
            }
        )
    }
}

/// Why it says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unusable {
    pub(super) reason: DropReason,
    /// What is malformed.
    pub(super) why: Option<&'static str>,
}

impl From<DropReason> for Unusable {
    fn from(reason: DropReason) -> Self {
        Self { reason, why: None }
    }
}

impl Unusable {
    /// Who is to blame that a message of this direction cannot be read, if it is its sender.
    pub(super) fn blames(&self, direction: Direction) -> Option<Direction> {
        let is_unreadable = matches!(
            self.reason,
            DropReason::Malformed | DropReason::HeadTooLarge
        );
        is_unreadable.then_some(direction)
    }
}

const fn malformed(why: &'static str) -> Unusable {
    Unusable {
        reason: DropReason::Malformed,
        why: Some(why),
    }
}

impl Section {
    /// One more field.
    pub(super) fn push(&mut self, field: hpack::Field) {
        self.size = self.size.saturating_add(field.size());
        self.is_too_large |= self.size > MAX_SECTION || self.fields.len() >= MAX_FIELDS;
        if !self.is_too_large {
            self.fields.push(field);
        }
    }

    /// What its fields take as long as they are kept.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Whether it is certainly a head, no trailers.
    pub(super) fn is_head(&self) -> bool {
        let mut names = self.fields.iter().filter_map(|field| field.name.as_ref());
        names.any(|name| name.starts_with(b":"))
    }

    /// Whether it may stand in this direction: pseudo-fields of it alone, and before all others.
    pub(super) fn is_plausible(&self, direction: Direction) -> bool {
        let mut is_behind = false;
        self.fields.iter().all(|field| {
            let Some(name) = &field.name else {
                return true;
            };
            let is_pseudo = name.starts_with(b":");
            let fits = match (is_pseudo, direction) {
                (true, _) if is_behind => false,
                (true, Direction::Request) => is_of_request(name),
                (true, Direction::Response) => name == ":status",
                (false, _) => is_name(name),
            };
            is_behind |= !is_pseudo;
            fits && field.value.as_deref().is_none_or(is_value)
        })
    }

    /// What it says in this direction. One with a field that is not known says nothing: what is missing may be
    /// what matters.
    pub(super) fn read(self, direction: Direction) -> Result<Head, Unusable> {
        if self.is_too_large {
            return Err(DropReason::HeadTooLarge.into());
        }
        let mut pseudo: [Option<Bytes>; 6] = Default::default();
        let mut fields = Vec::with_capacity(self.fields.len());
        for field in self.fields {
            let (Some(name), Some(value)) = (field.name, field.value) else {
                return Err(DropReason::JoinedLate.into());
            };
            if !is_value(&value) {
                return Err(malformed("a field's value"));
            }
            if let Some(place) = PSEUDO.iter().position(|known| name == *known) {
                if !fields.is_empty() {
                    return Err(malformed("a pseudo-field behind others"));
                }
                if pseudo[place].replace(value).is_some() {
                    return Err(malformed("a pseudo-field twice"));
                }
            } else if !is_name(&name) {
                return Err(malformed("a field's name"));
            } else if is_of_connection(&name, &value) {
                return Err(malformed("a field of HTTP/1's connections"));
            } else {
                fields.push(Field { name, value });
            }
        }
        match (pseudo, direction) {
            ([None, None, None, None, None, None], _) => Ok(Head::Trailers(fields)),
            ([method, scheme, authority, path, protocol, None], Direction::Request) => {
                let parts = (method, scheme, authority, path, protocol);
                request(parts, fields).map(Head::Request)
            }
            ([None, None, None, None, None, Some(status)], Direction::Response) => {
                let status = self::status(&status).ok_or(malformed(":status"))?;
                Ok(Head::Response { status, fields })
            }
            _ => Err(malformed("a pseudo-field of the other direction")),
        }
    }
}

const PSEUDO: [&str; 6] = [
    ":method",
    ":scheme",
    ":authority",
    ":path",
    ":protocol",
    ":status",
];

fn is_of_request(name: &[u8]) -> bool {
    PSEUDO[..5].iter().any(|known| known.as_bytes() == name)
}

type Parts = (
    Option<Bytes>,
    Option<Bytes>,
    Option<Bytes>,
    Option<Bytes>,
    Option<Bytes>,
);

/// Section 8.3.1. `:authority` becomes `host`, as where HTTP/1 goes on with a request: what a server tells hosts
/// apart by stands in one place.
fn request(parts: Parts, mut fields: Vec<Field>) -> Result<Asking, Unusable> {
    let (method, scheme, authority, path, protocol) = parts;
    let method = method.and_then(text).ok_or(malformed(":method"))?;
    if let Some(authority) = &authority
        && !fields.iter().any(|field| field.name == "host")
    {
        let name = Bytes::from_static(b"host");
        let value = authority.clone();
        fields.insert(0, Field { name, value });
    }
    let target = match path {
        None if method == "CONNECT" => authority.and_then(text),
        // Extended CONNECT (RFC 8441) has all of them.
        Some(path) if scheme.is_some() && (method == "CONNECT" || protocol.is_none()) => {
            text(path).filter(|path| !path.is_empty())
        }
        _ => None,
    };
    Ok(Asking {
        method,
        target: target.ok_or(malformed(":path"))?,
        fields,
    })
}

fn text(bytes: Bytes) -> Option<String> {
    let is_text = bytes.iter().all(u8::is_ascii_graphic);
    String::from_utf8(bytes.into())
        .ok()
        .filter(|text| is_text && !text.is_empty())
}

fn status(value: &[u8]) -> Option<u16> {
    let digits = value.len() == 3 && value.iter().all(u8::is_ascii_digit);
    let value = std::str::from_utf8(value).ok().filter(|_| digits)?;
    value.parse().ok().filter(|status| *status >= 100)
}

/// A token without capital letters (section 8.2.1).
fn is_name(name: &[u8]) -> bool {
    let is_token =
        |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9') || b"!#$%&'*+-.^_`|~".contains(byte);
    !name.is_empty() && name.iter().all(is_token)
}

fn is_value(value: &[u8]) -> bool {
    !value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n'))
}

/// Section 8.2.2.
fn is_of_connection(name: &[u8], value: &[u8]) -> bool {
    match name {
        b"connection" | b"proxy-connection" | b"keep-alive" | b"transfer-encoding" | b"upgrade" => {
            true
        }
        b"te" => !value.eq_ignore_ascii_case(b"trailers"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(fields: &[(&'static str, &'static str)]) -> Section {
        let mut section = Section::default();
        let part = |text: &'static str| (text != "?").then(|| Bytes::from_static(text.as_bytes()));
        for (name, value) in fields {
            section.push(hpack::Field {
                name: part(name),
                value: part(value),
            });
        }
        section
    }

    const GET: [(&str, &str); 4] = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "a:1"),
        (":path", "/x"),
    ];

    #[test]
    fn heads() {
        let read = section(&[&GET[..], &[("te", "trailers")]].concat()).read(Direction::Request);
        let fields = vec![Field::of("host", "a:1"), Field::of("te", "trailers")];
        let expected = Asking {
            method: "GET".into(),
            target: "/x".into(),
            fields,
        };
        assert_eq!(read, Ok(Head::Request(expected)));
        let read = section(&[(":status", "204"), ("a", "b")]).read(Direction::Response);
        let fields = vec![Field::of("a", "b")];
        assert_eq!(
            read,
            Ok(Head::Response {
                status: 204,
                fields
            })
        );
        let read = section(&[("grpc-status", "0")]).read(Direction::Response);
        assert_eq!(
            read,
            Ok(Head::Trailers(vec![Field::of("grpc-status", "0")]))
        );
        let connect = section(&[(":method", "CONNECT"), (":authority", "b:2")]);
        let Ok(Head::Request(connect)) = connect.read(Direction::Request) else {
            panic!("no request");
        };
        assert_eq!(connect.target, "b:2");
    }

    #[test]
    fn what_says_nothing() {
        let unknown = [("?", "?")];
        let read = section(&[&GET[..], &unknown].concat()).read(Direction::Request);
        assert_eq!(read.unwrap_err().reason, DropReason::JoinedLate);
        let large = "x".repeat(MAX_SECTION).leak();
        let read = section(&[(":status", "200"), ("a", large)]).read(Direction::Response);
        assert_eq!(read.unwrap_err().reason, DropReason::HeadTooLarge);
        for (more, direction) in [
            (&[("A", "b")][..], Direction::Request),
            (&[(":method", "GET")], Direction::Request),
            (
                &[("a", "b"), (":protocol", "websocket")],
                Direction::Request,
            ),
            (&[("connection", "close")], Direction::Request),
            (&[("te", "gzip")], Direction::Request),
            (&[("a", "b\n")], Direction::Request),
            (&[(":status", "200")], Direction::Request),
            (&[], Direction::Response),
        ] {
            let read = section(&[&GET[..], more].concat()).read(direction);
            assert_eq!(read.unwrap_err().reason, DropReason::Malformed, "{more:?}");
        }
        for fields in [
            &[(":method", "GET")][..],
            &[(":path", "/")],
            &GET[1..],
            &GET[..3],
        ] {
            assert!(
                section(fields).read(Direction::Request).is_err(),
                "{fields:?}"
            );
        }
        for status in ["", "20", "099", "2 0"] {
            assert!(
                section(&[(":status", status)])
                    .read(Direction::Response)
                    .is_err()
            );
        }
    }
}
