//! What was stopped while no supervisor could be asked: its record says that it was asked
//! for, and the next supervisor starts it again without counting a failure.
#![allow(clippy::unwrap_used, clippy::panic)]

use blackhole_bus_schema::dirs::Lock;
use blackhole_tests::{Deployment, Status};

const POLICIES: &str = "
services:
  always: {command: [blackhole-example, idle]}
  sometimes: {command: [blackhole-example, idle], restart: {policy: on-failure}}
  never: {command: [blackhole-example, idle], restart: {policy: never}}
  deaf: {command: [sh, -c, \"trap '' TERM; while :; do sleep 0.05; done\"], stop: {grace: 100ms}}
";

const ALL: [&str; 4] = ["always.1", "sometimes.1", "never.1", "deaf.1"];

/// Kills who restarts the daemons, and then these.
fn without(deployment: &Deployment, daemons: &[&str]) {
    for holder in ["up"].iter().chain(daemons) {
        deployment.kill(Lock::holder(&deployment.dirs().lock(holder)).unwrap());
    }
}

#[track_caller]
fn all_run_and_none_has_failed(deployment: &Deployment) -> Status {
    deployment.wait_until("all to run, none of them restarted", |status| {
        ALL.iter().all(|name| {
            let one = status.instance(name);
            one.phase() == Some("ready") && one.restarts() == Some(0)
        })
    })
}

/// `down` itself, with the supervisor dead and then with the process-manager as well.
#[test]
fn a_down_without_the_supervisor_leaves_no_failures_to_the_next_up() {
    for daemons in [
        &["supervisor"][..],
        &["supervisor", "process-manager"],
        &["process-manager"],
    ] {
        let deployment = Deployment::new(POLICIES);
        deployment.up();
        without(&deployment, daemons);
        deployment.down();
        deployment.up();
        let status = all_run_and_none_has_failed(&deployment);
        let exit = status.instance("always.1").last_exit().unwrap();
        assert!(exit.contains("stopped"), "{daemons:?}: {exit}");
        deployment.down();
    }
}

/// One by one: by the process-manager, and by their shims.
#[test]
fn a_stop_without_the_supervisor_is_no_failure() {
    let deployment = Deployment::new(POLICIES);
    deployment.up();
    without(&deployment, &["supervisor"]);
    deployment.cli(&["stop", "always", "deaf"]).ok();
    deployment
        .cli(&["--offline", "stop", "sometimes", "never"])
        .ok();
    deployment.cli(&["up", "-d"]).ok();
    all_run_and_none_has_failed(&deployment);
    // Behind the back of a supervisor that lives it is an end as any other: by the policy.
    deployment.cli(&["--offline", "stop", "never"]).ok();
    deployment.wait_until("it to stay as it is", |status| {
        let one = status.instance("never.1");
        one.pid().is_none() && one.last_exit().is_some_and(|exit| exit.contains("stopped"))
    });
    deployment.cli(&["start", "never"]).ok();
    // A crash is one, whoever is there.
    let pid = deployment.status().instance("always.1").pid().unwrap();
    without(&deployment, &["supervisor"]);
    deployment.kill(pid);
    deployment.cli(&["up", "-d"]).ok();
    deployment.wait_until("the crash to be counted", |status| {
        let one = status.instance("always.1");
        one.phase() == Some("ready") && one.restarts() == Some(1)
    });
    deployment.down();
}
