//! The packet at hand. The only pointer arithmetic, and the only place that reads `__sk_buff`.

use core::ffi::c_void;

use aya_ebpf::bindings::{__sk_buff, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated as helpers;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::{error, warn};
use mirror_common::packet::{Frame, Link};

use crate::hand::Hand;
use crate::maps;
use crate::slot::HEADER_BUFFER;

/// Goes on to the next program; with TCX any other value would end the chain.
pub(crate) const NEXT: i32 = TC_ACT_UNSPEC;

/// A socket buffer.
pub(crate) struct Skb {
    raw: *mut __sk_buff,
}

/// Declares getters for fields of `__sk_buff`.
macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident: $field:ident,)+) => {
        $($(#[$doc])*
        #[inline(always)]
        pub(crate) fn $name(&self) -> u32 {
            // SAFETY: the kernel passes a valid `__sk_buff` for as long as the program runs.
            unsafe { (*self.raw).$field }
        })+
    };
}

impl Skb {
    #[inline(always)]
    pub(crate) fn new(context: &TcContext) -> Self {
        Self {
            raw: context.skb.skb,
        }
    }

    fields! {
        /// Bytes from the link-layer header on.
        length: len,
        /// Where it came in, 0 for packets of the host's own.
        ingress_ifindex: ingress_ifindex,
        /// The interface that it passes now.
        ifindex: ifindex,
        /// Whether the kernel holds a VLAN tag beside the packet.
        vlan_present: vlan_present,
        /// Payload of each segment that it will be cut into, 0 = will not be.
        gso_size: gso_size,
        /// Segments that it stands for, 0 or 1 = itself.
        gso_segments: gso_segs,
    }

    /// What helpers take it by.
    #[inline(always)]
    pub(crate) fn raw(&self) -> *mut __sk_buff {
        self.raw
    }

    /// The EtherType.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> u16 {
        // SAFETY: as in `fields`.
        u16::from_be(unsafe { (*self.raw).protocol } as u16)
    }

    /// Sets the queueing priority. Only ever called on clones.
    #[inline(always)]
    pub(crate) fn set_priority(&self, priority: u32) {
        // SAFETY: as in `fields`; the field is writable for classifiers.
        unsafe { (*self.raw).priority = priority }
    }

    /// Copies `length` bytes at `offset` to `to`.
    #[inline(always)]
    pub(crate) fn load(&self, offset: u32, to: *mut u8, length: u32) -> bool {
        // SAFETY: the verifier checks that `to` has room for `length` bytes.
        unsafe { helpers::bpf_skb_load_bytes(self.raw.cast(), offset, to.cast(), length) == 0 }
    }

    /// `N` bytes at `offset`, wherever they lie.
    #[inline(always)]
    fn load_array<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        // A map's value, not the stack: there the verifier wants every read aligned.
        let buffer = maps::SLOT.get_ptr_mut(0)?;
        // SAFETY: a per-CPU value that no other run on this CPU touches before this one ends; the
        // buffer has room for N bytes.
        unsafe {
            let buffer = (&raw mut (*buffer).header).cast::<u8>();
            if N <= HEADER_BUFFER && self.load(offset, buffer, N as u32) {
                Some(*buffer.cast::<[u8; N]>())
            } else {
                None
            }
        }
    }

    /// Overwrites `length` bytes at `offset`. Only ever called on clones, and by [`crate::translate`].
    #[inline(always)]
    pub(crate) fn store(&self, offset: u32, from: *const u8, length: u32) -> bool {
        // SAFETY: the verifier checks that `from` has `length` bytes.
        unsafe { helpers::bpf_skb_store_bytes(self.raw, offset, from.cast(), length, 0) == 0 }
    }

    /// Overwrites the bytes at `offset`, as [`Skb::store`] does.
    #[inline(always)]
    pub(crate) fn store_array<const N: usize>(&self, offset: u32, bytes: &[u8; N]) -> bool {
        self.store(offset, bytes.as_ptr(), N as u32)
    }

    /// Makes room behind the link-layer header. Only ever called on clones.
    #[inline(always)]
    pub(crate) fn grow_head(&self, length: u32, flags: u64) -> bool {
        use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
        // SAFETY: the helper checks its arguments.
        unsafe {
            helpers::bpf_skb_adjust_room(self.raw, length as i32, BPF_ADJ_ROOM_MAC, flags) == 0
        }
    }

    /// Cuts the packet to `length` bytes. Only ever called on clones.
    #[inline(always)]
    pub(crate) fn cut(&self, length: u32) -> bool {
        // SAFETY: the helper checks its arguments.
        unsafe { helpers::bpf_skb_change_tail(self.raw, length, 0) == 0 }
    }

    /// Takes the outermost VLAN tag away. Only ever called on clones.
    #[inline(always)]
    pub(crate) fn pop_vlan(&self) -> bool {
        // SAFETY: the helper checks its arguments.
        unsafe { helpers::bpf_skb_vlan_pop(self.raw) == 0 }
    }

    /// Sends a clone out through `ifindex`, at once and on this CPU; the packet itself stays as it
    /// was. Negative: no clone; positive: the device's queue refused it.
    #[inline(always)]
    pub(crate) fn clone_to(&self, ifindex: u32) -> i64 {
        // SAFETY: the helper checks its arguments.
        unsafe { helpers::bpf_clone_redirect(self.raw, ifindex, 0) }
    }
}

/// Rare events, for the daemon's log. Never called for every packet.
impl Skb {
    /// A clone left without its tunnel headers.
    #[inline(always)]
    pub(crate) fn warn_escaped(&self, ifindex: u32) {
        error!(
            &TcContext::new(self.raw),
            "a copy passed interface {} unseen by our program there", ifindex
        );
    }

    /// The first connection of a service has hit its budget.
    #[inline(always)]
    pub(crate) fn warn_over_budget(&self, service_id: u32) {
        warn!(
            &TcContext::new(self.raw),
            "service {}: the mirror budget is spent", service_id
        );
    }
}

impl Frame for Skb {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        // SAFETY: as in `fields`.
        let (data, end) = unsafe { ((*self.raw).data as usize, (*self.raw).data_end as usize) };
        let start = opaque(data) + offset as usize;
        if start + N <= end {
            // SAFETY: N bytes from `start` lie before the end of the linear part, just checked.
            return Some(unsafe { *(start as *const [u8; N]) });
        }
        self.load_array(offset)
    }

    #[inline(always)]
    fn read_far<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.load_array(offset)
    }
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
    fn load(&self, offset: u32, to: *mut u8, length: u32) -> bool {
        Self::load(self, offset, to, length)
    }
}

/// Hides where a word comes from. The compiler knows that packet pointers were read as 32 bits and
/// would compare them as such, which the verifier does not take for a bounds check.
#[inline(always)]
pub(crate) fn opaque(mut word: usize) -> usize {
    // SAFETY: adds nothing. Not an empty string: line information may not name one place twice.
    unsafe { core::arch::asm!("{0} += 0", inout(reg) word, options(pure, nomem, nostack)) };
    word
}

/// Bytes of a link-layer header.
#[inline(always)]
pub(crate) const fn link_length(link: Link) -> u32 {
    match link {
        Link::Ethernet => 14,
        Link::Ip => 0,
    }
}
