//! What TCP does not accept moves nothing.

use super::*;

/// A connection on which `/a` was asked and answered.
fn begun() -> (Talk, Table) {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open());
    table.feed([talk.client(post("/a", "a")), talk.server(ok("A"))]);
    table.told(&["seen 1", "request 1 POST /a a", "response 1 200 A"]);
    (talk, table)
}

/// The next exchange goes through, as number `id`.
#[track_caller]
fn goes_on(table: &mut Table, talk: &mut Talk, id: u64) {
    table.feed([talk.client(post("/b", "b")), talk.server(ok("B"))]);
    table.told(&[
        &format!("seen {id}"),
        &format!("request {id} POST /b b"),
        &format!("response {id} 200 B"),
    ]);
}

/// The same segment, but for what is changed.
fn but(mut segment: Segment, change: impl FnOnce(&mut Segment)) -> Segment {
    change(&mut segment);
    segment
}

fn further(segment: Segment, bytes: u32) -> Segment {
    but(segment, |segment| {
        segment.sequence = segment.sequence.wrapping_add(bytes)
    })
}

#[test]
fn a_reset_that_tcp_ignores_ends_nothing() {
    for off in [1, 500, 5_000_000, u32::MAX, u32::MAX - 30, 1 << 31] {
        let (mut talk, mut table) = begun();
        let resets = [talk.clone().client_rst(), talk.clone().server_rst()];
        table.feed(resets.map(|reset| further(reset, off)));
        table.wait(5_000).told(&[]);
        goes_on(&mut table, &mut talk, 2);
        table.wait(5_000).told(&[]);
        table.finish();
    }
    // Its checksum is wrong.
    let (mut talk, mut table) = begun();
    let reset = talk.clone().client_rst();
    table.feed([but(reset, |reset| reset.extras.is_doubtful = true)]);
    table.wait(5_000).told(&[]);
    goes_on(&mut table, &mut talk, 2);
}

#[test]
fn a_reset_among_others_is_found() {
    let (talk, mut table) = begun();
    let reset = talk.clone().client_rst();
    table.feed((1..100).map(|off| further(reset.clone(), off)));
    table.feed([reset]).wait(200).told(&["closed 1"]);
    assert_eq!(table.wait(2_000).exchanges.connections(), 0);
}

#[test]
fn a_reset_may_overtake_what_was_sent_before_it() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open());
    let request = talk.client(post("/a", "a"));
    let answer = talk.server(ok("A"));
    table.feed([talk.client_rst(), request, answer]).wait(200);
    table.told(&[
        "seen 1",
        "request 1 POST /a a",
        "response 1 200 A",
        "closed 1",
    ]);
}

#[test]
fn a_refused_connection_is_over() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed([talk.syn()]);
    let refusal = but(talk.server_rst(), |reset| reset.sequence = 0);
    table.feed([refusal]).wait(1_500);
    assert_eq!(table.exchanges.connections(), 0);
}

/// The server has not heard that the client is gone, and the client does not know the connection.
#[test]
fn a_peer_that_vanished_dials_again_from_the_same_port() {
    let (mut old, mut table) = begun();
    table.feed([old.client(post("/lost", "x"))]);
    table.told(&["seen 2", "request 2 POST /lost x"]);
    let mut talk = Talk {
        client: 1_000_000,
        server: 2_000_000,
        ..old.clone()
    };
    let syn = talk.syn();
    // The server challenges; what the client answers resets the old connection.
    table.feed([syn.clone(), old.client_rst()]).wait(1_000);
    table.told(&["dropped 2 response_incomplete", "closed 1"]);
    table.feed([syn, talk.syn_ack()]);
    goes_on(&mut table, &mut talk, 3);
    table.wait(5_000).told(&[]);
}

#[test]
fn a_syn_does_not_replace_a_connection() {
    let (mut talk, mut table) = begun();
    for forged in 1..20_u32 {
        let mut other = Talk {
            client: forged.wrapping_mul(777_777_777),
            ..talk.clone()
        };
        table.feed([other.syn()]);
        // The server says nothing of it.
        table.feed([other.client(post("/forged", "x"))]);
    }
    goes_on(&mut table, &mut talk, 2);
    // Its answer alone does not, either.
    let mut other = Talk {
        client: 77,
        server: 88,
        ..talk.clone()
    };
    table.feed(other.open());
    goes_on(&mut table, &mut talk, 3);
    // But a handshake that is gone on with.
    let request = other.client(post("/b", "b"));
    table
        .feed([request])
        .told(&["closed 1", "seen 4", "request 4 POST /b b"]);
    table
        .feed([other.server(ok("B"))])
        .told(&["response 4 200 B"]);
}

/// Anybody can send a SYN, and what would follow it.
#[test]
fn without_a_word_of_the_server_s_nothing_is_read() {
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed([talk.syn(), talk.client(post("/forged", "x"))]);
    table.wait(29_000).told(&[]);
    table
        .wait(3_000)
        .told(&["seen 1", "dropped 1 response_incomplete"]);
    assert_eq!(table.exchanges.connections(), 0);
    table.empty();
    let mut table = Table::new();
    table.feed([Talk::new().syn()]).wait(33_000);
    assert_eq!(table.exchanges.connections(), 0);
    // The same where a connection was before.
    let (mut old, mut table) = begun();
    table.feed([old.client_fin(), old.server_fin()]).wait(200);
    table.told(&["closed 1"]);
    let mut talk = Talk {
        client: 77_777_777,
        ..Talk::new()
    };
    table
        .feed([talk.syn(), talk.client(post("/b", "b"))])
        .told(&[]);
    table.feed([talk.server(ok("B"))]);
    table.told(&["seen 2", "request 2 POST /b b", "response 2 200 B"]);
    table.finish().empty();
}

#[test]
fn another_connection_is_told_though_a_part_of_its_handshake_is_lost() {
    for lost in 0..2 {
        let (talk, mut table) = begun();
        let mut other = Talk {
            client: 77_777_777,
            server: 88_888_888,
            ..talk
        };
        let mut handshake = other.open();
        handshake.remove(lost);
        table.feed(handshake);
        table.feed([other.client(post("/b", "b")), other.server(ok("B"))]);
        assert_eq!(
            table.told[table.told.len() - 3..],
            ["seen 2", "request 2 POST /b b", "response 2 200 B"]
        );
    }
}

#[test]
fn what_comes_after_a_reset_is_counted() {
    let (mut talk, mut table) = begun();
    table.feed([talk.clone().client_rst()]).wait(200);
    table.told(&["closed 1"]);
    // The server did not heed it.
    table.feed([talk.client(post("/b", "b")), talk.server(ok("B"))]);
    table.feed([talk.client(post("/c", "c")), talk.server(ok("C"))]);
    table.told(&[
        "seen 2",
        "request 2 POST /b b",
        "response 2 200 B",
        "seen 3",
        "request 3 POST /c c",
        "response 3 200 C",
    ]);
    table.finish();
    // The client does not know of it yet, and the server says so once more.
    let (mut talk, mut table) = begun();
    table.feed([talk.server_rst()]).wait(200);
    table.told(&["closed 1"]);
    table.feed([talk.client(post("/b", "b"))]);
    table.feed([talk.server_rst()]).wait(200);
    assert_eq!(table.told[..2], ["seen 2", "request 2 POST /b b"]);
    table.wait(2_000);
    assert_eq!(table.exchanges.connections(), 0);
    // The rest of an upload that was reset is not counted again.
    let mut talk = Talk::new();
    let mut table = Table::new();
    let request = post("/", &"x".repeat(900));
    table.feed(talk.open()).feed([talk.client(&request[..400])]);
    table.feed([talk.server_rst()]).wait(200);
    table.told(&["seen 1", "dropped 1 request_incomplete"]);
    table.feed([
        talk.client(&request[400..600]),
        talk.client(&request[600..]),
    ]);
    table.wait(40_000).told(&[]);
    table.finish().told(&[]);
}

#[test]
fn a_long_silence_makes_no_second_exchange() {
    // Of the answer.
    for begins in [0, 20, 42] {
        let mut talk = Talk::new();
        let mut table = Table::new();
        let answer = ok("A long answer");
        table.feed(talk.open()).feed([talk.client(post("/a", "a"))]);
        if begins > 0 {
            table.feed([talk.server(&answer[..begins])]);
        }
        table.told(&["seen 1", "request 1 POST /a a"]);
        table.wait(100_000);
        table.told(&["dropped 1 response_incomplete", "closed 1"]);
        table.feed([talk.server(&answer[begins..])]).told(&[]);
        goes_on(&mut table, &mut talk, 2);
        table.finish().empty();
    }
    // Of the client that has nothing more to say.
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open()).feed([talk.client(post("/a", "a"))]);
    table.feed([talk.client_fin()]).wait(100_000);
    table.told(&[
        "seen 1",
        "request 1 POST /a a",
        "dropped 1 response_incomplete",
        "closed 1",
    ]);
    table.feed([talk.server(ok("A")), talk.server_fin()]);
    table.wait(2_000).told(&[]);
    assert_eq!(table.exchanges.connections(), 0);
}

#[test]
fn a_long_silence_of_an_upload_makes_no_second_exchange() {
    let request = post("/a", "abcdefgh");
    for begins in [9, 40, 43] {
        let mut talk = Talk::new();
        let mut table = Table::new();
        table
            .feed(talk.open())
            .feed([talk.client(&request[..begins])]);
        table.wait(100_000);
        table.told(&["seen 1", "dropped 1 request_incomplete"]);
        table.feed([talk.client(&request[begins..]), talk.server(ok("A"))]);
        table.told(&[]);
        goes_on(&mut table, &mut talk, 2);
        table.finish().empty();
    }
}

#[test]
fn what_is_far_outside_the_window_is_not_there() {
    for off in [2 << 20, 1 << 29, 1 << 31, u32::MAX / 3 * 2] {
        let (mut talk, mut table) = begun();
        let far = further(talk.clone().client(post("/far", "x")), off);
        let fin = further(talk.clone().client_fin(), off);
        table.feed([far, fin]).wait(5_000).told(&[]);
        goes_on(&mut table, &mut talk, 2);
        table.wait(40_000).told(&[]);
        goes_on(&mut table, &mut talk, 3);
    }
}

/// Within the window, as far as is known, but nobody ever acknowledges it.
#[test]
fn what_nothing_leads_up_to_begins_no_exchange() {
    for off in [10, 1_000, 500_000] {
        let (mut talk, mut table) = begun();
        let foreign = further(talk.clone().client(post("/foreign", "x")), off);
        table.feed([foreign]).wait(40_000).told(&[]);
        goes_on(&mut table, &mut talk, 2);
        table.feed([talk.client_fin(), talk.server_fin()]).wait(500);
        table.told(&["closed 1"]);
        table.finish().empty();
    }
}

#[test]
fn an_acknowledgement_of_nothing_is_no_acknowledgement() {
    let (mut talk, mut table) = begun();
    let stray = talk.clone().client(post("/stray", "x"));
    let stray = but(stray, |stray| stray.acknowledgement ^= 1 << 30);
    let without = but(talk.clone().client("x"), |without| without.flags = 0);
    table.feed([stray, without]).wait(500).told(&[]);
    goes_on(&mut table, &mut talk, 2);
}

#[test]
fn copies_of_more_than_a_window_may_be_lost() {
    let (mut talk, mut table) = begun();
    talk.client = talk.client.wrapping_add(3 << 20);
    talk.server = talk.server.wrapping_add(5 << 20);
    table.feed([talk.client(post("/b", "b")), talk.server(ok("B"))]);
    table
        .feed([talk.client(post("/c", "c")), talk.server(ok("C"))])
        .wait(500);
    table
        .feed([talk.client(post("/d", "d")), talk.server(ok("D"))])
        .wait(500);
    assert_eq!(
        table.told[table.told.len() - 3..],
        ["seen 4", "request 4 POST /d d", "response 4 200 D"],
        "{:?}",
        table.told
    );
}

#[test]
fn differing_copies_end_their_request_by_name() {
    let request = post("/a", "abc");
    let forged = post("/a", "abX");
    // Both before it is read, in any order.
    for order in [[0, 1], [1, 0]] {
        let mut talk = Talk::new();
        let mut table = Table::new();
        table.feed(talk.open());
        let first = talk.client(&request[..9]);
        let mut other = talk.clone();
        let copies = [talk.client(&request[9..]), other.client(&forged[9..])];
        table.feed(order.map(|index| copies[index].clone()));
        table.feed([first, talk.server(ok("A"))]).wait(200);
        table.told(&["seen 1", "dropped 1 conflict"]);
        goes_on(&mut table, &mut talk, 2);
    }
    // After it was handed on, the server not having said a word.
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open());
    let mut other = talk.clone();
    table.feed([talk.client(&request), other.client(&forged)]);
    table.told(&["seen 1", "request 1 POST /a abc", "dropped 1 conflict"]);
    table.feed([talk.server(ok("A"))]).told(&[]);
    goes_on(&mut table, &mut talk, 2);
    // What the server has is settled, and what a client probes with says nothing.
    let (mut talk, mut table) = begun();
    let stale = further(talk.clone().client("XY"), u32::MAX - 1);
    let probe = further(talk.clone().client("X"), u32::MAX);
    table.feed([stale, probe]).told(&[]);
    goes_on(&mut table, &mut talk, 2);
    // Of a response.
    let mut talk = Talk::new();
    let mut table = Table::new();
    table.feed(talk.open()).feed([talk.client(&request)]);
    let answer = ok("ABC");
    let mut other = talk.clone();
    table.feed([talk.server(&answer[..30]), other.server("HTTP/1.1 404 No")]);
    table.told(&["seen 1", "request 1 POST /a abc", "dropped 1 conflict"]);
    table.feed([talk.server(&answer[30..])]).told(&[]);
    goes_on(&mut table, &mut talk, 2);
    table.finish().empty();
}

#[test]
fn a_wrong_checksum_is_no_copy_unless_the_server_takes_it() {
    let doubtful = |segment| {
        but(segment, |segment: &mut Segment| {
            segment.extras.is_doubtful = true
        })
    };
    // The corrupt one came first.
    for order in [[0, 1], [1, 0]] {
        let mut talk = Talk::new();
        let mut table = Table::new();
        table.feed(talk.open());
        let corrupt = doubtful(talk.clone().client(post("/a", "cba")));
        let copies = [corrupt, talk.client(post("/a", "abc"))];
        table.feed(order.map(|index| copies[index].clone()));
        table.feed([talk.server(ok("A"))]);
        table.told(&["seen 1", "request 1 POST /a abc", "response 1 200 A"]);
        table.finish().empty();
    }
    // A network card that puts segments together leaves the checksum of one: the server has it all.
    let mut talk = Talk::new();
    let mut table = Table::with(Limits::new(4_000), Memory::new(MEMORY));
    table.feed(talk.open());
    let body = "x".repeat(3_000);
    let merged = doubtful(talk.client(post("/a", &body)));
    table.feed([merged]).wait(500).told(&[]);
    table.feed([talk.server(ok("A"))]);
    let request = format!("request 1 POST /a {body}");
    table.told(&["seen 1", &request, "response 1 200 A"]);
    goes_on(&mut table, &mut talk, 2);
    table.finish().empty();
}

#[test]
fn urgent_bytes_end_their_request_by_name() {
    let (mut talk, mut table) = begun();
    let request = post("/u", "abc");
    let first = talk.client(&request[..20]);
    let urgent = but(talk.client(&request[20..]), |urgent| {
        urgent.extras.is_urgent = true
    });
    table.feed([first, urgent, talk.server(ok("U"))]);
    table.told(&["seen 2", "dropped 2 urgent"]);
    goes_on(&mut table, &mut talk, 3);
}

#[test]
fn what_comes_with_a_syn_counts_once() {
    let request = post("/a", "abc");
    let exchange = ["seen 1", "request 1 POST /a abc", "response 1 200 A"];
    let open = |whole: bool| {
        let mut talk = Talk::new();
        let syn = but(talk.syn(), |syn| syn.payload = Bytes::from(request.clone()));
        let begins = talk.client;
        if whole {
            talk.client = begins.wrapping_add(request.len() as u32);
        }
        (talk.clone(), [syn, talk.syn_ack()], talk)
    };
    // The server takes it.
    let (_, handshake, mut talk) = open(true);
    let mut table = Table::new();
    let [syn, syn_ack] = handshake;
    table.feed([syn.clone(), syn]).wait(2_000).told(&[]);
    table.feed([syn_ack, talk.server(ok("A"))]).told(&exchange);
    goes_on(&mut table, &mut talk, 2);
    // The server does not, and gets it again.
    let (_, handshake, mut talk) = open(false);
    let mut table = Table::new();
    table.feed(handshake).told(&[]);
    table
        .feed([talk.client(&request), talk.server(ok("A"))])
        .told(&exchange);
    goes_on(&mut table, &mut talk, 2);
    // Nobody says so.
    let (_, [syn, _], mut talk) = open(true);
    let mut table = Table::new();
    let tap = syn.tap;
    table.exchanges.copies_requests_only(tap, 0, true);
    table.feed([syn]).told(&exchange[..2]);
    table
        .feed([talk.client(post("/b", "b"))])
        .told(&["seen 2", "request 2 POST /b b"]);
}

#[test]
fn a_connection_with_a_second_subflow_is_left_alone() {
    let capable = |token| Some(Multipath::Capable { token });
    let open = |port| {
        let mut talk = Talk {
            port,
            ..Talk::new()
        };
        let syn = but(talk.syn(), |syn| syn.extras.multipath = capable(None));
        let token = capable(Some(u32::from(port)));
        let syn_ack = but(talk.syn_ack(), |reply| reply.extras.multipath = token);
        (talk, [syn, syn_ack])
    };
    let mut table = Table::new();
    let (mut joined, handshake) = open(1);
    let (mut lone, other) = open(2);
    table.feed(handshake).feed(other);
    table
        .feed([joined.client(&post("/a", "abc")[..40])])
        .told(&["seen 1"]);
    let mut subflow = Talk {
        port: 3,
        ..Talk::new()
    };
    let join = Some(Multipath::Join { token: Some(1) });
    let syn = but(subflow.syn(), |syn| syn.extras.multipath = join);
    let reply = Some(Multipath::Join { token: None });
    let syn_ack = but(subflow.syn_ack(), |ack| ack.extras.multipath = reply);
    table.feed([syn, syn_ack]).told(&["dropped 1 multipath"]);
    table.feed([subflow.client("bc"), joined.client(post("/b", "b"))]);
    table.wait(40_000).told(&[]);
    // One with a single subflow is read.
    goes_on(&mut table, &mut lone, 2);
    table.finish().empty();
}
