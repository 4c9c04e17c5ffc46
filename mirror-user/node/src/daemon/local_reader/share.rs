//! Which shares of connections are looked at, so that the exchanges fit their budget. Pure.

use std::time::{Duration, Instant};

use mirror_common::tunnel::Arm;

use super::tally::Tally;
use crate::config::Look;
use crate::daemon::budget::{Load, next_limit};

/// What the copies of one service's look may be, in bytes per second: a budget in exchanges does not
/// bound what production's CPUs copy of large ones.
const BYTES_PER_SECOND: f64 = 50e6;

/// Less time than this says nothing of a rate: the local reader reads in bursts, and the daemon's loop may
/// be late.
const SHORTEST: Duration = Duration::from_millis(500);

/// The shares of one service, stable's and the canary's.
#[derive(Debug)]
pub(super) struct Shares {
    /// What the config wants.
    wanted: [f64; 2],
    /// Exchanges per second of each version.
    budget: f64,
    /// What the budget allows.
    limits: [f64; 2],
    /// Exchanges per second, of late.
    pub(super) rates: [f64; 2],
    last: Option<Reading>,
}

/// What had been counted at a time.
#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    seen: [u64; 2],
    bytes: [u64; 2],
    refused: u64,
}

impl Shares {
    pub(super) fn new() -> Self {
        Self {
            wanted: [0.0; 2],
            budget: 1.0,
            limits: [1.0; 2],
            rates: [0.0; 2],
            last: None,
        }
    }

    /// Sets what the config wants.
    pub(super) fn want(&mut self, look: &Look, has_canary: bool) {
        let canary = if has_canary { look.canary } else { 0.0 };
        self.wanted = [look.stable, canary];
        self.budget = look.exchanges_per_second as f64;
    }

    /// What holds.
    pub(super) fn effective(&self) -> [f64; 2] {
        [0, 1].map(|arm| self.limits[arm].min(self.wanted[arm]))
    }

    /// Looks at what was counted since the last time, and sets the limits for the next second.
    /// `refused` is how many copies of any look have found the ring full so far.
    pub(super) fn measure(&mut self, tally: &Tally, refused: u64, now: Instant) {
        let too_soon = |last: Reading| now.duration_since(last.at) < SHORTEST;
        if self.last.is_some_and(too_soon) {
            return;
        }
        let arms = [Arm::Stable, Arm::Canary];
        let reading = Reading {
            at: now,
            seen: arms.map(|arm| tally.seen(arm)),
            bytes: arms.map(|arm| tally.bytes(arm)),
            refused,
        };
        let Some(last) = self.last.replace(reading) else {
            return;
        };
        let seconds = now.duration_since(last.at).as_secs_f64();
        let per_second = |counts: [u64; 2], before: [u64; 2]| {
            [0, 1].map(|arm| counts[arm].saturating_sub(before[arm]) as f64 / seconds)
        };
        self.rates = per_second(reading.seen, last.seen);
        let bytes = per_second(reading.bytes, last.bytes);
        let refused = refused.saturating_sub(last.refused);
        let of_bytes = used(bytes, BYTES_PER_SECOND);
        for arm in [0, 1] {
            let load = Load {
                used: (self.rates[arm] / self.budget).max(of_bytes[arm]),
                shut_out: refused,
            };
            self.limits[arm] = next_limit(self.limits[arm], self.wanted[arm], Some(load));
        }
    }
}

/// Which part of its budget each version has used. Each has half of it, and what the other one leaves:
/// a small canary is seen whole.
fn used(rates: [f64; 2], budget: f64) -> [f64; 2] {
    [0, 1].map(|arm| rates[arm] / (budget - rates[1 - arm]).max(budget / 2.0))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::tally::Outcome;
    use super::*;

    /// Runs the control for `seconds` with clients that send so many requests a second.
    fn run(shares: &mut Shares, need: [f64; 2], seconds: u64) -> [f64; 2] {
        let (tally, start) = (Tally::default(), Instant::now());
        shares.last = None;
        for second in 0..seconds {
            let effective = shares.effective();
            for (index, arm) in [Arm::Stable, Arm::Canary].into_iter().enumerate() {
                let seen = (need[index] * effective[index]) as u64;
                (0..seen).for_each(|_| tally.count_seen(arm));
                tally.count(arm, Outcome::Whole(2));
            }
            shares.measure(&tally, 0, start + Duration::from_secs(second));
        }
        let effective = shares.effective();
        [0, 1].map(|arm| need[arm] * effective[arm])
    }

    fn shares(stable: f64, canary: f64, exchanges_per_second: u64) -> Shares {
        let look = Look {
            stable,
            canary,
            exchanges_per_second,
            ..Look::default()
        };
        let mut shares = Shares::new();
        shares.want(&look, true);
        shares
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_seen_fits_the_budget(need in [0.0..5_000.0_f64, 0.0..5_000.0_f64]) {
            let seen = run(&mut shares(1.0, 1.0, 100), need, 60);
            for (seen, need) in seen.into_iter().zip(need) {
                prop_assert!(seen <= 120.0, "{seen} of {need}");
                prop_assert!(seen >= need.min(40.0) * 0.99, "{seen} of {need}");
            }
        }
    }

    #[test]
    fn a_small_canary_is_seen_whole() {
        let mut shares = shares(1.0, 1.0, 100);
        let seen = run(&mut shares, [2_000.0, 20.0], 60);
        assert_eq!(shares.effective()[1], 1.0);
        assert!((40.0..100.0).contains(&seen[0]), "{seen:?}");
        let effective = shares.effective();
        run(&mut shares, [1.0, 1.0], 60);
        assert_eq!(shares.effective(), [1.0; 2], "after {effective:?}");
    }

    #[test]
    fn what_is_not_wanted_is_not_looked_at() {
        let mut shares = shares(0.25, 0.5, 100);
        assert_eq!(shares.effective(), [0.25, 0.5]);
        let look = Look {
            stable: 0.0,
            canary: 1.0,
            exchanges_per_second: 100,
            ..Look::default()
        };
        shares.want(&look, false);
        assert_eq!(shares.effective(), [0.0; 2]);
    }

    #[test]
    fn a_late_second_is_not_measured_with_the_next_one() {
        let (tally, start) = (Tally::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        let mut shares = shares(1.0, 1.0, 100);
        shares.measure(&tally, 0, start);
        shares.measure(&tally, 0, at(1_900));
        (0..50).for_each(|_| tally.count_seen(Arm::Stable));
        shares.measure(&tally, 0, at(2_000));
        assert_eq!(shares.effective(), [1.0; 2]);
        shares.measure(&tally, 0, at(3_000));
        let rate = shares.rates[0];
        assert!((40.0..50.0).contains(&rate), "{rate}");
    }

    #[test]
    fn refused_copies_halve_the_shares_and_so_do_many_bytes() {
        let (tally, now) = (Tally::default(), Instant::now());
        let mut shares = shares(1.0, 1.0, 100);
        shares.measure(&tally, 5, now);
        assert_eq!(shares.effective(), [1.0; 2], "refused before it was looked");
        shares.measure(&tally, 6, now + Duration::from_secs(1));
        assert_eq!(shares.effective(), [0.5; 2]);
        tally.count_bytes(Arm::Stable, 500_000_000);
        shares.measure(&tally, 6, now + Duration::from_secs(2));
        let [stable, canary] = shares.effective();
        assert!(stable < 0.06 && canary > 0.6, "{stable} {canary}");
    }
}
