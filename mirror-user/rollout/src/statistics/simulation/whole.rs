//! Whole rollouts by the machine itself, with all the gates of a plan: how often one of an equal version is
//! taken back, and which gate did it.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::machine::Rollout;
use crate::plan::{Plan, Target};
use crate::record::{Event, Started};
use crate::state::By;
use crate::state::State;
use crate::window;
use crate::window::Arm;

/// How often requests of either version end so, one in so many.
const CLIENT_ERRORS: u64 = 50;
const REDIRECTS: u64 = 100;
const EMPTY: u64 = 200;
const ABORTED: u64 = 200;

/// How many requests a connection carries, and how many connections are reset, one in so many.
const REQUESTS_OF_CONNECTION: u64 = 5;
const RESETS: u64 = 500;

/// A body's length as it is counted: 3 KB, and nothing.
const BODY: u64 = 3_000 * 1_024;

/// What a version did in a second in which `requests` of its requests ended.
pub(super) fn arm(rng: &mut SmallRng, errors: Counts, latencies: &Latencies) -> Arm {
    let requests = errors.trials;
    let mut drawn = |trials: u64, one_in: u64| {
        let hits = (0..trials).filter(|_| rng.next_u64().is_multiple_of(one_in));
        hits.count() as u64
    };
    let aborted = drawn(requests, ABORTED);
    let empty = drawn(requests - aborted, EMPTY);
    let connections = requests / REQUESTS_OF_CONNECTION;
    let body = |bytes: u64| u16::try_from(Latency::bucket(bytes)).unwrap_or(u16::MAX);
    let sizes = [(body(0), empty), (body(BODY), requests - aborted - empty)];
    Arm {
        connections,
        resets: drawn(connections, RESETS),
        request_bytes: requests,
        response_bytes: requests,
        requests,
        responses: requests - aborted,
        client_errors: drawn(requests, CLIENT_ERRORS),
        redirects: drawn(requests, REDIRECTS),
        errors: errors.events,
        aborted,
        sizes: sizes.into_iter().collect(),
        first_body: latencies.clone(),
        complete: latencies.clone(),
        ..Arm::default()
    }
}

/// How a rollout by this plan begins.
pub(super) fn started(plan: &Plan) -> Started {
    Started {
        id: "simulated".to_owned(),
        service: "simulated".to_owned(),
        stable: "v12".to_owned(),
        canary: Target {
            version: "v13".to_owned(),
            address: ([10, 0, 0, 5], 8001).into(),
        },
        plan: plan.clone(),
        by: By {
            who: "simulation".to_owned(),
            reason: None,
        },
    }
}

/// How a rollout of three hours at most has ended: as its state says, or with the gate that took it back.
fn end(world: &mut World, plan: &Plan, requests: u32) -> String {
    let mut now = Timestamp::UNIX_EPOCH;
    let mut rollout = Rollout::start(started(plan), now);
    for second in 0..3 * 3_600 {
        // Every ten minutes everybody fails three times as often for one.
        let worse = if second % 600 < 60 { 3.0 } else { 1.0 };
        let seen = world.window(requests, f64::from(rollout.share()), worse);
        let [stable, canary] =
            [0, 1].map(|at: usize| arm(&mut world.rng, seen.errors[at], &seen.latencies[at]));
        let window = window::Window {
            stable,
            canary,
            ..window::Window::default()
        };
        now += SignedDuration::from_secs(1);
        rollout.tell(&Event::Seen(Box::new(window)), now);
        match rollout.state() {
            State::RollingBack { why, .. } => return format!("rolled back: {}", gate_of(why)),
            State::Promoted | State::Held { .. } => break,
            _ => {}
        }
    }
    rollout.state().to_string()
}

pub(super) fn gate_of(why: &str) -> &str {
    why.split(" is beyond").next().unwrap_or(why)
}

/// What so many rollouts of an equal version have come to.
fn ends(runs: u32, plan: &Plan, requests: u32) -> BTreeMap<String, u32> {
    let mut world = World::new(17, EQUAL, EQUAL);
    let mut ends = BTreeMap::new();
    for _ in 0..runs {
        *ends.entry(end(&mut world, plan, requests)).or_default() += 1;
    }
    ends
}

fn taken_back(ends: &BTreeMap<String, u32>) -> u32 {
    let back = ends
        .iter()
        .filter(|(end, _)| end.starts_with("rolled back"));
    back.map(|(_, count)| count).sum()
}

/// A default plan, with limits at which an equal version just is where `nothing`.
fn plan(nothing: bool) -> Plan {
    let mut plan = Plan::default();
    if nothing {
        let canary = &mut plan.canary;
        (canary.max_error_delta, canary.max_latency_ratio) = (0.0, 1.0);
        (canary.max_client_error_delta, canary.max_redirect_delta) = (0.0, 0.0);
        (canary.max_short_delta, canary.max_aborted_delta) = (0.0, 0.0);
    }
    plan
}

#[test]
fn whole_rollouts_of_an_equal_version_are_not_taken_back() {
    for nothing in [false, true] {
        let mut plan = plan(nothing);
        plan.canary.min_duration = Duration::from_secs(20);
        plan.canary.max_duration = Duration::from_secs(60);
        plan.canary.bake = Duration::from_secs(10);
        let ends = ends(100, &plan, 60);
        assert!(taken_back(&ends) <= 2, "{ends:?}");
    }
}

#[test]
#[ignore = "prints a table of docs/decisions.md; minutes"]
fn table_whole() {
    for nothing in [false, true] {
        let ends = ends(2_000, &plan(nothing), 200);
        println!(
            "nothing: {nothing}, taken back {}: {ends:#?}",
            taken_back(&ends)
        );
    }
}
