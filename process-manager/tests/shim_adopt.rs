//! Services outlive whoever started them, and their ends are not lost.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod shim_support;

use std::fs;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::process::{ExitResult, ExitStatus};
use blackhole_process_manager::shim::client::{
    ClientError, ForkServer, ShimEvent, ShimPhase, attach, instance_lock_held, read_record,
};
use blackhole_process_manager::shim::sweep;
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::process::Signal;
use shim_support::{
    Rig, Running, end, fork_server_pid, line_of, lives, options, spec, tagged, until,
};

#[tokio::test]
async fn a_shim_whose_manager_left_is_found_again_with_the_same_process() {
    let rig = Rig::new().await;
    let spec = rig.script("exec sleep 1000");
    let running = rig.spawn(&spec).await;
    let started = running.started.clone();
    drop(running);
    let attached = attach(&rig.dirs, &spec.instance).await.unwrap();
    assert_eq!(attached.status.started, started);
    assert_eq!(
        (attached.status.phase, attached.status.generation),
        (ShimPhase::Running, Generation(1))
    );
    assert!(lives(started.pid));
    assert_eq!(attached.handle.status().await.unwrap(), attached.status);
    let mut again = Running {
        started,
        handle: attached.handle,
        events: attached.events,
    };
    again.stop(Duration::from_secs(600)).await;
    assert_eq!(again.next().await, ShimEvent::Stopping);
    assert_eq!(again.exited().await.result, ExitResult::Stopped);
    assert!(again.events.next().await.is_none());
    match attach(&rig.dirs, &spec.instance).await {
        Err(ClientError::NoShim { .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_end_that_nobody_saw_is_on_disk() {
    let rig = Rig::new().await;
    let go = rig.path("go");
    let spec = rig.script(&format!(
        "while ! test -e {}; do sleep 0.01; done; exit 4",
        go.display()
    ));
    let running = rig.spawn(&spec).await;
    let started = running.started.clone();
    drop(running);
    fs::write(&go, "").unwrap();
    let folder = rig.folder(&spec);
    until("the lock is free", || {
        instance_lock_held(&folder).unwrap().is_none().then_some(())
    })
    .await;
    let record = read_record(&folder).unwrap().unwrap();
    let exit = record.exit.unwrap();
    assert_eq!(
        (exit.status, exit.result),
        (ExitStatus::Exited { code: 4 }, ExitResult::ExitCode)
    );
    assert_eq!((exit.pid, record.shim_pid), (started.pid, started.shim_pid));
    assert_eq!(record.boot_id.len(), 36);
}

#[tokio::test]
async fn two_shims_cannot_hold_one_instance() {
    let rig = Rig::new().await;
    let spec = rig.script("exec sleep 1000");
    let running = rig.spawn(&spec).await;
    let shim = running.started.shim_pid;
    assert_eq!(instance_lock_held(&rig.folder(&spec)).unwrap(), Some(shim));
    let mut second = spec.clone();
    second.generation = Generation(2);
    let failure = rig.fail(&second).await;
    assert!(failure.operation.contains("lock"), "{failure}");
    assert!(failure.hint.contains(&format!("shim {shim}")), "{failure}");
    // The first is untouched: record, socket, lock.
    assert_eq!(
        read_record(&rig.folder(&spec)).unwrap().unwrap().generation,
        Generation(1)
    );
    let attached = attach(&rig.dirs, &spec.instance).await.unwrap();
    assert_eq!(attached.status.started, running.started);
    assert_eq!(instance_lock_held(&rig.folder(&spec)).unwrap(), Some(shim));
}

#[tokio::test]
async fn a_new_spawn_may_follow_the_end_at_once() {
    let rig = Rig::new().await;
    let mut spec = rig.script("exit 1");
    for generation in 1..30 {
        spec.generation = Generation(generation);
        let mut running = rig.spawn(&spec).await;
        assert_eq!(running.exited().await.generation, Generation(generation));
    }
}

#[tokio::test]
async fn a_killed_shim_takes_its_service_along_and_the_rest_is_swept() {
    let rig = Rig::new().await;
    let child = rig.path("child");
    let mut spec = rig.script(&format!(
        "setsid sh -c 'echo $$ > {}; exec sleep 1000' & exec sleep 1000",
        child.display()
    ));
    spec.env
        .insert("BH_TEST".into(), rig.path("").display().to_string());
    let mut running = rig.spawn(&spec).await;
    let child: u32 = line_of(&child).await.parse().unwrap();
    end(running.started.shim_pid, Signal::KILL);
    assert_eq!(running.next().await, ShimEvent::Gone);
    assert!(running.events.next().await.is_none());
    until("the service is killed by the kernel", || {
        (!lives(running.started.pid)).then_some(())
    })
    .await;
    assert!(lives(child), "nobody is there to kill it");
    let folder = rig.folder(&spec);
    assert_eq!(instance_lock_held(&folder).unwrap(), None);
    let record = read_record(&folder).unwrap().unwrap();
    assert_eq!(
        (record.exit.as_ref(), record.started.as_ref()),
        (None, Some(&running.started))
    );
    assert_eq!(sweep(&record.socket, record.grant.as_ref()), 1);
    until("it is swept", || {
        tagged(&rig.path("")).is_empty().then_some(())
    })
    .await;
    // The next generation starts over what the lost shim left: lock file, socket, record.
    spec.generation = Generation(2);
    let running = rig.spawn(&spec).await;
    assert!(lives(running.started.pid));
}

#[tokio::test]
async fn shims_go_on_without_their_fork_server_and_another_takes_its_place() {
    let rig = Rig::new().await;
    let spec1 = rig.script("exec sleep 1000");
    let mut running = rig.spawn(&spec1).await;
    let server = fork_server_pid(&rig.dirs).unwrap();
    end(server, Signal::KILL);
    assert!(lives(running.started.pid) && lives(running.started.shim_pid));
    let spec2 = spec("web.2", &["sleep", "1000"]);
    let new = ForkServer::ensure(&rig.dirs, &options()).await.unwrap();
    assert!(fork_server_pid(&rig.dirs).is_some_and(|pid| pid != server));
    let (second, ..) = new.spawn(&rig.request(&spec2)).await.unwrap();
    assert!(lives(second.pid));
    running.handle.kill(false).await.unwrap();
    assert_eq!(running.exited().await.result, ExitResult::Stopped);
    ForkServer::shutdown(&rig.dirs).await.unwrap();
    assert_eq!(fork_server_pid(&rig.dirs), None);
    assert!(lives(second.pid) && lives(second.shim_pid));
    assert_eq!(
        fs::read_dir(rig.dirs.fork_server_dir()).unwrap().count(),
        0,
        "no socket and no lock is left"
    );
    ForkServer::shutdown(&rig.dirs).await.unwrap();
}

/// Not a test by itself: holds the lock that `BH_HOLD` names until its input ends, as a fork
/// server does that has been killed and is not gone yet.
#[test]
fn helper_that_holds_a_lock() {
    let Ok(path) = std::env::var("BH_HOLD") else {
        return;
    };
    let mut options = fs::File::options();
    let file = options.read(true).write(true).create(true).truncate(false);
    let file = file.open(path).unwrap();
    fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
}

#[tokio::test]
async fn a_fork_server_that_is_going_is_not_asked() {
    let rig = Rig::new().await;
    end(fork_server_pid(&rig.dirs).unwrap(), Signal::KILL);
    let folder = rig.dirs.fork_server_dir();
    let files = fs::read_dir(&folder).unwrap().flatten();
    let paths: Vec<_> = files.map(|file| file.path()).collect();
    let lock = paths.iter().find(|path| path.extension().is_some());
    assert_eq!(paths.len(), 2, "its socket and lock are there: {paths:?}");
    let socket = paths.iter().find(|path| path.extension().is_none());
    until("its idle shims to be gone", || {
        UnixStream::connect(socket.unwrap()).is_err().then_some(())
    })
    .await;
    let mut helper = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "helper_that_holds_a_lock"])
        .env("BH_HOLD", lock.unwrap())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    until("the lock to be held", || {
        (fork_server_pid(&rig.dirs) == Some(helper.id())).then_some(())
    })
    .await;
    let options = options();
    let mut ensured = std::pin::pin!(ForkServer::ensure(&rig.dirs, &options));
    // Nobody listens, and it is held: there is nothing to be had until that changes.
    let early = tokio::time::timeout(Duration::from_millis(100), &mut ensured).await;
    assert!(early.is_err(), "{early:?}");
    drop(helper.stdin.take());
    assert!(helper.wait().unwrap().success());
    let server = ensured.await.unwrap();
    let spec = spec("web.2", &["sleep", "1000"]);
    let (started, handle, _events) = server.spawn(&rig.request(&spec)).await.unwrap();
    assert!(lives(started.pid));
    handle.kill(false).await.unwrap();
}

#[tokio::test]
async fn of_two_fork_servers_the_second_leaves_quietly() {
    let rig = Rig::new().await;
    let server = fork_server_pid(&rig.dirs);
    let dir = rig.dirs.fork_server_dir();
    for _ in 0..3 {
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_blackhole-shim"))
            .arg("--dir")
            .arg(&dir)
            .output()
            .await
            .unwrap();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        );
    }
    assert_eq!(fork_server_pid(&rig.dirs), server);
    // Many at once, and none before: one of them wins.
    ForkServer::shutdown(&rig.dirs).await.unwrap();
    let many: Vec<_> = (0..8)
        .map(|_| {
            let dirs = rig.dirs.clone();
            tokio::spawn(async move { ForkServer::ensure(&dirs, &options()).await.unwrap() })
        })
        .collect();
    for one in many {
        one.await.unwrap();
    }
    let mut running = rig.spawn(&rig.script("exit 0")).await;
    assert_eq!(running.exited().await.result, ExitResult::Success);
}

#[tokio::test]
async fn a_fork_server_that_cannot_start_says_why() {
    let rig = Rig::new().await;
    let file = rig.path("file");
    fs::write(&file, "").unwrap();
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_blackhole-shim"))
        .arg("--dir")
        .arg(file.join("fs"))
        .output()
        .await
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && said.contains("file/fs"),
        "{said}"
    );
}

#[tokio::test]
async fn without_its_run_directory_a_shim_goes_on_and_a_fork_server_ends() {
    let rig = Rig::new().await;
    let spec = rig.script("exec sleep 1000");
    let mut running = rig.spawn(&spec).await;
    let server = fork_server_pid(&rig.dirs).unwrap();
    fs::remove_dir_all(&rig.dirs.run).unwrap();
    until("the fork server has ended", || {
        (!lives(server)).then_some(())
    })
    .await;
    // The connection that was there stays.
    assert_eq!(
        running.handle.status().await.unwrap().phase,
        ShimPhase::Running
    );
    // Whoever makes a new one has it listen again; there is no second socket for it.
    for _ in 0..2 {
        let attached = attach(&rig.dirs, &spec.instance).await.unwrap();
        assert_eq!(attached.status.started, running.started);
    }
    assert!(rig.dirs.shim_socket(&spec.instance).exists());
    running.handle.kill(false).await.unwrap();
    running.exited().await;
    assert!(
        read_record(&rig.folder(&spec))
            .unwrap()
            .unwrap()
            .exit
            .is_some()
    );
}

#[tokio::test]
async fn a_cut_connection_is_made_again_by_itself() {
    let rig = Rig::new().await;
    let spec = rig.script("exec sleep 1000");
    let mut running = rig.spawn(&spec).await;
    // As many clients as it takes for the shim to drop the oldest, the manager's.
    let socket = rig.dirs.shim_socket(&spec.instance);
    let watch = blackhole_process_manager::shim::protocol::Request {
        id: 1,
        request: blackhole_process_manager::shim::protocol::RequestBody::Watch,
    };
    let mut frame = Vec::new();
    blackhole_process_manager::shim::protocol::encode(&watch, 1000, &mut frame).unwrap();
    let mut others = Vec::new();
    let status = loop {
        let mut client = UnixStream::connect(&socket).unwrap();
        std::io::Write::write_all(&mut client, &frame).unwrap();
        others.push(client);
        assert!(others.len() < 100, "the oldest is never dropped");
        let event = tokio::time::timeout(Duration::from_millis(50), running.events.next()).await;
        if let Ok(Some(event)) = event {
            break event;
        }
    };
    let ShimEvent::Status(status) = status else {
        panic!("{status:?}")
    };
    assert_eq!(status.started, running.started);
    running.handle.kill(false).await.unwrap();
    assert_eq!(running.exited().await.result, ExitResult::Stopped);
}

#[tokio::test]
async fn many_spawns_at_once_all_come_through() {
    let rig = Rig::new().await;
    let mut tasks = Vec::new();
    for number in 1..=60 {
        let request = rig.request(&spec(&format!("web.{number}"), &["sleep", "1000"]));
        let server = rig.server.clone();
        tasks.push(tokio::spawn(async move {
            server.spawn(&request).await.unwrap()
        }));
    }
    let mut running = Vec::new();
    for task in tasks {
        let (started, handle, events) = task.await.unwrap();
        running.push(Running {
            started,
            handle,
            events,
        });
    }
    for one in &mut running {
        one.handle.kill(false).await.unwrap();
    }
    for one in &mut running {
        assert_eq!(one.exited().await.result, ExitResult::Stopped);
    }
}
