//! One instance as several daemons know it, brought together: the
//! process-manager knows its process, the supervisor why it is so, the
//! resource-controller what it uses.

use std::collections::BTreeMap;

use blackhole_bus_schema::health::Health;
use blackhole_bus_schema::limits::{Enforcement, LimitReport};
use blackhole_bus_schema::names::{InstanceName, ManagerName};
use blackhole_bus_schema::process::{
    ExitRecord, ExitResult, ExitStatus, Failure, InstanceRecord, ProcessState, StateName,
};
use blackhole_bus_schema::resource::Usage;
use blackhole_bus_schema::supervision::{Circuit, Desired, InstanceStatus, Phase};
use serde::Serialize;

use crate::human;
use crate::view::waits;

/// One instance. The serialized field names are part of the interface.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServiceRow {
    /// Its service.
    pub service: String,
    /// Its name.
    pub instance: InstanceName,
    /// Its state, where known.
    pub state: Option<StateName>,
    /// Finer detail by the supervisor, `completed` for a one-shot that is through; `None`
    /// without a supervisor.
    pub phase: Option<&'static str>,
    /// Process id, where there is a process.
    pub pid: Option<u32>,
    /// Restarts after failures, since an operator last started, restarted or reset it.
    pub restarts: Option<u32>,
    /// The supervisor's verdict; `None` without probes or without a supervisor.
    pub health: Option<Health>,
    /// Age of its process, in milliseconds.
    pub uptime_ms: Option<u64>,
    /// CPU over the last tick, in percent of one core.
    pub cpu_percent: Option<f64>,
    /// Memory now, in bytes.
    pub memory_bytes: Option<u64>,
    /// Its restart circuit; `None` without a supervisor.
    pub circuit: Option<Circuit>,
    /// How its process last ended.
    pub last_exit: Option<LastExit>,
    /// Whether its successor waits as a process (`standby: true`); `None` without a
    /// process, or where the kernel does not tell.
    pub standby: Option<bool>,
    /// Why it is not as it should be; `None` (left out) when all is well, or nobody wants it to run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The process-manager that has its process and does not answer: what is shown of it
    /// is what was last known. Left out where it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub away: Option<String>,
    /// Its process-manager, where that has a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manager: Option<String>,
    /// Whether its limits hold: `yes`, `partly`, `no`; `None` where none were asked for.
    pub limits: Option<&'static str>,
    /// All that is not in the document, for tables.
    #[serde(skip)]
    pub detail: Detail,
}

/// How a process ended, for documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastExit {
    /// Why: `success`, `exit_code`, `signal`, `oom_kill`, `stopped`, …
    pub result: ExitResult,
    /// Exit code, where it exited by itself.
    pub code: Option<i32>,
    /// Signal number, where one ended it.
    pub signal: Option<i32>,
    /// When, RFC 3339 in UTC.
    pub ended_at: String,
}

/// What tables and problem lines need besides the document's fields.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Detail {
    /// The supervisor's phase, with its data.
    pub phase: Option<Phase>,
    /// It is a one-shot that is through.
    pub completed: bool,
    /// Restarts in a row are not made.
    pub circuit_open: bool,
    /// Nobody wants it to run, and nothing is done with it: stopped, or not started by itself.
    pub off: bool,
    /// Why the last spawn failed, or another error.
    pub error: Option<String>,
    /// Its latest start failed, before its program ran.
    pub never_ran: bool,
    /// What the failing probe said.
    pub health: Option<String>,
    /// Its limits, as the kernel has them; `None` where none were made.
    pub limits: Option<Vec<LimitReport>>,
    /// Last end, with all its fields.
    pub exit: Option<ExitRecord>,
    /// Log lines that could not be written.
    pub lost_log_lines: u64,
}

/// The answers to be brought together; `None` where a daemon did not answer.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    /// The supervisor's.
    pub status: Option<Vec<InstanceStatus>>,
    /// The process-managers', together.
    pub processes: Option<Vec<InstanceRecord>>,
    /// The resource-controller's.
    pub usage: Option<Vec<Usage>>,
    /// The named process-managers that started instances, as their folders say;
    /// for want of the supervisor's word.
    pub owners: BTreeMap<InstanceName, ManagerName>,
}

/// Brings the answers together, in the order of the instances' names.
/// `now` is Unix time in nanoseconds.
pub fn rows(now: u64, answers: &Answers) -> Vec<ServiceRow> {
    type Parts<'a> = (Option<&'a InstanceStatus>, Option<&'a InstanceRecord>);
    let mut parts: BTreeMap<&InstanceName, Parts<'_>> = BTreeMap::new();
    for status in answers.status.iter().flatten() {
        parts.entry(&status.instance).or_default().0 = Some(status);
    }
    for record in answers.processes.iter().flatten() {
        let known = &mut parts.entry(&record.instance).or_default().1;
        // One that has moved may be remembered where it was.
        if known.is_none_or(|known| known.generation <= record.generation) {
            *known = Some(record);
        }
    }
    let usage: BTreeMap<&InstanceName, &Usage> = answers
        .usage
        .iter()
        .flatten()
        .map(|usage| (&usage.instance, usage))
        .collect();
    let phases = waits::phases(answers.status.as_deref().unwrap_or_default());
    parts
        .into_iter()
        .map(|(instance, (status, record))| {
            let mut row = row(now, instance, status, record, usage.get(instance).copied());
            if let Some(Phase::WaitingForDependency { on }) = &mut row.detail.phase {
                for on in on {
                    *on = waits::current(on, &phases);
                }
            }
            if status.is_none() {
                let owner = answers.owners.get(instance);
                row.manager = owner.map(ToString::to_string);
            }
            row
        })
        .collect()
}

fn row(
    now: u64,
    instance: &InstanceName,
    status: Option<&InstanceStatus>,
    record: Option<&InstanceRecord>,
    usage: Option<&Usage>,
) -> ServiceRow {
    // The process-manager has the truth about the process, except about a
    // spawn that the supervisor has decided and the manager not heard of yet.
    let record =
        record.filter(|record| status.is_none_or(|status| record.generation >= status.generation));
    let (state, pid, started_at) = match record {
        Some(record) => (
            Some(record.state.name()),
            record.state.pid(),
            started_at(&record.state),
        ),
        None => match status {
            Some(status) => (status.state, status.pid, status.started_at),
            None => (None, None, None),
        },
    };
    let exit = latest(
        record.and_then(|record| record.state.exit()),
        status.and_then(|status| status.last_exit.as_ref()),
    );
    let error = status
        .and_then(|status| status.last_error.clone())
        .or_else(|| spawn_error(record));
    let live = matches!(state, Some(StateName::Running | StateName::Stopping));
    let limits = status.and_then(|status| status.limits.clone()).or_else(|| {
        record
            .and_then(|record| record.grant.as_ref())
            .map(|grant| grant.report.clone())
    });
    let usage = usage.filter(|_| live);
    ServiceRow {
        service: instance.service().to_string(),
        instance: instance.clone(),
        state,
        phase: status.map(|status| match (&status.phase, status.completed) {
            (Phase::Idle, true) => status.word(),
            (phase, _) => phase_name(phase),
        }),
        pid,
        restarts: status
            .map(|status| status.restarts)
            .or(record.map(|record| record.restarts)),
        health: status
            .map(|status| status.health)
            .filter(|health| *health != Health::Unknown),
        uptime_ms: started_at
            .filter(|_| live)
            .map(|at| now.saturating_sub(at) / 1_000_000),
        cpu_percent: usage
            .and_then(|usage| usage.cpu_percent)
            .map(|value| (value * 10.0).round() / 10.0),
        memory_bytes: usage.and_then(|usage| usage.memory_bytes),
        circuit: status.map(|status| status.circuit),
        last_exit: exit.map(last_exit),
        standby: None,
        why: None,
        away: None,
        manager: status
            .and_then(|status| status.manager.as_ref())
            .map(ToString::to_string),
        limits: limits_word(limits.as_deref()),
        detail: Detail {
            phase: status.map(|status| status.phase.clone()),
            completed: status.is_some_and(|status| status.completed),
            circuit_open: status.is_some_and(|status| status.circuit == Circuit::Open),
            off: status.is_some_and(|status| {
                status.desired == Desired::Down && status.phase == Phase::Idle
            }),
            never_ran: match record {
                Some(record) => spawn_error(Some(record)).is_some(),
                None => state == Some(StateName::Failed) && error.is_some(),
            },
            error,
            health: status.and_then(|status| status.detail.clone()),
            limits,
            exit: exit.cloned(),
            lost_log_lines: record.map_or(0, |record| record.lost_log_lines),
        },
    }
}

fn started_at(state: &ProcessState) -> Option<u64> {
    match state {
        ProcessState::Running { started_at, .. } | ProcessState::Stopping { started_at, .. } => {
            Some(*started_at)
        }
        _ => None,
    }
}

fn spawn_error(record: Option<&InstanceRecord>) -> Option<String> {
    match &record?.state {
        ProcessState::Failed {
            failure: Failure::Spawn { failure },
        } => Some(failure.to_string()),
        ProcessState::Failed {
            failure: Failure::Cancelled,
        } => Some("cancelled before it ran".to_owned()),
        _ => None,
    }
}

fn latest<'a>(
    one: Option<&'a ExitRecord>,
    other: Option<&'a ExitRecord>,
) -> Option<&'a ExitRecord> {
    match (one, other) {
        (Some(one), Some(other)) => Some(if other.ended_at > one.ended_at {
            other
        } else {
            one
        }),
        (one, other) => one.or(other),
    }
}

fn last_exit(exit: &ExitRecord) -> LastExit {
    let (code, signal) = match exit.status {
        ExitStatus::Exited { code } => (Some(code), None),
        ExitStatus::Signaled { signal, .. } => (None, Some(signal)),
        ExitStatus::Unknown => (None, None),
    };
    LastExit {
        result: exit.result,
        code,
        signal,
        ended_at: human::timestamp(exit.ended_at),
    }
}

/// The phase's name in documents.
pub fn phase_name(phase: &Phase) -> &'static str {
    match phase {
        Phase::Idle => "idle",
        Phase::WaitingForDependency { .. } => "waiting_for_dependency",
        Phase::WaitingForComponent { .. } => "waiting_for_component",
        Phase::Preparing => "preparing",
        Phase::Refused { .. } => "refused",
        Phase::Spawning => "spawning",
        Phase::Probing => "probing",
        Phase::Ready => "ready",
        Phase::NotReady => "not_ready",
        Phase::Stopping => "stopping",
        Phase::BackingOff { .. } => "backing_off",
        Phase::CircuitOpen => "circuit_open",
        Phase::GaveUp => "gave_up",
    }
}

/// How a process ended, in a few words: `exit code 1`, `SIGKILL`, `out of memory`.
pub fn exit_words(exit: &ExitRecord) -> String {
    let status = match exit.status {
        ExitStatus::Signaled { signal, .. } => blackhole_bus_schema::process::signal_name(signal)
            .map_or_else(|| format!("signal {signal}"), str::to_owned),
        other => other.to_string(),
    };
    match exit.result {
        ExitResult::Success | ExitResult::ExitCode | ExitResult::Signal => status,
        ExitResult::OomKill => "out of memory".to_owned(),
        ExitResult::Stopped => format!("stopped, {status}"),
        ExitResult::StopTimeout => "stopped, killed after its grace".to_owned(),
        ExitResult::Unhealthy => format!("unhealthy, {status}"),
        ExitResult::ShimLost => "shim lost".to_owned(),
        ExitResult::HostRestarted => "host restarted".to_owned(),
    }
}

/// Whether the limits of an instance hold, in a word: `yes`, `partly`, `no`.
/// `None` where none were asked for.
fn limits_word(limits: Option<&[LimitReport]>) -> Option<&'static str> {
    let limits = limits?;
    if limits.is_empty() {
        return None;
    }
    let enforced = limits
        .iter()
        .filter(|line| line.enforcement == Enforcement::Enforced)
        .count();
    Some(match enforced {
        0 if limits
            .iter()
            .all(|line| matches!(line.enforcement, Enforcement::NotEnforced { .. })) =>
        {
            "no"
        }
        all if all == limits.len() => "yes",
        _ => "partly",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::status::tests::{record, status};
    use blackhole_bus_schema::limits::LimitKind;
    use blackhole_bus_schema::names::Generation;

    #[test]
    fn phase_names_are_those_of_the_bus() {
        let phases = [
            Phase::Idle,
            Phase::WaitingForDependency { on: vec![] },
            Phase::WaitingForComponent {
                component: String::new(),
            },
            Phase::Preparing,
            Phase::Refused {
                reason: String::new(),
            },
            Phase::Spawning,
            Phase::Probing,
            Phase::Ready,
            Phase::NotReady,
            Phase::Stopping,
            Phase::BackingOff {
                attempt: 1,
                until: 1,
            },
            Phase::CircuitOpen,
            Phase::GaveUp,
        ];
        for phase in phases {
            let value = serde_json::to_value(&phase).unwrap();
            assert_eq!(value["phase"], phase_name(&phase));
        }
    }

    #[test]
    fn an_old_record_does_not_hide_a_new_spawn() {
        let mut new = status("web.1", Phase::Spawning);
        new.generation = Generation(8);
        new.state = Some(StateName::Spawn);
        let mut old = record("web.1", ProcessState::Terminated { exit: None });
        old.generation = Generation(7);
        let answers = Answers {
            status: Some(vec![new.clone()]),
            processes: Some(vec![old.clone()]),
            usage: None,
            owners: BTreeMap::new(),
        };
        assert_eq!(rows(0, &answers)[0].state, Some(StateName::Spawn));
        // A restart by permit is ahead of the supervisor: then the record counts.
        old.generation = Generation(9);
        old.state = ProcessState::Running {
            pid: 5,
            started_at: 0,
        };
        let answers = Answers {
            status: Some(vec![new]),
            processes: Some(vec![old]),
            usage: None,
            owners: BTreeMap::new(),
        };
        assert_eq!(rows(0, &answers)[0].pid, Some(5));
    }

    #[test]
    fn the_limits_marker() {
        let line = |enforcement| LimitReport {
            limit: LimitKind::Cpu,
            requested: 10,
            actual: None,
            enforcement,
        };
        let no = || Enforcement::NotEnforced {
            reason: "rootless".into(),
        };
        assert_eq!(limits_word(None), None);
        assert_eq!(limits_word(Some(&[])), None);
        assert_eq!(
            limits_word(Some(&[line(Enforcement::Enforced)])),
            Some("yes")
        );
        assert_eq!(limits_word(Some(&[line(no())])), Some("no"));
        assert_eq!(
            limits_word(Some(&[line(no()), line(Enforcement::Enforced)])),
            Some("partly")
        );
    }
}
