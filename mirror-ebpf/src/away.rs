//! Packets between a client and a canary on another host, on their way through this one.

use aya_ebpf::bindings::TC_ACT_SHOT;
use mirror_common::flow::Flow;
use mirror_common::packet::SYN;
use mirror_common::policy::Service;
use mirror_common::tunnel::{Arm, Direction};

use crate::frame::{NEXT, Skb};
use crate::hand::Served;
use crate::slot::{Answer, Slot};
use crate::{maps, tally, translate};

/// Makes an answer what the client should see.
#[inline(always)]
pub(crate) fn turn(skb: &Skb, slot: &mut Slot) {
    let Flow { client, server } = &slot.flow;
    slot.answer.turned = translate::rewrite(skb, slot.packet(), server, client).into();
    (slot.packet.source, slot.packet.destination) = (*server, *client);
}

/// Sends an answer to the client.
#[inline(always)]
pub(crate) fn send_back(skb: &Skb, slot: &Slot, served: &Served<'_>) -> i32 {
    let Answer { turned, .. } = core::hint::black_box(slot).answer;
    if turned == 0 || !clamp(skb, served) {
        count_untranslated(served.service, Direction::Response);
        return TC_ACT_SHOT;
    }
    send_on(skb, slot)
}

/// Takes an answer away that nobody waits for.
#[inline(always)]
pub(crate) fn drop_outdated(served: &Served<'_>) -> i32 {
    count_untranslated(served.service, Direction::Response);
    TC_ACT_SHOT
}

/// [`send_back`] for a service that is no longer there.
#[inline(always)]
pub(crate) fn send_on(skb: &Skb, slot: &Slot) -> i32 {
    match core::hint::black_box(slot).answer {
        Answer { turned: 0, .. } => TC_ACT_SHOT,
        Answer { ifindex, .. } => skb.send_by(ifindex),
    }
}

/// Sends a packet of a client to the canary.
#[inline(always)]
pub(crate) fn send_away(skb: &Skb, slot: &Slot, served: &Served<'_>) -> i32 {
    let Some(steering) = maps::STEERING.get(row(served.service)) else {
        return NEXT;
    };
    let Flow { client, server } = &slot.away;
    if !clamp(skb, served) || !translate::rewrite(skb, served.packet, client, server) {
        count_untranslated(served.service, Direction::Request);
        return TC_ACT_SHOT;
    }
    skb.send_to(steering.way.ifindex, &steering.way.next_hop)
}

/// Both sides learn by their SYNs what fits the way.
#[inline(always)]
fn clamp(skb: &Skb, served: &Served<'_>) -> bool {
    let Served {
        packet, service, ..
    } = served;
    if packet.flags & SYN == 0 {
        return true;
    }
    match maps::STEERING.get(row(service)) {
        Some(steering) if steering.way.mtu != 0 => translate::clamp(skb, packet, steering.way.mtu),
        _ => true,
    }
}

#[inline(always)]
fn count_untranslated(service: &Service, direction: Direction) {
    if let Some(counters) = tally::of(row(service), Arm::Canary) {
        counters.untranslated[direction as usize & 1] += 1;
    }
}

/// The service's row, read anew each time. Kept on the stack it would have four of a slot's eight bytes, and the
/// verifier takes such a slot for one that is still read: ways that came to it by different code were different.
#[inline(always)]
fn row(service: &Service) -> u32 {
    core::hint::black_box(service).index
}
