//! What the versions differ beyond what one of them differs from itself, for models that are not
//! deterministic.
//!
//! Requests that a copy of the old version answers too (the control) tell how often the versions would
//! disagree if nothing were new. What is tested is the excess over that, request by request, by the same
//! paired test as errors. Where that is known, the share of matching answers decides nothing.

use std::collections::BTreeMap;

use super::{Gate, Role, Unit};
use crate::figures::points;
use crate::noise::{Twin, in_words};
use crate::statistics::{Counts, Finding, PairedDifference, Pairs, Verdict};
use crate::window::{Control, Shadow};

/// A version that differs from itself more often leaves too little for a difference to show in.
const MOST_NOISE: f64 = 0.8;

/// After so many requests that is believed.
const FEWEST: u64 = 50;

/// What is known of the noise.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Excess {
    limit: f64,
    /// Nothing as long as the agent was not heard to have a control.
    control: Option<Twice>,
    /// The shadow asked twice; nothing as long as it was not.
    repeat: Option<Twice>,
    alpha: f64,
    /// Requests that traffic repeats, and those that production answered otherwise than before.
    repeated: Counts,
}

/// Requests that one version answers twice.
#[derive(Clone, Debug, PartialEq)]
struct Twice {
    test: PairedDifference,
    total: Pairs,
    /// Those that it did not answer twice, by why.
    missing: BTreeMap<String, u64>,
}

impl Twice {
    fn new(limit: f64, alpha: f64) -> Self {
        Self {
            test: PairedDifference::new(limit, alpha),
            total: Pairs::default(),
            missing: BTreeMap::new(),
        }
    }

    fn observe(&mut self, pairs: Pairs, missing: &BTreeMap<String, u64>) {
        self.test.observe(pairs);
        self.total.add(pairs);
        for (why, count) in missing {
            *self.missing.entry(why.clone()).or_default() += count;
        }
    }

    /// How often the versions disagree, and how often the one with itself; nothing of nothing.
    fn shares(&self) -> Option<[f64; 2]> {
        let Pairs {
            both,
            production_only: itself,
            shadow_only: versions,
            ..
        } = self.total;
        let count = self.total.count();
        let share = |only: u64| (both + only) as f64 / count as f64;
        (count > 0).then(|| [share(versions), share(itself)])
    }

    fn note(&self, twin: Twin) -> Option<String> {
        let words = self
            .shares()
            .map(|[versions, itself]| in_words(twin, versions, itself));
        let count: u64 = self.missing.values().sum();
        // A few are nothing to speak of.
        let missing = (count > self.total.count() / 10).then(|| {
            let by_reason = self.missing.iter();
            let by_reason: Vec<_> = by_reason.map(|(why, n)| format!("{why} {n}")).collect();
            format!(
                "no second answer to {count} requests: {}",
                by_reason.join(", ")
            )
        });
        let all: Vec<_> = words.into_iter().chain(missing).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Why nothing can show in so much noise, if so.
    fn is_too_noisy(&self) -> bool {
        let shares = self.shares().filter(|_| self.total.count() >= FEWEST);
        shares.is_some_and(|[_, itself]| itself > MOST_NOISE)
    }
}

impl Excess {
    pub(super) fn new(limit: f64, alpha: f64) -> Self {
        Self {
            limit,
            control: None,
            repeat: None,
            alpha,
            repeated: Counts::default(),
        }
    }

    pub(super) fn see(&mut self, seen: &Shadow) {
        self.repeated.add(seen.traffic);
        let Some(said) = &seen.control else { return };
        let Control {
            pairs,
            missing,
            repeat,
            repeat_missing,
        } = said;
        let fresh = || Twice::new(self.limit, self.alpha);
        let control = self.control.get_or_insert_with(fresh);
        control.observe(*pairs, missing);
        if let Some(pairs) = repeat {
            let repeat = self.repeat.get_or_insert_with(fresh);
            repeat.observe(*pairs, repeat_missing);
        }
    }

    /// Whether there is a control: the share of matching answers is then nothing to go by.
    pub(super) fn has_control(&self) -> bool {
        self.control.is_some()
    }

    /// Why the share of matching answers is nothing to go by, if so.
    pub(super) fn instead_of_agreement(&self) -> Option<String> {
        if let Some(control) = &self.control {
            let words = control.note(Twin::Control);
            let words = words.map_or_else(String::new, |words| format!(": {words}"));
            return Some(format!("it decides nothing, `excess` does{words}"));
        }
        self.is_noisy().then(|| {
            let Counts { events, trials } = self.repeated;
            format!(
                "it decides nothing: production itself answered {events} of {trials} repeated requests otherwise than before; name a copy of the old version in the agent's [[service]] to tell noise from a difference: control = \"host:port\""
            )
        })
    }

    /// Whether production is proven to disagree with itself more often than a floor: half of what would be held
    /// against a new version. By Chernoff's bound on all that was counted: this accuses nobody, so that it need
    /// not wait, as what accuses does, until many windows say the same.
    fn is_noisy(&self) -> bool {
        let floor = (self.limit / 2.0).clamp(1e-6, 0.5);
        self.repeated.events >= 2 && self.repeated.surprise(floor) >= -self.alpha.ln()
    }

    /// Both never without the first.
    pub(super) fn gates(&self) -> Vec<Gate> {
        let Some(control) = &self.control else {
            return Vec::new();
        };
        let mut gate = gate(
            "excess",
            self.limit,
            control.test.finding(),
            "the old version",
        );
        gate.note = control.note(Twin::Control);
        if control.is_too_noisy() {
            let words = gate.note.take().unwrap_or_default();
            gate.verdict = Verdict::Unknown;
            gate.note = Some(format!(
                "{words}: in so much noise no difference can show; is the control a copy of the old version? Compare less (`ignore`, `prediction`)"
            ));
        } else if gate.note.is_none() {
            gate.note = Some("the control has answered nothing yet".to_owned());
        }
        let repeat = self.repeat.as_ref().map(|repeat| {
            let finding = repeat.test.finding();
            let mut gate = self::gate("repeat", self.limit, finding, "the new version");
            gate.note = repeat.note(Twin::Repeat);
            // What proves a version is the control; this finds some sooner.
            gate.with(Role::Watch)
        });
        [gate].into_iter().chain(repeat).collect()
    }

    /// The gate of one slice.
    pub(super) fn slice(&self, name: String, finding: Finding) -> Gate {
        gate(name, self.limit, finding, "the old version").with(Role::Watch)
    }
}

fn gate(name: impl Into<String>, limit: f64, finding: Finding, whose: &str) -> Gate {
    let limit = format!("at most {} more than {whose} from itself", points(limit));
    Gate::of(name, Unit::Difference, limit, finding)
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::gates::alpha;
    use crate::plan::{Plan, Shadow as Limits};

    /// Models that answer a part of the requests as it falls, one in three ways, and all others always alike.
    struct World {
        rng: SmallRng,
        /// How often two answers of a version to one request differ.
        noise: f64,
        /// The part of requests that the new version answers otherwise.
        changed: f64,
    }

    impl World {
        fn chance(&mut self) -> f64 {
            (self.rng.next_u64() >> 11) as f64 / 2_f64.powi(53)
        }

        fn answer(&mut self, is_steady: bool) -> u64 {
            if is_steady {
                0
            } else {
                self.rng.next_u64() % 3
            }
        }

        /// So many requests, half of which the old version answers twice, and half the new one.
        fn window(&mut self, requests: u64) -> Shadow {
            let [mut control, mut repeat] = [Pairs::default(); 2];
            for at in 0..requests {
                let is_steady = self.chance() >= self.noise * 1.5;
                let is_changed = self.chance() < self.changed;
                let production = self.answer(is_steady);
                let mut shadow = || self.answer(is_steady) + if is_changed { 10 } else { 0 };
                let [first, second] = [shadow(), shadow()];
                let (pairs, itself) = if at % 2 == 0 {
                    (&mut control, production != self.answer(is_steady))
                } else {
                    (&mut repeat, first != second)
                };
                *match (itself, production != first) {
                    (true, true) => &mut pairs.both,
                    (true, false) => &mut pairs.production_only,
                    (false, true) => &mut pairs.shadow_only,
                    (false, false) => &mut pairs.neither,
                } += 1;
            }
            Shadow {
                control: Some(Control {
                    pairs: control,
                    repeat: Some(repeat),
                    ..Control::default()
                }),
                ..Shadow::default()
            }
        }
    }

    fn fresh() -> Excess {
        let plan = Plan {
            shadow: Some(Limits::default()),
            ..Plan::default()
        };
        Excess::new(0.01, alpha(&plan))
    }

    fn world(seed: u64, noise: f64, changed: f64) -> World {
        World {
            rng: SmallRng::seed_from_u64(seed),
            noise,
            changed,
        }
    }

    #[test]
    fn of_400_noisy_versions_that_are_equal_none_is_accused() {
        for noise in [0.01, 0.05, 0.286, 0.6] {
            for seed in 0..400 {
                let (mut excess, mut world) = (fresh(), world(seed, noise, 0.0));
                for _ in 0..100 {
                    excess.see(&world.window(40));
                    for gate in excess.gates() {
                        assert_ne!(gate.verdict, Verdict::Worse, "{noise} {seed}: {gate}");
                    }
                }
            }
        }
    }

    #[test]
    fn production_is_seen_to_disagree_with_itself_or_not() {
        let check = |events, trials, expected| {
            let mut excess = fresh();
            excess.see(&Shadow {
                traffic: Counts { events, trials },
                ..Shadow::default()
            });
            let found = excess.instead_of_agreement();
            assert_eq!(found.is_some(), expected, "{events} of {trials}: {found:?}");
            assert!(excess.gates().is_empty());
        };
        check(0, 0, false);
        check(0, 100_000, false);
        check(1, 1, false);
        check(2, 3, true);
        check(3, 10, true);
        check(5, 1_000, false);
        check(30, 1_000, true);
        check(1_000, 1_000, true);
    }

    /// After how many requests of the control's.
    fn caught(seed: u64, noise: f64) -> u64 {
        let (mut excess, mut world) = (fresh(), world(seed, noise, 0.1));
        let is_caught = |excess: &Excess| {
            let mut gates = excess.gates().into_iter();
            gates.any(|gate| gate.verdict == Verdict::Worse)
        };
        let mut asked = 0;
        while !is_caught(&excess) {
            excess.see(&world.window(20));
            asked += 10;
        }
        asked
    }

    /// One request in ten is answered otherwise, and the shadow is asked twice as often as the control is.
    #[test]
    fn changed_answers_are_caught_in_under_a_thousand_requests() {
        for (noise, median, most) in [
            (0.0, 250, 350),
            (0.05, 400, 600),
            (0.1, 500, 900),
            (0.286, 1_000, 2_200),
        ] {
            let mut found: Vec<_> = (0..100).map(|seed| caught(seed, noise)).collect();
            found.sort_unstable();
            let (half, nearly_all) = (found[50], found[95]);
            assert!(
                half < median && nearly_all < most,
                "{noise}: {half} and {nearly_all}"
            );
        }
    }

    /// The table of docs/decisions.md:
    ///
    ///     cargo test --release -p mirror-rollout --lib -- --ignored --nocapture gates::excess
    #[test]
    #[ignore = "prints a table"]
    fn figures() {
        let figure = |changed: f64, noise: f64, limit: f64, repeat: bool, wanted: Verdict| {
            let run = |seed| {
                let mut excess = Excess::new(limit, fresh().alpha);
                let mut world = world(seed, noise, changed);
                let mut asked = 0;
                loop {
                    let mut seen = world.window(20);
                    let control = seen.control.as_mut();
                    if let Some(control) = control.filter(|_| !repeat) {
                        control.repeat = None;
                    }
                    excess.see(&seen);
                    asked += 10;
                    let mut gates = excess.gates().into_iter();
                    if gates.any(|gate| gate.verdict == wanted) || asked >= 1_000_000 {
                        return asked;
                    }
                }
            };
            let mut found: Vec<u64> = (0..100).map(run).collect();
            found.sort_unstable();
            format!("{} ({})", found[50], found[95])
        };
        use Verdict::{Within, Worse};
        for noise in [0.0, 0.05, 0.1, 0.286] {
            println!(
                "| {} % | {} | {} | {} | {} |",
                noise * 100.0,
                figure(0.1, noise, 0.01, false, Worse),
                figure(0.1, noise, 0.01, true, Worse),
                figure(0.0, noise, 0.01, false, Within),
                figure(0.0, noise, 0.05, false, Within),
            );
        }
    }
}
