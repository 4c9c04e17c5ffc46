//! What stands before each frame's payload (RFC 9113, sections 4.1 and 6).

use crate::http::MAX_SECTION;

/// What stands before each frame's payload.
pub(in crate::http2) const HEADER: usize = 9;

/// The largest payload before anybody says otherwise (section 6.5.2).
pub(in crate::http2) const DEFAULT_SIZE: u32 = 1 << 14;

/// The largest payload there can be.
pub(in crate::http2) const MAX_SIZE: u32 = (1 << 24) - 1;

/// The most of a frame's payload that is kept at once: padding and priority beside a part of a block.
const MAX_HELD: usize = MAX_SECTION + 256 + 5;

pub(in crate::http2) mod flag {
    pub(in crate::http2) const END_STREAM: u8 = 0x1;
    pub(in crate::http2) const ACK: u8 = 0x1;
    pub(in crate::http2) const END_HEADERS: u8 = 0x4;
    pub(in crate::http2) const PADDED: u8 = 0x8;
    pub(in crate::http2) const PRIORITY: u8 = 0x20;
}

/// A frame's type (section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http2) enum Kind {
    Data,
    Headers,
    Priority,
    Reset,
    Settings,
    PushPromise,
    Ping,
    GoAway,
    WindowUpdate,
    Continuation,
    /// Of an extension: passed over (section 5.5).
    Other,
}

/// A frame's first nine bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http2) struct Header {
    pub(in crate::http2) length: u32,
    pub(in crate::http2) kind: Kind,
    pub(in crate::http2) flags: u8,
    /// Without the reserved bit.
    pub(in crate::http2) stream: u32,
}

impl Header {
    pub(in crate::http2) fn parse(bytes: [u8; HEADER]) -> Self {
        let [a, b, c, kind, flags, id @ ..] = bytes;
        Self {
            length: u32::from_be_bytes([0, a, b, c]),
            kind: match kind {
                0 => Kind::Data,
                1 => Kind::Headers,
                2 => Kind::Priority,
                3 => Kind::Reset,
                4 => Kind::Settings,
                5 => Kind::PushPromise,
                6 => Kind::Ping,
                7 => Kind::GoAway,
                8 => Kind::WindowUpdate,
                9 => Kind::Continuation,
                _ => Kind::Other,
            },
            flags,
            stream: u32::from_be_bytes(id) & (u32::MAX >> 1),
        }
    }

    pub(in crate::http2) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// What is wrong with it whatever its payload says (section 6).
    pub(super) fn flaw(&self) -> Option<&'static str> {
        let is_of_stream = self.stream != 0;
        let (of_stream, fits) = match self.kind {
            Kind::Data | Kind::Headers | Kind::PushPromise | Kind::Continuation => {
                (Some(true), true)
            }
            Kind::Priority => (Some(true), self.length == 5),
            Kind::Reset => (Some(true), self.length == 4),
            Kind::Settings if self.has(flag::ACK) => (Some(false), self.length == 0),
            Kind::Settings => (Some(false), self.length.is_multiple_of(6)),
            Kind::Ping => (Some(false), self.length == 8),
            Kind::GoAway => (Some(false), self.length >= 8),
            Kind::WindowUpdate => (None, self.length == 4),
            Kind::Other => (None, true),
        };
        if !fits {
            return Some("a frame of a wrong length");
        }
        let is_misplaced = of_stream.is_some_and(|of_stream| of_stream != is_of_stream);
        is_misplaced.then_some("a frame on a wrong stream")
    }

    /// How much of the payload has to be kept until all of it is there.
    pub(super) fn kept(&self) -> usize {
        let length = self.length as usize;
        match self.kind {
            Kind::Headers | Kind::PushPromise | Kind::Continuation if length > MAX_HELD => 0,
            Kind::Headers | Kind::PushPromise | Kind::Continuation | Kind::Reset => length,
            Kind::Settings => length.min(6 << 10),
            Kind::GoAway => 8,
            _ => 0,
        }
    }
}
