use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use mirror_common::connection::side;

const ROW: u32 = 3;
const START: Duration = Duration::from_secs(1_000);

/// A connection from `client` that began with sequence number `initial` at START - `age` and has
/// sent `bytes`.
fn connection(client: &str, initial: u32, age: u64, bytes: u32) -> (Flow, Connection) {
    let client: SocketAddr = client.parse().unwrap();
    let server: SocketAddr = "10.0.0.5:8000".parse().unwrap();
    let flow = Flow {
        client: client.into(),
        server: server.into(),
    };
    let connection = Connection {
        opened_ns: (START - Duration::from_secs(age)).as_nanos() as u64,
        initial,
        next: [initial.wrapping_add(1).wrapping_add(bytes), 0],
        sides: [side::KNOWN, side::ANSWERED],
        service: ROW,
        ..Connection::default()
    };
    (flow, connection)
}

fn clients(parts: &[(&str, u32)]) -> Vec<(Flow, Connection)> {
    let of = |&(client, bytes): &(&str, u32)| connection(client, 7, 5, bytes);
    parts.iter().map(of).collect()
}

/// One that has seen nothing yet.
fn tracker() -> Tracker {
    let mut tracker = Tracker::default();
    let found = tracker.look(START, &BTreeMap::from([(ROW, 0)]), Vec::new());
    assert_eq!(found, BTreeMap::new());
    tracker
}

/// The first look at these, with requests enough.
#[track_caller]
fn look(connections: Vec<(Flow, Connection)>) -> Concentration {
    tracker().look(START, &BTreeMap::from([(ROW, 100)]), connections)[&ROW]
}

#[track_caller]
fn assert_near(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
}

#[test]
fn the_busiest_client_is_the_one_whose_connections_carry_most() {
    let found = look(clients(&[
        ("10.0.0.1:1000", 300),
        ("10.0.0.1:1001", 300),
        ("10.0.0.2:1000", 400),
        ("10.0.0.3:1000", 0),
    ]));
    assert_eq!(found.busiest, IpAddr::from([10, 0, 0, 1]));
    assert_eq!((found.clients, found.connections), (2, 3));
    assert_near(found.busiest_client, 0.6);
    assert_near(found.busiest_connection, 0.4);
    assert_near(found.client_keys, 1.0 / (0.6 * 0.6 + 0.4 * 0.4));
    assert_near(found.connection_keys, 1.0 / (0.09 + 0.09 + 0.16));
}

/// What a connection sent since the last look is what counts; before, half as much a half-life on.
#[test]
fn only_what_is_new_counts() {
    let mut tracker = tracker();
    let requests = BTreeMap::from([(ROW, 100)]);
    let old = |bytes| connection("10.0.0.1:1000", u32::MAX - 10, 900, bytes);
    let other = |bytes| connection("10.0.0.2:1000", 5, 900, bytes);
    let found = tracker.look(START, &requests, vec![old(1 << 30), other(10)]);
    assert_eq!(found, BTreeMap::new(), "what they sent lately is not known");
    let requests = BTreeMap::from([(ROW, 200)]);
    let now = START + Duration::from_secs(10);
    let found = tracker.look(now, &requests, vec![old((1 << 30) + 100), other(310)])[&ROW];
    assert_near(found.busiest_client, 0.75);
    let requests = BTreeMap::from([(ROW, 300)]);
    let (now, idle) = (now + HALF_LIFE, old((1 << 30) + 100));
    let found = tracker.look(now, &requests, vec![idle, other(460)])[&ROW];
    assert_near(found.busiest_client, 300.0 / 350.0);
}

#[test]
fn a_port_that_is_used_again_is_another_connection() {
    let mut tracker = tracker();
    let requests = BTreeMap::from([(ROW, 100)]);
    let again = |initial, bytes| connection("10.0.0.1:1000", initial, 5, bytes);
    tracker.look(START, &requests, vec![again(7, 1_000)]);
    let requests = BTreeMap::from([(ROW, 200)]);
    let look = vec![again(90, 100), connection("10.0.0.2:1000", 7, 5, 300)];
    let found = tracker.look(START, &requests, look)[&ROW];
    assert_near(found.busiest_client, 0.75);
}

#[test]
fn nothing_is_said_of_few_requests() {
    let mut tracker = tracker();
    let mut said = |seconds, answered| {
        let requests = BTreeMap::from([(ROW, answered)]);
        let now = START + Duration::from_secs(seconds);
        let look = clients(&[("10.0.0.1:1000", 300 + answered as u32)]);
        tracker.look(now, &requests, look).contains_key(&ROW)
    };
    assert!(!said(0, 19));
    assert!(said(1, 39));
    assert!(!said(61, 39), "that was long ago");
    assert!(said(62, 70));
    assert!(!said(62, 3), "another service has the row");
}

#[test]
fn a_connection_met_when_it_was_open_counts_from_then_on() {
    let mut tracker = tracker();
    let mut joined = connection("10.0.0.1:1000", 0, 0, 0);
    joined.1 = Connection {
        service: ROW,
        ..Connection::default()
    };
    let other = |bytes| connection("10.0.0.2:1000", 7, 5, bytes);
    tracker.look(
        START,
        &BTreeMap::from([(ROW, 50)]),
        vec![joined, other(100)],
    );
    (joined.1.sides, joined.1.next) = ([side::KNOWN, 0], [5_000, 0]);
    tracker.look(
        START,
        &BTreeMap::from([(ROW, 60)]),
        vec![joined, other(100)],
    );
    joined.1.next = [5_300, 0];
    let found = tracker.look(
        START,
        &BTreeMap::from([(ROW, 70)]),
        vec![joined, other(100)],
    );
    assert_near(found[&ROW].busiest_client, 0.75);
}

#[track_caller]
fn check(parts: &[(&str, u32)], affinity: Affinity, expected: &[&str]) {
    let share = Share::try_from(0.05).unwrap();
    let said = warning(&look(clients(parts)), affinity, share);
    let said = said.unwrap_or_default();
    assert_eq!(said.is_empty(), expected.is_empty(), "{said}");
    for words in expected {
        assert!(said.contains(words), "{words:?} is not in {said:?}");
    }
    assert_eq!(warning(&look(clients(parts)), affinity, Share::ALL), None);
}

#[test]
fn what_is_said_names_the_client_its_part_and_the_cure() {
    let gateway: Vec<String> = (0..40)
        .map(|port| format!("10.0.0.9:{}", 1000 + port))
        .collect();
    let mut parts: Vec<(&str, u32)> = gateway.iter().map(|at| (at.as_str(), 100)).collect();
    parts.push(("10.0.0.1:1000", 1_000));
    let cure = [
        "10.0.0.9 sends 80 %",
        "2 clients in all",
        "set affinity = \"connection\" if",
    ];
    check(&parts, Affinity::Client, &cure);
    check(&parts, Affinity::Connection, &[]);

    let few = [
        ("10.0.0.9:1000", 900),
        ("10.0.0.9:1001", 50),
        ("10.0.0.1:1000", 50),
    ];
    let cure = [
        "10.0.0.9 sends 95 %",
        "affinity = \"connection\", and let",
        "keepalive_requests",
    ];
    check(&few, Affinity::Client, &cure);
    let cure = [
        "busiest connection carries 90 %",
        "3 in all",
        "keepalive_requests",
    ];
    check(&few, Affinity::Connection, &cure);

    let many: Vec<String> = (0..40).map(|host| format!("10.0.1.{host}:1000")).collect();
    let many: Vec<(&str, u32)> = many.iter().map(|at| (at.as_str(), 100)).collect();
    check(&many, Affinity::Client, &[]);
    check(&many, Affinity::Connection, &[]);
}

proptest! {
    /// Parts are parts, and there are never more keys than there are clients.
    #[test]
    fn a_spread_is_one(bytes in prop::collection::vec((0..9u8, 1..1_000_000u32), 1..50)) {
        let parts: Vec<(String, u32)> = (1_000..)
            .zip(&bytes)
            .map(|(port, (host, bytes))| (format!("10.0.0.{host}:{port}"), *bytes))
            .collect();
        let parts: Vec<(&str, u32)> = parts.iter().map(|(at, bytes)| (at.as_str(), *bytes)).collect();
        let found = look(clients(&parts));
        prop_assert_eq!(found.connections, parts.len() as u64);
        for (part, keys, count) in [
            (found.busiest_client, found.client_keys, found.clients),
            (found.busiest_connection, found.connection_keys, found.connections),
        ] {
            prop_assert!(part > 0.0 && part <= 1.0);
            prop_assert!(part >= 1.0 / (count as f64 + 1e-9));
            prop_assert!(keys >= 1.0 - 1e-9 && keys <= count as f64 + 1e-9, "{keys} of {count}");
            // The largest part alone bounds the keys from both sides.
            prop_assert!(keys >= 1.0 / part - 1e-9 && keys <= 1.0 / (part * part) + 1e-9);
        }
    }
}
