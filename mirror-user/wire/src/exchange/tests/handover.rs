//! An agent that stops, and the one that comes after it.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::lossy::{Dice, Original, conversation};
use super::*;
use crate::http::is_interim;

const TAP: TapId = TapId(9);

/// How far each agent reads.
#[derive(Clone, Copy, Debug)]
struct Restart {
    /// Everything before is accounted for by the first one.
    stop: usize,
    /// It reads on so far.
    end: usize,
}

fn table() -> Table {
    let mut table = Table::with(Limits::new(1 << 20), Memory::new(MEMORY));
    table.exchanges.streams(TAP, true, table.now);
    table
}

/// Two agents, one after the other: what they tell.
fn restart(segments: &[Segment], Restart { stop, end }: Restart) -> [Table; 2] {
    let mut first = table();
    first.feed(segments[..stop].iter().cloned());
    let mut events = Vec::new();
    first.exchanges.pause(first.now, &mut events);
    first.tell(events);
    for segment in &segments[stop..end] {
        first.feed([segment.clone()]);
        if first.exchanges.is_at_rest() {
            break;
        }
    }
    let mut events = Vec::new();
    let handed_over = first.exchanges.hand_over(&mut events);
    first.tell(events);
    assert_eq!(first.exchanges.connections(), 0);
    assert_eq!(first.exchanges.deadline(), None);
    let mut second = table();
    for mut connection in handed_over {
        let json = serde_json::to_string(&connection.anchor).unwrap();
        connection.anchor = serde_json::from_str(&json).unwrap();
        second.exchanges.resume(&connection, second.now);
    }
    second.feed(segments[stop..].iter().cloned());
    [first, second]
}

/// What became of each exchange that can be named, by its index; and how many others there were.
#[derive(Debug, Default, PartialEq)]
struct Ends {
    answered: Vec<usize>,
    dropped: BTreeMap<&'static str, usize>,
}

/// Checks that each exchange that was seen has one end, and that every byte is what was sent.
fn ends(tables: &[Table], originals: &[Original]) -> Ends {
    let mut ends = Ends::default();
    for table in tables {
        let mut open = BTreeMap::new();
        for event in &table.events {
            match event {
                Event::Seen { id, .. } => assert_eq!(open.insert(*id, None), None),
                Event::Request { id, request, .. } => {
                    let index: usize = request.target[1..].parse().unwrap();
                    let original = &originals[index];
                    assert_eq!(request.method, original.method);
                    assert!(request.body == original.request_body, "request {index}");
                    *open.get_mut(id).unwrap() = Some(index);
                }
                Event::Response { id, response } => {
                    let index = open.remove(id).unwrap().unwrap();
                    let whole = response.body == originals[index].response_body;
                    assert!(whole, "answer of {index}");
                    ends.answered.push(index);
                }
                Event::Dropped { id, reason, .. } => {
                    open.remove(id).unwrap();
                    *ends.dropped.entry(reason.label()).or_default() += 1;
                }
                Event::Closed { .. } => {}
            }
        }
        assert!(open.is_empty(), "{open:?} has no end: {:?}", table.told);
    }
    ends
}

/// Whether they go the same way, and a network may bring them in any order.
fn may_swap(one: &Segment, other: &Segment) -> bool {
    let is_data = |segment: &Segment| !segment.payload.is_empty() && segment.flags & FIN == 0;
    one.direction == other.direction && is_data(one) && is_data(other)
}

/// A conversation as a tap copies it, all of it.
fn copied(dice: &mut Dice, depth: usize, reorder: usize) -> (Vec<Original>, Vec<Segment>) {
    let (originals, tagged) = conversation(dice, depth, reorder);
    let mut segments: Vec<_> = tagged.into_iter().map(|(_, segment)| segment).collect();
    for at in 1..segments.len() {
        if dice.chance(reorder) && may_swap(&segments[at - 1], &segments[at]) {
            segments.swap(at - 1, at);
        }
    }
    (originals, segments)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Where what has begun ends in time, nothing is lost and nothing comes twice.
    #[test]
    fn a_restart_loses_nothing(
        seed in any::<u64>(),
        depth in 1_usize..4,
        reorder in 0_usize..11,
    ) {
        let mut dice = Dice(seed);
        let (originals, segments) = copied(&mut dice, depth, reorder);
        let (stop, end) = (dice.roll(segments.len() + 1), segments.len());
        let mut tables = restart(&segments, Restart { stop, end });
        tables[1].wait(1_000);
        tables[1].finish();
        let ends = ends(&tables, &originals);
        let told = (&tables[0].told, &tables[1].told);
        prop_assert_eq!(&ends.dropped, &BTreeMap::new(), "{:?}", told);
        prop_assert_eq!(&ends.answered, &(0..originals.len()).collect::<Vec<_>>(), "{:?}", told);
    }

    /// What has begun and does not end in time is dropped by the first agent, and costs no other one, where
    /// segments come in the order in which they were sent.
    #[test]
    fn a_slow_exchange_costs_itself_alone(seed in any::<u64>()) {
        let mut dice = Dice(seed);
        let (originals, segments) = copied(&mut dice, 1, 0);
        // An interim answer in two segments looks like a turn, where it is not framed.
        let is_cut = |segment: &Segment| {
            segment.payload.starts_with(b"HTTP/1.1 100") && !is_interim(&segment.payload)
        };
        if segments.iter().any(is_cut) {
            return Ok(());
        }
        let stop = dice.roll(segments.len() + 1);
        let end = stop + dice.roll(segments.len() + 1 - stop);
        let mut tables = restart(&segments, Restart { stop, end });
        tables[1].wait(1_000);
        tables[1].finish();
        let ends = ends(&tables, &originals);
        let told = (&tables[0].told, &tables[1].told);
        let shutdown = ends.dropped.get("shutdown").copied().unwrap_or_default();
        let dropped: usize = ends.dropped.values().sum();
        prop_assert_eq!(dropped + ends.answered.len(), originals.len(), "{:?}", told);
        prop_assert!(dropped <= 1 + shutdown, "{:?}", told);
        prop_assert!(shutdown <= 1, "{:?}", told);
    }
}

#[test]
fn what_is_over_is_not_taken_up_again() {
    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client(post("/0", "abc")));
    let stop = segments.len();
    segments.push(talk.server(ok("A")));
    segments.push(talk.client_fin());
    segments.push(talk.server_fin());
    let end = segments.len();
    // The port is used again, by a connection that is the second agent's.
    talk.client = talk.client.wrapping_add(90_000);
    talk.server = talk.server.wrapping_add(90_000);
    segments.extend(talk.open());
    segments.push(talk.client(post("/1", "abc")));
    segments.push(talk.server(ok("B")));
    for end in end..=segments.len() {
        let [mut first, mut second] = restart(&segments, Restart { stop, end });
        first.told(&[
            "seen 1",
            "request 1 POST /0 abc",
            "response 1 200 A",
            "closed 1",
        ]);
        second.told(&["seen 1", "request 1 POST /1 abc", "response 1 200 B"]);
    }
}

#[test]
fn a_reset_ends_what_has_begun_and_the_next_request_is_the_other_agent_s() {
    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client(post("/0", "abc")));
    let stop = segments.len();
    segments.push(talk.client(post("/1", "abc")));
    segments.push(talk.client_rst());
    let mut first = table();
    first.feed(segments[..stop].iter().cloned());
    let mut events = Vec::new();
    first.exchanges.pause(first.now, &mut events);
    first.feed(segments[stop..].iter().cloned());
    // By the tap's clock nothing has gone by since; it was silent for longer than it ever is.
    first.now += Duration::from_secs(6);
    first.wait(1_000);
    let handed_over = first.exchanges.hand_over(&mut events);
    first.told(&[
        "seen 1",
        "request 1 POST /0 abc",
        "dropped 1 response_incomplete",
        "closed 1",
    ]);
    let mut second = table();
    second.exchanges.resume(&handed_over[0], second.now);
    second.feed(segments[stop..].iter().cloned());
    second.now += Duration::from_secs(6);
    second.wait(1_000);
    second.told(&[
        "seen 1",
        "request 1 POST /1 abc",
        // Of the answer to the first one nothing has come: where the second one's begins is not known.
        "dropped 1 response_gap",
        "closed 1",
    ]);
    second.empty();
}

#[test]
fn what_is_no_http_stays_left_alone() {
    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client(b"\x16\x03\x01\x02\x00\x01\x00"));
    let stop = segments.len();
    segments.push(talk.server(b"\x16\x03\x03\x00\x7a"));
    segments.push(talk.client("GET /looks-like-it HTTP/1.1\r\n\r\n"));
    let end = segments.len();
    let [mut first, mut second] = restart(&segments, Restart { stop, end });
    first.told(&["seen 1", "dropped 1 tls"]);
    second.told(&[]);
}

/// Nobody sends datagrams again.
#[test]
fn connections_of_datagrams_are_not_handed_over() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table
        .feed(talk.open())
        .feed([talk.client(post("/", "abc"))]);
    let mut events = Vec::new();
    table.exchanges.pause(table.now, &mut events);
    assert!(table.exchanges.is_at_rest());
    // Until the end, they go on as they did.
    table.feed([talk.server(ok("A")), talk.client(post("/", "abc"))]);
    assert_eq!(table.exchanges.hand_over(&mut events), []);
    table.tell(events);
    table.told(&[
        "seen 1",
        "request 1 POST / abc",
        "response 1 200 A",
        "seen 2",
        "request 2 POST / abc",
        "dropped 2 shutdown",
        "closed 1",
    ]);
}
