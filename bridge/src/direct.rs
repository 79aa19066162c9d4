//! The directory of the sockets on which services take direct calls.

use std::fs::ReadDir;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Time between two looks for what killed services have left behind.
const SWEEP: Duration = Duration::from_secs(60);
/// Entries that are looked at in one go: anybody can make as many as they like. The
/// next go begins where it ended.
const ENTRIES: usize = 1024;
/// A younger socket may be one that its service has bound and does not listen on yet.
const OLD: Duration = Duration::from_secs(60);

/// The directory. Anybody may make a socket in it, and remove only their own
/// (mode 1777, as /tmp): services run as other users.
#[derive(Debug)]
pub(crate) struct DirectSockets {
    path: PathBuf,
    /// When it was last swept.
    swept: Instant,
    /// Where the next go begins; held by the one that is under way.
    rest: Arc<Mutex<Option<ReadDir>>>,
}

impl DirectSockets {
    /// Makes it, or begins to empty it of what nobody listens on. Without it services
    /// offer no direct calls; nothing else needs it.
    pub(crate) fn open(path: PathBuf) -> Self {
        let made = match std::fs::create_dir(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
            _ => {
                let mode = std::fs::Permissions::from_mode(0o1777);
                std::fs::set_permissions(&path, mode)
            }
        };
        if let Err(error) = made {
            tracing::warn!(path = %path.display(), %error, "services cannot offer direct calls");
        }
        let sockets = Self {
            path,
            swept: Instant::now(),
            rest: Arc::default(),
        };
        sockets.sweep_aside();
        sockets
    }

    /// An instance is gone: it may have left a socket.
    pub(crate) fn sweep(&mut self) {
        if self.swept.elapsed() >= SWEEP {
            self.swept = Instant::now();
            self.sweep_aside();
        }
    }

    /// On a thread of its own: calls do not wait for a file system.
    fn sweep_aside(&self) {
        let (path, rest) = (self.path.clone(), self.rest.clone());
        tokio::task::spawn_blocking(move || {
            let mut rest = match rest.try_lock() {
                Ok(rest) => rest,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            sweep(&path, &mut rest, SystemTime::now());
        });
    }
}

/// One go.
fn sweep(path: &Path, rest: &mut Option<ReadDir>, now: SystemTime) {
    let entries = match rest.take() {
        Some(rest) => Ok(rest),
        None => std::fs::read_dir(path),
    };
    let Ok(mut entries) = entries else {
        return;
    };
    for _ in 0..ENTRIES {
        let Some(entry) = entries.next() else {
            return;
        };
        let Ok(entry) = entry else { continue };
        let old = || entry.metadata().is_ok_and(|data| is_old(data.ctime(), now));
        let socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
        if socket && old() && nobody_listens(&entry.path()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    *rest = Some(entries);
}

/// By the time of its last change, which nobody can set (inode(7)).
fn is_old(changed: i64, now: SystemTime) -> bool {
    let Ok(changed) = u64::try_from(changed) else {
        return false;
    };
    let changed = UNIX_EPOCH + Duration::from_secs(changed);
    now.duration_since(changed).is_ok_and(|age| age > OLD)
}

/// Asked without waiting: a service cannot hold the bridge up here.
fn nobody_listens(path: &Path) -> bool {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    let (Ok(socket), Ok(address)) = (socket, SocketAddrUnix::new(path)) else {
        return false;
    };
    rustix::net::connect(&socket, &address) == Err(Errno::CONNREFUSED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn later() -> SystemTime {
        SystemTime::now() + OLD + Duration::from_secs(2)
    }

    #[test]
    fn only_old_sockets_that_nobody_listens_on_are_removed() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("d");
        std::fs::create_dir(&path).unwrap();
        let living = UnixListener::bind(path.join("living")).unwrap();
        drop(UnixListener::bind(path.join("dead")).unwrap());
        std::fs::write(path.join("file"), "").unwrap();
        let there = |name: &str| path.join(name).exists();
        sweep(&path, &mut None, SystemTime::now());
        assert!(there("dead"), "its service may be about to listen");
        sweep(&path, &mut None, later());
        assert_eq!(
            (there("living"), there("dead"), there("file")),
            (true, false, true)
        );
        drop(living);
    }

    #[test]
    fn so_many_are_looked_at_in_one_go_and_the_rest_in_the_next() {
        let temp = tempfile::tempdir().unwrap();
        let sockets = ENTRIES + 100;
        for number in 0..sockets {
            drop(UnixListener::bind(temp.path().join(number.to_string())).unwrap());
        }
        let count = || std::fs::read_dir(temp.path()).unwrap().count();
        let mut rest = None;
        sweep(temp.path(), &mut rest, later());
        assert_eq!(count(), sockets - ENTRIES);
        sweep(temp.path(), &mut rest, later());
        assert_eq!(count(), 0);
        assert!(rest.is_none(), "it begins anew");
    }

    #[tokio::test]
    async fn the_directory_is_everybodys() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("d");
        DirectSockets::open(path.clone());
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o1777);
    }
}
