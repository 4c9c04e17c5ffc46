//! The eBPF programs of modelmirror.
//!
//! A packet's way: an entry point here -> [`tap`]: [`classify`] says whose it is and does nothing, [`steer`] decides
//! what is to be done, [`act`] does that, one arm for each action -> [`copy`] -> [`ring`]; or a [`clone`], which comes by
//! the uplink's egress -> [`tunnel`]. The packet itself always goes on: no entry point returns anything but "next"
//! for a packet of the host, but for connections that were given to a canary on another host ([`away`], [`xdp`]).
//!
//! Modules import from rows above their own:
//!
//! | | |
//! |---|---|
//! | `machine`, `map_of_maps`, `slot`, `hand` | clocks and shared words; a kind of map; what lies in the slot; what every packet can do |
//! | `maps` | every map |
//! | `frame`, `tally`, `health`, `arrivals` | a packet at TC; counting; whether canaries answer, and get what they are given |
//! | `ring`, `clone`, `split`, `sockets`, `translate` | what becomes of copies; listeners of this host, canaries on others |
//! | `classify`, `steer`, `copy`, `away`, `tunnel` | whose, what, whether a copy, the way there and back; the uplink's end |
//! | `act`, `xdp` | what is done, at TC and at XDP |
//! | `tap` | the way |
//!
//! Entry points are `inline(always)` into what the macro makes of them: as a call of its own, with no stack at
//! all, each would still count for 32 bytes of the 512 on kernels before 6.8.

// An atomic addition has no other spelling on this target.
#![feature(asm_experimental_arch)]
#![no_std]
#![no_main]

mod act;
mod arrivals;
mod away;
mod classify;
mod clone;
mod copy;
mod frame;
mod hand;
mod health;
mod machine;
mod map_of_maps;
mod maps;
mod ring;
mod slot;
mod sockets;
mod split;
mod steer;
mod tally;
mod tap;
mod translate;
mod tunnel;
mod xdp;

use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use mirror_common::packet::Link;

use crate::frame::{NEXT, Skb};
use crate::hand::Hook;
use crate::tunnel::Fate;

/// Packets that come in on a tapped interface with Ethernet headers.
#[classifier]
#[inline(always)]
fn ingress(context: TcContext) -> i32 {
    tap::tap(&Skb::new(&context), Link::Ethernet, Hook::Ingress)
}

/// Packets that go out on a tapped interface with Ethernet headers, our clones among them.
#[classifier]
#[inline(always)]
fn egress(context: TcContext) -> i32 {
    leave(&Skb::new(&context), Link::Ethernet, true)
}

/// Packets that go out on an uplink that is not tapped.
#[classifier]
#[inline(always)]
fn uplink(context: TcContext) -> i32 {
    leave(&Skb::new(&context), Link::Ethernet, false)
}

/// Packets that come in where nothing is tapped, on the way to a canary on another host.
#[classifier]
#[inline(always)]
fn answers(context: TcContext) -> i32 {
    tap::answers(&Skb::new(&context), Link::Ethernet)
}

/// [`answers`] for interfaces without link-layer headers.
#[classifier]
#[inline(always)]
fn answers_ip(context: TcContext) -> i32 {
    tap::answers(&Skb::new(&context), Link::Ip)
}

/// [`ingress`] for interfaces without link-layer headers: tun, WireGuard.
#[classifier]
#[inline(always)]
fn ingress_ip(context: TcContext) -> i32 {
    tap::tap(&Skb::new(&context), Link::Ip, Hook::Ingress)
}

/// [`egress`] for interfaces without link-layer headers.
#[classifier]
#[inline(always)]
fn egress_ip(context: TcContext) -> i32 {
    leave(&Skb::new(&context), Link::Ip, true)
}

/// [`uplink`] for interfaces without link-layer headers.
#[classifier]
#[inline(always)]
fn uplink_ip(context: TcContext) -> i32 {
    leave(&Skb::new(&context), Link::Ip, false)
}

/// Frames that come in, before there is an skb.
#[xdp]
#[inline(always)]
fn early(context: XdpContext) -> u32 {
    xdp::steer(&mut xdp::Xdp::new(context.ctx))
}

#[inline(always)]
fn leave(skb: &Skb, link: Link, tapped: bool) -> i32 {
    match tunnel::fate(skb, link) {
        Fate::Production => {
            if tapped {
                tap::tap(skb, link, Hook::Egress)
            } else {
                NEXT
            }
        }
        Fate::Copy => NEXT,
        // Only ever a clone of ours, never a packet of the host.
        Fate::SpentCopy => TC_ACT_SHOT,
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // SAFETY: the verifier refuses programs that could reach this.
    unsafe { core::hint::unreachable_unchecked() }
}

/// The kernel asks for a licence that is compatible with the GPL; this is the dual one.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
