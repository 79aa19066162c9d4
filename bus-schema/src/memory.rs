//! Giving memory back to the host.
//!
//! What many small values took stays with the process when they are freed: the C library's
//! allocator keeps pages for the next ones, and gives those at the end of its heap back at most.
#![allow(unsafe_code)]

/// Gives the host back all pages on which nothing is allocated. It takes about a millisecond for
/// each ten megabytes of heap, so that it is done after much was freed, not often. Without effect
/// where the C library is not glibc. See malloc_trim(3).
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, locks the allocator itself, and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
