//! What must be true whatever happens, and what must be true when nothing goes wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::ensure;
use hyper::header::HeaderMap;
use serde_json::{Value, json};

use crate::answers::{Answers, sha256};
use crate::client::Exchange;
use crate::outcome::{Outcome, packets_settled};
use crate::scene::Scene;
use crate::server::Received;
use crate::wait::{eventually, eventually_within};

/// The agent waits half a minute for a connection that it hears nothing more of.
const SETTLING: Duration = Duration::from_secs(90);

/// What belongs to the client's connection and is not replayed, and what the agent adds.
const NOT_COMPARED: [&str; 8] = [
    "connection",
    "expect",
    "keep-alive",
    "te",
    "upgrade",
    "x-modelmirror-id",
    "x-modelmirror-mark",
    "x-modelmirror-shadow",
];

impl Scene {
    /// Settles, and holds what came out of it against everything that the client sent: production
    /// answered every request, once; the shadow was asked nothing that the client had not asked,
    /// byte for byte, and nothing twice; every record tells the truth, and there is one for each
    /// request that was compared; both ledgers close; nobody else talked to the client.
    #[track_caller]
    pub fn account(&self, sent: &[Exchange]) -> Outcome {
        let outcome = self.settle();
        self.serves(sent);
        self.replays_only(sent);
        self.records_only(sent, outcome.requests("compared"));
        let seen = outcome.seen();
        assert!(seen <= sent.len() as u64, "{seen} requests were seen");
        outcome
    }

    /// Every copy arrived; these requests were replayed and compared, so many others dropped for
    /// each reason, and that is all.
    #[track_caller]
    pub fn complete(&self, compared: &[Exchange], dropped: &[(&str, u64)]) {
        let compared_too = [("compared", compared.len() as u64)];
        self.ends(compared, &[&compared_too, dropped].concat());
    }

    /// Every copy arrived, and there was none of an answer: these requests were replayed, and none
    /// can be compared.
    #[track_caller]
    pub fn complete_without_answers(&self, replayed: &[Exchange]) {
        self.ends(replayed, &[("not_compared", replayed.len() as u64)]);
    }

    /// Every copy arrived, these requests were replayed, and so many ended in each way.
    #[track_caller]
    fn ends(&self, replayed: &[Exchange], ends: &[(&str, u64)]) {
        let outcome = self.settle();
        outcome.arrived().expect("nothing is lost");
        let ends = ends.iter().filter(|(_, count)| *count > 0);
        let ends: BTreeMap<_, _> = ends.map(|&(end, count)| (end.to_owned(), count)).collect();
        assert_eq!(outcome.all_requests(), ends, "requests by outcome");
        let received = self.shadowed();
        let received: BTreeSet<_> = received.iter().map(Received::id).collect();
        let expected: BTreeSet<_> = replayed.iter().map(|exchange| &*exchange.id).collect();
        assert_eq!(received, expected, "requests at the shadow");
    }

    /// Everything that was sent was mirrored, replayed, compared and recorded to the byte, and
    /// nothing else was.
    #[track_caller]
    pub fn prove(&self, sent: &[Exchange]) {
        self.account(sent);
        self.complete(sent, &[]);
    }

    /// The same, where agents before this one have compared so many of the requests: what they had not taken
    /// in has come to this one, and nothing twice.
    #[track_caller]
    pub fn prove_after(&self, sent: &[Exchange], before: u64) {
        let outcome = self.settle();
        assert_eq!(outcome.copies("lost"), 0, "{}", outcome.metrics);
        let all = sent.len() as u64;
        let rest = BTreeMap::from([("compared".to_owned(), all - before)]);
        assert_eq!(
            outcome.all_requests(),
            rest,
            "{all}, {before} of them before"
        );
        self.serves(sent);
        self.replays_only(sent);
        assert_eq!(self.shadowed().len(), sent.len(), "requests at the shadow");
        self.records_only(sent, all);
    }

    /// Waits until nothing is under way: every request that the agent has seen has an outcome, and
    /// it has settled every copy that the tap says it sent.
    #[track_caller]
    pub fn settle(&self) -> Outcome {
        eventually_within(SETTLING, "all is settled", || {
            Outcome::of(&self.daemon().metrics()?, self.agent().metrics()?)
        })
    }

    /// Waits until the agent knows what has become of every copy, and until all have arrived.
    #[track_caller]
    pub fn wait_for_copies(&self) {
        eventually("the ledger of packets closes", || {
            packets_settled(&self.daemon().metrics()?, &self.agent().metrics()?)
        });
    }

    /// Production was asked what the client asked, once each, and nobody else talked to the client.
    #[track_caller]
    pub fn serves(&self, sent: &[Exchange]) {
        let received = self.production.received();
        assert_eq!(received.len(), sent.len(), "requests at production");
        let sent = by_id(sent);
        for asked in &received {
            let exchange = find(&sent, asked.id());
            assert_asked(asked, exchange);
            assert_eq!(asked.peer, exchange.local, "{}", asked.id());
        }
        self.leaves_the_client_alone();
    }

    /// The client's host has received nothing but its connections: no copy, and nothing to reset.
    #[track_caller]
    fn leaves_the_client_alone(&self) {
        let foreign = self.watch.foreign().expect("they are counted");
        assert_eq!(foreign, 0, "foreign frames at the client's host");
        let counter = |group, name| {
            let counter = self.net.client.counter(group, name);
            counter.expect("the counter is there")
        };
        for (group, name) in [
            ("Udp", "InDatagrams"),
            ("Udp", "NoPorts"),
            ("Udp", "InErrors"),
            ("Tcp", "InCsumErrors"),
            ("Tcp", "OutRsts"),
        ] {
            assert_eq!(counter(group, name), 0, "{group} {name} of the client's");
        }
        // A SYN-ACK that production sent again, since the first one was late, is one error more and
        // challenged (RFC 5961, 4).
        let (errors, challenged) = (
            counter("Tcp", "InErrs"),
            counter("TcpExt", "TCPSYNChallenge"),
        );
        assert_eq!(errors, challenged, "Tcp InErrs of the client's");
        let production = self.production.namespace();
        let again = production.counter("TcpExt", "TCPSynRetrans");
        let again = again.expect("the counter is there");
        assert!(
            challenged <= again,
            "{challenged} SYN-ACKs, {again} sent again"
        );
    }

    /// The shadow got nothing but what the client sent, and that as it was: method, path, headers,
    /// body, trailers.
    #[track_caller]
    fn replays_only(&self, sent: &[Exchange]) {
        let sent = by_id(sent);
        let originals = self.production.received();
        let originals: BTreeMap<_, _> = originals.iter().map(|one| (one.id(), one)).collect();
        let mut ids = BTreeSet::new();
        for replay in &self.shadowed() {
            let id = replay.id();
            assert!(ids.insert(id.to_owned()), "{id} was replayed twice");
            assert_asked(replay, find(&sent, id));
            let original = originals[id];
            assert_eq!(kept(&replay.headers), kept(&original.headers), "{id}");
            assert_eq!(replay.trailers, original.trailers, "{id}");
            assert_eq!(replay.header("x-modelmirror-shadow"), "1", "{id}");
            assert!(original.header("x-modelmirror-shadow").is_empty(), "{id}");
        }
    }

    /// So many records are written, and each says what the client and both servers know.
    #[track_caller]
    fn records_only(&self, sent: &[Exchange], count: u64) {
        let records = eventually("all records are written", || {
            let records = self.agent().records()?;
            ensure!(
                records.len() as u64 >= count,
                "{} of {count}",
                records.len()
            );
            Ok(records)
        });
        assert_eq!(records.len() as u64, count, "records");
        let sent = by_id(sent);
        let shadowed = self.shadowed();
        let replays: BTreeMap<_, _> = shadowed.iter().map(|one| (one.id(), one)).collect();
        let production = self.production.answers();
        let shadow = self.model.as_ref().map(|model| model.answers().clone());
        let shadow = shadow.unwrap_or_else(|| Answers::of("v13"));
        for record in &records {
            let id = record["request_id"].as_str().unwrap_or_default();
            let exchange = find(&sent, id);
            let mut of_client = expected(exchange, production);
            if record["verdict"] == "error" && record["production"]["sha256"].is_null() {
                // The shadow had failed before production was done: the answer was not kept.
                of_client["production"]["sha256"].take();
            }
            assert_contains(record, &of_client, id);
            if record["verdict"] != "error" {
                assert_contains(record, &expected_of_both(exchange, production, &shadow), id);
            }
            if let Some(replay) = replays.get(id) {
                assert_eq!(record["id"], replay.header("x-modelmirror-id"), "{id}");
            }
        }
    }

    /// What the shadow model was asked.
    pub fn shadowed(&self) -> Vec<Received> {
        let model = self.model.as_ref();
        model.map(|model| model.received()).unwrap_or_default()
    }
}

/// A server was asked what the client asked.
#[track_caller]
fn assert_asked(asked: &Received, exchange: &Exchange) {
    let (id, request) = (&exchange.id, &exchange.request);
    assert_eq!(asked.method, request.method, "{id}");
    assert_eq!(asked.path, request.path, "{id}");
    assert_eq!(asked.body_bytes, request.body.len(), "{id}");
    assert_eq!(asked.body_sha256, exchange.request_sha256, "{id}");
}

/// What a record says of an exchange, as far as the client knows it.
fn expected(exchange: &Exchange, production: &Answers) -> Value {
    json!({
        "service": "digits",
        "client": exchange.local.to_string(),
        "method": exchange.request.method,
        "path": without_values(&exchange.request.path),
        "arm": "stable",
        "request": { "bytes": exchange.request.body.len(), "sha256": exchange.request_sha256 },
        "production": answer(production, exchange),
    })
}

/// What it says of the shadow's answer, where there was one. Versions differ, and need not agree.
fn expected_of_both(exchange: &Exchange, production: &Answers, shadow: &Answers) -> Value {
    let request = &exchange.request;
    let [was, now] = [production, shadow].map(|answers| {
        let classified = request.path.starts_with("/label");
        let label = classified.then(|| answers.label(&request.body));
        (answers.to(&request.path, &request.body).status, label)
    });
    let verdict = match [was.0, now.0] {
        statuses if statuses.iter().all(|status| *status >= 400) => "both_failed",
        _ if was == now => "match",
        _ => "different",
    };
    json!({ "shadow": answer(shadow, exchange), "verdict": verdict })
}

/// What one server answers, as the record has it.
fn answer(answers: &Answers, exchange: &Exchange) -> Value {
    let request = &exchange.request;
    let answer = answers.to(&request.path, &request.body);
    let empty = request.method == "HEAD" || matches!(answer.status, 204 | 304);
    let body: &[u8] = if empty { &[] } else { &answer.body };
    json!({
        "version": answers.version,
        "status": answer.status,
        "bytes": body.len(),
        "sha256": sha256(body),
    })
}

/// Every value of `expected` is the same in `found`.
#[track_caller]
fn assert_contains(found: &Value, expected: &Value, id: &str) {
    let (Value::Object(fields), true) = (expected, found.is_object()) else {
        assert_eq!(found, expected, "{id}");
        return;
    };
    for (name, value) in fields {
        if value.is_object() {
            assert_contains(&found[name], value, id);
        } else {
            assert_eq!(&found[name], value, "{id}: {name} in {found}");
        }
    }
}

/// A path as records have it: values in its query are not written.
fn without_values(path: &str) -> String {
    let mut parts = path.split('&').map(|part| match part.split_once('=') {
        Some((name, _)) => format!("{name}=*"),
        None => part.to_owned(),
    });
    let first = parts.next().unwrap_or_default();
    parts.fold(first, |path, part| path + "&" + &part)
}

fn by_id(sent: &[Exchange]) -> BTreeMap<&str, &Exchange> {
    let pairs = sent.iter().map(|exchange| (&*exchange.id, exchange));
    pairs.collect()
}

#[track_caller]
fn find<'a>(sent: &BTreeMap<&str, &'a Exchange>, id: &str) -> &'a Exchange {
    let found = sent.get(id).copied();
    found.unwrap_or_else(|| panic!("the client never sent `{id}`"))
}

/// The headers that a replay has as the request had them, in an order that does not matter.
fn kept(headers: &HeaderMap) -> Vec<(&str, &[u8])> {
    let mut kept: Vec<_> = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .filter(|(name, _)| !NOT_COMPARED.contains(name))
        .collect();
    kept.sort_unstable();
    kept
}
