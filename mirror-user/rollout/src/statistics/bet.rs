//! What a window is worth to a bet: the logarithm of one e-value.
//!
//! A bet turns a window into a non-negative number whose expectation is at most 1 as long as the
//! null hypothesis holds. Every bet here is a product over requests of `1 + k (x - at)`, where `x`
//! is what was seen, and its expectation is bounded by `1 + y <= exp(y)`. So requests of one window
//! may well have different rates: only their mean counts.

use super::{Counts, Pairs};

/// What is claimed of a quantity, and would refute that it lies on the other side of its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Above the limit: refutes "at most the limit".
    Above,
    /// Below the limit: refutes "at least the limit".
    Below,
}

impl Side {
    pub(super) fn sign(self) -> f64 {
        match self {
            Self::Above => 1.0,
            Self::Below => -1.0,
        }
    }

    /// Whether `value` lies on this side of `limit`.
    pub(super) fn holds(self, value: f64, limit: f64) -> bool {
        self.sign() * (value - limit) > 0.0
    }
}

/// What a bet is placed on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bet {
    /// A quantity this far from the limit: odds relative to the limit's (above 1, on either side),
    /// or of the largest possible stake (0..1).
    Fixed(f64),
    /// What earlier windows let expect.
    Expected,
}

/// Rates nearer to 0 or 1 are not betted on.
const EDGE: f64 = 1e-6;
/// No single request takes more of a bet than this part.
const LARGEST_LOSS: f64 = 0.99;
/// After a smaller step, as a part, the next one is nothing.
const CLOSE: f64 = 1e-4;

/// A rate whose odds are `odds` times as far on `side` as those of `rate`.
pub(super) fn beyond(side: Side, rate: f64, odds: f64) -> f64 {
    let rate = rate.clamp(1e-4, 1.0 - 1e-4);
    let odds = match side {
        Side::Above => rate / (1.0 - rate) * odds,
        Side::Below => rate / (1.0 - rate) / odds,
    };
    odds / (1.0 + odds)
}

/// A stake of `k` on the mean of values in 0..=1 being another than `at`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Stake {
    at: f64,
    k: f64,
}

impl Stake {
    /// By how much `k` must be scaled so that no request takes more than the largest loss.
    fn safe(self) -> f64 {
        let worst = if self.k > 0.0 {
            self.k * self.at
        } else {
            -self.k * (1.0 - self.at)
        };
        if worst > LARGEST_LOSS {
            LARGEST_LOSS / worst
        } else {
            1.0
        }
    }

    fn scaled(self, by: f64) -> Self {
        Self {
            k: self.k * by,
            ..self
        }
    }

    /// ln of what it makes of so many events, and of so many trials without one.
    fn ln(self, events: f64, others: f64) -> f64 {
        let part = |count: f64, stake: f64| {
            if count == 0.0 {
                0.0
            } else {
                count * stake.ln_1p()
            }
        };
        part(events, self.k * (1.0 - self.at)) + part(others, -self.k * self.at)
    }

    fn gain(self, counts: Counts) -> f64 {
        self.ln(counts.events as f64, counts.others() as f64)
    }

    /// What it gains in a trial with this chance.
    fn growth(self, rate: f64) -> f64 {
        self.ln(rate, 1.0 - rate)
    }
}

/// One sample: ln of the e-value against a mean rate on the other side of `limit`, betted on
/// `believed`. Zero where that is no alternative.
pub(super) fn one_sample(side: Side, limit: f64, believed: f64, window: Counts) -> f64 {
    stake(side, limit, believed).map_or(0.0, |stake| stake.gain(window))
}

/// What `one_sample` may expect to gain in a trial, when what is believed is so.
pub(super) fn growth_of_one(side: Side, limit: f64, believed: f64) -> Option<f64> {
    stake(side, limit, believed).map(|stake| stake.growth(believed))
}

fn stake(side: Side, limit: f64, believed: f64) -> Option<Stake> {
    let at = limit.clamp(EDGE, 1.0 - EDGE);
    let stake = Stake {
        at,
        k: (believed - at) / variance(at),
    };
    side.holds(believed, at).then(|| stake.scaled(stake.safe()))
}

/// Two arms, `[stable, canary]`: ln of the e-value against `canary - stable` lying on the other side
/// of `margin`, betted on the rates `believed`. Zero where those are no alternative, and where an
/// arm saw nothing.
///
/// With stakes `k` on both arms such that `n_canary k_canary = -n_stable k_stable`, the bound on the
/// expectation is `exp(n_canary k_canary (canary - stable - margin))`: at most 1, whatever the base
/// rate. Which stakes: those of the likelihood ratio between `believed` and the null's nearest point,
/// which grows fastest (Turner, Ly and Grünwald 2024).
pub(super) fn two_arms(side: Side, margin: f64, believed: [f64; 2], window: [Counts; 2]) -> f64 {
    let trials = window.map(|counts| counts.trials as f64);
    match stakes(side, margin, believed, trials) {
        Some([stable, canary]) => stable.gain(window[0]) + canary.gain(window[1]),
        None => 0.0,
    }
}

/// What `two_arms` may expect to gain in a window with so many trials, when what is believed is so.
pub(super) fn growth_of_two(
    side: Side,
    margin: f64,
    believed: [f64; 2],
    trials: [f64; 2],
) -> Option<f64> {
    let [stable, canary] = stakes(side, margin, believed, trials)?;
    Some(trials[0] * stable.growth(believed[0]) + trials[1] * canary.growth(believed[1]))
}

fn stakes(side: Side, margin: f64, believed: [f64; 2], trials: [f64; 2]) -> Option<[Stake; 2]> {
    let margin = margin.clamp(EDGE * 3.0 - 1.0, 1.0 - EDGE * 3.0);
    let [stable, canary] = believed;
    if !side.holds(canary - stable, margin) || trials.contains(&0.0) {
        return None;
    }
    let at = nearest(margin, believed, trials);
    // Equal where `at` is exact; where it is not, the smaller one is still a bet.
    let pulls = [
        trials[0] * (at - stable) / variance(at),
        trials[1] * (canary - at - margin) / variance(at + margin),
    ];
    let [of_stable, of_canary] = pulls.map(|pull| pull * side.sign());
    let pull = of_stable.min(of_canary).max(0.0) * side.sign();
    let stakes = [
        Stake {
            at,
            k: -pull / trials[0],
        },
        Stake {
            at: at + margin,
            k: pull / trials[1],
        },
    ];
    let scale = stakes[0].safe().min(stakes[1].safe());
    Some(stakes.map(|stake| stake.scaled(scale)))
}

/// Stable's rate at the point `canary = stable + margin` that is nearest to what is believed: the
/// smallest sum of trials times Kullback-Leibler divergence, by Newton's method in a bracket. It begins where
/// that is for events that are rare, which a quadratic equation tells.
fn nearest(margin: f64, [stable, canary]: [f64; 2], trials: [f64; 2]) -> f64 {
    let floor = (-margin).max(0.0) + EDGE;
    let ceiling = (1.0 - margin).min(1.0) - EDGE;
    let other = canary - margin;
    let mut low = stable.min(other).clamp(floor, ceiling);
    let mut high = stable.max(other).clamp(floor, ceiling);
    let all = trials[0] + trials[1];
    let events = trials[0] * stable + trials[1] * canary;
    if margin == 0.0 {
        return (events / all).clamp(low, high);
    }
    let half = (events - all * margin) / 2.0;
    let root = (half * half + all * trials[0] * stable * margin).max(0.0);
    let mut at = ((half + root.sqrt()) / all).clamp(low, high);
    for _ in 0..6 {
        let of_arm = |trials: f64, rate: f64, at: f64| {
            let (event, other) = (1.0 / at, 1.0 / (1.0 - at));
            let bend = rate * event * event + (1.0 - rate) * other * other;
            (trials * (at - rate) * event * other, trials * bend)
        };
        let of_stable = of_arm(trials[0], stable, at);
        let of_canary = of_arm(trials[1], canary, at + margin);
        let slope = of_stable.0 + of_canary.0;
        *(if slope > 0.0 { &mut high } else { &mut low }) = at;
        let step = slope / (of_stable.1 + of_canary.1);
        at = (at - step).clamp(low, high);
        if step.abs() <= CLOSE * at {
            break;
        }
    }
    at
}

fn variance(rate: f64) -> f64 {
    rate * (1.0 - rate)
}

/// Pairs: ln of the e-value against a mean difference on the other side of `limit`, with `stake`
/// (0..1) of the largest stake there is (Waudby-Smith and Ramdas 2024).
pub(super) fn paired(side: Side, limit: f64, stake: f64, window: Pairs) -> f64 {
    let lambda = lambda(side, limit, stake);
    window.shadow_only as f64 * (lambda * (1.0 - limit)).ln_1p()
        + window.equal() as f64 * (-lambda * limit).ln_1p()
        + window.production_only as f64 * (-lambda * (1.0 + limit)).ln_1p()
}

/// The stake that grows fastest when a pair's difference has this mean and this mean square: to
/// second order.
pub(super) fn best_stake(side: Side, limit: f64, mean: f64, square: f64) -> f64 {
    if !side.holds(mean, limit) {
        return 0.0;
    }
    let spread = square - 2.0 * limit * mean + limit * limit;
    let best = (mean - limit) / spread.max(EDGE);
    (best / lambda(side, limit, 1.0)).clamp(0.0, LARGEST_LOSS)
}

fn lambda(side: Side, limit: f64, stake: f64) -> f64 {
    side.sign() * stake.min(LARGEST_LOSS) / (1.0 + side.sign() * limit).max(EDGE)
}

/// The most that `paired` may expect to gain from a pair, with one of these stakes, when production
/// alone and the shadow alone have the event this often.
pub(super) fn growth_of_pairs(side: Side, limit: f64, only: [f64; 2], stakes: &[f64]) -> f64 {
    let growth = |stake: &f64| {
        let lambda = lambda(side, limit, *stake);
        only[1] * (lambda * (1.0 - limit)).ln_1p()
            + (1.0 - only[0] - only[1]) * (-lambda * limit).ln_1p()
            + only[0] * (-lambda * (1.0 + limit)).ln_1p()
    };
    stakes.iter().map(growth).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIDES: [Side; 2] = [Side::Above, Side::Below];
    const RATES: [f64; 8] = [0.0, 0.001, 0.02, 0.3, 0.5, 0.8, 0.99, 1.0];

    /// Every outcome of so many trials, with its chance.
    fn outcomes(trials: u64, rate: f64) -> Vec<(Counts, f64)> {
        let ways = |events: u64| {
            (0..events).fold(1.0, |ways, i| ways * (trials - i) as f64 / (i + 1) as f64)
        };
        let chance = |events: u64| {
            ways(events) * rate.powi(events as i32) * (1.0 - rate).powi((trials - events) as i32)
        };
        (0..=trials)
            .map(|events| (Counts { events, trials }, chance(events)))
            .collect()
    }

    fn at_most_one(expectation: f64, of: impl std::fmt::Debug) {
        assert!(expectation <= 1.0 + 1e-9, "{expectation} for {of:?}");
    }

    #[test]
    fn small_windows_are_worth_what_the_formulas_say() {
        let check = |found: f64, expected: f64| {
            assert!(
                (found.exp() - expected).abs() < 1e-9,
                "{} is not {expected}",
                found.exp()
            );
        };
        let counts = |events, trials| Counts { events, trials };
        // Odds of 3 to 1 on an even chance: 0.75 / 0.5, and 0.25 / 0.5.
        check(one_sample(Side::Above, 0.5, 0.75, counts(1, 1)), 1.5);
        check(
            one_sample(Side::Above, 0.5, 0.75, counts(1, 3)),
            1.5 * 0.5 * 0.5,
        );
        check(one_sample(Side::Below, 0.5, 0.75, counts(1, 3)), 1.0);
        // Between 0.25 and 0.75 the nearest equal rates are 0.5.
        check(
            two_arms(Side::Above, 0.0, [0.25, 0.75], [counts(0, 1), counts(1, 1)]),
            1.5 * 1.5,
        );
        check(
            two_arms(Side::Above, 0.0, [0.25, 0.75], [counts(1, 1), counts(1, 1)]),
            0.5 * 1.5,
        );
        // With three times the trials the arm pulls three times as much: 0.625.
        check(
            two_arms(Side::Above, 0.0, [0.25, 0.75], [counts(0, 1), counts(3, 3)]),
            2.0 * 1.728,
        );
        check(
            two_arms(Side::Above, 0.1, [0.25, 0.35], [counts(0, 1), counts(3, 3)]),
            1.0,
        );
        check(
            two_arms(Side::Above, 0.0, [0.25, 0.75], [counts(0, 0), counts(3, 3)]),
            1.0,
        );
        let pairs = |production_only, shadow_only, neither| Pairs {
            production_only,
            shadow_only,
            neither,
            both: 1,
        };
        check(paired(Side::Above, 0.0, 0.5, pairs(0, 2, 7)), 1.5 * 1.5);
        check(
            paired(Side::Above, 0.0, 0.5, pairs(1, 2, 7)),
            1.5 * 1.5 * 0.5,
        );
        check(
            paired(Side::Below, 0.2, 0.4, pairs(0, 0, 2)),
            1.1f64.powi(3),
        );
    }

    /// Over every outcome of a window, under every null hypothesis of a grid.
    #[test]
    fn two_arms_are_expected_to_gain_nothing() {
        let sizes = [[1, 1], [1, 5], [5, 1], [3, 2]];
        for side in SIDES {
            for margin in [-0.6, -0.1, -0.005, 0.0, 0.005, 0.1, 0.6] {
                let nulls = RATES
                    .iter()
                    .flat_map(|stable| RATES.map(|canary| [*stable, canary]));
                let boundary = RATES.map(|stable| [stable, stable + margin]);
                let nulls = nulls.chain(boundary).filter(|[stable, canary]| {
                    (0.0..=1.0).contains(canary)
                        && side.sign() * (canary - stable - margin) <= 1e-12
                });
                for ([stable, canary], [n, m]) in
                    nulls.flat_map(|null| sizes.map(|size| (null, size)))
                {
                    for believed in RATES
                        .iter()
                        .flat_map(|stable| RATES.map(|canary| [*stable, canary]))
                    {
                        let expectation: f64 = outcomes(n, stable)
                            .into_iter()
                            .flat_map(|one| {
                                outcomes(m, canary)
                                    .into_iter()
                                    .map(move |other| (one, other))
                            })
                            .map(|(one, other)| {
                                one.1
                                    * other.1
                                    * two_arms(side, margin, believed, [one.0, other.0]).exp()
                            })
                            .sum();
                        at_most_one(
                            expectation,
                            (side, margin, [stable, canary], [n, m], believed),
                        );
                    }
                }
            }
        }
    }

    /// Within a window requests may differ: only the mean rates of the arms are compared.
    #[test]
    fn requests_of_one_window_may_have_different_rates() {
        let both = |rates: [f64; 2]| {
            [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(a, b)| {
                let chance = |event: i32, rate: f64| if event == 1 { rate } else { 1.0 - rate };
                (
                    Counts {
                        events: (a + b) as u64,
                        trials: 2,
                    },
                    chance(a, rates[0]) * chance(b, rates[1]),
                )
            })
        };
        for (stable, canary) in [
            ([0.1, 0.5], [0.6, 0.0]),
            ([0.3, 0.3], [0.0, 0.6]),
            ([0.0, 1.0], [0.5, 0.5]),
        ] {
            for believed in [[0.1, 0.5], [0.3, 0.4], [0.01, 0.9]] {
                let expectation: f64 = both(stable)
                    .into_iter()
                    .flat_map(|one| both(canary).map(|other| (one, other)))
                    .map(|(one, other)| {
                        one.1
                            * other.1
                            * two_arms(Side::Above, 0.0, believed, [one.0, other.0]).exp()
                    })
                    .sum();
                at_most_one(expectation, (stable, canary, believed));
            }
        }
    }

    #[test]
    fn one_sample_is_expected_to_gain_nothing() {
        for side in SIDES {
            for (limit, believed) in RATES
                .iter()
                .flat_map(|limit| RATES.map(|believed| (*limit, believed)))
            {
                for rate in RATES
                    .into_iter()
                    .chain([limit])
                    .filter(|rate| !side.holds(*rate, limit.clamp(EDGE, 1.0 - EDGE)))
                {
                    let expectation = outcomes(6, rate)
                        .into_iter()
                        .map(|(counts, chance)| {
                            chance * one_sample(side, limit, believed, counts).exp()
                        })
                        .sum();
                    at_most_one(expectation, (side, limit, believed, rate));
                }
            }
        }
    }

    #[test]
    fn pairs_are_expected_to_gain_nothing() {
        for side in SIDES {
            for limit in [-0.3, -0.005, 0.0, 0.005, 0.3] {
                for stake in [0.01, 0.3, 1.0] {
                    for (production, shadow) in RATES
                        .iter()
                        .flat_map(|one| RATES.map(|other| (*one, other)))
                    {
                        let rest = 1.0 - production - shadow;
                        if rest < 0.0 || side.holds(shadow - production, limit) {
                            continue;
                        }
                        let one = |pairs: Pairs| paired(side, limit, stake, pairs).exp();
                        let expectation = production
                            * one(Pairs {
                                production_only: 1,
                                ..Pairs::default()
                            })
                            + shadow
                                * one(Pairs {
                                    shadow_only: 1,
                                    ..Pairs::default()
                                })
                            + rest
                                * one(Pairs {
                                    neither: 1,
                                    ..Pairs::default()
                                });
                        at_most_one(expectation, (side, limit, stake, production, shadow));
                    }
                }
            }
        }
    }

    /// No stakes on the two arms grow faster than those of the likelihood ratio.
    #[test]
    fn the_nearest_null_gives_the_fastest_growth() {
        let divergence = |rate: f64, from: f64| {
            rate * (rate / from).ln() + (1.0 - rate) * ((1.0 - rate) / (1.0 - from)).ln()
        };
        for (margin, believed, trials) in [
            (0.005, [0.01, 0.02], [99.0, 1.0]),
            (0.005, [0.001, 0.3], [50.0, 50.0]),
            (0.0, [0.5, 0.6], [3.0, 1.0]),
            (-0.01, [0.05, 0.06], [10.0, 1.0]),
        ] {
            let nearest = (1..100_000)
                .map(|at| f64::from(at) / 100_000.0)
                .filter(|at| (0.0..1.0).contains(&(at + margin)) && at + margin > 0.0)
                .map(|at| {
                    trials[0] * divergence(believed[0], at)
                        + trials[1] * divergence(believed[1], at + margin)
                })
                .fold(f64::INFINITY, f64::min);
            let growth = growth_of_two(Side::Above, margin, believed, trials).unwrap();
            assert!(
                (growth / nearest - 1.0).abs() < 2e-3,
                "{growth} instead of {nearest}"
            );
        }
    }
}
