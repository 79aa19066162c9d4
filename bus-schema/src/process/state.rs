//! The states of an instance, with what exists only in each.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ExitRecord;

/// The five steps of a spawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpawnStep {
    /// Environment, working directory, log and lock.
    PrepareEnvironment,
    /// Joining cgroups, rlimits, user.
    ApplyLimits,
    /// Until exec succeeded.
    Exec,
    /// Record written, probes and watch set up.
    Register,
    /// First verification that it runs.
    HealthCheck,
}

/// One step of a spawn and how long it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTime {
    /// Which step.
    pub step: SpawnStep,
    /// Time it took, in nanoseconds.
    pub took_ns: u64,
}

/// Why a spawn failed before the service's own code ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnFailure {
    /// The step that failed.
    pub step: SpawnStep,
    /// The operation, with its path: `exec /usr/bin/nothing`.
    pub operation: String,
    /// The error number of errno(3); 0 where none belongs to it.
    pub errno: i32,
    /// What to do about it.
    pub hint: String,
}

impl fmt::Display for SpawnFailure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.operation)?;
        if self.errno != 0 {
            write!(
                formatter,
                ": {}",
                std::io::Error::from_raw_os_error(self.errno)
            )?;
        }
        if !self.hint.is_empty() {
            write!(formatter, " ({})", self.hint)?;
        }
        Ok(())
    }
}

/// Why an instance is in [`ProcessState::Failed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Failure {
    /// It never ran.
    Spawn {
        /// What went wrong.
        failure: SpawnFailure,
    },
    /// It ran and ended in failure.
    Exit {
        /// Its end.
        exit: ExitRecord,
    },
    /// It was stopped before its process existed.
    Cancelled,
}

/// The state of an instance, with what exists only in that state.
///
/// Edges: SPAWN → RUNNING → STOPPING → TERMINATED; RUNNING → FAILED;
/// TERMINATED → FAILED; SPAWN → FAILED; FAILED → SPAWN; TERMINATED → SPAWN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "UPPERCASE")]
pub enum ProcessState {
    /// Being started; there is no process yet.
    Spawn {},
    /// Its first process runs.
    Running {
        /// Process id.
        pid: u32,
        /// Start, Unix time in nanoseconds.
        started_at: u64,
    },
    /// It was asked to end, or ended by itself and its rest is being cleared.
    Stopping {
        /// Process id.
        pid: u32,
        /// Start, Unix time in nanoseconds.
        started_at: u64,
    },
    /// It ended, and that was no failure.
    Terminated {
        /// Its end; `None` for one that never ran.
        exit: Option<ExitRecord>,
    },
    /// It failed.
    Failed {
        /// Why.
        #[serde(flatten)]
        failure: Failure,
    },
}

/// The name of a [`ProcessState`], for tables and filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum StateName {
    /// Being started.
    Spawn,
    /// Runs.
    Running,
    /// Ends.
    Stopping,
    /// Ended well.
    Terminated,
    /// Failed.
    Failed,
}

impl fmt::Display for StateName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Spawn => "SPAWN",
            Self::Running => "RUNNING",
            Self::Stopping => "STOPPING",
            Self::Terminated => "TERMINATED",
            Self::Failed => "FAILED",
        })
    }
}

impl StateName {
    /// Whether the user's drawing has an edge from `self` to `next`.
    pub fn may_become(self, next: StateName) -> bool {
        use StateName::{Failed, Running, Spawn, Stopping, Terminated};
        matches!(
            (self, next),
            (Spawn, Running | Failed)
                | (Running, Stopping | Failed)
                | (Stopping, Terminated)
                | (Terminated, Failed | Spawn)
                | (Failed, Spawn)
        )
    }
}

impl ProcessState {
    /// The state's name.
    pub fn name(&self) -> StateName {
        match self {
            Self::Spawn {} => StateName::Spawn,
            Self::Running { .. } => StateName::Running,
            Self::Stopping { .. } => StateName::Stopping,
            Self::Terminated { .. } => StateName::Terminated,
            Self::Failed { .. } => StateName::Failed,
        }
    }

    /// The process id, where there is a process.
    pub fn pid(&self) -> Option<u32> {
        match self {
            Self::Running { pid, .. } | Self::Stopping { pid, .. } => Some(*pid),
            _ => None,
        }
    }

    /// How the last process ended, where that is known.
    pub fn exit(&self) -> Option<&ExitRecord> {
        match self {
            Self::Terminated { exit } => exit.as_ref(),
            Self::Failed {
                failure: Failure::Exit { exit },
            } => Some(exit),
            _ => None,
        }
    }

    /// Whether a process exists or may exist.
    pub fn is_live(&self) -> bool {
        matches!(
            self,
            Self::Spawn {} | Self::Running { .. } | Self::Stopping { .. }
        )
    }
}
