//! The packet at hand, whichever hook it is seen at: steering is the same code at TC and XDP.

use core::ffi::c_void;

use mirror_common::flow::Endpoint;
use mirror_common::packet::{Frame, Packet};

use crate::frame::Skb;
use crate::sockets;

/// A packet that is being looked at.
pub trait Hand: Frame {
    /// Whether packets can be given to listeners of this host here, and those that are not
    /// translated are seen once more.
    const LOCAL: bool;

    /// What helpers take it by.
    fn context(&self) -> *mut c_void;

    /// The interface that it came in by.
    fn interface(&self) -> u32;

    /// Whether it carries a VLAN tag beside its bytes.
    fn is_tagged(&self) -> bool;

    /// The start of an Ethernet header that goes back to who sent this; all 0 where it has none.
    #[inline(always)]
    fn sender(&self, packet: &Packet) -> [u32; 3] {
        match self.read::<12>(0) {
            Some([a, b, c, d, e, f, g, h, i, j, k, l]) if packet.network_offset == 14 => [
                u32::from_ne_bytes([g, h, i, j]),
                u32::from_ne_bytes([k, l, a, b]),
                u32::from_ne_bytes([c, d, e, f]),
            ],
            _ => [0; 3],
        }
    }

    /// Has the kernel deliver it to the listener at `listener`, if there is one.
    fn give(&self, packet: &Packet, listener: &Endpoint) -> bool;
}

impl Hand for Skb {
    const LOCAL: bool = true;

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.raw().cast()
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        self.ifindex()
    }

    #[inline(always)]
    fn is_tagged(&self) -> bool {
        self.vlan_present() != 0
    }

    #[inline(always)]
    fn give(&self, packet: &Packet, listener: &Endpoint) -> bool {
        sockets::give(self, packet, listener)
    }
}
