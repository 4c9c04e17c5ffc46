//! Whether a canary on another host answers, as the programs see it by themselves.

use mirror_common::steer::{Health, PATIENCE_NS};

use crate::machine::Shared;
use crate::maps;

/// A canary's row.
struct Row {
    waiting_ns: Shared<u64>,
    down: Shared<u64>,
}

#[inline(always)]
fn row(service: u32) -> Option<Row> {
    let health = maps::HEALTH.get_ptr_mut(service)?;
    // SAFETY: words of a map's value.
    unsafe {
        Some(Row {
            waiting_ns: Shared::new(&raw mut (*health).waiting_ns),
            down: Shared::new(&raw mut (*health).down),
        })
    }
}

impl Row {
    #[inline(always)]
    fn get(&self) -> Health {
        Health {
            waiting_ns: self.waiting_ns.get(),
            down: self.down.get(),
        }
    }
}

/// Whether a canary on another host answers. Of one on this host the kernel knows, and its answers may
/// leave where we do not look.
#[inline(always)]
pub(crate) fn answers(service: u32, now: u64) -> bool {
    row(service).is_none_or(|row| row.get().answers(now))
}

/// The canary is asked for a connection: from now on it is waited for.
#[inline(always)]
pub(crate) fn note_asked(service: u32, now: u64) {
    if let Some(row) = row(service)
        && let Some(waiting_ns) = row.get().asked(now)
    {
        row.waiting_ns.set(waiting_ns);
    }
}

/// The canary refuses: as if it had long been silent.
#[inline(always)]
pub(crate) fn note_refused(service: u32, now: u64) {
    if let Some(row) = row(service) {
        row.waiting_ns.set(now.saturating_sub(PATIENCE_NS + 1));
    }
}

/// The canary has answered: nobody waits for it.
#[inline(always)]
pub(crate) fn note_answered(service: u32) {
    if let Some(row) = row(service)
        && row.waiting_ns.get() != 0
    {
        row.waiting_ns.set(0);
    }
}
