//! Bodies that are much shorter than usual.

use super::latencies::{Latencies, Tails, below};
use super::{Counts, MEMORY};

/// A body is short below this part of what nearly all of stable's have, ...
const PART: f64 = 0.5;

/// ... the least that so many of them have.
const USUAL: f64 = 0.05;

/// Of fewer bodies nothing is usual.
const FEWEST: f64 = 20.0;

/// Counts short bodies of both versions. What is short follows from stable's earlier windows alone, so
/// that it is the same for both, and no version can bend it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShortBodies {
    /// The lengths of stable's bodies of late.
    recent: Tails,
}

impl ShortBodies {
    /// Takes a window in: bodies of stable and of the canary, and those of them that are short. None are
    /// counted before it is known what is short.
    pub fn observe(&mut self, stable: &Latencies, canary: &Latencies) -> [Counts; 2] {
        let usual = self.recent.quantile(USUAL);
        let is_known = self.recent.count() >= FEWEST;
        let window = [stable, canary].map(|arm| Tails::of(arm.iter()));
        let counts = match usual
            .filter(|_| is_known)
            .and_then(|usual| below(usual * PART))
        {
            Some(bucket) => window.each_ref().map(|arm| {
                let Counts { events, trials } = arm.counts(bucket);
                Counts {
                    events: trials - events,
                    trials,
                }
            }),
            None if is_known => window.each_ref().map(|arm| Counts {
                events: 0,
                trials: arm.count() as u64,
            }),
            None => [Counts::default(); 2],
        };
        if window[0].count() > 0.0 {
            self.recent.learn(MEMORY, &window[0], 1.0);
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use mirror_common::histogram::Latency;

    use super::*;

    fn bodies(lengths: &[(u64, u64)]) -> Latencies {
        let buckets = lengths.iter().map(|&(bytes, count)| {
            let bucket = Latency::bucket(bytes * 1_024);
            (u16::try_from(bucket).unwrap(), count)
        });
        buckets.collect()
    }

    #[test]
    fn what_is_short_follows_from_what_stable_sends() {
        let mut short = ShortBodies::default();
        let usual = bodies(&[(1_000, 50), (3_000, 50)]);
        let nothing = Counts::default();
        assert_eq!(short.observe(&usual, &usual), [nothing; 2]);
        let counts = |events, trials| Counts { events, trials };
        let canary = bodies(&[(0, 7), (100, 5), (700, 3), (1_000, 2)]);
        let expected = [counts(0, 100), counts(12, 17)];
        assert_eq!(short.observe(&usual, &canary), expected);
        let expected = [counts(0, 0), counts(12, 17)];
        assert_eq!(short.observe(&bodies(&[]), &canary), expected);
    }

    #[test]
    fn where_stable_s_are_empty_none_is_short() {
        let mut short = ShortBodies::default();
        let empty = bodies(&[(0, 50), (3_000, 50)]);
        for _ in 0..3 {
            let [stable, canary] = short.observe(&empty, &bodies(&[(0, 9)]));
            assert_eq!((stable.events, canary.events), (0, 0));
        }
    }
}
