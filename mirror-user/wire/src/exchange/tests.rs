use std::net::{IpAddr, Ipv4Addr};

use bytes::Bytes;
use mirror_common::flow::{Endpoint, Flow};
use mirror_common::packet::{ACK, FIN, RST, SYN};

use super::*;
use crate::message::{Extras, Multipath, header};

mod acceptance;
mod alone;
mod endings;
mod handover;
mod limits;
mod lives;
mod losses;
mod lossy;
mod multiplexed;
mod pairing;
mod protocols;

const MAX_BODY: usize = 1_000;
const MEMORY: usize = 16 << 20;

/// Both ends of a connection, in the order in which they speak.
#[derive(Clone)]
struct Talk {
    /// The client's address is 10.0.0 and this.
    host: u8,
    port: u16,
    arm: Arm,
    client: u32,
    server: u32,
    time_ns: u64,
}

impl Talk {
    fn new() -> Self {
        // Both sequence numbers wrap soon.
        Self {
            host: 1,
            port: 40_000,
            arm: Arm::Stable,
            client: u32::MAX - 20,
            server: u32::MAX - 30,
            time_ns: 0,
        }
    }

    fn segment(&mut self, direction: Direction, flags: u8, payload: &[u8]) -> Segment {
        let ip = |last| IpAddr::V4(Ipv4Addr::new(10, 0, 0, last));
        let (sequence, acknowledgement) = match direction {
            Direction::Request => (self.client, self.server),
            Direction::Response => (self.server, self.client),
        };
        self.time_ns += 1_000;
        let length = payload.len() as u32 + u32::from(flags & (SYN | FIN) != 0);
        match direction {
            Direction::Request => self.client = self.client.wrapping_add(length),
            Direction::Response => self.server = self.server.wrapping_add(length),
        }
        Segment {
            service: 0,
            tap: TapId(9),
            flow: Flow {
                client: Endpoint::new(ip(self.host).into(), self.port),
                server: Endpoint::new(ip(2).into(), 8_000),
            },
            direction,
            arm: self.arm,
            time_ns: self.time_ns,
            sequence,
            acknowledgement,
            flags,
            extras: Extras::default(),
            payload: Bytes::copy_from_slice(payload),
        }
    }

    fn syn(&mut self) -> Segment {
        let mut segment = self.segment(Direction::Request, SYN, b"");
        segment.acknowledgement = 0;
        segment
    }

    fn syn_ack(&mut self) -> Segment {
        self.segment(Direction::Response, SYN | ACK, b"")
    }

    fn client(&mut self, text: impl AsRef<[u8]>) -> Segment {
        self.segment(Direction::Request, ACK, text.as_ref())
    }

    fn server(&mut self, text: impl AsRef<[u8]>) -> Segment {
        self.segment(Direction::Response, ACK, text.as_ref())
    }

    fn client_fin(&mut self) -> Segment {
        self.segment(Direction::Request, ACK | FIN, b"")
    }

    fn server_fin(&mut self) -> Segment {
        self.segment(Direction::Response, ACK | FIN, b"")
    }

    fn client_rst(&mut self) -> Segment {
        self.segment(Direction::Request, RST, b"")
    }

    fn server_rst(&mut self) -> Segment {
        self.segment(Direction::Response, RST | ACK, b"")
    }

    fn open(&mut self) -> Vec<Segment> {
        vec![self.syn(), self.syn_ack()]
    }
}

fn post(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn ok(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A table of connections, with what happened in words.
struct Table {
    exchanges: Exchanges,
    memory: Memory,
    now: Duration,
    told: Vec<String>,
    events: Vec<Event>,
}

impl Table {
    fn new() -> Self {
        let memory = Memory::new(MEMORY);
        let limits = Limits::new(MAX_BODY);
        Self::with(limits, memory)
    }

    fn with(limits: Limits, memory: Memory) -> Self {
        Self {
            exchanges: Exchanges::new(vec![limits], memory.clone()),
            memory,
            now: Duration::ZERO,
            told: Vec::new(),
            events: Vec::new(),
        }
    }

    fn feed(&mut self, segments: impl IntoIterator<Item = Segment>) -> &mut Self {
        for segment in segments {
            let mut events = Vec::new();
            self.exchanges.segment(segment, self.now, &mut events);
            self.tell(events);
        }
        self
    }

    /// Lets time pass, in steps like the agent's.
    fn wait(&mut self, milliseconds: u64) -> &mut Self {
        let end = self.now + Duration::from_millis(milliseconds);
        while self.now < end {
            self.now = (self.now + Duration::from_millis(50)).min(end);
            let mut events = Vec::new();
            self.exchanges.tick(self.now, &mut events);
            self.tell(events);
        }
        self
    }

    fn finish(&mut self) -> &mut Self {
        let mut events = Vec::new();
        self.exchanges.finish(&mut events);
        self.tell(events);
        self
    }

    fn tell(&mut self, events: Vec<Event>) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        for event in events {
            self.told.push(match &event {
                Event::Seen { id, .. } => format!("seen {}", id.0),
                Event::Request { id, request, .. } => format!(
                    "request {} {} {} {}",
                    id.0,
                    request.method,
                    request.target,
                    text(&request.body)
                ),
                Event::Response { id, response } => {
                    format!(
                        "response {} {} {}",
                        id.0,
                        response.status,
                        text(&response.body)
                    )
                }
                Event::Dropped { id, reason, .. } => format!("dropped {} {}", id.0, reason.label()),
                Event::Closed { connection } => format!("closed {}", connection.0),
            });
            self.events.push(event);
        }
    }

    #[track_caller]
    fn told(&mut self, expected: &[&str]) -> &mut Self {
        assert_eq!(self.told, expected);
        self.told.clear();
        self
    }

    /// Nothing is held any more.
    #[track_caller]
    fn empty(&mut self) {
        self.events.clear();
        assert_eq!(self.memory.used(), 0);
    }
}

#[track_caller]
fn check(segments: Vec<Segment>, expected: &[&str]) {
    let mut table = Table::new();
    table.feed(segments).told(expected);
    table.wait(40_000);
    table.now += Duration::from_secs(3_600);
    table.wait(100).events.clear();
    assert_eq!(table.exchanges.connections(), 0);
    table.empty();
}
