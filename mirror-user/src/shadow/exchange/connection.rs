//! One TCP connection: how it begins, lives and ends.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use mirror_common::packet::{ACK, FIN, RST, SYN};
use mirror_common::tunnel::{Arm, Direction};

use super::anchor::Pause;
use super::framing::Open;
use super::half::{Half, Patience};
use super::resync::Seek;
use super::{ConnectionId, Event, Journal, Key, LINGER, Limits};
use crate::shadow::http::Decoder;
use crate::shadow::memory::{Lease, Memory};
use crate::shadow::message::{DropReason, Segment, TapId};

/// How long the copies of segments that were sent before a connection closed may take.
const GRACE: Duration = Duration::from_millis(100);

/// A SYN may come so late: the tap copies on many CPUs, and the network reorders.
const LATE: Duration = Duration::from_millis(100);

/// As many bytes of data may come before it where its time does not tell: a foreign tap's.
const LATE_SYN: u64 = 1 << 20;

/// The most pieces of a direction that wait for the handshake: all are searched for a turn when it
/// does not come.
const MAX_UNKNOWN: usize = 1_024;

/// What is known of where messages begin.
#[derive(Debug)]
pub(super) enum Mode {
    /// Not yet anything: joined in its middle, or ahead of its own handshake, which is waited for.
    Unknown {
        /// Until then.
        until: Duration,
    },
    /// In both directions.
    Framed,
    /// Only of requests.
    SeekResponses,
    /// Of neither, but for responses to exchanges that are still open.
    Seek(Seek),
    /// Not HTTP/1 (any more): left alone.
    Alone,
    /// It is over; remembered so that late copies do not look like a new connection.
    Closed {
        /// Until then.
        until: Duration,
    },
}

/// One TCP connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) tap: TapId,
    pub(super) client: SocketAddr,
    pub(super) arm: Arm,
    pub(super) limits: Limits,
    pub(super) memory: Memory,
    /// Pays for segments that wait.
    pub(super) lease: Lease,
    pub(super) mode: Mode,
    /// Whether another agent goes on with it, and from where.
    pub(super) pause: Pause,
    pub(super) requests: Half,
    pub(super) responses: Half,
    /// Exchanges whose request or response is not yet whole, in their order.
    pub(super) open: VecDeque<Open>,
    /// Where the client's and the server's first bytes stand, as far as SYNs told.
    pub(super) starts: (Option<u32>, Option<u32>),
    /// When the tap saw the segment that made it known: its handshake cannot be later.
    known_ns: u64,
    /// Whether the client was seen to send a request before it had the answer to the last one.
    pub(super) pipelines: bool,
    /// Whether a request of it was handed on.
    pub(super) has_requests: bool,
    /// Whether answers are copied, too.
    pub(super) answered: bool,
    /// The side that ended it first.
    pub(super) ended_by: Option<Direction>,
    /// When it will be closed for good.
    pub(super) closing: Option<Duration>,
    pub(super) last_segment: Duration,
    /// When it will be looked at again.
    pub(super) timer: Option<Duration>,
}

impl Connection {
    /// Whether a segment of an unknown connection begins one: what closes one does not.
    pub(super) fn is_begun_by(segment: &Segment) -> bool {
        segment.flags & RST == 0 && (segment.flags & SYN != 0 || !segment.payload.is_empty())
    }

    pub(super) fn new(
        id: ConnectionId,
        segment: &Segment,
        limits: Limits,
        memory: &Memory,
        now: Duration,
    ) -> Self {
        let until = now.saturating_add(LATE);
        let key = Key::of(segment);
        Self {
            mode: Mode::Unknown { until },
            known_ns: segment.time_ns,
            ..Self::blank(id, &key, segment.arm, limits, memory)
        }
    }

    /// One of which nothing is known.
    pub(super) fn blank(
        id: ConnectionId,
        key: &Key,
        arm: Arm,
        limits: Limits,
        memory: &Memory,
    ) -> Self {
        Self {
            id,
            tap: key.tap,
            client: key.flow.client.into(),
            arm,
            limits,
            memory: memory.clone(),
            lease: memory.empty_lease(),
            mode: Mode::Alone,
            pause: Pause::No,
            requests: Half::new(),
            responses: Half::new(),
            open: VecDeque::new(),
            starts: (None, None),
            known_ns: 0,
            pipelines: false,
            has_requests: false,
            answered: true,
            ended_by: None,
            closing: None,
            last_segment: Duration::ZERO,
            timer: None,
        }
    }

    /// Whether it was seen from its first byte on.
    pub(super) fn has_start(&self) -> bool {
        self.starts.0.is_some()
    }

    /// When the tap saw its SYN; nothing where it did not.
    pub(super) fn opened_ns(&self) -> Option<u64> {
        self.has_start().then_some(self.known_ns)
    }

    /// Whether this SYN, or SYN-ACK, is of another connection between the same ends.
    pub(super) fn is_replaced_by(&self, segment: &Segment) -> bool {
        let (requests, responses) = starts_by(segment);
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

    /// Whether answers are copied from now on. Where they are not any more, none that is awaited
    /// will come; where they are again, it is to be found which one answers what.
    pub(super) fn expect_answers(&mut self, answered: bool, journal: &mut Journal<'_>) {
        if std::mem::replace(&mut self.answered, answered) == answered {
            return;
        }
        self.responses.clear();
        if answered {
            if matches!(self.mode, Mode::Framed) {
                self.mode = Mode::SeekResponses;
            }
            return;
        }
        for open in self.open.iter_mut().filter(|open| open.is_awaited()) {
            open.forgo_answer(journal);
        }
        self.settle(journal);
    }

    /// Takes a segment in.
    pub(super) fn segment(&mut self, segment: Segment, now: Duration, journal: &mut Journal<'_>) {
        if matches!(self.mode, Mode::Closed { .. }) {
            return;
        }
        self.last_segment = now;
        self.arm = segment.arm;
        if segment.flags & SYN != 0 {
            self.synchronise(&segment);
            journal.opened_ns = self.opened_ns();
        }
        if segment.flags & (FIN | RST) != 0 {
            self.ended_by.get_or_insert(segment.direction);
            journal.by = self.ended_by;
        }
        if segment.flags & RST == 0 {
            self.absorb(segment, now);
        } else {
            self.closing.get_or_insert(now.saturating_add(GRACE));
        }
        self.pump(journal);
        self.bound(now, journal);
        self.rest(journal);
        self.conclude(now, journal);
    }

    /// A SYN fixes where requests start, a SYN-ACK where both directions do. One that was not
    /// waited for any more tells nothing.
    fn synchronise(&mut self, segment: &Segment) {
        if !self.has_start() && !matches!(self.mode, Mode::Unknown { .. }) {
            return;
        }
        let (requests, responses) = starts_by(segment);
        if let (None, Some(start)) = (self.starts.0, requests) {
            self.requests.start(start);
            self.starts.0 = requests;
        }
        if let (None, Some(start)) = (self.starts.1, responses) {
            self.responses.start(start);
            self.starts.1 = responses;
        }
        if matches!(self.mode, Mode::Unknown { .. }) && self.has_start() {
            self.mode = Mode::Framed;
        }
    }

    fn absorb(&mut self, segment: Segment, now: Duration) {
        if !self.answered && segment.direction == Direction::Response {
            // Left over from before.
            return;
        }
        let sequence = segment
            .sequence
            .wrapping_add(u32::from(segment.flags & SYN != 0));
        let acknowledgement = (segment.flags & ACK != 0).then_some(segment.acknowledgement);
        let end = sequence.wrapping_add(segment.payload.len() as u32);
        if matches!(self.mode, Mode::Framed)
            && segment.direction == Direction::Request
            && !segment.payload.is_empty()
            && self.starts == (Some(sequence), None)
            && let Some(start) = acknowledgement
        {
            // The SYN-ACK was lost, but a server does not speak first.
            self.responses.start(start);
            self.starts.1 = Some(start);
        }
        let (own, peer) = match segment.direction {
            Direction::Request => (&mut self.requests, &mut self.responses),
            Direction::Response => (&mut self.responses, &mut self.requests),
        };
        // Answers that are not copied are not lost, either.
        if let Some(sequence) = acknowledgement.filter(|_| self.answered) {
            peer.acknowledge(sequence, now);
        }
        if segment.flags & FIN != 0 {
            own.stream.finish(end);
        }
        if !segment.payload.is_empty() && !matches!(self.mode, Mode::Alone) {
            let time_ns = segment.time_ns;
            own.stream
                .insert(sequence, acknowledgement, time_ns, segment.payload);
        }
        own.arrive(end, now);
        if self.requests.stream.is_finished() && self.responses.stream.is_finished() {
            self.closing.get_or_insert(now.saturating_add(GRACE));
        }
    }

    /// Copies come in order: where it does not begin with its handshake, that came before the tap.
    pub(super) fn awaits_no_handshake(&mut self) {
        if matches!(self.mode, Mode::Unknown { .. }) {
            self.mode = Mode::Seek(Seek::new(DropReason::MidStream, 0));
        }
    }

    /// The handshake is not waited for any longer: the connection was joined in its middle.
    pub(super) fn join_midway(&mut self, journal: &mut Journal<'_>) {
        self.mode = Mode::Seek(Seek::new(DropReason::MidStream, 0));
        self.pump(journal);
    }

    /// Keeps what waits within its limits.
    fn bound(&mut self, now: Duration, journal: &mut Journal<'_>) {
        if matches!(self.mode, Mode::Unknown { .. }) {
            let over = |half: &Half| half.exceeds(MAX_UNKNOWN, self.limits.buffer);
            if over(&self.requests) || over(&self.responses) {
                self.join_midway(journal);
            }
        }
        while matches!(self.mode, Mode::Framed | Mode::SeekResponses) && self.is_full() {
            if !self.relieve(now, journal) {
                self.overflow(DropReason::Memory, journal);
            }
        }
        // While answers from before the loss are awaited, a turn behind it may be among these.
        if matches!(self.mode, Mode::Seek(_)) && (self.open.is_empty() || self.is_full()) {
            self.trim(journal);
        }
        let waiting = self.requests.buffered() + self.responses.buffered();
        let more = waiting.saturating_sub(self.lease.bytes());
        if more > 0 && !self.lease.grow(more) {
            self.overflow(DropReason::Memory, journal);
            self.lease.shrink_to(0);
        } else {
            self.lease.shrink_to(waiting);
        }
    }

    fn is_full(&self) -> bool {
        self.requests.is_full(self.limits.buffer) || self.responses.is_full(self.limits.buffer)
    }

    /// Gives one hole up before its time. Whether that changed anything.
    fn relieve(&mut self, now: Duration, journal: &mut Journal<'_>) -> bool {
        if self.requests.is_full(self.limits.buffer) {
            return self.give_up(now, Patience::None, Direction::Request, journal);
        }
        if matches!(self.mode, Mode::SeekResponses) {
            let middle = self.responses.middle_ns().unwrap_or_default();
            self.responses.discard_before(middle.saturating_add(1));
            return true;
        }
        self.give_up(now, Patience::None, Direction::Response, journal)
            || self.give_up(now, Patience::None, Direction::Request, journal)
    }

    /// Gives up every hole whose time has come. Responses first: as long as requests are framed,
    /// so are the answers behind the hole.
    fn give_up_all(&mut self, now: Duration, patience: Patience, journal: &mut Journal<'_>) {
        while self.give_up(now, patience, Direction::Response, journal)
            || self.give_up(now, patience, Direction::Request, journal)
        {}
    }

    /// Nothing of what waits can be kept.
    fn overflow(&mut self, reason: DropReason, journal: &mut Journal<'_>) {
        let last = self.open.back().map(|open| open.start);
        let start = self.requests.position();
        self.drop_all(reason, journal);
        self.requests.clear();
        self.responses.clear();
        self.mode = Mode::Seek(match last {
            Some(last) => Seek::after_one(reason, last, (Direction::Request, None)),
            None => Seek::new(reason, start),
        });
    }

    /// From here on the connection is left alone.
    pub(super) fn leave_alone(&mut self, reason: DropReason, journal: &mut Journal<'_>) {
        self.drop_all(reason, journal);
        self.requests.clear();
        self.responses.clear();
        self.mode = Mode::Alone;
        self.announce_closed(journal);
    }

    pub(super) fn announce_closed(&mut self, journal: &mut Journal<'_>) {
        if std::mem::take(&mut self.has_requests) {
            let connection = self.id;
            journal.events.push(Event::Closed { connection });
        }
    }

    /// Draws the conclusions from what has ended.
    fn conclude(&mut self, now: Duration, journal: &mut Journal<'_>) {
        if self.requests.is_ended() {
            self.end_requests(journal);
        }
        if self.responses.is_ended() {
            self.end_responses(journal);
        }
        let answered = !self.answered || self.responses.is_ended();
        self.rest(journal);
        if self.requests.is_ended() && answered && self.open.is_empty() {
            self.close(now, None, journal);
        }
    }

    /// Ends it. What is open is dropped as incomplete, or for `reason`.
    pub(super) fn close(
        &mut self,
        now: Duration,
        reason: Option<DropReason>,
        journal: &mut Journal<'_>,
    ) {
        match self.mode {
            Mode::Closed { .. } => return,
            Mode::Unknown { .. } => self.join_midway(journal),
            _ => {}
        }
        if self.is_rested() {
            return;
        }
        let cut = self.is_within_request();
        if reason.is_none() {
            self.give_up_all(now, Patience::None, journal);
            self.end_requests(journal);
            if self.responses.is_ended() {
                self.end_responses(journal);
            }
        }
        let unclaimed = self.open.is_empty();
        while let Some(mut open) = self.open.pop_front() {
            let reason = reason.unwrap_or_else(|| self.why_incomplete(&open));
            open.drop(reason, journal);
        }
        let waiting = self.requests.buffered() + self.responses.buffered() > 0;
        match self.mode {
            Mode::Seek(_) => self.pass_all(reason, journal),
            // An answer to nothing that was seen, or bytes behind a request to leave HTTP/1.
            Mode::Framed if waiting && unclaimed && !self.is_between_requests() => {
                journal.missed(reason.unwrap_or(DropReason::RequestIncomplete));
            }
            _ => {}
        }
        self.rest_closed(cut, unclaimed);
        self.requests.clear();
        self.responses.clear();
        self.lease.shrink_to(0);
        self.announce_closed(journal);
        let until = now.saturating_add(LINGER);
        self.mode = Mode::Closed { until };
    }

    /// Why an exchange that the end of the connection finds open will not be whole.
    fn why_incomplete(&self, open: &Open) -> DropReason {
        if self.has_lost_responses() || !open.is_awaited() {
            return DropReason::ResponseGap;
        }
        let decoder = self.responses.decoder.as_ref();
        decoder
            .and_then(Decoder::unfit)
            .map_or(DropReason::ResponseIncomplete, |unfit| {
                unfit.reason(Direction::Response)
            })
    }

    /// Lets time pass. Whether the connection can be forgotten.
    pub(super) fn tick(&mut self, now: Duration, journal: &mut Journal<'_>) -> bool {
        if self.is_rested() {
            return false;
        }
        if let Mode::Closed { until } = self.mode {
            return until <= now;
        }
        // What came all at once may have begun and ended by now: it is taken up before it is over.
        if matches!(self.mode, Mode::Unknown { until } if until <= now) {
            self.join_midway(journal);
        } else if self.closing.is_some_and(|closing| closing <= now) {
            self.close(now, None, journal);
            return false;
        }
        self.give_up_all(now, Patience::Usual, journal);
        self.bound(now, journal);
        self.rest(journal);
        self.conclude(now, journal);
        if self.is_rested() {
            return false;
        }
        if matches!(self.mode, Mode::Closed { .. }) || now < self.silent_at() {
            return false;
        }
        if matches!(self.mode, Mode::Seek(_)) && self.is_incomplete() && self.open.is_empty() {
            // What was passed over is accounted for; the next turn may still be told.
            self.pass_all(None, journal);
            self.bound(now, journal);
            return false;
        }
        self.close(now, None, journal);
        !self.is_rested()
    }

    fn is_incomplete(&self) -> bool {
        !self.open.is_empty() || self.requests.buffered() + self.responses.buffered() > 0
    }

    /// When its silence will have been too long.
    fn silent_at(&self) -> Duration {
        let ending = self.requests.stream.is_finished() || self.responses.stream.is_finished();
        self.last_segment
            .saturating_add(if ending || self.is_incomplete() {
                self.limits.incomplete
            } else {
                self.limits.idle
            })
    }

    /// When it has to be looked at again.
    pub(super) fn deadline(&self) -> Duration {
        if self.is_rested() {
            return self.silent_at();
        }
        if let Mode::Closed { until } = self.mode {
            return until;
        }
        let handshake = match self.mode {
            Mode::Unknown { until } => Some(until),
            _ => None,
        };
        let holes = [self.requests.deadline(), self.responses.deadline()];
        let earliest = holes
            .into_iter()
            .chain([handshake, self.closing])
            .flatten()
            .min();
        earliest.map_or(self.silent_at(), |earliest| earliest.min(self.silent_at()))
    }
}

/// Where the client's and the server's first bytes stand by this SYN or SYN-ACK.
fn starts_by(segment: &Segment) -> (Option<u32>, Option<u32>) {
    let start = Some(segment.sequence.wrapping_add(1));
    match (segment.direction, segment.flags & ACK != 0) {
        (Direction::Request, false) => (start, None),
        (Direction::Response, true) => (Some(segment.acknowledgement), start),
        _ => (None, None),
    }
}
