//! The bus as the command line shows it: pings, taps, counters, calls, figures.

#![allow(clippy::panic)]

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use blackhole_tests::deployment::DAEMONS;
use blackhole_tests::{Deployment, wait_for};
use serde_json::Value;

const ECHO: &str = r#"
services:
  echo:
    description: says it again
    command: [blackhole-example, echo]
    replicas: 2
    health: {readiness: {notify: true}}
"#;

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// One, some and all missing are three different outcomes.
#[test]
fn pings_measure_the_way_and_name_the_missing() {
    let deployment = Deployment::new(ECHO);
    let alone = deployment.daemon("bridge");
    wait_for("the bridge to answer", || {
        let output = deployment.cli(&["bus", "ping", "bridge", "-n", "3", "-o", "json"]);
        match output.code {
            Some(0) => Ok(output.json()),
            _ => Err(format!("{output:#?}")),
        }
    });
    let some = deployment
        .cli(&["bus", "ping", "-n", "2", "-o", "json"])
        .exits_with(1)
        .json();
    let rows = some["pings"].as_array().expect("rows");
    assert_eq!(rows.len(), 4, "{some}");
    for row in rows {
        let answered = u64::from(text(row, "component") == "bridge") * 2;
        assert_eq!(row["answered"], answered, "{row}");
        let (min, median, max) = (
            row["min_us"].as_u64(),
            row["median_us"].as_u64(),
            row["max_us"].as_u64(),
        );
        assert_eq!(min.is_some(), answered > 0, "{row}");
        assert!(min <= median && median <= max, "{row}");
    }
    deployment.cli(&["bus", "ping", "supervisor"]).exits_with(4);
    let shown = deployment.cli(&["bus", "ping"]).exits_with(1);
    assert!(shown.stdout.contains("no answer"), "{shown:#?}");
    drop(alone);
}

/// A start as the tap shows it: the command, its answer, and the events, with
/// the chain of causes between them.
#[test]
fn a_tap_shows_commands_answers_and_events() {
    let deployment = Deployment::new(ECHO);
    deployment.up();
    let mut tap = deployment
        .command(&deployment.binaries().join("blackhole"))
        .args(["bus", "tap", "-o", "json", "cmd.", "rep.", "evt.process."])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the tap runs");
    let mut lines = BufReader::new(tap.stdout.take().expect("a pipe")).lines();
    // Its sockets connect in their own time: something is sent until it hears of it.
    let mut next = || -> Value {
        let line = lines.next().expect("a line").expect("text");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    };
    let signalled = &deployment;
    std::thread::scope(|scope| {
        // Dropped at the end, however it comes: then the other thread ends, too.
        let (_sender, stop) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            // A command each round; the wait is for the end, not for time.
            loop {
                signalled.cli(&["signal", "CONT", "echo.1"]).ok();
                let pause = std::time::Duration::from_millis(50);
                if stop.recv_timeout(pause) != Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                    return;
                }
            }
        });
        let command = loop {
            let message = next();
            assert_eq!(message["error"], Value::Null, "{message}");
            assert_ne!(message["kind"], "component.ping", "{message}");
            if message["kind"] == "process.signal" {
                break message;
            }
        };
        assert_eq!(text(&command, "topic"), "cmd.process-manager.");
        assert_eq!(text(&command, "socket"), "process-manager");
        assert!(text(&command, "component").starts_with("cli-"), "{command}");
        assert_eq!(command["body"]["instance"], "echo.1");
        let answer = loop {
            let message = next();
            if message["cause"] == command["id"] && message["kind"] == "reply" {
                break message;
            }
        };
        assert_eq!(answer["body"]["to"], command["id"], "{answer}");
    });

    deployment.cli(&["kill", "echo.1"]).ok();
    let event = loop {
        let message = next();
        if message["kind"] == "process.changed" {
            break message;
        }
    };
    assert_eq!(text(&event, "topic"), "evt.process.echo.1.");
    assert!(event["seq"].as_u64() > Some(0), "{event}");
    assert_eq!(event["missed"], 0);

    // Whoever reads has enough: that is no failure.
    drop(lines);
    deployment.cli(&["kill", "echo.2"]).ok();
    let status = tap.wait().expect("its status");
    let mut said = String::new();
    let _ = tap
        .stderr
        .take()
        .map(|mut err| err.read_to_string(&mut said));
    assert_eq!(status.code(), Some(0), "{said}");
    deployment.down();
}

/// What a configuration has literally in `env` is in a command that anybody may
/// pipe on: it is shown to who asks for it, and to nobody else.
#[test]
fn a_tap_hides_the_values_of_environments() {
    let deployment = Deployment::new(
        r#"
services:
  db:
    command: [blackhole-example, idle]
    autostart: false
    env: {DB_PASSWORD: hunter2-literal}
"#,
    );
    deployment.up();
    for (more, shown) in [
        (&[][..], false),
        (&["-o", "json"], false),
        (&["--show-secrets"], true),
        (&["-o", "json", "--show-secrets"], true),
    ] {
        let mut tap = deployment
            .command(&deployment.binaries().join("blackhole"))
            .args(["bus", "tap", "cmd.process-manager."])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the tap runs");
        let mut lines = BufReader::new(tap.stdout.take().expect("a pipe")).lines();
        let line = std::thread::scope(|scope| {
            let (_sender, stop) = std::sync::mpsc::channel::<()>();
            let deployment = &deployment;
            scope.spawn(move || {
                // Until the tap, whose sockets connect in their own time, has heard of one.
                loop {
                    deployment.cli(&["start", "db"]).ok();
                    deployment.cli(&["stop", "db"]).ok();
                    let stopped = stop.try_recv();
                    if stopped == Err(std::sync::mpsc::TryRecvError::Disconnected) {
                        return;
                    }
                }
            });
            loop {
                let line = lines.next().expect("a line").expect("text");
                if line.contains("process.spawn") {
                    break line;
                }
            }
        });
        assert!(line.contains("DB_PASSWORD"), "{more:?}: {line}");
        assert_eq!(line.contains("hunter2"), shown, "{more:?}: {line}");
        // It ends when it has something to write for which there is no reader.
        drop(lines);
        deployment.cli(&["start", "db"]).ok();
        deployment.cli(&["stop", "db"]).ok();
        let status = tap.wait().expect("its status");
        assert!(status.success(), "{more:?}: {status}");
    }
    deployment.down();
}

#[test]
fn streams_end_when_they_are_told_to() {
    let deployment = Deployment::new(ECHO);
    // Nobody is there: that is said, not waited for.
    deployment.cli(&["bus", "tap"]).exits_with(4);
    deployment.cli(&["events"]).exits_with(4);
    deployment.cli(&["metrics"]).exits_with(4);
    deployment.cli(&["call", "echo", "echo"]).exits_with(4);
    deployment.up();
    let three = deployment
        .cli(&["bus", "tap", "-n", "3", "-o", "json", "evt.component."])
        .ok();
    assert_eq!(three.stdout.lines().count(), 3, "{three:#?}");
    deployment
        .cli(&["bus", "tap", "--timeout", "300ms", "evt.nothing."])
        .ok();
    deployment
        .cli(&[
            "bus",
            "tap",
            "--timeout",
            "300ms",
            "-n",
            "1",
            "evt.nothing.",
        ])
        .exits_with(5);
    deployment.cli(&["events", "--timeout", "300ms"]).ok();
    deployment
        .cli(&["events", "--timeout", "300ms", "-n", "1000"])
        .exits_with(5);
    deployment.cli(&["logs", "-f", "--timeout", "300ms"]).ok();
    deployment.cli(&["monitor", "--timeout", "300ms"]).ok();
    let unknown = deployment.cli(&["events", "ecko"]).exits_with(3);
    assert!(unknown.stderr.contains("echo"), "{unknown:#?}");
    deployment.down();
}

/// A daemon is ended and its next life answers; services do not notice, and
/// the others count what happened.
#[test]
fn a_restarted_component_is_another_incarnation_and_services_stay() {
    let deployment = Deployment::new(ECHO);
    deployment.up();
    let before = deployment.status();
    for component in ["process-manager", "supervisor"] {
        let output = deployment
            .cli(&["component", "restart", component, "-o", "json"])
            .ok()
            .json();
        let now = &output["components"][0];
        assert_eq!(now["incarnation"], 2, "{output}");
        assert_ne!(
            now["pid"].as_u64(),
            before.component_pid(component).map(u64::from)
        );
    }
    let after = deployment.wait_until("the services to be known again", |status| {
        status.is_in("echo.1", "ready") && status.is_in("echo.2", "ready")
    });
    assert_eq!(after.running(), before.running());
    let listed = deployment
        .cli(&["component", "list", "-o", "json"])
        .ok()
        .json();
    let rows = listed["components"].as_array().expect("rows");
    assert_eq!(rows.len(), DAEMONS.len());
    for row in rows {
        let counters = &row["counters"];
        assert!(
            counters["published.component"].as_u64() > Some(0),
            "presence is counted: {row}"
        );
        assert!(counters["commands.pings"].as_u64() > Some(0), "{row}");
        assert!(row["notes"].is_array(), "{row}");
    }
    // The bridge lived on and follows both: it lost and found them again.
    let bridge = rows.iter().find(|row| text(row, "instance") == "bridge");
    let reconnects = bridge.and_then(|row| row["counters"]["link.reconnects"].as_u64());
    assert!(reconnects >= Some(2), "{bridge:#?}");
    // `status` keeps its six fields.
    let status = deployment.cli(&["status", "-o", "json"]).ok().json();
    assert_eq!(
        status["components"][0].as_object().map(|row| row.len()),
        Some(6)
    );

    deployment
        .cli(&["component", "restart", "nobody"])
        .exits_with(2);
    deployment.down();
    deployment
        .cli(&["component", "restart", "bridge"])
        .exits_with(4);
}

/// Without a keeper nobody would start it again: that is refused, and it lives.
#[test]
fn a_component_that_nobody_would_start_again_is_not_ended() {
    let deployment = Deployment::new(ECHO);
    let mut bridge = deployment.daemon("bridge");
    bridge.wait_for_line(&["started"]);
    let refused = deployment
        .cli(&["component", "restart", "bridge"])
        .exits_with(6);
    assert!(refused.stderr.contains("blackhole up"), "{refused:#?}");
    deployment.cli(&["bus", "ping", "bridge"]).ok();
}

#[test]
fn an_operator_calls_a_service_and_sees_what_calls_took() {
    let deployment = Deployment::new(ECHO);
    deployment.up();
    let said = deployment.cli(&["call", "echo", "echo", "hello"]).ok();
    assert!(said.stdout.ends_with(" said hello\n"), "{said:#?}");
    assert!(said.stdout.starts_with("cli."), "{said:#?}");

    let file = deployment.path().join("payload");
    std::fs::write(&file, "from a file").expect("a file");
    let at = format!("@{}", file.display());
    let said = deployment
        .cli(&["call", "echo", "echo", &at, "-o", "json"])
        .ok()
        .json();
    assert!(text(&said, "text").ends_with("said from a file"), "{said}");

    deployment.cli(&["call", "nobody", "echo"]).exits_with(3);
    deployment.cli(&["call", "Echo", "echo"]).exits_with(2);
    let wrong = deployment.cli(&["call", "echo", "sing"]).exits_with(1);
    assert!(wrong.stderr.contains("sing"), "{wrong:#?}");

    let figures = wait_for("the calls to be counted", || {
        let output = deployment.cli(&["metrics"]).ok();
        let counted = output.stdout.lines().any(|line| {
            line.starts_with("blackhole_rpc_call_duration_seconds_count{caller=\"cli\"")
                && line.contains("service=\"echo\",method=\"echo\"")
                && line.ends_with(" 2")
        });
        match counted {
            true => Ok(output.stdout),
            false => Err(output.stdout),
        }
    });
    for begin in [
        "blackhole_component_up{component=\"bridge\"} 1",
        "blackhole_instance_ready{service=\"echo\",instance=\"echo.2\"} 1",
        "blackhole_instance_state{service=\"echo\",instance=\"echo.1\",blackhole_instance_state=\"RUNNING\"} 1",
        "blackhole_component_events_total{component=\"supervisor\",name=\"published.supervision\"}",
        "# EOF",
    ] {
        assert!(
            figures.lines().any(|line| line.starts_with(begin)),
            "{begin} is not in\n{figures}"
        );
    }
    deployment.down();
}

/// What has no probes is ready as soon as it runs; who wants to know whether it
/// stays watches it.
#[test]
fn a_start_that_fails_at_once_is_a_failure() {
    let deployment = Deployment::new(
        r#"
services:
  dies: {command: [sh, -c, "exit 3"], autostart: false}
  once: {command: [sh, -c, "exit 0"], autostart: false, oneshot: true}
  stays: {command: [blackhole-example, idle], autostart: false}
"#,
    );
    deployment.up();
    let failed = deployment
        .cli(&["start", "--watch", "500ms", "dies"])
        .exits_with(1);
    assert!(failed.stderr.contains("dies.1"), "{failed:#?}");
    // Still wanted, so a reset starts it anew, with the same end.
    deployment
        .cli(&["reset", "--watch", "500ms", "dies"])
        .exits_with(1);
    deployment.cli(&["stop", "dies"]).ok();
    deployment.cli(&["start", "--watch", "500ms", "once"]).ok();
    deployment.cli(&["start", "stays"]).ok();
    deployment.down();
}

/// `up -d` tells when an instance finds no place, also where that could not be
/// told from the configuration.
#[test]
fn an_instance_without_a_place_fails_the_start() {
    let many = "runtime: {orchestrator: {max_processes: 2}}\nservices:\n  \
                crowd: {command: [blackhole-example, idle], replicas: 3}\n";
    let deployment = Deployment::new(many);
    let wrong = deployment.cli(&["config", "validate"]).exits_with(2);
    assert!(wrong.stderr.contains("max_processes is 2"), "{wrong:#?}");
    deployment.cli(&["up", "-d"]).exits_with(2);

    let three = "runtime: {orchestrator: {max_processes: 2}}\nservices:\n".to_owned()
        + &["a", "b", "c"]
            .map(|name| {
                format!(
                    "  {name}: {{command: [blackhole-example, idle], restart: {{policy: on-failure}}}}\n"
                )
            })
            .concat();
    let deployment = Deployment::new(&three);
    let output = deployment.cli(&["up", "-d"]).exits_with(1);
    assert!(output.stderr.contains("max_processes is 2"), "{output:#?}");
    deployment.down();
}

#[test]
fn a_starter_configuration_runs_and_descriptions_are_kept() {
    let deployment = Deployment::new(ECHO);
    let shown = deployment.cli(&["config", "show"]).ok();
    assert!(shown.stdout.contains("says it again"), "{shown:#?}");
    let path = deployment.path().join("new.yaml");
    let name = path.display().to_string();
    deployment.cli(&["config", "init", &name]).ok();
    deployment.cli(&["config", "init", &name]).exits_with(6);
    let printed = deployment.cli(&["config", "init", "-"]).ok();
    assert_eq!(
        std::fs::read_to_string(&path).expect("the file"),
        printed.stdout
    );
    let deployment = deployment.with_config(path);
    deployment.up();
    assert!(deployment.status().is("hello.1", "RUNNING"));
    deployment.down();
}

/// The bus over TCP is there for whoever has the password, and no configuration
/// opens it to other hosts.
#[test]
fn tcp_is_of_the_loopback_and_its_password_of_the_operator() {
    use std::os::unix::fs::PermissionsExt;

    let open =
        ECHO.to_owned() + "runtime:\n  orchestrator:\n    listen: {bridge: '0.0.0.0:7430'}\n";
    let deployment = Deployment::new(&open);
    let wrong = deployment.cli(&["config", "validate"]).exits_with(2);
    assert!(wrong.stderr.contains(":10:22:"), "{wrong:#?}");

    // Others may take a free port before the daemon does: then another one is tried.
    let deployment = wait_for("a bridge with a port", || {
        let free = std::net::TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
        let address = free.local_addr().map_err(|error| error.to_string())?;
        drop(free);
        let text =
            format!("{ECHO}runtime: {{orchestrator: {{listen: {{bridge: '{address}'}}}}}}\n");
        let deployment = Deployment::new(&text);
        let mut bridge = deployment.daemon("bridge");
        bridge.wait_for_line(&["started"]);
        let listed = deployment
            .cli(&["component", "list", "-o", "json"])
            .ok()
            .json();
        let rows = listed["components"].as_array().cloned().unwrap_or_default();
        let row = rows.iter().find(|row| text_is(row, "instance", "bridge"));
        match row.is_some_and(|row| row["notes"].to_string().contains("TCP")) {
            true => Err(listed.to_string()),
            false => Ok((deployment, bridge, address)),
        }
    });
    let (deployment, _bridge, address) = deployment;
    let key = deployment.path().join("state/bus.key");
    let mode = std::fs::metadata(&key)
        .expect("the key")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    for port in [address.port(), address.port() + 1] {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        let mut signature = [0; 10];
        stream.read_exact(&mut signature).expect("a greeting");
        // The signature of a greeting, ZMTP 3.1 (RFC 37).
        assert_eq!(
            (signature[0], signature[9] & 1),
            (0xff, 1),
            "{signature:x?}"
        );
    }
}

fn text_is(value: &Value, key: &str, wanted: &str) -> bool {
    text(value, key) == wanted
}
