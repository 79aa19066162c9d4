//! A service that is there already but for its program: a child in its cgroups, with
//! its limits and its user, asleep before exec. A start is then one byte through a pipe.
//!
//! Two processes are made for it. The *maker* is a copy of the shim; it makes the child, with
//! which it shares its memory, and sleeps until it is killed. The child is the shim's own
//! (`CLONE_PARENT`, see clone(2)). So the shim goes on meanwhile, and what execve(2) gives up
//! is a share of the maker's memory: giving up a copy of one's own took longer than all the rest.
//! (Sleeping by `CLONE_VFORK` would count as load for as long as it lasts.)
//!
//! The child has nothing open but what the service will have, and both die with the shim.
//! wait(2) does not see either of them before the child has executed its program, so that
//! "no child is left" goes on to mean that nothing of the service is.
//!
//! The child waits in a group below that which has the service's limits. So its memory counts there,
//! and on v2, where `memory.oom.group` is set for all of it, an OOM kill of the service takes the
//! child along. Outside it would have to be moved when it is needed, which costs more than it
//! saves; the restart then makes another one, as after any other end of it.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;

use super::birth::{self, Stack};
use super::exec::{Launched, Plan, Strings, Wait, Work, child_entry, close_all_but};
use super::report::{Report, Shared, Step};
use super::sys;

/// How long a child may take until it waits, or until it has executed its program: one that
/// its user's other processes have stopped would hold up the shim.
const PATIENCE: Duration = Duration::from_secs(2);

/// A child that waits for the word to execute its program. Killed when dropped.
#[derive(Debug)]
pub(crate) struct StandBy {
    maker: Pid,
    child: Option<Pid>,
    /// `None` once the word has been given.
    go: Option<OwnedFd>,
    report: OwnedFd,
    /// What was read of it.
    told: Vec<u8>,
}

/// What the maker needs.
struct Make<'a> {
    work: Work<'a>,
    stack: Option<Stack>,
    born_in: Option<RawFd>,
    /// Descriptors that it leaves open for the child, in ascending order.
    keep: &'a [RawFd],
    /// Where it tells the child's pid, as the child does.
    report: RawFd,
}

impl StandBy {
    /// Makes one, and returns when it waits.
    ///
    /// # Errors
    /// When there is no such child, for whatever reason: making one when it is needed shows which.
    /// Hosts without clone3(2) or its cgroups are among that.
    pub(crate) fn make(plan: &Plan) -> io::Result<Self> {
        let (go, word) = pipe_with(PipeFlags::CLOEXEC)?;
        let (report, told) = pipe_with(PipeFlags::CLOEXEC)?;
        let strings = Strings::of(plan);
        let shared = Shared::default();
        let mut keep: Vec<_> = plan.passed.iter().map(AsRawFd::as_raw_fd).collect();
        keep.extend([go.as_raw_fd(), told.as_raw_fd()]);
        let born_in = plan.born_in.as_ref().map(AsRawFd::as_raw_fd);
        let mut makers = keep.clone();
        makers.extend(plan.output.iter().map(AsRawFd::as_raw_fd));
        makers.extend(born_in);
        keep.sort_unstable();
        makers.sort_unstable();
        let wait = Wait {
            go: go.as_raw_fd(),
            report: told.as_raw_fd(),
            keep: &keep,
        };
        let make = Make {
            work: Work::of(plan, &shared, &strings, Some(wait)),
            stack: Stack::new().ok(),
            born_in,
            keep: &makers,
            report: told.as_raw_fd(),
        };
        // SAFETY: the shim has one thread. The maker has a copy of all that `make`
        // points to and never comes back from `maker_entry`, which is made for it.
        let maker = unsafe {
            let argument = ptr::from_ref(&make).cast::<c_void>();
            birth::clone3_aside(maker_entry, argument)
        };
        let maker = maker.map_err(io::Error::from_raw_os_error)?;
        drop((go, told));
        let mut standby = Self {
            maker: Pid::from_raw(maker).ok_or(io::ErrorKind::NotFound)?,
            child: None,
            go: Some(word),
            report,
            told: Vec::with_capacity(3 * size_of::<Shared>()),
        };
        // The maker's word that it is there, and its own that it waits.
        standby.hear(|reports| reports == 2)?;
        match standby.ready() {
            Some(_) if standby.child.is_some() => Ok(standby),
            _ => Err(standby.failure()),
        }
    }

    /// Its pid, before and after.
    pub(crate) fn pid(&self) -> Option<Pid> {
        self.child
    }

    /// Has it execute its program, and returns when it has. From then on it is an ordinary child.
    ///
    /// # Errors
    /// When it has not, for whatever reason, and has ended: another way shows which it is.
    pub(crate) fn go(mut self) -> io::Result<Launched> {
        let Some(word) = self.go.take() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        rustix::io::write(&word, &[1])?;
        drop(word);
        // Its end of the pipe closes on exec; of a success nothing is told.
        self.hear(|_| false)?;
        let (Some(pid), Some(mut report)) = (self.child, self.ready()) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if !sys::is_ordinary(pid) {
            return Err(self.failure());
        }
        self.child = None;
        report.step = Step::Exec;
        Ok(Launched { pid, report })
    }

    /// What was told so far.
    fn reports(&self) -> impl Iterator<Item = Report> + '_ {
        let whole = self.told.chunks_exact(size_of::<Shared>());
        whole.map(|bytes| {
            // SAFETY: as many bytes as it has; each of its fields is valid for all of them.
            let shared: Shared = unsafe { ptr::read_unaligned(bytes.as_ptr().cast()) };
            shared.report()
        })
    }

    /// The child's word that it waits.
    fn ready(&self) -> Option<Report> {
        self.reports()
            .find(|report| report.errno == 0 && report.limits_ns != 0)
    }

    /// What it stopped at.
    fn failure(&self) -> io::Error {
        let errno = self.reports().map(|report| report.errno);
        match errno.filter(|errno| *errno != 0).last() {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::ErrorKind::UnexpectedEof.into(),
        }
    }

    /// Reads reports until there are `enough` or none can come any more.
    fn hear(&mut self, enough: impl Fn(usize) -> bool) -> io::Result<()> {
        let until = Instant::now().checked_add(PATIENCE);
        while !enough(self.told.len() / size_of::<Shared>()) {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let left = left.map(|left| Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            });
            let mut fds = [PollFd::new(&self.report, PollFlags::IN)];
            match poll(&mut fds, left.as_ref()) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let mut bytes = [0; size_of::<Shared>()];
            match rustix::io::read(&self.report, &mut bytes) {
                Ok(0) => break,
                Ok(count) => {
                    self.told.extend_from_slice(&bytes[..count]);
                    let there = self.reports().find(|report| report.errno == 0);
                    let pid = there.and_then(|report| i32::try_from(report.index).ok());
                    self.child = self.child.or_else(|| Pid::from_raw(pid?));
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl Drop for StandBy {
    fn drop(&mut self) {
        if let Some(child) = self.child {
            sys::end_hidden(child);
        }
        sys::end_hidden(self.maker);
    }
}

/// Where the maker begins.
extern "C" fn maker_entry(argument: *const c_void) -> ! {
    // SAFETY: the argument is this process's own copy of the `Make` of `StandBy::make`. The
    // calls are async-signal-safe, with numbers and with what lives as long as this
    // process, which has one thread and from the clone on touches its own stack alone: its child,
    // which has a stack of its own, may be using errno(3) and the rest.
    unsafe {
        let make = &*argument.cast::<Make<'_>>();
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid() == make.work.shim {
            close_all_but(make.keep);
            let argument = ptr::from_ref(&make.work).cast::<c_void>();
            let born_in = make.born_in;
            let child = birth::clone3_sibling(make.stack.as_ref(), born_in, child_entry, argument);
            if let Ok(pid) = child {
                // Nobody can hold the maker up; the child's own word may never come.
                let told = Shared::default();
                told.index.store(pid.unsigned_abs(), Ordering::Relaxed);
                let from = ptr::from_ref(&told).cast();
                libc::write(make.report, from, size_of::<Shared>());
                close_all_but(&[]);
                loop {
                    // Signals are blocked.
                    libc::pause();
                }
            }
        }
        libc::_exit(0)
    }
}
