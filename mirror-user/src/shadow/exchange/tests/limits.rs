//! What waits has limits, and so have connections.

use super::*;

#[test]
fn bodies_and_memory_have_limits() {
    let large = "x".repeat(MAX_BODY + 1);
    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client(post("/a", &large)));
    segments.push(talk.server(ok("A")));
    segments.push(talk.client(post("/b", "b")));
    segments.push(talk.server(ok(&large)));
    segments.push(talk.client(post("/c", "c")));
    segments.push(talk.server(ok("C")));
    let after = ["seen 3", "request 3 POST /c c", "response 3 200 C"];
    let large = [
        "seen 1",
        "dropped 1 too_large",
        "seen 2",
        "request 2 POST /b b",
        "dropped 2 too_large",
    ];
    check(segments, &[&large[..], &after[..]].concat());

    let mut talk = Talk::new();
    let mut table = Table::with(Limits::new(MAX_BODY), Memory::new(100));
    table.feed(talk.open());
    table.feed([
        talk.client(post("/a", &"x".repeat(99))),
        talk.server(ok("A")),
    ]);
    table.told(&["seen 1", "dropped 1 memory"]);
    table.feed([talk.client(post("/b", "b")), talk.server(ok("B"))]);
    table.told(&["seen 2", "request 2 POST /b b", "response 2 200 B"]);
    table.finish().empty();
}

#[test]
fn what_waits_has_limits() {
    let limits = Limits {
        buffer: 500,
        ..Limits::new(100_000)
    };
    let mut talk = Talk::new();
    let mut table = Table::with(limits, Memory::new(MEMORY));
    table.feed(talk.open()).feed([talk.client(post("/a", "a"))]);
    table.feed([talk.server("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")]);
    let _lost = talk.server([b'x'; 10]);
    for _ in 0..99 {
        table.feed([talk.server([b'x'; 10])]);
        assert!(table.memory.used() < 2_000);
    }
    table.feed([talk.client(post("/b", "b")), talk.server(ok("B"))]);
    table.told(&[
        "seen 1",
        "request 1 POST /a a",
        "dropped 1 response_gap",
        "seen 2",
        "request 2 POST /b b",
        "response 2 200 B",
    ]);
    table.finish().empty();

    // Out of memory for what waits: counted, and the next turn goes through.
    let mut talk = Talk::new();
    let mut table = Table::with(Limits::new(MAX_BODY), Memory::new(150));
    table.feed(talk.open());
    let _lost = talk.client("P");
    table.feed([talk.client([b'x'; 200]), talk.server(ok("A"))]);
    table.feed([talk.client(post("/b", "b")), talk.server(ok("B"))]);
    assert_eq!(
        table.told[table.told.len() - 2..],
        ["request 2 POST /b b", "response 2 200 B"]
    );
    table.finish().empty();
}

#[test]
fn connections_have_a_limit() {
    let mut table = Table::new();
    table.exchanges =
        Exchanges::new(vec![Limits::new(MAX_BODY)], table.memory.clone()).with_max_connections(1);
    let mut first = Talk::new();
    let mut second = Talk {
        port: 40_001,
        ..Talk::new()
    };
    table.feed(first.open()).feed(second.open());
    table.feed([second.client(post("/b", "b")), second.server(ok("B"))]);
    table.told(&["seen 1", "dropped 1 too_many_connections"]);
    table.feed([first.client(post("/a", "a")), first.server(ok("A"))]);
    table.told(&["seen 2", "request 2 POST /a a", "response 2 200 A"]);
    table.finish().empty();
}
