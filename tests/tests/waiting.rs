//! What `up`, `start` and `status` say of services that are not ready, do not stay so, or
//! are through.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::Stdio;

use blackhole_tests::Deployment;
use blackhole_tests::processes::kill;
use rustix::process::Signal;

/// One that nobody listens on.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[test]
fn up_and_status_tell_what_is_waited_for_and_why() {
    let port = free_port();
    let deployment = Deployment::new(&format!(
        r#"
services:
  slow: {{command: [blackhole-example, idle], health: {{readiness: {{tcp: "127.0.0.1:{port}", interval: 200ms}}}}}}
  mute: {{command: [blackhole-example, idle], health: {{readiness: {{notify: true}}}}}}
"#
    ));
    let up = deployment
        .cli(&["up", "-d", "--timeout", "11s"])
        .exits_with(5);
    let reason = format!("slow.1 is not ready: connect to 127.0.0.1:{port}: Connection refused");
    // After ten seconds and at the end.
    assert_eq!(up.stderr.matches(&reason).count(), 2, "{up:#?}");
    let silent = "mute.1 is not ready: no READY=1 within";
    assert!(up.stderr.contains(silent), "{up:#?}");
    let status = deployment.status();
    let why = |name: &str| status.instance(name).text("why").unwrap_or("").to_owned();
    assert!(why("slow.1").contains("refused"), "{status:?}");
    assert!(!why("mute.1").is_empty(), "{status:?}");
    let table = deployment.cli(&["status"]).ok().stdout;
    assert!(
        table.contains("slow.1: runs, but is not ready yet (connect to 127.0.0.1"),
        "{table}"
    );
    let help = deployment.cli(&["help", "up"]).ok().stdout;
    assert!(help.contains("waits for 2 m"), "{help}");
    deployment.down();
}

#[test]
fn a_crash_loop_is_never_ready() {
    let deployment = Deployment::new(
        r#"
services:
  looping:
    command: [sh, -c, "sleep 1; exit 3"]
    restart: {max_attempts: 2, initial_backoff: 10ms}
"#,
    );
    let up = deployment.cli(&["up", "-d"]).exits_with(1);
    assert!(up.stderr.contains("0 of 1 instance ready"), "{up:#?}");
    assert!(
        up.stderr
            .contains("looping.1 circuit open, last: exit code 3"),
        "{up:#?}"
    );
    deployment.down();
}

/// One failure is no loop: it is waited until that is clear.
#[test]
fn one_that_failed_once_is_ready_when_it_has_run_for_a_while() {
    let deployment = Deployment::new(
        r#"
services:
  once:
    command: [sh, -c, "test -e again && exec sleep 100000; touch again; exit 3"]
    working_dir: "."
"#,
    );
    let up = deployment.cli(&["up", "-d"]).ok();
    assert!(up.stderr.contains("the only instance is ready"), "{up:#?}");
    let status = deployment.status();
    let once = status.instance("once.1");
    assert!(once.0["uptime_ms"].as_u64().unwrap() >= 2000, "{once:?}");
    deployment.down();
}

#[test]
fn a_one_shot_that_is_through_has_completed() {
    let deployment = Deployment::new(
        r#"
services:
  migrate: {command: [sh, -c, "echo migrated"], oneshot: true}
  off: {command: [blackhole-example, idle], autostart: false}
"#,
    );
    deployment.up();
    let status = deployment.status();
    let migrate = status.instance("migrate.1");
    assert_eq!(migrate.phase(), Some("completed"), "{migrate:?}");
    assert_eq!(migrate.0["last_exit"]["code"], 0, "{migrate:?}");
    assert_eq!(status.instance("off.1").phase(), Some("idle"));
    let table = deployment.cli(&["status", "migrate"]).ok().stdout;
    assert!(
        table.contains("completed") && table.contains("exit code 0"),
        "{table}"
    );
    let logged = || {
        let log = deployment.cli(&["logs", "migrate"]).ok().stdout;
        log.matches("migrated").count()
    };
    let again = deployment.cli(&["start", "migrate"]).ok();
    let words = "migrate.1 has completed already (exit code 0), and is not run again";
    assert!(again.stderr.contains(words), "{again:#?}");
    assert!(again.stdout.contains("completed"), "{again:#?}");
    assert_eq!(logged(), 1);
    deployment.cli(&["restart", "migrate"]).ok();
    assert_eq!(logged(), 2);
    // Stopped it is not through any more.
    deployment.cli(&["stop", "migrate"]).ok();
    assert_eq!(
        deployment.status().instance("migrate.1").phase(),
        Some("idle")
    );
    let anew = deployment.cli(&["start", "migrate"]).ok();
    assert!(!anew.stderr.contains("completed already"), "{anew:#?}");
    assert_eq!(logged(), 3);
    deployment.down();
}

#[test]
fn who_is_interrupted_hears_that_the_start_goes_on() {
    let deployment = Deployment::new(
        r#"
services:
  slow:
    command: [blackhole-example, idle]
    autostart: false
    health: {readiness: {notify: true}}
"#,
    );
    deployment.up();
    let mut command = deployment.command(&deployment.binaries().join("blackhole"));
    command.args(["start", "slow"]).stderr(Stdio::piped());
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    // It follows the start by now.
    let line = said.find(|line| line.as_ref().unwrap().contains("probing"));
    assert!(line.is_some(), "{:?}", child.wait());
    assert!(kill(child.id(), Signal::INT, |_| true));
    let rest: Vec<String> = said.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    let told = "no longer waiting: start slow goes on";
    assert!(rest.iter().any(|line| line.contains(told)), "{rest:?}");
    assert!(deployment.status().is("slow.1", "RUNNING"));
    deployment.down();
}
