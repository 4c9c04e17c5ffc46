//! From a connection's bytes to frames. Pure.
//!
//! Records are not waited for: they are handed on as they come, so that no frame has to be held
//! whole. Messages are short, and come whole.

use bytes::{Buf as _, Bytes, BytesMut};

use super::error::Broken;
use mirror_base::transport::frame::{HEADER_LENGTH, Header, Kind};

/// The longest message, in bytes. A report of 1,024 CPUs and as many services fits.
pub(super) const LONGEST_MESSAGE: u32 = 512 << 10;

/// What a tap says.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    /// Bytes of a lane's ring from `position` on.
    Records {
        lane: u16,
        position: u64,
        /// The ring holds more than this frame.
        more: bool,
        bytes: Bytes,
    },
    /// A whole frame of another kind.
    Message(Header, Bytes),
}

/// Cuts bytes into frames.
#[derive(Debug, Default)]
pub struct Frames {
    /// Of a header, or of a message, that is not whole.
    gathered: BytesMut,
    /// The frame that has begun, its length and position those of what is missing of it.
    open: Option<Header>,
}

impl Frames {
    /// Bytes that are kept for later.
    pub fn held(&self) -> usize {
        self.gathered.len()
    }

    /// The next part of what came, which it takes off `bytes`; nothing when they are used up.
    pub fn next(&mut self, bytes: &mut Bytes) -> Result<Option<Part>, Broken> {
        let header = match self.open {
            Some(header) => header,
            None => match self.header(bytes)? {
                Some(header) => header,
                None => return Ok(None),
            },
        };
        if header.kind == Kind::Records {
            Ok(self.records(header, bytes))
        } else {
            Ok(self.message(header, bytes))
        }
    }

    fn header(&mut self, bytes: &mut Bytes) -> Result<Option<Header>, Broken> {
        self.gather(HEADER_LENGTH, bytes);
        let Some(header) = self.gathered.first_chunk::<HEADER_LENGTH>() else {
            return Ok(None);
        };
        let header = Header::decode(header)?;
        self.gathered.clear();
        match header.kind {
            Kind::Hello | Kind::Round | Kind::Report | Kind::Bye
                if header.length > LONGEST_MESSAGE =>
            {
                Err(Broken::LongMessage(header.length))
            }
            Kind::Records | Kind::Hello | Kind::Round | Kind::Report | Kind::Bye => {
                self.open = Some(header);
                Ok(Some(header))
            }
            Kind::Welcome | Kind::Ack | Kind::Echo | Kind::Refused => {
                Err(Broken::NotATaps(header.kind))
            }
        }
    }

    fn records(&mut self, header: Header, bytes: &mut Bytes) -> Option<Part> {
        let length = bytes.len().min(header.length as usize);
        if length == 0 && header.length > 0 {
            return None;
        }
        let rest = Header {
            length: header.length - length as u32,
            position: header.position.wrapping_add(length as u64),
            ..header
        };
        self.open = (rest.length > 0).then_some(rest);
        Some(Part::Records {
            lane: header.lane,
            position: header.position,
            more: header.more,
            bytes: bytes.split_to(length),
        })
    }

    fn message(&mut self, header: Header, bytes: &mut Bytes) -> Option<Part> {
        let length = header.length as usize;
        self.gather(length, bytes);
        if self.gathered.len() < length {
            return None;
        }
        self.open = None;
        // Taken whole, so that a long message's room is not kept.
        let body = std::mem::take(&mut self.gathered);
        Some(Part::Message(header, body.freeze()))
    }

    /// Moves bytes over until `length` are together, as far as there are any.
    fn gather(&mut self, length: usize, bytes: &mut Bytes) {
        let missing = length.saturating_sub(self.gathered.len());
        let taken = missing.min(bytes.len());
        self.gathered.extend_from_slice(&bytes[..taken]);
        bytes.advance(taken);
    }
}

#[cfg(test)]
mod tests {
    use mirror_api::tap_report::{LaneSent, Mirrored, ServiceReport, TapReport};
    use proptest::prelude::*;

    use super::*;
    use mirror_base::transport::frame::{MAX_LANES, message};

    /// All parts of these bytes, records of one frame joined.
    fn parts(reads: &[&[u8]]) -> Result<Vec<Part>, Broken> {
        let mut frames = Frames::default();
        let mut parts: Vec<Part> = Vec::new();
        for read in reads {
            let mut bytes = Bytes::copy_from_slice(read);
            while let Some(part) = frames.next(&mut bytes)? {
                parts.push(part);
            }
            assert!(bytes.is_empty());
        }
        Ok(parts)
    }

    /// Every byte of records with its lane and place, and the messages.
    type Joined = (Vec<(u16, u64, u8)>, Vec<(Header, Bytes)>);

    fn joined(parts: Vec<Part>) -> Joined {
        let (mut records, mut messages) = (Vec::new(), Vec::new());
        for part in parts {
            match part {
                Part::Records {
                    lane,
                    position,
                    bytes,
                    ..
                } => records.extend((position..).zip(bytes).map(|(at, byte)| (lane, at, byte))),
                Part::Message(header, body) => messages.push((header, body)),
            }
        }
        (records, messages)
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_frames(
            sent in prop::collection::vec(
                (any::<bool>(), any::<u16>(), 0_u64..1 << 60, prop::collection::vec(any::<u8>(), 0..90)),
                0..8,
            ),
            cuts in prop::collection::vec(0_usize..200, 0..20),
        ) {
            let mut wire = Vec::new();
            for (records, lane, position, body) in sent {
                let kind = if records { Kind::Records } else { Kind::Report };
                let header = Header { lane, position, ..Header::new(kind, body.len()) };
                wire.extend(header.encode());
                wire.extend(body);
            }
            let mut rest = &wire[..];
            let mut reads = Vec::new();
            for cut in cuts {
                let (read, more) = rest.split_at(cut.min(rest.len()));
                reads.push(read);
                rest = more;
            }
            reads.push(rest);
            prop_assert_eq!(joined(parts(&reads).unwrap()), joined(parts(&[&wire]).unwrap()));
        }
    }

    #[test]
    fn the_longest_report_is_no_long_message() {
        let sent = |lane| LaneSent {
            lane,
            copies: u64::MAX,
            bytes: u64::MAX,
        };
        let mirrored = Mirrored {
            packets: 1 << 50,
            bytes: 1 << 60,
        };
        let service = |id| ServiceReport {
            id,
            name: "a-service-with-a-name".to_owned(),
            stable_version: "2026.11.28-1".to_owned(),
            canary_version: Some("2026.11.28-2".to_owned()),
            mirror: true,
            requests_only: true,
            sample: 1.0 / 3.0,
            requests: mirrored,
            responses: mirrored,
        };
        let report = TapReport {
            lanes: (0..MAX_LANES as u16).map(sent).collect(),
            services: (0..1_024).map(service).collect(),
            ..TapReport::default()
        };
        let wire = message(Kind::Report, &report);
        assert_eq!(parts(&[&wire]).unwrap().len(), 1, "{} bytes", wire.len());
    }

    #[test]
    fn what_a_tap_does_not_say_is_an_error() {
        let check = |header: Header, expected| {
            assert_eq!(parts(&[&header.encode()]), Err(expected));
        };
        check(Header::new(Kind::Ack, 0), Broken::NotATaps(Kind::Ack));
        let long = LONGEST_MESSAGE + 1;
        check(
            Header::new(Kind::Report, long as usize),
            Broken::LongMessage(long),
        );
        assert!(parts(&[&[0xff; 24]]).is_err());
    }
}
