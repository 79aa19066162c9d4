//! The end of a spawn: accounted for exactly once, by its generation.

use std::time::Duration;

use blackhole_bus_schema::config::{RestartMode, ServiceConfig};
use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::process::{
    ExitRecord, ExitResult, Failure, ProcessState, SpawnFailure, SpawnStep,
};
use blackhole_bus_schema::supervision::Circuit;

use super::Core;
use super::deps::Service;
use super::instance::{Fate, Grant, Instance};
use super::io::Now;
use super::random::Random;
use super::restart::{FailureKind, Verdict};
use super::step::seconds;

/// How a spawn came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// It ran and ended.
    Exit(ExitRecord),
    /// It never ran.
    NotStarted(SpawnFailure),
    /// It was stopped before it ran.
    Cancelled,
}

impl End {
    /// How the spawn that a record is about ended; `None` while it lives.
    pub(super) fn of(state: &ProcessState) -> Option<Self> {
        Some(match state {
            ProcessState::Terminated { exit: Some(exit) }
            | ProcessState::Failed {
                failure: Failure::Exit { exit },
            } => Self::Exit(exit.clone()),
            ProcessState::Failed {
                failure: Failure::Spawn { failure },
            } => Self::NotStarted(failure.clone()),
            ProcessState::Failed {
                failure: Failure::Cancelled,
            }
            | ProcessState::Terminated { exit: None } => Self::Cancelled,
            ProcessState::Spawn {}
            | ProcessState::Running { .. }
            | ProcessState::Stopping { .. } => return None,
        })
    }
}

impl Core {
    /// Accounts for the end of a spawn, unless that has been done.
    pub(super) fn ended(
        &mut self,
        now: Now,
        name: &InstanceName,
        generation: Generation,
        end: End,
    ) {
        let Some(instance) = self.instances.get_mut(name) else {
            return;
        };
        let probing = std::mem::take(&mut instance.probing);
        instance.stable_at = None;
        if let End::Exit(exit) = &end {
            instance.last_exit = Some(exit.clone());
        }
        if generation <= instance.ended {
            return;
        }
        instance.ended = generation;
        instance.fate = Fate::Unknown;
        instance.stopping = None;
        instance.drain = None;
        instance.refused = None;
        instance.retry.clear();
        if let End::Exit(exit) = &end
            && exit.result == ExitResult::Unhealthy
        {
            let detail = probing.detail().unwrap_or("its probes failed");
            instance.last_error = Some(format!("unhealthy: {detail}"));
        }
        if let End::NotStarted(failure) = &end {
            instance.last_error = Some(failure.to_string());
            instance.start_failed = true;
            if failure.step == SpawnStep::ApplyLimits {
                // Its cgroup may be gone: have it made again.
                instance.grant = Grant::Unasked;
            }
        }
        let service = self.services.get(name.service());
        let asked = generation <= instance.asked.max(instance.bounce)
            || instance.surplus
            || service.is_none_or(|service| !service.wanted);
        let config = service.and_then(Service::config);
        let what = words(&end);
        if asked {
            instance.restarts.due = None;
            instance.why = Some(format!("stopped: {what}"));
        } else if let Some(config) = config {
            let replaced = generation > instance.roll && generation > instance.ready_seen;
            if instance.roll > Generation::default() && replaced {
                instance.roll_broken = Some(what.clone());
            }
            judge(instance, config, &end, &what, now, &mut self.random);
        }
        self.retry_refused();
    }

    /// Somebody ended: who was refused for want of room may try again.
    pub(super) fn retry_refused(&mut self) {
        for (name, instance) in &mut self.instances {
            if instance.refused.is_some() && instance.retry.at.is_some() {
                instance.retry.at_once();
                self.dirty.insert(name.clone());
            }
        }
    }
}

/// Applies mode and policy to an end that nobody asked for.
fn judge(
    instance: &mut Instance,
    config: &ServiceConfig,
    end: &End,
    what: &str,
    now: Now,
    random: &mut Random,
) {
    let (failure, kind) = match end {
        End::Cancelled => return,
        End::NotStarted(_) => (true, FailureKind::NotStarted),
        // Nobody's fault, and every service of the host is in the same place:
        // begin anew. Also where it ended just before, while the host went down, which
        // cannot be told from a failure.
        End::Exit(exit)
            if exit.result == ExitResult::HostRestarted
                || instance.rebooted && exit.generation <= instance.earlier =>
        {
            instance.restarts.due = None;
            instance.why = Some("the host was restarted".to_owned());
            return;
        }
        // By the command line, `down` or a shim that was told to end, while no supervisor
        // lived: nobody could ask for it here. Who wants it to stay stopped says so to the
        // supervisor. While one lives, an end that it has not asked for is any other, and
        // has its wait and its circuit.
        End::Exit(exit)
            if matches!(exit.result, ExitResult::Stopped | ExitResult::StopTimeout)
                && exit.generation <= instance.earlier =>
        {
            instance.restarts.due = None;
            instance.why = Some(format!("was stopped without the supervisor: {what}"));
            return;
        }
        End::Exit(exit) => (exit.result.is_failure(), FailureKind::Ended),
    };
    if config.oneshot && !failure {
        instance.completed = matches!(end, End::Exit(exit) if exit.result == ExitResult::Success);
        if instance.completed {
            instance.restarts.stable();
            instance.why = Some("completed".to_owned());
            return;
        }
    }
    let again = match config.restart_mode {
        RestartMode::Always => true,
        RestartMode::OnFailure => failure,
        RestartMode::Never => false,
    };
    if !again {
        instance.spent = true;
        let word = if failure { "gave up" } else { "ended" };
        instance.why = Some(format!("{word}, not restarted by its policy: {what}"));
        return;
    }
    let policy = &config.restart_policy;
    if let End::Exit(exit) = end {
        let ran = Duration::from_nanos(exit.ended_at.saturating_sub(exit.started_at));
        let was_ready = instance.ready_seen >= exit.generation;
        if ran >= policy.reset_after && was_ready && exit.result != ExitResult::Unhealthy {
            instance.restarts.stable();
        }
    }
    let trial = instance.restarts.circuit == Circuit::HalfOpen;
    instance.why = Some(match instance.restarts.failed(policy, kind, now, random) {
        Verdict::Again { attempt, wait } => {
            let when = if wait.is_zero() {
                "at once".to_owned()
            } else {
                format!("in {}", seconds(wait))
            };
            format!(
                "restart {attempt} of {} {when}: {what}",
                policy.max_attempts
            )
        }
        Verdict::Opened if trial => format!("circuit stays open, the trial failed: {what}"),
        Verdict::Opened => {
            format!(
                "circuit opened after {} restarts in a row: {what}",
                instance.restarts.attempts
            )
        }
    });
}

/// An end in a few words: `exit code 1`, `out of memory`.
fn words(end: &End) -> String {
    match end {
        End::Cancelled => "cancelled before it ran".to_owned(),
        End::NotStarted(failure) => failure.to_string(),
        End::Exit(exit) => exit_words(exit),
    }
}

/// How a process ended: as [`words`] and, of one that the kernel killed for its memory, as
/// the command line's tables.
pub(super) fn exit_words(exit: &ExitRecord) -> String {
    let verdict = match exit.result {
        ExitResult::Success | ExitResult::ExitCode | ExitResult::Signal => "",
        ExitResult::OomKill => return "out of memory".to_owned(),
        ExitResult::Stopped => ", stopped",
        ExitResult::StopTimeout => ", killed after its grace",
        ExitResult::Unhealthy => ", stopped as unhealthy",
        ExitResult::ShimLost => ", its shim was lost",
        ExitResult::HostRestarted => ", the host was restarted",
    };
    format!("{}{verdict}", exit.status)
}
