//! HTTP/2 (RFC 9113) of both directions of a connection, read from copies of its bytes: one [`Connection`] each.
//!
//! Like [`http`](crate::http) it knows no clock and no socket. Unlike there, a reader that missed a byte has missed
//! more than a message: where frames begin, and what field blocks refer to. Both are found again, by what is certain
//! alone:
//!
//! - [`frame`] knows where the next frame begins as long as what is missing lies inside one; [`seek`] finds it else.
//! - [`hpack`] calls a field unknown that was entered into the table before the reader came. A message with such
//!   a field is dropped by that name, [`DropReason::JoinedLate`](crate::message::DropReason::JoinedLate).
//! - [`connection`] pairs both directions by their streams.

mod call;
mod calls;
mod connection;
mod frame;
mod half;
mod head;
mod hpack;
mod message;
mod seek;
mod settings;

use crate::message::{ExchangeId, Request, Response};

pub use crate::http::PREFACE;
pub use call::Dropped;
pub use connection::Connection;

/// Numbers exchanges, and takes down what becomes of them: each that was seen ends in one response, or dropped.
pub trait Sink {
    /// The first frame of a request, or of its response.
    fn seen(&mut self) -> ExchangeId;

    /// A whole request.
    fn request(&mut self, id: ExchangeId, request: Request);

    /// The whole response; always after its request.
    fn response(&mut self, id: ExchangeId, response: Response);

    /// It is over without both; may come after the request.
    fn dropped(&mut self, id: ExchangeId, dropped: Dropped);

    /// Whether nobody needs what is still to come of its response.
    fn is_unneeded(&mut self, id: ExchangeId) -> bool;
}

#[cfg(test)]
pub(crate) mod tests;
