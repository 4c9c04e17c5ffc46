//! Taps that copy requests alone.

use super::*;

impl Table {
    fn copies_requests_only(&mut self, alone: bool) -> &mut Self {
        let tap = Talk::new().syn().tap;
        self.exchanges.copies_requests_only(tap, 0, alone);
        self
    }

    /// Whether answers were promised to the requests so far.
    #[track_caller]
    fn answered(&self, expected: &[bool]) {
        let answered = self.events.iter().filter_map(|event| match event {
            Event::Request { answered, .. } => Some(*answered),
            _ => None,
        });
        assert_eq!(answered.collect::<Vec<_>>(), expected);
    }
}

/// What the server says, which the tap does not copy.
fn unheard(talk: &mut Talk, text: &str) {
    talk.server(text);
}

#[test]
fn an_exchange_ends_with_its_request() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.copies_requests_only(true).feed([talk.syn()]);
    talk.syn_ack();
    let request = post("/a", "abc");
    table.feed([talk.client(&request[..9])]).wait(500);
    table.feed([talk.client(&request[9..])]);
    table.told(&["seen 1", "request 1 POST /a abc"]);
    unheard(&mut talk, &ok("A"));
    table.wait(5_000).told(&[]);
    table.feed([talk.client("GET /b HTTP/1.1\r\n\r\n")]);
    table.told(&["seen 2", "request 2 GET /b "]);
    unheard(&mut talk, &ok("B"));
    // Pipelined.
    let both = post("/c", "1") + &post("/d", "2");
    table.feed([talk.client(&both)]).wait(5_000);
    table.told(&[
        "seen 3",
        "request 3 POST /c 1",
        "seen 4",
        "request 4 POST /d 2",
    ]);
    // Nothing more is waited for, not even the server's FIN.
    table.feed([talk.client_fin()]).told(&["closed 1"]);
    table.answered(&[false; 4]);
    table.wait(2_000).empty();
    assert_eq!(table.exchanges.connections(), 0);
}

#[test]
fn what_is_not_whole_is_dropped() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.copies_requests_only(true).feed([talk.syn()]);
    talk.syn_ack();
    table.feed([talk.client("POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc")]);
    table.feed([talk.client_fin()]);
    table.told(&["seen 1", "dropped 1 request_incomplete"]);
    table.empty();
}

/// Nobody says whether the server agrees to leave HTTP/1.
#[test]
fn what_asks_to_be_upgraded_is_left_alone() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.copies_requests_only(true).feed([talk.syn()]);
    talk.syn_ack();
    let upgrade = "GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    table.feed([talk.client(upgrade), talk.client("anything")]);
    table.told(&["seen 1", "dropped 1 upgrade"]);
    table.empty();
}

/// The tap's config is changed while connections are open.
#[test]
fn answers_stop_and_come_again() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open());
    table.feed([talk.client(post("/a", "abc"))]);
    table.told(&["seen 1", "request 1 POST /a abc"]);
    table.copies_requests_only(true);
    unheard(&mut talk, &ok("A"));
    table.feed([talk.client(post("/b", "abc"))]);
    table.told(&["dropped 1 response_gap", "seen 2", "request 2 POST /b abc"]);
    unheard(&mut talk, &ok("B"));
    table.copies_requests_only(false);
    table.feed([talk.client(post("/c", "abc")), talk.server(ok("C"))]);
    table.told(&["seen 3", "request 3 POST /c abc", "response 3 200 C"]);
    table.answered(&[true, false, true]);
    table.finish().empty();
}

#[test]
fn a_request_that_began_without_an_answer_to_come_ends_without_it() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.copies_requests_only(true).feed([talk.syn()]);
    talk.syn_ack();
    let request = post("/a", "abc");
    table.feed([talk.client(&request[..9])]);
    table.copies_requests_only(false);
    table.feed([talk.client(&request[9..]), talk.server(ok("A"))]);
    table.told(&["seen 1", "request 1 POST /a abc"]);
    table.answered(&[false]);
    table.finish().empty();
}

/// Whether the body follows is between client and server.
#[test]
fn what_expects_to_be_continued_is_left_alone() {
    let head = "POST /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 30\r\n\r\n";
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.copies_requests_only(true).feed([talk.syn()]);
    talk.syn_ack();
    table.feed([talk.client(head)]);
    table.told(&["seen 1", "dropped 1 expect"]);
    unheard(&mut talk, "HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n");
    table.feed([talk.client("POST /a HTTP/1.1\r\nContent-Length: 30\r\n\r\n")]);
    table.feed([talk.client("x".repeat(30)), talk.client_fin()]);
    table.wait(31_000).told(&["seen 2", "dropped 2 expect"]);
    table.finish().empty();
}

#[test]
fn a_body_that_begins_like_a_request_ends_the_certainty() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.copies_requests_only(true).feed([talk.syn()]);
    talk.syn_ack();
    table.feed([talk.client("POST /a HTTP/1.1\r\nContent-Length: 60\r\n\r\n")]);
    table.told(&["seen 1"]);
    unheard(&mut talk, "HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n");
    table.feed([talk.client(post("/a", "abc") + &"y".repeat(60))]);
    table.told(&[
        "dropped 1 request_incomplete",
        "seen 2",
        "dropped 2 request_incomplete",
    ]);
    table.finish().empty();
    // In one segment with its head it is a body.
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.copies_requests_only(true).feed([talk.syn()]);
    talk.syn_ack();
    table.feed([talk.client(post("/a", "GET / HTTP/1.1"))]);
    table.told(&["seen 1", "request 1 POST /a GET / HTTP/1.1"]);
}
