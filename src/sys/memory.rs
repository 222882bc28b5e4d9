//! How the allocator keeps memory.

/// Pieces of so many bytes go back to the kernel as soon as they are free.
const LARGE: libc::c_int = 256 << 10;
/// Heaps that threads share: each keeps what its threads once had.
const HEAPS: libc::c_int = 4;

/// Keep little of what is free. A job takes tens of megabytes in several threads; without this glibc's heaps, one for each
/// thread, would keep the most that each of them ever had. Where the allocator is another one nothing is changed.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets two numbers of the allocator, which may be done at any time.
    #[allow(unsafe_code)]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
    }
}
