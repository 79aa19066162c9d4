//! From a specification to a running process: environment, fork server, shim.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::process::{Permit, SpawnFailure, SpawnSpec, SpawnStep};
use blackhole_bus_schema::rpc;
use tokio::sync::{Mutex, Notify, Semaphore};
use tokio::time::timeout;

use crate::adopt;
use crate::environment::{self, Environment, Host, Recipe};
use crate::host;
use crate::shim::client::{
    self, Attached, ClientError, ForkServer, ForkServerOptions, ShimEvents, ShimHandle, ShimPermit,
    SpawnError, SpawnRequest, Started,
};
use crate::shim::protocol::PROTOCOL;
use crate::shim::sweep;

/// Spawns on their way to the fork server at one time; others wait. It forks
/// one after the other, so more would only fill its socket's backlog.
const CONCURRENT: usize = 32;

/// How long a shim that holds an instance may take to answer, or to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the way from the fork server to exec may take. It is a matter of
/// milliseconds: what takes longer than this hangs.
const ANSWER: Duration = Duration::from_secs(20);

/// How many fork servers a spawn is asked of at most: the first may have been gone for long, the
/// second may just be going.
const ATTEMPTS: u32 = 4;

/// How long a spawn that is given up may still be answered: then nothing has to
/// be found out.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// Between two attempts to reach it.
const RETRY: Duration = Duration::from_millis(50);

/// A process that runs, its shim, and what happens to it.
type Running = (Started, ShimHandle, ShimEvents);

/// Makes environments.
#[derive(Debug)]
pub struct Environs {
    /// Where the RPC plane is.
    pub dirs: Dirs,
    /// The key that RPC tokens are made with; without one a service gets no
    /// token and the bridge refuses it.
    pub rpc_key: Option<rpc::Key>,
    /// Soft and hard limit of open files that the manager was started with.
    pub inherited_nofile: (u64, u64),
}

impl Environs {
    /// The environment of a service, without what belongs to its user. May block on files.
    ///
    /// # Errors
    /// When a reference cannot be resolved.
    pub fn build(&self, spec: &SpawnSpec) -> Result<Environment, SpawnFailure> {
        let blackhole = self.own(&spec.instance, spec.generation);
        let recipe = Recipe {
            env: &spec.env,
            files: &spec.settings.env_files,
            blackhole: &blackhole,
        };
        environment::build(&recipe, &Host).map_err(environment::EnvironmentError::into_failure)
    }

    /// The variables that are Blackhole's own.
    fn own(&self, instance: &InstanceName, generation: Generation) -> Vec<(&'static str, String)> {
        match &self.rpc_key {
            Some(key) => rpc::environment(&self.dirs, key, instance, generation).to_vec(),
            None => vec![
                ("BLACKHOLE_SERVICE", instance.service().to_string()),
                ("BLACKHOLE_INSTANCE", instance.to_string()),
            ],
        }
    }

    /// What changes in an environment with the generation.
    fn differences(
        &self,
        instance: &InstanceName,
        generation: Generation,
    ) -> BTreeMap<String, String> {
        let own = self.own(instance, generation).into_iter();
        own.map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

impl Environs {
    /// What the shim is sent. Blocks where files are asked for. Users are looked up
    /// by the shim, which also sets `HOME` and `USER`.
    ///
    /// # Errors
    /// When a reference cannot be resolved.
    pub fn request(&self, spec: &SpawnSpec) -> Result<SpawnRequest, SpawnFailure> {
        let environment = self.build(spec)?.into_map();
        let encoded = SpawnRequest::from_spec(&self.dirs, spec, environment, self.inherited_nofile);
        let mut request =
            encoded.map_err(|error| failure(&format!("encode the specification: {error}"), ""))?;
        request.permit = spec.permit.clone().map(|permit| ShimPermit {
            env: self.differences(&spec.instance, permit.generation),
            permit,
        });
        Ok(request)
    }

    /// What a shim gets with a permit that comes after the spawn of `spec`: the
    /// whole environment of the successor.
    ///
    /// # Errors
    /// In words, when a reference cannot be resolved.
    pub async fn permit(
        self: Arc<Self>,
        spec: Arc<SpawnSpec>,
        permit: Permit,
    ) -> Result<ShimPermit, String> {
        let work = move || {
            let successor = SpawnSpec {
                generation: permit.generation,
                ..(*spec).clone()
            };
            let env = self.build(&successor);
            let env = env.map_err(|failure| failure.to_string())?.into_map();
            Ok(ShimPermit { permit, env })
        };
        // References to files may block.
        match tokio::task::spawn_blocking(work).await {
            Ok(permit) => permit,
            Err(error) => Err(error.to_string()),
        }
    }
}

/// What a launch led to.
#[derive(Debug)]
pub enum Launch {
    /// The program runs.
    Running {
        /// Pid and times.
        started: Started,
        /// To ask its shim.
        handle: ShimHandle,
        /// What happens to it.
        events: ShimEvents,
        /// When the shim's answer came.
        answered: Instant,
    },
    /// It does not.
    Failed(SpawnFailure),
    /// Given up before there was a process.
    Cancelled,
}

/// Tells a launch that it is not wanted any more. Clones tell the same.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<(AtomicBool, Notify)>);

impl Cancel {
    /// Gives the launch up, if its process does not exist yet.
    pub fn cancel(&self) {
        self.0.0.store(true, Ordering::Release);
        self.0.1.notify_waiters();
    }

    fn is_cancelled(&self) -> bool {
        self.0.0.load(Ordering::Acquire)
    }

    /// Waits until it is not wanted any more. Cancel safe.
    async fn cancelled(&self) {
        // Hears of what is told from here on: what was told before shows next.
        let told = self.0.1.notified();
        if !self.is_cancelled() {
            told.await;
        }
    }
}

/// Starts processes.
#[derive(Debug)]
pub struct Launcher {
    dirs: Dirs,
    /// Which process-manager this is.
    owner: String,
    environs: Arc<Environs>,
    options: ForkServerOptions,
    server: Mutex<Option<ForkServer>>,
    places: Semaphore,
}

impl Launcher {
    /// A launcher of the shims that `options` describe, for the process-manager `owner`.
    pub fn new(
        dirs: Dirs,
        owner: String,
        environs: Arc<Environs>,
        options: ForkServerOptions,
    ) -> Self {
        Self {
            dirs,
            owner,
            environs,
            options,
            server: Mutex::new(None),
            places: Semaphore::new(CONCURRENT),
        }
    }

    /// Makes environments, also for probes.
    pub fn environs(&self) -> &Arc<Environs> {
        &self.environs
    }

    /// The live fork server; starts one when there is none.
    ///
    /// # Errors
    /// When none can be started.
    pub async fn fork_server(&self, anew: bool) -> Result<ForkServer, ClientError> {
        let mut server = self.server.lock().await;
        if let Some(server) = server.as_ref().filter(|_| !anew) {
            return Ok(server.clone());
        }
        let ensured = ForkServer::ensure(&self.dirs, &self.options).await?;
        ensured.fill();
        *server = Some(ensured.clone());
        Ok(ensured)
    }

    /// Waits until no fork server lives. Cancel safe.
    pub async fn fork_server_gone(&self) {
        let lock = self
            .dirs
            .fork_server_dir()
            .join(format!("v{PROTOCOL}.lock"));
        host::lock_free(|| host::lock_holder(&lock)).await;
    }

    /// Starts one instance. Waits while too many are on their way.
    pub async fn launch(&self, spec: Arc<SpawnSpec>, cancel: Cancel) -> Launch {
        // Cancel safe: a place is taken or not.
        let place = tokio::select! {
            place = self.places.acquire() => place,
            () = cancel.cancelled() => return Launch::Cancelled,
        };
        let Ok(_place) = place else {
            return Launch::Cancelled;
        };
        if cancel.is_cancelled() {
            return Launch::Cancelled;
        }
        let begun = Instant::now();
        let request = match self.prepare(&spec).await {
            Ok(request) => request,
            Err(failure) => return Launch::Failed(failure),
        };
        let prepared = begun.elapsed();
        if cancel.is_cancelled() {
            return Launch::Cancelled;
        }
        match self.spawn(&request, &cancel).await {
            Ok((mut started, handle, events)) => {
                add_preparation(&mut started, prepared);
                Launch::Running {
                    started,
                    handle,
                    events,
                    answered: Instant::now(),
                }
            }
            Err(SpawnError::Failed(failure) | SpawnError::Held { failure, .. }) => {
                Launch::Failed(failure)
            }
            // It has left nothing: `ask` makes sure of that.
            Err(SpawnError::Client(_)) if cancel.is_cancelled() => Launch::Cancelled,
            Err(SpawnError::Client(error)) => Launch::Failed(no_shim(&error)),
        }
    }

    async fn prepare(&self, spec: &Arc<SpawnSpec>) -> Result<SpawnRequest, SpawnFailure> {
        let blocks = environment::reads_files(spec);
        let (environs, dirs, spec) = (self.environs.clone(), self.dirs.clone(), spec.clone());
        let owner = self.owner.clone();
        let work = move || {
            adopt::claim(&dirs, &spec.instance, &owner).map_err(|error| {
                failure(&format!("claim {}: {}", spec.instance, chain(&error)), "")
            })?;
            environs.request(&spec)
        };
        if !blocks {
            return work();
        }
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) => Err(failure("prepare the environment", &error.to_string())),
        }
    }

    /// Spawns. Who holds the instance already is taken over when it is this very
    /// spawn, and killed when it is an earlier one: both were asked for by a
    /// manager that did not live to see them.
    async fn spawn(&self, request: &SpawnRequest, cancel: &Cancel) -> Result<Running, SpawnError> {
        let (shim_pid, failure) = match self.ask(request, cancel).await {
            Err(SpawnError::Held { shim_pid, failure }) => (shim_pid, failure),
            other => return other,
        };
        let name = &request.instance;
        tracing::warn!(instance = %name, shim_pid, "held by a shim that this manager does not know");
        match self.attach(name).await {
            Ok(attached) if attached.status.generation == request.generation => {
                return Ok((attached.status.started, attached.handle, attached.events));
            }
            Ok(attached) if attached.status.generation > request.generation => {
                return Err(SpawnError::Held { shim_pid, failure });
            }
            Ok(attached) => attached.handle.kill(false).await?,
            Err(ClientError::NoShim { .. }) => {}
            Err(error) => {
                tracing::error!(instance = %name, error = chain(&error), "killing it");
                self.kill_shim(request).await?;
            }
        }
        let folder = self.dirs.instance(name);
        if timeout(PATIENCE, adopt::shim_gone(&folder)).await.is_err() {
            return Err(SpawnError::Held { shim_pid, failure });
        }
        self.ask(request, cancel).await
    }

    /// Connects to the shim that holds an instance, also to one that took it
    /// only just now and does not listen yet.
    async fn attach(&self, name: &InstanceName) -> Result<Attached, ClientError> {
        let until = Instant::now() + PATIENCE;
        loop {
            match client::attach(&self.dirs, name).await {
                Err(ClientError::Unreachable { .. }) if Instant::now() < until => {
                    // No event tells that a socket has come to listen.
                    tokio::time::sleep(RETRY).await;
                }
                other => return other,
            }
        }
    }

    /// Kills a shim that does not answer, and all of its service.
    async fn kill_shim(&self, request: &SpawnRequest) -> Result<(), ClientError> {
        let folder = self.dirs.instance(&request.instance);
        let at = folder.clone();
        let killed = tokio::task::spawn_blocking(move || adopt::kill_shim(&at)).await;
        let killed = killed.map_err(std::io::Error::from).flatten();
        killed.map_err(|source| ClientError::Io {
            operation: "kill the shim that holds",
            path: folder.clone(),
            source,
        })?;
        if timeout(PATIENCE, adopt::shim_gone(&folder)).await.is_ok() {
            let (socket, grant) = (request.socket.clone(), request.grant.clone());
            let _ = tokio::task::spawn_blocking(move || sweep(&socket, grant.as_ref())).await;
        }
        Ok(())
    }

    /// Asks the fork server, and another one where it was lost or hangs. After an
    /// error nothing of this spawn runs or will.
    async fn ask(&self, request: &SpawnRequest, cancel: &Cancel) -> Result<Running, SpawnError> {
        let mut server = self.fork_server(false).await?;
        let mut hangs = 0;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let error = match self.answer(&server, request, cancel).await {
                Err(SpawnError::Client(error)) => error,
                other => return other,
            };
            // The process may exist although the answer was lost: then it is adopted on the spot.
            if let Some(running) = self.begun(request, &error).await? {
                return Ok(running);
            }
            let hung = matches!(error, ClientError::Hung { .. });
            hangs += u32::from(hung);
            if attempt == ATTEMPTS || hangs == 2 || cancel.is_cancelled() {
                return Err(error.into());
            }
            tracing::warn!(instance = %request.instance, error = chain(&error), "the fork server is tried again");
            if hung {
                // Whoever else waits for it is answered by its end.
                ForkServer::kill(&self.dirs, server.pid()).await?;
            }
            server = self.fork_server(true).await?;
        }
    }

    /// The fork server's answer, in time and while it is wanted. A request that is
    /// given up is not begun by a shim any more, unless it has been.
    async fn answer(
        &self,
        server: &ForkServer,
        request: &SpawnRequest,
        cancel: &Cancel,
    ) -> Result<Running, SpawnError> {
        let begun = Instant::now();
        let hook = request.settings.hooks.before_start.as_ref();
        let hook = hook.map_or(0, |hook| hook.timeout_ms);
        let within = ANSWER.saturating_add(Duration::from_millis(hook));
        let mut answer = std::pin::pin!(timeout(within, server.spawn(request)));
        // Cancel safe: both go on where they were.
        let answered = tokio::select! {
            answered = &mut answer => answered.ok(),
            () = cancel.cancelled() => {
                timeout(LAST_MOMENT, answer).await.ok().and_then(Result::ok)
            }
        };
        let after = begun.elapsed();
        answered.unwrap_or(Err(ClientError::Hung { after }.into()))
    }

    /// The process of a spawn whose answer did not come, where a shim had begun
    /// with it. A shim that hangs over it is killed.
    async fn begun(
        &self,
        request: &SpawnRequest,
        error: &ClientError,
    ) -> Result<Option<Running>, SpawnError> {
        let hung = matches!(error, ClientError::Hung { .. });
        let attached = match hung {
            // It holds the instance already, or sees that nobody waits for it.
            true => self.attach(&request.instance).await,
            false => client::attach(&self.dirs, &request.instance).await,
        };
        match attached {
            Ok(attached) if attached.status.generation == request.generation => Ok(Some((
                attached.status.started,
                attached.handle,
                attached.events,
            ))),
            Err(ClientError::Unreachable { .. }) if hung => {
                tracing::error!(instance = %request.instance, "a shim hangs over its start: killing it");
                self.kill_shim(request).await?;
                Ok(None)
            }
            // It was lost before it had a service; what its hook had begun goes.
            Err(ClientError::NoShim { dir }) if adopt::left_behind(&dir) => {
                let (socket, grant) = (request.socket.clone(), request.grant.clone());
                let _ = tokio::task::spawn_blocking(move || sweep(&socket, grant.as_ref())).await;
                Ok(None)
            }
            _ => Ok(None),
        }
    }
}

fn failure(operation: &str, hint: &str) -> SpawnFailure {
    SpawnFailure {
        step: SpawnStep::PrepareEnvironment,
        operation: operation.to_owned(),
        errno: 0,
        hint: hint.to_owned(),
    }
}

fn no_shim(error: &ClientError) -> SpawnFailure {
    let errno = match error {
        ClientError::Io { source, .. } => source.raw_os_error().unwrap_or(0),
        _ => 0,
    };
    SpawnFailure {
        step: SpawnStep::PrepareEnvironment,
        operation: error.to_string(),
        errno,
        hint: "the fork server blackhole-shim must be installed beside the process-manager; \
               its output is in log/fork-server.log of the state directory"
            .to_owned(),
    }
}

/// The manager's part of the first step comes on top of the shim's.
fn add_preparation(started: &mut Started, prepared: Duration) {
    let step = SpawnStep::PrepareEnvironment;
    if let Some(step) = started.steps.iter_mut().find(|time| time.step == step) {
        step.took_ns = step.took_ns.saturating_add(nanoseconds(prepared));
    }
}

/// A duration as it travels.
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// An error with its causes, for one line of a log.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
