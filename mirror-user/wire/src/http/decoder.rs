//! One message, from its first byte to its last.

use bytes::Bytes;

use super::body::Body;
use super::chunked::Chunked;
use super::head::{self, Asked, Framing, Head, Section, Side, Start};
use super::{Fault, Unfit, recognise};
use crate::memory::Memory;
use crate::message::{Field, Partial, Request, Response};

/// How far a message has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// All input was taken, and the message goes on.
    More,
    /// The message is whole; what is left of the input follows it.
    Complete,
}

/// Decodes one message.
///
/// [`Decoder::feed`] until [`Step::Complete`], or [`Decoder::end`] where the stream ends; then
/// [`Decoder::into_request`] or [`Decoder::into_response`].
#[derive(Debug)]
pub struct Decoder {
    side: Side,
    phase: Phase,
    head: Option<Head>,
    body: Body,
    trailers: Vec<Field>,
    body_begun: bool,
    first_byte_ns: Option<u64>,
    body_ns: Option<u64>,
    last_byte_ns: u64,
}

#[derive(Debug)]
enum Phase {
    Head(Section),
    /// So many bytes of the body are missing.
    Length(u64),
    Chunked(Chunked),
    Close,
    Complete,
}

impl Decoder {
    /// Decodes a request with a body of at most `max_body` bytes.
    pub fn request(memory: &Memory, max_body: usize) -> Self {
        Self::new(Side::Request, memory, max_body)
    }

    /// Decodes the response to a request with this method, with a body of at most `max_body`
    /// bytes.
    pub fn response(method: &str, memory: &Memory, max_body: usize) -> Self {
        Self::response_to(Asked::by(method), memory, max_body)
    }

    /// Decodes the response to such a request, with a body of at most `max_body` bytes.
    pub fn response_to(asked: Asked, memory: &Memory, max_body: usize) -> Self {
        Self::new(Side::Response(asked), memory, max_body)
    }

    fn new(side: Side, memory: &Memory, max_body: usize) -> Self {
        Self {
            side,
            phase: Phase::Head(Section::default()),
            head: None,
            body: Body::new(memory, max_body),
            trailers: Vec::new(),
            body_begun: false,
            first_byte_ns: None,
            body_ns: None,
            last_byte_ns: 0,
        }
    }

    /// The same, with the body framed and not kept, whatever its size.
    pub fn without_body(mut self) -> Self {
        self.body.skip();
        self
    }

    /// Nobody needs the body any more: what has come of it is forgotten, the rest is framed.
    pub fn forget_body(&mut self) {
        self.body.forget();
    }

    /// The head, once it is whole; of a response the final one.
    pub fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// The status of a response, once its head is whole.
    pub fn status(&self) -> Option<u16> {
        match self.head.as_ref()?.start {
            Start::Response { status } => Some(status),
            Start::Request { .. } => None,
        }
    }

    /// Whether a response says that the connection goes on in this protocol.
    pub fn is_upgrade_to(&self, protocol: &str) -> bool {
        let head = self.head.as_ref();
        head.is_some_and(|head| head.lists("upgrade", protocol))
    }

    /// What has come of a response, interim ones apart.
    pub fn partial(&self) -> Option<Partial> {
        self.has_begun().then(|| Partial {
            status: self.status(),
            body_ns: self.body_ns,
            last_byte_ns: self.last_byte_ns,
            body_bytes: self.body.length(),
            is_whole: self.is_complete(),
        })
    }

    /// Whether what has arrived of a response is certainly not of an interim one.
    pub fn is_final(&self) -> bool {
        match &self.phase {
            Phase::Head(section) => !section.may_be_interim(),
            _ => true,
        }
    }

    /// Whether a byte of the message has arrived. Empty lines before it are not of it.
    pub fn has_begun(&self) -> bool {
        self.first_byte_ns.is_some()
    }

    /// Whether the head is whole, and a body is to come of which nothing has arrived.
    pub fn awaits_body(&self) -> bool {
        self.head.is_some() && !self.body_begun && !self.is_complete()
    }

    /// Whether the message is whole.
    pub fn is_complete(&self) -> bool {
        matches!(self.phase, Phase::Complete)
    }

    /// Why the message will be unfit when it is whole, as far as that is known.
    pub fn unfit(&self) -> Option<Unfit> {
        self.body.unfit()
    }

    /// Whether the connection can carry another message after this one (RFC 9112, section 9.3).
    pub fn is_persistent(&self) -> bool {
        let close = matches!(self.phase, Phase::Close);
        !close && self.head.as_ref().is_some_and(Head::is_persistent)
    }

    /// Takes what belongs to the message off the front of `input`, which passed at `time_ns`.
    ///
    /// After an error the stream cannot be framed any further.
    pub fn feed(&mut self, input: &mut Bytes, time_ns: u64) -> Result<Step, Fault> {
        while !input.is_empty() && !self.is_complete() {
            self.advance(input, time_ns)?;
        }
        Ok(if self.is_complete() {
            Step::Complete
        } else {
            Step::More
        })
    }

    fn advance(&mut self, input: &mut Bytes, time_ns: u64) -> Result<(), Fault> {
        match &mut self.phase {
            Phase::Head(_) => return self.feed_head(input, time_ns),
            Phase::Length(missing) => {
                let length = (*missing).min(input.len() as u64);
                *missing -= length;
                self.body.push(input.split_to(length as usize), *missing);
                if *missing == 0 {
                    self.phase = Phase::Complete;
                }
            }
            Phase::Chunked(chunked) => {
                if let Some(trailers) = chunked.feed(input, &mut self.body)? {
                    self.trailers = trailers;
                    self.phase = Phase::Complete;
                }
            }
            Phase::Close => self.body.push(input.split_to(input.len()), 0),
            Phase::Complete => {}
        }
        self.body_begun = true;
        if self.body.length() > 0 {
            self.body_ns.get_or_insert(time_ns);
        }
        self.last_byte_ns = time_ns;
        Ok(())
    }

    fn feed_head(&mut self, input: &mut Bytes, time_ns: u64) -> Result<(), Fault> {
        let Phase::Head(section) = &mut self.phase else {
            return Ok(());
        };
        if section.is_empty() {
            // Empty lines before a message are skipped (RFC 9112, section 2.2).
            let blank = input
                .iter()
                .take_while(|byte| matches!(byte, b'\r' | b'\n'));
            let _ = input.split_to(blank.count());
            if input.is_empty() {
                return Ok(());
            }
            self.first_byte_ns = Some(time_ns);
        }
        self.last_byte_ns = time_ns;
        let first = if section.is_empty() {
            input.clone()
        } else {
            Bytes::new()
        };
        match section.take(input, &mut self.body)? {
            Some(section) => self.finish_head(&section),
            None if first.is_empty() => Ok(()),
            // What is not HTTP/1 is told at once, not when its head grows too large.
            None => match recognise(&first) {
                Some(fault) => Err(fault),
                None => head::is_plausible(&first, self.side),
            },
        }
    }

    fn finish_head(&mut self, section: &Bytes) -> Result<(), Fault> {
        if let Some(fault) = recognise(section) {
            return Err(fault);
        }
        let head = head::parse(section, self.side)?;
        // An interim answer: the final one follows (RFC 9110, section 15.2).
        if is_interim(&head) {
            self.phase = Phase::Head(Section::default());
            self.first_byte_ns = None;
            return Ok(());
        }
        let (framing, coded) = head.framing(self.side)?;
        if coded {
            self.body.spoil(Unfit::Coding);
        }
        self.head = Some(head);
        self.phase = match framing {
            Framing::Length(0) => Phase::Complete,
            Framing::Length(length) => {
                self.body.announce(length);
                Phase::Length(length)
            }
            Framing::Chunked => Phase::Chunked(Chunked::new()),
            Framing::Close => Phase::Close,
        };
        Ok(())
    }

    /// `bytes` bytes of the stream are missing here. Whether it is certain where the message
    /// goes on: then it is framed to its end, but unfit.
    pub fn skip(&mut self, bytes: u64) -> bool {
        match &mut self.phase {
            Phase::Length(missing) if *missing >= bytes => {
                *missing -= bytes;
                self.body.spoil(Unfit::Gap);
                if *missing == 0 {
                    self.phase = Phase::Complete;
                }
                true
            }
            Phase::Chunked(chunked) => chunked.skip(bytes, &mut self.body),
            Phase::Close => {
                self.body.spoil(Unfit::Gap);
                true
            }
            _ => false,
        }
    }

    /// What comes of the message is not wanted any more; it is framed to its end.
    pub fn abandon(&mut self) {
        self.body.spoil(Unfit::Incomplete);
    }

    /// The stream has ended in good order. A response whose end that is, is whole now.
    pub fn end(&mut self) -> Result<(), Fault> {
        match self.phase {
            Phase::Close => {
                self.phase = Phase::Complete;
                Ok(())
            }
            Phase::Complete => Ok(()),
            _ => Err(Fault::Incomplete),
        }
    }

    /// The request, once it is whole.
    pub fn into_request(self) -> Result<Request, Unfit> {
        let (true, Some(head)) = (matches!(self.phase, Phase::Complete), self.head) else {
            return Err(Unfit::Incomplete);
        };
        let Start::Request { method, target } = head.start else {
            return Err(Unfit::Incomplete);
        };
        let chunked = head.fields.iter().any(is_transfer_encoding);
        let (body, lease) = self.body.take()?;
        Ok(Request {
            method,
            target,
            version: head.version,
            headers: head.fields,
            body,
            chunked,
            trailers: self.trailers,
            first_byte_ns: self.first_byte_ns.unwrap_or(self.last_byte_ns),
            last_byte_ns: self.last_byte_ns,
            late: false,
            saturated: false,
            lease,
        })
    }

    /// The response, once it is whole.
    pub fn into_response(self) -> Result<Response, Unfit> {
        let (true, Some(head)) = (matches!(self.phase, Phase::Complete), self.head) else {
            return Err(Unfit::Incomplete);
        };
        let Start::Response { status } = head.start else {
            return Err(Unfit::Incomplete);
        };
        let body_bytes = self.body.length();
        let (body, lease) = self.body.take()?;
        Ok(Response {
            status,
            headers: head.fields,
            body,
            trailers: self.trailers,
            first_byte_ns: self.first_byte_ns.unwrap_or(self.last_byte_ns),
            body_ns: self.body_ns,
            last_byte_ns: self.last_byte_ns,
            body_bytes,
            lease,
        })
    }
}

fn is_transfer_encoding(field: &Field) -> bool {
    field.name.eq_ignore_ascii_case(b"transfer-encoding")
}

/// 1xx but for 101, after which HTTP/1 has ended.
fn is_interim(head: &Head) -> bool {
    matches!(head.start, Start::Response { status } if (100..200).contains(&status) && status != 101)
}
