//! The uplink's end: turns a clone into a tunnel packet.

use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
    BPF_F_ADJ_ROOM_FIXED_GSO,
};
use mirror_common::outer::{self, overhead};
use mirror_common::packet::Link;
use mirror_common::policy::Agent;
use mirror_common::tunnel::HEADER_LENGTH;
use mirror_common::verdict::Reason;

use crate::frame::{Skb, link_length};
use crate::machine::cpu;
use crate::slot::{OUT_LENGTH, Slot, state};
use crate::{maps, split, tally};

/// TC_PRIO_FILLER: the lowest band of the kernel's default queue.
const LOWEST_PRIORITY: u32 = 1;

/// The largest packet that `bpf_skb_adjust_room` takes when it is not a super-packet.
const LARGEST_PLAIN: u32 = 16_000;

/// A super-packet with smaller segments than this would have none left after the headers.
const SMALLEST_SEGMENT: u32 = 256;

/// What the uplink's program makes of a packet.
pub(crate) enum Fate {
    /// It is the host's.
    Production,
    /// It is a copy on its way.
    Copy,
    /// It is a clone that was sent in pieces, or that could not be sent.
    SpentCopy,
}

/// Says whose a packet is, and gives a clone its headers.
#[inline(always)]
pub(crate) fn fate(skb: &Skb, link: Link) -> Fate {
    let Some(slot) = maps::SLOT.get_ptr_mut(0) else {
        return Fate::Production;
    };
    // SAFETY: a per-CPU value; the tap that filled it waits for this run to end.
    let slot = unsafe { &mut *slot };
    match slot.state {
        state::CLONE => send_clone(skb, slot, link),
        state::PIECE => {
            let agent = slot.way();
            if !encapsulate(skb, slot, agent, link, true) {
                slot.report(Reason::SplitFailed);
                return Fate::SpentCopy;
            }
            slot.state = state::SENT;
            Fate::Copy
        }
        state::SENT => Fate::Copy,
        _ => Fate::Production,
    }
}

#[inline(always)]
fn send_clone(skb: &Skb, slot: &mut Slot, link: Link) -> Fate {
    let agent = slot.way();
    if !strip_vlan(skb) {
        slot.report(Reason::EncapsulationFailed);
        return Fate::SpentCopy;
    }
    skb.set_priority(LOWEST_PRIORITY);
    slot.last_piece = 0;
    if !fits(skb, slot, agent, link) {
        split::send(skb, slot, agent, link);
        return Fate::SpentCopy;
    }
    if !tally::take_number(slot) || !encapsulate(skb, slot, agent, link, false) {
        slot.report(Reason::EncapsulationFailed);
        return Fate::SpentCopy;
    }
    slot.report(Reason::Mirrored);
    Fate::Copy
}

/// Takes VLAN tags away: the tunnel's own way may have others, or none.
#[inline(always)]
fn strip_vlan(skb: &Skb) -> bool {
    let mut tags = 0;
    while tags < 2 {
        let in_frame = matches!(skb.protocol(), 0x8100 | 0x88a8);
        if skb.vlan_present() == 0 && !in_frame {
            return true;
        }
        if !skb.pop_vlan() {
            return false;
        }
        tags += 1;
    }
    true
}

/// Whether every packet on the wire will be within the path's MTU.
#[inline(always)]
fn fits(skb: &Skb, slot: &Slot, agent: &Agent, link: Link) -> bool {
    let length = skb.length() - link_length(link) + overhead(agent);
    let gso_size = skb.gso_size();
    if gso_size == 0 {
        return length <= agent.mtu && length <= LARGEST_PLAIN;
    }
    // Without room the kernel takes the overhead off each segment's payload.
    let shrinks = gso_size >= SMALLEST_SEGMENT && slot.payload_offset + gso_size <= agent.mtu;
    (has_room(slot, agent, gso_size) || shrinks) && length <= 65_535
}

/// Whether each segment of a super-packet fits the path with the outer headers in front of it.
#[inline(always)]
fn has_room(slot: &Slot, agent: &Agent, gso_size: u32) -> bool {
    slot.payload_offset + gso_size + overhead(agent) <= agent.mtu
}

/// Writes the outer headers in front of the clone's IP header.
#[inline(always)]
fn encapsulate(skb: &Skb, slot: &mut Slot, agent: &Agent, link: Link, piece: bool) -> bool {
    let inner_length = skb.length() - link_length(link);
    let network = if agent.ipv6 == 0 {
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
    } else {
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV6
    };
    let gso_size = skb.gso_size();
    // To make segments smaller the kernel moves all of a super-packet that was received as a list
    // (more than 17 segments, as a rule) to one place: up to 64 KB, allocated and copied.
    let gso = if gso_size != 0 && has_room(slot, agent, gso_size) {
        BPF_F_ADJ_ROOM_FIXED_GSO
    } else {
        0
    };
    let flags =
        u64::from(network | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | gso) | encap_l2(HEADER_LENGTH as u64);
    if !skb.grow_head(overhead(agent), flags) {
        return false;
    }
    let header = slot.header(agent, cpu(), piece).encode();
    let tunnel_length = inner_length + HEADER_LENGTH as u32;
    let port = slot.source_port as u16;
    // Written in a map's value, not on the stack, where the verifier wants every write aligned.
    let out = &mut slot.out;
    match (link, agent.ipv6) {
        (Link::Ethernet, 0) => {
            put(out, 0, &ethernet(agent));
            put(out, 14, &outer::ipv4(agent, port, tunnel_length));
            put(out, 42, &header);
            skb.store(0, out.as_ptr(), 78)
        }
        (Link::Ethernet, _) => {
            put(out, 0, &ethernet(agent));
            put(out, 14, &outer::ipv6(agent, port, tunnel_length));
            put(out, 62, &header);
            skb.store(0, out.as_ptr(), 98)
        }
        (Link::Ip, 0) => {
            put(out, 0, &outer::ipv4(agent, port, tunnel_length));
            put(out, 28, &header);
            skb.store(0, out.as_ptr(), 64)
        }
        (Link::Ip, _) => {
            put(out, 0, &outer::ipv6(agent, port, tunnel_length));
            put(out, 48, &header);
            skb.store(0, out.as_ptr(), 84)
        }
    }
}

/// Writes `bytes` at `offset`.
#[inline(always)]
fn put<const N: usize>(out: &mut [u8; OUT_LENGTH], offset: usize, bytes: &[u8; N]) {
    if let Some(place) = out
        .get_mut(offset..)
        .and_then(|rest| rest.first_chunk_mut::<N>())
    {
        *place = *bytes;
    }
}

/// BPF_F_ADJ_ROOM_ENCAP_L2: how many bytes stand between UDP and the inner IP header.
#[inline(always)]
const fn encap_l2(length: u64) -> u64 {
    (length & 0xff) << 56
}

#[inline(always)]
fn ethernet(agent: &Agent) -> [u8; 14] {
    let [a, b, c] = agent.macs;
    let [a, b, c] = [a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes()];
    let [t0, t1] = if agent.ipv6 == 0 {
        [0x08, 0x00]
    } else {
        [0x86, 0xdd]
    };
    [
        a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], t0, t1,
    ]
}
