//! The `exec` probe: a program in the service's own context. It is a child of the
//! process-manager, made by the very code that makes the service ([`crate::shim`]'s
//! plan of a child), so that it has what the service has: environment, working directory,
//! user and groups, umask, niceness, resource limits, capabilities, `no_new_privs`, OOM
//! score and cgroups. On v2 it is in a group of its own below the instance's, as a hook is.
//!
//! It has not what belongs to the service's first process alone: its standard input is
//! `/dev/null`, no descriptors are passed to it, and it is not told of `NOTIFY_SOCKET`
//! and the watchdog.
//!
//! It leads a session, and all of that and of its v2 group is killed when it ends or
//! takes too long. The thread that has made it waits for it: so it dies with the
//! process-manager, see `PR_SET_PDEATHSIG` in prctl(2), which goes by the thread.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use blackhole_bus_schema::limits::LimitGrant;
use blackhole_bus_schema::process::SpawnSpec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process_group, waitid, waitpid,
};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::oneshot;

use crate::launch::Environs;
use crate::shim::beside;

/// Output of a failing probe that is kept for its message, in bytes.
const KEPT_OUTPUT: usize = 4096;
/// Characters of it that are shown.
const SHOWN_OUTPUT: usize = 200;

/// Looks at a group whose processes have been killed until it is empty, 50 ms apart at most:
/// a process that was killed may take a moment to end.
const LOOKS: usize = 40;
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// For the names of their groups.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// How the service that is probed was started.
#[derive(Debug, Clone)]
pub struct Context {
    /// Its specification, secrets unresolved.
    pub spec: Arc<SpawnSpec>,
    /// Makes its environment.
    pub environs: Arc<Environs>,
}

/// Runs `command`; healthy when it exits with 0. Dropping the future kills it.
pub(super) async fn run(command: &[String], context: Context) -> Result<(), String> {
    let program = command.first().ok_or("its command is empty")?.clone();
    let command = command.to_vec();
    let probe = Arc::new(Probe::new(&context.spec));
    // When this future is dropped the thread learns of it.
    let _wanted = Wanted(probe.clone());
    let (runs, running) = oneshot::channel();
    // References may read files, users may be looked up over the network, and the thread
    // sleeps until the program has been executed and until it has ended.
    let thread = tokio::task::spawn_blocking(move || probe.through(&command, &context, runs));
    let mut output = Vec::with_capacity(256);
    if let Ok(errors) = running.await {
        let pipe = Receiver::from_owned_fd(errors);
        let mut pipe = pipe.map_err(|error| format!("exec {program}: {error}"))?;
        let mut buffer = [0; 1024];
        // Ends when the last descriptor of it is closed; what is too much is read and left out.
        while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
            let room = KEPT_OUTPUT - output.len();
            output.extend_from_slice(&buffer[..read.min(room)]);
        }
    }
    let status = thread
        .await
        .map_err(|error| format!("exec {program}: {error}"))??;
    if status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output);
    let last = text
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default();
    let shown: String = last
        .chars()
        .filter(|character| !character.is_control())
        .take(SHOWN_OUTPUT)
        .collect();
    let separator = if shown.is_empty() { "" } else { ": " };
    Err(format!("exec {program}: {status}{separator}{shown}"))
}

/// How far a probe's program has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It is being made.
    Begins,
    /// It runs, or has ended and was not reaped: its number is no other's.
    Runs(Pid),
    /// It has been reaped, or never was.
    Over,
    /// Nobody waits for it any more.
    Unwanted,
}

/// One run of a probe's program, with everything that it starts.
#[derive(Debug)]
struct Probe {
    grant: Option<LimitGrant>,
    /// Of its v2 cgroups.
    group: String,
    stage: Mutex<Stage>,
}

/// Kills the probe where it is given up.
struct Wanted(Arc<Probe>);

impl Drop for Wanted {
    fn drop(&mut self) {
        let probe = &self.0;
        let mut stage = probe.stage.lock().unwrap_or_else(PoisonError::into_inner);
        if *stage != Stage::Over {
            // One that has not come as far as to be known may be there already.
            probe.kill(*stage);
            if *stage == Stage::Begins {
                *stage = Stage::Unwanted;
            }
        }
    }
}

impl Probe {
    fn new(spec: &SpawnSpec) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self {
            grant: spec.grant.clone(),
            group: format!("p{}.{}.{number}", spec.generation, std::process::id()),
            stage: Mutex::new(Stage::Begins),
        }
    }

    /// Makes the child, hands on the end of its standard error, and waits for its end. Blocks.
    fn through(
        &self,
        command: &[String],
        context: &Context,
        runs: oneshot::Sender<OwnedFd>,
    ) -> Result<ExitStatus, String> {
        let result = self.start(command, context);
        let mut stage = self.stage();
        match (result, *stage) {
            (Ok((pid, errors)), Stage::Begins) => {
                *stage = Stage::Runs(pid);
                drop(stage);
                let _ = runs.send(errors);
                Ok(self.end(pid))
            }
            (Ok((pid, _)), _) => {
                *stage = Stage::Runs(pid);
                self.kill(*stage);
                drop(stage);
                Ok(self.end(pid))
            }
            (Err(problem), _) => {
                *stage = Stage::Over;
                drop(stage);
                self.remove_groups();
                Err(problem)
            }
        }
    }

    fn stage(&self) -> std::sync::MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, command: &[String], context: &Context) -> Result<(Pid, OwnedFd), String> {
        let Context { spec, environs } = context;
        let io = |error: io::Error| error.to_string();
        let request = environs.request(spec).map_err(|error| error.to_string())?;
        let (errors, told) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|error| io(io::Error::from(error)))?;
        let null = File::options().write(true).open("/dev/null").map_err(io)?;
        // All of it is closed here when the program runs.
        let made = with_signals_blocked(|| {
            beside::probe(&request, command, &self.group, [null.into(), told])
        });
        let pid = made.map_err(|failure| failure.to_string())?;
        Ok((pid, errors))
    }

    /// Waits for the end of the first process, ends the rest, and takes the groups away.
    fn end(&self, pid: Pid) -> ExitStatus {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while let Err(rustix::io::Errno::INTR) = waitid(WaitId::Pid(pid), options) {}
        let mut stage = self.stage();
        self.kill(Stage::Runs(pid));
        *stage = Stage::Over;
        let status = waitpid(Some(pid), WaitOptions::empty());
        drop(stage);
        self.remove_groups();
        let raw = match status {
            Ok(Some((_, status))) => status.as_raw(),
            // Nobody else takes it: it cannot be.
            _ => 1 << 8,
        };
        ExitStatus::from_raw(raw)
    }

    fn kill(&self, stage: Stage) {
        if let Stage::Runs(leader) = stage {
            let _ = kill_process_group(leader, Signal::KILL);
        }
        for dir in self.groups() {
            let _ = fs::write(dir.join("cgroup.kill"), "1");
        }
    }

    fn groups(&self) -> impl Iterator<Item = std::path::PathBuf> + '_ {
        let grant = self.grant.iter();
        grant.flat_map(|grant| beside::own_groups(grant, &self.group))
    }

    /// What stays in spite of that goes when the service ends.
    fn remove_groups(&self) {
        for dir in self.groups() {
            for _ in 0..LOOKS {
                match fs::remove_dir(&dir) {
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy => emptied(&dir),
                    _ => break,
                }
            }
        }
    }
}

/// Waits a moment for the last process of a v2 group to leave it, see cgroups(7).
fn emptied(dir: &Path) {
    let Ok(mut events) = File::open(dir.join("cgroup.events")) else {
        return;
    };
    // What changes after it was read is told by poll(2).
    let mut text = String::new();
    if events.read_to_string(&mut text).is_ok() && text.contains("populated 1") {
        let _ = poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&LOOK));
    }
}

/// Runs `work` with all signals of this thread blocked: a child that is made in it has this
/// process's handlers until it has given them up, and may share its memory.
fn with_signals_blocked<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: both sets are plain numbers and initialised before they are read.
    unsafe {
        let (mut all, mut before): (libc::sigset_t, libc::sigset_t) =
            (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let result = work();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        result
    }
}
