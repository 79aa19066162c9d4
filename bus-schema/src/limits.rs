//! Limits of one instance: what is asked for, what was granted, what the
//! kernel said when it was read back.

use serde::{Deserialize, Serialize};

/// The limits to apply to one instance, after all defaults and profiles.
/// `None` means "no limit of this kind".
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// CPU bandwidth in percent of one core: 100 is one core, 250 two and a half.
    pub cpu_percent: Option<u32>,
    /// Relative CPU weight, 1 to 10000, 100 is normal (cgroup v2's `cpu.weight`).
    pub cpu_weight: Option<u32>,
    /// Memory, in bytes.
    pub memory_bytes: Option<u64>,
    /// Relative I/O weight, 1 to 10000, 100 is normal (cgroup v2's `io.weight`).
    pub io_weight: Option<u32>,
    /// Number of processes and threads.
    pub pids: Option<u32>,
    /// CPU reserved at admission, in percent of one core.
    pub cpu_request_percent: Option<u32>,
    /// Memory reserved at admission, in bytes.
    pub memory_request_bytes: Option<u64>,
    /// Refuse to run where a limit cannot be enforced.
    pub required: bool,
}

/// The version of the cgroup interface of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CgroupVersion {
    /// Controllers on v1, no v2 tree.
    V1,
    /// Controllers on v1, and a v2 tree without controllers beside them.
    Hybrid,
    /// One v2 tree.
    V2,
}

/// How a process gets into one cgroup directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinMethod {
    /// v1: the single-threaded child writes `0` to `tasks`
    /// (writing a pid, or `cgroup.procs`, takes a global lock and costs tens of
    /// milliseconds at the 99th percentile).
    V1Tasks,
    /// v2: `clone3(CLONE_INTO_CGROUP)`, or `0` into `cgroup.procs` from the child.
    V2,
}

/// One directory that the instance's first process joins before exec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupDir {
    /// Absolute path.
    pub path: String,
    /// How to join.
    pub join: JoinMethod,
}

/// Which limit a report line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitKind {
    /// `cpu_percent`.
    Cpu,
    /// `cpu_weight`.
    CpuWeight,
    /// `memory_mb`.
    Memory,
    /// `io_weight`.
    IoWeight,
    /// `pids`.
    Pids,
}

impl LimitKind {
    /// Its name, as it stands in the configuration.
    pub fn key(self) -> &'static str {
        match self {
            Self::Cpu => "cpu_percent",
            Self::CpuWeight => "cpu_weight",
            Self::Memory => "memory_mb",
            Self::IoWeight => "io_weight",
            Self::Pids => "pids",
        }
    }
}

/// Whether a limit holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Enforcement {
    /// Read back as asked.
    Enforced,
    /// Holds with another value or only in part; the reason says how.
    Partly {
        /// For a person.
        reason: String,
    },
    /// Does not hold.
    NotEnforced {
        /// For a person: rootless, controller missing, write refused …
        reason: String,
    },
}

/// One limit, as asked and as read back from the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitReport {
    /// Which limit.
    pub limit: LimitKind,
    /// What was asked for, in the unit of [`Limits`].
    pub requested: u64,
    /// What the kernel says now, in the same unit; `None` where nothing could be read.
    pub actual: Option<u64>,
    /// Whether it holds.
    pub enforcement: Enforcement,
}

/// What the resource-controller made ahead of a start. Travels in the spawn command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitGrant {
    /// The host's interface; `None` when there is no usable cgroup at all.
    pub version: Option<CgroupVersion>,
    /// The directories to join; empty when nothing can be enforced.
    pub cgroups: Vec<CgroupDir>,
    /// A v2 directory whose `cgroup.kill` ends the whole tree, where there is one.
    pub kill_cgroup: Option<String>,
    /// A v1 freezer directory, to freeze and then kill, where `kill_cgroup` is missing.
    pub freezer_cgroup: Option<String>,
    /// A file with a line `oom_kill N`: v1 `memory.oom_control`, v2 `memory.events`.
    pub oom_file: Option<String>,
    /// OOM score adjustment of the service (-1000 to 1000), see proc(5).
    pub oom_score_adj: Option<i32>,
    /// A line for each limit asked for.
    pub report: Vec<LimitReport>,
}

impl LimitGrant {
    /// Whether every limit asked for holds as asked.
    pub fn fully_enforced(&self) -> bool {
        self.report
            .iter()
            .all(|line| matches!(line.enforcement, Enforcement::Enforced))
    }
}
