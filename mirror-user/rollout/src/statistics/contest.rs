//! What all tests have in common: a limit, a capital on either side of it, and smaller capitals at
//! other limits, which give the interval that people read.

use super::bet::{Bet, Side};
use super::capital::{Capital, MOST};
use super::wander::Effect;
use super::{Crowd, Finding, Verdict};

/// A quantity against its limit.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Contest {
    limit: f64,
    needed: f64,
    /// What the fixed bets are placed on.
    fixed: &'static [f64],
    above: Capital,
    below: Capital,
    elsewhere: Vec<Elsewhere>,
    /// What the last window's gain was divided by.
    effect: f64,
}

/// A limit that decides nothing: ln of the capital on either side.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Elsewhere {
    limit: f64,
    above: f64,
    below: f64,
}

impl Contest {
    /// `alpha` for each direction; the interval's ends are among `grid`, sorted, and `limit`.
    pub(super) fn new(limit: f64, alpha: f64, fixed: &'static [f64], grid: &[f64]) -> Self {
        let bets = fixed.len() + 1;
        let others = grid.iter().filter(|other| (**other - limit).abs() > 1e-9);
        Self {
            limit,
            needed: -alpha.clamp(f64::MIN_POSITIVE, 1.0).ln(),
            fixed,
            above: Capital::with_reserve(bets),
            below: Capital::of(bets),
            elsewhere: others
                .map(|&limit| Elsewhere {
                    limit,
                    above: 0.0,
                    below: 0.0,
                })
                .collect(),
            effect: 1.0,
        }
    }

    /// Looks at one window: `game` gives, for a limit and a side, ln of its e-value for each bet, of which
    /// only a part counts: a root of an e-value is one too, and so is one that is cut.
    pub(super) fn observe<G: Fn(Bet) -> f64>(
        &mut self,
        effect: Effect,
        game: impl Fn(f64, Side) -> G,
    ) {
        self.effect = effect.by;
        // Spells are held back where they accuse. What clears a version comes a little at a time, or from stable's own.
        let part = |side: Side, gain: f64| {
            let windows = if side == Side::Above {
                effect.windows
            } else {
                1.0
            };
            (gain / effect.by).min(MOST / windows)
        };
        for (side, capital) in [
            (Side::Above, &mut self.above),
            (Side::Below, &mut self.below),
        ] {
            let gain = game(self.limit, side);
            let fixed = self.fixed.iter().map(|&by| Bet::Fixed(by));
            capital.multiply(
                fixed
                    .chain([Bet::Expected])
                    .map(|bet| part(side, gain(bet))),
            );
        }
        for other in &mut self.elsewhere {
            for (side, capital) in [
                (Side::Above, &mut other.above),
                (Side::Below, &mut other.below),
            ] {
                *capital += part(side, game(other.limit, side)(Bet::Expected));
            }
        }
    }

    pub(super) fn limit(&self) -> f64 {
        self.limit
    }

    /// What must be earned to prove something, in nats: the level, and what it costs to bet on
    /// several alternatives of which a few come near the truth.
    pub(super) fn price(&self) -> f64 {
        self.needed + (self.fixed.len() as f64 / 2.0).max(1.0).ln()
    }

    /// What is known now, where the requests are of such a crowd.
    pub(super) fn finding(
        &self,
        crowd: Option<Crowd>,
        estimate: Option<f64>,
        events: [u64; 2],
        trials: [u64; 2],
    ) -> Finding {
        let temper = |nats| crowd.map_or(nats, |crowd| crowd.temper(nats));
        let (worse, within) = (temper(self.above.ln()), temper(self.below.ln()));
        let verdict = match (worse >= self.needed, within >= self.needed) {
            (true, _) => Verdict::Worse,
            (false, true) => Verdict::Within,
            (false, false) => Verdict::Unknown,
        };
        let (low, high) = self.interval(verdict, temper);
        Finding {
            verdict,
            estimate,
            low,
            high,
            limit: self.limit,
            worse,
            within,
            needed: self.needed,
            effect: self.effect,
            clients_effect: crowd.map_or(1.0, |crowd| crowd.effect),
            events,
            trials,
        }
    }

    /// The largest limit that is proven exceeded, and the smallest that is proven kept. Only the
    /// test at the limit itself says on which side of the limit they lie.
    fn interval(
        &self,
        verdict: Verdict,
        temper: impl Fn(f64) -> f64,
    ) -> (Option<f64>, Option<f64>) {
        let refuted = self.elsewhere.iter();
        let low = refuted
            .clone()
            .filter(|other| temper(other.above) >= self.needed)
            .map(|other| other.limit)
            .chain((verdict == Verdict::Worse).then_some(self.limit))
            .filter(|low| verdict == Verdict::Worse || *low < self.limit)
            .reduce(f64::max);
        let high = refuted
            .filter(|other| temper(other.below) >= self.needed)
            .map(|other| other.limit)
            .chain((verdict == Verdict::Within).then_some(self.limit))
            .filter(|high| verdict == Verdict::Within || *high > self.limit)
            .reduce(f64::min);
        match (low, high) {
            // What was once so no longer is: one of the ends is out of date.
            (Some(low), Some(high)) if low >= high => match verdict {
                Verdict::Worse => (Some(low), None),
                Verdict::Within => (None, Some(high)),
                Verdict::Unknown => (None, None),
            },
            ends => ends,
        }
    }
}
