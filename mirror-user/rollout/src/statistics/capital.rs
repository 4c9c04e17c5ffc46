//! The capital of several bets that run side by side: their mean is an e-process too.

/// So many windows, about a minute, until the reserve starts the bets anew.
const REST: u32 = 60;

/// ln of the most that one window may multiply a bet by. What happens within a second is rarely independent (a
/// pause, a burst, a client that repeats itself), so no window decides alone. An e-value stays one when it is cut.
pub(super) const MOST: f64 = 1.0;

/// The capital of one direction of a test, from 1 on. Ville (1939): while the null hypothesis holds,
/// the chance that it ever reaches `1 / alpha` is at most `alpha`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Capital {
    /// ln of each bet's part.
    bets: Vec<f64>,
    reserve: Option<Reserve>,
}

/// What is not betted yet. Bets that were long wrong have lost all; from it they start anew, so that
/// a change after a long time is still seen. The `j`-th start has `1 / ((j + 1) (j + 2))` of the
/// capital (as in the e-detectors of Shin, Ramdas and Rinaldo, with a state that does not grow).
#[derive(Clone, Debug, PartialEq)]
struct Reserve {
    starts: u32,
    windows: u32,
}

impl Capital {
    /// So many bets in equal parts.
    pub(super) fn of(bets: usize) -> Self {
        let part = -(bets as f64).ln();
        Self {
            bets: vec![part; bets],
            reserve: None,
        }
    }

    /// The same, keeping a reserve.
    pub(super) fn with_reserve(bets: usize) -> Self {
        let mut capital = Self::of(bets);
        for bet in &mut capital.bets {
            *bet -= 2f64.ln();
        }
        capital.reserve = Some(Reserve {
            starts: 1,
            windows: 0,
        });
        capital
    }

    /// Multiplies each bet by its e-value of one window, given as logarithm, of at most [`MOST`].
    pub(super) fn multiply(&mut self, gains: impl Iterator<Item = f64>) {
        for (bet, gain) in self.bets.iter_mut().zip(gains) {
            *bet += gain;
        }
        let start = self.reserve.as_mut().and_then(Reserve::pass_window);
        if let Some(start) = start {
            let part = start - (self.bets.len() as f64).ln();
            for bet in &mut self.bets {
                *bet = ln_sum([*bet, part].into_iter());
            }
        }
    }

    /// ln of the capital.
    pub(super) fn ln(&self) -> f64 {
        let cash = self.reserve.as_ref().map(Reserve::ln);
        ln_sum(self.bets.iter().copied().chain(cash))
    }
}

impl Reserve {
    /// ln of what is left.
    fn ln(&self) -> f64 {
        -f64::from(self.starts + 1).ln()
    }

    /// ln of what goes into the bets after this window, if anything does.
    fn pass_window(&mut self) -> Option<f64> {
        self.windows += 1;
        if self.windows < REST {
            return None;
        }
        self.windows = 0;
        let before = self.ln();
        self.starts += 1;
        Some(before - f64::from(self.starts + 1).ln())
    }
}

/// ln of the sum of numbers that are given by their logarithms.
fn ln_sum(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = values.clone().fold(f64::NEG_INFINITY, f64::max);
    largest
        + values
            .map(|value| (value - largest).exp())
            .sum::<f64>()
            .ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A move from the reserve into the bets is no gain: the capital is what the bets made of it.
    #[test]
    fn the_reserve_neither_wins_nor_loses() {
        let mut capital = Capital::with_reserve(3);
        for window in 0..1_000 {
            let gains = [0.01, -0.02, if window % 2 == 0 { 0.3 } else { -0.4 }];
            let cash = capital.reserve.as_ref().map(Reserve::ln).unwrap();
            let expected = ln_sum(
                capital
                    .bets
                    .iter()
                    .zip(gains)
                    .map(|(bet, gain)| bet + gain)
                    .chain([cash]),
            );
            capital.multiply(gains.into_iter());
            assert!(
                (capital.ln() - expected).abs() < 1e-9,
                "window {window}: {capital:?}"
            );
        }
    }

    #[test]
    fn what_is_not_betted_stays() {
        for mut capital in [Capital::of(5), Capital::with_reserve(5)] {
            (0..500).for_each(|_| capital.multiply([0.0; 5].into_iter()));
            assert!(capital.ln().abs() < 1e-9, "{capital:?}");
        }
    }

    /// After an hour of losses, two minutes of gains are enough.
    #[test]
    fn a_late_change_is_seen() {
        let after = |mut capital: Capital| {
            (0..3_600).for_each(|_| capital.multiply([-1.0].into_iter()));
            (0..120).for_each(|_| capital.multiply([0.25].into_iter()));
            capital.ln()
        };
        assert!(after(Capital::with_reserve(1)) > 8.0);
        assert!(after(Capital::of(1)) < -3_000.0);
    }

    #[test]
    fn sums_of_very_different_numbers() {
        let check = |values: &[f64], expected: f64| {
            let found = ln_sum(values.iter().copied());
            assert!(
                (found - expected).abs() < 1e-12,
                "{found} is not {expected}"
            );
        };
        check(&[0.0, 0.0], 2f64.ln());
        check(&[-1e12, 3.0], 3.0);
        check(&[1e7, 1e7], 1e7 + 2f64.ln());
    }
}
