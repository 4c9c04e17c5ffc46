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

/// Adds to a word that several CPUs write.
#[inline(always)]
pub(crate) fn add_shared(word: *mut u64, value: u64) {
    // SAFETY: `word` points into a map value, which outlives the program's run; the instruction
    // is an atomic addition, for which rustc has no spelling on this target.
    unsafe {
        core::arch::asm!("lock *(u64 *)({word} + 0) += {value}", word = in(reg) word, value = in(reg) value)
    }
}

/// Swaps a word, with everything before it done before and everything after it done afterwards.
#[inline(always)]
pub(crate) fn exchange(word: *mut u64, mut value: u64) -> u64 {
    // SAFETY: as in `add_shared`.
    unsafe {
        core::arch::asm!("{value} = xchg_64({word} + 0, {value})", word = in(reg) word, value = inout(reg) value)
    }
    value
}

/// Adds what something costs to when all that was spent so far will have been earned, see
/// [`mirror_common::policy::within`]. What lies in the past is forgotten first.
#[inline(always)]
pub(crate) fn spend(due_ns: *mut u64, now_ns: u64, cost_ns: u64) {
    // SAFETY: a word in a map's value that all CPUs share; two that do this at once write nearly the
    // same value.
    unsafe {
        if *due_ns < now_ns {
            *due_ns = now_ns;
        }
    }
    add_shared(due_ns, cost_ns);
}
