//! The smallest service: its first instructions take the time and write it to
//! the FIFO named by its first argument; then it sleeps until it is killed.
//!
//! Static, without a library, so that what is measured is the way to it and not
//! the dynamic linker. Compiled by the benchmarks themselves: a package's program
//! cannot be built without the standard library on a stable toolchain beside
//! others that have it.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call begin",
    "ud2",
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    ".globl _start",
    "_start:",
    "mov x29, xzr",
    "mov x0, sp",
    "bl begin",
    "brk #1",
);

#[cfg(target_arch = "x86_64")]
mod number {
    pub const CLOCK_GETTIME: usize = 228;
    pub const OPENAT: usize = 257;
    pub const WRITE: usize = 1;
    pub const CLOSE: usize = 3;
    pub const GETPID: usize = 39;
    pub const PPOLL: usize = 271;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const CLOCK_GETTIME: usize = 113;
    pub const OPENAT: usize = 56;
    pub const WRITE: usize = 64;
    pub const CLOSE: usize = 57;
    pub const GETPID: usize = 172;
    pub const PPOLL: usize = 73;
}

#[cfg(target_arch = "x86_64")]
unsafe fn call(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let result;
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b,
            in("rdx") c, in("r10") d, in("r8") e, lateout("rcx") _, lateout("r11") _);
    }
    result
}

#[cfg(target_arch = "aarch64")]
unsafe fn call(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize) -> isize {
    let result;
    unsafe {
        asm!("svc #0", in("x8") number, inlateout("x0") a as isize => result, in("x1") b,
            in("x2") c, in("x3") d, in("x4") e);
    }
    result
}

const CLOCK_MONOTONIC: usize = 1;
const AT_FDCWD: usize = -100_isize as usize;
const O_WRONLY_NONBLOCK: usize = 1 | 0o4000;

/// Runs on the stack that the kernel made: `argc`, then the arguments.
#[unsafe(no_mangle)]
unsafe extern "C" fn begin(stack: *const usize) -> ! {
    let mut time = [0_u64; 2];
    unsafe {
        call(number::CLOCK_GETTIME, CLOCK_MONOTONIC, time.as_mut_ptr() as usize, 0, 0, 0);
        if *stack >= 2 {
            let path = *stack.add(2);
            let pid = call(number::GETPID, 0, 0, 0, 0, 0) as u64;
            let said = [time[0] * 1_000_000_000 + time[1], pid];
            let fifo = call(number::OPENAT, AT_FDCWD, path, O_WRONLY_NONBLOCK, 0, 0);
            if fifo >= 0 {
                call(number::WRITE, fifo as usize, said.as_ptr() as usize, 16, 0, 0);
                call(number::CLOSE, fifo as usize, 0, 0, 0, 0);
            }
        }
        loop {
            call(number::PPOLL, 0, 0, 0, 0, 0);
        }
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
