//! What is counted of each version.

use mirror_common::measure::{ArmCounters, Phase, Seen, latency_key};
use mirror_common::packet::{Packet, RST};
use mirror_common::policy::Service;
use mirror_common::steer::Choice;
use mirror_common::tunnel::{Arm, Direction};

use crate::maps;

/// Takes a duration into its version's histogram.
#[inline(always)]
pub fn sample(service: u32, arm: Arm, seen: &Seen) {
    let (phase, ns) = match (seen.first_byte_ns, seen.handshake_ns) {
        (Some(ns), _) => (Phase::FirstByte, ns),
        (None, Some(ns)) => (Phase::Handshake, ns),
        (None, None) => return,
    };
    if let Some(latency) = maps::LATENCIES.get_ptr_mut(latency_key(service, arm, phase)) {
        // SAFETY: a per-CPU value; programs of one CPU do not run at the same time.
        unsafe { &mut *latency }.count_in(ns);
    }
}

/// Counts who was chosen for a connection, and why.
#[inline(always)]
pub fn choice(service: &Service, choice: Choice) {
    if let Some(counters) = of(service.index, choice.arm())
        && let Some(counter) = counters
            .choices
            .get_mut(core::hint::black_box(choice as u32) as usize)
    {
        *counter += 1;
    }
}

/// What is counted of a version.
#[inline(always)]
pub fn of(service: u32, arm: Arm) -> Option<&'static mut ArmCounters> {
    let counters = maps::ARMS.get_ptr_mut(service * 2 + arm as u32)?;
    // SAFETY: a per-CPU value, as in `sample`.
    Some(unsafe { &mut *counters })
}

/// Counts a reset of a connection that nobody remembers: a handshake by cookie came to the version
/// that had not begun it.
#[inline(always)]
pub fn stray_reset(packet: &Packet, direction: Direction, service: &Service) {
    if packet.flags & RST != 0
        && let Some(counters) = of(service.index, Arm::Stable)
    {
        counters.resets[direction as usize & 1] += 1;
    }
}
