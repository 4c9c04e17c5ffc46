//! The packet at hand, whichever hook it is seen at: steering is the same code at TC and XDP.

use core::ffi::c_void;

use mirror_common::connection::HEADER;
use mirror_common::packet::{Frame, Packet};
use mirror_common::policy::Service;
use mirror_common::tunnel::{Arm, Direction};

/// A TCP header without options, in bytes.
const LEAST: u32 = 20;

/// Where a packet is seen.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    /// Coming in.
    Ingress = 0,
    /// Going out.
    Egress = 1,
}

/// A service's packet.
#[derive(Clone, Copy)]
pub(crate) struct Served<'a> {
    /// The packet.
    pub(crate) packet: &'a Packet,
    /// Whose it is.
    pub(crate) service: &'a Service,
    /// Which way it goes.
    pub(crate) direction: Direction,
    /// Which version serves its connection.
    pub(crate) arm: Arm,
}

/// A packet that is being looked at.
pub(crate) trait Hand: Frame {
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

    /// Copies `length` bytes at `offset` to `to`.
    fn load(&self, offset: u32, to: *mut u8, length: u32) -> bool;

    /// Copies a packet's TCP header to `header`, and fills that up with zeros. The verifier of kernels before 6.8
    /// learns nothing from a check of a sum that it does not see again: what is loaded is computed from what was checked.
    #[inline(always)]
    fn load_header(&self, packet: &Packet, header: &mut [u8; HEADER]) -> bool {
        *header = [0; HEADER];
        let length = packet.payload_offset - packet.transport_offset;
        let options = core::hint::black_box(length.wrapping_sub(LEAST));
        options <= HEADER as u32 - LEAST
            && self.load(
                packet.transport_offset,
                header.as_mut_ptr(),
                options + LEAST,
            )
    }
}
