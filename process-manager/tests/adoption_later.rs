//! A shim that goes on by its permit, and ends, while its manager cannot reach it: what
//! is told is what stands on the disk.

// A test that cannot go on panics: that is its way to fail.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::process::{ExitResult, InstanceRecord, Permit, StateName};
use rustix::process::Signal;
use support::*;

/// The service is killed, and goes on as `second` says, between two looks of a manager whose
/// shim does not answer.
async fn unseen(second: &str) -> InstanceRecord {
    let mut bench = Bench::start().await;
    let first = bench.path("first");
    let text = format!(
        "if mkdir {0} 2> /dev/null; then touch {0}/up; exec sleep 100000; fi; {second}",
        first.display()
    );
    let program = bench.path("program");
    std::fs::write(&program, format!("#!/bin/sh\n{text}\n")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).unwrap();
    let mut service = spec("web.1", 1, &[program.to_str().unwrap()]);
    service.permit = Some(Permit {
        generation: Generation(2),
        expires_after_ms: None,
    });
    let pid = bench.run(&service).await.state.pid().unwrap();
    until("its first word", || first.join("up").exists().then_some(())).await;
    let shim = bench.shim("web.1");
    bench.kill_manager();
    send(shim, Signal::STOP);
    bench.start_manager().await;
    if second.is_empty() {
        std::fs::remove_file(&program).unwrap();
    }
    kill(pid);
    send(shim, Signal::CONT);
    gone(shim).await;
    let record = bench.state("web.1", 2, StateName::Failed).await;
    let before = record.previous_exit.as_ref().unwrap();
    assert_eq!(
        (before.generation, before.pid, before.result),
        (Generation(1), pid, ExitResult::Signal)
    );
    assert_eq!(record.restarts, 1);
    record
}

#[tokio::test]
async fn its_end_is_that_of_the_generation_on_its_record() {
    let record = unseen("exit 5").await;
    let exit = record.state.exit().unwrap();
    assert_eq!(
        (exit.generation, exit.result),
        (Generation(2), ExitResult::ExitCode)
    );
}

#[tokio::test]
async fn a_successor_that_could_not_be_started_is_told_as_that() {
    let record = unseen("").await;
    assert_eq!(record.state.exit(), None);
}
