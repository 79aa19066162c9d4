//! Being on a processor soon after being woken, also on a busy host.
//!
//! Daemons and shims work for some microseconds and sleep again, and a service's
//! start waits for several of them in turn. Where all cores are busy each of
//! these wake-ups would wait for the end of somebody's time slice. A short slice
//! of one's own (Linux 6.12 and later) and a little niceness below zero, where
//! that is allowed, spare it that; neither takes more time from others than the
//! work itself. Children begin without either (`SCHED_FLAG_RESET_ON_FORK`), so
//! that services run like everybody else. See sched_setattr(2), sched(7).
#![allow(unsafe_code)]

/// Nanoseconds: shorter than the usual 2.8 ms, so that a wake-up is followed by
/// work at once, and long enough for that work: whoever uses up a slice waits
/// for the end of everybody else's. A start takes a shim about half of this.
const SLICE: u64 = 1_000_000;

/// As strong against ordinary processes as daemons of the host usually are.
const NICE: i32 = -5;

/// `struct sched_attr` in its first version, see sched_setattr(2).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Asks for a short slice and, where this user may, for a raised priority; one
/// that was given another niceness keeps that. Only for this thread, and
/// without effect where the kernel does not know it.
pub fn raise() {
    let nice = rustix::process::getpriority_process(None).unwrap_or(0);
    let wanted = if nice == 0 { NICE } else { nice };
    if !set(wanted) && wanted != nice {
        set(nice);
    }
}

fn set(nice: i32) -> bool {
    let attributes = Attributes {
        size: u32::try_from(size_of::<Attributes>()).unwrap_or(0),
        policy: 0,
        flags: libc::SCHED_FLAG_RESET_ON_FORK as u64,
        nice,
        runtime: SLICE,
        ..Attributes::default()
    };
    // SAFETY: the kernel reads as many bytes as `size` says, which are those of
    // the structure, and changes nothing but how this thread is scheduled.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_as_before() {
        let before = rustix::process::getpriority_process(None).unwrap();
        raise();
        let raised = rustix::process::getpriority_process(None).unwrap();
        assert!(raised <= before);
        let output = std::process::Command::new("nice").output().unwrap();
        let child: i32 = String::from_utf8_lossy(&output.stdout)
            .trim()
            .parse()
            .unwrap();
        assert_eq!(child, before.max(0));
    }
}
