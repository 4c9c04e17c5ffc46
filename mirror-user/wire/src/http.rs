//! HTTP/1.0 and 1.1 (RFC 9112) out of a byte stream: one [`Decoder`] a message.
//!
//! The same decoder reads the client's requests and production's responses off the wire, and the
//! shadow's responses off a socket. It knows no clock and no socket; "more bytes are needed" is a
//! normal result. A message that cannot be kept (its body is too large, memory is used up, bytes
//! of it are missing) is framed to its end all the same, so that the next one is found.

pub(crate) mod body;
mod chunked;
mod decoder;
mod head;
mod proxy;

use mirror_common::tunnel::Direction;

use super::message::DropReason;

pub use decoder::{Decoder, Step};
pub use head::{Asked, Head, Start, begins_request, begins_response, is_interim, may_be_interim};
pub use proxy::{Preface, preface};

/// What a client that knows that its server speaks HTTP/2 begins with (RFC 9113, section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The largest head or trailer section, in bytes.
pub const MAX_SECTION: usize = 64 << 10;

/// The most header fields of one message.
pub const MAX_FIELDS: usize = 4096;

/// Why a stream cannot be framed any further: where the next message starts is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not HTTP/1, or HTTP/1 that contradicts itself.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// A head or trailer section beyond [`MAX_SECTION`] or [`MAX_FIELDS`].
    #[error("a head larger than {MAX_SECTION} bytes or {MAX_FIELDS} fields")]
    HeadTooLarge,
    /// A TLS record.
    #[error("TLS")]
    Tls,
    /// HTTP/2's connection preface (RFC 9113, section 3.4).
    #[error("HTTP/2")]
    Http2,
    /// The agent's memory does not even hold the head.
    #[error("the agent's memory is used up")]
    Memory,
    /// The stream ended inside a message.
    #[error("the connection ended inside a message")]
    Incomplete,
}

/// Why a message that was framed to its end cannot be handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Its body is larger than the limit.
    #[error("the body is larger than max_body")]
    TooLarge,
    /// The agent's memory is used up.
    #[error("the agent's memory is used up")]
    Memory,
    /// Bytes of it never arrived.
    #[error("bytes of it never arrived")]
    Gap,
    /// Its body has a transfer coding besides `chunked` (RFC 9112, section 7).
    #[error("a transfer coding besides chunked")]
    Coding,
    /// The decoder has not come to its end.
    #[error("not complete")]
    Incomplete,
}

impl Fault {
    /// What of a malformed message is wrong.
    pub const fn why(self) -> Option<&'static str> {
        match self {
            Self::Malformed(why) => Some(why),
            _ => None,
        }
    }

    /// The drop reason of an exchange whose message in this direction shows this.
    pub const fn reason(self, direction: Direction) -> DropReason {
        let request = matches!(direction, Direction::Request);
        match self {
            Self::Malformed(_) => DropReason::Malformed,
            Self::HeadTooLarge => DropReason::HeadTooLarge,
            Self::Tls => DropReason::Tls,
            Self::Http2 => DropReason::Http2,
            Self::Memory => DropReason::Memory,
            Self::Incomplete if request => DropReason::RequestIncomplete,
            Self::Incomplete => DropReason::ResponseIncomplete,
        }
    }
}

impl Unfit {
    /// The drop reason of an exchange whose message in this direction is unfit so.
    pub const fn reason(self, direction: Direction) -> DropReason {
        let request = matches!(direction, Direction::Request);
        match self {
            Self::TooLarge => DropReason::TooLarge,
            Self::Memory => DropReason::Memory,
            Self::Gap if request => DropReason::RequestGap,
            Self::Gap => DropReason::ResponseGap,
            Self::Coding => DropReason::Malformed,
            Self::Incomplete if request => DropReason::RequestIncomplete,
            Self::Incomplete => DropReason::ResponseIncomplete,
        }
    }
}

/// Names what does not speak HTTP/1 by a stream's first bytes.
///
/// HTTP/2's preface is known here before anything of it was taken for HTTP/1: its connection is
/// [`http2`](crate::http2)'s then, where that is asked for.
fn recognise(first: &[u8]) -> Option<Fault> {
    match first {
        // A handshake record of SSL 3.0 or TLS (RFC 8446, section 5.1).
        [0x16, 0x03, ..] => Some(Fault::Tls),
        _ if first.len() >= 14 && (first.starts_with(PREFACE) || PREFACE.starts_with(first)) => {
            Some(Fault::Http2)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
