use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use mirror_common::record::{Reader, Record, decode};
use mirror_common::tunnel::{Arm, Direction};
use proptest::prelude::*;

use super::*;
use mirror_agent::capture::streams::{self, Copied, Frames, Order};
use mirror_base::transport::frame::LONGEST_BODY;

/// Both ends of a connection; the first one does not block.
fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    near.set_nonblocking(true).unwrap();
    (near, listener.accept().unwrap().0)
}

/// A connection over which a report has been sent.
fn upstream(ring: &Arc<Ring>, welcome: &[Position]) -> (Upstream, TcpStream) {
    let (near, mut far) = connection();
    let ring = Some(Arc::clone(ring));
    let mut upstream = Upstream::new(Pipe::Clear(near), ring, welcome);
    assert!(!upstream.plan(0), "the report comes first");
    upstream.report(Box::default());
    upstream.write().unwrap();
    frame(&mut far);
    (upstream, far)
}

fn record(lane: u16, sequence: u64, length: usize) -> Record {
    Record {
        direction: Direction::Request,
        arm: Arm::Stable,
        reader: Reader::Sender,
        lane,
        service: 7,
        packet_length: length as u32,
        sequence,
        time_ns: sequence,
    }
}

fn write(ring: &Ring, lane: u16, sequence: u64, length: usize) {
    let packet = vec![sequence as u8; length];
    assert!(
        ring.write(&record(lane, sequence, length), &packet),
        "there is room for record {sequence}"
    );
}

/// The next frame that arrives.
fn frame(far: &mut TcpStream) -> (Header, Vec<u8>) {
    let mut header = [0; 24];
    far.read_exact(&mut header).unwrap();
    let header = Header::decode(&header).unwrap();
    let mut body = vec![0; header.length as usize];
    far.read_exact(&mut body).unwrap();
    (header, body)
}

/// The records of one round, by lane and number; and how far each lane's ring has come.
fn round(far: &mut TcpStream) -> (Vec<(u16, u64)>, Vec<Position>) {
    let (mut records, mut ends) = (Vec::new(), Vec::new());
    loop {
        let (header, body) = frame(far);
        match header.kind {
            Kind::Round => return (records, ends),
            Kind::Records => {
                let mut rest = &body[..];
                while let Some((record, packet, length)) = decode(rest).unwrap() {
                    assert!(packet.iter().all(|byte| *byte == record.sequence as u8));
                    records.push((record.lane, record.sequence));
                    rest = &rest[length..];
                }
                assert!(rest.is_empty(), "whole records");
                let position = header.position + body.len() as u64;
                ends.push(Position {
                    lane: header.lane,
                    position,
                });
            }
            kind => panic!("{kind:?}"),
        }
    }
}

#[test]
fn what_is_not_acknowledged_is_sent_again_over_the_next_connection() {
    let ring = Arc::new(Ring::of_memory(2));
    let (mut first, mut far) = upstream(&ring, &[]);
    assert!(!first.plan(0), "nothing is there");
    for sequence in 0..3 {
        write(&ring, 0, sequence, 100);
        write(&ring, 1, sequence, 200);
    }
    assert!(first.plan(0) && first.write().unwrap() && !first.plan(0));
    let (records, ends) = round(&mut far);
    assert_eq!(records, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]);
    // The agent has got as far as the first record of lane 1.
    let got = Position {
        lane: 1,
        position: 232,
    };
    far.write_all(&Positions::encode(&[got])).unwrap();
    let mut said = Vec::new();
    while ring.tail(1) == 0 {
        first.read(&mut said).unwrap();
    }
    assert_eq!((ring.tail(0), ring.tail(1)), (0, 232));
    // An agent that knows nothing gets all that is kept.
    let (mut second, mut far) = upstream(&ring, &[]);
    assert!(second.plan(0) && second.write().unwrap());
    assert_eq!(round(&mut far).0, [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2)]);
    // One that has got everything gets nothing, and the ring is empty.
    let (mut third, _far) = upstream(&ring, &ends);
    assert!(!third.plan(0));
    assert_eq!(ring.held(), 0);
}

#[test]
fn an_agent_can_acknowledge_no_more_than_it_was_sent() {
    let ring = Arc::new(Ring::of_memory(1));
    let (mut upstream, mut far) = upstream(&ring, &[]);
    write(&ring, 0, 0, 100);
    assert!(upstream.plan(0) && upstream.write().unwrap());
    write(&ring, 0, 1, 100);
    let (far_beyond, nobody) = (u64::MAX, u16::MAX);
    let lies = [(0, far_beyond), (nobody, 5)].map(|(lane, position)| Position { lane, position });
    far.write_all(&Positions::encode(&lies)).unwrap();
    while ring.tail(0) == 0 {
        upstream.read(&mut Vec::new()).unwrap();
    }
    assert_eq!((ring.tail(0), ring.head(0)), (136, 272));
}

#[test]
fn a_full_ring_goes_out_in_frames_of_a_bounded_length() {
    let ring = Arc::new(Ring::of_memory(1));
    let (mut upstream, mut far) = upstream(&ring, &[]);
    let reader = std::thread::spawn(move || {
        let mut records = Vec::new();
        while records.len() < 300 {
            records.extend(round(&mut far).0);
        }
        records
    });
    let mut sequence = 0;
    while sequence < 300 {
        while sequence < 300 && ring.size(0) - (ring.head(0) - ring.tail(0)) > 65_000 {
            write(&ring, 0, sequence, 60_000);
            sequence += 1;
        }
        upstream.plan(0);
        for chunk in &upstream.queue {
            assert!(
                !matches!(chunk, Chunk::Ring { from, to, .. } if to - from > LONGEST_BODY as u64)
            );
        }
        while upstream.is_blocked() {
            upstream.write().unwrap();
        }
        ring.release(0, upstream.planned[0]);
    }
    while upstream.plan(0) {
        while upstream.is_blocked() {
            upstream.write().unwrap();
        }
    }
    let expected: Vec<_> = (0..300).map(|sequence| (0, sequence)).collect();
    assert_eq!(reader.join().unwrap(), expected);
}

/// Whatever waits, of whichever lane: what goes out in one round is older than what goes out in the next.
#[test]
fn the_oldest_go_out_first() {
    let ring = Arc::new(Ring::of_memory(3));
    let (mut upstream, mut far) = upstream(&ring, &[]);
    // Lane 0 has copied early, lane 2 late, lane 1 all the time; more than one round takes.
    for sequence in 0..24 {
        let lane = match sequence {
            0..8 => 0,
            16.. => 2,
            _ => 1,
        };
        write(&ring, lane, sequence, 50_000);
        write(&ring, 1, sequence, 300);
    }
    let reader = std::thread::spawn(move || {
        let mut newest = 0;
        let mut count = 0;
        while count < 48 {
            let mut sequences: Vec<_> = round(&mut far).0.into_iter().map(|(_, s)| s).collect();
            count += sequences.len();
            sequences.sort_unstable();
            assert!(sequences[0] >= newest, "{} after {newest}", sequences[0]);
            newest = sequences[sequences.len() - 1];
        }
    });
    while upstream.plan(0) {
        while upstream.is_blocked() {
            upstream.write().unwrap();
        }
    }
    reader.join().unwrap();
}

/// The bytes of one round.
fn bytes_of_round(upstream: &mut Upstream, far: &mut TcpStream, now_ns: u64) -> Vec<u8> {
    upstream.plan(now_ns);
    let chunks = upstream.queue.iter();
    let lengths = chunks.map(|chunk| match chunk {
        Chunk::Report(_) => 0,
        Chunk::Bytes(bytes) => bytes.len(),
        Chunk::Ring { from, to, .. } => (to - from) as usize,
    });
    let mut bytes = vec![0; lengths.sum()];
    let mut rest = &mut bytes[..];
    while !rest.is_empty() {
        upstream.write().unwrap();
        let count = far.read(rest).unwrap();
        rest = &mut rest[count..];
    }
    bytes
}

/// What an agent makes of a round: the times of the records that it hands on. It acknowledges them.
fn hand_on(upstream: &Upstream, order: &mut Order, round: Vec<u8>) -> Vec<u64> {
    let (said, result) = streams::take(&mut Frames::default(), order, round.into());
    result.unwrap();
    let copies = said.into_iter().flat_map(|said| match said {
        streams::Said::Copies(copies) => copies,
        other => panic!("{other:?}"),
    });
    copies
        .map(
            |Copied {
                 record,
                 packet,
                 end,
             }| {
                assert!(packet.iter().all(|byte| *byte == record.time_ns as u8));
                upstream.acknowledge(record.lane, end);
                record.time_ns
            },
        )
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Whatever two CPUs copy into whichever of their lanes: the agent hands on each record once, by time.
    #[test]
    fn lanes_come_together_at_the_agent(
        steps in proptest::collection::vec(
            (0_u16..2, prop_oneof![1_usize..3_000, 50_000_usize..65_500], any::<u8>()),
            1..200,
        ),
    ) {
        let ring = Arc::new(Ring::of_memory(2));
        let (mut upstream, mut far) = upstream(&ring, &[]);
        let mut order = Order::new(1 << 30);
        let (mut time, mut written, mut got) = (0, Vec::new(), Vec::new());
        for (cpu, length, dice) in steps {
            time += 1;
            let packet = vec![time as u8; length];
            if ring.copy(cpu, record(0, time, length), &packet).is_some() {
                written.push(time);
            }
            if dice < 30 {
                let round = bytes_of_round(&mut upstream, &mut far, time + 1);
                got.extend(hand_on(&upstream, &mut order, round));
            }
        }
        while upstream.has_more() {
            let round = bytes_of_round(&mut upstream, &mut far, time + 1);
            got.extend(hand_on(&upstream, &mut order, round));
        }
        prop_assert_eq!(got, written);
        prop_assert!(ring.is_empty());
    }
}

#[test]
fn reports_do_not_pile_up_and_echoes_are_passed_on() {
    let ring = Arc::new(Ring::of_memory(1));
    let (mut upstream, mut far) = upstream(&ring, &[]);
    for number in 0..10 {
        let report = TapReport {
            number,
            ..TapReport::default()
        };
        upstream.report(Box::new(report));
    }
    // It counts what there is when it is sent.
    write(&ring, 0, 0, 100);
    assert!(upstream.write().unwrap());
    for number in 0..2 {
        let (header, body) = frame(&mut far);
        assert_eq!((header.kind, header.position), (Kind::Report, number));
        assert_eq!(TapReport::parse(&body).unwrap().lanes[0].copies, 1);
    }
    let mut echo = Header::new(Kind::Echo, 0);
    echo.until_ns = 77;
    far.write_all(&echo.encode()).unwrap();
    let mut said = Vec::new();
    while said.is_empty() {
        upstream.read(&mut said).unwrap();
    }
    assert_eq!(said, [Said::Echo { sent_at_ns: 77 }]);
    // And why it closes.
    let reason = "another tap has this key".to_owned();
    let refused = mirror_base::transport::frame::message(Kind::Refused, &Refused { reason });
    far.write_all(&refused).unwrap();
    let error = loop {
        if let Err(error) = upstream.read(&mut said) {
            break error;
        }
    };
    assert_eq!(error.to_string(), "another tap has this key");
}

#[test]
fn who_leaves_sends_what_is_left_and_a_last_report() {
    let ring = Arc::new(Ring::of_memory(1));
    let (mut upstream, mut far) = upstream(&ring, &[]);
    write(&ring, 0, 0, 100);
    let last = TapReport {
        number: 8,
        sent_at_ns: 77,
        ..TapReport::default()
    };
    upstream.leave(Box::new(last));
    while upstream.plan(0) {
        upstream.write().unwrap();
    }
    assert_eq!(round(&mut far).0, [(0, 0)]);
    let (header, body) = frame(&mut far);
    assert_eq!((header.kind, header.position), (Kind::Report, 8));
    assert_eq!(TapReport::parse(&body).unwrap().lanes[0].copies, 1);
    assert_eq!(frame(&mut far).0.kind, Kind::Bye);
    let mut said = Vec::new();
    // Of an earlier report, and of the last one.
    for (sent_at_ns, is_over) in [(76, false), (77, true)] {
        let mut echo = Header::new(Kind::Echo, 0);
        echo.until_ns = sent_at_ns;
        far.write_all(&echo.encode()).unwrap();
        while said.is_empty() {
            upstream.read(&mut said).unwrap();
        }
        said.clear();
        assert_eq!(upstream.has_left(), is_over);
    }
}
