//! Each daemon alone, and each deployment of the design's table that leaves
//! something out.

use blackhole_tests::deployment::DAEMONS;
use blackhole_tests::{Daemon, Deployment, Output, is_root, processes, wait_for};

const PAIR: &str = r#"
services:
  base: {command: [blackhole-example, idle], restart: {initial_backoff: 10ms}}
  after: {command: [blackhole-example, idle], depends_on: {base: ready}}
"#;

/// All daemons but one, in the foreground.
#[track_caller]
fn without(deployment: &Deployment, component: &str) -> Vec<Daemon> {
    DAEMONS
        .iter()
        .filter(|one| **one != component)
        .map(|one| deployment.daemon(one))
        .collect()
}

#[track_caller]
fn status_text(deployment: &Deployment) -> Output {
    deployment.cli(&["status"])
}

/// Each daemon alone in a terminal binds its sockets, says whom it misses, is
/// shown, and ends in order when it is asked to.
#[test]
fn each_daemon_alone_says_what_it_waits_for() {
    for component in DAEMONS {
        let deployment = Deployment::new(PAIR);
        let mut daemon = deployment.daemon(component);
        daemon.wait_for_line(&["started"]);
        daemon.wait_for_line(&["waits for"]);
        // The supervisor can do nothing without these two, and names them.
        if component == "supervisor" {
            daemon.wait_for_line(&["waits for", "process-manager"]);
            daemon.wait_for_line(&["waits for", "resource-controller"]);
        }
        let listed = wait_for("the daemon to be listed", || {
            let output = deployment.cli(&["component", "list"]);
            match output
                .stdout
                .lines()
                .any(|line| line.contains(component) && line.contains("running"))
            {
                true => Ok(output),
                false => Err(format!("{output:#?}")),
            }
        });
        for other in DAEMONS.iter().filter(|other| **other != component) {
            let line = listed.stdout.lines().find(|line| line.starts_with(other));
            assert!(
                line.is_some_and(|line| line.contains("missing")),
                "{other}: {listed:#?}"
            );
        }
        assert_eq!(daemon.terminate(), Some(0), "{component}");
        // An idle fork server may have been made ready; nothing runs under it.
        assert!(!status_text(&deployment).stdout.contains("RUNNING"));
    }
}

/// Nothing that a daemon says can be written: it goes on without.
#[test]
fn each_daemon_lives_where_its_log_is_on_a_full_disk() {
    let deployment = Deployment::new(PAIR);
    let daemons: Vec<Daemon> = DAEMONS
        .iter()
        .map(|one| deployment.daemon_on_full_disk(one))
        .collect();
    deployment.wait_until("the services to be ready", |status| {
        status.is_in("after.1", "ready")
    });
    deployment.cli(&["restart", "after"]).ok();
    for daemon in daemons.into_iter().rev() {
        let component = daemon.component().to_owned();
        assert_eq!(daemon.terminate(), Some(0), "{component}");
    }
}

/// The daemons find each other in whatever order they appear.
#[test]
fn the_order_in_which_daemons_start_does_not_matter() {
    for first in 0..DAEMONS.len() {
        let deployment = Deployment::new(PAIR);
        let mut daemons = Vec::new();
        for offset in 0..DAEMONS.len() {
            let mut daemon = deployment.daemon(DAEMONS[(first + offset) % DAEMONS.len()]);
            // One after the other is up and has looked around.
            daemon.wait_for_line(&["started"]);
            daemons.push(daemon);
        }
        deployment.wait_until("the services to be ready", |status| {
            status.is_in("after.1", "ready")
        });
    }
}

#[test]
fn without_a_supervisor_services_are_started_by_hand_and_not_restarted() {
    let deployment = Deployment::new(PAIR);
    let _daemons = without(&deployment, "supervisor");
    wait_for("the process-manager to take a start", || {
        let output = deployment.cli(&["start", "base"]);
        if output.code == Some(0) {
            Ok(())
        } else {
            Err(format!("{output:#?}"))
        }
    });
    let status = deployment.wait_until("the service to run", |status| {
        status.is("base.1", "RUNNING")
    });
    let pid = status.instance("base.1").pid().expect("a pid");

    deployment.kill(pid);
    let status =
        deployment.wait_until("its end to be seen", |status| status.is("base.1", "FAILED"));
    assert_eq!(
        status.instance("base.1").0["last_exit"]["signal"],
        9,
        "{status:?}"
    );
    // Asked once more, it answers the same: nobody restarts it.
    let shown = status_text(&deployment).ok();
    assert!(
        shown.stdout.contains("supervisor") && shown.stdout.contains("missing"),
        "{shown:#?}"
    );
    assert!(
        shown.stdout.contains("restart"),
        "that nothing is restarted is said: {shown:#?}"
    );
    assert!(deployment.status().is("base.1", "FAILED"));

    deployment.cli(&["start", "base"]).ok();
    deployment.wait_until("the second start", |status| status.is("base.1", "RUNNING"));
    deployment.cli(&["stop", "base"]).ok();
    assert!(deployment.status().is("base.1", "TERMINATED"));
}

#[test]
fn a_supervisor_that_comes_later_takes_over_what_runs() {
    let deployment = Deployment::new(PAIR);
    let _daemons = without(&deployment, "supervisor");
    wait_for("the process-manager to take a start", || {
        let output = deployment.cli(&["start", "base"]);
        if output.code == Some(0) {
            Ok(())
        } else {
            Err(format!("{output:#?}"))
        }
    });
    let status = deployment.wait_until("the service to run", |status| {
        status.is("base.1", "RUNNING")
    });
    let pid = status.instance("base.1").pid().expect("a pid");

    let _supervisor = deployment.daemon("supervisor");
    let status =
        deployment.wait_until("all to be ready", |status| status.is_in("after.1", "ready"));
    assert_eq!(
        status.instance("base.1").pid(),
        Some(pid),
        "not started twice: {status:?}"
    );
    deployment.kill(pid);
    deployment.wait_until("the restart", |status| {
        status.is_in("base.1", "ready") && status.instance("base.1").pid() != Some(pid)
    });
}

#[test]
fn without_a_resource_controller_services_run_and_limits_are_said_not_to_hold() {
    let deployment = Deployment::new(
        r#"
services:
  easy: {command: [blackhole-example, idle]}
  strict: {command: [blackhole-example, idle], resources: {memory_mb: 64, limits: required}}
"#,
    );
    let mut daemons = without(&deployment, "resource-controller");
    deployment.wait_until("the service without demands to run", |status| {
        status.is_in("easy.1", "ready")
    });
    let shown = status_text(&deployment).ok();
    assert!(shown.stdout.contains("resource-controller"), "{shown:#?}");
    assert!(shown.stdout.contains("not enforced"), "{shown:#?}");
    let status = deployment.status();
    assert!(!status.is("strict.1", "RUNNING"), "{status:?}");
    if !is_root() {
        return;
    }
    // When it comes, what waited for it starts.
    daemons.push(deployment.daemon("resource-controller"));
    deployment.wait_until("the strict service to run", |status| {
        status.is_in("strict.1", "ready")
    });
}

#[test]
fn without_a_process_manager_starts_wait_and_say_for_what() {
    let deployment = Deployment::new(PAIR);
    let mut daemons = without(&deployment, "process-manager");
    let status = deployment.wait_until("the start to wait", |status| {
        status.is_in("base.1", "waiting_for_component")
    });
    assert!(!status.is("base.1", "RUNNING"), "{status:?}");
    let shown = status_text(&deployment).ok();
    assert!(shown.stdout.contains("process-manager"), "{shown:#?}");
    // What needs no process can be asked.
    deployment.cli(&["config", "show"]).ok();
    let health = deployment.cli(&["health"]);
    assert_ne!(health.code, Some(4), "{health:#?}");
    // And what waited starts when it comes.
    daemons.push(deployment.daemon("process-manager"));
    deployment.wait_until("the services to be ready", |status| {
        status.is_in("after.1", "ready")
    });
}

#[test]
fn without_a_bridge_all_but_rpc_works() {
    let deployment = Deployment::new(PAIR);
    let _daemons = without(&deployment, "bridge");
    let status = deployment.wait_until("the services to be ready", |status| {
        status.is_in("after.1", "ready")
    });
    let pid = status.instance("base.1").pid().expect("a pid");
    deployment.kill(pid);
    deployment.wait_until("the restart", |status| {
        status.is_in("base.1", "ready") && status.instance("base.1").restarts() == Some(1)
    });
    deployment.cli(&["stop", "base"]).ok();
    let status = deployment.status();
    assert!(
        status.is("after.1", "TERMINATED") && status.is("base.1", "TERMINATED"),
        "{status:?}"
    );
}

/// With no daemon at all there is still a way to look and to stop.
#[test]
fn with_nothing_but_shims_the_offline_commands_work() {
    let deployment = Deployment::new(PAIR);
    let daemons = deployment.daemons();
    let status = deployment.wait_until("the services to be ready", |status| {
        status.is_in("after.1", "ready")
    });
    let pid = |one: &str| status.instance(one).pid().expect("a pid");
    for daemon in daemons {
        daemon.kill();
    }
    let status_online = deployment.cli(&["status", "-o", "json", "--timeout", "2s"]);
    assert_ne!(
        status_online.code,
        Some(0),
        "nobody is there to ask: {status_online:#?}"
    );

    let offline = deployment
        .cli(&["--offline", "status", "-o", "json"])
        .ok()
        .json();
    let shown = blackhole_tests::Status(offline);
    for one in ["base.1", "after.1"] {
        assert_eq!(shown.instance(one).pid(), Some(pid(one)), "{shown:?}");
    }
    let log = deployment.cli(&["--offline", "logs", "base"]).ok();
    assert!(log.stdout.contains("idle"), "{log:#?}");
    deployment.cli(&["--offline", "kill", "after"]).ok();
    wait_for("the killed service to end", || {
        if processes::is_alive(pid("after.1")) {
            Err("it lives")
        } else {
            Ok(())
        }
        .map_err(str::to_owned)
    });
    deployment.cli(&["--offline", "stop", "base"]).ok();
    assert!(!processes::is_alive(pid("base.1")));
}

/// A second daemon of a kind waits for the first one's end: a warm standby.
#[test]
fn a_second_daemon_stands_by_until_the_first_one_dies() {
    let deployment = Deployment::new(PAIR);
    let mut daemons = deployment.daemons();
    let before = deployment.wait_until("the services to be ready", |status| {
        status.is_in("after.1", "ready")
    });
    let at = daemons
        .iter()
        .position(|one| one.component() == "supervisor")
        .expect("it runs");
    let first = daemons.remove(at);
    let mut second = deployment.daemon("supervisor");
    second.wait_for_line(&["standing by"]);
    assert_eq!(
        deployment.status().component_pid("supervisor"),
        Some(first.pid())
    );
    first.kill();
    let after = deployment.wait_until("the standby to be active", |status| {
        status.component_pid("supervisor") == Some(second.pid()) && status.is_in("after.1", "ready")
    });
    assert_eq!(after.running(), before.running());
}
