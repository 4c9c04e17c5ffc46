//! The gates of the shadow: comparisons are pairs, and tested as pairs.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::excess::Excess;
use super::resources::Resources;
use super::{Gate, Role, Unit, counts};
use crate::figures::{percent, points};
use crate::plan::{Baseline, Shadow as Limits};
use crate::statistics::{Finding, PairedDifference, PairedQuantileRatio, Rate, Verdict};
use crate::window::{Arm, Shadow};

/// At most so many slices are told apart, and "other": each has an even part of one gate's budget.
const SLICES: f64 = 101.0;

/// A larger part of requests that had to wait, and the shadow's latency tells of its load alone: its 99th
/// percentile is asked for.
const MOST_SATURATED: f64 = 0.01;

/// After so many requests, those before count half: a shadow that was given more room is believed soon.
const FORGETS: u64 = 1000;

/// Whether the shadow keeps up with what it is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Pressure {
    saturated: u64,
    all: u64,
}

impl Pressure {
    /// Takes in a window; says whether its latencies tell of the version.
    fn observe(&mut self, seen: &Shadow) -> bool {
        let timed: u64 = seen.latencies.iter().map(|(_, _, count)| count).sum();
        let window = Self {
            saturated: seen.saturated,
            all: seen.saturated + timed,
        };
        if self.all >= FORGETS {
            self.saturated /= 2;
            self.all /= 2;
        }
        self.saturated += window.saturated;
        self.all += window.all;
        !window.is_too_much()
    }

    fn is_too_much(&self) -> bool {
        self.saturated as f64 > self.all as f64 * MOST_SATURATED
    }

    /// Why the latency says nothing of the version, if it does not.
    fn note(&self) -> Option<String> {
        let Self { saturated, all } = self;
        self.is_too_much().then(|| {
            format!(
                "the shadow is saturated: {saturated} of the last {all} requests had to wait in the agent's queue, so that its latency says nothing of the version; lower `sample`, or raise `concurrency` on the shadow host"
            )
        })
    }
}

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
        agreement: Box<Rate>,
        /// Comparisons that neither served, and the others.
        both_failed: [u64; 2],
        slices: BTreeMap<String, Slice>,
        /// Nothing in plans from before there were controls.
        excess: Option<Box<Excess>>,
        errors: PairedDifference,
        /// Nothing where it is not asked for.
        p99: Option<Box<PairedQuantileRatio>>,
        pressure: Pressure,
    },
    Nothing {
        failures: Rate,
    },
}

/// One slice: of all its requests, and of those that the control answered too.
#[derive(Clone, Debug, PartialEq)]
struct Slice {
    agreement: Rate,
    excess: PairedDifference,
}

/// How many gates can be wrong by chance.
pub(super) fn tests(limits: &Limits, compared: bool) -> usize {
    let optional = [
        limits.max_accuracy_drop.is_some(),
        limits.max_cpu_ratio.is_some(),
        limits.max_memory_ratio.is_some(),
    ];
    // Errors; latency; agreement (or the excess, never both), all slices together, and the shadow asked twice.
    let twice = usize::from(limits.max_excess.is_some());
    let answers = if limits.compares_answers() {
        2 + twice
    } else {
        0
    };
    let latency = usize::from(limits.compares_latency());
    1 + if compared { latency + answers } else { 0 }
        + optional.into_iter().filter(|is_asked| *is_asked).count()
}

/// A gate that decides nothing, and why.
fn shown(gate: Gate, note: String) -> Gate {
    Gate {
        verdict: Verdict::Unknown,
        note: Some(note),
        role: Role::Info,
        ..gate
    }
}

impl Compared {
    pub(super) fn new(limits: &Limits, baseline: &Baseline, alpha: f64) -> Self {
        let against = if *baseline == Baseline::Stable {
            Against::Production {
                agreement: Box::new(Rate::at_least(limits.agreement, alpha)),
                both_failed: [0; 2],
                slices: BTreeMap::new(),
                excess: limits
                    .max_excess
                    .filter(|_| limits.compares_answers())
                    .map(|limit| Box::new(Excess::new(limit, alpha))),
                errors: PairedDifference::new(limits.max_error_delta, alpha),
                p99: limits.compares_latency().then(|| {
                    let test = PairedQuantileRatio::new(0.99, limits.max_latency_ratio, alpha);
                    Box::new(test)
                }),
                pressure: Pressure::default(),
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
                both_failed,
                slices,
                excess,
                errors,
                p99,
                pressure,
            } => {
                let tells = pressure.observe(seen);
                let is_asked = self.limits.compares_answers();
                if is_asked {
                    agreement.observe(counts(seen.matching, seen.compared));
                }
                let counted = [seen.both_failed, seen.compared];
                *both_failed = [0, 1].map(|at| both_failed[at] + counted[at]);
                for (name, slice) in seen.slices.iter().filter(|_| is_asked) {
                    let alpha = self.alpha / SLICES;
                    let fresh = || Slice {
                        agreement: Rate::at_least(self.limits.agreement, alpha),
                        excess: PairedDifference::new(
                            self.limits.max_excess.unwrap_or_default(),
                            alpha,
                        ),
                    };
                    let test = slices.entry(name.clone()).or_insert_with(fresh);
                    test.agreement
                        .observe(counts(slice.matching, slice.compared));
                    test.excess.observe(slice.control);
                }
                if let Some(excess) = excess {
                    excess.see(seen);
                }
                errors.observe(seen.failures);
                if let Some(p99) = p99.as_mut().filter(|_| tells) {
                    p99.observe(&seen.latencies);
                }
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
        let production = (
            stable.all_requests(),
            stable.cpu_seconds,
            stable.resident_bytes,
        );
        let shadow = (seen.answered as f64, seen.cpu_seconds, seen.resident_bytes);
        self.resources.observe([production, shadow], now);
    }

    pub(super) fn gates(&self) -> Vec<Gate> {
        let limits = &self.limits;
        let agreement_limit = format!("at least {}", percent(limits.agreement));
        let mut gates = Vec::new();
        match &self.against {
            Against::Production {
                agreement,
                both_failed,
                errors,
                p99,
                pressure,
                excess,
                ..
            } => {
                let mut agreement = Gate::of(
                    "agreement",
                    Unit::Share,
                    agreement_limit.clone(),
                    agreement.finding(),
                );
                let excess = excess.as_deref();
                if let Some(note) = excess.and_then(Excess::instead_of_agreement) {
                    agreement = shown(agreement, note);
                }
                gates.extend(limits.compares_answers().then_some(agreement));
                gates.extend(excess.map(Excess::gates).unwrap_or_default());
                gates.push(self.both_failed(*both_failed));
                let limit = format!(
                    "at most {} more than production",
                    points(limits.max_error_delta)
                );
                gates.push(Gate::of(
                    "shadow errors",
                    Unit::Difference,
                    limit,
                    errors.finding(),
                ));
                gates.extend(p99.as_ref().map(|test| {
                    let limit = format!("at most {} times production's", limits.max_latency_ratio);
                    let gate = Gate::of("shadow p99", Unit::Ratio, limit, test.finding());
                    match pressure.note() {
                        // Neither passed nor failed.
                        Some(note) => Gate {
                            verdict: Verdict::Unknown,
                            note: Some(note),
                            ..gate
                        },
                        None => gate,
                    }
                }));
            }
            Against::Nothing { failures } => {
                let limit = format!("at most {}", percent(limits.max_error_delta));
                gates.push(Gate::of(
                    "shadow errors",
                    Unit::Share,
                    limit,
                    failures.finding(),
                ));
            }
        }
        if let (Some(test), Some(drop)) = (&self.accuracy, limits.max_accuracy_drop) {
            let limit = format!("wrong in at most {} more of cases", points(drop));
            gates.push(Gate::of(
                "accuracy",
                Unit::Difference,
                limit,
                test.finding(),
            ));
        }
        gates.extend(self.resources.gates("shadow "));
        if let Against::Production { slices, excess, .. } = &self.against {
            let excess = excess.as_deref();
            let control = excess.filter(|excess| excess.has_control());
            let note = excess.and_then(Excess::instead_of_agreement);
            gates.extend(slices.iter().map(|(name, test)| {
                let name = format!("slice:{name}");
                if let Some(control) = control {
                    return control.slice(name, test.excess.finding());
                }
                let (limit, finding) = (agreement_limit.clone(), test.agreement.finding());
                let gate = Gate::of(name, Unit::Share, limit, finding).with(Role::Watch);
                match &note {
                    Some(note) => shown(gate, note.clone()),
                    None => gate,
                }
            }));
        }
        gates
    }

    /// Where neither serves, nothing is known of the versions: it is waited for, and nobody is to blame.
    fn both_failed(&self, [failed, others]: [u64; 2]) -> Gate {
        let limit = self.limits.max_both_failed;
        let all = failed + others;
        let share = failed as f64 / all.max(1) as f64;
        let is_within = all > 0 && share <= limit;
        let finding = Finding {
            verdict: if is_within {
                Verdict::Within
            } else {
                Verdict::Unknown
            },
            estimate: (all > 0).then_some(share),
            low: None,
            high: None,
            limit,
            worse: 0.0,
            within: f64::from(u8::from(is_within)),
            needed: 1.0,
            effect: 1.0,
            clients_effect: 1.0,
            events: [0, failed],
            trials: [0, all],
        };
        let gate = Gate::of(
            "both failed",
            Unit::Share,
            format!("at most {}", percent(limit)),
            finding,
        );
        let note = "of requests that both versions answer with 4xx or 5xx nothing is known";
        Gate {
            note: (!is_within).then(|| note.to_owned()),
            ..gate
        }
    }
}
