//! Waiting for a descriptor to become readable.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor whose readability can be awaited. To be called within the runtime.
///
/// # Errors
/// When epoll(7) does not take it.
pub(crate) fn readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` owns an open descriptor, which nobody replaces or
    // closes while it is in the `AsyncFd`: it is only ever lent from there.
    let registered = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    Ok(registered?)
}
