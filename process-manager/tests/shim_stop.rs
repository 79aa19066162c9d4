//! However a service ends, nothing of it is left.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod shim_support;

use std::time::Duration;

use blackhole_bus_schema::process::{ExitRecord, ExitResult, ExitStatus, StopSpec};
use blackhole_process_manager::shim::client::{ClientError, ShimEvent, StopRequest};
use rustix::process::{Pid, Signal, kill_process};
use shim_support::{Rig, Running, end, line_of, lives, tagged, until};

const LONG: Duration = Duration::from_secs(600);

/// A service with a child that ignores SIGTERM, and a grandchild that has left
/// for its own session and lost its parent.
async fn family(rig: &Rig, on_term: &str) -> (Running, u32, u32) {
    let (child, orphan) = (rig.path("child"), rig.path("orphan"));
    let mut spec = rig.script(&format!(
        "trap '{on_term}' TERM
         sh -c 'trap \"\" TERM; echo $$ > {}; while :; do sleep 1000; done' &
         setsid sh -c '(trap \"\" TERM HUP; sh -c \"echo \\$PPID > {}\"; while :; do sleep 1000; done) & exit'
         while :; do sleep 1000 & wait $!; done",
        child.display(),
        orphan.display(),
    ));
    spec.env
        .insert("BH_TEST".into(), rig.path("").display().to_string());
    let running = rig.spawn(&spec).await;
    let (child, orphan) = (line_of(&child).await, line_of(&orphan).await);
    (running, child.parse().unwrap(), orphan.parse().unwrap())
}

#[tokio::test]
async fn a_stop_within_the_grace_takes_what_ignores_it_along() {
    let rig = Rig::new().await;
    let (mut running, child, orphan) = family(&rig, "exit 5").await;
    assert!(lives(child) && lives(orphan));
    running.stop(LONG).await;
    assert_eq!(running.next().await, ShimEvent::Stopping);
    let exit = running.exited().await;
    assert_eq!(
        (exit.status, exit.result),
        (ExitStatus::Exited { code: 5 }, ExitResult::Stopped)
    );
    assert!(exit.killed_leftovers >= 2, "{exit:?}");
    assert!(!lives(child) && !lives(orphan));
    assert_eq!(tagged(&rig.path("")), Vec::<u32>::new());
}

#[tokio::test]
async fn when_the_grace_is_over_everything_is_killed() {
    let rig = Rig::new().await;
    let (mut running, child, orphan) = family(&rig, "").await;
    running.stop(Duration::from_millis(50)).await;
    let exit = running.exited().await;
    assert_eq!(exit.result, ExitResult::StopTimeout);
    assert_eq!(
        exit.status,
        ExitStatus::Signaled {
            signal: 9,
            core_dumped: false
        }
    );
    assert!(!lives(child) && !lives(orphan));
    assert_eq!(tagged(&rig.path("")), Vec::<u32>::new());
}

#[tokio::test]
async fn what_outlives_a_service_that_ends_by_itself_is_killed() {
    let rig = Rig::new().await;
    let (mut running, child, orphan) = family(&rig, "exit 0").await;
    running.handle.signal(15).await.unwrap();
    assert_eq!(running.next().await, ShimEvent::Stopping);
    let exit = running.exited().await;
    assert_eq!(
        exit.result,
        ExitResult::Success,
        "a signal that was sent for somebody is no stop"
    );
    assert!(!lives(child) && !lives(orphan));
}

#[tokio::test]
async fn a_kill_takes_the_whole_tree_at_once() {
    let rig = Rig::new().await;
    let (mut running, child, orphan) = family(&rig, "").await;
    running.handle.kill(false).await.unwrap();
    let exit = running.exited().await;
    assert_eq!(exit.result, ExitResult::Stopped);
    assert!(!lives(child) && !lives(orphan));
    match running.handle.kill(false).await {
        Err(ClientError::Closed) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_second_stop_can_only_shorten_the_grace() {
    let rig = Rig::new().await;
    let (mut running, ..) = family(&rig, "").await;
    running.stop(LONG).await;
    running.stop(Duration::from_millis(10)).await;
    running.stop(LONG).await;
    assert_eq!(running.exited().await.result, ExitResult::StopTimeout);
}

#[tokio::test]
async fn an_unhealthy_service_is_recorded_as_such() {
    let rig = Rig::new().await;
    let mut running = rig.spawn(&rig.script("exec sleep 1000")).await;
    let stop = StopRequest {
        unhealthy: true,
        ..StopRequest::default()
    };
    running.handle.stop(stop).await.unwrap();
    let exit = running.exited().await;
    assert_eq!(exit.result, ExitResult::Unhealthy);
    assert_eq!(
        exit.status,
        ExitStatus::Signaled {
            signal: 15,
            core_dumped: false
        }
    );
}

#[tokio::test]
async fn the_stop_signal_may_be_another_and_go_to_the_group() {
    let rig = Rig::new().await;
    let ready = rig.path("ready");
    let mut spec = rig.script(&format!(
        "trap 'exit 9' INT; (trap 'echo group; exit' INT; echo x > {}; while :; do sleep 0.01; done) & \
         while :; do wait; done",
        ready.display()
    ));
    spec.stop = StopSpec {
        signal: 2,
        grace_ms: 600_000,
    };
    let mut running = rig.spawn(&spec).await;
    line_of(&ready).await;
    let stop = StopRequest {
        process_group: true,
        ..StopRequest::default()
    };
    running.handle.stop(stop).await.unwrap();
    let exit = running.exited().await;
    assert_eq!(exit.result, ExitResult::Stopped);
}

#[tokio::test]
async fn a_stopped_process_gets_its_stop() {
    let rig = Rig::new().await;
    let mut running = rig.spawn(&rig.script("exec sleep 1000")).await;
    running.handle.signal(19).await.unwrap();
    let stat = format!("/proc/{}/stat", running.started.pid);
    until("stopped", || {
        std::fs::read_to_string(&stat)
            .unwrap()
            .contains(") T ")
            .then_some(())
    })
    .await;
    running.stop(LONG).await;
    assert_eq!(running.exited().await.result, ExitResult::Stopped);
}

#[tokio::test]
async fn a_crash_is_a_signal_and_a_stop_that_comes_late_changes_nothing() {
    let rig = Rig::new().await;
    let mut running = rig.spawn(&rig.script("exec sleep 1000")).await;
    match running.handle.signal(99).await {
        Err(ClientError::Refused(text)) => assert!(text.contains("99"), "{text}"),
        other => panic!("{other:?}"),
    }
    running.handle.signal(6).await.unwrap();
    // It may be answered or find nobody; the record is the crash's in both cases
    // or the stop's when it came first: never both.
    let late = running.handle.stop(StopRequest::default()).await;
    let exit = running.exited().await;
    let ExitStatus::Signaled { signal, .. } = exit.status else {
        panic!("{exit:?}")
    };
    match exit.result {
        ExitResult::Signal => assert_eq!(signal, 6),
        ExitResult::Stopped => assert!(late.is_ok() && [6, 15].contains(&signal)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_terminated_shim_stops_its_service_in_order() {
    let rig = Rig::new().await;
    let ready = rig.path("ready");
    let script = format!(
        "trap 'exit 0' TERM; echo x > {}; while :; do sleep 0.01; done",
        ready.display()
    );
    let mut running = rig.spawn(&rig.script(&script)).await;
    line_of(&ready).await;
    end(running.started.shim_pid, Signal::TERM);
    let exit = running.exited().await;
    assert_eq!(
        (exit.status, exit.result),
        (ExitStatus::Exited { code: 0 }, ExitResult::Stopped)
    );
}

/// How a service ended of `signal` whose shim, which could not see it, was terminated right after.
async fn ended_before_its_shim(signal: Signal) -> ExitRecord {
    let rig = Rig::new().await;
    let mut running = rig.spawn(&rig.script("exec sleep 1000")).await;
    let (shim, service) = (running.started.shim_pid, running.started.pid);
    let send = |pid: u32, signal| {
        let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    };
    send(shim, Signal::STOP);
    // Returns when it has ended; its parent does not know yet.
    end(service, signal);
    send(shim, Signal::TERM);
    send(shim, Signal::CONT);
    let exit = running.exited().await;
    assert!(
        matches!(exit.status, ExitStatus::Signaled { signal: by, .. } if by == signal.as_raw()),
        "{exit:?}"
    );
    assert!(!lives(service));
    exit
}

/// While the host goes down both get their signal at once: the record tells the stop,
/// whichever of them is noticed first, and nobody starts the service again.
#[tokio::test]
async fn a_shim_that_is_terminated_together_with_its_service_has_stopped_it() {
    let exit = ended_before_its_shim(Signal::TERM).await;
    assert_eq!(exit.result, ExitResult::Stopped);
}

/// A service that had failed by itself has failed: that is what is told.
#[tokio::test]
async fn a_crash_before_its_shim_is_terminated_is_a_crash() {
    let exit = ended_before_its_shim(Signal::ABORT).await;
    assert!(exit.result.is_failure(), "{exit:?}");
}
