//! The fork server as the manager sees it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use blackhole_bus_schema::dirs::Dirs;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::handle::{self, Place};
use super::wire::Wire;
use super::{ClientError, ShimEvents, ShimHandle, SpawnError, SpawnRequest, Started};
use crate::readiness::readable;
use crate::shim::lock;
use crate::shim::protocol::{ShimMessage, SpawnFrame};
use crate::shim::server::{lock_path, socket_path};

/// Between two looks at a fork server that another process is just starting.
const RETRY: Duration = Duration::from_millis(10);

/// How many of those: half a minute.
const RETRIES: u32 = 3000;

/// How often one is started that ends before it listens.
const STARTS: u32 = 3;

/// How a fork server is started.
#[derive(Debug, Clone)]
pub struct ForkServerOptions {
    /// The program `blackhole-shim`.
    pub binary: PathBuf,
    /// Idle shims kept waiting, 1 to 256.
    pub pool: u16,
    /// `cgroup.procs` or `tasks` files of the leaves to move it to; one that
    /// cannot be joined is noted in its log and left out.
    pub cgroups: Vec<PathBuf>,
}

impl ForkServerOptions {
    /// The defaults for a program: four idle shims, no cgroups.
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            pool: 4,
            cgroups: Vec::new(),
        }
    }
}

/// A fork server that was found alive. Cheap to clone. Clones share connections
/// to idle shims that were made ahead; those shims end with the last of them.
#[derive(Debug, Clone)]
pub struct ForkServer {
    dirs: Dirs,
    /// Who listened when it was found.
    pid: u32,
    ahead: Arc<Ahead>,
}

/// Shims that wait for one request each: a spawn is then one write.
#[derive(Debug)]
struct Ahead {
    /// How many there should be.
    most: usize,
    wires: Mutex<Vec<Wire>>,
    /// Somebody is making them.
    filling: AtomicBool,
}

impl Ahead {
    fn wires(&self) -> MutexGuard<'_, Vec<Wire>> {
        self.wires.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// After a spawn, before the shim that it took is replaced: a start of many has
/// better to do with its processors.
const REFILL: Duration = Duration::from_millis(2);

impl ForkServer {
    /// Finds the fork server of `dirs`, or starts one: detached, in its own
    /// session, its output in `<state>/log/fork-server.log`. Returns when it listens.
    ///
    /// # Errors
    /// When none lives and none could be started.
    pub async fn ensure(dirs: &Dirs, options: &ForkServerOptions) -> Result<Self, ClientError> {
        let dir = dirs.fork_server_dir();
        let (lock, socket) = (lock_path(&dir), socket_path(&dir));
        let mut starts = 0;
        for _ in 0..RETRIES {
            if holder(&lock)?.is_none() {
                // One that is killed as it starts is no reason to do without.
                starts += 1;
                match start(dirs, options).await {
                    _ if starts > STARTS => break,
                    Err(ClientError::ForkServer { .. }) if starts < STARTS => {}
                    other => other?,
                }
            }
            // One takes the lock before it listens, and gives it back last when it ends: that it
            // is held and a socket is there does not tell that anybody listens.
            if let Ok(wire) = Wire::connect(&socket).await {
                let pid = wire.listener();
                let ahead = Ahead {
                    most: usize::from(options.pool),
                    wires: Mutex::new(vec![wire]),
                    filling: AtomicBool::new(false),
                };
                return Ok(Self {
                    dirs: dirs.clone(),
                    pid,
                    ahead: Arc::new(ahead),
                });
            }
            tokio::time::sleep(RETRY).await;
        }
        let problem = format!("nobody comes to listen on {}", socket.display());
        Err(ClientError::ForkServer {
            binary: options.binary.clone(),
            problem,
        })
    }

    /// Starts a service and returns when its program runs. After
    /// [`ClientError::Io`] the fork server is gone: call [`ForkServer::ensure`]
    /// and try once more.
    ///
    /// Cancelling it cancels the spawn only where no shim has taken the
    /// instance's lock yet; else the service may run and can then be had with
    /// [`super::attach`].
    ///
    /// # Errors
    /// [`SpawnError::Failed`] says why the program did not run,
    /// [`SpawnError::Held`] which shim holds the instance already.
    pub async fn spawn(
        &self,
        request: &SpawnRequest,
    ) -> Result<(Started, ShimHandle, ShimEvents), SpawnError> {
        let made_ahead = self.ahead.wires().pop();
        let mut wire = match made_ahead {
            Some(wire) => wire,
            None => self.connect().await?,
        };
        let sent = wire.send(&SpawnFrame::of(request)).await;
        self.fill();
        if sent.is_err() {
            // Its shim is gone, and with its fork server, may be, all others.
            self.ahead.wires().clear();
        }
        sent?;
        let place = Place {
            dir: request.instance_dir.clone(),
            socket: request.socket.clone(),
            generation: request.generation,
        };
        loop {
            match wire.next().await? {
                Some(ShimMessage::Started { started }) => {
                    let (handle, events) = handle::hold(wire, place, started.shim_pid);
                    return Ok((started, handle, events));
                }
                Some(ShimMessage::SpawnFailed { failure, held_by }) => {
                    return Err(match held_by {
                        Some(shim_pid) => SpawnError::Held { shim_pid, failure },
                        None => SpawnError::Failed(failure),
                    });
                }
                Some(ShimMessage::Answer {
                    error: Some(error), ..
                }) => {
                    return Err(ClientError::Refused(error).into());
                }
                Some(_) => {}
                None => return Err(ClientError::Closed.into()),
            }
        }
    }

    /// Its pid when it was found; 0 where it cannot be seen from here.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Kills the fork server `pid` of `dirs`, which hangs; its idle shims go with
    /// it (prctl(2), `PR_SET_PDEATHSIG`), services and their shims do not. Does
    /// nothing when it is not the fork server any more. Returns when it is gone.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub async fn kill(dirs: &Dirs, pid: u32) -> Result<(), ClientError> {
        Self::end(dirs, Some(pid), Signal::KILL).await
    }

    async fn connect(&self) -> Result<Wire, ClientError> {
        let socket = socket_path(&self.dirs.fork_server_dir());
        Wire::connect(&socket)
            .await
            .map_err(|source| ClientError::Io {
                operation: "connect to the fork server on",
                path: socket,
                source,
            })
    }

    /// Begins to connect to idle shims ahead of need, unless somebody does. What
    /// fails is tried again after the next spawn, which does without.
    pub fn fill(&self) {
        if self.ahead.filling.swap(true, Ordering::Relaxed) {
            return;
        }
        let server = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(REFILL).await;
            while server.ahead.wires().len() < server.ahead.most {
                match server.connect().await {
                    Ok(wire) => server.ahead.wires().insert(0, wire),
                    Err(_) => break,
                }
            }
            server.ahead.filling.store(false, Ordering::Relaxed);
        });
    }

    /// Ends the fork server of `dirs` and its idle shims, if one lives. Services
    /// and their shims are not touched. Returns when it is gone.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub async fn shutdown(dirs: &Dirs) -> Result<(), ClientError> {
        Self::end(dirs, None, Signal::TERM).await
    }

    async fn end(dirs: &Dirs, who: Option<u32>, signal: Signal) -> Result<(), ClientError> {
        let lock = lock_path(&dirs.fork_server_dir());
        let failed = |source| ClientError::Io {
            operation: "end the holder of",
            path: lock.clone(),
            source,
        };
        let meant = holder(&lock)?.filter(|pid| who.is_none_or(|who| who == *pid));
        let Some(pid) = meant.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) else {
            return Ok(());
        };
        let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else {
            return Ok(());
        };
        // The descriptor may be of a process that came after: ask again.
        if holder(&lock)? != Some(pid.as_raw_nonzero().get().unsigned_abs()) {
            return Ok(());
        }
        pidfd_send_signal(&fd, signal).map_err(|error| failed(error.into()))?;
        let _ended = readable(fd)
            .map_err(failed)?
            .readable()
            .await
            .map_err(failed)?;
        Ok(())
    }
}

fn holder(lock: &Path) -> Result<Option<u32>, ClientError> {
    lock::holder(lock).map_err(|source| ClientError::Io {
        operation: "ask who holds",
        path: lock.to_owned(),
        source,
    })
}

/// How the allocator of a fork server and its shims works; without effect where the C library is
/// not glibc.
const MALLOC: &str = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0";

/// Runs the program, which returns when a fork server listens.
async fn start(dirs: &Dirs, options: &ForkServerOptions) -> Result<(), ClientError> {
    let mut command = tokio::process::Command::new(&options.binary);
    command.arg("--dir").arg(dirs.fork_server_dir());
    command
        .arg("--log")
        .arg(dirs.state.join("log/fork-server.log"));
    command.arg("--pool").arg(options.pool.to_string());
    for cgroup in &options.cgroups {
        command.arg("--cgroup").arg(cgroup);
    }
    // Nothing of the manager's surroundings, and no secret, lives on in it. What is freed joins
    // what is free beside it at once, instead of waiting in lists by size (mallopt(3), and the
    // chapter on tunables in glibc's manual): whole pages come free of a shim's heap, 16 KiB in
    // each of them.
    command
        .env_clear()
        .env("GLIBC_TUNABLES", MALLOC)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let output = command.output().await.map_err(|source| ClientError::Io {
        operation: "run",
        path: options.binary.clone(),
        source,
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let problem = format!("{} ({})", said.trim(), output.status);
    Err(ClientError::ForkServer {
        binary: options.binary.clone(),
        problem,
    })
}
