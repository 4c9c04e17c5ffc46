//! A connection in HTTP/2: its bytes go to a reader of their own, whose exchanges are told as all others are.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mirror_common::tunnel::Direction;

use super::connection::{Connection, Mode};
use super::framing::Reading;
use super::{ConnectionId, Event, Exchanges, Journal};
use crate::http2::{self, Dropped, Sink};
use crate::message::{DropReason, ExchangeId, Request, Response, header};
use crate::stream::Piece;

/// What a reader tells, written into the journal.
struct Telling<'a, 'b> {
    journal: &'a mut Journal<'b>,
    connection: ConnectionId,
    client: SocketAddr,
    has_requests: bool,
}

impl Sink for Telling<'_, '_> {
    fn seen(&mut self) -> ExchangeId {
        self.journal.seen()
    }

    fn request(&mut self, id: ExchangeId, request: Request) {
        self.has_requests = true;
        self.journal.events.push(Event::Request {
            id,
            connection: self.connection,
            service: self.journal.service,
            tap: self.journal.tap,
            client: self.client,
            arm: self.journal.arm,
            answered: true,
            request,
        });
    }

    fn response(&mut self, id: ExchangeId, response: Response) {
        self.journal.unneeded.remove(&id);
        self.journal.events.push(Event::Response { id, response });
    }

    fn dropped(&mut self, id: ExchangeId, dropped: Dropped) {
        self.journal.unneeded.remove(&id);
        let before = (self.journal.by, self.journal.why);
        self.journal.by = dropped.by.or(self.journal.by);
        self.journal.why = dropped.why;
        self.journal.dropped(id, dropped.reason, dropped.response);
        (self.journal.by, self.journal.why) = before;
    }

    fn is_unneeded(&mut self, id: ExchangeId) -> bool {
        self.journal.unneeded.remove(&id)
    }
}

impl Connection {
    /// Lets its reader of HTTP/2 act, where it has one.
    fn with_http2<T>(
        &mut self,
        journal: &mut Journal<'_>,
        act: impl FnOnce(&mut http2::Connection, &mut Telling<'_, '_>) -> T,
    ) -> Option<T> {
        let Mode::Http2(reader) = &mut self.mode else {
            return None;
        };
        let mut telling = Telling {
            journal,
            connection: self.id,
            client: self.named.unwrap_or(self.client),
            has_requests: self.has_requests,
        };
        let done = act(reader, &mut telling);
        self.has_requests = telling.has_requests;
        Some(done)
    }

    /// Whether the preface of HTTP/2 is what it says: it is to be read, and nothing came before it.
    pub(super) fn may_be_http2(&self) -> bool {
        let is_first = self.open.iter().all(|open| open.is_going());
        self.limits.reads_http2 && self.answered && is_first && !self.has_requests
    }

    /// The client speaks HTTP/2: this piece has its preface, or the rest of it.
    pub(super) fn begin_http2(&mut self, piece: Piece, journal: &mut Journal<'_>) {
        let mut reader = http2::Connection::begun(self.limits, &self.memory);
        if let Some(mut open) = self.open.pop_back() {
            // The preface came in parts, and its first one was told as a request.
            open.drop(DropReason::Http2, journal);
            reader.has_seen((piece.position - open.start) as usize);
        }
        let end = piece.end();
        self.requests.keep(piece, end);
        self.mode = Mode::Http2(Box::new(reader));
    }

    /// Where no turn of HTTP/1 is found: whether what is held are frames of HTTP/2. Then it is joined in its middle.
    pub(super) fn join_http2(&mut self) -> bool {
        let is_candidate = self.limits.reads_http2
            && self.answered
            && self.open.is_empty()
            && !self.has_requests
            && matches!(self.mode, Mode::Seek(_));
        let payloads = |direction| {
            let pieces = self.half(direction).stream.pieces();
            let whole = pieces.filter(|piece| piece.starts && piece.ends);
            whole.map(move |piece| (direction, &piece.data[..]))
        };
        let payloads = payloads(Direction::Request).chain(payloads(Direction::Response));
        if !is_candidate || !http2::Connection::is_likely(payloads) {
            return false;
        }
        let reader = http2::Connection::joined(self.limits, &self.memory);
        self.mode = Mode::Http2(Box::new(reader));
        true
    }

    /// Goes on at the first byte of a direction that has come, where it is not known which one is the next.
    fn anchor_http2(&mut self, direction: Direction, journal: &mut Journal<'_>) {
        let stream = &self.half(direction).stream;
        let first = stream.pieces().next().map(|piece| piece.position);
        if let Some(first) = first.filter(|_| !stream.is_anchored()) {
            self.halves(direction).0.resume(first);
            self.with_http2(journal, |reader, telling| {
                reader.skip(direction, u64::MAX, gap(direction), telling);
            });
        }
    }

    /// The server goes on in HTTP/2, as the client has asked for. Whether it can be read.
    pub(super) fn upgrade_to_http2(&mut self, journal: &mut Journal<'_>) -> bool {
        let is_alone = self.open.len() == 1;
        if !self.limits.reads_http2 || !is_alone {
            return false;
        }
        let Some(Reading::Held(request)) = self.open.front().map(|open| &open.request) else {
            return false;
        };
        let settings = header(&request.headers, "http2-settings").unwrap_or_default();
        let Ok(settings) = URL_SAFE_NO_PAD.decode(settings) else {
            return false;
        };
        let (limits, memory, now) = (self.limits, &self.memory, self.last_segment);
        let id = self.open[0].id;
        let reader =
            http2::Connection::upgraded(limits, memory, id, &request.method, &settings, now);
        let Ok(reader) = reader else {
            return false;
        };
        if let Some(open) = self.open.pop_front()
            && let Reading::Held(request) = open.request
        {
            self.hand_on(id, true, *request, journal);
        }
        self.mode = Mode::Http2(Box::new(reader));
        true
    }

    /// Reads what has come. Whether anything had.
    pub(super) fn read_http2(&mut self, journal: &mut Journal<'_>) -> bool {
        let mut moved = false;
        let now = self.last_segment;
        for direction in [Direction::Request, Direction::Response] {
            self.anchor_http2(direction, journal);
            while !self.awaits_server()
                && !self.is_rested()
                && let Some(piece) = self.halves(direction).0.take()
            {
                self.with_http2(journal, |reader, telling| {
                    reader.read(direction, piece, now, telling);
                });
                moved = true;
            }
            // Other copies of what was read come too late.
            self.halves(direction).0.recent.clear();
        }
        moved
    }

    /// Bytes of a direction are lost. Whether it is one in HTTP/2.
    pub(super) fn skip_http2(
        &mut self,
        direction: Direction,
        bytes: u64,
        journal: &mut Journal<'_>,
    ) -> bool {
        let reason = gap(direction);
        let skipped = self.with_http2(journal, |reader, telling| {
            reader.skip(direction, bytes, reason, telling);
        });
        if skipped.is_some() {
            self.pump(journal);
        }
        skipped.is_some()
    }

    /// Bytes that were given up are sent only now, at `position`. Whether it is a connection in HTTP/2.
    pub(super) fn rewind_http2(
        &mut self,
        direction: Direction,
        position: u64,
        journal: &mut Journal<'_>,
    ) -> bool {
        let is_http2 = self.skip_http2(direction, u64::MAX, journal);
        if is_http2 {
            let half = self.halves(direction).0;
            half.rewind(position);
            half.resume(position);
        }
        is_http2
    }

    /// Nothing of what waits can be kept. Whether it is a connection in HTTP/2, which goes on behind it.
    pub(super) fn pass_over_http2(
        &mut self,
        reason: DropReason,
        journal: &mut Journal<'_>,
    ) -> bool {
        if !matches!(self.mode, Mode::Http2(_)) {
            return false;
        }
        for direction in [Direction::Request, Direction::Response] {
            let half = self.halves(direction).0;
            let (from, to) = (half.position(), half.stream.received());
            half.doubtful.clear();
            if half.stream.is_anchored() && from < to {
                half.resume(to);
                self.with_http2(journal, |reader, telling| {
                    reader.skip(direction, to - from, reason, telling);
                });
            }
        }
        true
    }

    /// One side sends nothing more.
    pub(super) fn end_http2(&mut self, direction: Direction, journal: &mut Journal<'_>) {
        self.with_http2(journal, |reader, telling| reader.end(direction, telling));
    }

    /// Drops what is open, as incomplete or for `reason`.
    pub(super) fn close_http2(&mut self, reason: Option<DropReason>, journal: &mut Journal<'_>) {
        self.with_http2(journal, |reader, telling| {
            reader.close(reason, None, telling);
        });
    }

    /// Gives up what was not heard of for too long.
    pub(super) fn expire_http2(&mut self, now: Duration, journal: &mut Journal<'_>) {
        self.with_http2(journal, |reader, telling| reader.expire(now, telling));
    }

    /// When [`Connection::expire_http2`] has something to do.
    pub(super) fn deadline_http2(&self) -> Option<Duration> {
        match &self.mode {
            Mode::Http2(reader) if !self.is_rested() => reader.deadline(),
            _ => None,
        }
    }

    /// Whether frames of open exchanges may still come.
    pub(super) fn has_open_http2(&self) -> bool {
        matches!(&self.mode, Mode::Http2(reader) if !reader.is_idle())
    }
}

impl Exchanges {
    /// How many connections in HTTP/2 were joined in their middle, by service; and of how many of those all is known by
    /// now that their ends refer to.
    pub fn late_connections(&self) -> Vec<(usize, usize)> {
        let mut late = vec![(0, 0); self.services.len()];
        for (key, connection) in &self.connections {
            if let Mode::Http2(reader) = &connection.mode
                && let Some(is_healed) = reader.is_late()
                && let Some((count, healed)) = late.get_mut(key.service)
            {
                *count += 1;
                *healed += usize::from(is_healed);
            }
        }
        late
    }
}

const fn gap(direction: Direction) -> DropReason {
    match direction {
        Direction::Request => DropReason::RequestGap,
        Direction::Response => DropReason::ResponseGap,
    }
}
