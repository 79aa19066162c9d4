//! A restart by permit: the shim starts the successor itself, at once, with
//! nobody asked. Between the end of the one before and the exec of the next
//! stands only what must: that nothing of the one before is left. Its last
//! output, its record and the word to the watchers come afterwards.

use std::path::Path;
use std::time::{Duration, Instant};

use blackhole_bus_schema::config::STANDBY_PIDS;
use blackhole_bus_schema::dirs::unix_now_ns;
use blackhole_bus_schema::limits::LimitKind;
use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::process::{
    ExitRecord, ExitStatus, ReloadAction, SpawnFailure, SpawnStep,
};

use rustix::process::Pid;

use super::Service;
use super::turns::Turn;
use crate::shim::cgroups;
use crate::shim::exec::monotonic_ns;
use crate::shim::hook;
use crate::shim::logs::Pipes;
use crate::shim::notify::Notify;
use crate::shim::prepare::{self, Successor, note_record};
use crate::shim::protocol::{ShimMessage, ShimPermit, Started};
use crate::shim::standby::StandBy;
use crate::shim::{record, start, tree};

/// How long after a start its successor is made ready: a start of many has
/// better to do. One that fails before has its successor made then.
const AHEAD: Duration = Duration::from_millis(500);

/// One restart that may be made.
#[derive(Debug)]
pub(super) struct Permitted {
    permit: ShimPermit,
    /// Made ready.
    successor: Option<Ahead>,
}

/// A successor that was made ready.
#[derive(Debug)]
enum Ahead {
    /// In its cgroups, waiting for the word; the ends of its pipes.
    Waiting(StandBy, Pipes),
    /// No process: only what it takes to make one.
    Planned(Box<Successor>),
}

impl Permitted {
    /// The process that waits, where there is one.
    fn waiting(&self) -> Option<Pid> {
        match &self.successor {
            Some(Ahead::Waiting(standby, _)) => standby.pid(),
            _ => None,
        }
    }
}

/// The hook before a start by permit.
#[derive(Debug)]
pub(super) struct Before {
    /// When that start was begun, in monotonic nanoseconds.
    begun: u64,
    /// How the hook ended: what went wrong, where something did.
    ended: Option<Result<(), String>>,
}

/// What became of a permit when the service had ended.
#[derive(Debug)]
pub(super) enum Again {
    /// There was none, or not for this end.
    No,
    /// The hook before the successor runs: to be asked again when that has ended.
    Waits,
    /// The successor runs.
    Runs,
    /// It could not be started.
    Failed(ExitRecord, SpawnFailure),
}

impl Service {
    /// A client grants a restart or takes it back.
    pub(super) fn permitted(
        &mut self,
        generation: Generation,
        permit: Option<ShimPermit>,
    ) -> Result<(), String> {
        let own = self.request.generation;
        if generation != own {
            return Err(format!("generation {own} lives, not {generation}"));
        }
        if let Some(permit) = &permit {
            if permit.permit.generation <= own {
                let next = permit.permit.generation;
                return Err(format!("generation {next} cannot follow {own}"));
            }
            if self.stopping.is_some() || self.end.is_some() {
                return Err("it is ending".to_owned());
            }
        }
        self.permit(permit);
        Ok(())
    }

    /// Sets or clears the permit. A successor that was made ready goes.
    pub(super) fn permit(&mut self, permit: Option<ShimPermit>) {
        self.drop_successor();
        self.successor_due = None;
        self.permit = permit.map(|permit| Permitted {
            permit,
            successor: None,
        });
        if self.permit.is_some() {
            self.successor_due = Instant::now().checked_add(AHEAD);
            if self.request.spec.is_empty()
                && let Ok(Some(record)) = record::read_record(&self.request.instance_dir)
            {
                self.request.spec = record.spec;
            }
        } else {
            self.kill_hooks(Turn::BeforeStart);
            self.forget_secrets();
        }
    }

    /// The environment goes where nobody needs it any more: secrets are among it.
    fn forget_secrets(&mut self) {
        let settings = &self.request.settings;
        let command = matches!(
            settings.reload.as_ref().map(|reload| &reload.action),
            Some(ReloadAction::Command(_))
        );
        if settings.hooks.is_empty() && !command {
            self.request.env.clear();
        }
    }

    /// What a successor finds has changed: one that was made ready is made again.
    pub(super) fn anew(&mut self) {
        if self.permit.is_some() {
            self.drop_successor();
            self.successor_due = Instant::now().checked_add(AHEAD);
        }
    }

    /// Forgets what was made ready, with its cgroup.
    pub(super) fn drop_successor(&mut self) {
        let Some(permitted) = &mut self.permit else {
            return;
        };
        if let Some(successor) = permitted.successor.take() {
            // A process in it would hold its cgroup.
            drop(successor);
            if let Some(grant) = &self.request.grant {
                cgroups::remove_run_groups(grant, permitted.permit.permit.generation);
            }
        }
    }

    /// Makes the successor ready as far as that goes without a process.
    pub(super) fn make_successor(&mut self) {
        self.successor_due = None;
        let Some(mut permitted) = self.permit.take() else {
            return;
        };
        if permitted.successor.is_none() {
            // What does not work now may work then, or is told then.
            permitted.successor = self.ahead(&permitted.permit);
        }
        self.permit = Some(permitted);
    }

    /// A process where there is room for one, else a plan.
    /// Nothing where hooks come first: they may be what it takes to make one.
    fn ahead(&mut self, permit: &ShimPermit) -> Option<Ahead> {
        let hooks = &self.request.settings.hooks;
        if hooks.after_exit.is_some() || hooks.before_start.is_some() {
            return None;
        }
        let planned = self.successor(permit).ok()?;
        let limits = self.request.grant.iter().flat_map(|grant| &grant.report);
        let room = limits
            .filter(|limit| limit.limit == LimitKind::Pids)
            .all(|limit| limit.requested >= u64::from(STANDBY_PIDS));
        if !room || !self.request.settings.standby {
            return Some(Ahead::Planned(Box::new(planned)));
        }
        Some(match StandBy::make(&planned.plan) {
            Ok(standby) => Ahead::Waiting(standby, planned.pipes()),
            Err(_) => Ahead::Planned(Box::new(planned)),
        })
    }

    fn successor(&mut self, permit: &ShimPermit) -> Result<Successor, SpawnFailure> {
        self.as_successor(permit, |this| {
            let notify = this.notify.as_ref().map(Notify::path);
            prepare::successor(&this.request, notify, &mut this.passed)
        })
    }

    /// Does something with the request as it is for the successor.
    fn as_successor<T>(&mut self, permit: &ShimPermit, work: impl FnOnce(&mut Self) -> T) -> T {
        let own = self.request.generation;
        let before = self.request.env.clone();
        self.request.generation = permit.permit.generation;
        self.request.env.extend(permit.env.clone());
        let done = work(self);
        self.request.generation = own;
        self.request.env = before;
        done
    }

    /// Whether the permit is for an end like this one: the service failed by
    /// itself, in time.
    fn may_restart(&self) -> bool {
        let Some(permitted) = &self.permit else {
            return false;
        };
        let failed = match self.end {
            Some(ExitStatus::Exited { code }) => !self.request.success_codes.contains(&code),
            Some(ExitStatus::Signaled { .. }) => true,
            Some(ExitStatus::Unknown) | None => false,
        };
        let expires = permitted.permit.permit.expires_after_ms;
        let in_time = expires.is_none_or(|ms| self.began.elapsed() <= Duration::from_millis(ms));
        // What was begun in time goes on.
        failed && (in_time || self.before.is_some()) && self.stopping.is_none()
    }

    /// Runs the hook before the successor, where there is one, in the environment of that. When
    /// its start was begun, once the hook has ended well; `None` while it runs.
    fn before_start(&mut self, permit: &ShimPermit) -> Result<Option<u64>, SpawnFailure> {
        let Some(hook) = self.request.settings.hooks.before_start.clone() else {
            return Ok(Some(monotonic_ns()));
        };
        if let Some(before) = self.before.take() {
            return match before.ended {
                Some(Ok(())) => Ok(Some(before.begun)),
                Some(Err(problem)) => Err(hook::not_passed(&problem)),
                None => {
                    self.before = Some(before);
                    Ok(None)
                }
            };
        }
        let begun = monotonic_ns();
        self.note_end();
        let step = SpawnStep::PrepareEnvironment;
        let output = self.output.writers().map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(0);
            hook::named(prepare::failure(step, "make a pipe", errno, ""))
        })?;
        let (name, more) = ("before_start", Vec::new());
        let running = self.as_successor(permit, |this| {
            hook::Running::start(&this.request, &hook, name, more, 0, output)
        });
        self.hooks
            .push((Turn::BeforeStart, running.map_err(hook::named)?));
        self.before = Some(Before { begun, ended: None });
        Ok(None)
    }

    /// The hook before the successor has ended.
    pub(super) fn may_start(&mut self, problem: Option<String>) {
        if let Some(before) = &mut self.before {
            before.ended = Some(problem.map_or(Ok(()), Err));
        }
    }

    /// Starts the successor, where that is permitted. Nothing of the service is
    /// left when this is called.
    pub(super) fn restart(&mut self) -> Again {
        if !self.may_restart() {
            return Again::No;
        }
        let ended_at = unix_now_ns();
        self.kill_strangers();
        let Some(Permitted { permit, successor }) = self.permit.take() else {
            return Again::No;
        };
        let begun = match self.before_start(&permit) {
            Ok(Some(begun)) => Ok(begun),
            Ok(None) => {
                self.permit = Some(Permitted { permit, successor });
                return Again::Waits;
            }
            Err(failure) => Err(failure),
        };
        self.successor_due = None;
        if let Some(notify) = &mut self.notify {
            // Before the successor can say anything.
            notify.reset();
        }
        let (waiting, planned) = match successor {
            Some(Ahead::Waiting(standby, output)) => (Some((standby, output)), None),
            Some(Ahead::Planned(planned)) => (None, Some(*planned)),
            None => (None, None),
        };
        let outcome = begun.and_then(|begun| {
            let ran = waiting.and_then(|(standby, output)| {
                let (pid, started) = start::by_standby(&self.request, standby, begun)?;
                Some((pid, started, output))
            });
            match ran {
                Some(ran) => Ok(ran),
                None => self.restart_by(&permit, planned, begun),
            }
        });
        // It runs; from here on nobody waits.
        let oom = self.oom_kills();
        let exit = match self.exit.take() {
            // It is known since the hooks began, and what they have written comes after it.
            Some(exit) => {
                self.output.finish();
                exit
            }
            None => {
                self.output.finish_before(ended_at);
                self.exit_record(ended_at, oom)
            }
        };
        let before = self.request.generation;
        self.request.generation = permit.permit.generation;
        self.request.env.extend(permit.env);
        self.restarts += 1;
        let (pid, started, pipes) = match outcome {
            Ok(outcome) => outcome,
            Err(failure) => return Again::Failed(exit, failure),
        };
        if let Some(grant) = &self.request.grant {
            cgroups::clear_run_groups(grant, before);
        }
        let written = self.held.record.restarted(
            &exit,
            &self.request,
            &self.boot_id,
            self.restarts,
            Ok(&started),
        );
        self.recorded(written);
        self.output.follow(pipes);
        (self.notify_due, self.notify_told) = (None, None);
        (self.pid, self.end, self.began) = (pid, None, Instant::now());
        (self.main, self.first_end, self.hooks_run) = (None, None, 0);
        self.reloaded(Err("it was started again".to_owned()));
        (self.told_stopping, self.killed_leftovers) = (false, 0);
        self.oom_before = oom;
        self.previous_exit = Some(exit.clone());
        self.started = started.clone();
        // Used up, and with it what only a permit needs.
        self.permit(None);
        self.settle_later();
        self.tell(&ShimMessage::Restarted {
            exit,
            generation: self.request.generation,
            started,
            restarts: self.restarts,
        });
        self.begin_hook(Turn::AfterStart);
        Again::Runs
    }

    /// Starts the successor by a process that is made now.
    fn restart_by(
        &mut self,
        permit: &ShimPermit,
        planned: Option<Successor>,
        begun: u64,
    ) -> Result<(Pid, Started, Pipes), SpawnFailure> {
        let planned = match planned {
            Some(planned) => planned,
            None => self.successor(permit)?,
        };
        let (request, plan) = (&self.request, &planned.plan);
        let ran = start::run(request, plan, &planned.who, begun, Vec::new());
        ran.map(|(pid, started)| (pid, started, planned.pipes()))
    }

    /// Nothing below the shim is left of the one before, but others may have been
    /// put into its cgroups: a probe in the service's own context. Those in a group that the
    /// successor does not share are looked for when that runs.
    fn kill_strangers(&mut self) {
        let Some(grant) = &self.request.grant else {
            return;
        };
        let apart = cgroups::has_run_group(grant, self.request.generation);
        let Some(freezer) = grant.freezer_cgroup.as_ref().filter(|_| !apart) else {
            return;
        };
        let successor = self.permit.as_ref().and_then(Permitted::waiting);
        if !tree::is_empty(Path::new(freezer), successor) {
            self.kill_all();
        }
    }

    /// The end of a shim whose successor could not be started.
    pub(super) fn not_restarted(mut self: Box<Self>, exit: ExitRecord, failure: SpawnFailure) {
        if let Some(grant) = &self.request.grant {
            tree::kill_cgroups(grant);
            cgroups::remove_all_run_groups(grant);
        }
        let written = self.held.record.restarted(
            &exit,
            &self.request,
            &self.boot_id,
            self.restarts,
            Err(&failure),
        );
        note_record(&mut self.loss, written);
        crate::shim::remove_sockets(&self.request.socket);
        let keeper = self.passed.keep(&self.request.socket);
        self.held.lock.leave();
        let message = ShimMessage::NotRestarted {
            exit,
            generation: self.request.generation,
            failure,
        };
        for mut client in self.connections {
            client.send(&message);
        }
        if let Some(keeper) = keeper {
            drop((self.output, self.listener));
            keeper.run(&self.signals);
        }
    }
}
