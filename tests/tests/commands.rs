//! What the command line promises to programs: exit codes, JSON, streams.

#![allow(clippy::panic)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use blackhole_tests::{Deployment, wait_for};
use serde_json::Value;

const PAIR: &str = r#"
runtime:
  orchestrator:
    max_processes: 3
services:
  base: {command: [blackhole-example, idle]}
  after: {command: [blackhole-example, idle], depends_on: {base: ready}}
  never:
    command: [blackhole-example, idle]
    autostart: false
    health: {readiness: {exec: [false], interval: 50ms}}
  crowd:
    command: [blackhole-example, idle]
    autostart: false
    replicas: 3
"#;

#[test]
fn exit_codes_say_what_went_wrong() {
    let deployment = Deployment::new(PAIR);
    // Nobody is there.
    deployment
        .cli(&["start", "base", "--timeout", "2s"])
        .exits_with(4);
    deployment.up();
    deployment.cli(&["start", "base"]).ok();
    deployment.cli(&["nonsense"]).exits_with(2);
    for command in ["start", "stop", "restart", "logs", "status"] {
        let output = deployment.cli(&[command, "bas"]).exits_with(3);
        assert!(
            output.stderr.contains("base"),
            "{command} names what there is: {output:#?}"
        );
    }
    deployment
        .cli(&["start", "never", "--timeout", "500ms"])
        .exits_with(5);
    deployment.cli(&["stop", "never"]).ok();
    // Another `up` of the same directories.
    deployment.cli(&["up", "-d"]).exits_with(6);
    deployment.down();
    deployment.cli(&["down"]).ok();
}

/// Three processes are allowed and two run: one of three is started, the
/// others are refused with the number.
#[test]
fn more_processes_than_allowed_are_refused_with_the_number() {
    let deployment = Deployment::new(PAIR);
    deployment.up();
    let output = deployment.cli(&["start", "crowd", "--timeout", "20s"]);
    assert_ne!(output.code, Some(0), "{output:#?}");
    let status = deployment.wait_until("one of the crowd to run", |status| {
        status
            .instances()
            .iter()
            .filter(|one| one.state() == Some("RUNNING"))
            .count()
            == 3
    });
    assert!(
        status.is("base.1", "RUNNING") && status.is("after.1", "RUNNING"),
        "{status:?}"
    );
    let shown = deployment.cli(&["status"]).ok();
    assert!(shown.stdout.contains("max_processes"), "{shown:#?}");
    deployment.down();
}

fn keys(value: &Value) -> BTreeSet<String> {
    value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, _)| key.clone())
        .collect()
}

/// The design fixes these names.
#[test]
fn the_json_of_status_has_the_promised_fields() {
    let deployment = Deployment::new(PAIR);
    deployment.up();
    let status = deployment.cli(&["status", "-o", "json"]).ok().json();
    assert_eq!(
        keys(&status),
        BTreeSet::from(["components", "edited", "keeper", "services"].map(str::to_owned))
    );
    let service = [
        "service",
        "instance",
        "state",
        "phase",
        "pid",
        "restarts",
        "health",
        "uptime_ms",
        "cpu_percent",
        "memory_bytes",
        "circuit",
        "last_exit",
        "standby",
        "limits",
    ];
    let component = [
        "component",
        "instance",
        "state",
        "pid",
        "incarnation",
        "version",
    ];
    for (list, names) in [("services", &service[..]), ("components", &component)] {
        let items = status[list].as_array().expect("a list");
        assert!(!items.is_empty());
        for item in items {
            assert_eq!(
                keys(item),
                names.iter().map(|name| (*name).to_owned()).collect()
            );
        }
    }
    deployment.down();
}

/// One JSON document a line, from the first event after the start of the command.
#[test]
fn events_are_a_stream_of_json() {
    let deployment = Deployment::new(PAIR);
    deployment.up();
    let mut command = deployment.command(&deployment.binaries().join("blackhole"));
    command
        .args(["events", "-o", "json", "base"])
        .stdout(Stdio::piped());
    let mut child = command.spawn().expect("blackhole events");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    // It has no way to say that it listens but an event: restarts until one is heard.
    let (heard, first) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let line = lines.next().expect("a line").expect("a text");
        let _ = heard.send(line);
    });
    let line = wait_for("an event", || {
        deployment.cli(&["restart", "base"]).ok();
        first.try_recv().map_err(|error| error.to_string())
    });
    reader.join().expect("the reader");
    let event: Value = serde_json::from_str(&line).expect("JSON");
    assert!(line.contains("base.1"), "{event:#}");
    let _ = child.kill();
    let _ = child.wait();
    deployment.down();
}

#[test]
fn a_followed_log_goes_on_with_the_next_process() {
    let deployment = Deployment::new(PAIR);
    deployment.up();
    let mut command = deployment.command(&deployment.binaries().join("blackhole"));
    command.args(["logs", "-f", "base"]).stdout(Stdio::piped());
    let mut child = command.spawn().expect("blackhole logs -f");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut next = |what: &str| loop {
        let line = lines
            .next()
            .unwrap_or_else(|| panic!("the stream ended before {what}"));
        if line.expect("a text").ends_with(what) {
            break;
        }
    };
    next("idle");
    deployment.cli(&["restart", "base"]).ok();
    next("ends");
    next("idle");
    let _ = child.kill();
    let _ = child.wait();
    deployment.down();
}

/// The log of a service that says much is rotated by size and count, and what
/// is kept is its end.
#[test]
fn logs_are_rotated_and_keep_the_end() {
    let deployment = Deployment::new(
        r#"
services:
  chatter:
    command: [blackhole-example, chatter, --lines, "2000", --bytes, "100"]
    logs: {max_size: 16KiB, max_files: 2, compress: false}
"#,
    );
    deployment.up();
    wait_for("the last line", || {
        let log = deployment.cli(&["logs", "chatter", "-n", "3"]).ok().stdout;
        if log.trim_end().ends_with("said all") {
            Ok(())
        } else {
            Err(log)
        }
    });
    let directory = deployment.path().join("state/instances/chatter.1");
    let sizes: Vec<(String, u64)> = std::fs::read_dir(directory)
        .expect("the instance's directory")
        .flatten()
        .map(|entry| {
            (
                entry.file_name().to_string_lossy().into_owned(),
                entry.metadata().map_or(0, |meta| meta.len()),
            )
        })
        .filter(|(name, _)| name.starts_with("log"))
        .collect();
    assert_eq!(sizes.len(), 3, "the current one and two others: {sizes:?}");
    assert!(
        sizes.iter().all(|(_, size)| *size <= 16 * 1024),
        "{sizes:?}"
    );
    let log = deployment.cli(&["logs", "chatter", "-n", "10"]).ok().stdout;
    assert!(
        log.contains("line 2000") && log.contains("line 1999"),
        "{log}"
    );
    deployment.down();
}

/// A secret reaches the service, and nothing else: no record, no database, no
/// log of a daemon, no output of a command.
#[test]
fn a_secret_is_seen_by_its_service_only() {
    const SECRET: &str = "open-sesame-4711";
    let deployment = Deployment::new(
        r#"
services:
  keeper:
    command: [sh, -c, "[ \"$PASSWORD\" = \"$(cat secret)\" ] && echo it is right; exec blackhole-example idle"]
    working_dir: .
    env: {PASSWORD: "${file:secret}"}
"#,
    );
    std::fs::write(deployment.path().join("secret"), format!("{SECRET}\n")).expect("the secret");
    deployment.up();
    wait_for("the service to have compared it", || {
        let log = deployment.cli(&["logs", "keeper"]).ok().stdout;
        if log.contains("it is right") {
            Ok(())
        } else {
            Err(log)
        }
    });
    for command in [
        &["status", "-o", "json"][..],
        &["config", "show"],
        &["health", "-o", "json"],
    ] {
        let output = deployment.cli(command).ok();
        assert!(
            !output.stdout.contains(SECRET) && !output.stderr.contains(SECRET),
            "{output:#?}"
        );
    }
    let mut command = std::process::Command::new("grep");
    command
        .args(["-rl", SECRET])
        .arg(deployment.path().join("state"));
    let found = command.output().expect("grep");
    assert_eq!(
        String::from_utf8_lossy(&found.stdout),
        "",
        "files that hold the secret"
    );
    deployment.down();
}

#[test]
fn doctor_looks_at_the_host_and_monitor_shows_a_picture() {
    let deployment = Deployment::new(PAIR);
    deployment.up();
    let doctor = deployment.cli(&["doctor"]);
    assert!(matches!(doctor.code, Some(0 | 1)), "{doctor:#?}");
    assert!(doctor.stdout.lines().count() > 3, "{doctor:#?}");
    let monitor = deployment.cli(&["monitor", "--once"]).ok();
    assert!(
        monitor.stdout.contains("base.1") && monitor.stdout.contains("after.1"),
        "{monitor:#?}"
    );
    deployment.down();
}
