//! Packets between a client and a canary on another host, on their way through this one.

use aya_ebpf::bindings::TC_ACT_SHOT;
use mirror_common::flow::Flow;
use mirror_common::packet::{Packet, SYN};
use mirror_common::policy::Service;
use mirror_common::tunnel::{Arm, Direction};

use crate::frame::{NEXT, Skb};
use crate::slot::{Answer, Slot};
use crate::{maps, tally, translate};

/// Makes the packet at hand what the client should see, if a canary on another host sent it. Says
/// whether that is so.
#[inline(always)]
pub(crate) fn turn(skb: &Skb, slot: &mut Slot) -> bool {
    let packet = slot.packet();
    let Some(translation) = translate::answered_by(packet, &mut slot.via) else {
        return false;
    };
    let Flow { client, server } = &translation.origin;
    slot.answer.ifindex = translation.ifindex;
    slot.answer.turned = translate::rewrite(skb, packet, server, client).into();
    (slot.packet.source, slot.packet.destination) = (*server, *client);
    true
}

/// Sends an answer to the client.
#[inline(always)]
pub(crate) fn send_back(skb: &Skb, slot: &Slot, packet: &Packet, service: &Service) -> i32 {
    let Answer { turned, .. } = core::hint::black_box(slot).answer;
    if turned == 0 || !clamp(skb, packet, service) {
        count_untranslated(service, Direction::Response);
        return TC_ACT_SHOT;
    }
    send_on(skb, slot)
}

/// Takes away an answer that nobody waits for any more, since another version serves the connection:
/// it bears the service's address now, and would be taken for stable's.
#[inline(always)]
pub(crate) fn outdated(slot: &Slot, service: &Service) -> bool {
    let Answer { ifindex, .. } = core::hint::black_box(slot).answer;
    if ifindex != 0 {
        count_untranslated(service, Direction::Response);
    }
    ifindex != 0
}

/// [`send_back`] for a service that is no longer there; what is no answer goes on.
#[inline(always)]
pub(crate) fn send_on(skb: &Skb, slot: &Slot) -> i32 {
    let Answer { ifindex, turned } = core::hint::black_box(slot).answer;
    match (ifindex, turned) {
        (0, _) => NEXT,
        (_, 0) => TC_ACT_SHOT,
        (ifindex, _) => skb.send_by(ifindex),
    }
}

/// Sends a packet of a client to the canary.
#[inline(always)]
pub(crate) fn send_away(skb: &Skb, slot: &Slot, packet: &Packet, service: &Service) -> i32 {
    let Some(steering) = maps::STEERING.get(service.index) else {
        return NEXT;
    };
    let Flow { client, server } = &slot.away;
    if !clamp(skb, packet, service) || !translate::rewrite(skb, packet, client, server) {
        count_untranslated(service, Direction::Request);
        return TC_ACT_SHOT;
    }
    skb.send_to(steering.way.ifindex, &steering.way.next_hop)
}

/// Both sides learn by their SYNs what fits the way.
#[inline(always)]
fn clamp(skb: &Skb, packet: &Packet, service: &Service) -> bool {
    if packet.flags & SYN == 0 {
        return true;
    }
    match maps::STEERING.get(service.index) {
        Some(steering) if steering.way.mtu != 0 => translate::clamp(skb, packet, steering.way.mtu),
        _ => true,
    }
}

#[inline(always)]
fn count_untranslated(service: &Service, direction: Direction) {
    if let Some(counters) = tally::of(service.index, Arm::Canary) {
        counters.untranslated[direction as usize & 1] += 1;
    }
}
