//! Groups made, kept, found again, removed.

use blackhole_bus_schema::limits::{JoinMethod, Limits};
use blackhole_resource_controller::cgroup::ReleaseError;

use crate::support::{Host, instance, wait_for};

#[test]
fn a_grant_names_directories_that_can_be_joined() {
    let Some(mut host) = Host::able() else { return };
    let grant = host.prepare("web.1", &Limits::default()).grant;
    assert!(grant.version.is_some());
    assert!(!grant.cgroups.is_empty());
    for dir in &grant.cgroups {
        let file = match dir.join {
            JoinMethod::V1Tasks => "tasks",
            JoinMethod::V2 => "cgroup.procs",
        };
        assert!(
            std::path::Path::new(&dir.path).join(file).is_file(),
            "{dir:?}"
        );
        assert!(
            dir.path
                .ends_with(&format!("{}/web.1", host.settings().subtree)),
            "{dir:?}"
        );
    }
    let mut paths: Vec<_> = grant.cgroups.iter().map(|dir| &dir.path).collect();
    paths.dedup();
    assert_eq!(paths.len(), grant.cgroups.len());
    if let Some(kill) = &grant.kill_cgroup {
        assert!(std::path::Path::new(kill).join("cgroup.kill").exists());
    }
    host.release("web.1");
    assert_eq!(host.left(), Vec::<&std::path::Path>::new());
}

#[test]
fn the_whole_tree_dies_by_the_granted_kill_file() {
    let Some(mut host) = Host::able() else { return };
    let grant = host.prepare("tree.1", &Limits::default()).grant;
    let Some(kill) = grant.kill_cgroup.clone() else {
        eprintln!("skipped: no cgroup.kill on this kernel");
        return;
    };
    let pid = host.spawn(
        &grant,
        "trap '' TERM; sleep 1000 & (sleep 1000 & wait) & wait",
    );
    wait_for("all four are there", || match host.reading("tree.1").pids {
        Some(4) => Ok(()),
        other => Err(other),
    });
    std::fs::write(format!("{kill}/cgroup.kill"), "1").unwrap();
    host.wait(pid);
    host.release("tree.1");
    assert!(host.left().is_empty());
}

#[test]
fn release_is_refused_while_a_process_is_in_it() {
    let Some(mut host) = Host::able() else { return };
    let grant = host.prepare("busy.1", &Limits::default()).grant;
    let pid = host.spawn(&grant, "exec sleep 1000");
    wait_for("it joined", || match host.reading("busy.1").pids {
        Some(1) => Ok(()),
        other => Err(other),
    });
    let error = wait_for("the exec is through", || {
        match host.engine_mut().release(&instance("busy.1")) {
            Err(error) if error.to_string().contains("sleep") => Ok(error),
            other => Err(format!("{other:?}")),
        }
    });
    assert!(matches!(error, ReleaseError::Populated { .. }));
    assert!(error.to_string().contains(&pid.to_string()), "{error}");
    assert_eq!(host.reading("busy.1").pids, Some(1));
    host.kill(pid);
    host.release("busy.1");
    // Gone already is done already.
    host.release("busy.1");
    assert_eq!(host.engine().instances().count(), 0);
}

#[test]
fn groups_that_a_service_made_below_its_own_go_with_it() {
    let Some(mut host) = Host::able() else { return };
    let grant = host.prepare("nest.1", &Limits::default()).grant;
    for dir in &grant.cgroups {
        std::fs::create_dir_all(format!("{}/inner/most", dir.path)).unwrap();
    }
    host.release("nest.1");
    assert!(host.left().is_empty());
}

/// As after a kill -9 of the daemon: found again, with processes, counters and limits.
#[test]
fn a_restart_finds_groups_and_touches_no_process() {
    let Some(mut host) = Host::able() else { return };
    let limits = Limits {
        memory_bytes: Some(64 << 20),
        ..Limits::default()
    };
    let before = host.prepare("old.1", &limits);
    let pid = host.spawn(&before.grant, "exec sleep 1000");
    wait_for("it joined", || match host.reading("old.1").pids {
        Some(1) => Ok(()),
        other => Err(other),
    });
    let cpu = host.reading("old.1").cpu_usec.unwrap();
    host.restart();
    assert_eq!(
        host.engine().instances().collect::<Vec<_>>(),
        [&instance("old.1")]
    );
    assert!(host.engine().populated(&instance("old.1")));
    let reading = host.reading("old.1");
    assert_eq!(reading.pids, Some(1));
    assert_eq!(reading.memory_limit_bytes, Some(64 << 20));
    assert!(reading.cpu_usec.unwrap() >= cpu);

    let again = host.prepare("old.1", &limits);
    assert!(!again.fresh);
    assert_eq!(again.grant, before.grant);
    assert_eq!(host.reading("old.1").pids, Some(1));
    assert!(!host.close(), "groups with services stay at an orderly end");
    assert!(!host.left().is_empty());
    host.restart();
    host.kill(pid);
    host.release("old.1");
    assert!(host.close());
    assert!(host.left().is_empty());
}

#[test]
fn the_last_one_out_leaves_no_directory() {
    let Some(mut host) = Host::able() else { return };
    let grant = host.prepare("a.1", &Limits::default()).grant;
    host.prepare("a.2", &Limits::default());
    host.release("a.1");
    host.release("a.2");
    let subtrees: Vec<_> = grant
        .cgroups
        .iter()
        .map(|dir| std::path::Path::new(&dir.path).parent().unwrap().to_owned())
        .collect();
    assert!(subtrees.iter().all(|dir| dir.exists()));
    assert!(host.settings().record.as_ref().unwrap().exists());
    assert!(host.close());
    assert!(subtrees.iter().all(|dir| !dir.exists()));
    assert!(!host.settings().record.as_ref().unwrap().exists());
}

/// A parent that is configured is made where it is missing and removed at the end.
#[test]
fn a_configured_parent_is_made_and_removed() {
    let Some(host) = Host::able() else { return };
    if host.settings().parent.is_some() {
        return;
    }
    let name = format!("bh-test-parent-{}", std::process::id());
    let own = own_groups();
    let settings = blackhole_resource_controller::cgroup::Settings {
        subtree: host.settings().subtree.clone(),
        parent: Some(format!("/{name}/inner")),
        record: None,
    };
    let mut engine = blackhole_resource_controller::cgroup::Engine::open(settings);
    let grant = engine
        .prepare(&instance("p.1"), &Limits::default(), Some(7))
        .grant;
    assert_eq!(grant.oom_score_adj, Some(7));
    assert!(!grant.cgroups.is_empty());
    for dir in &grant.cgroups {
        assert!(dir.path.contains(&format!("/{name}/inner/")), "{dir:?}");
    }
    engine.release(&instance("p.1")).unwrap();
    assert!(engine.close());
    for dir in &grant.cgroups {
        let parent = dir.path.split(&name).next().unwrap();
        assert!(
            !std::path::Path::new(parent).join(&name).exists(),
            "{dir:?}"
        );
    }
    assert_eq!(own_groups(), own, "the own process was not moved");
}

fn own_groups() -> String {
    std::fs::read_to_string("/proc/self/cgroup").unwrap()
}
