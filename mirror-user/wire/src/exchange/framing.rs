//! A connection's messages: which request is being read, which answer belongs to it.

use std::time::Duration;

use mirror_common::tunnel::Direction;

use super::connection::{Connection, Mode};
use super::half::Patience;
use super::resync::Seek;
use super::{Event, Journal};
use crate::http::{Asked, Decoder, Fault, Start, Step, begins_request};
use crate::message::{DropReason, ExchangeId, Partial, Request, Response};
use crate::stream::{Flaw, Piece};

/// The most exchanges of one connection that are open at once.
const MAX_OPEN: usize = 1_024;

/// An exchange whose request or response is not yet whole.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) id: ExchangeId,
    /// Where its request starts.
    pub(super) start: u64,
    /// What the client had acknowledged when it sent the request's first byte.
    pub(super) acknowledgement: Option<u32>,
    /// Whether the request starts with a segment.
    pub(super) starts: bool,
    /// What its answer's length depends on, once the request's head is known.
    asked: Option<Asked>,
    /// The client may be waiting for `100 Continue`.
    expects: bool,
    /// The request asks to leave HTTP/1, and the server has not answered that.
    leaves: bool,
    pub(super) request: Reading,
    pub(super) answer: Answer,
    /// What has come of the response.
    partial: Option<Partial>,
    /// Since when nothing but the response is awaited.
    since: Option<Duration>,
    /// Whether anybody needs the response.
    needed: bool,
    /// Neither dropped nor answered.
    live: bool,
}

/// How far a request is.
#[derive(Debug)]
pub(super) enum Reading {
    Going,
    /// Whole, but handed on only if the server stays with HTTP/1.
    Held(Box<Request>),
    Done,
}

/// How far a response is.
#[derive(Debug)]
pub(super) enum Answer {
    Awaited,
    Whole(Box<Response>),
    /// Framed to its end, or given up.
    Gone,
}

impl From<Flaw> for DropReason {
    fn from(flaw: Flaw) -> Self {
        match flaw {
            Flaw::Conflict => Self::Conflict,
            Flaw::Urgent => Self::Urgent,
        }
    }
}

impl Open {
    /// The exchange is over; its bytes may still be framed.
    pub(super) fn drop(&mut self, reason: DropReason, journal: &mut Journal<'_>) {
        if std::mem::take(&mut self.live) {
            journal.dropped(self.id, reason, self.partial);
        }
        if matches!(self.request, Reading::Held(_)) {
            self.request = Reading::Done;
        }
        if matches!(self.answer, Answer::Whole(_)) {
            self.answer = Answer::Gone;
        }
    }

    /// More of the answer has come. Nobody may need it, or wait for its end.
    fn bear(&mut self, now: Duration, endless: Option<Duration>, journal: &mut Journal<'_>) {
        if journal.unneeded.remove(&self.id) {
            self.needed = false;
        }
        let waited = self.since.map(|since| now.saturating_sub(since));
        if self.needed
            && waited
                .zip(endless)
                .is_some_and(|(waited, most)| waited > most)
        {
            self.needed = false;
            self.drop(DropReason::ResponseIncomplete, journal);
        }
    }

    /// The answer will not be copied: what was to be compared with it is dropped, and what is still
    /// being read ends with its request.
    pub(super) fn forgo_answer(&mut self, journal: &mut Journal<'_>) {
        if !self.is_going() {
            self.drop(DropReason::ResponseGap, journal);
        }
        self.answer = Answer::Gone;
    }

    pub(super) fn is_awaited(&self) -> bool {
        matches!(self.answer, Answer::Awaited)
    }

    pub(super) fn is_going(&self) -> bool {
        matches!(self.request, Reading::Going)
    }
}

impl Connection {
    /// Decodes what can be decoded.
    pub(super) fn pump(&mut self, journal: &mut Journal<'_>) {
        loop {
            let moved = match self.mode {
                Mode::Framed => self.read_requests(journal) | self.read_responses(journal),
                Mode::SeekResponses => self.read_requests(journal) | self.realign(journal),
                // Where what follows begins is another agent's to find.
                Mode::Seek(_) if self.is_paused() => self.read_responses(journal),
                Mode::Seek(_) => {
                    self.read_responses(journal)
                        | self.realign(journal)
                        | self.resync(journal)
                        | self.join_http2()
                }
                Mode::Http2(_) => self.read_http2(journal),
                Mode::Unknown { .. } | Mode::Alone | Mode::Closed { .. } => false,
            };
            if !moved {
                return;
            }
        }
    }

    fn read_requests(&mut self, journal: &mut Journal<'_>) -> bool {
        let mut moved = false;
        while matches!(self.mode, Mode::Framed | Mode::SeekResponses)
            && self.open.len() < MAX_OPEN
            && !self.awaits_leave()
            && !self.awaits_server()
            && !self.is_between_requests()
        {
            let Some(piece) = self.requests.take() else {
                break;
            };
            self.read_request(piece, journal);
            moved = true;
        }
        moved
    }

    /// Whether the server has still to say if the connection leaves HTTP/1.
    pub(super) fn awaits_leave(&self) -> bool {
        self.open.back().is_some_and(|open| open.leaves)
    }

    fn read_responses(&mut self, journal: &mut Journal<'_>) -> bool {
        let mut moved = false;
        while matches!(self.mode, Mode::Framed | Mode::Seek(_))
            && let () = self.responses.skip_blank()
            && let Some(front) = self.open.front()
            && let (Some(asked), Answer::Awaited) = (front.asked, &front.answer)
            && let Some(piece) = self.responses.take()
        {
            self.read_response(piece, asked, journal);
            moved = true;
        }
        moved
    }

    fn fit(skips: bool, decoder: Decoder) -> Decoder {
        match skips {
            true => decoder.without_body(),
            false => decoder,
        }
    }

    fn read_request(&mut self, piece: Piece, journal: &mut Journal<'_>) {
        let Some(mut piece) = self.greet(piece) else {
            return;
        };
        let decoder = self.requests.decoder.take();
        let mut decoder = decoder.unwrap_or_else(|| {
            let decoder = Decoder::request(&self.memory, self.limits.max_body);
            Self::fit(self.limits.skips_requests, decoder)
        });
        let fresh = !decoder.has_begun();
        if !self.answered && piece.starts && decoder.awaits_body() && begins_request(&piece.data) {
            // Was the body refused, and is this the next request? The server's answer was not copied.
            self.lose_requests(DropReason::RequestIncomplete, journal);
            journal.missed(DropReason::RequestIncomplete);
            return;
        }
        let (start, end) = (piece.position, piece.end());
        let (starts, acknowledgement) = (piece.starts, piece.acknowledgement);
        if let Some(flaw) = piece.flaw {
            if fresh {
                self.begin(start, acknowledgement, starts, journal);
            }
            return self.lose_requests(flaw.into(), journal);
        }
        let data = piece.data.clone();
        let fed = decoder.feed(&mut piece.data, piece.time_ns);
        if matches!(fed, Err(Fault::Http2)) && self.may_be_http2() {
            return self.begin_http2(Piece { data, ..piece }, journal);
        }
        if fresh && decoder.has_begun() {
            self.begin(start, acknowledgement, starts, journal);
        }
        match fed {
            Err(fault @ (Fault::Tls | Fault::Http2)) => {
                self.leave_alone(fault.reason(Direction::Request), journal);
            }
            Err(fault) => {
                journal.blame(fault, Direction::Request);
                self.lose_requests(fault.reason(Direction::Request), journal);
            }
            Ok(step) => {
                self.requests.keep(piece, end);
                self.note_head(&decoder, journal);
                if !matches!(self.mode, Mode::Framed | Mode::SeekResponses) {
                    return;
                }
                match step {
                    Step::More => self.requests.decoder = Some(decoder),
                    Step::Complete => self.finish_request(decoder, journal),
                }
            }
        }
    }

    /// A request's first byte.
    fn begin(
        &mut self,
        start: u64,
        acknowledgement: Option<u32>,
        starts: bool,
        journal: &mut Journal<'_>,
    ) {
        // A client that has not yet got the last answer pipelines (RFC 9112, section 9.3.2).
        let got = acknowledgement.map(|got| self.responses.stream.position(got));
        let before = self.open.back();
        let early = match (before, self.responses.last) {
            // It had not even got the first byte of that answer.
            (Some(before), _) => {
                let then = before.acknowledgement;
                got.is_some() && got <= then.map(|got| self.responses.stream.position(got))
            }
            (None, Some(word)) => got.is_some_and(|got| got < word.end),
            (None, None) => false,
        };
        self.pipelines |= early;
        self.open.push_back(Open {
            id: journal.seen(),
            start,
            acknowledgement,
            starts,
            asked: None,
            expects: false,
            leaves: false,
            request: Reading::Going,
            answer: if self.answered {
                Answer::Awaited
            } else {
                Answer::Gone
            },
            partial: None,
            since: None,
            needed: true,
            live: true,
        });
    }

    /// Takes down what the request's head says, once it is known.
    fn note_head(&mut self, decoder: &Decoder, journal: &mut Journal<'_>) {
        let Some(open) = self.open.back_mut().filter(|open| open.asked.is_none()) else {
            return;
        };
        let Some(head) = decoder.head() else {
            return;
        };
        let Start::Request { method, .. } = &head.start else {
            return;
        };
        open.asked = Some(Asked::by(method));
        open.expects = head.expects_continue();
        open.leaves = head.asks_to_leave();
        let mark = self.limits.mark;
        if mark.is_some_and(|mark| mark.is_on(&head.fields)) {
            open.drop(DropReason::Loop, journal);
        } else if open.asked == Some(Asked::Connect) {
            open.drop(DropReason::Upgrade, journal);
        }
        if open.expects && !self.answered {
            // Nor whether the body follows.
            return self.lose_requests(DropReason::Expect, journal);
        }
        if open.leaves && !self.answered {
            // Nobody will tell whether the server agreed.
            self.leave_alone(DropReason::Upgrade, journal);
        }
    }

    fn finish_request(&mut self, decoder: Decoder, journal: &mut Journal<'_>) {
        let Some(open) = self.open.back_mut() else {
            return;
        };
        open.request = Reading::Done;
        open.since = Some(self.last_segment);
        match decoder.into_request() {
            Err(unfit) => open.drop(unfit.reason(Direction::Request), journal),
            Ok(_) if !open.live => {}
            Ok(request) => {
                // Without an answer to come, the exchange is over here.
                let answered = !matches!(open.answer, Answer::Gone);
                open.live = answered;
                if answered && open.leaves {
                    open.request = Reading::Held(Box::new(request));
                } else {
                    let id = open.id;
                    self.hand_on(id, answered, request, journal);
                }
            }
        }
        self.settle(journal);
    }

    pub(super) fn hand_on(
        &mut self,
        id: ExchangeId,
        answered: bool,
        request: Request,
        journal: &mut Journal<'_>,
    ) {
        self.has_requests = true;
        journal.events.push(Event::Request {
            id,
            connection: self.id,
            service: journal.service,
            tap: self.tap,
            client: self.named.unwrap_or(self.client),
            arm: self.arm,
            answered,
            request,
        });
    }

    fn read_response(&mut self, mut piece: Piece, asked: Asked, journal: &mut Journal<'_>) {
        let decoder = self.responses.decoder.take();
        let mut decoder = decoder.unwrap_or_else(|| {
            let decoder = Decoder::response_to(asked, &self.memory, self.limits.max_body);
            Self::fit(self.limits.skips_responses, decoder)
        });
        if !decoder.has_begun() && !self.answers_front(&piece) {
            // Sent before the request had come: it answers something else (a 408, say).
            return self.lose_responses(DropReason::ResponseIncomplete, journal);
        }
        if let Some(flaw) = piece.flaw {
            return self.lose_responses(flaw.into(), journal);
        }
        let end = piece.end();
        let (now, endless) = (self.last_segment, self.limits.endless);
        if let Some(front) = self.open.front_mut() {
            front.bear(now, endless, journal);
            if !front.needed {
                decoder.forget_body();
            }
        }
        let fed = decoder.feed(&mut piece.data, piece.time_ns);
        if let Some(front) = self.open.front_mut() {
            front.partial = decoder.partial();
        }
        match fed {
            Err(fault) => {
                journal.blame(fault, Direction::Response);
                self.lose_responses(fault.reason(Direction::Response), journal);
            }
            Ok(step) => {
                self.responses.keep(piece, end);
                if self.open.front().is_some_and(|open| !open.needed) {
                    self.responses.recent.clear();
                }
                if let Some(word) = &mut self.responses.last {
                    word.is_final |= word.end == end && decoder.is_final();
                }
                if let Some(status) = decoder.status()
                    && self.open.front().is_some_and(|open| open.leaves)
                    && let is_http2 = decoder.is_upgrade_to("h2c")
                    && self.decide_leaving(status, asked, is_http2, journal)
                {
                    return;
                }
                match step {
                    Step::More => self.responses.decoder = Some(decoder),
                    Step::Complete => self.finish_response(decoder, journal),
                }
            }
        }
    }

    /// Whether the server had received something of the oldest open request when it sent this.
    fn answers_front(&self, piece: &Piece) -> bool {
        let front = self.open.front().map(|open| open.start);
        let received = piece.acknowledgement;
        front
            .zip(received)
            .is_some_and(|(start, received)| self.requests.stream.position(received) > start)
    }

    /// The server's answer to a request to leave HTTP/1. Whether it agreed.
    fn decide_leaving(
        &mut self,
        status: u16,
        asked: Asked,
        is_http2: bool,
        journal: &mut Journal<'_>,
    ) -> bool {
        if status == 101 && is_http2 && self.upgrade_to_http2(journal) {
            return true;
        }
        if status == 101 || (asked == Asked::Connect && (200..300).contains(&status)) {
            self.leave_alone(DropReason::Upgrade, journal);
            return true;
        }
        if let Some(open) = self.open.front_mut() {
            open.leaves = false;
            let id = open.id;
            match std::mem::replace(&mut open.request, Reading::Done) {
                Reading::Held(request) => self.hand_on(id, true, *request, journal),
                reading => open.request = reading,
            }
        }
        false
    }

    fn finish_response(&mut self, decoder: Decoder, journal: &mut Journal<'_>) {
        let end = self.responses.position();
        // The next client's request was on its way before this answer had come.
        let early = self.open.get(1).and_then(|next| next.acknowledgement);
        self.pipelines |= early.is_some_and(|got| self.responses.stream.position(got) < end);
        self.responses.recent.clear();
        let Some(front) = self.open.front_mut() else {
            return;
        };
        front.answer = Answer::Gone;
        front.partial = decoder.partial();
        match decoder.into_response() {
            Err(unfit) => front.drop(unfit.reason(Direction::Response), journal),
            Ok(_) if !front.live => {}
            Ok(response) => front.answer = Answer::Whole(Box::new(response)),
        }
        self.settle(journal);
        self.refuse_body(journal);
    }

    /// A final answer instead of `100 Continue`, before anything of the body had come: whether the
    /// body will follow is not known (RFC 9110, section 10.1.1).
    fn refuse_body(&mut self, journal: &mut Journal<'_>) {
        let Some(front) = self.open.front() else {
            return;
        };
        let decoder = self.requests.decoder.as_ref();
        let refused = front.expects
            && front.is_going()
            && !front.is_awaited()
            && decoder.is_some_and(Decoder::awaits_body)
            && self.responses.last.is_some_and(|word| {
                self.requests.stream.position(word.received) == self.requests.position()
            });
        if refused {
            self.lose_requests(DropReason::RequestIncomplete, journal);
        }
    }

    /// Hands on what is whole, and forgets what is over.
    pub(super) fn settle(&mut self, journal: &mut Journal<'_>) {
        // Without framing, and with answers that overlap requests, none can be told any more.
        let lost = self.pipelines && self.has_lost_responses();
        while let Some(front) = self.open.front_mut() {
            if lost && !front.is_going() {
                front.drop(DropReason::ResponseGap, journal);
                front.answer = Answer::Gone;
            }
            if front.is_awaited() || !matches!(front.request, Reading::Done) {
                return;
            }
            let Some(open) = self.open.pop_front() else {
                return;
            };
            journal.unneeded.remove(&open.id);
            if self.open.is_empty() {
                self.requests.recent.clear();
            }
            if let (true, Answer::Whole(response)) = (open.live, open.answer) {
                journal.events.push(Event::Response {
                    id: open.id,
                    response: *response,
                });
            }
        }
    }

    /// Drops all that is open.
    pub(super) fn drop_all(&mut self, reason: DropReason, journal: &mut Journal<'_>) {
        for mut open in self.open.drain(..) {
            open.drop(reason, journal);
        }
    }

    /// Where requests begin is not known any more.
    pub(super) fn lose_requests(&mut self, reason: DropReason, journal: &mut Journal<'_>) {
        let start = self.requests.position();
        self.lose_requests_from(start, reason, journal);
    }

    /// The same, where a hole began at `start`.
    fn lose_requests_from(&mut self, start: u64, reason: DropReason, journal: &mut Journal<'_>) {
        let going = self.open.pop_back_if(|open| open.is_going());
        let seek = match going {
            Some(mut open) => {
                open.drop(reason, journal);
                if self.open.is_empty() {
                    self.responses.decoder = None;
                }
                let last = match (&open.answer, self.responses.last) {
                    (Answer::Gone, Some(word)) => (Direction::Response, Some(word.received)),
                    _ => (Direction::Request, open.acknowledgement),
                };
                Seek::after_one(reason, open.start, last)
            }
            None => Seek::new(reason, start),
        };
        self.requests.lose();
        self.mode = Mode::Seek(seek);
    }

    /// Where responses begin is not known any more.
    pub(super) fn lose_responses(&mut self, reason: DropReason, journal: &mut Journal<'_>) {
        self.responses.lose();
        if let Some(front) = self.open.front_mut() {
            front.drop(reason, journal);
            front.answer = Answer::Gone;
        }
        if matches!(self.mode, Mode::Framed) {
            self.mode = Mode::SeekResponses;
        }
        self.settle(journal);
    }

    /// Whether where responses begin was known once, and is not any more.
    pub(super) fn has_lost_responses(&self) -> bool {
        !matches!(self.mode, Mode::Framed) && !self.responses.stream.is_anchored()
    }

    /// Gives up a hole in this direction. Whether there was one whose time had come.
    pub(super) fn give_up(
        &mut self,
        now: Duration,
        patience: Patience,
        direction: Direction,
        journal: &mut Journal<'_>,
    ) -> bool {
        let patience = match patience {
            Patience::Usual => self.patience(direction),
            patience => patience,
        };
        let half = self.halves(direction).0;
        if half.believe_doubtful(now, patience) {
            self.pump(journal);
            return true;
        }
        let Some(bytes) = half.give_up(now, patience) else {
            return false;
        };
        if self.skip_http2(direction, bytes, journal) {
            return true;
        }
        let half = self.halves(direction).0;
        let start = half.stream.next() - bytes;
        let decoder = half.decoder.take().and_then(|mut decoder| {
            let certain = decoder.skip(bytes);
            certain.then_some(decoder)
        });
        match (decoder, direction) {
            (None, Direction::Request) => {
                self.lose_requests_from(start, DropReason::RequestGap, journal);
            }
            (None, Direction::Response) => self.lose_responses(DropReason::ResponseGap, journal),
            (Some(decoder), _) if !decoder.is_complete() => half.decoder = Some(decoder),
            (Some(decoder), Direction::Request) => self.finish_request(decoder, journal),
            (Some(decoder), Direction::Response) => self.finish_response(decoder, journal),
        }
        self.pump(journal);
        true
    }

    /// The client sends nothing more.
    pub(super) fn end_requests(&mut self, journal: &mut Journal<'_>) {
        self.end_http2(Direction::Request, journal);
        let Some(decoder) = self.requests.decoder.take() else {
            return;
        };
        if let Some(open) = self.open.back_mut().filter(|open| open.is_going()) {
            let reason = decoder
                .unfit()
                .map(|unfit| unfit.reason(Direction::Request));
            open.drop(reason.unwrap_or(DropReason::RequestIncomplete), journal);
            open.request = Reading::Done;
            open.asked.get_or_insert(Asked::Other);
        }
        self.settle(journal);
        self.pump(journal);
    }

    /// The server sends nothing more.
    pub(super) fn end_responses(&mut self, journal: &mut Journal<'_>) {
        self.end_http2(Direction::Response, journal);
        if let Some(mut decoder) = self.responses.decoder.take() {
            match decoder.end() {
                Ok(()) => self.finish_response(decoder, journal),
                Err(fault) => {
                    let reason = decoder
                        .unfit()
                        .map(|unfit| unfit.reason(Direction::Response));
                    if let Some(front) = self.open.front_mut() {
                        front.drop(reason.unwrap_or(fault.reason(Direction::Response)), journal);
                        front.answer = Answer::Gone;
                    }
                }
            }
        }
        for open in self.open.iter_mut().filter(|open| open.is_awaited()) {
            open.drop(DropReason::ResponseIncomplete, journal);
            open.answer = Answer::Gone;
        }
        self.settle(journal);
    }
}
