//! The tap: parse, decide, clone, count. Whatever happens here, the packet goes on; one of a canary on
//! another host by other ways, see [`crate::away`].

use aya_ebpf::bindings::TC_ACT_SHOT;
use mirror_common::counters::Counters;
use mirror_common::flow::Endpoint;
use mirror_common::packet::{self, Link, Packet, Transport};
use mirror_common::policy::{self, LOOK_RING, Service, transport};
use mirror_common::record::Reader;
use mirror_common::tunnel::{self, Arm, Direction};
use mirror_common::verdict::{Reason, Verdict};

use crate::frame::{NEXT, Skb};
use crate::hand::Hook;
use crate::machine::{add_shared, now_ns, spend};
use crate::ring::{self, Said};
use crate::slot::{Followed, Onward, Slot, UNSEEN, state};
use crate::{away, maps, steer};

/// Looks at a packet of the host, and copies it when it should be. The result is the verdict:
/// [`NEXT`] for all but the packets of a canary on another host.
#[inline(always)]
pub(crate) fn tap(skb: &Skb, link: Link, hook: Hook) -> i32 {
    let Some(slot) = maps::SLOT.get_ptr_mut(0) else {
        return NEXT;
    };
    // SAFETY: a per-CPU value; programs of one CPU do not run at the same time, and the nested
    // run that a clone brings returns before it looks at anything but the slot itself.
    let slot = unsafe { &mut *slot };
    if hook == Hook::Egress && counted_on_the_way_in(skb) {
        return NEXT;
    }
    slot.runs += 1;
    slot.start_ns = if slot.runs & 1023 == 0 { now_ns() } else { 0 };
    let verdict = match packet::parse(skb, skb.length(), link) {
        Ok(packet) => {
            slot.hold(packet);
            if hook == Hook::Ingress {
                away::turn(skb, slot);
            }
            judge(skb, hook, slot)
        }
        Err(reason) => {
            count_foreign(reason);
            NEXT
        }
    };
    let start_ns = core::hint::black_box(&*slot).start_ns;
    if start_ns != 0 {
        record_run_time(hook, now_ns() - start_ns);
    }
    verdict
}

/// Looks at a packet that comes in where nothing is tapped: only answers of canaries on other
/// hosts concern us.
#[inline(always)]
pub(crate) fn answers(skb: &Skb, link: Link) -> i32 {
    let Some(slot) = maps::SLOT.get_ptr_mut(0) else {
        return NEXT;
    };
    // SAFETY: as in `tap`.
    let slot = unsafe { &mut *slot };
    let Ok(packet) = packet::parse(skb, skb.length(), link) else {
        return NEXT;
    };
    slot.hold(packet);
    if away::turn(skb, slot) {
        judge(skb, Hook::Ingress, slot)
    } else {
        NEXT
    }
}

/// A packet that this host forwards between two tapped interfaces counts where it came in.
///
/// Also where its addresses were translated since, and it was no service's then: docs/how-to/choose-interface.md,
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
fn judge(skb: &Skb, hook: Hook, slot: &mut Slot) -> i32 {
    let packet = slot.packet();
    let Some((service, direction)) = policy::find(packet, look_up) else {
        count_foreign(Reason::NotService);
        return away::send_on(skb, slot);
    };
    if service.index == 0 {
        count_foreign(Reason::Tunnel);
        return NEXT;
    }
    slot.flow = policy::flow(packet, direction);
    let followed = match packet.transport {
        Transport::Tcp => steer::follow(skb, hook, slot, packet, direction, service),
        Transport::Udp => None,
    };
    slot.followed = followed.unwrap_or(Followed::STABLE);
    let Followed { arm, onward } = core::hint::black_box(&*slot).followed;
    match onward {
        Onward::Counted => return NEXT,
        Onward::Host if away::outdated(slot, service) => return TC_ACT_SHOT,
        _ => {}
    }
    if service.has_look() {
        look(skb, slot, packet, service, direction, arm);
    }
    mirror(skb, slot, packet, service, direction, arm);
    match onward {
        Onward::Host | Onward::Counted => NEXT,
        Onward::Away => away::send_away(skb, slot, packet, service),
        Onward::Back => away::send_back(skb, slot, packet, service),
        Onward::Nowhere => TC_ACT_SHOT,
    }
}

/// Copies a packet for the daemon itself, which reads some connections' exchanges. Has no say in what
/// the packet is counted as, nor room in any agent's ring.
#[inline(always)]
fn look(
    skb: &Skb,
    slot: &Slot,
    packet: &Packet,
    service: &Service,
    direction: Direction,
    arm: Arm,
) {
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
    let said = Said {
        service,
        packet,
        direction,
        arm,
        reader: Reader::Look,
        time_ns: now,
    };
    ring::copy(skb, LOOK_RING, &said);
}

/// Counts a service's packet, and copies it where it should be.
#[inline(always)]
fn mirror(
    skb: &Skb,
    slot: &mut Slot,
    packet: &Packet,
    service: &Service,
    direction: Direction,
    arm: Arm,
) {
    let Some(counters) = counters(service, direction, packet) else {
        return;
    };
    let reason = serve(skb, slot, packet, service, direction, arm, counters);
    if let Reason::Mirrored = reason {
        counters.mirrored_bytes += u64::from(packet.payload_length);
    }
    count(counters, reason);
}

/// Where a service's packet is counted; a SYN is, at once.
#[inline(always)]
pub(crate) fn counters(
    service: &Service,
    direction: Direction,
    packet: &Packet,
) -> Option<&'static mut Counters> {
    let counters = maps::COUNTERS.get_ptr_mut(service.index * 2 + direction as u32)?;
    // SAFETY: a per-CPU value, as in `tap`.
    let counters = unsafe { &mut *counters };
    if direction == Direction::Request
        && packet.transport == Transport::Tcp
        && policy::opens(packet)
    {
        counters.connections += 1;
    }
    Some(counters)
}

#[inline(always)]
fn count_foreign(reason: Reason) {
    if let Some(counters) = maps::COUNTERS.get_ptr_mut(0) {
        // SAFETY: a per-CPU value, as in `tap`.
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

/// The rules of a service's end.
#[inline(always)]
pub(crate) fn look_up(endpoint: &Endpoint) -> Option<&'static Service> {
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
    let mut way = None;
    let tap = maps::TAP.get(0).copied().unwrap_or_default();
    let verdict = policy::decide(
        packet,
        direction,
        arm,
        service,
        || {
            // SAFETY: as in `look_up`.
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
        Verdict::Pass(reason) => reason,
        Verdict::Copy => {
            if let Err(reason) = pay(skb, packet, service, hash, now, counters) {
                return reason;
            }
            let Some(way) = way else {
                return Reason::NoTunnel;
            };
            if way.transport == transport::STREAM {
                let said = Said {
                    service,
                    packet,
                    direction,
                    arm,
                    reader: Reader::Sender,
                    time_ns: now,
                };
                return ring::copy(skb, service.agent, &said);
            }
            slot.way = *way;
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
            send(skb, slot, way.ifindex)
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
