//! The system calls that no safe library offers. With `exec` (the way from fork
//! to exec) the only unsafe code of the shim.
//!
//! Everything here relies on one fact: the process `blackhole-shim` never has a
//! second thread, so that a forked copy of it may go on as an ordinary program.
//! [`single_threaded`] is checked at the start of the fork server.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;

/// Whether this process has exactly one thread.
pub(crate) fn single_threaded() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1)
}

/// Forks this single-threaded process: the child's pid, or `None` in the child.
pub(crate) fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: with one thread no lock can be held by a thread that the child
    // does not have, so the child may run any code.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Pid::from_raw(pid)),
    }
}

/// Lets others on this core go on before this process, where there are any that have just been
/// woken by it: what it has left to do is nothing that they wait for.
pub(crate) fn give_way() {
    // SAFETY: sched_yield(2) has no arguments and always succeeds on Linux.
    unsafe { libc::sched_yield() };
}

/// Bytes below the stack pointer that are given back: more than a start takes.
const STACK_BELOW: usize = 64 * 1024;

/// Gives the host back the part of the stack that was used and is not any more.
#[inline(never)]
pub(crate) fn give_back_stack() {
    // SAFETY: sysconf(3) takes a number; this one the C library knows from its start.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(0);
    if !page.is_power_of_two() {
        return;
    }
    let here = 0_u8;
    // Not what this function and the call below stand on.
    let end = (std::ptr::from_ref(&here).addr() - page) & !(page - 1);
    let start = std::ptr::without_provenance_mut(end - STACK_BELOW);
    // SAFETY: below the stack pointer of the only thread nothing is alive (children that share
    // the memory have stacks of their own). The kernel keeps other mappings at a distance of 256
    // pages from the stack (`stack_guard_gap`), so that whatever of this is mapped is stack; of
    // what is not the call tells by an error. What is given back reads as zeros afterwards, which
    // new frames do not mind. See madvise(2).
    unsafe { libc::madvise(start, STACK_BELOW, libc::MADV_DONTNEED) };
}

/// Ends this process without running destructors or exit handlers.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) does not return and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Sends a signal to a child that has not been reaped, or to its process group.
/// Its pid cannot belong to another process as long.
pub(crate) fn signal_child(pid: Pid, signal: i32, group: bool) -> io::Result<()> {
    let pid = pid.as_raw_nonzero().get();
    // SAFETY: kill(2) with plain numbers.
    match unsafe { libc::kill(if group { -pid } else { pid }, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How long a child that was killed may take to end: one in a frozen cgroup does not.
const DEATH: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Kills a child that is not an ordinary one (see `__WALL` in waitpid(2)) and waits for its end.
pub(crate) fn end_hidden(pid: Pid) {
    let _ = signal_child(pid, libc::SIGKILL, false);
    // It is this process's child and not reaped: the pid is no other's.
    let fd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
    if let Ok(fd) = fd {
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        while poll(&mut fds, Some(&DEATH)) == Err(rustix::io::Errno::INTR) {}
    }
    let mut status = 0;
    // SAFETY: waitpid(2) fills `status`.
    unsafe {
        libc::waitpid(
            pid.as_raw_nonzero().get(),
            &mut status,
            libc::__WALL | libc::WNOHANG,
        )
    };
}

/// Whether a child that was not an ordinary one has become that by executing a program:
/// then wait(2) does not find it among the others any more.
pub(crate) fn is_ordinary(pid: Pid) -> bool {
    let mut status = 0;
    // SAFETY: waitpid(2) fills `status`.
    let found = unsafe {
        libc::waitpid(
            pid.as_raw_nonzero().get(),
            &mut status,
            libc::__WCLONE | libc::WNOHANG,
        )
    };
    found < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ECHILD)
}

/// Sends a signal to the process that a pidfd names, see pidfd_send_signal(2).
pub(crate) fn signal_pidfd(fd: &OwnedFd, signal: i32) -> io::Result<()> {
    let (none, flags) = (std::ptr::null::<libc::siginfo_t>(), 0_u32);
    // SAFETY: an open descriptor, a number, no structure, no flags.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            fd.as_raw_fd(),
            signal,
            none,
            flags,
        )
    };
    match sent {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether two descriptors are of one open file, see kcmp(2). Where the kernel does
/// not tell they are not.
pub(crate) fn is_same_file(one: &OwnedFd, other: &OwnedFd) -> bool {
    /// `KCMP_FILE` in linux/kcmp.h.
    const FILE: libc::c_int = 0;
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    // SAFETY: plain numbers; the descriptors are open.
    let differ = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            pid,
            pid,
            FILE,
            libc::c_ulong::from(one.as_raw_fd().unsigned_abs()),
            libc::c_ulong::from(other.as_raw_fd().unsigned_abs()),
        )
    };
    differ == 0
}

/// Ignored by fork server and shims: a write error tells the same as SIGPIPE and
/// SIGXFSZ, and there is no terminal for SIGHUP, which a shim takes as a request.
pub(crate) const IGNORED: [i32; 3] = [libc::SIGPIPE, libc::SIGXFSZ, libc::SIGHUP];

/// Default disposition for every signal, but those that are [`IGNORED`].
pub(crate) fn reset_signals() {
    for signal in 1..=64 {
        let action = match IGNORED.contains(&signal) {
            true => libc::SIG_IGN,
            false => libc::SIG_DFL,
        };
        // SAFETY: no handler is installed, only the two constant dispositions.
        // SIGKILL, SIGSTOP and those that the C library keeps are refused with
        // an error that changes nothing.
        unsafe { libc::signal(signal, action) };
    }
}

/// Blocks all signals but those of faults, and returns a descriptor from which
/// `signals` are read, see signalfd(2). After a fork it reads the child's own.
pub(crate) fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: both sets are initialised by sigfillset/sigemptyset before use,
    // the descriptor returned is new and owned by nobody else.
    unsafe {
        let mut blocked: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut blocked);
        for fault in [
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGILL,
            libc::SIGFPE,
            libc::SIGABRT,
        ] {
            libc::sigdelset(&mut blocked, fault);
        }
        if libc::sigprocmask(libc::SIG_SETMASK, &blocked, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut wanted: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut wanted);
        for signal in signals {
            libc::sigaddset(&mut wanted, *signal);
        }
        let fd = libc::signalfd(-1, &wanted, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(OwnedFd::from_raw_fd(fd))
        }
    }
}

/// Whether a signal asks the process to end. SIGHUP asks a shim to listen again.
pub(crate) fn asks_to_end(signal: i32) -> bool {
    matches!(signal, libc::SIGTERM | libc::SIGINT)
}

/// Signals read off a [`signal_fd`] until none is waiting.
pub(crate) fn drain_signals(fd: &OwnedFd, mut each: impl FnMut(i32)) {
    // A signalfd_siginfo has 128 bytes, its first field is the number.
    let mut buffer = [0_u8; 128 * 8];
    while let Ok(bytes @ 1..) = rustix::io::read(fd, &mut buffer) {
        for info in buffer[..bytes].chunks_exact(128) {
            if let Some(number) = info.first_chunk::<4>() {
                each(i32::from_ne_bytes(*number));
            }
        }
    }
}

/// Closes every descriptor from `first` on. Only at the start of the program,
/// when none of them is owned by a value here.
pub(crate) fn close_inherited(first: RawFd) {
    // SAFETY: close_range(2) with plain numbers; the caller owns none of them.
    let failed = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) } != 0;
    if failed {
        // Before Linux 5.9.
        for fd in first..4096 {
            // SAFETY: as above; one that is not open is refused with EBADF.
            unsafe { libc::close(fd) };
        }
    }
}

/// A user as the host's databases know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) name: CString,
    pub(crate) home: CString,
}

/// Looks a user up by name or number, see getpwnam(3). Blocks as long as the
/// host's name service does.
pub(crate) fn user(name: &CStr) -> io::Result<Option<User>> {
    let number = name.to_str().ok().and_then(|text| text.parse::<u32>().ok());
    let mut buffer: Vec<libc::c_char> = vec![0; 1024];
    loop {
        // SAFETY: `entry` is filled by the call before it is read, and its
        // strings lie in `buffer`, which lives until they are copied.
        unsafe {
            let mut entry: libc::passwd = std::mem::zeroed();
            let mut found = std::ptr::null_mut();
            let (memory, size) = (buffer.as_mut_ptr(), buffer.len());
            let error = match number {
                Some(uid) => libc::getpwuid_r(uid, &mut entry, memory, size, &mut found),
                None => libc::getpwnam_r(name.as_ptr(), &mut entry, memory, size, &mut found),
            };
            match error {
                0 if found.is_null() => return Ok(None),
                0 => {
                    return Ok(Some(User {
                        uid: entry.pw_uid,
                        gid: entry.pw_gid,
                        name: CStr::from_ptr(entry.pw_name).to_owned(),
                        home: CStr::from_ptr(entry.pw_dir).to_owned(),
                    }));
                }
                libc::ERANGE if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 4, 0),
                libc::ENOENT | libc::ESRCH => return Ok(None),
                error => return Err(io::Error::from_raw_os_error(error)),
            }
        }
    }
}

/// Looks a group's number up by name, see getgrnam(3).
pub(crate) fn group(name: &CStr) -> io::Result<Option<u32>> {
    let mut buffer: Vec<libc::c_char> = vec![0; 1024];
    loop {
        // SAFETY: as in `user`; only a number is taken out.
        unsafe {
            let mut entry: libc::group = std::mem::zeroed();
            let mut found = std::ptr::null_mut();
            let (memory, size) = (buffer.as_mut_ptr(), buffer.len());
            match libc::getgrnam_r(name.as_ptr(), &mut entry, memory, size, &mut found) {
                0 if found.is_null() => return Ok(None),
                0 => return Ok(Some(entry.gr_gid)),
                libc::ERANGE if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 4, 0),
                libc::ENOENT | libc::ESRCH => return Ok(None),
                error => return Err(io::Error::from_raw_os_error(error)),
            }
        }
    }
}

/// The groups of a user, `gid` among them, see getgrouplist(3).
pub(crate) fn groups_of(user: &CStr, gid: u32) -> Vec<u32> {
    let mut groups: Vec<libc::gid_t> = vec![0; 32];
    loop {
        let mut count = libc::c_int::try_from(groups.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: `count` is the number of elements that `groups` has room for.
        let result =
            unsafe { libc::getgrouplist(user.as_ptr(), gid, groups.as_mut_ptr(), &mut count) };
        let needed = usize::try_from(count).unwrap_or(0);
        if result >= 0 {
            groups.truncate(needed);
            return groups;
        }
        // NGROUPS_MAX is 65536.
        if needed <= groups.len() || needed > 65536 {
            return vec![gid];
        }
        groups.resize(needed, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_are_found_by_name_and_number() {
        let root = user(c"root").unwrap().unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert_eq!(user(c"0").unwrap().unwrap(), root);
        assert_eq!(user(c"no-such-user-here").unwrap(), None);
        assert_eq!(group(c"root").unwrap(), Some(0));
        assert_eq!(group(c"no-such-group-here").unwrap(), None);
        assert!(groups_of(&root.name, 0).contains(&0));
    }
}
