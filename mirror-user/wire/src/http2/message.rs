//! One message of a stream, as it arrives.

use bytes::Bytes;
use mirror_common::tunnel::Direction;

use crate::http::Unfit;
use crate::http::body::Body;
use crate::memory::{Lease, Memory};
use crate::message::{DropReason, Field, Partial, Request, Response, Version, header};

use super::head::{Head, Unusable};

/// A request or a response.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) head: Option<Head>,
    body: Body,
    trailers: Vec<Field>,
    first_ns: Option<u64>,
    body_ns: Option<u64>,
    last_ns: u64,
    /// Whether its body's length is that of a body which is not sent.
    bodiless: bool,
}

impl Message {
    pub(super) fn new(memory: &Memory, max_body: usize, skips: bool) -> Self {
        let mut body = Body::new(memory, max_body);
        if skips {
            body.skip();
        }
        Self {
            head: None,
            body,
            trailers: Vec::new(),
            first_ns: None,
            body_ns: None,
            last_ns: 0,
            bodiless: false,
        }
    }

    /// Its head, whose fields take `size` bytes, and which passed between these moments.
    pub(super) fn begin(&mut self, head: Head, size: usize, (first_ns, last_ns): (u64, u64)) {
        self.body.pay(size);
        self.bodiless |= matches!(head, Head::Response { status: 304, .. });
        self.head = Some(head);
        if let Some(length) = self.length() {
            self.body.announce(length);
        }
        self.first_ns = Some(first_ns);
        self.last_ns = last_ns;
    }

    /// It answers HEAD.
    pub(super) fn answers_head(&mut self) {
        self.bodiless = true;
    }

    /// More of its body.
    pub(super) fn push(&mut self, data: Bytes, time_ns: u64) {
        if !data.is_empty() {
            self.body_ns.get_or_insert(time_ns);
        }
        self.last_ns = time_ns;
        let rest = self.length().unwrap_or(0);
        self.body
            .push(data, rest.saturating_sub(self.body.length()));
    }

    pub(super) fn trail(&mut self, trailers: Vec<Field>, size: usize, time_ns: u64) {
        self.body.pay(size);
        self.trailers = trailers;
        self.last_ns = time_ns;
    }

    /// Nobody needs its body any more.
    pub(super) fn forget_body(&mut self) {
        self.body.forget();
    }

    /// Why it will be unfit when it is whole, as far as that is known.
    pub(super) fn unfit(&self) -> Option<Unfit> {
        self.body.unfit()
    }

    /// What has come of a response.
    pub(super) fn partial(&self, is_whole: bool) -> Option<Partial> {
        let status = match self.head {
            Some(Head::Response { status, .. }) => Some(status),
            _ => None,
        };
        self.first_ns.map(|_| Partial {
            status,
            body_ns: self.body_ns,
            last_byte_ns: self.last_ns,
            body_bytes: self.body.length(),
            is_whole,
        })
    }

    /// How long its body is, as its head says.
    fn length(&self) -> Option<u64> {
        let fields = match self.head.as_ref()? {
            Head::Request(asking) => &asking.fields,
            Head::Response { fields, .. } => fields,
            Head::Trailers(_) => return None,
        };
        let length = header(fields, "content-length").filter(|_| !self.bodiless)?;
        std::str::from_utf8(length).ok()?.parse().ok()
    }

    /// Its head, and what else there is of it; refused where its body has another length than it says (RFC 9113,
    /// section 8.1.1).
    fn take(self, direction: Direction) -> Result<(Head, Rest), Unusable> {
        let body_bytes = self.body.length();
        let unfit = |unfit: Unfit| Unusable::from(unfit.reason(direction));
        if self.body.unfit().is_none() && self.length().is_some_and(|length| length != body_bytes) {
            return Err(Unusable {
                reason: DropReason::Malformed,
                why: Some("a body of another length than content-length"),
            });
        }
        let (body, lease) = self.body.take().map_err(unfit)?;
        let rest = Rest {
            body,
            body_bytes,
            lease,
            trailers: self.trailers,
            first_ns: self.first_ns.unwrap_or(self.last_ns),
            body_ns: self.body_ns,
            last_ns: self.last_ns,
        };
        let head = self.head.ok_or_else(|| unfit(Unfit::Incomplete))?;
        Ok((head, rest))
    }

    /// The request, once it is whole.
    pub(super) fn into_request(self) -> Result<Request, Unusable> {
        let (Head::Request(asking), rest) = self.take(Direction::Request)? else {
            return Err(Unfit::Incomplete.reason(Direction::Request).into());
        };
        let has_length = header(&asking.fields, "content-length").is_some();
        let has_body = rest.body_bytes > 0 || !rest.trailers.is_empty();
        Ok(Request {
            method: asking.method,
            target: asking.target,
            version: Version::Http2,
            headers: asking.fields,
            body: rest.body,
            chunked: has_body && !has_length,
            trailers: rest.trailers,
            first_byte_ns: rest.first_ns,
            last_byte_ns: rest.last_ns,
            late: false,
            saturated: false,
            lease: rest.lease,
        })
    }

    /// The response, once it is whole.
    pub(super) fn into_response(self) -> Result<Response, Unusable> {
        let (Head::Response { status, fields }, rest) = self.take(Direction::Response)? else {
            return Err(Unfit::Incomplete.reason(Direction::Response).into());
        };
        Ok(Response {
            status,
            headers: fields,
            body: rest.body,
            trailers: rest.trailers,
            first_byte_ns: rest.first_ns,
            body_ns: rest.body_ns,
            last_byte_ns: rest.last_ns,
            body_bytes: rest.body_bytes,
            lease: rest.lease,
        })
    }
}

/// A message but for its head.
struct Rest {
    body: Bytes,
    body_bytes: u64,
    lease: Lease,
    trailers: Vec<Field>,
    first_ns: u64,
    body_ns: Option<u64>,
    last_ns: u64,
}
