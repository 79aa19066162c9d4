//! A manager that comes back and finds what nobody expects.

// A test that cannot go on panics: that is its way to fail.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::process::{ExitResult, Permit, StateName};
use rustix::process::Signal;
use support::*;

use StateName::{Failed, Running, Terminated};

/// Puts a FIFO in the place of what stands at `path`.
fn fifo(path: &std::path::Path) {
    let _ = std::fs::remove_file(path);
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
}

/// A FIFO holds up whoever opens it like a file.
#[tokio::test]
async fn a_fifo_in_the_place_of_a_file_is_the_trouble_of_one_instance() {
    let mut bench = Bench::start().await;
    let mut pids = Vec::new();
    for name in ["good.1", "living.1"] {
        let pid = bench.run(&sleeper(name, 1)).await.state.pid();
        pids.push(pid.unwrap());
    }
    bench.run(&script("broken.1", 1, "exit 0")).await;
    bench.state("broken.1", 1, Terminated).await;
    bench.kill_manager();
    let instances = bench.dirs.state.join("instances");
    for instance in ["living.1", "broken.1", "owner.1"] {
        let folder = instances.join(instance);
        std::fs::create_dir_all(&folder).unwrap();
        for file in ["record", "record.new", "owner", "owner.new", "told", "log"] {
            fifo(&folder.join(file));
        }
        fifo(&folder.join("log.00000001"));
    }
    let records = bench.start_manager().await;
    for (name, pid) in ["good.1", "living.1"].into_iter().zip(&pids) {
        assert_eq!(find(&records, name).state.pid(), Some(*pid));
    }
    assert_eq!(find(&records, "broken.1").state.name(), Failed);
    let log = blackhole_bus_schema::process::ReadLog {
        instance: name("broken.1"),
        lines: 10,
        cursor: None,
        since: None,
        max_bytes: None,
    };
    assert_eq!(bench.request(&log).await.unwrap().lines.len(), 0);
    // What is there now is replaced with the next start.
    let pid = bench
        .run(&script("broken.1", 1, "echo said; exec sleep 1000"))
        .await;
    let pid = pid.state.pid().unwrap();
    bench.kill_manager();
    let records = bench.start_manager().await;
    assert_eq!(find(&records, "broken.1").state.pid(), Some(pid));
    bench.stop("broken.1", 1).await.unwrap();
    bench.stop("living.1", 1).await.unwrap();
}

/// Its shim hangs when the manager comes back, and has restarted it by permit before
/// it answers.
#[tokio::test]
async fn a_shim_that_used_its_permit_before_it_answered_is_met_again() {
    let mut bench = Bench::start().await;
    let mut service = sleeper("web.1", 1);
    service.permit = Some(Permit {
        generation: Generation(2),
        expires_after_ms: None,
    });
    let before = bench.run(&service).await.state.pid().unwrap();
    let shim = bench.shim("web.1");
    bench.kill_manager();
    send(shim, Signal::STOP);
    let records = bench.start_manager().await;
    assert_eq!(find(&records, "web.1").state.pid(), Some(before));
    kill(before);
    send(shim, Signal::CONT);
    let record = bench.state("web.1", 2, Running).await;
    let pid = record.state.pid().unwrap();
    assert_ne!(pid, before);
    assert_eq!(record.restarts, 1);
    // It is held like any other.
    let ended = bench.stop("web.1", 2).await.unwrap();
    assert_eq!(ended.state.exit().unwrap().result, ExitResult::Stopped);
    gone(pid).await;
}
