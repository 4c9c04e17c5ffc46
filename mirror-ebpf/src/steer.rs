//! Connections of services that have a canary: who serves them, and what each version does.
//!
//! A new connection that is chosen for the canary is handed to the canary's listener, by the
//! kernel's own means: no address is translated, and an established connection needs nothing.

use mirror_common::flow::{Endpoint, Flow};
use mirror_common::measure::{
    ArmCounters, Connection, Phase, Seen, latency_key, may_end_handshake, state,
};
use mirror_common::packet::{Packet, RST};
use mirror_common::policy::{self, Service, opens};
use mirror_common::steer::{Choice, Socket, Steering, flag};
use mirror_common::tunnel::{Arm, Direction};

use crate::frame::{Skb, now_ns, spend};
use crate::maps;
use crate::mirror::Hook;
use crate::slot::Slot;

/// Follows a service's TCP packet: gives it to the canary's listener where it is the canary's,
/// counts it for its version, and says which that is.
#[inline(always)]
pub fn follow(
    skb: &Skb,
    hook: Hook,
    slot: &mut Slot,
    packet: &Packet,
    direction: Direction,
    service: &Service,
) -> Arm {
    let Some(steering) = maps::STEERING.get(service.index) else {
        return Arm::Stable;
    };
    if steering.flags & flag::PRESENT == 0 {
        return Arm::Stable;
    }
    let now = now_ns();
    let Slot {
        flow, connection, ..
    } = slot;
    let flow: &Flow = flow;
    // Only here can a packet be given to a listener.
    let arriving = hook == Hook::Ingress && direction == Direction::Request;
    let syn = opens(packet) && direction == Direction::Request;
    let own = if syn && arriving {
        stable_for(skb, packet)
    } else {
        Socket::None
    };
    // A SYN for a connection that there is begins no other: the kernel answers it by itself.
    let begins = syn && !matches!(own, Socket::Connected | Socket::Requested);
    let mut known = false;
    if let Some(connection) = maps::CONNECTIONS.get_ptr_mut(flow) {
        // SAFETY: the two directions of a connection may be seen on two CPUs at once. They write
        // different fields, but for the state's bits, of which one may get lost: a sample less.
        let connection = unsafe { &mut *connection };
        if !begins || connection.is_repeated_by(packet) {
            if arriving && connection.arm() == Arm::Canary {
                give(skb, packet, steering, connection);
            }
            return measure(skb, packet, direction, steering, connection, now);
        }
        known = true;
    }
    if begins {
        let within = pay(service, steering, now);
        let choice = if arriving {
            choose(skb, packet, flow, steering, own, within, now)
        } else {
            Choice::Stable
        };
        count_choice(service, choice);
        if !within {
            // Nor are the ports' last connection's packets to be taken for this one's.
            if known {
                let _ = maps::CONNECTIONS.remove(flow);
            }
            return Arm::Stable;
        }
        *connection = Connection::opened(packet, service.index, choice.arm(), now);
    } else if syn {
        return Arm::Stable;
    } else {
        match join(skb, packet, flow, service, steering, arriving, now) {
            Some(joined) => *connection = joined,
            None => {
                count_stray_reset(packet, direction, service);
                return Arm::Stable;
            }
        }
    }
    if connection.arm() == Arm::Canary {
        give(skb, packet, steering, connection);
    }
    let arm = measure(skb, packet, direction, steering, connection, now);
    let connection: &Connection = connection;
    let _ = maps::CONNECTIONS.insert(flow, connection, 0);
    arm
}

/// Chooses for a SYN.
#[inline(always)]
fn choose(
    skb: &Skb,
    packet: &Packet,
    flow: &Flow,
    steering: &Steering,
    own: Socket,
    within: bool,
    now: u64,
) -> Choice {
    if !steering.is_on() {
        return Choice::Stable;
    }
    let tap = maps::TAP.get(0).copied().unwrap_or_default();
    steering.choose(
        steering.hash(flow),
        steering.is_stale(tap.heartbeat_ns, now),
        !within,
        own,
        || canary_listens(skb, packet, steering),
    )
}

/// What the kernel has for a SYN where it was dialled. Ports that wait out an earlier connection are
/// no obstacle where nobody listens: the kernel has the client clear them away, who then asks again.
#[inline(always)]
fn stable_for(skb: &Skb, packet: &Packet) -> Socket {
    match skb.socket(packet, &packet.destination) {
        Socket::TimeWait => match skb.listener(packet) {
            Socket::None => Socket::None,
            _ => Socket::TimeWait,
        },
        own => own,
    }
}

#[inline(always)]
fn canary_listens(skb: &Skb, packet: &Packet, steering: &Steering) -> bool {
    matches!(
        skb.socket(packet, &canary_for(packet, steering)),
        Socket::Listening
    )
}

/// Meets a connection that nobody remembers: the last acknowledgement of a handshake by SYN
/// cookie, or one that is older than the canary, or than the table's memory.
#[inline(always)]
fn join(
    skb: &Skb,
    packet: &Packet,
    flow: &Flow,
    service: &Service,
    steering: &Steering,
    arriving: bool,
    now: u64,
) -> Option<Connection> {
    if arriving
        && steering.is_on()
        && may_end_handshake(packet)
        && !is_crowded(service, steering, now)
        && steering.answers_cookie(steering.hash(flow))
        && let Socket::None | Socket::Listening = skb.socket(packet, &packet.destination)
        && canary_listens(skb, packet, steering)
    {
        count_choice(service, Choice::Cookie);
        return Some(Connection::joined(service.index, Arm::Canary));
    }
    // Whatever carries no bytes tells nothing of a connection that is met midway.
    if packet.payload_length == 0 {
        return None;
    }
    if let Some(counters) = arm_counters(service.index, Arm::Stable) {
        counters.joined += 1;
    }
    Some(Connection::joined(service.index, Arm::Stable))
}

/// Counts a reset of a connection that nobody remembers: a handshake by cookie came to the version
/// that had not begun it.
#[inline(always)]
fn count_stray_reset(packet: &Packet, direction: Direction, service: &Service) {
    if packet.flags & RST != 0
        && let Some(counters) = arm_counters(service.index, Arm::Stable)
    {
        counters.resets[direction as usize & 1] += 1;
    }
}

/// Hands a packet of the canary's to the canary's listener, unless the kernel already has a
/// socket for it.
#[inline(always)]
fn give(skb: &Skb, packet: &Packet, steering: &Steering, connection: &mut Connection) {
    if connection.state & state::SETTLED != 0 {
        return;
    }
    match skb.socket(packet, &packet.destination) {
        Socket::Connected => connection.state |= state::SETTLED,
        Socket::Requested | Socket::TimeWait => {}
        Socket::None | Socket::Listening => {
            skb.give_to_listener(packet, &canary_for(packet, steering));
        }
    }
}

/// The canary's listener as a packet of this family reaches it: one that listens on both families
/// is found by the address that was dialled.
#[inline(always)]
fn canary_for(packet: &Packet, steering: &Steering) -> Endpoint {
    if steering.canary.address.is_ipv4() == packet.destination.address.is_ipv4() {
        return steering.canary;
    }
    Endpoint::new(packet.destination.address, steering.canary.port())
}

/// Charges the limit on new connections, which keeps a flood of SYNs from pushing the ones that
/// live out of the table.
#[inline(always)]
fn pay(service: &Service, steering: &Steering, now: u64) -> bool {
    let Some(due) = maps::OPENING.get_ptr_mut(service.index) else {
        return true;
    };
    // SAFETY: shared by all CPUs, as in `mirror::pay`.
    if !policy::within(unsafe { *due }, now, steering.burst_ns) {
        return false;
    }
    spend(due, now, steering.connection_cost_ns);
    true
}

/// Whether SYNs may have come over the limit a moment ago: whose handshake nobody remembers is
/// stable's then.
#[inline(always)]
fn is_crowded(service: &Service, steering: &Steering, now: u64) -> bool {
    let due = maps::OPENING.get(service.index).copied();
    !policy::within(due.unwrap_or_default(), now, steering.burst_ns / 2)
}

/// Takes the packet into its connection, and counts what it told.
#[inline(always)]
fn measure(
    skb: &Skb,
    packet: &Packet,
    direction: Direction,
    steering: &Steering,
    connection: &mut Connection,
    now: u64,
) -> Arm {
    let arm = connection.arm();
    let http = steering.flags & flag::HTTP != 0;
    let seen = connection.observe(packet, direction, now, http, || {
        skb.load_array(packet.payload_offset)
    });
    if let Some(counters) = arm_counters(connection.service, arm) {
        counters.count(packet, direction, &seen);
    }
    sample(connection.service, arm, &seen);
    arm
}

#[inline(always)]
fn sample(service: u32, arm: Arm, seen: &Seen) {
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

#[inline(always)]
fn count_choice(service: &Service, choice: Choice) {
    if let Some(counters) = arm_counters(service.index, choice.arm())
        && let Some(counter) = counters
            .choices
            .get_mut(core::hint::black_box(choice as u32) as usize)
    {
        *counter += 1;
    }
}

#[inline(always)]
fn arm_counters(service: u32, arm: Arm) -> Option<&'static mut ArmCounters> {
    let counters = maps::ARMS.get_ptr_mut(service * 2 + arm as u32)?;
    // SAFETY: a per-CPU value, as in `sample`.
    Some(unsafe { &mut *counters })
}
