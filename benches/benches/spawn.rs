//! How fast services start, end and come back, beside bare vfork and exec (and
//! fork and exec) of the same static program, interleaved in the same run. The
//! service says itself when its first instruction ran. Limits, log capture and
//! registration are on.
//!
//! `cargo bench -p blackhole-benches --bench spawn` is criterion's report of the
//! latencies; `… --bench spawn -- --table [latency|start|busy|many|idle]` prints one
//! table of everything with its ratios to the floor.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use blackhole_benches::figures::{Samples, Table};
use blackhole_benches::floor::{self, Way};
use blackhole_benches::program;
use blackhole_benches::system::{System, cost};
use blackhole_benches::tiny::monotonic;
use criterion::Criterion;

/// Rounds of each latency in the table.
const ROUNDS: usize = 200;
/// After a start: writes that were put off and the host's averages of pressure are over,
/// which go on for half a minute.
const SETTLED: Duration = Duration::from_secs(30);
/// How long idle services are watched.
const IDLE: Duration = Duration::from_secs(20);

/// `one` may be started again by permit; `two` not, since it requires somebody.
fn pair(command: &str) -> String {
    format!(
        "  one: {{command: {command}, autostart: false, standby: true, restart: {{policy: always}}}}\n  \
         two: {{command: {command}, autostart: false, restart: {{policy: always}}, depends_on: {{three: started}}}}\n  \
         three: {{command: {command}, autostart: false}}\n"
    )
}

fn replicas(count: usize) -> impl Fn(&str) -> String {
    move |command| format!("  many: {{command: {command}, autostart: false, replicas: {count}}}\n")
}

/// From the command on the bus to the first instruction; the service runs afterwards.
fn start(system: &mut System, service: &str) -> Duration {
    system.tiny.clear();
    let begin = monotonic();
    system.up(service);
    system.tiny.first().at.saturating_sub(begin)
}

/// From the command on the bus to the event that says RUNNING.
fn running(system: &mut System, service: &str) -> Duration {
    system.tiny.clear();
    system.clear_events();
    let command = blackhole_bus_schema::supervision::StartServices {
        target: blackhole_bus_schema::supervision::Target::Services(vec![service.parse().unwrap()]),
    };
    let begin = monotonic();
    let supervisor = system.requests();
    let asked = system.runtime.spawn(async move {
        supervisor
            .request(&command, blackhole_benches::system::BUDGET)
            .await
            .unwrap();
    });
    system.await_running(service);
    let took = monotonic().saturating_sub(begin);
    system.runtime.block_on(asked).unwrap();
    // It may run and not have come to its first instruction.
    system.tiny.first();
    took
}

/// From kill -9 to the successor's first instruction.
fn restart(system: &mut System, pid: &mut u32) -> Duration {
    let victim = rustix::process::Pid::from_raw(i32::try_from(*pid).unwrap()).unwrap();
    let begin = monotonic();
    rustix::process::kill_process(victim, rustix::process::Signal::KILL).unwrap();
    let first = system.tiny.first();
    *pid = first.pid;
    first.at.saturating_sub(begin)
}

/// `blackhole start` as a process: to its end, which says that the service is ready.
fn command_line(system: &mut System, service: &str) -> Duration {
    system.tiny.clear();
    let begin = Instant::now();
    let status = Command::new(program("blackhole"))
        .arg("--run-dir")
        .arg(&system.dirs.run)
        .arg("--state-dir")
        .arg(&system.dirs.state)
        .args(["start", service])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    let took = begin.elapsed();
    assert!(status.success(), "blackhole start: {status}");
    system.tiny.first();
    took
}

fn rounds() -> usize {
    std::env::var("BENCH_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(ROUNDS)
}

/// Waits until the supervisor has called the service stable, so that the next
/// failure is the first in a row, and until its successor is ready.
fn settle() {
    std::thread::sleep(Duration::from_millis(900));
}

fn latencies(table: &mut Table) {
    let mut system = System::start(pair);
    let [
        mut vfork,
        mut fork,
        mut first,
        mut runs,
        mut cli,
        mut permitted,
        mut asked,
    ] = <[Samples; 7]>::default();
    let add = |samples: &mut Samples, round: usize, sample| {
        // The first rounds warm everything up.
        if round >= 5 {
            samples.add(sample);
        }
    };
    for round in 0..rounds() + 5 {
        add(
            &mut vfork,
            round,
            floor::latency(&mut system.tiny, Way::Vfork),
        );
        add(
            &mut fork,
            round,
            floor::latency(&mut system.tiny, Way::Fork),
        );
        add(&mut first, round, start(&mut system, "one"));
        system.down("one");
        add(&mut runs, round, running(&mut system, "one"));
        system.down("one");
        add(&mut cli, round, command_line(&mut system, "one"));
        system.down("one");
    }
    let mut pids = [0; 2];
    system.up("three");
    system.tiny.first();
    for (pid, service) in pids.iter_mut().zip(["one", "two"]) {
        system.tiny.clear();
        system.up(service);
        *pid = system.tiny.first().pid;
    }
    for round in 0..rounds() + 5 {
        settle();
        add(&mut permitted, round, restart(&mut system, &mut pids[0]));
        settle();
        add(&mut asked, round, restart(&mut system, &mut pids[1]));
        add(
            &mut vfork,
            round,
            floor::latency(&mut system.tiny, Way::Vfork),
        );
    }
    let floor = vfork.percentile(50);
    table.latency("floor: vfork and exec", &vfork, floor, None);
    table.latency("floor: fork and exec", &fork, floor, None);
    table.latency(
        "start: command to first instruction",
        &first,
        floor,
        Some(1.7),
    );
    table.latency("start: command to the event RUNNING", &runs, floor, None);
    table.latency(
        "kill -9 to successor, by permit",
        &permitted,
        floor,
        Some(1.4),
    );
    table.latency("kill -9 to successor, without", &asked, floor, Some(2.3));
    table.latency(
        "`blackhole start` as a process (aim: 4 ms)",
        &cli,
        floor,
        None,
    );
}

fn starts(table: &mut Table) {
    let mut system = System::start(pair);
    let [mut vfork, mut first] = <[Samples; 2]>::default();
    for round in 0..rounds() + 5 {
        let floor = floor::latency(&mut system.tiny, Way::Vfork);
        let started = start(&mut system, "one");
        system.down("one");
        if round >= 5 {
            vfork.add(floor);
            first.add(started);
        }
    }
    let floor = vfork.percentile(50);
    table.latency("floor: vfork and exec", &vfork, floor, None);
    let name = "start: command to first instruction";
    table.latency(name, &first, floor, Some(1.7));
}

/// Processes in sessions of their own that never sleep, two to a core; ended when dropped.
struct Busy(Vec<Child>);

impl Busy {
    fn make() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let spin = || {
            let mut command = Command::new("setsid");
            command.args(["sh", "-c", "while :; do :; done"]);
            command.spawn().unwrap()
        };
        Self((0..2 * cores).map(|_| spin()).collect())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Starts where all cores are busy, beside the floor there.
fn busy(table: &mut Table) {
    let mut system = System::start(pair);
    let [mut idle, mut vfork, mut first] = <[Samples; 3]>::default();
    for _ in 0..rounds() {
        idle.add(floor::latency(&mut system.tiny, Way::Vfork));
    }
    let busy = Busy::make();
    for round in 0..rounds() + 5 {
        let floor = floor::latency(&mut system.tiny, Way::Vfork);
        let start = start(&mut system, "one");
        system.down("one");
        if round >= 5 {
            vfork.add(floor);
            first.add(start);
        }
    }
    drop(busy);
    let floor = vfork.percentile(50);
    table.latency("floor with idle cores: vfork and exec", &idle, floor, None);
    table.latency("floor with busy cores: vfork and exec", &vfork, floor, None);
    let text = "start with busy cores: command to first instruction";
    table.latency(text, &first, floor, Some(2.0));
}

fn many(table: &mut Table) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for count in [100, 500, 1000] {
        let mut system = System::start(replicas(count));
        let [mut floors, mut single, mut ups, mut downs, mut adoptions] = <[Samples; 5]>::default();
        let mut spent: BTreeMap<&str, Samples> = BTreeMap::new();
        for _ in 0..5 {
            for _ in 0..20 {
                single.add(floor::latency(&mut system.tiny, Way::Vfork));
            }
            floors.add(floor::latency_of(&mut system.tiny, count));
            system.tiny.clear();
            let before = system.processor_time();
            let begin = monotonic();
            system.up("many");
            let last = (0..count).map(|_| system.tiny.first().at).max().unwrap();
            ups.add(last.saturating_sub(begin));
            for ((name, before), (_, after)) in before.into_iter().zip(system.processor_time()) {
                spent
                    .entry(name)
                    .or_default()
                    .add(after.saturating_sub(before));
            }
            if count == 1000 {
                let begin = Instant::now();
                system.replace_manager();
                assert_eq!(system.living(), count);
                adoptions.add(begin.elapsed());
            }
            let begin = Instant::now();
            system.down("many");
            downs.add(begin.elapsed());
        }
        let share = |samples: &Samples| {
            samples.percentile(50) * u32::try_from(count).unwrap() / u32::try_from(cores).unwrap()
        };
        let floor = share(&single);
        table.latency(
            &format!("floor: {count} by vfork and exec in turn"),
            &floors,
            floor,
            None,
        );
        table.latency(
            &format!("start of {count}, to the last first instruction"),
            &ups,
            floor,
            Some(1.9),
        );
        for (name, spent) in &spent {
            let each = spent.percentile(50) / u32::try_from(count).unwrap();
            let each = format!("{:.0}", each.as_secs_f64() * 1e6);
            table.figure(&format!("  of it {name}: processor µs a start"), &each, "");
        }
        table.latency(&format!("stop of {count}"), &downs, Duration::ZERO, None);
        if count == 1000 {
            table.latency(
                "adoption of 1000 (aim: 1000 ms)",
                &adoptions,
                Duration::ZERO,
                None,
            );
        }
    }
}

fn idle(table: &mut Table) {
    for count in [100, 1000] {
        let mut system = System::start(replicas(count));
        let none = cost(&system.processes());
        system.up("many");
        system.tiny.clear();
        std::thread::sleep(SETTLED);
        let pids = system.processes();
        let daemons: Vec<u32> = system.daemon_pids().iter().map(|(_, pid)| *pid).collect();
        let only_shims: Vec<u32> = pids
            .iter()
            .copied()
            .filter(|pid| !daemons.contains(pid))
            .collect();
        let (before, shims_before) = (cost(&pids), cost(&only_shims));
        let each_before: Vec<Duration> = daemons.iter().map(|pid| cost(&[*pid]).cpu).collect();
        let begin = Instant::now();
        std::thread::sleep(IDLE);
        let (after, shims_after) = (cost(&pids), cost(&only_shims));
        let seconds = begin.elapsed().as_secs_f64();
        let percent = |cpu: Duration| 100.0 * cpu.as_secs_f64() / seconds;
        table.figure(
            &format!("{count} idle services: CPU of all, % of a core"),
            &format!("{:.2}", percent(after.cpu - before.cpu)),
            if count == 100 { "< 0.5" } else { "" },
        );
        for ((name, pid), before) in system.daemon_pids().into_iter().zip(each_before) {
            let now = cost(&[pid]);
            table.figure(
                &format!("  of it {name}: CPU, % of a core; PSS, KiB"),
                &format!("{:.2}; {}", percent(now.cpu - before), now.pss_kib),
                "",
            );
        }
        table.figure(
            &format!("{count} idle services: wake-ups a second, all; shims"),
            &format!(
                "{:.1}; {:.1}",
                (after.sleeps - before.sleeps) as f64 / seconds,
                (shims_after.sleeps - shims_before.sleeps) as f64 / seconds
            ),
            "shims 0",
        );
        table.figure(
            &format!("{count} idle services: PSS of all, KiB; a service more than none"),
            &format!(
                "{}; {:.1}",
                after.pss_kib,
                (after.pss_kib.saturating_sub(none.pss_kib)) as f64 / count as f64
            ),
            "≤ 60 a service",
        );
    }
}

/// The latencies for criterion, which finds changes between runs.
fn criterion(c: &mut Criterion) {
    let mut system = System::start(pair);
    let mut group = c.benchmark_group("spawn");
    for (name, way) in [("vfork", Way::Vfork), ("fork", Way::Fork)] {
        group.bench_function(format!("floor: {name} and exec"), |b| {
            b.iter_custom(|times| {
                (0..times)
                    .map(|_| floor::latency(&mut system.tiny, way))
                    .sum()
            });
        });
    }
    group.bench_function("start to first instruction", |b| {
        b.iter_custom(|times| {
            (0..times)
                .map(|_| {
                    let took = start(&mut system, "one");
                    system.down("one");
                    took
                })
                .sum()
        });
    });
    group.bench_function("start to RUNNING", |b| {
        b.iter_custom(|times| {
            (0..times)
                .map(|_| {
                    let took = running(&mut system, "one");
                    system.down("one");
                    took
                })
                .sum()
        });
    });
    system.tiny.clear();
    system.up("one");
    let mut pid = system.tiny.first().pid;
    group.bench_function("kill -9 to successor", |b| {
        b.iter_custom(|times| {
            (0..times)
                .map(|_| {
                    settle();
                    restart(&mut system, &mut pid)
                })
                .sum()
        });
    });
    group.finish();
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let Some(place) = arguments.iter().position(|argument| argument == "--table") else {
        let mut c = Criterion::default().sample_size(30).configure_from_args();
        criterion(&mut c);
        return c.final_summary();
    };
    let which: Vec<&str> = arguments[place + 1..]
        .iter()
        .map(String::as_str)
        .filter(|word| !word.starts_with("--"))
        .collect();
    let mut table = Table::default();
    type Part = fn(&mut Table);
    let parts: [(&str, Part); 4] = [
        ("latency", latencies),
        ("busy", busy),
        ("many", many),
        ("idle", idle),
    ];
    // Of the first of them, starts alone: for profiles.
    if which.contains(&"start") {
        starts(&mut table);
    }
    for (name, part) in parts {
        if which.is_empty() || which.contains(&name) {
            part(&mut table);
        }
    }
    println!("{}", table.text());
}
