//! The fork server: keeps a few idle shims forked ahead, and nothing else.
//!
//! All of them wait in accept(2) on one listening socket; the kernel wakes one
//! for each client. The one that was woken says so through a pipe, and the
//! server forks the next. The server itself never accepts, holds no service and
//! sleeps until a shim is taken or ends, or until its socket is removed, which
//! ends it: nobody could reach it any more.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blackhole_bus_schema::regular;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions};

use super::idle::Idle;
use super::lock::Lock;
use super::protocol::PROTOCOL;
use super::rehearsal::Rehearsal;
use super::sys;

/// Clients waiting for a shim. A start of a thousand instances comes at once.
const BACKLOG: i32 = 4096;

/// Exit code of an idle shim that cannot take anybody: another one could not either.
pub(super) const CANNOT_ACCEPT: i32 = 3;

/// Most bytes of the log, but for a few lines.
const MOST_LOG: i64 = 1024 * 1024;

/// Wait before forking again after fork(2) has failed, or what was forked is of no use.
const FORK_PAUSE: Duration = Duration::from_millis(200);

/// How a fork server runs.
#[derive(Debug, Clone, clap::Args)]
pub struct ServerArgs {
    /// Folder of its socket and lock: fs in the run directory.
    #[arg(long)]
    pub dir: PathBuf,
    /// Where its own messages go; none are kept without.
    #[arg(long)]
    pub log: Option<PathBuf>,
    /// Idle shims kept waiting.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub pool: u16,
    /// A file (cgroup.procs, tasks) to write itself to; may be repeated.
    #[arg(long = "cgroup")]
    pub cgroups: Vec<PathBuf>,
    /// Stay in the foreground, for debugging.
    #[arg(long)]
    pub foreground: bool,
}

/// What can go wrong with the fork server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// An operation failed.
    #[error("cannot {operation}")]
    Io {
        /// What was tried, on what.
        operation: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The process has threads: it must not fork.
    #[error("the fork server has more than one thread")]
    Threads,
    /// The detached process gave up.
    #[error("the fork server did not start: {0}")]
    Child(String),
}

fn failed(operation: impl Into<String>) -> impl FnOnce(io::Error) -> ServerError {
    let operation = operation.into();
    move |source| ServerError::Io { operation, source }
}

/// Socket of the fork server in its folder.
pub(crate) fn socket_path(dir: &Path) -> PathBuf {
    dir.join(format!("v{PROTOCOL}"))
}

/// Lock of the fork server in its folder.
pub(crate) fn lock_path(dir: &Path) -> PathBuf {
    dir.join(format!("v{PROTOCOL}.lock"))
}

/// Runs a fork server: detached from its caller, whose process returns as soon
/// as it listens (or another one does already), or in the foreground.
///
/// # Errors
/// When it cannot be started.
pub fn run(args: &ServerArgs) -> Result<(), ServerError> {
    if !sys::single_threaded() {
        return Err(ServerError::Threads);
    }
    sys::close_inherited(3);
    sys::reset_signals();
    if args.foreground {
        // Services have the shim's standard input.
        let null = fs::File::open("/dev/null").map_err(failed("open /dev/null"))?;
        rustix::stdio::dup2_stdin(&null)
            .map_err(|error| failed("set up standard files")(error.into()))?;
        return serve(args, |_| {});
    }
    let (mut ours, theirs) = UnixStream::pair().map_err(failed("make a socket pair"))?;
    if sys::fork().map_err(failed("fork"))?.is_some() {
        drop(theirs);
        let mut said = String::new();
        let _ = ours.read_to_string(&mut said);
        return match said.as_str() {
            "ready" => Ok(()),
            "" => Err(ServerError::Child("it ended without a word".into())),
            _ => Err(ServerError::Child(said)),
        };
    }
    drop(ours);
    let mut theirs = Some(theirs);
    let result = detach(args.log.as_deref()).and_then(|()| {
        serve(args, |said| {
            if let Some(mut theirs) = theirs.take() {
                let _ = theirs.write_all(said.as_bytes());
            }
        })
    });
    if let (Err(error), Some(mut theirs)) = (&result, theirs) {
        let source = std::error::Error::source(error).map(|source| format!(": {source}"));
        let _ = write!(theirs, "{error}{}", source.unwrap_or_default());
    }
    sys::exit_now(i32::from(result.is_err()))
}

/// Its own session, no terminal, no working directory that keeps a file system
/// busy, its own output.
fn detach(log: Option<&Path>) -> Result<(), ServerError> {
    rustix::process::setsid().map_err(|error| failed("begin a session")(error.into()))?;
    let null = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null");
    let null = null.map_err(failed("open /dev/null"))?;
    let stdio = |result: rustix::io::Result<()>| {
        result.map_err(|error| failed("set up standard files")(error.into()))
    };
    stdio(rustix::stdio::dup2_stdin(&null))?;
    stdio(rustix::stdio::dup2_stdout(&null))?;
    match log {
        None => stdio(rustix::stdio::dup2_stderr(&null)),
        Some(path) => {
            let mut options = fs::OpenOptions::new();
            options.append(true).create(true).mode(0o600);
            let file = regular::open(path, &mut options).and_then(|file| {
                // One of an earlier version is for all eyes.
                file.set_permissions(fs::Permissions::from_mode(0o600))?;
                Ok(file)
            });
            let file = file.map_err(failed(format!("open {}", path.display())))?;
            stdio(rustix::stdio::dup2_stderr(&file))
        }
    }
}

fn serve(args: &ServerArgs, mut ready: impl FnMut(&str)) -> Result<(), ServerError> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    rustix::process::chdir("/").map_err(|error| failed("change to /")(error.into()))?;
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&args.dir);
    made.map_err(failed(format!("create {}", args.dir.display())))?;
    let lock_path = lock_path(&args.dir);
    let lock = Lock::take(&lock_path).map_err(failed(format!("lock {}", lock_path.display())))?;
    let Ok(lock) = lock else {
        // Another one lives. It quietly has what was wanted.
        ready("ready");
        return Ok(());
    };
    blackhole_bus_schema::priority::raise();
    // Survive when memory is short, where that is allowed.
    let _ = fs::write("/proc/self/oom_score_adj", "-900");
    for cgroup in &args.cgroups {
        if let Err(error) = fs::write(cgroup, "0") {
            note(&format!("cannot join {}: {error}", cgroup.display()));
        }
    }
    let signals = sys::signal_fd(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP]);
    let signals = signals.map_err(failed("wait for signals"))?;
    let socket = socket_path(&args.dir);
    let (listener, inode) =
        listen(&socket).map_err(failed(format!("listen on {}", socket.display())))?;
    let watch = watch(&socket).map_err(failed(format!("watch {}", socket.display())))?;
    let (taken, taken_write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
        .map_err(|error| failed("make a pipe")(error.into()))?;
    let pool = usize::from(args.pool);
    let mut server = Server {
        pool,
        idle: HashSet::new(),
        socket,
        inode,
        listener,
        signals,
        taken,
        taken_write,
        watch,
    };
    note(&format!(
        "fork server listens on {}",
        server.socket.display()
    ));
    // Before the first fork: a shim must not hold the end of this pipe.
    ready("ready");
    let pid = rustix::process::getpid();
    let boot_id = super::record::boot_id();
    let rehearsal = Rehearsal::new();
    let why = match server.work() {
        End::Shim => {
            // This is a forked shim. What belongs to the server alone is closed;
            // the lock is not this process's and stays held.
            drop((lock, server.watch, server.taken));
            let (listener, signals) = (server.listener, server.signals);
            let idle = Idle {
                server: pid,
                listener,
                taken: server.taken_write,
                signals,
                boot_id,
                rehearsal,
            };
            sys::exit_now(idle.run())
        }
        End::Server(why) => why,
    };
    // Idle shims end with this process, by their parent's death signal: each knows
    // better than this one whether it is still idle.
    if !server.socket_is_gone() {
        let _ = fs::remove_file(&server.socket);
    }
    lock.remove();
    note(&format!("fork server ends: {why}"));
    Ok(())
}

/// Bound under another name and renamed once it listens: whoever sees the
/// socket can connect, and a stale one is replaced in one step. Returns the
/// file's inode too.
fn listen(socket: &Path) -> io::Result<(UnixListener, u64)> {
    let new = socket.with_extension("new");
    let _ = fs::remove_file(&new);
    let listener = UnixListener::bind(&new)?;
    rustix::net::listen(&listener, BACKLOG)?;
    fs::rename(&new, socket)?;
    Ok((listener, fs::symlink_metadata(socket)?.ino()))
}

/// Readable when the socket's file is removed or replaced.
fn watch(socket: &Path) -> io::Result<OwnedFd> {
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let gone = inotify::WatchFlags::DELETE_SELF
        | inotify::WatchFlags::ATTRIB
        | inotify::WatchFlags::MOVE_SELF;
    inotify::add_watch(&fd, socket, gone)?;
    Ok(fd)
}

struct Server {
    pool: usize,
    idle: HashSet<Pid>,
    socket: PathBuf,
    inode: u64,
    listener: UnixListener,
    signals: OwnedFd,
    taken: OwnedFd,
    taken_write: OwnedFd,
    watch: OwnedFd,
}

/// How the server's loop ends.
enum End {
    /// It is over, for this reason.
    Server(&'static str),
    /// This process is a new shim.
    Shim,
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}

/// What came of filling the pool.
#[derive(PartialEq, Eq)]
enum Fill {
    Full,
    /// Forking failed for now.
    Short,
    /// This process is a new shim.
    Shim,
}

impl Server {
    fn work(&mut self) -> End {
        // Until then none is forked.
        let mut pause: Option<Instant> = None;
        loop {
            let now = Instant::now();
            let left = pause.map(|until| until.saturating_duration_since(now));
            let timeout = match left.filter(|left| !left.is_zero()) {
                Some(left) => Some(timespec(left)),
                None => match self.fill() {
                    Fill::Full => None,
                    Fill::Short => Some(timespec(FORK_PAUSE)),
                    Fill::Shim => return End::Shim,
                },
            };
            let mut fds = [
                PollFd::new(&self.taken, PollFlags::IN),
                PollFd::new(&self.signals, PollFlags::IN),
                PollFd::new(&self.watch, PollFlags::IN),
            ];
            match super::wait::wait(&mut fds, timeout.as_ref()) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                // There are fewer descriptors to be had than it waits for.
                Err(_) => {
                    std::thread::sleep(FORK_PAUSE);
                    continue;
                }
            }
            let [taken, signals, watch] = fds.map(|fd| !fd.revents().is_empty());
            if taken {
                self.note_taken();
            }
            if signals {
                let mut end = false;
                sys::drain_signals(&self.signals, |signal| end |= sys::asks_to_end(signal));
                // Those that were taken before they ended are not missed in the pool.
                self.note_taken();
                while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
                    if self.idle.remove(&pid) {
                        note(&format!("idle shim {} ended", pid.as_raw_nonzero()));
                        if status.exit_status() == Some(CANNOT_ACCEPT) {
                            pause = Instant::now().checked_add(FORK_PAUSE);
                        }
                    }
                }
                if end {
                    return End::Server("asked by a signal");
                }
            }
            if watch {
                let mut bytes = [0_u8; 4096];
                while let Ok(1..) = rustix::io::read(&self.watch, &mut bytes) {}
                if self.socket_is_gone() {
                    return End::Server("its socket is gone");
                }
            }
        }
    }

    fn note_taken(&mut self) {
        let mut bytes = [0_u8; 4 * 256];
        while let Ok(count @ 1..) = rustix::io::read(&self.taken, &mut bytes) {
            for pid in bytes[..count]
                .chunks_exact(4)
                .filter_map(<[u8]>::first_chunk::<4>)
            {
                if let Some(pid) = Pid::from_raw(i32::from_ne_bytes(*pid)) {
                    self.idle.remove(&pid);
                }
            }
        }
    }

    fn socket_is_gone(&self) -> bool {
        fs::symlink_metadata(&self.socket).map_or(true, |meta| meta.ino() != self.inode)
    }

    /// Forks until the pool is full.
    fn fill(&mut self) -> Fill {
        while self.idle.len() < self.pool {
            match sys::fork() {
                Ok(Some(pid)) => {
                    self.idle.insert(pid);
                }
                Ok(None) => return Fill::Shim,
                Err(error) => {
                    note(&format!("cannot fork a shim: {error}"));
                    return Fill::Short;
                }
            }
        }
        Fill::Full
    }
}

/// A line in the fork server's own log, which all shims share. When that has got too
/// long it begins anew.
pub(crate) fn note(text: &str) {
    let log = io::stderr();
    let long = rustix::fs::fstat(&log).is_ok_and(|log| {
        rustix::fs::FileType::from_raw_mode(log.st_mode).is_file() && log.st_size > MOST_LOG
    });
    // All append, also those who have had it open for long.
    let _ = long.then(|| rustix::fs::ftruncate(&log, 0));
    let now = jiff::Timestamp::now();
    let _ = writeln!(
        io::stderr(),
        "{now:.6} blackhole-shim[{}] {text}",
        std::process::id()
    );
}
