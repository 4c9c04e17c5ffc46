//! Loads of several rounds, and what they say together.

use crate::load::Measured;
use crate::statistics::Spread;

/// All loads of all rounds; a cell is what was the same in each round.
pub(crate) struct Samples<C>(Vec<Sample<C>>);

struct Sample<C> {
    round: usize,
    cell: C,
    measured: Measured,
}

impl<C> Default for Samples<C> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<C: Copy + PartialEq> Samples<C> {
    /// One more.
    pub(crate) fn push(&mut self, round: usize, cell: C, measured: Measured) {
        self.0.push(Sample {
            round,
            cell,
            measured,
        });
    }

    /// A figure of a cell over all rounds.
    pub(crate) fn spread(&self, cell: C, figure: impl Fn(&Measured) -> f64) -> Spread {
        Spread::of(self.of(cell).map(|sample| figure(&sample.measured)))
    }

    /// A cell's throughput in times of another's, each round by itself.
    pub(crate) fn ratio(&self, cell: C, other: C) -> Spread {
        Spread::of(self.of(cell).filter_map(|sample| {
            let mut others = self.of(other);
            let other = others.find(|other| other.round == sample.round)?;
            Some(sample.measured.rate() / other.measured.rate())
        }))
    }

    fn of(&self, cell: C) -> impl Iterator<Item = &Sample<C>> {
        self.0.iter().filter(move |sample| sample.cell == cell)
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

    fn measured(requests: f64) -> Measured {
        Measured {
            requests,
            seconds: 1.0,
            p50_ms: 0.0,
            p99_ms: 0.0,
            busy_seconds: 0.0,
        }
    }

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
            samples.push(round, cell, measured(requests));
        }
        assert_eq!(format!("{:.1}", samples.ratio("a", "b")), "2.5 (2.0-3.0)");
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
