//! One instance: what was decided about it, what was heard of it.

use std::time::Duration;

use blackhole_bus_schema::config::ServiceConfig;
use blackhole_bus_schema::health::{Health, Probes};
use blackhole_bus_schema::limits::LimitGrant;
use blackhole_bus_schema::names::{Component, Generation, InstanceName};
use blackhole_bus_schema::process::{ExitRecord, InstanceRecord, StateName};
use blackhole_bus_schema::reply::Status;
use blackhole_bus_schema::supervision::{Desired, InstanceStatus, Phase};
use uuid::Uuid;

use super::drain::Drain;
use super::health::Probing;
use super::io::{ManagerId, Now};
use super::recall::Recall;
use super::restart::Restarts;
use super::saved::SavedInstance;

/// Waits between requests that were refused or lost double from this …
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// … to this.
const RETRY_MOST: Duration = Duration::from_secs(30);

/// Whether there is a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// There is none.
    None,
    /// A spawn was decided and its fate is not known yet.
    Sent(Fate),
    /// There is one (or its shim is about to make one).
    Live(StateName, Generation),
}

/// What became of a spawn that was decided.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nobody knows: the reply was lost, or an earlier run of the supervisor sent it.
    #[default]
    Unknown,
    /// The request is on its way.
    InFlight,
    /// It did not arrive, or was refused.
    Absent,
    /// It did not arrive, and its stop did: it will not be begun.
    Barred,
}

/// How a record came here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// With the reply to a request: may be ahead of the event stream.
    Reply,
    /// With the event stream.
    Stream,
}

/// The limits of the next start.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) enum Grant {
    /// Not asked for.
    #[default]
    Unasked,
    /// Asked for.
    Asking,
    /// Made.
    Granted(Box<LimitGrant>),
    /// Refused by admission, or because they cannot be enforced.
    Refused(Status),
    /// The controller is there, but gave no usable answer.
    Unavailable(String),
}

/// A request that failed is repeated, ever more slowly.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Retry {
    /// Not before.
    pub(super) at: Option<Duration>,
    count: u32,
}

impl Retry {
    /// Puts the next try off.
    pub(super) fn later(&mut self, now: Duration) {
        let factor = 1u32.checked_shl(self.count.min(16)).unwrap_or(u32::MAX);
        let wait = RETRY_FIRST.saturating_mul(factor).min(RETRY_MOST);
        self.count = self.count.saturating_add(1);
        self.at = Some(now.saturating_add(wait));
    }

    /// The request succeeded, or there is reason to try at once.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// When to go on, if that is later than `now`.
    pub(super) fn pending(&self, now: Duration) -> Option<Duration> {
        self.at.filter(|at| *at > now)
    }
}

/// What other instances may wait for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Visible {
    pub(super) phase: Phase,
    pub(super) life: Life,
    pub(super) ready: bool,
    pub(super) completed: bool,
    pub(super) bouncing: bool,
}

/// One instance.
#[derive(Debug, Clone)]
pub(super) struct Instance {
    pub(super) name: InstanceName,
    /// Not in the configuration any more: to be stopped and forgotten.
    pub(super) surplus: bool,
    /// The process-manager that was last asked to start it, or that tells of it.
    pub(super) home: ManagerId,
    /// Who was asked before, and keeps a record of it that is to be forgotten.
    pub(super) left: Option<ManagerId>,
    /// Who was asked to start what lives at another one.
    pub(super) recall: Option<Recall>,
    /// See [`SavedInstance`]. All spawns up to `ended` are over or were never begun.
    pub(super) generation: Generation,
    pub(super) ended: Generation,
    pub(super) asked: Generation,
    pub(super) ready_seen: Generation,
    /// A spawn that counts as over because a later one was known where it was to run: if
    /// it ran, and failed, that has not been counted.
    pub(super) presumed: Option<Generation>,
    /// The latest spawn whose end a process-manager has told; nothing that is
    /// heard of it or an earlier one can be alive.
    pub(super) told_end: Generation,
    /// Who told it: the same generation may live at another one afterwards.
    pub(super) told_by: ManagerId,
    pub(super) restarts: Restarts,
    pub(super) spent: bool,
    pub(super) completed: bool,
    pub(super) last_exit: Option<ExitRecord>,
    pub(super) last_error: Option<String>,
    /// The latest generation of earlier runs of the supervisor: what became of it may
    /// have been nobody's to see. Generations are compared, since clocks are set back.
    pub(super) earlier: Generation,
    /// The host was restarted since: it ended with the host.
    pub(super) rebooted: bool,
    /// The last start failed before the service ran.
    pub(super) start_failed: bool,
    /// The process-manager refused to start it.
    pub(super) refused: Option<Status>,
    /// Spawns up to this one are to end and others to follow.
    pub(super) bounce: Generation,
    /// Spawns up to this one wait for their turn in a rolling restart.
    pub(super) roll: Generation,
    /// A replacement failed before it was ready: for the rolling restart.
    pub(super) roll_broken: Option<String>,
    /// It answered calls when the rolling restart began.
    pub(super) roll_answers: bool,
    /// Its calls are, or were, being finished before it is stopped.
    pub(super) drain: Option<Drain>,
    pub(super) record: Option<InstanceRecord>,
    pub(super) source: Source,
    pub(super) fate: Fate,
    /// The spawn that was sent last was one that had been sent before.
    pub(super) again: bool,
    /// What was last said about a permit, and to which generation; `None`: an
    /// earlier run may have said anything.
    pub(super) permit: Option<(Generation, bool)>,
    pub(super) stopping: Option<Generation>,
    /// Spawns up to this one have nothing kept for a successor: their stop said that
    /// there will be none. Not remembered: a stop of what has ended does no harm.
    pub(super) let_go: Generation,
    pub(super) forgetting: bool,
    pub(super) retry: Retry,
    pub(super) grant: Grant,
    /// The resource-controller may hold a reservation for it.
    pub(super) reserved: bool,
    /// The resource-controller has been told of it in its present life.
    pub(super) registered: bool,
    /// It is being given back.
    pub(super) releasing: bool,
    pub(super) probing: Probing,
    /// It was ready before this run of the supervisor.
    pub(super) adopted: bool,
    /// When it will have run stably for long enough.
    pub(super) stable_at: Option<Duration>,
    pub(super) phase: Phase,
    /// What happened last, for the next published status.
    pub(super) why: Option<String>,
    /// The message that led to it.
    pub(super) cause: Option<Uuid>,
    /// What was last written down and said.
    pub(super) saved: Option<SavedInstance>,
    pub(super) published: Option<InstanceStatus>,
    /// As its neighbours last saw it.
    pub(super) visible: Option<Visible>,
    /// When it is to be looked at again.
    pub(super) wake: Option<Duration>,
}

impl Instance {
    /// From what was remembered; [`SavedInstance::new`] for a new one.
    pub(super) fn new(row: &SavedInstance, now: Now, config: Option<&ServiceConfig>) -> Self {
        let longest = config.map_or(Duration::from_secs(60), |config| {
            config.restart_policy.max_backoff
        });
        Self {
            name: row.instance.clone(),
            surplus: false,
            home: row.manager.clone(),
            left: None,
            recall: None,
            generation: row.generation,
            ended: row.ended,
            asked: row.asked,
            ready_seen: row.ready,
            presumed: None,
            told_end: Generation::default(),
            told_by: row.manager.clone(),
            restarts: Restarts {
                attempts: row.attempts,
                step: row.step,
                total: row.restarts,
                circuit: row.circuit,
                opened: row.opened_at.map(|unix_ns| Now {
                    mono: now
                        .mono
                        .saturating_sub(Duration::from_nanos(now.unix_ns.saturating_sub(unix_ns))),
                    unix_ns,
                }),
                // Jitter can make a wait half as long again at most as is sensible.
                due: row
                    .restart_at
                    .map(|unix_ns| now.at_unix(unix_ns, longest.saturating_mul(2))),
                slot: false,
            },
            spent: row.spent,
            completed: row.completed,
            last_exit: row.last_exit.clone(),
            last_error: row.last_error.clone(),
            earlier: Generation::default(),
            rebooted: false,
            start_failed: false,
            refused: None,
            bounce: row.bounce,
            roll: row.roll,
            roll_broken: None,
            roll_answers: false,
            drain: None,
            record: None,
            source: Source::Stream,
            fate: Fate::Unknown,
            again: false,
            permit: None,
            stopping: None,
            let_go: Generation::default(),
            forgetting: false,
            retry: Retry::default(),
            grant: Grant::Unasked,
            reserved: false,
            registered: false,
            releasing: false,
            probing: Probing::default(),
            adopted: false,
            stable_at: None,
            phase: Phase::Idle,
            why: None,
            cause: None,
            saved: (row.generation > Generation::default()).then(|| row.clone()),
            published: None,
            visible: None,
            wake: None,
        }
    }

    /// What is to be remembered of it.
    pub(super) fn to_saved(&self) -> SavedInstance {
        SavedInstance {
            instance: self.name.clone(),
            manager: self.home.clone(),
            generation: self.generation,
            ended: self.ended,
            asked: self.asked,
            bounce: self.bounce,
            roll: self.roll,
            ready: self.ready_seen,
            attempts: self.restarts.attempts,
            step: self.restarts.step,
            restarts: self.restarts.total,
            circuit: self.restarts.circuit,
            opened_at: self.restarts.opened.map(|at| at.unix_ns),
            restart_at: self.restarts.due.map(|at| at.unix_ns),
            spent: self.spent,
            completed: self.completed,
            last_exit: self.last_exit.clone(),
            last_error: self.last_error.clone(),
        }
    }

    /// Whether there is a process.
    pub(super) fn life(&self) -> Life {
        if let Some(record) = &self.record
            && record.state.is_live()
        {
            return Life::Live(record.state.name(), record.generation);
        }
        if self.generation > self.ended {
            Life::Sent(self.fate)
        } else {
            Life::None
        }
    }

    /// Whether nothing of it can be running.
    pub(super) fn is_gone(&self) -> bool {
        self.life() == Life::None
    }

    /// The spawn that lives, or may.
    pub(super) fn current(&self) -> Option<Generation> {
        match self.life() {
            Life::Live(_, generation) => Some(generation),
            Life::Sent(_) => Some(self.generation),
            Life::None => None,
        }
    }

    /// Whether a restart still waits for its process to end.
    pub(super) fn bouncing(&self) -> bool {
        self.current().is_some_and(|current| current <= self.bounce)
    }

    /// Whether a rolling restart has not come to it yet, or is just replacing it.
    pub(super) fn rolling(&self) -> bool {
        self.current().is_some_and(|current| current <= self.roll)
    }

    /// Whether its process runs (it is not being started or stopped).
    pub(super) fn is_running(&self) -> bool {
        matches!(self.life(), Life::Live(StateName::Running, _))
    }

    /// The process-manager that has it, or else the one that would start it next.
    pub(super) fn place<'a>(&'a self, planned: Option<&'a ManagerId>) -> &'a ManagerId {
        match planned {
            Some(planned) if self.is_gone() => planned,
            _ => &self.home,
        }
    }

    /// Everything at once, for the world.
    pub(super) fn status(
        &self,
        desired: Desired,
        probes: &Probes,
        planned: Option<&ManagerId>,
    ) -> InstanceStatus {
        let record = self.record.as_ref();
        let live = record.filter(|record| record.state.is_live());
        let running = record.filter(|record| record.state.name() == StateName::Running);
        let started_at = live.and_then(|record| match record.state {
            blackhole_bus_schema::process::ProcessState::Running { started_at, .. }
            | blackhole_bus_schema::process::ProcessState::Stopping { started_at, .. } => {
                Some(started_at)
            }
            _ => None,
        });
        let said = self.said().map(str::to_owned);
        let moves = running
            .and(planned)
            .filter(|planned| **planned != self.home)
            .map(|planned| {
                let to = Component::ProcessManager(planned.clone());
                format!("moves to {to} when it is restarted")
            });
        let draining = (self.draining() && self.phase == Phase::Stopping)
            .then(|| "draining: finishes its calls before it is stopped".to_owned());
        InstanceStatus {
            service: self.name.service().clone(),
            instance: self.name.clone(),
            desired,
            state: record.map(|record| record.state.name()),
            phase: self.phase.clone(),
            manager: self.place(planned).clone(),
            generation: self.generation,
            pid: live.and_then(|record| record.state.pid()),
            started_at,
            restarts: self.restarts.total,
            health: running.map_or(Health::Unknown, |_| self.probing.health(probes)),
            detail: draining
                .or_else(|| running.and_then(|_| self.probing.detail().map(str::to_owned)))
                .or(said)
                .or(moves),
            circuit: self.restarts.circuit,
            last_exit: self.last_exit.clone(),
            last_error: self.last_error.clone(),
            limits: self.limits(),
            completed: self.completed,
        }
    }

    /// What it says of itself while it runs: `STATUS=` of sd_notify(3).
    pub(super) fn said(&self) -> Option<&str> {
        let running = |record: &&InstanceRecord| record.state.name() == StateName::Running;
        self.record
            .as_ref()
            .filter(running)?
            .notify
            .status
            .as_deref()
    }

    /// The limits that hold for its process, or would for the next one.
    fn limits(&self) -> Option<Vec<blackhole_bus_schema::limits::LimitReport>> {
        let granted = match &self.grant {
            Grant::Granted(grant) => Some(grant.report.clone()),
            _ => None,
        };
        match &self.record {
            // A process that was started without limits stays without them,
            // whatever is granted for the next one.
            Some(record) if record.state.is_live() => record
                .grant
                .as_ref()
                .map(|grant| granted.unwrap_or_else(|| grant.report.clone())),
            _ => granted,
        }
    }
}
