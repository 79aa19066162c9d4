//! Calls between services, through the bridge, as real processes.

use blackhole_tests::{Deployment, is_root, skip, wait_for};

/// Waits until a one-shot is through, and gives back what it printed.
#[track_caller]
fn answer(deployment: &Deployment, service: &str) -> String {
    wait_for(&format!("what {service} says"), || {
        let log = deployment.cli(&["logs", service]).stdout;
        let line = log
            .lines()
            .rev()
            .find(|line| line.contains(": "))
            .map(str::to_owned);
        line.ok_or(log)
    })
}

const CALL: &str = r#"
services:
  echo:
    command: [blackhole-example, echo]
    replicas: 2
    health: {readiness: {notify: true}}
  ask:
    command: [blackhole-example, ask, --service, echo, --method, echo, --payload, hello]
    oneshot: true
    depends_on: {echo: ready}
"#;

#[test]
fn a_call_is_answered_and_the_callee_knows_by_whom() {
    let deployment = Deployment::new(CALL);
    deployment.up();
    let said = answer(&deployment, "ask");
    assert!(said.ends_with("OK: ask.1 said hello"), "{said}");
    deployment.down();
}

/// The bridge dies and comes back: services register again by themselves.
#[test]
fn calls_work_again_after_the_bridge_came_back() {
    let deployment = Deployment::new(CALL);
    deployment.up();
    let old = deployment.kill_component("bridge");
    deployment.wait_until("the bridge to be back", |status| {
        status.component_pid("bridge").is_some_and(|new| new != old)
    });
    deployment.cli(&["restart", "ask"]).ok();
    wait_for("the second answer", || {
        let log = deployment.cli(&["logs", "ask"]).stdout;
        if log.matches("OK: ask.1 said hello").count() == 2 {
            Ok(())
        } else {
            Err(log)
        }
    });
    deployment.down();
}

/// What went wrong is told with a status of its own.
#[test]
fn failures_have_their_own_status() {
    let table = [
        ("unknown-service", "nobody", "echo", "NOT_FOUND"),
        ("unknown-method", "echo", "sing", "UNIMPLEMENTED"),
        ("too-slow", "slow", "echo", "DEADLINE_EXCEEDED"),
        ("not-running", "down", "echo", "UNAVAILABLE"),
    ];
    let mut yaml = r#"
services:
  echo: {command: [blackhole-example, echo], health: {readiness: {notify: true}}}
  slow: {command: [blackhole-example, echo, --delay-ms, "60000"], health: {readiness: {notify: true}}}
  down: {command: [blackhole-example, echo], autostart: false}
"#
    .to_owned();
    for (name, service, method, _) in table {
        yaml.push_str(&format!(
            "  {name}: {{command: [blackhole-example, ask, --service, {service}, --method, {method}, \
             --budget-ms, \"1000\"], oneshot: true, restart: {{policy: never}}, \
             depends_on: {{echo: ready, slow: ready}}}}\n"
        ));
    }
    let deployment = Deployment::new(&yaml);
    let _daemons = deployment.daemons();
    for (name, _, _, code) in table {
        let said = wait_for(&format!("what {name} says"), || {
            let log = deployment.cli(&["logs", name]).stdout;
            if log.contains("the call failed") {
                Ok(log)
            } else {
                Err(log)
            }
        });
        assert!(said.contains(&format!("{code}: ")), "{name}: {said}");
    }
}

/// A service that runs as another user has its own way to the bridge and to its
/// supervisor, and none to the bus.
#[test]
fn a_service_of_another_user_can_call_and_notify() {
    if !is_root() {
        return skip(
            "a_service_of_another_user…",
            "only root can run a service as another user",
        );
    }
    let deployment = Deployment::new(
        r#"
services:
  echo:
    command: [blackhole-example, echo]
    user: nobody
    health: {readiness: {notify: true}}
  ask:
    command: [blackhole-example, ask, --service, echo, --method, echo, --payload, hello]
    user: nobody
    oneshot: true
    depends_on: {echo: ready}
  look:
    command: [sh, -c, "ls $(dirname $(dirname ${BLACKHOLE_RPC#ipc://}))/bus; echo ls: $?"]
    user: nobody
    oneshot: true
    restart: {policy: never}
"#,
    );
    // As /run is for /run/blackhole: others may pass, not look.
    let passable = std::os::unix::fs::PermissionsExt::from_mode(0o711);
    std::fs::set_permissions(deployment.path(), passable).expect("chmod");
    deployment.up();
    let said = answer(&deployment, "ask");
    assert!(said.ends_with("OK: ask.1 said hello"), "{said}");
    let looked = deployment.cli(&["logs", "look"]).ok().stdout;
    assert!(looked.contains("Permission denied"), "{looked}");
    deployment.down();
}
