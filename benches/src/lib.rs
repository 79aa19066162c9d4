//! Benchmarks of Blackhole. Each stands beside its floor, measured in the same
//! run: absolute times of a shared machine say little, their ratio does.
//!
//! The programs are those beside the benchmark: build them in the same profile
//! first, `cargo build --release && cargo bench -p blackhole-benches`.

#![allow(clippy::panic)]

pub mod bare;
pub mod figures;
pub mod floor;
pub mod peers;
pub mod subjects;
pub mod system;
pub mod tiny;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use blackhole_bus_schema::dirs::Dirs;

/// A program of this repository, built in the benchmark's own profile.
///
/// # Panics
/// When it is not there: a benchmark without its subject has nothing to say.
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    // target/<profile>/deps/<benchmark>, or target/<profile>/<program>
    let profile = own.parent().map(|folder| match folder.ends_with("deps") {
        true => folder.parent().unwrap_or(folder),
        false => folder,
    });
    let path = profile
        .map(|profile| profile.join(name))
        .unwrap_or_default();
    if !path.is_file() {
        panic!("{} is not built: cargo build --release", path.display());
    }
    path
}

/// A daemon of this repository on directories of its own; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
}

impl Daemon {
    /// Starts one, quietly.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(name: &str, dirs: &Dirs) -> Self {
        Self::configured(name, dirs, None)
    }

    /// The same with a configuration file.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn configured(name: &str, dirs: &Dirs, config: Option<&Path>) -> Self {
        let config = config.map(|path| [Path::new("--config"), path]);
        let child = Command::new(program(name))
            .args(config.iter().flatten())
            .arg("--run-dir")
            .arg(&dirs.run)
            .arg("--state-dir")
            .arg(&dirs.state)
            .env("BLACKHOLE_LOG", "error")
            .env("BLACKHOLE_RUNTIME_ORCHESTRATOR_MAX_PROCESSES", "100000")
            .stdin(Stdio::null())
            .spawn();
        match child {
            Ok(child) => Self { child },
            Err(error) => panic!("{name}: {error}"),
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it in order, so that it can clean up behind it.
    pub fn end(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A current-thread runtime, as the daemons have.
///
/// # Panics
/// When the host has no more descriptors.
pub fn runtime() -> tokio::runtime::Runtime {
    match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => panic!("runtime: {error}"),
    }
}
