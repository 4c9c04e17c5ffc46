use std::net::{IpAddr, Ipv4Addr};

use bytes::Bytes;
use mirror_common::flow::{Endpoint, Flow};
use mirror_common::packet::{ACK, FIN, RST, SYN};

use super::*;
use crate::shadow::message::header;

mod alone;
mod endings;
mod handover;
mod lossy;

const MAX_BODY: usize = 1_000;
const MEMORY: usize = 16 << 20;

/// Both ends of a connection, in the order in which they speak.
#[derive(Clone)]
struct Talk {
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
                client: Endpoint::new(ip(1).into(), self.port),
                server: Endpoint::new(ip(2).into(), 8_000),
            },
            direction,
            arm: self.arm,
            time_ns: self.time_ns,
            sequence,
            acknowledgement,
            flags,
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

#[test]
fn exchanges_of_one_connection() {
    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client(post("/a", "abc")));
    segments.push(talk.server(ok("A")));
    segments.push(talk.client("GET /b HTTP/1.1\r\n\r\n"));
    segments.push(talk.server(ok("B")));
    segments.push(talk.client_fin());
    segments.push(talk.server_fin());
    check(
        segments,
        &[
            "seen 1",
            "request 1 POST /a abc",
            "response 1 200 A",
            "seen 2",
            "request 2 GET /b ",
            "response 2 200 B",
            "closed 1",
        ],
    );
}

#[test]
fn times_are_the_tap_s() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open());
    let request = post("/", "abc");
    table.feed([talk.client(&request[..9]), talk.client(&request[9..])]);
    table.feed([talk.server("HTTP/1.1 100 Continue\r\n\r\n")]);
    table.feed([
        talk.server("HTTP/1.1 200 OK\r\nContent-Le"),
        talk.server("ngth: 0\r\n\r\n"),
    ]);
    let times: Vec<_> = table
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Request { request, .. } => Some((request.first_byte_ns, request.last_byte_ns)),
            Event::Response { response, .. } => {
                Some((response.first_byte_ns, response.last_byte_ns))
            }
            _ => None,
        })
        .collect();
    assert_eq!(times, [(3_000, 4_000), (6_000, 7_000)]);
    table.finish().empty();
}

#[test]
fn one_of_syn_and_syn_ack_is_enough() {
    let expected = ["seen 1", "request 1 POST / abc", "response 1 200 A"];
    for lost in [0, 1] {
        let mut talk = Talk::new();
        let mut segments = talk.open();
        segments.remove(lost);
        segments.push(talk.client(post("/", "abc")));
        segments.push(talk.server(ok("A")));
        Table::new().feed(segments).told(&expected);
    }
}

#[test]
fn arrival_order_does_not_matter() {
    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client(post("/", "abc")));
    segments.push(talk.server(ok("A")));
    segments.push(talk.client_fin());
    segments.push(talk.server_fin());
    let expected = [
        "seen 1",
        "request 1 POST / abc",
        "response 1 200 A",
        "closed 1",
    ];
    for first in 0..segments.len() {
        for second in 0..segments.len() {
            let mut order = segments.clone();
            order.swap(first, second);
            let mut table = Table::new();
            table.feed(order).wait(31_000);
            assert_eq!(table.told, expected, "{first} and {second} swapped");
            table.empty();
        }
    }
}

#[test]
fn whole_exchanges_may_overtake_the_handshake() {
    let mut talk = Talk::new();
    let handshake = talk.open();
    let exchanges = [
        talk.client(post("/a", "a")),
        talk.server(ok("A")),
        talk.client(post("/b", "b")),
        talk.server(ok("B")),
    ];
    for waits in [0, 90, 150, 10_000] {
        let mut table = Table::new();
        table.feed(exchanges.clone()).wait(waits);
        table.feed(handshake.clone()).feed(handshake.clone());
        table.feed([talk.clone().client(post("/c", "c"))]);
        // What comes too late to be waited for tells nothing, and breaks nothing.
        let first: &[_] = if waits < 100 {
            &["seen 1", "request 1 POST /a a", "response 1 200 A"]
        } else {
            &["seen 1", "dropped 1 mid_stream"]
        };
        let rest = ["seen 2", "request 2 POST /b b", "response 2 200 B"];
        let last = ["seen 3", "request 3 POST /c c"];
        let told: Vec<&str> = table.told.iter().map(String::as_str).collect();
        let mut expected = [first, &rest, &last].concat();
        let mut sorted = told.clone();
        sorted.sort_unstable();
        expected.sort_unstable();
        assert_eq!(sorted, expected, "after {waits} ms: {told:?}");
        table.finish().empty();
    }
}

#[test]
fn pipelined() {
    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client(post("/a", "a") + &post("/b", "b") + "GET /c"));
    segments.push(talk.client(" HTTP/1.1\r\n\r\n"));
    segments.push(talk.server(ok("A") + &ok("B")));
    segments.push(talk.server(ok("C")));
    check(
        segments,
        &[
            "seen 1",
            "request 1 POST /a a",
            "seen 2",
            "request 2 POST /b b",
            "seen 3",
            "request 3 GET /c ",
            "response 1 200 A",
            "response 2 200 B",
            "response 3 200 C",
        ],
    );
}

#[test]
fn head_has_no_body() {
    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client("HEAD /h HTTP/1.1\r\n\r\n"));
    segments.push(talk.server("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"));
    segments.push(talk.client("GET /g HTTP/1.1\r\n\r\n"));
    segments.push(talk.server(ok("G")));
    check(
        segments,
        &[
            "seen 1",
            "request 1 HEAD /h ",
            "response 1 200 ",
            "seen 2",
            "request 2 GET /g ",
            "response 2 200 G",
        ],
    );
}

#[test]
fn a_body_ends_with_the_connection_but_not_with_a_reset() {
    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client("GET / HTTP/1.0\r\n\r\n"));
    segments.push(talk.server("HTTP/1.0 200 OK\r\n\r\nto the "));
    let mut reset = segments.clone();
    reset.push(talk.clone().server_rst());
    segments.push(talk.server("end"));
    segments.push(talk.server_fin());
    let seen = ["seen 1", "request 1 GET / "];
    check(segments, &[seen[0], seen[1], "response 1 200 to the end"]);
    let mut table = Table::new();
    table.feed(reset).told(&seen);
    table
        .wait(200)
        .told(&["dropped 1 response_incomplete", "closed 1"]);
    table.wait(2_000).empty();
}

#[test]
fn a_closed_connection_takes_what_is_late() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open()).feed([talk.client(post("/", "a"))]);
    let late = talk.server(ok("A"));
    table.feed([talk.server_rst(), talk.client_rst(), late.clone()]);
    table.told(&["seen 1", "request 1 POST / a", "response 1 200 A"]);
    table.wait(200).told(&["closed 1"]);
    table.feed([late]).wait(2_000).told(&[]).empty();
}

#[test]
fn incomplete() {
    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client(&post("/", "abc")[..30]));
    let mut silent = Table::new();
    silent.feed(segments.clone()).told(&["seen 1"]);
    silent.wait(31_000).told(&["dropped 1 request_incomplete"]);
    assert_eq!(silent.exchanges.connections(), 0);
    let mut fin = Table::new();
    fin.feed(segments.clone()).feed([talk.clone().client_fin()]);
    fin.told(&["seen 1", "dropped 1 request_incomplete"]);
    let mut stopped = Table::new();
    stopped.feed(segments).finish();
    stopped.told(&["seen 1", "dropped 1 shutdown"]).empty();

    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open()).feed([talk.client(post("/", "a"))]);
    table.feed([talk.server(&ok("A")[..20])]);
    table.told(&["seen 1", "request 1 POST / a"]);
    table.wait(31_000);
    table
        .told(&["dropped 1 response_incomplete", "closed 1"])
        .empty();
}

#[test]
fn an_answer_may_take_as_long_as_the_shadow_s() {
    let limits = Limits::new(MAX_BODY).with_answers_within(Duration::from_secs(120));
    let mut table = Table::with(limits, Memory::new(MEMORY));
    let mut talk = Talk::new();
    table.feed(talk.open()).feed([talk.client(post("/", "a"))]);
    table.wait(125_000).feed([talk.server(ok("A"))]);
    table.told(&["seen 1", "request 1 POST / a", "response 1 200 A"]);
}

#[test]
fn a_request_without_an_answer() {
    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client(post("/", "a")));
    segments.push(talk.server_fin());
    check(
        segments,
        &[
            "seen 1",
            "request 1 POST / a",
            "dropped 1 response_incomplete",
        ],
    );
}

#[test]
fn a_lost_request_is_dropped_and_the_next_goes_through() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open());
    let _lost = talk.client(post("/a", "a"));
    table.feed([
        talk.server(ok("A")),
        talk.client(post("/b", "b")),
        talk.server(ok("B")),
    ]);
    table.told(&[]).wait(250);
    table.told(&[
        "seen 1",
        "dropped 1 request_gap",
        "seen 2",
        "request 2 POST /b b",
        "response 2 200 B",
    ]);
    table.feed([talk.client(post("/c", "c")), talk.server(ok("C"))]);
    table.told(&["seen 3", "request 3 POST /c c", "response 3 200 C"]);
    table.finish().empty();
}

#[test]
fn a_lost_answer_is_dropped_and_the_next_goes_through() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open()).feed([talk.client(post("/a", "a"))]);
    let _lost = talk.server(ok("A"));
    table.feed([talk.client(post("/b", "b")), talk.server(ok("B"))]);
    table.told(&[
        "seen 1",
        "request 1 POST /a a",
        "seen 2",
        "request 2 POST /b b",
    ]);
    table
        .wait(250)
        .told(&["dropped 1 response_gap", "response 2 200 B"]);
    table.finish().empty();
}

#[test]
fn lost_bytes_of_a_known_length_are_stepped_over() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open());
    let request = post("/a", "0123456789") + &post("/b", "b");
    table.feed([talk.client(&request[..42])]);
    let _lost = talk.client(&request[42..46]);
    table.feed([
        talk.client(&request[46..]),
        talk.server(ok("A")),
        talk.server(ok("B")),
    ]);
    table.told(&["seen 1"]);
    table.wait(250);
    table.told(&[
        "dropped 1 request_gap",
        "seen 2",
        "request 2 POST /b b",
        "response 2 200 B",
    ]);
    table.finish().empty();
}

#[test]
fn many_holes_are_given_up_together() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open()).feed([talk.client(post("/a", "a"))]);
    let answer = ok(&"x".repeat(900));
    for (index, part) in answer.as_bytes().chunks(10).enumerate() {
        let segment = talk.server(part);
        if index % 9 != 7 {
            table.feed([segment]);
        }
    }
    table.feed([talk.client(post("/b", "b")), talk.server(ok("B"))]);
    table.told.clear();
    table
        .wait(250)
        .told(&["dropped 1 response_gap", "response 2 200 B"]);
    table.finish().empty();
}

#[test]
fn a_retransmission_fills_the_hole() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open());
    let request = post("/a", "abc");
    table.feed([talk.client(&request[..9])]);
    let again = talk.client(&request[9..20]);
    table.feed([talk.client(&request[20..])]).wait(2_900);
    // Nobody acknowledged the missing bytes, so production sends them again.
    table.feed([again]);
    table.told(&["seen 1", "request 1 POST /a abc"]);
    table.finish().empty();
}

#[test]
fn unacknowledged_bytes_are_given_up_late() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open());
    let request = post("/a", "abc");
    table.feed([talk.client(&request[..9])]);
    let _lost = talk.client(&request[9..20]);
    table.feed([talk.client(&request[20..])]);
    table.wait(2_900).told(&["seen 1"]);
    table.wait(200).told(&["dropped 1 request_gap"]);
    table.finish().empty();
}

#[test]
fn joined_midway_it_starts_at_the_first_certain_turn() {
    let mut talk = Talk::new();
    let segments = [
        talk.client("the rest of a body"),
        talk.server(ok("A")),
        talk.client(post("/b", "b")),
        talk.server(ok("B")),
    ];
    let expected = [
        "seen 1",
        "dropped 1 mid_stream",
        "seen 2",
        "request 2 POST /b b",
        "response 2 200 B",
    ];
    for order in [
        [0, 1, 2, 3],
        [1, 0, 2, 3],
        [0, 2, 1, 3],
        [2, 1, 0, 3],
        [0, 1, 3, 2],
    ] {
        let mut table = Table::new();
        table.feed(order.map(|index| segments[index].clone()));
        table.told(&[]).wait(150);
        assert_eq!(table.told, expected, "{order:?}");
        table.finish().empty();
    }
}

#[test]
fn a_continued_body_is_no_turn() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    // A body that looks like a request, after an interim answer.
    table.feed([
        talk.server("HTTP/1.1 100 Continue\r\n\r\n"),
        talk.client(post("/x", "x")),
    ]);
    table.feed([talk.server(ok("A"))]).wait(150).told(&[]);
    table.feed([talk.client(post("/b", "b")), talk.server(ok("B"))]);
    table.told(&[
        "seen 1",
        "dropped 1 mid_stream",
        "seen 2",
        "request 2 POST /b b",
        "response 2 200 B",
    ]);
    table.finish().empty();
}

#[test]
fn overlapping_requests_are_no_turn() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    let (a, b) = (talk.client(post("/a", "a")), talk.client(post("/b", "b")));
    let answer = talk.server(ok("A"));
    // The answer to b is sent before c comes: what follows A does not answer c.
    let late = talk.server(ok("B"));
    talk.server = late.sequence;
    let c = talk.client(post("/c", "c"));
    table.feed([a, b, answer, late, c]).wait(150).told(&[]);
    table.finish();
    assert!(
        !table.told.iter().any(|told| told.starts_with("request")),
        "{:?}",
        table.told
    );
}

#[test]
fn any_part_of_an_answer_vouches_for_the_next_request() {
    let chunked = "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    // The last part alone might as well be the end of an interim answer.
    for arrives in 0..2 {
        let mut talk = Talk::new();
        let mut table = Table::new();
        table.feed(talk.open()).feed([talk.client(chunked)]);
        let _lost = talk.client("1\r\na\r\n0\r\n\r\n");
        let head = format!("HTTP/1.1 200 OK\r\n{}", &chunked[18..]);
        let answer = [head.as_str(), "3\r\nABC\r\n", "0\r\n\r\n"];
        let answer = answer.map(|part| talk.server(part));
        table.feed([answer[arrives].clone()]);
        table.feed([talk.client(post("/b", "b")), talk.server(ok("B"))]);
        table.wait(250);
        assert!(table.told[1].starts_with("dropped 1 "), "{:?}", table.told);
        let next = ["seen 2", "request 2 POST /b b", "response 2 200 B"];
        assert_eq!(table.told[2..], next);
        table.finish().empty();
    }
}

#[test]
fn a_request_is_found_behind_a_loss_though_its_answer_is_lost_too() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open());
    let _lost = talk.client(post("/a", "a"));
    table.feed([talk.server(ok("A")), talk.client(post("/b", "b"))]);
    let _lost = talk.server(ok("B"));
    table.feed([talk.client(post("/c", "c")), talk.server(ok("C"))]);
    table.wait(250).told(&[
        "seen 1",
        "dropped 1 request_gap",
        "seen 2",
        "request 2 POST /b b",
        "seen 3",
        "request 3 POST /c c",
        "dropped 2 response_gap",
        "response 3 200 C",
    ]);
    table.finish().empty();
}

#[test]
fn nobody_vouches_for_what_follows_a_wholly_lost_exchange() {
    // What a client sends behind `100 Continue` looks just so.
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open());
    let _lost = [talk.client(post("/a", "a")), talk.server(ok("A"))];
    table.feed([talk.client(post("/b", "b")), talk.server(ok("B"))]);
    table.feed([talk.client(post("/c", "c")), talk.server(ok("C"))]);
    table.wait(250).told(&[
        "seen 1",
        "dropped 1 request_gap",
        "seen 2",
        "request 2 POST /c c",
        "response 2 200 C",
    ]);
    table.finish().empty();
}

#[test]
fn passed_over_exchanges_are_counted_one_by_one() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open());
    let _lost = talk.client(post("/a", "a"));
    table.feed([talk.server(ok("A"))]);
    let second = post("/b", "b");
    let _lost = talk.client(&second[..9]);
    table.feed([talk.client(&second[9..]), talk.server(ok("B"))]);
    table.feed([talk.client(post("/c", "c")), talk.server(ok("C"))]);
    table.wait(250);
    table.told(&[
        "seen 1",
        "dropped 1 request_gap",
        "seen 2",
        "dropped 2 request_gap",
        "seen 3",
        "request 3 POST /c c",
        "response 3 200 C",
    ]);
    table.finish().empty();
}

#[test]
fn an_answer_to_nothing_is_no_answer() {
    // The server times the idle connection out while a request is on its way.
    let mut talk = Talk::new();
    let mut segments = talk.open();
    let timeout = talk.server("HTTP/1.1 408 Timeout\r\nContent-Length: 0\r\n\r\n");
    let fin = talk.server_fin();
    talk.server = timeout.sequence;
    segments.extend([talk.client(post("/", "a")), timeout, fin]);
    let mut table = Table::new();
    table.feed(segments);
    table.told(&[
        "seen 1",
        "request 1 POST / a",
        "dropped 1 response_incomplete",
    ]);
    table.wait(40_000).told(&["closed 1"]).empty();
}

#[test]
fn an_early_answer_waits_for_its_request() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    let request = post("/", "abc");
    table.feed(talk.open()).feed([talk.client(&request[..40])]);
    table.feed([talk.server("HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")]);
    table.told(&["seen 1"]);
    let mut closed = talk.clone();
    table.feed([talk.client(&request[40..])]);
    table.told(&["request 1 POST / abc", "response 1 413 "]);
    table.finish().empty();

    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open()).feed([talk.client(&request[..40])]);
    table.feed([talk.server("HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")]);
    table
        .feed([closed.server_fin(), closed.client_rst()])
        .wait(200);
    table
        .told(&["seen 1", "dropped 1 request_incomplete"])
        .empty();
}

#[test]
fn expectations() {
    let head = "POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client(head));
    segments.push(talk.server("HTTP/1.1 100 Continue\r\n\r\n"));
    segments.push(talk.client("abc"));
    segments.push(talk.server(ok("A")));
    check(
        segments,
        &["seen 1", "request 1 POST / abc", "response 1 200 A"],
    );
    // Refused: the client does not send the body, but another request.
    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client(head));
    segments.push(talk.server("HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n"));
    segments.push(talk.client(post("/", "abc")));
    segments.push(talk.server(ok("A")));
    check(
        segments,
        &[
            "seen 1",
            "dropped 1 request_incomplete",
            "seen 2",
            "request 2 POST / abc",
            "response 2 200 A",
        ],
    );
}

#[test]
fn upgrades_are_left_alone() {
    let upgrade = "GET /ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client(upgrade));
    let frame = |talk: &mut Talk| talk.client([0x81, 1, b'x']);
    let switch = talk.server("HTTP/1.1 101 Switching\r\n\r\n");
    // The client's first frame overtakes the answer.
    segments.push(frame(&mut talk));
    segments.push(switch);
    segments.push(frame(&mut talk));
    segments.push(talk.server([0x81, 1, b'y']));
    check(segments, &["seen 1", "dropped 1 upgrade"]);

    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client(upgrade));
    segments.push(talk.server(ok("no")));
    segments.push(talk.client(post("/b", "b")));
    segments.push(talk.server(ok("B")));
    check(
        segments,
        &[
            "seen 1",
            "request 1 GET /ws ",
            "response 1 200 no",
            "seen 2",
            "request 2 POST /b b",
            "response 2 200 B",
        ],
    );

    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client("CONNECT a:1 HTTP/1.1\r\n\r\n"));
    segments.push(talk.server("HTTP/1.1 200 OK\r\n\r\n"));
    segments.push(talk.client("anything"));
    check(segments, &["seen 1", "dropped 1 upgrade"]);
}

#[test]
fn other_protocols_are_left_alone() {
    for (first, reason) in [
        (&[0x16, 3, 1, 0, 5, 1, 2, 3][..], "dropped 1 tls"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "dropped 1 http2"),
    ] {
        let mut talk = Talk::new();
        let mut segments = talk.open();
        segments.push(talk.client(first));
        segments.push(talk.server("anything"));
        segments.push(talk.client(post("/", "a")));
        segments.push(talk.client_fin());
        segments.push(talk.server_fin());
        check(segments, &["seen 1", reason]);
    }
}

#[test]
fn malformed_messages() {
    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client("POST / HTTP/1.1\r\nContent-Length: x\r\n\r\nabc"));
    segments.push(talk.server("HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n"));
    segments.push(talk.client(post("/b", "b")));
    segments.push(talk.server("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"));
    segments.push(talk.client(post("/c", "c")));
    segments.push(talk.server(ok("C")));
    check(
        segments,
        &[
            "seen 1",
            "dropped 1 malformed",
            "seen 2",
            "request 2 POST /b b",
            "dropped 2 malformed",
            "seen 3",
            "request 3 POST /c c",
            "response 3 200 C",
        ],
    );
}

#[test]
fn bodies_and_memory_have_limits() {
    let large = "x".repeat(MAX_BODY + 1);
    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client(post("/a", &large)));
    segments.push(talk.server(ok("A")));
    segments.push(talk.client(post("/b", "b")));
    segments.push(talk.server(ok(&large)));
    segments.push(talk.client(post("/c", "c")));
    segments.push(talk.server(ok("C")));
    let after = ["seen 3", "request 3 POST /c c", "response 3 200 C"];
    let large = [
        "seen 1",
        "dropped 1 too_large",
        "seen 2",
        "request 2 POST /b b",
        "dropped 2 too_large",
    ];
    check(segments, &[&large[..], &after[..]].concat());

    let mut talk = Talk::new();
    let mut table = Table::with(Limits::new(MAX_BODY), Memory::new(100));
    table.feed(talk.open());
    table.feed([
        talk.client(post("/a", &"x".repeat(99))),
        talk.server(ok("A")),
    ]);
    table.told(&["seen 1", "dropped 1 memory"]);
    table.feed([talk.client(post("/b", "b")), talk.server(ok("B"))]);
    table.told(&["seen 2", "request 2 POST /b b", "response 2 200 B"]);
    table.finish().empty();
}

#[test]
fn what_waits_has_limits() {
    let limits = Limits {
        buffer: 500,
        ..Limits::new(100_000)
    };
    let mut talk = Talk::new();
    let mut table = Table::with(limits, Memory::new(MEMORY));
    table.feed(talk.open()).feed([talk.client(post("/a", "a"))]);
    table.feed([talk.server("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")]);
    let _lost = talk.server([b'x'; 10]);
    for _ in 0..99 {
        table.feed([talk.server([b'x'; 10])]);
        assert!(table.memory.used() < 1_000);
    }
    table.feed([talk.client(post("/b", "b")), talk.server(ok("B"))]);
    table.told(&[
        "seen 1",
        "request 1 POST /a a",
        "dropped 1 response_gap",
        "seen 2",
        "request 2 POST /b b",
        "response 2 200 B",
    ]);
    table.finish().empty();

    // Out of memory for what waits: counted, and the next turn goes through.
    let mut talk = Talk::new();
    let mut table = Table::with(Limits::new(MAX_BODY), Memory::new(150));
    table.feed(talk.open());
    let _lost = talk.client("P");
    table.feed([talk.client([b'x'; 200]), talk.server(ok("A"))]);
    table.feed([talk.client(post("/b", "b")), talk.server(ok("B"))]);
    assert_eq!(
        table.told[table.told.len() - 2..],
        ["request 2 POST /b b", "response 2 200 B"]
    );
    table.finish().empty();
}

#[test]
fn shadow_traffic_is_not_replayed() {
    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client("GET / HTTP/1.1\r\nX-ModelMirror-Shadow: 1\r\n\r\n"));
    segments.push(talk.server(ok("A")));
    segments.push(talk.client(post("/b", "b")));
    segments.push(talk.server(ok("B")));
    check(
        segments,
        &[
            "seen 1",
            "dropped 1 loop",
            "seen 2",
            "request 2 POST /b b",
            "response 2 200 B",
        ],
    );
}

#[test]
fn the_arm_is_told() {
    let mut talk = Talk {
        arm: Arm::Canary,
        ..Talk::new()
    };
    let mut table = Table::new();
    table.feed(talk.open());
    table.feed([
        talk.client("GET / HTTP/1.1\r\nHost: m\r\n\r\n"),
        talk.server(ok("A")),
    ]);
    let [
        _,
        Event::Request {
            arm,
            client,
            tap,
            request,
            ..
        },
        Event::Response { .. },
    ] = &table.events[..]
    else {
        panic!("{:?}", table.told)
    };
    assert_eq!((*arm, client.port()), (Arm::Canary, 40_000));
    assert_eq!(*tap, TapId(9));
    assert_eq!(header(&request.headers, "host"), Some(&b"m"[..]));
}

#[test]
fn a_reused_port_is_a_new_connection() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    let syn = talk.syn();
    table.feed([
        syn.clone(),
        talk.syn_ack(),
        syn,
        talk.client(post("/a", "a")),
    ]);
    let mut again = Talk {
        client: 77,
        server: 88,
        ..Talk::new()
    };
    table.feed(again.open());
    table.feed([again.client(post("/b", "b")), again.server(ok("B"))]);
    table.told(&[
        "seen 1",
        "request 1 POST /a a",
        "dropped 1 response_incomplete",
        "closed 1",
        "seen 2",
        "request 2 POST /b b",
        "response 2 200 B",
    ]);
    table.finish().empty();
}

#[test]
fn idle_connections_are_forgotten() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open());
    table.feed([talk.client(post("/a", "a")), talk.server(ok("A"))]);
    table.told.clear();
    table.now += Duration::from_secs(3_590);
    table.wait(1_000).told(&[]);
    table.feed([talk.client(post("/b", "b")), talk.server(ok("B"))]);
    table.told(&["seen 2", "request 2 POST /b b", "response 2 200 B"]);
    table.now += Duration::from_secs(3_600);
    table.wait(1_000).told(&["closed 1"]);
    assert_eq!(table.exchanges.connections(), 0);
    table.empty();
}

#[test]
fn a_slow_connection_that_was_joined_midway_finds_its_turn() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table
        .feed([talk.client(post("/a", "a")), talk.server(ok("A"))])
        .told(&[]);
    table.wait(60_000).told(&["seen 1", "dropped 1 mid_stream"]);
    table.feed([talk.client(post("/b", "b")), talk.server(ok("B"))]);
    table.told(&["seen 2", "request 2 POST /b b", "response 2 200 B"]);
    table.finish().empty();
}

#[test]
fn connections_have_a_limit() {
    let mut table = Table::new();
    table.exchanges =
        Exchanges::new(vec![Limits::new(MAX_BODY)], table.memory.clone()).with_max_connections(1);
    let mut first = Talk::new();
    let mut second = Talk {
        port: 40_001,
        ..Talk::new()
    };
    table.feed(first.open()).feed(second.open());
    table.feed([second.client(post("/b", "b")), second.server(ok("B"))]);
    table.told(&["seen 1", "dropped 1 too_many_connections"]);
    table.feed([first.client(post("/a", "a")), first.server(ok("A"))]);
    table.told(&["seen 2", "request 2 POST /a a", "response 2 200 A"]);
    table.finish().empty();
}
