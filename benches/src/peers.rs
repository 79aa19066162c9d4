//! Starts the processes of an RPC benchmark where they are to run, and asks
//! them for rounds of calls.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::program;

/// Where the processes of a measurement run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// All on one processor.
    OneCore,
    /// Whoever sends to each other is on different ones: callers and the
    /// bridge's callee on the first, all that answers or passes on on the second.
    Across,
    /// As the scheduler pleases.
    Unpinned,
}

/// Which side of a measurement a process is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Callers, and callees behind something in between.
    Outer,
    /// What the callers speak to.
    Inner,
}

impl Placement {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::OneCore, Self::Across, Self::Unpinned];

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::OneCore => "one core",
            Self::Across => "across cores",
            Self::Unpinned => "unpinned",
        }
    }

    /// Runs `start` with this thread, and so whatever it starts, where `side` belongs.
    ///
    /// # Panics
    /// When the host has fewer than two processors for this.
    pub fn on<T>(self, side: Side, start: impl FnOnce() -> T) -> T {
        if self == Self::Unpinned {
            return start();
        }
        let Ok(before) = sched_getaffinity(None) else {
            panic!("the processors of this thread are not to be had");
        };
        let allowed: Vec<usize> = (0..CpuSet::MAX_CPU)
            .filter(|cpu| before.is_set(*cpu))
            .collect();
        let cpu = match (self, side, allowed.as_slice()) {
            (Self::Across, Side::Outer, [first, _, ..]) => *first,
            (_, _, [_, second, ..]) => *second,
            _ => panic!("placements need two processors"),
        };
        let mut set = CpuSet::new();
        set.set(cpu);
        if sched_setaffinity(None, &set).is_err() {
            panic!("cannot run on processor {cpu}");
        }
        let result = start();
        let _ = sched_setaffinity(None, &before);
        result
    }
}

/// What a caller is asked for: its line is `CALLS IN_FLIGHT BYTES`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Round {
    /// How many calls.
    pub calls: usize,
    /// How many of them at one time.
    pub in_flight: usize,
    /// Length of the payload, which comes back.
    pub bytes: usize,
}

impl std::str::FromStr for Round {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let numbers: Result<Vec<usize>, _> = line.split(' ').map(str::parse).collect();
        match numbers.as_deref() {
            Ok([calls, in_flight, bytes]) => Ok(Self {
                calls: *calls,
                in_flight: *in_flight,
                bytes: *bytes,
            }),
            _ => Err(format!("{line:?} is not CALLS IN_FLIGHT BYTES")),
        }
    }
}

/// What a round came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Took {
    /// From the first call to the last answer.
    pub elapsed: Duration,
    /// Median time of a call.
    pub p50: Duration,
    /// 99 of 100 calls took at most this.
    pub p99: Duration,
}

/// A process of a benchmark; ended when dropped.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts `rpc-peer` with these arguments and waits until it is ready.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(placement: Placement, side: Side, arguments: &[&str]) -> Self {
        let spawned = placement.on(side, || {
            Command::new(program("rpc-peer"))
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
        });
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => panic!("rpc-peer: {error}"),
        };
        let Some(output) = child.stdout.take() else {
            panic!("rpc-peer has no output");
        };
        let mut peer = Self {
            input: child.stdin.take(),
            output: BufReader::new(output),
            child,
        };
        assert_eq!(peer.line(), "ready", "rpc-peer {arguments:?}");
        peer
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let _ = self.output.read_line(&mut line);
        line.trim_end().to_owned()
    }

    fn ask(&mut self, round: Round) {
        let Round {
            calls,
            in_flight,
            bytes,
        } = round;
        let asked = self
            .input
            .as_mut()
            .map(|input| writeln!(input, "{calls} {in_flight} {bytes}"));
        assert!(matches!(asked, Some(Ok(()))), "a caller is gone");
    }

    fn answer(&mut self) -> Took {
        let line = self.line();
        let numbers: Result<Vec<u64>, _> = line.split(' ').map(str::parse).collect();
        match numbers.as_deref() {
            Ok([elapsed, p50, p99]) => Took {
                elapsed: Duration::from_nanos(*elapsed),
                p50: Duration::from_nanos(*p50),
                p99: Duration::from_nanos(*p99),
            },
            _ => panic!("a caller answered {line:?}"),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All callers do the round at the same time. The time is that of the slowest,
/// the percentiles are those of the caller in the middle.
pub fn run(callers: &mut [Peer], round: Round) -> Took {
    for caller in callers.iter_mut() {
        caller.ask(round);
    }
    let took: Vec<Took> = callers.iter_mut().map(Peer::answer).collect();
    let middle = |figure: fn(&Took) -> Duration| {
        let mut all: Vec<Duration> = took.iter().map(figure).collect();
        all.sort_unstable();
        all.get(all.len() / 2).copied().unwrap_or_default()
    };
    Took {
        elapsed: took
            .iter()
            .map(|took| took.elapsed)
            .max()
            .unwrap_or_default(),
        p50: middle(|took| took.p50),
        p99: middle(|took| took.p99),
    }
}

/// Time that the first thread of a process has run, see proc_pid_schedstat(5).
pub fn cpu_time(pid: u32) -> Duration {
    let text = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("schedstat"));
    let first = text.unwrap_or_default();
    let first = first
        .split(' ')
        .next()
        .and_then(|number| number.parse().ok());
    Duration::from_nanos(first.unwrap_or(0))
}
