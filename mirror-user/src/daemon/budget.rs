//! The effective sample: lowered until the copies fit their budget, raised again when there is
//! room. The kernel's token bucket is the hard stop; this makes it seldom needed.

/// Copies may use this part of the budget before the sample is lowered.
const HIGH: f64 = 0.9;
/// Below this part of the budget the sample may rise.
const LOW: f64 = 0.6;
/// The smallest share that is still tried.
const SMALLEST: f64 = 1.0 / 65_536.0;

/// What one second of copying came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Load {
    /// Bytes copied per second, headers included.
    pub(super) bytes_per_second: f64,
    /// Connections that hit the hard stop in that second.
    pub(super) shut_out: u64,
}

/// The share to copy next, given the `current` one, the `wanted` one, and the last second's load.
///
/// The same hash decides at every share, so that lowering only takes connections away and raising
/// only adds some.
pub(super) fn next_sample(current: f64, wanted: f64, load: Load, budget: Option<u64>) -> f64 {
    let Some(budget) = budget.filter(|&budget| budget > 0) else {
        return wanted;
    };
    let used = load.bytes_per_second / budget as f64;
    let next = if load.shut_out > 0 {
        // What was shut out was not measured: the need is larger than what was copied.
        current / 2.0
    } else if used > HIGH {
        current * (0.8 / used).clamp(0.1, 0.9)
    } else if used < LOW {
        current * 1.25
    } else {
        current
    };
    next.max(SMALLEST).min(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BUDGET: u64 = 1_000_000;

    /// Runs the control against clients that would use `need` bytes/s at a share of 1.
    fn settle(mut share: f64, wanted: f64, need: f64) -> f64 {
        for _ in 0..120 {
            let bytes = share * need;
            let stop = BUDGET as f64;
            let load = Load {
                bytes_per_second: bytes.min(stop),
                shut_out: u64::from(bytes > stop),
            };
            share = next_sample(share, wanted, load, Some(BUDGET));
        }
        share
    }

    proptest! {
        #[test]
        fn settles_within_the_budget_and_uses_it(need in 1e3..1e10_f64, start in 0.0..1.0_f64) {
            let share = settle(start, 1.0, need);
            prop_assert!(share * need <= 1.25 * HIGH * BUDGET as f64, "{share}");
            prop_assert!(share == 1.0 || share * need >= 0.4 * BUDGET as f64, "{share}");
        }

        #[test]
        fn never_exceeds_what_is_wanted(wanted in 0.0..1.0_f64, used in 0.0..3.0_f64) {
            let load = Load { bytes_per_second: used * BUDGET as f64, shut_out: 0 };
            prop_assert!(next_sample(wanted, wanted, load, Some(BUDGET)) <= wanted);
        }
    }

    #[test]
    fn without_a_budget_the_share_is_what_is_wanted() {
        let load = Load {
            bytes_per_second: 1e12,
            shut_out: 9,
        };
        assert_eq!(next_sample(0.1, 0.5, load, None), 0.5);
    }
}
