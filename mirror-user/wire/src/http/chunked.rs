//! Chunked framing (RFC 9112, section 7.1).

use bytes::Bytes;
use memchr::memchr;

use super::body::Body;
use super::head::{Section, parse_trailers};
use super::{Fault, Unfit};
use crate::message::Field;

/// The longest chunk-size line, its extensions included, in bytes.
const MAX_LINE: usize = 4 << 10;

/// Where in the framing the stream stands.
#[derive(Debug)]
pub(super) enum Chunked {
    /// In a chunk-size line, of which this much has arrived.
    Size(Vec<u8>),
    /// In a chunk's data, of which so many bytes are missing.
    Data(u64),
    /// In the line end behind a chunk's data, whose CR has arrived or has not.
    DataEnd(bool),
    /// Behind the last chunk.
    Trailers(Section),
}

impl Chunked {
    pub(super) fn new() -> Self {
        Self::Size(Vec::new())
    }

    /// Takes what belongs to the body off the front of `input`. The trailer fields, once the body
    /// has ended.
    pub(super) fn feed(
        &mut self,
        input: &mut Bytes,
        body: &mut Body,
    ) -> Result<Option<Vec<Field>>, Fault> {
        while !input.is_empty() {
            match self {
                Self::Size(line) => {
                    if let Some(size) = take_size(line, input)? {
                        *self = match size {
                            0 => Self::Trailers(Section::default()),
                            size => Self::Data(size),
                        };
                    }
                }
                Self::Data(missing) => {
                    let length = (*missing).min(input.len() as u64);
                    body.push(input.split_to(length as usize), 0);
                    *missing -= length;
                    if *missing == 0 {
                        *self = Self::DataEnd(false);
                    }
                }
                // As everywhere, a bare LF ends a line too (RFC 9112, section 2.2).
                Self::DataEnd(has_return) => match (input.split_to(1)[0], *has_return) {
                    (b'\n', _) => *self = Self::Size(Vec::new()),
                    (b'\r', false) => *has_return = true,
                    _ => return Err(Fault::Malformed("a chunk longer than it says")),
                },
                Self::Trailers(section) => {
                    if let Some(section) = section.take(input, body)? {
                        return parse_trailers(&section).map(Some);
                    }
                }
            }
        }
        Ok(None)
    }

    /// `bytes` bytes are missing. Whether it is certain where the framing goes on: inside one
    /// chunk's data it is.
    pub(super) fn skip(&mut self, bytes: u64, body: &mut Body) -> bool {
        body.spoil(Unfit::Gap);
        match self {
            Self::Data(missing) if *missing > bytes => {
                *missing -= bytes;
                true
            }
            _ => false,
        }
    }
}

/// Takes a chunk-size line; nothing while it has not ended.
fn take_size(line: &mut Vec<u8>, input: &mut Bytes) -> Result<Option<u64>, Fault> {
    let end = memchr(b'\n', input).map(|at| at + 1);
    let part = input.split_to(end.unwrap_or(input.len()));
    if line.len() + part.len() > MAX_LINE {
        return Err(Fault::Malformed("chunk-size line too long"));
    }
    if end.is_none() {
        line.extend_from_slice(&part);
        return Ok(None);
    }
    let whole: &[u8] = if line.is_empty() {
        &part
    } else {
        line.extend_from_slice(&part);
        line
    };
    // The parser knows no bare LF.
    let line = whole.strip_suffix(b"\n").unwrap_or(whole);
    let line = [line.strip_suffix(b"\r").unwrap_or(line), b"\r\n"].concat();
    // The parser takes a line without digits for a size of 0.
    let digits = line.first().is_some_and(u8::is_ascii_hexdigit);
    match httparse::parse_chunk_size(&line) {
        Ok(httparse::Status::Complete((_, size))) if digits => Ok(Some(size)),
        _ => Err(Fault::Malformed("chunk size")),
    }
}
