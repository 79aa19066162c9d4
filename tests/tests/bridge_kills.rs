//! The bridge is killed and comes back, again and again, while calls flow: each
//! call ends with its answer or with a status, none hangs, and no service notices.

use std::path::Path;

use blackhole_tests::{Daemon, Deployment, Status, wait_for};

const KILLS: usize = 20;

const LOAD: &str = r#"
services:
  echo:
    command: [blackhole-example, echo]
    replicas: 2
    health: {readiness: {notify: true}}
  caller:
    command: [blackhole-test-load, echo, echo, "8", "5000", .]
    working_dir: .
    restart: {policy: never}
    depends_on: {echo: ready}
"#;

/// What a call may end with when the bridge dies over it, or is not there for
/// the whole of its budget.
const EXPECTED: [&str; 2] = ["UNAVAILABLE ", "DEADLINE_EXCEEDED "];

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

/// Each of the eight calls that may have been under way is over, and others
/// were answered: more than may have been on their way back.
#[track_caller]
fn wait_for_answers(deployment: &Deployment) {
    let from = calls(deployment.path()).0;
    wait_for("100 more answers", || {
        let now = calls(deployment.path());
        if now.0 >= from + 100 {
            Ok(())
        } else {
            Err(format!("{now:?}: {}", failures(deployment.path())))
        }
    });
}

fn ready(status: &Status) -> bool {
    ["echo.1", "echo.2", "caller.1"]
        .iter()
        .all(|one| status.is_in(one, "ready"))
}

fn take(daemons: &mut Vec<Daemon>, component: &str) -> Daemon {
    let at = daemons
        .iter()
        .position(|one| one.component() == component)
        .expect("it runs");
    daemons.remove(at)
}

#[test]
fn every_call_ends_however_often_the_bridge_dies() {
    let deployment = Deployment::new(LOAD);
    let mut daemons = deployment.daemons();
    let before = deployment.wait_until("all to be ready", ready).running();
    for _ in 0..KILLS {
        wait_for_answers(&deployment);
        take(&mut daemons, "bridge").kill();
        daemons.push(deployment.daemon("bridge"));
    }
    wait_for_answers(&deployment);
    let after = deployment.wait_until("all to be ready", ready).running();
    assert_eq!(before, after, "services are unchanged");
    std::fs::write(deployment.path().join("enough"), "").expect("a file");
    wait_for("the end of the last calls", || {
        match deployment.path().join("over").exists() {
            true => Ok(()),
            false => Err(format!("{:?}", calls(deployment.path()))),
        }
    });
    let (answered, failed, in_flight) = calls(deployment.path());
    eprintln!("{answered} answered, {failed} ended with a status over {KILLS} kills");
    assert_eq!(in_flight, 0, "every call has ended");
    let failures = failures(deployment.path());
    assert_eq!(failures.lines().count() as u64, failed);
    for failure in failures.lines() {
        let expected = EXPECTED.iter().any(|code| failure.starts_with(code));
        assert!(expected, "{failure}");
    }
}
