//! What goes into the core and what comes out of it.

use std::time::Duration;

use blackhole_bus_schema::config::Config;
use blackhole_bus_schema::health::ProbeResult;
use blackhole_bus_schema::limits::{LimitGrant, Limits};
use blackhole_bus_schema::names::{Generation, InstanceName, ManagerName};
use blackhole_bus_schema::process::{InstanceRecord, Permit, ProcessNotified, SpawnSpec, StopSpec};
use blackhole_bus_schema::registry::{Drained, Registration, RegistryChanged};
use blackhole_bus_schema::reply::Status;
use blackhole_bus_schema::supervision::{InstanceStatus, Outcome, Target};
use uuid::Uuid;

use super::saved::Change;

/// A moment on both clocks. Decisions are made on the monotonic one; the wall
/// clock is for people and for what has to survive a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// Monotonic time since an epoch of the caller's choice; never goes back.
    pub mono: Duration,
    /// Unix time in nanoseconds.
    pub unix_ns: u64,
}

impl Now {
    /// The moment `wait` from here, on both clocks.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        let nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        Self {
            mono: self.mono.saturating_add(wait),
            unix_ns: self.unix_ns.saturating_add(nanos),
        }
    }

    /// A wall-clock time told by an earlier run, on today's clocks: never in
    /// the past, and at most `limit` from here, so that a clock that was set
    /// back does not keep anything waiting.
    #[must_use]
    pub fn at_unix(self, unix_ns: u64, limit: Duration) -> Self {
        self.after(Duration::from_nanos(unix_ns.saturating_sub(self.unix_ns)).min(limit))
    }
}

/// Names a command of an operator until it is answered. Chosen by the caller,
/// never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operator {
    /// See [`blackhole_bus_schema::supervision::StartServices`].
    Start(Target),
    /// See [`blackhole_bus_schema::supervision::StopServices`].
    Stop {
        /// Which.
        target: Target,
        /// Not to be remembered by the next run.
        transient: bool,
    },
    /// See [`blackhole_bus_schema::supervision::RestartServices`].
    Restart(Target),
    /// See [`blackhole_bus_schema::supervision::ResetServices`].
    Reset(Target),
}

/// Which process-manager: its name, `None` for the one without.
pub type ManagerId = Option<ManagerName>;

/// Why a request to another component has no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestFailure {
    /// The component refused it: it has not been done.
    Refused(Status),
    /// No answer came: it may have been done or not.
    Unknown(String),
}

/// Everything that happens to the core.
#[derive(Debug, Clone)]
pub enum Input {
    /// The configuration changed. Services that are gone from it are stopped and forgotten.
    Configured(Box<Config>),
    /// An operator asks. Answered exactly once with [`Action::Answer`].
    Command {
        /// To answer to.
        ticket: Ticket,
        /// When it is answered with `DeadlineExceeded`, on [`Now::mono`]'s clock.
        deadline: Duration,
        /// What.
        command: Operator,
    },
    /// The path to a process-manager is proven; a snapshot follows.
    ManagerUp(ManagerId),
    /// A process-manager is silent. Its services are not dead for that.
    ManagerDown(ManagerId),
    /// All records of a process-manager, after [`Input::ManagerUp`] and after each healed loss.
    ManagerSnapshot(ManagerId, Vec<InstanceRecord>),
    /// A record of a process-manager changed.
    ProcessChanged(ManagerId, Box<InstanceRecord>),
    /// A service said something of itself.
    ProcessNotified(ProcessNotified),
    /// A probe has a result.
    Probe(ProbeResult),
    /// Result of [`Action::Spawn`].
    SpawnReply {
        /// Who was asked.
        manager: ManagerId,
        /// Which instance.
        instance: InstanceName,
        /// Which decision.
        generation: Generation,
        /// What came of it.
        result: Result<Box<InstanceRecord>, RequestFailure>,
    },
    /// Result of [`Action::Stop`].
    StopReply {
        /// Who was asked.
        manager: ManagerId,
        /// Which instance.
        instance: InstanceName,
        /// Which spawn was meant.
        generation: Generation,
        /// What came of it.
        result: Result<Box<InstanceRecord>, RequestFailure>,
    },
    /// Result of [`Action::Forget`].
    ForgetReply {
        /// Who was asked.
        manager: ManagerId,
        /// Which instance.
        instance: InstanceName,
        /// What came of it.
        result: Result<(), RequestFailure>,
    },
    /// The path to the resource-controller is proven.
    ControllerUp,
    /// The resource-controller is silent.
    ControllerDown,
    /// Result of [`Action::Prepare`].
    PrepareReply {
        /// Which instance.
        instance: InstanceName,
        /// What came of it.
        result: Result<Box<LimitGrant>, RequestFailure>,
    },
    /// Result of [`Action::Release`].
    ReleaseReply {
        /// Which instance.
        instance: InstanceName,
        /// What came of it.
        result: Result<(), RequestFailure>,
    },
    /// The path to the bridge is proven; a snapshot follows.
    BridgeUp,
    /// The bridge is silent: nothing waits for it.
    BridgeDown,
    /// Who answers calls, after [`Input::BridgeUp`] and after each healed loss.
    RegistrySnapshot(Vec<Registration>),
    /// A registration changed.
    RegistryChanged(Box<RegistryChanged>),
    /// Result of [`Action::Drain`].
    DrainReply {
        /// Which instance.
        instance: InstanceName,
        /// Which spawn of it.
        generation: Generation,
        /// What came of it.
        result: Result<Drained, RequestFailure>,
    },
    /// The time of [`super::Core::next_deadline`] has come.
    Tick,
}

/// What the core wants done, in this order: a [`Action::Persist`] is on disk
/// before anything after it is begun.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Write it down. `durable`: it is an operator's wish and has to survive a
    /// power failure before it is answered.
    Persist {
        /// What.
        change: Change,
        /// Whether it has to be flushed to the disk.
        durable: bool,
    },
    /// Ask the resource-controller to admit an instance and make its limits.
    Prepare {
        /// For whom.
        instance: InstanceName,
        /// What.
        limits: Limits,
        /// From its priority.
        oom_score_adj: i32,
    },
    /// Tell the resource-controller that an instance is at rest.
    Release {
        /// Which.
        instance: InstanceName,
    },
    /// Have this process-manager start it.
    Spawn(ManagerId, Box<SpawnSpec>),
    /// Have the bridge send an instance no more calls, and tell when those under
    /// way are answered.
    Drain {
        /// Which.
        instance: InstanceName,
        /// Which spawn of it.
        generation: Generation,
        /// Longest wait, in milliseconds.
        within_ms: u64,
    },
    /// Grant the living generation one restart ahead, or take it back. What
    /// becomes of it shows in the records; an answer is not needed.
    Permit {
        /// Whom to tell.
        manager: ManagerId,
        /// Which instance.
        instance: InstanceName,
        /// The generation that lives.
        generation: Generation,
        /// The restart; `None` takes an earlier one back.
        permit: Option<Permit>,
    },
    /// Have its process-manager stop it.
    Stop {
        /// Whom to ask.
        manager: ManagerId,
        /// Which.
        instance: InstanceName,
        /// Which spawn of it.
        generation: Generation,
        /// Because its health checks failed.
        unhealthy: bool,
        /// How, where that differs from what it was started with: its calls took
        /// part of the grace already.
        stop: Option<StopSpec>,
        /// Time it may take in order, in milliseconds: for the request's budget.
        grace_ms: u64,
    },
    /// Have a process-manager forget it.
    Forget {
        /// Whom to ask.
        manager: ManagerId,
        /// Which.
        instance: InstanceName,
    },
    /// Tell the world.
    Publish {
        /// All that is known now.
        status: Box<InstanceStatus>,
        /// What happened, for a person.
        why: String,
        /// The message that led to it.
        cause: Option<Uuid>,
    },
    /// Answer an operator.
    Answer {
        /// Whom.
        ticket: Ticket,
        /// What.
        result: Result<Outcome, Status>,
    },
}
