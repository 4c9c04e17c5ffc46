//! What the agent tells the node that a rollout decides by, held against what was sent and answered.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use mirror_common::histogram::Latency;
use serde_json::{Value, json};
use tests::{Answers, Exchange, Mood, Request, Scene, eventually, pattern};

/// How much slower the shadow is.
const LATE: Duration = Duration::from_millis(40);

const TENANTS: [&str; 3] = ["acme", "bolt", "corp"];

/// The tenant that a request of a connection is from; one in four is from none.
fn tenant(index: usize) -> Option<&'static str> {
    TENANTS.get(index % 4).copied()
}

fn request(connection: usize, index: usize) -> Request {
    let seed = (connection * 1000 + index) as u64;
    let tenant = tenant(index);
    let path = match (index % 10, tenant) {
        // Both fail.
        (9, _) => "/status/503".to_owned(),
        (_, tenant) => format!("/label?tenant={}", tenant.unwrap_or("nobody")),
    };
    let request = Request::post(&path, &pattern(200, seed));
    match tenant {
        Some(tenant) => request.header("x-tenant", tenant),
        None => request,
    }
}

/// By who failed: both, production alone, the shadow alone, neither.
#[derive(Debug, Default, PartialEq)]
struct Pairs([u64; 4]);

impl Pairs {
    fn of(pairs: &Value) -> Self {
        let names = ["both", "production_only", "shadow_only", "neither"];
        Self(names.map(|name| pairs[name].as_u64().unwrap_or(u64::MAX)))
    }

    fn count<'a>(sent: impl Iterator<Item = &'a Exchange>, shadow: &Answers) -> Self {
        let mut pairs = Self::default();
        for one in sent {
            let answer = shadow.to(&one.request.path, &one.request.body);
            let failed = (one.status >= 500, answer.status >= 500);
            pairs.0[match failed {
                (true, true) => 0,
                (true, false) => 1,
                (false, true) => 2,
                (false, false) => 3,
            }] += 1;
        }
        pairs
    }
}

fn of_tenant(one: &Exchange) -> Option<&str> {
    let mut headers = one.request.headers.iter();
    let header = headers.find(|(name, _)| name == "x-tenant");
    header.map(|(_, value)| value.as_str())
}

#[test]
fn errors_slices_and_latencies_are_told_in_pairs() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let shadow = Answers {
        fails_on: Some("tenant=bolt".to_owned()),
        ..Answers::of("v13")
    };
    scene.set_shadow_section("compare", "slice", "header:x-tenant");
    scene.start_model(&shadow);
    scene.model().set_mood(Mood::Late(LATE));
    scene.start();
    let sent = scene.load(5, 40, request);
    scene.account(&sent);

    let summary = scene.agent().summary().unwrap();
    let pairs = Pairs::count(sent.iter(), &shadow);
    assert!(pairs.0[0] > 0 && pairs.0[2] > 0, "{pairs:?}");
    assert_eq!(Pairs::of(&summary["pairs"]), pairs, "{summary:#}");
    assert_eq!(summary["answered"], sent.len(), "{summary:#}");

    let mut slices: BTreeMap<&str, &Value> = BTreeMap::new();
    for slice in summary["slices"].as_array().unwrap() {
        slices.insert(slice["slice"].as_str().unwrap(), slice);
    }
    assert_eq!(slices.keys().copied().collect::<Vec<_>>(), TENANTS);
    for name in TENANTS {
        let of = || sent.iter().filter(|one| of_tenant(one) == Some(name));
        let pairs = Pairs::count(of(), &shadow);
        let slice = slices[name];
        assert_eq!(Pairs::of(&slice["pairs"]), pairs, "{slice:#}");
        let ([both, _, different, _], count) = (pairs.0, of().count() as u64);
        let verdicts = json!({
            "match": count - different - both, "different": different, "error": 0, "both_failed": both
        });
        assert_eq!(slice["verdicts"], verdicts, "{slice:#}");
        let labels = [("slice", name), ("verdict", "different")];
        let name = "modelmirror_shadow_slice_comparisons_total";
        let metrics = scene.shadow_metrics();
        assert_eq!(metrics.sum(name, &labels), different as f64, "{metrics}");
    }

    // Each pair of one request: what the client waited for, and what the shadow took.
    let slowest = sent.iter().map(|one| one.latency).max().unwrap();
    let bucket = |time: Duration| Latency::bucket(time.as_nanos() as u64) as u64;
    let mut count = 0;
    for pair in summary["latency_pairs"].as_array().unwrap() {
        let figures = [0, 1, 2].map(|index| pair[index].as_u64().unwrap());
        let [production, shadow, requests] = figures;
        assert!(production <= bucket(slowest), "{pair} {slowest:?}");
        // The agent looks at its clock after it has written, which on a busy machine may be late.
        assert!(shadow >= bucket(LATE / 2), "{pair}");
        count += requests;
    }
    assert_eq!(count, sent.len() as u64);
}

#[test]
fn a_shadow_that_is_not_there_has_failed() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.start();
    scene.model = None;
    let sent = scene.load(2, 10, |_, index| {
        Request::post("/echo", &pattern(100, index as u64))
    });
    let told = || -> anyhow::Result<Value> {
        let summary = scene.agent().summary()?;
        let compared = summary["compared"].as_u64().context("a number")?;
        ensure!(compared == sent.len() as u64, "{summary:#}");
        Ok(summary)
    };
    let summary = eventually("all are compared", told);
    let pairs = Pairs([0, 0, sent.len() as u64, 0]);
    assert_eq!(Pairs::of(&summary["pairs"]), pairs, "{summary:#}");
    assert_eq!(summary["latency_pairs"], json!([]), "{summary:#}");
    assert_eq!(summary["answered"], 0, "{summary:#}");
}
