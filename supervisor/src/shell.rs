//! The core's hands: turns what arrives into inputs, and actions into writes,
//! requests, events and answers. One loop; nothing in it decides anything.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use blackhole_bus_schema::bus::{
    self, BusError, Incoming, Interest, Link, LinkEvent, Received, RequestError,
};
use blackhole_bus_schema::daemon::Daemon;
use blackhole_bus_schema::dirs::unix_now_ns;
use blackhole_bus_schema::health::ProbeResult;
use blackhole_bus_schema::message::{Command, Message};
use blackhole_bus_schema::names::{ClientName, Component};
use blackhole_bus_schema::process::{
    Forget, InstanceRecord, ListProcesses, ProcessChanged, ProcessNotified, Spawn, Stop,
};
use blackhole_bus_schema::reply::{Code, Status};
use blackhole_bus_schema::resource::{Prepare, Release};
use blackhole_bus_schema::supervision::{
    ListStatus, Outcome, ResetServices, RestartServices, StartServices, StopServices,
    SupervisionChanged,
};
use blackhole_bus_schema::topic::{self, Topic};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::core::{Action, Change, Core, Input, Now, Operator, Random, RequestFailure, Ticket};
use crate::store::{Store, StoreError};

/// Replies waiting for the loop. When full, the tasks that bring them wait.
const REPLIES: usize = 1024;
/// Budget of a request that needs no grace of a service.
const BUDGET: Duration = Duration::from_secs(15);
/// A spawn waits for a shim and for exec.
const SPAWN_BUDGET: Duration = Duration::from_secs(30);
/// Added to the grace of a service for its kill and the way back.
const STOP_SLACK: Duration = Duration::from_secs(20);
/// When changes that found the disk full are tried again.
const WRITE_AGAIN: Duration = Duration::from_secs(2);

/// Why the supervisor ended.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// The database.
    #[error("cannot read what an earlier run left")]
    Store(#[from] StoreError),
    /// A link could not be opened.
    #[error("cannot reach the other components")]
    Bus(#[from] BusError),
}

struct Shell {
    daemon: Daemon,
    core: Core,
    store: Store,
    epoch: Instant,
    manager: Link,
    controller: Link,
    replies: mpsc::Sender<(Input, Option<Uuid>)>,
    tickets: HashMap<Ticket, Asked>,
    last_ticket: u64,
    notes: Vec<String>,
}

/// A command that waits for its answer.
struct Asked {
    incoming: Incoming,
    answer: fn(Incoming, Result<Outcome, Status>) -> Answering,
}

type Answering = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

fn answer<C: Command<Reply = Outcome>>(
    incoming: Incoming,
    result: Result<Outcome, Status>,
) -> Answering {
    Box::pin(incoming.reply::<C>(result))
}

/// Serves until a signal asks for the end. Services run on after it.
///
/// # Errors
/// When the database or the links cannot be opened.
pub async fn serve(daemon: Daemon) -> Result<(), SupervisorError> {
    let (store, restored) = Store::open(&daemon.dirs.database())?;
    let me = ClientName::fresh("supervisor");
    let interest = Interest::none()
        .stream::<ListProcesses>(topic::PROCESS)
        .prefix(topic::HEALTH);
    let to = Component::ProcessManager(None);
    let (manager, mut manager_events) = Link::open(&daemon.dirs, me.clone(), to, interest).await?;
    let to = Component::ResourceController;
    let (controller, mut controller_events) =
        Link::open(&daemon.dirs, me, to, Interest::none()).await?;
    match (&daemon.config_path, &daemon.config) {
        (Some(path), Some(config)) => {
            tracing::info!(config = %path.display(), services = config.services.len(), "configured");
        }
        _ => tracing::warn!(
            "no configuration was given (-c): nothing is started, what runs is left alone"
        ),
    }
    let epoch = Instant::now();
    let now = moment(epoch);
    let random = Random::new(RandomState::new().hash_one(now.unix_ns));
    let core = Core::new(daemon.config.as_ref(), &restored, random, now);
    let (replies, mut replied) = mpsc::channel(REPLIES);
    let mut shell = Shell {
        daemon,
        core,
        store,
        epoch,
        manager,
        controller,
        replies,
        tickets: HashMap::new(),
        last_ticket: 0,
        notes: Vec::new(),
    };
    shell.handle(Input::Tick, None).await;
    let shutdown = shell.daemon.shutdown.clone();
    loop {
        let deadline = shell.core.next_deadline().map(|at| epoch + at);
        let write_again = shell.store.outstanding() > 0;
        // Every arm is cancel safe: channels and timers lose nothing.
        tokio::select! {
            () = shutdown.requested() => break,
            Some((input, cause)) = replied.recv() => shell.handle(input, cause).await,
            Some(event) = manager_events.recv() => shell.manager_event(event).await,
            Some(event) = controller_events.recv() => shell.controller_event(event).await,
            Some(incoming) = shell.daemon.commands.recv() => shell.command(incoming).await,
            () = sleep_until(deadline) => shell.handle(Input::Tick, None).await,
            () = tokio::time::sleep(WRITE_AGAIN), if write_again => shell.write(Vec::new(), false).await,
        }
    }
    if let Err(error) = shell.store.write(Vec::new(), true) {
        tracing::error!(error = chain(&error), "changes are lost");
    }
    Ok(())
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn moment(epoch: Instant) -> Now {
    Now {
        mono: epoch.elapsed(),
        unix_ns: unix_now_ns(),
    }
}

/// An error with what led to it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

impl Shell {
    fn now(&self) -> Now {
        moment(self.epoch)
    }

    async fn handle(&mut self, input: Input, cause: Option<Uuid>) {
        let actions = self.core.handle(self.now(), input, cause);
        self.perform(actions, cause).await;
        self.say_what_is_missing();
    }

    /// Performs actions in their order: what is to be remembered is written
    /// before what follows it is begun.
    async fn perform(&mut self, actions: Vec<Action>, cause: Option<Uuid>) {
        let mut changes = Vec::new();
        let mut flush = false;
        for action in actions {
            match action {
                Action::Persist { change, durable } => {
                    changes.push(change);
                    flush |= durable;
                    continue;
                }
                _ if changes.is_empty() => {}
                _ => {
                    self.write(std::mem::take(&mut changes), std::mem::take(&mut flush))
                        .await
                }
            }
            self.act(action, cause).await;
        }
        if !changes.is_empty() {
            self.write(changes, flush).await;
        }
    }

    async fn write(&mut self, changes: Vec<Change>, durable: bool) {
        let before = self.store.outstanding();
        match self.store.write(changes, durable) {
            Ok(()) if before > 0 => tracing::info!("everything outstanding is written"),
            Ok(()) => {}
            Err(error) if before == 0 => {
                tracing::error!(error = chain(&error), "going on with what is in memory");
            }
            Err(_) => {}
        }
        self.say_what_is_missing();
    }

    async fn act(&mut self, action: Action, cause: Option<Uuid>) {
        match action {
            // Gathered by `perform`.
            Action::Persist { .. } => {}
            Action::Prepare {
                instance,
                limits,
                oom_score_adj,
            } => {
                let command = Prepare {
                    instance: instance.clone(),
                    limits,
                    oom_score_adj: Some(oom_score_adj),
                };
                self.ask(&self.controller, command, BUDGET, cause, move |result| {
                    Input::PrepareReply {
                        instance,
                        result: result.map(Box::new),
                    }
                });
            }
            Action::Release { instance } => {
                let command = Release {
                    instance: instance.clone(),
                };
                self.ask(&self.controller, command, BUDGET, cause, move |result| {
                    Input::ReleaseReply { instance, result }
                });
            }
            Action::Spawn(spec) => {
                let (instance, generation) = (spec.instance.clone(), spec.generation);
                let command = Spawn { spec: *spec };
                self.ask(&self.manager, command, SPAWN_BUDGET, cause, move |result| {
                    Input::SpawnReply {
                        instance,
                        generation,
                        result: result.map(Box::new),
                    }
                });
            }
            Action::Stop {
                instance,
                generation,
                unhealthy,
                grace_ms,
            } => {
                let command = Stop {
                    instance: instance.clone(),
                    generation,
                    stop: None,
                    unhealthy,
                };
                let budget = Duration::from_millis(grace_ms).saturating_add(STOP_SLACK);
                self.ask(&self.manager, command, budget, cause, move |result| {
                    Input::StopReply {
                        instance,
                        generation,
                        result: result.map(Box::new),
                    }
                });
            }
            Action::Forget { instance } => {
                let command = Forget {
                    instance: instance.clone(),
                };
                self.ask(&self.manager, command, BUDGET, cause, move |result| {
                    Input::ForgetReply { instance, result }
                });
            }
            Action::Publish { status, why, cause } => {
                tracing::info!(
                    service.instance = %status.instance,
                    state = status.state.map(tracing::field::display),
                    phase = status.phase.word(),
                    "{why}"
                );
                let topic = Topic::supervision(&status.service);
                let changed = SupervisionChanged {
                    status: *status,
                    why,
                };
                self.daemon.server.publish(topic, &changed, cause).await;
            }
            Action::Answer { ticket, result } => {
                if let Some(asked) = self.tickets.remove(&ticket) {
                    (asked.answer)(asked.incoming, result).await;
                }
            }
        }
    }

    /// Sends a request in a task of its own; its result comes back as an input.
    fn ask<C: Command + Sync>(
        &self,
        link: &Link,
        command: C,
        budget: Duration,
        cause: Option<Uuid>,
        input: impl FnOnce(Result<C::Reply, RequestFailure>) -> Input + Send + 'static,
    ) {
        let (link, replies) = (link.clone(), self.replies.clone());
        tokio::spawn(async move {
            let result = link
                .request_caused(&command, budget, cause)
                .await
                .map_err(failure);
            // The loop is gone only when the daemon ends.
            let _ = replies.send((input(result), cause)).await;
        });
    }

    async fn manager_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up(info) => {
                tracing::info!(
                    incarnation = info.incarnation,
                    pid = info.pid,
                    "process-manager is there"
                );
                self.handle(Input::ManagerUp, None).await;
            }
            LinkEvent::Down => {
                tracing::warn!("process-manager is away: its services run on");
                self.handle(Input::ManagerDown, None).await;
            }
            LinkEvent::Snapshot { items, .. } => {
                let records: Result<Vec<InstanceRecord>, _> =
                    items.into_iter().map(bus::item).collect();
                match records {
                    Ok(records) => self.handle(Input::ManagerSnapshot(records), None).await,
                    // What is not in a snapshot does not exist: half of one would be a lie.
                    Err(error) => {
                        tracing::error!(%error, "the process-manager's records are not understood: are both of one version?")
                    }
                }
            }
            LinkEvent::Event(received) => self.manager_message(&received).await,
            // A snapshot follows.
            LinkEvent::Lagged { .. } => {}
        }
    }

    async fn manager_message(&mut self, received: &Received) {
        let input = match received.kind() {
            ProcessChanged::KIND => received
                .parse::<ProcessChanged>()
                .map(|changed| Input::ProcessChanged(Box::new(changed.record))),
            ProcessNotified::KIND => received.parse().map(Input::ProcessNotified),
            ProbeResult::KIND => received.parse().map(Input::Probe),
            _ => return,
        };
        match input {
            Ok(input) => self.handle(input, Some(received.envelope.id)).await,
            Err(error) => {
                tracing::error!(error = chain(&error), topic = %received.topic, "not understood")
            }
        }
    }

    async fn controller_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up(info) => {
                tracing::info!(
                    incarnation = info.incarnation,
                    pid = info.pid,
                    "resource-controller is there"
                );
                self.handle(Input::ControllerUp, None).await;
            }
            LinkEvent::Down => {
                tracing::warn!("resource-controller is away: limits stay as they are");
                self.handle(Input::ControllerDown, None).await;
            }
            LinkEvent::Snapshot { .. } | LinkEvent::Event(_) | LinkEvent::Lagged { .. } => {}
        }
    }

    async fn command(&mut self, incoming: Incoming) {
        match incoming.kind.as_str() {
            StartServices::KIND => {
                self.operator(incoming, |command: StartServices| {
                    Operator::Start(command.target)
                })
                .await;
            }
            StopServices::KIND => {
                self.operator(incoming, |command: StopServices| Operator::Stop {
                    target: command.target,
                    transient: command.transient,
                })
                .await;
            }
            RestartServices::KIND => {
                self.operator(incoming, |command: RestartServices| {
                    Operator::Restart(command.target)
                })
                .await;
            }
            ResetServices::KIND => {
                self.operator(incoming, |command: ResetServices| {
                    Operator::Reset(command.target)
                })
                .await;
            }
            ListStatus::KIND => match incoming.parse::<ListStatus>() {
                Ok(command) => {
                    let mut all: Vec<_> = self
                        .core
                        .statuses()
                        .map(|status| (status.instance.to_string(), status))
                        .collect();
                    // Pages go by the text of names: web.10 is before web.2.
                    all.sort_by(|one, two| one.0.cmp(&two.0));
                    let page = self.daemon.server.snapshot(
                        topic::SUPERVISION,
                        all.into_iter(),
                        command.after.as_deref(),
                    );
                    incoming.reply::<ListStatus>(Ok(page)).await;
                }
                Err(status) => incoming.fail(status).await,
            },
            _ => incoming.unknown().await,
        }
    }

    async fn operator<C: Command<Reply = Outcome>>(
        &mut self,
        incoming: Incoming,
        operator: impl FnOnce(C) -> Operator,
    ) {
        let command = match incoming.parse::<C>() {
            Ok(command) => operator(command),
            Err(status) => return incoming.fail(status).await,
        };
        incoming.accept().await;
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        let left = incoming
            .deadline
            .saturating_duration_since(tokio::time::Instant::now());
        let deadline = self.now().mono.saturating_add(left);
        let cause = Some(incoming.id);
        tracing::info!(client = %incoming.client, ?command, "asked");
        self.tickets.insert(
            ticket,
            Asked {
                incoming,
                answer: answer::<C>,
            },
        );
        self.handle(
            Input::Command {
                ticket,
                deadline,
                command,
            },
            cause,
        )
        .await;
    }

    fn say_what_is_missing(&mut self) {
        let mut notes = self.core.notes();
        notes.extend(self.store.notes());
        if self.daemon.config.is_none() {
            notes.push("no configuration was given (-c FILE)".to_owned());
        }
        if notes != self.notes {
            for note in notes.iter().filter(|note| !self.notes.contains(note)) {
                tracing::info!("{note}");
            }
            self.daemon.server.set_notes(notes.clone());
            self.notes = notes;
        }
    }
}

/// What a failed request tells: refused means that nothing was done, anything
/// else leaves it open, and the next snapshot or event tells.
fn failure(error: RequestError) -> RequestFailure {
    match error {
        RequestError::Status(status) => match status.code {
            Code::Internal
            | Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Unknown
            | Code::Aborted
            | Code::Cancelled => RequestFailure::Unknown(status.message),
            _ => RequestFailure::Refused(status),
        },
        error => RequestFailure::Unknown(chain(&error)),
    }
}
