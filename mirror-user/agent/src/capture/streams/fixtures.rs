//! For tests: a tap's rings, and its frames.

use std::collections::BTreeMap;

use mirror_api::Transport;
use mirror_api::tap_report::TapReport;
use mirror_common::record::{Reader, Record};
use mirror_common::tunnel::mac::Key;
use mirror_common::tunnel::{Arm, Datagram, Direction, decode};

use mirror_base::transport::frame::{Header, Hello, Kind, PREFACE, Position, VERSION, message};

/// Rings that are never full. Time goes on with every record.
#[derive(Default)]
pub(crate) struct Rings {
    rings: BTreeMap<u16, Ring>,
    pub(crate) time_ns: u64,
    /// Lane, number and time of every record, in the order of time.
    pub(crate) written: Vec<(u16, u64, u64)>,
}

#[derive(Default)]
pub(crate) struct Ring {
    pub(crate) bytes: Vec<u8>,
    pub(crate) copies: u64,
    pub(crate) sent: usize,
}

/// What a record says of its packet.
#[derive(Clone, Copy)]
pub(crate) struct Kept {
    pub(crate) service: u32,
    pub(crate) direction: Direction,
    pub(crate) arm: Arm,
}

impl Rings {
    pub(crate) fn write(&mut self, lane: u16, later: u64, packet: &[u8]) {
        let kept = Kept {
            service: 7,
            direction: Direction::Request,
            arm: Arm::Stable,
        };
        self.write_of(kept, lane, later, packet);
    }

    pub(crate) fn write_of(&mut self, kept: Kept, lane: u16, later: u64, packet: &[u8]) {
        self.time_ns += later;
        let ring = self.rings.entry(lane).or_default();
        let record = Record {
            direction: kept.direction,
            arm: kept.arm,
            reader: Reader::Sender,
            lane,
            service: kept.service,
            packet_length: packet.len() as u32,
            sequence: ring.copies,
            time_ns: self.time_ns,
        };
        let words = record.encode();
        ring.bytes
            .extend(words.iter().flat_map(|w| w.to_ne_bytes()));
        ring.bytes.extend_from_slice(packet);
        ring.bytes
            .resize(ring.bytes.len().next_multiple_of(8), 0xaa);
        self.written.push((lane, ring.copies, self.time_ns));
        ring.copies += 1;
    }

    /// The copy in a datagram of the tunnel, as its CPU would have written it.
    pub(crate) fn write_datagram(&mut self, datagram: &[u8]) {
        let Ok(Datagram::Geneve { header, payload }) = decode(datagram) else {
            panic!("no copy");
        };
        let kept = Kept {
            service: header.vni,
            direction: header.meta.direction,
            arm: header.meta.arm,
        };
        let later = header.meta.time_ns.saturating_sub(self.time_ns);
        self.write_of(kept, header.meta.cpu, later, payload);
    }

    pub(crate) fn bytes(&self, lane: u16) -> &[u8] {
        &self.rings[&lane].bytes
    }

    /// Takes a ring's bytes out; positions are the caller's then.
    pub(crate) fn take(&mut self, lane: u16) -> Vec<u8> {
        self.written.clear();
        std::mem::take(&mut self.rings.entry(lane).or_default().bytes)
    }

    pub(crate) fn copies(&self) -> impl Iterator<Item = (u16, u64)> {
        self.rings.iter().map(|(&lane, ring)| (lane, ring.copies))
    }

    /// Where the next record of each ring will begin.
    pub(crate) fn heads(&self) -> Vec<Position> {
        self.rings
            .iter()
            .map(|(&lane, ring)| Position {
                lane,
                position: ring.bytes.len() as u64,
            })
            .collect()
    }

    /// The frames of one round, with at most `stretch` bytes of each ring.
    pub(crate) fn round(&mut self, stretch: usize) -> Vec<u8> {
        let mut wire = Vec::new();
        for (&lane, ring) in &mut self.rings {
            let left = &ring.bytes[ring.sent..];
            if left.is_empty() {
                continue;
            }
            let length = left.len().min(stretch);
            let more = length < left.len();
            wire.extend(records(lane, ring.sent, more, &left[..length]));
            ring.sent += length;
        }
        wire.extend(round(self.time_ns + 1));
        wire
    }

    /// Rounds until everything is sent.
    pub(crate) fn rounds(&mut self, stretch: usize) -> Vec<u8> {
        let mut wire = self.round(stretch);
        while self.rings.values().any(|r| r.sent < r.bytes.len()) {
            wire.extend(self.round(stretch));
        }
        wire
    }

    /// Goes on where the agent says, and at the beginning of rings that it does not know.
    pub(crate) fn go_on(&mut self, positions: &[Position]) {
        for (&lane, ring) in &mut self.rings {
            let known = positions.iter().find(|known| known.lane == lane);
            ring.sent = known.map_or(0, |known| known.position as usize);
        }
    }
}

/// A tap's preface and hello.
pub(crate) fn hello(boot: u64, lanes: Vec<Position>) -> Vec<u8> {
    hello_of(Hello {
        version: VERSION,
        program: "0.1.0".into(),
        boot,
        transport: Transport::Stream,
        lanes,
        mac_key: None,
    })
}

/// The same of a tap whose copies are datagrams.
pub(crate) fn hello_of_datagrams(boot: u64, key: Key) -> Vec<u8> {
    hello_of(Hello {
        version: VERSION,
        program: "0.1.0".into(),
        boot,
        transport: Transport::Geneve,
        lanes: Vec::new(),
        mac_key: Some(key),
    })
}

fn hello_of(hello: Hello) -> Vec<u8> {
    let mut bytes = PREFACE.to_vec();
    bytes.extend(message(Kind::Hello, &hello));
    bytes
}

/// A frame of a ring's bytes.
pub(crate) fn records(lane: u16, position: usize, more: bool, bytes: &[u8]) -> Vec<u8> {
    let header = Header {
        lane,
        more,
        position: position as u64,
        ..Header::new(Kind::Records, bytes.len())
    };
    let mut frame = header.encode().to_vec();
    frame.extend_from_slice(bytes);
    frame
}

/// The end of a round.
pub(crate) fn round(until_ns: u64) -> Vec<u8> {
    let header = Header {
        until_ns,
        ..Header::new(Kind::Round, 0)
    };
    header.encode().to_vec()
}

/// A report's frame.
pub(crate) fn report(report: &TapReport, sent_ns: u64) -> Vec<u8> {
    let body = serde_json::to_vec(report).unwrap();
    let header = Header {
        position: report.number,
        until_ns: sent_ns,
        ..Header::new(Kind::Report, body.len())
    };
    let mut frame = header.encode().to_vec();
    frame.extend_from_slice(&body);
    frame
}
