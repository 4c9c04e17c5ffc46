use mirror_common::record::Record;
use proptest::prelude::*;

use super::super::fixtures::{self, Rings};
use super::*;
use mirror_base::transport::frame::{Header, Position};

const MOST: u64 = 1 << 30;

/// What identifies a record here.
fn name(copied: &Copied) -> (u16, u64, u64) {
    let Record {
        lane,
        sequence,
        time_ns,
        ..
    } = copied.record;
    (lane, sequence, time_ns)
}

fn copies(said: Vec<Said>) -> Vec<Copied> {
    let copies = said.into_iter().map(|said| match said {
        Said::Copies(copies) => copies,
        other => panic!("{other:?}"),
    });
    copies.flatten().collect()
}

/// What comes of reads of these lengths, and then of the rest.
fn read(frames: &mut Frames, order: &mut Order, mut wire: &[u8], cuts: &[usize]) -> Vec<Copied> {
    let mut out = Vec::new();
    for cut in cuts.iter().copied().chain([usize::MAX]) {
        let (read, rest) = wire.split_at(cut.min(wire.len()));
        wire = rest;
        let (said, result) = take(frames, order, Bytes::copy_from_slice(read));
        result.unwrap();
        out.extend(copies(said));
    }
    out
}

/// Records of three lanes: which, how much later, how long.
fn copied() -> impl Strategy<Value = Vec<(u16, u64, usize)>> {
    prop::collection::vec((0_u16..3, 1_u64..5, 0_usize..90), 0..60)
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0_usize..300, 0..40)
}

proptest! {
    /// However the bytes are cut into frames and reads: all records come, the oldest first.
    #[test]
    fn records_come_in_the_order_of_their_time(
        written in copied(),
        stretch in 1_usize..200,
        every in 1_usize..9,
        cuts in cuts(),
    ) {
        let mut rings = Rings::default();
        let mut wire = Vec::new();
        for (index, (lane, later, length)) in written.into_iter().enumerate() {
            rings.write(lane, later, &vec![lane as u8; length]);
            if index % every == 0 {
                wire.extend(rings.round(stretch));
            }
        }
        wire.extend(rings.rounds(stretch));
        let (mut frames, mut order) = (Frames::default(), Order::new(MOST));
        let out = read(&mut frames, &mut order, &wire, &cuts);
        let names: Vec<_> = out.iter().map(name).collect();
        prop_assert_eq!(&names, &rings.written);
        for copied in &out {
            prop_assert!(copied.packet.iter().all(|&byte| byte == copied.record.lane as u8));
        }
        let ends = rings.heads();
        prop_assert_eq!(order.positions(), ends);
        prop_assert_eq!(order.held(), 0);
    }

    /// Wherever the connection breaks: the next one goes on, and nothing is lost or comes twice.
    #[test]
    fn a_broken_connection_loses_and_doubles_nothing(
        written in copied(),
        stretch in 1_usize..200,
        breaks in prop::collection::vec(0_usize..2_000, 0..4),
    ) {
        let mut rings = Rings::default();
        for (lane, later, length) in written {
            rings.write(lane, later, &vec![7; length]);
        }
        let mut order = Order::new(MOST);
        let mut out = Vec::new();
        for at in breaks.into_iter().chain([usize::MAX]) {
            let wire = rings.rounds(stretch);
            let wire = &wire[..at.min(wire.len())];
            out.extend(read(&mut Frames::default(), &mut order, wire, &[]));
            order.break_off(&mut out);
            prop_assert_eq!(order.held(), 0);
            rings.go_on(&order.positions());
        }
        let mut names: Vec<_> = out.iter().map(name).collect();
        names.sort_by_key(|&(_, _, time)| time);
        prop_assert_eq!(&names, &rings.written);
    }

    #[test]
    fn anything_is_an_error_or_not_but_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut order = Order::new(MOST);
        let _ = take(&mut Frames::default(), &mut order, bytes.into());
    }
}

/// A frame with the records of a whole ring.
fn frame(rings: &Rings, lane: u16, from: usize, to: usize) -> Vec<u8> {
    fixtures::records(lane, from, false, &rings.bytes(lane)[from..to])
}

#[test]
fn what_the_tap_skipped_is_missing_and_no_more() {
    let mut rings = Rings::default();
    for _ in 0..4 {
        rings.write(0, 1, b"12345678");
    }
    let (mut frames, mut order) = (Frames::default(), Order::new(MOST));
    let mut wire = frame(&rings, 0, 0, 50);
    wire.extend(frame(&rings, 0, 80, 160));
    wire.extend(fixtures::round(9));
    let out = read(&mut frames, &mut order, &wire, &[]);
    let sequences: Vec<_> = out.iter().map(|copied| copied.record.sequence).collect();
    assert_eq!(sequences, [0, 2, 3]);
    assert_eq!(out[0].end, 40);
    // What has come already is left out.
    let wire = frame(&rings, 0, 40, 160);
    assert!(read(&mut frames, &mut order, &wire, &[]).is_empty());
    assert_eq!(
        order.positions(),
        [Position {
            lane: 0,
            position: 160
        }]
    );
}

#[test]
fn a_record_waits_for_no_lane_that_has_nothing_and_not_for_ever() {
    let mut rings = Rings::default();
    rings.write(0, 5, b"");
    rings.write(1, 5, b"");
    rings.write(0, 5, b"");
    let (mut frames, mut order) = (Frames::default(), Order::new(100));
    let mut wire = frame(&rings, 0, 0, 64);
    wire.extend(fixtures::round(6));
    // Lane 1 said nothing in this round.
    assert_eq!(read(&mut frames, &mut order, &wire, &[]).len(), 1);
    assert!(order.holds_records());
    assert!(read(&mut frames, &mut order, &frame(&rings, 1, 0, 32), &[]).is_empty());
    // As much as may be held has been read since: it comes, and what is older before it.
    for _ in 0..2 {
        rings.write(2, 5, &[0; 48]);
    }
    let out = read(&mut frames, &mut order, &frame(&rings, 2, 0, 160), &[]);
    assert_eq!(out.len(), 2);
    assert_eq!(
        out.iter().map(|c| c.record.lane).collect::<Vec<_>>(),
        [1, 0]
    );
}

#[test]
fn what_is_no_record_is_named() {
    let check = |bytes: Vec<u8>, expected: Refusal| {
        let mut order = Order::new(MOST);
        let (said, result) = take(&mut Frames::default(), &mut order, bytes.into());
        assert!(said.is_empty());
        assert_eq!(result.unwrap_err().refusal, expected);
    };
    check(
        fixtures::records(0, 0, false, &[0xff; 40]),
        Refusal::BadRecord,
    );
    let mut rings = Rings::default();
    rings.write(3, 1, b"");
    let bytes = rings.bytes(3).to_vec();
    check(fixtures::records(4, 0, false, &bytes), Refusal::BadRecord);
    let far = Header {
        position: u64::MAX,
        ..Header::new(Kind::Records, 0)
    };
    check(far.encode().to_vec(), Refusal::BadRecord);
    let mut report = Header::new(Kind::Report, 2).encode().to_vec();
    report.extend(b"[]");
    check(report, Refusal::BadReport);
    let hello = Header::new(Kind::Hello, 0).encode().to_vec();
    check(hello, Refusal::BadFrame);
}

#[test]
fn reports_come_with_what_their_echo_says() {
    let report = TapReport {
        number: 3,
        ..TapReport::default()
    };
    let wire = fixtures::report(&report, 77);
    let cost = 2 * serde_json::to_vec(&report).unwrap().len();
    let mut order = Order::new(MOST);
    let (said, result) = take(&mut Frames::default(), &mut order, wire.into());
    result.unwrap();
    let expected = Reported {
        number: 3,
        sent_ns: 77,
        report,
        cost,
    };
    assert_eq!(said, [Said::Report(expected)]);
}
