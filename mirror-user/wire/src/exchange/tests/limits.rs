//! What waits has limits, and so have connections.

use super::*;
use crate::allocated::allocated;

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

/// A table with room for so many connections.
fn small(max: usize) -> Table {
    let mut table = Table::new();
    let limits = vec![Limits::new(MAX_BODY); 2];
    table.exchanges = Exchanges::new(limits, table.memory.clone()).with_max_connections(max);
    table
}

fn talk(port: u16) -> Talk {
    Talk {
        port,
        ..Talk::new()
    }
}

/// One exchange of a connection, which is the `number`th one of the table.
#[track_caller]
fn exchanges(table: &mut Table, talk: &mut Talk, number: usize) {
    table.now += Duration::from_millis(1);
    table.feed([talk.client(post("/a", "a")), talk.server(ok("A"))]);
    table.told(&[
        &format!("seen {number}"),
        &format!("request {number} POST /a a"),
        &format!("response {number} 200 A"),
    ]);
}

#[test]
fn busy_connections_have_a_limit() {
    let mut table = small(1);
    let (mut first, mut second) = (talk(1), talk(2));
    table.feed(first.open()).feed([first.client("POST /a ")]);
    table.told(&["seen 1"]);
    table.feed(second.open());
    table.feed([second.client(post("/b", "b")), second.server(ok("B"))]);
    table.told(&["seen 2", "dropped 2 too_many_connections"]);
    table.feed([first.client("HTTP/1.1\r\n\r\n"), first.server(ok("A"))]);
    table.told(&["request 1 POST /a ", "response 1 200 A"]);
    table.finish().empty();
}

/// A flood of SYNs, answered ones too, costs none of the others anything, nor those that come meanwhile.
#[test]
fn connections_that_ask_for_nothing_give_way() {
    let mut table = small(64);
    let (mut idle, mut busy) = (talk(1), talk(2));
    table.feed(idle.open()).feed(busy.open());
    exchanges(&mut table, &mut idle, 1);
    table.feed([busy.client("POST /b ")]).told(&["seen 2"]);
    for port in 1_000..30_000_u16 {
        let mut flood = talk(port);
        table.feed([flood.syn()]);
        if port % 2 == 0 {
            table.feed([flood.syn_ack()]);
        }
        assert!(table.exchanges.connections() <= 64);
        if port % 1_000 == 0 {
            let mut new = talk(port / 1_000 + 100);
            table.feed(new.open());
            exchanges(&mut table, &mut new, 2 + usize::from(port / 1_000));
            table.feed([new.client_fin(), new.server_fin()]);
            table.told.clear();
        }
    }
    table.feed([busy.client("HTTP/1.1\r\n\r\n"), busy.server(ok("B"))]);
    table.told(&["request 2 POST /b ", "response 2 200 B"]);
    exchanges(&mut table, &mut idle, 32);
    let [unasked, idle, busy] = table.exchanges.forgotten()[0];
    assert!(unasked > 28_000, "{unasked}");
    assert_eq!((idle, busy), (0, 0));
    table.wait(61_000);
    assert!(table.exchanges.connections() <= 64 + 2);
    table.finish().empty();
}

/// Clients that keep their connections and rarely ask: more than twice as many as there is room for.
#[test]
fn connections_that_rest_are_parked_and_lose_nothing() {
    let mut table = small(64);
    let mut talks: Vec<_> = (0..150).map(talk).collect();
    for round in 0..3 {
        for (index, talk) in talks.iter_mut().enumerate() {
            if round == 0 {
                table.feed(talk.open());
            }
            exchanges(&mut table, talk, round * 150 + index + 1);
        }
    }
    assert_eq!(table.exchanges.connections(), 150);
    assert!(table.exchanges.forgotten().is_empty());
    // One that comes back to its port is another one.
    let mut again = Talk {
        client: 7_000,
        server: 9_000,
        time_ns: 1_000_000,
        ..talk(0)
    };
    table.feed(again.open());
    exchanges(&mut table, &mut again, 451);
    // What was parked is handed on, too, and is forgotten in the end.
    table.feed([talks[1].client_fin(), talks[1].server_fin()]);
    table.now += Duration::from_secs(3_700);
    table.wait(2_000);
    assert_eq!(table.exchanges.connections(), 0);
    table.told.clear();
    table.finish().empty();
}

/// The table as large as it gets: as many clients that open connections and ask for nothing as it has places, then
/// 100,000 that keep theirs. Each request of theirs is read.
#[test]
fn the_whole_table_is_not_blinded() {
    const CLIENTS: usize = 100_000;
    let mut table = small(MAX_CONNECTIONS);
    for number in 0..MAX_CONNECTIONS {
        let mut flood = Talk {
            host: 9,
            ..talk(number as u16)
        };
        table.feed([flood.syn(), flood.syn_ack()]);
    }
    let client = |number: usize| Talk {
        host: 10 + (number / 50_000) as u8,
        ..talk((number % 50_000) as u16 + 1_000)
    };
    let mut talks: Vec<_> = (0..CLIENTS).map(client).collect();
    for round in 0..2 {
        for (index, talk) in talks.iter_mut().enumerate() {
            if round == 0 {
                table.feed(talk.open());
            }
            exchanges(&mut table, talk, round * CLIENTS + index + 1);
        }
    }
    let [_, idle, busy] = table.exchanges.forgotten()[0];
    assert_eq!([idle, busy], [0, 0]);
    table.finish();
}

#[test]
fn the_oldest_parked_ones_are_forgotten_by_name() {
    let mut table = small(32);
    let mut talks: Vec<_> = (0..200).map(talk).collect();
    for (index, talk) in talks.iter_mut().enumerate() {
        table.feed(talk.open());
        exchanges(&mut table, talk, index + 1);
    }
    let [unasked, idle, busy] = table.exchanges.forgotten()[0];
    assert!((38..=46).contains(&idle), "{idle}");
    assert_eq!((unasked, busy), (0, 0));
    exchanges(&mut table, &mut talks[199], 201);
    exchanges(&mut table, &mut talks[120], 202);
    table.feed([talks[0].client(post("/b", "b")), talks[0].server(ok("B"))]);
    table
        .feed([talks[0].client_fin(), talks[0].server_fin()])
        .wait(200);
    table.told(&["seen 203", "dropped 203 mid_stream"]);
    table.finish().empty();
}

/// One service's clients, all in the middle of a request, leave the other one its share.
#[test]
fn services_and_taps_have_shares() {
    let mut table = small(64);
    for port in 0..64 {
        let mut talk = talk(port);
        table.now += Duration::from_millis(1);
        table.feed(talk.open()).feed([talk.client("POST /a ")]);
    }
    table.told.clear();
    let of_other = |mut segment: Segment| {
        segment.service = 1;
        segment
    };
    for port in 0..32_u64 {
        let mut talk = talk(port as u16);
        table.now += Duration::from_millis(1);
        table.feed(talk.open().into_iter().map(of_other));
        let gone = if port == 0 { 32 } else { 0 };
        let gone = (0..gone).map(|id| format!("dropped {} too_many_connections", id + 1));
        let gone: Vec<_> = gone.collect();
        table.told(&gone.iter().map(String::as_str).collect::<Vec<_>>());
        let exchange = [talk.client("POST /b "), talk.server("")];
        table.feed(exchange.map(of_other));
        table.told(&[&format!("seen {}", 65 + port)]);
    }
    // From here on each has its half.
    let mut talk = talk(100);
    table.feed(talk.open()).feed([talk.client(post("/a", "a"))]);
    table.told(&["seen 97", "dropped 97 too_many_connections"]);
    assert_eq!(table.exchanges.forgotten()[0], [0, 0, 32]);
}

/// What [`COST`] says, which the agent's bound on connections goes by.
#[test]
fn connections_take_what_is_said() {
    const CONNECTIONS: usize = 2_000;
    let mut table = small(CONNECTIONS);
    let before = allocated();
    for number in 0..5 * CONNECTIONS as u32 {
        let mut talk = talk(number as u16);
        let mut segments = talk.open();
        segments.extend([talk.client(post("/a", "a")), talk.server(ok("A"))]);
        table.now += Duration::from_micros(10);
        table.feed(segments);
        table.told.clear();
        table.events.clear();
    }
    assert_eq!(table.exchanges.connections(), 5 * CONNECTIONS);
    let each = (allocated() - before) as usize / CONNECTIONS;
    assert!(each <= COST, "{each}");
    assert_eq!(table.memory.used(), 0);
}

/// The head of an answer without a length, and then so many bytes of it.
fn stream(talk: &mut Talk, table: &mut Table, bytes: usize) {
    for _ in 0..bytes / 100 {
        table.now += Duration::from_millis(1);
        table.feed([talk.server(format!("64\r\n{}\r\n", "x".repeat(100)))]);
    }
}

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

/// What the shadow has failed to answer: production's stream is framed, and none of it is kept.
#[test]
fn nothing_is_kept_of_what_nobody_needs() {
    let limits = Limits::new(10 << 20).with_answers_within(Duration::from_secs(5));
    let mut table = Table::with(limits, Memory::new(MEMORY));
    let mut talk = Talk::new();
    table.feed(talk.open()).feed([talk.client(post("/a", "a"))]);
    table.feed([talk.server(CHUNKED)]);
    stream(&mut talk, &mut table, 100_000);
    assert!(table.memory.used() > 100_000);
    table.exchanges.forgo([ExchangeId(1)]);
    for _ in 0..100 {
        stream(&mut talk, &mut table, 10_000);
        assert!(table.memory.used() < 1_000, "{}", table.memory.used());
    }
    table.feed([talk.server("0\r\n\r\n")]);
    table.told(&["seen 1", "request 1 POST /a a", "response 1 200 "]);
    // The next one is kept as ever.
    table.feed([talk.client(post("/b", "b")), talk.server(ok("B"))]);
    table.told(&["seen 2", "request 2 POST /b b", "response 2 200 B"]);
    table.finish().empty();
}

/// Production is waited for as long as the shadow may take, and 30 s more, however much comes meanwhile.
#[test]
fn an_answer_without_end_is_not_waited_for() {
    let limits = Limits::new(10 << 20).with_answers_within(Duration::from_secs(5));
    let mut table = Table::with(limits, Memory::new(MEMORY));
    let mut talk = Talk::new();
    table.feed(talk.open()).feed([talk.client(post("/a", "a"))]);
    table.feed([talk.server(CHUNKED)]);
    table.told(&["seen 1", "request 1 POST /a a"]);
    for _ in 0..34 {
        table.wait(1_000);
        stream(&mut talk, &mut table, 1_000);
    }
    table.told(&[]);
    table.wait(1_000);
    stream(&mut talk, &mut table, 1_000);
    table.told(&["dropped 1 response_incomplete"]);
    assert!(table.memory.used() < 1_000, "{}", table.memory.used());
    table.feed([talk.server("0\r\n\r\n")]).told(&[]);
    table.feed([talk.client(post("/b", "b")), talk.server(ok("B"))]);
    table.told(&["seen 2", "request 2 POST /b b", "response 2 200 B"]);
    table.finish().empty();
}
