//! A process-manager that is away while others are there: whose its services are is
//! known, and every command says at once that they cannot be reached, and what can.
#![allow(clippy::unwrap_used, clippy::panic)]

use blackhole_bus_schema::dirs::Lock;
use blackhole_tests::{Deployment, processes, wait_for};

const TWO: &str = r#"
runtime: {orchestrator: {process_managers: {gpu: {}}}}
services:
  web:
    command: [sh, -c, "trap 'echo read again' HUP; echo web is up; while :; do sleep 0.05; done"]
    reload: {signal: SIGHUP}
  train:
    command: [sh, -c, "trap '' HUP; echo train is up; while :; do sleep 0.05; done"]
    manager: gpu
    reload: {signal: SIGHUP}
  idle: {command: [blackhole-example, idle]}
  later: {command: [blackhole-example, idle], manager: gpu, autostart: false}
"#;

/// Nobody starts the manager of `train` again.
fn without_gpu() -> Deployment {
    let deployment = Deployment::new(TWO);
    deployment.up();
    for (service, words) in [("web", "web is up"), ("train", "train is up")] {
        wait_for(words, || {
            let log = deployment.cli(&["logs", service]).ok().stdout;
            log.contains(words).then_some(()).ok_or(log)
        });
    }
    for holder in ["up", "process-manager.gpu"] {
        deployment.kill(Lock::holder(&deployment.dirs().lock(holder)).unwrap());
    }
    deployment
}

#[test]
fn kill_and_logs_say_whose_a_service_is_that_cannot_be_reached() {
    let deployment = without_gpu();
    let train = deployment.status().instance("train.1").pid().unwrap();
    let away = "no answer from the process-manager.gpu";
    for command in [
        &["kill", "train"][..],
        &["signal", "HUP", "train.1"],
        &["logs", "train"],
        &["logs", "train.1", "-f"],
        &["kill", "later"],
    ] {
        let output = deployment.cli(command).exits_with(4);
        assert!(output.stderr.contains(away), "{command:?}: {output:#?}");
        assert!(
            output.stderr.contains("runs on") && output.stderr.contains("blackhole --offline "),
            "{command:?}: {output:#?}"
        );
    }
    assert!(processes::is_alive(train));
    // What can be reached is done all the same.
    let output = deployment
        .cli(&["signal", "HUP", "train", "web"])
        .exits_with(4);
    assert!(output.stdout.contains("web.1: SIGHUP sent"), "{output:#?}");
    assert!(output.stderr.contains("SIGHUP to train.1"), "{output:#?}");
    let output = deployment.cli(&["logs"]).exits_with(4);
    assert!(output.stdout.contains("web is up"), "{output:#?}");
    assert!(!output.stdout.contains("train is up"), "{output:#?}");
    assert!(output.stderr.contains(away), "{output:#?}");
    deployment.cli(&["logs", "web"]).ok();
    // A name that means nothing is still one.
    deployment.cli(&["kill", "trein"]).exits_with(3);
    // What is offered works.
    let output = deployment.cli(&["--offline", "logs", "train"]).ok();
    assert!(output.stdout.contains("train is up"), "{output:#?}");
    deployment.cli(&["--offline", "kill", "train"]).ok();
    wait_for("its death", || {
        (!processes::is_alive(train))
            .then_some(())
            .ok_or_else(|| "it lives".to_owned())
    });
    deployment.down();
}

#[test]
fn health_does_not_vouch_for_what_nobody_can_tell() {
    let deployment = without_gpu();
    let output = deployment.cli(&["health"]).exits_with(1);
    let line = |name: &str| {
        let found = output.stdout.lines().find(|line| line.starts_with(name));
        found.unwrap_or_else(|| panic!("{output:#?}")).to_owned()
    };
    let train = line("train.1");
    assert!(
        train.contains("unknown") && train.contains("the process-manager.gpu does not answer"),
        "{train}"
    );
    assert!(line("web.1").contains("healthy"), "{output:#?}");
    let json = deployment
        .cli(&["health", "-o", "json"])
        .exits_with(1)
        .json();
    assert_eq!(json["healthy"], false, "{json}");
    assert_eq!(
        json["away"],
        serde_json::json!(["process-manager.gpu"]),
        "{json}"
    );
    let rows = json["services"].as_array().unwrap();
    let row = |name| rows.iter().find(|row| row["instance"] == name).unwrap();
    assert_eq!(row("train.1")["verdict"], "unknown", "{json}");
    assert_eq!(row("train.1")["away"], "process-manager.gpu", "{json}");
    assert_eq!(row("web.1")["verdict"], "healthy", "{json}");
    assert!(row("web.1")["away"].is_null(), "{json}");
    let status = deployment.status();
    assert_eq!(
        status.instance("train.1").text("away"),
        Some("process-manager.gpu")
    );
    deployment.cli(&["health", "web"]).ok();
    deployment.down();
}

#[test]
fn a_reload_of_several_does_all_and_tells_what_became_of_each() {
    let deployment = without_gpu();
    let all = ["reload", "train", "web", "idle", "later"];
    // The first by name has no `reload`, the next does not run.
    let output = deployment.cli(&all).exits_with(6);
    assert_eq!(output.stdout, "web.1: reloaded\n", "{output:#?}");
    for words in [
        "cannot reload idle.1\n  because: idle.1 has no `reload`",
        "cannot reload later.1\n  because: does not run",
        "cannot reload train.1\n  because: its process-manager.gpu does not answer",
    ] {
        assert!(output.stderr.contains(words), "{words}: {output:#?}");
    }
    wait_for("its reload", || {
        let log = deployment.cli(&["logs", "web"]).ok().stdout;
        log.contains("read again").then_some(()).ok_or(log)
    });
    let json = deployment
        .cli(&["reload", "train", "web", "-o", "json"])
        .exits_with(4)
        .json();
    assert_eq!(json["reloaded"], serde_json::json!(["web.1"]), "{json}");
    assert_eq!(json["failed"][0]["instance"], "train.1", "{json}");
    assert_eq!(json["failed"][0]["code"], "unavailable", "{json}");
    deployment.cli(&["reload", "web"]).ok();
    deployment.down();
}
