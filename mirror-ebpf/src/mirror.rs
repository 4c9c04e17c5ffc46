//! The tap: parse, decide, clone, count. Whatever happens here, the packet goes on.

use mirror_common::counters::Counters;
use mirror_common::flow::Endpoint;
use mirror_common::packet::{self, Link, Packet, Transport};
use mirror_common::policy::{self, Service};
use mirror_common::tunnel::{self, Arm, Direction};
use mirror_common::verdict::{Reason, Verdict};

use crate::frame::{Skb, add_shared, now_ns, spend};
use crate::maps;
use crate::slot::{Slot, UNSEEN, state};
use crate::steer;

/// Where a packet is seen.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Coming in.
    Ingress = 0,
    /// Going out.
    Egress = 1,
}

/// Looks at a packet of the host, and copies it when it should be.
#[inline(always)]
pub fn tap(skb: &Skb, link: Link, hook: Hook) {
    let Some(slot) = maps::SLOT.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: a per-CPU value; programs of one CPU do not run at the same time, and the nested
    // run that a clone brings returns before it looks at anything but the slot itself.
    let slot = unsafe { &mut *slot };
    if hook == Hook::Egress && counted_on_the_way_in(skb) {
        return;
    }
    slot.runs += 1;
    let timed = slot.runs & 1023 == 0;
    let start_ns = if timed { now_ns() } else { 0 };
    judge(skb, link, hook, slot);
    if timed {
        record_run_time(hook, now_ns() - start_ns);
    }
}

/// A packet that this host forwards between two tapped interfaces counts where it came in.
///
/// Also where its addresses were translated since, and it was no service's then: docs/operation.md,
/// "Where to attach". What it was cannot be remembered per CPU: the kernel receives lists of packets,
/// all of which pass ingress before the first one passes egress. The packet itself is never written
/// to. A table of the connections that came in would tell, for a look-up per packet of each service.
#[inline(always)]
fn counted_on_the_way_in(skb: &Skb) -> bool {
    let ifindex = skb.ingress_ifindex();
    // SAFETY: the value is read, not kept.
    ifindex != 0 && unsafe { maps::TAPPED.get(ifindex) }.is_some()
}

#[inline(always)]
fn judge(skb: &Skb, link: Link, hook: Hook, slot: &mut Slot) {
    let packet = match packet::parse(skb, skb.length(), link) {
        Ok(packet) => packet,
        Err(reason) => return count_foreign(reason),
    };
    let Some((service, direction)) = policy::find(&packet, look_up) else {
        return count_foreign(Reason::NotService);
    };
    if service.index == 0 {
        return count_foreign(Reason::Tunnel);
    }
    let Some(counters) = maps::COUNTERS.get_ptr_mut(service.index * 2 + direction as u32) else {
        return;
    };
    // SAFETY: a per-CPU value, as above.
    let counters = unsafe { &mut *counters };
    if direction == Direction::Request
        && packet.transport == Transport::Tcp
        && policy::opens(&packet)
    {
        counters.connections += 1;
    }
    slot.flow = policy::flow(&packet, direction);
    let arm = match packet.transport {
        Transport::Tcp => steer::follow(skb, hook, slot, &packet, direction, service),
        Transport::Udp => Arm::Stable,
    };
    let reason = serve(skb, slot, &packet, service, direction, arm, counters);
    if let Reason::Mirrored = reason {
        counters.mirrored_bytes += u64::from(packet.payload_length);
    }
    count(counters, reason);
}

#[inline(always)]
fn count_foreign(reason: Reason) {
    if let Some(counters) = maps::COUNTERS.get_ptr_mut(0) {
        // SAFETY: a per-CPU value, as in `tap`.
        count(unsafe { &mut *counters }, reason);
    }
}

/// The compiler knows that a reason is a valid index; the verifier has to be shown.
#[inline(always)]
fn count(counters: &mut Counters, reason: Reason) {
    let index = core::hint::black_box(reason as u32) as usize;
    if let Some(counter) = counters.packets.get_mut(index) {
        *counter += 1;
    }
}

#[inline(always)]
fn look_up(endpoint: &Endpoint) -> Option<&'static Service> {
    let port = endpoint.port();
    let word = maps::PORTS.get(u32::from(port / 64))?;
    if word >> (port % 64) & 1 == 0 {
        return None;
    }
    // SAFETY: the daemon replaces values as a whole, and a replaced one is kept until this run ends.
    unsafe { maps::SERVICES.get(endpoint) }
}

/// Decides on a service's packet, and does it.
#[inline(always)]
fn serve(
    skb: &Skb,
    slot: &mut Slot,
    packet: &Packet,
    service: &Service,
    direction: Direction,
    arm: Arm,
    counters: &mut Counters,
) -> Reason {
    let mut hash = 0;
    let mut now = 0;
    let mut ifindex = 0;
    let tap = maps::TAP.get(0).copied().unwrap_or_default();
    let verdict = policy::decide(
        packet,
        direction,
        arm,
        service,
        || {
            // SAFETY: as in `look_up`.
            let agent = unsafe { maps::AGENTS.get(service.agent) }?;
            ifindex = agent.ifindex;
            Some(agent.state)
        },
        || {
            now = now_ns();
            tap.is_stale(now)
        },
        || {
            hash = slot.flow.hash(service.key);
            hash
        },
    );
    match verdict {
        Verdict::Pass(reason) => reason,
        Verdict::Copy => {
            if let Err(reason) = pay(skb, packet, service, hash, now, counters) {
                return reason;
            }
            slot.service_id = service.id;
            slot.agent = service.agent;
            slot.direction = direction as u32;
            slot.arm = arm as u32;
            slot.ipv6 = packet.ipv6 as u32;
            slot.transport_offset = packet.transport_offset - packet.network_offset;
            slot.payload_offset = packet.payload_offset - packet.network_offset;
            slot.payload_length = packet.payload_length;
            slot.source_port = u32::from(tunnel::source_port(hash));
            slot.time_ns = now;
            send(skb, slot, ifindex)
        }
    }
}

/// Charges the service's budget. A connection that hits the end of it stays out until a new one
/// begins on the same ports: half a connection is of no use to the shadow.
#[inline(always)]
fn pay(
    skb: &Skb,
    packet: &Packet,
    service: &Service,
    hash: u64,
    now: u64,
    counters: &mut Counters,
) -> Result<(), Reason> {
    if service.byte_cost == 0 {
        return Ok(());
    }
    let Some(budget) = maps::BUDGETS.get_ptr_mut(service.index) else {
        return Ok(());
    };
    // SAFETY: shared by all CPUs. Reads may be a little old, which lets through a few packets too
    // many at the most; what is spent is added atomically.
    let (due_ns, tripped) = unsafe { ((*budget).due_ns, (*budget).tripped) };
    if tripped != 0 {
        if policy::opens(packet) {
            let _ = maps::OVER_BUDGET.remove(hash);
        // SAFETY: the value is read, not kept.
        } else if unsafe { maps::OVER_BUDGET.get(hash) }.is_some() {
            return Err(Reason::OverBudget);
        }
    }
    let segments = if skb.gso_segments() > 1 {
        skb.gso_segments()
    } else {
        1
    };
    let bytes = skb.length() + segments * tunnel::OVERHEAD_IPV6;
    let Some(cost_ns) = policy::charge(service, due_ns, now, bytes) else {
        let _ = maps::OVER_BUDGET.insert(hash, 1, 0);
        counters.over_budget_connections += 1;
        if tripped == 0 {
            // SAFETY: as above; every CPU writes the same value.
            unsafe { (*budget).tripped = 1 };
            skb.warn_over_budget(service.id);
        }
        return Err(Reason::OverBudget);
    };
    // SAFETY: the pointer is to a map value.
    spend(unsafe { &raw mut (*budget).due_ns }, now, cost_ns);
    Ok(())
}

/// Sends a clone and says what became of it.
#[inline(always)]
fn send(skb: &Skb, slot: &mut Slot, ifindex: u32) -> Reason {
    let Some(escaped) = maps::ESCAPED.get_ptr_mut(slot.agent) else {
        return Reason::NoTunnel;
    };
    // SAFETY: a shared word that is only compared with 0.
    if unsafe { *escaped } != 0 {
        return Reason::CloneFailed;
    }
    slot.outcome = UNSEEN;
    slot.state = state::CLONE;
    let result = skb.clone_to(ifindex);
    // The nested run has written here.
    let outcome = core::hint::black_box(&mut *slot).outcome;
    slot.state = state::EMPTY;
    if outcome == UNSEEN {
        if result == 0 {
            // It left as it was: the uplink's program is not where it should be.
            add_shared(escaped, 1);
            skb.warn_escaped(ifindex);
        }
        return Reason::CloneFailed;
    }
    if outcome == Reason::Mirrored as u32 {
        return if result == 0 || slot.last_piece != 0 {
            Reason::Mirrored
        } else {
            Reason::UplinkDropped
        };
    }
    Reason::of(outcome).unwrap_or(Reason::CloneFailed)
}

#[inline(always)]
fn record_run_time(hook: Hook, ns: u64) {
    if let Some(run_time) = maps::RUN_TIME.get_ptr_mut(hook as u32) {
        // SAFETY: a per-CPU value, as in `tap`.
        unsafe { &mut *run_time }.count_in(ns);
    }
}
