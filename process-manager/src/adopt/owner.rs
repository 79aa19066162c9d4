//! Whose an instance is, where several process-managers share a state directory.

use std::io;

use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::managers::OWNER;
use blackhole_bus_schema::names::InstanceName;
use blackhole_bus_schema::regular;

pub use blackhole_bus_schema::managers::{UNNAMED, owner};

use crate::shim::client::instance_lock_held;

/// Why an instance is not this manager's to start.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another one's lives.
    #[error("it lives at the {owner}, which was not asked to end it")]
    Theirs {
        /// Whose.
        owner: String,
    },
    /// The file that names the owner cannot be written or removed.
    #[error("cannot note whose it is")]
    Io(#[from] io::Error),
}

/// The other manager at which an instance lives, if it does at one. Blocks for a
/// look at a file, or, for a named manager, one small read.
///
/// # Errors
/// When its lock cannot be examined.
pub fn lives_elsewhere(
    dirs: &Dirs,
    name: &InstanceName,
    owner: &str,
) -> io::Result<Option<String>> {
    let folder = dirs.instance(name);
    // Most instances never have the file.
    if owner == UNNAMED && !folder.join(OWNER).exists() {
        return Ok(None);
    }
    let whose = self::owner(&folder);
    let theirs = whose != owner && instance_lock_held(&folder)?.is_some();
    Ok(theirs.then_some(whose))
}

/// Makes an instance that is about to be started `owner`'s. One that another
/// manager started and that lives stays that one's. Blocks for one unlink, or,
/// for a named manager, one small read.
///
/// # Errors
/// When it lives elsewhere, or the file cannot be written or removed.
pub fn claim(dirs: &Dirs, name: &InstanceName, owner: &str) -> Result<(), ClaimError> {
    let folder = dirs.instance(name);
    let file = folder.join(OWNER);
    // Most instances never have the file.
    if owner == UNNAMED && !file.exists() {
        return Ok(());
    }
    let before = self::owner(&folder);
    if before == owner {
        return Ok(());
    }
    if instance_lock_held(&folder)?.is_some() {
        return Err(ClaimError::Theirs { owner: before });
    }
    if owner != UNNAMED {
        std::fs::create_dir_all(&folder)?;
        // Whole or not at all: a manager that looks meanwhile reads one or the other.
        let new = folder.join("owner.new");
        regular::write(&new, format!("{owner}\n").as_bytes())?;
        return Ok(std::fs::rename(new, file)?);
    }
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_starts_it_owns_it() {
        let temp = tempfile::tempdir().unwrap();
        let dirs = Dirs {
            run: temp.path().join("r"),
            state: temp.path().join("s"),
        };
        let name: InstanceName = "web.1".parse().unwrap();
        let folder = dirs.instance(&name);
        claim(&dirs, &name, UNNAMED).unwrap();
        assert_eq!(owner(&folder), UNNAMED);
        claim(&dirs, &name, "process-manager.gpu").unwrap();
        assert_eq!(owner(&folder), "process-manager.gpu");
        claim(&dirs, &name, UNNAMED).unwrap();
        assert_eq!(owner(&folder), UNNAMED);
    }
}
