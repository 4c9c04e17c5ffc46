//! What moves a connection, and what does not.

extern crate std;
use super::*;
use crate::flow::Endpoint;
use crate::measure::ArmCounters;
use crate::packet::{RST, SYN, Transport};
use std::vec::Vec;

const MS: u64 = 1_000_000;

/// A segment: when, direction, flags, sequence number, payload.
type Step<'a> = (u64, Direction, u8, u32, &'a [u8]);

fn packet(flags: u8, sequence: u32, payload: &[u8]) -> Packet {
    Packet {
        source: Endpoint::default(),
        destination: Endpoint::default(),
        transport: Transport::Tcp,
        ipv6: false,
        hop_limit: 64,
        flags,
        sequence,
        acknowledgement: 101,
        window: 1_000,
        network_offset: 14,
        transport_offset: 34,
        payload_offset: 54,
        payload_length: payload.len() as u32,
    }
}

/// A packet that announces no scale, and whose checksum is right.
const SOUND: Said = Said {
    scale: 0,
    timestamp: 0,
    timed: 0,
    sound: 1,
    cursor: 0,
};

/// One that announces this scale.
fn scaled(shift: u32) -> Said {
    Said {
        scale: shift + 1,
        ..SOUND
    }
}

/// Takes in such a packet.
fn observe(connection: &mut Connection, packet: &Packet, direction: Direction, now: u64) -> Seen {
    Live::of(connection).observe(packet, direction, || now, &SOUND)
}

/// Opens a connection at 0 ms, client's numbers from 100 and server's from 500, and feeds it.
fn run(steps: &[Step<'_>]) -> (Connection, Vec<Seen>, ArmCounters) {
    let syn = packet(SYN, 100, b"");
    let mut connection = Connection::opened(&syn, 1, Arm::Canary, MS, &SOUND);
    let mut counters = ArmCounters::default();
    let all = [
        (1, Request, SYN, 100, &b""[..]),
        (3, Response, SYN | ACK, 500, b""),
    ];
    let seen = all
        .iter()
        .chain(steps)
        .map(|&(ms, direction, flags, sequence, payload)| {
            let packet = packet(flags, sequence, payload);
            let seen = observe(&mut connection, &packet, direction, ms * MS);
            counters.count(&packet, direction, &seen, connection.is_since(0));
            seen
        })
        .collect();
    (connection, seen, counters)
}

use Direction::{Request, Response};

#[test]
fn packets_and_bytes_are_counted_and_the_handshake_is_timed() {
    let (connection, seen, counters) = run(&[
        (10, Request, ACK, 101, b"POST / HTTP/1.1\r\n"),
        (12, Request, ACK, 118, b"the rest"),
        (17, Response, ACK, 501, b"HTTP/1.1 200 OK\r\n"),
    ]);
    assert_eq!(seen[1].handshake_ns.map(u64::from), Some(2 * MS));
    assert_eq!((counters.answered, counters.packets), (1, [3, 2]));
    assert_eq!(counters.bytes, [25, 17]);
    assert_eq!(connection.arm(), Arm::Canary);
}

#[test]
fn what_comes_twice_is_a_retransmission() {
    let (_, seen, counters) = run(&[
        (10, Request, ACK, 101, b"GET / HTTP/1.1\r\n\r\n"),
        (20, Response, ACK, 501, b"HTTP/1.1 200 OK\r\n"),
        (30, Request, ACK, 101, b"GET / HTTP/1.1\r\n\r\n"),
        (31, Response, ACK, 501, b"HTTP/1.1 200 OK\r\n"),
        // A keep-alive probe.
        (90, Request, ACK, 118, b"\n"),
    ]);
    assert!(seen[4].retransmission && seen[5].retransmission && !seen[6].retransmission);
    assert_eq!(counters.retransmissions, [1, 1]);
}

#[test]
fn sequence_numbers_wrap() {
    let syn = packet(SYN, u32::MAX - 4, b"");
    let mut connection = Connection::opened(&syn, 1, Arm::Stable, 0, &SOUND);
    for (sequence, expected) in [(u32::MAX - 3, false), (4, false), (u32::MAX - 3, true)] {
        let packet = packet(ACK, sequence, b"12345678");
        let seen = observe(&mut connection, &packet, Request, 1);
        assert_eq!(seen.retransmission, expected, "{sequence}");
    }
}

#[test]
fn a_syn_that_nobody_answers_is_counted_once() {
    let syn = packet(SYN, 100, b"");
    let mut connection = Connection::opened(&syn, 1, Arm::Canary, MS, &SOUND);
    let mut take = |flags, direction, ms: u64| {
        observe(
            &mut connection,
            &packet(flags, 100, b""),
            direction,
            ms * MS,
        )
    };
    assert!(!take(SYN, Request, 1).unanswered);
    assert!(take(SYN, Request, 1_001).unanswered);
    assert!(!take(SYN, Request, 3_001).unanswered);
    let late = take(SYN | ACK, Response, 3_002);
    assert!(late.answered && late.handshake_ns.is_none());
    assert!(!take(SYN | ACK, Response, 3_003).answered);
}

#[test]
fn a_connection_ends_once() {
    let (_, seen, counters) = run(&[
        (10, Request, FIN | ACK, 101, b""),
        (11, Response, FIN | ACK, 501, b""),
        (12, Request, RST, 102, b""),
    ]);
    assert_eq!(
        seen.iter().map(|seen| seen.closed).collect::<Vec<_>>(),
        [false, false, false, true, false]
    );
    assert_eq!((counters.closed, counters.resets), (1, [0, 0]));
    let (_, _, counters) = run(&[
        (10, Response, RST | ACK, 501, b""),
        (11, Response, RST | ACK, 501, b""),
    ]);
    assert_eq!((counters.closed, counters.resets), (1, [0, 1]));
}

/// A connection whose client is at 201 and whose server is at 701, all of it acknowledged.
fn halfway() -> Connection {
    let mut connection = Connection::opened(&packet(SYN, 100, b""), 1, Arm::Canary, MS, &scaled(2));
    let said = |direction, flags, sequence, acknowledgement, length| {
        let packet = Packet {
            acknowledgement,
            payload_length: length,
            ..packet(flags, sequence, b"")
        };
        (packet, direction)
    };
    let steps = [
        said(Response, SYN | ACK, 500, 101, 0),
        said(Request, ACK, 101, 501, 0),
        said(Request, ACK, 101, 501, 100),
        said(Response, ACK, 501, 201, 200),
        said(Request, ACK, 201, 701, 0),
    ];
    for (packet, direction) in steps {
        let seen = Live::of(&mut connection).observe(&packet, direction, || MS, &scaled(3));
        assert!(seen.taken, "{packet:?}");
    }
    assert!(connection.is_open());
    assert_eq!(
        (connection.next, connection.acked),
        ([201, 701], [201, 701])
    );
    // What each may send is what the other has offered, scaled: 1,000 << 3 and 1,000 << 2.
    assert_eq!(connection.window, [8_000, 4_000]);
    connection
}

/// What nobody's TCP would take moves nothing, whichever side is said to have sent it.
#[test]
fn forged_packets_move_nothing() {
    const FAR: u32 = 1 << 30;
    let forged = |direction, flags, sequence: u32, acknowledgement: u32, payload: &[u8]| {
        let packet = Packet {
            acknowledgement,
            ..packet(flags, sequence, payload)
        };
        (direction, packet)
    };
    let table = [
        ("a RST before the window", forged(Request, RST, 200, 0, b"")),
        ("a RST in the window", forged(Request, RST, 202, 0, b"")),
        ("a RST beyond", forged(Request, RST, 201 + FAR, 0, b"")),
        (
            "the server's RST",
            forged(Response, RST | ACK, 702, 201, b""),
        ),
        (
            "a RST of the other side's number",
            forged(Request, RST, 701, 0, b""),
        ),
        ("a SYN-ACK", forged(Response, SYN | ACK, 9_000, 201, b"")),
        (
            "a client's SYN-ACK",
            forged(Request, SYN | ACK, 9_000, 701, b""),
        ),
        ("a server's SYN", forged(Response, SYN, 9_000, 0, b"")),
        (
            "a FIN beyond",
            forged(Request, FIN | ACK, 201 + FAR, 701, b""),
        ),
        (
            "a FIN that acknowledges nothing",
            forged(Request, FIN | ACK, 201, 701 + FAR, b""),
        ),
        ("a FIN without ACK", forged(Request, FIN, 201, 0, b"")),
        ("data beyond", forged(Request, ACK, 201 + 8_001, 701, b"x")),
        (
            "data behind",
            forged(Response, ACK, 701_u32.wrapping_sub(70_000), 201, b"x"),
        ),
        (
            "data for what was never sent",
            forged(Response, ACK, 701, 202, b"x"),
        ),
        (
            "an acknowledgement of what was never sent",
            forged(Request, ACK, 201, 702, b""),
        ),
    ];
    for (what, (direction, packet)) in table {
        let mut connection = halfway();
        let seen = observe(&mut connection, &packet, direction, 9 * MS);
        assert_eq!((seen, connection), (Seen::default(), halfway()), "{what}");
    }
    let (direction, exact) = forged(Request, RST, 201, 0, b"");
    let mut connection = halfway();
    let seen = Live::of(&mut connection).observe(&exact, direction, || 1, &Said::default());
    assert_eq!(
        (seen, connection),
        (Seen::default(), halfway()),
        "a wrong checksum"
    );
    let seen = observe(&mut connection, &exact, direction, 1);
    assert!(seen.closed && seen.reset);
}

#[test]
fn a_handshake_is_complete_when_both_have_acknowledged() {
    let mut connection = Connection::opened(&packet(SYN, 100, b""), 1, Arm::Canary, MS, &SOUND);
    let mut take = |flags, direction, sequence, acknowledgement| {
        let packet = Packet {
            acknowledgement,
            ..packet(flags, sequence, b"")
        };
        let seen = observe(&mut connection, &packet, direction, 2 * MS);
        (seen.taken, connection.is_open())
    };
    let no = (false, false);
    assert_eq!(take(SYN | ACK, Response, 500, 102), no, "another SYN's");
    assert_eq!(take(RST | ACK, Response, 0, 100), no, "refuses another");
    assert_eq!(take(SYN | ACK, Response, 500, 101), (true, false));
    assert_eq!(take(ACK, Request, 101, 502), no, "not the server's number");
    assert_eq!(take(ACK, Request, 101, 500), (true, false), "of nothing");
    assert_eq!(take(ACK, Request, 101, 501), (true, true));
    let mut refused = Connection::opened(&packet(SYN, 100, b""), 1, Arm::Canary, MS, &SOUND);
    let mut forged = refused;
    let refusal = packet(RST | ACK, 0, b"");
    let seen = observe(&mut refused, &refusal, Response, 2 * MS);
    assert!(seen.closed && seen.reset);
    // Of a port that had another handshake it may be that one's.
    let mut reused = forged;
    reused.state |= state::REUSED;
    let seen = observe(&mut reused, &refusal, Response, 2 * MS);
    assert!(seen.closed && !seen.reset);
    // Whoever did not send the SYN resets what answers it.
    observe(&mut forged, &packet(SYN | ACK, 500, b""), Response, 2 * MS);
    let seen = observe(&mut forged, &packet(RST, 101, b""), Request, 2 * MS);
    assert!(seen.closed && !seen.reset);
}

#[test]
fn who_closes_last_has_nothing_to_wait_for() {
    /// Both sides end, the server first or last: whether somebody waits.
    fn end(server_first: bool) -> bool {
        let mut connection = halfway();
        let mut take = |flags, direction, sequence, acknowledgement| {
            let packet = Packet {
                acknowledgement,
                ..packet(flags, sequence, b"")
            };
            observe(&mut connection, &packet, direction, 2 * MS)
        };
        let last = if server_first {
            assert!(!take(FIN | ACK, Response, 701, 201).closed);
            assert!(take(FIN | ACK, Request, 201, 702).closed);
            take(ACK, Response, 702, 202)
        } else {
            assert!(!take(FIN | ACK, Request, 201, 701).closed);
            assert!(take(FIN | ACK, Response, 701, 202).closed);
            take(ACK, Request, 202, 702)
        };
        assert!(last.taken && !last.closed);
        last.released
    }
    assert!(end(false) && !end(true));
}

/// A server that was started anew accepts what its client begins anew; until both have said so the old
/// connection is the one that there is.
#[test]
fn another_handshake_takes_a_connection_s_place_when_it_is_complete() {
    let mut connection = halfway();
    let mut take = |flags, direction, sequence, acknowledgement| {
        let packet = Packet {
            acknowledgement,
            ..packet(flags, sequence, b"")
        };
        observe(&mut connection, &packet, direction, 2 * MS);
        connection
    };
    assert_eq!(take(SYN, Request, 5_000, 0).initial, 100);
    assert_eq!(take(SYN | ACK, Response, 9_000, 5_001).initial, 100);
    assert_eq!(take(ACK, Request, 5_001, 9_002).initial, 100, "a guess");
    let complete = take(ACK, Request, 5_001, 9_001);
    assert_eq!((complete.initial, complete.next), (5_000, [5_001, 9_001]));
    assert!(complete.is_open());
}

/// Of a connection that is met midway a reset tells only once both sides' numbers are known.
#[test]
fn a_reset_of_a_connection_that_was_met_midway_needs_both_sides() {
    let mut connection = Connection::joined(1, Arm::Stable);
    let take = |connection: &mut Connection, direction, flags, sequence, acknowledgement| {
        let packet = Packet {
            acknowledgement,
            ..packet(flags, sequence, b"x")
        };
        observe(connection, &packet, direction, MS)
    };
    assert!(take(&mut connection, Request, ACK, 101, 501).taken);
    // As this host's own stack answers what belongs to nobody.
    assert!(!take(&mut connection, Response, RST, 501, 0).closed);
    assert!(take(&mut connection, Response, ACK, 501, 102).taken);
    assert!(take(&mut connection, Response, RST, 502, 0).closed);
}

#[test]
fn options_are_found_wherever_they_stand() {
    #[track_caller]
    fn check(options: &[u8], scale: u32, timestamp: Option<u32>) {
        let mut header = [0; HEADER];
        header[20..20 + options.len()].copy_from_slice(options);
        let mut said = Said::default();
        said.read(&header);
        let expected = Said {
            scale,
            timestamp: timestamp.unwrap_or(0),
            timed: timestamp.is_some().into(),
            sound: 0,
            cursor: said.cursor,
        };
        assert_eq!(said, expected, "{options:?}");
    }
    // As Linux sends a SYN: segment size, SACK, timestamps, nothing, scale.
    let linux = [
        2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 1, 2, 0, 0, 0, 0, 1, 3, 3, 7,
    ];
    check(&linux, 8, Some(258));
    check(&[1, 1, 8, 10, 0, 0, 1, 2, 0, 0, 0, 0], 0, Some(258));
    check(&[3, 3, 200, 0], 15, None);
    check(&[0, 3, 3, 7], 0, None);
    check(&[9, 0, 3, 3, 7, 0, 0, 0], 0, None);
    check(&[], 0, None);
}
