//! CPU seconds and memory of the new version against the old one's.
//!
//! Both are measured for a server as a whole, and move slowly: what a window of a second says is no
//! independent sample. They are held against each other every ten seconds, and whether the new
//! version used too much is a coin: for one that uses exactly as much as it may, it falls either way.

use std::time::Duration;

use jiff::Timestamp;

use super::{Gate, Role, Unit, elapsed};
use crate::statistics::{Counts, Rate};

/// How long figures are gathered before they are held against each other.
const WINDOW: Duration = Duration::from_secs(10);

/// A span in which the new version answers fewer requests than this says nothing of each.
const FEWEST: f64 = 10.0;

/// Requests, CPU seconds, bytes in RAM.
type Used = (f64, Option<f64>, Option<u64>);

/// What both servers use.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Resources {
    cpu: Option<(f64, Rate)>,
    memory: Option<(f64, Rate)>,
    since: Option<Timestamp>,
    gathered: [(f64, f64); 2],
    /// The last ratios that could be formed.
    ratios: [Option<f64>; 2],
}

impl Resources {
    /// Limits on the ratios, the new version's to the old one's.
    pub(super) fn new(max_cpu: Option<f64>, max_memory: Option<f64>, alpha: f64) -> Self {
        let test = |limit: Option<f64>| limit.map(|limit| (limit, Rate::at_most(0.5, alpha)));
        Self {
            cpu: test(max_cpu),
            memory: test(max_memory),
            since: None,
            gathered: Default::default(),
            ratios: [None, None],
        }
    }

    /// Takes in what both used: the old version, then the new one.
    pub(super) fn observe(&mut self, used: [Used; 2], now: Timestamp) {
        for ((requests, cpu), (more, seconds, _)) in self.gathered.iter_mut().zip(used) {
            *requests += more;
            *cpu += seconds.unwrap_or_default();
        }
        let since = *self.since.get_or_insert(now);
        let [(_, _, old_bytes), (_, _, new_bytes)] = used;
        let (Some(old_bytes), Some(new_bytes)) = (old_bytes, new_bytes) else {
            return;
        };
        if elapsed(since, now) < WINDOW {
            return;
        }
        self.since = Some(now);
        let [(old, old_cpu), (new, new_cpu)] = std::mem::take(&mut self.gathered);
        let toss = |test: &mut Option<(f64, Rate)>, ratio: f64| {
            let (limit, test) = test.as_mut()?;
            if !ratio.is_finite() {
                return None;
            }
            let events = u64::from(ratio > *limit);
            test.observe(Counts { events, trials: 1 });
            Some(ratio)
        };
        if old >= FEWEST && new >= FEWEST && old_cpu > 0.0 {
            let ratio = (new_cpu / new) / (old_cpu / old);
            self.ratios[0] = toss(&mut self.cpu, ratio).or(self.ratios[0]);
        }
        if old_bytes > 0 {
            let ratio = new_bytes as f64 / old_bytes as f64;
            self.ratios[1] = toss(&mut self.memory, ratio).or(self.ratios[1]);
        }
    }

    /// The gates, if there are limits.
    pub(super) fn gates(&self, prefix: &str) -> Vec<Gate> {
        let parts = [
            ("cpu", "CPU seconds a request", &self.cpu, self.ratios[0]),
            ("memory", "memory", &self.memory, self.ratios[1]),
        ];
        let gate = |(name, what, test, ratio): (_, _, &Option<(f64, Rate)>, Option<f64>)| {
            let (limit, test) = test.as_ref()?;
            let finding = test.finding();
            Some(Gate {
                name: format!("{prefix}{name}"),
                verdict: finding.verdict,
                limit: format!("at most {limit} times the {what}"),
                unit: Unit::Spans,
                finding: Some(finding),
                value: ratio,
                note: None,
                role: Role::Proof,
            })
        };
        parts.into_iter().filter_map(gate).collect()
    }
}
