//! Nothing survives its service, and nothing survives `down`.

use std::collections::BTreeMap;

use blackhole_tests::events::{Life, Recorder, lives};
use blackhole_tests::{Deployment, cgroup, processes, wait_for};
use rustix::process::Signal;

const STUBBORN: &str = r#"
services:
  stubborn:
    command: [blackhole-example, stubborn, --generations, "2"]
    stop: {grace: 500ms}
    resources: {cpu_percent: none}
  neighbour:
    command: [blackhole-example, idle]
"#;

/// The service, its child and its grandchild, once all of them ignore SIGTERM.
#[track_caller]
fn family(deployment: &Deployment) -> Vec<u32> {
    let pid = deployment
        .status()
        .instance("stubborn.1")
        .pid()
        .expect("a pid");
    // Each says its line after it has begun to ignore the signals.
    wait_for("three generations", || {
        let log = deployment.cli(&["logs", "stubborn"]);
        match log.stdout.matches("below it").count() {
            3 => Ok(()),
            _ => Err(format!("{log:#?}")),
        }
    });
    let mut all = vec![pid];
    all.extend(processes::descendants(pid));
    assert_eq!(all.len(), 3, "{all:?}");
    all
}

#[track_caller]
fn assert_dead(pids: &[u32]) {
    for pid in pids {
        assert!(!processes::is_alive(*pid), "{pid} of {pids:?} lives");
    }
}

#[test]
fn stop_leaves_nothing_of_a_service_whose_grandchild_ignores_sigterm() {
    let deployment = Deployment::new(STUBBORN);
    deployment.up();
    let family = family(&deployment);
    let neighbour = deployment.status().instance("neighbour.1").pid();

    deployment.cli(&["stop", "stubborn"]).ok();
    // `stop` answers when nothing is left: no wait here.
    assert_dead(&family);
    assert_eq!(
        cgroup::processes(&deployment.cgroup(), "stubborn.1"),
        Vec::<u32>::new()
    );
    let status = deployment.status();
    assert!(status.is("stubborn.1", "TERMINATED"), "{status:?}");
    let stubborn = status.instance("stubborn.1");
    assert_eq!(
        stubborn.0["last_exit"]["result"], "stop_timeout",
        "{stubborn:?}"
    );
    assert_eq!(
        status.instance("neighbour.1").pid(),
        neighbour,
        "{status:?}"
    );
    deployment.down();
}

#[test]
fn down_leaves_no_process_socket_lock_or_cgroup() {
    let deployment = Deployment::new(STUBBORN);
    deployment.up();
    let family = family(&deployment);
    // `down` checks the rest itself.
    deployment.down();
    assert_dead(&family);
}

/// The service itself dies; its descendants, which ignore all it could have
/// told them, must not outlive it.
#[test]
fn descendants_do_not_survive_the_crash_of_their_service() {
    let deployment = Deployment::new(STUBBORN);
    deployment.up();
    let family = family(&deployment);
    deployment.kill(family[0]);
    let status = deployment.wait_until("the restart", |status| {
        let stubborn = status.find("stubborn.1");
        stubborn.is_some_and(|one| one.state() == Some("RUNNING") && one.pid() != Some(family[0]))
    });
    assert_dead(&family);
    assert_eq!(
        status.instance("stubborn.1").restarts(),
        Some(1),
        "{status:?}"
    );
    deployment.down();
}

/// The later one starts, the longer it takes to end: whoever did not wait for
/// its dependents would end before them.
const CHAIN: &str = r#"
services:
  first: {command: [blackhole-example, idle]}
  second: {command: [blackhole-example, idle, --linger-ms, "150"], depends_on: {first: ready}}
  third: {command: [blackhole-example, idle, --linger-ms, "300"], depends_on: {second: ready}}
"#;

#[test]
fn services_start_after_and_stop_before_what_they_depend_on() {
    let deployment = Deployment::new(CHAIN);
    deployment.up();
    let recorder = Recorder::start(deployment.dirs());
    deployment.cli(&["stop", "first"]).ok();
    deployment.cli(&["start", "third"]).ok();
    deployment.cli(&["stop", "first"]).ok();
    let all = chain(&recorder, 2);
    for life in [0, 1] {
        assert_reverse(&all, life);
    }
    let start = |one: &str| all[one][1].started_at;
    assert!(start("first.1") <= start("second.1"), "{all:#?}");
    assert!(start("second.1") <= start("third.1"), "{all:#?}");
    deployment.down();
}

#[test]
fn down_stops_in_reverse_order_too() {
    let deployment = Deployment::new(CHAIN);
    let daemons = deployment.daemons();
    deployment.wait_until("all services to be ready", |status| {
        status.is_in("third.1", "ready")
    });
    let recorder = Recorder::start(deployment.dirs());
    // One life each, of which the recorder hears nothing but the end.
    deployment.cli(&["down"]).ok();
    assert_reverse(&chain(&recorder, 1), 0);
    drop(daemons);
    deployment.assert_nothing_left();
}

/// The lives of the chain's services, once each has ended so often.
#[track_caller]
fn chain(recorder: &Recorder, ends: usize) -> BTreeMap<&'static str, Vec<Life>> {
    ["first.1", "second.1", "third.1"]
        .into_iter()
        .map(|one| {
            let all = recorder.wait_for(&format!("{ends} ends of {one}"), |events| {
                let lives = lives(events, one);
                (lives.iter().filter(|life| life.exit.is_some()).count() == ends).then_some(lives)
            });
            (one, all)
        })
        .collect()
}

#[track_caller]
fn assert_reverse(all: &BTreeMap<&str, Vec<Life>>, life: usize) {
    let end = |one: &str| all[one][life].exit.as_ref().expect("an end").ended_at;
    assert!(end("third.1") <= end("second.1"), "{all:#?}");
    assert!(end("second.1") <= end("first.1"), "{all:#?}");
}

#[test]
fn a_stopped_service_stays_stopped_when_the_supervisor_dies() {
    let deployment = Deployment::new(CHAIN);
    deployment.up();
    deployment.cli(&["stop", "third"]).ok();
    let old = deployment.kill_component("supervisor");
    let status = deployment.wait_until("the supervisor to be back", |status| {
        status
            .component_pid("supervisor")
            .is_some_and(|new| new != old)
            && status.is_in("second.1", "ready")
    });
    assert!(status.is("third.1", "TERMINATED"), "{status:?}");

    // A command that is answered shows that the supervisor has had its say.
    deployment.cli(&["restart", "second"]).ok();
    let status = deployment.status();
    assert!(status.is("third.1", "TERMINATED"), "{status:?}");
    deployment.cli(&["start", "third"]).ok();
    deployment.down();
}

#[test]
fn what_down_stopped_comes_up_again_and_what_an_operator_stopped_does_not() {
    let deployment = Deployment::new(CHAIN);
    deployment.up();
    deployment.cli(&["stop", "third"]).ok();
    deployment.down();
    deployment.up();
    let status = deployment.status();
    assert!(status.is_in("second.1", "ready"), "{status:?}");
    assert!(!status.is("third.1", "RUNNING"), "{status:?}");
    deployment.down();
}

/// `up` in a terminal: SIGINT is what Ctrl-C sends.
#[test]
fn an_interrupted_up_stops_everything() {
    let deployment = Deployment::new(CHAIN);
    let mut command = deployment.command(&deployment.binaries().join("blackhole"));
    command.arg("-c").arg(deployment.config()).arg("up");
    let mut child = command.spawn().expect("blackhole up");
    deployment.wait_until("all services to be ready", |status| {
        status.is_in("third.1", "ready")
    });
    processes::kill(child.id(), Signal::INT, |_| true);
    let code = wait_for("the end of up", || match child.try_wait() {
        Ok(Some(status)) => Ok(status.code()),
        _ => Err("it runs".to_owned()),
    });
    assert_eq!(code, Some(0));
    deployment.assert_nothing_left();
}

/// A detached `up` in a pipe: whoever reads the pipe is not kept waiting by the
/// keeper it leaves behind.
#[test]
fn a_detached_up_lets_go_of_its_output() {
    let deployment = Deployment::new(CHAIN);
    let mut command = deployment.command(&deployment.binaries().join("blackhole"));
    command
        .arg("-c")
        .arg(deployment.config())
        .args(["up", "-d"]);
    let output = command.output().expect("blackhole up -d");
    assert!(output.status.success(), "{output:#?}");
    deployment.down();
}
