//! Copies into the ring: what lies there is the packet, byte for byte, and a full ring is left alone.

use mirror_common::policy::{LOOK_RING, transport};
use mirror_common::record::{Reader, Record, SMALLEST_RING, decode};
use mirror_common::tunnel::{Arm, Direction};
use mirror_common::verdict::Reason;
use mirror_user::dataplane::Ring;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::*;

/// Number of the agent of [`Bench`].
const AGENT_NUMBER: u32 = 0;

/// A bench whose agent is reached by a ring, and this thread on CPU 0.
fn bench() -> Option<(Bench, Ring)> {
    if !privileged() {
        return None;
    }
    let mut bench = Bench::new().unwrap();
    let mut first = CpuSet::new();
    first.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &first).unwrap();
    bench.agent = Agent {
        state: agent_state::ALIVE,
        transport: transport::STREAM,
        ..Agent::default()
    };
    bench.apply().unwrap();
    let ring = bench.plane.ring(AGENT_NUMBER).unwrap();
    Some((bench, ring))
}

/// Everything in CPU 0's ring from `from` on: records, with their packets.
fn read(ring: &Ring, mut from: u64) -> Vec<(Record, Vec<u8>)> {
    let (mut bytes, mut records) = (Vec::new(), Vec::new());
    let head = ring.head(0);
    while from < head {
        let (stretch, end) = ring.stretch(0, from, head, 10_000);
        bytes.extend_from_slice(stretch);
        from = end;
    }
    let mut rest = &bytes[..];
    while let Some((record, packet, length)) = decode(rest).unwrap() {
        records.push((record, packet.to_vec()));
        rest = &rest[length..];
    }
    assert_eq!(rest.len(), 0, "the ring ends with a whole record");
    records
}

/// A frame whose copy is to be the part from `start` to `end`.
fn frames() -> Vec<(Vec<u8>, std::ops::Range<usize>, Direction)> {
    let payload: Vec<u8> = (0..3_000_u32).map(|at| (at * 7) as u8).collect();
    let mut frames = Vec::new();
    for length in [1, 5, 6, 7, 8, 500, 1_448, 3_000] {
        let frame = tcp(CLIENT, SERVER, "AP", &payload[..length]);
        let whole = 14..frame.len();
        frames.push((frame, whole, Direction::Request));
        let frame = tcp(SERVER, CLIENT, "AP", &payload[..length]);
        let whole = 14..frame.len();
        frames.push((frame, whole, Direction::Response));
        let frame = tcp_v6(
            (CLIENT_V6, CLIENT.1),
            (SERVER_V6, SERVER.1),
            &payload[..length],
        );
        let whole = 14..frame.len();
        frames.push((frame, whole, Direction::Request));
    }
    // A frame that Ethernet has filled up: what fills it is not the packet's.
    let mut short = tcp(CLIENT, SERVER, "S", b"");
    let packet = 14..short.len();
    short.resize(60, 0xee);
    frames.push((short, packet, Direction::Request));
    frames
}

#[test]
fn what_lies_in_the_ring_is_the_packet() {
    let Some((mut bench, ring)) = bench() else {
        return;
    };
    for (sequence, (frame, packet, direction)) in frames().into_iter().enumerate() {
        let from = ring.head(0);
        let before = now_ns();
        let (verdict, counted) = bench.run("ingress", &frame).unwrap();
        let row = 1 + direction as usize;
        assert_eq!((verdict, counted), (NEXT, Some((row, Reason::Mirrored))));
        let records = read(&ring, from);
        let [(record, copy)] = &records[..] else {
            panic!("one record: {records:?}");
        };
        assert_eq!(copy, &frame[packet.clone()], "{} bytes", frame.len());
        let expected = Record {
            direction,
            arm: Arm::Stable,
            reader: Reader::Sender,
            cpu: 0,
            service: 101,
            packet_length: packet.len() as u32,
            sequence: sequence as u64,
            time_ns: record.time_ns,
        };
        assert_eq!(*record, expected);
        assert!((before..=now_ns()).contains(&record.time_ns));
    }
    let sent = ring.sent(0);
    assert_eq!(sent.copies, frames().len() as u64);
}

#[test]
fn a_full_ring_is_left_alone_and_goes_on_where_it_was() {
    let Some((mut bench, ring)) = bench() else {
        return;
    };
    let frame = tcp(CLIENT, SERVER, "AP", &[0x5a; 2_900]);
    let (mut written, mut position) = (0, 0);
    // Several turns, so that records run into the slack at different places.
    for _ in 0..4 {
        loop {
            let head = ring.head(0);
            let (verdict, counted) = bench.run("ingress", &frame).unwrap();
            assert_eq!(verdict, NEXT);
            match counted {
                Some((1, Reason::Mirrored)) => written += 1,
                Some((1, Reason::RingFull)) => {
                    assert_eq!(ring.head(0), head);
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(ring.held() > u64::from(SMALLEST_RING) - 3_000 && ring.fullness() > 0.99);
        let records = read(&ring, position);
        for (record, packet) in &records {
            assert_eq!(packet, &frame[14..]);
            assert!(record.sequence < written);
        }
        assert_eq!(records.last().unwrap().0.sequence, written - 1);
        position = ring.head(0);
        ring.release(0, position);
    }
    assert_eq!(ring.sent(0).copies, written);
}

#[test]
fn without_a_ring_nothing_is_copied() {
    let Some((mut bench, ring)) = bench() else {
        return;
    };
    let frame = tcp(CLIENT, SERVER, "AP", b"GET");
    bench.plane.remove_ring(AGENT_NUMBER).unwrap();
    let counted = bench.run("ingress", &frame).unwrap();
    assert_eq!(counted, (NEXT, Some((1, Reason::NoRing))));
    assert_eq!(ring.head(0), 0);
    // Another agent may get the number: its ring is empty.
    let ring = bench.plane.ring(AGENT_NUMBER).unwrap();
    let counted = bench.run("ingress", &frame).unwrap();
    assert_eq!(counted, (NEXT, Some((1, Reason::Mirrored))));
    assert!(ring.head(0) > 0);
}

#[test]
fn the_bell_rings_once_and_only_for_who_sleeps() {
    let Some((mut bench, ring)) = bench() else {
        return;
    };
    let mut bell = bench.plane.sender_bell().unwrap();
    let rung = |bell: &mut mirror_user::dataplane::Bell| {
        let mut polled = [PollFd::new(bell.fd(), PollFlags::POLLIN)];
        let rung = poll(&mut polled, PollTimeout::ZERO).unwrap() > 0;
        bell.quiet();
        rung
    };
    let frame = tcp(CLIENT, SERVER, "AP", b"GET");
    let mut run = || assert_eq!(bench.run("ingress", &frame).unwrap().0, NEXT);
    run();
    assert!(!rung(&mut bell), "the reader is awake");
    ring.sleep();
    run();
    assert!(rung(&mut bell));
    run();
    assert!(!rung(&mut bell), "it has been woken");
    ring.sleep();
    ring.wake();
    run();
    assert!(!rung(&mut bell));
}

#[test]
fn the_daemon_s_own_look_has_a_ring_of_its_own() {
    let Some((mut bench, shipped)) = bench() else {
        return;
    };
    let looked = bench.plane.ring(LOOK_RING).unwrap();
    let frame = tcp(CLIENT, SERVER, "AP", b"GET");
    let ack = tcp(CLIENT, SERVER, "A", b"");
    let mut check = |look: [u64; 2], agent: bool, expected: (Reason, usize, usize)| {
        bench.service.look = look;
        bench.service.mirror = match agent {
            true => policy::mirror::BOTH | policy::mirror::arm(Arm::Stable),
            false => 0,
        };
        bench.apply().unwrap();
        let (to_agent, to_look) = (shipped.head(0), looked.head(0));
        let counted = bench.run("ingress", &frame).unwrap();
        assert_eq!(counted, (NEXT, Some((1, expected.0))));
        let copies = (read(&shipped, to_agent).len(), read(&looked, to_look));
        assert_eq!((copies.0, copies.1.len()), (expected.1, expected.2));
        for (record, packet) in copies.1 {
            assert_eq!((record.reader, &packet[..]), (Reader::Look, &frame[14..]));
        }
        bench.run("ingress", &ack).unwrap();
    };
    check([0, 0], true, (Reason::Mirrored, 1, 0));
    check([WHOLE, 0], true, (Reason::Mirrored, 1, 1));
    check([WHOLE, 0], false, (Reason::Off, 0, 1));
    // Nobody answers for the canary's connections here.
    check([0, WHOLE], true, (Reason::Mirrored, 1, 0));
}
