//! A subtree for one test, and processes that join an instance's groups.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use blackhole_bus_schema::limits::{JoinMethod, LimitGrant, Limits};
use blackhole_bus_schema::names::InstanceName;
use blackhole_resource_controller::cgroup::{Engine, Prepared, Reading, Settings};

/// Longest wait for a condition; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn instance(name: &str) -> InstanceName {
    name.parse().unwrap()
}

/// An engine in a subtree of its own, which is emptied and removed at the end.
pub(crate) struct Host {
    engine: Option<Engine>,
    settings: Settings,
    dirs: Vec<PathBuf>,
    children: Vec<Child>,
    _state: tempfile::TempDir,
}

impl Host {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let state = tempfile::tempdir().unwrap();
        let settings = Settings {
            subtree: format!("bh-test-{}-{number}", std::process::id()),
            parent: std::env::var("BLACKHOLE_TEST_CGROUP_PARENT").ok(),
            record: Some(state.path().join("cgroups.json")),
        };
        let engine = Some(Engine::open(settings.clone()));
        Self {
            engine,
            settings,
            dirs: Vec::new(),
            children: Vec::new(),
            _state: state,
        }
    }

    /// `None` (said on stderr) where no group can be made or controllers are missing.
    pub(crate) fn able() -> Option<Self> {
        let host = Self::new();
        match host.engine().problem() {
            None => Some(host),
            Some(problem) => {
                eprintln!("skipped: {problem}");
                None
            }
        }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    pub(crate) fn engine_mut(&mut self) -> &mut Engine {
        self.engine.as_mut().unwrap()
    }

    /// Ends the engine without an orderly end, as a kill would, and starts another.
    pub(crate) fn restart(&mut self) {
        drop(self.engine.take());
        self.engine = Some(Engine::open(self.settings.clone()));
    }

    /// Ends the engine in order; true when it left nothing.
    pub(crate) fn close(&mut self) -> bool {
        self.engine.take().unwrap().close()
    }

    pub(crate) fn prepare(&mut self, name: &str, limits: &Limits) -> Prepared {
        let prepared = self.engine_mut().prepare(&instance(name), limits, None);
        self.dirs.extend(
            prepared
                .grant
                .cgroups
                .iter()
                .map(|dir| PathBuf::from(&dir.path)),
        );
        prepared
    }

    pub(crate) fn reading(&mut self, name: &str) -> Reading {
        let wanted = instance(name);
        let sample = self.engine_mut().sample();
        sample
            .into_iter()
            .find(|(instance, _)| *instance == wanted)
            .unwrap()
            .1
    }

    /// Starts a shell command in the granted groups, joined before its exec as a shim does it.
    pub(crate) fn spawn(&mut self, grant: &LimitGrant, script: &str) -> u32 {
        let joins: String = grant
            .cgroups
            .iter()
            .map(|dir| {
                let file = match dir.join {
                    JoinMethod::V1Tasks => "tasks",
                    JoinMethod::V2 => "cgroup.procs",
                };
                format!("echo 0 > '{}/{file}' || exit 99\n", dir.path)
            })
            .collect();
        let child = Command::new("/bin/sh")
            .arg("-c")
            .arg(format!("{joins}{script}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id();
        self.children.push(child);
        pid
    }

    pub(crate) fn wait(&mut self, pid: u32) -> std::process::ExitStatus {
        let child = self
            .children
            .iter_mut()
            .find(|child| child.id() == pid)
            .unwrap();
        child.wait().unwrap()
    }

    /// Kills a process that [`Self::spawn`] started, and reaps it.
    pub(crate) fn kill(&mut self, pid: u32) {
        let child = self
            .children
            .iter_mut()
            .find(|child| child.id() == pid)
            .unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Kills everything in the groups of one instance of this test.
    pub(crate) fn kill_all(&mut self, grant: &LimitGrant) {
        for dir in &grant.cgroups {
            let procs = format!("{}/cgroup.procs", dir.path);
            for pid in std::fs::read_to_string(procs).unwrap().lines() {
                let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }

    /// Releases, waiting while the kernel is not done with the last process.
    pub(crate) fn release(&mut self, name: &str) {
        let name = instance(name);
        wait_for("the groups are gone", || {
            self.engine_mut()
                .release(&name)
                .map_err(|error| error.to_string())
        });
    }

    /// Everything in this test's subtrees, by a direct look.
    pub(crate) fn left(&self) -> Vec<&Path> {
        self.dirs
            .iter()
            .map(PathBuf::as_path)
            .filter(|dir| dir.exists())
            .collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // What this test started, and what that started in this test's own groups.
        for dir in &self.dirs {
            let _ = std::fs::write(dir.join("cgroup.kill"), "1");
        }
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let start = Instant::now();
        while start.elapsed() < PATIENCE
            && self
                .dirs
                .iter()
                .rev()
                .any(|dir| dir.exists() && std::fs::remove_dir(dir).is_err())
        {
            std::thread::yield_now();
        }
        drop(self.engine.take());
        Engine::open(self.settings.clone()).close();
    }
}

/// Tries until it succeeds; the last answer is in the panic.
pub(crate) fn wait_for<T, E: std::fmt::Debug>(
    what: &str,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> T {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) if start.elapsed() > PATIENCE => {
                panic!("waited for: {what}; last: {error:?}")
            }
            Err(_) => std::thread::yield_now(),
        }
    }
}
