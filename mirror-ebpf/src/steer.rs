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
use mirror_common::steer::{Choice, PATIENCE_NS, Readiness, Socket, Steering, flag};
use mirror_common::translate::Translation;
use mirror_common::tunnel::{Arm, Direction};

use crate::frame::{now_ns, spend};
use crate::hand::Hand;
use crate::maps;
use crate::mirror::Hook;
use crate::slot::Slot;
use crate::{sockets, translate};

/// The loopback's number, in every network namespace.
const LOOPBACK: u32 = 1;

/// Where a packet goes on to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Onward {
    /// Where the host sends it.
    Host,
    /// To the canary's host, as the connection that [`Slot::away`] says.
    Away,
    /// Nowhere: a canary that refuses a connection which stable can still have.
    Nowhere,
    /// On, and it was counted when it came in.
    Counted,
}

/// What became of a packet of a service.
#[derive(Clone, Copy)]
pub struct Followed {
    /// Whose it is.
    pub arm: Arm,
    /// Where it goes.
    pub onward: Onward,
}

impl Followed {
    /// It is stable's.
    pub const STABLE: Self = Self {
        arm: Arm::Stable,
        onward: Onward::Host,
    };
}

/// Follows a service's TCP packet: gives it to the canary's listener where it is the canary's,
/// counts it for its version, and says which that is.
///
/// Where [`Hand::LOCAL`] is not so, nothing is done with packets that stay on this host, and there
/// is no result: they will be seen again.
#[inline(always)]
pub fn follow<H: Hand>(
    hand: &H,
    hook: Hook,
    slot: &mut Slot,
    packet: &Packet,
    direction: Direction,
    service: &Service,
) -> Option<Followed> {
    let passed_over = if H::LOCAL {
        Some(Followed::STABLE)
    } else {
        None
    };
    let steering = maps::STEERING.get(service.index)?;
    if steering.flags & flag::PRESENT == 0 {
        return passed_over;
    }
    let Slot {
        flow,
        connection,
        away,
        translation,
        ..
    } = slot;
    let flow: &Flow = flow;
    // Only here can a packet be given to a canary.
    let arriving = hook == Hook::Ingress && direction == Direction::Request;
    let syn = opens(packet) && direction == Direction::Request;
    let own = match (syn && arriving, service.here) {
        (false, _) => Socket::None,
        // What stands behind an address of another host is not known here.
        (true, 0) => Socket::Listening,
        (true, _) => stable_for(hand, packet),
    };
    // A SYN for a connection that there is begins no other: the kernel answers it by itself.
    let begins = syn && !matches!(own, Socket::Connected | Socket::Requested);
    let mut known = false;
    if let Some(connection) = maps::CONNECTIONS.get_ptr_mut(flow) {
        // SAFETY: the two directions of a connection may be seen on two CPUs at once. They write
        // different fields, but for the state's bits, of which one may get lost: a sample less.
        let connection = unsafe { &mut *connection };
        if !begins || connection.is_repeated_by(packet) && !gives_up(connection) {
            return go_on(
                hand, hook, packet, direction, steering, connection, away, now_ns,
            );
        }
        known = true;
    }
    let now = now_ns();
    if begins {
        let within = is_within(service, steering, now);
        let choice = if arriving {
            choose(hand, packet, flow, steering, service, own, within, now)
        } else {
            Choice::Stable
        };
        let choice = translated(hand, packet, choice, flow, steering, away, translation, now);
        if !H::LOCAL && away.server.port() == 0 {
            return None;
        }
        count_choice(service, choice);
        if !within {
            // Nor are the ports' last connection's packets to be taken for this one's.
            if known {
                let _ = maps::CONNECTIONS.remove(flow);
            }
            return Some(Followed::STABLE);
        }
        pay(service, steering, now);
        *connection = Connection::opened(packet, service.index, choice.arm(), now);
        connection.away = *away;
        if choice == Choice::NoStable {
            connection.state |= state::SOLE;
        }
        if connection.is_away() {
            note_asked(service.index, now);
        }
    } else if syn {
        return passed_over;
    } else {
        if !H::LOCAL {
            return None;
        }
        match join(hand, packet, flow, service, steering, arriving, now) {
            Some(joined) => *connection = joined,
            None => {
                count_stray_reset(packet, direction, service);
                return Some(Followed::STABLE);
            }
        }
    }
    let followed = go_on(
        hand,
        hook,
        packet,
        direction,
        steering,
        connection,
        away,
        || now,
    );
    let connection: &Connection = connection;
    let _ = maps::CONNECTIONS.insert(flow, connection, 0);
    followed
}

/// A packet of a connection that is known.
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "all of it is at hand, none of it belongs together"
)]
fn go_on<H: Hand>(
    hand: &H,
    hook: Hook,
    packet: &Packet,
    direction: Direction,
    steering: &Steering,
    connection: &mut Connection,
    away: &mut Flow,
    now: impl Fn() -> u64,
) -> Option<Followed> {
    let mut onward = Onward::Host;
    if connection.is_away() {
        match (hook, direction) {
            (Hook::Ingress, Direction::Request) => {
                *away = connection.away;
                onward = Onward::Away;
            }
            (Hook::Ingress, Direction::Response) => {
                if is_refusal(packet, connection) {
                    note_refused(connection.service, now());
                    onward = Onward::Nowhere;
                }
            }
            (Hook::Egress, _) => {
                return Some(Followed {
                    arm: connection.arm(),
                    onward: Onward::Counted,
                });
            }
        }
    } else if !H::LOCAL {
        return None;
    } else if hook == Hook::Ingress
        && direction == Direction::Request
        && connection.arm() == Arm::Canary
    {
        give(hand, packet, steering, connection);
    }
    let arm = measure(hand, packet, direction, steering, connection, now);
    Some(Followed { arm, onward })
}

/// Whether the canary refuses a connection that stable can have when the client asks again.
#[inline(always)]
fn is_refusal(packet: &Packet, connection: &Connection) -> bool {
    packet.flags & RST != 0 && connection.is_waiting() && connection.state & state::SOLE == 0
}

/// Whether a SYN that comes again should be chosen for anew.
#[inline(always)]
fn gives_up(connection: &Connection) -> bool {
    connection.is_away()
        && connection.is_waiting()
        && connection.state & state::SOLE == 0
        && !answers(connection.service, now_ns())
}

/// Whether a canary on another host answers. Of one on this host the kernel knows, and its answers may
/// leave where we do not look.
#[inline(always)]
fn answers(service: u32, now: u64) -> bool {
    maps::HEALTH
        .get(service)
        .is_none_or(|health| health.answers(now))
}

/// The canary is asked for a connection: from now on it is waited for.
#[inline(always)]
fn note_asked(service: u32, now: u64) {
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
fn note_refused(service: u32, now: u64) {
    if let Some(health) = maps::HEALTH.get_ptr_mut(service) {
        // SAFETY: as above.
        unsafe { (*health).waiting_ns = now.saturating_sub(PATIENCE_NS + 1) };
    }
}

#[inline(always)]
fn note_answered(service: u32) {
    if let Some(health) = maps::HEALTH.get_ptr_mut(service) {
        // SAFETY: as above.
        unsafe {
            if (*health).waiting_ns != 0 {
                (*health).waiting_ns = 0;
            }
        }
    }
}

/// Chooses for a SYN.
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "all of it is at hand, none of it belongs together"
)]
fn choose<H: Hand>(
    hand: &H,
    packet: &Packet,
    flow: &Flow,
    steering: &Steering,
    service: &Service,
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
        || readiness(hand, packet, steering, service, now),
    )
}

/// Whether the canary can be given the connection that `packet` opens.
#[inline(always)]
fn readiness<H: Hand>(
    hand: &H,
    packet: &Packet,
    steering: &Steering,
    service: &Service,
    now: u64,
) -> Readiness {
    if steering.is_away() {
        let same_family = steering.canary.address.is_ipv4() != packet.ipv6;
        let plain = !hand.is_tagged() && packet.network_offset <= 14;
        if !same_family || !plain || hand.interface() == LOOPBACK || packet.hop_limit <= 1 {
            return Readiness::OutOfReach;
        }
        if answers(service.index, now) {
            Readiness::Ready
        } else {
            Readiness::NoAnswer
        }
    } else if service.here == 0 {
        Readiness::OutOfReach
    } else if canary_listens(hand, packet, steering) {
        Readiness::Ready
    } else {
        Readiness::NoListener
    }
}

/// What the kernel has for a SYN where it was dialled. Ports that wait out an earlier connection are
/// no obstacle where nobody listens: the kernel has the client clear them away, who then asks again.
#[inline(always)]
fn stable_for<H: Hand>(hand: &H, packet: &Packet) -> Socket {
    match sockets::find(hand, packet, &packet.destination) {
        Socket::TimeWait => match sockets::listener(hand, packet) {
            Socket::None => Socket::None,
            _ => Socket::TimeWait,
        },
        own => own,
    }
}

#[inline(always)]
fn canary_listens<H: Hand>(hand: &H, packet: &Packet, steering: &Steering) -> bool {
    matches!(
        sockets::find(hand, packet, &canary_for(packet, steering)),
        Socket::Listening
    )
}

/// Opens the way for a connection of a canary on another host. `away` is none for all others.
#[inline(always)]
fn translated<H: Hand>(
    hand: &H,
    packet: &Packet,
    choice: Choice,
    flow: &Flow,
    steering: &Steering,
    away: &mut Flow,
    translation: &mut Translation,
    now: u64,
) -> Choice {
    *away = Flow::NONE;
    if choice.arm() == Arm::Stable || !steering.is_away() {
        return choice;
    }
    *translation = Translation {
        origin: *flow,
        seen_ns: now,
        ifindex: hand.interface(),
        state: 0,
        macs: hand.sender(packet),
        pad: 0,
    };
    // Not the bits that the share is compared with: the ports would be the same few.
    let hash = flow.hash(steering.salt);
    if translate::open(away, translation, &steering.way, steering.canary, hash) {
        choice
    } else {
        Choice::NoPort
    }
}

/// Meets a connection that nobody remembers: the last acknowledgement of a handshake by SYN
/// cookie, or one that is older than the canary, or than the table's memory.
#[inline(always)]
fn join<H: Hand>(
    hand: &H,
    packet: &Packet,
    flow: &Flow,
    service: &Service,
    steering: &Steering,
    arriving: bool,
    now: u64,
) -> Option<Connection> {
    if arriving
        && steering.is_on()
        && !steering.is_away()
        && service.here != 0
        && may_end_handshake(packet)
        && !is_crowded(service, steering, now)
        && steering.answers_cookie(steering.hash(flow))
        && let Socket::None | Socket::Listening = sockets::find(hand, packet, &packet.destination)
        && canary_listens(hand, packet, steering)
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
fn give<H: Hand>(hand: &H, packet: &Packet, steering: &Steering, connection: &mut Connection) {
    if connection.state & state::SETTLED != 0 || steering.is_away() {
        return;
    }
    match sockets::find(hand, packet, &packet.destination) {
        Socket::Connected => connection.state |= state::SETTLED,
        Socket::Requested | Socket::TimeWait => {}
        Socket::None | Socket::Listening => {
            hand.give(packet, &canary_for(packet, steering));
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

/// The limit on new connections, which keeps a flood of SYNs from pushing the ones that live out
/// of the table.
#[inline(always)]
fn is_within(service: &Service, steering: &Steering, now: u64) -> bool {
    maps::OPENING
        .get(service.index)
        .is_none_or(|due| policy::within(*due, now, steering.burst_ns))
}

#[inline(always)]
fn pay(service: &Service, steering: &Steering, now: u64) {
    if let Some(due) = maps::OPENING.get_ptr_mut(service.index) {
        spend(due, now, steering.connection_cost_ns);
    }
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
fn measure<H: Hand>(
    hand: &H,
    packet: &Packet,
    direction: Direction,
    steering: &Steering,
    connection: &mut Connection,
    now: impl Fn() -> u64,
) -> Arm {
    let arm = connection.arm();
    let http = steering.flags & flag::HTTP != 0;
    let seen = connection.observe(packet, direction, &now, http, || {
        hand.read_far(packet.payload_offset)
    });
    if let Some(counters) = arm_counters(connection.service, arm) {
        counters.count(packet, direction, &seen);
    }
    if seen.answered && connection.is_away() {
        note_answered(connection.service);
    }
    if seen.closed && connection.is_away() {
        translate::close(&connection.away, packet.flags & RST != 0, now());
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

/// What is counted of a version.
#[inline(always)]
pub fn arm_counters(service: u32, arm: Arm) -> Option<&'static mut ArmCounters> {
    let counters = maps::ARMS.get_ptr_mut(service * 2 + arm as u32)?;
    // SAFETY: a per-CPU value, as in `sample`.
    Some(unsafe { &mut *counters })
}
