//! Whether connections that a canary of this host is given arrive there: until one has, few are given.

use crate::machine::add_shared;
use crate::maps;

/// Whether another one may be given.
#[inline(always)]
pub(crate) fn may_be_given(service: u32) -> bool {
    let arrivals = maps::ARRIVALS.get(service);
    arrivals.is_none_or(|arrivals| arrivals.may_be_given())
}

/// One was given.
#[inline(always)]
pub(crate) fn note_given(service: u32) {
    if let Some(arrivals) = maps::ARRIVALS.get_ptr_mut(service) {
        // SAFETY: shared by all CPUs, which write the same here.
        if unsafe { (*arrivals).arrived } == 0 {
            // SAFETY: the pointer is to a map value.
            add_shared(unsafe { &raw mut (*arrivals).given }, 1);
        }
    }
}

/// The kernel has a socket for one.
#[inline(always)]
pub(crate) fn note_arrived(service: u32) {
    if let Some(arrivals) = maps::ARRIVALS.get_ptr_mut(service) {
        // SAFETY: as above.
        unsafe {
            if (*arrivals).arrived == 0 {
                (*arrivals).arrived = 1;
            }
        }
    }
}
