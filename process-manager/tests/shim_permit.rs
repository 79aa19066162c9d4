//! A restart by permit: the shim starts the successor by itself.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod shim_support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::process::{ExitResult, ExitStatus, Permit, SpawnSpec};
use blackhole_process_manager::shim::client::{
    ShimEvent, ShimPermit, Started, attach, instance_lock_held, read_record,
};
use rustix::process::Signal;
use shim_support::{Rig, Running, end, line_of, lives, until};

fn permit(generation: u64, expires_after_ms: Option<u64>) -> ShimPermit {
    ShimPermit {
        permit: Permit {
            generation: Generation(generation),
            expires_after_ms,
        },
        env: BTreeMap::from([("RUN".to_owned(), generation.to_string())]),
    }
}

/// Spawns with a permit for the next generation. The service sees `RUN`.
async fn spawn(rig: &Rig, spec: &SpawnSpec, permit: Option<ShimPermit>) -> Running {
    let mut request = rig.request(spec);
    request.env.insert("RUN".into(), "1".into());
    request.permit = permit;
    let (started, handle, events) = rig.server.spawn(&request).await.unwrap();
    Running {
        started,
        handle,
        events,
    }
}

async fn restarted(running: &mut Running) -> (ExitResult, Generation, Started) {
    loop {
        match running.next().await {
            ShimEvent::Restarted {
                exit,
                generation,
                started,
                ..
            } => return (exit.result, generation, started),
            ShimEvent::Exited { exit, .. } => panic!("it ended: {exit:?}"),
            ShimEvent::Gone => panic!("the shim is gone"),
            _ => {}
        }
    }
}

/// A service that says which run it is, and stays.
fn service(rig: &Rig, said: &Path) -> SpawnSpec {
    rig.script(&format!(
        "echo run $RUN; echo $RUN > {0}.$RUN.new; mv {0}.$RUN.new {0}.$RUN; exec sleep 1000",
        said.display()
    ))
}

#[tokio::test]
async fn a_killed_service_is_succeeded_once_by_the_same_shim() {
    let rig = Rig::new().await;
    let said = rig.path("said");
    let spec = service(&rig, &said);
    let mut running = spawn(&rig, &spec, Some(permit(2, None))).await;
    line_of(&said.with_extension("1")).await;
    end(running.started.pid, Signal::KILL);
    let (result, generation, started) = restarted(&mut running).await;
    assert_eq!((result, generation), (ExitResult::Signal, Generation(2)));
    assert_eq!(started.shim_pid, running.started.shim_pid);
    assert_ne!(started.pid, running.started.pid);
    assert_eq!(
        line_of(&said.with_extension("2")).await,
        "2",
        "its own environment"
    );
    let record = read_record(&rig.folder(&spec)).unwrap().unwrap();
    assert_eq!((record.generation, record.restarts), (Generation(2), 1));
    let before = record.previous_exit.unwrap();
    assert_eq!(
        (before.generation, before.pid),
        (Generation(1), running.started.pid)
    );
    assert_eq!(record.started.unwrap().pid, started.pid);
    let status = running.handle.status().await.unwrap();
    assert_eq!((status.generation, status.restarts), (Generation(2), 1));
    // It is used up.
    end(started.pid, Signal::KILL);
    let exit = running.exited().await;
    assert_eq!(
        (exit.generation, exit.result),
        (Generation(2), ExitResult::Signal)
    );
    assert_eq!(rig.log(&spec), "run 1\nrun 2\n", "one log");
    let record = read_record(&rig.folder(&spec)).unwrap().unwrap();
    assert_eq!(record.exit.unwrap().generation, Generation(2));
}

#[tokio::test]
async fn what_was_made_ready_ahead_is_used_and_goes_with_the_shim() {
    let rig = Rig::new().await;
    let said = rig.path("said");
    let spec = service(&rig, &said);
    let mut running = spawn(&rig, &spec, Some(permit(2, None))).await;
    line_of(&said.with_extension("1")).await;
    // From then on the log is one of the files that are open.
    line_of(&rig.folder(&spec).join("log")).await;
    // Two pipes more than before: the successor is ready.
    let fds = format!("/proc/{}/fd", running.started.shim_pid);
    let before = fs::read_dir(&fds).unwrap().count();
    until("a successor made ready", || {
        (fs::read_dir(&fds).ok()?.count() >= before + 4).then_some(())
    })
    .await;
    end(running.started.pid, Signal::KILL);
    restarted(&mut running).await;
    line_of(&said.with_extension("2")).await;
    assert_eq!(fs::read_dir(&fds).unwrap().count(), before);
}

#[tokio::test]
async fn it_is_not_for_success_nor_for_stops_nor_for_ever() {
    let rig = Rig::new().await;
    // Success.
    let mut spec = rig.script("exit 3");
    spec.success_codes = vec![0, 3];
    let mut running = spawn(&rig, &spec, Some(permit(2, None))).await;
    assert_eq!(running.exited().await.result, ExitResult::Success);
    // A stop, also one that the service answers with a failure.
    spec = rig.script("trap 'exit 1' TERM; echo up > up; while :; do sleep 0.01; done");
    spec.working_dir = Some(rig.path("").display().to_string());
    spec.generation = Generation(3);
    let mut running = spawn(&rig, &spec, Some(permit(4, None))).await;
    line_of(&rig.path("up")).await;
    running.stop(Duration::from_secs(60)).await;
    assert_eq!(running.exited().await.result, ExitResult::Stopped);
    // A kill by a client.
    spec = rig.script("exec sleep 1000");
    spec.generation = Generation(5);
    let mut running = spawn(&rig, &spec, Some(permit(6, None))).await;
    running.handle.kill(true).await.unwrap();
    assert_eq!(running.exited().await.result, ExitResult::Unhealthy);
    // Expired.
    spec.generation = Generation(7);
    let mut running = spawn(&rig, &spec, Some(permit(8, Some(0)))).await;
    end(running.started.pid, Signal::KILL);
    assert_eq!(running.exited().await.generation, Generation(7));
}

#[tokio::test]
async fn it_can_be_taken_back_and_granted_later() {
    let rig = Rig::new().await;
    let said = rig.path("said");
    let spec = service(&rig, &said);
    let mut running = spawn(&rig, &spec, Some(permit(2, None))).await;
    let wrong = running.handle.permit(Generation(9), None).await;
    assert!(wrong.is_err(), "another generation");
    running.handle.permit(Generation(1), None).await.unwrap();
    // With the whole environment: the shim has forgotten the one of the spawn.
    let mut later = permit(2, None);
    later.env.insert("PATH".into(), "/usr/bin:/bin".into());
    running
        .handle
        .permit(Generation(1), Some(later))
        .await
        .unwrap();
    line_of(&said.with_extension("1")).await;
    end(running.started.pid, Signal::KILL);
    let (_, generation, started) = restarted(&mut running).await;
    assert_eq!(generation, Generation(2));
    line_of(&said.with_extension("2")).await;
    let past = running
        .handle
        .permit(Generation(2), Some(permit(2, None)))
        .await;
    assert!(past.is_err(), "a generation that has been");
    running
        .handle
        .permit(Generation(2), Some(permit(3, None)))
        .await
        .unwrap();
    running.handle.permit(Generation(2), None).await.unwrap();
    end(started.pid, Signal::KILL);
    assert_eq!(running.exited().await.generation, Generation(2));
}

#[tokio::test]
async fn nothing_of_the_one_before_is_left_when_the_next_begins() {
    let rig = Rig::new().await;
    let (child, seen) = (rig.path("child"), rig.path("seen"));
    let spec = rig.script(&format!(
        "if [ $RUN = 1 ]; then setsid sh -c 'trap \"\" TERM HUP; echo $$ > {0}; while :; do sleep 1; done' & \
         else kill -0 $(cat {0}) 2>/dev/null && echo alive > {1} || echo gone > {1}; fi; exec sleep 1000",
        child.display(),
        seen.display()
    ));
    let mut running = spawn(&rig, &spec, Some(permit(2, None))).await;
    let child: u32 = line_of(&child).await.parse().unwrap();
    end(running.started.pid, Signal::KILL);
    restarted(&mut running).await;
    assert_eq!(line_of(&seen).await, "gone");
    assert!(!lives(child));
}

#[tokio::test]
async fn a_successor_that_cannot_be_executed_ends_the_shim_and_both_are_told() {
    let rig = Rig::new().await;
    let program = rig.path("program");
    fs::copy("/bin/sleep", &program).unwrap();
    let spec = shim_support::spec("web.1", &[program.to_str().unwrap(), "1000"]);
    let mut running = spawn(&rig, &spec, Some(permit(2, None))).await;
    fs::remove_file(&program).unwrap();
    end(running.started.pid, Signal::KILL);
    loop {
        match running.next().await {
            ShimEvent::NotRestarted {
                exit,
                generation,
                failure,
            } => {
                assert_eq!(
                    (exit.generation, generation),
                    (Generation(1), Generation(2))
                );
                assert_eq!(failure.errno, 2, "{failure}");
                break;
            }
            ShimEvent::Exited { .. } | ShimEvent::Gone => panic!("not told why"),
            _ => {}
        }
    }
    let folder = rig.folder(&spec);
    assert_eq!(instance_lock_held(&folder).unwrap(), None);
    let record = read_record(&folder).unwrap().unwrap();
    assert_eq!(record.generation, Generation(2));
    assert_eq!(record.failure.unwrap().errno, 2);
    assert_eq!(record.previous_exit.unwrap().generation, Generation(1));
}

#[tokio::test]
async fn it_is_used_while_nobody_listens_and_found_afterwards() {
    let rig = Rig::new().await;
    let said = rig.path("said");
    let spec = service(&rig, &said);
    let running = spawn(&rig, &spec, Some(permit(2, None))).await;
    let (pid, shim) = (running.started.pid, running.started.shim_pid);
    drop(running);
    line_of(&said.with_extension("1")).await;
    end(pid, Signal::KILL);
    line_of(&said.with_extension("2")).await;
    let attached = attach(&rig.dirs, &spec.instance).await.unwrap();
    let status = attached.status;
    assert_eq!(
        (status.generation, status.started.shim_pid),
        (Generation(2), shim)
    );
    let before = status.previous_exit.unwrap();
    assert_eq!((before.generation, before.pid), (Generation(1), pid));
    assert!(matches!(
        before.status,
        ExitStatus::Signaled { signal: 9, .. }
    ));
    attached.handle.kill(false).await.unwrap();
}

/// The successor that waits as a process: a child of the shim that leads a session.
async fn that_waits(running: &Running) -> u32 {
    let shim = running.started.shim_pid;
    let children = format!("/proc/{shim}/task/{shim}/children");
    until("a successor that waits", || {
        let children = fs::read_to_string(&children).ok()?;
        children.split_whitespace().find_map(|child| {
            let pid: u32 = child.parse().ok()?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // After the name in parentheses: state, parent, group, session.
            let session = stat.rsplit_once(") ")?.1.split(' ').nth(3)?;
            (pid != running.started.pid && session == child).then_some(pid)
        })
    })
    .await
}

/// Something befalls the successor while it waits: the service comes back all the same, and
/// nothing but the service and its shim is there afterwards.
async fn comes_back_although(signal: Signal) -> (u32, u32) {
    let rig = Rig::new().await;
    let said = rig.path("said");
    let mut spec = service(&rig, &said);
    spec.settings.standby = true;
    let mut running = spawn(&rig, &spec, Some(permit(2, None))).await;
    line_of(&said.with_extension("1")).await;
    let waiting = that_waits(&running).await;
    let pid = rustix::process::Pid::from_raw(i32::try_from(waiting).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
    end(running.started.pid, Signal::KILL);
    let (_, generation, started) = restarted(&mut running).await;
    assert_eq!(generation, Generation(2));
    assert_eq!(line_of(&said.with_extension("2")).await, "2");
    let shim = running.started.shim_pid;
    let children = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap();
    assert_eq!(children.trim(), started.pid.to_string(), "no other child");
    running.stop(Duration::from_secs(60)).await;
    assert_eq!(running.exited().await.result, ExitResult::Stopped);
    (waiting, started.pid)
}

#[tokio::test]
async fn a_successor_that_waits_is_the_one_that_runs() {
    // One that is not there for signals that come while it waits.
    let (waiting, runs) = comes_back_although(Signal::TERM).await;
    assert_eq!(waiting, runs);
}

#[tokio::test]
async fn a_successor_that_was_killed_or_stopped_is_replaced() {
    for signal in [Signal::KILL, Signal::STOP] {
        let (waiting, runs) = comes_back_although(signal).await;
        assert_ne!(waiting, runs);
        assert!(!lives(waiting));
    }
}
