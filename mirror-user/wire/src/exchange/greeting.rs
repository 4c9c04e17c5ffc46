//! What a connection begins with before its first request: the PROXY protocol's header.

use bytes::{Bytes, BytesMut};

use super::connection::Connection;
use crate::http::{Preface, preface};
use crate::stream::Piece;

/// Whether a connection's first bytes were looked at.
#[derive(Debug)]
pub(super) enum Greeting {
    /// Not yet; this much of them has come.
    Awaited(Option<Piece>),
    Over,
}

impl Connection {
    /// Takes a PROXY header off the connection's first bytes. What is left, where that is known.
    pub(super) fn greet(&mut self, piece: Piece) -> Option<Piece> {
        let Greeting::Awaited(held) = std::mem::replace(&mut self.greeting, Greeting::Over) else {
            return Some(piece);
        };
        let start = self
            .starts
            .0
            .map(|start| self.requests.stream.position(start));
        let mut first = match held {
            Some(held) if held.end() == piece.position => join(held, piece),
            None if start == Some(piece.position) => piece,
            _ => return Some(piece),
        };
        match preface(&first.data) {
            Preface::None => Some(first),
            Preface::More => {
                self.greeting = Greeting::Awaited(Some(first));
                None
            }
            Preface::Header { length, client } => {
                self.named = client;
                let rest = first.data.split_off(length);
                first.position += length as u64;
                first.data = rest;
                (!first.data.is_empty()).then_some(first)
            }
        }
    }
}

/// One piece out of two that follow each other.
fn join(first: Piece, second: Piece) -> Piece {
    let mut data = BytesMut::from(&first.data[..]);
    data.extend_from_slice(&second.data);
    Piece {
        data: Bytes::from(data),
        ends: second.ends,
        flaw: first.flaw.or(second.flaw),
        ..first
    }
}
