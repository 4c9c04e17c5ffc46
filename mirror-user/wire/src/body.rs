//! What bodies are: decoded, and read as JSON, a stream of it, or tensors. Pure, within bounds of size, time and memory.

mod coding;
pub mod content;
pub mod failure;
pub mod json;
mod not_a_number;
pub mod pointer;
mod room;
mod streams;
mod tensors;
pub mod words;

use self::content::{Body, Content};
use crate::message::Field;

pub use self::coding::{MAX_TIME, cpu_time};
pub use self::room::{Room, Written};
pub use self::words::short;

/// How long a body is without these codings, where it can be read.
pub fn decoded_length(codings: &str, body: &[u8]) -> Option<usize> {
    let headers = [Field::of("content-encoding", codings)];
    let decoded = coding::decode(&headers, body, json::MAX_PARSED, &Room::unlimited());
    decoded.ok().map(|decoded| decoded.len())
}

/// How many leaves the values of a body of this type have, where it is JSON.
pub fn leaves(kind: &str, body: &[u8]) -> Option<u64> {
    let headers = [Field::of("content-type", kind)];
    match Body::of(&headers, body, &Room::unlimited()).content() {
        Content::Json(node) => Some(node.leaves()),
        Content::Text(..) | Content::Bytes(_) => None,
    }
}

/// See [`is_huge`].
const HUGE: usize = 1 << 20;

/// How many times its length a coded body is taken to have.
const UNFOLDED: usize = 16;

/// What reading a message takes, in bytes, as far as its length tells.
pub fn weight(headers: &[Field], body: &[u8]) -> usize {
    let times = if coding::is_coded(headers) {
        UNFOLDED
    } else {
        1
    };
    body.len().saturating_mul(times)
}

/// Whether an exchange of such [`weight`] is to be compared by itself: two of them would leave each other no memory.
pub fn is_huge(weight: usize) -> bool {
    weight > HUGE
}
