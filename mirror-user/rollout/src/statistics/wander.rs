//! How much a rate varies by itself: the design effect, by which what a window proves is divided.
//!
//! Servers are not dice: one pauses, another is slow for a minute. Then many requests tell as much as a few
//! independent ones would. How few, stable's own windows say: how far apart successive ones are, against how far
//! apart those of independent requests would be. What moves both versions alike says nothing against one of them, so
//! where it is known how far apart the versions' difference is in successive windows, the smaller of the two counts.
//! It is never larger than stable's own: no canary hides behind its own restlessness.
//!
//! For a quantile the rate is that of answers above a mark near stable's own quantile, whatever the limit. A canary that
//! is just at its limit is slower by as much, and passes its own threshold as restlessly as stable passes the mark. At
//! that threshold stable itself may well be calm, but nothing is to be proven of stable.

use super::Counts;
use super::rates::weight;

/// Successive windows are compared, and successive spans of so many: a restless minute is not seen within a second.
const SPANS: [u32; 3] = [1, 10, 60];

/// So many steps as independent requests make them are added to those seen.
const PRIOR: f64 = 2.0;

/// The difference's own steps count from so many on, each of as many requests as now.
const ENOUGH: f64 = 8.0;

/// What both versions did: stable, the canary.
type Both = [Counts; 2];

/// What the evidence of a window counts, as requests are not independent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Effect {
    /// So many requests count as one, at least 1: gains are divided by it.
    pub(super) by: f64,
    /// So many windows in a row tell as much as one, at least 1: together they gain at most what one may.
    pub(super) windows: f64,
}

impl Effect {
    /// All requests are independent.
    pub(super) const NONE: Self = Self {
        by: 1.0,
        windows: 1.0,
    };
}

/// The design effect of one rate.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wander {
    spans: Box<[Span; 3]>,
}

#[derive(Clone, Debug, PartialEq)]
struct Span {
    windows: u32,
    /// Of stable by itself.
    own: Steps,
    /// Of the difference between the versions.
    gap: Steps,
}

/// Differences between successive spans.
#[derive(Clone, Debug, Default, PartialEq)]
struct Steps {
    /// The span that is not over, and its windows.
    now: (u32, Both),
    before: Option<Both>,
    /// What all steps could tell.
    seen: f64,
    /// Those in which something happened: how many, what they could tell, and that times the square of each, which
    /// is 1 for independent requests.
    count: f64,
    weight: f64,
    sum: f64,
}

impl Default for Wander {
    fn default() -> Self {
        let span = |windows| Span {
            windows,
            own: Steps::default(),
            gap: Steps::default(),
        };
        Self {
            spans: Box::new(SPANS.map(span)),
        }
    }
}

impl Wander {
    /// Takes a window in, that both versions served.
    pub(super) fn learn(&mut self, window: Both) {
        self.learn_stable(window[0]);
        if window.iter().all(|arm| arm.trials > 0) {
            for span in self.spans.iter_mut() {
                span.gap.learn(window, span.windows, gap_info);
            }
        }
    }

    /// Takes in what stable did in a window in which the canary is not looked at.
    pub(super) fn learn_stable(&mut self, stable: Counts) {
        if stable.trials > 0 {
            for span in self.spans.iter_mut() {
                span.own
                    .learn([stable, Counts::default()], span.windows, own_info);
            }
        }
    }

    /// What comes is held against other limits: no span may have some of both.
    pub(super) fn begin_anew(&mut self) {
        for span in self.spans.iter_mut() {
            span.own.begin_anew();
            span.gap.begin_anew();
        }
    }

    /// What a window with so many trials counts.
    pub(super) fn effect(&self, window: Both) -> Effect {
        let of_span = |span: &Span| {
            let [own, gap] =
                [own_info(window), gap_info(window)].map(|info| info * f64::from(span.windows));
            let ratio = span.own.ratio(own);
            let ratio = if gap > 0.0 && span.gap.seen >= ENOUGH * gap {
                ratio.min(span.gap.ratio(gap))
            } else {
                ratio
            };
            ratio.max(1.0)
        };
        let single = of_span(&self.spans[0]);
        let none = Effect::NONE;
        self.spans.iter().fold(none, |most, span| {
            let by = of_span(span);
            if by > most.by {
                let windows = (by / single).min(f64::from(span.windows));
                Effect { by, windows }
            } else {
                most
            }
        })
    }
}

/// What a step between two windows like this one can tell of stable's rate: one through its variance, but for the
/// rate's own part.
fn own_info([stable, _]: Both) -> f64 {
    stable.trials as f64 / 2.0
}

/// The same, of the difference.
fn gap_info([stable, canary]: Both) -> f64 {
    weight(stable.trials as f64, canary.trials as f64) / 2.0
}

impl Steps {
    fn learn(&mut self, window: Both, windows: u32, info: fn(Both) -> f64) {
        let (seen, now) = &mut self.now;
        *seen += 1;
        for (sum, arm) in now.iter_mut().zip(window) {
            sum.add(arm);
        }
        if *seen < windows {
            return;
        }
        let now = *now;
        self.now = Default::default();
        if let Some(before) = self.before.replace(now) {
            self.step(before, now, info);
        }
    }

    /// Where nothing happened, or nothing else, a step says nothing of how large steps are.
    fn step(&mut self, before: Both, now: Both, info: fn(Both) -> f64) {
        let mut all = Counts::default();
        before.iter().chain(&now).for_each(|arm| all.add(*arm));
        let part = 2.0 / (1.0 / info(before) + 1.0 / info(now));
        self.seen += part;
        if all.events == 0 || all.others() == 0 {
            return;
        }
        let gap = |[stable, canary]: Both| canary.rate() - stable.rate();
        let step = gap(now) - gap(before);
        // Given how many events there are in all, this is exact for requests that are alike.
        let trials = all.trials as f64;
        let variance = all.rate() * (1.0 - all.rate()) * trials / (trials - 1.0);
        self.count += 1.0;
        self.weight += part;
        self.sum += part * step * step * part / variance;
    }

    fn begin_anew(&mut self) {
        (self.now, self.before) = Default::default();
    }

    /// How much larger than by chance the steps are, beyond what chance does to that itself. A step now could tell so
    /// much.
    fn ratio(&self, info: f64) -> f64 {
        if self.weight <= 0.0 || info <= 0.0 {
            return 1.0;
        }
        let steps = self.count.min(self.weight / info);
        let mean = (self.sum / self.weight * steps + PRIOR) / (steps + PRIOR);
        mean - (2.0 / (steps + PRIOR)).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    const WINDOW: [u64; 2] = [150, 50];

    struct Dice(SmallRng);

    impl Dice {
        fn uniform(&mut self) -> f64 {
            (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
        }

        fn counts(&mut self, trials: u64, rate: f64) -> Counts {
            let events = (0..trials).filter(|_| self.uniform() < rate).count() as u64;
            Counts { events, trials }
        }
    }

    /// What so many windows come to, in which the versions have these rates.
    fn after(windows: u32, rates: impl Fn(u32) -> [f64; 2]) -> f64 {
        after_all(windows, rates).by
    }

    fn after_all(windows: u32, rates: impl Fn(u32) -> [f64; 2]) -> Effect {
        let mut dice = Dice(SmallRng::seed_from_u64(5));
        let mut wander = Wander::default();
        for window in 0..windows {
            let [stable, canary] = rates(window);
            wander.learn([
                dice.counts(WINDOW[0], stable),
                dice.counts(WINDOW[1], canary),
            ]);
        }
        wander.effect(WINDOW.map(|trials| Counts { events: 0, trials }))
    }

    /// Slow and fast by turns, each for so many windows.
    fn square(window: u32, windows: u32) -> f64 {
        if (window / windows).is_multiple_of(2) {
            0.3
        } else {
            0.7
        }
    }

    #[test]
    fn independent_requests_count_in_full() {
        for rate in [0.001, 0.01, 0.5, 0.99] {
            for windows in [0, 1, 5, 30, 200, 1_200] {
                let effect = after(windows, |_| [rate, rate]);
                assert!((1.0..1.7).contains(&effect), "{rate}, {windows}: {effect}");
            }
        }
    }

    #[test]
    fn one_that_wanders_counts_less() {
        for windows in [1, 10, 60] {
            let effect = after(1_200, |window| [square(window, windows), 0.5]);
            assert!(effect > 10.0, "{windows}: {effect}");
        }
    }

    /// Slow and fast spells are known for what they are: not by how far apart successive seconds are.
    #[test]
    fn a_spell_is_told_from_a_second() {
        let windows = |spell: u32| {
            let effect = after_all(1_200, |window| [square(window, spell), 0.5]);
            effect.windows
        };
        let found = [1, 10, 60].map(windows);
        assert_eq!(found[0], 1.0, "{found:?}");
        assert!(found[1] > 2.0 && found[2] > 2.0 * found[1], "{found:?}");
        let calm = after_all(1_200, |_| [0.5; 2]);
        assert!(calm.windows < 1.5, "{calm:?}");
    }

    #[test]
    fn what_both_suffer_says_nothing_against_one() {
        let incident = |window| if window / 60 == 10 { 0.3 } else { 0.01 };
        let effect = after(1_200, |window| [incident(window); 2]);
        assert!(effect < 2.0, "{effect}");
        let effect = after(1_200, |window| [incident(window), 0.01]);
        assert!(effect > 10.0, "{effect}");
        // Where nothing fails but then, as well.
        let incident = |window| if window / 60 == 10 { 0.7 } else { 0.0 };
        let effect = after(1_200, |window| [incident(window); 2]);
        assert!(effect < 2.0, "{effect}");
    }

    #[test]
    fn the_canary_cannot_hide() {
        for windows in [1, 10, 60] {
            let effect = after(1_200, |window| [0.5, square(window, windows)]);
            assert!(effect < 2.0, "{windows}: {effect}");
        }
    }

    #[test]
    fn stable_is_known_before_the_canary_serves() {
        let mut wander = Wander::default();
        for window in 0..120u64 {
            let events = if (window / 10).is_multiple_of(2) {
                10
            } else {
                40
            };
            wander.learn_stable(Counts {
                events,
                trials: 100,
            });
        }
        let arm = Counts {
            events: 0,
            trials: 100,
        };
        assert!(wander.effect([arm, arm]).by > 10.0, "{wander:?}");
        wander.begin_anew();
        assert!(wander.effect([arm, arm]).by > 10.0, "{wander:?}");
    }
}
