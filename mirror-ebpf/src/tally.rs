//! What is counted: of packets, and of each version.

use core::num::NonZeroU64;

use mirror_common::connection::Seen;
use mirror_common::counters::Counters;
use mirror_common::flow::Flow;
use mirror_common::measure::{ArmCounters, cluster, handshake_key};
use mirror_common::packet::{Packet, RST, Transport};
use mirror_common::policy::{self, Service};
use mirror_common::steer::Choice;
use mirror_common::tunnel::{Arm, Direction};
use mirror_common::verdict::Reason;

use crate::maps;
use crate::slot::Slot;

/// Takes a handshake into its version's histogram.
#[inline(always)]
pub(crate) fn sample(service: u32, arm: Arm, seen: &Seen) {
    let Some(ns) = seen.handshake_ns.map(NonZeroU64::get) else {
        return;
    };
    if let Some(latency) = maps::HANDSHAKES.get_ptr_mut(handshake_key(service, arm)) {
        // SAFETY: a per-CPU value; programs of one CPU do not run at the same time.
        unsafe { &mut *latency }.count_in(ns);
    }
}

/// Counts who was chosen for a connection, and why.
#[inline(always)]
pub(crate) fn choice(service: &Service, flow: &Flow, choice: Choice) {
    client(service, flow, choice.arm(), false);
    if let Some(counters) = of(service.index, choice.arm())
        && let Some(counter) = counters
            .choices
            .get_mut(core::hint::black_box(choice as u32) as usize)
    {
        *counter += 1;
    }
}

/// Counts a connection for its client: a new one, or one that failed.
#[inline(always)]
pub(crate) fn client(service: &Service, flow: &Flow, arm: Arm, failed: bool) {
    let Some(clients) = maps::CLIENTS.get_ptr_mut(service.index * 2 + arm as u32) else {
        return;
    };
    // SAFETY: a per-CPU value, as in `sample`.
    let clients = unsafe { &mut *clients };
    let counts = match failed {
        true => &mut clients.failed,
        false => &mut clients.connections,
    };
    let at = core::hint::black_box(cluster(&flow.client, service.key) as u32);
    if let Some(count) = counts.get_mut(at as usize) {
        *count += 1;
    }
}

/// Counts a connection that the version has got.
#[inline(always)]
pub(crate) fn delivered(service: u32, arm: Arm) {
    if let Some(counters) = of(service, arm) {
        counters.delivered += 1;
    }
}

/// Counts a connection of the version's that somebody else has got.
#[inline(always)]
pub(crate) fn strayed(service: u32, arm: Arm) {
    if let Some(counters) = of(service, arm) {
        counters.strayed += 1;
    }
}

/// What is counted of a version.
#[inline(always)]
pub(crate) fn of(service: u32, arm: Arm) -> Option<&'static mut ArmCounters> {
    let counters = maps::ARMS.get_ptr_mut(service * 2 + arm as u32)?;
    // SAFETY: a per-CPU value, as in `sample`.
    Some(unsafe { &mut *counters })
}

/// Counts a reset of a connection that nobody remembers, such as a handshake by cookie that came to the
/// version which had not begun it. Anybody can bring one about, so it is no version's.
#[inline(always)]
pub(crate) fn stray_reset(packet: &Packet, direction: Direction, service: &Service) {
    if packet.flags & RST != 0
        && let Some(counters) = maps::COUNTERS.get_ptr_mut(service.index * 2 + direction as u32)
    {
        // SAFETY: a per-CPU value, as in `sample`.
        unsafe { (*counters).stray_resets += 1 };
    }
}

/// Numbers the clone: from here on the agent knows of it, and misses it when it is lost.
#[inline(always)]
pub(crate) fn take_number(slot: &mut Slot) -> bool {
    let Some(sent) = maps::SENT.get_ptr_mut(slot.agent) else {
        return false;
    };
    // SAFETY: a per-CPU value, as in `sample`.
    let sent = unsafe { &mut *sent };
    slot.sequence = sent.copies as u32;
    sent.copies += 1;
    sent.bytes += u64::from(slot.payload_length);
    true
}

/// Where a service's packet is counted; a SYN is, at once.
#[inline(always)]
pub(crate) fn counters(
    service: &Service,
    direction: Direction,
    packet: &Packet,
) -> Option<&'static mut Counters> {
    let counters = maps::COUNTERS.get_ptr_mut(service.index * 2 + direction as u32)?;
    // SAFETY: a per-CPU value, as in `sample`.
    let counters = unsafe { &mut *counters };
    if direction == Direction::Request
        && packet.transport == Transport::Tcp
        && policy::opens(packet)
    {
        counters.connections += 1;
    }
    Some(counters)
}

/// Counts a packet of no service.
#[inline(always)]
pub(crate) fn foreign(reason: Reason) {
    if let Some(counters) = maps::COUNTERS.get_ptr_mut(0) {
        // SAFETY: a per-CPU value, as in `sample`.
        count(unsafe { &mut *counters }, reason);
    }
}

/// Counts a reason. The compiler knows that it is a valid index; the verifier has to be shown.
#[inline(always)]
pub(crate) fn count(counters: &mut Counters, reason: Reason) {
    let index = core::hint::black_box(reason as u32) as usize;
    if let Some(counter) = counters.packets.get_mut(index) {
        *counter += 1;
    }
}
