//! Packets that fit the path neither whole nor cut by the kernel: lone full-size segments, which
//! the tunnel's headers make too long, and the loopback's, which are up to 64 KB long.
//!
//! The clone itself is the carrier: it is shortened to one piece, and sent again and again with
//! the next part of the payload in it.

use mirror_common::outer::overhead;
use mirror_common::packet::{FIN, Link, RST, SYN};
use mirror_common::policy::Agent;
use mirror_common::verdict::Reason;

use crate::frame::{Skb, link_length};
use crate::machine::cpu;
use crate::slot::{LONGEST, LONGEST_PIECE, Slot, state};
use crate::{maps, tally};

/// The most pieces that a packet is cut into: 64 KB over a path of 1,280 bytes makes 59.
const MOST_PIECES: u32 = 64;

/// TCP's PSH flag.
const PSH: u8 = 0x08;

/// Sends the clone in pieces. The clone itself is spent.
#[inline(always)]
pub(crate) fn send(skb: &Skb, slot: &mut Slot, agent: &Agent, link: Link) {
    let sent = try_send(skb, slot, agent, link);
    // Whatever the carrier's own end is told to the tap: it is not the copy's.
    slot.last_piece = 1;
    slot.report(match sent {
        Ok(()) => Reason::Mirrored,
        Err(reason) => reason,
    });
}

/// From TCP's sequence number to its flags.
const FROM_SEQUENCE: u32 = 4;

/// What a turn of the loop came to.
enum Turn {
    More,
    Last,
}

#[inline(always)]
fn try_send(skb: &Skb, slot: &mut Slot, agent: &Agent, link: Link) -> Result<(), Reason> {
    let failed = Reason::SplitFailed;
    let scratch = maps::SCRATCH.get_ptr_mut(cpu()).ok_or(failed)?;
    // SAFETY: this CPU's scratch; no other run on this CPU uses it before this one ends.
    let scratch = unsafe { (&raw mut (*scratch).bytes).cast::<u8>() };
    let transport_offset = link_length(link) + slot.transport_offset;
    let payload_offset = link_length(link) + slot.payload_offset;
    slot.cut.room = agent
        .mtu
        .min(LONGEST_PIECE)
        .saturating_sub(overhead(agent) + slot.payload_offset);
    if slot.cut.room == 0 || slot.payload_length > LONGEST {
        return Err(failed);
    }
    if !skb.load(
        transport_offset + FROM_SEQUENCE,
        slot.cut.fields.as_mut_ptr(),
        10,
    ) {
        return Err(failed);
    }
    let [a, b, c, d, ..] = slot.cut.fields;
    slot.cut.sequence = u32::from_be_bytes([a, b, c, d]);
    slot.cut.offset = 0;
    if !load_payload(skb, payload_offset, scratch, slot.payload_length) || !tally::take_number(slot)
    {
        return Err(failed);
    }
    let flags = slot.cut.fields[9];
    let mut pieces = 0;
    while pieces < MOST_PIECES {
        match send_piece(skb, slot, agent, link, scratch, flags)? {
            Turn::More => pieces += 1,
            Turn::Last => return Ok(()),
        }
    }
    Err(failed)
}

#[inline(always)]
fn send_piece(
    skb: &Skb,
    slot: &mut Slot,
    agent: &Agent,
    link: Link,
    scratch: *mut u8,
    flags: u8,
) -> Result<Turn, Reason> {
    let failed = Reason::SplitFailed;
    let slot = core::hint::black_box(slot);
    let offset = slot.cut.offset;
    let rest = slot.payload_length.saturating_sub(offset);
    let last = rest <= slot.cut.room;
    let part = if last { rest } else { slot.cut.room };
    slot.last_piece = last as u32;
    slot.cut.offset = offset + part;
    let [a, b, c, d] = slot.cut.sequence.wrapping_add(offset).to_be_bytes();
    [
        slot.cut.fields[0],
        slot.cut.fields[1],
        slot.cut.fields[2],
        slot.cut.fields[3],
    ] = [a, b, c, d];
    // What begins a connection belongs to its first byte, what ends it to its last.
    let kept = if last { 0xff } else { !(FIN | RST | PSH) } & if offset == 0 { 0xff } else { !SYN };
    slot.cut.fields[9] = flags & kept;
    let transport_offset = link_length(link) + slot.transport_offset;
    let payload_offset = link_length(link) + slot.payload_offset;
    if !skb.cut(payload_offset + part)
        || !store_part(skb, payload_offset, scratch, offset, part)
        || !skb.store(
            transport_offset + FROM_SEQUENCE,
            slot.cut.fields.as_ptr(),
            10,
        )
        || !store_ip_length(skb, slot, link_length(link), slot.payload_offset + part)
    {
        return Err(failed);
    }
    slot.state = state::PIECE;
    let result = skb.clone_to(agent.ifindex);
    let slot = core::hint::black_box(slot);
    if slot.state != state::SENT {
        return Err(failed);
    }
    if result != 0 {
        return Err(Reason::UplinkDropped);
    }
    Ok(if slot.last_piece != 0 {
        Turn::Last
    } else {
        Turn::More
    })
}

/// Copies the payload out. The length goes through `black_box` so that the check before the
/// helper is the one that the verifier sees; it learns more from "less than" than from "not 0", which kernels
/// before 6.8 make nothing of.
#[inline(always)]
fn load_payload(skb: &Skb, offset: u32, scratch: *mut u8, length: u32) -> bool {
    let less = core::hint::black_box(length.wrapping_sub(1));
    if less >= LONGEST {
        return false;
    }
    skb.load(offset, scratch, less + 1)
}

#[inline(always)]
fn store_part(skb: &Skb, payload_offset: u32, scratch: *mut u8, offset: u32, part: u32) -> bool {
    if part == 0 {
        return true;
    }
    let offset = core::hint::black_box(offset);
    let less = core::hint::black_box(part.wrapping_sub(1));
    if offset > LONGEST || less >= LONGEST_PIECE {
        return false;
    }
    // SAFETY: `offset` lies within the scratch, and so does a piece that starts there.
    skb.store(
        payload_offset,
        unsafe { scratch.add(offset as usize) },
        less + 1,
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
