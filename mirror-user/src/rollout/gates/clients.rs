//! The gates of the stages with clients.

use jiff::Timestamp;

use super::resources::Resources;
use super::{Events, Gate, Role, Unit, percent};
use crate::rollout::plan::{Baseline, Canary, Plan};
use crate::rollout::record::Arm;
use crate::rollout::statistics::{Counts, QuantileRatio, Rate, Verdict};

/// What the canary has shown before clients so far.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Clients {
    limits: Canary,
    alpha: f64,
    errors: Events,
    resets: Events,
    hard: Rate,
    p50: Option<QuantileRatio>,
    p99: Option<QuantileRatio>,
    slow: Option<Rate>,
    resources: Resources,
    /// What it does when it has everything, against what stable did while both served.
    alone: Option<Rate>,
    stable: Counts,
}

/// How many gates can be wrong by chance.
pub(super) fn tests(limits: &Canary, compared: bool) -> usize {
    let optional = [
        limits.max_latency.is_some(),
        limits.max_cpu_ratio.is_some(),
        limits.max_memory_ratio.is_some(),
    ];
    // Errors, resets, hard errors, and errors alone; both quantiles.
    4 + if compared { 2 } else { 0 } + optional.into_iter().filter(|is_asked| *is_asked).count()
}

impl Clients {
    pub(super) fn new(plan: &Plan, alpha: f64) -> Self {
        let limits = plan.canary.clone();
        let compared = plan.baseline == Baseline::Stable;
        let ratio = |quantile| QuantileRatio::new(quantile, limits.max_latency_ratio, alpha);
        Self {
            alpha,
            errors: Events::new(compared, limits.max_error_delta, alpha),
            resets: Events::new(compared, limits.hard_reset_delta, alpha),
            hard: Rate::at_most(limits.hard_error_rate, alpha),
            p50: compared.then(|| ratio(0.5)),
            p99: compared.then(|| ratio(0.99)),
            slow: limits.max_latency.map(|_| Rate::at_most(0.01, alpha)),
            resources: Resources::new(limits.max_cpu_ratio, limits.max_memory_ratio, alpha),
            alone: None,
            stable: Counts::default(),
            limits,
        }
    }

    pub(super) fn see(&mut self, stable: &Arm, canary: &Arm, stable_fails: bool, now: Timestamp) {
        let [stable_failed, canary_failed] = [stable, canary].map(Arm::failed);
        self.errors.observe(stable_failed, canary_failed);
        self.resets
            .observe(stable.were_reset(), canary.were_reset());
        let limit = self.limits.hard_error_rate;
        let fails_now = stable_failed.events as f64 > stable_failed.trials as f64 * limit;
        if !stable_fails && !fails_now {
            self.hard.observe(canary_failed);
        }
        for test in [&mut self.p50, &mut self.p99].into_iter().flatten() {
            test.observe(&stable.first_byte, &canary.first_byte);
        }
        if let (Some(test), Some(limit)) = (&mut self.slow, self.limits.max_latency) {
            let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
            test.observe(canary.first_byte.longer_than(limit));
        }
        let used = [stable, canary].map(|arm| (arm.responses, arm.cpu_seconds, arm.resident_bytes));
        self.resources.observe(used, now);
        match &mut self.alone {
            Some(test) => test.observe(canary_failed),
            None => self.stable.add(stable_failed),
        }
    }

    /// See [`Evidence::stand_alone`](super::Evidence::stand_alone).
    pub(super) fn stand_alone(&mut self) {
        if self.alone.is_none() && self.stable.trials > 0 {
            let rate = self.stable.events as f64 / self.stable.trials as f64;
            let limit = (rate + self.limits.max_error_delta).min(0.999);
            self.alone = Some(Rate::at_most(limit, self.alpha));
        }
    }

    pub(super) fn severe(&self) -> Option<String> {
        let hard = self.hard.finding();
        if hard.verdict == Verdict::Worse {
            let ([_, events], [_, trials]) = (hard.events, hard.trials);
            let limit = self.limits.hard_error_rate;
            return Some(format!(
                "{events} of {trials} answers of the canary failed, which is proven to be more than hard_error_rate = {limit}"
            ));
        }
        let resets = self.resets.finding();
        (resets.verdict == Verdict::Worse).then(|| {
            let ([_, events], [_, trials]) = (resets.events, resets.trials);
            let limit = self.limits.hard_reset_delta;
            format!(
                "the canary's server reset {events} of {trials} connections, which is proven to be beyond hard_reset_delta = {limit}"
            )
        })
    }

    pub(super) fn gates(&self) -> Vec<Gate> {
        let limits = &self.limits;
        let mut gates = vec![self.errors.gate("errors", limits.max_error_delta)];
        let ratio = format!("at most {} times stable's", limits.max_latency_ratio);
        for (name, test) in [("p50", &self.p50), ("p99", &self.p99)] {
            let finding = test.as_ref().map(QuantileRatio::finding);
            gates
                .extend(finding.map(|finding| Gate::of(name, Unit::Ratio, ratio.clone(), finding)));
        }
        if let (Some(test), Some(limit)) = (&self.slow, limits.max_latency) {
            let limit = humantime::format_duration(limit);
            let limit = format!("at most 1 % slower than {limit}");
            gates.push(Gate::of("latency", Unit::Share, limit, test.finding()));
        }
        if let Some(test) = &self.alone {
            let limit = percent(limits.max_error_delta);
            let limit = format!("at most {limit} more than stable had before");
            gates.push(
                Gate::of("errors alone", Unit::Share, limit, test.finding()).with(Role::Watch),
            );
        }
        let limit = format!("at most {}", percent(limits.hard_error_rate));
        let hard = Gate::of("hard errors", Unit::Share, limit, self.hard.finding());
        gates.push(hard.with(Role::Severe));
        gates.push(
            self.resets
                .gate("resets", limits.hard_reset_delta)
                .with(Role::Severe),
        );
        gates.extend(self.resources.gates(""));
        gates
    }
}
