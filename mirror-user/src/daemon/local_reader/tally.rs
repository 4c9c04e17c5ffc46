//! What became of the exchanges that were looked at.
//!
//! Counted by a thread that may be kept from the CPU for long, and read by those that may not be: so
//! there is no lock.

use std::sync::atomic::{AtomicU64, Ordering};

use mirror_common::tunnel::Arm;

use crate::shadow::message::DropReason;

/// The classes of responses, and what has none.
const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "other"];

/// What became of an exchange. Label `outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Request and response were whole; the class of the response's status, 1..=5, or 6.
    Whole(u8),
    /// It was not whole, and why.
    Dropped(DropReason),
}

impl Outcome {
    /// A whole exchange whose response had this status.
    pub(crate) fn of_status(status: u16) -> Self {
        let class = u8::try_from(status / 100).unwrap_or(0);
        Self::Whole(if (1..=5).contains(&class) { class } else { 6 })
    }

    /// Every outcome.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let dropped = DropReason::ALL.iter();
        (1..=6)
            .map(Self::Whole)
            .chain(dropped.map(|&reason| Self::Dropped(reason)))
    }

    /// The value of the `outcome` label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Whole(class) => CLASSES[usize::from(class).clamp(1, CLASSES.len()) - 1],
            Self::Dropped(reason) => reason.label(),
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Whole(class) => usize::from(class).clamp(1, CLASSES.len()) - 1,
            Self::Dropped(reason) => CLASSES.len() + reason as usize,
        }
    }
}

/// The exchanges of one service, by version.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    arms: [OfArm; 2],
}

#[derive(Debug)]
struct OfArm {
    /// Exchanges that were begun.
    seen: AtomicU64,
    /// Bytes of packets that were read for them.
    bytes: AtomicU64,
    /// By [`Outcome::index`].
    outcomes: [AtomicU64; CLASSES.len() + DropReason::ALL.len()],
}

impl Default for OfArm {
    fn default() -> Self {
        Self {
            seen: AtomicU64::default(),
            bytes: AtomicU64::default(),
            outcomes: std::array::from_fn(|_| AtomicU64::default()),
        }
    }
}

impl Tally {
    pub(super) fn count_seen(&self, arm: Arm) {
        self.of(arm).seen.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_bytes(&self, arm: Arm, bytes: u64) {
        self.of(arm).bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn count(&self, arm: Arm, outcome: Outcome) {
        self.of(arm).outcomes[outcome.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// Exchanges of which a byte was seen.
    pub(crate) fn seen(&self, arm: Arm) -> u64 {
        self.of(arm).seen.load(Ordering::Relaxed)
    }

    /// Bytes of packets that were read for them.
    pub(super) fn bytes(&self, arm: Arm) -> u64 {
        self.of(arm).bytes.load(Ordering::Relaxed)
    }

    /// How many exchanges came to this.
    pub(crate) fn outcome(&self, arm: Arm, outcome: Outcome) -> u64 {
        self.of(arm).outcomes[outcome.index()].load(Ordering::Relaxed)
    }

    fn of(&self, arm: Arm) -> &OfArm {
        &self.arms[arm as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_outcome_has_a_place_and_a_name_of_its_own() {
        let labels: BTreeSet<_> = Outcome::all().map(Outcome::label).collect();
        assert_eq!(labels.len(), Outcome::all().count());
        let tally = Tally::default();
        for (count, outcome) in (1..).zip(Outcome::all()) {
            (0..count).for_each(|_| tally.count(Arm::Canary, outcome));
        }
        for (count, outcome) in (1..).zip(Outcome::all()) {
            assert_eq!(tally.outcome(Arm::Canary, outcome), count, "{outcome:?}");
            assert_eq!(tally.outcome(Arm::Stable, outcome), 0, "{outcome:?}");
        }
    }

    #[test]
    fn a_status_has_a_class() {
        let check = |status, expected| assert_eq!(Outcome::of_status(status).label(), expected);
        check(200, "2xx");
        check(599, "5xx");
        check(101, "1xx");
        check(0, "other");
        check(999, "other");
        check(u16::MAX, "other");
    }
}
