//! How copies come from the node to the agent over TCP: the frames of the tap protocol, the keys by
//! which both sides know each other, and TLS by these keys.

pub mod frame;
pub mod keys;
pub mod tls;
