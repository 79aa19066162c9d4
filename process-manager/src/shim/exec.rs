//! From fork to exec: what the child does before it becomes the service.
//!
//! [`super::birth`] makes the child; the shim sleeps until the program has been
//! replaced or the child has ended, so that no pipe has to tell it. What went
//! wrong, and when the limits were in place, stands in a page of memory that
//! both share.
//!
//! Between clone and exec only async-signal-safe calls are made, and nothing is
//! allocated: all strings are made ahead, in a [`Plan`].
#![allow(unsafe_code)]

use std::ffi::{CString, c_void};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Pid;

use super::birth::{self, Stack};
use super::capabilities::{Capabilities, bit, restrict};
use super::report::{Report, Shared, Step};

/// What the child does, prepared ahead.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Files of cgroups to write `0` to.
    pub(crate) join: Vec<CString>,
    /// The v2 cgroup to be born in.
    pub(crate) born_in: Option<OwnedFd>,
    /// `cgroup.procs` of that, where a child cannot be born in a cgroup.
    pub(crate) born_in_procs: Option<CString>,
    /// Text for /proc/self/oom_score_adj.
    pub(crate) oom_score_adj: Vec<u8>,
    /// Soft and hard limit of open files.
    pub(crate) nofile: Option<(u64, u64)>,
    /// What becomes standard output and standard error. Standard input is the
    /// shim's own, /dev/null, where there is no [`Plan::stdin`].
    pub(crate) output: [OwnedFd; 2],
    /// Resource limits: number, soft, hard.
    pub(crate) rlimits: Vec<(u32, u64, u64)>,
    /// Niceness; `None` is that of the shim's children, 0.
    pub(crate) nice: Option<i32>,
    /// Supplementary groups, group and user; `None` keeps the shim's.
    pub(crate) identity: Option<Identity>,
    /// Capabilities that are left; `None` changes none.
    pub(crate) capabilities: Option<Capabilities>,
    /// File mode creation mask.
    pub(crate) umask: u32,
    /// What becomes standard input.
    pub(crate) stdin: Option<CString>,
    /// Nothing executed from here on can gain privileges.
    pub(crate) no_new_privs: bool,
    /// It is made by a process that handles signals, not by a shim.
    pub(crate) handlers: bool,
    /// Descriptors that the service finds at 3 and above; none of them is there here.
    pub(crate) passed: Vec<OwnedFd>,
    /// Variables that hold the child's own pid.
    pub(crate) pid_variables: Vec<&'static str>,
    /// Working directory.
    pub(crate) directory: CString,
    /// The file to execute.
    pub(crate) program: CString,
    /// Its arguments, from the program's name on.
    pub(crate) arguments: Vec<CString>,
    /// Its environment, each `NAME=value`.
    pub(crate) environment: Vec<CString>,
}

/// Whom the service runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// `None` where the shim may not set them and need not.
    pub(crate) groups: Option<Vec<u32>>,
}

/// Where passed descriptors begin, see sd_listen_fds(3).
pub(crate) const FIRST_PASSED: i32 = 3;

/// Bytes for a pid's digits and the NUL after them.
const PID_ROOM: usize = 12;

/// Arguments and environment as execve(2) wants them.
pub(crate) struct Strings {
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    /// `NAME=` and room for the digits, written by the child: a pid has at most 10.
    _pids: Vec<Vec<u8>>,
    /// Where they go.
    digits: Vec<*mut u8>,
}

impl Strings {
    /// They point into `plan`, which has to live as long, unchanged.
    pub(crate) fn of(plan: &Plan) -> Self {
        let pointers = plan.arguments.iter().map(|text| text.as_ptr());
        let argv = pointers.chain([ptr::null()]).collect();
        let mut pids: Vec<Vec<u8>> = plan
            .pid_variables
            .iter()
            .map(|name| {
                let mut text = format!("{name}=").into_bytes();
                text.resize(text.len() + PID_ROOM, 0);
                text
            })
            .collect();
        let digits = pids
            .iter_mut()
            .map(|text| {
                let at = text.len() - PID_ROOM;
                text.as_mut_ptr().wrapping_add(at)
            })
            .collect();
        let strings = plan.environment.iter().map(|text| text.as_ptr());
        let made = pids.iter().map(|text| text.as_ptr().cast());
        let envp = strings.chain(made).chain([ptr::null()]).collect();
        Self {
            argv,
            envp,
            _pids: pids,
            digits,
        }
    }
}

/// A child that was born.
#[derive(Debug)]
pub(crate) struct Launched {
    /// Its pid.
    pub(crate) pid: Pid,
    /// What it told until exec succeeded or it ended.
    pub(crate) report: Report,
}

/// The monotonic clock in nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: clock_gettime(2) fills `time`; it is async-signal-safe.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Makes the child and returns when it has executed its program or has ended;
/// [`Report::errno`] and the step tell which. The caller reaps it in either case.
/// A program on a file system that hangs holds the shim here as long; only
/// SIGKILL ends such a shim, and the child with it.
///
/// A process with more threads may call it with all signals blocked and
/// [`Plan::handlers`] set: only the calling thread sleeps, the child uses nothing of the others,
/// and it dies with this thread.
///
/// # Errors
/// When there is no child at all.
pub(crate) fn launch(plan: &Plan) -> io::Result<Launched> {
    let strings = Strings::of(plan);
    let size = size_of::<Shared>();
    let memory = birth::page(size)?;
    // SAFETY: a mapping of `birth::page` that nobody else knows of; all fields of `Shared` are
    // atomics for which zero is valid. It is unmapped below, after
    // the last use of `shared`, in this process only.
    let shared = unsafe { &*memory.cast::<Shared>() };
    let work = Work::of(plan, shared, &strings, None);
    let result = make_child(&work);
    let report = shared.report();
    // SAFETY: the mapping made above; `shared` is not used any more.
    unsafe { libc::munmap(memory, size) };
    let pid = result.and_then(|pid| Pid::from_raw(pid).ok_or(libc::ECHILD));
    match pid {
        Ok(pid) => Ok(Launched { pid, report }),
        Err(errno) => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// How a child waits before it becomes the service.
pub(super) struct Wait<'a> {
    /// A byte that comes here is the word to go on, an end that there is none.
    pub(super) go: RawFd,
    /// A [`Shared`] is written here when it waits, with its pid for an index, and after a failure.
    pub(super) report: RawFd,
    /// Descriptors that stay open, in ascending order; all others from 3 on are closed,
    /// so that nobody who waits for the shim to close them waits for this one, too.
    pub(super) keep: &'a [RawFd],
}

/// What the child needs.
pub(super) struct Work<'a> {
    plan: &'a Plan,
    shared: &'a Shared,
    /// Ends with null, points into the plan.
    argv: &'a [*const libc::c_char],
    /// The same, and into what `pids` points into.
    envp: &'a [*const libc::c_char],
    /// Where the child writes its pid: [`PID_ROOM`] bytes each, all 0.
    pids: &'a [*mut u8],
    pub(super) shim: libc::pid_t,
    /// The v2 cgroup is joined by writing, not by birth.
    pub(super) join_late: AtomicBool,
    /// It becomes the service at a word, not at once.
    wait: Option<Wait<'a>>,
}

impl<'a> Work<'a> {
    pub(super) fn of(
        plan: &'a Plan,
        shared: &'a Shared,
        strings: &'a Strings,
        wait: Option<Wait<'a>>,
    ) -> Self {
        Self {
            plan,
            shared,
            argv: &strings.argv,
            envp: &strings.envp,
            pids: &strings.digits,
            shim: rustix::process::getpid().as_raw_nonzero().get(),
            join_late: AtomicBool::new(false),
            wait,
        }
    }
}

fn make_child(work: &Work<'_>) -> Result<libc::pid_t, i32> {
    let argument = ptr::from_ref(work).cast::<c_void>();
    let born_in = work.plan.born_in.as_ref().map(AsRawFd::as_raw_fd);
    let stack = match (&work.plan.identity, work.plan.handlers) {
        // One that changes its user must not share memory; nor one of a process that has
        // more to lose than a service: who kills a whole cgroup for want of memory kills all
        // that share memory with it (`memory.oom.group`).
        (Some(_), _) | (None, true) => None,
        (None, false) => Stack::new().ok(),
    };
    // SAFETY: the shim has one thread; `child_entry` is made for this and for
    // this argument, which lives until the child has its program.
    unsafe {
        let pid = birth::clone3(stack.as_ref(), born_in, child_entry, argument);
        // Linux before 5.7 cannot have a child born in a cgroup, before 5.3 and in
        // some sandboxes there is no clone3.
        let pid = match pid {
            Err(libc::EINVAL | libc::E2BIG | libc::ENOSYS) if born_in.is_some() => {
                work.join_late.store(true, Ordering::SeqCst);
                birth::clone3(stack.as_ref(), None, child_entry, argument)
            }
            other => other,
        };
        match pid {
            Err(libc::ENOSYS) => birth::clone_before_3(child_entry, argument),
            other => other,
        }
    }
}

/// Where the child begins.
pub(super) extern "C" fn child_entry(argument: *const c_void) -> ! {
    // SAFETY: the argument is the `Work` of `make_child`, which is alive.
    unsafe { child(&*argument.cast::<Work<'_>>()) }
}

/// The child. Everything here is async-signal-safe, allocates nothing and
/// cannot panic.
///
/// # Safety
/// Only in a child made by [`make_child`] or for a [`Wait`].
unsafe fn child(work: &Work<'_>) -> ! {
    let Work {
        plan,
        shared,
        argv,
        envp,
        ..
    } = *work;
    // SAFETY: system calls with numbers, with strings and arrays that `plan`,
    // `argv` and `envp` keep alive, and with locals. The calls that change the
    // identity go to the kernel directly: the C library's wrappers are made for
    // threads.
    unsafe {
        let fail = |step: Step, index: u32| -> ! {
            shared
                .errno
                .store(*libc::__errno_location(), Ordering::SeqCst);
            shared.index.store(index, Ordering::SeqCst);
            shared.step.store(step as u32, Ordering::SeqCst);
            tell(work);
            libc::_exit(127)
        };
        let late = if work.join_late.load(Ordering::SeqCst) {
            plan.born_in_procs.as_ref()
        } else {
            None
        };
        for (index, file) in (0..).zip(plan.join.iter().chain(late)) {
            let fd = libc::open(file.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if fd < 0 || libc::write(fd, b"0".as_ptr().cast(), 1) != 1 {
                fail(Step::Join, index);
            }
            libc::close(fd);
        }
        let adjust = libc::open(
            c"/proc/self/oom_score_adj".as_ptr(),
            libc::O_WRONLY | libc::O_CLOEXEC,
        );
        let text = &plan.oom_score_adj;
        if adjust < 0 || libc::write(adjust, text.as_ptr().cast(), text.len()) < 0 {
            shared
                .oom_errno
                .store(*libc::__errno_location(), Ordering::SeqCst);
        }
        libc::close(adjust);
        if libc::setsid() < 0 {
            fail(Step::Session, 0);
        }
        if let Some((soft, hard)) = plan.nofile {
            let limit = libc::rlimit {
                rlim_cur: soft,
                rlim_max: hard,
            };
            if libc::setrlimit(libc::RLIMIT_NOFILE, &limit) != 0 {
                fail(Step::OpenFiles, 0);
            }
        }
        for (index, (number, soft, hard)) in (0..).zip(&plan.rlimits) {
            // The kernel's own call: the library's types differ by target.
            let limit = [*soft, *hard];
            let none = ptr::null_mut::<u64>();
            let (own, number): (libc::c_long, _) = (0, libc::c_long::from(*number));
            if libc::syscall(libc::SYS_prlimit64, own, number, limit.as_ptr(), none) != 0 {
                fail(Step::Rlimit, index);
            }
        }
        if let Some(nice) = plan.nice {
            let (process, own): (libc::c_long, libc::c_long) = (0, 0);
            let nice = libc::c_long::from(nice);
            if libc::syscall(libc::SYS_setpriority, process, own, nice) != 0 {
                fail(Step::Nice, 0);
            }
        }
        if libc::dup2(plan.output[0].as_raw_fd(), 1) < 0
            || libc::dup2(plan.output[1].as_raw_fd(), 2) < 0
        {
            fail(Step::Output, 0);
        }
        if let Some(capabilities) = &plan.capabilities {
            // While this may still do so. One that is out of the set already is
            // no matter, so that one who may not need not.
            for number in 0..=capabilities.last {
                let there = libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(number)) == 1;
                if there
                    && capabilities.left & bit(number) == 0
                    && libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number)) != 0
                {
                    fail(Step::Bounding, number);
                }
            }
            let one: libc::c_ulong = 1;
            if capabilities.ambient != 0 && libc::prctl(libc::PR_SET_KEEPCAPS, one) != 0 {
                fail(Step::KeepCapabilities, 0);
            }
        }
        if let Some(identity) = &plan.identity {
            if let Some(groups) = &identity.groups
                && libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) != 0
            {
                fail(Step::Groups, 0);
            }
            let gid = identity.gid;
            if libc::syscall(libc::SYS_setresgid, gid, gid, gid) != 0 {
                fail(Step::Gid, 0);
            }
            let uid = identity.uid;
            if libc::syscall(libc::SYS_setresuid, uid, uid, uid) != 0 {
                fail(Step::Uid, 0);
            }
        }
        if let Some(capabilities) = &plan.capabilities {
            if !restrict(capabilities) {
                fail(Step::Capabilities, 0);
            }
            let raise = libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong;
            let zero: libc::c_ulong = 0;
            for number in (0..64).filter(|number| capabilities.ambient & bit(*number) != 0) {
                let which = libc::c_ulong::from(number);
                if libc::prctl(libc::PR_CAP_AMBIENT, raise, which, zero, zero) != 0 {
                    fail(Step::Ambient, number);
                }
            }
        }
        // After the change of user, which clears it. A set-user-ID program
        // clears it again, see PR_SET_PDEATHSIG(2const).
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
            fail(Step::DeathSignal, 0);
        }
        if libc::getppid() != work.shim {
            fail(Step::Orphaned, 0);
        }
        if let Some(wait) = &work.wait {
            close_all_but(wait.keep);
            shared
                .index
                .store(libc::getpid().unsigned_abs(), Ordering::SeqCst);
            shared.limits_ns.store(monotonic_ns(), Ordering::SeqCst);
            tell(work);
            shared.index.store(0, Ordering::SeqCst);
            await_word(wait);
        }
        shared.limits_ns.store(monotonic_ns(), Ordering::SeqCst);
        // As the service's user: it must be able to be there.
        if libc::chdir(plan.directory.as_ptr()) != 0 {
            fail(Step::Directory, 0);
        }
        libc::umask(plan.umask);
        if let Some(file) = &plan.stdin {
            // A FIFO without a writer does not hold it up.
            let fd = libc::open(
                file.as_ptr(),
                libc::O_RDONLY | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC,
            );
            if fd < 0 || libc::fcntl(fd, libc::F_SETFL, 0) != 0 || libc::dup2(fd, 0) < 0 {
                fail(Step::Stdin, 0);
            }
        }
        // Those that `reset_signals` has ignored; all others have their default
        // since the fork server began. The kernel's own call; all zeros is the
        // default action, no flags, an empty mask.
        let default = [0_u64; 4];
        // Those two belong to the C library, which does not touch them then.
        let others = if plan.handlers { 1..=64 } else { 32..=33 };
        for signal in super::sys::IGNORED.into_iter().chain(others) {
            libc::syscall(
                libc::SYS_rt_sigaction,
                libc::c_long::from(signal),
                default.as_ptr(),
                ptr::null::<u64>(),
                8_usize,
            );
        }
        // All descriptors here close on exec; this is for those of a mistake.
        let (first, last, flag): (libc::c_uint, libc::c_uint, libc::c_uint) = (
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC as libc::c_uint,
        );
        libc::syscall(libc::SYS_close_range, first, last, flag);
        let (one, zero): (libc::c_ulong, libc::c_ulong) = (1, 0);
        if plan.no_new_privs && libc::prctl(libc::PR_SET_NO_NEW_PRIVS, one, zero, zero, zero) != 0 {
            fail(Step::NoNewPrivs, 0);
        }
        for (index, fd) in (0..).zip(&plan.passed) {
            let at = FIRST_PASSED + i32::try_from(index).unwrap_or(0);
            if libc::dup2(fd.as_raw_fd(), at) < 0 {
                fail(Step::Passed, index);
            }
        }
        for digits in work.pids {
            write_pid(libc::getpid().unsigned_abs(), *digits);
        }
        shared.step.store(Step::Exec as u32, Ordering::SeqCst);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
        libc::execve(plan.program.as_ptr(), argv.as_ptr(), envp.as_ptr());
        fail(Step::Exec, 0)
    }
}

/// Tells whoever has a copy of the memory only what stands in it.
///
/// # Safety
/// Only in a child made by [`make_child`] or for a [`Wait`].
unsafe fn tell(work: &Work<'_>) {
    if let Some(wait) = &work.wait {
        let from = ptr::from_ref(work.shared).cast();
        // SAFETY: write(2) of a structure of plain numbers, without padding.
        // A pipe takes as much as this at once or, from nobody any more, not at all.
        unsafe { libc::write(wait.report, from, size_of::<Shared>()) };
    }
}

/// Closes descriptors from 3 on that are not among those, which ascend.
///
/// # Safety
/// Only in a child that has a table of descriptors of its own, and before its exec.
pub(super) unsafe fn close_all_but(keep: &[RawFd]) {
    let close = |first: RawFd, last: libc::c_uint| {
        let none: libc::c_uint = 0;
        let first = first.unsigned_abs();
        if first <= last {
            // SAFETY: a system call with numbers; nobody uses what is closed.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, none) };
        }
    };
    let mut from = FIRST_PASSED;
    for fd in keep {
        close(from, fd.unsigned_abs().wrapping_sub(1));
        from = *fd + 1;
    }
    close(from, libc::c_uint::MAX);
}

/// Sleeps until there is word; ends this process where none will come.
///
/// # Safety
/// Only in a child made for a [`Wait`].
unsafe fn await_word(wait: &Wait<'_>) {
    let mut word = 0_u8;
    loop {
        // SAFETY: read(2) into a local; errno(3) of this thread.
        unsafe {
            match libc::read(wait.go, ptr::from_mut(&mut word).cast(), 1) {
                1 => break,
                -1 if *libc::__errno_location() == libc::EINTR => {}
                _ => libc::_exit(0),
            }
        }
    }
    // Signals that came meanwhile were meant for nobody: the service has not begun.
    let (all, now) = (u64::MAX, [0_i64; 2]);
    // SAFETY: rt_sigtimedwait(2) with a set, no place for information, and a time of zero.
    while unsafe {
        libc::syscall(
            libc::SYS_rt_sigtimedwait,
            ptr::from_ref(&all),
            ptr::null::<libc::siginfo_t>(),
            now.as_ptr(),
            8_usize,
        )
    } > 0
    {}
}

/// Writes a number in decimal to `at`, where there are [`PID_ROOM`] bytes of 0.
///
/// # Safety
/// They are there and nobody reads or writes them meanwhile.
unsafe fn write_pid(mut number: u32, at: *mut u8) {
    let mut reversed = [0_u8; PID_ROOM];
    let mut count = 0;
    while count + 1 < PID_ROOM {
        reversed[count] = b'0' + (number % 10) as u8;
        count += 1;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    for index in 0..count {
        // SAFETY: `count` is less than the room.
        unsafe { at.add(index).write(reversed[count - 1 - index]) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pids_are_written_in_decimal() {
        for number in [0, 7, 10, 4_194_303, u32::MAX] {
            let mut room = [0_u8; PID_ROOM];
            // SAFETY: an array of the right size.
            unsafe { write_pid(number, room.as_mut_ptr()) };
            let text = std::ffi::CStr::from_bytes_until_nul(&room).unwrap();
            assert_eq!(text.to_str().unwrap(), number.to_string());
        }
    }
}
