use std::collections::BTreeMap;

use mirror_common::tunnel::{Arm, Direction};
use proptest::prelude::*;

use super::*;

fn meta(sequence: u32, length: u32) -> Meta {
    Meta {
        direction: Direction::Request,
        arm: Arm::Stable,
        piece: false,
        last_piece: false,
        cpu: 3,
        length,
        sequence,
        time_ns: 0,
        tap: 0,
        mac: 0,
    }
}

fn sent(copies: u64, bytes: u64) -> LaneSent {
    LaneSent {
        lane: 3,
        copies,
        bytes,
    }
}

fn volume(copies: u64, bytes: u64) -> Volume {
    Volume { copies, bytes }
}

/// A ledger that was told of by a report first, as a tap that starts does.
fn started(copies: u64, bytes: u64) -> TapLedger {
    let mut ledger = TapLedger::default();
    ledger.report(1, &[sent(copies, bytes)]);
    ledger
}

fn settle(ledger: &mut TapLedger) -> Totals {
    ledger.tick();
    ledger.tick();
    ledger.totals()
}

#[test]
fn whole_copies_are_received() {
    let mut ledger = started(0, 0);
    ledger.datagram(&meta(0, 0), 1, 0, Outcome::Received);
    ledger.datagram(&meta(1, 100), 2, 100, Outcome::Received);
    ledger.report(1, &[sent(2, 100)]);
    let totals = settle(&mut ledger);
    assert_eq!(totals.of(Outcome::Received), volume(2, 100));
    assert_eq!(totals.sent, volume(2, 100));
    assert!(totals.closes());
}

#[test]
fn the_tail_is_lost_only_when_a_report_says_so() {
    let mut ledger = started(0, 0);
    ledger.datagram(&meta(0, 10), 0, 10, Outcome::Received);
    assert_eq!(settle(&mut ledger).of(Outcome::Lost), volume(0, 0));
    ledger.report(1, &[sent(3, 1_010)]);
    let totals = settle(&mut ledger);
    assert_eq!(totals.of(Outcome::Lost), volume(2, 1_000));
    assert!(totals.closes());
}

#[test]
fn a_copy_may_come_in_parts() {
    let mut ledger = started(0, 0);
    for (sequence, length) in [(1_000, 400), (1_400, 400), (1_400, 400), (1_800, 200)] {
        ledger.datagram(&meta(0, 1_000), sequence, length, Outcome::Received);
    }
    ledger.datagram(&meta(1, 1_000), 2_000, 600, Outcome::Received);
    ledger.report(1, &[sent(2, 2_000)]);
    let totals = settle(&mut ledger);
    assert_eq!(totals.of(Outcome::Received), volume(1, 1_000));
    assert_eq!(totals.of(Outcome::Partial), volume(1, 600));
    assert_eq!(totals.of(Outcome::Lost), volume(0, 400));
    assert_eq!(totals.duplicates, 1);
    assert!(totals.closes());
}

#[test]
fn what_the_agent_drops_is_named() {
    let mut ledger = started(0, 0);
    ledger.datagram(&meta(0, 10), 0, 10, Outcome::UnknownService);
    ledger.datagram(&meta(1, 20), 0, 10, Outcome::Received);
    ledger.datagram(&meta(1, 20), 10, 10, Outcome::Overloaded);
    ledger.report(1, &[sent(2, 30)]);
    let totals = settle(&mut ledger);
    assert_eq!(totals.of(Outcome::UnknownService), volume(1, 10));
    assert_eq!(totals.of(Outcome::Overloaded), volume(1, 20));
    assert!(totals.closes());
}

#[test]
fn a_copy_that_comes_too_late_stays_lost() {
    let mut ledger = started(0, 0);
    ledger.datagram(&meta(1, 10), 0, 10, Outcome::Received);
    ledger.report(1, &[sent(2, 20)]);
    settle(&mut ledger);
    ledger.datagram(&meta(0, 10), 0, 10, Outcome::Received);
    let totals = settle(&mut ledger);
    assert_eq!(totals.late, 1);
    assert_eq!(totals.of(Outcome::Lost), volume(1, 10));
    assert!(totals.closes());
}

#[test]
fn what_was_sent_before_the_agent_began_is_outside_its_account() {
    let mut ledger = TapLedger::default();
    let before = u64::from(u32::MAX) * 5;
    for n in 0..10 {
        ledger.datagram(&meta((before + n) as u32, 7), 0, 7, Outcome::Received);
    }
    ledger.report(1, &[sent(before + 8, 1_000_000)]);
    ledger.report(1, &[sent(before + 12, 1_000_028)]);
    let totals = settle(&mut ledger);
    assert_eq!(totals.of(Outcome::Received), volume(10, 70));
    assert_eq!(totals.of(Outcome::Lost), volume(2, 14));
    assert_eq!(totals.earlier, volume(before, 1_000_000 - 56));
    assert_eq!(totals.sent, volume(12, 84));
    assert_eq!(totals.settled(), totals.sent);
    assert!(totals.closes());

    // Nothing has arrived before the report.
    let totals = settle(&mut started(before, 700));
    assert_eq!(totals.earlier, volume(before, 700));
    assert_eq!(totals.sent, volume(0, 0));
}

#[test]
fn a_new_life_of_the_tap_starts_from_nothing() {
    let mut ledger = started(0, 0);
    ledger.datagram(&meta(0, 10), 0, 10, Outcome::Received);
    ledger.report(1, &[sent(2, 15)]);
    ledger.report(2, &[sent(0, 0)]);
    ledger.datagram(&meta(0, 20), 0, 20, Outcome::Received);
    ledger.report(2, &[sent(1, 20)]);
    let totals = settle(&mut ledger);
    assert_eq!(totals.of(Outcome::Received), volume(2, 30));
    assert_eq!(totals.of(Outcome::Lost), volume(1, 5));
    assert_eq!(totals.sent, volume(3, 35));
    assert!(totals.closes());
}

#[test]
fn a_leap_beyond_the_window_is_cheap_and_counted() {
    let mut ledger = started(0, 0);
    ledger.datagram(&meta(0, 1), 0, 1, Outcome::Received);
    ledger.datagram(&meta(1 << 30, 1), 0, 1, Outcome::Received);
    ledger.close();
    let totals = ledger.totals();
    assert_eq!(totals.of(Outcome::Received).copies, 2);
    assert_eq!(totals.of(Outcome::Lost).copies, (1 << 30) - 1);
}

#[test]
fn stale_and_repeated_reports_change_nothing() {
    let mut ledger = started(5, 50);
    ledger.report(1, &[sent(5, 50)]);
    ledger.report(1, &[sent(7, 70)]);
    ledger.report(1, &[sent(6, 60)]);
    let totals = settle(&mut ledger);
    assert_eq!(totals.earlier, volume(5, 50));
    assert_eq!(totals.sent, volume(2, 20));
    assert_eq!(totals.of(Outcome::Lost), volume(2, 20));
    assert!(totals.closes());
}

/// One datagram on its way: copy, first byte, length.
type Datagram = (u64, u32, u32);

/// What the network does to a datagram: how often it arrives, and how much later than others.
fn weather() -> impl Strategy<Value = (usize, usize)> {
    let times = prop_oneof![1 => Just(0_usize), 8 => Just(1), 1 => Just(2)];
    let delay = prop_oneof![9 => Just(0_usize), 1 => 1_usize..20];
    (times, delay)
}

proptest! {
    /// Loss, duplication and reordering of 10 % each: every figure is what the network really did.
    #[test]
    fn both_sides_are_equal(
        first in prop_oneof![Just(0_u64), Just(u64::from(u32::MAX) - 20)],
        copies in proptest::collection::vec(
            (prop_oneof![Just(0_u32), 1_u32..5_000], proptest::collection::vec(weather(), 4)),
            1..80,
        ),
        every in 1_usize..30,
    ) {
        let mut wire: Vec<(usize, Datagram)> = Vec::new();
        let mut bytes = 0_u64;
        let mut reports = vec![(0_usize, sent(first, 0))];
        for (n, (length, fates)) in copies.iter().enumerate() {
            let number = first + n as u64;
            let segment = 1_448;
            let count = length.div_ceil(segment).max(1);
            for part in 0..count {
                let start = part * segment;
                let (times, delay) = fates[part as usize % fates.len()];
                for again in 0..times {
                    let datagram = (number, start, (length - start).min(segment));
                    wire.push((n + delay + again, datagram));
                }
            }
            bytes += u64::from(*length);
            if n % every == 0 {
                reports.push((n, sent(number + 1, bytes)));
            }
        }
        reports.push((copies.len() + 40, sent(first + copies.len() as u64, bytes)));

        let mut ledger = TapLedger::default();
        let mut arrived: BTreeMap<u64, BTreeMap<u32, u32>> = BTreeMap::new();
        let mut duplicates = 0;
        for time in 0..=copies.len() + 40 {
            for (_, report) in reports.iter().filter(|(at, _)| *at == time) {
                ledger.report(1, &[*report]);
            }
            for (_, (number, start, length)) in wire.iter().filter(|(at, _)| *at == time) {
                let total = copies[(number - first) as usize].0;
                ledger.datagram(&meta(*number as u32, total), *start, *length, Outcome::Received);
                if arrived.entry(*number).or_default().insert(*start, *length).is_some() {
                    duplicates += 1;
                }
            }
        }
        let totals = settle(&mut ledger);

        let mut expected = Totals { duplicates, ..Totals::default() };
        for (n, (length, _)) in copies.iter().enumerate() {
            let parts = arrived.get(&(first + n as u64));
            let got = parts.map_or(0, |parts| parts.values().map(|&l| u64::from(l)).sum());
            let outcome = match parts {
                None => Outcome::Lost,
                Some(_) if got < u64::from(*length) => Outcome::Partial,
                Some(_) => Outcome::Received,
            };
            expected.outcomes[outcome as usize] += volume(1, got);
            expected.outcomes[Outcome::Lost as usize].bytes += u64::from(*length) - got;
        }
        expected.earlier = volume(first, 0);
        expected.sent = volume(copies.len() as u64, bytes);
        expected.accounted = expected.sent;
        prop_assert_eq!(totals, expected);
    }
}

/// Of a tap whose copies come in a stream.
fn streamed() -> TapLedger {
    let mut ledger = TapLedger::default();
    ledger.hello(1, true);
    ledger
}

fn copies(ledger: &mut TapLedger, numbers: std::ops::Range<u64>) {
    for number in numbers {
        ledger.copy(3, number, 10, Outcome::Received);
    }
}

#[test]
fn a_stream_s_copies_are_never_late() {
    let mut ledger = streamed();
    // The report overtakes what it tells of, however long that takes.
    ledger.report(1, &[sent(500, 5_000)]);
    copies(&mut ledger, 100..200);
    ledger.report(1, &[sent(800, 8_000)]);
    for _ in 0..10 {
        ledger.tick();
    }
    copies(&mut ledger, 200..800);
    let totals = ledger.totals();
    assert_eq!(totals.of(Outcome::Received), volume(700, 7_000));
    assert_eq!(totals.earlier, volume(100, 1_000));
    assert_eq!(totals.sent, volume(700, 7_000));
    assert!(totals.closes() && totals.late == 0);
}

/// A tap whose sender gets no CPU for a while.
#[test]
fn a_first_copy_may_be_slower_than_the_agent_s_patience() {
    let mut ledger = streamed();
    ledger.report(1, &[sent(73, 730)]);
    for _ in 0..3 {
        ledger.tick();
    }
    ledger.report(1, &[sent(90, 900)]);
    assert_eq!(ledger.totals().earlier, volume(73, 730));
    copies(&mut ledger, 20..100);
    ledger.report(1, &[sent(100, 1_000)]);
    let totals = ledger.totals();
    assert_eq!(totals.earlier, volume(20, 200));
    assert_eq!(totals.of(Outcome::Received), volume(80, 800));
    assert!(totals.closes() && totals.late == 0, "{totals:?}");
}

/// A deep lane's copies wait until all that is older has been sent.
#[test]
fn first_copies_that_the_tap_still_has_are_waited_for() {
    let mut ledger = streamed();
    ledger.begun([4].into_iter());
    ledger.report(1, &[sent(73, 730)]);
    for _ in 0..10 {
        ledger.tick();
    }
    ledger.report(1, &[sent(100, 1_000)]);
    assert_eq!(ledger.totals(), Totals::default());
    copies(&mut ledger, 0..100);
    let totals = ledger.totals();
    assert_eq!(totals.earlier, volume(0, 0));
    assert_eq!(totals.of(Outcome::Received), volume(100, 1_000));
    assert!(totals.closes() && totals.late == 0, "{totals:?}");
    // What comes before any report begins at the beginning, too.
    let mut ledger = streamed();
    ledger.begun([].into_iter());
    copies(&mut ledger, 2..4);
    ledger.report(1, &[sent(4, 40)]);
    let totals = ledger.totals();
    assert_eq!(totals.of(Outcome::Lost), volume(2, 20));
    assert!(totals.closes() && totals.earlier == volume(0, 0));
}

#[test]
fn what_a_tap_skipped_is_lost_in_a_stream_too() {
    let mut ledger = streamed();
    ledger.report(1, &[sent(0, 0)]);
    copies(&mut ledger, 0..5);
    copies(&mut ledger, 8..10);
    ledger.report(1, &[sent(10, 100)]);
    let totals = ledger.totals();
    assert_eq!(totals.of(Outcome::Received), volume(7, 70));
    assert_eq!(totals.of(Outcome::Lost), volume(3, 30));
    assert!(totals.closes());
}

#[test]
fn what_waits_at_the_tap_when_the_agent_stops_is_the_next_one_s() {
    let mut first = streamed();
    copies(&mut first, 0..4);
    first.report(1, &[sent(2, 20)]);
    first.report(1, &[sent(4, 40)]);
    first.report(1, &[sent(9, 90)]);
    first.stop();
    let before = first.totals();
    assert_eq!(before.of(Outcome::Received), volume(4, 40));
    assert_eq!(before.of(Outcome::Lost), volume(0, 0));
    assert!(before.closes());

    let mut second = streamed();
    second.report(1, &[sent(9, 90)]);
    copies(&mut second, 4..9);
    second.stop();
    let after = second.totals();
    assert_eq!(after.earlier, volume(4, 40));
    assert_eq!(after.of(Outcome::Received), volume(5, 50));
    assert!(after.closes());
}

#[test]
fn a_tap_s_other_life_takes_with_it_what_was_on_its_way() {
    let mut ledger = streamed();
    copies(&mut ledger, 0..4);
    ledger.report(1, &[sent(4, 40)]);
    ledger.report(1, &[sent(6, 60)]);
    ledger.hello(2, true);
    copies(&mut ledger, 0..3);
    ledger.report(2, &[sent(3, 30)]);
    let totals = ledger.totals();
    assert_eq!(totals.of(Outcome::Received), volume(7, 70));
    assert_eq!(totals.of(Outcome::Lost), volume(2, 20));
    assert!(totals.closes());
}

#[test]
fn a_lane_that_copies_nothing_begins_with_its_report() {
    let mut ledger = streamed();
    ledger.report(1, &[sent(6, 60)]);
    assert_eq!(ledger.totals().earlier, volume(0, 0));
    for _ in 0..3 {
        ledger.tick();
    }
    assert_eq!(ledger.totals().earlier, volume(6, 60));
    copies(&mut ledger, 6..7);
    ledger.report(1, &[sent(7, 70)]);
    assert!(ledger.totals().closes());
}
