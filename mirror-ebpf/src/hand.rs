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
