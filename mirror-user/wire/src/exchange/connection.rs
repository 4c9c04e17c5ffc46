//! One TCP connection: how it begins, lives and ends.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use mirror_common::packet::{ACK, FIN, RST, SYN};
use mirror_common::tunnel::{Arm, Direction};

use super::acceptance::Reset;
use super::anchor::Pause;
use super::framing::Open;
use super::greeting::Greeting;
use super::half::{Half, Patience};
use super::handshake::{FastOpen, Handshake};
use super::resync::Seek;
use super::{ConnectionId, Event, Journal, Key, Limits};
use crate::http2;
use crate::memory::{Lease, Memory};
use crate::message::{DropReason, Segment, TapId};
use crate::stream::Flaw;

/// How long the copies of segments that were sent before a connection closed may take.
pub(super) const GRACE: Duration = Duration::from_millis(100);

/// A SYN may come so late: the tap copies on many CPUs, and the network reorders.
const LATE: Duration = Duration::from_millis(100);

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
    /// In HTTP/2, whose reader finds that out.
    Http2(Box<http2::Connection>),
    /// Neither (any more): left alone.
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
    /// The server was not yet seen to take part in it.
    pub(super) is_one_sided: bool,
    /// By how many bits the client's and the server's windows are to be shifted, as far as SYNs told.
    pub(super) scales: (Option<Option<u8>>, Option<Option<u8>>),
    /// The client for whom a proxy says that it has connected.
    pub(super) named: Option<SocketAddr>,
    /// Whether its first bytes were looked at, and what came of them so far.
    pub(super) greeting: Greeting,
    /// What came with the client's SYN.
    pub(super) fast_open: FastOpen,
    /// Other handshakes between its ends.
    pub(super) handshakes: Vec<Handshake>,
    /// Resets that are to be judged.
    pub(super) resets: Vec<Reset>,
    /// Whether a reset has ended it, and in the middle of a request.
    pub(super) was_reset: Option<bool>,
    /// It was silent for too long: what is open is in the ledger, and its rest is not counted.
    pub(super) is_abandoned: bool,
    /// When the tap saw the segment that made it known: its handshake cannot be later.
    pub(super) known_ns: u64,
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
        let says_something = segment.flags & ACK != 0 && !segment.payload.is_empty();
        let says_anything = segment.flags & SYN != 0 || says_something;
        segment.flags & RST == 0 && !segment.extras.is_doubtful && says_anything
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
            is_one_sided: false,
            scales: (None, None),
            named: None,
            greeting: Greeting::Awaited(None),
            fast_open: FastOpen::default(),
            handshakes: Vec::new(),
            resets: Vec::new(),
            was_reset: None,
            is_abandoned: false,
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

    /// Whether answers are copied from now on. Where they are not any more, none that is awaited
    /// will come; where they are again, it is to be found which one answers what.
    pub(super) fn expect_answers(&mut self, answered: bool, journal: &mut Journal<'_>) {
        if std::mem::replace(&mut self.answered, answered) == answered {
            return;
        }
        if matches!(self.mode, Mode::Http2(_)) {
            return self.leave_alone(DropReason::ResponseGap, journal);
        }
        self.responses.clear();
        if answered {
            // Whatever was said meanwhile was not followed.
            self.responses = Half::new();
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
            if !self.is_revived_by(&segment) {
                return;
            }
            self.revive();
        }
        if segment.flags & RST != 0 {
            self.note_reset(&segment, now);
            return;
        }
        let is_accepted = match segment.flags & SYN {
            0 => self.accepts(&segment),
            _ => self.synchronise(&segment, journal),
        };
        if !is_accepted {
            return;
        }
        if segment.extras.is_doubtful {
            self.doubt(segment);
        } else {
            self.take_in(segment, now, journal);
        }
        self.pump(journal);
        self.announce_first(journal);
        self.bound(now, journal);
        self.rest(journal);
        self.conclude(now, journal);
        self.requests.watch(now);
        self.responses.watch(now);
    }

    /// Takes in what its receiver accepts.
    fn take_in(&mut self, segment: Segment, now: Duration, journal: &mut Journal<'_>) {
        self.last_segment = now;
        self.is_abandoned = false;
        self.arm = segment.arm;
        if matches!(self.mode, Mode::Alone) {
            // Its end is still of interest.
        } else if self.answered || segment.direction == Direction::Request {
            self.take_back(&segment, journal);
            self.contradict(&segment, journal);
        }
        self.absorb(segment, now, journal);
    }

    fn absorb(&mut self, segment: Segment, now: Duration, journal: &mut Journal<'_>) {
        if !self.answered && segment.direction == Direction::Response {
            // Left over from before.
            return;
        }
        let is_syn = segment.flags & SYN != 0;
        let sequence = segment.sequence.wrapping_add(u32::from(is_syn));
        let acknowledgement = (segment.flags & ACK != 0).then_some(segment.acknowledgement);
        let (length, time_ns) = (segment.payload.len() as u32, segment.time_ns);
        let end = sequence.wrapping_add(length);
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
        if segment.direction == Direction::Response
            && let (Some(start), Some(got)) = (self.starts.0, acknowledgement)
            && got.wrapping_sub(start).cast_signed() > 0
        {
            self.is_one_sided = false;
        }
        if !self.answered || (segment.direction == Direction::Response && acknowledgement.is_some())
        {
            self.settle_fast_open(acknowledgement.filter(|_| self.answered), now);
        }
        let is_fast_open = is_syn && segment.direction == Direction::Request;
        let keeps = length > 0 && !is_fast_open && !matches!(self.mode, Mode::Alone);
        let answered = self.answered;
        let (own, peer) = self.halves(segment.direction);
        // Answers that are not copied are not lost, either.
        if let Some(sequence) = acknowledgement.filter(|_| answered) {
            peer.acknowledge(sequence, now);
            peer.believe_doubtful(now, Patience::Acknowledged);
        }
        let is_end = segment.flags & FIN != 0 && own.stream.finish(end);
        if keeps {
            let from = own.stream.position(sequence);
            own.stream
                .insert(sequence, acknowledgement, time_ns, segment.payload);
            if segment.extras.is_urgent {
                let to = from + u64::from(length);
                own.stream.mark(from..to, Flaw::Urgent);
            }
        }
        if !is_fast_open {
            own.arrive(end, time_ns, now);
        }
        if is_end {
            self.end_by(segment.direction, journal);
        }
        if self.requests.stream.is_finished() && self.responses.stream.is_finished() {
            self.closing.get_or_insert(now.saturating_add(GRACE));
        }
    }

    /// The handshake is not waited for any longer: the connection was joined in its middle.
    pub(super) fn join_midway(&mut self, journal: &mut Journal<'_>) {
        self.mode = Mode::Seek(Seek::new(DropReason::MidStream, 0));
        self.pump(journal);
        self.announce_first(journal);
    }

    /// From here on the connection is left alone.
    pub(super) fn leave_alone(&mut self, reason: DropReason, journal: &mut Journal<'_>) {
        self.drop_all(reason, journal);
        self.close_http2(Some(reason), journal);
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
}
