//! The processes that serve: found through the sockets at which they listen, and what they use.
//!
//! A server is everybody who holds one of the listening sockets at its address (workers inherit the
//! socket, or have one each by SO_REUSEPORT), and the children of those. A thread looks for them
//! ([`watch`]); who belongs to whom and what they have used by now is pure ([`listening`],
//! [`family`], [`tally`]).

mod family;
mod listening;
mod processes;
mod tally;
mod watch;

pub use self::listening::{serves, sockets};
pub use self::processes::{holders, name, servers};
pub use self::tally::Usage;
pub use self::watch::Watch;
