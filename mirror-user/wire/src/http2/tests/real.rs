//! What is read off the wire is what both ends have counted.

use std::collections::BTreeMap;

use super::traffic::{Counted, Counts, Manner, Random, Tape, record};
use super::*;
use crate::message::Field;

fn fields(fields: &[Field]) -> BTreeMap<String, Vec<Vec<u8>>> {
    let mut sorted = BTreeMap::<_, Vec<_>>::new();
    for field in fields {
        let name = String::from_utf8(field.name.to_vec()).unwrap();
        sorted.entry(name).or_default().push(field.value.to_vec());
    }
    sorted
}

/// The exchange's number, which its two messages agree on, and both as their receivers would have counted them.
fn counted(request: &Request, response: &Response) -> (usize, Counted, Counted) {
    let number = |headers: &[Field]| {
        let mut numbers = headers.iter().filter_map(|field| {
            let name = std::str::from_utf8(&field.name).unwrap();
            name.strip_prefix("x-number-")?.parse::<usize>().ok()
        });
        numbers.next().unwrap()
    };
    assert_eq!(number(&request.headers), number(&response.headers));
    let mut headers = fields(&request.headers);
    // The server has it in its URI.
    assert_eq!(
        headers.remove("host"),
        Some(vec![b"models.example".to_vec()])
    );
    let asked = Counted {
        start: format!("{} {}", request.method, request.target),
        headers,
        body: request.body.to_vec(),
        trailers: fields(&request.trailers),
    };
    let answered = Counted {
        start: response.status.to_string(),
        headers: fields(&response.headers),
        body: response.body.to_vec(),
        trailers: fields(&response.trailers),
    };
    (number(&request.headers), asked, answered)
}

/// Every exchange that came out is one that took place, and none did twice. Returns how many.
pub(crate) fn check<'a>(
    whole: impl Iterator<Item = (&'a Request, &'a Response)>,
    counts: &Counts,
) -> usize {
    let mut numbers = std::collections::BTreeSet::new();
    for (request, response) in whole {
        let (number, asked, answered) = counted(request, response);
        assert_eq!(Some(&asked), counts.requests.get(&number));
        assert_eq!(Some(&answered), counts.responses.get(&number));
        assert!(numbers.insert(number), "{number} twice");
    }
    numbers.len()
}

pub(crate) const MANNER: Manner = Manner {
    seed: 0,
    requests: 100,
    concurrent: 1,
    largest: 20_000,
    table: 4_096,
    frame: 16_384,
    heals: false,
    bodies: &[],
};

fn read(table: &mut Table, tape: &Tape) {
    for (direction, data) in tape {
        table.feed(*direction, data);
    }
}

#[test]
fn all_of_a_connection() {
    for (concurrent, table_size, frame) in [
        (1, 4_096, 16_384),
        (10, 4_096, 16_384),
        (100, 4_096, 16_384),
        (100, 0, 16_384),
        (10, 100_000, 60_000),
        (10, 200, 1 << 20),
    ] {
        let manner = Manner {
            seed: concurrent as u64 + u64::from(frame),
            requests: 300,
            concurrent,
            table: table_size,
            frame,
            ..MANNER
        };
        let (tape, counts) = record(manner);
        let mut table = Table::new(Connection::begun);
        read(&mut table, &tape);
        let ledger = table.finish();
        assert_eq!(
            check(ledger.whole(), &counts),
            manner.requests,
            "{manner:?} {:?}",
            ledger.reasons()
        );
        assert_eq!(ledger.exchanges.len(), manner.requests);
    }
}

#[test]
fn however_it_is_cut_into_pieces() {
    let (tape, counts) = record(Manner {
        requests: 40,
        concurrent: 10,
        ..MANNER
    });
    for largest in [1, 2, 10, 1_000] {
        let mut random = Random(largest as u64);
        let mut table = Table::new(Connection::begun);
        for (direction, data) in &tape {
            let mut rest = &data[..];
            while !rest.is_empty() {
                let (piece, behind) = rest.split_at((1 + random.below(largest)).min(rest.len()));
                table.feed(*direction, piece);
                rest = behind;
            }
        }
        assert_eq!(check(table.finish().whole(), &counts), 40);
    }
}

#[test]
fn whichever_direction_is_read_first() {
    let (tape, counts) = record(Manner {
        requests: 100,
        concurrent: 10,
        ..MANNER
    });
    for first in [Direction::Request, Direction::Response] {
        let mut table = Table::new(Connection::begun);
        for is_first in [true, false] {
            for (direction, data) in &tape {
                if (*direction == first) == is_first {
                    table.feed(*direction, data);
                }
            }
        }
        assert_eq!(check(table.finish().whole(), &counts), 100);
    }
}

/// The tape from a byte of a chunk on, and from the next chunk of the other direction on.
fn cut(tape: &Tape, random: &mut Random) -> (Tape, usize) {
    let at = random.below(tape.len());
    let mut rest = tape[at..].to_vec();
    let within = random.below(rest[0].1.len());
    rest[0].1 = rest[0].1.slice(within..);
    (rest, at)
}

/// Joins the tape at random places. Of all exchanges of which anything passed since, how many came out, and how many
/// were seen at all.
fn join(manner: Manner, times: usize) -> (f64, f64) {
    let (tape, counts) = record(manner);
    let mut random = Random(manner.seed);
    let (mut whole, mut seen, mut passed) = (0, 0, 0.);
    for _ in 0..times {
        let (rest, at) = cut(&tape, &mut random);
        let mut table = Table::new(Connection::joined);
        read(&mut table, &rest);
        let ledger = table.finish();
        whole += check(ledger.whole(), &counts);
        seen += ledger.exchanges.len();
        passed += manner.requests as f64 * (1. - at as f64 / tape.len() as f64);
        for reason in ledger.reasons().into_keys() {
            let is_named = matches!(
                reason,
                DropReason::MidStream
                    | DropReason::JoinedLate
                    | DropReason::RequestIncomplete
                    | DropReason::ResponseIncomplete
            );
            assert!(is_named, "{reason:?}");
        }
    }
    (whole as f64 / passed, seen as f64 / passed)
}

#[test]
fn what_is_joined_late_is_never_guessed() {
    for (concurrent, largest) in [(1, 300), (1, 20_000), (10, 2_000), (100, 20_000)] {
        for heals in [false, true] {
            let manner = Manner {
                seed: largest as u64,
                requests: 500,
                concurrent,
                largest,
                heals,
                ..MANNER
            };
            let (whole, seen) = join(manner, 30);
            assert!(seen > 0.95, "{seen} of {manner:?}");
            assert!(!heals || whole > 0.6, "{whole} of {manner:?}");
        }
    }
}

/// Bodies are what passed on another connection: all that speaks for a frame speaks for those in them, too.
#[test]
fn frames_in_bodies_are_none() {
    let (inner, _) = record(Manner {
        seed: 3,
        largest: 100,
        heals: true,
        ..MANNER
    });
    for direction in [Direction::Request, Direction::Response] {
        let inner = inner.iter().filter(|(own, _)| *own == direction);
        let bodies: Vec<u8> = inner.flat_map(|(_, data)| data.to_vec()).collect();
        for (concurrent, largest) in [(1, 10_000), (10, 50_000), (3, 200_000)] {
            let manner = Manner {
                seed: 4,
                requests: 200,
                concurrent,
                largest,
                heals: true,
                bodies: bodies.clone().leak(),
                ..MANNER
            };
            join(manner, 20);
        }
    }
}

#[test]
fn what_is_lost_costs_what_it_touched() {
    for (concurrent, largest) in [(1, 2_000), (10, 20_000), (100, 50_000)] {
        let manner = Manner {
            seed: 5,
            requests: 400,
            concurrent,
            largest,
            heals: true,
            ..MANNER
        };
        let (tape, counts) = record(manner);
        let mut random = Random(6);
        let (mut whole, mut lost) = (0, 0);
        for _ in 0..20 {
            let mut table = Table::new(Connection::begun);
            for (direction, data) in &tape {
                if random.below(1_000) == 0 {
                    let (before, behind) = data.split_at(random.below(data.len()));
                    let length = 1 + random.below(behind.len());
                    table.feed(*direction, before);
                    table.skip(*direction, length);
                    table.feed(*direction, &behind[length..]);
                    lost += 1;
                } else {
                    table.feed(*direction, data);
                }
            }
            let ledger = table.finish();
            whole += check(ledger.whole(), &counts);
            for reason in ledger.reasons().into_keys() {
                let is_gap = matches!(reason, DropReason::RequestGap | DropReason::ResponseGap);
                assert!(
                    is_gap || reason == DropReason::ResponseIncomplete,
                    "{reason:?}"
                );
            }
        }
        let share = whole as f64 / (20 * manner.requests) as f64;
        assert!(lost > 20 && share > 0.9, "{share} with {lost} losses");
    }
}
