//! A deployment of its own for each test: directories, a fork server, shims.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::process::{ExitRecord, LogSpec, SpawnFailure, SpawnSpec, StopSpec};
use blackhole_process_manager::shim::client::{
    ForkServer, ForkServerOptions, ShimEvent, ShimEvents, ShimHandle, SpawnError, SpawnRequest,
    Started, StopRequest, instance_lock_held, read_record,
};
use blackhole_process_manager::shim::protocol::PROTOCOL;
use blackhole_process_manager::shim::sweep;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Longest wait for anything. Only a test that has failed already takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Rig {
    pub(crate) dirs: Dirs,
    pub(crate) server: ForkServer,
    // Removed last.
    _temp: tempfile::TempDir,
}

pub(crate) struct Running {
    pub(crate) started: Started,
    pub(crate) handle: ShimHandle,
    pub(crate) events: ShimEvents,
}

pub(crate) fn options() -> ForkServerOptions {
    ForkServerOptions {
        pool: 2,
        ..ForkServerOptions::new(env!("CARGO_BIN_EXE_blackhole-shim"))
    }
}

impl Rig {
    pub(crate) async fn new() -> Self {
        let temp = tempfile::Builder::new()
            .prefix("bh")
            .tempdir_in("/tmp")
            .unwrap();
        // Services of other users pass through.
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = |name: &str| Some(temp.path().join(name));
        let dirs = Dirs::resolve(path("r"), path("s")).unwrap();
        dirs.create().unwrap();
        let server = ForkServer::ensure(&dirs, &options()).await.unwrap();
        Self {
            dirs,
            server,
            _temp: temp,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self._temp.path().join(name)
    }

    /// A shell script as instance `web.1`.
    pub(crate) fn script(&self, script: &str) -> SpawnSpec {
        spec("web.1", &["/bin/sh", "-c", script])
    }

    pub(crate) fn request(&self, spec: &SpawnSpec) -> SpawnRequest {
        let mut env = BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]);
        env.extend(spec.env.clone());
        SpawnRequest::from_spec(&self.dirs, spec, env, (1024, 4096)).unwrap()
    }

    pub(crate) async fn spawn(&self, spec: &SpawnSpec) -> Running {
        let (started, handle, events) = self.server.spawn(&self.request(spec)).await.unwrap();
        Running {
            started,
            handle,
            events,
        }
    }

    /// Spawns what must not start.
    pub(crate) async fn fail(&self, spec: &SpawnSpec) -> SpawnFailure {
        match self.server.spawn(&self.request(spec)).await {
            Err(SpawnError::Failed(failure) | SpawnError::Held { failure, .. }) => failure,
            other => panic!("expected a failed spawn, got {other:?}"),
        }
    }

    pub(crate) fn folder(&self, spec: &SpawnSpec) -> PathBuf {
        self.dirs.instance(&spec.instance)
    }

    /// The names of an instance's log files, oldest first.
    pub(crate) fn log_names(&self, spec: &SpawnSpec) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.folder(spec))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("log"))
            .collect();
        names.sort();
        // `log` itself is the newest.
        if names.first().is_some_and(|name| name == "log") {
            names.rotate_left(1);
        }
        names
    }

    /// The text of an instance's log, rotated files first, without the heads of the lines.
    pub(crate) fn log(&self, spec: &SpawnSpec) -> String {
        let folder = self.folder(spec);
        let mut text = String::new();
        for name in self.log_names(spec) {
            let bytes = fs::read(folder.join(name)).unwrap_or_default();
            for line in String::from_utf8_lossy(&bytes).lines() {
                let mut words = line.splitn(5, ' ').skip(2);
                let (stream, kind) = (words.next().unwrap(), words.next().unwrap());
                assert!(
                    ["out", "err"].contains(&stream) && ["F", "P"].contains(&kind),
                    "{line:?}"
                );
                text += words.next().unwrap();
                text += "\n";
            }
        }
        text
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let folders = fs::read_dir(self.dirs.state.join("instances"))
            .into_iter()
            .flatten()
            .flatten();
        for folder in folders {
            let folder = folder.path();
            if let Ok(Some(shim)) = instance_lock_held(&folder) {
                end(shim, Signal::KILL);
            }
            if let Ok(Some(record)) = read_record(&folder) {
                sweep(&record.socket, record.grant.as_ref());
            }
        }
        if let Some(server) = fork_server_pid(&self.dirs) {
            end(server, Signal::TERM);
        }
    }
}

/// The fork server of a deployment.
pub(crate) fn fork_server_pid(dirs: &Dirs) -> Option<u32> {
    let lock = fs::File::options()
        .read(true)
        .write(true)
        .open(dirs.fork_server_dir().join(format!("v{PROTOCOL}.lock")))
        .ok()?;
    let wanted = rustix::process::Flock::from(rustix::process::FlockType::WriteLock);
    let held = rustix::process::fcntl_getlk(&lock, &wanted).ok()??;
    u32::try_from(held.pid?.as_raw_nonzero().get()).ok()
}

/// Signals a process and waits until it has ended.
pub(crate) fn end(pid: u32, signal: Signal) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return;
    };
    let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    let _ = pidfd_send_signal(&fd, signal);
    let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], None);
}

impl Running {
    /// Waits for the end.
    pub(crate) async fn exited(&mut self) -> ExitRecord {
        loop {
            match self.next().await {
                ShimEvent::Exited { exit, .. } => return exit,
                ShimEvent::Gone => panic!("the shim is gone"),
                _ => {}
            }
        }
    }

    /// Waits for the next event.
    pub(crate) async fn next(&mut self) -> ShimEvent {
        tokio::time::timeout(PATIENCE, self.events.next())
            .await
            .expect("no event")
            .expect("no more events")
    }

    pub(crate) async fn stop(&self, grace: Duration) {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap();
        let stop = Some(StopSpec {
            signal: 15,
            grace_ms,
        });
        self.handle
            .stop(StopRequest {
                stop,
                ..StopRequest::default()
            })
            .await
            .unwrap();
    }
}

pub(crate) fn spec(instance: &str, command: &[&str]) -> SpawnSpec {
    SpawnSpec {
        instance: instance.parse::<InstanceName>().unwrap(),
        generation: Generation(1),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        env: BTreeMap::new(),
        working_dir: None,
        user: None,
        group: None,
        open_files: None,
        stop: StopSpec::default(),
        success_codes: vec![0],
        probes: Default::default(),
        logs: LogSpec::default(),
        grant: None,
        permit: None,
        restarts: 0,
        settings: Default::default(),
    }
}

/// Waits until something holds; `what` says what did not.
pub(crate) async fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(begun.elapsed() < PATIENCE, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for a file with a whole line in it.
pub(crate) async fn line_of(path: &Path) -> String {
    until(&format!("a line in {}", path.display()), || {
        let text = fs::read_to_string(path).ok()?;
        text.ends_with('\n').then(|| text.trim().to_owned())
    })
    .await
}

/// Whether a process exists and is more than a zombie.
pub(crate) fn lives(pid: u32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat[stat.rfind(')').unwrap()..].starts_with(") Z"),
        Err(error) => {
            assert!(
                matches!(error.kind(), io::ErrorKind::NotFound) || error.raw_os_error() == Some(3)
            );
            false
        }
    }
}

/// Pids of all processes whose environment holds `BH_TEST=<tag>`.
pub(crate) fn tagged(tag: &Path) -> Vec<u32> {
    let wanted = format!("BH_TEST={}", tag.display());
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/environ")).is_ok_and(|env| {
                env.split(|byte| *byte == 0)
                    .any(|item| item == wanted.as_bytes())
            })
        })
        .collect()
}
