//! Heads: request line or status line, header fields, and what they say of the body's length.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use memchr::memchr_iter;

use super::body::Body;
use super::{Fault, MAX_FIELDS, MAX_SECTION};
use crate::message::{Field, Version, header};

/// Header fields that are parsed on the stack.
const USUAL_FIELDS: usize = 96;

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Of a request.
    Request {
        /// The method.
        method: String,
        /// The request target, as on the wire.
        target: String,
    },
    /// Of a response.
    Response {
        /// The status code.
        status: u16,
    },
}

/// A message's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The first line.
    pub start: Start,
    /// HTTP's version.
    pub version: Version,
    /// Header fields in their order.
    pub fields: Vec<Field>,
}

/// How the body's end is found (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes; 0 where there is no body.
    Length(u64),
    /// In chunks.
    Chunked,
    /// By the connection's end.
    Close,
}

/// What a response's length depends on: the request it answers (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// By HEAD: the answer has no body.
    Head,
    /// By CONNECT: after a 2xx HTTP has ended.
    Connect,
    /// By any other method.
    Other,
}

impl Asked {
    /// What a request with this method asks.
    pub fn by(method: &str) -> Self {
        match method {
            "HEAD" => Self::Head,
            "CONNECT" => Self::Connect,
            _ => Self::Other,
        }
    }
}

/// What is being parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Request,
    Response(Asked),
}

impl Head {
    /// The members of a list field, over all fields of that name, without white space.
    fn members<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.fields
            .iter()
            .filter(move |field| field.name.eq_ignore_ascii_case(name.as_bytes()))
            .flat_map(|field| field.value.split(|&byte| byte == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|member| !member.is_empty())
    }

    /// Whether a list field has this member, without regard to case.
    pub fn lists(&self, name: &str, member: &str) -> bool {
        self.members(name)
            .any(|listed| listed.eq_ignore_ascii_case(member.as_bytes()))
    }

    /// Whether the request asks to leave HTTP/1 if the server agrees: CONNECT (RFC 9110, section
    /// 9.3.6) or Upgrade (section 7.8).
    pub fn asks_to_leave(&self) -> bool {
        let connect = matches!(&self.start, Start::Request { method, .. } if method == "CONNECT");
        connect
            || (self.lists("connection", "upgrade") && header(&self.fields, "upgrade").is_some())
    }

    /// Whether the client may wait for `100 Continue` before it sends the body.
    pub fn expects_continue(&self) -> bool {
        self.lists("expect", "100-continue")
    }

    /// Whether the connection stays open after this message (RFC 9112, section 9.3).
    pub fn is_persistent(&self) -> bool {
        match self.version {
            Version::Http11 | Version::Http2 => !self.lists("connection", "close"),
            Version::Http10 => self.lists("connection", "keep-alive"),
        }
    }

    /// How the body's end is found, and whether there are codings besides `chunked`.
    pub(super) fn framing(&self, side: Side) -> Result<(Framing, bool), Fault> {
        if let (Side::Response(asked), &Start::Response { status }) = (side, &self.start) {
            let tunnel = asked == Asked::Connect && (200..300).contains(&status);
            let bodiless = matches!(status, 100..200 | 204 | 304);
            if asked == Asked::Head || tunnel || bodiless {
                return Ok((Framing::Length(0), false));
            }
        }
        // `identity` is no coding (RFC 2616, section 3.6, which RFC 7230 took back).
        let is_coding = |coding: &&[u8]| !coding.eq_ignore_ascii_case(b"identity");
        let codings = self.members("transfer-encoding").filter(is_coding);
        let codings: Vec<_> = codings.collect();
        if let Some((last, others)) = codings.split_last() {
            return self.coded(side, last, others);
        }
        match (self.content_length()?, side) {
            (Some(length), _) => Ok((Framing::Length(length), false)),
            (None, Side::Request) => Ok((Framing::Length(0), false)),
            (None, Side::Response(_)) => Ok((Framing::Close, false)),
        }
    }

    /// Transfer-Encoding overrides Content-Length (RFC 9112, section 6.3, number 3).
    fn coded(&self, side: Side, last: &[u8], others: &[&[u8]]) -> Result<(Framing, bool), Fault> {
        if self.version == Version::Http10 && self.content_length()?.is_some() {
            // Some go by the one, some by the other.
            let both = "Transfer-Encoding and Content-Length in HTTP/1.0";
            return Err(Fault::Malformed(both));
        }
        let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
        if others.iter().any(|coding| is_chunked(coding)) {
            return Err(Fault::Malformed("chunked is not the last transfer coding"));
        }
        match (is_chunked(last), side) {
            (true, _) => Ok((Framing::Chunked, !others.is_empty())),
            (false, Side::Request) => Err(Fault::Malformed(
                "a request whose last coding is not chunked",
            )),
            (false, Side::Response(_)) => Ok((Framing::Close, true)),
        }
    }

    /// Content-Length: digits, or none at all. Repeated ones count as one where they are the same
    /// (RFC 9110, section 8.6).
    fn content_length(&self) -> Result<Option<u64>, Fault> {
        let mut length = None;
        let fields = self.fields.iter();
        for value in fields
            .filter(|field| field.name.eq_ignore_ascii_case(b"content-length"))
            .flat_map(|field| field.value.split(|&byte| byte == b','))
        {
            let value = number(value.trim_ascii())
                .ok_or(Fault::Malformed("Content-Length is not a number"))?;
            if length.is_some_and(|length| length != value) {
                return Err(Fault::Malformed("Content-Length twice"));
            }
            length = Some(value);
        }
        Ok(length)
    }
}

/// What digits say, and nothing but digits.
fn number(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(text).ok().filter(|_| digits)?;
    text.parse().ok()
}

/// Collects a head or a trailer section until the empty line that ends it.
#[derive(Debug, Default)]
pub(super) struct Section {
    held: BytesMut,
    /// Up to where `held` was searched.
    searched: usize,
}

impl Section {
    /// See [`may_be_interim`].
    pub(super) fn may_be_interim(&self) -> bool {
        may_be_interim(&self.held)
    }

    /// Whether nothing of it has arrived.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Takes the whole section, its empty line included, off the front of what is held and
    /// `input`; nothing while it has not ended. `body` pays for it.
    pub(super) fn take(
        &mut self,
        input: &mut Bytes,
        body: &mut Body,
    ) -> Result<Option<Bytes>, Fault> {
        if self.held.is_empty()
            && let Some(end) = end_of_section(input, 0)
        {
            body.pay(within(end)?);
            return Ok(Some(input.split_to(end)));
        }
        let before = self.held.len();
        let room = (MAX_SECTION + 1).saturating_sub(before).min(input.len());
        self.held.extend_from_slice(&input[..room]);
        let Some(end) = end_of_section(&self.held, self.searched) else {
            within(self.held.len())?;
            body.hold(input.len())?;
            self.searched = self.held.len().saturating_sub(2);
            input.clear();
            return Ok(None);
        };
        body.pay(within(end)? - before);
        let _ = input.split_to(end - before);
        self.searched = 0;
        let mut section = std::mem::take(&mut self.held);
        section.truncate(end);
        Ok(Some(section.freeze()))
    }
}

fn within(length: usize) -> Result<usize, Fault> {
    if length > MAX_SECTION {
        return Err(Fault::HeadTooLarge);
    }
    Ok(length)
}

/// Where the first empty line ends, looking at line ends from `from` on. Lines may end with a bare
/// LF (RFC 9112, section 2.2).
fn end_of_section(bytes: &[u8], from: usize) -> Option<usize> {
    if from == 0 {
        match bytes {
            [b'\r', b'\n', ..] => return Some(2),
            [b'\n', ..] => return Some(1),
            _ => {}
        }
    }
    memchr_iter(b'\n', &bytes[from..]).find_map(|at| match bytes[from + at + 1..] {
        [b'\n', ..] => Some(from + at + 2),
        [b'\r', b'\n', ..] => Some(from + at + 3),
        _ => None,
    })
}

/// Parses a whole head; `section` ends with its empty line.
pub(super) fn parse(section: &Bytes, side: Side) -> Result<Head, Fault> {
    let mut usual = [const { MaybeUninit::uninit() }; USUAL_FIELDS];
    match parse_into(section, side, &mut usual) {
        Err(httparse::Error::TooManyHeaders) => {
            let mut many = vec![MaybeUninit::uninit(); MAX_FIELDS];
            parse_into(section, side, &mut many)
        }
        parsed => parsed,
    }
    .map_err(fault)
}

/// Messages are taken as servers and clients take them: with several spaces in the first line (RFC 9112,
/// section 3); responses with folded lines, and spaces before a colon (sections 5.1 and 5.2).
fn lenient() -> httparse::ParserConfig {
    let mut config = httparse::ParserConfig::default();
    config
        .allow_multiple_spaces_in_request_line_delimiters(true)
        .allow_multiple_spaces_in_response_status_delimiters(true)
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true);
    config
}

fn parse_into<'a>(
    section: &'a Bytes,
    side: Side,
    fields: &mut [MaybeUninit<httparse::Header<'a>>],
) -> Result<Head, httparse::Error> {
    let (start, minor, parsed): (_, _, &[httparse::Header<'_>]) = match side {
        Side::Request => {
            let mut request = httparse::Request::new(&mut []);
            let status =
                lenient().parse_request_with_uninit_headers(&mut request, section, fields)?;
            if status.is_partial() {
                return Err(httparse::Error::NewLine);
            }
            let method = request.method.unwrap_or_default().to_owned();
            let target = request.path.unwrap_or_default().to_owned();
            (
                Start::Request { method, target },
                request.version,
                request.headers,
            )
        }
        Side::Response(_) => {
            let mut response = httparse::Response::new(&mut []);
            let status =
                lenient().parse_response_with_uninit_headers(&mut response, section, fields)?;
            if status.is_partial() {
                return Err(httparse::Error::NewLine);
            }
            let status = response.code.unwrap_or_default();
            (
                Start::Response { status },
                response.version,
                response.headers,
            )
        }
    };
    let version = match minor {
        Some(0) => Version::Http10,
        _ => Version::Http11,
    };
    let fields = parsed.iter().map(|header| field(section, header)).collect();
    Ok(Head {
        start,
        version,
        fields,
    })
}

/// Parses the trailer section of a chunked body, which ends with its empty line.
pub(super) fn parse_trailers(section: &Bytes) -> Result<Vec<Field>, Fault> {
    if section.len() <= 2 {
        return Ok(Vec::new());
    }
    let mut fields = vec![httparse::EMPTY_HEADER; 256];
    match httparse::parse_headers(section, &mut fields).map_err(fault)? {
        httparse::Status::Complete((_, parsed)) => {
            Ok(parsed.iter().map(|header| field(section, header)).collect())
        }
        httparse::Status::Partial => Err(Fault::Malformed("trailer section")),
    }
}

fn field(section: &Bytes, header: &httparse::Header<'_>) -> Field {
    let slice = |part: &[u8]| match part {
        [] => Bytes::new(),
        part => section.slice_ref(part),
    };
    Field {
        name: slice(header.name.as_bytes()),
        value: slice(header.value),
    }
}

fn fault(error: httparse::Error) -> Fault {
    Fault::Malformed(match error {
        httparse::Error::HeaderName => "header name",
        httparse::Error::HeaderValue => "header value",
        httparse::Error::NewLine => "line end",
        httparse::Error::Status => "status code",
        httparse::Error::Token => "method or target",
        httparse::Error::TooManyHeaders => return Fault::HeadTooLarge,
        httparse::Error::Version => "version",
    })
}

/// Whether a head may begin so: nothing in it is wrong so far.
pub(super) fn is_plausible(bytes: &[u8], side: Side) -> Result<(), Fault> {
    let mut fields = [const { MaybeUninit::uninit() }; USUAL_FIELDS];
    let parsed = match side {
        Side::Request => lenient().parse_request_with_uninit_headers(
            &mut httparse::Request::new(&mut []),
            bytes,
            &mut fields,
        ),
        Side::Response(_) => lenient().parse_response_with_uninit_headers(
            &mut httparse::Response::new(&mut []),
            bytes,
            &mut fields,
        ),
    };
    match parsed {
        Ok(_) | Err(httparse::Error::TooManyHeaders) => Ok(()),
        Err(error) => Err(fault(error)),
    }
}

/// Whether these bytes begin with a request line, and nothing in them contradicts a head.
pub fn begins_request(bytes: &[u8]) -> bool {
    let mut fields = [const { MaybeUninit::uninit() }; USUAL_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    let parsed = lenient().parse_request_with_uninit_headers(&mut request, bytes, &mut fields);
    let named = request.method.is_some() && request.path.is_some();
    named && matches!(parsed, Ok(_) | Err(httparse::Error::TooManyHeaders))
}

/// Whether these bytes begin with a status line: its status, if so.
pub fn begins_response(bytes: &[u8]) -> Option<u16> {
    first_response(bytes).map(|(status, _)| status)
}

/// Whether these bytes are interim answers and nothing else (RFC 9110, section 15.2).
pub fn is_interim(bytes: &[u8]) -> bool {
    match first_response(bytes) {
        Some((100..200, rest)) => rest.is_empty() || is_interim(rest),
        _ => false,
    }
}

/// Whether these bytes, cut out of a stream anywhere, may be of interim answers alone: nothing but
/// header lines, and behind an empty one the next interim answer's.
pub fn may_be_interim(bytes: &[u8]) -> bool {
    // The first line may be the rest of one, and the last one the start.
    let (mut is_first, mut is_behind) = (true, false);
    bytes.split_inclusive(|&byte| byte == b'\n').all(|line| {
        let is_whole = line.ends_with(b"\n");
        let is_empty = line.trim_ascii().is_empty();
        let fits = if line.starts_with(b"HTTP/1.") {
            matches!(line[7..], [] | [_] | [_, b' '] | [_, b' ', b'1', ..])
        } else if is_behind {
            is_empty || (!is_whole && b"HTTP/1.".starts_with(line))
        } else {
            is_first || !is_whole || is_empty || line.contains(&b':')
        };
        is_behind = is_empty && !is_first;
        is_first = false;
        fits
    })
}

/// A response's status, and what follows its head.
fn first_response(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let mut fields = [const { MaybeUninit::uninit() }; USUAL_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let parsed = lenient().parse_response_with_uninit_headers(&mut response, bytes, &mut fields);
    let rest = match parsed {
        Ok(httparse::Status::Complete(length)) => &bytes[length..],
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => &[],
        Err(_) => return None,
    };
    Some((response.code?, rest))
}
