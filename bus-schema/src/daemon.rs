//! What every daemon's `main` does before and after its own work: flags,
//! directories, lock, tracing, limits of open files, bus, notification, signals.

mod sockets;

use std::future::Future;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing_subscriber::EnvFilter;

use crate::bus::{BusError, Incoming, Server};
use crate::config::{Config, ConfigError, Document, Kept, Listen};
use crate::dirs::{Dirs, DirsError, Lock, next_incarnation};
use crate::names::Component;
use crate::pulse::Pulse;

use sockets::Sockets;

/// The flags of every daemon.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct DaemonArgs {
    /// Configuration file
    #[arg(short, long, value_name = "FILE", env = "BLACKHOLE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Directory for sockets [default: /run/blackhole for root, else below $XDG_RUNTIME_DIR]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Directory for records, logs and the database [default: /var/lib/blackhole for root, else below $XDG_STATE_HOME]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// Why a daemon could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError<E: std::error::Error + 'static> {
    /// The directories or the lock.
    #[error("directories")]
    Dirs(#[from] DirsError),
    /// The configuration is wrong. Its text stands for itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The runtime or a signal handler could not be made.
    #[error("cannot set up {what}")]
    Setup {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The sockets.
    #[error("cannot join the bus")]
    Bus(#[from] BusError),
    /// Its sockets were removed, with the run directory perhaps: nobody could
    /// reach it any more. Whoever runs it starts it again, with new ones.
    #[error("{socket} was removed: {component} must be started again")]
    Removed {
        /// Which daemon.
        component: Component,
        /// The socket.
        socket: PathBuf,
    },
    /// The daemon's own work failed.
    #[error("{component} failed")]
    Body {
        /// Which daemon.
        component: Component,
        /// Why.
        #[source]
        source: E,
    },
}

impl<E: std::error::Error + 'static> DaemonError<E> {
    /// The exit code of the process: 2 for wrong configuration, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            _ => 1,
        }
    }
}

/// Tells when the daemon is to end. Clones tell the same.
#[derive(Debug, Clone)]
pub struct Shutdown {
    requested: watch::Receiver<bool>,
}

impl Shutdown {
    /// Waits for SIGTERM or SIGINT; returns at once when one has come. Cancel safe.
    pub async fn requested(&self) {
        let mut requested = self.requested.clone();
        if requested.wait_for(|requested| *requested).await.is_err() {
            // The sender lives as long as the runtime.
            std::future::pending::<()>().await;
        }
    }
}

/// What a daemon's own work begins with.
#[derive(Debug)]
pub struct Daemon {
    /// Its directories, created.
    pub dirs: Dirs,
    /// The configuration; `None` when none was given.
    pub config: Option<Config>,
    /// Where the configuration came from.
    pub config_path: Option<PathBuf>,
    /// `runtime.orchestrator.listen`. The component's own entry is bound by
    /// [`run`]; `rpc` is the bridge's to bind.
    pub listen: Listen,
    /// Its side of the bus.
    pub server: Server,
    /// Commands to it.
    pub commands: mpsc::Receiver<Incoming>,
    /// When to end.
    pub shutdown: Shutdown,
    /// Soft and hard `RLIMIT_NOFILE` as inherited, to be restored in services.
    pub inherited_nofile: (u64, u64),
}

/// Sends tracing to standard error, filtered by `BLACKHOLE_LOG` (`info` without
/// it; the syntax is that of `tracing_subscriber::EnvFilter`). Call once.
pub fn start_tracing() {
    let filter =
        EnvFilter::try_from_env("BLACKHOLE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // A line that cannot be written is lost. It would be told by eprintln!, which panics
        // where nothing can be written: on a full disk.
        .log_internal_errors(false)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .try_init();
}

/// Tells on standard error why a program ends, with the causes where `why` shows them in its
/// alternate form. Unlike `eprintln!` it does not panic where nothing can be written.
pub fn complain(program: &str, why: &dyn std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{program}: {why:#}");
}

/// Runs a daemon: `body` gets everything it needs, on a current-thread runtime,
/// and returns when it is through, at the latest soon after [`Shutdown::requested`].
/// While another of its kind holds the lock of the state directory this waits:
/// it is a warm standby.
///
/// # Errors
/// See [`DaemonError`]; the caller prints the chain and exits with [`DaemonError::exit_code`].
pub fn run<F, Fut, E>(component: Component, args: DaemonArgs, body: F) -> Result<(), DaemonError<E>>
where
    F: FnOnce(Daemon) -> Fut,
    Fut: Future<Output = Result<(), E>>,
    E: std::error::Error + 'static,
{
    start_tracing();
    let dirs = Dirs::resolve(args.run_dir, args.state_dir)?;
    dirs.check(&component)?;
    dirs.create()?;
    let path = args.config.as_deref();
    let (document, kept) = path.map(Document::load_to_keep).transpose()?.unzip();
    let listen = document.as_ref().map(|document: &Document| document.listen);
    let listen = listen.unwrap_or_default();
    let config = document.map(|document| document.config);
    crate::priority::raise();
    let inherited_nofile = raise_nofile();
    let path = dirs.lock(&component.to_string());
    // Held until the process ends.
    let lock = match Lock::try_take(&path)? {
        Some(lock) => lock,
        None => {
            let holder = Lock::holder(&path).unwrap_or_default();
            tracing::info!(%component, holder, "another one is active: standing by");
            notify(&[sd_notify::NotifyState::Status(
                "standing by for the active one",
            )]);
            Lock::wait(&path)?
        }
    };
    let incarnation = next_incarnation(&dirs, &component)?;
    match kept {
        Some(kept) => {
            if let Err(error) = kept.write(&dirs, &component, incarnation) {
                tracing::warn!(%error, "what the configuration was cannot be kept: nobody is told when it is edited");
            }
        }
        None => Kept::remove(&dirs, &component),
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| DaemonError::Setup {
            what: "the runtime",
            source,
        })?;
    let result = runtime.block_on(async {
        let (shutdown, ending) = watch_signals().map_err(|source| DaemonError::Setup {
            what: "signal handlers",
            source,
        })?;
        let (server, commands) =
            Server::bind_with(&dirs, component.clone(), incarnation, &listen).await?;
        tracing::info!(
            %component,
            incarnation,
            pid = std::process::id(),
            run = %dirs.run.display(),
            state = %dirs.state.display(),
            "started"
        );
        let status = format!("{component} incarnation {incarnation}");
        notify(&[
            sd_notify::NotifyState::Ready,
            sd_notify::NotifyState::Status(&status),
        ]);
        let watchdog = tokio::spawn(watchdog());
        let sockets = Sockets::watch([dirs.bus_evt(&component), dirs.bus_cmd(&component)]);
        let removed = Arc::new(OnceLock::new());
        let note = removed.clone();
        let watching = tokio::spawn(async move {
            let socket = sockets.removed().await;
            tracing::error!(socket = %socket.display(), "removed: nobody could reach this daemon");
            let _ = note.set(socket);
            ending.send_replace(true);
        });
        let daemon = Daemon {
            dirs: dirs.clone(),
            config,
            config_path: args.config,
            listen,
            server: server.clone(),
            commands,
            shutdown: shutdown.clone(),
            inherited_nofile,
        };
        let result = body(daemon).await;
        watchdog.abort();
        watching.abort();
        notify(&[sd_notify::NotifyState::Stopping]);
        let reason = if result.is_ok() { "stopped" } else { "failed" };
        server.bye(reason).await;
        tracing::info!(%component, reason, "ended");
        let component = component.clone();
        match (result, removed.get().cloned()) {
            (Ok(()), None) => Ok(()),
            (Ok(()), Some(socket)) => Err(DaemonError::Removed { component, socket }),
            (Err(source), _) => Err(DaemonError::Body { component, source }),
        }
    });
    runtime.shutdown_timeout(Duration::from_millis(200));
    for socket in [
        dirs.bus_evt(&component),
        dirs.bus_cmd(&component),
        dirs.bus_log(&component),
    ] {
        let _ = std::fs::remove_file(socket);
    }
    drop(lock);
    result
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager was not notified");
    }
}

/// `WATCHDOG=1` at half the interval that the service manager asks for.
async fn watchdog() {
    let Some(interval) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut tick = Pulse::new((interval / 2).max(Duration::from_millis(10)));
    loop {
        tick.tick().await;
        notify(&[sd_notify::NotifyState::Watchdog]);
    }
}

fn watch_signals() -> std::io::Result<(Shutdown, Arc<watch::Sender<bool>>)> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let (sender, requested) = watch::channel(false);
    let sender = Arc::new(sender);
    let ending = sender.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            sender.send_replace(true);
        }
    });
    Ok((Shutdown { requested }, ending))
}

/// Raises the soft limit of open files to the hard one and returns what it was:
/// a thousand instances need several thousand descriptors, while a service
/// expects what the host gives (select(2) breaks above 1024).
fn raise_nofile() -> (u64, u64) {
    let before = getrlimit(Resource::Nofile);
    let unlimited = u64::MAX;
    let inherited = (
        before.current.unwrap_or(unlimited),
        before.maximum.unwrap_or(unlimited),
    );
    if let Err(error) = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: before.maximum,
            maximum: before.maximum,
        },
    ) {
        tracing::warn!(%error, "the limit of open files stays at {}", inherited.0);
    }
    inherited
}
