//! The bus over TCP on the loopback, beside the sockets in the run directory.
//!
//! Any user of the host can reach a loopback port, while only the operator can
//! reach the run directory: over TCP a client therefore proves by PLAIN that it
//! can read `<state>/bus.key`.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Weak;

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use super::Inner;
use super::dispatch::first_time;
use crate::bus::BusError;
use crate::config::Listen;
use crate::dirs::{Dirs, hex};
use crate::transport::{PubSocket, SubSocket, TransportError};

/// PLAIN username of the bus over TCP.
pub const USERNAME: &str = "operator";
const KEY_BYTES: usize = 32;

/// Why the bus is not there over TCP.
#[derive(Debug, thiserror::Error)]
pub enum TcpError {
    /// An operation on the password's file failed.
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
    /// The file holds no password.
    #[error("{path} is not a key: remove it and restart")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// Others can read it.
    #[error("{path} has mode {mode:o}, others could command the services: it must be 600")]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A socket could not be opened.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

/// The password of the bus over TCP: reads `<state>/bus.key`, or makes it.
/// Several daemons may do so at once: one of them creates it, all get the same.
///
/// # Errors
/// When it can neither be read nor made, is damaged, or is readable by others.
pub fn password(dirs: &Dirs) -> Result<String, TcpError> {
    let path = dirs.bus_key();
    match load(&path) {
        Err(TcpError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            create(&path)?;
            load(&path)
        }
        Err(TcpError::Damaged { .. }) if is_empty(&path)? => {
            fill(&path)?;
            load(&path)
        }
        result => result,
    }
}

fn is_empty(path: &Path) -> Result<bool, TcpError> {
    let data = std::fs::metadata(path).map_err(io("examine", path))?;
    Ok(data.len() == 0)
}

fn io<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> TcpError + 'a {
    move |source| TcpError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

fn load(path: &Path) -> Result<String, TcpError> {
    let file = File::open(path).map_err(io("open", path))?;
    let mode = file.metadata().map_err(io("examine", path))?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(TcpError::Open {
            path: path.to_owned(),
            mode,
        });
    }
    let mut text = String::new();
    file.take(2 * KEY_BYTES as u64 + 2)
        .read_to_string(&mut text)
        .map_err(io("read", path))?;
    let key = text.trim_end();
    let fine = key.len() == 2 * KEY_BYTES && key.bytes().all(|byte| byte.is_ascii_hexdigit());
    match fine {
        true => Ok(key.to_owned()),
        false => Err(TcpError::Damaged {
            path: path.to_owned(),
        }),
    }
}

/// Links a fresh key to `path`, so that nobody ever reads half of one. Another
/// process's key that is there first stays.
fn create(path: &Path) -> Result<(), TcpError> {
    let fresh = fresh(path)?;
    let made = match std::fs::hard_link(&fresh, path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    };
    let _ = std::fs::remove_file(&fresh);
    made.and_then(|()| sync_directory(path))
        .map_err(io("create", path))
}

/// Puts a fresh key in place of an empty file, which is what a loss of power may leave
/// of a key whose bytes were not on disk yet: nobody has ever used it.
fn fill(path: &Path) -> Result<(), TcpError> {
    let empty = File::open(path).map_err(io("open", path))?;
    flock(&empty, FlockOperation::LockExclusive).map_err(|error| io("lock", path)(error.into()))?;
    // Who had the lock before may have done it.
    if !is_empty(path)? {
        return Ok(());
    }
    let fresh = fresh(path)?;
    let made = std::fs::rename(&fresh, path).and_then(|()| sync_directory(path));
    made.map_err(io("replace", path))
}

fn sync_directory(path: &Path) -> std::io::Result<()> {
    path.parent()
        .map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// A file with a fresh key beside `path`, on disk.
fn fresh(path: &Path) -> Result<PathBuf, TcpError> {
    let mut key = [0; KEY_BYTES];
    let mut filled = 0;
    while filled < KEY_BYTES {
        let rest = key.get_mut(filled..).unwrap_or_default();
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| io("draw random bytes for", path)(error.into()))?;
    }
    // A name that no other process or thread has.
    let fresh = path.with_extension(crate::envelope::fresh_id().simple().to_string());
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)
        .and_then(|mut file| {
            writeln!(file, "{}", hex(&key))?;
            file.sync_all()
        })
        .map_err(io("create", &fresh))?;
    Ok(fresh)
}

/// Binds a component's addresses, where the configuration gives it some.
pub(super) async fn bind(
    inner: &Weak<Inner>,
    dirs: &Dirs,
    listen: &Listen,
) -> Result<Option<(PubSocket, SubSocket)>, BusError> {
    let Some(strong) = inner.upgrade() else {
        return Ok(None);
    };
    let addresses = (
        listen.events(&strong.component),
        listen.commands(&strong.component),
    );
    let (Some(events), Some(commands)) = addresses else {
        return Ok(None);
    };
    // Compared as digests: the time it takes tells nothing of the password.
    let expected = Sha256::digest(password(dirs)?.as_bytes());
    let admit = |inner: Weak<Inner>| {
        move |username: &str, password: &str| {
            let admitted = username == USERNAME && Sha256::digest(password.as_bytes()) == expected;
            if !admitted && let Some(inner) = inner.upgrade() {
                inner.counters.refused.up();
                if first_time(&inner, "tcp") {
                    tracing::warn!(
                        "a client over TCP has not the password of the bus; reported once"
                    );
                }
            }
            admitted
        }
    };
    let evt = PubSocket::bind_tcp(events, admit(inner.clone()))
        .await
        .map_err(TcpError::from)?;
    let cmd = SubSocket::bind_tcp(commands, admit(inner.clone()))
        .await
        .map_err(TcpError::from)?;
    cmd.subscribe("").await.map_err(TcpError::from)?;
    tracing::info!(%events, %commands, "listening over TCP");
    Ok(Some((evt, cmd)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What several daemons get that start at once.
    fn passwords(dirs: &Dirs) -> std::collections::BTreeSet<String> {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let dirs = dirs.clone();
                std::thread::spawn(move || password(&dirs).unwrap())
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    }

    #[test]
    fn an_empty_file_is_no_password_and_is_filled_once() {
        let temp = tempfile::tempdir().unwrap();
        let dirs = Dirs::resolve(Some(temp.path().join("r")), Some(temp.path().join("s"))).unwrap();
        dirs.create().unwrap();
        let path = dirs.bus_key();
        for _ in 0..20 {
            let _ = std::fs::remove_file(&path);
            let mut empty = OpenOptions::new();
            empty.write(true).create_new(true).mode(0o600);
            empty.open(&path).unwrap();
            assert_eq!(passwords(&dirs).len(), 1, "all have the same");
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        }
        // Nothing else is left behind.
        let keys = std::fs::read_dir(&dirs.state).unwrap();
        let keys = keys.filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_string_lossy().starts_with("bus.")
        });
        assert_eq!(keys.count(), 1);
    }

    #[test]
    fn the_password_is_made_once_and_only_the_operator_can_read_it() {
        let temp = tempfile::tempdir().unwrap();
        let dirs = Dirs::resolve(Some(temp.path().join("r")), Some(temp.path().join("s"))).unwrap();
        dirs.create().unwrap();
        assert_eq!(passwords(&dirs).len(), 1, "all have the same");
        let path = dirs.bus_key();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        std::fs::write(&path, "short\n").unwrap();
        assert!(matches!(password(&dirs), Err(TcpError::Damaged { .. })));
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(&path, open).unwrap();
        assert!(matches!(password(&dirs), Err(TcpError::Open { .. })));
    }
}
