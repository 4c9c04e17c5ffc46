//! The kernel's sockets: who would get a packet, and who shall.

use aya_ebpf::bindings::{BPF_F_CURRENT_NETNS, bpf_sock};
use aya_ebpf::helpers::generated as helpers;
use mirror_common::flow::Endpoint;
use mirror_common::packet::Packet;
use mirror_common::steer::Socket;

use crate::frame::Skb;
use crate::hand::Hand;
use crate::maps;

/// States of the kernel's TCP sockets (include/net/tcp_states.h).
const TCP_TIME_WAIT: u32 = 6;
const TCP_LISTEN: u32 = 10;
const TCP_NEW_SYN_RECV: u32 = 12;

/// What the kernel would give a packet to that came from `packet`'s source to `destination`.
#[inline(always)]
pub(crate) fn find<H: Hand>(hand: &H, packet: &Packet, destination: &Endpoint) -> Socket {
    found(hand, packet, packet.source.port(), destination)
}

/// Who listens where `packet` goes, whatever connection there is or was from its port: there is
/// none from port 0.
#[inline(always)]
pub(crate) fn listener<H: Hand>(hand: &H, packet: &Packet) -> Socket {
    found(hand, packet, 0, &packet.destination)
}

#[inline(always)]
fn found<H: Hand>(hand: &H, packet: &Packet, source_port: u16, destination: &Endpoint) -> Socket {
    let socket = look_up(hand, packet, source_port, destination);
    if socket.is_null() {
        return Socket::None;
    }
    // SAFETY: not null, so a socket that is held until it is released below.
    let state = unsafe { (*socket).state };
    // SAFETY: it was got from a look-up, and is not used afterwards.
    unsafe { helpers::bpf_sk_release(socket.cast()) };
    match state {
        TCP_LISTEN => Socket::Listening,
        TCP_NEW_SYN_RECV => Socket::Requested,
        TCP_TIME_WAIT => Socket::TimeWait,
        _ => Socket::Connected,
    }
}

/// Has the kernel deliver the packet to the listener at `listener`, if there is one.
#[inline(always)]
pub(crate) fn give(skb: &Skb, packet: &Packet, listener: &Endpoint) -> bool {
    let socket = look_up(skb, packet, packet.source.port(), listener);
    if socket.is_null() {
        return false;
    }
    // SAFETY: not null, so a socket that is held until it is released below.
    let given = unsafe {
        (*socket).state == TCP_LISTEN
            && helpers::bpf_sk_assign(skb.raw().cast(), socket.cast(), 0) == 0
    };
    // SAFETY: it was got from a look-up, and is not used afterwards.
    unsafe { helpers::bpf_sk_release(socket.cast()) };
    given
}

#[inline(always)]
fn look_up<H: Hand>(
    hand: &H,
    packet: &Packet,
    source_port: u16,
    destination: &Endpoint,
) -> *mut bpf_sock {
    let (from, to) = (packet.source.address.words(), destination.address.words());
    let ports = u32::from(source_port.to_be()) | u32::from(destination.port().to_be()) << 16;
    let Some(slot) = maps::SLOT.get_ptr_mut(0) else {
        return core::ptr::null_mut();
    };
    // SAFETY: a per-CPU value that no other run on this CPU touches before this one ends.
    let tuple = unsafe { &mut (*slot).tuple };
    let length = if packet.ipv6 {
        let [a, b, c, d] = from;
        let [e, f, g, h] = to;
        *tuple = [a, b, c, d, e, f, g, h, ports];
        36
    } else {
        [tuple[0], tuple[1], tuple[2]] = [from[3], to[3], ports];
        12
    };
    // SAFETY: the tuple has at least `length` bytes.
    unsafe {
        helpers::bpf_skc_lookup_tcp(
            hand.context(),
            tuple.as_mut_ptr().cast(),
            length,
            BPF_F_CURRENT_NETNS as u64,
            0,
        )
    }
}
