//! The core's hands: turns what arrives into inputs, and actions into writes,
//! requests, events and answers. One loop; nothing in it decides anything.
//!
//! Writes to the database are made in the loop: what follows them must wait for
//! them anyway. One costs some tens of microseconds. An operator's wish costs an
//! fsync more, for which its answer waits, and nothing that is begun because of it.

mod act;
mod clock;
mod hear;
mod links;
mod operator;
mod reload;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use blackhole_bus_schema::bus::{BusError, Interest, Link};
use blackhole_bus_schema::daemon::Daemon;
use blackhole_bus_schema::managers;
use blackhole_bus_schema::names::{ClientName, Component};
use blackhole_bus_schema::registry::ListRegistry;
use blackhole_bus_schema::topic;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::core::{Action, Change, Core, Input, Random, Ticket};
use crate::store::{Store, StoreError};

use clock::Clock;
use links::Managers;
use operator::Asked;

/// Replies waiting for the loop. When full, the tasks that bring them wait.
const REPLIES: usize = 1024;
/// Of replies and of events that have come meanwhile, taken in together with one: they share a
/// write, and a look at what operators wait for. Few enough that nothing waits long for the others.
const AT_ONCE: usize = 32;
/// When changes that found the disk full are tried again.
const WRITE_AGAIN: Duration = Duration::from_secs(2);

/// How long a wish that nobody waits for stays in the page cache: what it begins
/// comes first, and wishes of that time share an fsync.
const BEFORE_FLUSH: Duration = Duration::from_millis(3);

/// Wishes on their way to the disk.
struct Flushing {
    /// Somebody waits for it.
    hurry: Arc<Notify>,
    /// The fsync has begun: what is written now needs another.
    begun: Arc<AtomicBool>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Flushing {
    /// Waits until they are on the disk.
    async fn end(self) -> std::io::Result<()> {
        self.hurry.notify_one();
        self.task.await.unwrap_or_else(|error| Err(error.into()))
    }
}

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
    managers: Managers,
    controller: Link,
    bridge: Link,
    replies: mpsc::Sender<(Input, Option<Uuid>)>,
    tickets: HashMap<Ticket, Asked>,
    last_ticket: u64,
    notes: Vec<String>,
    /// An operator's wish is among the changes that are not on the disk.
    wish_at_risk: bool,
    /// A wish on its way to the disk.
    flushing: Option<Flushing>,
    /// What is to be done because of what has been taken in, each with the message that led to it.
    todo: Vec<(Action, Option<Uuid>)>,
}

/// Serves until a signal asks for the end. Services run on after it; commands
/// that wait are answered with `Unavailable`.
///
/// # Errors
/// When the database or the links cannot be opened.
pub async fn serve(daemon: Daemon) -> Result<(), SupervisorError> {
    let (store, restored) = Store::open(&daemon.dirs.database())?;
    let me = ClientName::fresh("supervisor");
    let to = Component::ResourceController;
    let (controller, mut controller_events) =
        Link::open(&daemon.dirs, me.clone(), to, Interest::none()).await?;
    let interest = Interest::none().stream::<ListRegistry>(topic::REGISTRY);
    let (bridge, mut bridge_events) =
        Link::open(&daemon.dirs, me.clone(), Component::Bridge, interest).await?;
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
    let mut known = core.managers();
    known.extend(managers::known(&daemon.dirs, daemon.config.as_ref()));
    let (managers, mut manager_events) = Managers::open(&daemon.dirs, &me, known).await?;
    let (replies, mut replied) = mpsc::channel(REPLIES);
    let mut shell = Shell {
        daemon,
        core,
        store,
        clock,
        managers,
        controller,
        bridge,
        replies,
        tickets: HashMap::new(),
        last_ticket: 0,
        notes: Vec::new(),
        wish_at_risk: false,
        flushing: None,
        todo: Vec::new(),
    };
    shell.take(Input::Tick, None);
    shell.settle().await;
    let shutdown = shell.daemon.shutdown.clone();
    loop {
        let deadline = shell.core.next_deadline();
        let write_again = shell.store.outstanding() > 0;
        // Every arm is cancel safe: channels and timers lose nothing.
        tokio::select! {
            () = shutdown.requested() => break,
            Some((input, cause)) = replied.recv() => shell.take(input, cause),
            (manager, event) = manager_events.next() => shell.manager_event(manager, event),
            Some(event) = controller_events.recv() => shell.controller_event(event),
            Some(event) = bridge_events.recv() => shell.bridge_event(event),
            Some(incoming) = shell.daemon.commands.recv() => shell.command(incoming).await,
            () = clock.until(deadline) => shell.take(Input::Tick, None),
            // Any other arm tries too, with whatever it has to write.
            () = tokio::time::sleep(WRITE_AGAIN), if write_again => shell.write(Vec::new(), true),
        }
        for _ in 0..AT_ONCE {
            let (reply, event) = (replied.try_recv().ok(), manager_events.try_next());
            if reply.is_none() && event.is_none() {
                break;
            }
            if let Some((input, cause)) = reply {
                shell.take(input, cause);
            }
            if let Some((manager, event)) = event {
                shell.manager_event(manager, event);
            }
        }
        shell.settle().await;
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
    /// Takes something in; what follows from it is done by [`Shell::settle`].
    fn take(&mut self, input: Input, cause: Option<Uuid>) {
        let actions = self.core.take(self.clock.now(), input, cause);
        self.todo
            .extend(actions.into_iter().map(|action| (action, cause)));
    }

    /// Does what follows from all that has been taken in.
    async fn settle(&mut self) {
        let answers = self.core.settle(self.clock.now());
        self.perform().await;
        for answer in answers {
            self.flushed().await;
            self.act(answer, None, false).await;
        }
        self.say_what_is_missing();
    }

    /// Performs actions in their order. All that is to be remembered is written
    /// first, in one transaction: what follows from it has then been decided for
    /// good, whatever dies. An operator's wish is on its way to the disk
    /// meanwhile, and is there before the operator is answered.
    async fn perform(&mut self) {
        let mut changes = Vec::new();
        let mut durable = false;
        let todo = std::mem::take(&mut self.todo);
        let mut rest = Vec::with_capacity(todo.len());
        for (action, cause) in todo {
            match action {
                Action::Persist { change, durable: d } => {
                    changes.push(change);
                    durable |= d;
                }
                action => rest.push((action, cause)),
            }
        }
        if !changes.is_empty() {
            self.write(changes, durable);
        }
        let spawns = |(action, _): &(Action, _)| matches!(action, Action::Spawn(..));
        let spawns = rest.iter().any(spawns);
        for (action, cause) in rest {
            self.act(action, cause, spawns).await;
        }
        if durable {
            self.flush();
        }
    }

    /// Begins to bring what has been written to the disk. Its own thread, and
    /// not at once: what was decided does not wait for it.
    fn flush(&mut self) {
        let waits = |flushing: &Flushing| !flushing.begun.load(Ordering::SeqCst);
        if self.flushing.as_ref().is_some_and(waits) {
            return;
        }
        let (wal, before) = (self.store.wal(), self.flushing.take());
        let (hurry, begun) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
        let (hurried, begins) = (hurry.clone(), begun.clone());
        let task = tokio::spawn(async move {
            if let Some(before) = before {
                before.end().await?;
            }
            let _ = tokio::time::timeout(BEFORE_FLUSH, hurried.notified()).await;
            begins.store(true, Ordering::SeqCst);
            let sync = move || std::fs::File::open(wal)?.sync_data();
            let synced = tokio::task::spawn_blocking(sync).await;
            synced.unwrap_or_else(|error| Err(error.into()))
        });
        self.flushing = Some(Flushing { hurry, begun, task });
    }

    /// Waits until every wish is on the disk.
    async fn flushed(&mut self) {
        let Some(flushing) = self.flushing.take() else {
            return;
        };
        match flushing.end().await {
            Ok(()) => self.store.flushed(),
            Err(error) => {
                tracing::error!(
                    error = chain(&error),
                    "an operator's wish may not be on the disk: it is written again"
                );
                self.store.not_flushed();
                self.write(Vec::new(), true);
            }
        }
    }

    fn write(&mut self, changes: Vec<Change>, durable: bool) {
        let before = self.store.outstanding();
        let nothing = changes.is_empty() && before == 0;
        let again = changes.is_empty() && durable;
        let written = match durable && !again && !self.wish_at_risk {
            true => self.store.write_wish(changes),
            // A wish that could not be written is flushed with whatever is written next.
            false => self.store.write(changes, self.wish_at_risk || again),
        };
        match written {
            Ok(()) if nothing => {}
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
