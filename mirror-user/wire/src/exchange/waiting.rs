//! What waits for other bytes: its limits, and how long.

use std::time::Duration;

use mirror_common::tunnel::Direction;

use super::Journal;
use super::connection::{Connection, Mode};
use super::half::{Half, Patience};
use super::resync::Seek;
use crate::message::DropReason;

/// The most pieces of a direction that wait for the handshake: all are searched for a turn when it
/// does not come.
const MAX_UNKNOWN: usize = 1_024;

impl Connection {
    /// Keeps what waits within its limits.
    pub(super) fn bound(&mut self, now: Duration, journal: &mut Journal<'_>) {
        if matches!(self.mode, Mode::Unknown { .. }) {
            let over = |half: &Half| half.exceeds(MAX_UNKNOWN, self.limits.buffer);
            if over(&self.requests) || over(&self.responses) {
                self.join_midway(journal);
            }
        }
        let is_read =
            |mode: &Mode| matches!(mode, Mode::Framed | Mode::SeekResponses | Mode::Http2(_));
        while is_read(&self.mode) && self.is_full() {
            if !self.relieve(now, journal) {
                self.overflow(DropReason::Memory, journal);
            }
        }
        // While answers from before the loss are awaited, a turn behind it may be among these.
        if matches!(self.mode, Mode::Seek(_)) && (self.open.is_empty() || self.is_full()) {
            self.trim(journal);
        }
        let waiting = self.requests.buffered() + self.responses.buffered() + self.aside();
        let recent = self.requests.recent.bytes() + self.responses.recent.bytes();
        let more = (waiting + recent).saturating_sub(self.lease.bytes());
        let has_room = recent == 0 || self.memory.has_plenty_for(more);
        if has_room && self.lease.grow(more) {
            self.lease.shrink_to(waiting + recent);
            return;
        }
        // What was read already can be done without.
        self.requests.recent.clear();
        self.responses.recent.clear();
        let more = waiting.saturating_sub(self.lease.bytes());
        if more > 0 && !self.lease.grow(more) {
            self.overflow(DropReason::Memory, journal);
            self.lease.shrink_to(0);
        } else {
            self.lease.shrink_to(waiting);
        }
    }

    /// Bytes that wait for a word from the other end.
    pub(super) fn aside(&self) -> usize {
        let doubtful = self.requests.doubtful_bytes() + self.responses.doubtful_bytes();
        doubtful + self.shaking()
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
    pub(super) fn give_up_all(
        &mut self,
        now: Duration,
        patience: Patience,
        journal: &mut Journal<'_>,
    ) {
        while self.give_up(now, patience, Direction::Response, journal)
            || self.give_up(now, patience, Direction::Request, journal)
        {}
    }

    /// How long holes are waited for. Of a request that has not begun only the server tells whether it was sent:
    /// bytes of nobody's must not begin one.
    pub(super) fn patience(&self, direction: Direction) -> Patience {
        match direction {
            Direction::Request if self.answered && !self.is_within_request() => {
                Patience::Acknowledged
            }
            _ => Patience::Usual,
        }
    }

    /// Nothing of what waits can be kept.
    fn overflow(&mut self, reason: DropReason, journal: &mut Journal<'_>) {
        if self.pass_over_http2(reason, journal) {
            return;
        }
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
}
