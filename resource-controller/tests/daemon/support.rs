//! A resource-controller in its own directories, and a client of it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use blackhole_bus_schema::bus::{Interest, Link, LinkEvent, RequestError};
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::limits::{JoinMethod, LimitGrant, Limits};
use blackhole_bus_schema::message::{Command, Message};
use blackhole_bus_schema::names::{ClientName, Component, InstanceName};
use blackhole_bus_schema::reply::{Code, Status};
use blackhole_bus_schema::resource::{GetCapacity, Prepare, Release};
use blackhole_bus_schema::topic;
use blackhole_resource_controller::cgroup::{Engine, Settings};
use tokio::process::{Child, Command as Program};
use tokio::sync::mpsc;

/// Longest wait for anything; a test that waits this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn name(text: &str) -> InstanceName {
    text.parse().unwrap()
}

pub(crate) struct Setup {
    pub(crate) dirs: Dirs,
    config: Option<PathBuf>,
    daemon: Option<Child>,
    children: Vec<Child>,
    grants: Vec<LimitGrant>,
    root: tempfile::TempDir,
}

impl Setup {
    /// Directories only. `config` is the text of a `runtime.orchestrator` block's lines.
    pub(crate) fn new(orchestrator: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs {
            run: root.path().join("run"),
            state: root.path().join("state"),
        };
        let config = (!orchestrator.is_empty()).then(|| {
            let path = root.path().join("blackhole.yaml");
            let text = format!(
                "runtime:\n  orchestrator:\n    {orchestrator}\nservices:\n  web:\n    command: [/bin/true]\n"
            );
            std::fs::write(&path, text).unwrap();
            path
        });
        Self {
            dirs,
            config,
            daemon: None,
            children: Vec::new(),
            grants: Vec::new(),
            root,
        }
    }

    /// With limits that can be enforced on this host; `None` (said on stderr) elsewhere.
    pub(crate) fn able(orchestrator: &str) -> Option<Self> {
        let engine = Engine::open(Settings {
            subtree: "blackhole-test-probe".into(),
            ..Settings::default()
        });
        let problem = engine.problem();
        engine.close();
        match problem {
            None => Some(Self::new(orchestrator)),
            Some(problem) => {
                eprintln!("skipped: {problem}");
                None
            }
        }
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    /// Starts the daemon, by way of `wrapper` where one is given.
    pub(crate) fn start(&mut self, wrapper: &[&str]) {
        let binary = Self::binary();
        let mut words: Vec<&str> = wrapper.to_vec();
        words.push(binary);
        let mut program = Program::new(words[0]);
        program
            .args(&words[1..])
            .arg("--run-dir")
            .arg(&self.dirs.run)
            .arg("--state-dir")
            .arg(&self.dirs.state)
            .env_remove("BLACKHOLE_CONFIG")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if let Some(config) = &self.config {
            program.arg("--config").arg(config);
        }
        self.daemon = Some(program.spawn().unwrap());
    }

    pub(crate) fn pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id().unwrap()
    }

    /// As `kill -9` does.
    pub(crate) async fn kill(&mut self) {
        self.daemon.take().unwrap().kill().await.unwrap();
    }

    pub(crate) fn binary() -> &'static str {
        env!("CARGO_BIN_EXE_blackhole-resource-controller")
    }

    /// SIGTERM, and waits for the end.
    pub(crate) async fn stop(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        let pid = rustix::process::Pid::from_raw(daemon.id().unwrap().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = tokio::time::timeout(PATIENCE, daemon.wait())
            .await
            .unwrap()
            .unwrap();
        assert!(status.success(), "{status}");
    }

    /// A client with a proven path, and its events.
    pub(crate) async fn client(&self) -> Client {
        let me = ClientName::fresh("test");
        let interest = Interest::none()
            .prefix(topic::RESOURCE)
            .prefix(topic::COMPONENT);
        let (link, events) = Link::open(&self.dirs, me, Component::ResourceController, interest)
            .await
            .unwrap();
        link.ready(PATIENCE).await.unwrap();
        Client { link, events }
    }

    /// Remembers the groups for the end of the test.
    pub(crate) fn keep(&mut self, grant: LimitGrant) -> LimitGrant {
        self.grants.push(grant.clone());
        grant
    }

    /// Starts a shell command in the granted groups, joined before its exec.
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
        let child = Program::new("/bin/sh")
            .arg("-c")
            .arg(format!("{joins}{script}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let pid = child.id().unwrap();
        self.children.push(child);
        pid
    }

    /// Starts a process that rests in the granted groups, and waits until it does.
    pub(crate) async fn spawn_resting(&mut self, grant: &LimitGrant) -> u32 {
        let pid = self.spawn(grant, "exec sleep 1000");
        tokio::time::timeout(PATIENCE, async {
            while std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .unwrap()
                .trim()
                != "sleep"
            {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        pid
    }

    fn child(&mut self, pid: u32) -> &mut Child {
        self.children
            .iter_mut()
            .find(|child| child.id() == Some(pid))
            .unwrap()
    }

    pub(crate) async fn wait(&mut self, pid: u32) -> std::process::ExitStatus {
        self.child(pid).wait().await.unwrap()
    }

    pub(crate) async fn kill_child(&mut self, pid: u32) {
        self.child(pid).kill().await.unwrap();
    }

    pub(crate) fn runs(&mut self, pid: u32) -> bool {
        matches!(self.child(pid).try_wait(), Ok(None))
    }

    /// The subtrees above all groups that were granted, as far as they are there.
    pub(crate) fn subtrees_left(&self) -> Vec<PathBuf> {
        let mut left: Vec<_> = self
            .grants
            .iter()
            .flat_map(|grant| &grant.cgroups)
            .filter_map(|dir| Some(Path::new(&dir.path).parent()?.to_owned()))
            .filter(|dir| dir.exists())
            .collect();
        left.sort();
        left.dedup();
        left
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        self.daemon.take();
        for grant in &self.grants {
            if let Some(kill) = &grant.kill_cgroup {
                let _ = std::fs::write(Path::new(kill).join("cgroup.kill"), "1");
            }
        }
        self.children.clear();
        let start = std::time::Instant::now();
        let groups = || self.grants.iter().flat_map(|grant| &grant.cgroups);
        while start.elapsed() < PATIENCE
            && groups()
                .any(|dir| Path::new(&dir.path).exists() && std::fs::remove_dir(&dir.path).is_err())
        {
            std::thread::yield_now();
        }
        let record = Some(self.dirs.state.join("cgroups.json"));
        Engine::open(Settings {
            subtree: self.dirs.cgroup_name(),
            parent: None,
            record,
        })
        .close();
    }
}

pub(crate) struct Client {
    pub(crate) link: Link,
    events: mpsc::Receiver<LinkEvent>,
}

impl Client {
    pub(crate) async fn ask<C: Command>(&self, command: &C) -> Result<C::Reply, Status> {
        match self.link.request(command, PATIENCE).await {
            Ok(reply) => Ok(reply),
            Err(RequestError::Status(status)) => Err(status),
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) async fn prepare(
        &self,
        instance: &str,
        limits: Limits,
    ) -> Result<LimitGrant, Status> {
        self.ask(&Prepare {
            instance: name(instance),
            limits,
            oom_score_adj: None,
        })
        .await
    }

    pub(crate) async fn release(&self, instance: &str) -> Result<(), Status> {
        self.ask(&Release {
            instance: name(instance),
        })
        .await
    }

    pub(crate) async fn reserved(&self) -> (u64, u64, u32) {
        let capacity = self.ask(&GetCapacity {}).await.unwrap();
        (
            capacity.cpu_reserved_percent,
            capacity.memory_reserved_bytes,
            capacity.instances,
        )
    }

    pub(crate) async fn next(&mut self) -> LinkEvent {
        tokio::time::timeout(PATIENCE, self.events.recv())
            .await
            .unwrap()
            .unwrap()
    }

    /// The next event of a kind that fits.
    pub(crate) async fn event<M: Message>(&mut self, fits: impl Fn(&M) -> bool) -> M {
        loop {
            if let LinkEvent::Event(received) = self.next().await
                && received.kind() == M::KIND
                && let Ok(message) = received.parse::<M>()
                && fits(&message)
            {
                return message;
            }
        }
    }
}

pub(crate) fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> (Code, String) {
    let status = result.unwrap_err();
    (status.code, status.message)
}
