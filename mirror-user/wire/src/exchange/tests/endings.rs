//! How exchanges end that are not whole: whose doing it was, and what came of the response.

use super::*;
use crate::message::Ending;

const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n";

/// Opens a connection on which a request was sent, goes on with `rest`, and waits for `seconds`.
fn ending(rest: impl FnOnce(&mut Talk) -> Vec<Segment>, seconds: u64) -> Option<Ending> {
    let mut talk = Talk::new();
    let mut table = Table::new();
    let mut segments = talk.open();
    segments.push(talk.client(post("/a", "abc")));
    segments.extend(rest(&mut talk));
    table.feed(segments).wait(1_000 * seconds);
    let endings = table.events.iter().filter_map(|event| match event {
        Event::Dropped { ending, .. } => Some(*ending),
        _ => None,
    });
    let endings: Vec<_> = endings.collect();
    assert!(endings.len() < 2, "{:?}", table.told);
    endings.first().copied()
}

#[track_caller]
fn check(
    rest: impl FnOnce(&mut Talk) -> Vec<Segment>,
    by: Option<Direction>,
    response: Option<(Option<u16>, u64)>,
) {
    let ending = ending(rest, 40).expect("it is dropped");
    let came = ending.response.map(|came| (came.status, came.body_bytes));
    assert_eq!((ending.by, came), (by, response), "{ending:?}");
    assert!(ending.response.is_none_or(|came| !came.is_whole));
}

#[test]
fn who_ends_a_connection_first_has_ended_its_exchange() {
    let (client, server) = (Some(Direction::Request), Some(Direction::Response));
    check(|_| vec![], None, None);
    check(
        |talk| vec![talk.server_fin(), talk.client_fin()],
        server,
        None,
    );
    check(|talk| vec![talk.server_rst()], server, None);
    check(|talk| vec![talk.client_rst()], client, None);
    check(
        |talk| vec![talk.client_fin(), talk.server_fin()],
        client,
        None,
    );
    check(
        |talk| vec![talk.client_fin(), talk.server_rst()],
        client,
        None,
    );
    let begun = Some((Some(200), 3));
    let begin = |talk: &mut Talk| talk.server(format!("{HEAD}abc"));
    check(|talk| vec![begin(talk)], None, begun);
    check(|talk| vec![begin(talk), talk.server_fin()], server, begun);
    check(|talk| vec![begin(talk), talk.client_rst()], client, begun);
    check(|talk| vec![talk.server(HEAD)], None, Some((Some(200), 0)));
    let half = |talk: &mut Talk| talk.server("HTTP/1.1 20");
    check(
        |talk| vec![half(talk), talk.server_fin()],
        server,
        Some((None, 0)),
    );
    // What announces a response is none.
    let interim = |talk: &mut Talk| talk.server("HTTP/1.1 102 Processing\r\n\r\n");
    check(|talk| vec![interim(talk), talk.server_fin()], server, None);
}

#[test]
fn a_client_that_dials_anew_has_left() {
    let again = |talk: &mut Talk| {
        talk.client = talk.client.wrapping_add(100_000);
        talk.server = talk.server.wrapping_add(200_000);
        let mut segments = talk.open();
        let request = post("/b", "b");
        segments.extend([talk.client(request), talk.server(ok("B"))]);
        segments
    };
    check(again, Some(Direction::Request), None);
}

#[test]
fn bytes_that_cannot_be_read_are_their_sender_s() {
    let no_http = |talk: &mut Talk| vec![talk.server("SSH-2.0-x\r\n"), talk.client_fin()];
    check(no_http, Some(Direction::Response), Some((None, 0)));
    let no_request = |talk: &mut Talk| {
        vec![
            talk.server(ok("A")),
            talk.client("GET / HTTP/1.1\r\nno colon\r\n\r\n"),
            talk.server_fin(),
        ]
    };
    check(no_request, Some(Direction::Request), None);
}

/// Its client has an answer, whatever became of the request.
#[test]
fn a_whole_response_to_half_a_request_is_told() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open());
    let request = "POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc";
    table.feed([
        talk.client(request),
        talk.server("HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno"),
    ]);
    table
        .feed([talk.server_fin(), talk.client_fin()])
        .wait(1_000);
    let ending = table.events.iter().find_map(|event| match event {
        Event::Dropped { ending, .. } => ending.response,
        _ => None,
    });
    let response = ending.expect("it is dropped, with its response");
    assert_eq!((response.status, response.is_whole), (Some(413), true));
    assert_eq!(response.body_bytes, 2);
}

#[test]
fn the_body_s_first_byte_has_a_time_and_its_length_is_known() {
    let check = |pieces: &[&str], expected: Option<usize>, length: u64| {
        let mut talk = Talk::new();
        let mut table = Table::new();
        table.feed(talk.open());
        table.feed([talk.client("GET / HTTP/1.1\r\n\r\n")]);
        let sent = talk.time_ns;
        let segments: Vec<_> = pieces.iter().map(|piece| talk.server(piece)).collect();
        table.feed(segments).feed([talk.server_fin()]).wait(1_000);
        let response = table.events.iter().find_map(|event| match event {
            Event::Response { response, .. } => Some((response.body_ns, response.body_bytes)),
            _ => None,
        });
        let expected = expected.map(|piece| sent + 1_000 * (piece as u64 + 1));
        assert_eq!(response, Some((expected, length)), "{pieces:?}");
    };
    check(&[HEAD, "abc", "defghi"], Some(1), 9);
    check(&["HTTP/1.1 204 No Content\r\n\r\n"], None, 0);
    check(
        &["HTTP/1.1 200 OK\r\n\r\n", "until", "its end"],
        Some(1),
        12,
    );
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    check(&[chunked, "5\r\n", "abc", "de\r\n0\r\n\r\n"], Some(2), 5);
    check(&[chunked, "0\r\n\r\n"], None, 0);
}

#[test]
fn a_tap_that_is_forgotten_takes_its_connections_with_it() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.exchanges.streams(TapId(9), true, Duration::ZERO);
    let mut segments = talk.open();
    segments.push(talk.client(post("/a", "abc")));
    table.feed(segments);
    table.told.clear();
    let mut events = Vec::new();
    table.exchanges.forget_tap(TapId(8), &mut events);
    assert!(events.is_empty() && table.exchanges.connections() == 1);
    table.exchanges.forget_tap(TapId(9), &mut events);
    table.tell(events);
    table.told(&["dropped 1 response_incomplete", "closed 1"]);
    assert_eq!(
        (table.exchanges.connections(), table.exchanges.deadline()),
        (0, None)
    );
    table.empty();
}
