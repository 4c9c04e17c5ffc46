//! Whether connections that a canary of this host is given arrive there: until one has, few are given.

use mirror_common::steer;

use crate::machine::Shared;
use crate::maps;

/// A canary's row.
struct Row {
    given: Shared<u64>,
    arrived: Shared<u64>,
}

#[inline(always)]
fn row(service: u32) -> Option<Row> {
    let arrivals = maps::ARRIVALS.get_ptr_mut(service)?;
    // SAFETY: words of a map's value.
    unsafe {
        Some(Row {
            given: Shared::new(&raw mut (*arrivals).given),
            arrived: Shared::new(&raw mut (*arrivals).arrived),
        })
    }
}

/// Whether another one may be given.
#[inline(always)]
pub(crate) fn may_be_given(service: u32) -> bool {
    row(service).is_none_or(|row| {
        let arrivals = steer::Arrivals {
            given: row.given.get(),
            arrived: row.arrived.get(),
        };
        arrivals.may_be_given()
    })
}

/// One was given.
#[inline(always)]
pub(crate) fn note_given(service: u32) {
    if let Some(row) = row(service)
        && row.arrived.get() == 0
    {
        row.given.add(1);
    }
}

/// The kernel has a socket for one.
#[inline(always)]
pub(crate) fn note_arrived(service: u32) {
    if let Some(row) = row(service)
        && row.arrived.get() == 0
    {
        row.arrived.set(1);
    }
}
