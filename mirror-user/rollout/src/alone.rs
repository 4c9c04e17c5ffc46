//! What the canary does with nobody beside it, held against what stable did while both served. That accuses nobody:
//! what came over the canary may have come over stable as well.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;

use super::gates::elapsed;
use super::plan::{Baseline, Plan};
use super::statistics::{Counts, Latencies};
use super::window::Window;

/// What happens by itself in one of twenty minutes is no incident.
const USUAL: f64 = 3.0;

/// How long an incident is remembered.
const INCIDENT: Duration = Duration::from_secs(60);

/// Tails come and go with whatever else the host does; without a version beside it they say nothing.
const MEDIAN: f64 = 0.5;

/// How slow stable is, is learnt anew after so long: load comes and goes with the hours.
const LATE: Duration = Duration::from_secs(300);

/// Both versions' requests, while they can be held against each other in time alone.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Alone {
    /// What failed of stable's while both served.
    failed: Counts,
    /// Until stable's bodies began: of late, and before.
    waited: [Latencies; 2],
    since: Option<Timestamp>,
    /// The canary's last minute, where it serves alone.
    last: VecDeque<(Timestamp, Counts, Latencies)>,
}

impl Alone {
    /// Takes in a window, in which the canary had everything or not.
    pub(super) fn see(&mut self, window: &Window, is_alone: bool, now: Timestamp) {
        self.last
            .retain(|(then, ..)| is_alone && elapsed(*then, now) < INCIDENT);
        if is_alone {
            let canary = &window.canary;
            let last = (now, canary.failed(), canary.first_body.clone());
            self.last.push_back(last);
            return;
        }
        let stable = &window.stable;
        self.failed.add(stable.failed());
        let since = *self.since.get_or_insert(now);
        if elapsed(since, now) >= LATE {
            let late = std::mem::take(&mut self.waited[0]);
            (self.waited[1], self.since) = (late, Some(now));
        }
        self.waited[0].add(&stable.first_body);
    }

    /// Why the canary is not well, if it is not.
    pub(super) fn incident(&self, plan: &Plan, now: Timestamp) -> Option<String> {
        let (mut failed, mut waited) = (Counts::default(), Latencies::default());
        let last = self.last.iter();
        for (_, counts, latencies) in last.filter(|(then, ..)| elapsed(*then, now) < INCIDENT) {
            failed.add(*counts);
            waited.add(latencies);
        }
        let what = self
            .fails(failed, plan.canary.max_error_delta)
            .or_else(|| self.lags(&waited, plan))?;
        Some(format!(
            "{what}: with nobody beside it, nobody knows whether it is the canary"
        ))
    }

    fn fails(&self, failed: Counts, max_error_delta: f64) -> Option<String> {
        let usual = self.failed.events as f64 / self.failed.trials.max(1) as f64;
        let is_one = self.failed.trials > 0 && failed.surprise(usual + max_error_delta) >= USUAL;
        is_one.then(|| {
            format!(
                "{} of {} requests failed in the last minute, of stable's {:.2} % before",
                failed.events,
                failed.trials,
                usual * 100.0
            )
        })
    }

    fn lags(&self, waited: &Latencies, plan: &Plan) -> Option<String> {
        let limits = &plan.canary;
        if plan.baseline != Baseline::Stable || !limits.compares_latency() {
            return None;
        }
        let mut usual = self.waited[0].clone();
        usual.add(&self.waited[1]);
        let before = usual.quantile(MEDIAN)?;
        let limit = before.mul_f64(limits.max_latency_ratio);
        let longer = waited.longer_than(limit.as_nanos() as u64);
        let is_one = longer.surprise(1.0 - MEDIAN) >= USUAL;
        let of_late = waited.quantile(MEDIAN).filter(|_| is_one)?;
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        Some(format!(
            "p50 was {:.1} ms in the last minute, stable's {:.1} ms before",
            ms(of_late),
            ms(before)
        ))
    }
}
