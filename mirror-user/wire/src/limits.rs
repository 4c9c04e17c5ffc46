//! What bounds the reading of connections.

use std::time::Duration;

use crate::mark::Mark;

/// What bounds the connections of one service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest body that is rebuilt, in bytes.
    pub max_body: usize,
    /// The most bytes of one direction of a connection that wait for others before them.
    pub buffer: usize,
    /// A connection without open exchanges is forgotten after so much silence.
    pub idle: Duration,
    /// A connection with an open exchange is given up after so much silence.
    pub incomplete: Duration,
    /// An answer that comes without end is not waited for any longer.
    pub endless: Option<Duration>,
    /// Requests that carry this agent's own mark come from itself.
    pub mark: Option<Mark>,
    /// Bodies of requests are framed, whatever their size, and not kept: they are empty.
    pub skips_requests: bool,
    /// The same of responses.
    pub skips_responses: bool,
    /// HTTP/2 in clear text is read, too, not left alone.
    pub reads_http2: bool,
}

impl Limits {
    /// The usual bounds, with this one on bodies.
    pub const fn new(max_body: usize) -> Self {
        Self {
            max_body,
            buffer: 8 << 20,
            // Proxies keep connections for an hour, and the first request on one that was forgotten
            // cannot be told.
            idle: Duration::from_secs(3_600),
            incomplete: Duration::from_secs(30),
            endless: None,
            mark: None,
            skips_requests: false,
            skips_responses: false,
            reads_http2: false,
        }
    }

    /// The same for whoever can do something with requests of HTTP/2.
    pub const fn with_http2(self) -> Self {
        Self {
            reads_http2: true,
            ..self
        }
    }

    /// The same for whoever only wants to know how exchanges end.
    pub const fn without_bodies(self) -> Self {
        Self {
            skips_requests: true,
            skips_responses: true,
            ..self
        }
    }

    /// The same for an agent with this mark.
    pub const fn with_mark(self, mark: Mark) -> Self {
        Self {
            mark: Some(mark),
            ..self
        }
    }

    /// The same where answers may take so long, with nothing to be seen meanwhile.
    pub fn with_answers_within(self, timeout: Duration) -> Self {
        let incomplete = self.incomplete.saturating_add(timeout);
        Self {
            incomplete,
            endless: Some(incomplete),
            idle: self.idle.max(incomplete),
            ..self
        }
    }
}
