//! How long answers took.

use std::time::Duration;

/// Durations, in no order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies(Vec<Duration>);

impl Latencies {
    /// Adds one.
    pub(crate) fn add(&mut self, latency: Duration) {
        self.0.push(latency);
    }

    /// Adds all of others.
    pub(crate) fn append(&mut self, mut others: Self) {
        self.0.append(&mut others.0);
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.0.len() as u64
    }

    /// The 50th and the 99th percentile in milliseconds, by the nearest rank.
    pub(crate) fn quantiles(&self) -> Option<[f64; 2]> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let at = |part: f64| {
            let rank = (sorted.len() as f64 * part).ceil() as usize;
            let value = sorted.get(rank.checked_sub(1)?)?;
            Some(value.as_secs_f64() * 1e3)
        };
        Some([at(0.50)?, at(0.99)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(milliseconds: impl Iterator<Item = u64>, expected: Option<[f64; 2]>) {
        let latencies = Latencies(milliseconds.map(Duration::from_millis).collect());
        assert_eq!(latencies.quantiles(), expected);
    }

    #[test]
    fn quantiles_go_by_rank() {
        check((1..=100).rev(), Some([50.0, 99.0]));
        check(7..=7, Some([7.0, 7.0]));
        check(0..0, None);
    }
}
