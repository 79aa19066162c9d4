//! The core's hands: turns what arrives into inputs, and actions into writes,
//! requests, events and answers. One loop; nothing in it decides anything.
//!
//! Writes to the database are made in the loop: what follows them must wait for
//! them anyway. One costs some tens of microseconds, an operator's wish one
//! fsync more.

mod act;
mod clock;
mod hear;
mod operator;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use blackhole_bus_schema::bus::{BusError, Interest, Link};
use blackhole_bus_schema::daemon::Daemon;
use blackhole_bus_schema::names::{ClientName, Component};
use blackhole_bus_schema::process::ListProcesses;
use blackhole_bus_schema::registry::ListRegistry;
use blackhole_bus_schema::topic;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::core::{Action, Change, Core, Input, Random, Ticket};
use crate::store::{Store, StoreError};

use clock::Clock;
use operator::Asked;

/// Replies waiting for the loop. When full, the tasks that bring them wait.
const REPLIES: usize = 1024;
/// When changes that found the disk full are tried again.
const WRITE_AGAIN: Duration = Duration::from_secs(2);

/// Why the supervisor ended.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// The database.
    #[error("cannot use what an earlier run left")]
    Store(#[from] StoreError),
    /// A link could not be opened.
    #[error("cannot listen to the other components")]
    Bus(#[from] BusError),
}

struct Shell {
    daemon: Daemon,
    core: Core,
    store: Store,
    clock: Clock,
    manager: Link,
    controller: Link,
    bridge: Link,
    replies: mpsc::Sender<(Input, Option<Uuid>)>,
    tickets: HashMap<Ticket, Asked>,
    last_ticket: u64,
    notes: Vec<String>,
    /// An operator's wish is among the changes that are not on the disk.
    wish_at_risk: bool,
}

/// Serves until a signal asks for the end. Services run on after it; commands
/// that wait are answered with `Unavailable`.
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
        Link::open(&daemon.dirs, me.clone(), to, Interest::none()).await?;
    let interest = Interest::none().stream::<ListRegistry>(topic::REGISTRY);
    let (bridge, mut bridge_events) =
        Link::open(&daemon.dirs, me, Component::Bridge, interest).await?;
    match (&daemon.config_path, &daemon.config) {
        (Some(path), Some(config)) => {
            tracing::info!(config = %path.display(), services = config.services.len(), "configured");
        }
        _ => tracing::warn!(
            "no configuration was given (-c): nothing is started, what runs is left alone"
        ),
    }
    let clock = Clock::start();
    let now = clock.now();
    let random = Random::new(RandomState::new().hash_one(now.unix_ns));
    let core = Core::new(daemon.config.as_ref(), &restored, random, now);
    let (replies, mut replied) = mpsc::channel(REPLIES);
    let mut shell = Shell {
        daemon,
        core,
        store,
        clock,
        manager,
        controller,
        bridge,
        replies,
        tickets: HashMap::new(),
        last_ticket: 0,
        notes: Vec::new(),
        wish_at_risk: false,
    };
    shell.handle(Input::Tick, None).await;
    let shutdown = shell.daemon.shutdown.clone();
    loop {
        let deadline = shell.core.next_deadline();
        let write_again = shell.store.outstanding() > 0;
        // Every arm is cancel safe: channels and timers lose nothing.
        tokio::select! {
            () = shutdown.requested() => break,
            Some((input, cause)) = replied.recv() => shell.handle(input, cause).await,
            Some(event) = manager_events.recv() => shell.manager_event(event).await,
            Some(event) = controller_events.recv() => shell.controller_event(event).await,
            Some(event) = bridge_events.recv() => shell.bridge_event(event).await,
            Some(incoming) = shell.daemon.commands.recv() => shell.command(incoming).await,
            () = clock.until(deadline) => shell.handle(Input::Tick, None).await,
            // Any other arm tries too, with whatever it has to write.
            () = tokio::time::sleep(WRITE_AGAIN), if write_again => shell.write(Vec::new(), true),
        }
    }
    shell.end().await;
    Ok(())
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
    async fn handle(&mut self, input: Input, cause: Option<Uuid>) {
        let actions = self.core.handle(self.clock.now(), input, cause);
        self.perform(actions, cause).await;
        self.say_what_is_missing();
    }

    /// Performs actions in their order: what is to be remembered is written
    /// before what follows it is begun.
    async fn perform(&mut self, actions: Vec<Action>, cause: Option<Uuid>) {
        let mut changes = Vec::new();
        let mut durable = false;
        for action in actions {
            if let Action::Persist { change, durable: d } = action {
                changes.push(change);
                durable |= d;
                continue;
            }
            if !changes.is_empty() {
                self.write(std::mem::take(&mut changes), std::mem::take(&mut durable));
            }
            self.act(action, cause).await;
        }
        if !changes.is_empty() {
            self.write(changes, durable);
        }
    }

    fn write(&mut self, changes: Vec<Change>, durable: bool) {
        let before = self.store.outstanding();
        match self.store.write(changes, durable) {
            Ok(()) => {
                self.wish_at_risk = false;
                if before > 0 {
                    tracing::info!("everything outstanding is written");
                }
            }
            Err(error) => {
                self.wish_at_risk |= durable;
                if before == 0 {
                    tracing::error!(
                        error = chain(&error),
                        "what is to be remembered cannot be written: going on with what is in memory"
                    );
                }
            }
        }
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

    async fn end(&mut self) {
        self.refuse_waiting().await;
        if let Err(error) = self.store.write(Vec::new(), true) {
            tracing::error!(error = chain(&error), "changes are lost");
        }
    }
}
