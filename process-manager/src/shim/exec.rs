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
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};

use rustix::process::Pid;

use super::birth::{self, Stack};

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
    /// What becomes standard output and standard error. Standard input is the shim's own, /dev/null.
    pub(crate) output: [OwnedFd; 2],
    /// Supplementary groups, group and user; `None` keeps the shim's.
    pub(crate) identity: Option<Identity>,
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

/// Where a child failed. The numbers travel through the shared page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Step {
    /// It did not get to say anything.
    Born = 0,
    /// Writing to the cgroup file with the index beside it.
    Join = 1,
    Session = 2,
    OpenFiles = 3,
    Output = 4,
    Groups = 5,
    Gid = 6,
    Uid = 7,
    Directory = 8,
    /// Having the kernel kill it when the shim dies.
    DeathSignal = 9,
    /// The shim had died already.
    Orphaned = 10,
    Exec = 11,
}

impl Step {
    fn from_number(number: u32) -> Self {
        use Step::{
            Born, DeathSignal, Directory, Exec, Gid, Groups, Join, OpenFiles, Orphaned, Output,
            Session, Uid,
        };
        [
            Born,
            Join,
            Session,
            OpenFiles,
            Output,
            Groups,
            Gid,
            Uid,
            Directory,
            DeathSignal,
            Orphaned,
            Exec,
        ]
        .into_iter()
        .find(|step| *step as u32 == number)
        .unwrap_or(Born)
    }
}

/// The page of memory shared with the child.
#[repr(C)]
struct Shared {
    step: AtomicU32,
    index: AtomicU32,
    errno: AtomicI32,
    oom_errno: AtomicI32,
    limits_ns: AtomicU64,
}

/// What the child told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Report {
    /// The step it was at when it told last.
    pub(crate) step: Step,
    /// Which cgroup file.
    pub(crate) index: usize,
    /// The error it stopped at; 0 if none.
    pub(crate) errno: i32,
    /// Why the OOM score was not set; 0 if it was. No reason to stop.
    pub(crate) oom_errno: i32,
    /// When the limits and the identity were in place, monotonic nanoseconds.
    pub(crate) limits_ns: u64,
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
/// # Errors
/// When there is no child at all.
pub(crate) fn launch(plan: &Plan) -> io::Result<Launched> {
    let pointers = |strings: &[CString]| {
        strings
            .iter()
            .map(|text| text.as_ptr())
            .chain([ptr::null()])
            .collect::<Vec<_>>()
    };
    let (argv, envp) = (pointers(&plan.arguments), pointers(&plan.environment));
    let size = size_of::<Shared>();
    // SAFETY: a new anonymous mapping, zeroed by the kernel; all fields of
    // `Shared` are atomics for which zero is valid. It is unmapped below, after
    // the last use of `shared`, in this process only.
    let (memory, shared) = unsafe {
        let memory = libc::mmap(
            ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        (memory, &*memory.cast::<Shared>())
    };
    let work = Work {
        plan,
        shared,
        argv: &argv,
        envp: &envp,
        shim: rustix::process::getpid().as_raw_nonzero().get(),
        join_late: AtomicBool::new(false),
    };
    let result = make_child(&work);
    let report = Report {
        step: Step::from_number(shared.step.load(Ordering::SeqCst)),
        index: shared.index.load(Ordering::SeqCst) as usize,
        errno: shared.errno.load(Ordering::SeqCst),
        oom_errno: shared.oom_errno.load(Ordering::SeqCst),
        limits_ns: shared.limits_ns.load(Ordering::SeqCst),
    };
    // SAFETY: the mapping made above; `shared` is not used any more.
    unsafe { libc::munmap(memory, size) };
    let pid = result.and_then(|pid| Pid::from_raw(pid).ok_or(libc::ECHILD));
    match pid {
        Ok(pid) => Ok(Launched { pid, report }),
        Err(errno) => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// What the child needs.
struct Work<'a> {
    plan: &'a Plan,
    shared: &'a Shared,
    /// Ends with null, points into the plan.
    argv: &'a [*const libc::c_char],
    /// The same.
    envp: &'a [*const libc::c_char],
    shim: libc::pid_t,
    /// The v2 cgroup is joined by writing, not by birth.
    join_late: AtomicBool,
}

fn make_child(work: &Work<'_>) -> Result<libc::pid_t, i32> {
    let argument = ptr::from_ref(work).cast::<c_void>();
    let born_in = work.plan.born_in.as_ref().map(AsRawFd::as_raw_fd);
    let stack = match work.plan.identity {
        // One that changes its user must not share memory.
        Some(_) => None,
        None => Stack::new().ok(),
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
extern "C" fn child_entry(argument: *const c_void) -> ! {
    // SAFETY: the argument is the `Work` of `make_child`, which is alive.
    unsafe { child(&*argument.cast::<Work<'_>>()) }
}

/// The child. Everything here is async-signal-safe, allocates nothing and
/// cannot panic.
///
/// # Safety
/// Only in a child made by [`make_child`].
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
        if libc::dup2(plan.output[0].as_raw_fd(), 1) < 0
            || libc::dup2(plan.output[1].as_raw_fd(), 2) < 0
        {
            fail(Step::Output, 0);
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
        shared.limits_ns.store(monotonic_ns(), Ordering::SeqCst);
        // As the service's user: it must be able to be there.
        if libc::chdir(plan.directory.as_ptr()) != 0 {
            fail(Step::Directory, 0);
        }
        libc::umask(0o022);
        // After the change of user, which clears it. A set-user-ID program
        // clears it again, see PR_SET_PDEATHSIG(2const).
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
            fail(Step::DeathSignal, 0);
        }
        if libc::getppid() != work.shim {
            fail(Step::Orphaned, 0);
        }
        // Those that `reset_signals` has ignored; all others have their default
        // since the fork server began. The kernel's own call; all zeros is the
        // default action, no flags, an empty mask.
        let default = [0_u64; 4];
        // Those two belong to the C library, which does not touch them then.
        for signal in super::sys::IGNORED.into_iter().chain([32, 33]) {
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
        shared.step.store(Step::Exec as u32, Ordering::SeqCst);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
        libc::execve(plan.program.as_ptr(), argv.as_ptr(), envp.as_ptr());
        fail(Step::Exec, 0)
    }
}
