//! Joining cgroups, killing by them, and the OOM killer's verdict. Needs
//! cgroups that this user may make; where there are none each test says so.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod group_support;
mod shim_support;

use std::fs;

use blackhole_bus_schema::limits::{CgroupDir, JoinMethod, LimitGrant};
use blackhole_bus_schema::process::{ExitResult, ExitStatus, SpawnStep};
use blackhole_process_manager::shim::client::read_record;
use blackhole_process_manager::shim::sweep;
use group_support::{Group, grant, group, members};
use rustix::process::Signal;
use shim_support::{Rig, end, line_of, lives, until};

#[tokio::test]
async fn a_service_is_born_in_the_v2_tree_and_killed_by_it() {
    let Some(v2) = group("", "v2") else { return };
    let rig = Rig::new().await;
    let child = rig.path("child");
    let mut spec = rig.script(&format!(
        "setsid sh -c 'echo $$ > {}; exec sleep 1000' & exec sleep 1000",
        child.display()
    ));
    spec.grant = Some(LimitGrant {
        kill_cgroup: Some(v2.dir.to_str().unwrap().into()),
        ..grant(&[&v2])
    });
    let mut running = rig.spawn(&spec).await;
    let child = line_of(&child).await;
    let pids = members(&v2);
    assert!(
        pids.contains(&running.started.pid.to_string()) && pids.contains(&child),
        "{pids:?}"
    );
    assert!(
        !pids.contains(&running.started.shim_pid.to_string()),
        "the shim stays outside"
    );
    running.handle.kill(false).await.unwrap();
    assert_eq!(running.exited().await.result, ExitResult::Stopped);
    assert_eq!(members(&v2), Vec::<String>::new());
    // The same group again: the kernel must not hold the kill against the successor.
    spec.generation = spec.generation.next();
    let mut running = rig.spawn(&spec).await;
    assert!(members(&v2).contains(&running.started.pid.to_string()));
    running.handle.kill(false).await.unwrap();
    assert_eq!(running.exited().await.result, ExitResult::Stopped);
    let left: Vec<_> = fs::read_dir(&v2.dir)
        .unwrap()
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn every_v1_hierarchy_is_joined_before_the_program_runs() {
    let groups: Vec<Group> = ["memory", "pids", "cpu"]
        .into_iter()
        .filter_map(|controller| group(controller, "v1"))
        .collect();
    if groups.is_empty() {
        return;
    }
    let rig = Rig::new().await;
    let mut spec = rig.script("cat /proc/self/cgroup");
    spec.grant = Some(grant(&groups.iter().collect::<Vec<_>>()));
    let mut running = rig.spawn(&spec).await;
    assert_eq!(running.exited().await.result, ExitResult::Success);
    let log = rig.log(&spec);
    let name = groups[0].dir.file_name().unwrap().to_str().unwrap();
    assert_eq!(
        log.lines().filter(|line| line.ends_with(name)).count(),
        groups.len(),
        "{log}"
    );
}

#[tokio::test]
async fn a_freezer_holds_a_tree_still_while_it_is_killed() {
    let Some(freezer) = group("freezer", "freezer") else {
        return;
    };
    let rig = Rig::new().await;
    // A tree that makes processes as fast as it can.
    let mut spec = rig.script(
        "(while :; do setsid sleep 1000 & sleep 0.01; done) & while :; do sleep 0.01; done",
    );
    spec.grant = Some(LimitGrant {
        freezer_cgroup: Some(freezer.dir.to_str().unwrap().into()),
        ..grant(&[&freezer])
    });
    let mut running = rig.spawn(&spec).await;
    until("it has grown", || {
        (members(&freezer).len() > 10).then_some(())
    })
    .await;
    running.handle.kill(false).await.unwrap();
    let exit = running.exited().await;
    assert_eq!(exit.result, ExitResult::Stopped);
    assert_eq!(members(&freezer), Vec::<String>::new());
}

#[tokio::test]
async fn the_oom_killer_is_named() {
    let Some(memory) = group("memory", "oom") else {
        return;
    };
    let rig = Rig::new().await;
    fs::write(
        memory.dir.join("memory.limit_in_bytes"),
        (32 << 20).to_string(),
    )
    .unwrap();
    let _ = fs::write(
        memory.dir.join("memory.memsw.limit_in_bytes"),
        (32 << 20).to_string(),
    );
    let mut spec = rig.script("exec tail /dev/zero");
    let oom_file = Some(
        memory
            .dir
            .join("memory.oom_control")
            .to_str()
            .unwrap()
            .to_owned(),
    );
    spec.grant = Some(LimitGrant {
        oom_file,
        ..grant(&[&memory])
    });
    let mut running = rig.spawn(&spec).await;
    let exit = running.exited().await;
    assert_eq!(exit.result, ExitResult::OomKill);
    assert_eq!(
        exit.status,
        ExitStatus::Signaled {
            signal: 9,
            core_dumped: false
        }
    );
    // The counter stays as it is; the next life is judged by what rises in it.
    spec.command = vec!["/bin/sh".into(), "-c".into(), "kill -9 $$".into()];
    let mut running = rig.spawn(&spec).await;
    assert_eq!(running.exited().await.result, ExitResult::Signal);
}

#[tokio::test]
async fn a_group_that_is_gone_fails_the_spawn_by_name() {
    let rig = Rig::new().await;
    for join in [JoinMethod::V1Tasks, JoinMethod::V2] {
        let mut spec = rig.script("true");
        let cgroups = vec![CgroupDir {
            path: "/sys/fs/cgroup/no/such/group".into(),
            join,
        }];
        spec.grant = Some(LimitGrant {
            cgroups,
            ..LimitGrant::default()
        });
        let failure = rig.fail(&spec).await;
        assert_eq!(
            (failure.step, failure.errno),
            (SpawnStep::ApplyLimits, 2),
            "{failure}"
        );
        assert!(
            failure
                .operation
                .starts_with("join cgroup /sys/fs/cgroup/no/such/group"),
            "{failure}"
        );
        assert!(failure.hint.contains("resource-controller"), "{failure}");
    }
}

#[tokio::test]
async fn what_a_lost_shim_left_in_a_group_is_swept() {
    let Some(v2) = group("", "sweep") else { return };
    let rig = Rig::new().await;
    let child = rig.path("child");
    // Without the environment by which it could be found otherwise.
    let mut spec = rig.script(&format!(
        "env -i setsid sh -c 'echo $$ > {}; exec sleep 1000' & exec sleep 1000",
        child.display()
    ));
    spec.grant = Some(LimitGrant {
        kill_cgroup: Some(v2.dir.to_str().unwrap().into()),
        ..grant(&[&v2])
    });
    let running = rig.spawn(&spec).await;
    let child: u32 = line_of(&child).await.parse().unwrap();
    end(running.started.shim_pid, Signal::KILL);
    assert!(lives(child));
    let record = read_record(&rig.folder(&spec)).unwrap().unwrap();
    sweep(&record.socket, record.grant.as_ref());
    until("it is swept", || (!lives(child)).then_some(())).await;
}
