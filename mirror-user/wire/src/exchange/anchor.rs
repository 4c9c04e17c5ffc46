//! Where another agent goes on with a connection, so that a restart costs no exchange.
//!
//! ```text
//!                         pause: what comes from here on comes once more, to the other agent
//!   requests   ──[a]──[b──┊──b]──[c]──
//!   responses  ───[A]─────┊──[B────B]──[C]──
//!                               └────────── anchors: behind b, and behind B
//! ```
//!
//! What has begun is brought to its end (b, B); what begins behind is the other agent's (c, C). Bytes before
//! the anchors are old ones to it.

use std::net::SocketAddr;
use std::time::Duration;

use mirror_common::tunnel::{Arm, Direction};
use serde::{Deserialize, Serialize};

use super::connection::{Connection, Mode};
use super::half::{Half, Word};
use super::resync::Seek;
use super::{ConnectionId, Journal, Key, Limits};
use crate::http::Decoder;
use crate::http2;
use crate::memory::Memory;
use crate::message::DropReason;

/// How long a connection that is over is remembered by the next agent.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Whether another agent goes on with a connection.
#[derive(Debug)]
pub(super) enum Pause {
    No,
    /// Requests that begin at this position or behind it are the other agent's.
    At(u64),
    /// Nothing of it is open, and whatever comes is the other agent's.
    Rested(Box<Anchor>),
}

/// What is known of where messages begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// In both directions.
    Framed,
    /// Only of requests.
    SeekResponses,
    /// Of neither.
    Seek,
    /// It is HTTP/2.
    Http2,
    /// It is not HTTP.
    Alone,
    /// It is over.
    Closed,
}

/// Where another agent goes on with a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    state: State,
    #[serde(default, skip_serializing_if = "is_default")]
    canary: bool,
    requests: End,
    responses: End,
    #[serde(default, skip_serializing_if = "is_default")]
    pipelines: bool,
    /// The client that a proxy has named.
    #[serde(default, skip_serializing_if = "is_default")]
    client: Option<SocketAddr>,
    /// Answers are not copied.
    #[serde(default, skip_serializing_if = "is_default")]
    alone: bool,
    /// The last piece of what cannot be framed: whether it is an answer's, and what it acknowledged.
    #[serde(default, skip_serializing_if = "is_default")]
    turn: Option<(bool, Option<u32>)>,
}

/// One direction, in sequence numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    /// The next byte.
    #[serde(default, skip_serializing_if = "is_default")]
    next: Option<u32>,
    /// The first byte of all.
    #[serde(default, skip_serializing_if = "is_default")]
    start: Option<u32>,
    #[serde(default, skip_serializing_if = "is_default")]
    fin: Option<u32>,
    /// [`Word`].
    #[serde(default, skip_serializing_if = "is_default")]
    last: Option<(u32, u32, bool)>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl End {
    fn of(half: &Half, start: Option<u32>) -> Self {
        let known = half.stream.known();
        Self {
            next: known.map(|_| half.position() as u32),
            start,
            fin: half.stream.end().map(|end| end as u32),
            last: half
                .last
                .map(|word| (word.end as u32, word.received, word.is_final)),
        }
    }

    fn resume(&self) -> Half {
        let mut half = Half::new();
        if let Some(next) = self.next {
            half.start(next);
        }
        if let Some(fin) = self.fin {
            half.stream.finish(fin);
        }
        half.last = self.last.map(|(end, received, is_final)| Word {
            end: half.stream.position(end),
            received,
            is_final,
        });
        half
    }
}

impl Connection {
    /// From here on, what begins is another agent's.
    pub(super) fn pause(&mut self, now: Duration, journal: &mut Journal<'_>) {
        match self.mode {
            Mode::Unknown { .. } => self.join_midway(journal),
            Mode::Framed if self.has_unasked() => self.close(now, None, journal),
            // What its ends refer to is not handed over, so that nothing is gained by its open exchanges' ends.
            Mode::Http2(_) => self.close_http2(Some(DropReason::Shutdown), journal),
            _ => {}
        }
        if matches!(self.mode, Mode::Seek(_)) {
            // What was passed over is accounted for here.
            self.drop_all(DropReason::Shutdown, journal);
            self.pass_all(None, journal);
        }
        self.pause = match self.closing.is_some() || self.reset_by().is_some() {
            // Nothing more can begin.
            true => Pause::At(u64::MAX),
            false => Pause::At(
                self.requests
                    .stream
                    .received()
                    .max(self.requests.position()),
            ),
        };
        self.rest(journal);
    }

    /// Whether there is an answer to nothing that was seen, or will be.
    fn has_unasked(&self) -> bool {
        let quiet = self.requests.buffered() == 0 && !self.is_within_request();
        quiet && self.open.is_empty() && self.responses.buffered() > 0
    }

    pub(super) fn is_paused(&self) -> bool {
        !matches!(self.pause, Pause::No)
    }

    pub(super) fn is_rested(&self) -> bool {
        matches!(self.pause, Pause::Rested(_))
    }

    /// Whether nothing of it is awaited.
    pub(super) fn is_at_rest(&self) -> bool {
        self.is_rested() || matches!(self.mode, Mode::Closed { .. })
    }

    /// Whether a request is being read.
    pub(super) fn is_within_request(&self) -> bool {
        let decoder = self.requests.decoder.as_ref();
        decoder.is_some_and(Decoder::has_begun)
    }

    /// Whether it is paused, and the next request is the other agent's.
    pub(super) fn is_between_requests(&self) -> bool {
        let Pause::At(until) = self.pause else {
            return false;
        };
        self.requests.stream.is_anchored()
            && self.requests.position() >= until
            && !self.is_within_request()
            && !self.awaits_leave()
    }

    /// Rests once nothing is open.
    pub(super) fn rest(&mut self, journal: &mut Journal<'_>) {
        if !matches!(self.pause, Pause::At(_)) || !self.open.is_empty() {
            return;
        }
        let is_done = match self.mode {
            Mode::Framed | Mode::SeekResponses => self.is_between_requests(),
            Mode::Seek(_) | Mode::Alone | Mode::Http2(_) => true,
            Mode::Unknown { .. } | Mode::Closed { .. } => false,
        };
        if is_done {
            self.pause = Pause::Rested(Box::new(self.anchor(true)));
            self.requests.clear();
            self.responses.clear();
            self.lease.shrink_to(0);
            self.announce_closed(journal);
        }
    }

    /// It is over, but for requests of the other agent's. `cut`: in the middle of a request; `answered`: no
    /// answer was awaited.
    pub(super) fn rest_closed(&mut self, cut: bool, answered: bool) {
        if !matches!(self.pause, Pause::At(_)) {
            return;
        }
        let mut anchor = self.anchor(answered);
        if cut || matches!(anchor.state, State::Seek | State::Alone) {
            anchor.state = State::Closed;
        }
        self.pause = Pause::Rested(Box::new(anchor));
    }

    /// Drops what is open, and says where the other agent goes on.
    pub(super) fn hand_over(&mut self, journal: &mut Journal<'_>) -> Anchor {
        if let Pause::Rested(anchor) = &self.pause {
            return Anchor::clone(anchor);
        }
        let anchor = self.anchor(self.open.is_empty());
        self.close(Duration::MAX, Some(DropReason::Shutdown), journal);
        anchor
    }

    /// Where another agent goes on; `answered`: where answers begin is known, if it was.
    pub(super) fn anchor(&self, answered: bool) -> Anchor {
        let closing = matches!(self.pause, Pause::At(u64::MAX));
        let answered = !self.answered || answered;
        let state = match self.mode {
            Mode::Closed { .. } => State::Closed,
            _ if closing => State::Closed,
            Mode::Alone => State::Alone,
            Mode::Http2(_) => State::Http2,
            Mode::Framed if self.is_between_requests() && answered => State::Framed,
            Mode::Framed | Mode::SeekResponses if self.is_between_requests() => {
                State::SeekResponses
            }
            _ => State::Seek,
        };
        let going = self.open.back().filter(|open| open.is_going());
        let turn = match (&self.mode, going) {
            // Whatever the client has acknowledged since, its next bytes are the rest of that request.
            (_, Some(_)) => Some((Direction::Request, None)),
            (Mode::Seek(seek), None) => seek.last(),
            _ => None,
        };
        let mut responses = End::of(&self.responses, self.starts.1);
        if state == State::Framed && !self.responses.stream.is_anchored() {
            // The server's part of the handshake is still to come, or answers are not copied.
            responses.next = None;
        }
        if state == State::Seek {
            // An interim answer vouches for nothing: what follows is the rest of its request.
            responses.last = responses.last.filter(|&(_, _, is_final)| is_final);
        }
        Anchor {
            state,
            canary: self.arm == Arm::Canary,
            requests: End::of(&self.requests, self.starts.0),
            responses,
            pipelines: self.pipelines,
            client: self.named,
            alone: !self.answered,
            turn: turn.map(|(direction, got)| (direction == Direction::Response, got)),
        }
    }

    /// Goes on where another agent has left it.
    pub(super) fn resume(
        id: ConnectionId,
        key: &Key,
        anchor: &Anchor,
        limits: Limits,
        memory: &Memory,
        now: Duration,
    ) -> Self {
        let mut connection = Self::blank(id, key, anchor.arm(), limits, memory);
        connection.requests = anchor.requests.resume();
        connection.responses = anchor.responses.resume();
        connection.starts = (anchor.requests.start, anchor.responses.start);
        connection.pipelines = anchor.pipelines;
        connection.named = anchor.client;
        connection.answered = !anchor.alone;
        connection.last_segment = now;
        connection.mode = match anchor.state {
            State::Framed => Mode::Framed,
            State::SeekResponses => Mode::SeekResponses,
            State::Seek => Mode::Seek(anchor.seek(connection.requests.position())),
            State::Http2 if limits.reads_http2 => {
                Mode::Http2(Box::new(http2::Connection::joined(limits, memory)))
            }
            State::Alone | State::Http2 => Mode::Alone,
            State::Closed => {
                let until = now.saturating_add(REMEMBERED);
                Mode::Closed { until }
            }
        };
        if anchor.state == State::Seek {
            connection.requests.lose();
        }
        if !matches!(anchor.state, State::Framed | State::Http2) {
            connection.responses.lose();
        }
        connection
    }
}

impl Anchor {
    pub(super) fn arm(&self) -> Arm {
        match self.canary {
            true => Arm::Canary,
            false => Arm::Stable,
        }
    }

    fn seek(&self, start: u64) -> Seek {
        let Some((response, got)) = self.turn else {
            return Seek::new(DropReason::MidStream, start);
        };
        let direction = match response {
            true => Direction::Response,
            false => Direction::Request,
        };
        Seek::after_one(DropReason::MidStream, start, (direction, got))
    }
}
