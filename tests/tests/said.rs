//! What streams, calls and logs say to an operator, and what they do not say.

#![allow(clippy::panic)]

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStderr, ChildStdout, Stdio};

use blackhole_tests::{Deployment, wait_for};
use serde_json::Value;

/// `blackhole events`, read line by line; ended when dropped.
struct Events {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    // Kept open: what it says there must find a reader.
    _notes: Lines<BufReader<ChildStderr>>,
}

impl Events {
    #[track_caller]
    fn follow(deployment: &Deployment, more: &[&str]) -> Self {
        let mut child = deployment
            .command(&deployment.binaries().join("blackhole"))
            .args(["events", "-o", "json"])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut notes = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        // One for each daemon: from then on nothing is missed.
        let listening = notes
            .by_ref()
            .map_while(Result::ok)
            .filter(|line| line.contains("listening to the"));
        assert_eq!(listening.take(4).count(), 4);
        Self {
            child,
            lines,
            _notes: notes,
        }
    }

    /// All events up to the end of the instance.
    #[track_caller]
    fn until_end_of(&mut self, instance: &str) -> Vec<Value> {
        let mut all = Vec::new();
        loop {
            let line = self.lines.next().expect("a line").expect("text");
            let event: Value =
                serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
            let record = &event["body"]["record"];
            let end = record["instance"] == instance && record["state"] == "TERMINATED";
            all.push(event);
            if end {
                return all;
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A supervisor that comes back is told the latest probe results again. That is
/// between the daemons: nothing happened.
#[test]
fn probe_results_that_are_told_again_are_no_news() {
    let deployment = Deployment::new(
        r#"
services:
  base:
    command: [blackhole-example, idle]
    health: {readiness: {exec: ["true"], interval: 200ms}}
"#,
    );
    deployment.up();
    let mut plain = Events::follow(&deployment, &[]);
    let mut all = Events::follow(&deployment, &["--all"]);
    deployment.cli(&["component", "restart", "supervisor"]).ok();
    deployment.wait_until("the supervisor to know again", |status| {
        status.is_in("base.1", "ready")
    });
    deployment.cli(&["stop", "base"]).ok();
    let probes = |events: Vec<Value>| -> Vec<Value> {
        // One that the stop below cuts short failed for once, which is news.
        let of_probes =
            |event: &Value| event["kind"] == "health.probe" && event["body"]["error"].is_null();
        events.into_iter().filter(of_probes).collect()
    };
    let told = probes(plain.until_end_of("base.1"));
    assert!(told.is_empty(), "{told:#?}");
    let told = probes(all.until_end_of("base.1"));
    assert!(
        told.iter().any(|event| !event["cause"].is_null()),
        "nothing was told again, so nothing was shown: {told:#?}"
    );
    drop((plain, all));
    deployment.down();
}

/// Also where the supervisor is away, or nothing happens but usage.
#[test]
fn events_end_in_time_and_know_the_names() {
    let deployment = Deployment::new(
        "services: {base: {command: [blackhole-example, idle], health: {liveness: {exec: [\"true\"], interval: 50ms}}}}",
    );
    deployment.up();
    for more in [&[][..], &["base"], &["base.1", "--all"]] {
        let arguments = [&["events", "--timeout", "500ms"], more].concat();
        deployment.cli(&arguments).ok();
    }
    for unknown in ["bass", "base.2"] {
        let output = deployment
            .cli(&["events", unknown, "--timeout", "500ms"])
            .exits_with(3);
        assert!(output.stderr.contains("base"), "{output:#?}");
    }
    deployment.cli(&["down"]).ok();
    // Daemons by hand, none of whom has told anything yet.
    let mut manager = deployment.daemon("process-manager");
    manager.wait_for_line(&["started"]);
    deployment
        .cli(&["events", "bass", "--timeout", "500ms"])
        .exits_with(3);
    manager.kill();
}

const CALLED: &str = r#"
services:
  echo: {command: [blackhole-example, echo], health: {readiness: {notify: true}}}
  mute: {command: [blackhole-example, idle]}
"#;

#[test]
fn a_call_says_what_it_waits_for_and_knows_the_instances() {
    let deployment = Deployment::new(CALLED);
    deployment.up();
    let said = deployment.cli(&["call", "echo.1", "echo", "hello"]).ok();
    assert!(said.stdout.ends_with(" said hello\n"), "{said:#?}");
    let unknown = deployment
        .cli(&["call", "echo.2", "echo", "--budget", "2s"])
        .exits_with(3);
    assert!(
        unknown.stderr.contains("no instance named \"echo.2\"")
            && unknown.stderr.contains("known: echo.1"),
        "{unknown:#?}"
    );
    let waited = deployment.cli(&["call", "mute", "speak", "--budget", "3s"]);
    assert_ne!(waited.code, Some(0), "{waited:#?}");
    assert!(
        waited
            .stderr
            .contains("no instance of mute is registered with the bridge; waiting up to 3.0 s"),
        "{waited:#?}"
    );
    let listed = deployment.cli(&["component", "list"]).ok();
    let (table, counted) = listed
        .stdout
        .split_once("Counted since each one's start:")
        .unwrap_or_else(|| panic!("{listed:#?}"));
    assert!(table.contains("COMPONENT") && counted.contains("commands."));
    deployment.down();
}

#[test]
fn raw_logs_are_the_text_alone_and_times_have_one_name() {
    let deployment = Deployment::new(
        r#"
services:
  two:
    command: [sh, -c, "echo ' one'; echo two >&2; exec sleep 1000"]
    logs: {format: json}
"#,
    );
    deployment.up();
    let mut text = wait_for("both lines", || {
        let output = deployment.cli(&["logs", "two", "--raw"]).ok().stdout;
        match output.lines().count() {
            2 => Ok(output),
            _ => Err(output),
        }
    });
    // The two streams come each in their own time.
    if text.starts_with("two") {
        text = text.lines().rev().map(|line| format!("{line}\n")).collect();
    }
    assert_eq!(text, " one\ntwo\n");
    let offline = deployment
        .cli(&["--offline", "logs", "two", "--raw", "--stream", "out"])
        .ok();
    assert_eq!(offline.stdout, " one\n");

    let shown = deployment.cli(&["logs", "two", "-o", "json", "--stream", "out"]);
    let file = deployment.path().join("state/instances/two.1/log");
    let file = std::fs::read_to_string(file).expect("the log");
    let written = file.lines().find(|line| line.contains(" one")).expect("it");
    let written: Value = serde_json::from_str(written).expect("JSON");
    let shown = shown.ok().json();
    assert!(written["at"].is_string(), "{written}");
    assert_eq!(written["at"], shown["at"]);
    deployment.down();
}

/// An argument that stands beside the configuration is not found in `/`: that
/// is said before the start, and beside the failure.
#[test]
fn a_relative_argument_is_told_with_the_directory_it_is_looked_for_in() {
    let deployment = Deployment::new(
        r#"
services:
  lost: {command: [sh, ./start.sh], autostart: false, restart: {policy: never}}
  fine: {command: [sh, ./start.sh], working_dir: .}
"#,
    );
    let script = deployment.path().join("start.sh");
    std::fs::write(&script, "exec sleep 1000\n").expect("a script");
    let words = "lost runs in /, where there is no ./start.sh";
    for command in [&["config", "validate"][..], &["doctor"]] {
        let output = deployment.cli(command);
        let all = format!("{}{}", output.stdout, output.stderr);
        assert!(
            all.contains(words) && all.contains("working_dir: ."),
            "{all}"
        );
        assert!(!all.contains("fine runs in"), "{all}");
    }
    let json = deployment
        .cli(&["config", "validate", "-o", "json"])
        .ok()
        .json();
    assert_eq!(json["notes"].as_array().map(Vec::len), Some(1), "{json}");

    deployment.up();
    let shown = deployment.cli(&["status"]).ok();
    assert!(
        !shown.stdout.contains(words),
        "it has not failed: {shown:#?}"
    );
    deployment.cli(&["start", "lost", "--watch", "5s"]);
    deployment.wait_until("its failure", |status| status.is("lost.1", "FAILED"));
    let shown = deployment.cli(&["status"]).ok();
    assert!(shown.stdout.contains(words), "{shown:#?}");
    deployment.down();
}

/// A process that only the kernel knows to be stopped.
#[test]
fn a_stopped_process_is_told() {
    let deployment = Deployment::new("services: {base: {command: [blackhole-example, idle]}}");
    deployment.up();
    deployment.cli(&["signal", "STOP", "base"]).ok();
    wait_for("the stopped process to be shown", || {
        let shown = deployment.cli(&["status"]).ok().stdout;
        match shown.contains("is stopped: `blackhole signal CONT base.1`") {
            true => Ok(()),
            false => Err(shown),
        }
    });
    deployment.cli(&["signal", "CONT", "base"]).ok();
    wait_for("it to go on", || {
        let shown = deployment.cli(&["status"]).ok().stdout;
        match shown.contains("is stopped") {
            false => Ok(()),
            true => Err(shown),
        }
    });
    deployment.down();
}

/// What a shim restarts while no daemon lives is counted by `--offline status`.
#[test]
fn offline_status_counts_the_restarts_up_to_now() {
    let deployment = Deployment::new("services: {base: {command: [blackhole-example, idle]}}");
    deployment.up();
    let offline = || -> Result<blackhole_tests::Status, String> {
        let output = deployment.cli(&["--offline", "status", "-o", "json"]).ok();
        Ok(blackhole_tests::Status(output.json()))
    };
    let status = deployment.status();
    let daemons: Vec<u32> = blackhole_tests::deployment::DAEMONS
        .iter()
        .filter_map(|daemon| status.component_pid(daemon))
        .collect();
    let keeper = status.0["keeper"]["pid"].as_u64().expect("a keeper");
    deployment.kill(u32::try_from(keeper).expect("a pid"));
    for pid in daemons {
        deployment.kill(pid);
    }
    let pid = status.instance("base.1").pid().expect("a pid");
    deployment.kill(pid);
    wait_for("the restart by permit", || {
        let status = offline()?;
        match status.instance("base.1").pid() {
            Some(next) if next != pid => Ok(()),
            _ => Err(format!("{status:?}")),
        }
    });
    let status = offline().expect("a status");
    assert_eq!(status.instance("base.1").restarts(), Some(1), "{status:?}");
    deployment.cli(&["down"]).ok();
}
