//! From the command on the bus to the answer that the service runs, beside a
//! bare fork and exec of the same program (`std::process` uses vfork semantics
//! where it can, see posix_spawn(3)).

#![allow(clippy::unwrap_used, missing_docs)]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use blackhole_benches::{Daemon, runtime};
use blackhole_bus_schema::bus::{Interest, Link};
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::names::{ClientName, Component, Generation};
use blackhole_bus_schema::process::{Spawn, SpawnSpec, Stop};
use criterion::{Criterion, criterion_group, criterion_main};

const BUDGET: Duration = Duration::from_secs(20);
const PROGRAM: [&str; 2] = ["/bin/sleep", "1000"];

fn floor(c: &mut Criterion) {
    c.benchmark_group("spawn")
        .bench_function("floor: std::process spawn", |b| {
            b.iter_custom(|times| {
                let mut total = Duration::ZERO;
                for _ in 0..times {
                    let begin = Instant::now();
                    let mut child = Command::new(PROGRAM[0])
                        .arg(PROGRAM[1])
                        .stdin(Stdio::null())
                        .spawn()
                        .unwrap();
                    total += begin.elapsed();
                    child.kill().unwrap();
                    child.wait().unwrap();
                }
                total
            });
        });
}

fn over_the_bus(c: &mut Criterion) {
    let temp = tempfile::tempdir().unwrap();
    let dirs = Dirs::resolve(Some(temp.path().join("r")), Some(temp.path().join("s"))).unwrap();
    dirs.create().unwrap();
    let manager = Daemon::start("blackhole-process-manager", &dirs);
    let runtime = runtime();
    let link = runtime.block_on(async {
        let to = Component::ProcessManager(None);
        let (link, _) = Link::open(&dirs, ClientName::fresh("bench"), to, Interest::none())
            .await
            .unwrap();
        link.ready(BUDGET).await.unwrap();
        link
    });
    let mut generation = Generation(0);
    c.benchmark_group("spawn")
        .bench_function("process.spawn until RUNNING", |b| {
            b.iter_custom(|times| {
                runtime.block_on(async {
                    let mut total = Duration::ZERO;
                    for _ in 0..times {
                        generation = generation.next();
                        let spec: SpawnSpec = spec(generation);
                        let instance = spec.instance.clone();
                        let begin = Instant::now();
                        link.request(&Spawn { spec }, BUDGET).await.unwrap();
                        total += begin.elapsed();
                        let stop = Stop {
                            instance,
                            generation,
                            stop: None,
                            unhealthy: false,
                        };
                        link.request(&stop, BUDGET).await.unwrap();
                    }
                    total
                })
            });
        });
    drop(link);
    drop(manager);
    stop_fork_server(&dirs);
}

fn spec(generation: Generation) -> SpawnSpec {
    SpawnSpec {
        instance: "bench.1".parse().unwrap(),
        generation,
        command: PROGRAM.iter().map(|&word| word.to_owned()).collect(),
        env: Default::default(),
        working_dir: None,
        user: None,
        group: None,
        open_files: None,
        stop: Default::default(),
        success_codes: vec![0],
        probes: Default::default(),
        logs: Default::default(),
        grant: None,
        permit: None,
        restarts: 0,
    }
}

/// What a killed manager leaves: the fork server and its idle shims, known by
/// their run directory in their environment or arguments.
fn stop_fork_server(dirs: &Dirs) {
    let needle = dirs.run.display().to_string();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).into_owned();
        if arguments.contains("blackhole-shim") && arguments.contains(&needle) {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
    }
}

criterion_group!(benches, floor, over_the_bus);
criterion_main!(benches);
