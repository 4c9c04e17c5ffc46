//! The machine: its clocks, its CPUs, and words that they share.

use aya_ebpf::helpers::generated as helpers;

/// Nanoseconds of the monotonic clock.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { helpers::bpf_ktime_get_ns() }
}

/// The same as of the last tick, some milliseconds ago at the most: for a tenth of the price.
#[inline(always)]
pub(crate) fn coarse_now_ns() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { helpers::bpf_ktime_get_coarse_ns() }
}

/// The CPU that this runs on.
#[inline(always)]
pub(crate) fn cpu() -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { helpers::bpf_get_smp_processor_id() }
}

/// A word in a map's value, which other CPUs and the daemon may read and write at the same time. Never to be had as
/// a reference: what it says may be another thing at every look.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(*mut T);

impl<T: Copy> Shared<T> {
    /// # Safety
    /// `word` points into a map's value, aligned, and is one that loads and stores do not tear: of at most 8 bytes.
    #[inline(always)]
    pub(crate) const unsafe fn new(word: *mut T) -> Self {
        const { assert!(size_of::<T>() <= 8) };
        Self(word)
    }

    /// What it says now.
    #[inline(always)]
    pub(crate) fn get(self) -> T {
        // SAFETY: as of `new`; maps' values outlive the program's run.
        unsafe { self.0.read_volatile() }
    }

    /// Says another thing.
    #[inline(always)]
    pub(crate) fn set(self, value: T) {
        // SAFETY: as in `get`.
        unsafe { self.0.write_volatile(value) }
    }
}

impl Shared<u64> {
    /// Adds to it, with others who do.
    #[inline(always)]
    pub(crate) fn add(self, value: u64) {
        // SAFETY: as in `get`; the instruction is an atomic addition, for which rustc has no spelling on this
        // target.
        unsafe {
            core::arch::asm!("lock *(u64 *)({word} + 0) += {value}", word = in(reg) self.0, value = in(reg) value)
        }
    }

    /// Swaps it, with everything before it done before and everything after it done afterwards.
    #[inline(always)]
    pub(crate) fn exchange(self, mut value: u64) -> u64 {
        // SAFETY: as in `add`.
        unsafe {
            core::arch::asm!("{value} = xchg_64({word} + 0, {value})", word = in(reg) self.0, value = inout(reg) value)
        }
        value
    }

    /// Adds what something costs to when all that was spent so far will have been earned, see
    /// [`mirror_common::policy::within`]. What lies in the past is forgotten first: two who do this at once write
    /// nearly the same.
    #[inline(always)]
    pub(crate) fn spend(self, now_ns: u64, cost_ns: u64) {
        if self.get() < now_ns {
            self.set(now_ns);
        }
        self.add(cost_ns);
    }
}
