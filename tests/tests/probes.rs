//! Probes decide who is ready, who waits, and who is restarted.

use std::fs;

use blackhole_tests::Deployment;

/// Readiness as the file `ready` in the configuration's directory.
const BY_FILE: &str = r#"
services:
  gate:
    command: [blackhole-example, idle]
    working_dir: .
    health:
      readiness: {exec: [test, -e, ready], interval: 50ms, failure_threshold: 2}
  behind:
    command: [blackhole-example, idle]
    depends_on: {gate: ready}
"#;

#[test]
fn a_dependent_waits_until_the_probe_passes_and_a_failing_one_is_shown() {
    let deployment = Deployment::new(BY_FILE);
    let _daemons = deployment.daemons();
    let status = deployment.wait_until("the probe to fail", |status| {
        status.is_in("gate.1", "probing") && status.is_in("behind.1", "waiting_for_dependency")
    });
    assert!(status.is("gate.1", "RUNNING"), "{status:?}");
    assert_eq!(status.instance("behind.1").pid(), None, "{status:?}");

    fs::write(deployment.path().join("ready"), "").expect("the file is made");
    let status = deployment.wait_until("both to be ready", |status| {
        status.is_in("behind.1", "ready")
    });
    assert_eq!(
        status.instance("gate.1").text("health"),
        Some("healthy"),
        "{status:?}"
    );
    deployment.cli(&["health"]).ok();

    // Not ready again is no reason for a restart, of neither.
    let pids = (
        status.instance("gate.1").pid(),
        status.instance("behind.1").pid(),
    );
    fs::remove_file(deployment.path().join("ready")).expect("the file goes");
    let status = deployment.wait_until("it not to be ready", |status| {
        status.is_in("gate.1", "not_ready")
    });
    assert_eq!(
        (
            status.instance("gate.1").pid(),
            status.instance("behind.1").pid()
        ),
        pids
    );
    fs::write(deployment.path().join("ready"), "").expect("the file is made");
    let status = deployment.wait_until("it to be ready", |status| status.is_in("gate.1", "ready"));
    assert_eq!(status.instance("gate.1").restarts(), Some(0), "{status:?}");
}

#[test]
fn a_silent_watchdog_is_a_failure_and_leads_to_a_restart() {
    let deployment = Deployment::new(
        r#"
services:
  hangs:
    command: [blackhole-example, ticker, --hang-after-ms, "500"]
    restart: {initial_backoff: 10ms, max_attempts: 100}
    stop: {grace: 1s}
    health:
      readiness: {notify: true}
      liveness: {notify: true, interval: 500ms, failure_threshold: 1}
"#,
    );
    let _daemons = deployment.daemons();
    let status = deployment.wait_until("a restart", |status| {
        status
            .find("hangs.1")
            .is_some_and(|one| one.restarts().is_some_and(|count| count >= 1))
    });
    let hangs = status.instance("hangs.1");
    assert_eq!(hangs.0["last_exit"]["result"], "unhealthy", "{hangs:?}");
}

/// TCP and HTTP, on a port that is free at the moment.
#[test]
fn tcp_and_http_probes_see_a_service_that_listens() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = free.local_addr().expect("its number").port();
    drop(free);
    let deployment = Deployment::new(&format!(
        r#"
services:
  store:
    command: [blackhole-example, store, --listen, "127.0.0.1:{port}"]
    health:
      startup: {{tcp: "127.0.0.1:{port}", interval: 50ms}}
      readiness: {{http: "http://127.0.0.1:{port}/health", interval: 50ms}}
  wrong:
    command: [blackhole-example, idle]
    depends_on: {{store: ready}}
    health:
      readiness: {{http: "http://127.0.0.1:{port}/nothing-here", interval: 50ms}}
"#
    ));
    let _daemons = deployment.daemons();
    let status = deployment.wait_until("the one to be ready and the other not", |status| {
        status.is_in("store.1", "ready") && status.is_in("wrong.1", "probing")
    });
    assert_eq!(
        status.instance("store.1").text("health"),
        Some("healthy"),
        "{status:?}"
    );
    let shown = deployment.cli(&["health"]);
    assert!(
        shown.stdout.contains("404"),
        "the reason is told: {shown:#?}"
    );
}
