//! The request ledger: seen = compared + dropped by reason + in flight.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mirror_wire::message::{DropReason, Unreadable};

/// The ledger of one service. Written and read by any thread.
#[derive(Debug, Default)]
pub struct RequestLedger {
    seen: AtomicU64,
    compared: AtomicU64,
    drops: [AtomicU64; DropReason::ALL.len()],
    unreadable: Mutex<Option<(Instant, Unreadable)>>,
}

/// The log says at most once in so long that requests cannot be read.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// What a ledger says at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balance {
    /// Requests of which at least one byte, or one of the response, was received.
    pub seen: u64,
    /// Those that were compared.
    pub compared: u64,
    /// Those that were dropped, by [`DropReason`].
    pub drops: [u64; DropReason::ALL.len()],
}

impl RequestLedger {
    /// A request was seen.
    pub fn seen(&self) {
        self.seen.fetch_add(1, Ordering::Relaxed);
    }

    /// It was compared.
    pub fn compared(&self) {
        self.compared.fetch_add(1, Ordering::Relaxed);
    }

    /// It was dropped.
    pub fn dropped(&self, reason: DropReason) {
        self.drops[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The same of one that cannot be read. Whether that is to be logged: it was not for a while.
    pub fn unreadable(&self, unreadable: Unreadable, now: Instant) -> bool {
        let mut last = self
            .unreadable
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let logged = last.map(|(logged, _)| logged);
        let is_due = logged.is_none_or(|logged| now.duration_since(logged) >= LOG_INTERVAL);
        let logged = logged.filter(|_| !is_due).unwrap_or(now);
        *last = Some((logged, unreadable));
        is_due
    }

    /// The last one that could not be read.
    pub fn last_unreadable(&self) -> Option<Unreadable> {
        let last = self
            .unreadable
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        last.map(|(_, unreadable)| unreadable)
    }

    /// The figures of this moment.
    pub fn balance(&self) -> Balance {
        // Outcomes first: what is counted meanwhile then shows as in flight, never as less.
        let compared = self.compared.load(Ordering::Relaxed);
        let drops = std::array::from_fn(|index| self.drops[index].load(Ordering::Relaxed));
        Balance {
            compared,
            drops,
            seen: self.seen.load(Ordering::Relaxed),
        }
    }
}

impl Balance {
    /// Requests with an outcome.
    pub fn settled(&self) -> u64 {
        self.compared + self.drops.iter().sum::<u64>()
    }

    /// Requests without an outcome.
    pub fn in_flight(&self) -> u64 {
        self.seen.saturating_sub(self.settled())
    }

    /// Requests that got as far as they were meant to: compared, or, where requests alone are
    /// copied, replayed.
    pub fn faithful(&self) -> u64 {
        self.compared + self.drops[DropReason::NotCompared as usize]
    }

    /// Faithful requests as a part of those with an outcome that were meant to be replayed; nothing
    /// before the first one.
    pub fn fidelity(&self) -> Option<f64> {
        let settled = self.settled() - self.drops[DropReason::Excluded as usize];
        (settled > 0).then(|| self.faithful() as f64 / settled as f64)
    }

    /// Drops by reason, those that happened.
    pub fn reasons(&self) -> impl Iterator<Item = (DropReason, u64)> {
        let all = DropReason::ALL.iter().copied().zip(self.drops);
        all.filter(|&(_, count)| count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_logged_once_in_a_while() {
        let ledger = RequestLedger::default();
        assert_eq!(ledger.last_unreadable(), None);
        let now = Instant::now();
        let mut unreadable = Unreadable {
            client: "192.0.2.7:40000".parse().unwrap(),
            side: None,
            why: "version",
        };
        for (seconds, is_due) in [(0, true), (1, false), (59, false), (60, true), (61, false)] {
            let now = now + Duration::from_secs(seconds);
            assert_eq!(ledger.unreadable(unreadable, now), is_due, "{seconds}");
        }
        unreadable.why = "line end";
        ledger.unreadable(unreadable, now);
        assert_eq!(ledger.last_unreadable(), Some(unreadable));
    }

    #[test]
    fn the_ledger_closes() {
        let ledger = RequestLedger::default();
        assert_eq!(ledger.balance().fidelity(), None);
        for _ in 0..5 {
            ledger.seen();
        }
        for _ in 0..3 {
            ledger.compared();
        }
        ledger.dropped(DropReason::Tls);
        let balance = ledger.balance();
        assert_eq!(
            (balance.seen, balance.settled(), balance.in_flight()),
            (5, 4, 1)
        );
        assert_eq!(balance.fidelity(), Some(0.75));
        for _ in 0..4 {
            ledger.dropped(DropReason::NotCompared);
        }
        assert_eq!(ledger.balance().fidelity(), Some(0.875));
        ledger.dropped(DropReason::Excluded);
        assert_eq!(ledger.balance().fidelity(), Some(0.875), "nobody wants it");
        let balance = Balance {
            drops: balance.drops,
            ..balance
        };
        assert_eq!(
            balance.reasons().collect::<Vec<_>>(),
            [(DropReason::Tls, 1)]
        );
    }
}
