//! Two hundred instances of a small service.

use std::collections::BTreeMap;

use blackhole_tests::{Deployment, Status, processes};

const COUNT: usize = 200;

const MANY: &str = r#"
runtime:
  orchestrator:
    max_processes: 250
services:
  small:
    command: [blackhole-example, idle]
    replicas: 200
    resources: {cpu_percent: none, memory_mb: 64}
"#;

fn all_ready(status: &Status) -> bool {
    status
        .instances()
        .iter()
        .filter(|one| one.phase() == Some("ready"))
        .count()
        == COUNT
}

fn pids(status: &Status) -> BTreeMap<String, (u64, u64)> {
    status.running()
}

#[test]
fn two_hundred_instances_start_are_shown_survive_and_stop() {
    let deployment = Deployment::new(MANY);
    deployment.up();
    let status = deployment.status();
    assert!(all_ready(&status), "{status:?}");
    let before = pids(&status);
    assert_eq!(before.len(), COUNT);

    let shown = deployment.cli(&["status"]).ok();
    let lines = shown
        .stdout
        .lines()
        .filter(|line| line.contains(" RUNNING "))
        .count();
    assert_eq!(lines, COUNT, "{}", shown.stdout);

    let old = deployment.kill_component("process-manager");
    let status = deployment.wait_until(
        "the process-manager to be back with all instances",
        |status| {
            status
                .component_pid("process-manager")
                .is_some_and(|new| new != old)
                && all_ready(status)
        },
    );
    assert_eq!(pids(&status), before);
    for (instance, (pid, _)) in &before {
        assert!(
            u32::try_from(*pid).is_ok_and(processes::is_alive),
            "{instance}"
        );
    }

    // A manager that adopted them can do all that one that started them can.
    deployment.cli(&["restart", "small"]).ok();
    let status = deployment.wait_until("all to be ready again", all_ready);
    let after = pids(&status);
    assert!(
        before
            .iter()
            .all(|(one, (pid, _))| after.get(one).is_some_and(|(new, _)| new != pid))
    );

    deployment.cli(&["stop", "small"]).ok();
    let status = deployment.status();
    assert!(status.running().is_empty(), "{status:?}");
    deployment.down();
}
