//! Frames of every kind, as nobody real sends them together.

use super::super::half::Place;
use super::talk::*;
use super::*;

/// One connection with a frame of every kind: what the client sends, and what the server does.
fn every_kind() -> (Vec<u8>, Vec<u8>) {
    let mut talk = Talk::new();
    let mut client = PREFACE.to_vec();
    client.extend(frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9, 0, 5, 0, 1, 0, 0]));
    client.extend(frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 9]));
    client.extend(frame(0x42, 0xff, 7, b"of an extension"));
    client.extend(frame(2, 0, 3, &[0, 0, 0, 1, 5]));
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/first"),
        ("x-long", "a value that is cut into several parts"),
    ];
    let block = talk.block(CLIENT, &fields);
    let (first, rest) = block.split_at(block.len() / 3);
    let (second, third) = rest.split_at(rest.len() / 2);
    let first = [&[4, 0, 0, 0, 0, 9], first, &[0; 4]].concat();
    client.extend(frame(HEADERS, PADDED | PRIORITY, 1, &first));
    client.extend(frame(CONTINUATION, 0, 1, second));
    client.extend(frame(CONTINUATION, 0, 1, &[]));
    client.extend(frame(CONTINUATION, END_HEADERS, 1, third));
    client.extend(talk.ask(3, false, "/second"));
    client.extend(frame(DATA, PADDED, 1, b"\x05ab\0\0\0\0\0"));
    client.extend(data(3, false, "xy"));
    client.extend(frame(DATA, 0, 1, b""));
    client.extend(frame(PING, 0, 0, b"a ping !"));
    client.extend(data(1, false, "c"));
    client.extend(talk.headers(CLIENT, 1, true, &[("x-end", "1"), ("x-long", "b")]));
    client.extend(frame(DATA, PADDED | END_STREAM, 3, b"\0z"));
    client.extend(talk.ask(5, true, "/third"));
    client.extend(frame(SETTINGS, ACK, 0, &[]));

    let mut server = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 9]);
    server.extend(frame(SETTINGS, ACK, 0, &[]));
    server.extend(talk.headers(SERVER, 1, false, &[(":status", "103"), ("link", "a")]));
    server.extend(talk.answer(3, false));
    server.extend(talk.answer(1, false));
    server.extend(frame(DATA, PADDED, 1, b"\x01one\0"));
    server.extend(frame(PING, ACK, 0, b"a ping !"));
    server.extend(talk.promise(1, "/pushed"));
    server.extend(data(3, true, "two"));
    server.extend(talk.answer(2, false));
    server.extend(data(2, true, "pushed"));
    server.extend(talk.headers(SERVER, 1, true, &[("grpc-status", "0")]));
    server.extend(talk.headers(SERVER, 5, true, &[(":status", "404"), ("x-new", "1")]));
    server.extend(frame(GOAWAY, 0, 0, &[0, 0, 0, 5, 0, 0, 0, 0, b'o', b'k']));
    (client, server)
}

const EVERY_KIND: [&str; 3] = [
    "POST /first abc +2 = 200 one +1",
    "POST /second xyz = 200 two",
    "POST /third  = 404",
];

#[test]
fn however_frames_are_split() {
    let (client, server) = every_kind();
    let cuts = client.len().max(server.len());
    for cut in 0..cuts {
        let mut table = Table::new(Connection::begun);
        for half in 0..2 {
            for (direction, bytes) in [(CLIENT, &client), (SERVER, &server)] {
                let (before, behind) = bytes.split_at(cut.min(bytes.len()));
                table.feed(direction, [before, behind][half]);
            }
        }
        let mut told = told(&table.finish());
        told.retain(|line| line != "! http2");
        assert_eq!(told, EVERY_KIND, "cut at {cut}");
    }
}

#[test]
fn whatever_is_lost_nothing_else_is_told() {
    let (client, server) = every_kind();
    let mut most = 0;
    for (direction, bytes) in [(CLIENT, &client), (SERVER, &server)] {
        for length in [1, 3, 20, 100] {
            for at in 0..bytes.len() - length {
                let mut table = Table::new(Connection::begun);
                if direction == SERVER {
                    table.feed(CLIENT, &client);
                }
                table.feed(direction, &bytes[..at]);
                table.skip(direction, length);
                table.feed(direction, &bytes[at + length..]);
                if direction == CLIENT {
                    table.feed(SERVER, &server);
                }
                let told = told(&table.finish());
                for line in &told {
                    let is_true = EVERY_KIND.contains(&line.as_str());
                    let request = line.split(" ! ").next().unwrap();
                    let is_part = EVERY_KIND.iter().any(|whole| whole.starts_with(request));
                    assert!(
                        is_true || (line.contains("! ") && (line.starts_with('!') || is_part)),
                        "{line}"
                    );
                }
                let whole = told
                    .iter()
                    .filter(|line| EVERY_KIND.contains(&line.as_str()));
                most = most.max(whole.count());
            }
        }
    }
    assert_eq!(most, 3, "no loss was harmless");
}

#[test]
fn only_the_touched_stream_pays() {
    let mut talk = Talk::new();
    let mut table = begun();
    table.feed(CLIENT, &talk.ask(1, false, "/a"));
    table.feed(CLIENT, &talk.ask(3, false, "/b"));
    let body = data(1, true, "a body of which some is missing");
    table
        .feed(CLIENT, &body[..12])
        .skip(CLIENT, 10)
        .feed(CLIENT, &body[22..]);
    table.feed(CLIENT, &data(3, true, "b"));
    for stream in [3, 1] {
        table.feed(
            SERVER,
            &[talk.answer(stream, false), data(stream, true, "ok")].concat(),
        );
    }
    // All of a frame's rest.
    table.feed(CLIENT, &talk.ask(5, true, "/c"));
    let body = data(5, true, "gone");
    table
        .feed(SERVER, &talk.answer(5, false))
        .feed(SERVER, &body[..9])
        .skip(SERVER, 4);
    // Of a ping nothing matters.
    table.feed(SERVER, &frame(PING, 0, 0, b"")[..0]);
    let ping = frame(PING, 0, 0, b"12345678");
    table.feed(CLIENT, &ping[..11]).skip(CLIENT, 6);
    table
        .feed(CLIENT, &talk.ask(7, true, "/d"))
        .feed(SERVER, &talk.answer(7, true));
    let expected = [
        "! request_gap",
        "POST /b b = 200 ok",
        "POST /c  ! response_gap",
        "POST /d  = 200",
    ];
    assert_eq!(told(&table.finish()), expected);
}

#[test]
fn a_lost_block_costs_what_refers_to_it() {
    let mut talk = Talk::new();
    let mut table = begun();
    let first = talk.ask(1, true, "/a");
    table
        .feed(CLIENT, &first[..12])
        .skip(CLIENT, first.len() - 12);
    // Its content-type is not known any more, the path is; a name that is said anew makes all of it known.
    table.feed(CLIENT, &talk.ask(3, true, "/b"));
    let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/c")];
    table.feed(CLIENT, &talk.headers(CLIENT, 5, true, &fields));
    for stream in [1, 3, 5] {
        table.feed(SERVER, &talk.answer(stream, true));
    }
    let expected = ["! request_gap", "! request_gap", "GET /c  = 200"];
    assert_eq!(told(&table.finish()), expected);
}

#[test]
fn what_cannot_be_framed_is_malformed() {
    let get = Talk::new().ask(1, true, "/a");
    for (why, bytes) in [
        (
            "the client's preface",
            b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec(),
        ),
        ("DATA on no stream", frame(DATA, 0, 0, b"a")),
        ("SETTINGS on a stream", frame(SETTINGS, 0, 1, &[])),
        ("SETTINGS of 5 bytes", frame(SETTINGS, 0, 0, &[0; 5])),
        (
            "SETTINGS ACK that says something",
            frame(SETTINGS, ACK, 0, &[0; 6]),
        ),
        ("PING of 7 bytes", frame(PING, 0, 0, &[0; 7])),
        ("RST_STREAM of 3 bytes", frame(RESET, 0, 1, &[0; 3])),
        (
            "WINDOW_UPDATE of 5 bytes",
            frame(WINDOW_UPDATE, 0, 1, &[0; 5]),
        ),
        ("GOAWAY of 7 bytes", frame(GOAWAY, 0, 0, &[0; 7])),
        ("a frame that is too large", frame(DATA, 0, 1, &[0; 16_385])),
        ("padding without room", frame(DATA, PADDED, 1, &[2, 0])),
        ("no padding at all", frame(DATA, PADDED, 1, &[])),
        (
            "CONTINUATION alone",
            frame(CONTINUATION, END_HEADERS, 1, &[]),
        ),
        (
            "DATA inside a block",
            [frame(HEADERS, 0, 3, &[0x82]), data(1, true, "a")].concat(),
        ),
        (
            "a block of another stream",
            [
                frame(HEADERS, 0, 3, &[0x82]),
                frame(CONTINUATION, 4, 5, &[]),
            ]
            .concat(),
        ),
        (
            "a client's promise",
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]),
        ),
        (
            "an index behind the table",
            frame(HEADERS, END_HEADERS, 3, &[0xff, 0x7f]),
        ),
        ("DATA before its head", data(3, true, "a")),
    ] {
        let is_preface = why.contains("preface");
        let mut table = match is_preface {
            true => Table::new(Connection::begun),
            false => begun(),
        };
        if !is_preface {
            // One that is open, and is cut off.
            let mut talk = Talk::new();
            table.feed(CLIENT, &talk.ask(1, false, "/a"));
        }
        table.feed(CLIENT, &bytes);
        table.feed(CLIENT, &get);
        assert!(
            matches!(table.connection.requests.place, Place::Unknown(_)),
            "{why}"
        );
        let ledger = table.finish();
        let expected: &[&str] = if is_preface {
            &[]
        } else {
            &["! malformed request"]
        };
        assert_eq!(told(&ledger)[..expected.len()], *expected, "{why}");
    }
}

#[test]
fn settings_that_change_in_mid_connection() {
    let mut talk = Talk::new();
    let mut table = begun();
    table
        .feed(CLIENT, &talk.ask(1, true, "/a"))
        .feed(SERVER, &talk.answer(1, true));
    // The server lets the client's table be larger, and its frames.
    let settings = [0, 1, 0, 0, 0x20, 0, 0, 5, 0, 1, 0, 0];
    table.feed(SERVER, &frame(SETTINGS, 0, 0, &settings));
    table.feed(CLIENT, &frame(SETTINGS, ACK, 0, &[]));
    let mut block = Vec::new();
    talk.client.resize(0x2000, &mut block);
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/b"),
        ("x", &"y".repeat(5_000)),
    ];
    block.extend(talk.block(CLIENT, &fields));
    table.feed(CLIENT, &frame(HEADERS, END_HEADERS, 3, &block));
    table.feed(CLIENT, &frame(DATA, END_STREAM, 3, &[b'z'; 50_000]));
    table.feed(SERVER, &talk.answer(3, true));
    table
        .feed(CLIENT, &talk.headers(CLIENT, 5, true, &fields))
        .feed(SERVER, &talk.answer(5, true));
    // A table larger than the server lets it be.
    let mut block = Vec::new();
    talk.client.resize(0x2001, &mut block);
    block.extend(talk.block(CLIENT, &fields));
    table.feed(CLIENT, &talk.ask(7, false, "/d"));
    table.feed(CLIENT, &frame(HEADERS, END_HEADERS | END_STREAM, 9, &block));
    let ledger = table.finish();
    let whole: Vec<_> = ledger
        .whole()
        .map(|(request, _)| (request.target.as_str(), request.body.len()))
        .collect();
    assert_eq!(whole, [("/a", 0), ("/b", 50_000), ("/b", 0)]);
    assert_eq!(ledger.reasons(), [(DropReason::Malformed, 1)].into());
}

#[test]
fn without_memory_nothing_is_kept() {
    let (client, server) = every_kind();
    let mut whole = 0;
    for limit in (0..6_000).step_by(100) {
        let memory = Memory::new(limit);
        let mut table = Table {
            connection: Connection::begun(Limits::new(1_000), &memory),
            ledger: Ledger::default(),
            memory: memory.clone(),
            now: Duration::ZERO,
        };
        for _ in 0..20 {
            table.feed(CLIENT, &client).feed(SERVER, &server);
            assert!(memory.used() <= limit);
        }
        let ledger = table.finish();
        assert!(!ledger.reasons().contains_key(&DropReason::JoinedLate));
        whole = ledger.whole().count();
    }
    assert!(whole >= 3);
    let mut table = Table::new(|limits, _| Connection::begun(limits, &Memory::new(0)));
    table.feed(CLIENT, &client).feed(SERVER, &server);
    table.connection.close(None, None, &mut table.ledger);
    assert!(table.ledger.reasons().contains_key(&DropReason::Memory));
}
