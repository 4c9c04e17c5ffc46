//! A kind of map that aya has no type for.

use core::cell::UnsafeCell;

use aya_ebpf::bindings::bpf_map_def;
use aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_ARRAY;
use aya_ebpf::helpers::generated as helpers;

/// A map of the rings' maps, for which aya has no type. Key: number of an agent, value: its ring, an
/// array with a value for each CPU, which the daemon maps into its memory.
#[repr(transparent)]
pub(crate) struct Rings(UnsafeCell<bpf_map_def>);

// SAFETY: the kernel alone looks at it, when the program is loaded.
unsafe impl Sync for Rings {}

impl Rings {
    /// Pinned by its name. The daemon makes it before the programs are loaded, since rings are as
    /// large as the config says: what stands here is a plain array, for which aya asks no more, and
    /// what lies at the pin is a map of maps.
    pub(crate) const fn pinned(max_entries: u32) -> Self {
        const BY_NAME: u32 = 1;
        Self(UnsafeCell::new(bpf_map_def {
            type_: BPF_MAP_TYPE_ARRAY,
            key_size: 4,
            value_size: 4,
            max_entries,
            map_flags: 0,
            id: 0,
            pinning: BY_NAME,
        }))
    }

    /// This CPU's lanes of `number`, from the hot one's control block on.
    #[inline(always)]
    pub(crate) fn get(&self, number: u32, cpu: u32) -> Option<*mut u8> {
        // SAFETY: the keys outlive the calls; the verifier checks both maps.
        unsafe {
            let ring =
                helpers::bpf_map_lookup_elem(self.0.get().cast(), (&raw const number).cast());
            if ring.is_null() {
                return None;
            }
            let value = helpers::bpf_map_lookup_elem(ring, (&raw const cpu).cast());
            (!value.is_null()).then_some(value.cast())
        }
    }
}
