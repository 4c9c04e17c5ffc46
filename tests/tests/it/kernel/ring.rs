//! Copies into the ring: what lies there is the packet, byte for byte, and a full ring is left alone.

use mirror_common::policy::{LOOK_RING, transport};
use mirror_common::record::{
    HOT_RING, Reader, Record, SMALLEST_RING, decode, record_length, value_size,
};
use mirror_common::tunnel::{Arm, Direction};
use mirror_common::verdict::Reason;
use mirror_node::dataplane::Ring;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;

/// Number of the agent of [`Bench`].
const AGENT_NUMBER: u32 = 0;

/// A bench whose agent is reached by a ring, and this thread on CPU 0.
fn bench() -> Option<(Bench, Ring)> {
    if !privileged() {
        return None;
    }
    let mut bench = Bench::new().unwrap();
    tests::cpus::bind(0).unwrap();
    bench.agent = Agent {
        state: agent_state::ALIVE,
        transport: transport::STREAM,
        ..Agent::default()
    };
    bench.apply().unwrap();
    let ring = bench.plane.ring(AGENT_NUMBER).unwrap();
    Some((bench, ring))
}

/// CPU 0's lanes.
const HOT: u16 = 0;
const DEEP: u16 = 1;

/// Everything in a lane of CPU 0 from `from` on: records, with their packets.
fn read(ring: &Ring, lane: u16, mut from: u64) -> Vec<(Record, Vec<u8>)> {
    let (mut bytes, mut records) = (Vec::new(), Vec::new());
    let head = ring.head(lane);
    while from < head {
        let (stretch, end) = ring.stretch(lane, from, head, 10_000);
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
        let records = read(&ring, HOT, from);
        let [(record, copy)] = &records[..] else {
            panic!("one record: {records:?}");
        };
        assert_eq!(copy, &frame[packet.clone()], "{} bytes", frame.len());
        let expected = Record {
            direction,
            arm: Arm::Stable,
            reader: Reader::Sender,
            lane: HOT,
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

/// Copies until there is no room for more; says how many each lane got.
fn fill(bench: &mut Bench, ring: &Ring, frame: &[u8]) -> [u64; 2] {
    let copies = || [HOT, DEEP].map(|lane| ring.sent(lane).copies);
    let before = copies();
    loop {
        let (heads, refused) = (ring.heads(), ring.refused());
        let (verdict, counted) = bench.run("ingress", frame).unwrap();
        assert_eq!(verdict, NEXT);
        match counted {
            Some((1, Reason::Mirrored)) => assert_eq!(ring.refused(), refused),
            Some((1, Reason::RingFull)) => {
                assert_eq!((ring.heads(), ring.refused()), (heads, refused + 1));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    let after = copies();
    [after[0] - before[0], after[1] - before[1]]
}

#[test]
fn full_lanes_are_left_alone_and_go_on_where_they_were() {
    let Some((mut bench, ring)) = bench() else {
        return;
    };
    let frame = tcp(CLIENT, SERVER, "AP", &[0x5a; 2_900]);
    let length = u64::from(record_length(frame.len() as u32 - 14));
    let fit = [HOT, DEEP].map(|lane| ring.size(lane) / length);
    // Several turns, so that records run into the slack at different places.
    for turn in 0..4 {
        let (from, written) = (
            [HOT, DEEP].map(|lane| ring.head(lane)),
            [HOT, DEEP].map(|lane| ring.sent(lane).copies),
        );
        assert_eq!(fill(&mut bench, &ring, &frame), fit);
        assert_eq!(
            (ring.refused(), ring.held()),
            (turn + 1, (fit[0] + fit[1]) * length)
        );
        assert!(ring.fullness() > 0.99);
        for lane in [HOT, DEEP] {
            let at = usize::from(lane);
            for (number, (record, packet)) in (written[at]..).zip(read(&ring, lane, from[at])) {
                assert_eq!((record.lane, record.sequence), (lane, number));
                assert_eq!(packet, &frame[14..]);
            }
            ring.release(lane, ring.head(lane));
        }
    }
}

#[test]
fn what_the_hot_lane_has_no_room_for_lies_in_the_deep_one() {
    let Some((mut bench, ring)) = bench() else {
        return;
    };
    let filling = tcp(CLIENT, SERVER, "AP", &[0x5a; 3_000]);
    while ring.held_by(HOT) + 3_100 <= u64::from(HOT_RING) {
        bench.run("ingress", &filling).unwrap();
    }
    assert_eq!(ring.head(DEEP), 0);
    let hot = ring.head(HOT);
    let payload: Vec<u8> = (0..3_200_u32).map(|at| (at * 7) as u8).collect();
    let frame = tcp(CLIENT, SERVER, "AP", &payload);
    let run = |bench: &mut Bench| {
        let counted = bench.run("ingress", &frame).unwrap();
        assert_eq!(counted, (NEXT, Some((1, Reason::Mirrored))));
    };
    for number in 0..3 {
        run(&mut bench);
        let records = read(&ring, DEEP, 0);
        let (record, copy) = &records[number];
        assert_eq!((record.lane, record.sequence), (DEEP, number as u64));
        assert_eq!(copy, &frame[14..]);
    }
    assert_eq!(ring.head(HOT), hot);
    // As soon as the hot lane has room it is used, whatever the deep one still holds.
    let deep = ring.head(DEEP);
    ring.release(HOT, hot);
    run(&mut bench);
    assert_eq!(ring.head(DEEP), deep);
    let records = read(&ring, HOT, hot);
    let [(record, copy)] = &records[..] else {
        panic!("one record: {records:?}");
    };
    assert_eq!((record.lane, &copy[..]), (HOT, &frame[14..]));
    let last = &read(&ring, DEEP, 0)[2].0;
    assert!(record.time_ns > last.time_ns && ring.refused() == 0);
}

/// Rings of another layout are no rings: they are made anew where nothing lies in them, or else refused.
#[test]
fn no_ring_of_another_layout_is_written_to() {
    if !privileged() {
        return;
    }
    let home = Home::new().unwrap();
    let load = |ring: u32| {
        let sizes = Sizes {
            ring,
            ..Sizes::small(1_024)
        };
        DataPlane::load(mirror_programs::OBJECT, home.pins(), None, sizes)
    };
    let say = |plane: &mut DataPlane, ring: u32| {
        let mut tap = plane.tap().unwrap();
        tap.ring = ring.into();
        plane.set_tap(tap).unwrap();
    };
    let mut plane = load(SMALLEST_RING).unwrap();
    say(&mut plane, value_size(SMALLEST_RING));
    let mut plane = load(2 * SMALLEST_RING).unwrap();
    assert_eq!(plane.ring_size(), SMALLEST_RING, "they keep their size");
    // What rings with a single lane said.
    say(&mut plane, SMALLEST_RING);
    let mut plane = load(2 * SMALLEST_RING).unwrap();
    assert_eq!(plane.ring_size(), 2 * SMALLEST_RING);
    plane.ring(AGENT_NUMBER).unwrap();
    let refused = load(SMALLEST_RING).unwrap_err().to_string();
    assert!(refused.contains("RING_0"), "{refused}");
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
    let rung = |bell: &mut mirror_node::dataplane::Bell| {
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
        let copies = (
            read(&shipped, HOT, to_agent).len(),
            read(&looked, HOT, to_look),
        );
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
