//! The tap's end of the `geneve` transport: a clone of the packet to the uplink, whose program gives it the
//! tunnel's headers, see [`crate::tunnel`].

use mirror_common::policy::Agent;
use mirror_common::tunnel;
use mirror_common::verdict::Reason;

use crate::frame::Skb;
use crate::hand::Served;
use crate::machine::Shared;
use crate::maps;
use crate::slot::{Slot, UNSEEN, state};

/// Sends a clone and says what became of it.
#[inline(always)]
pub(crate) fn send(
    skb: &Skb,
    slot: &mut Slot,
    served: &Served<'_>,
    way: &Agent,
    hash: u64,
    time_ns: u64,
) -> Reason {
    let Served {
        packet, service, ..
    } = served;
    slot.way = *way;
    slot.service_id = service.id;
    slot.agent = service.agent;
    slot.direction = served.direction as u32;
    slot.arm = served.arm as u32;
    slot.ipv6 = packet.ipv6 as u32;
    slot.transport_offset = packet.transport_offset - packet.network_offset;
    slot.payload_offset = packet.payload_offset - packet.network_offset;
    slot.payload_length = packet.payload_length;
    slot.source_port = u32::from(tunnel::source_port(hash));
    slot.time_ns = time_ns;
    let ifindex = way.ifindex;
    let Some(escaped) = maps::ESCAPED.get_ptr_mut(slot.agent) else {
        return Reason::NoTunnel;
    };
    // SAFETY: a map's value.
    let escaped = unsafe { Shared::new(escaped) };
    if escaped.get() != 0 {
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
            escaped.add(1);
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
