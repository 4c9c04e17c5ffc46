//! How a connection begins: handshakes, also between the ends of a connection that is known.
//!
//! A SYN does not end a connection: whoever has it answers with an acknowledgement (RFC 5961, section 4). Only
//! where both ends were seen to take part in another handshake, another connection is there.

use std::time::Duration;

use bytes::Bytes;
use mirror_common::packet::{ACK, RST, SYN};
use mirror_common::tunnel::Direction;

use super::Journal;
use super::connection::{Connection, Mode};
use super::half::Half;
use super::resync::Seek;
use crate::message::{DropReason, Extras, Multipath, Segment};

/// As many bytes of data may come before a SYN where its time does not tell: a foreign tap's.
const LATE_SYN: u64 = 1 << 20;

/// The most handshakes between the ends of one connection that are remembered.
const MAX_HANDSHAKES: usize = 4;

/// The most bytes that wait for the server's part of a handshake.
const MAX_HELD: usize = 64 << 10;

/// So far behind its first byte a connection's first segment may lie, the ones before it being lost.
const NEAR: u32 = 1 << 20;

/// Another handshake between the ends of a connection.
#[derive(Debug)]
pub(super) struct Handshake {
    /// Where the client's bytes start.
    start: u32,
    syn: Option<Segment>,
    reply: Option<Segment>,
    /// What the client sent behind its SYN.
    held: Vec<Segment>,
}

/// What a segment is to the other handshakes between its ends.
pub(super) enum Claim {
    /// Nothing.
    Nothing,
    /// It waits for a word from the server.
    Held,
    /// It shows that one is whole: all that came of its connection.
    Whole(Vec<Segment>),
}

/// What a client sent with its SYN (TCP Fast Open, RFC 7413): the server takes it, or gets it once more.
#[derive(Debug, Default)]
pub(super) struct FastOpen {
    /// Waits for the server to say that it has it.
    pub(super) held: Option<(u64, Bytes)>,
    length: u32,
}

impl FastOpen {
    pub(super) fn of(segment: &Segment) -> Self {
        let length = segment.payload.len() as u32;
        let held = (length > 0).then(|| (segment.time_ns, segment.payload.clone()));
        Self { held, length }
    }

    /// How many bytes came with the SYN.
    pub(super) fn length(&self) -> u32 {
        self.length
    }

    /// Bytes held.
    pub(super) fn buffered(&self) -> usize {
        self.held.as_ref().map_or(0, |(_, data)| data.len())
    }
}

impl Handshake {
    fn is_of(&self, segment: &Segment, start: u32) -> bool {
        let behind = start.wrapping_sub(self.start);
        let sent = self.syn.as_ref().map_or(0, |syn| syn.payload.len() as u32);
        behind == 0 || (segment.direction == Direction::Response && behind <= sent)
    }

    /// Bytes held.
    fn held(&self) -> usize {
        self.held.iter().map(|held| held.payload.len()).sum()
    }

    fn into_segments(self) -> Vec<Segment> {
        let handshake = self.syn.into_iter().chain(self.reply);
        handshake.chain(self.held).collect()
    }

    /// Whether this segment is of the connection whose handshake this is; nothing where the server's part is
    /// not known and has to show it.
    fn claims(&self, segment: &Segment) -> Option<bool> {
        let behind = |sequence: u32, start: u32| sequence.wrapping_sub(start);
        let reply = self.reply.as_ref();
        let server = reply.map(|reply| reply.sequence.wrapping_add(1));
        match segment.direction {
            Direction::Request => {
                let Some(server) = server else {
                    let follows = behind(segment.sequence, self.start) as usize <= self.held();
                    return (!follows).then_some(false);
                };
                let is_near = behind(segment.sequence, self.start) <= NEAR;
                Some(is_near && behind(segment.acknowledgement, server) <= NEAR)
            }
            Direction::Response => {
                let got = behind(segment.acknowledgement, self.start);
                let is_near = server.map_or(got as usize <= self.held(), |server| {
                    behind(segment.sequence, server) <= NEAR && got <= NEAR
                });
                Some(got > 0 && is_near)
            }
        }
    }
}

impl Connection {
    /// Whether this SYN, or SYN-ACK, is of another connection between the same ends.
    pub(super) fn is_replaced_by(&self, segment: &Segment) -> bool {
        let (mut requests, responses) = starts_by(segment);
        if segment.direction == Direction::Response
            && let (Some(start), Some(told)) = (self.starts.0, requests)
            && told.wrapping_sub(start) <= self.fast_open.length()
        {
            // It acknowledges what came with the SYN, too.
            requests = Some(start);
        }
        let differs = |known: Option<u32>, told: Option<u32>| match (known, told) {
            (Some(known), Some(told)) => Some(known != told),
            _ => None,
        };
        let other = [
            differs(self.starts.0, requests),
            differs(self.starts.1, responses),
        ];
        if other.contains(&Some(true)) {
            return true;
        }
        if other.contains(&Some(false)) {
            return false;
        }
        // Nothing to compare: it was joined in its middle, or its SYN is late.
        if segment.time_ns < self.known_ns {
            return false;
        }
        let begins = |half: &Half, start: Option<u32>| {
            let near = start.is_none_or(|start| {
                let start = half.stream.position(start);
                let mut pieces = half.stream.pieces();
                pieces.all(|piece| (start..start + LATE_SYN).contains(&piece.position))
            });
            half.stream.buffered() > 0 && near
        };
        let late = begins(&self.requests, requests) || begins(&self.responses, responses);
        !(late && matches!(self.mode, Mode::Unknown { .. }))
    }

    /// A SYN fixes where requests start, a SYN-ACK where both directions do. One that was not
    /// waited for any more tells nothing. Whether it is this connection's.
    pub(super) fn synchronise(&mut self, segment: &Segment, journal: &mut Journal<'_>) -> bool {
        if !self.has_start() && !matches!(self.mode, Mode::Unknown { .. }) {
            return false;
        }
        let (requests, responses) = starts_by(segment);
        let Extras {
            window_scale,
            multipath,
            ..
        } = segment.extras;
        match segment.direction {
            Direction::Request => self.scales.0 = Some(window_scale),
            Direction::Response => self.scales.1 = Some(window_scale),
        }
        if let (None, Some(start)) = (self.starts.0, requests) {
            self.requests.start(start);
            self.starts.0 = requests;
            if segment.direction == Direction::Request {
                self.fast_open = FastOpen::of(segment);
            }
        }
        if let (None, Some(start)) = (self.starts.1, responses) {
            self.responses.start(start);
            self.starts.1 = responses;
        }
        self.is_one_sided = self.starts.1.is_none();
        if matches!(self.mode, Mode::Unknown { .. }) && self.has_start() {
            self.mode = Mode::Framed;
        }
        journal.opened_ns = self.opened_ns();
        if let Some(Multipath::Join { .. }) = multipath {
            self.leave_alone(DropReason::Multipath, journal);
        }
        let (own, start) = match segment.direction {
            Direction::Request => (self.starts.0, requests),
            Direction::Response => (self.starts.1, responses),
        };
        start.is_some() && own == start
    }

    /// The server has acknowledged bytes up to `acknowledgement`: what came with the SYN counts, or comes again.
    pub(super) fn settle_fast_open(&mut self, acknowledgement: Option<u32>, now: Duration) {
        let Some(start) = self.starts.0 else {
            return;
        };
        let has_it = match acknowledgement {
            Some(got) => got.wrapping_sub(start).cast_signed() > 0,
            // Nobody will say so.
            None => true,
        };
        let Some((time_ns, data)) = self.fast_open.held.take().filter(|_| has_it) else {
            return;
        };
        let end = start.wrapping_add(data.len() as u32);
        self.requests.stream.insert(start, None, time_ns, data);
        self.requests.arrive(end, time_ns, now);
    }

    /// Copies come in order: where it does not begin with its handshake, that came before the tap.
    pub(super) fn awaits_no_handshake(&mut self) {
        if matches!(self.mode, Mode::Unknown { .. }) {
            self.mode = Mode::Seek(Seek::new(DropReason::MidStream, 0));
        }
    }

    /// Whether it is not known if the server takes what the client sends: anybody can send a SYN.
    pub(super) fn awaits_server(&self) -> bool {
        self.is_one_sided && self.answered
    }

    /// Takes down a SYN, or a SYN-ACK, that is of another connection between the same ends.
    fn note_handshake(&mut self, segment: Segment) {
        let Some(start) = starts_by(&segment).0 else {
            return;
        };
        let known = self
            .handshakes
            .iter_mut()
            .find(|known| known.is_of(&segment, start));
        let handshake = match known {
            Some(handshake) => handshake,
            None => {
                if self.handshakes.len() >= MAX_HANDSHAKES {
                    let least = self
                        .handshakes
                        .iter()
                        .position(|known| known.reply.is_none());
                    self.handshakes.remove(least.unwrap_or(0));
                }
                self.handshakes.push(Handshake {
                    start,
                    syn: None,
                    reply: None,
                    held: Vec::new(),
                });
                let Some(handshake) = self.handshakes.last_mut() else {
                    return;
                };
                handshake
            }
        };
        match segment.direction {
            Direction::Request => handshake.syn = Some(segment),
            Direction::Response => handshake.reply = Some(segment),
        }
    }

    /// What a segment is to the other handshakes.
    pub(super) fn claim(&mut self, segment: &Segment) -> Claim {
        if segment.flags & RST != 0 || segment.extras.is_doubtful {
            return Claim::Nothing;
        }
        if segment.flags & SYN != 0 {
            if !self.is_replaced_by(segment) {
                return Claim::Nothing;
            }
            if matches!(self.mode, Mode::Closed { .. }) {
                return Claim::Whole(Vec::new());
            }
            self.note_handshake(segment.clone());
            return Claim::Held;
        }
        if self.handshakes.is_empty() || segment.flags & ACK == 0 || segment.payload.is_empty() {
            return Claim::Nothing;
        }
        let claims = |known: &Handshake| known.claims(segment) == Some(true);
        if let Some(index) = self.handshakes.iter().position(claims) {
            return Claim::Whole(self.handshakes.remove(index).into_segments());
        }
        let waits = |known: &Handshake| known.claims(segment).is_none();
        let Some(index) = self.handshakes.iter().position(waits) else {
            return Claim::Nothing;
        };
        if self.accepts(segment) {
            return Claim::Nothing;
        }
        if !self.answered {
            // Nobody will ever show it.
            return Claim::Whole(self.handshakes.remove(index).into_segments());
        }
        let held: usize = self.handshakes.iter().map(Handshake::held).sum();
        if held + segment.payload.len() <= MAX_HELD {
            self.handshakes[index].held.push(segment.clone());
        }
        Claim::Held
    }

    /// Bytes that wait for a handshake.
    pub(super) fn shaking(&self) -> usize {
        let held = self
            .handshakes
            .iter()
            .flat_map(|known| known.held.iter().chain(&known.syn));
        held.map(|segment| segment.payload.len()).sum::<usize>() + self.fast_open.buffered()
    }
}

/// Where the client's and the server's first bytes stand by this SYN or SYN-ACK.
fn starts_by(segment: &Segment) -> (Option<u32>, Option<u32>) {
    let start = Some(segment.sequence.wrapping_add(1));
    match (segment.direction, segment.flags & (SYN | ACK)) {
        (Direction::Request, SYN) => (start, None),
        (Direction::Response, flags) if flags == SYN | ACK => {
            (Some(segment.acknowledgement), start)
        }
        _ => (None, None),
    }
}
