//! The two things that need `unsafe`.
#![allow(unsafe_code)]

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor whose readiness can be awaited.
pub(crate) fn readable(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` returns the same open descriptor from `as_raw_fd`
    // until it is dropped, and nobody takes it out of the `AsyncFd` before.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Makes the command's process the leader of a new session, so that neither a
/// terminal's Ctrl-C nor its end reaches it.
pub(crate) fn own_session(command: &mut Command) {
    // SAFETY: setsid(2) is async-signal-safe (signal-safety(7)); nothing is
    // allocated and no lock is taken between fork and exec.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        });
    }
}
