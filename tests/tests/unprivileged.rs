//! As an ordinary user everything works but limits, and that is said clearly.

use std::fs;

use blackhole_tests::{Deployment, is_root, wait_for};

const SYSTEM: &str = r#"
services:
  base:
    command: [blackhole-example, ticker]
    priority: critical
    health: {readiness: {notify: true}}
    resources: {cpu_percent: 50, memory_mb: 64}
  after:
    command: [blackhole-example, environment]
    depends_on: {base: ready}
  strict:
    command: [blackhole-example, idle]
    autostart: false
    resources: {memory_mb: 64, limits: required}
"#;

/// Any user but root and but this process's own.
const SOMEBODY: u32 = 65534;

#[track_caller]
fn deployment() -> Deployment {
    if !is_root() {
        return Deployment::new(SYSTEM);
    }
    let deployment = Deployment::as_user(SOMEBODY);
    fs::write(deployment.config(), SYSTEM).expect("the configuration is written");
    deployment
}

#[test]
fn an_ordinary_user_runs_services_without_limits_and_is_told() {
    let deployment = deployment();
    deployment.up();
    let status = deployment.status();
    assert!(
        status.is_in("base.1", "ready") && status.is_in("after.1", "ready"),
        "{status:?}"
    );
    // The daemons and the services really are that user's.
    if is_root() {
        for process in deployment.processes() {
            let status =
                fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap_or_default();
            let users = status
                .lines()
                .find(|line| line.starts_with("Uid:"))
                .unwrap_or_default();
            assert!(
                users.contains(&SOMEBODY.to_string()) || users.is_empty(),
                "{process:?}: {users}"
            );
        }
    }
    let shown = deployment.cli(&["status"]).ok();
    assert!(shown.stdout.contains("not enforced"), "{shown:#?}");
    // One that cannot do without its limits is refused, with the reason.
    let refused = deployment.cli(&["start", "strict"]).exits_with(6);
    assert!(
        refused.stderr.contains("memory") || refused.stderr.contains("limit"),
        "{refused:#?}"
    );

    // All else is as it is for root.
    let pid = status.instance("base.1").pid().expect("a pid");
    deployment.kill(pid);
    deployment.wait_until("the restart", |status| {
        status.is_in("base.1", "ready") && status.instance("base.1").pid() != Some(pid)
    });
    deployment.down();
}

#[test]
fn an_ordinary_users_service_gets_no_more_than_it_should() {
    let deployment = deployment();
    deployment.up();
    let log = wait_for("the service to say its environment", || {
        let log = deployment.cli(&["logs", "after"]).ok().stdout;
        if log.contains("said all") {
            Ok(log)
        } else {
            Err(log)
        }
    });
    let names: Vec<&str> = log
        .lines()
        .filter_map(|line| line.split_once(" env ")?.1.split_once('='))
        .map(|(name, _)| name)
        .collect();
    for name in [
        "BLACKHOLE_INSTANCE",
        "BLACKHOLE_RPC",
        "BLACKHOLE_SERVICE",
        "BLACKHOLE_TOKEN",
        "PATH",
    ] {
        assert!(names.contains(&name), "no {name} in {names:?}");
    }
    for name in ["BLACKHOLE_STATE_DIR", "BLACKHOLE_LOG", "HOME"] {
        assert!(!names.contains(&name), "{name} of the daemons in {names:?}");
    }
    let open: Vec<&str> = log.lines().filter(|line| line.contains(" fd ")).collect();
    assert!(
        open.iter()
            .all(|line| !line.contains("/bus/") && !line.contains("/lock")),
        "{open:#?}"
    );
    deployment.down();
}
