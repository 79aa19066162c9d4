//! A host that has no room left (disk, process ids, descriptors), or loses its
//! run directory: services go on, what cannot be done is said, and it can be
//! done again when there is room.

// A test that cannot go on panics: that is its way to fail.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use blackhole_bus_schema::component::Ping;
use blackhole_bus_schema::process::{
    ExitResult, ExitStatus, Failure, InstanceRecord, ProcessState, SpawnFailure, StateName,
};
use blackhole_process_manager::host;
use blackhole_process_manager::shim::client::read_record;
use rustix::process::{Pid, Resource, Rlimit};
use support::*;

use StateName::{Running, Terminated};

/// Set in the copy of a test that has a mount namespace of its own.
const INSIDE: &str = "BLACKHOLE_TEST_MOUNTS";

/// Runs a test again in a mount namespace of its own, where it may mount what it
/// likes; returns true in there.
fn in_own_mounts(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED {test}: only root may mount");
        return false;
    }
    let temp = tempfile::Builder::new().prefix("bh").tempdir().unwrap();
    let status = Command::new("unshare")
        .arg("-m")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .env("TMPDIR", temp.path())
        .status()
        .unwrap();
    assert!(status.success(), "{test}: {status}");
    false
}

/// Mounts a file system of this size on a directory.
fn mount(options: &str, on: &Path) {
    std::fs::create_dir_all(on).unwrap();
    let mut command = Command::new("mount");
    command.args(["-t", "tmpfs", "-o", options, "none"]).arg(on);
    assert!(command.status().unwrap().success());
}

fn unmount(from: &Path) {
    let mut command = Command::new("umount");
    command.arg("-l").arg(from);
    assert!(command.status().unwrap().success());
}

/// Takes all the room there is.
fn fill(directory: &Path) -> PathBuf {
    use std::io::Write;
    let path = directory.join("filler");
    let mut file = std::fs::File::create(&path).unwrap();
    for size in [4096, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    path
}

async fn notes(bench: &Bench) -> Vec<String> {
    bench.request(&Ping {}).await.unwrap().notes
}

/// A service that writes a line each time a file is made.
fn talker(bench: &Bench, instance: &str) -> blackhole_bus_schema::process::SpawnSpec {
    let text = format!(
        "echo first; while :; do if [ -e {0} ]; then rm {0}; head -c 5000 /dev/zero | tr '\\0' x; \
         echo; fi; sleep 0.01; done",
        bench.path(&format!("{instance}.say")).display()
    );
    script(instance, 1, &text)
}

async fn talks(bench: &Bench, instance: &str) {
    let say = bench.path(&format!("{instance}.say"));
    std::fs::write(&say, "").unwrap();
    until("the service to go on", || (!say.exists()).then_some(())).await;
}

#[tokio::test]
async fn a_full_disk_stops_nobody_and_is_told() {
    if !in_own_mounts("a_full_disk_stops_nobody_and_is_told") {
        return;
    }
    let mut bench = Bench::prepare(&[]).await;
    let state = bench.dirs.state.clone();
    mount("size=1m,mode=700", &state);
    bench.dirs.create().unwrap();
    bench.start_manager().await;
    let old = bench.run(&talker(&bench, "old.1")).await.state.pid();
    until("its first line", || {
        let log = std::fs::read_to_string(bench.dirs.instance(&name("old.1")).join("log"));
        log.is_ok_and(|log| log.contains("first")).then_some(())
    })
    .await;
    let filler = fill(&state);
    // Neither what runs nor what begins now is held up.
    talks(&bench, "old.1").await;
    talks(&bench, "old.1").await;
    let new = bench.run(&talker(&bench, "new.1")).await.state.pid();
    talks(&bench, "new.1").await;
    let told = loop {
        let notes = notes(&bench).await;
        let of = |instance: &str| notes.iter().any(|note| note.starts_with(instance));
        if of("old.1") && of("new.1") {
            break notes;
        }
    };
    assert!(
        told.iter().all(|note| note.contains("No space left")),
        "{told:?}"
    );
    // Managers come and go on a full disk, too.
    bench.kill_manager();
    let records = bench.start_manager().await;
    for (instance, pid) in [("old.1", old), ("new.1", new)] {
        assert_eq!(find(&records, instance).state.pid(), pid, "{instance}");
    }
    // An end finds its place: it was kept from the start.
    let ended = bench.stop("old.1", 1).await.unwrap();
    let exit = ended.state.exit().unwrap();
    assert_eq!(exit.result, ExitResult::Stopped);
    let record = read_record(&bench.dirs.instance(&name("old.1"))).unwrap();
    assert_eq!(record.unwrap().exit.as_ref(), Some(exit));
    bench.kill_manager();
    let records = bench.start_manager().await;
    assert_eq!(find(&records, "old.1").state.exit(), Some(exit));
    // One that could not be recorded is held all the same: there is no second one.
    let again = bench.spawn(&talker(&bench, "new.1")).await.unwrap();
    assert_eq!(again.state.pid(), new);
    assert_eq!(members(&bench.dirs.run, "new.1").first().copied(), new);
    // With room again the end is recorded, with all before it.
    std::fs::remove_file(filler).unwrap();
    let ended = bench.stop("new.1", 1).await.unwrap();
    let exit = ended.state.exit().unwrap();
    assert_eq!((exit.result, Some(exit.pid)), (ExitResult::Stopped, new));
    bench.kill_manager();
    let records = bench.start_manager().await;
    assert_eq!(find(&records, "new.1").state.exit(), Some(exit));
    bench.run(&sleeper("new.1", 2)).await;
    bench.stop("new.1", 2).await.unwrap();
    bench.kill_manager();
    unmount(&state);
}

#[tokio::test]
async fn a_full_run_directory_costs_sockets_and_no_service() {
    if !in_own_mounts("a_full_run_directory_costs_sockets_and_no_service") {
        return;
    }
    let mut bench = Bench::prepare(&[]).await;
    let run = bench.dirs.run.clone();
    mount("size=1m,nr_inodes=64,mode=700", &run);
    bench.dirs.create().unwrap();
    bench.start_manager().await;
    // Its link was there before the mount, and connects to what is at the path.
    let old = bench.run(&sleeper("old.1", 1)).await.state.pid();
    let mut fillers = Vec::new();
    while let Ok(()) = std::fs::write(run.join(format!("filler{}", fillers.len())), "") {
        fillers.push(run.join(format!("filler{}", fillers.len())));
    }
    assert!(!fillers.is_empty());
    let new = bench.run(&sleeper("new.1", 1)).await.state.pid();
    until("its word that there is no socket", || {
        bench.words().contains("no socket").then_some(())
    })
    .await;
    bench.kill_manager();
    // A manager removes its predecessor's sockets and binds its own in their place.
    let records = bench.start_manager().await;
    assert_eq!(find(&records, "old.1").state.pid(), old);
    assert_eq!(find(&records, "new.1").state.pid(), new);
    let ended = bench.stop("old.1", 1).await.unwrap();
    assert_eq!(ended.state.exit().unwrap().result, ExitResult::Stopped);
    for filler in fillers {
        std::fs::remove_file(filler).unwrap();
    }
    let ended = bench.stop("new.1", 1).await.unwrap();
    assert!(ended.state.exit().is_some());
    gone(new.unwrap()).await;
    bench.run(&sleeper("new.1", 2)).await;
    bench.stop("new.1", 2).await.unwrap();
    bench.kill_manager();
    // It would not be found any more when its lock's file is out of sight.
    if let Some(server) = host::lock_holder(&bench.fork_server_lock()).unwrap() {
        kill(server);
        gone(server).await;
    }
    unmount(&run);
}

/// A cgroup that limits the number of processes, below this process's own.
struct Pids(PathBuf);

impl Pids {
    fn new() -> Option<Self> {
        let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let of_pids = |line: &str| {
            let mut parts = line.splitn(3, ':').skip(1);
            let is = parts.next()?.split(',').any(|one| one == "pids");
            is.then(|| parts.next().map(str::to_owned)).flatten()
        };
        let path = own.lines().find_map(of_pids)?;
        let base = Path::new("/sys/fs/cgroup/pids").join(path.trim_start_matches('/'));
        let group = base.join(format!("blackhole-test-{}", std::process::id()));
        std::fs::create_dir(&group).ok()?;
        Some(Self(group))
    }

    fn add(&self, pid: u32) {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// No more than there are.
    fn close(&self) {
        let now = std::fs::read_to_string(self.0.join("pids.current")).unwrap();
        std::fs::write(self.0.join("pids.max"), now.trim()).unwrap();
    }

    fn open(&self) {
        std::fs::write(self.0.join("pids.max"), "max").unwrap();
    }
}

impl Drop for Pids {
    fn drop(&mut self) {
        self.open();
        let procs = self.0.join("cgroup.procs");
        for pid in std::fs::read_to_string(procs).unwrap_or_default().lines() {
            kill(pid.parse().unwrap());
        }
        let begun = std::time::Instant::now();
        while std::fs::remove_dir(&self.0).is_err() && begun.elapsed() < LIMIT {
            std::thread::yield_now();
        }
    }
}

fn failure(record: &InstanceRecord) -> SpawnFailure {
    match &record.state {
        ProcessState::Failed {
            failure: Failure::Spawn { failure },
        } => failure.clone(),
        other => panic!("{other:?}"),
    }
}

fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let text = text.unwrap_or_default();
    text.split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

#[tokio::test]
async fn a_full_pid_table_fails_starts_by_name_until_there_is_room() {
    let Some(pids) = Pids::new() else {
        eprintln!("SKIPPED: no pids cgroup of its own can be made here");
        return;
    };
    let bench = Bench::start().await;
    let lock = bench.fork_server_lock();
    let server = until("a fork server", || host::lock_holder(&lock).unwrap()).await;
    let old = bench.run(&sleeper("old.1", 1)).await.state.pid().unwrap();
    for pid in children(server) {
        pids.add(pid);
    }
    pids.add(server);
    for pid in children(server) {
        pids.add(pid);
    }
    pids.add(bench.shim("old.1"));
    pids.close();
    // An idle shim that is there has room for itself and for nobody else.
    let refused = bench.spawn(&sleeper("new.1", 1)).await.unwrap();
    let why = failure(&refused);
    assert_eq!(why.errno, libc::EAGAIN, "{why}");
    assert!(why.hint.contains("limit of processes"), "{why}");
    // What runs is as it was, and can be stopped without a new process.
    assert!(runs(old));
    let ended = bench.stop("old.1", 1).await.unwrap();
    assert_eq!(ended.state.exit().unwrap().result, ExitResult::Stopped);
    pids.open();
    bench.run(&sleeper("new.1", 2)).await;
    bench.stop("new.1", 2).await.unwrap();
}

fn limit_files(pid: u32, files: u64) -> Rlimit {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap());
    let new = Rlimit {
        current: Some(files),
        maximum: rustix::process::getrlimit(Resource::Nofile).maximum,
    };
    rustix::process::prlimit(pid, Resource::Nofile, new).unwrap()
}

fn descriptors(pid: u32) -> u64 {
    u64::try_from(
        std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .count(),
    )
    .unwrap()
}

fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let rest = stat.rsplit(") ").next().unwrap();
    let field = |n: usize| rest.split(' ').nth(n).unwrap().parse::<u64>().unwrap();
    field(11) + field(12)
}

#[tokio::test]
async fn a_manager_without_descriptors_says_so_and_goes_on_when_it_has_some() {
    let bench = Bench::start().await;
    let old = bench.run(&sleeper("old.1", 1)).await.state.pid().unwrap();
    let manager = bench.manager.as_ref().unwrap().id();
    let before = limit_files(manager, descriptors(manager));
    // The connections that are there serve.
    let refused = bench.spawn(&script("new.1", 1, "exit 0")).await.unwrap();
    match &refused.state {
        ProcessState::Failed {
            failure: Failure::Spawn { failure },
        } => assert_eq!(failure.errno, libc::EMFILE, "{failure}"),
        // By a connection made ahead there may have been a way.
        ProcessState::Running { .. } | ProcessState::Stopping { .. } => {}
        ProcessState::Terminated { .. } => {}
        other => panic!("{other:?}"),
    }
    let ended = bench.stop("old.1", 1).await.unwrap();
    assert_eq!(ended.state.exit().unwrap().result, ExitResult::Stopped);
    gone(old).await;
    limit_files(manager, before.current.unwrap());
    bench.run(&sleeper("new.1", 2)).await;
    bench.stop("new.1", 2).await.unwrap();
}

#[tokio::test]
async fn a_fork_server_without_descriptors_does_not_spin_and_recovers() {
    let bench = Bench::start().await;
    let lock = bench.fork_server_lock();
    let server = until("a fork server", || host::lock_holder(&lock).unwrap()).await;
    // Enough to wait for something, not enough to accept anybody.
    let before = limit_files(server, 3);
    for pid in children(server) {
        kill(pid);
    }
    for pid in children(server) {
        kill(pid);
    }
    let log = bench.dirs.state.join("log/fork-server.log");
    until("a shim that cannot accept", || {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        log.contains("cannot accept").then_some(())
    })
    .await;
    // It tries again at leisure: some ten forks in the time of hundreds.
    let count = || {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        log.matches("cannot accept").count()
    };
    let (begun, first) = (std::time::Instant::now(), count());
    until("a few more", || (count() >= first + 8).then_some(())).await;
    let took = begun.elapsed();
    assert!(took.as_millis() >= 200, "eight more within {took:?}");
    assert!(cpu_ticks(server) < 1_000);
    limit_files(server, before.current.unwrap());
    bench.run(&sleeper("new.1", 1)).await;
    bench.stop("new.1", 1).await.unwrap();
}

/// Whoever may set limits of foreign processes may set a shim's below what it
/// waits for, where poll(2) fails at once.
#[tokio::test]
async fn a_shim_without_descriptors_does_not_spin_and_goes_on() {
    let bench = Bench::start().await;
    let set = |pid: u32, current: u64, maximum: Option<u64>| {
        let pid = Pid::from_raw(i32::try_from(pid).unwrap());
        let current = Some(current);
        rustix::process::prlimit(pid, Resource::Nofile, Rlimit { current, maximum }).unwrap()
    };
    let log = |instance: &str| bench.dirs.instance(&name(instance)).join("log");
    let lines = |instance: &str| std::fs::read(log(instance)).unwrap_or_default().len();
    // The soft limit it puts back; below a hard one it looks at them in parts, and
    // with none at all it tries each.
    for (instance, soft, hard) in [
        ("soft.1", 1, None),
        ("parts.1", 2, Some(2)),
        ("none.1", 0, Some(0)),
    ] {
        bench.run(&talker(&bench, instance)).await;
        let shim = bench.shim(instance);
        // Its log is open from then on.
        until("the first line", || (lines(instance) > 0).then_some(())).await;
        let before = set(shim, soft, hard.or_else(|| files_hard(shim)));
        let (ticks, begun) = (cpu_ticks(shim), std::time::Instant::now());
        for _ in 0..5 {
            let known = lines(instance);
            talks(&bench, instance).await;
            until("the line in the log", || {
                (lines(instance) > known).then_some(())
            })
            .await;
        }
        if hard.is_none() {
            assert_eq!(files_soft(shim), before.maximum, "{instance}");
        } else {
            assert_eq!(files_soft(shim), hard, "{instance}");
            // Five pauses at the least, in which nothing is done: 1/100 s is a tick.
            let (ticks, took) = (cpu_ticks(shim) - ticks, begun.elapsed());
            assert!(
                u128::from(ticks) * 10 < took.as_millis() / 2,
                "{instance}: {ticks} ticks within {took:?}"
            );
        }
        let ended = bench.stop(instance, 1).await.unwrap();
        let exit = ended.state.exit().unwrap();
        assert_eq!(exit.result, ExitResult::Stopped, "{instance}");
    }
}

fn files_soft(pid: u32) -> Option<u64> {
    files(pid)[0]
}

fn files_hard(pid: u32) -> Option<u64> {
    files(pid)[1]
}

/// Soft and hard limit of open files, see /proc/pid/limits in proc(5).
fn files(pid: u32) -> [Option<u64>; 2] {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let mut words = line.unwrap()["Max open files".len()..].split_whitespace();
    [(); 2].map(|()| words.next().unwrap().parse().ok())
}

#[tokio::test]
async fn without_its_run_directory_a_successor_finds_all_and_has_them_listen_again() {
    let mut bench = Bench::start().await;
    let pid = bench.run(&sleeper("web.1", 1)).await.state.pid();
    let mut gone_by = bench.run(&script("by.1", 1, "sleep 0.3; exit 4")).await;
    std::fs::remove_dir_all(&bench.dirs.run).unwrap();
    until("the end of one meanwhile", || {
        let record = read_record(&bench.dirs.instance(&name("by.1"))).unwrap();
        record.and_then(|record| record.exit)
    })
    .await;
    gone_by.notify = Default::default();
    bench.kill_manager();
    let records = bench.start_manager().await;
    assert_eq!(find(&records, "web.1").state.pid(), pid);
    assert_eq!(find(&records, "web.1").state.name(), Running);
    let by = find(&records, "by.1").state.exit().unwrap();
    assert_eq!(by.status, ExitStatus::Exited { code: 4 });
    // It is stopped in order, not killed for want of a socket.
    let ended = bench.stop("web.1", 1).await.unwrap();
    assert_eq!(ended.state.name(), Terminated);
    assert_eq!(ended.state.exit().unwrap().result, ExitResult::Stopped);
    bench.run(&sleeper("web.1", 2)).await;
    bench.stop("web.1", 2).await.unwrap();
}
