//! Sockets that outlive restarts whatever else dies, hooks and reloads, by way of
//! the real programs.

#![allow(
    unsafe_code,
    clippy::panic,
    reason = "a test fails by panicking; a service takes over the socket that it was given"
)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::FromRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;

use blackhole_tests::{Deployment, wait_for};

#[test]
#[ignore = "a service of other tests"]
fn answer() {
    // SAFETY: passed to this process, and nobody else takes it.
    let listener = unsafe { TcpListener::from_raw_fd(3) };
    for connection in listener.incoming().flatten() {
        let _ = (&connection).write_all(b"hello\n");
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0");
    let address = listener.and_then(|listener| listener.local_addr());
    address.map(|address| address.port()).expect("a free port")
}

/// Connects all the time; keeps what was refused.
struct Caller {
    end: Arc<AtomicBool>,
    answers: Arc<AtomicU32>,
    refusals: JoinHandle<Vec<String>>,
}

impl Caller {
    fn begin(port: u16) -> Self {
        let (end, answers) = (Arc::<AtomicBool>::default(), Arc::<AtomicU32>::default());
        let (ended, counted) = (end.clone(), answers.clone());
        let refusals = std::thread::spawn(move || {
            let mut refusals = Vec::new();
            while !ended.load(Ordering::Relaxed) {
                match TcpStream::connect(("127.0.0.1", port)) {
                    Ok(mut stream) => {
                        // What a process that is killed had taken is reset.
                        let mut text = String::new();
                        if stream.read_to_string(&mut text).is_ok() && text == "hello\n" {
                            counted.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    Err(error) => refusals.push(error.to_string()),
                }
            }
            refusals
        });
        Self {
            end,
            answers,
            refusals,
        }
    }

    /// Waits until it is answered once more.
    #[track_caller]
    fn answered(&self) {
        let before = self.answers.load(Ordering::Relaxed);
        wait_for("an answer", || {
            match self.answers.load(Ordering::Relaxed) > before + 1 {
                true => Ok(()),
                false => Err("none".to_owned()),
            }
        });
    }
}

#[test]
fn twenty_restarts_refuse_no_connection_whatever_dies_meanwhile() {
    let port = free_port();
    let program = std::env::current_exe().expect("this program's path");
    let deployment = Deployment::new(&format!(
        "
services:
  web:
    command: [{}, --ignored, --exact, --nocapture, answer]
    sockets: {{http: \"127.0.0.1:{port}\"}}
    restart: {{max_attempts: 100, initial_backoff: 10ms, max_backoff: 50ms}}
",
        program.display()
    ));
    deployment.up();
    let caller = Caller::begin(port);
    caller.answered();
    for round in 0..20 {
        let pid = deployment.status().instance("web.1").pid().expect("a pid");
        match round % 4 {
            0 | 1 => {
                deployment.cli(&["restart", "web"]).ok();
            }
            2 => {
                // It crashes while nobody manages it.
                deployment.kill_component("process-manager");
                deployment.kill(pid);
            }
            _ => deployment.kill(pid),
        }
        deployment.wait_until("another process", |status| {
            let web = status.instance("web.1");
            web.state() == Some("RUNNING") && web.pid() != Some(pid)
        });
        caller.answered();
    }
    caller.end.store(true, Ordering::Relaxed);
    let refusals = caller.refusals.join().unwrap_or_default();
    assert_eq!(refusals, Vec::<String>::new());
    deployment.cli(&["stop", "web"]).ok();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    deployment.down();
    deployment.assert_nothing_left();
}

#[test]
fn down_closes_sockets_at_once() {
    let port = free_port();
    let program = std::env::current_exe().expect("this program's path");
    let deployment = Deployment::new(&format!(
        "
services:
  web:
    command: [{}, --ignored, --exact, --nocapture, answer]
    sockets: {{http: \"127.0.0.1:{port}\"}}
",
        program.display()
    ));
    deployment.up();
    TcpStream::connect(("127.0.0.1", port)).expect("somebody listens");
    deployment.down();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    deployment.assert_nothing_left();
}

#[test]
fn hooks_and_reloads_by_the_command_line() {
    let deployment = Deployment::new(
        "
services:
  web:
    command: [sh, -c, \"trap 'echo read again' HUP; echo up; while :; do sleep 0.05; done\"]
    reload: {signal: SIGHUP}
    umask: 0027
    hooks:
      before_start: [sh, -c, \"echo before $(umask)\"]
      after_exit: [sh, -c, \"echo after $BLACKHOLE_EXIT_RESULT\"]
  plain:
    command: [blackhole-example, idle]
  broken:
    command: [blackhole-example, idle]
    autostart: false
    restart: {policy: never}
    hooks: {before_start: [sh, -c, \"exit 3\"]}
",
    );
    deployment.up();
    let log = |what: &str| {
        wait_for(what, || {
            let log = deployment.cli(&["logs", "web"]).ok().stdout;
            match log.contains(what) {
                true => Ok(()),
                false => Err(log),
            }
        });
    };
    log("before 0027");
    log("up");
    deployment.cli(&["reload", "web"]).ok();
    log("read again");
    let refused = deployment.cli(&["reload", "plain"]).exits_with(6);
    assert!(refused.stderr.contains("has no `reload`"), "{refused:#?}");
    deployment.cli(&["reload", "nobody"]).exits_with(3);
    // "All" are those that can.
    let all = deployment.cli(&["reload", "--all"]).ok();
    assert!(
        all.stdout.contains("web.1") && !all.stdout.contains("plain"),
        "{all:#?}"
    );
    let failed = deployment.cli(&["start", "broken"]);
    assert_ne!(failed.code, Some(0), "{failed:#?}");
    assert!(
        failed.stderr.contains("run hook before_start: exit code 3")
            || failed.stdout.contains("run hook before_start: exit code 3"),
        "{failed:#?}"
    );
    deployment.cli(&["stop", "web"]).ok();
    log("after stopped");
    deployment.down();
    deployment.assert_nothing_left();
}

#[test]
fn down_closes_what_was_kept_for_a_service_that_had_failed() {
    let port = free_port();
    let deployment = Deployment::new(&format!(
        "services:
  s: {{command: [sh, -c, exit 3], restart: {{policy: never}}, sockets: {{x: \"127.0.0.1:{port}\"}}}}"
    ));
    deployment.cli(&["up", "-d", "--timeout", "60s"]);
    deployment.wait_until("it has failed", |status| {
        status
            .find("s.1")
            .is_some_and(|one| one.phase() == Some("gave_up"))
    });
    TcpStream::connect(("127.0.0.1", port)).expect("it is kept");
    deployment.down().ok();
    TcpListener::bind(("127.0.0.1", port)).expect("it is free");
    deployment.assert_nothing_left();
}

/// One that has failed for good has no process; what is kept for its next start is
/// closed all the same, with a supervisor, without one, and without any daemon.
#[test]
fn a_stop_closes_what_was_kept_for_a_service_that_had_failed() {
    let ports = [free_port(), free_port(), free_port(), free_port()];
    let [never, circuit, direct, offline] = ports;
    let deployment = Deployment::new(&format!(
        "
services:
  never: {{command: [sh, -c, exit 3], restart: {{policy: never}}, sockets: {{x: \"127.0.0.1:{never}\"}}}}
  circuit: {{command: [sh, -c, exit 3], restart: {{max_attempts: 1}}, sockets: {{x: \"127.0.0.1:{circuit}\"}}}}
  direct: {{command: [sh, -c, exit 3], restart: {{policy: never}}, sockets: {{x: \"127.0.0.1:{direct}\"}}}}
  offline: {{command: [sh, -c, exit 3], restart: {{policy: never}}, sockets: {{x: \"127.0.0.1:{offline}\"}}}}
"
    ));
    let daemons = deployment.daemons();
    deployment.wait_until("all to have failed", |status| {
        status.is_in("circuit.1", "circuit_open")
            && ["never.1", "direct.1", "offline.1"]
                .iter()
                .all(|one| status.is_in(one, "gave_up"))
    });
    for port in ports {
        TcpStream::connect(("127.0.0.1", port)).expect("it is kept");
    }
    let is_free = |port| TcpListener::bind(("127.0.0.1", port)).map(|_| ());
    deployment.cli(&["stop", "never", "circuit"]).ok();
    is_free(never).expect("it is free");
    is_free(circuit).expect("it is free");
    let mut left = Vec::new();
    for daemon in daemons {
        match daemon.component() {
            "supervisor" => daemon.kill(),
            _ => left.push(daemon),
        }
    }
    // It says that it has failed.
    deployment.cli(&["stop", "direct"]);
    is_free(direct).expect("it is free");
    TcpStream::connect(("127.0.0.1", offline)).expect("it is kept");
    deployment.cli(&["--offline", "stop", "offline"]).ok();
    is_free(offline).expect("it is free");
    drop(left);
    deployment.cli(&["down"]).ok();
    deployment.assert_nothing_left();
}
