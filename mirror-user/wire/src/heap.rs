//! What glibc's allocator keeps of what is freed. [`Memory`](crate::memory::Memory) counts what is in use; a process
//! takes that and what its heaps keep, and each thread has a heap that is of no use to the others. Other allocators
//! return by themselves what they do not need.

/// Pieces of so many bytes get pages of their own, which go back when they are freed. By itself glibc raises that to
/// 32 MiB when it sees large ones freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE: i32 = 1 << 20;

/// A heap keeps so many free bytes at its end.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT: i32 = 4 << 20;

/// Has large pieces go back to the system as soon as they are freed, from now on.
pub fn keep_small() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes no pointer and moves nothing that is in use; any thread may call it.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

/// Returns what is free in any heap.
pub(crate) fn return_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: as above.
    unsafe {
        libc::malloc_trim(0);
    }
}
