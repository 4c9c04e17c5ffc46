//! What becomes of streams.

use super::talk::*;
use super::*;
use crate::mark::{MARK_HEADER, Mark};

#[test]
fn streams_that_end_early() {
    let reset = |stream| frame(RESET, 0, stream, &[0, 0, 0, 8]);
    let mut talk = Talk::new();
    check(
        [
            (CLIENT, talk.ask(1, true, "/a")),
            (CLIENT, talk.ask(3, false, "/b")),
            (CLIENT, talk.ask(5, true, "/c")),
            (CLIENT, reset(3)),
            (SERVER, talk.answer(1, false)),
            (CLIENT, reset(1)),
            (SERVER, reset(5)),
            // Already on its way.
            (SERVER, data(1, true, "late")),
            (CLIENT, talk.ask(7, true, "/d")),
            (SERVER, talk.answer(7, true)),
        ],
        &[
            "POST /a  ! response_incomplete request",
            "! request_incomplete request",
            "POST /c  ! response_incomplete response",
            "POST /d  = 200",
        ],
    );
}

#[test]
fn an_answer_that_passed_before_it_was_cancelled_counts() {
    let mut talk = Talk::new();
    let mut table = begun();
    table.feed(CLIENT, &talk.ask(1, true, "/a"));
    let before = table.now;
    table.now += Duration::from_millis(1);
    table.feed(CLIENT, &frame(RESET, 0, 1, &[0, 0, 0, 8]));
    table.now = before;
    table.feed(SERVER, &talk.answer(1, true));
    assert_eq!(told(&table.finish()), ["POST /a  = 200"]);
}

#[test]
fn a_server_that_goes_away() {
    let mut talk = Talk::new();
    let goaway = |last: u8| frame(GOAWAY, 0, 0, &[0, 0, 0, last, 0, 0, 0, 0]);
    check(
        [
            (CLIENT, talk.ask(1, true, "/a")),
            (CLIENT, talk.ask(3, true, "/b")),
            (
                SERVER,
                frame(GOAWAY, 0, 0, &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]),
            ),
            (SERVER, goaway(1)),
            (SERVER, talk.answer(1, true)),
        ],
        &["POST /a  = 200", "POST /b  ! response_incomplete response"],
    );
}

#[test]
fn what_is_passed_over() {
    let mut talk = Talk::new();
    let connect = [(":method", "CONNECT"), (":authority", "a:1")];
    let extended = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":path", "/chat"),
        (":authority", "a"),
    ];
    check(
        [
            (CLIENT, talk.headers(CLIENT, 1, false, &connect)),
            (CLIENT, talk.headers(CLIENT, 3, false, &extended)),
            (SERVER, talk.answer(1, false)),
            (CLIENT, data(1, false, "tunnelled")),
            (SERVER, talk.answer(3, false)),
            (SERVER, data(3, false, "anything")),
            (CLIENT, talk.ask(5, true, "/a")),
            (SERVER, talk.promise(5, "/p")),
            (
                SERVER,
                talk.headers(SERVER, 5, true, &[(":status", "200"), ("x-new", "1")]),
            ),
            (SERVER, talk.answer(2, false)),
            (SERVER, data(2, true, "pushed")),
        ],
        &["! upgrade", "! upgrade", "POST /a  = 200", "! http2"],
    );
}

#[test]
fn answers_that_come_early() {
    let mut talk = Talk::new();
    check(
        [
            (CLIENT, talk.ask(1, false, "/a")),
            (SERVER, talk.answer(1, false)),
            (SERVER, data(1, true, "early")),
            (CLIENT, data(1, true, "late")),
            (CLIENT, talk.ask(3, false, "/b")),
            (SERVER, talk.answer(3, true)),
            (SERVER, frame(RESET, 0, 3, &[0; 4])),
        ],
        &["POST /a late = 200 early", "! request_incomplete response"],
    );
}

#[test]
fn messages_that_contradict_themselves() {
    let mut talk = Talk::new();
    let long = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/a"),
        ("content-length", "5"),
    ];
    let head = [(":method", "HEAD"), (":scheme", "http"), (":path", "/b")];
    let upper = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/c"),
        ("X", "1"),
    ];
    check(
        [
            (CLIENT, talk.headers(CLIENT, 1, false, &long)),
            (CLIENT, data(1, true, "four")),
            (CLIENT, talk.headers(CLIENT, 3, true, &head)),
            (
                SERVER,
                talk.headers(
                    SERVER,
                    3,
                    true,
                    &[(":status", "200"), ("content-length", "9")],
                ),
            ),
            (CLIENT, talk.headers(CLIENT, 5, true, &upper)),
            (CLIENT, talk.ask(7, true, "/d")),
            (SERVER, talk.headers(SERVER, 7, true, &[(":status", "103")])),
            (CLIENT, talk.ask(9, true, "/e")),
            (SERVER, talk.answer(9, false)),
            (SERVER, talk.answer(9, true)),
            (CLIENT, talk.ask(11, true, "/f")),
            (
                SERVER,
                talk.headers(
                    SERVER,
                    11,
                    false,
                    &[(":status", "200"), ("content-length", "9")],
                ),
            ),
            (SERVER, data(11, true, "x")),
        ],
        &[
            "! malformed request",
            "HEAD /b  = 200",
            "! malformed request",
            "POST /d  ! malformed response",
            "POST /e  ! malformed response",
            "POST /f  ! malformed response",
        ],
    );
}

#[test]
fn limits() {
    let mut talk = Talk::new();
    let memory = Memory::new(1 << 20);
    let mark = Mark::new();
    let limits = Limits::new(10).with_mark(mark);
    let mut table = Table {
        connection: Connection::begun(limits, &memory),
        ledger: Ledger::default(),
        memory: memory.clone(),
        now: Duration::ZERO,
    };
    table.feed(CLIENT, PREFACE);
    table.feed(
        CLIENT,
        &[
            talk.ask(1, false, "/a"),
            data(1, false, "123456"),
            data(1, true, "78901"),
        ]
        .concat(),
    );
    table.feed(CLIENT, &talk.ask(3, true, "/b"));
    table.feed(
        SERVER,
        &[talk.answer(3, false), data(3, true, "12345678901")].concat(),
    );
    let own = mark.of(uuid::Uuid::now_v7());
    let marked = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/c"),
        (MARK_HEADER, &own),
    ];
    table.feed(CLIENT, &talk.headers(CLIENT, 5, true, &marked));
    let head = |path: &'static str| [(":method", "GET"), (":scheme", "http"), (":path", path)];
    let large = "x".repeat(70_000);
    let fields = [&head("/d")[..], &[("x", &large)]].concat();
    let block = talk.block(CLIENT, &fields);
    let parts: Vec<_> = block.chunks(16_000).collect();
    for (number, part) in parts.iter().enumerate() {
        let kind = if number == 0 { HEADERS } else { CONTINUATION };
        let flags = if number + 1 == parts.len() {
            END_HEADERS
        } else {
            0
        };
        table.feed(CLIENT, &frame(kind, flags | END_STREAM, 7, part));
    }
    let expected = [
        "! too_large",
        "POST /b  ! too_large",
        "! loop",
        "! head_too_large request",
    ];
    assert_eq!(told(&table.finish()), expected);
}

#[test]
fn an_upgrade_goes_on_with_its_request() {
    let mut ledger = Ledger::default();
    let id = ledger.seen();
    ledger.request(id, crate::fixtures::request("GET", "/up"));
    let memory = Memory::new(1 << 20);
    // The client lets the server's frames be larger.
    let settings = [0, 5, 0, 1, 0, 0];
    let connection = Connection::upgraded(
        Limits::new(1 << 20),
        &memory,
        id,
        "GET",
        &settings,
        Duration::ZERO,
    );
    let mut table = Table {
        connection: connection.unwrap(),
        ledger,
        memory,
        now: Duration::ZERO,
    };
    let mut talk = Talk::new();
    table.feed(SERVER, &frame(SETTINGS, 0, 0, &[]));
    table
        .feed(CLIENT, PREFACE)
        .feed(CLIENT, &frame(SETTINGS, 0, 0, &[]));
    table.feed(SERVER, &talk.answer(1, false));
    table.feed(SERVER, &frame(DATA, END_STREAM, 1, &[b'x'; 20_000]));
    table
        .feed(CLIENT, &talk.ask(3, true, "/next"))
        .feed(SERVER, &talk.answer(3, true));
    table.connection.close(None, None, &mut table.ledger);
    let whole: Vec<_> = table
        .ledger
        .whole()
        .map(|(request, answer)| (request.target.as_str(), answer.body.len()))
        .collect();
    assert_eq!(whole, [("/up", 20_000), ("/next", 0)]);
}

#[test]
fn what_is_not_heard_of_is_given_up() {
    let mut talk = Talk::new();
    let mut table = begun();
    table
        .feed(CLIENT, &talk.ask(1, true, "/a"))
        .feed(CLIENT, &talk.ask(3, false, "/b"));
    let due = table.connection.deadline().unwrap();
    table
        .connection
        .expire(due - Duration::from_micros(2), &mut table.ledger);
    assert_eq!(table.connection.open(), 2);
    table.feed(CLIENT, &data(3, false, "still here"));
    table.connection.expire(due, &mut table.ledger);
    assert_eq!(table.connection.open(), 1);
    table.now = due;
    // What comes too late is passed over.
    table
        .feed(SERVER, &talk.answer(1, true))
        .feed(CLIENT, &data(3, true, "."))
        .feed(SERVER, &talk.answer(3, true));
    let expected = [
        "POST /a  ! response_incomplete",
        "POST /b still here. = 200",
    ];
    assert_eq!(told(&table.finish()), expected);
}

#[test]
fn a_late_reader_passes_over_what_began_before() {
    let mut talk = Talk::new();
    for stream in [1, 3] {
        talk.ask(stream, false, "/before");
        talk.answer(stream, false);
    }
    let mut table = Table::new(Connection::joined);
    let ping = frame(PING, 0, 0, b"12345678");
    for _ in 0..3 {
        table.feed(CLIENT, &ping).feed(SERVER, &ping);
    }
    // The rest of both, one that refers to fields of before, and one that does not.
    table
        .feed(CLIENT, &data(1, true, "rest"))
        .feed(SERVER, &data(3, false, "rest"));
    table.feed(
        SERVER,
        &talk.headers(SERVER, 3, true, &[("grpc-status", "0")]),
    );
    table.feed(SERVER, &data(1, true, "rest"));
    table
        .feed(CLIENT, &talk.ask(5, true, "/b"))
        .feed(SERVER, &talk.answer(5, true));
    let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/c")];
    table.feed(CLIENT, &talk.headers(CLIENT, 7, true, &fields));
    table.feed(
        SERVER,
        &talk.headers(SERVER, 7, true, &[(":status", "204")]),
    );
    assert_eq!(table.connection.is_late(), Some(false));
    let expected = [
        "! mid_stream",
        "! mid_stream",
        "! joined_late",
        "GET /c  = 204",
    ];
    assert_eq!(told(&table.finish()), expected);
}
