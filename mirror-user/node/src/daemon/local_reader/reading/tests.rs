use std::net::{Ipv4Addr, SocketAddrV4};

use mirror_common::flow::Flow;
use mirror_common::packet::{ACK, FIN, RST, SYN};
use mirror_common::record::Reader;
use mirror_common::tunnel::Direction;

use super::*;
use mirror_wire::fixtures::ipv4;

const SERVICE: u32 = 101;
const KEY: [u64; 2] = [3, 4];

/// A reading of one service, and its clock.
pub(in crate::daemon::local_reader) struct Bench {
    pub(in crate::daemon::local_reader) reading: Reading,
    tally: Arc<Tally>,
    pub(in crate::daemon::local_reader) now: Duration,
    trial_ns: u64,
    looks_into: bool,
}

impl Bench {
    pub(in crate::daemon::local_reader) fn new() -> Self {
        let mut bench = Self {
            reading: Reading::new(),
            tally: Arc::default(),
            now: Duration::ZERO,
            trial_ns: 0,
            looks_into: false,
        };
        bench.look([policy::WHOLE; 2]);
        bench
    }

    fn look(&mut self, look: [u64; 2]) {
        let policy = policy::Service {
            look,
            key: KEY,
            ..policy::Service::default()
        };
        let tally = Arc::clone(&self.tally);
        let rule = Rule {
            policy,
            tally,
            trial_ns: self.trial_ns,
            unanswered_after: Duration::from_secs(60),
            fail_if: Some(Pointers::new(&["/error"])).filter(|_| self.looks_into),
        };
        self.reading.set(SERVICE, rule);
    }

    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.reading.tick(self.now);
    }

    /// Outcomes and how often they were, as `200: 2`; with how many were begun before them.
    pub(in crate::daemon::local_reader) fn counts(&self, arm: Arm) -> String {
        let counts = Outcome::all().map(|outcome| (outcome, self.tally.outcome(arm, outcome)));
        let counts = counts.filter(|(_, count)| *count > 0);
        let words: Vec<_> = counts
            .map(|(outcome, count)| format!("{} {count}", outcome.label()))
            .collect();
        format!("{}: {}", self.tally.seen(arm), words.join(", "))
    }
}

/// A connection as the tap copies it.
pub(in crate::daemon::local_reader) struct Client {
    arm: Arm,
    ends: [SocketAddrV4; 2],
    next: [u32; 2],
}

impl Client {
    pub(in crate::daemon::local_reader) fn new(arm: Arm, port: u16) -> Self {
        let client = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 7), port);
        let server = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 5), 8000);
        Self {
            arm,
            ends: [client, server],
            next: [u32::MAX - 40, 77],
        }
    }

    fn open(bench: &mut Bench, arm: Arm, port: u16) -> Self {
        let mut client = Self::new(arm, port);
        client.send(bench, Direction::Request, SYN, b"");
        client.send(bench, Direction::Response, SYN | ACK, b"");
        client
    }

    fn flow(&self) -> Flow {
        let [client, server] = self.ends.map(|end| SocketAddr::from(end).into());
        Flow { client, server }
    }

    fn send(&mut self, bench: &mut Bench, direction: Direction, flags: u8, payload: &[u8]) {
        let (record, packet) = self.copy(bench, direction, flags, payload);
        bench.reading.record(&record, &packet, bench.now);
    }

    /// The next packet, as the tap copies it.
    pub(in crate::daemon::local_reader) fn copy(
        &mut self,
        bench: &mut Bench,
        direction: Direction,
        flags: u8,
        payload: &[u8],
    ) -> (Record, Vec<u8>) {
        let (own, peer) = match direction {
            Direction::Request => (0, 1),
            Direction::Response => (1, 0),
        };
        let [from, to] = [own, peer].map(|at| self.ends[at]);
        let packet = ipv4(from, to, self.next[own], self.next[peer], flags, payload);
        let moves = payload.len() as u32 + u32::from(flags & (SYN | FIN) != 0);
        self.next[own] = self.next[own].wrapping_add(moves);
        bench.now += Duration::from_micros(10);
        let record = Record {
            direction,
            arm: self.arm,
            reader: Reader::Look,
            lane: 0,
            service: SERVICE,
            packet_length: packet.len() as u32,
            sequence: 0,
            time_ns: bench.now.as_nanos() as u64,
        };
        (record, packet)
    }

    fn ask(&mut self, bench: &mut Bench) {
        let request = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc";
        self.send(bench, Direction::Request, ACK, request);
    }

    fn answer(&mut self, bench: &mut Bench, answer: &str) {
        self.send(bench, Direction::Response, ACK, answer.as_bytes());
    }

    fn close(&mut self, bench: &mut Bench) {
        self.send(bench, Direction::Response, FIN | ACK, b"");
        self.send(bench, Direction::Request, FIN | ACK, b"");
    }
}

pub(in crate::daemon::local_reader) fn with_status(status: u16) -> String {
    format!("HTTP/1.1 {status} x\r\ncontent-length: 2\r\n\r\nok")
}

#[test]
fn exchanges_are_counted_by_class_and_version() {
    let mut bench = Bench::new();
    for (arm, port, statuses) in [
        (Arm::Stable, 1, &[200, 201, 404][..]),
        (Arm::Canary, 2, &[500, 302]),
    ] {
        let mut client = Client::open(&mut bench, arm, port);
        for status in statuses {
            client.ask(&mut bench);
            client.answer(&mut bench, &with_status(*status));
        }
        client.close(&mut bench);
    }
    assert_eq!(bench.counts(Arm::Stable), "3: 2xx 2, 4xx 1");
    assert_eq!(bench.counts(Arm::Canary), "2: 3xx 1, 5xx 1");
    bench.wait(3);
    assert!(bench.reading.open.is_empty());
    assert_eq!(bench.reading.deadline(), None, "nothing is left to do");
}

#[test]
fn an_answer_has_an_end() {
    let check = |answer: &str, flags: Option<u8>, expected: &str| {
        let mut bench = Bench::new();
        let mut client = Client::open(&mut bench, Arm::Canary, 1);
        client.ask(&mut bench);
        if !answer.is_empty() {
            client.answer(&mut bench, answer);
        }
        match flags {
            Some(RST) => client.send(&mut bench, Direction::Response, RST, b""),
            Some(_) => client.close(&mut bench),
            None => bench.wait(301),
        }
        bench.wait(1);
        assert_eq!(bench.counts(Arm::Canary), expected, "{answer:?} {flags:?}");
        assert_eq!(bench.counts(Arm::Stable), "0: ");
        assert!(bench.reading.open.is_empty());
    };
    let short = "HTTP/1.1 200 x\r\ncontent-length: 100\r\n\r\nx";
    let cut = "HTTP/1.1 200 x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
    let whole = "HTTP/1.1 200 x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    for end in [Some(FIN), Some(RST), None] {
        for answer in [short, cut, "HTTP/1.1 200 x\r\n"] {
            check(answer, end, "1: incomplete 1");
        }
        check("", end, "1: unanswered 1");
    }
    check(whole, Some(FIN), "1: 2xx 1");
    check("HTTP/1.1 200 x\r\n\r\nuntil the end", Some(FIN), "1: 2xx 1");
    check("SSH-2.0-x\r\n", Some(FIN), "1: unreadable 1");
}

#[test]
fn a_client_that_hangs_up_is_told_from_a_server_that_does() {
    let check = |direction, flags, answer: &str, expected: &str| {
        let mut bench = Bench::new();
        let mut client = Client::open(&mut bench, Arm::Canary, 1);
        client.ask(&mut bench);
        if !answer.is_empty() {
            client.answer(&mut bench, answer);
        }
        bench.now += Duration::from_millis(300);
        client.send(&mut bench, direction, flags, b"");
        client.close(&mut bench);
        bench.wait(1);
        assert_eq!(bench.counts(Arm::Canary), expected, "{direction:?} {flags}");
        let looked = bench.tally.read(Arm::Canary);
        let waited = [Wait::Header, Wait::Body, Wait::End].map(|wait| {
            let histogram = looked.wait(wait);
            (histogram.count(), histogram.sum_ns / 100_000_000)
        });
        // A client that waited for 300 ms would have waited longer.
        let is_aborted = direction == Direction::Request;
        let is_begun = !answer.is_empty();
        let expected = match (is_aborted, is_begun) {
            (true, false) => [(0, 0), (1, 3), (1, 3)],
            (true, true) => [(0, 0), (1, 0), (1, 3)],
            (false, true) => [(0, 0), (1, 0), (0, 0)],
            (false, false) => [(0, 0); 3],
        };
        assert_eq!(waited, expected, "{direction:?} {flags} {answer:?}");
        let lost = [Wait::Body, Wait::End].map(|wait| {
            let given_up = looked.given_up(wait).count();
            (looked.never(wait), given_up)
        });
        let given_up = u64::from(is_aborted);
        let of_body = if is_begun { (0, 0) } else { (1, given_up) };
        assert_eq!(lost, [of_body, (1, given_up)], "{direction:?} {answer:?}");
    };
    let begun = "HTTP/1.1 200 x\r\ncontent-length: 100\r\n\r\nx";
    for flags in [FIN | ACK, RST | ACK] {
        check(Direction::Request, flags, "", "1: aborted_by_client 1");
        check(Direction::Request, flags, begun, "1: aborted_by_client 1");
        check(Direction::Response, flags, "", "1: unanswered 1");
        check(Direction::Response, flags, begun, "1: incomplete 1");
    }
}

#[test]
fn waits_and_lengths_are_what_clients_see() {
    let mut bench = Bench::new();
    let mut client = Client::open(&mut bench, Arm::Canary, 1);
    client.ask(&mut bench);
    let mut pass = |ms, answer: &str| {
        bench.now += Duration::from_millis(ms);
        client.answer(&mut bench, answer);
    };
    pass(10, "HTTP/1.1 100 Continue\r\n\r\n");
    pass(10, "HTTP/1.1 200 x\r\ntransfer-encoding: chunked\r\n\r\n");
    pass(80, "3\r\nabc\r\n");
    pass(500, "0\r\n\r\n");
    // No body is due to these.
    client.ask(&mut bench);
    client.answer(&mut bench, "HTTP/1.1 204 x\r\n\r\n");
    let looked = bench.tally.read(Arm::Canary);
    let waited = [Wait::Header, Wait::Body, Wait::End].map(|wait| {
        let histogram = looked.wait(wait);
        assert_eq!(histogram.count(), 2);
        histogram.sum_ns / 10_000_000
    });
    assert_eq!(waited, [2, 10, 60]);
    assert_eq!((looked.sizes.count(), looked.sizes.sum_ns), (1, 3 * 1_024));
}

#[test]
fn a_response_may_say_that_it_is_a_failure() {
    let mut bench = Bench::new();
    bench.looks_into = true;
    bench.look([policy::WHOLE; 2]);
    let mut client = Client::open(&mut bench, Arm::Canary, 1);
    let head = "content-type: application/json";
    for (status, body) in [
        (200, r#"{"error": "CUDA out of memory"}"#.to_owned()),
        (200, r#"{"error": null}"#.to_owned()),
        (500, r#"{"error": "no"}"#.to_owned()),
        // Larger than what is looked into.
        (200, format!(r#"{{"error": "{}"}}"#, "x".repeat(2 << 20))),
    ] {
        client.ask(&mut bench);
        let length = body.len();
        let answer =
            format!("HTTP/1.1 {status} x\r\n{head}\r\ncontent-length: {length}\r\n\r\n{body}");
        let pieces = answer.as_bytes().chunks(60_000);
        pieces.for_each(|piece| client.send(&mut bench, Direction::Response, ACK, piece));
    }
    assert_eq!(bench.counts(Arm::Canary), "4: 2xx 2, 5xx 1, says_error 1");
}

/// A keep-alive connection that the version before has answered goes on answering.
#[test]
fn connections_from_before_a_trial_are_no_evidence_of_it() {
    let mut bench = Bench::new();
    let mut old = Client::open(&mut bench, Arm::Canary, 1);
    let mut stable = Client::open(&mut bench, Arm::Stable, 2);
    for client in [&mut old, &mut stable] {
        client.ask(&mut bench);
    }
    bench.now += Duration::from_secs(1);
    bench.trial_ns = bench.now.as_nanos() as u64;
    bench.look([policy::WHOLE; 2]);
    let mut new = Client::open(&mut bench, Arm::Canary, 3);
    for client in [&mut old, &mut stable] {
        client.answer(&mut bench, &with_status(500));
    }
    for client in [&mut old, &mut stable, &mut new] {
        client.ask(&mut bench);
        client.answer(&mut bench, &with_status(200));
        client.close(&mut bench);
    }
    bench.wait(3);
    assert_eq!(bench.counts(Arm::Canary), "2: 2xx 1, shutdown 1");
    assert_eq!(bench.counts(Arm::Stable), "2: 2xx 1, 5xx 1");
    assert!(bench.reading.open.is_empty());
}

/// Nothing of a body is kept, so that it may have any size.
#[test]
fn large_bodies_take_no_memory() {
    let mut bench = Bench::new();
    let mut client = Client::open(&mut bench, Arm::Stable, 1);
    let size = 200 << 20;
    client.ask(&mut bench);
    client.answer(
        &mut bench,
        &format!("HTTP/1.1 200 x\r\ncontent-length: {size}\r\n\r\n"),
    );
    let piece = vec![b'x'; 60_000];
    let mut left = size;
    while left > 0 {
        let length = left.min(piece.len());
        client.send(&mut bench, Direction::Response, ACK, &piece[..length]);
        left -= length;
    }
    assert_eq!(bench.counts(Arm::Stable), "1: 2xx 1");
    assert!(bench.tally.bytes(Arm::Stable) > size as u64);
}

#[test]
fn what_leaves_the_sample_does_not_count_as_failed() {
    let mut bench = Bench::new();
    let mut clients: Vec<_> = (1..=100)
        .map(|port| Client::open(&mut bench, Arm::Stable, port))
        .collect();
    clients.iter_mut().for_each(|client| client.ask(&mut bench));
    let half = policy::threshold(0.5);
    bench.look([half, 0]);
    let stays = |client: &Client| client.flow().hash(KEY) as u32 as u64 <= half;
    let staying = clients.iter().filter(|client| stays(client)).count();
    assert!((20..80).contains(&staying));
    for client in &mut clients {
        client.answer(&mut bench, &with_status(200));
        client.close(&mut bench);
    }
    bench.wait(400);
    let expected = format!("100: 2xx {staying}, shutdown {}", 100 - staying);
    assert_eq!(bench.counts(Arm::Stable), expected);
}

#[test]
fn after_a_loss_nothing_that_was_open_counts_as_failed() {
    let mut bench = Bench::new();
    let mut client = Client::open(&mut bench, Arm::Stable, 1);
    client.ask(&mut bench);
    bench.reading.lose();
    // Its answer had found no room.
    client.next[1] += 50;
    bench.wait(400);
    assert_eq!(bench.counts(Arm::Stable), "1: response_gap 1");
    client.ask(&mut bench);
    client.answer(&mut bench, &with_status(500));
    client.ask(&mut bench);
    client.answer(&mut bench, &with_status(200));
    client.close(&mut bench);
    bench.wait(400);
    let counts = bench.counts(Arm::Stable);
    assert!(
        !counts.contains("incomplete") && !counts.contains("unanswered"),
        "{counts}"
    );
}

#[test]
fn other_services_and_what_is_no_tcp_are_left_out() {
    let mut bench = Bench::new();
    let mut client = Client::new(Arm::Stable, 1);
    let record = Record {
        direction: Direction::Request,
        arm: Arm::Stable,
        reader: Reader::Look,
        lane: 0,
        service: SERVICE + 1,
        packet_length: 3,
        sequence: 0,
        time_ns: 1,
    };
    bench.reading.record(&record, b"abc", bench.now);
    let own = Record {
        service: SERVICE,
        ..record
    };
    bench.reading.record(&own, b"abc", bench.now);
    client.send(&mut bench, Direction::Request, ACK, b"");
    assert_eq!(bench.counts(Arm::Stable), "0: ");
}

/// Each is counted as its client's and as its connection's, and by what became of it.
#[test]
fn requests_are_counted_by_client_and_by_connection() {
    let mut bench = Bench::new();
    for (port, status) in [(4_000, 200), (4_001, 503), (4_002, 404)] {
        let mut client = Client::open(&mut bench, Arm::Canary, port);
        client.ask(&mut bench);
        client.answer(&mut bench, &with_status(status));
        client.close(&mut bench);
    }
    let looked = bench.tally.read(Arm::Canary);
    let sums = looked.clusters.each_ref().map(|by| {
        let counted: Vec<_> = by
            .iter()
            .filter(|row| row[Sort::Requests as usize] > 0)
            .collect();
        let sum = |sort: Sort| counted.iter().map(|row| row[sort as usize]).sum::<u64>();
        let sorts = [
            Sort::Requests,
            Sort::Failed,
            Sort::ClientErrors,
            Sort::Aborted,
        ];
        (counted.len(), sorts.map(sum))
    });
    let [(clients, by_client), (connections, by_connection)] = sums;
    assert_eq!((clients, by_client), (1, [3, 1, 1, 0]));
    assert_eq!(by_connection, by_client);
    assert!(connections > 1, "{connections}");
}
