//! The directory of the sockets on which services take direct calls.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Time between two looks for what killed services have left behind.
const SWEEP: Duration = Duration::from_secs(60);

/// The directory. Anybody may make a socket in it, and remove only their own
/// (mode 1777, as /tmp): services run as other users.
#[derive(Debug)]
pub(crate) struct DirectSockets {
    path: PathBuf,
    swept: Instant,
}

impl DirectSockets {
    /// Makes it, or empties it of what nobody listens on. Without it services
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
        sweep(&path);
        let swept = Instant::now();
        Self { path, swept }
    }

    /// An instance is gone: it may have left a socket.
    pub(crate) fn sweep(&mut self) {
        if self.swept.elapsed() >= SWEEP {
            self.swept = Instant::now();
            sweep(&self.path);
        }
    }
}

fn sweep(path: &Path) {
    let Ok(entries) = std::fs::read_dir(path) else {
        return;
    };
    for entry in entries.flatten() {
        let socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
        if socket && nobody_listens(&entry.path()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
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

    #[test]
    fn only_sockets_that_nobody_listens_on_are_removed() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("d");
        std::fs::create_dir(&path).unwrap();
        let living = UnixListener::bind(path.join("living")).unwrap();
        drop(UnixListener::bind(path.join("dead")).unwrap());
        std::fs::write(path.join("file"), "").unwrap();
        DirectSockets::open(path.clone());
        let there = |name: &str| path.join(name).exists();
        assert_eq!(
            (there("living"), there("dead"), there("file")),
            (true, false, true)
        );
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o1777);
        drop(living);
    }
}
