//! What a child tells of its way to exec: where it is, and what it stopped at.

use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

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
    /// Setting the limit with the index beside it.
    Rlimit = 12,
    Nice = 13,
    /// Taking the capability with the number beside it out of the bounding set.
    Bounding = 14,
    /// Keeping capabilities over the change of user.
    KeepCapabilities = 15,
    Capabilities = 16,
    /// Giving the capability with the number beside it to one that is not root.
    Ambient = 17,
    Stdin = 18,
    NoNewPrivs = 19,
    /// Handing on the descriptor with the index beside it.
    Passed = 20,
}

impl Step {
    fn from_number(number: u32) -> Self {
        use Step::{
            Ambient, Born, Bounding, Capabilities, DeathSignal, Directory, Exec, Gid, Groups, Join,
            KeepCapabilities, Nice, NoNewPrivs, OpenFiles, Orphaned, Output, Passed, Rlimit,
            Session, Stdin, Uid,
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
            Rlimit,
            Nice,
            Bounding,
            KeepCapabilities,
            Capabilities,
            Ambient,
            Stdin,
            NoNewPrivs,
            Passed,
        ]
        .into_iter()
        .find(|step| *step as u32 == number)
        .unwrap_or(Born)
    }
}

/// What the child tells: in a page of memory that it shares, or through a pipe.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) step: AtomicU32,
    pub(super) index: AtomicU32,
    pub(super) errno: AtomicI32,
    pub(super) oom_errno: AtomicI32,
    pub(super) limits_ns: AtomicU64,
}

impl Shared {
    pub(super) fn report(&self) -> Report {
        Report {
            step: Step::from_number(self.step.load(Ordering::SeqCst)),
            index: self.index.load(Ordering::SeqCst) as usize,
            errno: self.errno.load(Ordering::SeqCst),
            oom_errno: self.oom_errno.load(Ordering::SeqCst),
            limits_ns: self.limits_ns.load(Ordering::SeqCst),
        }
    }
}

/// What the child told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Report {
    /// The step it was at when it told last.
    pub(crate) step: Step,
    /// Which cgroup file, limit or capability.
    pub(crate) index: usize,
    /// The error it stopped at; 0 if none.
    pub(crate) errno: i32,
    /// Why the OOM score was not set; 0 if it was. No reason to stop.
    pub(crate) oom_errno: i32,
    /// When the limits and the identity were in place, monotonic nanoseconds.
    pub(crate) limits_ns: u64,
}
