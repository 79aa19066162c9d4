//! Taking capabilities away, see capabilities(7).
#![allow(unsafe_code)]

/// What is left of a service's capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// One bit for each by its number: those that may be left.
    pub(crate) left: u64,
    /// Those that one that is not root is to have.
    pub(crate) ambient: u64,
    /// The highest that the kernel knows.
    pub(crate) last: u32,
}

/// The bit of a capability.
pub(super) const fn bit(number: u32) -> u64 {
    1_u64.wrapping_shl(number)
}

/// Takes away the capabilities that are not left, and makes those that are to be
/// ambient inheritable; false with errno(3) where that fails. For a child before
/// its exec: two system calls with locals.
///
/// # Safety
/// Only in a process with one thread, or in a child before its exec.
pub(super) unsafe fn restrict(capabilities: &Capabilities) -> bool {
    // See capset(2): version 3, two words for each of effective, permitted, inheritable.
    let mut header: [u32; 2] = [0x2008_0522, 0];
    let mut data: [[u32; 3]; 2] = [[0; 3]; 2];
    // SAFETY: the structures of capget(2) in their third version, on the stack.
    unsafe {
        if libc::syscall(libc::SYS_capget, header.as_mut_ptr(), data.as_mut_ptr()) != 0 {
            return false;
        }
        let words = [
            (capabilities.left, capabilities.ambient),
            (capabilities.left >> 32, capabilities.ambient >> 32),
        ];
        for (word, (left, ambient)) in data.iter_mut().zip(words) {
            let [effective, permitted, inheritable] = word;
            *permitted &= left as u32;
            *effective = *permitted;
            *inheritable = (*inheritable & left as u32) | (ambient as u32 & *permitted);
        }
        libc::syscall(libc::SYS_capset, header.as_mut_ptr(), data.as_ptr()) == 0
    }
}
