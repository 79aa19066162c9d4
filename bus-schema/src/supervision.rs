//! Supervision: what should run, what does, and why not. Commands go to
//! `cmd.supervisor.`, events come on `evt.supervision.<service>.`.

use serde::{Deserialize, Serialize};

use crate::health::Health;
use crate::limits::LimitReport;
use crate::message::{Command, Message, Snapshot};
use crate::names::{Generation, InstanceName, ManagerName, ServiceName};
use crate::process::{ExitRecord, StateName, command, query};
use crate::reply::{Code, known_code};

/// What an operator wants of a service. Survives the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// It should run (a one-shot: should have run).
    Up,
    /// It should not.
    Down,
}

/// Finer than the state: what is going on and what is waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// Nothing is to be done: down and wanted down, or a one-shot that is through.
    Idle,
    /// Waits for services it depends on.
    WaitingForDependency {
        /// Which, with the condition: `identity ready`.
        on: Vec<String>,
    },
    /// Waits for a component of Blackhole.
    WaitingForComponent {
        /// Which.
        component: String,
    },
    /// Admission and limits are being asked for.
    Preparing,
    /// The resource-controller refused it; tried again when capacity is freed or by an operator.
    Refused {
        /// With the numbers.
        reason: String,
    },
    /// Spawn sent.
    Spawning,
    /// Runs, and its startup or readiness probe has not passed yet.
    Probing,
    /// Runs and is ready.
    Ready,
    /// Runs, and was ready before, but is not now.
    NotReady,
    /// Stop sent; or its calls are being finished before that: then
    /// [`InstanceStatus::detail`] begins with `draining`.
    Stopping,
    /// Failed; the next start is due.
    BackingOff {
        /// Restarts in a row so far.
        attempt: u32,
        /// When, Unix time in nanoseconds.
        until: u64,
    },
    /// Failed too often in a row: nothing is tried until a reset.
    CircuitOpen,
    /// Failed and its policy does not restart it.
    GaveUp,
}

impl Phase {
    /// A word for tables.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::WaitingForDependency { .. } => "waiting",
            Self::WaitingForComponent { .. } => "waiting",
            Self::Preparing => "preparing",
            Self::Refused { .. } => "refused",
            Self::Spawning => "spawning",
            Self::Probing => "probing",
            Self::Ready => "ready",
            Self::NotReady => "not ready",
            Self::Stopping => "stopping",
            Self::BackingOff { .. } => "backing off",
            Self::CircuitOpen => "circuit open",
            Self::GaveUp => "gave up",
        }
    }
}

/// The restart circuit of an instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Circuit {
    /// Restarts are made.
    #[default]
    Closed,
    /// No restarts are made.
    Open,
    /// One trial is being made after the cool-down.
    HalfOpen,
}

/// Everything the supervisor knows of one instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// Its service.
    pub service: ServiceName,
    /// The instance.
    pub instance: InstanceName,
    /// What is wanted.
    pub desired: Desired,
    /// The process state as last heard; `None` when no process-manager has told of it.
    pub state: Option<StateName>,
    /// Finer detail.
    #[serde(flatten)]
    pub phase: Phase,
    /// The process-manager that has it, or that starts it next; `None`: the one without a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manager: Option<ManagerName>,
    /// The latest spawn decision.
    pub generation: Generation,
    /// Process id, where there is a process.
    pub pid: Option<u32>,
    /// Start of the process, Unix time in nanoseconds.
    pub started_at: Option<u64>,
    /// Restarts after failures, since an operator last started or reset it.
    pub restarts: u32,
    /// Verdict over its probes.
    pub health: Health,
    /// What the failing probe said, or its last `STATUS=`.
    pub detail: Option<String>,
    /// Its circuit.
    pub circuit: Circuit,
    /// How it last ended.
    pub last_exit: Option<ExitRecord>,
    /// Why the last spawn failed, or another error, for a person.
    pub last_error: Option<String>,
    /// Its limits; `None` where no resource-controller made any.
    pub limits: Option<Vec<LimitReport>>,
    /// It is a one-shot that is through: [`Phase::Idle`], and it counts as `completed`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub completed: bool,
}

impl InstanceStatus {
    /// [`Phase::word`], but `completed` for a one-shot that is through.
    pub fn word(&self) -> &'static str {
        match (&self.phase, self.completed) {
            (Phase::Idle, true) => "completed",
            (phase, _) => phase.word(),
        }
    }
}

/// An instance's status changed; the first word of what happened and why is in `why`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SupervisionChanged {
    /// All that is known now.
    pub status: InstanceStatus,
    /// For a person: `restart 2 of 5 in 1.0 s: exit code 1`.
    pub why: String,
}

/// Which services a command is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// All of the configuration.
    All,
    /// These, by name.
    Services(Vec<ServiceName>),
}

/// Start services and what they depend on. Answered when all are ready (a
/// one-shot: completed), or failed with what is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartServices {
    /// Which.
    pub target: Target,
}

/// Stop services and what depends on them, dependents first. Answered when nothing of them is left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopServices {
    /// Which.
    pub target: Target,
    /// Do not keep the wish across restarts of the supervisor: used by `down`,
    /// so that the next `up` starts them again.
    #[serde(default)]
    pub transient: bool,
}

/// Stop and start services; what depends on them hard is restarted after them. A
/// service of several replicas is restarted one replica after the other, and what
/// depends on it goes on; the first that does not become ready ends it, with the
/// others untouched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartServices {
    /// Which.
    pub target: Target,
}

/// Close the circuits of services, forget their failures and start those that should run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetServices {
    /// Which.
    pub target: Target,
}

/// Have services read their own configuration again, as their `reload` says, one
/// instance after the other. One that fails, or cannot be asked, does not keep the
/// others from it: answered when all were asked, with what became of each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadServices {
    /// Which; of all, those that have a `reload`.
    pub target: Target,
}

/// What a [`ReloadServices`] came to for one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Which.
    pub instance: InstanceName,
    /// [`Code::Ok`] where it has.
    #[serde(deserialize_with = "known_code")]
    pub code: Code,
    /// What went wrong, for a person; empty where nothing did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// Ask for the status of all instances, in pages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListStatus {
    /// Where to go on: the last answer's `next`.
    pub after: Option<String>,
}

impl Message for SupervisionChanged {
    const KIND: &'static str = "supervision.changed";
}

/// What a command to several services came to: the status of each instance it was about.
pub type Outcome = Vec<InstanceStatus>;

command!(StartServices, "supervision.start", Outcome);
command!(StopServices, "supervision.stop", Outcome);
command!(RestartServices, "supervision.restart", Outcome);
command!(ResetServices, "supervision.reset", Outcome);
command!(ReloadServices, "supervision.reload", Vec<Reloaded>);
query!(ListStatus, "supervision.list", Snapshot<InstanceStatus>);
