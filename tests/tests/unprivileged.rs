//! As an ordinary user everything works but limits, and that is said clearly.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;

use blackhole_tests::{Deployment, is_root, skip, wait_for};

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

/// What may not be looked at is not said to be away, or ended.
#[test]
fn what_another_user_runs_is_not_taken_for_nothing() {
    if !is_root() {
        return skip("what another user runs", "only root can be another user");
    }
    let deployment = Deployment::new("services: {web: {command: [blackhole-example, idle]}}");
    deployment.up();
    for arguments in [
        &["down"][..],
        &["up", "-d"],
        &["status"],
        &["--offline", "status"],
        &["component", "list"],
        &["health"],
        &["logs"],
        &["start", "web"],
        &["kill", "web"],
        &["events"],
        &["metrics"],
    ] {
        let refused = deployment.cli_as(SOMEBODY, arguments).exits_with(6);
        assert!(refused.stdout.is_empty(), "{arguments:?}: {refused:#?}");
        assert_eq!(
            refused.stderr,
            format!(
                "error: permission denied: {} belongs to user root (0), and only they see what \
                 runs there\n  to do: run this as that user, or name other directories with \
                 --run-dir and --state-dir\n",
                deployment.dirs().state.display()
            ),
            "{arguments:?}"
        );
    }
    let doctor = deployment.cli_as(SOMEBODY, &["doctor"]).exits_with(1);
    let said = |text: &str| doctor.stdout.lines().any(|line| line.contains(text));
    assert!(
        said("belongs to user root (0)") && !said("none run"),
        "{doctor:#?}"
    );
    deployment.cli_as(SOMEBODY, &["config", "validate"]).ok();
    // Where the state is not known, the sockets tell whose it is.
    let elsewhere = deployment.path().join("elsewhere");
    let elsewhere = ["--state-dir", elsewhere.to_str().unwrap(), "status"];
    let refused = deployment.cli_as(SOMEBODY, &elsewhere).exits_with(6);
    assert!(
        refused.stderr.contains("/run belongs to user root"),
        "{refused:#?}"
    );
    assert!(deployment.status().is_in("web.1", "ready"));
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
