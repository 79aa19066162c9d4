//! The daemon's main task: it owns the [`Table`] and the probes' [`Schedule`],
//! takes in commands and facts one after the other, and carries out what
//! follows. Nothing here waits for a service, a disk or a shim: such work is
//! done by tasks of its own that tell back with a fact.

mod act;
mod commands;
mod facts;
mod keeper;
mod notes;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use blackhole_bus_schema::bus::{Incoming, Server};
use blackhole_bus_schema::daemon::{Daemon, Shutdown};
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::names::{Component, Generation, InstanceName};
use blackhole_bus_schema::process::SpawnSpec;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use crate::adopt;
use crate::launch::{Cancel, Environs, Launcher};
use crate::log::Follower;
use crate::probe::rpc::Caller;
use crate::probe::schedule::{RunId, Schedule};
use crate::shim::client::{ForkServerOptions, ShimEvents, ShimHandle, Started};
use crate::table::{Table, Ticket};

use facts::Fact;
use notes::Notes;

/// How long the last notes on disk may take when it ends.
const LAST_NOTES: Duration = Duration::from_millis(200);

/// Facts waiting for the main task. When full their tasks wait, and with them
/// the shims that they read from, which buffer.
const FACTS: usize = 1024;
/// Probes that run at one time; others wait for their turn.
const PROBES: usize = 64;
/// Logs read at one time; further readers are refused with `ResourceExhausted`.
const LOG_READERS: usize = 64;

/// Why the daemon ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// The kernel refused something that the daemon cannot do without.
    #[error("cannot {operation}")]
    Setup {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// What is set for the daemon from outside.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Most processes that live at one time.
    pub max_processes: u32,
    /// How the fork server is started.
    pub fork_server: ForkServerOptions,
}

/// A process that lives.
struct Held {
    generation: Generation,
    started: Started,
    /// `None` while its shim does not answer.
    handle: Option<ShimHandle>,
    /// How it was started, for its probes.
    spec: Option<Arc<SpawnSpec>>,
}

struct Manager {
    dirs: Dirs,
    server: Server,
    table: Table,
    schedule: Schedule,
    launcher: Arc<Launcher>,
    caller: Arc<Caller>,
    follower: Follower,
    log_readers: Arc<Semaphore>,
    held: HashMap<InstanceName, Held>,
    launches: HashMap<InstanceName, (Generation, Cancel)>,
    waiting: HashMap<Ticket, Incoming>,
    tickets: u64,
    probes: HashMap<RunId, AbortHandle>,
    facts: mpsc::Sender<Fact>,
    notes: Notes,
    /// Ends being noted on disk as told, the latest of each instance.
    telling: HashMap<InstanceName, act::Telling>,
}

/// Runs the process-manager until it is asked to end. Services stay.
///
/// # Errors
/// See [`ManagerError`].
pub async fn run(daemon: Daemon, settings: Settings) -> Result<(), ManagerError> {
    let Daemon {
        dirs,
        server,
        commands,
        shutdown,
        inherited_nofile,
        ..
    } = daemon;
    let follower =
        Follower::start(dirs.clone(), server.clone()).map_err(|source| ManagerError::Setup {
            operation: "watch logs (inotify)",
            source,
        })?;
    // Ends with this function.
    let _kept =
        crate::log::Keeper::start(&dirs, server.component().to_string()).map_err(|source| {
            ManagerError::Setup {
                operation: "keep rotated logs (inotify, thread)",
                source,
            }
        })?;
    let mut notes = Notes::new(server.clone());
    let rpc_key = match blackhole_bus_schema::rpc::Key::load_or_create(&dirs) {
        Ok(key) => Some(key),
        Err(error) => {
            notes.set(
                "rpc",
                format!("no RPC between services: {}", crate::launch::chain(&error)),
            );
            None
        }
    };
    let caller = Arc::new(Caller::new(dirs.clone(), rpc_key.clone()));
    let environs = Arc::new(Environs {
        dirs: dirs.clone(),
        rpc_key,
        inherited_nofile,
    });
    let (facts, received) = mpsc::channel(FACTS);
    let table = match server.component() {
        Component::ProcessManager(name) => Table::new(settings.max_processes).of(name.as_ref()),
        _ => Table::new(settings.max_processes),
    };
    let manager = Manager {
        launcher: Arc::new(Launcher::new(
            dirs.clone(),
            server.component().to_string(),
            environs,
            settings.fork_server,
        )),
        caller,
        dirs,
        server,
        table,
        schedule: Schedule::new(PROBES),
        follower,
        log_readers: Arc::new(Semaphore::new(LOG_READERS)),
        held: HashMap::new(),
        launches: HashMap::new(),
        waiting: HashMap::new(),
        tickets: 0,
        probes: HashMap::new(),
        facts,
        notes,
        telling: HashMap::new(),
    };
    manager.run(commands, received, shutdown).await;
    Ok(())
}

impl Manager {
    async fn run(
        mut self,
        mut commands: mpsc::Receiver<Incoming>,
        mut facts: mpsc::Receiver<Fact>,
        shutdown: Shutdown,
    ) {
        let owner = self.server.component().to_string();
        // Commands wait until it is known what there is: no snapshot is ever partial.
        tokio::select! {
            () = shutdown.requested() => return,
            scan = adopt::scan(&self.dirs, &owner) => self.adopt(scan).await,
        }
        tracing::info!(
            "needs no other daemon: waits for commands, from the supervisor or, without one, \
             from the command line"
        );
        tokio::spawn(keeper::keep(self.launcher.clone(), self.facts.clone()));
        loop {
            self.run_probes().await;
            let deadline = self.schedule.next_deadline().map(Instant::from_std);
            // Cancel safe: receiving loses nothing, a timer is made anew.
            tokio::select! {
                () = shutdown.requested() => break,
                Some(fact) = facts.recv() => self.take_in(fact).await,
                Some(incoming) = commands.recv() => self.command(incoming).await,
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {}
                else => break,
            }
        }
        tracing::info!(services = self.table.live(), "ending; services stay");
        // A disk that hangs does not keep it.
        let telling = act::Telling::end_all(std::mem::take(&mut self.telling).into_values());
        let _ = tokio::time::timeout(LAST_NOTES, telling).await;
        // Spawns and stops under way are not answered: a dropped command is
        // answered with a failure, while one that gets no answer is repeated to
        // the next manager, which knows how it went on.
        self.waiting
            .drain()
            .for_each(|(_, incoming)| std::mem::forget(incoming));
    }

    /// Begins to hold what the scan found.
    async fn adopt(&mut self, scan: adopt::Scan) {
        let adopt::Scan { adopted, problems } = scan;
        for problem in &problems {
            tracing::warn!(problem, "while looking for instances");
        }
        if let Some(first) = problems.first() {
            let text = format!(
                "{} problems while looking for instances, the first: {first}",
                problems.len()
            );
            self.notes.set("scan", text);
        }
        let found = adopted.len();
        for adopted in adopted {
            let adopt::Adopted { found, live } = adopted;
            let name = found.record.instance.clone();
            if let Some((started, shim)) = live {
                let generation = found.record.generation;
                let spec = found.spec.as_deref().cloned().map(Arc::new);
                self.hold(&name, generation, started, shim, spec);
            }
            let actions = self.table.adopt(found);
            self.carry_out(actions).await;
        }
        tracing::info!(
            instances = found,
            live = self.table.live(),
            "looked for instances"
        );
    }

    /// Takes a process into the books, and listens to its shim.
    fn hold(
        &mut self,
        name: &InstanceName,
        generation: Generation,
        started: Started,
        shim: Option<(ShimHandle, ShimEvents)>,
        spec: Option<Arc<SpawnSpec>>,
    ) {
        let handle = match shim {
            Some((handle, events)) => {
                tokio::spawn(facts::listen(
                    name.clone(),
                    generation,
                    events,
                    self.facts.clone(),
                ));
                Some(handle)
            }
            None => {
                let mut known = self.known(name, generation, started.clone());
                // Not in the table yet.
                known.grant = spec.as_ref().and_then(|spec| spec.grant.clone());
                let (dirs, facts) = (self.dirs.clone(), self.facts.clone());
                tokio::spawn(facts::await_shim(dirs, name.clone(), known, facts));
                None
            }
        };
        self.held.insert(
            name.clone(),
            Held {
                generation,
                started,
                handle,
                spec,
            },
        );
    }
}
