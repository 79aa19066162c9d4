//! v2's rule of no processes beside the services: the daemon starts in a group
//! of its own, as in a unit, and has to make room. Needs root and a v2 tree that
//! passes its controllers on; the test in a virtual machine has both.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use blackhole_bus_schema::limits::{CgroupVersion, Enforcement, Limits};

use crate::support::Setup;

/// A group at the root of the v2 tree, like the one of a unit.
struct Unit {
    dir: PathBuf,
}

impl Unit {
    fn new(name: &str) -> Option<Self> {
        let root = Path::new("/sys/fs/cgroup");
        // Elsewhere this directory holds no control file; and a plain one must not be made.
        let switched_on = fs::OpenOptions::new()
            .write(true)
            .open(root.join("cgroup.subtree_control"))
            .and_then(|mut control| control.write_all(b"+cpu +memory +io +pids"));
        if switched_on.is_err() {
            eprintln!("v2 only: no tree at /sys/fs/cgroup that passes controllers on");
            return None;
        }
        let dir = root.join(format!("bh-test-{name}-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        Some(Self { dir })
    }

    /// A command line that runs the rest of it in this group.
    fn wrapper(&self) -> Vec<String> {
        let join = format!(
            "echo 0 > {}/cgroup.procs && exec \"$0\" \"$@\"",
            self.dir.display()
        );
        vec!["/bin/sh".to_owned(), "-c".to_owned(), join]
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name))
            .unwrap()
            .trim()
            .to_owned()
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        let removed = fs::remove_dir(&self.dir);
        if !std::thread::panicking() {
            removed.unwrap();
        }
    }
}

fn limits() -> Limits {
    Limits {
        cpu_percent: Some(50),
        memory_bytes: Some(64 << 20),
        pids: Some(10),
        ..Limits::default()
    }
}

fn start(setup: &mut Setup, unit: &Unit) {
    let wrapper = unit.wrapper();
    setup.start(&wrapper.iter().map(String::as_str).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_daemon_moves_to_a_leaf_and_back() {
    let Some(unit) = Unit::new("leaf") else {
        return;
    };
    let mut setup = Setup::new("");
    start(&mut setup, &unit);
    let client = setup.client().await;
    let grant = setup.keep(client.prepare("web.1", limits()).await.unwrap());
    assert_eq!(grant.version, Some(CgroupVersion::V2));
    assert!(grant.fully_enforced(), "{:?}", grant.report);
    let subtree = unit.dir.join(setup.dirs.cgroup_name());
    assert_eq!(Path::new(&grant.cgroups[0].path), subtree.join("web.1"));
    let leaf = fs::read_to_string(subtree.join("_control/cgroup.procs")).unwrap();
    assert_eq!(leaf.trim(), setup.pid().to_string());
    assert_eq!(unit.read("cgroup.procs"), "");
    let service = setup.spawn_resting(&grant).await;

    // Killed and started again from within the leaf, as its keeper does it.
    setup.kill().await;
    let leaf = format!(
        "echo 0 > {}/_control/cgroup.procs && exec \"$0\" \"$@\"",
        subtree.display()
    );
    setup.start(&["/bin/sh", "-c", &leaf]);
    let client = setup.client().await;
    assert_eq!(client.prepare("web.1", limits()).await.unwrap(), grant);
    assert!(setup.runs(service));

    setup.kill_child(service).await;
    client.release("web.1").await.unwrap();
    setup.stop().await;
    // Everything as before: no group, no controller passed on.
    assert!(!subtree.exists());
    assert_eq!(unit.read("cgroup.subtree_control"), "");
}

#[tokio::test]
async fn a_foreign_process_is_not_moved_but_named() {
    let Some(unit) = Unit::new("foreign") else {
        return;
    };
    let mut setup = Setup::new("");
    let mut wrapper = unit.wrapper();
    let mut foreign = Command::new(wrapper.remove(0))
        .args(wrapper)
        .args(["sleep", "1000"])
        .spawn()
        .unwrap();
    start(&mut setup, &unit);
    let client = setup.client().await;
    let grant = setup.keep(client.prepare("web.1", limits()).await.unwrap());
    for line in &grant.report {
        let Enforcement::NotEnforced { reason } = &line.enforcement else {
            panic!("{line:?}")
        };
        assert!(
            reason.contains(&format!("{} sleep", foreign.id())),
            "{reason}"
        );
        assert!(reason.contains("cgroup_parent"), "{reason}");
    }
    assert!(
        unit.read("cgroup.procs")
            .contains(&foreign.id().to_string())
    );
    // Its group is there all the same, to kill and to measure.
    assert!(grant.kill_cgroup.is_some());

    // Once it is gone the limits hold, from the next prepare on.
    foreign.kill().unwrap();
    foreign.wait().unwrap();
    let grant = client.prepare("web.1", limits()).await.unwrap();
    assert!(grant.fully_enforced(), "{:?}", grant.report);
    assert_eq!(
        client.link.info().unwrap().component.to_string(),
        "resource-controller"
    );
    client.release("web.1").await.unwrap();
    setup.stop().await;
}

/// The name of a configured parent is enough: nothing has to be moved.
#[tokio::test]
async fn a_configured_parent_needs_no_leaf() {
    let Some(unit) = Unit::new("elsewhere") else {
        return;
    };
    let parent = format!("bh-test-parent-{}", std::process::id());
    let mut setup = Setup::new(&format!("cgroup_parent: /{parent}/inner"));
    start(&mut setup, &unit);
    let client = setup.client().await;
    let grant = setup.keep(client.prepare("web.1", limits()).await.unwrap());
    assert!(grant.fully_enforced(), "{:?}", grant.report);
    assert!(
        grant.cgroups[0]
            .path
            .starts_with(&format!("/sys/fs/cgroup/{parent}/inner/"))
    );
    assert_eq!(unit.read("cgroup.procs"), setup.pid().to_string());
    client.release("web.1").await.unwrap();
    setup.stop().await;
    assert!(!Path::new("/sys/fs/cgroup").join(parent).exists());
}
