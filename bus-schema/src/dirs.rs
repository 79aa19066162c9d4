//! Run and state directories: where sockets, locks, incarnations and records are.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use crate::names::{Component, InstanceName};

/// A unix socket's path is at most this long, without the final NUL, see unix(7).
pub const MAX_SOCKET_PATH: usize = 107;

/// More than any incarnation has.
const MAX_INCARNATION_BYTES: u64 = 64;

/// What can go wrong with the directories.
#[derive(Debug, thiserror::Error)]
pub enum DirsError {
    /// Neither a flag, nor the environment, nor a home directory tells where to be.
    #[error(
        "no {what} directory: set --{what}-dir or BLACKHOLE_{upper}_DIR ({variable} is not set)"
    )]
    Unknown {
        /// `run` or `state`.
        what: &'static str,
        /// The same in upper case.
        upper: &'static str,
        /// The variable that would have told.
        variable: &'static str,
    },
    /// Unix sockets would not fit.
    #[error(
        "the run directory {path} is {bytes} bytes long, at most {max} are possible \
         (a unix socket's path has {MAX_SOCKET_PATH}): choose a shorter one with --run-dir"
    )]
    TooLong {
        /// The directory.
        path: PathBuf,
        /// Its length.
        bytes: usize,
        /// The longest possible.
        max: usize,
    },
    /// An operation on a path failed.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A directory that others could write to.
    #[error("{path} {problem}: it must belong to the user who runs Blackhole, and only to them")]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> DirsError {
    let path = path.to_owned();
    move |source| DirsError::Io {
        operation,
        path,
        source,
    }
}

/// The two directories of a deployment, absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirs {
    /// Sockets; may be lost at a reboot.
    pub run: PathBuf,
    /// Locks, records, logs, database; survives a reboot.
    pub state: PathBuf,
}

impl Dirs {
    /// Chooses the directories: the flag, then `BLACKHOLE_RUN_DIR` and
    /// `BLACKHOLE_STATE_DIR`, then `/run/blackhole` and `/var/lib/blackhole` for
    /// root, else `blackhole` below `$XDG_RUNTIME_DIR` and `$XDG_STATE_HOME`
    /// (`~/.local/state`). Nothing is created.
    ///
    /// # Errors
    /// When nothing tells, or the run directory is too long for sockets.
    pub fn resolve(run: Option<PathBuf>, state: Option<PathBuf>) -> Result<Self, DirsError> {
        let root = rustix::process::geteuid().is_root();
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let run = match run.or_else(|| variable("BLACKHOLE_RUN_DIR").map(PathBuf::from)) {
            Some(run) => run,
            None if root => PathBuf::from("/run/blackhole"),
            None => match variable("XDG_RUNTIME_DIR") {
                Some(base) => PathBuf::from(base).join("blackhole"),
                None => {
                    return Err(DirsError::Unknown {
                        what: "run",
                        upper: "RUN",
                        variable: "XDG_RUNTIME_DIR",
                    });
                }
            },
        };
        let state = match state.or_else(|| variable("BLACKHOLE_STATE_DIR").map(PathBuf::from)) {
            Some(state) => state,
            None if root => PathBuf::from("/var/lib/blackhole"),
            None => match (variable("XDG_STATE_HOME"), variable("HOME")) {
                (Some(base), _) => PathBuf::from(base).join("blackhole"),
                (None, Some(home)) => PathBuf::from(home).join(".local/state/blackhole"),
                (None, None) => {
                    return Err(DirsError::Unknown {
                        what: "state",
                        upper: "STATE",
                        variable: "HOME",
                    });
                }
            },
        };
        let dirs = Self {
            run: std::path::absolute(&run).map_err(io("resolve", &run))?,
            state: std::path::absolute(&state).map_err(io("resolve", &state))?,
        };
        let longest = dirs
            .bus_evt(&Component::ResourceController)
            .as_os_str()
            .len()
            .max(dirs.run.join("i/0123456789abcdef.n").as_os_str().len());
        if longest > MAX_SOCKET_PATH {
            let bytes = dirs.run.as_os_str().len();
            return Err(DirsError::TooLong {
                path: dirs.run,
                bytes,
                max: bytes + MAX_SOCKET_PATH - longest,
            });
        }
        Ok(dirs)
    }

    /// Whether the sockets of a component fit: the name of a process-manager may be long.
    ///
    /// # Errors
    /// When the run directory is too long for it.
    pub fn check(&self, component: &Component) -> Result<(), DirsError> {
        let longest = self.bus_evt(component).as_os_str().len();
        if longest <= MAX_SOCKET_PATH {
            return Ok(());
        }
        let bytes = self.run.as_os_str().len();
        Err(DirsError::TooLong {
            path: self.run.clone(),
            bytes,
            max: (bytes + MAX_SOCKET_PATH).saturating_sub(longest),
        })
    }

    /// Creates what is missing: `run` 0711 with `bus` 0700, `fs` 0700, `rpc` and
    /// `i` 0711 (services of other users reach their own sockets in them), and
    /// `state` 0700 with its folders. Called by every daemon at its start.
    ///
    /// # Errors
    /// When one cannot be created, or `bus` or `state` belongs to somebody else.
    pub fn create(&self) -> Result<(), DirsError> {
        make(&self.run, 0o711)?;
        for (name, mode) in [("bus", 0o700), ("fs", 0o700), ("rpc", 0o711), ("i", 0o711)] {
            make(&self.run.join(name), mode)?;
        }
        make(&self.state, 0o700)?;
        for name in ["lock", "incarnation", "config", "instances", "log"] {
            make(&self.state.join(name), 0o700)?;
        }
        for private in [
            self.run.join("bus"),
            self.run.join("fs"),
            self.state.clone(),
        ] {
            let meta = std::fs::metadata(&private).map_err(io("examine", &private))?;
            if meta.uid() != rustix::process::geteuid().as_raw() {
                return Err(DirsError::Unsafe {
                    path: private,
                    problem: format!("belongs to user {}", meta.uid()),
                });
            }
            if meta.mode() & 0o022 != 0 {
                return Err(DirsError::Unsafe {
                    path: private,
                    problem: format!("has mode {:o}", meta.mode() & 0o7777),
                });
            }
        }
        Ok(())
    }

    /// A component's PUB socket for events and replies.
    pub fn bus_evt(&self, component: &Component) -> PathBuf {
        self.run.join(format!("bus/{component}.evt"))
    }

    /// A component's SUB socket for commands.
    pub fn bus_cmd(&self, component: &Component) -> PathBuf {
        self.run.join(format!("bus/{component}.cmd"))
    }

    /// A process-manager's PUB socket for followed log lines.
    pub fn bus_log(&self, component: &Component) -> PathBuf {
        self.run.join(format!("bus/{component}.log"))
    }

    /// The bridge's ROUTER.
    pub fn rpc_socket(&self) -> PathBuf {
        self.run.join("rpc/rpc.sock")
    }

    /// The key of the RPC tokens, mode 0600.
    pub fn rpc_key(&self) -> PathBuf {
        self.state.join("rpc.key")
    }

    /// The password of the bus over TCP, mode 0600.
    pub fn bus_key(&self) -> PathBuf {
        self.state.join("bus.key")
    }

    /// The supervisor's database.
    pub fn database(&self) -> PathBuf {
        self.state.join("blackhole.db")
    }

    /// Folder of an instance: lock, record, log.
    pub fn instance(&self, instance: &InstanceName) -> PathBuf {
        self.state.join("instances").join(instance.to_string())
    }

    /// An instance's shim's socket; named by a hash, since names may be long.
    pub fn shim_socket(&self, instance: &InstanceName) -> PathBuf {
        let digest = Sha256::digest(instance.to_string().as_bytes());
        self.run.join("i").join(hex(&digest[..8]))
    }

    /// Folder of the fork server's socket and lock.
    pub fn fork_server_dir(&self) -> PathBuf {
        self.run.join("fs")
    }

    /// A component's lock.
    pub fn lock(&self, name: &str) -> PathBuf {
        self.state.join("lock").join(format!("{name}.lock"))
    }

    /// Standard error of a daemon that `blackhole up` started.
    pub fn daemon_log(&self, name: &str) -> PathBuf {
        self.state.join("log").join(format!("{name}.log"))
    }

    /// Name of this deployment's cgroup subtree: `blackhole` for
    /// `/var/lib/blackhole`, else with 8 hex digits of the state directory's hash.
    pub fn cgroup_name(&self) -> String {
        if self.state == Path::new("/var/lib/blackhole") {
            return "blackhole".to_owned();
        }
        let digest = Sha256::digest(self.state.as_os_str().as_bytes());
        format!("blackhole-{}", hex(&digest[..4]))
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn make(path: &Path, mode: u32) -> Result<(), DirsError> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(io("create directory", path))?;
    // The umask may have taken bits away that other users' services need.
    let _ = std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    Ok(())
}

/// A held lock: whoever has it is the one of its kind in the state directory.
/// The file holds the holder's pid, for people and for `up`. It is removed when
/// the lock is dropped in order, and simply loses its lock with a killed process.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock if nobody holds it; `None` if somebody does.
    ///
    /// # Errors
    /// When the file cannot be opened, locked or written.
    pub fn try_take(path: &Path) -> Result<Option<Self>, DirsError> {
        Self::take(path, FlockOperation::NonBlockingLockExclusive)
    }

    /// Waits until the lock is free and takes it. Blocks the thread; a signal ends the process as usual.
    ///
    /// # Errors
    /// When the file cannot be opened, locked or written.
    pub fn wait(path: &Path) -> Result<Self, DirsError> {
        loop {
            if let Some(lock) = Self::take(path, FlockOperation::LockExclusive)? {
                return Ok(lock);
            }
        }
    }

    fn take(path: &Path, operation: FlockOperation) -> Result<Option<Self>, DirsError> {
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)
                .map_err(io("open lock", path))?;
            match flock(&file, operation) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(io("lock", path)(error.into())),
            }
            // The holder before may have removed the file that we waited on.
            let ours = file.metadata().map_err(io("examine", path))?;
            match std::fs::metadata(path) {
                Ok(meta) if meta.ino() == ours.ino() && meta.dev() == ours.dev() => {}
                _ => continue,
            }
            // A full disk must not keep a daemon from starting: the lock itself holds without text.
            let _ = file.set_len(0);
            let _ = writeln!(file, "{}", std::process::id());
            return Ok(Some(Self {
                file,
                path: path.to_owned(),
            }));
        }
    }

    /// The pid that the holder of a lock wrote, if the lock is held.
    pub fn holder(path: &Path) -> Option<u32> {
        let mut file = crate::regular::reader(path).ok()?;
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            _ => return None,
        }
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        text.trim().parse().ok()
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// Raises and returns a component's incarnation. Called once at each start,
/// under its lock. The number is written over the one before, which takes no
/// room: on a full disk a daemon that has run before starts again.
///
/// # Errors
/// When the file cannot be written; without it two lives could not be told apart.
pub fn next_incarnation(dirs: &Dirs, component: &Component) -> Result<u64, DirsError> {
    let path = dirs.state.join("incarnation").join(component.to_string());
    let in_seconds = || unix_now_ns() / 1_000_000_000;
    let last = match crate::regular::read(&path, MAX_INCARNATION_BYTES) {
        // A damaged file: the seconds since 1970 are above any count of starts.
        Ok(bytes) => std::str::from_utf8(&bytes)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or_else(in_seconds),
        Err(error) => match error.kind() {
            ErrorKind::NotFound => 0,
            ErrorKind::FileTooLarge => in_seconds(),
            // Something that is no file stands there.
            ErrorKind::InvalidInput => {
                std::fs::remove_file(&path).map_err(io("remove", &path))?;
                in_seconds()
            }
            _ => return Err(io("read", &path)(error)),
        },
    };
    let next: u64 = last + 1;
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = crate::regular::open(&path, &mut options).map_err(io("open", &path))?;
    let text = format!("{next:020}\n");
    file.write_all_at(text.as_bytes(), 0)
        .map_err(io("write", &path))?;
    // A damaged file may have been longer.
    let _ = file.set_len(text.len() as u64);
    Ok(next)
}

/// Unix time in nanoseconds; 0 before 1970.
pub fn unix_now_ns() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirs(root: &Path) -> Dirs {
        Dirs::resolve(Some(root.join("r")), Some(root.join("s"))).unwrap()
    }

    #[test]
    fn a_run_directory_too_long_for_sockets_is_refused_with_the_numbers() {
        let long = PathBuf::from(format!("/{}", "x".repeat(90)));
        let error = Dirs::resolve(Some(long), Some("/s".into()))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("91 bytes") && error.contains("at most 79"),
            "{error}"
        );
        assert!(
            Dirs::resolve(
                Some(format!("/{}", "x".repeat(78)).into()),
                Some("/s".into())
            )
            .is_ok()
        );
    }

    #[test]
    fn a_lock_is_exclusive_and_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let dirs = dirs(temp.path());
        dirs.create().unwrap();
        let path = dirs.lock("supervisor");
        let lock = Lock::try_take(&path).unwrap().unwrap();
        assert!(Lock::try_take(&path).unwrap().is_none());
        assert_eq!(Lock::holder(&path), Some(std::process::id()));
        let (path2, started) = (path.clone(), std::sync::mpsc::channel());
        let waiter = std::thread::spawn(move || {
            started.0.send(()).unwrap();
            Lock::wait(&path2).unwrap()
        });
        started.1.recv().unwrap();
        drop(lock);
        let second = waiter.join().unwrap();
        assert!(Lock::try_take(&path).unwrap().is_none());
        drop(second);
        assert!(!path.exists());
        assert_eq!(Lock::holder(&path), None);
    }

    #[test]
    fn incarnations_rise_and_survive_a_damaged_file() {
        let temp = tempfile::tempdir().unwrap();
        let dirs = dirs(temp.path());
        dirs.create().unwrap();
        assert_eq!(next_incarnation(&dirs, &Component::Bridge).unwrap(), 1);
        assert_eq!(next_incarnation(&dirs, &Component::Bridge).unwrap(), 2);
        std::fs::write(dirs.state.join("incarnation/bridge"), b"\xff\x00").unwrap();
        assert!(next_incarnation(&dirs, &Component::Bridge).unwrap() > 1_000_000);
        std::fs::write(dirs.state.join("incarnation/bridge"), b"junk").unwrap();
        assert!(next_incarnation(&dirs, &Component::Bridge).unwrap() > 1_000_000);
    }

    #[test]
    fn an_incarnation_that_is_no_file_holds_nobody_up() {
        let temp = tempfile::tempdir().unwrap();
        let dirs = dirs(temp.path());
        dirs.create().unwrap();
        let path = dirs.state.join("incarnation/bridge");
        let elsewhere = temp.path().join("elsewhere");
        let next = || next_incarnation(&dirs, &Component::Bridge).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let first = next();
        assert!(first > 1_000_000);
        assert_eq!(next(), first + 1);
        std::fs::write(&elsewhere, "7").unwrap();
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        assert!(next() > 1_000_000);
        assert_eq!(
            std::fs::read_to_string(&elsewhere).unwrap(),
            "7",
            "it is not written to"
        );
        std::fs::write(&path, "9".repeat(100)).unwrap();
        let damaged = next();
        assert_eq!(next(), damaged + 1, "it was cut to its length");
    }
}
