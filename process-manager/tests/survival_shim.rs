//! Shims and fork servers that are killed, at any step: nothing of their
//! instance is left, it has one outcome, and the next generation starts.

// A test that cannot go on panics: that is its way to fail.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::Duration;

use blackhole_bus_schema::process::{
    ExitResult, Hook, InstanceRecord, ProcessState, Spawn, SpawnSpec, StateName,
};
use blackhole_process_manager::host;
use blackhole_process_manager::shim::client::instance_lock_held;
use rustix::process::Signal;
use support::*;

use StateName::{Failed, Running};

fn hook(script: &str) -> Option<Hook> {
    Some(Hook {
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        timeout_ms: 60_000,
    })
}

/// Waits for a file that a service or a hook makes.
async fn made(bench: &Bench, file: &str) {
    let path = bench.path(file);
    until(file, || path.exists().then_some(())).await;
}

/// Kills the shim of `web.1`, and waits for its end.
async fn kill_shim(bench: &Bench) {
    let shim = bench.shim("web.1");
    kill(shim);
    gone(shim).await;
}

/// Nothing of `web.1` runs.
async fn nothing_left(bench: &Bench) {
    until("nothing of it to be left", || {
        members(&bench.dirs.run, "web.1").is_empty().then_some(())
    })
    .await;
}

/// The next generation starts and stops as if nothing had been.
async fn goes_on(bench: &Bench, generation: u64) {
    bench.run(&sleeper("web.1", generation)).await;
    let ended = bench.stop("web.1", generation).await.unwrap();
    assert_eq!(ended.state.exit().unwrap().result, ExitResult::Stopped);
    nothing_left(bench).await;
}

fn result(record: &InstanceRecord) -> ExitResult {
    record.state.exit().unwrap().result
}

#[tokio::test]
async fn killed_while_the_hook_before_the_start_runs() {
    let bench = Bench::start().await;
    let mut service = sleeper("web.1", 1);
    let begun = bench.path("begun");
    // The first one and its child would run for ever; the second time it is through.
    service.settings.hooks.before_start = hook(&format!(
        "[ -e {0} ] && exit 0; setsid sleep 100000 & touch {0}; sleep 100000",
        begun.display()
    ));
    let (link, spec) = (bench.link.clone(), service);
    let asked = tokio::spawn(async move { link.request(&Spawn { spec }, LIMIT).await });
    made(&bench, "begun").await;
    let before = members(&bench.dirs.run, "web.1");
    assert!(before.len() >= 2, "{before:?}");
    kill_shim(&bench).await;
    // The spawn is tried once more, with another shim.
    let record = asked.await.unwrap().unwrap();
    assert_eq!(record.state.name(), Running, "{record:#?}");
    let own: Vec<u32> = record.state.pid().into_iter().collect();
    until("the first hook and its child to be gone", || {
        (members(&bench.dirs.run, "web.1") == own).then_some(())
    })
    .await;
    bench.stop("web.1", 1).await.unwrap();
    goes_on(&bench, 2).await;
}

#[tokio::test]
async fn killed_while_its_service_is_being_stopped() {
    let bench = Bench::start().await;
    let text = format!(
        "(trap '' TERM; setsid sleep 100000 & sleep 100000) & trap 'touch {0}' TERM; touch {0}.up; \
         while :; do sleep 0.01; done",
        bench.path("asked").display()
    );
    bench.run(&script("web.1", 1, &text)).await;
    made(&bench, "asked.up").await;
    let link = bench.link.clone();
    let asked = tokio::spawn(async move { link.request(&stop("web.1", 1), LIMIT).await });
    made(&bench, "asked").await;
    kill_shim(&bench).await;
    let ended = asked.await.unwrap().unwrap();
    assert_eq!(
        (result(&ended), ended.state.name()),
        (ExitResult::ShimLost, Failed)
    );
    nothing_left(&bench).await;
    goes_on(&bench, 2).await;
}

#[tokio::test]
async fn killed_while_the_hook_after_the_end_runs() {
    let mut bench = Bench::start().await;
    let mut service = script("web.1", 1, "exit 3");
    let begun = bench.path("begun").display().to_string();
    service.settings.hooks.after_exit = hook(&format!(
        "setsid sleep 100000 & touch {begun}; sleep 100000"
    ));
    bench.spawn(&service).await.unwrap();
    made(&bench, "begun").await;
    kill_shim(&bench).await;
    let ended = bench.state("web.1", 1, Failed).await;
    // Its end had been seen, and is on record or is not: one of the two, once.
    assert!(
        [ExitResult::ExitCode, ExitResult::ShimLost].contains(&result(&ended)),
        "{ended:#?}"
    );
    nothing_left(&bench).await;
    bench.settle().await;
    let ends = bench.passed("web.1");
    let ends = ends.iter().filter(|(_, to, _)| *to == Failed).count();
    assert_eq!(ends, 1);
    goes_on(&bench, 2).await;
}

#[tokio::test]
async fn killed_right_after_a_restart_by_permit() {
    let mut bench = Bench::start().await;
    let mut service = sleeper("web.1", 1);
    service.permit = Some(blackhole_bus_schema::process::Permit {
        generation: blackhole_bus_schema::names::Generation(2),
        expires_after_ms: None,
    });
    let first = bench.run(&service).await.state.pid().unwrap();
    let shim = bench.shim("web.1");
    kill(first);
    until("the successor", || {
        let members = members(&bench.dirs.run, "web.1");
        (!members.is_empty() && !members.contains(&first)).then_some(())
    })
    .await;
    kill(shim);
    let ended = bench.state("web.1", 2, Failed).await;
    assert_eq!(result(&ended), ExitResult::ShimLost);
    nothing_left(&bench).await;
    goes_on(&bench, 3).await;
}

/// A shim that is killed at any moment from the lock on.
#[tokio::test]
async fn killed_at_any_moment_of_a_spawn() {
    let mut bench = Bench::start().await;
    let (mut ran, mut lost) = (0, 0);
    for generation in 1..=12_u64 {
        let (link, spec) = (bench.link.clone(), sleeper("web.1", generation));
        let asked = tokio::spawn(async move { link.request(&Spawn { spec }, LIMIT).await });
        let folder = bench.dirs.instance(&name("web.1"));
        let shim = until("a shim", || instance_lock_held(&folder).unwrap()).await;
        spin(Duration::from_micros(150 * (generation - 1)));
        kill(shim);
        let record = asked.await.unwrap().unwrap();
        match &record.state {
            // It died before it had a service: another one was asked.
            ProcessState::Running { pid, .. } if runs(*pid) => {
                let holder = instance_lock_held(&folder).unwrap();
                if holder.is_some() && holder != Some(shim) {
                    // Its environment shows a moment after exec has begun.
                    until("no other process", || {
                        (members(&bench.dirs.run, "web.1") == [*pid]).then_some(())
                    })
                    .await;
                    bench.stop("web.1", generation).await.unwrap();
                    ran += 1;
                    nothing_left(&bench).await;
                    continue;
                }
                bench.state("web.1", generation, Failed).await;
            }
            ProcessState::Running { .. } => {
                bench.state("web.1", generation, Failed).await;
            }
            ProcessState::Failed { .. } => {}
            other => panic!("{other:?}"),
        }
        lost += 1;
        nothing_left(&bench).await;
    }
    assert!(ran + lost == 12 && lost > 0, "{ran} ran, {lost} were lost");
    goes_on(&bench, 100).await;
}

fn spawns(bench: &Bench, instances: &[String]) -> Vec<tokio::task::JoinHandle<InstanceRecord>> {
    let asked = instances.iter().map(|instance| {
        let (link, spec): (_, SpawnSpec) = (bench.link.clone(), sleeper(instance, 1));
        tokio::spawn(async move { link.request(&Spawn { spec }, LIMIT).await.unwrap() })
    });
    asked.collect()
}

/// Killed while it runs, or while it hangs, in the midst of many spawns.
#[tokio::test]
async fn a_fork_server_killed_in_the_midst_of_spawns_costs_none_of_them() {
    let bench = Bench::start().await;
    let lock = bench.fork_server_lock();
    for round in 0..8_u32 {
        let instances: Vec<String> = (1..=6).map(|n| format!("r{round}.{n}")).collect();
        let server = until("a fork server", || host::lock_holder(&lock).unwrap()).await;
        if round % 2 == 1 {
            send(server, Signal::STOP);
        }
        let asked = spawns(&bench, &instances);
        tokio::time::sleep(Duration::from_millis(1)).await;
        spin(Duration::from_micros(500) * round);
        kill(server);
        for (instance, asked) in instances.iter().zip(asked) {
            let record = asked.await.unwrap();
            assert_eq!(record.state.name(), Running, "{record:#?}");
            let own: Vec<u32> = record.state.pid().into_iter().collect();
            assert_eq!(members(&bench.dirs.run, instance), own);
            let ended = bench.stop(instance, 1).await.unwrap();
            assert_eq!(result(&ended), ExitResult::Stopped);
        }
    }
    assert!(processes_naming(&bench.dirs.run.join("i")).is_empty());
}

/// Fields of /proc/pid/stat from the third on, see proc_pid_stat(5).
fn stat(pid: u32) -> Vec<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let rest = stat.rsplit(") ").next().unwrap();
    rest.split(' ').map(str::to_owned).collect()
}

#[tokio::test]
async fn the_fork_server_stands_alone_and_a_shim_is_a_copy_of_it() {
    let bench = Bench::start().await;
    let lock = bench.fork_server_lock();
    let server = until("a fork server", || host::lock_holder(&lock).unwrap()).await;
    bench.run(&sleeper("web.1", 1)).await;
    let service = bench.list().await[0].state.pid().unwrap();
    let shim = bench.shim("web.1");
    let manager = bench.manager.as_ref().unwrap().id().to_string();
    // Not every host lets root do it.
    let protects = std::process::Command::new("sh")
        .args(["-c", "echo -900 >/proc/self/oom_score_adj"])
        .stderr(std::process::Stdio::null())
        .status();
    let protects = protects.unwrap().success();
    let file = |pid: u32, name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap();
    for pid in [server, shim] {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        assert_eq!(tasks.count(), 1, "one thread");
        let stat = stat(pid);
        assert_ne!(stat[1], manager, "not the manager's child");
        assert_eq!(stat[3], pid.to_string(), "a session of its own");
        if protects {
            assert_eq!(file(pid, "oom_score_adj"), b"-900\n");
        }
    }
    // Forked, not executed anew: the arguments are the server's.
    assert_eq!(file(shim, "cmdline"), file(server, "cmdline"));
    assert_eq!(stat(service)[1], shim.to_string(), "the shim is its parent");
    assert_ne!(file(service, "oom_score_adj"), b"-900\n");
    bench.stop("web.1", 1).await.unwrap();
}
