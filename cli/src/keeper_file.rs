//! What a keeper (`up`) leaves for the commands and for the keeper after it.

use std::path::{Path, PathBuf};

use blackhole_bus_schema::dirs::{Dirs, Lock};
use blackhole_bus_schema::names::ManagerName;
use blackhole_bus_schema::regular;
use serde::{Deserialize, Serialize};

use crate::client;
use crate::error::Error;
use crate::view::keeper::{Keeper, State};

/// Name of the keeper's lock in the state directory.
pub const LOCK: &str = "up";

/// More than it ever has: some managers' names.
const MOST_BYTES: u64 = 1024 * 1024;

/// `<state>/keeper.json`. It outlives a killed keeper, so it tells what was
/// meant, not what is: the lock tells that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeeperFile {
    /// The configuration the daemons were started with, absolute.
    pub config: PathBuf,
    /// [`fingerprint`] of its content at that time.
    pub fingerprint: String,
    /// Version of the daemons that were started.
    pub version: String,
    /// Services are being stopped, or were when the keeper was killed.
    pub stopping: bool,
    /// The named process-managers that are kept, so that one that is away is missed.
    #[serde(default)]
    pub managers: Vec<ManagerName>,
}

impl KeeperFile {
    fn path(dirs: &Dirs) -> PathBuf {
        dirs.state.join("keeper.json")
    }

    /// Whether daemons that were started for this one are right for another one too.
    pub fn is_like(&self, other: &Self) -> bool {
        let managers = other.managers.clone();
        let alike = Self {
            managers,
            ..self.clone()
        };
        alike == *other
    }

    /// Reads it; `None` when there is none or it is damaged.
    pub fn read(dirs: &Dirs) -> Option<Self> {
        serde_json::from_slice(&regular::read(&Self::path(dirs), MOST_BYTES).ok()?).ok()
    }

    /// Writes it whole or not at all.
    ///
    /// # Errors
    /// When the state directory cannot be written.
    pub fn write(&self, dirs: &Dirs) -> Result<(), Error> {
        let path = Self::path(dirs);
        let temporary = path.with_extension("new");
        let text = serde_json::to_vec(self).map_err(|error| Error::io("write", &path, error))?;
        std::fs::write(&temporary, text).map_err(|error| Error::io("write", &temporary, error))?;
        std::fs::rename(&temporary, &path).map_err(|error| Error::io("rename", &temporary, error))
    }

    /// Removes it; there may be none.
    pub fn remove(dirs: &Dirs) {
        let _ = std::fs::remove_file(Self::path(dirs));
    }
}

/// Looks for the keeper; `None` where the daemons were not started by one.
pub fn find(dirs: &Dirs) -> Option<Keeper> {
    let lock = dirs.lock(LOCK);
    if client::is_locked(&lock) {
        return Some(Keeper {
            state: State::Running,
            pid: Lock::holder(&lock),
        });
    }
    // Its file outlives only one that was killed or gave up.
    KeeperFile::read(dirs).map(|_| Keeper {
        state: State::Missing,
        pid: None,
    })
}

/// Tells whether a file has changed: its length and FNV-1a hash. Not for
/// protection against anybody.
pub fn fingerprint(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{}-{hash:016x}", bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_as_written_and_a_damaged_one_does_not() {
        let temp = tempfile::tempdir().unwrap();
        let dirs =
            Dirs::resolve(Some(temp.path().join("r")), Some(temp.path().to_owned())).unwrap();
        assert_eq!(KeeperFile::read(&dirs), None);
        let file = KeeperFile {
            config: "/x/blackhole.yaml".into(),
            fingerprint: "1-2".into(),
            version: "0.1.0".into(),
            stopping: false,
            managers: Vec::new(),
        };
        file.write(&dirs).unwrap();
        assert_eq!(KeeperFile::read(&dirs), Some(file));
        std::fs::write(temp.path().join("keeper.json"), b"{half").unwrap();
        assert_eq!(KeeperFile::read(&dirs), None);
    }

    #[test]
    fn a_keeper_is_found_by_its_lock_and_missed_by_its_file() {
        let temp = tempfile::tempdir().unwrap();
        let dirs = Dirs::resolve(Some(temp.path().join("r")), Some(temp.path().join("s"))).unwrap();
        dirs.create().unwrap();
        assert_eq!(find(&dirs), None);
        let file = KeeperFile {
            config: "/x.yaml".into(),
            fingerprint: String::new(),
            version: String::new(),
            stopping: false,
            managers: Vec::new(),
        };
        file.write(&dirs).unwrap();
        let lock = Lock::try_take(&dirs.lock(LOCK)).unwrap();
        let running = find(&dirs).unwrap();
        assert_eq!(
            (running.state, running.pid),
            (State::Running, Some(std::process::id()))
        );
        drop(lock);
        assert_eq!(find(&dirs).unwrap().state, State::Missing);
    }

    #[test]
    fn a_change_of_one_byte_shows() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("c");
        std::fs::write(&path, "a: 1").unwrap();
        let before = fingerprint(&path);
        std::fs::write(&path, "a: 2").unwrap();
        assert_ne!(before, fingerprint(&path));
    }
}
