//! A run directory that is removed under a deployment: services go on, daemons
//! come back with new sockets, and the commands that need no daemon reach all
//! shims.

use std::collections::BTreeMap;

use blackhole_tests::deployment::DAEMONS;
use blackhole_tests::{Deployment, Status, processes, wait_for};
use rustix::process::Signal;

const SYSTEM: &str = r#"
services:
  base: {command: [blackhole-example, idle]}
  said: {command: [blackhole-example, ticker], health: {readiness: {notify: true}}}
"#;

fn lives(status: &Status) -> BTreeMap<String, (u64, u64)> {
    status.running()
}

fn remove_run(deployment: &Deployment) {
    std::fs::remove_dir_all(deployment.dirs().run).expect("the run directory is removed");
}

#[test]
fn without_it_daemons_come_back_and_no_service_notices() {
    let deployment = Deployment::new(SYSTEM);
    deployment.up();
    let before = deployment.status();
    remove_run(&deployment);
    let after = deployment.wait_until("all daemons to be back", |status| {
        DAEMONS.iter().all(|one| {
            let pid = status.component_pid(one);
            pid.is_some() && pid != before.component_pid(one)
        }) && status.is_in("base.1", "ready")
            && status.is_in("said.1", "ready")
    });
    assert_eq!(lives(&after), lives(&before));
    for instance in ["base.1", "said.1"] {
        assert_eq!(after.instance(instance).restarts(), Some(0));
    }
    // All goes on as before: a restart by command, a crash, an end.
    deployment.cli(&["restart", "said"]).ok();
    let pid = after.instance("base.1").pid().expect("a pid");
    deployment.kill(pid);
    deployment.wait_until("the restart", |status| {
        let base = status.find("base.1").and_then(|one| one.pid());
        base.is_some_and(|new| new != pid) && status.is_in("base.1", "ready")
    });
    deployment.down();
}

#[test]
fn a_daemon_alone_says_that_it_must_be_started_again() {
    let deployment = Deployment::new(SYSTEM);
    let mut manager = deployment.daemon("process-manager");
    manager.wait_for_line(&["waits for commands"]);
    remove_run(&deployment);
    let output = wait_for("its word", || {
        let output = manager.output();
        match output.contains("must be started again") {
            true => Ok(output),
            false => Err(output),
        }
    });
    assert!(output.contains("process-manager.evt") || output.contains("process-manager.cmd"));
}

/// The services are ready, and all daemons have been killed.
fn without_daemons() -> (Deployment, Status) {
    let deployment = Deployment::new(SYSTEM);
    let daemons = deployment.daemons();
    let status = deployment.wait_until("the services to be ready", |status| {
        status.is_in("base.1", "ready") && status.is_in("said.1", "ready")
    });
    for daemon in daemons {
        daemon.kill();
    }
    (deployment, status)
}

#[test]
fn without_it_and_without_daemons_break_glass_reaches_all_shims() {
    let (deployment, status) = without_daemons();
    remove_run(&deployment);
    let offline = deployment.cli(&["--offline", "status", "-o", "json"]).ok();
    let shown = Status(offline.json());
    assert_eq!(lives(&shown), lives(&status));
    deployment.cli(&["--offline", "stop", "base"]).ok();
    let base = status.instance("base.1").pid().expect("a pid");
    assert!(!processes::is_alive(base));
    remove_run(&deployment);
    // Whoever starts again finds the other one as it was.
    let _daemons = deployment.daemons();
    let after = deployment.wait_until("the service to be held again", |status| {
        status.is_in("said.1", "ready")
    });
    assert_eq!(
        after.instance("said.1").pid(),
        status.instance("said.1").pid()
    );
}

/// What cannot be asked is shown as the record has it, and never as ended while
/// its shim holds the lock.
#[test]
fn offline_status_shows_what_lives_also_where_its_shim_cannot_be_asked() {
    let (deployment, status) = without_daemons();
    // Their sockets are gone and cannot be made again, and one of the shims hangs.
    remove_run(&deployment);
    let run = deployment.dirs().run;
    std::fs::write(&run, "in the way").expect("a file");
    let said = status.instance("said.1").pid().expect("a pid");
    let shim = processes::parent(said).expect("a shim");
    let send = |signal| assert!(processes::kill(shim, signal, |_| true));
    send(Signal::STOP);
    let offline = deployment.cli(&["--offline", "status", "-o", "json"]).ok();
    send(Signal::CONT);
    let shown = Status(offline.json());
    assert_eq!(lives(&shown), lives(&status), "{shown:?}");
    std::fs::remove_file(&run).expect("it is a file");
    deployment.cli(&["--offline", "stop", "base", "said"]).ok();
    assert!(!processes::is_alive(said));
}
