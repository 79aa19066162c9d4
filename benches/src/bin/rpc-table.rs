//! Prints what calls between services take, each figure beside its floors.
//!
//! `rpc-table [ROUNDS] [PLACEMENT…] [BYTES…]`, all of them without any named: each round asks all subjects in turn, so
//! that whatever else the host does hits them all; medians of rounds are shown,
//! and ratios are medians of the rounds' ratios.
//! `rpc-table hold PLACEMENT CALLERS IN_FLIGHT BYTES SECONDS` keeps calling
//! through the bridge and prints the processes, for a profiler.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::{Duration, Instant};

use blackhole_benches::peers::{Placement, Round, Took};
use blackhole_benches::subjects::{Cpu, Kind, LOADS, SIZES, Subject};

const ROUNDS: usize = 41;
/// Length of one subject's round: short enough that ten come before a disturbance ends.
const LENGTH: Duration = Duration::from_millis(25);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["hold", placement, callers, in_flight, bytes, seconds] = arguments.as_slice() {
        let number = |text: &str| text.parse().unwrap();
        let round = Round {
            calls: 0,
            in_flight: number(in_flight),
            bytes: number(bytes),
        };
        return hold(
            named(placement),
            number(callers),
            round,
            seconds.parse().unwrap(),
        );
    }
    let rounds = arguments.first().and_then(|text| text.parse().ok());
    let placements = arguments.iter().skip(usize::from(rounds.is_some()));
    let (sizes, placements): (Vec<&str>, Vec<&str>) =
        placements.partition(|word| word.parse::<usize>().is_ok());
    let sizes: Vec<usize> = sizes.iter().map(|size| size.parse().unwrap()).collect();
    let mut placements: Vec<Placement> = placements.into_iter().map(named).collect();
    if placements.is_empty() {
        placements = Placement::ALL.to_vec();
    }
    println!(
        "| placement | payload | callers × in flight | | p50 µs | p99 µs | calls/s | processor µs/call: callers + between + answering | × Unix socket | × bare pair | × bare ROUTER in between |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for placement in placements {
        for (callers, in_flight) in LOADS {
            let temp = tempfile::tempdir().unwrap();
            let subjects = Kind::ALL.into_iter().filter(|kind| kind.can(in_flight));
            let mut subjects: Vec<Subject> = subjects
                .map(|kind| {
                    let dir = temp.path().join(format!("{kind:?}"));
                    std::fs::create_dir(&dir).unwrap();
                    Subject::start(kind, placement, callers, &dir)
                })
                .collect();
            let wanted = |bytes| sizes.is_empty() || sizes.contains(&bytes);
            for (bytes, size) in SIZES.into_iter().filter(|(bytes, _)| wanted(*bytes)) {
                let title = format!(
                    "| {} | {size} | {callers} × {in_flight} |",
                    placement.name()
                );
                let rounds = rounds.unwrap_or(ROUNDS);
                compare(&title, &mut subjects, callers, in_flight, bytes, rounds);
            }
        }
    }
}

fn named(name: &str) -> Placement {
    let wanted = |placement: &Placement| placement.name().split(' ').next() == Some(name);
    let known = Placement::ALL.into_iter().find(wanted);
    known.unwrap_or_else(|| panic!("a placement is one, across or unpinned"))
}

/// One subject's rounds.
#[derive(Default)]
struct Figures {
    calls: usize,
    took: Vec<Took>,
    cpu: Cpu,
}

fn compare(
    title: &str,
    subjects: &mut [Subject],
    callers: usize,
    in_flight: usize,
    bytes: usize,
    rounds: usize,
) {
    let mut figures: Vec<Figures> = subjects
        .iter_mut()
        .map(|subject| Figures {
            calls: subject.calls_for(LENGTH, in_flight, bytes),
            ..Figures::default()
        })
        .collect();
    for _ in 0..rounds {
        for (subject, figures) in subjects.iter_mut().zip(&mut figures) {
            let before = subject.cpu();
            let round = Round {
                calls: figures.calls,
                in_flight,
                bytes,
            };
            figures.took.push(subject.round(round));
            let after = subject.cpu();
            figures.cpu.callers += after.callers - before.callers;
            figures.cpu.between += after.between - before.between;
            figures.cpu.answering += after.answering - before.answering;
        }
    }
    // Alone, the median call tells; of many at a time, how fast they all were.
    let cost = |figures: &Figures, took: &Took| match in_flight {
        1 => took.p50.as_secs_f64(),
        _ => took.elapsed.as_secs_f64() / figures.calls as f64,
    };
    let floor = |kind: Kind| {
        let at = subjects.iter().position(|subject| subject.kind == kind);
        at.map(|at| &figures[at])
    };
    for (subject, own) in subjects.iter().zip(&figures) {
        let ratio = |kind: Kind| match floor(kind) {
            Some(floor) if subject.kind != kind => {
                let pairs = own.took.iter().zip(&floor.took);
                let ratios = pairs.map(|(took, below)| cost(own, took) / cost(floor, below));
                format!("{:.2}", median(ratios))
            }
            _ => String::new(),
        };
        let micros = |figure: fn(&Took) -> Duration| {
            median(own.took.iter().map(|took| figure(took).as_secs_f64() * 1e6))
        };
        let rate = |took: &Took| (callers * own.calls) as f64 / took.elapsed.as_secs_f64();
        let each = |time: Duration| {
            let calls = callers * own.calls * own.took.len();
            time.as_secs_f64() * 1e6 / calls as f64
        };
        println!(
            "{title} {} | {:.1} | {:.1} | {:.0} | {:.1} + {:.1} + {:.1} | {} | {} | {} |",
            subject.kind.name(),
            micros(|took| took.p50),
            micros(|took| took.p99),
            median(own.took.iter().map(rate)),
            each(own.cpu.callers),
            each(own.cpu.between),
            each(own.cpu.answering),
            ratio(Kind::UnixSocket),
            ratio(Kind::DealerRouter),
            ratio(Kind::Between),
        );
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn hold(placement: Placement, callers: usize, round: Round, seconds: u64) {
    let temp = tempfile::tempdir().unwrap();
    let mut subject = Subject::start(Kind::Bridge, placement, callers, temp.path());
    for (part, pid) in subject.pids() {
        println!("{part} {pid}");
    }
    let calls = subject.calls_for(LENGTH, round.in_flight, round.bytes);
    let begin = Instant::now();
    let mut done = 0;
    while begin.elapsed() < Duration::from_secs(seconds) {
        subject.round(Round { calls, ..round });
        done += calls * callers;
    }
    println!(
        "{done} calls, {:.0} a second",
        done as f64 / begin.elapsed().as_secs_f64()
    );
}
