//! How a connection ends, or falls silent.

use std::time::Duration;

use mirror_common::tunnel::Direction;

use super::connection::{Connection, Mode};
use super::framing::Open;
use super::half::Patience;
use super::handshake::FastOpen;
use super::parking::UNASKED;
use super::{Journal, LINGER};
use crate::http::Decoder;
use crate::message::DropReason;

impl Connection {
    /// Draws the conclusions from what has ended.
    pub(super) fn conclude(&mut self, now: Duration, journal: &mut Journal<'_>) {
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
        self.resets.clear();
        self.handshakes.clear();
        self.fast_open = FastOpen::default();
        if reason.is_none() {
            self.give_up_all(now, Patience::None, journal);
            self.end_requests(journal);
            if self.responses.is_ended() {
                self.end_responses(journal);
            }
        }
        self.close_http2(reason, journal);
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
                let why = match self.awaits_server() {
                    true => DropReason::ResponseIncomplete,
                    false => DropReason::RequestIncomplete,
                };
                journal.missed(reason.unwrap_or(why));
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
        } else if self.judge_resets(now, journal) {
            return false;
        } else if self.closing.is_some_and(|closing| closing <= now) {
            self.close(now, None, journal);
            return false;
        }
        self.give_up_all(now, Patience::Usual, journal);
        self.expire_http2(now, journal);
        self.bound(now, journal);
        self.rest(journal);
        self.conclude(now, journal);
        self.requests.watch(now);
        self.responses.watch(now);
        if self.is_rested() || matches!(self.mode, Mode::Closed { .. }) || now < self.silent_at() {
            return false;
        }
        if self.is_incomplete() && !self.is_paused() && self.abandon(journal) {
            return false;
        }
        self.close(now, None, journal);
        !self.is_rested()
    }

    /// It was silent for too long. What is open is over for the ledger; what may still come of it is not
    /// counted again, and what follows is told. Whether the connection stays.
    fn abandon(&mut self, journal: &mut Journal<'_>) -> bool {
        let was_open = !self.open.is_empty();
        match self.mode {
            Mode::Framed | Mode::SeekResponses => {
                let has_unasked = self.open.is_empty() && self.responses.buffered() > 0;
                if has_unasked || self.awaits_server() {
                    return false;
                }
                // What nobody has acknowledged, and nothing led up to, was never sent.
                self.requests
                    .stream
                    .truncate(self.requests.stream.contiguous());
                self.drop_open(journal);
                for half in [&mut self.requests, &mut self.responses] {
                    if let Some(decoder) = &mut half.decoder {
                        decoder.abandon();
                    }
                    half.recent.clear();
                    half.doubtful.clear();
                }
            }
            Mode::Seek(_) => {
                // What was passed over is accounted for; the next turn may still be told.
                if !self.open.is_empty() {
                    self.drop_open(journal);
                    self.open.clear();
                    self.responses.lose();
                }
                self.pass_all(None, journal);
            }
            // Its exchanges were given up one by one.
            Mode::Http2(_) => {
                self.requests
                    .stream
                    .truncate(self.requests.stream.contiguous());
            }
            Mode::Unknown { .. } | Mode::Alone | Mode::Closed { .. } => return false,
        }
        self.is_abandoned = true;
        if was_open {
            self.announce_closed(journal);
        }
        self.bound(self.last_segment, journal);
        true
    }

    /// Ends what is open for the ledger; its bytes may still be framed.
    fn drop_open(&mut self, journal: &mut Journal<'_>) {
        let mut opens = std::mem::take(&mut self.open);
        for open in &mut opens {
            let reason = match open.is_going() {
                true => self.why_unfinished(),
                false => self.why_incomplete(open),
            };
            open.drop(reason, journal);
        }
        self.open = opens;
    }

    /// Why the request that is being read will not be whole.
    fn why_unfinished(&self) -> DropReason {
        let decoder = self.requests.decoder.as_ref();
        let unfit = decoder.and_then(Decoder::unfit);
        unfit.map_or(DropReason::RequestIncomplete, |unfit| {
            unfit.reason(Direction::Request)
        })
    }

    fn is_incomplete(&self) -> bool {
        !self.is_abandoned
            && (!self.open.is_empty()
                || self.has_open_http2()
                || self.requests.buffered() + self.responses.buffered() > 0)
    }

    /// When its silence will have been too long.
    fn silent_at(&self) -> Duration {
        let ending = self.requests.stream.is_finished() || self.responses.stream.is_finished();
        let is_awaited = self.is_abandoned && !self.open.is_empty();
        let is_over = (ending && !is_awaited) || self.awaits_server();
        self.last_segment
            .saturating_add(if is_over || self.is_incomplete() {
                self.limits.incomplete
            } else if self.is_unasked() {
                UNASKED.min(self.limits.idle)
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
        let holes = [
            self.requests.deadline(self.patience(Direction::Request)),
            self.responses.deadline(self.patience(Direction::Response)),
        ];
        let earliest = holes
            .into_iter()
            .chain([handshake, self.closing, self.judgement()])
            .chain([self.deadline_http2()])
            .flatten()
            .min();
        earliest.map_or(self.silent_at(), |earliest| earliest.min(self.silent_at()))
    }
}
