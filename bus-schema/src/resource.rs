//! Resources: admission, limits made ahead, usage. Commands go to
//! `cmd.resource-controller.`, events come on `evt.resource.`.

use serde::{Deserialize, Serialize};

use crate::limits::{LimitGrant, Limits};
use crate::message::{Command, Message, Snapshot};
use crate::names::InstanceName;
use crate::process::{command, query};

/// Admit an instance, make its cgroup, apply its limits and read them back.
/// Repeated for an instance that exists it applies the new limits in place.
/// Refused with `ResourceExhausted` and the numbers when the requests of all
/// admitted instances would exceed the capacity, with `FailedPrecondition`
/// when `limits.required` and one cannot be enforced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prepare {
    /// For whom.
    pub instance: InstanceName,
    /// What.
    pub limits: Limits,
    /// OOM score adjustment from its priority, see proc(5).
    #[serde(default)]
    pub oom_score_adj: Option<i32>,
}

/// The instance is gone for good: remove its cgroup and its reservation.
/// Refused with `FailedPrecondition` while a process is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Whose.
    pub instance: InstanceName,
}

/// Ask for the latest usage of all instances, in pages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListUsage {
    /// Where to go on: the last answer's `next`.
    pub after: Option<String>,
}

/// Ask for the capacity and what is reserved of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetCapacity {}

/// What the host (or the daemon's own cgroup) has, and what is promised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// In percent of one core.
    pub cpu_percent: u64,
    /// In bytes.
    pub memory_bytes: u64,
    /// Sum of the admitted `cpu_request_percent`.
    pub cpu_reserved_percent: u64,
    /// Sum of the admitted memory requests, in bytes.
    pub memory_reserved_bytes: u64,
    /// Admitted instances.
    pub instances: u32,
    /// The host's cgroup interface, `none` where there is none to use.
    pub cgroups: String,
    /// Why limits cannot be enforced here, where they cannot.
    pub problem: Option<String>,
}

/// Share of the last ten seconds in which tasks waited for a resource, in
/// hundredths of a percent, see the kernel's accounting/psi.rst.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pressure {
    /// Some task waited for CPU.
    pub cpu_some: u32,
    /// Some task waited for memory.
    pub memory_some: u32,
    /// All tasks waited for memory.
    pub memory_full: u32,
    /// Some task waited for I/O.
    pub io_some: u32,
}

/// What one instance used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Whose.
    pub instance: InstanceName,
    /// CPU time since its cgroup was made, in microseconds.
    pub cpu_usec: u64,
    /// CPU over the last tick, in percent of one core; `None` before the second tick.
    pub cpu_percent: Option<f64>,
    /// Time its tasks were throttled by the CPU limit, in microseconds.
    pub throttled_usec: u64,
    /// Memory now, in bytes; `None` where it is not accounted.
    pub memory_bytes: Option<u64>,
    /// Highest memory so far, in bytes.
    pub memory_peak_bytes: Option<u64>,
    /// Memory limit as the kernel has it, in bytes.
    pub memory_limit_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u32>,
    /// Bytes read from block devices.
    pub io_read_bytes: Option<u64>,
    /// Bytes written to block devices.
    pub io_write_bytes: Option<u64>,
    /// OOM kills since its cgroup was made.
    pub oom_kills: u64,
    /// Pressure stall, where the kernel has it.
    pub pressure: Option<Pressure>,
}

/// One tick: the usage of all instances, in one or more messages of at most
/// [`crate::message::PAGE_ITEMS`] instances.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UsageTick {
    /// Time since the tick before, in milliseconds.
    pub interval_ms: u64,
    /// The instances.
    pub usage: Vec<Usage>,
}

/// The OOM killer ended a process inside an instance's cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OomKilled {
    /// Whose.
    pub instance: InstanceName,
    /// Kills since its cgroup was made.
    pub kills: u64,
    /// The limit that was hit, in bytes.
    pub memory_limit_bytes: Option<u64>,
}

impl Message for UsageTick {
    const KIND: &'static str = "resource.usage";
}
impl Message for OomKilled {
    const KIND: &'static str = "resource.oom_killed";
}

command!(Prepare, "resource.prepare", LimitGrant);
command!(Release, "resource.release", ());
query!(ListUsage, "resource.list", Snapshot<Usage>);
query!(GetCapacity, "resource.capacity", Capacity);
