//! What passes between clients and a model server, read from packets: segments become streams, streams messages of
//! HTTP/1 or HTTP/2, and messages exchanges. Pure; the agent and the daemon read by the same lines.
//!
//! In the order that bytes travel: [`segment`], [`stream`], [`http`] and [`http2`], [`exchange`], [`body`] and
//! [`grpc`].

#[cfg(test)]
mod allocated;
pub mod body;
pub mod exchange;
#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;
#[doc(hidden)]
pub mod fuzzing;
pub mod grpc;
pub mod heap;
pub mod http;
pub mod http2;
mod limits;
pub mod mark;
pub mod memory;
pub mod message;
pub mod segment;
pub mod stream;
