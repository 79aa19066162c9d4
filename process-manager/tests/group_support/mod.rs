//! Cgroups that tests make for their services.

#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};

use blackhole_bus_schema::limits::{CgroupDir, JoinMethod, LimitGrant};

/// A cgroup of its own in one hierarchy; removed with the test.
pub(crate) struct Group {
    pub(crate) dir: PathBuf,
    pub(crate) join: JoinMethod,
}

impl Drop for Group {
    fn drop(&mut self) {
        // What was killed may take a moment to leave.
        for _ in 0..500 {
            for below in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(below.path());
            }
            match fs::remove_dir(&self.dir) {
                Err(error) if error.raw_os_error() == Some(16) => {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                _ => break,
            }
        }
    }
}

/// Makes a group below this process's own in the v1 hierarchy of `controller`,
/// or in the v2 tree for an empty one. Prints why when it cannot.
pub(crate) fn group(controller: &str, name: &str) -> Option<Group> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let path = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        controllers
            .split(',')
            .any(|one| one == controller)
            .then_some(path)
    });
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let root = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (mount, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        let fits = match controller {
            "" => kind == "cgroup2",
            _ => kind == "cgroup" && options.split(',').any(|one| one == controller),
        };
        fits.then_some(mount)
    });
    let (Some(path), Some(root)) = (path, root) else {
        println!("skipped: this host has no cgroup hierarchy for {controller:?}");
        return None;
    };
    let dir =
        Path::new(&format!("{root}{path}")).join(format!("bh-test-{}-{name}", std::process::id()));
    if let Err(error) = fs::create_dir(&dir) {
        println!("skipped: cannot make {}: {error}", dir.display());
        return None;
    }
    let join = if controller.is_empty() {
        JoinMethod::V2
    } else {
        JoinMethod::V1Tasks
    };
    Some(Group { dir, join })
}

pub(crate) fn grant(groups: &[&Group]) -> LimitGrant {
    let text = |group: &Group| group.dir.to_str().unwrap().to_owned();
    let cgroups = groups
        .iter()
        .map(|group| CgroupDir {
            path: text(group),
            join: group.join,
        })
        .collect();
    LimitGrant {
        cgroups,
        ..LimitGrant::default()
    }
}

/// Who is in a group or in those below it.
pub(crate) fn members(group: &Group) -> Vec<String> {
    let below = fs::read_dir(&group.dir)
        .unwrap()
        .flatten()
        .map(|entry| entry.path());
    std::iter::once(group.dir.clone())
        .chain(below.filter(|path| path.is_dir()))
        .filter_map(|dir| fs::read_to_string(dir.join("cgroup.procs")).ok())
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}
