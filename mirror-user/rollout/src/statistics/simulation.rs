//! Simulated rollouts: how often an equal version is taken back, how soon a worse one is caught, and
//! what a window costs. The tables of docs/decisions.md:
//!
//!     cargo test --release -p mirror-rollout --lib -- --ignored --nocapture simulation

mod oracle;
mod power;
mod rivals;
mod servers;
mod whole;
mod worlds;

use mirror_common::histogram::Latency;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

/// How a version behaves.
#[derive(Clone, Copy, Debug)]
struct Version {
    /// Share of requests that fail.
    errors: f64,
    /// Its latencies as a multiple of the others'.
    slower: f64,
}

const EQUAL: Version = Version {
    errors: 0.01,
    slower: 1.0,
};

/// Requests of two versions, drawn one by one: a request fails, and is slow, whatever others do.
struct World {
    rng: SmallRng,
    versions: [Version; 2],
    /// Buckets of equally likely latencies.
    latencies: [Vec<u16>; 2],
}

struct Window {
    errors: [Counts; 2],
    latencies: [Latencies; 2],
    /// The latencies' buckets, as they came.
    drawn: [Vec<u16>; 2],
}

impl World {
    fn new(seed: u64, stable: Version, canary: Version) -> Self {
        let versions = [stable, canary];
        Self {
            rng: SmallRng::seed_from_u64(seed),
            versions,
            latencies: versions.map(|version| lognormal(version.slower)),
        }
    }

    /// So many requests, each the canary's with this chance, failing `worse` times as often as usual.
    fn window(&mut self, requests: u32, share: f64, worse: f64) -> Window {
        let share = (share * f64::from(1u32 << 20)) as u64;
        let errors = self
            .versions
            .map(|version| (version.errors * worse * 2f64.powi(32)) as u64);
        let mut counts = [Counts::default(); 2];
        let mut buckets = [[0u64; latencies::BUCKETS]; 2];
        let mut drawn = [Vec::new(), Vec::new()];
        for _ in 0..requests {
            let random = self.rng.next_u64();
            let arm = usize::from(random >> 44 < share);
            counts[arm].trials += 1;
            counts[arm].events += u64::from((random >> 12) & 0xffff_ffff < errors[arm]);
            let latency = self.latencies[arm][(random & 0xfff) as usize];
            buckets[arm][usize::from(latency)] += 1;
            drawn[arm].push(latency);
        }
        let latencies = buckets.map(|buckets| (0..).zip(buckets).collect());
        Window {
            errors: counts,
            latencies,
            drawn,
        }
    }
}

/// 4096 latencies of a lognormal distribution around 20 ms, the 99th percentile at 64 ms.
fn lognormal(slower: f64) -> Vec<u16> {
    let mut sum = 0.0;
    let mut at = -4.0;
    let step = 1e-4;
    let mut latencies = Vec::new();
    while latencies.len() < 4096 {
        sum += step * (-at * at / 2f64).exp() / std::f64::consts::TAU.sqrt();
        at += step;
        while latencies.len() < 4096 && (sum > (latencies.len() as f64 + 0.5) / 4096.0 || at > 4.0)
        {
            latencies.push(Latency::bucket((20e6 * slower * (0.5 * at).exp()) as u64) as u16);
        }
    }
    latencies
}

/// The gates of a plan that compares errors and latency, the budget in equal parts.
struct Gates {
    errors: RateDifference,
    median: QuantileRatio,
    tail: QuantileRatio,
    hard: Rate,
}

/// One minus the confidence, for each of the gates.
const ALPHA: f64 = 0.01 / 4.0;

impl Gates {
    fn new(delta: f64, ratio: f64) -> Self {
        Self {
            errors: RateDifference::new(delta, ALPHA),
            median: QuantileRatio::new(0.5, ratio, ALPHA),
            tail: QuantileRatio::new(0.99, ratio, ALPHA),
            hard: Rate::at_most(0.5, ALPHA),
        }
    }

    fn observe(&mut self, window: &Window) {
        let ([stable, canary], [usual, new]) = (window.errors, &window.latencies);
        self.errors.observe(stable, canary);
        self.median.observe(usual, new);
        self.tail.observe(usual, new);
        self.hard.observe(canary);
    }

    fn findings(&self) -> [Finding; 4] {
        [
            self.errors.finding(),
            self.median.finding(),
            self.tail.finding(),
            self.hard.finding(),
        ]
    }
}

/// Stages of so many windows each, looked at after every one: whether the canary was taken back, and
/// whether it was proven within all limits at the end.
fn rollout(world: &mut World, mut gates: Gates, windows: u32, requests: u32) -> (bool, bool) {
    for share in [0.01, 0.05, 0.25, 0.5] {
        for window in 0..windows {
            // Twice in a stage everybody fails three times as often as otherwise.
            let worse = if window % (windows / 2) < windows / 10 {
                3.0
            } else {
                1.0
            };
            gates.observe(&world.window(requests, share, worse));
            if gates
                .findings()
                .iter()
                .any(|finding| finding.verdict == Verdict::Worse)
            {
                return (true, false);
            }
        }
    }
    let within = gates
        .findings()
        .iter()
        .all(|finding| finding.verdict == Verdict::Within);
    (false, within)
}

/// How many of so many rollouts of an equal version were taken back, and how many proven.
fn equal_rollouts(runs: u32, [delta, ratio]: [f64; 2], windows: u32, requests: u32) -> [u32; 2] {
    let mut world = World::new(7, EQUAL, EQUAL);
    let outcomes =
        (0..runs).map(|_| rollout(&mut world, Gates::new(delta, ratio), windows, requests));
    outcomes.fold([0, 0], |[back, proven], outcome| {
        [back + u32::from(outcome.0), proven + u32::from(outcome.1)]
    })
}

/// Limits as in a default plan, and limits of nothing: an equal version is then just at them, which
/// is where false alarms are likeliest.
const DEFAULT: [f64; 2] = [0.005, 1.2];
const NOTHING: [f64; 2] = [0.0, 1.0];

fn few_are_taken_back(limits: [f64; 2]) {
    let [back, proven] = equal_rollouts(2_000, limits, 20, 60);
    println!("{limits:?}: {back} of 2000 taken back, {proven} proven");
    assert!(back < 20, "{back} of 2000 taken back with {limits:?}");
}

#[test]
fn an_equal_version_is_not_taken_back() {
    few_are_taken_back(DEFAULT);
}

#[test]
fn an_equal_version_is_not_taken_back_with_limits_of_nothing() {
    few_are_taken_back(NOTHING);
}

#[test]
#[ignore = "prints a table of docs/decisions.md; minutes"]
fn table_equal() {
    for limits in [DEFAULT, NOTHING] {
        let [back, proven] = equal_rollouts(2_000, limits, 300, 300);
        println!(
            "| {} | {} | {back} of 2000 | {proven} of 2000 |",
            limits[0], limits[1]
        );
    }
}
