//! Locks that say who holds them.
//!
//! Record locks of fcntl(2), not flock(2), for three reasons: they are not
//! inherited by forked children (a service can never hold its shim's lock, nor
//! an idle shim the fork server's), they can be asked for without being taken
//! for a moment (so that a question never makes a shim's attempt fail), and the
//! kernel tells the holder's pid (no file has to be believed). Their one trap,
//! that closing any descriptor of the file gives the lock up, is avoided by
//! opening the file once in a process that holds it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::process::{Flock, FlockType, fcntl_getlk};

/// A held lock. It is given up when this is dropped or the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock if it is free; otherwise tells who holds it (0 when the
    /// holder is in a place from where its pid cannot be seen).
    pub(crate) fn take(path: &Path) -> io::Result<Result<Self, u32>> {
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)?;
            match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    // The holder before may have removed the file that was opened here.
                    let ours = file.metadata()?;
                    match std::fs::metadata(path) {
                        Ok(meta) if meta.ino() == ours.ino() && meta.dev() == ours.dev() => {
                            // Not empty while it is held, see `leave`. Costs no space, so
                            // that a full disk does not matter.
                            let _ = file.set_len(1);
                            return Ok(Ok(Self {
                                file,
                                path: path.to_owned(),
                            }));
                        }
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                        _ => {}
                    }
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => {
                    if let Some(pid) = query(&file)? {
                        return Ok(Err(pid));
                    }
                    // Given up between the two questions.
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Gives the lock up in order: the file stays, empty, for the next one. A new
    /// one each time would cost a start a new inode, which is what takes longest
    /// of all on some file systems (ext4 looks for one that was not deleted lately).
    pub(crate) fn leave(self) {
        let _ = self.file.set_len(0);
    }

    /// Removes the file and gives the lock up.
    pub(crate) fn remove(self) {
        // Not another's file: the folder may have been replaced meanwhile.
        let ours = self.file.metadata().map(|meta| meta.ino()).ok();
        if ours.is_some() && std::fs::metadata(&self.path).map(|meta| meta.ino()).ok() == ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Whether a lock that nobody holds was not given up in order: its holder was lost.
pub(crate) fn was_lost(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.len() > 0)
}

/// Who holds the lock; `None` when nobody does or there is no such file. Not to
/// be called by a process that itself holds it: its lock would be given up.
pub(crate) fn holder(path: &Path) -> io::Result<Option<u32>> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => query(&file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn query(file: &File) -> io::Result<Option<u32>> {
    let wanted = Flock::from(FlockType::WriteLock);
    let found = fcntl_getlk(file, &wanted)?;
    Ok(found.map(|lock| {
        lock.pid.map_or(0, |pid| {
            u32::try_from(pid.as_raw_nonzero().get()).unwrap_or(0)
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_or_free_lock_has_no_holder() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("lock");
        assert_eq!(holder(&path).unwrap(), None);
        let lock = Lock::take(&path).unwrap().unwrap();
        assert!(was_lost(&path), "as long as it is held");
        lock.leave();
        assert!(path.exists() && !was_lost(&path));
        assert_eq!(holder(&path).unwrap(), None);
        drop(Lock::take(&path).unwrap().unwrap());
        assert!(was_lost(&path));
        let lock = Lock::take(&path).unwrap().unwrap();
        lock.remove();
        assert!(!path.exists());
        assert_eq!(holder(&path).unwrap(), None);
    }
}
