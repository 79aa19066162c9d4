//! A successor that is there already: a child in its cgroups, with its limits and its
//! user, asleep before exec. A restart is then one byte through a pipe.
//!
//! It has a copy of the shim's memory (the shim goes on meanwhile), nothing open but
//! what the service will have, and dies with the shim. It is no ordinary child until
//! it has executed its program: the shim's wait(2) does not see it, so that "no child
//! is left" goes on to mean that nothing of the service is.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;

use super::exec::{Launched, Plan, Strings, Wait, Work, child_entry};
use super::report::{Shared, Step};
use super::{birth, sys};

/// A child that waits for the word to execute its program. Killed when dropped.
#[derive(Debug)]
pub(crate) struct StandBy {
    pid: Pid,
    /// `None` once the word has been given.
    go: Option<OwnedFd>,
    report: OwnedFd,
    /// It is the service, or has been reaped.
    gone: bool,
}

impl StandBy {
    /// Makes one, and returns before it is ready to be told.
    ///
    /// # Errors
    /// When there is no such child. Hosts without clone3(2) or its cgroups are among that:
    /// there a successor is made when it is needed.
    pub(crate) fn make(plan: &Plan) -> io::Result<Self> {
        let (go, word) = pipe_with(PipeFlags::CLOEXEC)?;
        let (report, told) = pipe_with(PipeFlags::CLOEXEC)?;
        let strings = Strings::of(plan);
        let shared = Shared::default();
        let mut keep: Vec<_> = plan.passed.iter().map(AsRawFd::as_raw_fd).collect();
        keep.extend([go.as_raw_fd(), told.as_raw_fd()]);
        keep.sort_unstable();
        let wait = Wait {
            go: go.as_raw_fd(),
            report: told.as_raw_fd(),
            keep: &keep,
        };
        let work = Work::of(plan, &shared, &strings, Some(wait));
        let born_in = plan.born_in.as_ref().map(AsRawFd::as_raw_fd);
        // SAFETY: the shim has one thread. The child has a copy of all that `work`
        // points to and never comes back from `child_entry`, which is made for it.
        let pid = unsafe {
            let argument = ptr::from_ref(&work).cast::<c_void>();
            birth::clone3_waiting(born_in, child_entry, argument)
        };
        let pid = pid.map_err(io::Error::from_raw_os_error)?;
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self {
            pid,
            go: Some(word),
            report,
            gone: false,
        })
    }

    /// Its pid, before and after.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
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
        let mut report = std::fs::File::from(rustix::io::dup(&self.report)?);
        let mut told = Vec::with_capacity(2 * size_of::<Shared>());
        // Its end closes on exec.
        report.read_to_end(&mut told)?;
        let shared = last(&told).ok_or(io::ErrorKind::UnexpectedEof)?.report();
        if shared.step != Step::Exec || shared.errno != 0 {
            return Err(io::Error::from_raw_os_error(shared.errno));
        }
        self.gone = true;
        Ok(Launched {
            pid: self.pid,
            report: shared,
        })
    }
}

impl Drop for StandBy {
    fn drop(&mut self) {
        if !self.gone {
            let _ = sys::signal_child(self.pid, libc::SIGKILL, false);
            sys::reap_waiting(self.pid);
        }
    }
}

/// The last whole report of those that were written.
fn last(told: &[u8]) -> Option<Shared> {
    let whole = told.chunks_exact(size_of::<Shared>()).last()?;
    // SAFETY: as many bytes as it has; each of its fields is valid for all of them.
    Some(unsafe { ptr::read_unaligned(whole.as_ptr().cast()) })
}
