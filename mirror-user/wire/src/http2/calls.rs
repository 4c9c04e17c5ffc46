//! What a frame means for its stream's exchange (RFC 9113, section 5.1).

use bytes::Bytes;
use mirror_common::tunnel::Direction;

use super::Sink;
use super::call::{COST, Call};
use super::connection::{Cancelled, Connection};
use super::frame::Block;
use super::head::{Asking, Head, Section, Unusable};
use super::message::Message;
use crate::message::DropReason;

/// The most exchanges of one connection at once.
const MAX_CALLS: usize = 4_096;

/// A field block, decoded: when its first byte passed, and what stands in it.
type Decoded = Result<(u64, Section), Unusable>;

/// Where a stream is of which no exchange is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stranger {
    /// It is over.
    Closed,
    /// It began where nothing was read.
    Unseen,
    /// The client has not begun it yet.
    New,
}

impl Connection {
    fn stranger(&self, stream: u32) -> Stranger {
        if self.was_closed(stream) {
            Stranger::Closed
        } else if stream > self.highest {
            Stranger::New
        } else if self.floor.is_some_and(|floor| stream >= floor) {
            Stranger::Closed
        } else {
            Stranger::Unseen
        }
    }

    /// An exchange of this stream's begins; nothing where there is no room for it.
    fn open_call(&mut self, stream: u32, sink: &mut impl Sink) -> Option<&mut Call> {
        if self.calls.is_empty() {
            self.oldest = self.now;
        }
        let id = sink.seen();
        let lease = self
            .memory
            .lease(COST)
            .filter(|_| self.calls.len() < MAX_CALLS);
        let Some(lease) = lease else {
            let mut call = Call::new(id, self.memory.empty_lease(), self.now);
            call.drop(DropReason::Memory, None, sink);
            self.note_closed(stream);
            return None;
        };
        let mut call = Call::new(id, lease, self.now);
        call.gap = Some(self.responses.unseen).filter(|_| !self.responses.is_joined());
        Some(self.calls.entry(stream).or_insert(call))
    }

    /// A stream that began where nothing was read: it is counted, and what comes of it passed over.
    fn pass_over(&mut self, direction: Direction, stream: u32, end: bool, sink: &mut impl Sink) {
        let reason = self.requests.unseen;
        let Some(call) = self.open_call(stream, sink) else {
            return;
        };
        call.drop(reason, None, sink);
        call.has_request_ended = true;
        call.has_response_ended = end && direction == Direction::Response;
        self.settle(stream, sink);
    }

    pub(super) fn take_headers(
        &mut self,
        direction: Direction,
        stream: u32,
        (block, end): (Block, bool),
        time_ns: u64,
        sink: &mut impl Sink,
    ) {
        let Some(decoded) = self.decode(direction, block, sink) else {
            return;
        };
        if stream.is_multiple_of(2) {
            // What was pushed.
            return;
        }
        let is_head = matches!(&decoded, Ok((_, section)) if section.is_head());
        // As long as no stream was seen to begin: trailers of one that began before, or what may be some.
        let may_be_rest = !is_head && self.floor.is_none();
        let unseen = self.requests.unseen;
        let mut is_begin = direction == Direction::Request;
        match self.calls.get_mut(&stream) {
            Some(call) if may_be_rest && call.is_unasked() && direction == Direction::Request => {
                call.drop(unseen, None, sink);
                call.has_request_ended = true;
                return self.settle(stream, sink);
            }
            // It had begun before.
            Some(call) if !call.is_unasked() => is_begin = false,
            Some(_) => {}
            None => match self.stranger(stream) {
                Stranger::Closed => return,
                Stranger::New if !may_be_rest => {
                    if self.open_call(stream, sink).is_none() && !is_begin {
                        return;
                    }
                }
                Stranger::New | Stranger::Unseen => {
                    return self.pass_over(direction, stream, end, sink);
                }
            },
        }
        if is_begin {
            self.note_begun(stream, sink);
        }
        match direction {
            Direction::Request => self.take_asking(stream, decoded, time_ns, sink),
            Direction::Response => self.take_answer(stream, (decoded, end), time_ns, sink),
        }
        self.note_end(direction, stream, end, sink);
    }

    /// The client has begun a stream: those before it that it has not, it never will.
    fn note_begun(&mut self, stream: u32, sink: &mut impl Sink) {
        if stream <= self.highest {
            return;
        }
        let reason = self.requests.unseen;
        for (_, call) in self.calls.range_mut(..stream) {
            if call.is_unasked() {
                call.drop(reason, None, sink);
                call.has_request_ended = true;
            }
        }
        self.highest = stream;
        self.floor.get_or_insert(stream);
    }

    /// Decodes a block; nothing where the two ends do not agree on the table any more.
    fn decode(
        &mut self,
        direction: Direction,
        block: Block,
        sink: &mut impl Sink,
    ) -> Option<Decoded> {
        let (half, _) = self.halves(direction);
        let (first_ns, block) = match block {
            Block::Whole(first_ns, block) => (first_ns, block),
            Block::Lost(reason) => {
                half.table.forget();
                half.unknown = reason.into();
                return Some(Err(reason.into()));
            }
        };
        half.table.ceiling = half.bounds.table_size().map(|size| size as usize);
        let was_whole = half.table.is_whole();
        let mut section = Section::default();
        let decoded = half.table.decode(&block, |field| section.push(field));
        if was_whole && !half.table.is_whole() {
            // There was no room for all of it.
            half.unknown = DropReason::Memory.into();
        }
        match decoded {
            Ok(()) => Some(Ok((first_ns, section))),
            Err(why) => {
                let (reason, why) = (DropReason::Malformed, Some(why));
                self.lose(direction, Unusable { reason, why }, sink);
                None
            }
        }
    }

    /// What a block says; one with fields that are not known, why they are not.
    fn read_section(
        &mut self,
        direction: Direction,
        decoded: Decoded,
    ) -> Result<(u64, usize, Head), Unusable> {
        let (half, _) = self.halves(direction);
        let (first_ns, section) = decoded?;
        let size = section.size();
        match section.read(direction) {
            Ok(head) => Ok((first_ns, size, head)),
            Err(unusable) if unusable.reason == DropReason::JoinedLate => Err(half.unknown),
            Err(unusable) => Err(unusable),
        }
    }

    fn take_asking(&mut self, stream: u32, decoded: Decoded, time_ns: u64, sink: &mut impl Sink) {
        let read = self.read_section(Direction::Request, decoded);
        let limits = self.limits;
        let now = self.now;
        let Some(call) = self.calls.get_mut(&stream).filter(|call| call.is_live) else {
            return;
        };
        call.touched = now;
        let by = Some(Direction::Request);
        match (read, &mut call.request) {
            (Err(unusable), _) => call.drop(unusable, unusable.blames(Direction::Request), sink),
            (Ok((_, size, Head::Trailers(trailers))), Some(request)) => {
                request.trail(trailers, size, time_ns);
            }
            (Ok((first_ns, size, Head::Request(asking))), None) if !call.has_request_ended => {
                let Asking { method, fields, .. } = &asking;
                call.asks_head = method == "HEAD";
                if limits.mark.is_some_and(|mark| mark.is_on(fields)) {
                    return call.drop(DropReason::Loop, None, sink);
                }
                if method == "CONNECT" {
                    return call.drop(DropReason::Upgrade, None, sink);
                }
                if call.asks_head
                    && let Some(response) = &mut call.response
                {
                    response.answers_head();
                }
                let mut request =
                    Message::new(&self.memory, limits.max_body, limits.skips_requests);
                request.begin(Head::Request(asking), size, (first_ns, time_ns));
                call.request = Some(request);
            }
            _ => call.drop(malformed("a head that does not begin its stream"), by, sink),
        }
    }

    fn take_answer(
        &mut self,
        stream: u32,
        (decoded, end): (Decoded, bool),
        time_ns: u64,
        sink: &mut impl Sink,
    ) {
        let read = self.read_section(Direction::Response, decoded);
        let limits = self.limits;
        let now = self.now;
        let Some(call) = self.calls.get_mut(&stream).filter(|call| call.is_live) else {
            return;
        };
        call.touched = now;
        let by = Some(Direction::Response);
        match (read, &mut call.response) {
            (Err(unusable), _) => call.drop(unusable, unusable.blames(Direction::Response), sink),
            // Another one follows.
            (Ok((_, _, head)), None) if head.is_interim() && !end => {}
            (Ok((first_ns, size, head @ Head::Response { .. })), None) if !head.is_interim() => {
                let mut response =
                    Message::new(&self.memory, limits.max_body, limits.skips_responses);
                if call.asks_head {
                    response.answers_head();
                }
                response.begin(head, size, (first_ns, time_ns));
                call.response = Some(response);
            }
            (Ok((_, size, Head::Trailers(trailers))), Some(response)) if end => {
                response.trail(trailers, size, time_ns);
            }
            // Its head came where nothing was read.
            (Ok((_, _, Head::Trailers(_))), None) if call.gap.is_some() => {
                call.drop(call.why_incomplete(), None, sink);
            }
            _ => call.drop(malformed("a head that does not begin its stream"), by, sink),
        }
    }

    pub(super) fn take_data(
        &mut self,
        direction: Direction,
        stream: u32,
        (data, end): (Bytes, bool),
        time_ns: u64,
        sink: &mut impl Sink,
    ) {
        if stream.is_multiple_of(2) {
            return;
        }
        let (now, endless) = (self.now, self.limits.endless);
        let is_unseen = self.floor.is_none();
        let Some(call) = self.calls.get_mut(&stream) else {
            match self.stranger(stream) {
                Stranger::Closed => {}
                Stranger::New if self.floor.is_some() && direction == Direction::Request => {
                    self.lose(direction, malformed("DATA before its stream's head"), sink);
                }
                Stranger::New | Stranger::Unseen => self.pass_over(direction, stream, end, sink),
            }
            return;
        };
        call.touched = now;
        let (message, has_ended) = match direction {
            Direction::Request => (&mut call.request, call.has_request_ended),
            Direction::Response => (&mut call.response, call.has_response_ended),
        };
        match message {
            Some(message) if !has_ended => {
                message.push(data, time_ns);
                if direction == Direction::Response && sink.is_unneeded(call.id) {
                    message.forget_body();
                }
            }
            None if call.is_live => {
                let (reason, by) = match (direction, call.gap) {
                    (Direction::Response, Some(gap)) => (gap, None),
                    (Direction::Request, _) if is_unseen => (self.requests.unseen, None),
                    _ => (malformed("DATA before its stream's head"), Some(direction)),
                };
                call.drop(reason, by, sink);
            }
            _ => {}
        }
        let is_endless = |since| endless.is_some_and(|most| now.saturating_sub(since) > most);
        if direction == Direction::Response && call.since.is_some_and(is_endless) {
            call.drop(DropReason::ResponseIncomplete, None, sink);
        }
        self.note_end(direction, stream, end, sink);
    }

    /// Bytes of a stream's message are missing. One that was not seen to begin is counted by what follows of it.
    pub(super) fn take_loss(&mut self, stream: u32, reason: DropReason, sink: &mut impl Sink) {
        if let Some(call) = self.calls.get_mut(&stream) {
            call.drop(reason, None, sink);
        }
    }

    pub(super) fn take_reset(
        &mut self,
        direction: Direction,
        stream: u32,
        time_ns: u64,
        sink: &mut impl Sink,
    ) {
        let Some(call) = self.calls.get_mut(&stream) else {
            if !stream.is_multiple_of(2) && self.stranger(stream) == Stranger::Unseen {
                self.pass_over(Direction::Response, stream, true, sink);
            }
            return;
        };
        if direction == Direction::Request && call.has_request_ended && call.is_live {
            if std::mem::replace(&mut call.is_cancelled, true) {
                return;
            }
            // Both directions are read at their own pace: the whole answer may have passed before.
            let at = self.now;
            self.cancelled.push_back(Cancelled {
                stream,
                time_ns,
                at,
            });
            return;
        }
        let reason = match direction {
            Direction::Response if !call.has_response_ended => {
                DropReason::ResponseIncomplete.into()
            }
            _ => call.why_incomplete(),
        };
        call.drop(reason, Some(direction), sink);
        (call.has_request_ended, call.has_response_ended) = (true, true);
        self.settle(stream, sink);
    }

    /// Ends what the client has cancelled, where nothing of its answer can come any more.
    pub(super) fn settle_cancelled(
        &mut self,
        is_due: impl Fn(&Cancelled) -> bool,
        sink: &mut impl Sink,
    ) {
        while let Some(Cancelled { stream, .. }) =
            self.cancelled.pop_front_if(|cancelled| is_due(cancelled))
        {
            if let Some(call) = self.calls.get_mut(&stream) {
                let by = Some(Direction::Request);
                call.drop(call.why_incomplete(), by, sink);
                call.has_response_ended = true;
                self.settle(stream, sink);
            }
        }
    }

    /// The server goes on with streams up to `last` alone.
    pub(super) fn take_goaway(&mut self, direction: Direction, last: u32, sink: &mut impl Sink) {
        if direction == Direction::Request || last == u32::MAX >> 1 {
            return;
        }
        for (_, call) in self.calls.range_mut(last + 1..) {
            if call.response.is_none() {
                call.drop(DropReason::ResponseIncomplete, Some(direction), sink);
                call.has_response_ended = true;
            }
        }
        self.forget_closed();
    }

    /// An answer that nobody asked for is passed over; what its block enters into the table is not.
    pub(super) fn take_promise(
        &mut self,
        direction: Direction,
        block: Block,
        sink: &mut impl Sink,
    ) {
        if direction == Direction::Request {
            return self.lose(direction, malformed("a client's PUSH_PROMISE"), sink);
        }
        if self.decode(direction, block, sink).is_some() {
            let id = sink.seen();
            let mut call = Call::new(id, self.memory.empty_lease(), self.now);
            call.drop(DropReason::Http2, None, sink);
        }
    }

    fn note_end(&mut self, direction: Direction, stream: u32, end: bool, sink: &mut impl Sink) {
        if let Some(call) = self.calls.get_mut(&stream).filter(|_| end) {
            match direction {
                Direction::Request => call.has_request_ended = true,
                Direction::Response => call.has_response_ended = true,
            }
        }
        self.settle(stream, sink);
    }

    fn settle(&mut self, stream: u32, sink: &mut impl Sink) {
        let withholds = self.requests.probation > 0;
        if let Some(call) = self.calls.get_mut(&stream) {
            call.settle(withholds, self.now, sink);
            if call.is_over() {
                self.calls.remove(&stream);
                self.note_closed(stream);
            }
        }
    }

    /// What was withheld is not any more.
    pub(super) fn settle_all(&mut self, sink: &mut impl Sink) {
        let withholds = self.requests.probation > 0;
        for call in self.calls.values_mut() {
            call.settle(withholds, self.now, sink);
        }
        self.forget_closed();
    }
}

pub(super) const fn malformed(why: &'static str) -> Unusable {
    Unusable {
        reason: DropReason::Malformed,
        why: Some(why),
    }
}
