//! Packets that fit the path neither whole nor cut by the kernel: lone full-size segments, which
//! the tunnel's headers make too long, and the loopback's, which are up to 64 KB long.
//!
//! The clone itself is the carrier: it is shortened to one piece, and sent again and again with
//! the next part of the payload in it.

use mirror_common::packet::{FIN, Link, RST, SYN};
use mirror_common::policy::Agent;
use mirror_common::tunnel::overhead;
use mirror_common::verdict::Reason;

use crate::frame::{Skb, cpu, link_length};
use crate::slot::{Fate, Slot, state};
use crate::{maps, tunnel};

/// The longest payload that an IP packet can have.
const LONGEST: u32 = 65_535;

/// The longest piece: see `tunnel::LARGEST_PLAIN`.
const LONGEST_PIECE: u32 = 16_383;

/// The most pieces that a packet is cut into: 64 KB over a path of 1,280 bytes makes 59.
const MOST_PIECES: u32 = 64;

/// TCP's PSH flag.
const PSH: u8 = 0x08;

/// Payload of one packet; longer than it need be, so that the verifier can see that a piece which
/// starts within it ends within it.
#[repr(C)]
pub struct Scratch {
    bytes: [u8; LONGEST as usize + 1 + LONGEST_PIECE as usize + 1],
}

/// Sends the clone in pieces. The clone itself is spent.
#[inline(always)]
pub fn send(skb: &Skb, slot: &mut Slot, agent: &Agent, link: Link) -> Fate {
    let sent = try_send(skb, slot, agent, link);
    // Whatever the carrier's own end is told to the tap: it is not the copy's.
    slot.last_piece = 1;
    slot.report(match sent {
        Ok(()) => Reason::Mirrored,
        Err(reason) => reason,
    });
    Fate::SpentCopy
}

/// The bytes of TCP's header from the sequence number to the flags.
const FROM_SEQUENCE: u32 = 4;

#[inline(always)]
fn try_send(skb: &Skb, slot: &mut Slot, agent: &Agent, link: Link) -> Result<(), Reason> {
    let failed = Reason::SplitFailed;
    let scratch = maps::SCRATCH.get_ptr_mut(cpu()).ok_or(failed)?;
    // SAFETY: this CPU's scratch; no other run on this CPU uses it before this one ends.
    let scratch = unsafe { (&raw mut (*scratch).bytes).cast::<u8>() };
    let network_offset = link_length(link);
    let transport_offset = network_offset + slot.transport_offset;
    let payload_offset = network_offset + slot.payload_offset;
    let length = slot.payload_length;
    let room = agent
        .mtu
        .min(LONGEST_PIECE)
        .saturating_sub(overhead(agent) + slot.payload_offset);
    if room == 0 || length > LONGEST {
        return Err(failed);
    }
    let mut fields = [0; 10];
    if !skb.load(transport_offset + FROM_SEQUENCE, fields.as_mut_ptr(), 10) {
        return Err(failed);
    }
    let sequence = u32::from_be_bytes([fields[0], fields[1], fields[2], fields[3]]);
    let flags = fields[9];
    if length > 0 && !load_payload(skb, payload_offset, scratch, length) {
        return Err(failed);
    }
    if !tunnel::take_number(slot) {
        return Err(failed);
    }
    let mut offset = 0;
    let mut piece = 0;
    while piece < MOST_PIECES {
        let part = room.min(length - offset);
        let last = offset + part >= length;
        [fields[0], fields[1], fields[2], fields[3]] = sequence.wrapping_add(offset).to_be_bytes();
        // What begins a connection belongs to its first byte, what ends it to its last.
        fields[9] = flags
            & if last { 0xff } else { !(FIN | RST | PSH) }
            & if offset == 0 { 0xff } else { !SYN };
        if (piece == 0 || last) && !skb.cut(payload_offset + part) {
            return Err(failed);
        }
        if !store_part(skb, payload_offset, scratch, offset, part)
            || !skb.store_array(transport_offset + FROM_SEQUENCE, &fields)
            || !store_ip_length(skb, slot, network_offset, slot.payload_offset + part)
        {
            return Err(failed);
        }
        slot.last_piece = last as u32;
        slot.state = state::PIECE;
        let result = skb.clone_to(agent.ifindex);
        if core::hint::black_box(&mut *slot).state != state::SENT {
            return Err(failed);
        }
        if result != 0 {
            return Err(Reason::UplinkDropped);
        }
        if last {
            return Ok(());
        }
        offset += part;
        piece += 1;
    }
    Err(failed)
}

/// Copies the payload out. The length goes through `black_box` so that the check before the
/// helper is the one that the verifier sees.
#[inline(always)]
fn load_payload(skb: &Skb, offset: u32, scratch: *mut u8, length: u32) -> bool {
    let length = core::hint::black_box(length);
    if length == 0 || length > LONGEST {
        return false;
    }
    skb.load(offset, scratch, length)
}

#[inline(always)]
fn store_part(skb: &Skb, payload_offset: u32, scratch: *mut u8, offset: u32, part: u32) -> bool {
    let (offset, part) = (core::hint::black_box(offset), core::hint::black_box(part));
    if offset > LONGEST || part > LONGEST_PIECE {
        return false;
    }
    if part == 0 {
        return true;
    }
    // SAFETY: `offset` lies within the scratch, and so does a piece that starts there.
    skb.store(
        payload_offset,
        unsafe { scratch.add(offset as usize) },
        part,
    )
}

/// The piece's own length; the inner IPv4 checksum is left as it was, nobody checks it.
#[inline(always)]
fn store_ip_length(skb: &Skb, slot: &Slot, network_offset: u32, length: u32) -> bool {
    if slot.ipv6 == 0 {
        skb.store_array(network_offset + 2, &(length as u16).to_be_bytes())
    } else {
        skb.store_array(
            network_offset + 4,
            &(length.wrapping_sub(40) as u16).to_be_bytes(),
        )
    }
}
