//! What is not HTTP/1, or does not stay it.

use super::*;

#[test]
fn upgrades_are_left_alone() {
    let upgrade = "GET /ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client(upgrade));
    let frame = |talk: &mut Talk| talk.client([0x81, 1, b'x']);
    let switch = talk.server("HTTP/1.1 101 Switching\r\n\r\n");
    // The client's first frame overtakes the answer.
    segments.push(frame(&mut talk));
    segments.push(switch);
    segments.push(frame(&mut talk));
    segments.push(talk.server([0x81, 1, b'y']));
    check(segments, &["seen 1", "dropped 1 upgrade"]);

    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client(upgrade));
    segments.push(talk.server(ok("no")));
    segments.push(talk.client(post("/b", "b")));
    segments.push(talk.server(ok("B")));
    check(
        segments,
        &[
            "seen 1",
            "request 1 GET /ws ",
            "response 1 200 no",
            "seen 2",
            "request 2 POST /b b",
            "response 2 200 B",
        ],
    );

    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client("CONNECT a:1 HTTP/1.1\r\n\r\n"));
    segments.push(talk.server("HTTP/1.1 200 OK\r\n\r\n"));
    segments.push(talk.client("anything"));
    check(segments, &["seen 1", "dropped 1 upgrade"]);
}

#[test]
fn other_protocols_are_left_alone() {
    for (first, reason) in [
        (&[0x16, 3, 1, 0, 5, 1, 2, 3][..], "dropped 1 tls"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "dropped 1 http2"),
    ] {
        let mut talk = Talk::new();
        let mut segments = talk.open();
        segments.push(talk.client(first));
        segments.push(talk.server("anything"));
        segments.push(talk.client(post("/", "a")));
        segments.push(talk.client_fin());
        segments.push(talk.server_fin());
        check(segments, &["seen 1", reason]);
    }
}

#[test]
fn malformed_messages() {
    let mut talk = Talk::new();
    let mut segments = talk.open();
    segments.push(talk.client("POST / HTTP/1.1\r\nContent-Length: x\r\n\r\nabc"));
    segments.push(talk.server("HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n"));
    segments.push(talk.client(post("/b", "b")));
    segments.push(talk.server("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"));
    segments.push(talk.client(post("/c", "c")));
    segments.push(talk.server(ok("C")));
    check(
        segments,
        &[
            "seen 1",
            "dropped 1 malformed",
            "seen 2",
            "request 2 POST /b b",
            "dropped 2 malformed",
            "seen 3",
            "request 3 POST /c c",
            "response 3 200 C",
        ],
    );
}

#[test]
fn an_empty_line_behind_an_answer_is_nothing() {
    for blank in ["\r\n", "\n\r\n"] {
        for apart in [false, true] {
            let mut talk = Talk::new();
            let mut segments = talk.open();
            for path in ["/a", "/b"] {
                segments.push(talk.client(post(path, "x")));
                if apart {
                    segments.extend([talk.server(ok("A")), talk.server(blank)]);
                } else {
                    segments.push(talk.server(ok("A") + blank));
                }
            }
            segments.extend([talk.client_fin(), talk.server_fin()]);
            check(
                segments,
                &[
                    "seen 1",
                    "request 1 POST /a x",
                    "response 1 200 A",
                    "seen 2",
                    "request 2 POST /b x",
                    "response 2 200 A",
                    "closed 1",
                ],
            );
        }
    }
}

#[test]
fn a_proxy_names_the_client() {
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x0a\0\0\x01\x9c\x40\0\x50";
    for header in [&b"PROXY TCP4 192.0.2.7 10.0.0.1 40000 80\r\n"[..], v2] {
        for cut in [0, 1, 13, 27] {
            let mut talk = Talk::new();
            let mut table = Table::new();
            table.feed(talk.open());
            if cut > 0 {
                table.feed([talk.client(&header[..cut])]).told(&[]);
            }
            let first = [&header[cut..], post("/a", "a").as_bytes()].concat();
            table.feed([talk.client(first), talk.server(ok("A"))]);
            table.feed([talk.client(post("/b", "b")), talk.server(ok("B"))]);
            table.told(&[
                "seen 1",
                "request 1 POST /a a",
                "response 1 200 A",
                "seen 2",
                "request 2 POST /b b",
                "response 2 200 B",
            ]);
            for event in &table.events {
                if let Event::Request { client, .. } = event {
                    assert_eq!(client.to_string(), "192.0.2.7:40000");
                }
            }
            table.finish().empty();
        }
    }
}

#[test]
fn what_is_malformed_says_why() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open());
    table.feed([talk.client("GET / HTTP/1.1\r\nno colon\r\n\r\n")]);
    table.told(&["seen 1", "dropped 1 malformed"]);
    let Some(Event::Dropped { unreadable, .. }) = table.events.last() else {
        panic!("{:?}", table.told)
    };
    let unreadable = unreadable.expect("it says why");
    assert_eq!(
        (unreadable.side, unreadable.why, unreadable.client.port()),
        (Some(Direction::Request), "header name", 40_000)
    );
}

#[test]
fn a_head_that_is_too_long_is_no_body() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open());
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n", "x".repeat(70_000));
    table.feed([talk.client(long)]);
    table.told(&["seen 1", "dropped 1 head_too_large"]);
}
