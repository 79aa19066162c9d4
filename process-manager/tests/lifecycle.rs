//! From spawn to the end, over the bus.

// A test that cannot go on panics: that is its way to fail.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::process::{
    ExitResult, ExitStatus, Failure, Forget, ProcessState, Signal, SpawnStep, StateName, Stop,
    StopSpec,
};
use blackhole_bus_schema::reply::Code;
use support::*;

use StateName::{Failed, Running, Spawn, Stopping, Terminated};

#[tokio::test]
async fn a_service_runs_and_is_stopped() {
    let mut bench = Bench::start().await;
    let record = bench.run(&sleeper("web.1", 1)).await;
    let pid = record.state.pid().unwrap();
    assert!(runs(pid));
    let steps: Vec<SpawnStep> = record.steps.iter().map(|time| time.step).collect();
    assert_eq!(
        steps,
        [
            SpawnStep::PrepareEnvironment,
            SpawnStep::ApplyLimits,
            SpawnStep::Exec,
            SpawnStep::Register,
            SpawnStep::HealthCheck
        ]
    );
    let ended = bench.stop("web.1", 1).await.unwrap();
    let exit = ended.state.exit().unwrap();
    assert_eq!((exit.result, exit.pid), (ExitResult::Stopped, pid));
    assert!(!runs(pid));
    bench.state("web.1", 1, Terminated).await;
    assert_eq!(
        bench.passed("web.1"),
        [
            (None, Spawn, true),
            (Some(Spawn), Running, true),
            (Some(Running), Stopping, true),
            (Some(Stopping), Terminated, true)
        ]
    );
}

#[tokio::test]
async fn an_exit_of_its_own_accord_is_told_as_what_it_is() {
    let mut bench = Bench::start().await;
    bench.run(&script("good.1", 1, "sleep 0.1; exit 0")).await;
    bench.run(&script("bad.1", 1, "sleep 0.1; exit 7")).await;
    bench.run(&script("shot.1", 1, "kill -SEGV $$")).await;
    let mut odd = script("odd.1", 1, "sleep 0.1; exit 3");
    odd.success_codes = vec![0, 3];
    bench.run(&odd).await;
    bench.state("good.1", 1, Terminated).await;
    bench.state("odd.1", 1, Terminated).await;
    let bad = bench.state("bad.1", 1, Failed).await;
    let exit = bad.state.exit().unwrap();
    assert_eq!(
        (exit.result, exit.status),
        (ExitResult::ExitCode, ExitStatus::Exited { code: 7 })
    );
    let shot = bench.state("shot.1", 1, Failed).await;
    assert_eq!(shot.state.exit().unwrap().result, ExitResult::Signal);
    for good in ["good.1", "odd.1"] {
        let passed = bench.passed(good);
        let last = &passed[passed.len() - 2..];
        assert_eq!(
            last,
            [
                (Some(Running), Stopping, false),
                (Some(Stopping), Terminated, false)
            ]
        );
    }
    assert_eq!(
        bench.passed("bad.1").last(),
        Some(&(Some(Running), Failed, false))
    );
}

#[tokio::test]
async fn nothing_of_a_service_survives_its_stop() {
    let bench = Bench::start().await;
    let file = bench.path("grandchild");
    // The grandchild ignores SIGTERM, has a session of its own, and outlives its parent.
    let text = format!(
        "setsid sh -c 'trap \"\" TERM; echo $$ > {0}.new; mv {0}.new {0}; while :; do sleep 1; done' & \
         trap 'exit 0' TERM; while :; do sleep 1; done",
        file.display()
    );
    let mut spec = script("web.1", 1, &text);
    spec.stop = StopSpec {
        signal: 15,
        grace_ms: 3000,
    };
    bench.run(&spec).await;
    let grandchild: u32 = until("the grandchild", || {
        std::fs::read_to_string(&file).ok()?.trim().parse().ok()
    })
    .await;
    assert!(runs(grandchild));
    let ended = bench.stop("web.1", 1).await.unwrap();
    assert_eq!(ended.state.name(), Terminated, "{ended:?}");
    assert!(
        !runs(grandchild),
        "the grandchild survived its service's stop"
    );
}

#[tokio::test]
async fn an_unhealthy_stop_is_a_failure_and_a_second_stop_shortens_the_grace() {
    let mut bench = Bench::start().await;
    let mut stubborn = script(
        "web.1",
        1,
        "trap '' TERM; echo up; while :; do sleep 1; done",
    );
    stubborn.stop = StopSpec {
        signal: 15,
        grace_ms: 3_600_000,
    };
    bench.run(&stubborn).await;
    let first = Stop {
        unhealthy: true,
        ..stop("web.1", 1)
    };
    let second = Stop {
        stop: Some(StopSpec {
            signal: 9,
            grace_ms: 0,
        }),
        unhealthy: true,
        ..first.clone()
    };
    let (first, second) = tokio::join!(bench.request(&first), async {
        bench.request(&second).await
    });
    for ended in [first.unwrap(), second.unwrap()] {
        assert_eq!(ended.state.name(), Failed);
        assert_eq!(ended.state.exit().unwrap().result, ExitResult::Unhealthy);
    }
    bench.state("web.1", 1, Failed).await;
    let passed: Vec<StateName> = bench.passed("web.1").iter().map(|(_, to, _)| *to).collect();
    assert_eq!(passed, [Spawn, Running, Stopping, Terminated, Failed]);
}

#[tokio::test]
async fn a_signal_reaches_the_service() {
    let mut bench = Bench::start().await;
    let marker = bench.path("hup");
    let text = format!(
        "trap 'touch {}; exit 0' HUP; touch {}.ready; while :; do sleep 0.05; done",
        marker.display(),
        marker.display()
    );
    bench.run(&script("web.1", 1, &text)).await;
    until("the trap", || {
        bench.path("hup.ready").exists().then_some(())
    })
    .await;
    bench
        .request(&Signal {
            instance: name("web.1"),
            signal: 1,
        })
        .await
        .unwrap();
    bench.state("web.1", 1, Terminated).await;
    assert!(marker.exists());
    let ended = refused(
        bench
            .request(&Signal {
                instance: name("web.1"),
                signal: 1,
            })
            .await,
    );
    assert_eq!(ended.code, Code::FailedPrecondition);
    let unknown = refused(
        bench
            .request(&Signal {
                instance: name("nope.1"),
                signal: 1,
            })
            .await,
    );
    assert_eq!(unknown.code, Code::NotFound);
    let wrong = refused(
        bench
            .request(&Signal {
                instance: name("web.1"),
                signal: 99,
            })
            .await,
    );
    assert_eq!(wrong.code, Code::InvalidArgument);
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let mut bench = Bench::start().await;
    let failure = |record: blackhole_bus_schema::process::InstanceRecord| match record.state {
        ProcessState::Failed {
            failure: Failure::Spawn { failure },
        } => failure,
        other => panic!("{other:?}"),
    };
    let missing = failure(
        bench
            .spawn(&spec("a.1", 1, &["/no/such/program"]))
            .await
            .unwrap(),
    );
    assert_eq!(
        (missing.step, missing.errno),
        (SpawnStep::Exec, libc::ENOENT)
    );
    assert!(missing.operation.contains("/no/such/program"), "{missing}");
    let mut secret = sleeper("b.1", 1);
    secret
        .env
        .insert("TOKEN".to_owned(), "${file:/no/such/secret}".to_owned());
    let unresolved = failure(bench.spawn(&secret).await.unwrap());
    assert_eq!(unresolved.step, SpawnStep::PrepareEnvironment);
    assert!(
        unresolved
            .operation
            .contains("TOKEN: ${file:/no/such/secret}"),
        "{unresolved}"
    );
    let mut user = sleeper("c.1", 1);
    user.user = Some("no-such-user-here".to_owned());
    let unknown = failure(bench.spawn(&user).await.unwrap());
    assert!(
        unknown.to_string().contains("no-such-user-here"),
        "{unknown}"
    );
    bench.state("a.1", 1, Failed).await;
    assert_eq!(
        bench.passed("a.1"),
        [(None, Spawn, true), (Some(Spawn), Failed, true)]
    );
    // The next generation may be right.
    bench.run(&sleeper("a.1", 2)).await;
}

#[tokio::test]
async fn the_environment_is_small_resolved_and_secret() {
    let mut bench = Bench::start_with(&[("PM_TEST_REGION", "north")]).await;
    let (secret, output) = (bench.path("secret"), bench.path("environment"));
    std::fs::write(&secret, "hunter2\n").unwrap();
    let text = format!(
        "env > {0}.new; mv {0}.new {0}; exec sleep 100000",
        output.display()
    );
    let mut service = script("web.1", 1, &text);
    service.env.insert(
        "DB".to_owned(),
        format!("pw=${{file:{}}}", secret.display()),
    );
    service
        .env
        .insert("REGION".to_owned(), "${env:PM_TEST_REGION}".to_owned());
    service
        .env
        .insert("BLACKHOLE_SERVICE".to_owned(), "forged".to_owned());
    bench.run(&service).await;
    let text = until("the output", || std::fs::read_to_string(&output).ok()).await;
    let mut keys: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, _)| key)
        .collect();
    keys.retain(|key| !["_", "PWD", "SHLVL", "OLDPWD"].contains(key));
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "BLACKHOLE_INSTANCE",
            "BLACKHOLE_RPC",
            "BLACKHOLE_SERVICE",
            "BLACKHOLE_TOKEN",
            "DB",
            "LANG",
            "NOTIFY_SOCKET",
            "PATH",
            "REGION"
        ]
    );
    assert!(
        text.contains("DB=pw=hunter2\n") && text.contains("REGION=north\n"),
        "{text}"
    );
    assert!(text.contains("BLACKHOLE_SERVICE=web\n"), "{text}");
    // Nowhere but in the service.
    bench.settle().await;
    let told = format!("{:?}{:?}", bench.history, bench.list().await);
    assert!(!told.contains("hunter2"));
    assert!(!bench.words().contains("hunter2"));
    let folder = bench.dirs.instance(&name("web.1"));
    for entry in std::fs::read_dir(folder).unwrap() {
        let content = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!content.windows(7).any(|window| window == b"hunter2"));
    }
}

#[tokio::test]
async fn generations_only_rise() {
    let mut bench = Bench::start().await;
    let first = bench.run(&sleeper("web.1", 5)).await;
    let again = bench.run(&sleeper("web.1", 5)).await;
    assert_eq!(first.state.pid(), again.state.pid());
    assert_eq!(
        refused(bench.spawn(&sleeper("web.1", 4)).await).code,
        Code::FailedPrecondition
    );
    assert_eq!(
        refused(bench.spawn(&sleeper("web.1", 6)).await).code,
        Code::FailedPrecondition
    );
    assert_eq!(
        refused(bench.stop("web.1", 4).await).code,
        Code::FailedPrecondition
    );
    // Also by a manager that has just started: the generation is on disk.
    bench.kill_manager();
    bench.start_manager().await;
    let after = bench.run(&sleeper("web.1", 5)).await;
    assert_eq!(first.state.pid(), after.state.pid());
    assert_eq!(
        refused(bench.spawn(&sleeper("web.1", 4)).await).code,
        Code::FailedPrecondition
    );
    bench.stop("web.1", 5).await.unwrap();
    bench.kill_manager();
    bench.start_manager().await;
    assert_eq!(
        refused(bench.spawn(&sleeper("web.1", 4)).await).code,
        Code::FailedPrecondition
    );
    let ended = bench.spawn(&sleeper("web.1", 5)).await.unwrap();
    assert_eq!(
        ended.state.name(),
        Terminated,
        "it was started again: {ended:?}"
    );
    let second = bench.run(&sleeper("web.1", 6)).await;
    assert_ne!(first.state.pid(), second.state.pid());
}

#[tokio::test]
async fn max_processes_is_refused_by_name_and_counts_what_was_adopted() {
    let mut bench =
        Bench::start_with(&[("BLACKHOLE_RUNTIME_ORCHESTRATOR_MAX_PROCESSES", "2")]).await;
    bench.run(&sleeper("web.1", 1)).await;
    bench.run(&sleeper("web.2", 1)).await;
    for _ in 0..2 {
        let status = refused(bench.spawn(&sleeper("web.3", 1)).await);
        assert_eq!(status.code, Code::ResourceExhausted);
        assert!(status.message.contains("max_processes is 2"), "{status}");
        assert!(
            status
                .message
                .contains("BLACKHOLE_RUNTIME_ORCHESTRATOR_MAX_PROCESSES"),
            "{status}"
        );
        bench.kill_manager();
        bench.start_manager().await;
    }
    bench.stop("web.1", 1).await.unwrap();
    bench.run(&sleeper("web.3", 1)).await;
}

#[tokio::test]
async fn what_is_forgotten_leaves_its_log_alone() {
    let bench = Bench::start().await;
    bench
        .run(&script("web.1", 1, "echo hello; exec sleep 100000"))
        .await;
    let log = bench.dirs.instance(&name("web.1")).join("log");
    until("its first word", || log.exists().then_some(())).await;
    let forget = Forget {
        instance: name("web.1"),
    };
    assert_eq!(
        refused(bench.request(&forget).await).code,
        Code::FailedPrecondition
    );
    bench.stop("web.1", 1).await.unwrap();
    bench.request(&forget).await.unwrap();
    bench.request(&forget).await.unwrap();
    assert!(bench.list().await.is_empty());
    let folder = bench.dirs.instance(&name("web.1"));
    let left: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["log"]);
    assert!(!bench.dirs.shim_socket(&name("web.1")).exists());
    // Even its generations are forgotten.
    bench.run(&sleeper("web.1", 1)).await;
}

#[tokio::test]
async fn a_stop_of_what_is_being_started_leaves_nothing() {
    let mut bench = Bench::start().await;
    let service = sleeper("web.1", 1);
    let command = stop("web.1", 1);
    let (spawned, stopped) = tokio::join!(bench.spawn(&service), async {
        bench.request(&command).await
    });
    spawned.unwrap();
    let stopped = stopped.unwrap();
    assert!(!stopped.state.is_live(), "{stopped:?}");
    bench.settle().await;
    for (from, to, _) in bench.passed("web.1") {
        assert!(
            from.is_none_or(|from| from.may_become(to)),
            "{from:?} to {to:?}"
        );
    }
    assert_eq!(bench.list().await[0].state.name(), stopped.state.name());
    assert_eq!(bench.list().await[0].generation, Generation(1));
}

#[tokio::test]
async fn unknown_commands_and_wrong_bodies_are_refused() {
    let bench = Bench::start().await;
    let unknown = refused(bench.stop("nope.1", 1).await);
    assert_eq!(unknown.code, Code::NotFound);
    let mut empty = sleeper("web.1", 1);
    empty.command.clear();
    assert_eq!(
        refused(bench.spawn(&empty).await).code,
        Code::InvalidArgument
    );
    let foreign = blackhole_bus_schema::resource::ListUsage::default();
    assert_eq!(
        refused(bench.request(&foreign).await).code,
        Code::Unimplemented
    );
}

#[tokio::test]
async fn without_a_fork_server_it_says_so_until_there_is_one() {
    let mut bench = Bench::prepare(&[]).await;
    let later = bench.path("shim");
    let real = std::mem::replace(&mut bench.shim, later);
    bench.start_manager().await;
    let record = bench.spawn(&sleeper("web.1", 1)).await.unwrap();
    let ProcessState::Failed {
        failure: Failure::Spawn { failure },
    } = record.state
    else {
        panic!("{record:?}")
    };
    assert!(failure.operation.contains("/shim"), "{failure}");
    assert_eq!(failure.errno, libc::ENOENT);
    let ping = blackhole_bus_schema::component::Ping {};
    let notes = bench.request(&ping).await.unwrap().notes;
    assert!(
        notes
            .iter()
            .any(|note| note.contains("no service can be started")),
        "{notes:?}"
    );
    std::os::unix::fs::symlink(real, bench.path("shim")).unwrap();
    // Found by itself.
    loop {
        if bench.request(&ping).await.unwrap().notes.is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    bench.run(&sleeper("web.1", 2)).await;
}
