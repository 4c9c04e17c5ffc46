//! Whether a canary on another host answers, as the programs see it by themselves.

use mirror_common::steer::PATIENCE_NS;

use crate::maps;

/// Whether a canary on another host answers. Of one on this host the kernel knows, and its answers may
/// leave where we do not look.
#[inline(always)]
pub(crate) fn answers(service: u32, now: u64) -> bool {
    maps::HEALTH
        .get(service)
        .is_none_or(|health| health.answers(now))
}

/// The canary is asked for a connection: from now on it is waited for.
#[inline(always)]
pub(crate) fn note_asked(service: u32, now: u64) {
    if let Some(health) = maps::HEALTH.get_ptr_mut(service) {
        // SAFETY: shared by all CPUs, which write nearly the same.
        let health = unsafe { &mut *health };
        if let Some(waiting_ns) = health.asked(now) {
            health.waiting_ns = waiting_ns;
        }
    }
}

/// The canary refuses: as if it had long been silent.
#[inline(always)]
pub(crate) fn note_refused(service: u32, now: u64) {
    if let Some(health) = maps::HEALTH.get_ptr_mut(service) {
        // SAFETY: as above.
        unsafe { (*health).waiting_ns = now.saturating_sub(PATIENCE_NS + 1) };
    }
}

/// The canary has answered: nobody waits for it.
#[inline(always)]
pub(crate) fn note_answered(service: u32) {
    if let Some(health) = maps::HEALTH.get_ptr_mut(service) {
        // SAFETY: as above.
        unsafe {
            if (*health).waiting_ns != 0 {
                (*health).waiting_ns = 0;
            }
        }
    }
}
