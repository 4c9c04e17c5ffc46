//! Whose a packet is. Looks, and does nothing.

use mirror_common::flow::Endpoint;
use mirror_common::packet::{self, Link};
use mirror_common::policy::{self, Service};
use mirror_common::tunnel::Direction;
use mirror_common::verdict::Reason;

use crate::frame::Skb;
use crate::hand::Hook;
use crate::slot::Slot;
use crate::{maps, translate};

/// Whose a packet is.
pub(crate) enum Class {
    /// No service's, and why.
    Foreign(Reason),
    /// A canary's on another host, for a client of a service that is no longer there.
    Orphan,
    /// A service's, in the connection that [`Slot::flow`] says.
    Served(&'static Service, Direction),
}

/// Says whose a packet is.
#[inline(always)]
pub(crate) fn packet(skb: &Skb, link: Link, hook: Hook, slot: &mut Slot) -> Class {
    if let Err(reason) = hold(skb, link, slot) {
        return Class::Foreign(reason);
    }
    if hook == Hook::Ingress
        && let Some(class) = answer(slot)
    {
        return class;
    }
    let packet = slot.packet();
    match policy::find(packet, look_up) {
        None => Class::Foreign(Reason::NotService),
        Some((service, _)) if service.index == 0 => Class::Foreign(Reason::Tunnel),
        Some((service, direction)) => {
            slot.flow = policy::flow(packet, direction);
            Class::Served(service, direction)
        }
    }
}

/// Takes a packet to hand.
#[inline(always)]
pub(crate) fn hold(skb: &Skb, link: Link, slot: &mut Slot) -> Result<(), Reason> {
    slot.hold(packet::parse(skb, skb.length(), link)?);
    Ok(())
}

/// Whose the packet at hand is, if a canary on another host sent it: its client's, and its service's.
#[inline(always)]
pub(crate) fn answer(slot: &mut Slot) -> Option<Class> {
    let translation = translate::answered_by(slot.packet(), &mut slot.via)?;
    slot.answer.ifindex = translation.ifindex;
    slot.flow = translation.origin;
    Some(match look_up(&slot.flow.server) {
        Some(service) if service.index != 0 => Class::Served(service, Direction::Response),
        _ => Class::Orphan,
    })
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
