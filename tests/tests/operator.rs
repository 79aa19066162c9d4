//! What a command says at first sight, and where it must not be mistaken.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use blackhole_tests::Deployment;
use serde_json::Value;

/// A daemon that was not heard of yet is not missing.
#[test]
fn the_first_picture_of_a_monitor_misses_nobody_who_is_there() {
    let deployment = Deployment::new("services: {base: {command: [blackhole-example, idle]}}");
    deployment.up();
    for _ in 0..8 {
        let mut monitor = deployment
            .command(&deployment.binaries().join("blackhole"))
            .args(["monitor", "-o", "json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut pictures = BufReader::new(monitor.stdout.take().unwrap());
        pictures.read_line(&mut line).unwrap();
        monitor.kill().unwrap();
        monitor.wait().unwrap();
        let picture: Value = serde_json::from_str(&line).unwrap();
        let components = picture["components"].as_array().unwrap();
        assert_eq!(components.len(), 4, "{line}");
        let there = |one: &Value| one["state"] == "RUNNING";
        assert!(components.iter().all(there), "{line}");
        assert_eq!(picture["services"][0]["state"], "RUNNING", "{line}");
    }
    deployment.down();
}

/// Also where it runs again when the time is over.
#[test]
fn an_end_while_a_start_is_watched_is_told_at_once() {
    let deployment = Deployment::new(
        r#"
services:
  crash: {command: [sh, -c, "sleep 0.3; exit 3"], autostart: false, restart: {initial_backoff: 10ms}}
  stays: {command: [blackhole-example, idle], autostart: false}
"#,
    );
    deployment.up();
    // Far less than the time that is asked for: a test that waits it out hangs.
    for command in ["start", "reset"] {
        let output = deployment
            .cli(&[command, "crash", "--watch", "1h"])
            .exits_with(1);
        assert!(
            output
                .stderr
                .contains("ended while it was watched: crash.1 (exit code 3)"),
            "{output:#?}"
        );
        if command == "start" {
            deployment.cli(&["stop", "crash"]).ok();
            deployment.cli(&["start", "crash"]);
        }
    }
    deployment.cli(&["start", "stays", "--watch", "500ms"]).ok();
    deployment.down();
}

#[test]
fn a_start_that_fails_again_and_again_tells_its_long_reason_once() {
    let deployment = Deployment::new(
        r#"
services:
  lost:
    command: [/opt/a/place/where/nothing/was/ever/installed/server]
    restart: {max_attempts: 2, initial_backoff: 10ms, max_backoff: 10ms}
  after: {command: [blackhole-example, idle], depends_on: {lost: ready}}
"#,
    );
    let up = deployment.cli(&["up", "-d"]).exits_with(1);
    let reason = "exec /opt/a/place/where/nothing/was/ever/installed/server: ";
    assert_eq!(up.stderr.matches(reason).count(), 1, "{up:#?}");
    assert!(
        up.stderr.contains("circuit open, for the reason above")
            && up
                .stderr
                .contains("after.1 waits for lost ready (circuit open)"),
        "{up:#?}"
    );
    // In the table, with what to do.
    assert!(up.stdout.contains(reason), "{up:#?}");
    let status = deployment.status();
    let after = status.instance("after.1");
    assert_eq!(
        after.text("why"),
        Some("waits for lost ready (circuit open)"),
        "{after:?}"
    );
    deployment.down();
}

#[test]
fn who_is_stopped_too_is_named_and_signals_are_taken_as_by_kill() {
    let deployment = Deployment::new(
        r#"
services:
  migrate: {command: ["true"], oneshot: true}
  web: {command: [blackhole-example, idle], depends_on: {migrate: completed}}
  other: {command: [blackhole-example, idle]}
"#,
    );
    deployment.up();
    let before = deployment.status().instance("other.1").pid();
    let killed = deployment.cli(&["kill", "-9", "other"]).ok();
    assert!(
        killed.stdout.contains("other.1: SIGKILL sent"),
        "{killed:#?}"
    );
    deployment.wait_until("another life", |status| {
        let pid = status.instance("other.1").pid();
        pid.is_some() && pid != before
    });
    let stopped = deployment.cli(&["stop", "migrate"]).ok();
    assert!(
        stopped
            .stderr
            .contains("web cannot do without migrate, and will be stopped too"),
        "{stopped:#?}"
    );
    assert!(deployment.status().instance("web.1").pid().is_none());
    let again = deployment.cli(&["stop", "migrate"]).ok();
    assert!(!again.stderr.contains("cannot do without"), "{again:#?}");
    deployment.down();
}
