//! What became of the exchanges that were looked at, and how long clients waited.
//!
//! Counted by a thread that may be kept from the CPU for long, and read by those that may not be: so
//! there is no lock.

use std::sync::atomic::{AtomicU64, Ordering};

use mirror_common::histogram::Latency;
use mirror_common::tunnel::Arm;
use mirror_rollout::statistics::{CLUSTERS, Row, Sort};

use mirror_wire::message::DropReason;

/// The classes of responses, and what has none.
const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "other"];

/// What became of a request. Label `outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The response was whole; the class of its status, 1..=5, or 6.
    Whole(u8),
    /// The server ended the response, or fell silent, before it was whole.
    Incomplete,
    /// There was no response: the server ended the connection, or was silent for too long.
    Unanswered,
    /// What the server sent is no HTTP response.
    Unreadable,
    /// The response was whole, with a status below 400, and its body says that it is a failure.
    SaysError,
    /// The client ended the connection before the response was whole.
    AbortedByClient,
    /// How it ended for its client could not be seen, and why. It says nothing of the version.
    Unseen(DropReason),
}

impl Outcome {
    const COUNT: usize = CLASSES.len() + 5 + DropReason::ALL.len();

    /// A whole response with this status.
    pub(crate) fn of_status(status: u16) -> Self {
        let class = u8::try_from(status / 100).unwrap_or(0);
        Self::Whole(if (1..=5).contains(&class) { class } else { 6 })
    }

    /// Every outcome.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let unseen = DropReason::ALL.iter();
        (1..=6)
            .map(Self::Whole)
            .chain([
                Self::Incomplete,
                Self::Unanswered,
                Self::Unreadable,
                Self::SaysError,
                Self::AbortedByClient,
            ])
            .chain(unseen.map(|&reason| Self::Unseen(reason)))
    }

    /// The value of the `outcome` label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Whole(class) => CLASSES[usize::from(class).clamp(1, CLASSES.len()) - 1],
            Self::Incomplete => "incomplete",
            Self::Unanswered => "unanswered",
            Self::Unreadable => "unreadable",
            Self::SaysError => "says_error",
            Self::AbortedByClient => "aborted_by_client",
            Self::Unseen(reason) => reason.label(),
        }
    }

    /// Whether the server has failed the request.
    pub(super) fn is_failure(self) -> bool {
        matches!(
            self,
            Self::Whole(5)
                | Self::Incomplete
                | Self::Unanswered
                | Self::Unreadable
                | Self::SaysError
        )
    }

    fn index(self) -> usize {
        const ENDS: usize = CLASSES.len();
        match self {
            Self::Whole(class) => usize::from(class).clamp(1, CLASSES.len()) - 1,
            Self::Incomplete => ENDS,
            Self::Unanswered => ENDS + 1,
            Self::Unreadable => ENDS + 2,
            Self::SaysError => ENDS + 3,
            Self::AbortedByClient => ENDS + 4,
            Self::Unseen(reason) => ENDS + 5 + reason as usize,
        }
    }
}

/// What a client waited for, from the last byte of its request on. Requests that were given up before
/// count as if it had come then: they would have waited for longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// The first byte of the response's header.
    Header,
    /// The first byte of its body, or its end where it has none.
    Body,
    /// Its last byte.
    End,
}

/// What was counted of one version so far.
#[derive(Clone, Debug)]
pub(crate) struct Looked {
    outcomes: [u64; Outcome::COUNT],
    /// By [`Wait`].
    waits: [Latency; 3],
    /// Those of them that were given up, ...
    given_up: [Latency; 3],
    /// ... and how many never came, those given up included.
    never: [u64; 3],
    /// The lengths of the bodies of 2xx responses that may have one, see [`size_as_ns`].
    pub(crate) sizes: Latency,
    /// Requests by client, and by connection.
    pub(crate) clusters: Box<[[Row; CLUSTERS]; 2]>,
}

impl Default for Looked {
    fn default() -> Self {
        Self {
            outcomes: [0; Outcome::COUNT],
            waits: [Latency::default(); 3],
            given_up: [Latency::default(); 3],
            never: [0; 3],
            sizes: Latency::default(),
            clusters: Box::new([[[0; Sort::COUNT]; CLUSTERS]; 2]),
        }
    }
}

impl Looked {
    /// How many requests came to this.
    pub(crate) fn outcome(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome.index()]
    }

    /// How many requests have ended, as far as their ends could be seen.
    pub(crate) fn requests(&self) -> u64 {
        let seen = self
            .outcomes
            .iter()
            .take(Outcome::COUNT - DropReason::ALL.len());
        seen.sum()
    }

    /// How many of them had a whole response.
    pub(crate) fn responses(&self) -> u64 {
        self.outcomes.iter().take(CLASSES.len()).sum()
    }

    /// How long clients waited for this.
    pub(crate) fn wait(&self, wait: Wait) -> &Latency {
        &self.waits[wait as usize]
    }

    /// Those of them that were given up until then.
    pub(crate) fn given_up(&self, wait: Wait) -> &Latency {
        &self.given_up[wait as usize]
    }

    /// How often this never came, to requests that were given up and to others.
    pub(crate) fn never(&self, wait: Wait) -> u64 {
        self.never[wait as usize]
    }

    /// The same, to be changed: for tests.
    #[cfg(test)]
    pub(crate) fn set(&mut self, outcome: Outcome, count: u64) {
        self.outcomes[outcome.index()] = count;
    }

    /// See [`Looked::set`].
    #[cfg(test)]
    pub(crate) fn wait_mut(&mut self, wait: Wait) -> &mut Latency {
        &mut self.waits[wait as usize]
    }
}

/// Lengths are counted in the buckets of durations, which are fine enough: a byte as 1,024 ns, so that
/// the first bucket has what is empty, or one byte long.
pub(crate) fn size_as_ns(bytes: u64) -> u64 {
    bytes.saturating_mul(1_024)
}

/// A histogram that is counted into and read at once.
#[derive(Debug)]
struct Durations {
    buckets: Box<[AtomicU64]>,
    sum_ns: AtomicU64,
}

impl Default for Durations {
    fn default() -> Self {
        let empty = Latency::default();
        Self {
            buckets: empty.buckets.iter().map(|_| AtomicU64::default()).collect(),
            sum_ns: AtomicU64::default(),
        }
    }
}

impl Durations {
    fn count(&self, ns: u64) {
        self.buckets[Latency::bucket(ns)].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    fn read(&self) -> Latency {
        let mut read = Latency::default();
        for (to, from) in read.buckets.iter_mut().zip(&self.buckets) {
            *to = from.load(Ordering::Relaxed);
        }
        read.sum_ns = self.sum_ns.load(Ordering::Relaxed);
        read
    }
}

fn each<T>(of: impl Fn(usize, usize, usize) -> T) -> [[[T; Sort::COUNT]; CLUSTERS]; 2] {
    std::array::from_fn(|by| std::array::from_fn(|at| std::array::from_fn(|sort| of(by, at, sort))))
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
    outcomes: [AtomicU64; Outcome::COUNT],
    waits: [Durations; 3],
    given_up: [Durations; 3],
    never: [AtomicU64; 3],
    sizes: Durations,
    /// By client and by connection, each by cluster and [`Sort`].
    clusters: Box<[[[AtomicU64; Sort::COUNT]; CLUSTERS]; 2]>,
}

impl Default for OfArm {
    fn default() -> Self {
        Self {
            seen: AtomicU64::default(),
            bytes: AtomicU64::default(),
            outcomes: std::array::from_fn(|_| AtomicU64::default()),
            waits: Default::default(),
            given_up: Default::default(),
            never: Default::default(),
            sizes: Durations::default(),
            clusters: Box::new(each(|_, _, _| AtomicU64::default())),
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

    pub(super) fn count_wait(&self, arm: Arm, wait: Wait, ns: u64) {
        self.of(arm).waits[wait as usize].count(ns);
    }

    /// A request waited for what never came; its client, or the reader, has given it up after so long, or the server
    /// has.
    pub(super) fn count_never(&self, arm: Arm, wait: Wait, given_up_ns: Option<u64>) {
        let of = self.of(arm);
        of.never[wait as usize].fetch_add(1, Ordering::Relaxed);
        if let Some(ns) = given_up_ns {
            of.waits[wait as usize].count(ns);
            of.given_up[wait as usize].count(ns);
        }
    }

    pub(super) fn count_size(&self, arm: Arm, bytes: u64) {
        self.of(arm).sizes.count(size_as_ns(bytes));
    }

    /// A request of a client, and of a connection, that are in these clusters, is of these sorts.
    pub(super) fn count_clusters(&self, arm: Arm, clusters: [usize; 2], is: impl Fn(Sort) -> bool) {
        for (by, at) in self.of(arm).clusters.iter().zip(clusters) {
            for sort in Sort::ALL.into_iter().filter(|sort| is(*sort)) {
                by[at][sort as usize].fetch_add(1, Ordering::Relaxed);
            }
        }
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

    /// How many whole responses there were.
    pub(crate) fn responses(&self, arm: Arm) -> u64 {
        let whole = (1..=6).map(|class| self.outcome(arm, Outcome::Whole(class)));
        whole.sum()
    }

    /// Everything that was counted of a version so far.
    pub(crate) fn read(&self, arm: Arm) -> Looked {
        let of = self.of(arm);
        Looked {
            outcomes: std::array::from_fn(|at| of.outcomes[at].load(Ordering::Relaxed)),
            waits: std::array::from_fn(|at| of.waits[at].read()),
            given_up: std::array::from_fn(|at| of.given_up[at].read()),
            never: std::array::from_fn(|at| of.never[at].load(Ordering::Relaxed)),
            sizes: of.sizes.read(),
            clusters: Box::new(each(|by, at, sort| {
                of.clusters[by][at][sort].load(Ordering::Relaxed)
            })),
        }
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
        assert_eq!(labels.len(), Outcome::COUNT);
        let tally = Tally::default();
        for (count, outcome) in (1..).zip(Outcome::all()) {
            (0..count).for_each(|_| tally.count(Arm::Canary, outcome));
        }
        let [stable, canary] = [Arm::Stable, Arm::Canary].map(|arm| tally.read(arm));
        for (count, outcome) in (1..).zip(Outcome::all()) {
            assert_eq!(tally.outcome(Arm::Canary, outcome), count, "{outcome:?}");
            assert_eq!(canary.outcome(outcome), count, "{outcome:?}");
            assert_eq!(stable.outcome(outcome), 0, "{outcome:?}");
        }
        assert_eq!(canary.responses(), (1..=6).sum::<u64>());
        assert_eq!(canary.requests(), (1..=11).sum::<u64>());
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

    #[test]
    fn waits_and_sizes_are_read_as_they_were_counted() {
        let tally = Tally::default();
        tally.count_wait(Arm::Stable, Wait::Body, 2_000_000);
        tally.count_wait(Arm::Stable, Wait::End, u64::MAX);
        tally.count_size(Arm::Stable, 0);
        let read = tally.read(Arm::Stable);
        let counts = [Wait::Header, Wait::Body, Wait::End].map(|wait| read.wait(wait).count());
        assert_eq!(counts, [0, 1, 1]);
        assert_eq!(read.wait(Wait::Body).sum_ns, 2_000_000);
        assert_eq!(read.sizes.buckets[0], 1);
    }
}
