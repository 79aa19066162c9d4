//! One deployment, from its configuration to its end.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use blackhole_bus_schema::dirs::Dirs;
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::binaries;
use crate::daemon::Daemon;
use crate::observe::files;
use crate::processes::{self, Process};
use crate::status::Status;
use crate::wait::{wait_at_most, wait_for};
use crate::{cgroup, is_root};

/// The four daemons, in the order in which `up` starts them.
pub const DAEMONS: [&str; 4] = [
    "bridge",
    "resource-controller",
    "process-manager",
    "supervisor",
];

/// A command that is not through after this time hangs.
const COMMAND_HANG: Duration = Duration::from_secs(150);

/// Directories, a configuration and whatever runs of it.
#[derive(Debug)]
pub struct Deployment {
    directory: TempDir,
    binaries: PathBuf,
    config: PathBuf,
    user: Option<u32>,
    commands: AtomicU32,
}

/// What became of a command.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// Itself, when the exit code is 0.
    ///
    /// # Panics
    /// When it is another.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.exits_with(0)
    }

    /// Itself, when the exit code is `code`.
    ///
    /// # Panics
    /// When it is another.
    #[track_caller]
    pub fn exits_with(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "stdout:\n{}\nstderr:\n{}",
            self.stdout,
            self.stderr
        );
        self
    }

    /// Standard output as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| {
            panic!("{error} in {:?}; stderr:\n{}", self.stdout, self.stderr)
        })
    }
}

impl Deployment {
    /// A deployment with this configuration, of which nothing runs yet.
    #[track_caller]
    pub fn new(yaml: &str) -> Self {
        let deployment = Self::empty(None);
        fs::write(&deployment.config, yaml).expect("the configuration is written");
        deployment
    }

    /// A deployment with a configuration that lies somewhere else.
    #[track_caller]
    pub fn of_file(config: &Path) -> Self {
        let mut deployment = Self::empty(None);
        deployment.config = config.to_owned();
        deployment
    }

    /// The same as another user: everything belongs to them, and commands and
    /// daemons run as them, with none of this process's groups. The
    /// configuration is still to be written. For root only.
    #[track_caller]
    pub fn as_user(user: u32) -> Self {
        Self::empty(Some(user))
    }

    /// The same with another configuration file.
    #[must_use]
    pub fn with_config(mut self, config: PathBuf) -> Self {
        self.config = config;
        self
    }

    fn empty(user: Option<u32>) -> Self {
        // Short, for sockets: a path has at most 107 bytes.
        let directory = tempfile::Builder::new()
            .prefix("bh-")
            .tempdir_in("/tmp")
            .expect("a temporary directory");
        let mut binaries = binaries::directory();
        let root = directory.path().to_owned();
        for name in ["run", "state", "home"] {
            fs::create_dir(root.join(name)).expect("a directory");
        }
        if let Some(user) = user {
            // The user may have no way to the target directory.
            let own = root.join("bin");
            fs::create_dir(&own).expect("a directory");
            for program in binaries::ALL {
                let (from, to) = (binaries.join(program), own.join(program));
                fs::hard_link(&from, &to)
                    .or_else(|_| fs::copy(&from, &to).map(|_| ()))
                    .expect("a copy of a program");
            }
            binaries = own;
            for name in ["", "run", "state", "home"] {
                std::os::unix::fs::chown(root.join(name), Some(user), Some(user)).expect("chown");
            }
        }
        Self {
            config: root.join("blackhole.yaml"),
            directory,
            binaries,
            user,
            commands: AtomicU32::new(0),
        }
    }

    /// Its own directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Its configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Its run and state directories.
    pub fn dirs(&self) -> Dirs {
        Dirs {
            run: self.path().join("run"),
            state: self.path().join("state"),
        }
    }

    /// Where its programs are.
    pub fn binaries(&self) -> &Path {
        &self.binaries
    }

    /// The name of its cgroup subtree.
    pub fn cgroup(&self) -> String {
        self.dirs().cgroup_name()
    }

    /// A command in this deployment's environment: its directories, its user,
    /// and nothing of what this process has in its own.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = match self.user {
            None => Command::new(program),
            Some(user) => {
                let mut command = Command::new("setpriv");
                command
                    .arg(format!("--reuid={user}"))
                    .arg(format!("--regid={user}"))
                    .arg("--clear-groups")
                    .arg(program);
                command
            }
        };
        command
            .env_clear()
            .env("PATH", binaries::path_with(&self.binaries))
            .env("HOME", self.path().join("home"))
            .env("LANG", "C.UTF-8")
            .env("NO_COLOR", "1")
            .env("BLACKHOLE_RUN_DIR", self.path().join("run"))
            .env("BLACKHOLE_STATE_DIR", self.path().join("state"))
            .env("BLACKHOLE_LOG", "debug")
            .current_dir(self.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs `blackhole` as another user, with these directories and the configuration.
    /// For root only.
    ///
    /// # Panics
    /// When it hangs.
    #[track_caller]
    pub fn cli_as(&self, user: u32, arguments: &[&str]) -> Output {
        // The user may have no way to the target directory.
        let own = self.path().join("blackhole");
        if !own.exists() {
            let from = self.binaries.join("blackhole");
            fs::hard_link(&from, &own)
                .or_else(|_| fs::copy(&from, &own).map(|_| ()))
                .expect("a copy of the program");
            fs::set_permissions(self.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        }
        let mut command = self.command(Path::new("setpriv"));
        command
            .arg(format!("--reuid={user}"))
            .arg(format!("--regid={user}"))
            .arg("--clear-groups")
            .arg(own)
            .arg("-c")
            .arg(&self.config)
            .args(arguments);
        self.run(command, &format!("blackhole {}", arguments.join(" ")))
    }

    /// Runs `blackhole` with the configuration and gives back what became of it.
    ///
    /// # Panics
    /// When it hangs.
    #[track_caller]
    pub fn cli(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(&self.binaries.join("blackhole"));
        command.arg("-c").arg(&self.config).args(arguments);
        self.run(command, &format!("blackhole {}", arguments.join(" ")))
    }

    /// Runs a command to its end. Its output goes through files, so that a
    /// daemon it leaves behind cannot keep a pipe open.
    ///
    /// # Panics
    /// When it cannot be started or hangs.
    #[track_caller]
    pub fn run(&self, command: Command, what: &str) -> Output {
        self.run_at_most(command, what, COMMAND_HANG)
    }

    /// The same with another limit against hangs.
    ///
    /// # Panics
    /// As [`Deployment::run`].
    #[track_caller]
    pub fn run_at_most(&self, mut command: Command, what: &str, limit: Duration) -> Output {
        let number = self.commands.fetch_add(1, Ordering::Relaxed);
        let [out, err] =
            ["out", "err"].map(|end| self.path().join(format!("command-{number}.{end}")));
        let create = |path: &Path| File::create(path).expect("a file for a command's output");
        let mut child = command
            .stdout(create(&out))
            .stderr(create(&err))
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {what}: {error}"));
        let read =
            |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let status = wait_at_most(limit, &format!("the end of {what}"), &mut || {
            let status = child.try_wait().expect("a child's status");
            status.ok_or_else(|| format!("stdout:\n{}\nstderr:\n{}", read(&out), read(&err)))
        });
        let output = Output {
            code: status.code(),
            stdout: read(&out),
            stderr: read(&err),
        };
        for path in [out, err] {
            let _ = fs::remove_file(path);
        }
        output
    }

    /// `blackhole up -d`, until all services are ready.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn up(&self) -> Output {
        self.cli(&["up", "-d"]).ok()
    }

    /// `blackhole down`; nothing is left afterwards.
    ///
    /// # Panics
    /// When it fails or something is left.
    #[track_caller]
    pub fn down(&self) -> Output {
        let output = self.cli(&["down"]).ok();
        self.assert_nothing_left();
        output
    }

    /// Starts one daemon in the foreground, as a person would in a terminal.
    #[track_caller]
    pub fn daemon(&self, component: &str) -> Daemon {
        Daemon::start(self, component)
    }

    /// The same where nothing that it says can be written, nor is it to be had.
    #[track_caller]
    pub fn daemon_on_full_disk(&self, component: &str) -> Daemon {
        Daemon::start_into(self, component, "/dev/full".into(), "/dev/null".into())
    }

    /// All four daemons in the foreground, without a keeper.
    #[track_caller]
    pub fn daemons(&self) -> Vec<Daemon> {
        DAEMONS
            .iter()
            .map(|component| self.daemon(component))
            .collect()
    }

    /// What `blackhole status -o json` says; its failure as text.
    ///
    /// # Errors
    /// When the command fails.
    pub fn try_status(&self) -> Result<Status, String> {
        let output = self.cli(&["status", "-o", "json"]);
        if output.code != Some(0) {
            return Err(format!("{output:#?}"));
        }
        serde_json::from_str(&output.stdout)
            .map(Status)
            .map_err(|error| format!("{error} in {:?}", output.stdout))
    }

    /// The same where it has to succeed.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn status(&self) -> Status {
        self.try_status()
            .unwrap_or_else(|error| panic!("blackhole status: {error}"))
    }

    /// Waits until the status fulfils a condition; the failure shows the last one.
    ///
    /// # Panics
    /// When it does not in time.
    #[track_caller]
    pub fn wait_until(&self, what: &str, fulfilled: impl Fn(&Status) -> bool) -> Status {
        wait_for(what, || {
            let status = self.try_status()?;
            if fulfilled(&status) {
                Ok(status)
            } else {
                Err(format!("{status:?}"))
            }
        })
    }

    /// Kills a daemon with SIGKILL and waits until it is dead. Gives back its
    /// process id.
    ///
    /// # Panics
    /// When `status` knows no process of it, or it is none of this deployment's.
    #[track_caller]
    pub fn kill_component(&self, component: &str) -> u32 {
        let status = self.status();
        let pid = status
            .component_pid(component)
            .unwrap_or_else(|| panic!("no pid of {component} in {status:?}"));
        self.kill(pid);
        pid
    }

    /// Kills a process of this deployment with SIGKILL and waits until it is dead.
    ///
    /// # Panics
    /// When it is none of this deployment's.
    #[track_caller]
    pub fn kill(&self, pid: u32) {
        let all = self.processes();
        let known = all.iter().any(|process| process.pid == pid);
        assert!(known, "{pid} is no process of this deployment: {all:#?}");
        let started = processes::started(pid);
        processes::kill(pid, Signal::KILL, |pid| processes::started(pid) == started);
        wait_for(&format!("the death of {pid}"), || {
            let gone = !processes::is_alive(pid) || processes::started(pid) != started;
            if gone {
                Ok(())
            } else {
                Err(format!("{pid} lives"))
            }
        });
    }

    /// All processes of this deployment, whoever started them.
    pub fn processes(&self) -> Vec<Process> {
        processes::marked(&processes::mark(self.path()), &self.cgroup())
    }

    /// Waits until no process, socket, lock or cgroup of this deployment is
    /// left. A process that was killed needs a moment to vanish.
    ///
    /// # Panics
    /// When something stays.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        wait_for("nothing of the deployment to be left", || {
            let left = Left {
                processes: self.processes(),
                sockets: sockets(&self.path().join("run")),
                locks: held_locks(&self.path().join("state")),
                cgroups: cgroup::subtrees(&self.cgroup()),
            };
            if left.is_empty() {
                Ok(())
            } else {
                Err(format!("{left:#?}"))
            }
        });
    }

    /// The last lines of each file of the deployment that is a log, for a
    /// failed test's output.
    fn logs(&self) -> String {
        const LAST: usize = 40;
        let mut files = Vec::new();
        for directory in [self.path().to_owned(), self.path().join("state/log")] {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            files.extend(entries.map(|entry| entry.path()).filter(|path| {
                path.extension()
                    .is_some_and(|end| end == "log" || end == "err")
            }));
        }
        files.sort();
        let mut text = String::new();
        for file in files {
            let content =
                String::from_utf8_lossy(&fs::read(&file).unwrap_or_default()).into_owned();
            let lines: Vec<&str> = content.lines().collect();
            let from = lines.len().saturating_sub(LAST);
            text.push_str(&format!(
                "--- {}\n{}\n",
                file.display(),
                lines[from..].join("\n")
            ));
        }
        text
    }
}

#[derive(Debug)]
struct Left {
    processes: Vec<Process>,
    sockets: Vec<PathBuf>,
    locks: Vec<PathBuf>,
    cgroups: Vec<PathBuf>,
}

impl Left {
    fn is_empty(&self) -> bool {
        self.processes.is_empty()
            && self.sockets.is_empty()
            && self.locks.is_empty()
            && self.cgroups.is_empty()
    }
}

fn sockets(below: &Path) -> Vec<PathBuf> {
    let is_socket =
        |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    files(below).into_iter().filter(is_socket).collect()
}

/// Files below a directory on which somebody holds a lock.
fn held_locks(below: &Path) -> Vec<PathBuf> {
    let is_held = |path: &PathBuf| {
        let Ok(file) = File::open(path) else {
            return false;
        };
        flock(&file, FlockOperation::NonBlockingLockExclusive).is_err()
    };
    let is_lock = |path: &PathBuf| path.to_string_lossy().contains("lock");
    files(below)
        .into_iter()
        .filter(is_lock)
        .filter(is_held)
        .collect()
}

impl Drop for Deployment {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
            let processes = self.processes();
            eprintln!("--- processes\n{processes:#?}");
        }
        // Everything at once and hard: an end in order is what tests ask for themselves.
        processes::kill_all(&processes::mark(self.path()), &self.cgroup());
        if is_root() {
            cgroup::remove(&self.cgroup());
        }
    }
}
