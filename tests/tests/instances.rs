//! Names of instances, and what the column RESTARTS counts.

#![allow(clippy::unwrap_used, clippy::panic)]

use blackhole_tests::{Deployment, wait_for};

#[test]
fn an_instance_has_a_log_of_its_own_and_is_started_and_stopped_with_its_service() {
    let deployment = Deployment::new(
        "services: {b: {command: [sh, -c, 'echo $BLACKHOLE_INSTANCE; exec sleep 1000'], replicas: 2}}",
    );
    deployment.up();
    wait_for("both to have written", || {
        let both = deployment.cli(&["logs", "b", "--raw"]).ok().stdout;
        match both.lines().count() {
            2 => Ok(()),
            _ => Err(both),
        }
    });
    assert_eq!(
        deployment.cli(&["logs", "b.2", "--raw"]).ok().stdout,
        "b.2\n"
    );
    let unknown = deployment.cli(&["logs", "b.3"]).exits_with(3);
    assert!(unknown.stderr.contains("known: b.1, b.2"), "{unknown:?}");
    let before = deployment.status().running();
    for command in ["start", "stop", "restart", "reset"] {
        let refused = deployment.cli(&[command, "b.2"]).exits_with(2);
        assert!(
            refused.stderr.contains("takes whole services: write \"b\""),
            "{refused:?}"
        );
    }
    assert_eq!(deployment.status().running(), before, "nothing was done");
    deployment.down();
}

#[test]
fn restarts_are_counted_since_an_operator_last_had_a_hand_in_it() {
    // Ends with success when it is asked to, which nobody does but this test.
    let deployment = Deployment::new(
        r#"
services:
  web: {command: [blackhole-example, idle], restart: {max_attempts: 100, initial_backoff: 10ms}}
  after: {command: [blackhole-example, idle], depends_on: {web: started}}
  missing: {command: [/no/such/program], autostart: false, restart: {max_attempts: 2, initial_backoff: 10ms}}
"#,
    );
    deployment.up();
    let expect = |instance: &str, count: u64| {
        deployment.wait_until(&format!("{instance} to have {count} restarts"), |status| {
            status.is(instance, "RUNNING") && status.instance(instance).restarts() == Some(count)
        });
    };
    expect("web.1", 0);
    deployment.cli(&["kill", "web"]).ok();
    expect("web.1", 1);
    // Success is an end as well, with the policy `always`.
    deployment.cli(&["signal", "TERM", "web"]).ok();
    expect("web.1", 2);
    deployment.cli(&["component", "restart", "supervisor"]).ok();
    deployment.cli(&["start", "web"]).ok();
    expect("web.1", 2);
    expect("after.1", 0);
    for command in [&["restart", "web"][..], &["reset", "web"]] {
        deployment.cli(command).ok();
        expect("web.1", 0);
        deployment.cli(&["kill", "web"]).ok();
        expect("web.1", 1);
    }
    deployment.cli(&["stop", "web"]).ok();
    assert_eq!(deployment.status().instance("web.1").restarts(), Some(0));
    deployment.cli(&["start", "web"]).ok();
    expect("web.1", 0);
    // Starts that fail are followed by others, too.
    let refused = deployment.cli(&["start", "missing"]);
    assert_ne!(refused.code, Some(0), "{refused:?}");
    deployment.wait_until("the circuit", |status| {
        status.is_in("missing.1", "circuit_open")
    });
    let document = deployment.cli(&["status", "missing", "-o", "json"]).json();
    assert_eq!(document["services"][0]["restarts"], 2, "{document}");
    let shown = deployment.cli(&["status", "missing"]).ok().stdout;
    let line = shown
        .lines()
        .find(|line| line.starts_with("missing.1: circuit open"));
    let line = line.unwrap_or_else(|| panic!("{shown}"));
    for part in [
        "exec /no/such/program: No such file",
        "it was not started and has no log of that",
    ] {
        assert!(line.contains(part), "{line}");
    }
    assert!(!shown.contains("blackhole logs"), "{shown}");
    deployment.down();
}
