//! What the fuzz targets do with their input, so that `cargo test` can do the same with every
//! input that once failed (`fuzz/regressions/TARGET/`). Each function panics when something that
//! must hold does not.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use mirror_api::tap_report::TapReport;
use mirror_common::flow::{Endpoint, Flow};
use mirror_common::packet::{self, Link};
use mirror_common::record::{Reader, Record};
use mirror_common::translate::Clamp;
use mirror_common::tunnel::{self, Arm, Datagram, Direction};
use mirror_wire::body::MAX_TIME;
use mirror_wire::body::cpu_time;
use mirror_wire::exchange::{Event, Exchanges, Limits};
use mirror_wire::memory::Memory;
use mirror_wire::message::{ExchangeId, Extras, Multipath, Segment, TapId};
use mirror_wire::stream::Stream;

use crate::capture::streams::{self, Copied, Frames, Order, Said};
use crate::config::Columns;
use crate::labels::Decoder;
use mirror_base::config::Report;
use mirror_base::transport::frame::{self, Header, Hello, Kind, Positions, Welcome};

/// What is done with an input.
pub type Target = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: [(&str, Target); 11] = [
    ("packet", packet),
    ("tunnel", tunnel),
    ("stream", stream),
    ("http", http),
    ("http2", http2),
    ("tap", tap),
    ("control", control),
    ("coding", coding),
    ("events", events),
    ("labels", labels),
    ("config", config),
];

/// A frame: what is parsed lies within it.
pub fn packet(frame: &[u8]) {
    let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    for link in [Link::Ethernet, Link::Ip] {
        if let Ok(packet) = packet::parse(&frame, length, link) {
            assert!(packet.network_offset < packet.transport_offset);
            assert!(packet.transport_offset < packet.payload_offset);
            let end = u64::from(packet.payload_offset) + u64::from(packet.payload_length);
            assert!(end <= u64::from(length), "{packet:?} in {length} bytes");
            if let Some(clamp) = Clamp::of(&frame, &packet, 1_000) {
                let options = packet.transport_offset + 20..packet.payload_offset - 1;
                assert!(options.contains(&clamp.offset), "{clamp:?} in {packet:?}");
            }
        }
    }
}

/// A datagram: what is decoded lies within it, and comes out the same when encoded again.
pub fn tunnel(datagram: &[u8]) {
    match tunnel::decode(datagram) {
        Ok(Datagram::Geneve { header, payload }) => {
            assert!(datagram.ends_with(payload));
            let mut again = header.encode().to_vec();
            again.extend_from_slice(payload);
            let decoded = tunnel::decode(&again);
            assert_eq!(decoded, Ok(Datagram::Geneve { header, payload }));
        }
        Ok(Datagram::Vxlan { vni, payload }) => {
            assert!(datagram.ends_with(payload) && vni < 1 << 24);
        }
        Err(error) => assert!(!error.label().is_empty()),
    }
}

/// Segments of one stream, cut, reordered and repeated at will: every byte comes out at its place.
pub fn stream(input: &[u8]) {
    let mut input = Input(input);
    let byte = |position: u64| (position ^ (position >> 8)).wrapping_mul(167) as u8;
    let first = input.number(4);
    let mut stream = Stream::default();
    let origin = stream.place(first);
    if input.number(1) & 1 == 0 {
        stream.anchor(origin);
    }
    while !input.0.is_empty() {
        let operation = input.number(1);
        let sequence = first.wrapping_add(input.number(2)).wrapping_sub(1 << 15);
        let position = stream.position(sequence);
        match operation & 7 {
            0 => drop(stream.give_up(position)),
            1 => drop(stream.finish(sequence)),
            2 => drop(stream.anchor(position)),
            3 => drop(stream.discard(position)),
            4 => stream.cast_off(),
            _ => {
                let data = (position..position + u64::from(input.number(1))).map(byte);
                stream.insert(sequence, None, 0, data.collect());
            }
        }
        let mut before = stream.next();
        for piece in stream.pieces() {
            assert!(
                before <= piece.position && !piece.data.is_empty(),
                "{stream}"
            );
            before = piece.end();
        }
        let held: usize = stream.pieces().map(|piece| piece.data.len()).sum();
        assert_eq!(held, stream.buffered());
        if operation & 8 == 0 {
            continue;
        }
        while let Some(piece) = stream.pop() {
            assert!(piece.position.abs_diff(origin) < 1 << 24);
            for (position, &data) in (piece.position..).zip(&piece.data) {
                assert_eq!(data, byte(position), "{position} of {stream}");
            }
        }
    }
}

/// Segments of both directions of two connections, in little memory: what is seen ends once, and
/// nothing is kept.
pub fn http(input: &[u8]) {
    const MEMORY: usize = 4096;
    let mut input = Input(input);
    let memory = Memory::new(MEMORY);
    let limits = Limits {
        buffer: 1024,
        ..Limits::new(512).with_http2()
    };
    let mut exchanges = Exchanges::new(vec![limits], memory.clone()).with_max_connections(2);
    let mut ledger = Ledger::default();
    let mut now = Duration::ZERO;
    while !input.0.is_empty() {
        let mut events = Vec::new();
        let segment = input.segment(now);
        exchanges.segment(segment, now, &mut events);
        now += Duration::from_millis(u64::from(input.number(1)));
        if now.as_millis().is_multiple_of(4) {
            exchanges.tick(now, &mut events);
        }
        ledger.enter(&events);
        drop(events);
        // Each may have four more parked.
        assert!(memory.used() <= MEMORY && exchanges.connections() <= 2 * 5);
    }
    let mut events = Vec::new();
    exchanges.tick(now + Duration::from_secs(4), &mut events);
    exchanges.finish(&mut events);
    ledger.enter(&events);
    drop(events);
    assert!(ledger.0.values().all(|&over| over), "seen, but not over");
    assert_eq!(memory.used(), 0);
}

/// Frames of both directions of a connection, cut and lost at will.
pub fn http2(input: &[u8]) {
    mirror_wire::fuzzing::http2(input);
}

/// A tap's connections: frames at will, or as a tap sends them, cut and broken at will. Records of a
/// lane come in their order and no later than bytes behind them; what is held is bounded and given back.
pub fn tap(input: &[u8]) {
    const MOST: u64 = 2_000;
    let mut input = Input(input);
    let mut order = Order::new(MOST);
    let mut frames = Frames::default();
    let mut ends = HashMap::new();
    while !input.0.is_empty() {
        let operation = input.number(1);
        let bytes = match operation & 3 {
            0 => input.take((operation >> 2) as usize).to_vec(),
            1 => input.records(),
            2 => round(u64::from(input.number(2))),
            _ if operation & 4 == 0 => {
                let mut copies = Vec::new();
                order.break_off(&mut copies);
                enter(&mut ends, &copies);
                frames = Frames::default();
                assert_eq!(order.held(), 0);
                continue;
            }
            _ => Vec::new(),
        };
        let (said, result) = streams::take(&mut frames, &mut order, bytes.into());
        for said in said {
            if let Said::Copies(copies) = said {
                enter(&mut ends, &copies);
            }
        }
        if result.is_err() {
            break;
        }
    }
    let mut copies = Vec::new();
    order.break_off(&mut copies);
    enter(&mut ends, &copies);
    assert_eq!(order.held(), 0);
    for position in order.positions() {
        assert!(
            ends.get(&position.lane)
                .is_none_or(|end| *end <= position.position)
        );
    }
}

/// What taps and agents say to each other besides records: whatever can be read is the same when it is written and
/// read again.
pub fn control(input: &[u8]) {
    let again = |kind, body: &[u8]| {
        let header = Header::new(kind, body.len()).encode();
        let bytes = [&header[..], body].concat();
        let read = frame::split(&bytes).ok().flatten();
        let read = read.map(|(header, body, length)| (header.kind, body, length));
        assert_eq!(read, Some((kind, body, bytes.len())));
    };
    if let Ok(Some((header, body, length))) = frame::split(input) {
        assert!(length <= input.len());
        again(header.kind, body);
    }
    fn same<T>(body: &[u8])
    where
        T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
    {
        if let Ok(read) = serde_json::from_slice::<T>(body) {
            let written = serde_json::to_vec(&read).unwrap_or_default();
            assert_eq!(serde_json::from_slice::<T>(&written).ok(), Some(read));
        }
    }
    same::<Hello>(input);
    same::<Welcome>(input);
    let _ = TapReport::parse(input);
    let positions: Vec<_> = Positions::decode(input).collect();
    let encoded = Positions::encode(&positions);
    let read = frame::split(&encoded).ok().flatten();
    let read = read.map(|(_, body, _)| Positions::decode(body).collect::<Vec<_>>());
    assert_eq!(read, Some(positions));
}

/// A body in some codings: what it becomes is bounded, and so is the time that it takes.
pub fn coding(input: &[u8]) {
    const CODINGS: [&str; 8] = [
        "gzip",
        "deflate",
        "br",
        "zstd",
        "gzip, gzip",
        "br, gzip",
        "gzip, zstd",
        "zstd, br",
    ];
    let mut input = Input(input);
    let coding = CODINGS[input.number(1) as usize % CODINGS.len()];
    let times = 1 << (input.number(1) % 12);
    let body = input.0.repeat(times);
    let before = cpu_time();
    let length = mirror_wire::body::decoded_length(coding, &body);
    assert!(length.is_none_or(|length| length <= 16 << 20));
    let took = cpu_time() - before;
    let most = MAX_TIME + Duration::from_secs(8);
    assert!(took < most, "{took:?} for {} bytes of {coding}", body.len());
}

/// A stream of events, JSON lines, or JSON.
pub fn events(input: &[u8]) {
    for kind in [
        "text/event-stream",
        "application/x-ndjson",
        "application/json",
    ] {
        let leaves = mirror_wire::body::leaves(kind, input);
        assert!(leaves.is_none_or(|leaves| leaves <= input.len() as u64 + 1));
    }
}

/// A file of labels, whole and in two pieces: the same labels come out.
pub fn labels(input: &[u8]) {
    let (half, rest) = input.split_at(input.len() / 2);
    let read = |pieces: [&[u8]; 2]| {
        let mut decoder = Decoder::new(Columns::default());
        let mut read = Vec::new();
        let mut visit = |line: Result<_, _>| read.push(format!("{line:?}"));
        let [first, second] = pieces;
        let taken = decoder.feed(first, false, &mut visit);
        let usable = taken.and_then(|taken| {
            let left = [&first[taken..], second].concat();
            decoder.feed(&left, true, &mut visit).map(drop)
        });
        usable.is_ok().then_some(read)
    };
    assert_eq!(read([half, rest]), read([b"", input]));
}

/// A config of either host: what is wrong with it is said, each problem with its line.
pub fn config(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input) {
        let problems = crate::config::shadow(text).err();
        let said = problems
            .map(|problems| Report::new(Path::new("shadow.toml"), text, problems).to_string());
        assert!(said.is_none_or(|said| !said.is_empty()));
    }
}

/// Every record ends behind the one before it of its lane.
fn enter(ends: &mut HashMap<u16, u64>, copies: &[Copied]) {
    for copied in copies {
        let before = ends.insert(copied.record.lane, copied.end);
        assert!(before.is_none_or(|before| before < copied.end));
    }
}

/// The end of a round.
fn round(until_ns: u64) -> Vec<u8> {
    let header = Header {
        until_ns,
        ..Header::new(Kind::Round, 0)
    };
    header.encode().to_vec()
}

/// Which exchanges were seen, and whether they are over.
#[derive(Default)]
struct Ledger(HashMap<ExchangeId, bool>);

impl Ledger {
    fn enter(&mut self, events: &[Event]) {
        for event in events {
            match event {
                Event::Seen { id, .. } => {
                    assert_eq!(self.0.insert(*id, false), None, "seen twice");
                }
                Event::Request { id, answered, .. } => {
                    let before = self.0.insert(*id, !answered);
                    assert_eq!(before, Some(false), "not seen, or over");
                }
                Event::Response { id, .. } | Event::Dropped { id, .. } => {
                    assert_eq!(self.0.insert(*id, true), Some(false), "not seen, or over");
                }
                Event::Closed { .. } => {}
            }
        }
    }
}

/// The fuzzer's bytes, used up from the front. Behind their end are zeros.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A little-endian number of so many bytes, at most four.
    fn number(&mut self, bytes: usize) -> u32 {
        let mut number = [0; 4];
        let taken = self.take(bytes);
        number[..taken.len()].copy_from_slice(taken);
        u32::from_le_bytes(number)
    }

    /// A frame of records, of which the last may be cut off.
    fn records(&mut self) -> Vec<u8> {
        let kind = self.number(1);
        let (count, lane) = ((kind >> 4) as usize, (kind & 3) as u16);
        let position = u64::from(self.number(2)) & !7;
        let mut body = Vec::new();
        for _ in 0..count {
            let packet = self.number(1);
            let record = Record {
                direction: Direction::Request,
                arm: Arm::Stable,
                reader: Reader::Sender,
                lane,
                service: 1,
                packet_length: packet,
                sequence: 0,
                time_ns: u64::from(self.number(2)),
            };
            body.extend(record.encode().iter().flat_map(|word| word.to_ne_bytes()));
            body.resize(body.len() + packet.next_multiple_of(8) as usize, 0);
        }
        body.truncate(body.len().saturating_sub(self.number(1) as usize));
        let header = Header {
            lane,
            more: kind & 4 != 0,
            position,
            ..Header::new(Kind::Records, body.len())
        };
        [&header.encode()[..], &body].concat()
    }

    /// A segment: what it is, its TCP flags, two small numbers, and a payload with its length.
    fn segment(&mut self, now: Duration) -> Segment {
        let (kind, flags) = (self.number(1), self.number(1));
        // Both streams wrap within reach of the numbers.
        let sequence = self.number(2).wrapping_sub(1 << 12);
        let acknowledgement = self.number(2).wrapping_sub(1 << 12);
        let length = self.number(1) as usize;
        let address = |last| IpAddr::V4(Ipv4Addr::new(10, 0, 0, last));
        Segment {
            service: 0,
            tap: TapId(3),
            flow: Flow {
                client: Endpoint::new(address(1).into(), (kind >> 1 & 3) as u16),
                server: Endpoint::new(address(2).into(), 80),
            },
            direction: if kind & 1 == 0 {
                Direction::Request
            } else {
                Direction::Response
            },
            arm: Arm::Stable,
            time_ns: now.as_nanos() as u64,
            sequence,
            acknowledgement,
            flags: flags as u8,
            extras: Extras {
                window_scale: (kind & 0x10 != 0).then_some(0),
                multipath: (kind & 0x80 != 0).then_some(Multipath::Join { token: Some(1) }),
                is_urgent: kind & 0x20 != 0,
                is_doubtful: kind & 0x40 != 0,
            },
            payload: Bytes::copy_from_slice(self.take(length)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_once_failed_does_not_fail_again() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/regressions");
        for (name, target) in TARGETS {
            let folder = folder.join(name);
            let files = std::fs::read_dir(&folder)
                .unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
            let mut count = 0;
            for file in files {
                let path = file.unwrap().path();
                println!("{}", path.display());
                target(&std::fs::read(path).unwrap());
                count += 1;
            }
            assert!(count > 0, "no file in {}", folder.display());
        }
    }

    proptest! {
        #[test]
        fn anything_goes(input in prop::collection::vec(any::<u8>(), 0..400)) {
            for (_, target) in TARGETS {
                target(&input);
            }
        }
    }
}
