//! Evidence: is a version within its limit, worse, or is that not yet known?
//!
//! Every test bets against a null hypothesis, window by window, with stakes that depend on earlier
//! windows only. As long as the null hypothesis holds, the expectation of the capital does not grow,
//! so it reaches `1 / alpha` with a chance of at most `alpha`, however often one looks. Both arms are
//! always compared within a window, so neither a drift of the base rate nor a change of the share is
//! taken for a difference. `docs/decisions.md` has the formulas and their sources.
//!
//! A window is one tick, about a second. Tests hold no clock: the same windows in the same order give
//! the same findings, to the last bit.

mod bet;
mod capital;
mod clusters;
mod contest;
mod latencies;
mod paired;
mod quantile;
mod rate;
mod rates;
mod short;
#[cfg(test)]
mod simulation;
mod wander;

pub use clusters::{CLUSTERS, Clustering, Clusters, Crowd, Row, Served, Sort};
pub use latencies::Latencies;
pub use paired::{PairedDifference, PairedQuantileRatio};
pub use quantile::QuantileRatio;
pub use rate::Rate;
pub use rates::RateDifference;
use serde::{Deserialize, Serialize};
pub use short::ShortBodies;

/// What is known of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Proven to be within the limit.
    Within,
    /// Proven to be beyond it.
    Worse,
    /// Neither, so far.
    Unknown,
}

/// What a test says now. All numbers are finite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// The answer.
    pub verdict: Verdict,
    /// The quantity itself, as far as it is known.
    pub estimate: Option<f64>,
    /// It is at least this, and at most `high`, each proven at the test's level; nothing where no end
    /// is proven.
    pub low: Option<f64>,
    /// See `low`.
    pub high: Option<f64>,
    /// What it is held against.
    pub limit: f64,
    /// ln of the e-value against "within the limit": `Worse` from `needed` on.
    pub worse: f64,
    /// ln of the e-value against "beyond the limit": `Within` from `needed` on.
    pub within: f64,
    /// ln of `1 / alpha`.
    pub needed: f64,
    /// What its gains are divided by, since stable varies by itself: 1 where requests are independent.
    #[serde(default = "independent", skip_serializing_if = "is_independent")]
    pub effect: f64,
    /// How many requests count as one, since clients differ among themselves: 1 where they do not.
    #[serde(default = "independent", skip_serializing_if = "is_independent")]
    pub clients_effect: f64,
    /// What was counted, of stable (or production) and of the canary (or shadow); a test of one
    /// sample has nothing in the first place.
    pub events: [u64; 2],
    /// Out of so many.
    pub trials: [u64; 2],
}

const fn independent() -> f64 {
    1.0
}

fn is_independent(effect: &f64) -> bool {
    *effect == independent()
}

/// So many events in so many trials: errors in requests, say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// What is counted.
    pub events: u64,
    /// Out of which.
    pub trials: u64,
}

impl Counts {
    /// Whether nothing was counted.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Trials without the event.
    fn others(self) -> u64 {
        self.trials.saturating_sub(self.events)
    }

    /// The share of events; zero where there were no trials.
    fn rate(self) -> f64 {
        self.events as f64 / self.trials.max(1) as f64
    }

    /// How little one would expect so many, or more, at this chance of each (in nats): trials times the divergence of
    /// Kullback and Leibler (Chernoff's bound).
    pub fn surprise(self, chance: f64) -> f64 {
        let rate = self.rate();
        if rate <= chance {
            return 0.0;
        }
        let part = |rate: f64, chance: f64| {
            if rate > 0.0 {
                rate * (rate / chance).ln()
            } else {
                0.0
            }
        };
        self.trials as f64 * (part(rate, chance) + part(1.0 - rate, 1.0 - chance))
    }

    /// Both together.
    pub fn add(&mut self, other: Self) {
        self.events = self.events.saturating_add(other.events);
        self.trials = self.trials.saturating_add(other.trials);
    }
}

/// Requests that were answered twice, by whom the event was seen with: failures, say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pairs {
    /// With both.
    pub both: u64,
    /// With production alone.
    pub production_only: u64,
    /// With the shadow alone.
    pub shadow_only: u64,
    /// With neither.
    pub neither: u64,
}

impl Pairs {
    /// Whether there are none.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Pairs without a difference.
    fn equal(self) -> u64 {
        self.both.saturating_add(self.neither)
    }

    /// All of them.
    pub fn count(self) -> u64 {
        self.equal().saturating_add(self.different())
    }

    fn different(self) -> u64 {
        self.production_only.saturating_add(self.shadow_only)
    }

    /// Both together.
    pub fn add(&mut self, other: Self) {
        self.both = self.both.saturating_add(other.both);
        self.production_only = self.production_only.saturating_add(other.production_only);
        self.shadow_only = self.shadow_only.saturating_add(other.shadow_only);
        self.neither = self.neither.saturating_add(other.neither);
    }
}

/// What a window of a minute ago still counts in what the next one is expected to be: 0.55.
const MEMORY: f64 = 0.99;

/// Odds, relative to the limit's, that fixed bets are placed on.
const ODDS: &[f64] = &[1.15, 1.5, 2.25, 4.0, 10.0, 40.0, 400.0];

/// An expected rate is kept from 0 and 1, where a single surprise would take all.
fn plausible(rate: f64) -> f64 {
    rate.clamp(1e-4, 1.0 - 1e-4)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn sound(finding: &Finding) {
        let numbers = [
            finding.worse,
            finding.within,
            finding.needed,
            finding.limit,
            finding.effect,
        ];
        let ends = [finding.estimate, finding.low, finding.high];
        let mut all = numbers.into_iter().chain(ends.into_iter().flatten());
        assert!(all.all(f64::is_finite), "{finding:?}");
        if let (Some(low), Some(high)) = (finding.low, finding.high) {
            assert!(low < high, "{finding:?}");
        }
        let of_limit = |end: Option<f64>, side: f64| {
            end.is_some_and(|end| side * (end - finding.limit) >= 0.0)
        };
        let (above, below) = (of_limit(finding.low, 1.0), of_limit(finding.high, -1.0));
        let one_sided = finding.trials[0] == 0 && finding.events[0] == 0;
        match finding.verdict {
            Verdict::Unknown => assert!(!above && !below, "{finding:?}"),
            // `at_least` has them the other way round.
            Verdict::Worse => assert!(above || one_sided && below, "{finding:?}"),
            Verdict::Within => assert!(below || one_sided && above, "{finding:?}"),
        }
    }

    fn counts() -> impl Strategy<Value = Counts> {
        let trials = prop_oneof![Just(0), Just(1), 0..20u64, Just(10_000_000)];
        (trials, prop_oneof![Just(0.0), Just(1.0), 0.0..1.0]).prop_map(
            |(trials, rate): (u64, f64)| Counts {
                events: (trials as f64 * rate) as u64,
                trials,
            },
        )
    }

    fn latencies() -> impl Strategy<Value = Vec<(u16, u64)>> {
        let bucket = prop_oneof![Just(0), Just(431), 100..130u16, 0..432u16];
        vec(
            (bucket, prop_oneof![Just(1), 0..50u64, Just(10_000_000)]),
            0..6,
        )
    }

    fn limit() -> impl Strategy<Value = f64> {
        prop_oneof![Just(0.0), Just(1.0), Just(0.005), 0.0..1.0]
    }

    proptest! {
        #[test]
        fn rates_stay_finite(windows in vec((counts(), counts()), 0..40), limit in limit(), sign in prop_oneof![Just(1.0), Just(-1.0)]) {
            let mut difference = RateDifference::new(limit * sign, 0.01);
            let mut rates = [Rate::at_most(limit, 0.01), Rate::at_least(limit, 0.01)];
            let mut paired = PairedDifference::new(limit * sign, 0.01);
            for (stable, canary) in windows {
                difference.observe(stable, canary);
                paired.observe(Pairs {
                    both: stable.events,
                    production_only: stable.others(),
                    shadow_only: canary.events,
                    neither: canary.others(),
                });
                sound(&difference.finding());
                sound(&paired.finding());
                for rate in &mut rates {
                    rate.observe(canary);
                    sound(&rate.finding());
                }
            }
            let shares = [0.0, 1e-9, 0.01, 0.5, 1.0];
            for share in shares {
                for ratio in [0.0, 1.0, 1e9] {
                    difference.needed_for_within(share, ratio);
                }
                paired.needed_for_within(share);
                for rate in &rates {
                    rate.needed_for_within(share);
                }
            }
        }

        #[test]
        fn ratios_stay_finite(windows in vec((latencies(), latencies()), 0..20), quantile in prop_oneof![Just(0.5), Just(0.99), 0.0..=1.0], limit in 0.1..10.0) {
            let mut arms = QuantileRatio::new(quantile, limit, 0.01);
            let mut pairs = PairedQuantileRatio::new(quantile, limit, 0.01);
            for (stable, canary) in windows {
                let joint: Vec<_> = stable.iter().zip(&canary).map(|((of, count), (other, _))| (*of, *other, *count)).collect();
                let [stable, canary] = [stable, canary].map(Latencies::from);
                arms.observe(&stable, &canary);
                pairs.observe(&joint);
                sound(&arms.finding());
                sound(&pairs.finding());
                arms.needed_for_within(&stable, 3.0);
                pairs.needed_for_within(&stable);
            }
        }
    }
}
