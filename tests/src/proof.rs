//! What must be true after the main job: content first, then both ledgers.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use hyper::header::HeaderMap;
use serde_json::{Value, json};

use crate::answers::{Answers, sha256};
use crate::client::Exchange;
use crate::metrics::Metrics;
use crate::scene::Scene;
use crate::server::Received;
use crate::wait::eventually;

/// What belongs to the client's connection and is not replayed, and what the agent adds.
const NOT_COMPARED: [&str; 7] = [
    "connection",
    "expect",
    "keep-alive",
    "te",
    "upgrade",
    "x-modelmirror-id",
    "x-modelmirror-shadow",
];

/// What becomes of a copy in the agent's packet ledger.
const OUTCOMES: [&str; 7] = [
    "received",
    "partial",
    "lost",
    "unknown_service",
    "truncated",
    "not_tcp",
    "overloaded",
];

/// The ledger of requests closes: so many compared, so many dropped for each reason, nothing else,
/// nothing open.
///
/// # Panics
/// When it does not.
#[track_caller]
pub fn requests_closed(scene: &Scene, compared: u64, dropped: &[(&str, u64)]) {
    let mut expected: BTreeMap<String, u64> = dropped
        .iter()
        .map(|&(reason, count)| (reason.to_owned(), count))
        .collect();
    expected.insert("compared".to_owned(), compared);
    expected.retain(|_, count| *count > 0);
    let total: u64 = expected.values().sum();
    eventually("the ledger of requests closes", || {
        let metrics = scene.agent.metrics()?;
        let found: BTreeMap<String, u64> = metrics
            .by("modelmirror_shadow_requests_total", "outcome")
            .into_iter()
            .map(|(outcome, count)| (outcome, count as u64))
            .filter(|(_, count)| *count > 0)
            .collect();
        ensure!(
            found == expected,
            "{found:?} where {expected:?} are expected"
        );
        let open = metrics.sum("modelmirror_shadow_requests_in_flight", &[]);
        ensure!(open == 0.0, "{open} requests have no outcome");
        let fidelity = metrics.sum("modelmirror_shadow_fidelity_ratio", &[]);
        let right = total == 0 || (fidelity - compared as f64 / total as f64).abs() < 1e-9;
        ensure!(right, "fidelity is {fidelity} with {found:?}");
        Ok(())
    });
}

/// The shadow got what the client sent, and nothing else: method, path, headers, body, trailers.
///
/// # Panics
/// When it did not.
#[track_caller]
pub fn replayed(scene: &Scene, sent: &[Exchange]) {
    let production = by_id(scene.production.received());
    let shadow = scene.model.received();
    assert_eq!(shadow.len(), sent.len(), "requests at the shadow");
    let shadow = by_id(shadow);
    for exchange in sent {
        let (id, request) = (&exchange.id, &exchange.request);
        let [original, replay] = [&production, &shadow].map(|received| {
            received
                .get(id)
                .unwrap_or_else(|| panic!("{id} is missing: {} {}", request.method, request.path))
        });
        for received in [original, replay] {
            assert_eq!(received.method, request.method, "{id}");
            assert_eq!(received.path, request.path, "{id}");
            assert_eq!(received.body_bytes, request.body.len(), "{id}");
            assert_eq!(received.body_sha256, exchange.request_sha256, "{id}");
        }
        assert_eq!(kept(&replay.headers), kept(&original.headers), "{id}");
        assert_eq!(replay.trailers, original.trailers, "{id}");
        assert_eq!(replay.header("x-modelmirror-shadow"), "1", "{id}");
        assert!(original.header("x-modelmirror-shadow").is_empty(), "{id}");
        assert_eq!(original.peer, exchange.local, "{id}");
    }
}

/// The records say of each exchange what the client and both servers know of it, and of nothing
/// else.
///
/// # Panics
/// When they do not.
#[track_caller]
pub fn recorded(scene: &Scene, sent: &[Exchange]) {
    let records = eventually("all records are written", || {
        let records = scene.agent.records()?;
        let count = records.len();
        ensure!(
            count == sent.len(),
            "{count} records of {} exchanges",
            sent.len()
        );
        Ok(records)
    });
    let records: BTreeMap<&str, &Value> = records
        .iter()
        .map(|record| (text(record, "/request_id"), record))
        .collect();
    let shadow = by_id(scene.model.received());
    for exchange in sent {
        let id = &exchange.id;
        let record = records
            .get(&**id)
            .unwrap_or_else(|| panic!("{id} has no record"));
        let production = scene.production.answers();
        let expected = json!({
            "id": shadow.get(id).map(|replay| replay.header("x-modelmirror-id")),
            "service": "digits",
            "client": exchange.local.to_string(),
            "method": exchange.request.method,
            "path": without_values(&exchange.request.path),
            "arm": "stable",
            "request": { "bytes": exchange.request.body.len(), "sha256": exchange.request_sha256 },
            "production": answer(production, exchange),
            "shadow": answer(scene.model.answers(), exchange),
            "verdict": "match",
        });
        assert_contains(record, &expected, id);
        let seen = json!({ "status": exchange.status, "sha256": exchange.body_sha256 });
        assert_contains(&record["production"], &seen, id);
    }
}

/// The ledger of packets closes, on both sides and between them: what the tap handed to the uplink
/// is what the agent has settled, by copies and by bytes, and all of it arrived.
///
/// # Panics
/// When it does not.
#[track_caller]
pub fn packets_closed(scene: &Scene) {
    eventually("the ledger of packets closes", || {
        let (tap, agent) = (scene.daemon.metrics()?, scene.agent.metrics()?);
        packets_settled(&tap, &agent)?;
        for outcome in OUTCOMES.into_iter().skip(1) {
            let labels = [("outcome", outcome)];
            let copies = agent.sum("modelmirror_shadow_tunnel_packets_total", &labels);
            ensure!(copies == 0.0, "{copies} copies are {outcome}");
        }
        Ok(())
    });
}

/// What the tap sent = received + lost + dropped by the agent, in copies and in bytes.
///
/// # Errors
/// With the two sums, as long as they are not equal.
pub fn packets_settled(tap: &Metrics, agent: &Metrics) -> Result<()> {
    for unit in ["packets", "bytes"] {
        let sent = tap.sum(&format!("modelmirror_tunnel_sent_{unit}_total"), &[]);
        let reported = agent.sum(&format!("modelmirror_shadow_tunnel_sent_{unit}_total"), &[]);
        let name = format!("modelmirror_shadow_tunnel_{unit}_total");
        let settled: f64 = OUTCOMES
            .iter()
            .map(|outcome| agent.sum(&name, &[("outcome", outcome)]))
            .sum();
        ensure!(
            sent == reported && sent == settled,
            "{unit}: the tap sent {sent}, reported {reported}, and {settled} are settled"
        );
    }
    let mirrored = tap.sum("modelmirror_mirrored_packets_total", &[]);
    let sent = tap.sum("modelmirror_tunnel_sent_packets_total", &[]);
    ensure!(
        mirrored == sent,
        "{mirrored} packets mirrored, {sent} copies sent"
    );
    Ok(())
}

/// The client's host has received nothing but its connections: no copy, and nothing to reset.
///
/// # Panics
/// When it has.
#[track_caller]
pub fn client_undisturbed(scene: &Scene) {
    let counters = scene
        .net
        .client
        .run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))
        .expect("the kernel shows its counters");
    for (protocol, name) in [
        ("Udp", "InDatagrams"),
        ("Udp", "NoPorts"),
        ("Udp", "InErrors"),
        // Not InErrs: it counts a second SYN-ACK too, which a SYN that waited for a neighbour's
        // address brings.
        ("Tcp", "InCsumErrors"),
        ("Tcp", "OutRsts"),
    ] {
        let value = counter(&counters, protocol, name).expect("the counter is there");
        assert_eq!(value, 0, "{protocol} {name} of the client's host");
    }
}

/// A counter of /proc/net/snmp, where a line of names is followed by one of values.
fn counter(text: &str, protocol: &str, name: &str) -> Result<u64> {
    let mut lines = text
        .lines()
        .filter_map(|line| line.strip_prefix(protocol)?.strip_prefix(": "));
    let (names, values) = lines.next().zip(lines.next()).context("no such protocol")?;
    let mut pairs = names.split(' ').zip(values.split(' '));
    let (_, value) = pairs
        .find(|(found, _)| *found == name)
        .context("no such counter")?;
    Ok(value.parse()?)
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

fn text<'a>(record: &'a Value, pointer: &str) -> &'a str {
    record
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn by_id(received: Vec<Received>) -> BTreeMap<String, Received> {
    received
        .into_iter()
        .map(|received| (received.id().to_owned(), received))
        .collect()
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
