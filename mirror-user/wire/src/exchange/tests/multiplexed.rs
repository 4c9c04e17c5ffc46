//! HTTP/2, as the table of exchanges tells it.

use std::collections::BTreeMap;

use super::*;
use crate::http2::PREFACE;
use crate::http2::tests::real::{MANNER, check as check_whole};
use crate::http2::tests::traffic::{Counts, Manner, Random, Tape, record};

fn limits() -> Limits {
    Limits::new(1 << 20).with_http2()
}

fn table() -> Table {
    Table::with(limits(), Memory::new(MEMORY))
}

fn segments(talk: &mut Talk, tape: &Tape) -> Vec<Segment> {
    let segment = |(direction, data): &(Direction, Bytes)| match direction {
        Direction::Request => talk.client(data),
        Direction::Response => talk.server(data),
    };
    tape.iter().map(segment).collect()
}

/// Each exchange that was seen ends once; those that came out are some that took place. Returns how many.
#[track_caller]
fn whole(tables: &[&Table], counts: &Counts) -> usize {
    let (mut requests, mut responses) = (BTreeMap::new(), BTreeMap::new());
    for (agent, table) in tables.iter().enumerate() {
        let mut open = BTreeMap::new();
        for event in &table.events {
            match event {
                Event::Seen { id, .. } => assert!(open.insert(*id, ()).is_none()),
                Event::Request { id, request, .. } => {
                    assert!(open.contains_key(id));
                    requests.insert((agent, *id), request);
                }
                Event::Response { id, response } => {
                    assert!(open.remove(id).is_some());
                    responses.insert((agent, *id), response);
                }
                Event::Dropped { id, .. } => assert!(open.remove(id).is_some()),
                Event::Closed { .. } => {}
            }
        }
        assert!(open.is_empty(), "{} are open", open.len());
    }
    let pairs = responses
        .iter()
        .map(|(id, response)| (requests[id], *response));
    check_whole(pairs, counts)
}

fn reasons(table: &Table) -> BTreeMap<&'static str, usize> {
    let mut reasons = BTreeMap::new();
    for event in &table.events {
        if let Event::Dropped { reason, .. } = event {
            *reasons.entry(reason.label()).or_default() += 1;
        }
    }
    reasons
}

#[test]
fn all_of_a_connection() {
    for (concurrent, largest) in [(1, 3_000), (10, 3_000), (100, 30_000)] {
        let manner = Manner {
            requests: 200,
            concurrent,
            largest,
            ..MANNER
        };
        let (tape, counts) = record(manner);
        let mut talk = Talk::new();
        let mut table = table();
        table.feed(talk.open());
        table.feed(segments(&mut talk, &tape));
        table.feed([talk.client_fin(), talk.server_fin()]);
        assert_eq!(whole(&[&table], &counts), manner.requests);
        assert_eq!(
            table
                .told
                .iter()
                .filter(|told| told.starts_with("seen"))
                .count(),
            manner.requests
        );
        assert_eq!(table.told.last().map(String::as_str), Some("closed 1"));
        table.wait(2_000);
        assert_eq!(table.exchanges.connections(), 0);
        table.empty();
    }
}

#[test]
fn segments_that_overtake_each_other_or_are_lost() {
    let manner = Manner {
        requests: 200,
        concurrent: 10,
        largest: 10_000,
        heals: true,
        ..MANNER
    };
    let (tape, counts) = record(manner);
    let (mut all, mut lost) = (0, 0);
    for seed in 0..10 {
        let mut random = Random(seed);
        let mut talk = Talk::new();
        let open = talk.open();
        let mut segments = segments(&mut talk, &tape);
        for _ in 0..segments.len() / 20 {
            let at = random.below(segments.len() - 3);
            segments.swap(at, at + 1 + random.below(2));
        }
        let mut table = table();
        table.feed(open);
        for segment in segments {
            if random.below(2_000) > 0 {
                table.feed([segment]);
            } else {
                lost += 1;
            }
            if random.below(50) == 0 {
                table.wait(100);
            }
        }
        table
            .feed([talk.client_fin(), talk.server_fin()])
            .wait(40_000);
        all += whole(&[&table], &counts);
        for reason in reasons(&table).into_keys() {
            assert!(
                matches!(
                    reason,
                    "request_gap" | "response_gap" | "response_incomplete"
                ),
                "{reason}"
            );
        }
        table.now += Duration::from_secs(3_600);
        table.wait(100);
        assert_eq!(table.exchanges.connections(), 0);
        table.empty();
    }
    let share = all as f64 / (10 * manner.requests) as f64;
    assert!(lost > 3 && share > 0.9, "{share} with {lost} lost");
}

#[test]
fn left_alone_where_nobody_asked_for_it() {
    let (tape, _) = record(Manner {
        requests: 3,
        ..MANNER
    });
    // Without answers there is nothing to tell streams' ends by.
    for alone in [false, true] {
        let limits = Limits::new(MAX_BODY);
        let limits = if alone { limits.with_http2() } else { limits };
        let mut table = Table::with(limits, Memory::new(MEMORY));
        table.exchanges.copies_requests_only(TapId(9), 0, alone);
        let mut talk = Talk::new();
        table.feed(talk.open()).feed(segments(&mut talk, &tape));
        table.told(&["seen 1", "dropped 1 http2"]);
    }
}

#[test]
fn behind_a_proxy_and_with_a_preface_in_parts() {
    let (tape, counts) = record(Manner {
        requests: 5,
        ..MANNER
    });
    let proxy = b"PROXY TCP4 192.0.2.7 10.0.0.1 40000 80\r\n";
    let mut talk = Talk::new();
    let mut table = table();
    table.feed(talk.open()).feed([talk.client(proxy)]);
    table.feed(segments(&mut talk, &tape));
    table.feed([talk.client_fin(), talk.server_fin()]);
    assert_eq!(whole(&[&table], &counts), 5);
    for event in &table.events {
        if let Event::Request { client, .. } = event {
            assert_eq!(client.to_string(), "192.0.2.7:40000");
        }
    }

    let (mut talk, mut table) = (Talk::new(), self::table());
    table.feed(talk.open());
    let at = tape
        .iter()
        .position(|(direction, _)| *direction == Direction::Request)
        .unwrap();
    let mut parts = tape.clone();
    let (first, rest) = (parts[at].1.slice(..5), parts[at].1.slice(5..));
    parts[at].1 = rest;
    parts.insert(at, (Direction::Request, first));
    table.feed(segments(&mut talk, &parts));
    table.feed([talk.client_fin(), talk.server_fin()]);
    assert_eq!(whole(&[&table], &counts), 5);
}

#[test]
fn an_upgrade_is_gone_on_with() {
    let mut talk = Talk::new();
    let mut table = table();
    let ask = "GET /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
               HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    // `:status: 200`, and one more request by indices alone: GET http /.
    let answer = |stream| [&[0, 0, 1, 1, 5, 0, 0, 0, stream, 0x88][..]].concat();
    let request = [0, 0, 3, 1, 5, 0, 0, 0, 3, 0x82, 0x86, 0x84];
    table.feed(talk.open()).feed([talk.client(ask)]);
    table.feed([talk.server([switch.as_bytes(), &settings, &answer(1)].concat())]);
    table.feed([talk.client([PREFACE, &settings, &request].concat())]);
    table.feed([talk.server(answer(3)), talk.client_fin(), talk.server_fin()]);
    table.told(&[
        "seen 1",
        "request 1 GET /a ",
        "response 1 200 ",
        "seen 2",
        "request 2 GET / ",
        "response 2 200 ",
        "closed 1",
    ]);
    table.wait(2_000).empty();
}

#[test]
fn silence_ends_what_is_open() {
    let (tape, counts) = record(Manner {
        requests: 20,
        ..MANNER
    });
    let mut talk = Talk::new();
    let mut table = table();
    table.feed(talk.open());
    let segments = segments(&mut talk, &tape);
    table
        .feed(segments[..segments.len() - 1].iter().cloned())
        .wait(31_000);
    assert_eq!(whole(&[&table], &counts), 19);
    assert_eq!(reasons(&table), [("response_incomplete", 1)].into());
    // It stays, and is read on.
    assert_eq!(table.exchanges.connections(), 1);
    table.events.clear();
    table.wait(3_600_000);
    assert_eq!(table.exchanges.connections(), 0);
    table.empty();
}

#[test]
fn the_next_agent_never_guesses() {
    let manner = Manner {
        requests: 600,
        concurrent: 10,
        largest: 1_000,
        heals: true,
        ..MANNER
    };
    let (tape, counts) = record(manner);
    let mut talk = Talk::new();
    let open = talk.open();
    let segments = segments(&mut talk, &tape);
    let mut random = Random(7);
    for _ in 0..10 {
        let stop = random.below(segments.len() / 2);
        let agent = || {
            let mut table = table();
            table.exchanges.streams(TapId(9), true, table.now);
            table
        };
        let mut first = agent();
        first
            .feed(open.clone())
            .feed(segments[..stop].iter().cloned());
        let mut events = Vec::new();
        first.exchanges.pause(first.now, &mut events);
        let handed_over = first.exchanges.hand_over(&mut events);
        first.tell(events);
        let mut second = agent();
        for mut connection in handed_over {
            let json = serde_json::to_string(&connection.anchor).unwrap();
            connection.anchor = serde_json::from_str(&json).unwrap();
            second.exchanges.resume(&connection, second.now);
        }
        second.feed(segments[stop..].iter().cloned()).finish();
        let whole = whole(&[&first, &second], &counts);
        // Until its tables have healed the second one tells nothing.
        assert!(whole > 300, "{whole} of {}", manner.requests);
        let reasons = reasons(&second);
        assert!(reasons["joined_late"] < 150, "{reasons:?}");
    }
}

#[test]
fn what_waits_is_bounded() {
    let (tape, counts) = record(Manner {
        requests: 100,
        concurrent: 50,
        largest: 50_000,
        ..MANNER
    });
    let mut talk = Talk::new();
    let memory = Memory::new(100_000);
    let mut table = Table::with(limits(), memory.clone());
    table.feed(talk.open());
    for (number, segment) in segments(&mut talk, &tape).into_iter().enumerate() {
        // A hole that everything waits behind.
        if number != 200 {
            table.feed([segment]);
            table.events.retain_mut(|event| match event {
                // As the agent does that hands on what it gets.
                Event::Request { request, .. } => {
                    request.lease.shrink_to(0);
                    true
                }
                Event::Response { response, .. } => {
                    response.lease.shrink_to(0);
                    true
                }
                _ => true,
            });
        }
        assert!(memory.used() <= 100_000);
    }
    table.finish();
    whole(&[&table], &counts);
    assert!(
        reasons(&table).contains_key("memory"),
        "{:?}",
        reasons(&table)
    );
    table.empty();
}

#[test]
fn a_connection_that_was_open_before_is_joined() {
    let manner = Manner {
        requests: 600,
        concurrent: 10,
        largest: 1_000,
        heals: true,
        ..MANNER
    };
    let (tape, counts) = record(manner);
    let mut random = Random(8);
    for _ in 0..10 {
        let mut talk = Talk::new();
        talk.open();
        let segments = segments(&mut talk, &tape);
        let from = random.below(segments.len() / 2);
        let mut table = table();
        table
            .feed(segments[from..from + 2].iter().cloned())
            .wait(200);
        table.feed(segments[from + 2..].iter().cloned());
        assert_eq!(table.exchanges.late_connections(), [(1, 1)]);
        table.feed([talk.client_fin(), talk.server_fin()]);
        let whole = whole(&[&table], &counts);
        assert!(whole > 200, "{whole}, {:?}", reasons(&table));
        let named = reasons(&table).values().sum::<usize>();
        let passed = manner.requests * (segments.len() - from) / segments.len();
        assert!(
            whole + named + 20 > passed,
            "{whole} and {named} of {passed}"
        );
    }
}

#[test]
fn whatever_comes_is_accounted_for() {
    let (tape, _) = record(Manner {
        requests: 30,
        concurrent: 5,
        largest: 500,
        ..MANNER
    });
    for seed in 0..200 {
        let mut random = Random(seed);
        let mut talk = Talk::new();
        let open = talk.open();
        let mut table = table();
        if seed % 4 > 0 {
            table.feed(open);
        }
        let mut open = 0_i64;
        for mut segment in segments(&mut talk, &tape) {
            match random.below(40) {
                0 => continue,
                1 => {
                    let mut bytes = segment.payload.to_vec();
                    let at = random.below(bytes.len());
                    bytes[at] ^= 1 << random.below(8);
                    segment.payload = bytes.into();
                }
                2 => segment.sequence = segment.sequence.wrapping_add(random.below(3_000) as u32),
                3 => segment.extras.is_urgent = true,
                4 => {
                    table.feed([segment.clone()]);
                }
                5 => {
                    table.wait(random.below(4_000) as u64);
                }
                6 if random.below(20) == 0 => segment.flags |= FIN,
                7 if random.below(20) == 0 => segment.flags |= RST,
                _ => {}
            }
            table.feed([segment]);
        }
        table.finish();
        for event in &table.events {
            open += match event {
                Event::Seen { .. } => 1,
                Event::Response { .. } | Event::Dropped { .. } => -1,
                Event::Request { .. } | Event::Closed { .. } => 0,
            };
        }
        assert_eq!(open, 0, "seed {seed}");
        table.empty();
    }
}

#[test]
fn where_there_is_no_room_one_that_rests_is_joined_late() {
    let (tape, counts) = record(Manner {
        requests: 40,
        concurrent: 4,
        ..MANNER
    });
    let mut table = table();
    table.exchanges = Exchanges::new(vec![limits()], table.memory.clone()).with_max_connections(2);
    let mut talks: Vec<Talk> = (0..4)
        .map(|number| Talk {
            port: 40_000 + number,
            ..Talk::new()
        })
        .collect();
    for talk in &mut talks {
        table.feed(talk.open()).feed(segments(talk, &tape));
        table.now += Duration::from_secs(1);
    }
    let responses = table
        .events
        .iter()
        .filter(|event| matches!(event, Event::Response { .. }));
    assert_eq!(responses.count(), 4 * counts.requests.len());
    assert_eq!(table.exchanges.connections(), 4);
    // The first one goes on: what its client refers to is not known any more.
    let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    let refers = [0, 0, 4, 1, 5, 0, 0, 1, 1, 0x82, 0x86, 0x84, 0xbe];
    let told = table.told.len();
    for _ in 0..4 {
        table.feed([talks[0].client(ping), talks[0].server(ping)]);
    }
    table.feed([talks[0].client(refers)]);
    assert_eq!(table.told[told..], ["seen 161", "dropped 161 joined_late"]);
    table.finish();
    table.empty();
}
