//! Carrying out what the table says.

use std::sync::Arc;
use std::time::Duration;

use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::health::ProbeResult;
use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::process::{
    Forget, GrantPermit, Permit, ProcessForgotten, ProcessState, Reload, Signal, SpawnSpec,
};
use blackhole_bus_schema::reply::{Code, Status};
use blackhole_bus_schema::topic::Topic;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::Manager;
use super::facts::{Fact, take_down};
use crate::adopt::note_told;
use crate::host;
use crate::launch::{Cancel, chain};
use crate::probe::check::{self, ExecContext, Subject};
use crate::probe::schedule::{Run, RunId};
use crate::shim::client::{self, ClientError, ShimHandle};
use crate::shim::protocol::StopRequest;
use crate::table::{Action, Ticket};

/// How long after the grace a shim may take to kill what is left, before it is
/// killed itself.
const OVERDUE: Duration = Duration::from_secs(10);

/// How long the note that an end was told waits.
const BEFORE_TELLING: Duration = Duration::from_millis(20);

/// A note on its way to the disk.
pub(super) struct Telling {
    /// Somebody waits for it.
    hurry: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Telling {
    /// Waits until it is written.
    async fn end(self) {
        self.hurry.notify_one();
        let _ = self.task.await;
    }

    /// The same for many.
    pub(super) async fn end_all(all: impl Iterator<Item = Self>) {
        let hurried = all.inspect(|one| one.hurry.notify_one());
        for one in hurried.collect::<Vec<_>>() {
            one.end().await;
        }
    }
}

/// A stop on its way to a shim.
struct Stopping {
    dirs: Dirs,
    name: InstanceName,
    generation: Generation,
    request: StopRequest,
    grace: Option<Duration>,
    /// How long what follows its end may take.
    after: Duration,
}

impl Stopping {
    /// Asks the shim, and kills it with its service when it does not do it in time.
    async fn through(self, handle: ShimHandle) {
        let Self {
            dirs,
            name,
            generation,
            request,
            grace,
            after,
        } = self;
        match handle.stop(request).await {
            Ok(()) => {
                let Some(grace) = grace else { return };
                let overdue = after.saturating_add(OVERDUE);
                let mut within = grace.saturating_add(overdue);
                while timeout(within, handle.closed()).await.is_err() {
                    // The service may have asked its shim for more time.
                    let status = handle.status().await.ok();
                    if let Some(left) = status.and_then(|status| status.kill_in_ms) {
                        within = Duration::from_millis(left).saturating_add(overdue);
                        continue;
                    }
                    tracing::error!(instance = %name, ?grace, "not stopped in time: killing its shim");
                    return take_down(dirs, name, generation).await;
                }
            }
            // Its socket is gone and its connection lost, or it hangs: nobody can ask it any more.
            Err(error @ (ClientError::Unreachable { .. } | ClientError::Mute { .. })) => {
                tracing::error!(instance = %name, error = chain(&error), "stop: killing it");
                take_down(dirs, name, generation).await;
            }
            // When it is gone, that is told by its events.
            Err(error) => {
                tracing::debug!(instance = %name, error = chain(&error), "stop");
            }
        }
    }

    /// The same where the shim could not be reached when it was adopted: it may
    /// answer now, and then its service gets its grace.
    async fn reach(self, facts: mpsc::Sender<Fact>) {
        let (name, generation) = (self.name.clone(), self.generation);
        match client::attach(&self.dirs, &name).await {
            Ok(attached) if attached.status.generation >= generation => {
                let handle = attached.handle.clone();
                let attached = Box::new(attached);
                let fact = Fact::Reattached {
                    name,
                    generation,
                    attached,
                };
                let _ = facts.send(fact).await;
                self.through(handle).await;
            }
            // Its end is told by the one who waits for it.
            Err(ClientError::NoShim { .. }) => {}
            _ => {
                tracing::error!(instance = %name, "stop: its shim does not answer: killing it");
                take_down(self.dirs, name, generation).await;
            }
        }
    }
}

impl Manager {
    /// Carries out actions in their order.
    pub(super) async fn carry_out(&mut self, mut actions: Vec<Action>) {
        // A launch goes before the word of it: that has time until there is more to tell.
        actions.sort_by_key(|action| !matches!(action, Action::Launch { .. }));
        for action in actions {
            match action {
                Action::Publish { message, cause } => {
                    let record = &message.record;
                    tracing::info!(
                        instance = %record.instance,
                        generation = record.generation.0,
                        from = message.from.map(tracing::field::display),
                        to = %record.state.name(),
                        process.pid = record.state.pid(),
                        exit = record.state.exit().map(|exit| tracing::field::display(exit.status)),
                        "state"
                    );
                    let topic = Topic::process(&record.instance);
                    match message.record.state {
                        // Its shim has been asked, and needs the processor more than
                        // those who look on.
                        ProcessState::Spawn { .. } => {
                            self.server.publish_patiently(topic, &*message, cause).await;
                        }
                        _ => self.server.publish(topic, &*message, cause).await,
                    }
                }
                Action::Notified { message, cause } => {
                    let topic = Topic::process(&message.instance);
                    self.server.publish(topic, &message, cause).await;
                    if message.notify.ready {
                        self.ready(&message.instance).await;
                    }
                }
                Action::Launch { spec } => self.launch(spec),
                Action::CancelLaunch {
                    instance,
                    generation,
                } => {
                    let launch = self.launches.get(&instance);
                    if let Some((_, cancel)) = launch.filter(|(known, _)| *known == generation) {
                        cancel.cancel();
                    }
                }
                Action::Stop {
                    instance,
                    generation,
                    request,
                } => {
                    self.stop(&instance, generation, request);
                }
                Action::Signal {
                    ticket,
                    instance,
                    signal,
                } => {
                    self.signal(ticket, &instance, signal).await;
                }
                Action::Reload {
                    ticket,
                    instance,
                    within_ms,
                } => self.reload(ticket, &instance, within_ms).await,
                Action::LetGo { instance } => {
                    let socket = self.dirs.shim_socket(&instance);
                    // A stop is answered when they are closed; nearly always nobody keeps any.
                    if crate::shim::keeps(&socket) {
                        let released = move || crate::shim::release_now(&socket);
                        let _ = tokio::task::spawn_blocking(released).await;
                    }
                }
                Action::Permit {
                    ticket,
                    instance,
                    generation,
                    permit,
                } => self.permit(ticket, &instance, generation, permit).await,
                Action::Erase { ticket, instance } => self.erase(ticket, &instance).await,
                Action::Watch {
                    instance,
                    generation,
                    probes,
                } => {
                    let record = self.table.record(&instance);
                    let ready = record.is_some_and(|record| record.notify.ready);
                    let age = self.age(&instance);
                    let now = std::time::Instant::now();
                    self.schedule.add(now, &instance, generation, &probes, age);
                    if ready {
                        self.ready(&instance).await;
                    }
                }
                Action::Over {
                    instance,
                    generation,
                } => self.over(instance, generation),
                reply @ Action::Reply { .. } => self.answer(reply).await,
            }
        }
    }

    fn launch(&mut self, spec: Box<SpawnSpec>) {
        let (name, generation) = (spec.instance.clone(), spec.generation);
        let cancel = Cancel::default();
        self.launches
            .insert(name.clone(), (generation, cancel.clone()));
        let (launcher, facts) = (self.launcher.clone(), self.facts.clone());
        let spec = Arc::new(*spec);
        tokio::spawn(async move {
            let launch = launcher.launch(spec.clone(), cancel).await;
            let _ = facts
                .send(Fact::Launch {
                    name,
                    generation,
                    spec,
                    launch,
                })
                .await;
        });
    }

    fn stop(&mut self, name: &InstanceName, generation: Generation, request: StopRequest) {
        let Some(held) = self
            .held
            .get(name)
            .filter(|held| held.generation == generation)
        else {
            return;
        };
        let spawned = held.spec.as_ref().map(|spec| spec.stop.grace_ms);
        let asked = request.stop.as_ref().map(|stop| stop.grace_ms);
        let stop = Stopping {
            dirs: self.dirs.clone(),
            name: name.clone(),
            generation,
            request,
            // How the service was started may be unreadable; then its shim alone knows the grace.
            grace: asked.or(spawned).map(Duration::from_millis),
            after: held
                .spec
                .as_ref()
                .and_then(|spec| spec.settings.hooks.after_exit.as_ref())
                .map_or(Duration::ZERO, |hook| {
                    Duration::from_millis(hook.timeout_ms)
                }),
        };
        match held.handle.clone() {
            Some(handle) => tokio::spawn(stop.through(handle)),
            None => tokio::spawn(stop.reach(self.facts.clone())),
        };
    }

    async fn signal(&mut self, ticket: Ticket, name: &InstanceName, signal: i32) {
        let Some(incoming) = self.waiting.remove(&ticket) else {
            return;
        };
        let Some(handle) = self.held.get(name).and_then(|held| held.handle.clone()) else {
            let text = format!("the shim of {name} does not answer");
            return incoming.fail(Status::new(Code::Unavailable, text)).await;
        };
        tokio::spawn(async move {
            let sent = handle.signal(signal).await;
            let result = sent.map_err(|error| Status::new(Code::Unavailable, chain(&error)));
            incoming.reply::<Signal>(result).await;
        });
    }

    /// Answered when the service has read its configuration again.
    async fn reload(&mut self, ticket: Ticket, name: &InstanceName, within_ms: u64) {
        let Some(incoming) = self.waiting.remove(&ticket) else {
            return;
        };
        let Some(handle) = self.held.get(name).and_then(|held| held.handle.clone()) else {
            let text = format!("the shim of {name} does not answer");
            return incoming.fail(Status::new(Code::Unavailable, text)).await;
        };
        // It may take longer than the client's patience with a silent component.
        incoming.accept().await;
        tokio::spawn(async move {
            let reloaded = handle.reload(Duration::from_millis(within_ms)).await;
            let result = reloaded.map_err(|error| match error {
                ClientError::Refused(problem) => Status::new(Code::FailedPrecondition, problem),
                error => Status::new(Code::Unavailable, chain(&error)),
            });
            incoming.reply::<Reload>(result).await;
        });
    }

    /// The shim gets the successor's whole environment with a permit: it may have
    /// forgotten that of the spawn.
    async fn permit(
        &mut self,
        ticket: Ticket,
        name: &InstanceName,
        generation: Generation,
        permit: Option<Permit>,
    ) {
        let Some(incoming) = self.waiting.remove(&ticket) else {
            return;
        };
        let held = self.held.get(name);
        let handle = held.and_then(|held| held.handle.clone());
        let Some(handle) = handle else {
            let text = format!("the shim of {name} does not answer");
            return incoming.fail(Status::new(Code::Unavailable, text)).await;
        };
        let spec = held.and_then(|held| held.spec.clone());
        let (environs, name) = (self.launcher.environs().clone(), name.clone());
        tokio::spawn(async move {
            let permit = match (permit, spec) {
                (None, _) => Ok(None),
                (Some(permit), Some(spec)) => environs.permit(spec, permit).await.map(Some),
                (Some(_), None) => Err(format!("how {name} was started cannot be read")),
            };
            let result = match permit {
                Ok(permit) => {
                    let given = handle.permit(generation, permit).await;
                    given.map_err(|error| chain(&error))
                }
                Err(problem) => Err(problem),
            };
            let result = result.map_err(|problem| Status::new(Code::FailedPrecondition, problem));
            incoming.reply::<GrantPermit>(result).await;
        });
    }

    /// A few unlinks: done here, so that no spawn of the same name comes in between.
    async fn erase(&mut self, ticket: Ticket, name: &InstanceName) {
        if let Some(telling) = self.telling.remove(name) {
            telling.end().await;
        }
        let owner = self.server.component().to_string();
        let result = crate::adopt::erase(&self.dirs, name, &owner).map_err(|error| {
            Status::new(
                Code::Unavailable,
                format!("{name} is not forgotten whole: {error}"),
            )
        });
        let incoming = self.waiting.remove(&ticket);
        if result.is_ok() {
            let forgotten = ProcessForgotten {
                instance: name.clone(),
            };
            let cause = incoming.as_ref().map(|incoming| incoming.id);
            self.server
                .publish(Topic::process(name), &forgotten, cause)
                .await;
        }
        if let Some(incoming) = incoming {
            incoming.reply::<Forget>(result).await;
        }
    }

    /// A process has ended, or never was.
    fn over(&mut self, name: InstanceName, generation: Generation) {
        let probes = self.schedule.remove(&name);
        self.abort(probes);
        self.held.remove(&name);
        self.notes.clear(&name.to_string());
        self.tell(&name, generation);
    }

    /// Gives up probes under way.
    pub(super) fn abort(&mut self, probes: impl IntoIterator<Item = RunId>) {
        for run in probes {
            if let Some(probe) = self.probes.remove(&run) {
                probe.abort();
            }
        }
    }

    /// Notes on disk that the end of a generation is told: in a moment, since a start that
    /// follows it has more need of the processor.
    pub(super) fn tell(&mut self, name: &InstanceName, generation: Generation) {
        let before = self.telling.remove(name);
        let (dirs, told) = (self.dirs.clone(), name.clone());
        let hurry = Arc::new(Notify::new());
        let hurried = hurry.clone();
        let task = tokio::spawn(async move {
            if let Some(before) = before {
                before.end().await;
            }
            let _ = timeout(BEFORE_TELLING, hurried.notified()).await;
            let _ = tokio::task::spawn_blocking(move || note_told(&dirs, &told, generation)).await;
        });
        self.telling.insert(name.clone(), Telling { hurry, task });
    }

    /// Time since the first process of an instance started.
    fn age(&self, name: &InstanceName) -> Duration {
        let held = self.held.get(name);
        held.map_or(Duration::ZERO, |held| host::age(held.started.start_ticks))
    }

    async fn ready(&mut self, name: &InstanceName) {
        let results = self.schedule.ready(std::time::Instant::now(), name);
        self.publish_results(results).await;
    }

    pub(super) async fn publish_results(&mut self, results: impl IntoIterator<Item = ProbeResult>) {
        for result in results {
            tracing::debug!(
                instance = %result.instance,
                probe = ?result.probe,
                error = result.error,
                in_a_row = result.in_a_row,
                "probe"
            );
            self.server
                .publish(Topic::health(&result.instance), &result, None)
                .await;
        }
    }

    /// Starts what is due.
    pub(super) async fn run_probes(&mut self) {
        let (runs, results) = self.schedule.poll(Instant::now().into_std());
        self.publish_results(results).await;
        for run in runs {
            self.run_probe(run);
        }
    }

    fn run_probe(&mut self, run: Run) {
        let held = self.held.get(&run.instance);
        let subject = Subject {
            context: held
                .and_then(|held| held.spec.clone())
                .map(|spec| ExecContext {
                    spec,
                    environs: self.launcher.environs().clone(),
                }),
            instance: run.instance.clone(),
            caller: self.caller.clone(),
            shim: held.and_then(|held| held.handle.clone()),
            age: self.age(&run.instance),
        };
        let facts = self.facts.clone();
        let id = run.id;
        let task = tokio::spawn(async move {
            let outcome = check::run(&run.probe, subject).await;
            let _ = facts.send(Fact::Probe { run: id, outcome }).await;
        });
        self.probes.insert(id, task.abort_handle());
    }
}
