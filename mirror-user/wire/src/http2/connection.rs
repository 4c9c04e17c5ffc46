//! Both directions of a connection: how each is read, loses its place and finds it again, and how all ends.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use mirror_common::tunnel::Direction;

use super::call::Call;
use super::calls::malformed;
use super::frame::{Frame, Frames};
use super::half::{Half, Place};
use super::head::Unusable;
use super::seek::{self, Seek};
use super::settings::Settings;
use super::{PREFACE, Sink};
use crate::limits::Limits;
use crate::memory::Memory;
use crate::message::{DropReason, ExchangeId};
use crate::stream::Piece;

/// After its frames were found again a client's requests are withheld for so many bytes until they are answered: by
/// then bytes of a body that only looked like frames have turned out as such.
const PROBATION: u64 = 1 << 15;

/// So long a cancelled stream's answer may take that had passed before: the copies of it may be late.
const CANCELLED: Duration = Duration::from_secs(4);

/// Streams that are over, and of which frames may still come.
const MAX_CLOSED: usize = 256;

/// A stream that the client has cancelled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cancelled {
    pub(super) stream: u32,
    pub(super) time_ns: u64,
    pub(super) at: Duration,
}

/// A connection's exchanges.
#[derive(Debug)]
pub struct Connection {
    pub(super) limits: Limits,
    pub(super) memory: Memory,
    pub(super) requests: Half,
    pub(super) responses: Half,
    /// By stream; those that are over for the ledger as long as frames of theirs may come.
    pub(super) calls: BTreeMap<u32, Call>,
    /// Streams that were over last.
    closed: VecDeque<u32>,
    /// The client's newest stream.
    pub(super) highest: u32,
    /// Streams from here on were seen to begin; unknown until one is.
    pub(super) floor: Option<u32>,
    /// What the client has cancelled last: an answer that had passed by then counts.
    pub(super) cancelled: VecDeque<Cancelled>,
    /// No exchange was heard of last before.
    pub(super) oldest: Duration,
    pub(super) now: Duration,
    is_late: bool,
}

impl Connection {
    /// One that is read from the client's preface on.
    pub fn begun(limits: Limits, memory: &Memory) -> Self {
        Self {
            limits,
            memory: memory.clone(),
            requests: Half::new(Place::Preface(0), memory),
            responses: Half::new(Place::Frames(Frames::new(memory)), memory),
            calls: BTreeMap::new(),
            closed: VecDeque::new(),
            highest: 0,
            floor: Some(1),
            cancelled: VecDeque::new(),
            oldest: Duration::ZERO,
            now: Duration::ZERO,
            is_late: false,
        }
    }

    /// So many bytes of the client's preface were seen already.
    pub fn has_seen(&mut self, bytes: usize) {
        self.requests.place = Place::Preface(bytes.min(PREFACE.len() - 1));
    }

    /// One that is joined in its middle.
    pub fn joined(limits: Limits, memory: &Memory) -> Self {
        Self {
            requests: Half::joined(Direction::Request, memory),
            responses: Half::joined(Direction::Response, memory),
            floor: None,
            is_late: true,
            ..Self::begun(limits, memory)
        }
    }

    /// One that left HTTP/1 (RFC 7540, section 3.2): its first stream is the whole request that asked for it, which was
    /// handed on as this exchange; `settings` is the payload that it carried.
    ///
    /// # Errors
    /// What is wrong with the settings.
    pub fn upgraded(
        limits: Limits,
        memory: &Memory,
        id: ExchangeId,
        method: &str,
        settings: &[u8],
        now: Duration,
    ) -> Result<Self, &'static str> {
        let mut connection = Self::begun(limits, memory);
        connection.responses.bounds.ask(Settings::parse(settings)?);
        // The server's 101 acknowledges them.
        connection.responses.bounds.acknowledge();
        let mut call = Call::new(id, memory.empty_lease(), now);
        call.has_request_ended = true;
        call.asks_head = method == "HEAD";
        connection.oldest = now;
        connection.calls.insert(1, call);
        connection.highest = 1;
        Ok(connection)
    }

    /// Whether such segments' payloads are of a connection in HTTP/2 that was joined in its middle: several are whole
    /// frames each.
    pub fn is_likely<'a>(payloads: impl Iterator<Item = (Direction, &'a [u8])>) -> bool {
        let likeness = |(direction, payload)| seek::likeness(payload, direction);
        let alike: Vec<u32> = payloads.map(likeness).filter(|bits| *bits > 0).collect();
        alike.len() >= 3 && alike.iter().sum::<u32>() >= seek::ENOUGH
    }

    /// Whether it was joined in its middle; then whether all that its ends refer to is known by now.
    pub fn is_late(&self) -> Option<bool> {
        let healed = |half: &Half| half.is_joined() && half.table.is_healed();
        self.is_late
            .then(|| healed(&self.requests) && healed(&self.responses))
    }

    /// Exchanges that are neither answered nor dropped.
    pub fn open(&self) -> usize {
        self.calls.values().filter(|call| call.is_live).count()
    }

    /// Whether no frames of an exchange that was seen can still come.
    pub fn is_idle(&self) -> bool {
        self.calls.is_empty()
    }

    pub(super) fn halves(&mut self, direction: Direction) -> (&mut Half, &mut Half) {
        match direction {
            Direction::Request => (&mut self.requests, &mut self.responses),
            Direction::Response => (&mut self.responses, &mut self.requests),
        }
    }

    /// Takes in what follows in a direction.
    pub fn read(
        &mut self,
        direction: Direction,
        piece: Piece,
        now: Duration,
        sink: &mut impl Sink,
    ) {
        self.now = now;
        if direction == Direction::Response {
            self.settle_cancelled(|cancelled| cancelled.time_ns < piece.time_ns, sink);
        }
        if let Some(flaw) = piece.flaw {
            return self.skip(direction, piece.data.len() as u64, flaw.into(), sink);
        }
        let mut starts = piece.starts;
        let mut rest = VecDeque::from([(piece.time_ns, piece.data)]);
        while let Some((time_ns, mut data)) = rest.pop_front() {
            let starts = std::mem::take(&mut starts);
            if let Some(found) = self.read_some(direction, &mut data, (time_ns, starts), sink) {
                let behind = std::mem::take(&mut rest);
                rest = found.into_iter().chain(behind).collect();
            } else if !data.is_empty() {
                rest.push_front((time_ns, data));
            }
        }
    }

    /// Reads until `data` is used up or the place is another one; returns what is to be read anew.
    fn read_some(
        &mut self,
        direction: Direction,
        data: &mut Bytes,
        (time_ns, starts): (u64, bool),
        sink: &mut impl Sink,
    ) -> Option<Vec<(u64, Bytes)>> {
        let memory = self.memory.clone();
        let (half, _) = self.halves(direction);
        match &mut half.place {
            Place::Preface(seen) => {
                let expected = &PREFACE[*seen..];
                let length = expected.len().min(data.len());
                if data.split_to(length) != expected[..length] {
                    self.lose(direction, malformed("the client's preface"), sink);
                } else if length == expected.len() {
                    half.place = Place::Frames(Frames::new(&memory));
                } else {
                    *seen += length;
                }
                None
            }
            Place::Unknown(seek) => {
                let found = seek.feed(data.split_off(0), time_ns, starts);
                if found.is_some() {
                    half.place = Place::Frames(Frames::new(&memory));
                    half.probation = PROBATION;
                }
                found
            }
            Place::Frames(_) => {
                self.read_frames(direction, data, time_ns, sink);
                None
            }
        }
    }

    fn read_frames(
        &mut self,
        direction: Direction,
        data: &mut Bytes,
        time_ns: u64,
        sink: &mut impl Sink,
    ) {
        let before = data.len();
        loop {
            let (half, _) = self.halves(direction);
            let Place::Frames(frames) = &mut half.place else {
                return;
            };
            frames.max_size = half.bounds.frame_size();
            match frames.next(data, time_ns) {
                Ok(Some(frame)) => self.take(direction, frame, time_ns, sink),
                Ok(None) => break,
                Err(why) => return self.lose(direction, malformed(why), sink),
            }
        }
        let (half, _) = self.halves(direction);
        if half.probation > 0 {
            let read = (before - data.len()) as u64;
            half.probation = half.probation.saturating_sub(read);
            if half.probation == 0 {
                self.settle_all(sink);
            }
        }
    }

    fn take(&mut self, direction: Direction, frame: Frame, time_ns: u64, sink: &mut impl Sink) {
        let (own, peer) = self.halves(direction);
        match frame {
            Frame::Data { stream, data, end } => {
                self.take_data(direction, stream, (data, end), time_ns, sink);
            }
            Frame::Lost { stream, reason } => self.take_loss(stream, reason, sink),
            Frame::Headers { stream, block, end } => {
                self.take_headers(direction, stream, (block, end), time_ns, sink);
            }
            Frame::PushPromise { block } => self.take_promise(direction, block, sink),
            Frame::Reset { stream } => self.take_reset(direction, stream, time_ns, sink),
            Frame::Settings(settings) => peer.bounds.ask(settings),
            Frame::SettingsLost => peer.bounds.forget(),
            Frame::SettingsAck => own.bounds.acknowledge(),
            Frame::GoAway { last } => self.take_goaway(direction, last, sink),
        }
    }

    /// `bytes` bytes of a direction will not come, or cannot be trusted.
    pub fn skip(
        &mut self,
        direction: Direction,
        bytes: u64,
        reason: DropReason,
        sink: &mut impl Sink,
    ) {
        let (half, _) = self.halves(direction);
        let is_certain = match &mut half.place {
            Place::Frames(frames) => frames.skip(bytes, reason),
            Place::Preface(_) => false,
            Place::Unknown(seek) => {
                seek.restart();
                true
            }
        };
        if is_certain {
            self.read_frames(direction, &mut Bytes::new(), 0, sink);
        } else {
            self.lose(direction, reason.into(), sink);
        }
    }

    /// It is not known where frames begin in this direction, nor what its field blocks refer to.
    pub(super) fn lose(&mut self, direction: Direction, because: Unusable, sink: &mut impl Sink) {
        let seek = Seek::new(direction, &self.memory);
        let (half, peer) = self.halves(direction);
        let was_certain = half.probation == 0;
        half.place = Place::Unknown(seek);
        half.table.forget();
        half.bounds.forget();
        // Nor what it has asked of the other one meanwhile.
        peer.bounds.forget();
        half.probation = 0;
        if was_certain {
            (half.unknown, half.unseen) = (because, because);
        }
        // Else it may never have been frames.
        let because = half.unseen;
        let by = because.why.map(|_| direction);
        for call in self.calls.values_mut() {
            match direction {
                Direction::Request if !call.has_request_ended || call.withheld.is_some() => {
                    call.drop(because, by, sink);
                    call.has_request_ended = true;
                }
                Direction::Response if call.response.is_some() || !call.is_live => {
                    call.drop(because, by, sink);
                    call.has_response_ended = true;
                }
                // Its answer may still come.
                Direction::Response => call.gap = Some(because),
                Direction::Request => {}
            }
        }
        if direction == Direction::Request {
            self.floor = None;
        }
        self.forget_closed();
    }

    /// Nothing more comes in this direction.
    pub fn end(&mut self, direction: Direction, sink: &mut impl Sink) {
        if direction == Direction::Response {
            self.settle_cancelled(|_| true, sink);
        }
        for call in self.calls.values_mut() {
            let is_cut = match direction {
                Direction::Request => !call.has_request_ended,
                Direction::Response => !call.has_response_ended,
            };
            if is_cut {
                call.drop(call.why_incomplete(), None, sink);
                call.has_request_ended = true;
                call.has_response_ended |= direction == Direction::Response;
            }
        }
        self.forget_closed();
    }

    /// Gives up what was not heard of for too long.
    pub fn expire(&mut self, now: Duration, sink: &mut impl Sink) {
        self.now = now;
        let most = self.limits.incomplete;
        let is_due = |since: Duration| since.saturating_add(most) <= now;
        self.settle_cancelled(
            |cancelled| cancelled.at.saturating_add(CANCELLED) <= now,
            sink,
        );
        if !is_due(self.oldest) {
            return;
        }
        self.oldest = now;
        for call in self.calls.values_mut() {
            if !is_due(call.touched) {
                self.oldest = self.oldest.min(call.touched);
            } else {
                let unseen = self.requests.unseen;
                let reason = match call.is_unasked() && self.floor != Some(1) {
                    true => unseen,
                    false => call.why_incomplete(),
                };
                call.drop(reason, None, sink);
                (call.has_request_ended, call.has_response_ended) = (true, true);
            }
        }
        self.forget_closed();
    }

    /// When [`Connection::expire`] has something to do next, if it has.
    pub fn deadline(&self) -> Option<Duration> {
        if self.calls.is_empty() {
            return None;
        }
        let oldest = self.oldest.saturating_add(self.limits.incomplete);
        let cancelled = self.cancelled.front();
        let cancelled = cancelled.map(|cancelled| cancelled.at.saturating_add(CANCELLED));
        Some(cancelled.map_or(oldest, |cancelled| cancelled.min(oldest)))
    }

    /// Drops all that is open, as incomplete or for `reason`.
    pub fn close(
        &mut self,
        reason: Option<DropReason>,
        by: Option<Direction>,
        sink: &mut impl Sink,
    ) {
        self.settle_cancelled(|_| true, sink);
        for mut call in std::mem::take(&mut self.calls).into_values() {
            let reason = reason.map_or_else(|| call.why_incomplete(), Unusable::from);
            call.drop(reason, by, sink);
        }
    }

    /// Whether frames of a stream that is over may still come.
    pub(super) fn was_closed(&self, stream: u32) -> bool {
        self.closed.contains(&stream)
    }

    pub(super) fn note_closed(&mut self, stream: u32) {
        if self.closed.len() >= MAX_CLOSED {
            self.closed.pop_front();
        }
        self.closed.push_back(stream);
    }

    /// Forgets calls of which nothing more comes.
    pub(super) fn forget_closed(&mut self) {
        let over = self.calls.extract_if(.., |_, call| call.is_over());
        for (stream, _) in over.collect::<Vec<_>>() {
            self.note_closed(stream);
        }
    }
}
