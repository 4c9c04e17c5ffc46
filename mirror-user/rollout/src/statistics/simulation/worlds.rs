//! The worlds that servers live in: none of them is made of independent requests. Whole rollouts by the machine
//! itself, with all the gates of a plan.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::rivals;
use super::servers::{CALM, Nature, Servers};
use super::whole::{gate_of, started};
use crate::Share;
use crate::machine::Rollout;
use crate::plan::Plan;
use crate::record::Event;
use crate::state::State;

/// How a rollout has ended.
struct End {
    /// As its state says, or with the gate that took it back.
    how: String,
    /// What the canary was asked until then, at that stage and once it was warm.
    requests: u64,
}

fn end(nature: Nature, plan: &Plan, seed: u64) -> End {
    let mut servers = Servers::new(nature, seed);
    let mut now = Timestamp::UNIX_EPOCH;
    let mut rollout = Rollout::start(started(plan), now);
    loop {
        let seen = servers.window(f64::from(rollout.share()));
        now += SignedDuration::from_secs(1);
        rollout.tell(&Event::Seen(Box::new(seen)), now);
        let how = match rollout.state() {
            State::RollingBack { why, .. } => format!("rolled back: {}", gate_of(why)),
            State::Going(_) => continue,
            state => state.to_string(),
        };
        let [_, requests] = rollout.requests();
        return End { how, requests };
    }
}

/// What so many runs come to, by as many threads as there are processors.
fn many<T: Send>(runs: u64, run: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64);
    std::thread::scope(|scope| {
        let part = |of: u64| (of..runs).step_by(threads as usize);
        let all: Vec<_> = (0..threads)
            .map(|of| {
                let run = &run;
                scope.spawn(move || part(of).map(run).collect::<Vec<_>>())
            })
            .collect();
        all.into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    })
}

/// What so many rollouts have come to.
#[derive(Debug, Default)]
struct Ends {
    ways: BTreeMap<String, u64>,
    /// What those that were taken back had been asked.
    until: Vec<u64>,
}

impl Ends {
    fn of(nature: Nature, plan: &Plan, runs: u64) -> Self {
        let mut ends = Self::default();
        for End { how, requests } in many(runs, |seed| end(nature, plan, seed)) {
            if how.starts_with("rolled back") {
                ends.until.push(requests);
            }
            *ends.ways.entry(how).or_default() += 1;
        }
        ends
    }

    fn count(&self, begins: &str) -> u64 {
        let such = self.ways.iter().filter(|(end, _)| end.starts_with(begins));
        such.map(|(_, count)| count).sum()
    }
}

fn median(mut values: Vec<u64>) -> String {
    values.sort_unstable();
    values
        .get(values.len() / 2)
        .map_or_else(String::new, |median| format!(" ({median})"))
}

fn incident(share: f64, seconds: u32) -> Nature {
    Nature {
        incident: Some((share, seconds, 0.3)),
        ..CALM
    }
}

/// In all of them the canary is as good as stable.
fn worlds() -> Vec<(&'static str, Nature)> {
    let pauses = |pauses| Nature { pauses, ..CALM };
    let wander = |wander| Nature { wander, ..CALM };
    let bursts = |bursts| Nature { bursts, ..CALM };
    let retries = |fails_again| Nature {
        fails_again,
        ..CALM
    };
    let errors = |errors| Nature { errors, ..CALM };
    vec![
        ("independent requests", CALM),
        ("load rises and falls by 80 %", Nature { tide: 0.8, ..CALM }),
        ("a server pauses in 0.05 % of seconds", pauses(0.000_5)),
        ("in 0.2 %", pauses(0.002)),
        ("in 1 %", pauses(0.01)),
        ("a server's latency wanders by 10 %", wander(0.1)),
        ("by 15 %", wander(0.15)),
        ("by 30 %", wander(0.3)),
        ("5 % of errors come in bursts of 20", bursts(0.05)),
        ("10 %", bursts(0.1)),
        ("50 %", bursts(0.5)),
        (
            "a failure is repeated, and fails again in 50 %",
            retries(0.5),
        ),
        ("in 70 %", retries(0.7)),
        (
            "both fail 30 points more for 60 s at 1 %",
            incident(0.01, 60),
        ),
        ("at 5 %", incident(0.05, 60)),
        ("at 25 %", incident(0.25, 60)),
        ("for 10 s at 100 %", incident(1.0, 10)),
        ("both always fail in 20 %", errors(0.2)),
        ("in 30 %", errors(0.3)),
        (
            "100 uneven clients (Zipf), each with one version",
            Nature {
                clients: 100,
                uneven: 1.0,
                ..CALM
            },
        ),
        (
            "1,000 even clients",
            Nature {
                clients: 1_000,
                ..CALM
            },
        ),
        (
            "the canary is twice as slow in its first 30 s",
            Nature {
                slower: (2.0, 30),
                ..CALM
            },
        ),
    ]
}

/// Those in which the canary is as good as stable, and such in which it is not; each with its plan.
fn all() -> Vec<(&'static str, Nature, Plan)> {
    let half = || Plan {
        stages: [0.5, 1.0].into_iter().flat_map(Share::try_from).collect(),
        ..Plan::default()
    };
    let even = Nature {
        clients: 1_000,
        ..FAILS_MORE
    };
    let slower_from = |slower_from| Nature {
        slower_from,
        ..SLOWER
    };
    let worse = [
        (
            "the canary fails 2 points more",
            FAILS_MORE,
            Plan::default(),
        ),
        ("the same before 1,000 even clients", even, Plan::default()),
        ("it fails 2 points more, from 50 % on", FAILS_MORE, half()),
        ("the same to 1,000 even clients", even, half()),
        ("the canary is three times slower", SLOWER, Plan::default()),
        ("only from 25 % on", slower_from(0.25), Plan::default()),
        ("only from 95 % on", slower_from(0.95), Plan::default()),
        ("only with everything", slower_from(1.0), Plan::default()),
    ];
    let equal = worlds().into_iter();
    let equal = equal.map(|(name, nature)| (name, nature, Plan::default()));
    equal.chain(worse).collect()
}

const FAILS_MORE: Nature = Nature {
    worse: 0.02,
    ..CALM
};

const SLOWER: Nature = Nature {
    slower: (3.0, u32::MAX),
    ..CALM
};

/// Shorter than the default by far, but with each of its steps.
fn short() -> Plan {
    let stages = [0.05, 0.5, 1.0].into_iter().flat_map(Share::try_from);
    let mut plan = Plan {
        stages: stages.collect(),
        ..Plan::default()
    };
    let canary = &mut plan.canary;
    canary.warmup = Duration::from_secs(30);
    canary.min_duration = Duration::from_secs(30);
    canary.max_duration = Duration::from_secs(120);
    canary.bake = Duration::from_secs(30);
    canary.min_requests = 100;
    plan
}

#[test]
fn an_equal_version_is_not_taken_back_in_any_world() {
    let mut back = Vec::new();
    for (name, nature) in worlds() {
        let ends = Ends::of(nature, &short(), 6);
        if ends.count("rolled back") > 0 {
            back.push((name, ends));
        }
    }
    assert!(back.is_empty(), "{back:?}");
}

#[test]
fn a_worse_version_is_never_promoted() {
    for nature in [
        FAILS_MORE,
        SLOWER,
        Nature {
            wander: 0.3,
            ..SLOWER
        },
        Nature {
            slower_from: 1.0,
            ..SLOWER
        },
    ] {
        let ends = Ends::of(nature, &short(), 2);
        assert_eq!(ends.count("promoted"), 0, "{ends:?}");
    }
}

/// Beside the rivals; for those that are taken back, the median of what the canary was asked until then.
#[test]
#[ignore = "prints the table of `cargo xtask bench --decisions`; minutes to hours"]
fn table_worlds() {
    let runs = std::env::var("RUNS").map_or(20, |runs| runs.parse().unwrap());
    let only = std::env::var("WORLD").unwrap_or_default();
    println!(
        "| {runs} rollouts a world | rolled back | held | promoted | fixed samples | Kayenta-like | mSPRT |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut wanted = all();
    if wanted.iter().any(|(name, ..)| *name == only) {
        wanted.retain(|(name, ..)| *name == only);
    }
    wanted.retain(|(name, ..)| name.contains(&only));
    for (name, nature, plan) in wanted {
        let ends = Ends::of(nature, &plan, runs);
        let [back, held, promoted] = ["rolled back", "held", "promoted"].map(|end| ends.count(end));
        let others = many(runs, |seed| rivals::taken_back(nature, &plan, seed));
        let rivals = [0, 1, 2].map(|rival: usize| {
            let until: Vec<u64> = others.iter().filter_map(|back| back[rival]).collect();
            format!("{}{}", until.len(), median(until))
        });
        let until = median(ends.until);
        let rivals = rivals.join(" | ");
        println!(
            "| {name} | {back}{until} | {held} | {promoted} | {rivals} | <!-- {:?} -->",
            ends.ways
        );
    }
}
