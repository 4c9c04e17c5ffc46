//! Requests that traffic repeats: how often production disagrees with itself on them, where nobody is asked
//! twice.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher as _;

use bytes::Bytes;
use mirror_wire::memory::Memory;
use mirror_wire::message::{Exchange, Response};

use crate::compare::NOT_SERVED;

/// Answers that are remembered.
const MOST: usize = 256;

/// All of them together have so many bytes at most, and so have those of all services together sixteen times.
const ROOM: usize = 256 << 10;

/// Longer requests are not looked up, and longer answers not remembered.
const LONGEST: usize = 16 << 10;

/// Production's last answers, by their requests.
#[derive(Debug)]
pub struct Traffic {
    room: usize,
    held: usize,
    answers: HashMap<u64, Response>,
    /// In the order in which they came.
    order: VecDeque<u64>,
    keys: RandomState,
}

impl Traffic {
    /// One of so many services'.
    pub fn new(services: usize) -> Self {
        Self {
            room: ROOM.min(16 * ROOM / services.max(1)),
            held: 0,
            answers: HashMap::new(),
            order: VecDeque::new(),
            keys: RandomState::new(),
        }
    }

    /// What this exchange's request is known by; nothing where it is not looked up.
    pub fn key(&self, exchange: &Exchange) -> Option<u64> {
        let (request, answer) = (&exchange.request, &exchange.production);
        let fits = request.body.len() <= LONGEST && answer.body.len() <= LONGEST;
        let is_answer = answer.is_kept() && answer.status < NOT_SERVED;
        let asked = (&request.method, &request.target, &request.body);
        // Another version may well answer something else.
        let key = || self.keys.hash_one((asked, &exchange.production_version));
        (fits && is_answer).then(key)
    }

    /// Production's last answer to the same request, which is forgotten here.
    pub fn take(&mut self, key: u64) -> Option<Response> {
        let answer = self.answers.remove(&key)?;
        self.held -= size(&answer);
        Some(answer)
    }

    /// Remembers an answer, as a copy: what was received may be a small part of a large buffer.
    pub fn put(&mut self, key: u64, answer: &Response) {
        let headers = answer.headers.iter();
        let told = headers.filter(|field| {
            field.name.len() <= 16 && field.name.to_ascii_lowercase().starts_with(b"content-")
        });
        let copy = Response {
            headers: told.cloned().collect(),
            body: Bytes::copy_from_slice(&answer.body),
            trailers: Vec::new(),
            // What is here is bounded by itself.
            lease: Memory::new(0).empty_lease(),
            ..*answer
        };
        self.held += size(&copy);
        if let Some(before) = self.answers.insert(key, copy) {
            self.held -= size(&before);
        }
        self.order.push_back(key);
        while self.held > self.room || self.order.len() > MOST {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            self.take(oldest);
        }
    }
}

/// With what the maps need for it.
fn size(answer: &Response) -> usize {
    512 + answer.body.len()
}

#[cfg(test)]
mod tests {
    use mirror_wire::fixtures::JSON;
    use mirror_wire::fixtures::response;

    use super::*;
    use crate::compare::fixture::exchange;

    fn asked(body: &str, answer: &[u8]) -> Exchange {
        let mut exchange = exchange(response(200, JSON, answer), Ok(response(200, JSON, b"")));
        exchange.request.body = Bytes::copy_from_slice(body.as_bytes());
        exchange
    }

    #[test]
    fn the_same_request_finds_the_answer_before() {
        let mut traffic = Traffic::new(1);
        let one = asked("one", b"{\"label\":1}");
        let key = traffic.key(&one).unwrap();
        assert!(traffic.take(key).is_none());
        traffic.put(key, &one.production);
        let again = traffic.key(&asked("one", b"{}")).unwrap();
        assert_eq!(traffic.take(again).unwrap().body, one.production.body);
        let mut others = [
            asked("two", b"{}"),
            asked("one", b"{}"),
            asked("one", b"{}"),
        ];
        others[1].request.target = "/elsewhere".into();
        others[2].production_version = "v11".into();
        for other in others {
            assert_ne!(traffic.key(&other), Some(key));
        }
        assert_eq!(traffic.key(&asked("one", &[b'x'; LONGEST + 1])), None);
        let mut failed = asked("one", b"{}");
        failed.production.status = 503;
        assert_eq!(traffic.key(&failed), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut traffic = Traffic::new(1);
        let large = asked("x", &[b'x'; LONGEST]);
        for key in 0..10_000 {
            traffic.put(key, &large.production);
            assert!(traffic.held <= ROOM, "{}", traffic.held);
        }
        assert_eq!(traffic.answers.len(), ROOM / (LONGEST + 512));
        let mut traffic = Traffic::new(1);
        let small = asked("x", b"{}");
        for key in 0..10_000 {
            traffic.put(key % 300, &small.production);
            assert!(traffic.order.len() <= MOST);
        }
        assert!(traffic.answers.len() <= MOST);
        assert_eq!(Traffic::new(10_000).room, 16 * ROOM / 10_000);
    }
}
