//! The cgroups of a spawn: how its process gets into them, and the v2 group of its own.
//!
//! Each spawn has a new v2 group, `g<generation>` below the instance's own, where the limits
//! are: Linux from 6.14 on (and stable kernels with "cgroup: fix race between fork and
//! cgroup.kill") kills whatever is cloned into a group whose `cgroup.kill` was ever used,
//! since it compares the group's count of kills with that of the parent's group.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use blackhole_bus_schema::limits::{CgroupDir, JoinMethod, LimitGrant};
use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::process::{SpawnFailure, SpawnStep};
use rustix::fs::{Mode, OFlags};

use super::prepare::{c_string, errno, failure};
use super::tree;

pub(super) type WaysIn = (Vec<CString>, Option<OwnedFd>, Option<CString>);

/// Files to write to, and the v2 cgroup to be born in with its `cgroup.procs`: the first of them, see the module.
pub(super) fn ways_in(grant: Option<&LimitGrant>, group: &str) -> Result<WaysIn, SpawnFailure> {
    let step = SpawnStep::ApplyLimits;
    let (mut join, mut born_in, mut born_in_procs) = (Vec::new(), None, None);
    for cgroup in grant.iter().flat_map(|grant| &grant.cgroups) {
        let dir = match cgroup.join {
            JoinMethod::V1Tasks => PathBuf::from(&cgroup.path),
            JoinMethod::V2 => made_run_group(&cgroup.path, group),
        };
        let file = |name: &str| {
            let path = dir.join(name);
            c_string(path.into_os_string().as_bytes(), step, || {
                format!("join cgroup {}", cgroup.path)
            })
        };
        match cgroup.join {
            JoinMethod::V1Tasks => join.push(file("tasks")?),
            JoinMethod::V2 if born_in.is_none() => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let fd = rustix::fs::open(&dir, flags, Mode::empty()).map_err(|error| {
                    failure(
                        step,
                        format!("join cgroup {}", cgroup.path),
                        error.raw_os_error(),
                        CGROUP_HINT,
                    )
                })?;
                born_in = Some(fd);
                born_in_procs = Some(file("cgroup.procs")?);
            }
            JoinMethod::V2 => join.push(file("cgroup.procs")?),
        }
    }
    Ok((join, born_in, born_in_procs))
}

pub(super) fn run_group_name(generation: Generation) -> String {
    format!("g{generation}")
}

/// Makes it; where that is not possible the instance's own group serves.
fn made_run_group(group: &str, name: &str) -> PathBuf {
    let run = Path::new(group).join(name);
    match fs::create_dir(&run) {
        Ok(()) => run,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // A shim that was lost had made it ahead, and its service's end was a kill in
            // all groups: nothing could be born into this one.
            match fs::remove_dir(&run).map(|()| fs::create_dir(&run)) {
                Ok(Err(_)) => PathBuf::from(group),
                // Somebody still dies in it.
                Ok(Ok(())) | Err(_) => run,
            }
        }
        Err(_) => PathBuf::from(group),
    }
}

/// Removes the groups of all spawns of an instance of which nothing lives, those
/// of shims that were lost among them. What cannot be removed yet goes with the
/// next end, or with the instance's own group.
pub(crate) fn remove_all_run_groups(grant: &LimitGrant) {
    for group in own_groups(grant, "") {
        let children = fs::read_dir(group).into_iter().flatten().flatten();
        for child in children.filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir())) {
            let _ = fs::remove_dir(child.path());
        }
    }
}

/// Removes the groups of a spawn that has ended. What cannot be removed yet
/// goes with the instance's own group.
pub(crate) fn remove_run_groups(grant: &LimitGrant, generation: Generation) {
    for dir in own_groups(grant, &run_group_name(generation)) {
        let _ = fs::remove_dir(dir);
    }
}

/// Whether a spawn of that generation has a v2 group of its own.
pub(crate) fn has_run_group(grant: &LimitGrant, generation: Generation) -> bool {
    own_groups(grant, &run_group_name(generation)).any(|dir| dir.exists())
}

/// Removes the groups of one spawn of which nothing should live: what was put there by others
/// is killed.
pub(crate) fn clear_run_groups(grant: &LimitGrant, generation: Generation) {
    for dir in own_groups(grant, &run_group_name(generation)) {
        let busy = fs::remove_dir(&dir).is_err_and(|error| errno(&error) == libc::EBUSY);
        if busy {
            tree::kill_group(&dir);
        }
    }
}

/// The v2 groups called `name` below those of a grant.
pub(crate) fn own_groups<'a>(
    grant: &'a LimitGrant,
    name: &'a str,
) -> impl Iterator<Item = PathBuf> + 'a {
    let v2 = |cgroup: &&CgroupDir| cgroup.join == JoinMethod::V2;
    let groups = grant.cgroups.iter().filter(v2);
    groups.map(move |cgroup| Path::new(&cgroup.path).join(name))
}

/// For whoever reads that a cgroup could not be joined.
pub(crate) const CGROUP_HINT: &str = "the group that the resource-controller made is gone or not this user's: start it again with the resource-controller up";
