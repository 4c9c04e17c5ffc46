//! What travels through the agent: a mirrored segment, a request, a response, an exchange.

use std::time::Duration;

use bytes::Bytes;
use mirror_common::flow::Flow;
use mirror_common::tunnel::{Arm, Direction};

use super::memory::Lease;

/// Number of a tap, unique within one run of the agent. The capture gives it out, by the tap's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TapId(pub u32);

/// A mirrored TCP segment, as the capture hands it on.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Index of the service in the agent's config.
    pub service: usize,
    /// The tap it comes from: connections of two taps never meet.
    pub tap: TapId,
    /// The connection.
    pub flow: Flow,
    /// Which way the segment went.
    pub direction: Direction,
    /// Which version answers the connection.
    pub arm: Arm,
    /// When the tap saw it, in nanoseconds of one monotonic clock per tap.
    pub time_ns: u64,
    /// TCP's sequence number of the payload's first byte (of the SYN, where there is one).
    pub sequence: u32,
    /// TCP's acknowledgement number; only meaningful with [`mirror_common::packet::ACK`].
    pub acknowledgement: u32,
    /// TCP's flags, see [`mirror_common::packet`].
    pub flags: u8,
    /// What else its header says.
    pub extras: Extras,
    /// The payload.
    pub payload: Bytes,
}

/// What few segments' headers say, and what decides how the others are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extras {
    /// By how many bits this end's windows are to be shifted (RFC 7323): a SYN's.
    pub window_scale: Option<u8>,
    /// Part of an MPTCP connection: a SYN's.
    pub multipath: Option<Multipath>,
    /// Whether bytes of it are urgent.
    pub is_urgent: bool,
    /// Its checksum is wrong, and is not one that hardware was to finish.
    pub is_doubtful: bool,
}

impl Extras {
    /// The same where checksums tell nothing.
    pub const fn without_doubt(self) -> Self {
        Self {
            is_doubtful: false,
            ..self
        }
    }
}

/// MPTCP's options of a handshake (RFC 8684).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Multipath {
    /// The first subflow; with the server's key its token is known.
    Capable {
        /// Names the connection in the handshakes of further subflows.
        token: Option<u32>,
    },
    /// A further subflow, of the connection with this token; a SYN-ACK does not repeat it.
    Join {
        /// The connection's.
        token: Option<u32>,
    },
}

/// Version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
}

/// A header or trailer field, name and value as they were on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// The name, in the sender's case.
    pub name: Bytes,
    /// The value without surrounding white space.
    pub value: Bytes,
}

impl Field {
    /// A field of this name and value.
    pub fn of(name: &str, value: &str) -> Self {
        Self {
            name: Bytes::copy_from_slice(name.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
        }
    }
}

/// A whole request, rebuilt.
#[derive(Debug)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The request target, as on the wire; of HTTP/2 `:path`.
    pub target: String,
    /// HTTP's version.
    pub version: Version,
    /// Header fields in their order; of HTTP/2 with `:authority` as `host`.
    pub headers: Vec<Field>,
    /// The body, without chunk framing.
    pub body: Bytes,
    /// Whether the body came in chunks, or in HTTP/2 without a length.
    pub chunked: bool,
    /// Trailer fields of such a body.
    pub trailers: Vec<Field>,
    /// When its first byte passed the tap.
    pub first_byte_ns: u64,
    /// When its last byte passed the tap.
    pub last_byte_ns: u64,
    /// Whether it waited at the tap, and came with all that waited there: how long the shadow takes for it
    /// says nothing, since it gets them all at once.
    pub late: bool,
    /// Whether it had to wait until the shadow could be asked at all, since as many exchanges went on with it
    /// as may: how long it takes says nothing of its version then.
    pub saturated: bool,
    /// The memory it occupies.
    pub lease: Lease,
}

impl Request {
    /// The same once more, on a lease of its own; nothing where memory has no room for it.
    pub fn again(&self) -> Option<Self> {
        Some(Self {
            method: self.method.clone(),
            target: self.target.clone(),
            headers: self.headers.clone(),
            body: self.body.clone(),
            trailers: self.trailers.clone(),
            lease: self.lease.sibling(self.lease.bytes())?,
            ..*self
        })
    }
}

/// A whole response, rebuilt or received.
#[derive(Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Header fields in their order.
    pub headers: Vec<Field>,
    /// The body, without chunk framing.
    pub body: Bytes,
    /// Trailer fields.
    pub trailers: Vec<Field>,
    /// When its first byte passed the tap, or came from the shadow (interim 1xx answers apart).
    pub first_byte_ns: u64,
    /// When the first byte of its body did; nothing where it has none.
    pub body_ns: Option<u64>,
    /// When its last byte did.
    pub last_byte_ns: u64,
    /// How many bytes its body has, without chunk framing, whether they are kept or not.
    pub body_bytes: u64,
    /// The memory it occupies.
    pub lease: Lease,
}

impl Response {
    /// Whether its body is here: that of an answer is let go where there is nothing to hold it against.
    pub fn is_kept(&self) -> bool {
        !self.body.is_empty() || self.body_bytes == 0
    }

    /// From the last byte of the request, at `request_ns`, to the first of this answer; one that
    /// began before its request was whole took no time.
    pub fn first_byte_after(&self, request_ns: u64) -> Duration {
        Duration::from_nanos(self.first_byte_ns.saturating_sub(request_ns))
    }
}

/// Looks a header field up; names are compared without case. The first one counts.
pub fn header<'a>(headers: &'a [Field], name: &str) -> Option<&'a [u8]> {
    headers
        .iter()
        .find(|field| field.name.eq_ignore_ascii_case(name.as_bytes()))
        .map(|field| &field.value[..])
}

/// Number of an exchange, unique within one run of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExchangeId(pub u64);

/// What became of a request that was seen, when it was not compared. Label `outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DropReason {
    /// The connection was joined in its middle: its first certain boundary came later.
    MidStream,
    /// A field of it was sent before its HTTP/2 connection was joined, and is only referred to since.
    JoinedLate,
    /// Bytes of the request never arrived.
    RequestGap,
    /// Bytes of production's response never arrived.
    ResponseGap,
    /// The connection ended, or fell silent, before the request was whole.
    RequestIncomplete,
    /// The connection ended, or fell silent, before production's response was whole.
    ResponseIncomplete,
    /// Copies of the same bytes differ, and it is not known which production took.
    Conflict,
    /// A byte was urgent: it is not known whether the server took it out of the stream.
    Urgent,
    /// A part of an MPTCP connection with several subflows, each of which carries some of the bytes.
    Multipath,
    /// Not HTTP/1, or HTTP/1 that contradicts itself.
    Malformed,
    /// TLS: it ends after the hook.
    Tls,
    /// HTTP/2 that is not read, gRPC with it; or in one that is, an answer that the server promised.
    Http2,
    /// The connection was upgraded (WebSocket and the like) and left alone.
    Upgrade,
    /// A body larger than the service's limit.
    TooLarge,
    /// A head, or trailers, larger than HTTP/1 servers take.
    HeadTooLarge,
    /// It asked for `100 Continue`, and responses are not copied: whether its body came is not known.
    Expect,
    /// The agent's memory is used up.
    Memory,
    /// The service's queue is full.
    QueueFull,
    /// The agent's host had no descriptor, or no port, for a connection to the shadow.
    AgentLimit,
    /// The service's file leaves it out.
    Excluded,
    /// A request that is itself shadow traffic.
    Loop,
    /// Too many connections at once.
    TooManyConnections,
    /// The agent stopped before the exchange was complete.
    Shutdown,
    /// The shadow was asked, and the tap copies requests alone: there is no answer of production's
    /// to hold the shadow's against.
    NotCompared,
}

impl DropReason {
    /// Every reason.
    pub const ALL: &'static [Self] = &[
        Self::MidStream,
        Self::JoinedLate,
        Self::RequestGap,
        Self::ResponseGap,
        Self::RequestIncomplete,
        Self::ResponseIncomplete,
        Self::Conflict,
        Self::Urgent,
        Self::Multipath,
        Self::Malformed,
        Self::Tls,
        Self::Http2,
        Self::Upgrade,
        Self::TooLarge,
        Self::HeadTooLarge,
        Self::Expect,
        Self::Memory,
        Self::QueueFull,
        Self::AgentLimit,
        Self::Excluded,
        Self::Loop,
        Self::TooManyConnections,
        Self::Shutdown,
        Self::NotCompared,
    ];

    /// The value of the `outcome` label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::MidStream => "mid_stream",
            Self::JoinedLate => "joined_late",
            Self::RequestGap => "request_gap",
            Self::ResponseGap => "response_gap",
            Self::RequestIncomplete => "request_incomplete",
            Self::ResponseIncomplete => "response_incomplete",
            Self::Conflict => "conflict",
            Self::Urgent => "urgent",
            Self::Multipath => "multipath",
            Self::Malformed => "malformed",
            Self::Tls => "tls",
            Self::Http2 => "http2",
            Self::Upgrade => "upgrade",
            Self::TooLarge => "too_large",
            Self::HeadTooLarge => "head_too_large",
            Self::Expect => "expect",
            Self::Memory => "memory",
            Self::QueueFull => "queue_full",
            Self::AgentLimit => "agent_limit",
            Self::Excluded => "excluded",
            Self::Loop => "loop",
            Self::TooManyConnections => "too_many_connections",
            Self::Shutdown => "shutdown",
            Self::NotCompared => "not_compared",
        }
    }
}

/// How an exchange ended that was not whole: what its client knows of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// The side that ended the connection first, or whose bytes cannot be read; nothing where it was
    /// neither, as with silence.
    pub by: Option<Direction>,
    /// What came of the response, interim (1xx) ones apart.
    pub response: Option<Partial>,
}

/// What of an exchange cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The client's end.
    pub client: std::net::SocketAddr,
    /// Whose bytes they are, where that is known.
    pub side: Option<Direction>,
    /// What is wrong with them.
    pub why: &'static str,
}

/// What came of a response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Partial {
    /// Its status, once its head was whole.
    pub status: Option<u16>,
    /// When the first byte of its body passed.
    pub body_ns: Option<u64>,
    /// When its last byte, so far, passed.
    pub last_byte_ns: u64,
    /// How many bytes of its body came.
    pub body_bytes: u64,
    /// Whether all of it came: it was the request that could not be told.
    pub is_whole: bool,
}

/// Why there is no answer of the shadow's: an exchange that is compared, with verdict `error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ShadowError {
    /// The connection was refused, or nothing is there.
    Connect,
    /// No whole answer within the service's timeout.
    Timeout,
    /// The connection ended before the answer was whole.
    Closed,
    /// The answer is not HTTP/1.
    Malformed,
    /// The answer is larger than the service's limit, or than the agent's memory.
    TooLarge,
}

impl ShadowError {
    /// The word for it in records and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Closed => "closed",
            Self::Malformed => "malformed",
            Self::TooLarge => "too_large",
        }
    }
}

/// Everything known of one request: what the comparison judges and the record keeps.
#[derive(Debug)]
pub struct Exchange {
    /// Ours; sent to the shadow as `x-modelmirror-id`.
    pub id: uuid::Uuid,
    /// When the agent saw the request, wall clock.
    pub time: jiff::Timestamp,
    /// The client's end.
    pub client: std::net::SocketAddr,
    /// The request.
    pub request: Request,
    /// Which version answered in production.
    pub arm: Arm,
    /// That version's name, as the tap says.
    pub production_version: String,
    /// Production's answer.
    pub production: Response,
    /// When the shadow's request was fully written, on the clock of the shadow's answer.
    pub shadow_request_ns: u64,
    /// The shadow's answer, or why there is none.
    pub shadow: Result<Response, ShadowError>,
}

impl Exchange {
    /// From the request's last byte to the first of production's answer.
    pub fn production_first_byte(&self) -> Duration {
        self.production.first_byte_after(self.request.last_byte_ns)
    }

    /// The same of the shadow's answer, where there is one.
    pub fn shadow_first_byte(&self) -> Option<Duration> {
        let shadow = self.shadow.as_ref().ok()?;
        Some(shadow.first_byte_after(self.shadow_request_ns))
    }
}
