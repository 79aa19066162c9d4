//! What the main task is told by the tasks that wait for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use blackhole_bus_schema::dirs::{Dirs, unix_now_ns};
use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::process::{
    ExitRecord, ExitResult, ExitStatus, Failure, NotifyState, ProcessState, SpawnFailure,
    SpawnSpec, SpawnStep, StepTime,
};
use tokio::sync::mpsc;

use super::{Held, Manager};
use crate::adopt::{self, Aftermath, Known, Later};
use crate::host;
use crate::launch::{Launch, nanoseconds};
use crate::probe::schedule::{Outcome, RunId};
use crate::shim::client::{self, Attached, ShimEvent, ShimEvents, ShimHandle, ShimPhase, Started};
use crate::table::{Action, Launched};

/// Waits between two attempts to reach a shim that did not greet: the first,
/// doubled up to the last.
const REATTACH: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Something that has happened.
pub(super) enum Fact {
    /// A launch has come to its end.
    Launch {
        name: InstanceName,
        generation: Generation,
        spec: Arc<SpawnSpec>,
        launch: Launch,
    },
    /// A shim said something.
    Shim {
        name: InstanceName,
        generation: Generation,
        event: ShimEvent,
    },
    /// A shim vanished, and what it left behind was killed.
    Lost {
        name: InstanceName,
        generation: Generation,
        after: Option<Box<Aftermath>>,
    },
    /// A shim that did not greet at the adoption has answered.
    Reattached {
        name: InstanceName,
        generation: Generation,
        attached: Box<Attached>,
    },
    /// A probe has an outcome.
    Probe { run: RunId, outcome: Outcome },
    /// How it is with the fork server; `None` is well.
    ForkServer { problem: Option<String> },
}

/// Hands on what a shim says, until its last word.
pub(super) async fn listen(
    name: InstanceName,
    mut generation: Generation,
    mut events: ShimEvents,
    facts: mpsc::Sender<Fact>,
) {
    while let Some(event) = events.next().await {
        let next = match &event {
            ShimEvent::Status(status) => status.generation,
            ShimEvent::Restarted { generation, .. } => *generation,
            _ => generation,
        };
        let fact = Fact::Shim {
            name: name.clone(),
            generation,
            event,
        };
        if facts.send(fact).await.is_err() {
            return;
        }
        generation = next;
    }
}

/// Waits for a shim that does not answer: until it does, which is told, or for
/// its end, and then tells what became of its instance.
pub(super) async fn await_shim(
    dirs: Dirs,
    name: InstanceName,
    known: Known,
    facts: mpsc::Sender<Fact>,
) {
    let folder = dirs.instance(&name);
    let generation = known.generation;
    // Both cancel safe: an attempt that is dropped closes its connection.
    tokio::select! {
        () = adopt::shim_gone(&folder) => settle(dirs, name, known, facts).await,
        attached = reattach(&dirs, &name, generation) => {
            let attached = Box::new(attached);
            let _ = facts.send(Fact::Reattached { name, generation, attached }).await;
        }
    }
}

/// Tries to reach a shim until it answers. Meanwhile it may have used its permit:
/// then it tells of a later generation.
async fn reattach(dirs: &Dirs, name: &InstanceName, generation: Generation) -> Attached {
    let mut wait = REATTACH.0;
    loop {
        // No event tells that a process answers again.
        tokio::time::sleep(wait).await;
        if let Ok(attached) = client::attach(dirs, name).await
            && attached.status.generation >= generation
        {
            return attached;
        }
        wait = (wait * 2).min(REATTACH.1);
    }
}

/// Kills an instance whose shim does not answer, and the shim.
pub(super) async fn take_down(dirs: Dirs, name: InstanceName, generation: Generation) {
    let folder = dirs.instance(&name);
    // The one who waits for the shim's end tells the rest.
    let killed = tokio::task::spawn_blocking(move || adopt::kill_shim(&folder)).await;
    if let Ok(Err(error)) = killed {
        tracing::error!(instance = %name, generation = generation.0, %error, "its shim cannot be killed");
    }
}

/// What became of an instance that no shim holds any more.
pub(super) async fn settle(
    dirs: Dirs,
    name: InstanceName,
    known: Known,
    facts: mpsc::Sender<Fact>,
) {
    let folder = dirs.instance(&name);
    let generation = known.generation;
    let settled = tokio::task::spawn_blocking(move || adopt::after_shim(&folder, &known)).await;
    let after = settled.ok().map(Box::new);
    let _ = facts
        .send(Fact::Lost {
            name,
            generation,
            after,
        })
        .await;
}

impl Manager {
    /// Takes in one fact.
    pub(super) async fn take_in(&mut self, fact: Fact) {
        match fact {
            Fact::Launch {
                name,
                generation,
                spec,
                launch,
            } => {
                self.launched(name, generation, spec, launch).await;
            }
            Fact::Shim {
                name,
                generation,
                event,
            } => self.shim(name, generation, event).await,
            Fact::Lost {
                name,
                generation,
                after,
            } => self.lost(&name, generation, after).await,
            Fact::Reattached {
                name,
                generation,
                attached,
            } => self.reattached(name, generation, *attached).await,
            Fact::Probe { run, outcome } => {
                self.probes.remove(&run);
                let result = self.schedule.finished(Instant::now(), run, outcome);
                self.publish_results(result).await;
            }
            Fact::ForkServer { problem } => match problem {
                Some(problem) => self.notes.set("fork-server", problem),
                None => self.notes.clear("fork-server"),
            },
        }
    }

    /// A shim that could not be reached is held like any other from here on.
    async fn reattached(&mut self, name: InstanceName, generation: Generation, attached: Attached) {
        let held = self.held.get_mut(&name);
        // A stop and the one who waits may both have reached it: the first counts.
        let Some(held) = held.filter(|held| held.generation == generation && held.handle.is_none())
        else {
            return;
        };
        tracing::info!(instance = %name, "its shim answers again");
        let Attached {
            status,
            handle,
            events,
        } = attached;
        held.handle = Some(handle);
        let (now, facts) = (status.generation, self.facts.clone());
        tokio::spawn(listen(name.clone(), now, events, facts));
        let status = ShimEvent::Status(Box::new(status));
        self.shim(name, generation, status).await;
    }

    async fn launched(
        &mut self,
        name: InstanceName,
        generation: Generation,
        spec: Arc<SpawnSpec>,
        launch: Launch,
    ) {
        if self
            .launches
            .get(&name)
            .is_some_and(|(known, _)| *known == generation)
        {
            self.launches.remove(&name);
        }
        let actions = match launch {
            Launch::Running {
                started,
                handle,
                events,
                answered,
            } => {
                for warning in &started.warnings {
                    tracing::warn!(instance = %name, warning, "start");
                }
                self.register(&name, generation, started, (handle, events), spec, answered)
            }
            Launch::Failed(failure) => {
                tracing::warn!(instance = %name, %failure, "not started");
                self.table.not_launched(&name, generation, Some(failure))
            }
            Launch::Cancelled => self.table.not_launched(&name, generation, None),
        };
        self.carry_out(actions).await;
    }

    /// The last two steps of a spawn: taking it into the books, and a first look.
    fn register(
        &mut self,
        name: &InstanceName,
        generation: Generation,
        started: Started,
        shim: (ShimHandle, ShimEvents),
        spec: Arc<SpawnSpec>,
        answered: Instant,
    ) -> Vec<crate::table::Action> {
        let (pid, started_at) = (started.pid, started.started_at);
        let (ticks, mut steps) = (started.start_ticks, started.steps.clone());
        self.hold(name, generation, started, Some(shim), Some(spec));
        let registered = Instant::now();
        let took = |step, took| StepTime {
            step,
            took_ns: nanoseconds(took),
        };
        steps.push(took(SpawnStep::Register, registered - answered));
        if !host::runs(pid, ticks) {
            // It has ended already; how, its shim is about to tell.
            tracing::debug!(instance = %name, process.pid = pid, "ended at once");
        }
        steps.push(took(SpawnStep::HealthCheck, registered.elapsed()));
        self.table.launched(
            name,
            generation,
            Launched {
                pid,
                started_at,
                steps,
            },
        )
    }

    async fn shim(&mut self, name: InstanceName, generation: Generation, event: ShimEvent) {
        let actions = match event {
            ShimEvent::Status(status) => {
                let mut actions = Vec::new();
                let mut generation = generation;
                if status.generation > generation {
                    // It was restarted while nobody listened.
                    let exit = status.previous_exit.clone();
                    let exit = exit.or_else(|| self.unseen_exit(&name, generation));
                    if let Some(exit) = exit {
                        let (next, started) = (status.generation, status.started.clone());
                        actions = self.restarted(&name, exit, next, status.restarts, Ok(started));
                    }
                    generation = status.generation;
                }
                actions.extend(self.notify(&name, generation, status.notify));
                if status.phase == ShimPhase::Stopping {
                    actions.extend(self.stopping(&name, generation));
                }
                self.loss(&name, generation, &status.loss);
                actions
            }
            ShimEvent::Notify(notify) => self.notify(&name, generation, notify),
            ShimEvent::Extended(left_ms) => {
                let left = Duration::from_millis(left_ms);
                self.schedule.extend(Instant::now(), &name, left);
                Vec::new()
            }
            ShimEvent::Loss(loss) => {
                self.loss(&name, generation, &loss);
                Vec::new()
            }
            ShimEvent::Hook { hook, problem } => {
                self.hook(&name, &hook, problem);
                Vec::new()
            }
            ShimEvent::Stopping => self.stopping(&name, generation),
            ShimEvent::Ended => {
                // Nobody is there to be asked, and no verdict is to disturb what follows.
                let probes = self.schedule.remove(&name);
                self.abort(probes);
                // Nor is it there for anybody else, until the next one is.
                self.table.stopping(&name, generation)
            }
            ShimEvent::Restarted {
                exit,
                generation,
                started,
                restarts,
            } => self.restarted(&name, exit, generation, restarts, Ok(started)),
            ShimEvent::NotRestarted {
                exit,
                generation,
                failure,
            } => self.restarted(&name, exit, generation, 1, Err(failure)),
            ShimEvent::Exited { exit, loss } if !self.left_behind(&name) => {
                self.loss(&name, generation, &loss);
                self.table.ended(&name, generation, exit)
            }
            // Also where the shim was lost after it had seen the end: in a hook.
            ShimEvent::Exited { .. } | ShimEvent::Gone => {
                let held = self.held.get(&name);
                let started = held
                    .filter(|held| held.generation == generation)
                    .map(|held| held.started.clone());
                if let Some(started) = started {
                    let known = self.known(&name, generation, started);
                    let (dirs, facts) = (self.dirs.clone(), self.facts.clone());
                    tokio::spawn(settle(dirs, name, known, facts));
                }
                Vec::new()
            }
        };
        self.carry_out(actions).await;
    }

    fn left_behind(&self, name: &InstanceName) -> bool {
        adopt::left_behind(&self.dirs.instance(name))
    }

    /// A shim used its permit: the books go on with the next generation.
    /// `restarts` counts the permits used since the spawn.
    fn restarted(
        &mut self,
        name: &InstanceName,
        exit: ExitRecord,
        generation: Generation,
        restarts: u32,
        outcome: Result<Started, SpawnFailure>,
    ) -> Vec<crate::table::Action> {
        tracing::info!(
            instance = %name,
            from = exit.generation.0,
            generation = generation.0,
            exit = %exit.status,
            "restarted by permit"
        );
        let held = self.held.remove(name);
        // Permits used between two generations: they rise one by one.
        let used = generation.0.saturating_sub(exit.generation.0).max(1);
        let known = self.table.record(name).map_or(0, |record| record.restarts);
        let total = known.saturating_add(u32::try_from(used).unwrap_or(restarts));
        let launched = outcome.map(|started| {
            let launched = Launched {
                pid: started.pid,
                started_at: started.started_at,
                steps: started.steps.clone(),
            };
            (started, launched)
        });
        let (started, launched) = match launched {
            Ok((started, launched)) => (Some(started), Ok(launched)),
            Err(failure) => (None, Err(failure)),
        };
        let spec = held.as_ref().and_then(|held| held.spec.clone());
        let mut actions = self
            .table
            .restarted(name, &exit, generation, total, launched);
        if let (Some(held), Some(started)) = (held, started) {
            let spec = spec.map(|spec| {
                Arc::new(SpawnSpec {
                    generation,
                    restarts: total,
                    permit: None,
                    ..(*spec).clone()
                })
            });
            // Whoever is told that the one before is over must not take this one away.
            actions.retain(|action| !matches!(action, Action::Over { .. }));
            let probes = self.schedule.remove(name);
            self.abort(probes);
            self.held.insert(
                name.clone(),
                Held {
                    generation,
                    started,
                    handle: held.handle,
                    spec,
                },
            );
            self.tell(name, exit.generation);
        }
        actions
    }

    /// A shim used its permit, unseen, and what it led to has ended in `state`.
    fn went_on(
        &mut self,
        name: &InstanceName,
        generation: Generation,
        later: &Later,
        state: &ProcessState,
    ) -> Vec<Action> {
        let before = later.before.clone();
        let before = before.filter(|exit| exit.generation == generation);
        let Some(exit) = before.or_else(|| self.unseen_exit(name, generation)) else {
            return Vec::new();
        };
        let outcome = match (&later.started, state) {
            (
                _,
                ProcessState::Failed {
                    failure: Failure::Spawn { failure },
                },
            ) => Err(failure.clone()),
            (Some(started), _) => Ok(started.clone()),
            (None, _) => return Vec::new(),
        };
        self.restarted(name, exit, later.generation, later.restarts, outcome)
    }

    /// The end of a generation that nobody saw.
    fn unseen_exit(&self, name: &InstanceName, generation: Generation) -> Option<ExitRecord> {
        let held = self.held.get(name)?;
        (held.generation == generation).then(|| ExitRecord {
            generation,
            pid: held.started.pid,
            status: ExitStatus::Unknown,
            result: ExitResult::Signal,
            started_at: held.started.started_at,
            ended_at: unix_now_ns(),
            killed_leftovers: 0,
        })
    }

    fn notify(
        &mut self,
        name: &InstanceName,
        generation: Generation,
        notify: NotifyState,
    ) -> Vec<crate::table::Action> {
        let told = |notify: &NotifyState| NotifyState {
            watchdog_age_ms: None,
            ..notify.clone()
        };
        let known = self.table.record(name).map(|record| told(&record.notify));
        // A ping of the watchdog changes nothing that anybody was told.
        if known == Some(told(&notify)) {
            return Vec::new();
        }
        self.table.notified(name, generation, notify)
    }

    /// The shim says "stopping" both when somebody else (break-glass) asked it
    /// to end its service, and when the service has ended by itself and its
    /// rest is being killed. Only the first is a state: the second passes with
    /// the end, which tells whether it was a failure.
    fn stopping(
        &mut self,
        name: &InstanceName,
        generation: Generation,
    ) -> Vec<crate::table::Action> {
        let held = self
            .held
            .get(name)
            .filter(|held| held.generation == generation);
        // One that has named another main process may have ended.
        let record = self.table.record(name);
        let other = record.is_some_and(|record| record.notify.main_pid.is_some());
        let runs = |held: &Held| other || host::runs(held.started.pid, held.started.start_ticks);
        match held.is_some_and(runs) {
            true => self.table.stopping(name, generation),
            false => Vec::new(),
        }
    }

    /// What is known here of a process, for when its record does not tell.
    pub(super) fn known(
        &self,
        name: &InstanceName,
        generation: Generation,
        started: Started,
    ) -> Known {
        let record = self.table.record(name);
        Known {
            generation,
            started,
            socket: self.dirs.shim_socket(name),
            grant: record
                .filter(|record| record.generation == generation)
                .and_then(|record| record.grant.clone()),
        }
    }

    async fn lost(
        &mut self,
        name: &InstanceName,
        mut generation: Generation,
        after: Option<Box<Aftermath>>,
    ) {
        let (later, state) = match after {
            Some(after) => (after.later, Some(after.state)),
            None => (None, None),
        };
        let held = self.held.get(name);
        if let (Some(later), Some(state), Some(_)) = (
            later,
            &state,
            held.filter(|held| held.generation == generation),
        ) {
            let actions = self.went_on(name, generation, &later, state);
            self.carry_out(actions).await;
            generation = later.generation;
        }
        let recorded = state.as_ref().and_then(ProcessState::exit).cloned();
        let held = self
            .held
            .get(name)
            .filter(|held| held.generation == generation);
        let exit = recorded.or_else(|| {
            // Nobody could look, but what ran is known here.
            held.map(|held| ExitRecord {
                generation,
                pid: held.started.pid,
                status: ExitStatus::Unknown,
                result: ExitResult::ShimLost,
                started_at: held.started.started_at,
                ended_at: unix_now_ns(),
                killed_leftovers: 0,
            })
        });
        if let Some(exit) = exit {
            let actions = self.table.ended(name, generation, exit);
            self.carry_out(actions).await;
        }
    }
}
