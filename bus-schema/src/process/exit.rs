//! How a process ended, and why.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::signal_name;
use crate::names::Generation;

/// How a process ended, as wait(2) tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum ExitStatus {
    /// By itself.
    Exited {
        /// 0 to 255.
        code: i32,
    },
    /// By a signal.
    Signaled {
        /// Its number.
        signal: i32,
        /// Whether a core was dumped.
        core_dumped: bool,
    },
    /// Nobody saw it: the shim was gone, or the host was restarted.
    Unknown,
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited { code } => write!(formatter, "exit code {code}"),
            Self::Signaled {
                signal,
                core_dumped,
            } => {
                match signal_name(*signal) {
                    Some(name) => write!(formatter, "signal {signal} ({name})")?,
                    None => write!(formatter, "signal {signal}")?,
                }
                if *core_dumped {
                    formatter.write_str(", core dumped")?;
                }
                Ok(())
            }
            Self::Unknown => formatter.write_str("unknown"),
        }
    }
}

/// Why an instance ended: the verdict over its [`ExitStatus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitResult {
    /// It exited with a success code.
    Success,
    /// It exited with another code.
    ExitCode,
    /// A signal ended it that nobody here sent.
    Signal,
    /// The kernel's OOM killer ended it inside its own cgroup.
    OomKill,
    /// It was asked to stop and ended within its grace.
    Stopped,
    /// It was asked to stop, its grace ran out and it was killed.
    StopTimeout,
    /// It was killed because its health checks or its watchdog failed.
    Unhealthy,
    /// Its shim vanished; its processes were killed.
    ShimLost,
    /// The host was restarted while it ran.
    HostRestarted,
}

impl ExitResult {
    /// Whether this end is a failure for the restart policy.
    pub fn is_failure(self) -> bool {
        !matches!(self, Self::Success | Self::Stopped | Self::StopTimeout)
    }
}

/// What is kept of an instance's end until its next spawn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Which spawn ended.
    pub generation: Generation,
    /// Process id of its first process.
    pub pid: u32,
    /// How it ended.
    pub status: ExitStatus,
    /// Why.
    pub result: ExitResult,
    /// Start, Unix time in nanoseconds.
    pub started_at: u64,
    /// End, Unix time in nanoseconds.
    pub ended_at: u64,
    /// Processes of its tree that were killed after its end.
    #[serde(default)]
    pub killed_leftovers: u32,
}
