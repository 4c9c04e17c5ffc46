//! What is done with a service's packet.

use aya_ebpf::bindings::TC_ACT_SHOT;

use crate::frame::{NEXT, Skb};
use crate::hand::Served;
use crate::slot::{Action, Slot};
use crate::{away, copy, steer};

/// Copies a service's packet, and sends it on. The result is the verdict.
#[inline(always)]
pub(crate) fn act(skb: &Skb, slot: &mut Slot, served: Served<'_>) -> i32 {
    if slot.action().is_turned() {
        away::turn(skb, slot);
    }
    if slot.action().is_copied() {
        copy::copy(skb, slot, &served);
    }
    match slot.action() {
        Action::Host | Action::Counted => NEXT,
        Action::Give => {
            steer::give(skb, &served);
            NEXT
        }
        Action::Away => away::send_away(skb, slot, &served),
        Action::Back => away::send_back(skb, slot, &served),
        Action::Refuse => TC_ACT_SHOT,
        Action::Outdated => away::drop_outdated(&served),
    }
}
