//! What probes wait for: a service that says that it takes longer to come up, within bounds, and
//! hooks between two lives of one.

// A test that cannot go on panics: that is its way to fail.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::os::unix::net::UnixDatagram;

use blackhole_bus_schema::health::{ProbeCheck, ProbeResult, Probes};
use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::process::{Hook, Permit, StateName};
use support::*;

#[test]
#[ignore = "a part of services of other tests"]
fn speak() {
    let path = std::env::var("NOTIFY_SOCKET").unwrap();
    let text = std::env::var("BH_SAY").unwrap();
    let socket = UnixDatagram::unbound().unwrap();
    socket.send_to(text.as_bytes(), path).unwrap();
}

#[tokio::test]
async fn a_start_that_asks_for_time_is_not_given_up_also_not_by_another_manager() {
    let mut bench = Bench::start().await;
    let gate = bench.path("gate");
    let program = std::env::current_exe().unwrap();
    let program = program.display();
    let say = format!(
        "BH_SAY=EXTEND_TIMEOUT_USEC=3600000000 {program} --ignored --exact speak > /dev/null"
    );
    let mut service = script("web.1", 1, &format!("{say}; exec sleep 100000"));
    let check = ["/bin/sh", "-c", &format!("test -e {}", gate.display())].map(str::to_owned);
    let mut startup = probe(ProbeCheck::Exec(check.to_vec()));
    startup.failure_threshold = 30;
    service.probes = Probes {
        startup: Some(startup),
        ..Probes::default()
    };
    bench.run(&service).await;
    let told = |result: &ProbeResult| {
        let error = result.error.as_ref();
        error.is_some_and(|error| error.ends_with("(it has asked for time)"))
    };
    let held = bench.probe("one that would be the last", 0, told).await;
    assert_eq!(held.in_a_row, 29);
    bench.kill_manager();
    bench.start_manager().await;
    let from = bench.history.len();
    let held = bench.probe("the same by its successor", from, told).await;
    assert_eq!(held.in_a_row, 29);
    std::fs::write(&gate, "").unwrap();
    let passed = bench
        .probe("its coming up", from, |result| result.error.is_none())
        .await;
    assert_eq!(passed.in_a_row, 1);
}

#[tokio::test]
async fn a_service_that_has_ended_is_not_asked_while_its_hooks_run() {
    let mut bench = Bench::start().await;
    let (asked, hooked) = (bench.path("asked"), bench.path("hooked"));
    let mut service = sleeper("web.1", 1);
    // More than a dozen of probes would have been made in the meantime.
    let script = format!(
        "touch {}; wc -l < {1} > {1}.then; sleep 0.5; wc -l < {1} > {1}.later",
        hooked.display(),
        asked.display()
    );
    service.settings.hooks.after_exit = Some(Hook {
        command: ["/bin/sh", "-c", &script].map(str::to_owned).to_vec(),
        timeout_ms: 60_000,
    });
    let script = format!("echo x >> {}", asked.display());
    let check = ["/bin/sh", "-c", &script].map(str::to_owned);
    service.probes = Probes {
        liveness: Some(probe(ProbeCheck::Exec(check.to_vec()))),
        ..Probes::default()
    };
    service.permit = Some(Permit {
        generation: Generation(2),
        expires_after_ms: None,
    });
    let pid = bench.run(&service).await.state.pid().unwrap();
    bench
        .probe("a result", 0, |result| result.error.is_none())
        .await;
    kill(pid);
    bench.state("web.1", 2, StateName::Running).await;
    let count = |name: &str| -> u32 {
        let text = std::fs::read_to_string(asked.with_extension(name)).unwrap();
        text.trim().parse().unwrap()
    };
    // Some may have been made before the word of its end came.
    assert!(count("later") < count("then") + 5);
    let from = bench.history.len();
    let again = bench.probe("one of the successor", from, |_| true).await;
    assert_eq!(again.generation, Generation(2));
}
