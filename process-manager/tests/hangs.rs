//! What hangs (a fork server, a shim that is slow to greet) keeps nobody for
//! ever: it is waited for, and then done without.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use blackhole_bus_schema::process::{ExitResult, Failure, ProcessState, Spawn, StateName};
use blackhole_process_manager::host;
use rustix::process::Signal;
use support::{Bench, LIMIT, gone, name, runs, script, send, sleeper, until};

/// Manager after manager may come and go while a shim does not answer.
async fn adopted_without_an_answer() -> (Bench, u32, std::path::PathBuf) {
    let mut bench = Bench::start().await;
    let (ready, ended) = (bench.path("ready"), bench.path("ended"));
    let text = format!(
        "trap 'touch {1}; exit 0' TERM; touch {0}; while :; do sleep 0.02; done",
        ready.display(),
        ended.display()
    );
    let pid = bench.run(&script("web.1", 1, &text)).await.state.pid();
    until("the trap", || ready.exists().then_some(())).await;
    bench.kill_manager();
    send(bench.shim("web.1"), Signal::STOP);
    let records = bench.start_manager().await;
    assert_eq!(records[0].state.pid(), pid, "shown as its record says");
    (bench, pid.unwrap(), ended)
}

#[tokio::test]
async fn a_shim_that_was_slow_to_greet_is_held_later() {
    let (bench, pid, ended) = adopted_without_an_answer().await;
    send(bench.shim("web.1"), Signal::CONT);
    until("its shim to be held", || {
        bench
            .words()
            .contains("its shim answers again")
            .then_some(())
    })
    .await;
    let record = bench.stop("web.1", 1).await.unwrap();
    assert_eq!(record.state.exit().unwrap().result, ExitResult::Stopped);
    assert!(ended.exists(), "it had its grace");
    assert!(!runs(pid));
}

#[tokio::test]
async fn a_stop_reaches_a_shim_that_was_slow_to_greet() {
    let (bench, pid, ended) = adopted_without_an_answer().await;
    send(bench.shim("web.1"), Signal::CONT);
    let record = bench.stop("web.1", 1).await.unwrap();
    assert_eq!(record.state.exit().unwrap().result, ExitResult::Stopped);
    assert!(ended.exists(), "it had its grace");
    assert!(!runs(pid));
}

#[tokio::test]
async fn a_shim_that_never_greets_is_killed_by_a_stop() {
    let (bench, pid, ended) = adopted_without_an_answer().await;
    let record = bench.stop("web.1", 1).await.unwrap();
    assert_eq!(record.state.exit().unwrap().result, ExitResult::ShimLost);
    assert!(!ended.exists());
    gone(pid).await;
}

#[tokio::test]
async fn a_fork_server_that_hangs_is_replaced_and_what_waits_for_it_can_be_stopped() {
    // More than there are idle shims, and such as wait at a connection made ahead.
    const MANY: usize = 24;
    let bench = Bench::start().await;
    let lock = bench.fork_server_lock();
    let holder = || host::lock_holder(&lock).unwrap();
    let hung = until("a fork server", holder).await;
    send(hung, Signal::STOP);
    // The pool is used up, the rest waits.
    let mut asked = Vec::new();
    for index in 1..=MANY {
        let (link, spec) = (bench.link.clone(), sleeper(&format!("web.{index}"), 1));
        asked.push(tokio::spawn(async move {
            link.request(&Spawn { spec }, LIMIT).await.unwrap()
        }));
    }
    let waiting = loop {
        let records = bench.list().await;
        let in_state = |state| {
            let found = records.iter().filter(|one| one.state.name() == state);
            found
                .map(|one| one.instance.to_string())
                .collect::<Vec<_>>()
        };
        if in_state(StateName::Running).len() >= 4 && records.len() == MANY {
            // The last one that was asked for: nobody is left for it.
            break in_state(StateName::Spawn)
                .into_iter()
                .max_by_key(|name| name.rsplit('.').next().and_then(|n| n.parse::<u32>().ok()))
                .into_iter()
                .collect::<Vec<_>>();
        }
    };
    let stopped = bench.stop(&waiting[0], 1).await.unwrap();
    let cancelled = ProcessState::Failed {
        failure: Failure::Cancelled,
    };
    assert_eq!(stopped.state, cancelled);
    assert_eq!(holder(), Some(hung), "it was not waited for");
    for asked in asked {
        let record = asked.await.unwrap();
        match record.instance == name(&waiting[0]) {
            true => assert_eq!(record.state, cancelled),
            false => assert_eq!(record.state.name(), StateName::Running, "{record:#?}"),
        }
    }
    gone(hung).await;
    let after = bench.run(&sleeper(&waiting[0], 2)).await;
    assert!(after.state.pid().is_some());
}
