//! Which response answers which request.

use super::*;
use crate::mark::Mark;

#[test]
fn exchanges_of_one_connection() {
    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client(post("/a", "abc")));
    segments.push(talk.server(ok("A")));
    segments.push(talk.client("GET /b HTTP/1.1\r\n\r\n"));
    segments.push(talk.server(ok("B")));
    segments.push(talk.client_fin());
    segments.push(talk.server_fin());
    check(
        segments,
        &[
            "seen 1",
            "request 1 POST /a abc",
            "response 1 200 A",
            "seen 2",
            "request 2 GET /b ",
            "response 2 200 B",
            "closed 1",
        ],
    );
}

#[test]
fn times_are_the_tap_s() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open());
    let request = post("/", "abc");
    table.feed([talk.client(&request[..9]), talk.client(&request[9..])]);
    table.feed([talk.server("HTTP/1.1 100 Continue\r\n\r\n")]);
    table.feed([
        talk.server("HTTP/1.1 200 OK\r\nContent-Le"),
        talk.server("ngth: 0\r\n\r\n"),
    ]);
    let times: Vec<_> = table
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Request { request, .. } => Some((request.first_byte_ns, request.last_byte_ns)),
            Event::Response { response, .. } => {
                Some((response.first_byte_ns, response.last_byte_ns))
            }
            _ => None,
        })
        .collect();
    assert_eq!(times, [(3_000, 4_000), (6_000, 7_000)]);
    table.finish().empty();
}

#[test]
fn pipelined() {
    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client(post("/a", "a") + &post("/b", "b") + "GET /c"));
    segments.push(talk.client(" HTTP/1.1\r\n\r\n"));
    segments.push(talk.server(ok("A") + &ok("B")));
    segments.push(talk.server(ok("C")));
    check(
        segments,
        &[
            "seen 1",
            "request 1 POST /a a",
            "seen 2",
            "request 2 POST /b b",
            "seen 3",
            "request 3 GET /c ",
            "response 1 200 A",
            "response 2 200 B",
            "response 3 200 C",
        ],
    );
}

#[test]
fn head_has_no_body() {
    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client("HEAD /h HTTP/1.1\r\n\r\n"));
    segments.push(talk.server("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"));
    segments.push(talk.client("GET /g HTTP/1.1\r\n\r\n"));
    segments.push(talk.server(ok("G")));
    check(
        segments,
        &[
            "seen 1",
            "request 1 HEAD /h ",
            "response 1 200 ",
            "seen 2",
            "request 2 GET /g ",
            "response 2 200 G",
        ],
    );
}

#[test]
fn an_answer_to_nothing_is_no_answer() {
    // The server times the idle connection out while a request is on its way.
    let mut talk = Talk::new();
    let mut segments = talk.open();
    let timeout = talk.server("HTTP/1.1 408 Timeout\r\nContent-Length: 0\r\n\r\n");
    let fin = talk.server_fin();
    talk.server = timeout.sequence;
    segments.extend([talk.client(post("/", "a")), timeout, fin]);
    let mut table = Table::new();
    table.feed(segments);
    table.told(&[
        "seen 1",
        "request 1 POST / a",
        "dropped 1 response_incomplete",
    ]);
    table.wait(40_000).told(&["closed 1"]).empty();
}

#[test]
fn an_early_answer_waits_for_its_request() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    let request = post("/", "abc");
    table.feed(talk.open()).feed([talk.client(&request[..40])]);
    table.feed([talk.server("HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")]);
    table.told(&["seen 1"]);
    let mut closed = talk.clone();
    table.feed([talk.client(&request[40..])]);
    table.told(&["request 1 POST / abc", "response 1 413 "]);
    table.finish().empty();

    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open()).feed([talk.client(&request[..40])]);
    table.feed([talk.server("HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")]);
    table
        .feed([closed.server_fin(), closed.client_rst()])
        .wait(200);
    table
        .told(&["seen 1", "dropped 1 request_incomplete"])
        .empty();
}

#[test]
fn expectations() {
    let head = "POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client(head));
    segments.push(talk.server("HTTP/1.1 100 Continue\r\n\r\n"));
    segments.push(talk.client("abc"));
    segments.push(talk.server(ok("A")));
    check(
        segments,
        &["seen 1", "request 1 POST / abc", "response 1 200 A"],
    );
    // Refused: the client does not send the body, but another request.
    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client(head));
    segments.push(talk.server("HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n"));
    segments.push(talk.client(post("/", "abc")));
    segments.push(talk.server(ok("A")));
    check(
        segments,
        &[
            "seen 1",
            "dropped 1 request_incomplete",
            "seen 2",
            "request 2 POST / abc",
            "response 2 200 A",
        ],
    );
}

#[test]
fn an_agent_s_own_requests_are_not_replayed() {
    let mark = Mark::new();
    let mut talk = Talk::new();
    let mut segments = talk.open();
    let own = mark.of(uuid::Uuid::now_v7());
    segments.push(talk.client(format!(
        "GET / HTTP/1.1\r\nX-ModelMirror-Shadow: 1\r\nX-ModelMirror-Mark: {own}\r\n\r\n"
    )));
    segments.push(talk.server(ok("A")));
    segments.push(talk.client(post("/b", "b")));
    segments.push(talk.server(ok("B")));
    let limits = Limits::new(MAX_BODY).with_mark(mark);
    let mut table = Table::with(limits, Memory::new(MEMORY));
    table.feed(segments).told(&[
        "seen 1",
        "dropped 1 loop",
        "seen 2",
        "request 2 POST /b b",
        "response 2 200 B",
    ]);
    table.finish().empty();
}

#[test]
fn the_arm_is_told() {
    let mut talk = Talk {
        arm: Arm::Canary,
        ..Talk::new()
    };
    let mut table = Table::new();
    table.feed(talk.open());
    table.feed([
        talk.client("GET / HTTP/1.1\r\nHost: m\r\n\r\n"),
        talk.server(ok("A")),
    ]);
    let [
        _,
        Event::Request {
            arm,
            client,
            tap,
            request,
            ..
        },
        Event::Response { .. },
    ] = &table.events[..]
    else {
        panic!("{:?}", table.told)
    };
    assert_eq!((*arm, client.port()), (Arm::Canary, 40_000));
    assert_eq!(*tap, TapId(9));
    assert_eq!(header(&request.headers, "host"), Some(&b"m"[..]));
}
