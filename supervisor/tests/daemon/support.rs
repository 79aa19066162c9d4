//! A supervisor in its own directories, and a client that watches it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use blackhole_bus_schema::bus::{self, Interest, Link, LinkEvent, RequestError};
use blackhole_bus_schema::component::Ping;
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::message::Command;
use blackhole_bus_schema::names::{ClientName, Component};
use blackhole_bus_schema::reply::{Code, Status};
use blackhole_bus_schema::supervision::{
    InstanceStatus, ListStatus, Outcome, Phase, SupervisionChanged, Target,
};
use blackhole_bus_schema::topic;
use tokio::process::{Child, Command as Program};
use tokio::sync::mpsc;

use super::manager::{Manager, SharedHost};

/// Longest wait for anything; a test that waits this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Setup {
    pub(crate) dirs: Dirs,
    pub(crate) host: SharedHost,
    config: PathBuf,
    daemon: Option<Child>,
    managers: u64,
    // Last: removed after everything above has let go of it.
    _root: tempfile::TempDir,
}

impl Setup {
    /// With these services, in YAML, indented by two.
    pub(crate) fn new(services: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs {
            run: root.path().join("run"),
            state: root.path().join("state"),
        };
        dirs.create().unwrap();
        let setup = Self {
            dirs,
            host: SharedHost::default(),
            config: root.path().join("blackhole.yaml"),
            daemon: None,
            managers: 0,
            _root: root,
        };
        setup.configure(services);
        setup
    }

    pub(crate) fn configure(&self, services: &str) {
        let text = format!(
            "runtime:\n  orchestrator:\n    restart_policy: {{max_attempts: 2, initial_backoff: 10ms, max_backoff: 20ms}}\nservices:\n{services}\n"
        );
        std::fs::write(&self.config, text).unwrap();
    }

    pub(crate) fn start(&mut self) {
        self.start_with(true);
    }

    pub(crate) fn start_with(&mut self, config: bool) {
        let mut program = Program::new(env!("CARGO_BIN_EXE_blackhole-supervisor"));
        program
            .arg("--run-dir")
            .arg(&self.dirs.run)
            .arg("--state-dir")
            .arg(&self.dirs.state)
            .env_remove("BLACKHOLE_CONFIG")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if config {
            program.arg("--config").arg(&self.config);
        }
        self.daemon = Some(program.spawn().unwrap());
    }

    pub(crate) async fn manager(&mut self) -> Manager {
        self.managers += 1;
        Manager::start(&self.dirs, &self.host, self.managers).await
    }

    /// As `kill -9` does.
    pub(crate) async fn kill(&mut self) {
        self.daemon.take().unwrap().kill().await.unwrap();
    }

    /// SIGTERM, and waits for the end in order.
    pub(crate) async fn stop(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        let pid = rustix::process::Pid::from_raw(daemon.id().unwrap().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = tokio::time::timeout(PATIENCE, daemon.wait()).await;
        let status = status.unwrap().unwrap();
        assert!(status.success(), "{status}");
    }

    pub(crate) async fn client(&self) -> Client {
        let me = ClientName::fresh("test");
        let interest = Interest::none().stream::<ListStatus>(topic::SUPERVISION);
        let (link, events) = Link::open(&self.dirs, me, Component::Supervisor, interest)
            .await
            .unwrap();
        link.ready(PATIENCE).await.unwrap();
        Client {
            link,
            events,
            statuses: BTreeMap::new(),
            whys: Vec::new(),
        }
    }
}

/// Sees what everybody can see.
pub(crate) struct Client {
    pub(crate) link: Link,
    events: mpsc::Receiver<LinkEvent>,
    pub(crate) statuses: BTreeMap<String, InstanceStatus>,
    pub(crate) whys: Vec<String>,
}

impl Client {
    /// Waits until what is known fulfils a condition.
    pub(crate) async fn wait(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !holds(self) {
                let event = self.events.recv().await.unwrap();
                self.hear(event);
            }
        });
        if waited.await.is_err() {
            panic!("not seen: {what}; known: {:#?}", self.statuses);
        }
    }

    fn hear(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Snapshot { items, .. } => {
                self.statuses = items
                    .into_iter()
                    .map(|item| bus::item::<InstanceStatus>(item).unwrap())
                    .map(|status| (status.instance.to_string(), status))
                    .collect();
            }
            LinkEvent::Event(received) => {
                let changed: SupervisionChanged = received.parse().unwrap();
                let name = changed.status.instance.to_string();
                self.whys.push(format!("{name}: {}", changed.why));
                self.statuses.insert(name, changed.status);
            }
            LinkEvent::Up(_) | LinkEvent::Down | LinkEvent::Lagged { .. } => {}
        }
    }

    pub(crate) async fn phase(&mut self, instance: &str, phase: Phase) {
        let what = format!("{instance} {phase:?}");
        let is = |client: &Self| client.statuses.get(instance).map(|s| &s.phase) == Some(&phase);
        self.wait(&what, is).await;
    }

    /// Waits until the daemon says this of itself.
    pub(crate) async fn note(&self, text: &str) {
        let asked = tokio::time::timeout(PATIENCE, async {
            loop {
                let info = self.link.request(&Ping {}, PATIENCE).await.unwrap();
                if info.notes.iter().any(|note| note.contains(text)) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        });
        assert!(asked.await.is_ok(), "it never said {text:?}");
    }

    pub(crate) async fn ask<C: Command<Reply = Outcome>>(
        &self,
        command: C,
        budget: Duration,
    ) -> Result<Outcome, (Code, String)> {
        match self.link.request(&command, budget).await {
            Ok(outcome) => Ok(outcome),
            Err(RequestError::Status(Status { code, message })) => Err((code, message)),
            Err(other) => panic!("{other}"),
        }
    }
}

pub(crate) fn services(names: &[&str]) -> Target {
    Target::Services(names.iter().map(|name| name.parse().unwrap()).collect())
}
