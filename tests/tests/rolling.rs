//! Services that are restarted and stopped under load, through the command
//! line, with real processes: a rolling restart loses no call, and a stop lets
//! calls in flight finish.

use std::path::Path;
use std::time::Duration;

use blackhole_bus_schema::bus::{Interest, Link};
use blackhole_bus_schema::names::{ClientName, Component};
use blackhole_bus_schema::registry::{ListRegistry, Registration};
use blackhole_tests::{Deployment, wait_for};

const LOAD: &str = r#"
services:
  echo:
    command: [blackhole-example, echo]
    replicas: 2
    stop: {grace: 20s}
    health: {readiness: {notify: true}}
  caller:
    command: [blackhole-test-load, echo, echo, "8", "60000", .]
    working_dir: .
    restart: {policy: never}
    depends_on: {echo: ready}
"#;

/// Calls answered, calls failed, calls in flight.
fn calls(directory: &Path) -> (u64, u64, u64) {
    let text = std::fs::read_to_string(directory.join("calls")).unwrap_or_default();
    let mut numbers = text
        .split_whitespace()
        .map(|word| word.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next())
}

fn failures(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("failures")).unwrap_or_default()
}

#[track_caller]
fn wait_for_calls(deployment: &Deployment, more: u64) {
    let from = calls(deployment.path()).0;
    wait_for(&format!("{more} more answers"), || {
        let now = calls(deployment.path());
        if now.0 >= from + more {
            Ok(())
        } else {
            Err(format!("{now:?}: {}", failures(deployment.path())))
        }
    });
}

#[test]
fn a_rolling_restart_under_load_loses_no_call() {
    let deployment = Deployment::new(LOAD);
    deployment.up();
    let before = deployment.wait_until("all to be ready", |status| {
        ["echo.1", "echo.2", "caller.1"]
            .iter()
            .all(|one| status.is_in(one, "ready"))
    });
    wait_for_calls(&deployment, 200);
    for _ in 0..3 {
        deployment.cli(&["restart", "echo"]).ok();
        wait_for_calls(&deployment, 200);
    }
    let after = deployment.status();
    for replica in ["echo.1", "echo.2"] {
        let pid = |status: &blackhole_tests::Status| status.instance(replica).pid();
        assert_ne!(pid(&before), pid(&after), "{replica} is another process");
        assert_eq!(after.instance(replica).restarts(), Some(0));
    }
    let caller = |status: &blackhole_tests::Status| status.instance("caller.1").pid();
    assert_eq!(caller(&before), caller(&after), "who requires it goes on");
    std::fs::write(deployment.path().join("enough"), "").expect("a file");
    wait_for("the end of the last calls", || {
        match deployment.path().join("over").exists() {
            true => Ok(()),
            false => Err(format!("{:?}", calls(deployment.path()))),
        }
    });
    assert_eq!(failures(deployment.path()), "", "every call is answered");
    let (answered, failed, in_flight) = calls(deployment.path());
    assert_eq!((failed, in_flight), (0, 0), "of {answered}");
    deployment.down();
}

/// The callee needs a while for each answer; it is stopped while three callers wait.
#[test]
fn a_stop_lets_calls_in_flight_finish() {
    let callers = ["ask1", "ask2", "ask3"];
    let mut yaml = r#"
services:
  echo:
    command: [blackhole-example, echo, --delay-ms, "3000"]
    stop: {grace: 60s}
    health: {readiness: {notify: true}}
"#
    .to_owned();
    for caller in callers {
        yaml.push_str(&format!(
            "  {caller}: {{command: [blackhole-example, ask, --service, echo, --method, echo, \
             --payload, hello, --budget-ms, \"60000\"], oneshot: true, restart: {{policy: never}}, \
             depends_on: {{echo: {{condition: ready, required: false}}}}}}\n"
        ));
    }
    let deployment = Deployment::new(&yaml);
    let _daemons = deployment.daemons();
    wait_for("three calls in flight", || {
        let registered = registrations(&deployment);
        match registered.iter().map(|one| one.outstanding).sum::<u32>() {
            3 => Ok(()),
            _ => Err(format!("{registered:?}")),
        }
    });
    deployment.cli(&["stop", "echo"]).ok();
    for caller in callers {
        wait_for(&format!("the answer to {caller}"), || {
            let said = deployment.cli(&["logs", caller]).stdout;
            assert!(!said.contains("the call failed"), "{caller}: {said}");
            if said.contains("OK: ") {
                Ok(())
            } else {
                Err(said)
            }
        });
    }
    let status = deployment.status();
    assert!(status.is("echo.1", "TERMINATED"), "{status:?}");
}

/// What the bridge knows.
fn registrations(deployment: &Deployment) -> Vec<Registration> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let me = ClientName::fresh("rolling");
        let (link, _) = Link::open(&deployment.dirs(), me, Component::Bridge, Interest::none())
            .await
            .expect("a link");
        let budget = Duration::from_secs(5);
        link.request(&ListRegistry::default(), budget)
            .await
            .map(|page| page.items)
            .unwrap_or_default()
    })
}
