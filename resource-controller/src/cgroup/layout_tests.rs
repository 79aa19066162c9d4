//! Hosts as they are found in the wild, as text.

use super::*;

fn layout(mountinfo: &str, cgroup: &str, parent: Option<&str>) -> Layout {
    Layout::new(&mounts(mountinfo), &own_cgroups(cgroup), parent)
}

fn base(layout: &Layout, controller: Controller) -> &Path {
    &layout.trees[layout.v1_tree(controller).unwrap()].base
}

const HYBRID_SEPARATE: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
38 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

#[test]
fn hybrid_with_each_controller_by_itself() {
    let layout = layout(
        HYBRID_SEPARATE,
        "9:name=systemd:/\n8:pids:/\n7:blkio:/\n6:freezer:/\n4:memory:/vm/job1\n3:cpuset:/\n2:cpuacct:/\n1:cpu:/\n0::/\n",
        None,
    );
    assert_eq!(layout.version(), Some(CgroupVersion::Hybrid));
    assert_eq!(layout.problems, Vec::<String>::new());
    assert_eq!(
        base(&layout, Controller::Memory),
        Path::new("/sys/fs/cgroup/memory/vm/job1")
    );
    assert_eq!(
        base(&layout, Controller::Cpu),
        Path::new("/sys/fs/cgroup/cpu")
    );
    let v2 = &layout.trees[layout.v2_tree().unwrap()];
    assert_eq!(v2.base, Path::new("/sys/fs/cgroup/unified"));
    assert_eq!(layout.trees.len(), 7);
}

/// systemd's legacy layout, in a session's scope: controllers mounted together.
#[test]
fn v1_with_controllers_mounted_together() {
    let layout = layout(
        "30 25 0:25 / /sys/fs/cgroup/systemd rw,nosuid - cgroup cgroup rw,xattr,name=systemd\n\
         33 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
         34 25 0:29 / /sys/fs/cgroup/memory rw,nosuid shared:10 - cgroup cgroup rw,memory\n",
        "4:memory:/user.slice/user-1000.slice/session-3.scope\n3:cpu,cpuacct:/user.slice\n1:name=systemd:/user.slice\n",
        None,
    );
    assert_eq!(layout.version(), Some(CgroupVersion::V1));
    assert_eq!(
        layout.v1_tree(Controller::Cpu),
        layout.v1_tree(Controller::Cpuacct)
    );
    assert_eq!(
        base(&layout, Controller::Cpuacct),
        Path::new("/sys/fs/cgroup/cpu,cpuacct/user.slice")
    );
    assert_eq!(layout.v1_tree(Controller::Pids), None);
}

#[test]
fn v2_in_a_unit() {
    let layout = layout(
        "35 25 0:30 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n",
        "0::/system.slice/blackhole.service\n",
        None,
    );
    assert_eq!(layout.version(), Some(CgroupVersion::V2));
    assert_eq!(
        layout.trees[0].base,
        Path::new("/sys/fs/cgroup/system.slice/blackhole.service")
    );
}

#[test]
fn v2_from_within_a_leaf_works_below_the_same_base() {
    let mountinfo = "35 25 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    for (own, expected) in [
        ("/a/blackhole/_control", "/sys/fs/cgroup/a"),
        ("/blackhole-0123abcd/_control", "/sys/fs/cgroup"),
        (
            "/a/blackhole-0123abc/_control",
            "/sys/fs/cgroup/a/blackhole-0123abc/_control",
        ),
        ("/a/other/_control", "/sys/fs/cgroup/a/other/_control"),
        ("/_control", "/sys/fs/cgroup/_control"),
        ("/a/blackhole/web.1", "/sys/fs/cgroup/a/blackhole/web.1"),
    ] {
        let layout = layout(mountinfo, &format!("0::{own}\n"), None);
        assert_eq!(layout.trees[0].base, Path::new(expected), "{own}");
    }
}

/// A container with its own cgroup namespace: both files are relative to it.
#[test]
fn container_with_namespace() {
    let layout = layout(
        "1000 990 0:30 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw\n",
        "0::/\n",
        None,
    );
    assert_eq!(layout.trees[0].base, Path::new("/sys/fs/cgroup"));
}

/// A v1 container without a namespace: the mount's root is the container's own
/// group, and /proc/self/cgroup has the path on the host.
#[test]
fn container_without_namespace() {
    let id = "/docker/0123456789abcdef";
    let layout = layout(
        &format!(
            "1 0 0:30 {id} /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory\n\
             2 0 0:31 {id} /sys/fs/cgroup/cpu,cpuacct ro,nosuid - cgroup cgroup rw,cpu,cpuacct\n\
             3 0 0:32 /elsewhere /sys/fs/cgroup/pids ro,nosuid - cgroup cgroup rw,pids\n"
        ),
        &format!("5:memory:{id}\n4:cpu,cpuacct:{id}/inner\n3:pids:{id}\n"),
        None,
    );
    assert_eq!(
        base(&layout, Controller::Memory),
        Path::new("/sys/fs/cgroup/memory")
    );
    assert_eq!(
        base(&layout, Controller::Cpu),
        Path::new("/sys/fs/cgroup/cpu,cpuacct/inner")
    );
    assert_eq!(layout.v1_tree(Controller::Pids), None);
    assert_eq!(layout.problems.len(), 1, "{:?}", layout.problems);
    assert!(layout.problems[0].contains("/sys/fs/cgroup/pids"));
}

/// A mount from outside of the namespace shows a root above it.
#[test]
fn mount_from_outside_of_the_namespace() {
    for (root, own) in [("/../../..", "/"), ("/", "/../sibling"), ("/..", "/..")] {
        let layout = layout(
            &format!("1 0 0:30 {root} /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
            &format!("0::{own}\n"),
            None,
        );
        assert_eq!(layout.version(), None, "{root} {own}");
        assert_eq!(layout.problems.len(), 1);
    }
}

#[test]
fn mount_points_with_escapes() {
    let layout = layout(
        "1 0 0:30 / /mnt/my\\040cgroups/v2 rw - cgroup2 cgroup2 rw\n",
        "0::/a b\n",
        None,
    );
    assert_eq!(layout.trees[0].base, Path::new("/mnt/my cgroups/v2/a b"));
}

#[test]
fn the_first_of_two_mounts_of_a_hierarchy_is_used() {
    let layout = layout(
        "1 0 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
         2 0 0:30 / /mnt/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
         3 0 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
         4 0 0:31 / /mnt/v2 rw - cgroup2 cgroup2 rw\n",
        "1:cpu,cpuacct:/\n0::/\n",
        None,
    );
    assert_eq!(layout.trees.len(), 2);
    assert_eq!(
        layout.trees[0].mount,
        Path::new("/sys/fs/cgroup/cpu,cpuacct")
    );
}

#[test]
fn a_configured_parent_replaces_the_own_cgroup() {
    let layout = layout(
        HYBRID_SEPARATE,
        "4:memory:/x\n0::/y\n",
        Some("/services.slice/mine"),
    );
    assert_eq!(
        base(&layout, Controller::Memory),
        Path::new("/sys/fs/cgroup/memory/services.slice/mine")
    );
    assert_eq!(
        layout.trees[layout.v2_tree().unwrap()].base,
        Path::new("/sys/fs/cgroup/unified/services.slice/mine")
    );
}

#[test]
fn a_parent_that_leads_out_is_refused() {
    let layout = layout(HYBRID_SEPARATE, "0::/\n", Some("/a/../../b"));
    assert_eq!(layout.trees, []);
    assert!(layout.problems[0].contains("cgroup_parent"));
}

#[test]
fn no_cgroups_at_all() {
    let layout = layout("25 1 8:1 / / rw - ext4 /dev/sda1 rw\n", "", None);
    assert_eq!(layout.version(), None);
    assert_eq!(layout.problems, ["no cgroup hierarchy is mounted"]);
}
