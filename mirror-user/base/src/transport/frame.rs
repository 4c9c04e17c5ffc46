//! The tap protocol: frames in both directions of one connection. Pure.
//!
//! The tap says [`PREFACE`] and [`Hello`]; the agent answers [`Welcome`], or why it refuses. Then the
//! tap sends its rings' bytes in rounds, and once in a while a report; the agent says how far it has
//! got, and echoes reports. All numbers are little-endian.

use mirror_api::Transport;
use mirror_common::record;
use serde::{Deserialize, Serialize};

/// What a tap says first.
pub const PREFACE: [u8; 8] = *b"mmirror1";

/// TLS's application protocol (RFC 7301) of these frames.
pub const ALPN_TAP: &[u8] = b"modelmirror/1";

/// TLS's application protocol of the agent's api.
pub const ALPN_API: &[u8] = b"http/1.1";

/// Version of the protocol.
pub const VERSION: u32 = 1;

/// A frame's header, in bytes.
pub const HEADER_LENGTH: usize = 24;

/// The longest body of a frame, in bytes.
pub const LONGEST_BODY: usize = 1 << 20;

/// The bytes that one round may carry for one lane.
pub const LONGEST_STRETCH: usize = LONGEST_BODY - record::LONGEST_RECORD as usize;

/// Lanes that one tap may have: those of 1,024 CPUs.
pub const MAX_LANES: usize = 1024 * record::LANES as usize;

/// What a frame is.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Tap: who it is, as [`Hello`].
    Hello = 1,
    /// Tap: bytes of a lane's ring, from `position` on.
    Records = 2,
    /// Tap: the end of a round.
    Round = 3,
    /// Tap: a [`mirror_api::tap_report::TapReport`].
    Report = 4,
    /// Tap: it stops for good.
    Bye = 5,
    /// Agent: where to go on, as [`Welcome`].
    Welcome = 16,
    /// Agent: how far it has got, as [`Positions`].
    Ack = 17,
    /// Agent: a report has been taken in.
    Echo = 18,
    /// Agent: why it closes, as [`Refused`].
    Refused = 19,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Hello,
        Self::Records,
        Self::Round,
        Self::Report,
        Self::Bye,
        Self::Welcome,
        Self::Ack,
        Self::Echo,
        Self::Refused,
    ];

    fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// Of [`Kind::Records`]: the lane's ring holds more than this.
    pub more: bool,
    /// Of [`Kind::Records`]: whose ring.
    pub lane: u16,
    /// Bytes that follow.
    pub length: u32,
    /// Of [`Kind::Records`]: where the body's first byte lies. Of [`Kind::Report`] and [`Kind::Echo`]:
    /// the report's number.
    pub position: u64,
    /// Of [`Kind::Round`]: every older record was sent, on the tap's monotonic clock, in nanoseconds.
    /// Of [`Kind::Report`] and [`Kind::Echo`]: when the report was sent.
    pub until_ns: u64,
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// A kind that is not known.
    #[error("a frame of the unknown kind {0}")]
    UnknownKind(u8),
    /// Longer than [`LONGEST_BODY`].
    #[error("a frame of {0} bytes")]
    TooLong(u32),
}

const FLAG_MORE: u8 = 1;

impl Header {
    /// A frame of this kind, with nothing else in its header.
    pub fn new(kind: Kind, length: usize) -> Self {
        Self {
            kind,
            more: false,
            lane: 0,
            length: length as u32,
            position: 0,
            until_ns: 0,
        }
    }

    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; HEADER_LENGTH] {
        let mut bytes = [0; HEADER_LENGTH];
        bytes[0] = self.kind as u8;
        bytes[1] = u8::from(self.more) * FLAG_MORE;
        bytes[2..4].copy_from_slice(&self.lane.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.length.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.position.to_le_bytes());
        bytes[16..].copy_from_slice(&self.until_ns.to_le_bytes());
        bytes
    }

    /// Takes a header apart.
    ///
    /// # Errors
    /// When it is none.
    pub fn decode(bytes: &[u8; HEADER_LENGTH]) -> Result<Self, Broken> {
        let [kind, flags, c0, c1, l0, l1, l2, l3, rest @ ..] = *bytes;
        let [p0, p1, p2, p3, p4, p5, p6, p7, until @ ..] = rest;
        let kind = Kind::of(kind).ok_or(Broken::UnknownKind(kind))?;
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        if length as usize > LONGEST_BODY {
            return Err(Broken::TooLong(length));
        }
        Ok(Self {
            kind,
            more: flags & FLAG_MORE != 0,
            lane: u16::from_le_bytes([c0, c1]),
            length,
            position: u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7]),
            until_ns: u64::from_le_bytes(until),
        })
    }
}

/// A frame's header, its body, and the length of both; nothing where bytes are missing.
pub type Split<'a> = Option<(Header, &'a [u8], usize)>;

/// A whole frame at the beginning of `bytes`: its header, its body, and the length of both; nothing
/// when more bytes have to come first.
///
/// # Errors
/// When no further byte could make it one.
pub fn split(bytes: &[u8]) -> Result<Split<'_>, Broken> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LENGTH>() else {
        return Ok(None);
    };
    let header = Header::decode(header)?;
    let length = header.length as usize;
    Ok(rest
        .get(..length)
        .map(|body| (header, body, HEADER_LENGTH + length)))
}

/// A frame with a body in JSON.
pub fn message(kind: Kind, body: &impl Serialize) -> Vec<u8> {
    // Strings and numbers: there is nothing that JSON could refuse.
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut bytes = Header::new(kind, body.len()).encode().to_vec();
    bytes.extend_from_slice(&body);
    bytes
}

/// A place in a lane's ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The lane's number.
    pub lane: u16,
    /// Bytes since the ring was made.
    pub position: u64,
}

/// Who a tap is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u32,
    /// The program's version.
    pub program: String,
    /// Another one = another life of the rings: positions and numbers start anew.
    pub boot: u64,
    /// How copies travel.
    pub transport: Transport,
    /// The oldest byte that each ring still has; lanes that have copied nothing are left out.
    #[serde(default)]
    pub lanes: Vec<Position>,
    /// What datagrams are signed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac_key: Option<[u64; 2]>,
}

/// An agent's consent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// [`VERSION`].
    pub version: u32,
    /// The program's version.
    pub program: String,
    /// The tap's number, which its datagrams name.
    pub tap: u32,
    /// The tap's name in the agent's config.
    pub name: String,
    /// Where to go on, of the rings of this boot that the agent knows.
    #[serde(default)]
    pub lanes: Vec<Position>,
}

/// Why an agent closes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// For a person.
    pub reason: String,
}

/// The body of [`Kind::Ack`].
pub struct Positions;

impl Positions {
    /// A whole frame that acknowledges everything below these positions.
    pub fn encode(positions: &[Position]) -> Vec<u8> {
        let mut bytes = Header::new(Kind::Ack, positions.len() * 16)
            .encode()
            .to_vec();
        for Position { lane, position } in positions {
            bytes.extend_from_slice(&u64::from(*lane).to_le_bytes());
            bytes.extend_from_slice(&position.to_le_bytes());
        }
        bytes
    }

    /// What the body of such a frame says; what is not whole is left out.
    pub fn decode(body: &[u8]) -> impl Iterator<Item = Position> {
        body.as_chunks::<16>().0.iter().map(|entry| {
            let [c0, c1, _, _, _, _, _, _, position @ ..] = *entry;
            Position {
                lane: u16::from_le_bytes([c0, c1]),
                position: u64::from_le_bytes(position),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_encoded_is_split_off(
            kind in proptest::sample::select(&Kind::ALL[..]),
            more in any::<bool>(),
            numbers in any::<(u16, u64, u64)>(),
            body in proptest::collection::vec(any::<u8>(), 0..100),
            rest in any::<[u8; 3]>(),
        ) {
            let (lane, position, until_ns) = numbers;
            let header = Header { kind, more, lane, length: body.len() as u32, position, until_ns };
            let mut bytes = header.encode().to_vec();
            bytes.extend_from_slice(&body);
            for short in 0..bytes.len() {
                prop_assert_eq!(split(&bytes[..short]), Ok(None));
            }
            let length = bytes.len();
            bytes.extend_from_slice(&rest);
            prop_assert_eq!(split(&bytes), Ok(Some((header, &body[..], length))));
        }

        #[test]
        fn splitting_never_panics(bytes in any::<Vec<u8>>()) {
            let _ = split(&bytes);
            let _ = Positions::decode(&bytes).count();
        }
    }

    #[test]
    fn what_is_no_frame_is_refused_at_once() {
        let mut header = Header::new(Kind::Records, LONGEST_BODY + 1).encode();
        assert_eq!(
            split(&header),
            Err(Broken::TooLong(LONGEST_BODY as u32 + 1))
        );
        header[0] = 99;
        assert_eq!(split(&header), Err(Broken::UnknownKind(99)));
    }

    #[test]
    fn positions_are_read_as_they_were_written() {
        let positions = [(3, 1 << 40), (0, 7)].map(|(lane, position)| Position { lane, position });
        let frame = Positions::encode(&positions);
        let (header, body, _) = split(&frame).unwrap().unwrap();
        assert_eq!(header.kind, Kind::Ack);
        assert_eq!(Positions::decode(body).collect::<Vec<_>>(), positions);
    }
}
