//! A request with its response on one stream, as far as both have come.

use std::time::Duration;

use mirror_common::tunnel::Direction;

use super::Sink;
use super::head::Unusable;
use super::message::Message;
use crate::http::Unfit;
use crate::memory::Lease;
use crate::message::{DropReason, ExchangeId, Partial, Request};

/// What one takes besides its messages, in bytes, about.
pub(super) const COST: usize = 512;

/// An exchange that is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// Why.
    pub reason: DropReason,
    /// The side that ended it, or whose bytes cannot be read.
    pub by: Option<Direction>,
    /// What is malformed.
    pub why: Option<&'static str>,
    /// What came of the response.
    pub response: Option<Partial>,
}

/// A stream's exchange.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) id: ExchangeId,
    /// Neither dropped nor answered; else its frames are only passed over.
    pub(super) is_live: bool,
    /// Nothing once it was handed on.
    pub(super) request: Option<Message>,
    /// Nothing until it begins.
    pub(super) response: Option<Message>,
    pub(super) has_request_ended: bool,
    pub(super) has_response_ended: bool,
    /// A whole request that is handed on once an answer says that it is one.
    pub(super) withheld: Option<Box<Request>>,
    /// It asked for a head alone.
    pub(super) asks_head: bool,
    /// Why something of its answer may have passed unread.
    pub(super) gap: Option<Unusable>,
    /// The client has cancelled it.
    pub(super) is_cancelled: bool,
    /// Since when nothing but the response is awaited.
    pub(super) since: Option<Duration>,
    /// When it was heard of last.
    pub(super) touched: Duration,
    _lease: Lease,
}

impl Call {
    pub(super) fn new(id: ExchangeId, lease: Lease, now: Duration) -> Self {
        Self {
            id,
            is_live: true,
            request: None,
            response: None,
            has_request_ended: false,
            has_response_ended: false,
            withheld: None,
            asks_head: false,
            gap: None,
            is_cancelled: false,
            since: None,
            touched: now,
            _lease: lease,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.has_request_ended && self.has_response_ended
    }

    /// Whether its request was not seen to begin.
    pub(super) fn is_unasked(&self) -> bool {
        self.request.is_none() && !self.has_request_ended
    }

    /// It is over for the ledger.
    pub(super) fn drop(
        &mut self,
        why: impl Into<Unusable>,
        by: Option<Direction>,
        sink: &mut impl Sink,
    ) {
        if !std::mem::take(&mut self.is_live) {
            return;
        }
        let is_whole = self.has_response_ended;
        let response = self.response.as_ref();
        let response = response.and_then(|response| response.partial(is_whole));
        let Unusable { reason, why } = why.into();
        let dropped = Dropped {
            reason,
            by,
            why,
            response,
        };
        sink.dropped(self.id, dropped);
        self.request = None;
        self.response = None;
        self.withheld = None;
    }

    /// Hands on what is whole; `withholds`: no request that no answer vouches for.
    pub(super) fn settle(&mut self, withholds: bool, now: Duration, sink: &mut impl Sink) {
        if self.has_request_ended
            && let Some(request) = self.request.take_if(|request| request.head.is_some())
        {
            self.since = Some(now);
            match request.into_request() {
                Ok(request) => self.withheld = Some(Box::new(request)),
                Err(unusable) => {
                    return self.drop(unusable, unusable.blames(Direction::Request), sink);
                }
            }
        }
        let is_answered = self
            .response
            .as_ref()
            .is_some_and(|answer| answer.head.is_some());
        if let Some(request) = self.withheld.take_if(|_| !withholds || is_answered) {
            sink.request(self.id, *request);
        }
        let is_handed_on = self.request.is_none() && self.withheld.is_none();
        if self.is_live
            && self.is_over()
            && is_handed_on
            && let Some(response) = self.response.take()
        {
            match response.into_response() {
                Ok(response) => {
                    self.is_live = false;
                    sink.response(self.id, response);
                }
                Err(unusable) => {
                    self.drop(unusable, unusable.blames(Direction::Response), sink);
                }
            }
        }
    }

    /// Why it is not whole, where nothing more comes of it.
    pub(super) fn why_incomplete(&self) -> Unusable {
        let (message, direction) = match &self.request {
            Some(request) => (Some(request), Direction::Request),
            None if self.is_unasked() => (None, Direction::Request),
            None => (self.response.as_ref(), Direction::Response),
        };
        let unfit = message.and_then(Message::unfit);
        match (unfit, self.gap) {
            (None, Some(gap)) if self.response.is_none() => gap,
            _ => unfit.unwrap_or(Unfit::Incomplete).reason(direction).into(),
        }
    }
}
