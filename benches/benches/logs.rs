//! Lines of 100 bytes from a service through its shim to the log, timestamped and
//! rotated, beside the same bytes through a pipe and cat(1) into a file.
//!
//! The service is this program itself: it writes numbered lines as fast as it can,
//! in pieces of 64 KiB. Each run is checked: all lines are there, in order.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use blackhole_benches::{Daemon, runtime};
use blackhole_bus_schema::bus::{Interest, Link, LinkEvent};
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::names::{ClientName, Component, Generation};
use blackhole_bus_schema::process::{
    ListProcesses, LogFormat, LogSpec, ProcessChanged, Spawn, SpawnSpec, StateName,
};
use blackhole_bus_schema::topic;
use criterion::{Criterion, Throughput, criterion_group};
use tokio::sync::mpsc;

const BUDGET: Duration = Duration::from_secs(60);
const LINES: u64 = 3_000_000;
const LINE: usize = 100;
/// What makes this program write lines.
const WRITE: &str = "--write-lines";

/// Writes numbered lines of [`LINE`] bytes.
fn write_lines() {
    // Without the line buffering of the standard library.
    let mut out = File::from(std::io::stdout().as_fd().try_clone_to_owned().unwrap());
    let mut buffer = Vec::with_capacity(64 * 1024);
    let mut line = [b'x'; LINE];
    line[..11].copy_from_slice(b"0000000000 ");
    line[LINE - 1] = b'\n';
    for _ in 0..LINES {
        if buffer.len() + LINE > buffer.capacity() {
            out.write_all(&buffer).unwrap();
            buffer.clear();
        }
        buffer.extend_from_slice(&line);
        for digit in line[..10].iter_mut().rev() {
            if *digit < b'9' {
                *digit += 1;
                break;
            }
            *digit = b'0';
        }
    }
    out.write_all(&buffer).unwrap();
}

fn floor(c: &mut Criterion) {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("copy");
    let mut group = c.benchmark_group("log lines");
    group
        .sample_size(10)
        .throughput(Throughput::Elements(LINES));
    group.bench_function("floor: a pipe and cat into a file", |b| {
        b.iter_custom(|times| {
            let mut total = Duration::ZERO;
            for _ in 0..times {
                let _ = std::fs::remove_file(&path);
                let begin = Instant::now();
                let mut writer = Command::new(std::env::current_exe().unwrap())
                    .arg(WRITE)
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap();
                let pipe = writer.stdout.take().unwrap();
                let cat = Command::new("cat")
                    .stdin(pipe)
                    .stdout(File::create(&path).unwrap())
                    .status()
                    .unwrap();
                total += begin.elapsed();
                assert!(cat.success() && writer.wait().unwrap().success());
                assert_eq!(path.metadata().unwrap().len(), LINES * LINE as u64);
            }
            total
        });
    });
    group.finish();
}

fn through_a_shim(c: &mut Criterion) {
    let temp = tempfile::tempdir().unwrap();
    let dirs = Dirs::resolve(Some(temp.path().join("r")), Some(temp.path().join("s"))).unwrap();
    dirs.create().unwrap();
    let manager = Daemon::start("blackhole-process-manager", &dirs);
    let runtime = runtime();
    let (link, mut events) = runtime.block_on(async {
        let to = Component::ProcessManager(None);
        let interest = Interest::none().stream::<ListProcesses>(topic::PROCESS);
        let (link, events) = Link::open(&dirs, ClientName::fresh("bench"), to, interest)
            .await
            .unwrap();
        link.ready(BUDGET).await.unwrap();
        (link, events)
    });
    let mut generation = Generation(0);
    let mut group = c.benchmark_group("log lines");
    group
        .sample_size(10)
        .throughput(Throughput::Elements(LINES));
    for (name, format, max_bytes, max_files) in [
        ("through a shim, text", LogFormat::Text, 16 << 20, 1000),
        (
            "through a shim, text, the last 5 files kept",
            LogFormat::Text,
            16 << 20,
            4,
        ),
        (
            "through a shim, text, not rotated",
            LogFormat::Text,
            1 << 40,
            4,
        ),
        ("through a shim, json", LogFormat::Json, 16 << 20, 1000),
    ] {
        group.bench_function(name, |b| {
            b.iter_custom(|times| {
                runtime.block_on(async {
                    let mut total = Duration::ZERO;
                    for _ in 0..times {
                        generation = generation.next();
                        let spec = spec(generation, format, max_bytes, max_files);
                        let folder = dirs.instance(&spec.instance);
                        let begin = Instant::now();
                        link.request(&Spawn { spec }, BUDGET).await.unwrap();
                        ended(&mut events, generation).await;
                        total += begin.elapsed();
                        check(&folder, max_files == 1000);
                    }
                    total
                })
            });
        });
    }
    group.finish();
    drop(link);
    drop(manager);
    stop_fork_server(&dirs);
}

fn spec(generation: Generation, format: LogFormat, max_bytes: u64, max_files: u32) -> SpawnSpec {
    let program = std::env::current_exe().unwrap();
    SpawnSpec {
        instance: "bench.1".parse().unwrap(),
        generation,
        command: vec![program.display().to_string(), WRITE.to_owned()],
        env: Default::default(),
        working_dir: None,
        user: None,
        group: None,
        open_files: None,
        stop: Default::default(),
        success_codes: vec![0],
        probes: Default::default(),
        logs: LogSpec {
            max_bytes,
            max_files,
            compress: false,
            format,
            ..LogSpec::default()
        },
        grant: None,
        permit: None,
        restarts: 0,
        settings: Default::default(),
    }
}

/// Waits for the end of the service: by then its output is in the files.
async fn ended(events: &mut mpsc::Receiver<LinkEvent>, generation: Generation) {
    loop {
        let event = tokio::time::timeout(BUDGET, events.recv()).await.unwrap();
        if let Some(LinkEvent::Event(received)) = event
            && let Ok(change) = received.parse::<ProcessChanged>()
            && change.record.generation == generation
        {
            assert_eq!(change.record.lost_log_lines, 0);
            match change.record.state.name() {
                StateName::Terminated => return,
                StateName::Failed => panic!("{:?}", change.record.state),
                _ => {}
            }
        }
    }
}

/// All lines are there once and in order (or, where old files go, the last
/// ones); then they are removed.
fn check(folder: &Path, all: bool) {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("log"))
        .collect();
    names.sort();
    names.rotate_left(1);
    let mut next = None;
    for name in names {
        let path = folder.join(name);
        for line in std::fs::read(&path)
            .unwrap()
            .split_inclusive(|byte| *byte == b'\n')
        {
            // The number is the beginning of the text, which is as long in either form.
            let tail = if line.ends_with(b"\"}\n") { 2 } else { 0 };
            let text = &line[line.len() - tail - LINE..];
            let number: u64 = std::str::from_utf8(&text[..10]).unwrap().parse().unwrap();
            assert_eq!(number, next.unwrap_or(if all { 0 } else { number }));
            next = Some(number + 1);
        }
        std::fs::remove_file(path).unwrap();
    }
    assert_eq!(next, Some(LINES));
}

/// What a killed manager leaves: the fork server and its idle shims, known by
/// their run directory in their arguments.
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

criterion_group!(benches, floor, through_a_shim);

fn main() {
    if std::env::args().any(|argument| argument == WRITE) {
        write_lines();
        return;
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
