//! What the fuzz target `http2` does with its input.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use mirror_common::tunnel::Direction;

use crate::exchange::Limits;
use crate::grpc;
use crate::http2::{Connection, Dropped, PREFACE, Sink};
use crate::memory::Memory;
use crate::message::{DropReason, ExchangeId, Request, Response};
use crate::stream::{Flaw, Piece};

/// Whether each exchange that was seen is over, and was handed on.
#[derive(Default)]
struct Ledger(HashMap<ExchangeId, (bool, bool)>);

impl Ledger {
    fn end(&mut self, id: ExchangeId) -> (bool, bool) {
        let before = self.0.insert(id, (true, true));
        before.expect("it was seen")
    }
}

impl Sink for Ledger {
    fn seen(&mut self) -> ExchangeId {
        let id = ExchangeId(self.0.len() as u64);
        self.0.insert(id, (false, false));
        id
    }

    fn request(&mut self, id: ExchangeId, request: Request) {
        assert_eq!(self.0.insert(id, (false, true)), Some((false, false)));
        let _ = grpc::timeout(&request.headers);
        if let Ok(messages) = grpc::messages(&request.body) {
            let length = |message: &grpc::Message| message.data.len() + 5;
            let sum: usize = messages.iter().map(length).sum();
            assert_eq!(sum, request.body.len());
        }
    }

    fn response(&mut self, id: ExchangeId, response: Response) {
        assert_eq!(self.end(id), (false, true), "over, or before its request");
        let _ = grpc::status(&response);
    }

    fn dropped(&mut self, id: ExchangeId, dropped: Dropped) {
        assert!(!self.end(id).0, "over");
        assert_eq!(
            dropped.reason == DropReason::Malformed,
            dropped.why.is_some()
        );
    }

    fn is_unneeded(&mut self, id: ExchangeId) -> bool {
        id.0 % 8 == 7
    }
}

/// The fuzzer's bytes, used up from the front. Behind their end are zeros.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn short(&mut self) -> usize {
        usize::from(self.byte()) << 8 | usize::from(self.byte())
    }
}

/// Bytes of both directions, and frames of any kind, cut and lost at will, in little memory: what is seen ends once,
/// and nothing is kept.
pub fn http2(input: &[u8]) {
    const MEMORY: usize = 1 << 18;
    let mut input = Input(input);
    let memory = Memory::new(MEMORY);
    let mut ledger = Ledger::default();
    let limits = Limits::new(4096);
    let kind = input.byte();
    let mut connection = match kind & 3 {
        0 => Connection::joined(limits, &memory),
        1 => {
            let id = ledger.seen();
            ledger.0.insert(id, (false, true));
            let settings = input.take(usize::from(kind >> 2));
            match Connection::upgraded(limits, &memory, id, "GET", settings, Duration::ZERO) {
                Ok(connection) => connection,
                Err(_) => return,
            }
        }
        _ => Connection::begun(limits, &memory),
    };
    let mut now = Duration::ZERO;
    while !input.0.is_empty() {
        let operation = input.byte();
        let direction = match operation & 1 {
            0 => Direction::Request,
            _ => Direction::Response,
        };
        let data = match operation >> 1 & 7 {
            0..=2 => {
                let length = input.short();
                Bytes::copy_from_slice(input.take(length))
            }
            3 => {
                let length = input.byte();
                let header = [
                    0,
                    0,
                    length,
                    input.byte(),
                    input.byte(),
                    0,
                    0,
                    0,
                    input.byte(),
                ];
                let payload = input.take(usize::from(length));
                [&header, payload].concat().into()
            }
            4 => Bytes::from_static(PREFACE),
            5 => {
                let lost = input.short() as u64;
                connection.skip(direction, lost, DropReason::RequestGap, &mut ledger);
                continue;
            }
            6 => {
                now += Duration::from_millis(input.short() as u64);
                connection.expire(now, &mut ledger);
                continue;
            }
            _ => {
                connection.end(direction, &mut ledger);
                continue;
            }
        };
        let piece = Piece {
            position: 0,
            time_ns: now.as_nanos() as u64,
            acknowledgement: None,
            starts: operation & 0x10 != 0,
            ends: true,
            flaw: (operation >= 0xe0).then_some(Flaw::Conflict),
            data,
        };
        connection.read(direction, piece, now, &mut ledger);
        now += Duration::from_micros(1);
        assert!(memory.used() <= MEMORY);
        let _ = (connection.is_late(), connection.deadline());
    }
    connection.close(None, None, &mut ledger);
    assert_eq!(connection.open(), 0);
    drop(connection);
    assert!(
        ledger.0.values().all(|&(over, _)| over),
        "seen, but not over"
    );
    assert_eq!(memory.used(), 0);
}
