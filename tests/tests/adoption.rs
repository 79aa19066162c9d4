//! A service outlives its managers: whichever daemon is killed with SIGKILL,
//! every service keeps its process, and nothing that happened meanwhile is lost.

use std::collections::BTreeMap;
use std::time::Instant;

use blackhole_tests::deployment::DAEMONS;
use blackhole_tests::{Deployment, Status, processes, wait_for};

const SYSTEM: &str = r#"
services:
  base:
    command: [blackhole-example, ticker]
    priority: critical
    health:
      readiness: {notify: true}
      liveness: {notify: true, interval: 5s}
    resources: {cpu_percent: 50}
  pair:
    command: [blackhole-example, idle]
    replicas: 2
    depends_on: {base: ready}
  setup:
    command: [blackhole-example, exit, --code, "0"]
    oneshot: true
    depends_on: {base: ready}
  last:
    command: [blackhole-example, idle]
    depends_on: {pair: ready, setup: completed}
"#;

const INSTANCES: [&str; 4] = ["base.1", "last.1", "pair.1", "pair.2"];

/// What may not change about an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Life {
    pid: u64,
    /// By the kernel's account: a process id may be used again.
    started: Option<u64>,
    restarts: u64,
}

type Lives = BTreeMap<String, Life>;

fn lives(status: &Status) -> Lives {
    let running = status.running().into_iter();
    running
        .map(|(instance, (pid, restarts))| {
            let started = u32::try_from(pid).ok().and_then(processes::started);
            (
                instance,
                Life {
                    pid,
                    started,
                    restarts,
                },
            )
        })
        .collect()
}

fn all_ready(status: &Status) -> bool {
    INSTANCES.iter().all(|one| status.is_in(one, "ready")) && status.is("setup.1", "TERMINATED")
}

#[track_caller]
fn up() -> (Deployment, Lives) {
    let deployment = Deployment::new(SYSTEM);
    deployment.up();
    let before = lives(&deployment.status());
    assert_eq!(
        before.keys().collect::<Vec<_>>(),
        INSTANCES.iter().collect::<Vec<_>>()
    );
    (deployment, before)
}

/// Waits until the daemons are back, as other processes, and the status is as
/// it was. Tells how long that took after the last return.
#[track_caller]
fn assert_recovers(deployment: &Deployment, killed: &BTreeMap<&str, u32>, before: &Lives) {
    deployment.wait_until("the killed daemons to be back", |status| {
        killed.iter().all(|(component, old)| {
            status
                .component_pid(component)
                .is_some_and(|new| new != *old)
        })
    });
    let back = Instant::now();
    deployment.wait_until("the status to be as before", |status| {
        lives(status) == *before && all_ready(status)
    });
    eprintln!(
        "{killed:?}: right again {:?} after its return was seen",
        back.elapsed()
    );
}

#[test]
fn each_daemon_may_be_killed_and_no_service_notices() {
    let (deployment, before) = up();
    for component in DAEMONS {
        let killed = BTreeMap::from([(component, deployment.kill_component(component))]);
        assert_recovers(&deployment, &killed, &before);
    }
    deployment.down();
}

#[test]
fn all_daemons_may_be_killed_at_once_and_no_service_notices() {
    let (deployment, before) = up();
    let status = deployment.status();
    let killed: BTreeMap<&str, u32> = DAEMONS
        .iter()
        .map(|component| {
            (
                *component,
                status.component_pid(component).expect("a daemon's pid"),
            )
        })
        .collect();
    for pid in killed.values() {
        deployment.kill(*pid);
    }
    assert_recovers(&deployment, &killed, &before);
    deployment.down();
}

/// Without a keeper, which would wait longer and longer between two starts.
#[test]
fn ten_deaths_of_the_process_manager_change_nothing() {
    let deployment = Deployment::new(SYSTEM);
    let mut daemons = deployment.daemons();
    let status = deployment.wait_until("all services to be ready", all_ready);
    let before = lives(&status);
    for _ in 0..10 {
        let at = daemons
            .iter()
            .position(|one| one.component() == "process-manager")
            .expect("it runs");
        let old = daemons.remove(at);
        let killed = BTreeMap::from([("process-manager", old.pid())]);
        old.kill();
        daemons.push(deployment.daemon("process-manager"));
        assert_recovers(&deployment, &killed, &before);
    }
}

#[test]
fn a_killed_keeper_takes_nothing_with_it_and_a_new_one_takes_over() {
    let (deployment, before) = up();
    let daemons: Vec<u32> = DAEMONS
        .iter()
        .filter_map(|one| deployment.status().component_pid(one))
        .collect();
    let keeper = processes::parent(daemons[0]).expect("the keeper of the daemons");
    deployment.kill(keeper);
    // Whether the daemons outlive their keeper is not promised; that services do, is.
    deployment.up();
    deployment.wait_until("the status to be as before", |status| {
        lives(status) == before
    });
    deployment.down();
}

/// Without the process-manager's daemon a service ends. Nobody may lose that.
#[test]
fn a_service_that_ends_without_a_process_manager_is_seen_and_restarted() {
    let deployment = Deployment::new(
        "services: {lonely: {command: [blackhole-example, idle]}, other: {command: [blackhole-example, idle]}}",
    );
    let mut daemons = deployment.daemons();
    let before = deployment.wait_until("both services to run", |status| {
        status.is_in("lonely.1", "ready") && status.is_in("other.1", "ready")
    });
    let old = before.instance("lonely.1").pid().expect("a pid");

    let at = daemons
        .iter()
        .position(|one| one.component() == "process-manager")
        .expect("it runs");
    daemons.remove(at).kill();
    deployment.kill(old);

    let _manager = deployment.daemon("process-manager");
    let after = deployment.wait_until("the service to be restarted", |status| {
        let lonely = status.find("lonely.1");
        // The shim restarts it by itself: it may run before the supervisor has heard of it.
        let counted = |one: &blackhole_tests::status::Instance| {
            one.restarts().is_some_and(|restarts| restarts > 0)
        };
        lonely.is_some_and(|one| {
            one.state() == Some("RUNNING") && one.pid() != Some(old) && counted(&one)
        }) && status.is_in("lonely.1", "ready")
    });
    let lonely = after.instance("lonely.1");
    assert_eq!(lonely.restarts(), Some(1), "{lonely:?}");
    let exit = lonely.0.get("last_exit").expect("the last exit");
    assert_eq!(exit["signal"], 9, "{lonely:?}");
    assert_eq!(exit["result"], "signal", "{lonely:?}");
    let other = after.instance("other.1");
    assert_eq!(other.pid(), before.instance("other.1").pid(), "{other:?}");
    assert_eq!(other.restarts(), Some(0), "{other:?}");
}

/// A one-shot may be through before anybody looks again.
#[test]
fn a_one_shot_that_completes_without_a_process_manager_counts() {
    let deployment = Deployment::new(
        r#"
services:
  setup:
    command: [sh, -c, "until [ -e done ]; do sleep 0.05; done"]
    working_dir: .
    oneshot: true
  after:
    command: [blackhole-example, idle]
    depends_on: {setup: completed}
"#,
    );
    let mut daemons = deployment.daemons();
    let status = deployment.wait_until("the one-shot to run", |status| {
        status.is("setup.1", "RUNNING")
    });
    let pid = status.instance("setup.1").pid().expect("a pid");

    let at = daemons
        .iter()
        .position(|one| one.component() == "process-manager")
        .expect("it runs");
    daemons.remove(at).kill();
    std::fs::write(deployment.path().join("done"), "").expect("the one-shot is let go");
    wait_for("the end of the one-shot", || {
        if processes::is_alive(pid) {
            Err("it runs".to_owned())
        } else {
            Ok(())
        }
    });

    let _manager = deployment.daemon("process-manager");
    let status = deployment.wait_until("the dependent to run", |status| {
        status.is_in("after.1", "ready")
    });
    assert!(status.is("setup.1", "TERMINATED"), "{status:?}");
    assert_eq!(status.instance("setup.1").restarts(), Some(0), "{status:?}");
}
