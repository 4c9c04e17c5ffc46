//! What TCP accepts (RFC 9293, section 3.10.7.4, with RFC 5961): nothing else moves a connection.
//!
//! Copies are not all that the ends see: pure acknowledgements are not copied, and copies are lost. So windows
//! are taken as wide as they can ever be, and what lies beyond them counts when the other end
//! acknowledges it. A reset is judged a little later: what was sent before it may come after it.

use std::time::Duration;

use mirror_common::packet::ACK;
use mirror_common::tunnel::Direction;

use super::Journal;
use super::connection::{Connection, GRACE, Mode};
use super::half::Half;
use super::resync::Seek;
use crate::http::Decoder;
use crate::message::{DropReason, Segment};

/// The largest window that can be announced (RFC 7323, section 2.3).
const LARGEST_WINDOW: u64 = 1 << 30;

/// The largest one that is usual.
const USUAL_WINDOW: u64 = 1 << 24;

/// So much may be lost without anything between it.
const LOSS: u64 = 1 << 20;

/// The most ends of segments beyond the window that are remembered.
const MAX_BEYOND: usize = 4;

/// The most resets that are judged at once.
const MAX_RESETS: usize = 8;

/// The largest payload that a segment brings over Ethernet on its own, in bytes.
const LARGEST_LONE: usize = 1_460;

/// The most segments with a wrong checksum that wait for a word from the peer.
const MAX_DOUBTFUL: usize = 64;

/// A reset that was not judged yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reset {
    due: Duration,
    direction: Direction,
    position: u64,
    time_ns: u64,
}

impl Connection {
    pub(super) fn half(&self, direction: Direction) -> &Half {
        match direction {
            Direction::Request => &self.requests,
            Direction::Response => &self.responses,
        }
    }

    /// Both directions, this one first.
    pub(super) fn halves(&mut self, direction: Direction) -> (&mut Half, &mut Half) {
        match direction {
            Direction::Request => (&mut self.requests, &mut self.responses),
            Direction::Response => (&mut self.responses, &mut self.requests),
        }
    }

    /// How far ahead of what is known bytes of this direction may lie.
    fn reach(&self, direction: Direction) -> u64 {
        let (Some(client), Some(server)) = self.scales else {
            return USUAL_WINDOW;
        };
        // Windows are scaled where both ends said so, and by the receiver's word.
        let shift = match (client, server, direction) {
            (Some(_), Some(server), Direction::Request) => server,
            (Some(client), Some(_), Direction::Response) => client,
            _ => 0,
        };
        (65_535 << shift).max(LOSS)
    }

    /// Whether the receiver takes this segment, which is no reset.
    pub(super) fn accepts(&mut self, segment: &Segment) -> bool {
        if segment.flags & ACK == 0 {
            return false;
        }
        let reach = self.reach(segment.direction);
        let answered = self.answered;
        let (own, peer) = self.halves(segment.direction);
        let end = own.stream.position(segment.sequence) + segment.payload.len() as u64;
        let acknowledged = peer.stream.position(segment.acknowledgement);
        let is_near = |half: &Half, position: u64, reach: u64| {
            let farthest = half.farthest();
            farthest.is_none_or(|farthest| {
                position <= farthest + reach && position + LARGEST_WINDOW >= farthest
            })
        };
        let is_sent = is_near(own, end, reach);
        if is_sent && (!answered || is_near(peer, acknowledged, LOSS)) {
            return true;
        }
        // Copies of more than a window were lost, and each end says where the other one is.
        if peer.beyond.contains(&acknowledged) {
            return true;
        }
        if !is_sent {
            own.beyond.truncate(MAX_BEYOND - 1);
            own.beyond.push_front(end);
        }
        false
    }

    /// A reset has come; it is judged when all that was sent before it has come as well.
    pub(super) fn note_reset(&mut self, segment: &Segment, now: Duration) {
        let direction = segment.direction;
        let due = now.saturating_add(GRACE);
        let own = self.half(direction);
        let Some(farthest) = own.farthest() else {
            if self.is_refused_by(segment) {
                self.ended_by.get_or_insert(direction);
                self.closing.get_or_insert(due);
            }
            return;
        };
        let position = own.stream.position(segment.sequence);
        // A FIN takes a number of its own.
        if position > farthest + 1 + self.reach(direction) {
            return;
        }
        let reset = Reset {
            due,
            direction,
            position,
            time_ns: segment.time_ns,
        };
        if self.resets.len() >= MAX_RESETS {
            let doubted = self.resets.iter().position(|reset| !self.heeds(reset));
            let Some(doubted) = doubted.filter(|_| self.heeds(&reset)) else {
                return;
            };
            self.resets.remove(doubted);
        }
        self.resets.push(reset);
    }

    /// Whether a reset that comes before anything else of the server's answers the client's SYN.
    fn is_refused_by(&self, segment: &Segment) -> bool {
        let acknowledged = segment.flags & ACK != 0 && segment.direction == Direction::Response;
        let start = self.starts.0.filter(|_| acknowledged);
        start.is_some_and(|start| {
            segment.acknowledgement.wrapping_sub(start) <= self.fast_open.length()
        })
    }

    fn heeds(&self, reset: &Reset) -> bool {
        self.half(reset.direction)
            .expects(reset.position, reset.time_ns)
    }

    /// The first reset that the other end heeds, as far as is known.
    pub(super) fn reset_by(&self) -> Option<Direction> {
        let reset = self.resets.iter().find(|reset| self.heeds(reset));
        reset.map(|reset| reset.direction)
    }

    /// When a reset is to be judged.
    pub(super) fn judgement(&self) -> Option<Duration> {
        self.resets.iter().map(|reset| reset.due).min()
    }

    /// Judges the resets whose time has come. Whether one has ended the connection.
    pub(super) fn judge_resets(&mut self, now: Duration, journal: &mut Journal<'_>) -> bool {
        while let Some(index) = self.resets.iter().position(|reset| reset.due <= now) {
            let reset = self.resets.remove(index);
            if !self.heeds(&reset) {
                continue;
            }
            self.end_by(reset.direction, journal);
            let own = self.halves(reset.direction).0;
            if own.stream.is_anchored() && own.stream.contiguous() == reset.position {
                // Nothing was ever sent behind it.
                own.stream.truncate(reset.position);
            }
            let is_cut = self.is_within_request();
            self.close(now, None, journal);
            self.was_reset = Some(is_cut);
            return true;
        }
        false
    }

    /// This side has ended the connection, if the other one has not before.
    pub(super) fn end_by(&mut self, direction: Direction, journal: &mut Journal<'_>) {
        let first = self.reset_by().unwrap_or(direction);
        self.ended_by.get_or_insert(first);
        journal.by = self.ended_by;
    }

    /// Whether the connection goes on after it was reset: what comes now is counted, whether the server takes
    /// it or not.
    pub(super) fn is_revived_by(&mut self, segment: &Segment) -> bool {
        if self.was_reset.is_none() || segment.payload.is_empty() || segment.extras.is_doubtful {
            return false;
        }
        let own = self.half(segment.direction);
        let end = own.stream.position(segment.sequence) + segment.payload.len() as u64;
        let is_news = end > own.stream.next() && !own.stream.is_finished();
        is_news && self.accepts(segment)
    }

    /// Goes on after a reset.
    pub(super) fn revive(&mut self) {
        let start = self.requests.stream.next();
        let reason = DropReason::RequestIncomplete;
        self.mode = Mode::Seek(match self.was_reset.take() {
            // The rest of a request that is in the ledger comes first.
            Some(true) => Seek::after_one(reason, start, (Direction::Request, None)),
            _ => Seek::new(reason, start),
        });
        self.closing = None;
        self.resets.clear();
    }

    /// A corrupt segment does not exist for TCP. But a network card that puts segments together may leave the
    /// checksum of one of them: such a segment is kept until the peer is known to have it.
    pub(super) fn doubt(&mut self, segment: Segment) {
        let own = self.halves(segment.direction).0;
        if segment.payload.len() > LARGEST_LONE && own.doubtful.len() < MAX_DOUBTFUL {
            own.doubtful.push(segment);
        }
    }

    /// Bytes that had been given up, since nobody sent them, are sent only now: what was taken for their
    /// successors is none.
    pub(super) fn take_back(&mut self, segment: &Segment, journal: &mut Journal<'_>) {
        let direction = segment.direction;
        let own = self.half(direction);
        let position = own.stream.position(segment.sequence);
        if segment.payload.is_empty() || !own.was_wrong_about(position) {
            return;
        }
        match direction {
            direction if self.rewind_http2(direction, position, journal) => {}
            Direction::Request => {
                if matches!(self.mode, Mode::Framed | Mode::SeekResponses) {
                    self.lose_requests(DropReason::RequestGap, journal);
                }
                self.requests.rewind(position);
                if let Mode::Seek(seek) = &mut self.mode {
                    seek.go_back_to(position);
                }
            }
            Direction::Response => {
                self.lose_responses(DropReason::ResponseGap, journal);
                self.responses.rewind(position);
            }
        }
    }

    /// Holds a segment against what was read of the same bytes: whose reading its difference spoils.
    pub(super) fn contradict(&mut self, segment: &Segment, journal: &mut Journal<'_>) {
        let own = self.half(segment.direction);
        let position = own.stream.position(segment.sequence);
        let length = segment.payload.len() as u64;
        let is_probe = length <= 1 && position + length == own.stream.next();
        if length == 0 || is_probe || position >= own.stream.next() {
            return;
        }
        let Some(at) = own.recent.contradicted_by(position, &segment.payload) else {
            return;
        };
        let reason = DropReason::Conflict;
        match segment.direction {
            Direction::Request if matches!(self.mode, Mode::Framed | Mode::SeekResponses) => {
                let first = self.open.iter().rposition(|open| open.start <= at);
                let Some(first) = first else {
                    return;
                };
                for open in self.open.iter_mut().skip(first) {
                    open.drop(reason, journal);
                }
                self.lose_requests(reason, journal);
            }
            Direction::Response if self.is_within_response() => {
                self.lose_responses(reason, journal);
            }
            _ => {}
        }
        self.halves(segment.direction).0.recent.clear();
    }

    fn is_within_response(&self) -> bool {
        let decoder = self.responses.decoder.as_ref();
        decoder.is_some_and(Decoder::has_begun)
    }
}
