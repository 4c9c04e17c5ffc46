//! Connections of a real client and server, and such as nobody real makes.

mod calls;
mod frames;
pub(crate) mod real;
mod talk;
pub(crate) mod traffic;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use mirror_common::tunnel::Direction;

use super::*;
use crate::limits::Limits;
use crate::memory::Memory;
use crate::message::DropReason;
use crate::stream::Piece;

/// What became of each exchange.
#[derive(Debug, Default)]
struct Ledger {
    exchanges: BTreeMap<u64, Told>,
}

#[derive(Debug, Default)]
struct Told {
    request: Option<Request>,
    response: Option<Response>,
    dropped: Option<Dropped>,
}

impl Told {
    fn is_over(&self) -> bool {
        self.response.is_some() || self.dropped.is_some()
    }

    fn reason(&self) -> Option<DropReason> {
        self.dropped.map(|dropped| dropped.reason)
    }
}

impl Ledger {
    fn open(&mut self, id: ExchangeId) -> &mut Told {
        let told = self.exchanges.get_mut(&id.0).expect("not seen");
        assert!(!told.is_over(), "told twice");
        told
    }

    fn whole(&self) -> impl Iterator<Item = (&Request, &Response)> {
        self.exchanges
            .values()
            .filter_map(|told| Some((told.request.as_ref()?, told.response.as_ref()?)))
    }

    fn reasons(&self) -> BTreeMap<DropReason, usize> {
        let mut reasons = BTreeMap::new();
        for reason in self.exchanges.values().filter_map(Told::reason) {
            *reasons.entry(reason).or_default() += 1;
        }
        reasons
    }
}

impl Sink for Ledger {
    fn seen(&mut self) -> ExchangeId {
        let id = self.exchanges.len() as u64;
        self.exchanges.insert(id, Told::default());
        ExchangeId(id)
    }

    fn request(&mut self, id: ExchangeId, request: Request) {
        assert!(self.open(id).request.replace(request).is_none());
    }

    fn response(&mut self, id: ExchangeId, response: Response) {
        let told = self.open(id);
        assert!(told.request.is_some(), "answered before it was asked");
        told.response = Some(response);
    }

    fn dropped(&mut self, id: ExchangeId, dropped: Dropped) {
        self.open(id).dropped = Some(dropped);
    }

    fn is_unneeded(&mut self, _: ExchangeId) -> bool {
        false
    }
}

/// A connection with its ledger, and a clock that goes on by a microsecond a piece.
struct Table {
    connection: Connection,
    ledger: Ledger,
    memory: Memory,
    now: Duration,
}

impl Table {
    fn new(make: impl Fn(Limits, &Memory) -> Connection) -> Self {
        let memory = Memory::new(64 << 20);
        Self {
            connection: make(Limits::new(1 << 20), &memory),
            ledger: Ledger::default(),
            memory,
            now: Duration::ZERO,
        }
    }

    fn feed(&mut self, direction: Direction, data: &[u8]) -> &mut Self {
        self.now += Duration::from_micros(1);
        let piece = Piece {
            position: 0,
            time_ns: self.now.as_nanos() as u64,
            acknowledgement: None,
            starts: true,
            ends: true,
            flaw: None,
            data: Bytes::copy_from_slice(data),
        };
        self.connection
            .read(direction, piece, self.now, &mut self.ledger);
        self
    }

    fn skip(&mut self, direction: Direction, bytes: usize) -> &mut Self {
        let reason = match direction {
            Direction::Request => DropReason::RequestGap,
            Direction::Response => DropReason::ResponseGap,
        };
        self.connection
            .skip(direction, bytes as u64, reason, &mut self.ledger);
        self
    }

    fn finish(mut self) -> Ledger {
        self.connection.close(None, None, &mut self.ledger);
        assert_eq!(self.connection.open(), 0);
        drop(self.connection);
        for told in self.ledger.exchanges.values() {
            assert!(told.is_over());
        }
        let held = |told: &Told| {
            let request = told.request.as_ref().map_or(0, |it| it.lease.bytes());
            request + told.response.as_ref().map_or(0, |it| it.lease.bytes())
        };
        let held: usize = self.ledger.exchanges.values().map(held).sum();
        assert_eq!(
            self.memory.used(),
            held,
            "what is held is paid for, and nothing else"
        );
        self.ledger
    }
}
