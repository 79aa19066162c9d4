//! The daemons, with limits, on directories of their own, and the bus to them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blackhole_bus_schema::bus::{Interest, Link, LinkEvent};
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::message::{Command, Message};
use blackhole_bus_schema::names::{ClientName, Component};
use blackhole_bus_schema::process::{ListProcesses, ProcessChanged, StateName};
use blackhole_bus_schema::supervision::{StartServices, StopServices, Target};
use blackhole_bus_schema::topic;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::tiny::Tiny;
use crate::{Daemon, runtime};

/// For requests and for what is waited for.
pub const BUDGET: Duration = Duration::from_secs(120);

/// Supervisor, process-manager and resource-controller with a configuration.
#[derive(Debug)]
pub struct System {
    /// The service.
    pub tiny: Tiny,
    /// Its directories.
    pub dirs: Dirs,
    /// Its configuration file.
    pub config: PathBuf,
    /// For requests.
    pub runtime: Runtime,
    supervisor: Link,
    manager: Link,
    changes: mpsc::Receiver<LinkEvent>,
    daemons: BTreeMap<&'static str, Daemon>,
    // Last: they are removed when everything else is gone.
    _run: TempDir,
    temp: TempDir,
}

/// In the order in which they end.
const DAEMONS: [&str; 3] = [
    "blackhole-supervisor",
    "blackhole-process-manager",
    "blackhole-resource-controller",
];

impl System {
    /// Starts the daemons. `services` makes the `services` section (indented by
    /// two) from the command of the smallest service.
    ///
    /// # Panics
    /// When one cannot be started.
    pub fn start(services: impl FnOnce(&str) -> String) -> Self {
        let temp = match tempfile::Builder::new()
            .prefix("bh-bench-")
            .tempdir_in("/tmp")
        {
            Ok(temp) => temp,
            Err(error) => panic!("a temporary directory: {error}"),
        };
        // Where a host has its run directory too: in memory.
        let memory = Path::new("/dev/shm");
        let run = tempfile::Builder::new()
            .prefix("bh-bench-")
            .tempdir_in(if memory.is_dir() { memory } else { temp.path() });
        let run = match run {
            Ok(run) => run,
            Err(error) => panic!("a run directory: {error}"),
        };
        let tiny = Tiny::new(temp.path());
        let dirs = Dirs {
            run: run.path().join("r"),
            state: temp.path().join("s"),
        };
        let text = format!(
            "runtime:\n  orchestrator:\n    max_processes: 100000\n    restart_burst: 100000\n    \
             resource_limits: {{default_cpu_percent: 100, default_memory_mb: 64, default_io_weight: 100}}\n    \
             restart_policy: {{max_attempts: 10000, initial_backoff: 1ms, max_backoff: 1ms, jitter: 0%, reset_after: 1ms}}\n\
             services:\n{}",
            services(&tiny.yaml())
        );
        let config = temp.path().join("blackhole.yaml");
        if let Err(error) = dirs
            .create()
            .map_err(|error| error.to_string())
            .and_then(|()| std::fs::write(&config, text).map_err(|error| error.to_string()))
        {
            panic!("directories and configuration: {error}");
        }
        let daemons: BTreeMap<_, _> = DAEMONS
            .iter()
            .rev()
            .map(|name| (*name, Daemon::configured(name, &dirs, Some(&config))))
            .collect();
        let runtime = runtime();
        let opened = runtime.block_on(async {
            let me = ClientName::fresh("bench");
            let interest = Interest::none().prefix(topic::PROCESS);
            let (supervisor, _) =
                Link::open(&dirs, me.clone(), Component::Supervisor, Interest::none()).await?;
            let (manager, changes) =
                Link::open(&dirs, me.clone(), Component::ProcessManager(None), interest).await?;
            let (controller, _) =
                Link::open(&dirs, me, Component::ResourceController, Interest::none()).await?;
            for link in [&supervisor, &manager, &controller] {
                if let Err(error) = link.ready(BUDGET).await {
                    panic!("a daemon is not ready: {error}");
                }
            }
            Ok::<_, blackhole_bus_schema::bus::BusError>((supervisor, manager, changes))
        });
        let (supervisor, manager, changes) = match opened {
            Ok(opened) => opened,
            Err(error) => panic!("the bus: {error}"),
        };
        Self {
            tiny,
            dirs,
            config,
            runtime,
            supervisor,
            manager,
            changes,
            daemons,
            _run: run,
            temp,
        }
    }

    /// Where temporary things may be put.
    pub fn directory(&self) -> &Path {
        self.temp.path()
    }

    /// For requests to the supervisor.
    pub fn requests(&self) -> Link {
        self.supervisor.clone()
    }

    /// A request to the supervisor.
    ///
    /// # Panics
    /// When it is refused.
    pub fn ask<C: Command + Sync>(&self, command: &C) -> C::Reply {
        match self
            .runtime
            .block_on(self.supervisor.request(command, BUDGET))
        {
            Ok(reply) => reply,
            Err(error) => panic!("{}: {error}", C::KIND),
        }
    }

    /// Starts a service and returns when it is ready.
    ///
    /// # Panics
    /// When it is refused.
    pub fn up(&self, service: &str) {
        self.ask(&StartServices {
            target: target(service),
        });
    }

    /// Stops a service and returns when nothing of it is left.
    ///
    /// # Panics
    /// When it is refused.
    pub fn down(&self, service: &str) {
        self.ask(&StopServices {
            target: target(service),
            transient: false,
        });
    }

    /// Waits for the event that an instance of `service` runs.
    ///
    /// # Panics
    /// When none comes.
    pub fn await_running(&mut self, service: &str) {
        let prefix = format!("{}{service}.", topic::PROCESS);
        let changes = &mut self.changes;
        let wait = async {
            while let Some(event) = changes.recv().await {
                let LinkEvent::Event(received) = event else {
                    continue;
                };
                if received.kind() != ProcessChanged::KIND
                    || !received.topic.to_string().starts_with(&prefix)
                {
                    continue;
                }
                if let Ok(changed) = received.parse::<ProcessChanged>()
                    && changed.record.state.name() == StateName::Running
                {
                    return;
                }
            }
        };
        let found = async { tokio::time::timeout(BUDGET, wait).await };
        if self.runtime.block_on(found).is_err() {
            panic!("no instance of {service} came to run");
        }
    }

    /// Forgets the events that have come.
    pub fn clear_events(&mut self) {
        self.runtime.block_on(tokio::task::yield_now());
        while self.changes.try_recv().is_ok() {}
    }

    /// How many processes live, as the process-manager says.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn living(&self) -> usize {
        self.runtime.block_on(async {
            let (mut after, mut living) = (None, 0);
            loop {
                let page = ListProcesses {
                    after,
                    probes: false,
                };
                match self.manager.request(&page, BUDGET).await {
                    Ok(page) => {
                        let live = page.items.iter().filter(|record| record.state.is_live());
                        living += live.count();
                        match page.next {
                            Some(next) => after = Some(next),
                            None => return living,
                        }
                    }
                    Err(error) => panic!("process.list: {error}"),
                }
            }
        })
    }

    /// Kills the process-manager and starts another one.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn replace_manager(&mut self) {
        let name = "blackhole-process-manager";
        self.daemons.remove(name);
        self.daemons.insert(
            name,
            Daemon::configured(name, &self.dirs, Some(&self.config)),
        );
    }

    /// All processes of ours: daemons, fork server, shims.
    pub fn processes(&self) -> Vec<u32> {
        let mut all: Vec<u32> = self.daemons.values().map(Daemon::pid).collect();
        all.extend(shims(&self.dirs));
        all
    }

    /// The processor time so far of each daemon, of the fork server and all shims, and of all services.
    pub fn processor_time(&self) -> Vec<(&'static str, Duration)> {
        let mut all: Vec<_> = self
            .daemon_pids()
            .into_iter()
            .map(|(name, pid)| (name, processor_time(pid)))
            .collect();
        let shims = shims(&self.dirs);
        let sum = |pids: &[u32]| pids.iter().map(|pid| processor_time(*pid)).sum();
        all.push(("shims", sum(&shims)));
        // The fork server's children are shims.
        let services: Vec<u32> = shims
            .iter()
            .flat_map(|shim| children(*shim))
            .filter(|child| !shims.contains(child))
            .collect();
        all.push(("services, from their birth", sum(&services)));
        all
    }

    /// The daemons alone.
    pub fn daemon_pids(&self) -> Vec<(&'static str, u32)> {
        let all = self.daemons.iter();
        all.map(|(name, daemon)| (*name, daemon.pid())).collect()
    }
}

impl Drop for System {
    fn drop(&mut self) {
        let stopped = self.runtime.block_on(self.supervisor.request(
            &StopServices {
                target: Target::All,
                transient: true,
            },
            BUDGET,
        ));
        if let Err(error) = stopped {
            eprintln!("services are not stopped: {error}");
        }
        for name in DAEMONS {
            if let Some(daemon) = self.daemons.get_mut(name) {
                daemon.end();
            }
        }
        for pid in shims(&self.dirs) {
            let pid = i32::try_from(pid)
                .ok()
                .and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

fn target(service: &str) -> Target {
    match service.parse() {
        Ok(name) => Target::Services(vec![name]),
        Err(error) => panic!("{service}: {error}"),
    }
}

/// Fork server and shims of these directories: they keep its arguments.
pub fn shims(dirs: &Dirs) -> Vec<u32> {
    let needle = dirs.run.display().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments);
        if arguments.contains("blackhole-shim") && arguments.contains(&needle) {
            found.push(pid);
        }
    }
    found
}

/// What processes have cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Time on a processor.
    pub cpu: Duration,
    /// Times that they were put to sleep by themselves, which is how often they were woken.
    pub sleeps: u64,
    /// Proportional set size in KiB.
    pub pss_kib: u64,
}

/// What all threads of a process have run so far (`schedstat`, see proc(5)).
fn processor_time(pid: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    let nanos = tasks.into_iter().flatten().flatten().map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let nanos = text.split(' ').next().and_then(|word| word.parse().ok());
        Duration::from_nanos(nanos.unwrap_or(0))
    });
    nanos.sum()
}

fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let text = text.unwrap_or_default();
    let pids = text.split_ascii_whitespace();
    pids.filter_map(|pid| pid.parse().ok()).collect()
}

/// Adds up what processes have cost since their start.
pub fn cost(pids: &[u32]) -> Cost {
    let mut sum = Cost::default();
    for pid in pids {
        sum.cpu += processor_time(*pid);
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
            sum.sleeps += number_after(&text, "voluntary_ctxt_switches:");
        }
        let rollup = format!("/proc/{pid}/smaps_rollup");
        let text = std::fs::read_to_string(rollup).unwrap_or_default();
        sum.pss_kib += number_after(&text, "Pss:");
    }
    sum
}

fn number_after(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}
