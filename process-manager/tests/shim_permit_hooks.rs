//! A restart by permit of a service with hooks: they run in their order, as in
//! a restart by the supervisor, and no daemon is needed for it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod shim_support;

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::process::{
    ExitRecord, ExitResult, Hook, Permit, SpawnFailure, SpawnSpec, SpawnStep,
};
use blackhole_process_manager::shim::client::{
    ShimEvent, ShimPermit, attach, instance_lock_held, read_record,
};
use rustix::process::Signal;
use shim_support::{Rig, Running, end, line_of, lives, until};

const LONG: Duration = Duration::from_secs(60);

fn hook(script: &str, timeout: Duration) -> Option<Hook> {
    Some(Hook {
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        timeout_ms: u64::try_from(timeout.as_millis()).unwrap(),
    })
}

/// Spawns with a permit for the next generation. The service and its hooks see `RUN`.
async fn spawn(rig: &Rig, spec: &SpawnSpec) -> Running {
    let mut request = rig.request(spec);
    request.env.insert("RUN".into(), "1".into());
    request.permit = Some(ShimPermit {
        permit: Permit {
            generation: Generation(2),
            expires_after_ms: None,
        },
        env: BTreeMap::from([("RUN".to_owned(), "2".to_owned())]),
    });
    let (started, handle, events) = rig.server.spawn(&request).await.unwrap();
    Running {
        started,
        handle,
        events,
    }
}

/// A service that says which run it is, in its log and in `said.<run>`.
fn service(rig: &Rig) -> SpawnSpec {
    let said = rig.path("said").display().to_string();
    rig.script(&format!(
        "echo run $RUN; echo $RUN > {said}.$RUN.new; mv {said}.$RUN.new {said}.$RUN; exec sleep 1000"
    ))
}

async fn not_restarted(running: &mut Running) -> (ExitRecord, SpawnFailure) {
    loop {
        match running.next().await {
            ShimEvent::NotRestarted { exit, failure, .. } => return (exit, failure),
            ShimEvent::Exited { .. } | ShimEvent::Gone => panic!("not told why"),
            ShimEvent::Restarted { .. } => panic!("it was started"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn they_run_in_their_order_while_nobody_listens() {
    let rig = Rig::new().await;
    let said = rig.path("said");
    let mut spec = service(&rig);
    let hooks = &mut spec.settings.hooks;
    hooks.before_start = hook("echo $BLACKHOLE_HOOK $RUN $BLACKHOLE_EXIT_SIGNAL", LONG);
    let wait = format!(
        "while ! test -e {}.$RUN; do sleep 0.01; done",
        said.display()
    );
    hooks.after_start = hook(
        &format!(
            "{wait}; echo $BLACKHOLE_HOOK $RUN $BLACKHOLE_PID; touch {}.up.$RUN",
            said.display()
        ),
        LONG,
    );
    hooks.before_stop = hook("echo never", LONG);
    hooks.after_exit = hook("echo $BLACKHOLE_HOOK $RUN $BLACKHOLE_EXIT_SIGNAL", LONG);
    // It has no effect here.
    spec.settings.standby = true;
    let running = spawn(&rig, &spec).await;
    let (pid, shim) = (running.started.pid, running.started.shim_pid);
    drop(running);
    until("the hook after the start", || {
        rig.path("said.up.1").exists().then_some(())
    })
    .await;
    end(pid, Signal::KILL);
    until("the successor's", || {
        rig.path("said.up.2").exists().then_some(())
    })
    .await;
    let attached = attach(&rig.dirs, &spec.instance).await.unwrap();
    let status = attached.status;
    assert_eq!((status.generation, status.restarts), (Generation(2), 1));
    assert_eq!(status.started.shim_pid, shim);
    let before = status.previous_exit.unwrap();
    assert_eq!(
        (before.generation, before.pid, before.result),
        (Generation(1), pid, ExitResult::Signal)
    );
    let record = read_record(&rig.folder(&spec)).unwrap().unwrap();
    assert_eq!(record.previous_exit, Some(before.clone()));
    assert_eq!((record.generation, &record.exit), (Generation(2), &None));
    let started = record.started.unwrap();
    assert!(before.ended_at <= started.started_at);
    let next = started.pid;
    attached.handle.kill(false).await.unwrap();
    until("its end", || {
        instance_lock_held(&rig.folder(&spec))
            .unwrap()
            .is_none()
            .then_some(())
    })
    .await;
    assert_eq!(
        rig.log(&spec),
        format!(
            "before_start 1\nrun 1\nafter_start 1 {pid}\nafter_exit 1 9\n\
             before_start 2\nrun 2\nafter_start 2 {next}\nafter_exit 2 9\n"
        )
    );
}

#[tokio::test]
async fn one_that_fails_before_the_successor_is_a_start_that_has_failed() {
    let rig = Rig::new().await;
    let mut spec = service(&rig);
    for (script, timeout, problem) in [
        ("[ $RUN = 1 ]", LONG, "exit code 1"),
        (
            "[ $RUN = 1 ] || sleep 1000",
            Duration::from_millis(300),
            "killed, since it was not through within 300 ms",
        ),
    ] {
        spec.settings.hooks.before_start = hook(script, timeout);
        let _ = fs::remove_file(rig.path("said.1"));
        let mut running = spawn(&rig, &spec).await;
        line_of(&rig.path("said.1")).await;
        end(running.started.pid, Signal::KILL);
        let (exit, failure) = not_restarted(&mut running).await;
        assert_eq!(
            (exit.generation, exit.result),
            (Generation(1), ExitResult::Signal)
        );
        assert_eq!(failure.step, SpawnStep::PrepareEnvironment);
        assert_eq!(
            failure.operation,
            format!("run hook before_start: {problem}")
        );
        let folder = rig.folder(&spec);
        assert_eq!(instance_lock_held(&folder).unwrap(), None);
        let record = read_record(&folder).unwrap().unwrap();
        assert_eq!(
            (record.generation, record.failure),
            (Generation(2), Some(failure))
        );
        assert_eq!(record.previous_exit, Some(exit));
        assert!(!rig.path("said.2").exists());
    }
}

#[tokio::test]
async fn that_it_has_ended_is_told_before_them_also_to_who_comes_then() {
    let rig = Rig::new().await;
    let mut spec = service(&rig);
    let (mut running, _) = in_the_hook(&rig, &mut spec).await;
    while running.next().await != ShimEvent::Ended {}
    let mut attached = attach(&rig.dirs, &spec.instance).await.unwrap();
    assert_eq!(attached.status.generation, Generation(1));
    assert_eq!(attached.events.next().await, Some(ShimEvent::Ended));
    attached.handle.kill(false).await.unwrap();
    assert_eq!(running.exited().await.result, ExitResult::Signal);
}

/// A service whose next start waits in its first hook, and the pid of that.
async fn in_the_hook(rig: &Rig, spec: &mut SpawnSpec) -> (Running, u32) {
    let pid = rig.path("hook");
    let script = format!(
        "[ $RUN = 1 ] || {{ echo $$ > {0}.new; mv {0}.new {0}; sleep 1000 & wait; }}",
        pid.display()
    );
    spec.settings.hooks.before_start = hook(&script, LONG);
    let running = spawn(rig, spec).await;
    line_of(&rig.path("said.1")).await;
    end(running.started.pid, Signal::KILL);
    let hook = line_of(&pid).await.parse().unwrap();
    (running, hook)
}

#[tokio::test]
async fn a_stop_or_a_permit_taken_back_ends_the_hook_and_nothing_is_started() {
    for taken_back in [false, true] {
        let rig = Rig::new().await;
        let mut spec = service(&rig);
        let (mut running, hook) = in_the_hook(&rig, &mut spec).await;
        match taken_back {
            true => running.handle.permit(Generation(1), None).await.unwrap(),
            false => running.stop(LONG).await,
        }
        let exit = running.exited().await;
        assert_eq!(
            (exit.generation, exit.result),
            (Generation(1), ExitResult::Signal)
        );
        assert!(!lives(hook));
        assert!(!rig.path("said.2").exists());
    }
}

#[tokio::test]
async fn a_shim_that_is_lost_over_the_hook_has_noted_the_end() {
    let rig = Rig::new().await;
    let mut spec = service(&rig);
    let (running, _) = in_the_hook(&rig, &mut spec).await;
    end(running.started.shim_pid, Signal::KILL);
    let folder = rig.folder(&spec);
    until("its end", || {
        instance_lock_held(&folder).unwrap().is_none().then_some(())
    })
    .await;
    let record = read_record(&folder).unwrap().unwrap();
    let exit = record.exit.unwrap();
    assert_eq!(
        (exit.generation, exit.result),
        (Generation(1), ExitResult::Signal)
    );
    blackhole_process_manager::shim::sweep(&record.socket, record.grant.as_ref());
}
