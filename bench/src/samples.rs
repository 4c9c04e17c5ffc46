//! Measurements of several rounds, and what they say together.

use crate::load::Measured;
use crate::statistics::Spread;

/// All measurements of all rounds; a cell is what was the same in each round.
pub(crate) struct Samples<C, M = Measured>(Vec<Sample<C, M>>);

struct Sample<C, M> {
    round: usize,
    cell: C,
    measured: M,
}

impl<C, M> Default for Samples<C, M> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<C: Copy + PartialEq, M> Samples<C, M> {
    /// One more.
    pub(crate) fn push(&mut self, round: usize, cell: C, measured: M) {
        self.0.push(Sample {
            round,
            cell,
            measured,
        });
    }

    /// A figure of a cell over all rounds.
    pub(crate) fn spread(&self, cell: C, figure: impl Fn(&M) -> f64) -> Spread {
        self.together([cell], |[measured]| figure(measured))
    }

    /// What several cells say together, each round by itself.
    pub(crate) fn together<const N: usize>(
        &self,
        cells: [C; N],
        figure: impl Fn([&M; N]) -> f64,
    ) -> Spread {
        let rounds = self.0.iter().map(|sample| sample.round + 1);
        let rounds = 0..rounds.max().unwrap_or(0);
        Spread::of(rounds.filter_map(|round| {
            let found: Vec<&M> = cells
                .iter()
                .filter_map(|cell| self.find(round, *cell))
                .collect();
            Some(figure(found.try_into().ok()?))
        }))
    }

    fn find(&self, round: usize, cell: C) -> Option<&M> {
        let mut all = self.0.iter();
        all.find(|sample| (sample.round, sample.cell) == (round, cell))
            .map(|sample| &sample.measured)
    }
}

impl<C: Copy + PartialEq> Samples<C> {
    /// A cell's throughput in times of another's, each round by itself.
    pub(crate) fn ratio(&self, cell: C, other: C) -> Spread {
        self.together([cell, other], |[one, other]| one.rate() / other.rate())
    }
}

/// All of them once, each round beginning with another.
pub(crate) fn turns<T: Copy>(all: &[T], round: usize) -> impl Iterator<Item = T> {
    let first = round * 5 % all.len();
    all.iter().copied().cycle().skip(first).take(all.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_formed_within_rounds() {
        let mut samples = Samples::default();
        for (round, cell, requests) in [
            (0, "a", 100.0),
            (0, "b", 50.0),
            (1, "b", 10.0),
            (1, "a", 30.0),
            (2, "a", 7.0),
        ] {
            samples.push(round, cell, requests);
        }
        let ratio = samples.together(["a", "b"], |[a, b]| a / b);
        assert_eq!(format!("{ratio:.1}"), "2.5 (2.0-3.0)");
    }

    #[test]
    fn everybody_has_a_turn() {
        for round in 0..20 {
            let mut all: Vec<u32> = turns(&[1, 2, 3, 4, 5, 6], round).collect();
            all.sort_unstable();
            assert_eq!(all, [1, 2, 3, 4, 5, 6]);
        }
    }
}
