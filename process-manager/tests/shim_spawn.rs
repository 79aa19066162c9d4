//! What a service finds when it starts, and what is told when it does not.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod shim_support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use blackhole_bus_schema::limits::LimitGrant;
use blackhole_bus_schema::process::{ExitResult, ExitStatus, SpawnStep};
use blackhole_process_manager::shim::client::{instance_lock_held, read_record};
use shim_support::{Rig, fork_server_pid, spec};

#[tokio::test]
async fn output_is_logged_and_the_exit_code_recorded() {
    let rig = Rig::new().await;
    let spec = rig.script("echo to out; echo to err >&2; printf unfinished; exit 3");
    let mut running = rig.spawn(&spec).await;
    let started = running.started.clone();
    assert!(started.pid > 1 && started.start_ticks > 0);
    let steps: Vec<_> = started.steps.iter().map(|step| step.step).collect();
    assert_eq!(
        steps,
        [
            SpawnStep::PrepareEnvironment,
            SpawnStep::ApplyLimits,
            SpawnStep::Exec
        ]
    );
    assert!(
        started.steps.iter().all(|step| step.took_ns > 0),
        "{started:?}"
    );
    assert_eq!(started.warnings, Vec::<String>::new());

    let exit = running.exited().await;
    assert_eq!(
        (exit.status, exit.result),
        (ExitStatus::Exited { code: 3 }, ExitResult::ExitCode)
    );
    assert_eq!(
        (exit.pid, exit.generation, exit.killed_leftovers),
        (started.pid, spec.generation, 0)
    );
    assert!(exit.ended_at >= exit.started_at && exit.started_at == started.started_at);
    let mut lines: Vec<_> = rig.log(&spec).lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["to err", "to out", "unfinished"]);

    let folder = rig.folder(&spec);
    let record = read_record(&folder).unwrap().unwrap();
    assert_eq!(record.exit, Some(exit));
    assert_eq!(record.started, Some(started));
    assert_eq!(record.spec().unwrap(), spec);
    assert_eq!(instance_lock_held(&folder).unwrap(), None);
    let mut left: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .chain(fs::read_dir(rig.dirs.run.join("i")).unwrap())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["lock", "log", "record"], "no socket is left");
    let lock = fs::metadata(folder.join("lock")).unwrap();
    assert_eq!(lock.len(), 0, "given up in order");
}

#[tokio::test]
async fn a_service_finds_a_clean_process() {
    let rig = Rig::new().await;
    let script = "pwd; umask; ulimit -n; cat /proc/self/oom_score_adj; readlink /proc/self/fd/0
        echo fds $(ls /proc/self/fd | wc -l)
        grep -E 'Sig(Blk|Ign)' /proc/self/status; cut -d' ' -f6 /proc/self/stat; echo $$
        echo $A; env | cut -d= -f1 | sort | tr '\\n' ' '";
    let mut spec = rig.script(script);
    spec.working_dir = Some("/tmp".into());
    spec.env.insert("A".into(), "it's a \"value\"".into());
    let mut running = rig.spawn(&spec).await;
    let exit = running.exited().await;
    assert_eq!(exit.result, ExitResult::Success);
    let log = rig.log(&spec);
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(
        lines[..5],
        ["/tmp", "0022", "1024", "0", "/dev/null"],
        "{log}"
    );
    // 0, 1, 2 and the folder that ls reads.
    assert_eq!(lines[5], "fds 4", "{log}");
    assert!(
        lines[6].ends_with("0000000000000000") && lines[7].ends_with("0000000000000000"),
        "{log}"
    );
    assert_eq!(lines[8], lines[9], "it leads its own session");
    assert_eq!(lines[9], running.started.pid.to_string());
    assert_eq!(lines[10], "it's a \"value\"");
    let names: Vec<_> = lines[11]
        .split_whitespace()
        .filter(|name| !["_", "PWD", "SHLVL", "OLDPWD"].contains(name))
        .collect();
    assert_eq!(names, ["A", "NOTIFY_SOCKET", "PATH"]);
}

#[tokio::test]
async fn limits_of_open_files_and_success_codes_are_the_services_own() {
    let rig = Rig::new().await;
    let mut spec = rig.script("ulimit -Sn; ulimit -Hn; exit 7");
    spec.open_files = Some(77);
    spec.success_codes = vec![0, 7];
    let mut running = rig.spawn(&spec).await;
    assert_eq!(running.exited().await.result, ExitResult::Success);
    assert_eq!(rig.log(&spec), "77\n77\n");
}

#[tokio::test]
async fn the_oom_score_of_a_service_is_its_own() {
    let rig = Rig::new().await;
    let score = |pid| {
        let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        text.trim().parse::<i32>().unwrap()
    };
    let mut spec = rig.script("exec sleep 1000");
    spec.grant = Some(LimitGrant {
        oom_score_adj: Some(500),
        ..LimitGrant::default()
    });
    let running = rig.spawn(&spec).await;
    assert_eq!(score(running.started.pid), 500);
    assert_eq!(running.started.warnings, Vec::<String>::new());
    let shim = score(running.started.shim_pid);
    assert_eq!(shim, score(fork_server_pid(&rig.dirs).unwrap()));
    if shim != -900 {
        println!("not checked: this user may not protect the shims from the OOM killer");
    }
}

#[tokio::test]
async fn a_program_is_found_in_the_services_own_path() {
    let rig = Rig::new().await;
    let folder = rig.path("programs");
    fs::create_dir(&folder).unwrap();
    let program = folder.join("my-program");
    fs::write(&program, "#!/bin/sh\necho $0 \"$@\"\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut spec = spec("web.1", &["my-program", "a b", ""]);
    let failure = rig.fail(&spec).await;
    assert_eq!(
        (failure.step, failure.errno),
        (SpawnStep::Exec, 2),
        "{failure}"
    );
    assert!(
        failure.hint.contains("not found in PATH (/usr/bin:/bin)"),
        "{failure}"
    );
    spec.env
        .insert("PATH".into(), format!("/nowhere:{}:/bin", folder.display()));
    let mut running = rig.spawn(&spec).await;
    assert_eq!(running.exited().await.result, ExitResult::Success);
    assert_eq!(rig.log(&spec), format!("{} a b \n", program.display()));
}

#[tokio::test]
async fn each_failure_names_step_operation_errno_and_what_to_do() {
    let rig = Rig::new().await;
    let file = |name: &str, content: &str, mode: u32| {
        let path = rig.path(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.into_os_string().into_string().unwrap()
    };
    let plain = file("plain", "#!/bin/sh\n", 0o644);
    let script = file("script", "#!/nowhere/python3\n", 0o755);
    let garbage = file("garbage", "this is no program\n", 0o755);
    for (command, errno, hint) in [
        ("/nowhere/at/all", 2, "no such file"),
        (plain.as_str(), 13, "chmod +x"),
        (
            script.as_str(),
            2,
            "interpreter /nowhere/python3 does not exist",
        ),
        (garbage.as_str(), 8, "#!/bin/sh"),
        ("/tmp", 13, "is a directory"),
    ] {
        let spec = spec("web.1", &[command]);
        let failure = rig.fail(&spec).await;
        assert_eq!(
            (failure.step, failure.errno),
            (SpawnStep::Exec, errno),
            "{failure}"
        );
        assert_eq!(failure.operation, format!("exec {command}"));
        assert!(failure.hint.contains(hint), "{failure}");
        let folder = rig.folder(&spec);
        let record = read_record(&folder).unwrap().unwrap();
        assert_eq!((record.failure, record.started), (Some(failure), None));
        assert_eq!(instance_lock_held(&folder).unwrap(), None);
    }
    let mut nowhere = rig.script("true");
    nowhere.working_dir = Some("/nowhere".into());
    let failure = rig.fail(&nowhere).await;
    assert_eq!(
        (failure.step, failure.errno),
        (SpawnStep::PrepareEnvironment, 2),
        "{failure}"
    );
    assert!(
        failure.operation.contains("/nowhere") && failure.hint.contains("working"),
        "{failure}"
    );
    let mut stranger = rig.script("true");
    stranger.user = Some("no-such-user-here".into());
    let failure = rig.fail(&stranger).await;
    assert!(
        failure.operation.contains("no-such-user-here") && failure.hint.contains("user unknown"),
        "{failure}"
    );
    let failure = rig.fail(&spec("web.1", &[])).await;
    assert!(failure.hint.contains("empty"), "{failure}");
    assert_eq!(
        fs::read_dir(rig.dirs.run.join("i")).unwrap().count(),
        0,
        "no socket is left"
    );
    // The instance is as good as new.
    let mut running = rig.spawn(&rig.script("true")).await;
    assert_eq!(running.exited().await.result, ExitResult::Success);
}

#[tokio::test]
async fn a_service_may_run_as_another_user() {
    let rig = Rig::new().await;
    let mut spec =
        rig.script("id -u; id -g; id -G; echo $USER; test -w $NOTIFY_SOCKET && echo may notify");
    if !rustix::process::geteuid().is_root() {
        spec.user = Some("0".into());
        let failure = rig.fail(&spec).await;
        assert!(
            failure.errno == 1 && failure.hint.contains("only root"),
            "{failure}"
        );
        return;
    }
    spec.user = Some("nobody".into());
    let mut running = rig.spawn(&spec).await;
    assert_eq!(running.exited().await.result, ExitResult::Success);
    let log = rig.log(&spec);
    let mut lines = log.lines();
    let uid: u32 = lines.next().unwrap().parse().unwrap();
    assert!(uid > 0, "{log}");
    assert!(lines.next().unwrap().parse::<u32>().unwrap() > 0, "{log}");
    assert!(
        lines.next().unwrap().split(' ').all(|group| group != "0"),
        "{log}"
    );
    assert_eq!(lines.collect::<Vec<_>>(), ["nobody", "may notify"], "{log}");
}

#[tokio::test]
async fn a_program_is_looked_for_where_its_user_may_go() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let rig = Rig::new().await;
    // Executable for all, in a directory for root alone.
    let closed = rig.path("closed");
    std::fs::create_dir(&closed).unwrap();
    let mode = |path: &std::path::Path, mode| {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(path, permissions).unwrap();
    };
    std::fs::write(closed.join("id"), "#!/bin/sh\necho closed\n").unwrap();
    mode(&closed.join("id"), 0o755);
    mode(&closed, 0o700);
    let mut spec = spec("web.1", &["id", "-u"]);
    spec.user = Some("54321".into());
    spec.group = Some("54322".into());
    let path = format!("{}:/usr/bin:/bin", closed.display());
    spec.env.insert("PATH".into(), path);
    let mut running = rig.spawn(&spec).await;
    assert_eq!(running.exited().await.result, ExitResult::Success);
    assert_eq!(rig.log(&spec), "54321\n");
}
