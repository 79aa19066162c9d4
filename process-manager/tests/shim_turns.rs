//! Turns of a service's life: hooks, reloads, and what it says over NOTIFY_SOCKET
//! that its shim acts upon.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod shim_support;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use blackhole_bus_schema::health::{Probe, ProbeCheck};
use blackhole_bus_schema::process::{
    ExitResult, ExitStatus, Hook, ReloadAction, ReloadSpec, SpawnSpec, SpawnStep,
};
use blackhole_process_manager::shim::client::{
    ClientError, ShimEvent, ShimEvents, StopRequest, attach, instance_lock_held, read_record,
};
use shim_support::{Rig, end, line_of, lives, tagged, until};

fn hook(script: &str, timeout: Duration) -> Option<Hook> {
    Some(Hook {
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        timeout_ms: u64::try_from(timeout.as_millis()).unwrap(),
    })
}

const LONG: Duration = Duration::from_secs(60);

/// A command of a shell that says something over NOTIFY_SOCKET.
fn say(text: &str) -> String {
    let program = std::env::current_exe().unwrap();
    let program = program.display();
    format!("BH_SAY=\"{text}\" {program} --ignored --exact speak > /dev/null")
}

#[test]
#[ignore = "a part of services of other tests"]
fn speak() {
    let path = std::env::var("NOTIFY_SOCKET").unwrap();
    let text = std::env::var("BH_SAY").unwrap().replace("\\n", "\n");
    let socket = UnixDatagram::unbound().unwrap();
    socket.send_to(text.as_bytes(), path).unwrap();
}

#[tokio::test]
async fn hooks_run_at_their_turns_in_the_services_context() {
    let rig = Rig::new().await;
    let mut spec = rig.script("echo service $0; trap 'echo asked to end; exit 0' TERM; touch up; while :; do sleep 0.01; done");
    spec.env.insert("A".into(), "own".into());
    let dir = rig.path("dir");
    fs::create_dir(&dir).unwrap();
    spec.working_dir = Some(dir.display().to_string());
    let hooks = &mut spec.settings.hooks;
    hooks.before_start = hook("echo $BLACKHOLE_HOOK $A; pwd", LONG);
    hooks.after_start = hook(
        "until [ -e up ]; do sleep 0.01; done; echo $BLACKHOLE_HOOK $BLACKHOLE_PID; touch begun",
        LONG,
    );
    hooks.before_stop = hook("echo $BLACKHOLE_HOOK", LONG);
    hooks.after_exit = hook(
        "echo $BLACKHOLE_HOOK $BLACKHOLE_EXIT_RESULT $BLACKHOLE_EXIT_CODE",
        LONG,
    );
    let mut running = rig.spawn(&spec).await;
    let pid = running.started.pid;
    until("the hook after the start", || {
        rig.log(&spec).contains("after_start").then_some(())
    })
    .await;
    running.stop(LONG).await;
    let exit = running.exited().await;
    assert_eq!(exit.status, ExitStatus::Exited { code: 0 });
    assert_eq!(exit.result, ExitResult::Stopped);
    let expected = format!(
        "before_start own\n{}\nservice /bin/sh\nafter_start {pid}\nbefore_stop\nasked to end\n\
         after_exit stopped 0\n",
        dir.display()
    );
    assert_eq!(rig.log(&spec), expected);
    let record = read_record(&rig.folder(&spec)).unwrap().unwrap();
    assert_eq!(record.exit, Some(exit));
}

#[tokio::test]
async fn a_service_whose_first_hook_fails_does_not_start() {
    let rig = Rig::new().await;
    let mut spec = rig.script("echo never");
    spec.settings.hooks.before_start = hook("echo no disk >&2; exit 3", LONG);
    let failure = rig.fail(&spec).await;
    assert_eq!(failure.step, SpawnStep::PrepareEnvironment);
    assert_eq!(failure.operation, "run hook before_start: exit code 3");
    assert_eq!(rig.log(&spec), "no disk\n");
    let record = read_record(&rig.folder(&spec)).unwrap().unwrap();
    assert_eq!(record.failure, Some(failure));

    spec.settings.hooks.before_start = Some(Hook {
        command: vec!["/no/such/hook".into()],
        timeout_ms: 1000,
    });
    let failure = rig.fail(&spec).await;
    assert_eq!(failure.errno, libc::ENOENT);
    assert!(
        failure
            .operation
            .starts_with("run hook before_start: exec /no/such/hook"),
        "{failure}"
    );
}

#[tokio::test]
async fn a_hook_that_takes_too_long_is_killed_with_all_it_started() {
    let rig = Rig::new().await;
    let tag = rig.path("tag");
    let mut spec = rig.script("echo never");
    spec.env.insert("BH_TEST".into(), tag.display().to_string());
    let script = "setsid sleep 1000 & sleep 1000 & sleep 1000";
    spec.settings.hooks.before_start = hook(script, Duration::from_millis(300));
    let failure = rig.fail(&spec).await;
    assert_eq!(
        failure.operation,
        "run hook before_start: killed, since it was not through within 300 ms"
    );
    // Those in another session have their parent's fate: they are below it.
    until("nothing of it is left", || {
        tagged(&tag).is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_hook_whose_spawn_nobody_waits_for_any_more_goes_without_a_trace() {
    let rig = Rig::new().await;
    let tag = rig.path("tag");
    let mut spec = rig.script("echo never");
    spec.env.insert("BH_TEST".into(), tag.display().to_string());
    spec.settings.hooks.before_start = hook("sleep 1000", LONG);
    let request = rig.request(&spec);
    {
        let mut spawn = std::pin::pin!(rig.server.spawn(&request));
        let begun = until("the hook runs", || (!tagged(&tag).is_empty()).then_some(()));
        tokio::select! {
            _ = &mut spawn => panic!("it started"),
            () = begun => {}
        }
    }
    until("the hook is gone", || tagged(&tag).is_empty().then_some(())).await;
    let folder = rig.folder(&spec);
    until("the lock is free", || {
        instance_lock_held(&folder).unwrap().is_none().then_some(())
    })
    .await;
    assert_eq!(read_record(&folder).unwrap(), None);
    // And the same can be started.
    spec.settings.hooks.before_start = None;
    rig.spawn(&spec).await.exited().await;
}

#[tokio::test]
async fn hooks_that_fail_beside_a_service_are_told_and_change_nothing() {
    let rig = Rig::new().await;
    let mut spec = rig.script("exec sleep 1000");
    spec.settings.hooks.after_start = hook("exit 7", LONG);
    spec.settings.hooks.before_stop = hook("sleep 1000", Duration::from_millis(200));
    let mut running = rig.spawn(&spec).await;
    let told = loop {
        if let ShimEvent::Hook { hook, problem } = running.next().await {
            break (hook, problem);
        }
    };
    assert_eq!(told, ("after_start".into(), Some("exit code 7".into())));
    running.stop(LONG).await;
    let exit = running.exited().await;
    assert_eq!(
        exit.status,
        ExitStatus::Signaled {
            signal: 15,
            core_dumped: false
        }
    );
}

fn reload(action: ReloadAction, notify: bool, timeout: Duration) -> Option<ReloadSpec> {
    Some(ReloadSpec {
        action,
        notify,
        timeout_ms: u64::try_from(timeout.as_millis()).unwrap(),
    })
}

fn command(script: &str) -> ReloadAction {
    ReloadAction::Command(vec!["/bin/sh".into(), "-c".into(), script.into()])
}

#[tokio::test]
async fn a_reload_is_a_signal() {
    let rig = Rig::new().await;
    let said = rig.path("said");
    let mut spec = rig.script(&format!(
        "trap 'echo again > {}' HUP; echo up; while :; do sleep 0.01; done",
        said.display()
    ));
    let running = rig.spawn(&spec).await;
    match running.handle.reload(LONG).await {
        Err(ClientError::Refused(problem)) => assert_eq!(problem, "it has no `reload`"),
        other => panic!("{other:?}"),
    }
    until("it is up", || rig.log(&spec).contains("up").then_some(())).await;
    running.handle.kill(false).await.unwrap();
    let mut running = running;
    running.exited().await;
    spec.generation = spec.generation.next();
    spec.settings.reload = reload(ReloadAction::Signal(1), false, LONG);
    let running = rig.spawn(&spec).await;
    until("it is up", || {
        rig.log(&spec).contains("up\nup").then_some(())
    })
    .await;
    running.handle.reload(LONG).await.unwrap();
    assert_eq!(line_of(&said).await, "again");
}

#[tokio::test]
async fn a_reload_by_command_is_through_when_that_is() {
    let rig = Rig::new().await;
    let mut spec = rig.script("exec sleep 1000");
    spec.settings.reload = reload(command("echo $BLACKHOLE_HOOK $BLACKHOLE_PID"), false, LONG);
    let mut running = rig.spawn(&spec).await;
    running.handle.reload(LONG).await.unwrap();
    let expected = format!("reload {}\n", running.started.pid);
    until("its output", || (rig.log(&spec) == expected).then_some(())).await;
    running.stop(LONG).await;
    running.exited().await;
    for (script, timeout, words) in [
        ("exit 4", LONG, "its reload command failed: exit code 4"),
        ("sleep 1000", Duration::from_millis(200), "within 200 ms"),
    ] {
        spec.generation = spec.generation.next();
        spec.settings.reload = reload(command(script), false, timeout);
        let mut running = rig.spawn(&spec).await;
        let error = running.handle.reload(LONG).await.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert!(lives(running.started.pid));
        running.stop(LONG).await;
        running.exited().await;
    }
}

#[tokio::test]
async fn a_reload_waits_until_the_service_is_ready_again() {
    let rig = Rig::new().await;
    let mut spec = rig.script("exec sleep 1000");
    let script = format!("{}; sleep 0.1; {}", say("RELOADING=1"), say("READY=1"));
    spec.settings.reload = reload(command(&script), true, LONG);
    let running = rig.spawn(&spec).await;
    running.handle.reload(LONG).await.unwrap();
    let status = running.handle.status().await.unwrap();
    assert!(status.notify.ready && !status.notify.reloading);
    running.handle.kill(false).await.unwrap();
    let mut running = running;
    running.exited().await;
    // One that never is; an earlier word does not count.
    spec.generation = spec.generation.next();
    let script = say("RELOADING=1\\nMONOTONIC_USEC=1\\nREADY=1");
    spec.settings.reload = reload(command(&script), true, Duration::from_millis(500));
    let running = rig.spawn(&spec).await;
    let error = running.handle.reload(LONG).await.unwrap_err().to_string();
    assert!(error.contains("not ready again within 500 ms"), "{error}");
}

#[tokio::test]
async fn a_service_knows_its_watchdog_and_can_call_it() {
    let rig = Rig::new().await;
    let script = format!(
        "echo $WATCHDOG_USEC; [ $WATCHDOG_PID = $$ ] && echo mine; {}; exec sleep 1000",
        say("WATCHDOG=trigger")
    );
    let mut spec = rig.script(&script);
    spec.probes.liveness = Some(Probe {
        check: ProbeCheck::Notify,
        initial_delay_ms: 0,
        interval_ms: 1500,
        timeout_ms: 1000,
        failure_threshold: 3,
        success_threshold: 1,
    });
    let mut running = rig.spawn(&spec).await;
    let exit = running.exited().await;
    assert_eq!(exit.result, ExitResult::Unhealthy);
    assert_eq!(rig.log(&spec), "1500000\nmine\n");
}

#[tokio::test]
async fn the_main_process_is_the_one_that_the_service_names() {
    let rig = Rig::new().await;
    let said = rig.path("said");
    let daemon = format!(
        "trap 'exit 9' TERM; echo up > {}; while :; do sleep 0.01; done",
        said.display()
    );
    let script = format!("sh -c \"{daemon}\" & {}; exit 0", say("MAINPID=$!"));
    let spec: SpawnSpec = rig.script(&script);
    let mut running = rig.spawn(&spec).await;
    let first = running.started.pid;
    line_of(&said).await;
    until("the first process is gone", || {
        (!lives(first)).then_some(())
    })
    .await;
    let status = running.handle.status().await.unwrap();
    let main = status.notify.main_pid.unwrap();
    assert!(main != first && lives(main));
    running.stop(LONG).await;
    let exit = running.exited().await;
    assert_eq!(
        (exit.status, exit.result),
        (ExitStatus::Exited { code: 9 }, ExitResult::Stopped)
    );
}

/// The first process has gone, and the main one is the child of a helper that stays
/// and learns of its end by itself.
fn with_a_helper(rig: &Rig, main: &str) -> String {
    let said = rig.path("named");
    let said = said.display();
    let named = say("MAINPID=$!\\nREADY=1");
    let helper = format!("({main}) & {named}; touch {said}; wait; exec sleep 1000");
    format!("({helper}) & while [ ! -e {said} ]; do sleep 0.01; done; exit 0")
}

#[tokio::test]
async fn the_end_of_a_main_process_that_has_another_parent_is_seen() {
    let rig = Rig::new().await;
    let go = rig.path("go");
    let main = format!(
        "while [ ! -e {} ]; do sleep 0.01; done; exit 3",
        go.display()
    );
    let mut running = rig.spawn(&rig.script(&with_a_helper(&rig, &main))).await;
    let first = running.started.pid;
    until("the first process is gone", || {
        (!lives(first)).then_some(())
    })
    .await;
    while !running.handle.status().await.unwrap().notify.ready {}
    fs::write(&go, "").unwrap();
    let exit = running.exited().await;
    // How it ended its parent alone knows; that it was no success is sure.
    assert_eq!(
        (exit.status, exit.result),
        (ExitStatus::Unknown, ExitResult::Signal)
    );
    assert!(exit.killed_leftovers > 0, "the helper");
}

#[tokio::test]
async fn a_stop_that_finds_nobody_comes_to_its_end() {
    let rig = Rig::new().await;
    let mut running = rig
        .spawn(&rig.script(&with_a_helper(&rig, "exec sleep 1000")))
        .await;
    while !running.handle.status().await.unwrap().notify.ready {}
    let main = running.handle.status().await.unwrap().notify.main_pid;
    end(main.unwrap(), rustix::process::Signal::KILL);
    let _ = running.handle.stop(StopRequest::default()).await;
    running.exited().await;
}

#[tokio::test]
async fn a_process_that_is_not_the_services_is_not_its_main_one() {
    let rig = Rig::new().await;
    let said = rig.path("said");
    let own = std::process::id();
    let script = format!(
        "{}; {}; echo done > {}; exec sleep 1000",
        say(&format!("MAINPID={own}")),
        say("READY=1"),
        said.display()
    );
    let mut running = rig.spawn(&rig.script(&script)).await;
    line_of(&said).await;
    let status = loop {
        let status = running.handle.status().await.unwrap();
        if status.notify.ready {
            break status;
        }
    };
    assert_eq!(status.notify.main_pid, None);
    running.stop(LONG).await;
    assert_eq!(running.exited().await.result, ExitResult::Stopped);
}

#[tokio::test]
async fn a_service_that_asks_for_time_without_end_is_killed_all_the_same() {
    let rig = Rig::new().await;
    let said = rig.path("said");
    // For thirty years.
    let script = format!(
        "trap '{}' TERM; echo up > {}; while :; do sleep 0.01; done",
        say("EXTEND_TIMEOUT_USEC=1000000000000000"),
        said.display()
    );
    let mut running = rig.spawn(&rig.script(&script)).await;
    line_of(&said).await;
    running.stop(Duration::from_millis(200)).await;
    assert_eq!(running.exited().await.result, ExitResult::StopTimeout);
}

#[tokio::test]
async fn a_service_that_comes_up_slowly_asks_for_time_and_who_comes_later_is_told_as_well() {
    let rig = Rig::new().await;
    let script = format!("{}; exec sleep 1000", say("EXTEND_TIMEOUT_USEC=3600000000"));
    let spec = rig.script(&script);
    let extended = async |events: &mut ShimEvents| loop {
        match events.next().await.unwrap() {
            ShimEvent::Extended(left_ms) => break Duration::from_millis(left_ms),
            ShimEvent::Notify(_) => {}
            other => panic!("{other:?}"),
        }
    };
    let mut running = rig.spawn(&spec).await;
    let hour = Duration::from_secs(3600);
    assert!(extended(&mut running.events).await <= hour);
    drop(running);
    let mut attached = attach(&rig.dirs, &spec.instance).await.unwrap();
    let left = extended(&mut attached.events).await;
    assert!(!left.is_zero() && left <= hour);
    attached.handle.kill(false).await.unwrap();
}

#[tokio::test]
async fn a_service_that_ends_slowly_can_ask_for_time() {
    let rig = Rig::new().await;
    let said = rig.path("said");
    let script = format!(
        "trap '{}; sleep 1; exit 0' TERM; echo up > {}; while :; do sleep 0.01; done",
        say("EXTEND_TIMEOUT_USEC=60000000"),
        said.display()
    );
    let mut running = rig.spawn(&rig.script(&script)).await;
    line_of(&said).await;
    running.stop(Duration::from_millis(900)).await;
    let exit = running.exited().await;
    assert_eq!(
        (exit.status, exit.result),
        (ExitStatus::Exited { code: 0 }, ExitResult::Stopped)
    );
}
