//! Copies of a service's packet: whether there is one, and by which transport it goes.

use mirror_common::counters::Counters;
use mirror_common::packet::{Packet, Transport};
use mirror_common::policy::{self, Agent, LOOK_RING, Service, transport};
use mirror_common::record::Reader;
use mirror_common::tunnel;
use mirror_common::verdict::{Reason, Verdict};

use crate::frame::Skb;
use crate::hand::Served;
use crate::machine::{Shared, now_ns};
use crate::slot::Slot;
use crate::{clone, maps, ring, tally};

/// A copy that is to be made.
struct Order {
    /// The way to its agent.
    way: &'static Agent,
    /// Of its connection.
    hash: u64,
    /// When the packet was seen.
    time_ns: u64,
}

/// Copies a service's packet for whom it concerns, and counts it by what became of its agent's copy.
#[inline(always)]
pub(crate) fn copy(skb: &Skb, slot: &mut Slot, served: &Served<'_>) {
    if served.service.has_look() {
        look(skb, slot, served);
    }
    let Some(counters) = tally::counters(served.service, served.direction, served.packet) else {
        return;
    };
    let reason = match decide(skb, slot, served, counters) {
        Err(reason) => reason,
        Ok(Order { way, hash, time_ns }) => match way.transport {
            transport::STREAM => {
                ring::copy(skb, served.service.agent, served, Reader::Sender, time_ns)
            }
            _ => clone::send(skb, slot, served, way, hash, time_ns),
        },
    };
    if let Reason::Mirrored = reason {
        counters.mirrored_bytes += u64::from(served.packet.payload_length);
    }
    tally::count(counters, reason);
}

/// Copies a packet for the daemon itself, which reads some connections' exchanges. Has no say in what
/// the packet is counted as, nor room in any agent's ring.
#[inline(always)]
fn look(skb: &Skb, slot: &Slot, served: &Served<'_>) {
    let &Served {
        packet,
        service,
        arm,
        ..
    } = served;
    let is_tcp = packet.transport == Transport::Tcp;
    if !is_tcp || !policy::worth_copying(packet) {
        return;
    }
    if !service.is_looked_at(arm, slot.flow.hash(service.key)) {
        return;
    }
    let now = now_ns();
    if maps::TAP.get(0).is_none_or(|tap| tap.is_stale(now)) {
        return;
    }
    ring::copy(skb, LOOK_RING, served, Reader::Look, now);
}

/// Whether the service's agent gets a copy, or why not.
#[inline(always)]
fn decide(
    skb: &Skb,
    slot: &Slot,
    served: &Served<'_>,
    counters: &mut Counters,
) -> Result<Order, Reason> {
    let &Served {
        packet,
        service,
        direction,
        arm,
    } = served;
    let mut hash = 0;
    let mut now = 0;
    let mut way = None;
    let tap = maps::TAP.get(0).copied().unwrap_or_default();
    let verdict = policy::decide(
        packet,
        direction,
        arm,
        service,
        || {
            // SAFETY: as in `classify::look_up`.
            let agent = unsafe { maps::AGENTS.get(service.agent) }?;
            way = Some(agent);
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
        Verdict::Pass(reason) => Err(reason),
        Verdict::Copy => {
            pay(skb, packet, service, hash, now, counters)?;
            let way = way.ok_or(Reason::NoTunnel)?;
            Ok(Order {
                way,
                hash,
                time_ns: now,
            })
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
    // SAFETY: words of a map's value.
    let (due_ns, tripped) = unsafe {
        (
            Shared::new(&raw mut (*budget).due_ns),
            Shared::new(&raw mut (*budget).tripped),
        )
    };
    // What is read may be a little old, which lets through a few packets too many at the most.
    let was_tripped = tripped.get() != 0;
    if was_tripped {
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
    let Some(cost_ns) = policy::charge(service, due_ns.get(), now, bytes) else {
        let _ = maps::OVER_BUDGET.insert(hash, 1, 0);
        counters.over_budget_connections += 1;
        if !was_tripped {
            tripped.set(1);
            skb.warn_over_budget(service.id);
        }
        return Err(Reason::OverBudget);
    };
    due_ns.spend(now, cost_ns);
    Ok(())
}
