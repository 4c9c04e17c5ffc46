//! The gates of the shadow: comparisons are pairs, and tested as pairs.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::resources::Resources;
use super::{Gate, Role, Unit, counts, percent};
use crate::rollout::plan::{Baseline, Shadow as Limits};
use crate::rollout::record::{Arm, Shadow};
use crate::rollout::statistics::{PairedDifference, PairedQuantileRatio, Rate};

/// At most so many slices are told apart, and "other": each has an even part of one gate's budget.
const SLICES: f64 = 101.0;

/// What the shadow has shown so far.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Compared {
    limits: Limits,
    alpha: f64,
    against: Against,
    accuracy: Option<PairedDifference>,
    resources: Resources,
}

/// What its answers are held against.
#[derive(Clone, Debug, PartialEq)]
enum Against {
    Production {
        agreement: Rate,
        slices: BTreeMap<String, Rate>,
        errors: PairedDifference,
        p99: Box<PairedQuantileRatio>,
    },
    Nothing {
        failures: Rate,
    },
}

/// How many gates can be wrong by chance.
pub(super) fn tests(limits: &Limits, compared: bool) -> usize {
    let optional = [
        limits.max_accuracy_drop.is_some(),
        limits.max_cpu_ratio.is_some(),
        limits.max_memory_ratio.is_some(),
    ];
    // Errors; agreement, latency, and all slices together.
    1 + if compared { 3 } else { 0 } + optional.into_iter().filter(|is_asked| *is_asked).count()
}

impl Compared {
    pub(super) fn new(limits: &Limits, baseline: &Baseline, alpha: f64) -> Self {
        let against = if *baseline == Baseline::Stable {
            Against::Production {
                agreement: Rate::at_least(limits.agreement, alpha),
                slices: BTreeMap::new(),
                errors: PairedDifference::new(limits.max_error_delta, alpha),
                p99: Box::new(PairedQuantileRatio::new(
                    0.99,
                    limits.max_latency_ratio,
                    alpha,
                )),
            }
        } else {
            Against::Nothing {
                failures: Rate::at_most(limits.max_error_delta, alpha),
            }
        };
        let drop = limits.max_accuracy_drop;
        Self {
            against,
            accuracy: drop.map(|drop| PairedDifference::new(drop, alpha)),
            resources: Resources::new(limits.max_cpu_ratio, limits.max_memory_ratio, alpha),
            alpha,
            limits: limits.clone(),
        }
    }

    pub(super) fn see(&mut self, seen: &Shadow, stable: &Arm, now: Timestamp) {
        match &mut self.against {
            Against::Production {
                agreement,
                slices,
                errors,
                p99,
            } => {
                agreement.observe(counts(seen.matching, seen.compared));
                for (name, slice) in &seen.slices {
                    let fresh = || Rate::at_least(self.limits.agreement, self.alpha / SLICES);
                    let test = slices.entry(name.clone()).or_insert_with(fresh);
                    test.observe(counts(slice.matching, slice.compared));
                }
                errors.observe(seen.failures);
                p99.observe(&seen.latencies);
            }
            Against::Nothing { failures } => {
                let pairs = seen.failures;
                let failed = pairs.both + pairs.shadow_only;
                let others = pairs.production_only + pairs.neither;
                failures.observe(counts(failed, failed + others));
            }
        }
        if let (Some(test), Some(wrong)) = (&mut self.accuracy, seen.wrong) {
            test.observe(wrong);
        }
        let production = (stable.responses, stable.cpu_seconds, stable.resident_bytes);
        let shadow = (seen.answered, seen.cpu_seconds, seen.resident_bytes);
        self.resources.observe([production, shadow], now);
    }

    pub(super) fn gates(&self) -> Vec<Gate> {
        let limits = &self.limits;
        let delta = percent(limits.max_error_delta);
        let agreement_limit = format!("at least {}", percent(limits.agreement));
        let mut gates = Vec::new();
        match &self.against {
            Against::Production {
                agreement,
                errors,
                p99,
                ..
            } => {
                let limit = agreement_limit.clone();
                gates.push(Gate::of(
                    "agreement",
                    Unit::Share,
                    limit,
                    agreement.finding(),
                ));
                let limit = format!("at most {delta} more than production");
                gates.push(Gate::of(
                    "shadow errors",
                    Unit::Difference,
                    limit,
                    errors.finding(),
                ));
                let limit = format!("at most {} times production's", limits.max_latency_ratio);
                gates.push(Gate::of("shadow p99", Unit::Ratio, limit, p99.finding()));
            }
            Against::Nothing { failures } => {
                let limit = format!("at most {delta}");
                gates.push(Gate::of(
                    "shadow errors",
                    Unit::Share,
                    limit,
                    failures.finding(),
                ));
            }
        }
        if let (Some(test), Some(drop)) = (&self.accuracy, limits.max_accuracy_drop) {
            let limit = format!("wrong at most {} more often", percent(drop));
            gates.push(Gate::of(
                "accuracy",
                Unit::Difference,
                limit,
                test.finding(),
            ));
        }
        gates.extend(self.resources.gates("shadow "));
        if let Against::Production { slices, .. } = &self.against {
            gates.extend(slices.iter().map(|(name, test)| {
                let (name, limit) = (format!("slice:{name}"), agreement_limit.clone());
                Gate::of(name, Unit::Share, limit, test.finding()).with(Role::Watch)
            }));
        }
        gates
    }
}
