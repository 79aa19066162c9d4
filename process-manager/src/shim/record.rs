//! What stays on disk of a spawn until the next one: who ran, as what, and how it ended.

use std::path::{Path, PathBuf};

use blackhole_bus_schema::limits::LimitGrant;
use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::process::{ExitRecord, SpawnFailure, SpawnSpec};

use crate::shim::protocol::Started;

/// Everything recorded of the latest spawn of an instance.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The instance.
    pub instance: InstanceName,
    /// Which spawn.
    pub generation: Generation,
    /// The boot during which it ran, /proc/sys/kernel/random/boot_id.
    pub boot_id: String,
    /// Pid of its shim.
    pub shim_pid: u32,
    /// The instance's socket.
    pub socket: PathBuf,
    /// The limits it was started with: also how to kill what a lost shim left behind.
    pub grant: Option<LimitGrant>,
    /// The specification as the manager sent it; see [`Record::spec`].
    pub spec: Vec<u8>,
    /// The first process; `None` when it was never started, or the shim died before it could tell.
    pub started: Option<Started>,
    /// Why it was never started.
    pub failure: Option<SpawnFailure>,
    /// How it ended.
    pub exit: Option<ExitRecord>,
}

/// What can go wrong with a record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// An operation on a path failed.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error("{path} is damaged: {problem}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl Record {
    /// The specification as the manager sent it, secrets unresolved.
    ///
    /// # Errors
    /// When it was written by a version whose specification cannot be read.
    pub fn spec(&self) -> Result<SpawnSpec, rmp_serde::decode::Error> {
        rmp_serde::from_slice(&self.spec)
    }
}

/// Reads the record of the instance whose folder is `dir`; `None` when there is none.
///
/// # Errors
/// When it cannot be read or is damaged. A record cut short by a full disk or a
/// kill is no error: what was written is returned.
pub fn read_record(dir: &Path) -> Result<Option<Record>, RecordError> {
    let _ = dir;
    unimplemented!("in the next commit")
}

/// Who holds the lock of the instance whose folder is `dir`: the pid of the live
/// shim, `None` when there is none. The lock is not touched by asking.
///
/// # Errors
/// When the lock file exists but cannot be examined.
pub fn instance_lock_held(dir: &Path) -> std::io::Result<Option<u32>> {
    let _ = dir;
    unimplemented!("in the next commit")
}
