//! One figure for all that the agent buffers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The memory that all services share, in bytes. Clones draw from the same figure.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Account>);

#[derive(Debug)]
struct Account {
    limit: usize,
    used: AtomicUsize,
}

impl Memory {
    /// An account of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Account {
            limit,
            used: AtomicUsize::new(0),
        }))
    }

    /// Takes `bytes`, given back when the lease is dropped; nothing when they are not there.
    pub fn lease(&self, bytes: usize) -> Option<Lease> {
        let mut lease = self.empty_lease();
        lease.grow(bytes).then_some(lease)
    }

    /// A lease of nothing, to grow.
    pub fn empty_lease(&self) -> Lease {
        Lease {
            account: Arc::clone(&self.0),
            bytes: 0,
        }
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Whether half of it stays free when `more` bytes are taken.
    pub fn has_plenty_for(&self, more: usize) -> bool {
        self.used() + more <= self.limit() / 2
    }

    /// Bytes there are in all.
    pub fn limit(&self) -> usize {
        self.0.limit
    }
}

/// Bytes taken from a [`Memory`].
#[derive(Debug)]
pub struct Lease {
    account: Arc<Account>,
    bytes: usize,
}

impl Lease {
    /// Takes `more` bytes, or none of them and says `false`.
    pub fn grow(&mut self, more: usize) -> bool {
        let limit = self.account.limit;
        let taken = self
            .account
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(more).filter(|&sum| sum <= limit)
            });
        if taken.is_ok() {
            self.bytes += more;
        }
        taken.is_ok()
    }

    /// Gives back all but `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        self.account.used.fetch_sub(less, Ordering::Relaxed);
        self.bytes -= less;
    }

    /// Takes `bytes` more from the same memory, as a lease of their own.
    pub fn sibling(&self, bytes: usize) -> Option<Self> {
        Memory(Arc::clone(&self.account)).lease(bytes)
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes over what `other` holds.
    pub fn merge(&mut self, mut other: Self) {
        debug_assert!(Arc::ptr_eq(&self.account, &other.account));
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_given_back() {
        let memory = Memory::new(10);
        let mut lease = memory.lease(6).unwrap();
        assert!(memory.lease(5).is_none());
        assert!(lease.grow(4));
        assert_eq!(memory.used(), 10);
        lease.shrink_to(3);
        assert_eq!(memory.used(), 3);
        drop(lease);
        assert_eq!(memory.used(), 0);
    }
}
