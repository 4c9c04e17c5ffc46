//! The share that a budget allows: lowered until what is copied fits, raised again when there is room.
//! There is a hard stop behind each: the kernel's token bucket, or a ring that is full. This makes it
//! seldom needed.

/// Copies may use this part of the budget before the sample is lowered.
const HIGH: f64 = 0.9;
/// Below this part of the budget the sample may rise.
const LOW: f64 = 0.6;
/// The smallest share that is still tried.
const SMALLEST: f64 = 1.0 / 65_536.0;

/// What one second of copying came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Load {
    /// The part of the budget that was used.
    pub(super) used: f64,
    /// How often the hard stop was hit in that second.
    pub(super) shut_out: u64,
}

/// The largest share to copy next, given the last `limit`, the `wanted` share, and the last second's
/// load, which is that of the smaller one of both; no load = there is no budget. What is wanted is not
/// part of the limit: more may be wanted from one second to the next.
///
/// The same hash decides at every share, so that lowering only takes connections away and raising
/// only adds some.
pub(super) fn next_limit(limit: f64, wanted: f64, load: Option<Load>) -> f64 {
    let Some(Load { used, shut_out }) = load else {
        return 1.0;
    };
    let current = limit.min(wanted);
    let next = if shut_out > 0 {
        // What was shut out was not measured: the need is larger than what was copied.
        current / 2.0
    } else if used > HIGH {
        current * (0.8 / used).clamp(0.1, 0.9)
    } else if used < LOW {
        limit * 1.25
    } else {
        limit
    };
    next.clamp(SMALLEST, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BUDGET: u64 = 1_000_000;

    /// Runs the control against clients that would use `need` bytes/s at a share of 1.
    fn settle(mut limit: f64, wanted: f64, need: f64) -> f64 {
        for _ in 0..120 {
            let bytes = limit.min(wanted) * need;
            let stop = BUDGET as f64;
            let load = Load {
                used: bytes.min(stop) / stop,
                shut_out: u64::from(bytes > stop),
            };
            limit = next_limit(limit, wanted, Some(load));
        }
        limit
    }

    proptest! {
        #[test]
        fn settles_within_the_budget_and_uses_it(need in 1e3..1e10_f64, start in 0.0..1.0_f64) {
            let share = settle(start, 1.0, need);
            prop_assert!(share * need <= 1.25 * HIGH * BUDGET as f64, "{share}");
            prop_assert!(share == 1.0 || share * need >= 0.4 * BUDGET as f64, "{share}");
        }
    }

    /// Whoever wants little, or nothing, for a while and then more, gets it at once.
    #[test]
    fn what_is_not_wanted_is_no_limit() {
        for wanted in [0.0, 0.01, 0.5] {
            assert_eq!(settle(1.0, wanted, 1e6 / 2.0), 1.0, "{wanted}");
        }
    }

    #[test]
    fn without_a_budget_there_is_no_limit() {
        assert_eq!(next_limit(0.1, 0.5, None), 1.0);
    }
}
