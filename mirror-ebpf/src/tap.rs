//! A packet's way: [`classify`], decide, [`act`]. Whatever happens here, the packet goes on; one of a canary on
//! another host by other ways.

use mirror_common::packet::{Link, Transport};
use mirror_common::policy::Service;
use mirror_common::tunnel::{Arm, Direction};
use mirror_common::verdict::Reason;

use crate::classify::{self, Class};
use crate::frame::{NEXT, Skb};
use crate::hand::{Hook, Served};
use crate::machine::now_ns;
use crate::slot::{Action, Followed, Slot};
use crate::{act, away, maps, steer, tally};

/// Looks at a packet of the host, and copies it when it should be. The result is the verdict:
/// [`NEXT`] for all but the packets of a canary on another host.
#[inline(always)]
pub(crate) fn tap(skb: &Skb, link: Link, hook: Hook) -> i32 {
    let Some(slot) = maps::SLOT.get_ptr_mut(0) else {
        return NEXT;
    };
    // SAFETY: a per-CPU value. Programs of one CPU do not run at the same time, bottom halves being off, except that
    // a clone runs through the uplink's within ours: that is over when the helper returns, and what it wrote is read
    // anew then (`clone`, `split`).
    let slot = unsafe { &mut *slot };
    if hook == Hook::Egress && counted_on_the_way_in(skb) {
        return NEXT;
    }
    slot.runs += 1;
    slot.start_ns = if slot.runs & 1023 == 0 { now_ns() } else { 0 };
    let class = classify::packet(skb, link, hook, slot);
    let verdict = go(skb, hook, slot, class);
    let start_ns = core::hint::black_box(&*slot).start_ns;
    if start_ns != 0 {
        record_run_time(hook, now_ns() - start_ns);
    }
    verdict
}

/// Looks at a packet that comes in where nothing is tapped: only answers of canaries on other
/// hosts concern us.
#[inline(always)]
pub(crate) fn answers(skb: &Skb, link: Link) -> i32 {
    let Some(slot) = maps::SLOT.get_ptr_mut(0) else {
        return NEXT;
    };
    // SAFETY: as in `tap`.
    let slot = unsafe { &mut *slot };
    if classify::hold(skb, link, slot).is_err() {
        return NEXT;
    }
    match classify::answer(slot) {
        Some(class) => go(skb, Hook::Ingress, slot, class),
        None => NEXT,
    }
}

/// A packet that this host forwards between two tapped interfaces counts where it came in.
///
/// Also where its addresses were translated since, and it was no service's then: docs/how-to/choose-interface.md,
/// "Where to attach". What it was cannot be remembered per CPU: the kernel receives lists of packets,
/// all of which pass ingress before the first one passes egress. The packet itself is never written
/// to. A table of the connections that came in would tell, for a look-up per packet of each service.
#[inline(always)]
fn counted_on_the_way_in(skb: &Skb) -> bool {
    let ifindex = skb.ingress_ifindex();
    // SAFETY: the value is read, not kept.
    ifindex != 0 && unsafe { maps::TAPPED.get(ifindex) }.is_some()
}

/// A packet's way on, once it is known whose it is.
#[inline(always)]
fn go(skb: &Skb, hook: Hook, slot: &mut Slot, class: Class) -> i32 {
    match class {
        Class::Foreign(reason) => {
            tally::foreign(reason);
            NEXT
        }
        Class::Orphan => {
            tally::foreign(Reason::NotService);
            away::turn(skb, slot);
            away::send_on(skb, slot)
        }
        Class::Served(service, direction) => {
            let arm = decide(skb, hook, slot, service, direction);
            let served = Served {
                packet: slot.packet(),
                service,
                direction,
                arm,
            };
            act::act(skb, slot, served)
        }
    }
}

/// Decides what is done with a service's packet ([`Slot::action`]), and which version's it is.
#[inline(always)]
fn decide(skb: &Skb, hook: Hook, slot: &mut Slot, service: &Service, direction: Direction) -> Arm {
    let packet = slot.packet();
    let followed = match packet.transport {
        Transport::Tcp => steer::follow(skb, hook, slot, packet, direction, service),
        Transport::Udp => None,
    };
    slot.followed = followed.unwrap_or(Followed::STABLE);
    let slot = core::hint::black_box(slot);
    // An answer that nobody waits for any more, since another version serves the connection.
    if hook == Hook::Ingress && slot.action() == Action::Host && slot.answer.ifindex != 0 {
        slot.followed.action = Action::Outdated;
    }
    core::hint::black_box(&*slot).followed.arm
}

#[inline(always)]
fn record_run_time(hook: Hook, ns: u64) {
    if let Some(run_time) = maps::RUN_TIME.get_ptr_mut(hook as u32) {
        // SAFETY: a per-CPU value, as in `tap`.
        unsafe { &mut *run_time }.count_in(ns);
    }
}
