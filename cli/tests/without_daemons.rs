//! What the program does where no daemon runs: exit codes, messages, streams.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use blackhole_bus_schema::dirs::{Dirs, Lock};
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const CONFIG: &str = "services: {web: {command: [sleep, \"1000\"]}}\n";

fn temp() -> TempDir {
    let temp = tempfile::tempdir().unwrap();
    std::fs::write(temp.path().join("b.yaml"), CONFIG).unwrap();
    temp
}

fn command(program: &Path, temp: &TempDir, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .arg("--run-dir")
        .arg(temp.path().join("r"))
        .arg("--state-dir")
        .arg(temp.path().join("s"))
        .env_remove("BLACKHOLE_CONFIG")
        .current_dir(temp.path())
        .stdin(Stdio::null());
    command
}

fn run(temp: &TempDir, arguments: &[&str]) -> Output {
    command(Path::new(env!("CARGO_BIN_EXE_blackhole")), temp, arguments)
        .output()
        .unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn exit_codes() {
    let temp = temp();
    for (arguments, expected) in [
        (&["status"][..], 4),
        (&["health"], 4),
        (&["monitor", "--once"], 4),
        (&["start", "web", "-c", "b.yaml"], 4),
        (&["stop", "web"], 4),
        (&["restart", "--all"], 4),
        (&["reset", "web"], 4),
        (&["kill", "web"], 4),
        (&["logs", "web"], 4),
        (&["component", "list"], 0),
        (&["component", "restart", "bridge"], 4),
        (&["component", "restart", "systemd"], 2),
        (&["events"], 4),
        (&["events", "web"], 4),
        (&["bus", "tap"], 4),
        (&["bus", "tap", "evt.process.", "-n", "1"], 4),
        (&["call", "web", "hello"], 4),
        (&["call", "web.1", "hello"], 4),
        (&["call", "web.x", "hello"], 2),
        (&["config", "init", "-c", "b.yaml"], 6),
        (&["config", "init", "-c", "new.yaml"], 0),
        (&["config", "validate", "-c", "new.yaml"], 0),
        (&["logs", "--raw", "-o", "json"], 2),
        (&["call", "web", "hello", "@/nonexistent/file"], 1),
        (&["metrics"], 4),
        (&["config", "init", "b.yaml"], 6),
        (&["config", "init", "-"], 0),
        (&["down"], 0),
        (&["--offline", "status"], 0),
        (&["--offline", "status", "web"], 3),
        (&["--offline", "logs", "web"], 3),
        (&["--offline", "stop", "web"], 3),
        (&["--offline", "kill", "web"], 3),
        (&["--offline", "start", "web"], 2),
        (&["config", "validate", "-c", "b.yaml"], 0),
        (&["config", "validate", "-c", "missing.yaml"], 2),
        (&["stop", "web.1"], 2),
        (&["start", "web.1", "-c", "b.yaml"], 2),
        (&["restart", "web.1"], 2),
        (&["reset", "web.1"], 2),
        (&["logs", "web.1"], 4),
        (&["logs", "--since", "10m", "--until", "1h"], 2),
        (&["logs", "--since", "1h", "--until", "10m"], 4),
        (&["stop", "WEB"], 2),
        (&["stop"], 2),
        (&["signal", "NOPE", "web"], 2),
        (&["bus", "ping", "systemd"], 2),
        (&["status", "--timeout", "5"], 2),
        (&["nonsense"], 2),
        (&["--help"], 0),
        (&["--version"], 0),
    ] {
        let output = run(&temp, arguments);
        assert_eq!(code(&output), expected, "{arguments:?}: {}", err(&output));
        if expected != 0 {
            assert_eq!(out(&output), "", "{arguments:?} wrote to standard output");
            assert!(
                err(&output).contains("error:"),
                "{arguments:?}: {}",
                err(&output)
            );
        }
    }
}

#[test]
fn a_ping_tells_who_does_not_answer() {
    let temp = temp();
    let output = run(&temp, &["bus", "ping", "-o", "json"]);
    assert_eq!(code(&output), 4);
    assert_eq!(
        out(&output).matches("\"answered\": 0").count(),
        4,
        "{}",
        out(&output)
    );
}

#[test]
fn asking_makes_no_directories() {
    let temp = temp();
    for arguments in [
        &["status"][..],
        &["down"],
        &["doctor"],
        &["--offline", "status"],
        &["component", "list"],
    ] {
        run(&temp, arguments);
    }
    assert!(!temp.path().join("r").exists() && !temp.path().join("s").exists());
}

#[test]
fn a_wrong_configuration_is_one_error_with_its_place_and_starts_nothing() {
    let temp = temp();
    std::fs::write(
        temp.path().join("b.yaml"),
        "services:\n  web:\n    comand: [x]\n",
    )
    .unwrap();
    for arguments in [
        &["up"][..],
        &["up", "-d"],
        &["config", "validate"],
        &["config", "show"],
    ] {
        let output = run(&temp, &[arguments, &["-c", "b.yaml"]].concat());
        assert_eq!(code(&output), 2, "{arguments:?}");
        let text = err(&output);
        assert_eq!(text.matches("error:").count(), 1, "{text}");
        assert!(
            text.contains("b.yaml:3:5") && text.contains("command"),
            "{text}"
        );
    }
    assert!(!temp.path().join("s").exists(), "something was started");
}

#[test]
fn all_mistakes_of_a_configuration_are_shown_at_once() {
    let temp = temp();
    std::fs::write(
        temp.path().join("b.yaml"),
        "services:\n  web: {command: [x], comand: [x]}\n  api: {command: [x], replicas: x}\n",
    )
    .unwrap();
    for arguments in [
        &["up"][..],
        &["config", "validate"],
        &["config", "show"],
        &["config", "validate", "-o", "json"],
    ] {
        let output = run(&temp, &[arguments, &["-c", "b.yaml"]].concat());
        assert_eq!(code(&output), 2, "{arguments:?}");
        let text = err(&output);
        for place in ["error: b.yaml:2:", "error: b.yaml:3:", "2 mistakes"] {
            assert!(
                text.replace(&format!("{}/", temp.path().display()), "")
                    .contains(place),
                "{place}: {text}"
            );
        }
    }
    let output = run(&temp, &["config", "validate", "-c", "b.yaml", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&out(&output)).unwrap();
    assert_eq!(json["valid"], false, "{json}");
    let paths: Vec<_> = json["mistakes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["path"])
        .collect();
    assert_eq!(paths, ["services.web.comand", "services.api.replicas"]);
    assert!(!temp.path().join("s").exists(), "something was started");
}

#[test]
fn the_configuration_is_found_where_it_usually_is() {
    let temp = temp();
    let output = run(&temp, &["config", "validate"]);
    assert_eq!(code(&output), 2);
    assert!(err(&output).contains("-c FILE"), "{}", err(&output));
    std::fs::rename(
        temp.path().join("b.yaml"),
        temp.path().join("blackhole.yaml"),
    )
    .unwrap();
    assert_eq!(code(&run(&temp, &["config", "validate"])), 0);
}

#[test]
fn what_is_shown_can_be_used_as_a_configuration() {
    let temp = temp();
    let output = run(&temp, &["config", "show", "-c", "b.yaml"]);
    std::fs::write(temp.path().join("shown.yaml"), &output.stdout).unwrap();
    let again = run(&temp, &["config", "show", "-c", "shown.yaml"]);
    assert_eq!(code(&again), 0, "{}", err(&again));
    assert_eq!(out(&output), out(&again));
}

#[test]
fn a_reader_that_goes_away_is_not_an_error() {
    let temp = temp();
    let mut child = command(
        Path::new(env!("CARGO_BIN_EXE_blackhole")),
        &temp,
        &["completions", "bash"],
    )
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((code(&output), err(&output).as_str()), (0, ""));
}

#[test]
fn a_time_that_is_shown_can_be_given_back() {
    let temp = temp();
    let folder = temp.path().join("s/instances/web.1");
    std::fs::create_dir_all(&folder).unwrap();
    let log = "2026-01-05T02:30:00.000000Z web.1 out F one\n\
               2026-01-05T02:30:01.500000Z web.1 out F two\n";
    std::fs::write(folder.join("log"), log).unwrap();
    let logs = |arguments: &[&str]| {
        let all = [&["--offline", "logs", "web"], arguments].concat();
        let program = Path::new(env!("CARGO_BIN_EXE_blackhole"));
        let mut command = command(program, &temp, &all);
        // Five hours behind, see tzset(3).
        let output = command.env("TZ", "XXX5").output().unwrap();
        assert_eq!(code(&output), 0, "{}", err(&output));
        out(&output)
    };
    let two = "2026-01-04 21:30:01.500 web.1 | two\n";
    assert_eq!(
        logs(&[]),
        format!("2026-01-04 21:30:00.000 web.1 | one\n{two}")
    );
    for since in [
        "2026-01-04 21:30:01.500",
        "2026-01-05T02:30:01.5Z",
        "2026-01-05T04:30:01.5+02:00",
    ] {
        assert_eq!(logs(&["--since", since]), two, "{since}");
    }
    let json = logs(&["-o", "json", "-n", "1"]);
    assert!(
        json.contains("\"at\":\"2026-01-05T02:30:01.500000Z\""),
        "{json}"
    );
}

#[test]
fn no_colours_in_a_pipe() {
    let temp = temp();
    let output = run(&temp, &["component", "list"]);
    assert!(!out(&output).contains('\u{1b}'));
}

#[test]
fn a_second_up_is_refused_and_told_about_the_first() {
    let temp = temp();
    let dirs = Dirs::resolve(Some(temp.path().join("r")), Some(temp.path().join("s"))).unwrap();
    dirs.create().unwrap();
    let _held = Lock::try_take(&dirs.lock("up")).unwrap().unwrap();
    let bin = fake_daemons(&temp, "exit 1");
    for arguments in [&["up", "-c", "b.yaml"][..], &["up", "-d", "-c", "b.yaml"]] {
        let output = command(&bin, &temp, arguments).output().unwrap();
        assert_eq!(code(&output), 6, "{}", err(&output));
        assert!(
            err(&output).contains(&format!("pid {}", std::process::id())),
            "{}",
            err(&output)
        );
        assert!(err(&output).contains("blackhole down"), "{}", err(&output));
    }
}

/// A folder with this program and daemons that are scripts.
fn fake_daemons(temp: &TempDir, script: &str) -> std::path::PathBuf {
    let bin = temp.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_blackhole"), bin.join("blackhole")).unwrap();
    for name in [
        "supervisor",
        "process-manager",
        "resource-controller",
        "bridge",
        "shim",
    ] {
        let path = bin.join(format!("blackhole-{name}"));
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    bin.join("blackhole")
}

#[test]
fn daemons_that_do_not_come_up_are_given_up_with_their_last_words() {
    let temp = temp();
    let bin = fake_daemons(&temp, "echo \"cannot bear it\" >&2; exit 7");
    for arguments in [&["up", "-c", "b.yaml"][..], &["up", "-d", "-c", "b.yaml"]] {
        let output = command(&bin, &temp, arguments).output().unwrap();
        let text = err(&output);
        assert_eq!(code(&output), 1, "{text}");
        assert!(text.contains("does not come up"), "{text}");
        assert!(
            text.contains("exit code 7") && text.contains("cannot bear it"),
            "{text}"
        );
        assert!(
            !temp.path().join("s/lock/up.lock").exists(),
            "the lock is left"
        );
    }
    assert!(
        std::fs::read_to_string(temp.path().join("s/log/bridge.log"))
            .unwrap()
            .contains("cannot bear it")
    );
}

#[test]
fn a_start_that_is_given_up_leaves_the_services_that_ran_before() {
    let temp = temp();
    let dirs = Dirs::resolve(Some(temp.path().join("r")), Some(temp.path().join("s"))).unwrap();
    dirs.create().unwrap();
    let instance = dirs.instance(&"web.1".parse().unwrap());
    std::fs::create_dir_all(&instance).unwrap();
    // As a live shim holds it: a record lock, see fcntl(2).
    let held = std::fs::File::create(instance.join("lock")).unwrap();
    fcntl_lock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
    let bin = fake_daemons(&temp, "exit 7");
    for arguments in [&["up", "-c", "b.yaml"][..], &["up", "-d", "-c", "b.yaml"]] {
        let output = command(&bin, &temp, arguments).output().unwrap();
        let text = err(&output);
        assert_eq!(code(&output), 1, "{text}");
        assert!(text.contains("does not come up"), "{text}");
        assert!(
            text.contains("the services that ran before go on (web.1)")
                && text.contains("`blackhole down` ends them"),
            "{text}"
        );
        assert!(!text.contains("stopping"), "{text}");
        assert!(
            temp.path().join("s/keeper.json").exists(),
            "the next one could not tell what runs"
        );
        assert!(
            !temp.path().join("s/lock/up.lock").exists(),
            "the lock is left"
        );
    }
    drop(held);
}

#[test]
fn a_hangup_that_was_ignored_stays_ignored() {
    for (trap, ignored) in [("trap '' HUP; ", true), ("", false)] {
        let temp = temp();
        let bin = fake_daemons(&temp, "exec sleep 1000");
        let line = format!("{trap}exec \"$0\" \"$@\"");
        let mut shell = Command::new("/bin/sh");
        let mut child = shell
            .args(["-c", &line])
            .arg(&bin)
            .args(["up", "-c", "b.yaml", "--run-dir", "r", "--state-dir", "s"])
            .current_dir(temp.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut until = |word: &str| lines.any(|line| line.unwrap().contains(word));
        // Written once the signals are taken.
        assert!(until("configuration "));
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let mask = |name: &str| {
            let mask = status.lines().find_map(|line| line.strip_prefix(name));
            u64::from_str_radix(mask.unwrap().trim(), 16).unwrap()
        };
        let pid = Pid::from_child(&child);
        kill_process(pid, Signal::TERM).unwrap();
        assert!(until("SIGTERM"));
        // Once more is only quicker; it may be through already.
        kill_process(pid, Signal::TERM).unwrap();
        lines.for_each(drop);
        child.wait().unwrap();
        assert_eq!(
            (mask("SigIgn:") & 1 == 1, mask("SigCgt:") & 1 == 1),
            (ignored, !ignored)
        );
    }
}

#[test]
fn daemons_beside_the_program_are_needed() {
    let temp = temp();
    let bin = temp.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_blackhole"), bin.join("blackhole")).unwrap();
    let output = command(&bin.join("blackhole"), &temp, &["up", "-c", "b.yaml"])
        .output()
        .unwrap();
    assert_eq!(code(&output), 1);
    assert!(
        err(&output).contains("cargo build --workspace --bins"),
        "{}",
        err(&output)
    );
}

#[test]
fn what_is_probably_not_meant_is_noted_in_the_order_of_the_file() {
    let temp = temp();
    let path = temp.path().join("b.yaml");
    std::fs::write(temp.path().join("app.py"), "").unwrap();
    let text = r#"
services:
  web:
    command: [python3, app.py]
    sockets: {http: "127.0.0.1:8080"}
    health: {liveness: {tcp: "127.0.0.1:8080"}}
  api: {command: [sh], standby: true, oneshot: true}
"#;
    std::fs::write(&path, text).unwrap();
    let file = path.display();
    let expected = [
        format!("{file}:4:5: services.web.command: web runs in /, where there is no app.py"),
        format!("{file}:6:30: services.web.health.liveness.tcp: connects to its own socket http"),
        format!("{file}:7:33: services.api.standby: has no effect: a one-shot"),
    ];
    let output = run(&temp, &["config", "validate", "-c", "b.yaml"]);
    assert_eq!(code(&output), 0);
    let notes = err(&output);
    let notes: Vec<&str> = notes.lines().collect();
    assert_eq!(notes.len(), expected.len(), "{notes:#?}");
    for (note, expected) in notes.iter().zip(&expected) {
        assert!(note.starts_with(&format!("note: {expected}")), "{note}");
    }
    let output = run(&temp, &["config", "validate", "-c", "b.yaml", "-o", "json"]);
    assert_eq!(err(&output), "");
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["notes"].as_array().unwrap().len(), expected.len());
    assert!(document["notes"][2].as_str().unwrap().contains("one-shot"));
    // Doctor has the same.
    let output = run(&temp, &["doctor", "-c", "b.yaml"]);
    assert_eq!(out(&output).matches("note ").count(), 3, "{}", out(&output));

    for empty in ["", "services: {}\n"] {
        std::fs::write(&path, empty).unwrap();
        let output = run(&temp, &["config", "validate", "-c", "b.yaml"]);
        assert_eq!(code(&output), 0);
        assert!(
            out(&output).contains("valid, 0 services"),
            "{}",
            out(&output)
        );
        assert!(
            err(&output).contains("there are no services"),
            "{}",
            err(&output)
        );
    }
}

#[test]
fn a_key_that_is_not_known_has_its_nearest_one_beside_it() {
    let temp = temp();
    for (text, hint) in [
        ("service: {a: {command: [x]}}", "did you mean services?"),
        ("services: {a: {comand: [x]}}", "did you mean command?"),
        (
            "services: {a: {command: [x], memory_mb: 5}}",
            "it belongs under services.a.resources",
        ),
        (
            "services: {a: {command: [x], stop: {garce: 5s}}}",
            "did you mean grace?",
        ),
        (
            "runtime: {orchestrator: {max_procesess: 5}}",
            "did you mean max_processes?",
        ),
    ] {
        std::fs::write(temp.path().join("b.yaml"), text).unwrap();
        let output = run(&temp, &["config", "validate", "-c", "b.yaml"]);
        assert_eq!(code(&output), 2);
        assert!(err(&output).contains(hint), "{text}: {}", err(&output));
    }
}

#[test]
fn who_exchanges_the_moments_or_names_an_instance_is_told_what_to_write() {
    let temp = temp();
    let reversed = [
        "logs",
        "--since",
        "2026-11-22T10:00Z",
        "--until",
        "2026-11-22T09:00Z",
    ];
    let text = err(&run(&temp, &reversed));
    let expected = "--since 2026-11-22T10:00:00Z is later than --until 2026-11-22T09:00:00Z";
    assert!(
        text.contains(expected) && text.contains("exchange the two"),
        "{text}"
    );
    for command in ["start", "stop", "restart", "reset"] {
        let text = err(&run(&temp, &[command, "web.2", "-c", "b.yaml"]));
        assert!(
            text.contains(
                "\"web.2\" is an instance; this command takes whole services: write \"web\""
            ),
            "{text}"
        );
    }
}
