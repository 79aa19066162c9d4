//! poll(2) that a lowered limit of open files does not break: with fewer allowed
//! than there are descriptors to wait for it fails at once (`EINVAL`), and whoever
//! only asked again would turn in a loop.

use rustix::event::{PollFd, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How long one of several parts is waited for, in nanoseconds: what is in the
/// others comes so late.
const PART: i64 = 200_000_000;

/// As poll(2). Where the soft limit of open files, set by somebody else, is below
/// the number of descriptors, it is put back to the hard one; where that is too low
/// as well, the descriptors are looked at in parts, the first ones at once, five times a second.
///
/// # Errors
/// Those of poll(2); `EINVAL` comes after a pause and means that nothing can be
/// waited for: each descriptor has to be tried.
pub(crate) fn wait(fds: &mut [PollFd<'_>], timeout: Option<&Timespec>) -> Result<usize, Errno> {
    match poll(fds, timeout) {
        Err(Errno::INVAL) => {}
        result => return result,
    }
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if setrlimit(Resource::Nofile, raised).is_ok() {
        match poll(fds, timeout) {
            Err(Errno::INVAL) => {}
            result => return result,
        }
    }
    let least = Timespec {
        tv_sec: 0,
        tv_nsec: PART,
    };
    let mut pause = timeout.copied().map_or(least, |asked| asked.min(least));
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    if most == 0 {
        poll(&mut [], Some(&pause))?;
        return Err(Errno::INVAL);
    }
    let mut ready = 0;
    for part in fds.chunks_mut(most) {
        ready += poll(part, Some(&pause))?;
        pause = Timespec::default();
    }
    Ok(ready)
}
