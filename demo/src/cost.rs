//! What clients notice of the mirror.

use std::fmt;
use std::time::Duration;

use crate::load::Mirror;

/// How long answers took, with the mirror off and on.
#[derive(Debug, Default)]
pub(crate) struct Costs {
    off: Vec<Duration>,
    on: Vec<Duration>,
}

impl Costs {
    /// Adds a phase.
    pub(crate) fn add(&mut self, mirror: Mirror, mut latencies: Vec<Duration>) {
        match mirror {
            Mirror::Off => self.off.append(&mut latencies),
            Mirror::On => self.on.append(&mut latencies),
        }
    }

    /// How many requests were answered.
    pub(crate) fn requests(&self, mirror: Mirror) -> u64 {
        match mirror {
            Mirror::Off => self.off.len() as u64,
            Mirror::On => self.on.len() as u64,
        }
    }
}

impl fmt::Display for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Cost for clients         requests   failed       p50       p99"
        )?;
        for (name, latencies) in [("mirror off", &self.off), ("mirror on", &self.on)] {
            let mut sorted = latencies.clone();
            sorted.sort_unstable();
            let (p50, p99) = (quantile(&sorted, 0.50), quantile(&sorted, 0.99));
            let requests = sorted.len();
            // One failure would have ended the demo.
            writeln!(
                f,
                "  {name:<20} {requests:>10} {:>8} {p50:>6.3} ms {p99:>6.3} ms",
                0
            )?;
        }
        Ok(())
    }
}

/// A quantile of sorted values, in milliseconds, by the nearest rank.
fn quantile(sorted: &[Duration], part: f64) -> f64 {
    let rank = (sorted.len() as f64 * part).ceil() as usize;
    let value = sorted
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or_default();
    value.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_go_by_rank() {
        let values: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(quantile(&values, 0.50), 50.0);
        assert_eq!(quantile(&values, 0.99), 99.0);
        assert_eq!(quantile(&values[..1], 0.99), 1.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }
}
