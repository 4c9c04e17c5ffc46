//! How connections begin, and how they end.

use super::*;

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
    table.told(&["dropped 1 response_incomplete", "closed 1"]);
    table.finish().empty();
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

/// After a restart of the agent: what comes first on a connection that was open before is known at once, and once.
#[test]
fn the_first_request_of_a_connection_from_before_is_seen_at_once() {
    for streams in [true, false] {
        let mut talk = Talk::new();
        talk.open();
        let mut table = Table::new();
        if streams {
            table.exchanges.streams(TapId(9), true, Duration::ZERO);
        }
        table.feed([talk.client("POST /a HTTP/1.1\r\nContent-Length: 2\r\n\r\n")]);
        table.wait(150).told(&["seen 1", "dropped 1 mid_stream"]);
        table
            .feed([talk.client("aa"), talk.server(ok("A"))])
            .told(&[]);
        table.feed([talk.client(post("/b", "b")), talk.server(ok("B"))]);
        table.told(&["seen 2", "request 2 POST /b b", "response 2 200 B"]);
        table.finish();
    }
}
