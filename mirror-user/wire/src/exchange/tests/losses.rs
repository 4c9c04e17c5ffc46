//! Lost copies, and connections joined in their middle.

use super::*;

#[test]
fn a_lost_request_is_dropped_and_the_next_goes_through() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open());
    let _lost = talk.client(post("/a", "a"));
    table.feed([
        talk.server(ok("A")),
        talk.client(post("/b", "b")),
        talk.server(ok("B")),
    ]);
    table.told(&[]).wait(250);
    table.told(&[
        "seen 1",
        "dropped 1 request_gap",
        "seen 2",
        "request 2 POST /b b",
        "response 2 200 B",
    ]);
    table.feed([talk.client(post("/c", "c")), talk.server(ok("C"))]);
    table.told(&["seen 3", "request 3 POST /c c", "response 3 200 C"]);
    table.finish().empty();
}

#[test]
fn a_lost_answer_is_dropped_and_the_next_goes_through() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open()).feed([talk.client(post("/a", "a"))]);
    let _lost = talk.server(ok("A"));
    table.feed([talk.client(post("/b", "b")), talk.server(ok("B"))]);
    table.told(&[
        "seen 1",
        "request 1 POST /a a",
        "seen 2",
        "request 2 POST /b b",
    ]);
    table
        .wait(250)
        .told(&["dropped 1 response_gap", "response 2 200 B"]);
    table.finish().empty();
}

#[test]
fn lost_bytes_of_a_known_length_are_stepped_over() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open());
    let request = post("/a", "0123456789") + &post("/b", "b");
    table.feed([talk.client(&request[..42])]);
    let _lost = talk.client(&request[42..46]);
    table.feed([
        talk.client(&request[46..]),
        talk.server(ok("A")),
        talk.server(ok("B")),
    ]);
    table.told(&["seen 1"]);
    table.wait(250);
    table.told(&[
        "dropped 1 request_gap",
        "seen 2",
        "request 2 POST /b b",
        "response 2 200 B",
    ]);
    table.finish().empty();
}

#[test]
fn many_holes_are_given_up_together() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open()).feed([talk.client(post("/a", "a"))]);
    let answer = ok(&"x".repeat(900));
    for (index, part) in answer.as_bytes().chunks(10).enumerate() {
        let segment = talk.server(part);
        if index % 9 != 7 {
            table.feed([segment]);
        }
    }
    table.feed([talk.client(post("/b", "b")), talk.server(ok("B"))]);
    table.told.clear();
    table
        .wait(250)
        .told(&["dropped 1 response_gap", "response 2 200 B"]);
    table.finish().empty();
}

#[test]
fn a_retransmission_fills_the_hole() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open());
    let request = post("/a", "abc");
    table.feed([talk.client(&request[..9])]);
    let again = talk.client(&request[9..20]);
    table.feed([talk.client(&request[20..])]).wait(2_900);
    // Nobody acknowledged the missing bytes, so production sends them again.
    table.feed([again]);
    table.told(&["seen 1", "request 1 POST /a abc"]);
    table.finish().empty();
}

#[test]
fn unacknowledged_bytes_are_given_up_late() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open());
    let request = post("/a", "abc");
    table.feed([talk.client(&request[..9])]);
    let _lost = talk.client(&request[9..20]);
    table.feed([talk.client(&request[20..])]);
    table.wait(2_900).told(&["seen 1"]);
    table.wait(200).told(&["dropped 1 request_gap"]);
    table.finish().empty();
}

#[test]
fn joined_midway_it_starts_at_the_first_certain_turn() {
    let mut talk = Talk::new();
    let segments = [
        talk.client("the rest of a body"),
        talk.server(ok("A")),
        talk.client(post("/b", "b")),
        talk.server(ok("B")),
    ];
    let expected = [
        "seen 1",
        "dropped 1 mid_stream",
        "seen 2",
        "request 2 POST /b b",
        "response 2 200 B",
    ];
    for order in [
        [0, 1, 2, 3],
        [1, 0, 2, 3],
        [0, 2, 1, 3],
        [2, 1, 0, 3],
        [0, 1, 3, 2],
    ] {
        let mut table = Table::new();
        table.feed(order.map(|index| segments[index].clone()));
        table.told(&[]).wait(150);
        assert_eq!(table.told, expected, "{order:?}");
        table.finish().empty();
    }
}

#[test]
fn a_continued_body_is_no_turn() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    // A body that looks like a request, after an interim answer.
    table.feed([
        talk.server("HTTP/1.1 100 Continue\r\n\r\n"),
        talk.client(post("/x", "x")),
    ]);
    table.feed([talk.server(ok("A"))]).wait(150).told(&[]);
    table.feed([talk.client(post("/b", "b")), talk.server(ok("B"))]);
    table.told(&[
        "seen 1",
        "dropped 1 mid_stream",
        "seen 2",
        "request 2 POST /b b",
        "response 2 200 B",
    ]);
    table.finish().empty();
}

#[test]
fn overlapping_requests_are_no_turn() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    let (a, b) = (talk.client(post("/a", "a")), talk.client(post("/b", "b")));
    let answer = talk.server(ok("A"));
    // The answer to b is sent before c comes: what follows A does not answer c.
    let late = talk.server(ok("B"));
    talk.server = late.sequence;
    let c = talk.client(post("/c", "c"));
    table.feed([a, b, answer, late, c]).wait(150).told(&[]);
    table.finish();
    assert!(
        !table.told.iter().any(|told| told.starts_with("request")),
        "{:?}",
        table.told
    );
}

#[test]
fn any_part_of_an_answer_vouches_for_the_next_request() {
    let chunked = "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    // The last part alone might as well be the end of an interim answer.
    for arrives in 0..2 {
        let mut talk = Talk::new();
        let mut table = Table::new();
        table.feed(talk.open()).feed([talk.client(chunked)]);
        let _lost = talk.client("1\r\na\r\n0\r\n\r\n");
        let head = format!("HTTP/1.1 200 OK\r\n{}", &chunked[18..]);
        let answer = [head.as_str(), "3\r\nABC\r\n", "0\r\n\r\n"];
        let answer = answer.map(|part| talk.server(part));
        table.feed([answer[arrives].clone()]);
        table.feed([talk.client(post("/b", "b")), talk.server(ok("B"))]);
        table.wait(250);
        assert!(table.told[1].starts_with("dropped 1 "), "{:?}", table.told);
        let next = ["seen 2", "request 2 POST /b b", "response 2 200 B"];
        assert_eq!(table.told[2..], next);
        table.finish().empty();
    }
}

#[test]
fn a_request_is_found_behind_a_loss_though_its_answer_is_lost_too() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open());
    let _lost = talk.client(post("/a", "a"));
    table.feed([talk.server(ok("A")), talk.client(post("/b", "b"))]);
    let _lost = talk.server(ok("B"));
    table.feed([talk.client(post("/c", "c")), talk.server(ok("C"))]);
    table.wait(250).told(&[
        "seen 1",
        "dropped 1 request_gap",
        "seen 2",
        "request 2 POST /b b",
        "seen 3",
        "request 3 POST /c c",
        "dropped 2 response_gap",
        "response 3 200 C",
    ]);
    table.finish().empty();
}

#[test]
fn nobody_vouches_for_what_follows_a_wholly_lost_exchange() {
    // What a client sends behind `100 Continue` looks just so.
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open());
    let _lost = [talk.client(post("/a", "a")), talk.server(ok("A"))];
    table.feed([talk.client(post("/b", "b")), talk.server(ok("B"))]);
    table.feed([talk.client(post("/c", "c")), talk.server(ok("C"))]);
    table.wait(250).told(&[
        "seen 1",
        "dropped 1 request_gap",
        "seen 2",
        "request 2 POST /c c",
        "response 2 200 C",
    ]);
    table.finish().empty();
}

#[test]
fn passed_over_exchanges_are_counted_one_by_one() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open());
    let _lost = talk.client(post("/a", "a"));
    table.feed([talk.server(ok("A"))]);
    let second = post("/b", "b");
    let _lost = talk.client(&second[..9]);
    table.feed([talk.client(&second[9..]), talk.server(ok("B"))]);
    table.feed([talk.client(post("/c", "c")), talk.server(ok("C"))]);
    table.wait(250);
    table.told(&[
        "seen 1",
        "dropped 1 request_gap",
        "seen 2",
        "dropped 2 request_gap",
        "seen 3",
        "request 3 POST /c c",
        "response 3 200 C",
    ]);
    table.finish().empty();
}

#[test]
fn a_slow_connection_that_was_joined_midway_finds_its_turn() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table
        .feed([talk.client(post("/a", "a")), talk.server(ok("A"))])
        .told(&[]);
    table.wait(60_000).told(&["seen 1", "dropped 1 mid_stream"]);
    table.feed([talk.client(post("/b", "b")), talk.server(ok("B"))]);
    table.told(&["seen 2", "request 2 POST /b b", "response 2 200 B"]);
    table.finish().empty();
}
