//! A real bridge in its own directory, and clients of it.
#![allow(clippy::unwrap_used, clippy::panic, dead_code)]

pub(crate) mod raw;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use blackhole_bus_schema::bus::{Interest, Link, LinkEvent};
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::names::{ClientName, Component, Generation};
use blackhole_bus_schema::registry::ListRegistry;
use blackhole_bus_schema::rpc::{Client, ConnectOptions, Key};
use blackhole_bus_schema::topic;
use tokio::sync::mpsc;

/// Longest wait for anything; generous, since the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Bridge {
    pub(crate) dirs: Dirs,
    child: Option<Child>,
    config: Option<std::path::PathBuf>,
    /// A port of the loopback that was free, see `start_with`.
    pub(crate) port: u16,
    temp: tempfile::TempDir,
}

impl Bridge {
    /// A directory without a bridge in it.
    pub(crate) fn absent() -> Self {
        let temp = tempfile::Builder::new().prefix("bh").tempdir().unwrap();
        let root = temp.path();
        let dirs = Dirs::resolve(Some(root.join("r")), Some(root.join("s"))).unwrap();
        dirs.create().unwrap();
        Self {
            dirs,
            child: None,
            config: None,
            port: 0,
            temp,
        }
    }

    /// With a configuration that names these services.
    pub(crate) fn start(services: &[&str]) -> Self {
        Self::start_with(services, "")
    }

    /// With something of `runtime.orchestrator` too; `PORT` in it is a free port.
    pub(crate) fn start_with(services: &[&str], orchestrator: &str) -> Self {
        let mut bridge = Self::absent();
        let path = bridge.temp.path().join("blackhole.yaml");
        let mut text = String::new();
        if !orchestrator.is_empty() {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            bridge.port = free.local_addr().unwrap().port();
            let settings = orchestrator.replace("PORT", &bridge.port.to_string());
            text.push_str(&format!("runtime: {{orchestrator: {{{settings}}}}}\n"));
        }
        text.push_str("services:\n");
        for service in services {
            text.push_str(&format!("  {service}: {{command: [/bin/true]}}\n"));
        }
        std::fs::write(&path, text).unwrap();
        bridge.config = Some(path);
        bridge.spawn();
        bridge
    }

    pub(crate) fn spawn(&mut self) {
        assert!(self.child.is_none());
        let mut command = Command::new(env!("CARGO_BIN_EXE_blackhole-bridge"));
        command
            .arg("--run-dir")
            .arg(&self.dirs.run)
            .arg("--state-dir")
            .arg(&self.dirs.state);
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        command
            .env_remove("NOTIFY_SOCKET")
            .env("BLACKHOLE_LOG", "debug");
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path());
        self.child = Some(
            command
                .stdin(Stdio::null())
                .stderr(log.unwrap())
                .spawn()
                .unwrap(),
        );
    }

    fn log_path(&self) -> std::path::PathBuf {
        self.temp.path().join("log")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM; the exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        let mut child = self.child.take().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        child.wait().unwrap().code()
    }

    pub(crate) fn options(&self, instance: &str, generation: u64) -> ConnectOptions {
        let key = Key::load_or_create(&self.dirs).unwrap();
        let instance = instance.parse().unwrap();
        ConnectOptions {
            socket: self.dirs.rpc_socket(),
            token: key.token(&instance, Generation(generation)),
            instance,
        }
    }

    pub(crate) async fn client(&self, instance: &str, generation: u64) -> Client {
        Client::connect(self.options(instance, generation))
            .await
            .unwrap()
    }

    /// A client that the bridge has registered.
    pub(crate) async fn registered(&self, instance: &str, generation: u64) -> Client {
        let client = self.client(instance, generation).await;
        if let Err(error) = client.registered(PATIENCE).await {
            panic!("{instance}: {error}\n{}", self.log());
        }
        client
    }

    /// Drops a client and what hangs on it, without a word to anybody.
    pub(crate) fn forget<T>(&self, hanging: T, client: Client) {
        drop(client);
        drop(hanging);
    }

    /// The bridge's registry as the bus tells it.
    pub(crate) async fn watch(&self) -> (Link, mpsc::Receiver<LinkEvent>) {
        let interest = Interest::none().stream::<ListRegistry>(topic::REGISTRY);
        Link::open(
            &self.dirs,
            ClientName::fresh("test"),
            Component::Bridge,
            interest,
        )
        .await
        .unwrap()
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the bridge's log\n{}", self.log());
        }
    }
}
