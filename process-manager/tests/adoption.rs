//! A manager that comes back: nothing restarted, nothing lost.

// A test that cannot go on panics: that is its way to fail.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::process::{ExitResult, ExitStatus, Failure, ProcessState, StateName};
use blackhole_process_manager::shim::client::{ForkServer, ForkServerOptions, SpawnRequest};
use rustix::process::Signal;
use support::*;

use StateName::{Failed, Running, Stopping, Terminated};

/// The last state that was told of an instance, from the `from`th thing told on.
fn told_since(bench: &Bench, from: usize, instance: &str) -> Vec<(Option<StateName>, StateName)> {
    let name = name(instance);
    bench.history[from..]
        .iter()
        .filter_map(|told| match told {
            Told::Changed(changed, _) if changed.record.instance == name => {
                Some((changed.from, changed.record.state.name()))
            }
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn services_outlive_ten_kills_of_their_manager() {
    let mut bench = Bench::start().await;
    let mut service = sleeper("web.1", 3);
    service.restarts = 2;
    let pid = bench.run(&service).await.state.pid().unwrap();
    for _ in 0..10 {
        bench.kill_manager();
        let records = bench.start_manager().await;
        let record = find(&records, "web.1");
        assert_eq!(record.state.pid(), Some(pid));
        assert_eq!(record.state.name(), Running);
        assert_eq!((record.generation, record.restarts), (Generation(3), 2));
        assert!(record.adopted);
        assert_eq!(record.steps.len(), 3);
    }
    // It is held as before: it can be stopped.
    let ended = bench.stop("web.1", 3).await.unwrap();
    assert_eq!(ended.state.exit().unwrap().result, ExitResult::Stopped);
    assert!(!runs(pid));
}

#[tokio::test]
async fn an_orderly_end_leaves_services_too() {
    let mut bench = Bench::start().await;
    let pid = bench.run(&sleeper("web.1", 1)).await.state.pid().unwrap();
    assert!(bench.end_manager().success());
    assert!(runs(pid));
    let known = bench.history.len();
    bench
        .wait("its goodbye", known, |told| {
            matches!(told, Told::Down).then_some(())
        })
        .await;
    let records = bench.start_manager().await;
    assert_eq!(find(&records, "web.1").state.pid(), Some(pid));
}

#[tokio::test]
async fn what_ended_meanwhile_is_told_once_with_its_end() {
    let mut bench = Bench::start().await;
    let killed = bench
        .run(&sleeper("killed.1", 1))
        .await
        .state
        .pid()
        .unwrap();
    let marker = bench.path("go");
    let text = format!(
        "while [ ! -e {} ]; do sleep 0.02; done; exit $CODE",
        marker.display()
    );
    for (instance, code) in [("good.1", "0"), ("bad.1", "9")] {
        let mut service = script(instance, 1, &text);
        service.env.insert("CODE".to_owned(), code.to_owned());
        bench.run(&service).await;
    }
    let shims: Vec<u32> = ["killed.1", "good.1", "bad.1"]
        .map(|i| bench.shim(i))
        .to_vec();
    bench.settle().await;
    bench.kill_manager();
    kill(killed);
    std::fs::write(&marker, "").unwrap();
    for shim in shims {
        gone(shim).await;
    }
    let before = bench.history.len();
    let records = bench.start_manager().await;
    let exit = |instance: &str| find(&records, instance).state.exit().unwrap().clone();
    assert_eq!(find(&records, "killed.1").state.name(), Failed);
    assert_eq!(exit("killed.1").result, ExitResult::Signal);
    assert!(matches!(
        exit("killed.1").status,
        ExitStatus::Signaled { signal: 9, .. }
    ));
    assert_eq!(find(&records, "bad.1").state.name(), Failed);
    assert_eq!(exit("bad.1").status, ExitStatus::Exited { code: 9 });
    assert_eq!(find(&records, "good.1").state.name(), Terminated);
    // Whoever came before the manager may have missed the event, but not the
    // snapshot; nobody is told another time.
    bench.settle().await;
    bench.kill_manager();
    let second = bench.history.len();
    let again = bench.start_manager().await;
    assert_eq!(again.len(), 3);
    bench.settle().await;
    for instance in ["killed.1", "good.1", "bad.1"] {
        let told = told_since(&bench, before, instance);
        assert!(
            told.len() <= 1 && told.iter().all(|(from, _)| from.is_none()),
            "{told:?}"
        );
        assert_eq!(told_since(&bench, second, instance), [], "told again");
    }
}

#[tokio::test]
async fn a_lost_shim_takes_its_whole_instance_with_it() {
    let mut bench = Bench::start().await;
    let file = bench.path("grandchild");
    let text = format!(
        "setsid sh -c 'echo $$ > {0}.new; mv {0}.new {0}; while :; do sleep 1; done' & \
         exec sleep 100000",
        file.display()
    );
    let mut grandchildren = Vec::new();
    let mut pids = Vec::new();
    for instance in ["here.1", "away.1"] {
        let _ = std::fs::remove_file(&file);
        pids.push(
            bench
                .run(&script(instance, 1, &text))
                .await
                .state
                .pid()
                .unwrap(),
        );
        let pid: u32 = until("the grandchild", || {
            std::fs::read_to_string(&file).ok()?.trim().parse().ok()
        })
        .await;
        grandchildren.push(pid);
    }
    // While the manager looks on …
    kill(bench.shim("here.1"));
    let lost = bench.state("here.1", 1, Failed).await;
    let exit = lost.state.exit().unwrap();
    assert_eq!(
        (exit.result, exit.status),
        (ExitResult::ShimLost, ExitStatus::Unknown)
    );
    assert_eq!(exit.pid, pids[0]);
    assert!(!runs(pids[0]) && !runs(grandchildren[0]));
    assert_eq!(
        told_since(&bench, 0, "here.1").last(),
        Some(&(Some(Running), Failed))
    );
    // … and while it is away.
    let shim = bench.shim("away.1");
    bench.kill_manager();
    kill(shim);
    gone(shim).await;
    assert!(runs(grandchildren[1]));
    let records = bench.start_manager().await;
    let exit = find(&records, "away.1").state.exit().unwrap();
    assert_eq!(exit.result, ExitResult::ShimLost);
    assert!(!runs(pids[1]) && !runs(grandchildren[1]));
    // The next generation starts as usual, and the lost one is not lost again.
    bench.kill_manager();
    bench.start_manager().await;
    bench.run(&sleeper("away.1", 2)).await;
    bench.run(&sleeper("here.1", 2)).await;
}

async fn stop_across_managers(end: impl FnOnce(&mut Bench)) {
    let mut bench = Bench::start().await;
    let (ready, go) = (bench.path("ready"), bench.path("go"));
    let text = format!(
        "trap 'touch {0}; while [ ! -e {1} ]; do sleep 0.02; done; exit 0' TERM; touch {0}.up; \
         while :; do sleep 0.02; done",
        ready.display(),
        go.display()
    );
    bench.run(&script("web.1", 1, &text)).await;
    until("the trap", || bench.path("ready.up").exists().then_some(())).await;
    let link = bench.link.clone();
    let asked = tokio::spawn(async move { link.request(&stop("web.1", 1), LIMIT).await });
    until("the signal", || ready.exists().then_some(())).await;
    end(&mut bench);
    let records = bench.start_manager().await;
    assert_eq!(find(&records, "web.1").state.name(), Stopping);
    std::fs::write(&go, "").unwrap();
    let ended = bench.state("web.1", 1, Terminated).await;
    assert_eq!(ended.state.exit().unwrap().result, ExitResult::Stopped);
    // The client that asked the manager before is answered by the one after.
    assert_eq!(asked.await.unwrap().unwrap().state.name(), Terminated);
}

#[tokio::test]
async fn a_stop_that_was_under_way_goes_on_without_the_manager() {
    stop_across_managers(Bench::kill_manager).await;
}

#[tokio::test]
async fn a_stop_that_was_under_way_goes_on_after_an_orderly_end() {
    stop_across_managers(|bench| {
        assert!(bench.end_manager().success());
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_read_is_shown_and_stops_nobody() {
    let mut bench = Bench::start().await;
    let pid = bench.run(&sleeper("good.1", 1)).await.state.pid().unwrap();
    bench.run(&script("broken.1", 1, "exit 0")).await;
    bench.state("broken.1", 1, Terminated).await;
    bench.kill_manager();
    let instances = bench.dirs.state.join("instances");
    let record = instances.join("broken.1/record");
    assert!(record.exists());
    std::fs::write(&record, b"\x00garbage that is no record\xff").unwrap();
    std::fs::create_dir(instances.join("Not-An-Instance")).unwrap();
    std::fs::create_dir(instances.join("empty.1")).unwrap();
    std::fs::write(instances.join("file.1"), "x").unwrap();
    let records = bench.start_manager().await;
    assert_eq!(find(&records, "good.1").state.pid(), Some(pid));
    let broken = find(&records, "broken.1");
    let ProcessState::Failed {
        failure: Failure::Spawn { failure },
    } = &broken.state
    else {
        panic!("{broken:?}")
    };
    assert!(failure.operation.contains("broken.1/record"), "{failure}");
    assert!(record.exists());
    assert_eq!(records.len(), 2, "{records:#?}");
    let info = bench
        .request(&blackhole_bus_schema::component::Ping {})
        .await
        .unwrap();
    let notes = info.notes;
    assert!(
        notes.iter().any(|note| note.contains("Not-An-Instance")),
        "{notes:?}"
    );
    bench.run(&sleeper("broken.1", 1)).await;
}

#[tokio::test]
async fn a_dead_fork_server_is_started_again() {
    let bench = Bench::start().await;
    let pid = bench.run(&sleeper("web.1", 1)).await.state.pid().unwrap();
    let lock = bench.fork_server_lock();
    let holder = || blackhole_process_manager::host::lock_holder(&lock).unwrap();
    for generation in 1..=3 {
        let first = holder().expect("a fork server");
        kill(first);
        // Without any spawn.
        until("another fork server", || {
            holder().filter(|pid| *pid != first)
        })
        .await;
        bench.run(&sleeper("web.2", generation)).await;
        bench.stop("web.2", generation).await.unwrap();
    }
    assert!(runs(pid));
    // A spawn at the very moment is served as well.
    kill(holder().unwrap());
    bench.run(&sleeper("web.3", 1)).await;
}

#[tokio::test]
async fn without_its_socket_a_shim_is_asked_to_listen_again() {
    let mut bench = Bench::start().await;
    let pid = bench.run(&sleeper("web.1", 1)).await.state.pid().unwrap();
    bench.kill_manager();
    std::fs::remove_file(bench.dirs.shim_socket(&name("web.1"))).unwrap();
    let records = bench.start_manager().await;
    // Alive, and nobody starts a second one.
    assert_eq!(find(&records, "web.1").state.pid(), Some(pid));
    refused(bench.spawn(&sleeper("web.1", 2)).await);
    let ended = bench.stop("web.1", 1).await.unwrap();
    assert_eq!(ended.state.name(), Terminated);
    assert_eq!(ended.state.exit().unwrap().result, ExitResult::Stopped);
    assert!(!runs(pid));
    bench.run(&sleeper("web.1", 2)).await;
}

/// Has a shim start instance `web.1` that the manager, which has looked for
/// instances already, does not know.
async fn started_behind_the_managers_back(bench: &Bench, generation: u64) -> u32 {
    let server = ForkServer::ensure(&bench.dirs, &ForkServerOptions::new(&bench.shim))
        .await
        .unwrap();
    let request = SpawnRequest::from_spec(
        &bench.dirs,
        &sleeper("web.1", generation),
        Default::default(),
        (1024, 4096),
    );
    let (started, ..) = server.spawn(&request.unwrap()).await.unwrap();
    started.pid
}

#[tokio::test]
async fn a_live_process_that_the_manager_does_not_know_is_adopted_by_its_spawn() {
    let bench = Bench::start().await;
    let pid = started_behind_the_managers_back(&bench, 1).await;
    assert_eq!(bench.run(&sleeper("web.1", 1)).await.state.pid(), Some(pid));
    let ended = bench.stop("web.1", 1).await.unwrap();
    assert_eq!(ended.state.exit().unwrap().result, ExitResult::Stopped);
    assert!(!runs(pid));
}

#[tokio::test]
async fn a_live_process_of_an_earlier_generation_makes_room() {
    let bench = Bench::start().await;
    let pid = started_behind_the_managers_back(&bench, 1).await;
    let new = bench.run(&sleeper("web.1", 2)).await.state.pid();
    assert!(!runs(pid) && new != Some(pid));
    // One of a later generation is not this manager's to kill.
    bench.stop("web.1", 2).await.unwrap();
    let pid = started_behind_the_managers_back(&bench, 4).await;
    let failed = bench.spawn(&sleeper("web.1", 3)).await.unwrap();
    assert_eq!(failed.state.name(), Failed);
    assert!(runs(pid));
}

#[tokio::test]
async fn a_spawn_that_waited_longer_than_its_manager_lived_is_nobodys() {
    let mut bench = Bench::start().await;
    let lock = bench.fork_server_lock();
    let fork_server = until("a fork server", || {
        blackhole_process_manager::host::lock_holder(&lock).unwrap()
    })
    .await;
    send(fork_server, Signal::STOP);
    // The pool is used up, with those that are connected ahead; the rest waits.
    const MANY: usize = 24;
    let mut asked = Vec::new();
    for index in 1..=MANY {
        let (link, spec) = (bench.link.clone(), sleeper(&format!("web.{index}"), 1));
        let spawn = blackhole_bus_schema::process::Spawn { spec };
        asked.push(tokio::spawn(async move {
            link.request(&spawn, LIMIT).await.unwrap()
        }));
    }
    let folders = bench.dirs.state.join("instances");
    until("the spawns that the pool served", || {
        let folders = std::fs::read_dir(&folders).ok()?.flatten();
        (folders.count() >= 4).then_some(())
    })
    .await;
    bench.kill_manager();
    bench.start_manager().await;
    send(fork_server, Signal::CONT);
    for asked in asked {
        let record = asked.await.unwrap();
        let pid = record.state.pid().unwrap_or_else(|| panic!("{record:#?}"));
        let instance = record.instance.to_string();
        let ended = bench.stop(&instance, 1).await.unwrap();
        assert_eq!(ended.state.name(), Terminated);
        assert!(!runs(pid), "{instance}");
    }
    // None is left that nobody knows.
    assert!(processes_naming(&bench.dirs.run).is_empty());
}

#[tokio::test]
async fn a_lost_shim_that_could_not_write_leaves_nothing_behind() {
    let mut bench = Bench::start().await;
    bench.run(&sleeper("web.1", 1)).await;
    bench.stop("web.1", 1).await.unwrap();
    let folder = bench.dirs.instance(&name("web.1"));
    let old = std::fs::read(folder.join("record")).unwrap();
    // Like a full disk: no new record can be begun.
    std::fs::create_dir(folder.join("record.new")).unwrap();
    let file = bench.path("grandchild");
    let text = format!(
        "setsid sh -c 'echo $$ > {0}.new; mv {0}.new {0}; while :; do sleep 1; done' & \
         exec sleep 100000",
        file.display()
    );
    for (generation, away) in [(2, false), (3, true)] {
        let _ = std::fs::remove_file(&file);
        let pid = bench
            .run(&script("web.1", generation, &text))
            .await
            .state
            .pid();
        let grandchild: u32 = until("the grandchild", || {
            std::fs::read_to_string(&file).ok()?.trim().parse().ok()
        })
        .await;
        assert!(!folder.join("record").exists(), "the end of another spawn");
        // Even if it could not be removed.
        std::fs::write(folder.join("record"), &old).unwrap();
        let shim = bench.shim("web.1");
        if away {
            bench.kill_manager();
        }
        kill(shim);
        if away {
            gone(shim).await;
            bench.start_manager().await;
        } else {
            let lost = bench.state("web.1", generation, Failed).await;
            let exit = lost.state.exit().unwrap();
            assert_eq!((exit.result, Some(exit.pid)), (ExitResult::ShimLost, pid));
            assert!(exit.killed_leftovers >= 1);
        }
        gone(pid.unwrap()).await;
        gone(grandchild).await;
    }
}

#[tokio::test]
async fn a_shim_that_hangs_does_not_keep_a_stop_waiting() {
    let bench = Bench::start().await;
    let pid = bench.run(&sleeper("web.1", 1)).await.state.pid().unwrap();
    send(bench.shim("web.1"), Signal::STOP);
    let ended = bench.stop("web.1", 1).await.unwrap();
    assert_eq!(ended.state.exit().unwrap().result, ExitResult::ShimLost);
    gone(pid).await;
}

#[tokio::test]
async fn a_shim_that_hangs_after_it_took_a_stop_does_not_stretch_the_grace() {
    let bench = Bench::start().await;
    let signalled = bench.path("signalled");
    let text = format!(
        "trap 'touch {0}' TERM; touch {0}.up; while :; do sleep 0.02; done",
        signalled.display()
    );
    let mut service = script("web.1", 1, &text);
    service.stop.grace_ms = 1000;
    let pid = bench.run(&service).await.state.pid().unwrap();
    until("the trap", || {
        bench.path("signalled.up").exists().then_some(())
    })
    .await;
    let link = bench.link.clone();
    let asked = tokio::spawn(async move { link.request(&stop("web.1", 1), LIMIT).await });
    until("the signal", || signalled.exists().then_some(())).await;
    send(bench.shim("web.1"), Signal::STOP);
    let ended = asked.await.unwrap().unwrap();
    assert_eq!(ended.state.exit().unwrap().result, ExitResult::ShimLost);
    gone(pid).await;
}

#[tokio::test]
async fn a_break_glass_stop_is_told_like_any_other() {
    let mut bench = Bench::start().await;
    let (ready, go) = (bench.path("ready"), bench.path("go"));
    let text = format!(
        "trap 'while [ ! -e {1} ]; do sleep 0.02; done; exit 0' TERM; touch {0}; \
         while :; do sleep 0.02; done",
        ready.display(),
        go.display()
    );
    bench.run(&script("web.1", 1, &text)).await;
    until("the trap", || ready.exists().then_some(())).await;
    let attached = blackhole_process_manager::shim::client::attach(&bench.dirs, &name("web.1"))
        .await
        .unwrap();
    attached.handle.stop(Default::default()).await.unwrap();
    bench.state("web.1", 1, Stopping).await;
    std::fs::write(&go, "").unwrap();
    bench.state("web.1", 1, Terminated).await;
    let told: Vec<_> = told_since(&bench, 0, "web.1").into_iter().skip(2).collect();
    assert_eq!(
        told,
        [(Some(Running), Stopping), (Some(Stopping), Terminated)]
    );
}

#[tokio::test]
async fn a_second_manager_stands_by_and_takes_over() {
    let mut bench = Bench::start().await;
    let pid = bench.run(&sleeper("web.1", 1)).await.state.pid().unwrap();
    let first = bench.manager.take().unwrap();
    let known = bench.history.len();
    bench.launch_manager();
    until("the standby's word", || {
        bench.words().contains("standing by").then_some(())
    })
    .await;
    let mut first = first;
    rustix::process::kill_process(rustix::process::Pid::from_child(&first), Signal::TERM).unwrap();
    first.wait().unwrap();
    let records = bench
        .wait("the standby's snapshot", known, |told| match told {
            Told::Snapshot(records) => Some(records.clone()),
            _ => None,
        })
        .await;
    assert_eq!(find(&records, "web.1").state.pid(), Some(pid));
}

/// `BLACKHOLE_ADOPT_INSTANCES=1000` has it with as many.
#[tokio::test]
async fn many_are_adopted_at_once() {
    // More than a page of a snapshot.
    let many: u32 = std::env::var("BLACKHOLE_ADOPT_INSTANCES")
        .map_or(300, |text| text.parse().expect("a whole number"));
    let most = many.to_string();
    let variable = ("BLACKHOLE_RUNTIME_ORCHESTRATOR_MAX_PROCESSES", &*most);
    let mut bench = Bench::start_with(&[variable]).await;
    let mut starts = tokio::task::JoinSet::new();
    for index in 1..=many {
        let link = bench.link.clone();
        let spec = sleeper(&format!("web.{index}"), 1);
        starts.spawn(async move {
            let spawn = blackhole_bus_schema::process::Spawn { spec };
            link.request(&spawn, LIMIT).await.unwrap()
        });
    }
    let mut pids = std::collections::BTreeMap::new();
    while let Some(record) = starts.join_next().await {
        let record = record.unwrap();
        pids.insert(
            record.instance.clone(),
            record.state.pid().expect("running"),
        );
    }
    bench.kill_manager();
    let begun = std::time::Instant::now();
    let records = bench.start_manager().await;
    eprintln!(
        "{many} adopted: {:?} from the start of the manager to its snapshot here",
        begun.elapsed()
    );
    let adopted: std::collections::BTreeMap<_, _> = records
        .iter()
        .filter_map(|record| Some((record.instance.clone(), record.state.pid()?)))
        .collect();
    assert_eq!(pids, adopted);
    // In the order of their names, without doubles.
    let names: Vec<String> = records
        .iter()
        .map(|record| record.instance.to_string())
        .collect();
    assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "{names:?}");
}
