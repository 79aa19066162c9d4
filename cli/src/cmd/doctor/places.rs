//! Checks of the directories: who can use them, how much room they have.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use blackhole_bus_schema::dirs::{Dirs, MAX_SOCKET_PATH};
use blackhole_bus_schema::names::Component;

use super::{Check, fail, ok, warn};
use crate::{host, human};

/// Below this much room a state directory is worth a warning, bytes.
const LITTLE_ROOM: u64 = 512 * 1024 * 1024;
/// Below this much room logs and records will soon be lost, bytes.
const NO_ROOM: u64 = 16 * 1024 * 1024;

/// The nearest existing directory on the way to `path`.
fn existing(path: &Path) -> &Path {
    path.ancestors()
        .find(|one| one.exists())
        .unwrap_or(Path::new("/"))
}

pub(super) fn directory(what: &str, path: &Path) -> Check {
    let shown = path.display();
    let Ok(meta) = std::fs::metadata(path) else {
        let parent = existing(path);
        return if host::writable(parent) {
            ok(what, format!("{shown} will be made"))
        } else {
            fail(
                what,
                format!(
                    "{shown} cannot be made: {} is not writable",
                    parent.display()
                ),
                "choose another with --run-dir and --state-dir, or run as root",
            )
        };
    };
    let found = format!(
        "{shown}, mode {:o}, user {}",
        meta.mode() & 0o7777,
        meta.uid()
    );
    let me = rustix::process::geteuid().as_raw();
    if !meta.is_dir() {
        fail(
            what,
            format!("{shown} is not a directory"),
            "remove it or choose another",
        )
    } else if meta.uid() != me {
        fail(
            what,
            found,
            format!("it must belong to the user who runs Blackhole (user {me})"),
        )
    } else if meta.mode() & 0o022 != 0 {
        fail(
            what,
            found,
            format!("others can write to it: `chmod go-w {shown}`"),
        )
    } else if !host::writable(path) {
        fail(what, found, "it is not writable")
    } else {
        ok(what, found)
    }
}

pub(super) fn socket_length(dirs: &Dirs) -> Check {
    const WHAT: &str = "socket paths";
    let longest = dirs
        .bus_evt(&Component::ResourceController)
        .as_os_str()
        .len();
    // `Dirs::resolve` has refused what is too long; this tells how near it is.
    ok(WHAT, format!("{longest} of {MAX_SOCKET_PATH} bytes used"))
}

pub(super) fn room(path: &Path) -> Check {
    const WHAT: &str = "disk";
    let Ok(stat) = rustix::fs::statvfs(existing(path)) else {
        return warn(WHAT, "free space is unknown", "");
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let found = format!("{} free for {}", human::bytes(free), path.display());
    if free < NO_ROOM || stat.f_files > 0 && stat.f_favail == 0 {
        fail(
            WHAT,
            found,
            "free some: logs, exit records and desired state cannot be kept",
        )
    } else if free < LITTLE_ROOM {
        warn(
            WHAT,
            found,
            "logs take max_size × (max_files + 1) for each instance",
        )
    } else {
        ok(WHAT, found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::doctor::Grade;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_directory_that_others_can_write_to_fails() {
        let temp = tempfile::tempdir().unwrap();
        assert_eq!(directory("d", temp.path()).grade, Grade::Ok);
        std::fs::set_permissions(temp.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let check = directory("d", temp.path());
        assert_eq!(check.grade, Grade::Fail);
        assert!(check.advice.unwrap().contains("chmod go-w"));
        assert_eq!(directory("d", &temp.path().join("new/er")).grade, Grade::Ok);
    }
}
