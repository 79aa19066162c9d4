//! What the host offers: cgroups, limits, disk. Only reads.

use std::path::{Path, PathBuf};

/// One cgroup hierarchy that this process is in, see cgroups(7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Controllers; empty for the v2 tree.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// This process's group, below the mount.
    pub own: PathBuf,
    /// Whether it is the v2 tree.
    pub v2: bool,
}

/// How the kernel sees a process, see proc_pid_stat(5): `R`, `S`, `D`, `T`, `Z` …;
/// `None` when there is none.
pub fn process_state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything, also parentheses.
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Whether a successor of a service waits as a process, beside the service's own
/// process `pid`: its shim has another child that has not executed a program yet
/// and so goes by the shim's name. `None` where the kernel does not tell.
pub fn successor_waits(pid: u32) -> Option<bool> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // State, then the parent; the name may hold anything.
    let shim = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?;
    let name = |pid: &str| std::fs::read(format!("/proc/{pid}/comm")).ok();
    let shims = name(shim)?;
    let children = std::fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).ok()?;
    let others = children
        .split_whitespace()
        .filter(|child| child.parse() != Ok(pid));
    Some(
        others
            .into_iter()
            .any(|child| name(child).as_ref() == Some(&shims)),
    )
}

/// The hierarchies, from the texts of /proc/self/cgroup and /proc/self/mountinfo.
pub fn hierarchies(cgroup: &str, mountinfo: &str) -> Vec<Hierarchy> {
    let mut all = Vec::new();
    for line in cgroup.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(names), Some(path)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let controllers: Vec<String> = names
            .split(',')
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        let v2 = controllers.is_empty();
        if controllers.iter().any(|name| name.starts_with("name=")) {
            continue;
        }
        let Some(mount) = mountinfo
            .lines()
            .find_map(|line| mount_of(line, &controllers))
        else {
            continue;
        };
        let own = match path.trim_start_matches('/') {
            "" => mount.clone(),
            below => mount.join(below),
        };
        all.push(Hierarchy {
            controllers,
            mount,
            own,
            v2,
        });
    }
    all
}

/// The mount point of a line of mountinfo, if it mounts this hierarchy, see proc_pid_mountinfo(5).
fn mount_of(line: &str, controllers: &[String]) -> Option<PathBuf> {
    let (head, tail) = line.split_once(" - ")?;
    let mut tail = tail.split(' ');
    let kind = tail.next()?;
    let options = tail.nth(1)?;
    let fits = match controllers.first() {
        None => kind == "cgroup2",
        Some(first) => kind == "cgroup" && options.split(',').any(|option| option == first),
    };
    fits.then(|| head.split(' ').nth(4).map(PathBuf::from))
        .flatten()
}

/// [`hierarchies`] of this process.
pub fn own_hierarchies() -> Vec<Hierarchy> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    hierarchies(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"))
}

/// This process's own groups, one a hierarchy.
pub fn own_cgroups() -> Vec<PathBuf> {
    own_hierarchies()
        .into_iter()
        .map(|hierarchy| hierarchy.own)
        .collect()
}

/// Whether an I/O weight decides anything on some disk: one that BFQ or CFQ schedules, or io.cost
/// being switched on, see block/bfq-iosched.rst and cgroup-v2.rst of the kernel's documentation.
/// The kernel takes a weight either way.
pub fn io_weights_count(sys_block: &Path, all: &[Hierarchy]) -> bool {
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let mut disks = std::fs::read_dir(sys_block).into_iter().flatten().flatten();
    let scheduled = disks.any(|disk| {
        let schedulers = read(disk.path().join("queue/scheduler"));
        ["[bfq]", "[cfq]"]
            .iter()
            .any(|one| schedulers.contains(one))
    });
    let mut trees = all.iter().filter(|one| one.v2);
    scheduled || trees.any(|tree| read(tree.mount.join("io.cost.qos")).contains("enable=1"))
}

/// Whether a process may write into a directory, as access(2) tells it.
pub fn writable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_counts_where_a_disk_is_scheduled_by_weight() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("vda/queue/scheduler");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "none [mq-deadline] bfq\n").unwrap();
        let tree = temp.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        let trees = [Hierarchy {
            controllers: Vec::new(),
            mount: tree.clone(),
            own: tree.clone(),
            v2: true,
        }];
        assert!(!io_weights_count(temp.path(), &trees));
        std::fs::write(tree.join("io.cost.qos"), "254:0 enable=1 ctrl=auto\n").unwrap();
        assert!(io_weights_count(temp.path(), &trees));
        assert!(!io_weights_count(temp.path(), &[]));
        std::fs::write(&file, "none mq-deadline [bfq]\n").unwrap();
        assert!(io_weights_count(temp.path(), &[]));
        assert!(!io_weights_count(Path::new("/nowhere"), &[]));
    }

    #[test]
    fn the_state_of_a_process_is_a_letter() {
        let own = process_state(std::process::id());
        assert!(own.is_some_and(|state| "RSD".contains(state)), "{own:?}");
        assert_eq!(process_state(u32::MAX), None);
    }

    const MOUNTS: &str = "\
24 1 0:21 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
25 24 0:22 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
26 24 0:23 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
27 24 0:24 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
";

    #[test]
    fn a_hybrid_host() {
        let all = hierarchies("9:name=systemd:/\n4:memory:/a/b\n1:cpu:/\n0::/x\n", MOUNTS);
        let own: Vec<_> = all.iter().map(|one| one.own.to_str().unwrap()).collect();
        assert_eq!(
            own,
            [
                "/sys/fs/cgroup/memory/a/b",
                "/sys/fs/cgroup/cpu",
                "/sys/fs/cgroup/unified/x"
            ]
        );
        assert_eq!(
            all.iter().map(|one| one.v2).collect::<Vec<_>>(),
            [false, false, true]
        );
    }

    #[test]
    fn a_controller_that_is_not_mounted_is_left_out() {
        assert!(hierarchies("3:pids:/\n", MOUNTS).is_empty());
    }
}
