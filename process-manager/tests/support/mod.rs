//! A real process-manager on directories of its own, and a client on its bus.

#![allow(dead_code, missing_docs, unreachable_pub)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use blackhole_bus_schema::bus::{Interest, Link, LinkEvent, RequestError, item};
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::health::{Probe, ProbeCheck, ProbeResult, Probes};
use blackhole_bus_schema::message::{Command as BusCommand, Message};
use blackhole_bus_schema::names::{ClientName, Component, Generation, InstanceName};
use blackhole_bus_schema::process::{
    InstanceRecord, ListProcesses, LogSpec, ProcessChanged, ProcessNotified, Spawn, SpawnSpec,
    StateName, Stop, StopSpec,
};
use blackhole_bus_schema::reply::Status;
use blackhole_bus_schema::topic;
use blackhole_process_manager::host;
use blackhole_process_manager::shim::client::instance_lock_held;
use blackhole_process_manager::shim::protocol::PROTOCOL;
use rustix::process::{Pid, Signal};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// Against hangs only: no test expects anything to be this slow.
pub const LIMIT: Duration = Duration::from_secs(60);

/// What the bus said, in order.
#[derive(Debug, Clone)]
pub enum Told {
    Up(u64),
    Down,
    Snapshot(Vec<InstanceRecord>),
    Changed(Box<ProcessChanged>, Option<uuid::Uuid>),
    Notified(ProcessNotified),
    Probe(ProbeResult),
}

pub struct Bench {
    pub dirs: Dirs,
    pub link: Link,
    pub manager: Option<Child>,
    /// Everything told so far.
    pub history: Vec<Told>,
    /// The program that the manager is told to use.
    pub shim: PathBuf,
    events: mpsc::Receiver<LinkEvent>,
    variables: Vec<(String, String)>,
    temp: TempDir,
}

impl Bench {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts a manager with these variables in its environment.
    pub async fn start_with(variables: &[(&str, &str)]) -> Self {
        let mut bench = Self::prepare(variables).await;
        bench.start_manager().await;
        bench
    }

    /// Everything but the manager.
    pub async fn prepare(variables: &[(&str, &str)]) -> Self {
        let temp = tempfile::Builder::new().prefix("bhpm").tempdir().unwrap();
        let dirs = Dirs::resolve(Some(temp.path().join("r")), Some(temp.path().join("s"))).unwrap();
        let me = ClientName::fresh("test");
        let interest = Interest::none()
            .stream::<ListProcesses>(topic::PROCESS)
            .prefix(topic::HEALTH);
        dirs.create().unwrap();
        let (link, events) = Link::open(&dirs, me, Component::ProcessManager(None), interest)
            .await
            .unwrap();
        let variables = variables
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        Self {
            dirs,
            link,
            manager: None,
            history: Vec::new(),
            shim: PathBuf::from(env!("CARGO_BIN_EXE_blackhole-shim")),
            events,
            variables,
            temp,
        }
    }

    /// Starts the manager and waits for its first snapshot. Returns it.
    pub async fn start_manager(&mut self) -> Vec<InstanceRecord> {
        let before = self.incarnation();
        let known = self.history.len();
        self.launch_manager();
        let mut up = false;
        self.wait("a snapshot of the new manager", known, |told| match told {
            Told::Up(incarnation) => {
                up |= *incarnation > before;
                None
            }
            Told::Snapshot(records) if up => Some(records.clone()),
            _ => None,
        })
        .await
    }

    /// The last life of the manager that was heard of.
    fn incarnation(&self) -> u64 {
        let ups = self.history.iter().filter_map(|told| match told {
            Told::Up(incarnation) => Some(*incarnation),
            _ => None,
        });
        ups.max().unwrap_or(0)
    }

    pub fn launch_manager(&mut self) {
        assert!(self.manager.is_none());
        let output = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.manager_log())
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_blackhole-process-manager"))
            .arg("--run-dir")
            .arg(&self.dirs.run)
            .arg("--state-dir")
            .arg(&self.dirs.state)
            .arg("--shim")
            .arg(&self.shim)
            .env("BLACKHOLE_LOG", "debug,omq_tokio=warn")
            .env_remove("BLACKHOLE_CONFIG")
            .envs(self.variables.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .unwrap();
        self.manager = Some(child);
    }

    /// Where the manager's own words are.
    pub fn manager_log(&self) -> PathBuf {
        self.temp.path().join("manager.log")
    }

    /// A file in the bench's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// It takes nothing in any more; killed it can be.
    pub fn pause_manager(&self) {
        send(self.manager.as_ref().unwrap().id(), Signal::STOP);
    }

    /// kill -9 of the manager.
    pub fn kill_manager(&mut self) {
        let mut child = self.manager.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM to the manager; waits for its end.
    pub fn end_manager(&mut self) -> std::process::ExitStatus {
        let mut child = self.manager.take().unwrap();
        rustix::process::kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        child.wait().unwrap()
    }

    pub async fn request<C: BusCommand>(&self, command: &C) -> Result<C::Reply, RequestError> {
        self.link.request(command, LIMIT).await
    }

    pub async fn spawn(&self, spec: &SpawnSpec) -> Result<InstanceRecord, RequestError> {
        self.request(&Spawn { spec: spec.clone() }).await
    }

    /// Starts what must run.
    pub async fn run(&self, spec: &SpawnSpec) -> InstanceRecord {
        let record = self.spawn(spec).await.unwrap();
        assert_eq!(
            record.state.name(),
            StateName::Running,
            "{record:#?}\n{}",
            self.words()
        );
        record
    }

    pub async fn stop(
        &self,
        instance: &str,
        generation: u64,
    ) -> Result<InstanceRecord, RequestError> {
        self.request(&stop(instance, generation)).await
    }

    pub async fn list(&self) -> Vec<InstanceRecord> {
        self.request(&ListProcesses::default()).await.unwrap().items
    }

    /// Takes in what the bus says until `wanted` finds what it looks for,
    /// looking from the `from`th thing told on.
    pub async fn wait<T>(
        &mut self,
        what: &str,
        from: usize,
        mut wanted: impl FnMut(&Told) -> Option<T>,
    ) -> T {
        let mut looked = from;
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            while let Some(told) = self.history.get(looked) {
                looked += 1;
                if let Some(found) = wanted(told) {
                    return found;
                }
            }
            let event = tokio::time::timeout_at(deadline, self.events.recv()).await;
            let Ok(Some(event)) = event else {
                panic!(
                    "waited in vain for {what}; told: {:#?}\n{}",
                    self.history,
                    self.words()
                )
            };
            self.note(event);
        }
    }

    /// Waits until an instance is in a state; looks at everything told so far.
    pub async fn state(
        &mut self,
        instance: &str,
        generation: u64,
        state: StateName,
    ) -> InstanceRecord {
        let name = name(instance);
        self.wait(&format!("{instance} to be {state}"), 0, |told| match told {
            Told::Changed(changed, _)
                if changed.record.instance == name
                    && changed.record.generation == Generation(generation)
                    && changed.record.state.name() == state =>
            {
                Some(changed.record.clone())
            }
            _ => None,
        })
        .await
    }

    /// Waits for a result of a probe, from the `from`th thing told on.
    pub async fn probe(
        &mut self,
        what: &str,
        from: usize,
        wanted: impl Fn(&ProbeResult) -> bool,
    ) -> ProbeResult {
        self.wait(what, from, |told| match told {
            Told::Probe(result) if wanted(result) => Some(result.clone()),
            _ => None,
        })
        .await
    }

    fn note(&mut self, event: LinkEvent) {
        let told = match event {
            LinkEvent::Up(info) => Told::Up(info.incarnation),
            LinkEvent::Down => Told::Down,
            LinkEvent::Snapshot { items, .. } => Told::Snapshot(
                items
                    .into_iter()
                    .map(|value| item::<InstanceRecord>(value).unwrap())
                    .collect(),
            ),
            LinkEvent::Lagged { dropped } => panic!("the test was too slow: {dropped}"),
            LinkEvent::Event(received) => match received.kind() {
                ProcessChanged::KIND => {
                    Told::Changed(Box::new(received.parse().unwrap()), received.envelope.cause)
                }
                ProcessNotified::KIND => Told::Notified(received.parse().unwrap()),
                ProbeResult::KIND => Told::Probe(received.parse().unwrap()),
                _ => return,
            },
        };
        self.history.push(told);
    }

    /// Takes in what has come already: everything published before the answer
    /// to a request that is made now.
    pub async fn settle(&mut self) {
        // Answers and events come over one socket, in the order of their sending.
        self.list().await;
        while let Ok(event) = self.events.try_recv() {
            self.note(event);
        }
    }

    /// The states that an instance passed, as told, with whether a command led there.
    pub fn passed(&self, instance: &str) -> Vec<(Option<StateName>, StateName, bool)> {
        let name = name(instance);
        self.history
            .iter()
            .filter_map(|told| match told {
                Told::Changed(changed, cause) if changed.record.instance == name => {
                    Some((changed.from, changed.record.state.name(), cause.is_some()))
                }
                _ => None,
            })
            .collect()
    }

    /// What the manager said of itself, for a failing test.
    pub fn words(&self) -> String {
        let text = std::fs::read_to_string(self.manager_log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Pid of the shim of a live instance.
    pub fn shim(&self, instance: &str) -> u32 {
        instance_lock_held(&self.dirs.instance(&name(instance)))
            .unwrap()
            .expect("a live shim")
    }

    pub fn fork_server_lock(&self) -> PathBuf {
        self.dirs
            .fork_server_dir()
            .join(format!("v{PROTOCOL}.lock"))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(mut child) = self.manager.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Ok(Some(pid)) = host::lock_holder(&self.fork_server_lock()) {
            kill(pid);
        }
        for entry in std::fs::read_dir(self.dirs.state.join("instances"))
            .into_iter()
            .flatten()
            .flatten()
        {
            if let Ok(Some(pid)) = instance_lock_held(&entry.path()) {
                kill(pid);
            }
        }
        // Whatever a service left behind names the bench's directory in its environment.
        for pid in processes_naming(&self.dirs.run) {
            kill(pid);
        }
    }
}

/// Pids of processes whose environment names a directory.
pub fn processes_naming(directory: &Path) -> Vec<u32> {
    let needle = directory.to_str().unwrap().as_bytes();
    let own = std::process::id();
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment
                .windows(needle.len())
                .any(|window| window == needle)
        })
        .collect()
}

/// Pids of the live processes of one instance below a run directory, its service's
/// and those that this has started.
pub fn members(run: &Path, instance: &str) -> Vec<u32> {
    let wanted = format!("BLACKHOLE_INSTANCE={instance}");
    let mut found = processes_naming(run);
    found.retain(|pid| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut all = environment.split(|byte| *byte == 0);
        runs(*pid) && all.any(|one| one == wanted.as_bytes())
    });
    found
}

/// Waits for so long without giving the processor away: for moments that no
/// timer meets.
pub fn spin(time: Duration) {
    let begun = std::time::Instant::now();
    while begun.elapsed() < time {
        std::hint::spin_loop();
    }
}

pub fn kill(pid: u32) {
    send(pid, Signal::KILL);
}

pub fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let _ = rustix::process::kill_process(pid, signal);
}

/// Whether a process runs (a zombie does not).
pub fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| {
        rest.split_ascii_whitespace()
            .next()
            .is_some_and(|state| !["Z", "X"].contains(&state))
    })
}

/// Waits until a process has ended.
pub async fn gone(pid: u32) {
    until(&format!("the end of process {pid}"), || {
        (!runs(pid)).then_some(())
    })
    .await;
}

/// Waits for a condition that no event tells of.
pub async fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "waited in vain for {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn name(text: &str) -> InstanceName {
    text.parse().unwrap()
}

/// The record of an instance among others.
#[track_caller]
pub fn find<'a>(records: &'a [InstanceRecord], instance: &str) -> &'a InstanceRecord {
    let found = records.iter().find(|one| one.instance == name(instance));
    found.unwrap_or_else(|| panic!("{instance} is missing: {records:#?}"))
}

pub fn spec(instance: &str, generation: u64, command: &[&str]) -> SpawnSpec {
    SpawnSpec {
        instance: name(instance),
        generation: Generation(generation),
        command: command.iter().map(|part| (*part).to_owned()).collect(),
        env: BTreeMap::new(),
        working_dir: None,
        user: None,
        group: None,
        open_files: None,
        stop: StopSpec {
            signal: 15,
            grace_ms: 10_000,
        },
        success_codes: vec![0],
        probes: Default::default(),
        logs: LogSpec::default(),
        grant: None,
        permit: None,
        restarts: 0,
        settings: Default::default(),
    }
}

/// A service of a shell's script.
pub fn script(instance: &str, generation: u64, script: &str) -> SpawnSpec {
    spec(instance, generation, &["/bin/sh", "-c", script])
}

/// One that runs until it is stopped.
pub fn sleeper(instance: &str, generation: u64) -> SpawnSpec {
    spec(instance, generation, &["/bin/sleep", "100000"])
}

pub fn stop(instance: &str, generation: u64) -> Stop {
    Stop {
        instance: name(instance),
        generation: Generation(generation),
        stop: None,
        unhealthy: false,
        again: false,
    }
}

/// A readiness probe alone.
pub fn readiness(check: ProbeCheck) -> Probes {
    Probes {
        readiness: Some(probe(check)),
        ..Probes::default()
    }
}

pub fn probe(check: ProbeCheck) -> Probe {
    Probe {
        check,
        initial_delay_ms: 0,
        interval_ms: 20,
        timeout_ms: 20_000,
        failure_threshold: 3,
        success_threshold: 1,
    }
}

/// The refusal of a request that must be refused.
pub fn refused<T: std::fmt::Debug>(result: Result<T, RequestError>) -> Status {
    match result {
        Err(RequestError::Status(status)) => status,
        other => panic!("not refused: {other:?}"),
    }
}
