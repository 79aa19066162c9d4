//! Making a child that runs one function until it executes a program.
//!
//! The maker sleeps until the child has executed its program or ended
//! (`CLONE_VFORK`). Where the child may share all memory meanwhile (`CLONE_VM`,
//! on a stack of its own) no page tables are copied: 45 µs until exec instead of
//! 115, and 0.1 ms instead of 0.65 at the 99th percentile. Where it changes its
//! user it has a copy: one that shared the memory could be stopped by that
//! user's other processes, and the sleeping shim with it.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// See clone3(2). The constant of the `libc` crate does not fit its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Bytes for a child's stack: it calls nothing deep.
const STACK: usize = 64 * 1024;

/// What the child runs. It must not return, and must not panic or allocate.
pub(super) type Entry = extern "C" fn(*const c_void) -> !;

/// Memory for a child that shares everything else; given back when dropped.
pub(super) struct Stack(*mut c_void);

/// One that was made ahead, or null. Whoever takes it out owns it.
static ASIDE: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// A page for the next child's report, shared with it, or null. The same.
static PAGE: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// Bytes of the page that is made ahead.
const PAGE_SIZE: usize = 4096;

/// Makes ahead what the next child needs, whatever it is to do.
pub(super) fn set_aside() {
    set_stack_aside();
    if PAGE.load(Ordering::Acquire).is_null()
        && let Ok(page) = shared_memory(PAGE_SIZE)
    {
        // SAFETY: the first byte of a mapping that nobody else knows of yet.
        unsafe { page.cast::<u8>().write_volatile(0) };
        PAGE.store(page, Ordering::Release);
    }
}

/// Zeroed memory of `size` bytes, at most a page, that a child with a copy of all other memory
/// shares. The caller owns it, and unmaps it by that size.
pub(super) fn page(size: usize) -> io::Result<*mut c_void> {
    let aside = PAGE.swap(ptr::null_mut(), Ordering::AcqRel);
    match aside.is_null() {
        true => shared_memory(size),
        false => Ok(aside),
    }
}

fn shared_memory(size: usize) -> io::Result<*mut c_void> {
    // SAFETY: a new anonymous mapping.
    let memory = unsafe {
        libc::mmap(
            ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    match memory == libc::MAP_FAILED {
        true => Err(io::Error::last_os_error()),
        false => Ok(memory),
    }
}

/// Makes a stack for the next child ahead of need, and the part of it that is used first.
fn set_stack_aside() {
    let Ok(stack) = Stack::new() else { return };
    // SAFETY: the last byte of the mapping, which nobody else knows of yet.
    unsafe { stack.0.byte_add(STACK - 1).cast::<u8>().write_volatile(0) };
    ASIDE.store(stack.0, Ordering::Release);
    std::mem::forget(stack);
}

impl Stack {
    pub(super) fn new() -> io::Result<Self> {
        let aside = ASIDE.swap(ptr::null_mut(), Ordering::AcqRel);
        if !aside.is_null() {
            return Ok(Self(aside));
        }
        // SAFETY: a new anonymous mapping.
        let memory = unsafe {
            libc::mmap(
                ptr::null_mut(),
                STACK,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK,
                -1,
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(memory))
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; the child that used it has its own
        // memory by now, or has ended.
        unsafe { libc::munmap(self.0, STACK) };
    }
}

/// Makes a child that calls `entry(argument)`: with all memory shared on `stack`,
/// or without one with a copy of it; born in the v2 cgroup `cgroup`. Returns its
/// pid when it has executed a program or ended, or an error number: `ENOSYS`
/// where the host does not know clone3(2), `EINVAL` or `E2BIG` where that does
/// not know cgroups.
///
/// # Safety
/// The process has one thread. `entry` does with `argument` only what is allowed
/// between vfork(2) and exec, and what it points to lives until this returns.
pub(super) unsafe fn clone3(
    stack: Option<&Stack>,
    cgroup: Option<RawFd>,
    entry: Entry,
    argument: *const c_void,
) -> Result<libc::pid_t, i32> {
    let flags = libc::CLONE_VFORK as u64;
    // SAFETY: this function's own contract.
    unsafe { clone3_with(flags, libc::SIGCHLD, stack, cgroup, entry, argument) }
}

/// As [`clone3()`] with a copy of the memory, but the maker goes on at once.
///
/// The child is one that wait(2) sees with `__WALL` only and whose end sends no signal.
///
/// # Safety
/// As for [`clone3()`].
pub(super) unsafe fn clone3_aside(
    entry: Entry,
    argument: *const c_void,
) -> Result<libc::pid_t, i32> {
    // SAFETY: this function's own contract.
    unsafe { clone3_with(0, 0, None, None, entry, argument) }
}

/// As [`clone3()`], for one made by [`clone3_aside`]: it goes on at once, and its child is a
/// child of its own parent (`CLONE_PARENT`), as hidden from wait(2) as itself until execve(2)
/// makes an ordinary one of it.
///
/// # Safety
/// As for [`clone3()`].
pub(super) unsafe fn clone3_sibling(
    stack: Option<&Stack>,
    cgroup: Option<RawFd>,
    entry: Entry,
    argument: *const c_void,
) -> Result<libc::pid_t, i32> {
    let flags = libc::CLONE_PARENT as u64;
    // SAFETY: this function's own contract.
    unsafe { clone3_with(flags, 0, stack, cgroup, entry, argument) }
}

/// # Safety
/// As for [`clone3()`].
unsafe fn clone3_with(
    flags: u64,
    exit_signal: libc::c_int,
    stack: Option<&Stack>,
    cgroup: Option<RawFd>,
    entry: Entry,
    argument: *const c_void,
) -> Result<libc::pid_t, i32> {
    // SAFETY: plain numbers, for which zero is valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags;
    arguments.exit_signal = u64::try_from(exit_signal).unwrap_or(0);
    if let Some(fd) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::try_from(fd).unwrap_or(0);
    }
    let result = match stack {
        Some(stack) if SHARING => {
            arguments.flags |= libc::CLONE_VM as u64;
            arguments.stack = stack.0 as u64;
            arguments.stack_size = STACK as u64;
            // SAFETY: the stack is mapped and used by this child alone; the rest
            // is this function's contract.
            unsafe { sharing(&arguments, entry, argument) }
        }
        _ => {
            // SAFETY: the structure is given with its size. The child has a copy
            // of this stack, so that returning twice is what fork(2) does.
            let pid = unsafe {
                libc::syscall(
                    libc::SYS_clone3,
                    &raw const arguments,
                    size_of::<libc::clone_args>(),
                )
            };
            match pid {
                0 => entry(argument),
                // SAFETY: errno(3) of this thread.
                -1 => -i64::from(unsafe { *libc::__errno_location() }),
                pid => pid,
            }
        }
    };
    match i32::try_from(result) {
        Ok(pid) if pid > 0 => Ok(pid),
        Ok(error) => Err(-error),
        Err(_) => Err(libc::ECHILD),
    }
}

/// As [`clone3()`] with a copy of the memory, by the call that was there before it.
///
/// # Safety
/// As for [`clone3()`].
pub(super) unsafe fn clone_before_3(
    entry: Entry,
    argument: *const c_void,
) -> Result<libc::pid_t, i32> {
    let flags = libc::CLONE_VFORK as libc::c_long | libc::SIGCHLD as libc::c_long;
    let zero: libc::c_long = 0;
    // SAFETY: without a stack and CLONE_VM this is fork(2) but for the sleep.
    match unsafe { libc::syscall(libc::SYS_clone, flags, zero, zero, zero, zero) } {
        0 => entry(argument),
        // SAFETY: errno(3) of this thread.
        -1 => Err(unsafe { *libc::__errno_location() }),
        pid => libc::pid_t::try_from(pid).map_err(|_| libc::ECHILD),
    }
}

/// Whether [`sharing`] is written for this processor.
const SHARING: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));

/// clone3(2) whose child begins in `entry` on the stack in `arguments`; the
/// result as the kernel gives it. The child never comes back into this function.
///
/// # Safety
/// As for [`clone3()`]; `arguments` name a stack.
#[cfg(target_arch = "x86_64")]
unsafe fn sharing(arguments: &libc::clone_args, entry: Entry, argument: *const c_void) -> i64 {
    let mut result = libc::SYS_clone3;
    // SAFETY: the kernel keeps all registers but rax, rcx and r11. In the child
    // rax is 0 and the stack pointer is at the end of its stack, which is
    // aligned to 16 bytes as a call expects.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") result,
            in("rdi") ptr::from_ref(arguments),
            in("rsi") size_of::<libc::clone_args>(),
            in("r12") argument,
            in("r13") entry,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// clone3(2) whose child begins in `entry` on the stack in `arguments`; the
/// result as the kernel gives it. The child never comes back into this function.
///
/// # Safety
/// As for [`clone3()`]; `arguments` name a stack.
#[cfg(target_arch = "aarch64")]
unsafe fn sharing(arguments: &libc::clone_args, entry: Entry, argument: *const c_void) -> i64 {
    let result: i64;
    // SAFETY: the kernel keeps all registers but x0. In the child x0 is 0 and
    // the stack pointer is at the end of its stack, aligned to 16 bytes.
    unsafe {
        std::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, {argument}",
            "blr {entry}",
            "brk #1",
            "2:",
            argument = in(reg) argument,
            entry = in(reg) entry,
            inlateout("x0") ptr::from_ref(arguments) => result,
            in("x1") size_of::<libc::clone_args>(),
            in("x8") libc::SYS_clone3,
        );
    }
    result
}

/// See [`SHARING`]: not called.
///
/// # Safety
/// None is needed.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn sharing(_: &libc::clone_args, _: Entry, _: *const c_void) -> i64 {
    -i64::from(libc::ENOSYS)
}
