//! One instance's counters, read from its groups.
//!
//! Memory is the working set: what the kernel charges (`memory.usage_in_bytes`,
//! `memory.current`) without the inactive page cache, which is given back under
//! pressure. Otherwise every service that reads files would seem to be at its
//! limit. The peak is the kernel's own and includes that cache.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use blackhole_bus_schema::resource::Pressure;

use super::parse;

/// The counters at one moment. Sums count from when the groups were made.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// When they were read.
    pub at: Instant,
    /// CPU time in microseconds; `None` where nothing accounts for it.
    pub cpu_usec: Option<u64>,
    /// Throttled time in microseconds.
    pub throttled_usec: u64,
    /// Bandwidth periods that have passed while there was something to run.
    pub periods: u64,
    /// Periods in which the limit was hit.
    pub throttled_periods: u64,
    /// Working set in bytes.
    pub memory_bytes: Option<u64>,
    /// Highest charge in bytes.
    pub memory_peak_bytes: Option<u64>,
    /// Limit in bytes.
    pub memory_limit_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u32>,
    /// Bytes read from and written to block devices.
    pub io_bytes: Option<(u64, u64)>,
    /// OOM kills; `None` where nothing counts them.
    pub oom_kills: Option<u64>,
    /// Pressure.
    pub pressure: Option<Pressure>,
}

/// Most descriptors that all counters together keep open. Reading an open file
/// costs a fifth of opening it first; beyond the budget files are opened for each read.
#[derive(Debug)]
pub(super) struct Descriptors {
    left: usize,
}

impl Descriptors {
    /// Half of what the process may have open: the other half is for its sockets.
    pub(super) fn half_of_limit() -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let left = limit.map_or(usize::MAX, |limit| usize::try_from(limit / 2).unwrap_or(0));
        Self { left }
    }
}

/// One file that is read at each tick.
#[derive(Debug)]
struct Counter {
    path: PathBuf,
    open: Option<File>,
}

impl Counter {
    /// `None` where the kernel has no such file.
    fn new(dir: Option<&Path>, name: &str, budget: &mut Descriptors) -> Option<Self> {
        let path = dir?.join(name);
        let file = File::open(&path).ok()?;
        let open = if budget.left > 0 {
            budget.left -= 1;
            Some(file)
        } else {
            None
        };
        Some(Self { path, open })
    }

    /// The file's text now, in `buffer`; `None` when the group is gone.
    fn read<'a>(&self, buffer: &'a mut Vec<u8>) -> Option<&'a str> {
        let opened;
        let file = match &self.open {
            Some(file) => file,
            None => {
                opened = File::open(&self.path).ok()?;
                &opened
            }
        };
        // Larger than any file read here but memory.stat on a large machine; grows once.
        if buffer.len() < 8192 {
            buffer.resize(8192, 0);
        }
        let mut length = 0;
        loop {
            match file.read_at(&mut buffer[length..], length as u64) {
                Ok(0) => break,
                Ok(more) => {
                    length += more;
                    // These files are made whole at each read: a short one had all.
                    if length < buffer.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => return None,
            }
            if length == buffer.len() {
                buffer.resize(buffer.len() * 2, 0);
            }
        }
        std::str::from_utf8(&buffer[..length]).ok()
    }
}

/// The groups of one instance that hold counters.
#[derive(Debug, Default)]
pub(super) struct CounterDirs<'a> {
    pub(super) cpu_v1: Option<&'a Path>,
    pub(super) cpuacct_v1: Option<&'a Path>,
    pub(super) memory_v1: Option<&'a Path>,
    pub(super) io_v1: Option<&'a Path>,
    pub(super) pids_v1: Option<&'a Path>,
    pub(super) v2: Option<&'a Path>,
}

/// All counters of one instance.
#[derive(Debug)]
pub(super) struct Counters {
    /// Nanoseconds.
    cpu_v1: Option<Counter>,
    throttle_v1: Option<Counter>,
    cpu_v2: Option<Counter>,
    memory: Option<Counter>,
    memory_stat: Option<Counter>,
    memory_peak: Option<Counter>,
    memory_limit: Option<Counter>,
    /// v1 counts hierarchically under another key.
    inactive_key: &'static str,
    oom: Option<Counter>,
    pids: Option<Counter>,
    io_v1: Option<Counter>,
    io_v2: Option<Counter>,
    pressure: [Option<Counter>; 3],
    open: usize,
    /// What was read last, and how often it has been given out again.
    last: Option<(Reading, u8)>,
}

/// An instance that uses no CPU is read in full at every so many ticks: what may change
/// without it (what others reclaim, late writes, pressure that fades) is seldom news, and
/// reading memory.stat has the kernel sum up over all processors.
const IDLE_TICKS: u8 = 10;

impl Counters {
    pub(super) fn new(dirs: &CounterDirs<'_>, budget: &mut Descriptors) -> Self {
        let before = budget.left;
        let mut counter = |dir, name| Counter::new(dir, name, budget);
        let v1_memory = dirs.memory_v1.is_some();
        let memory = |v1: &'static str, v2: &'static str| {
            if v1_memory {
                (dirs.memory_v1, v1)
            } else {
                (dirs.v2, v2)
            }
        };
        let mut either = |(dir, name)| counter(dir, name);
        let mut counters = Self {
            memory: either(memory("memory.usage_in_bytes", "memory.current")),
            memory_stat: either(memory("memory.stat", "memory.stat")),
            memory_peak: either(memory("memory.max_usage_in_bytes", "memory.peak")),
            memory_limit: either(memory("memory.limit_in_bytes", "memory.max")),
            inactive_key: if v1_memory {
                "total_inactive_file"
            } else {
                "inactive_file"
            },
            oom: either(memory("memory.oom_control", "memory.events")),
            cpu_v1: counter(dirs.cpuacct_v1, "cpuacct.usage"),
            throttle_v1: counter(dirs.cpu_v1, "cpu.stat"),
            // Needs no controller: each v2 group accounts for its CPU time.
            cpu_v2: None,
            pids: counter(dirs.pids_v1.or(dirs.v2), "pids.current"),
            io_v1: counter(dirs.io_v1, "blkio.throttle.io_service_bytes_recursive")
                .or_else(|| counter(dirs.io_v1, "blkio.throttle.io_service_bytes")),
            io_v2: if dirs.io_v1.is_some() {
                None
            } else {
                counter(dirs.v2, "io.stat")
            },
            pressure: ["cpu.pressure", "memory.pressure", "io.pressure"]
                .map(|name| counter(dirs.v2, name)),
            open: 0,
            last: None,
        };
        if counters.cpu_v1.is_none() || counters.throttle_v1.is_none() {
            counters.cpu_v2 = Counter::new(dirs.v2, "cpu.stat", budget);
        }
        counters.open = before - budget.left;
        counters
    }

    /// Gives the descriptors back to the budget.
    pub(super) fn close(self, budget: &mut Descriptors) {
        budget.left += self.open;
    }

    /// OOM kills so far.
    pub(super) fn oom_kills(&self, buffer: &mut Vec<u8>) -> Option<u64> {
        parse::keyed(self.oom.as_ref()?.read(buffer)?, "oom_kill")
    }

    /// CPU time in microseconds.
    fn cpu_usec(&self, buffer: &mut Vec<u8>) -> Option<u64> {
        if let Some(counter) = &self.cpu_v1 {
            return parse::number(counter.read(buffer)?).map(|nanoseconds| nanoseconds / 1000);
        }
        parse::keyed(self.cpu_v2.as_ref()?.read(buffer)?, "usage_usec")
    }

    /// As [`Counters::read`], for a tick: one that has used no CPU since the last one
    /// is read in full only now and then. Pressure is followed until it has faded.
    pub(super) fn tick(&mut self, buffer: &mut Vec<u8>) -> Reading {
        let cpu = self.cpu_usec(buffer);
        let idle = |(last, ticks): &(Reading, u8)| {
            *ticks + 1 < IDLE_TICKS
                && cpu.is_some()
                && last.cpu_usec == cpu
                // Others reclaim from it.
                && last.pressure.is_none_or(|pressure| pressure.memory_some == 0)
        };
        if !self.last.as_ref().is_some_and(idle) {
            return self.read(buffer);
        }
        let before = self.last.as_ref().and_then(|(last, _)| last.pressure);
        let pressure = match before {
            Some(before) if before != Pressure::default() => self.pressure(buffer),
            _ => None,
        };
        if let Some((last, ticks)) = &mut self.last {
            *ticks += 1;
            last.pressure = pressure.or(last.pressure);
            return Reading {
                at: Instant::now(),
                ..last.clone()
            };
        }
        self.read(buffer)
    }

    /// The next tick reads all of them.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }

    /// Reads all of them.
    pub(super) fn read(&mut self, buffer: &mut Vec<u8>) -> Reading {
        let reading = self.read_all(buffer);
        self.last = Some((reading.clone(), 0));
        reading
    }

    /// Averages of the last ten seconds, in hundredths of a percent.
    fn pressure(&self, buffer: &mut Vec<u8>) -> Option<Pressure> {
        let [cpu, memory, io] = &self.pressure;
        let mut of = |counter: &Option<Counter>, kinds: [&str; 2]| {
            let text = text(counter, buffer)?;
            Some(kinds.map(|kind| parse::psi_avg10(text, kind)))
        };
        let [cpu_some, _] = of(cpu, ["some", "full"])?;
        let [memory_some, memory_full] = of(memory, ["some", "full"])?;
        let [io_some, _] = of(io, ["some", "full"])?;
        Some(Pressure {
            cpu_some: cpu_some?,
            memory_some: memory_some?,
            memory_full: memory_full.unwrap_or(0),
            io_some: io_some?,
        })
    }

    fn read_all(&self, buffer: &mut Vec<u8>) -> Reading {
        let mut number = |counter: &Option<Counter>| text(counter, buffer).and_then(parse::number);
        let memory = number(&self.memory);
        let memory_peak_bytes = number(&self.memory_peak);
        let pids = number(&self.pids).and_then(|pids| u32::try_from(pids).ok());
        let mut cpu_usec = number(&self.cpu_v1).map(|nanoseconds| nanoseconds / 1000);
        // The moment of the CPU reading: shares are computed from the difference.
        let at = Instant::now();

        let (mut throttled_usec, mut periods, mut throttled_periods) = (0, 0, 0);
        let mut throttling = |stat: &str, key: &str, divisor: u64| {
            throttled_usec = parse::keyed(stat, key).unwrap_or(0) / divisor;
            periods = parse::keyed(stat, "nr_periods").unwrap_or(0);
            throttled_periods = parse::keyed(stat, "nr_throttled").unwrap_or(0);
        };
        if let Some(stat) = text(&self.cpu_v2, buffer) {
            cpu_usec = cpu_usec.or(parse::keyed(stat, "usage_usec"));
            throttling(stat, "throttled_usec", 1);
        }
        if let Some(stat) = text(&self.throttle_v1, buffer) {
            throttling(stat, "throttled_time", 1000);
        }
        let inactive = text(&self.memory_stat, buffer)
            .and_then(|stat| parse::keyed(stat, self.inactive_key))
            .unwrap_or(0);
        let io_bytes = match text(&self.io_v1, buffer).map(parse::blkio_bytes) {
            Some(bytes) => Some(bytes),
            None => text(&self.io_v2, buffer).map(parse::io_stat_bytes),
        };
        let pressure = self.pressure(buffer);
        Reading {
            at,
            cpu_usec,
            throttled_usec,
            periods,
            throttled_periods,
            memory_bytes: memory.map(|memory| memory.saturating_sub(inactive)),
            memory_peak_bytes,
            memory_limit_bytes: text(&self.memory_limit, buffer)
                .and_then(parse::amount)
                .and_then(parse::Amount::limited),
            pids,
            io_bytes,
            oom_kills: self.oom_kills(buffer),
            pressure,
        }
    }
}

fn text<'a>(counter: &Option<Counter>, buffer: &'a mut Vec<u8>) -> Option<&'a str> {
    counter.as_ref()?.read(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A v2 group's files, as Linux 6.1 shows them.
    fn v2_group() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            (
                "cpu.stat",
                "usage_usec 5000\nuser_usec 4000\nsystem_usec 1000\nnr_periods 10\nnr_throttled 7\nthrottled_usec 1234\n",
            ),
            ("memory.current", "1000\n"),
            ("memory.stat", "anon 600\nfile 400\ninactive_file 300\n"),
            ("memory.peak", "2000\n"),
            ("memory.max", "max\n"),
            (
                "memory.events",
                "low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 1\n",
            ),
            ("pids.current", "3\n"),
            (
                "io.stat",
                "8:0 rbytes=10 wbytes=20 rios=1 wios=1 dbytes=0 dios=0\n",
            ),
            (
                "cpu.pressure",
                "some avg10=1.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
            ),
            (
                "memory.pressure",
                "some avg10=2.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=0\n",
            ),
            (
                "io.pressure",
                "some avg10=3.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
            ),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn a_v2_group_is_read_with_and_without_open_descriptors() {
        let dir = v2_group();
        for mut budget in [Descriptors { left: 100 }, Descriptors { left: 0 }] {
            let before = budget.left;
            let dirs = CounterDirs {
                v2: Some(dir.path()),
                ..CounterDirs::default()
            };
            let mut counters = Counters::new(&dirs, &mut budget);
            let mut buffer = Vec::new();
            for _ in 0..2 {
                let reading = counters.read(&mut buffer);
                assert_eq!(reading.cpu_usec, Some(5000));
                assert_eq!(reading.throttled_usec, 1234);
                assert_eq!((reading.periods, reading.throttled_periods), (10, 7));
                assert_eq!(reading.memory_bytes, Some(700));
                assert_eq!(reading.memory_peak_bytes, Some(2000));
                assert_eq!(reading.memory_limit_bytes, None);
                assert_eq!(reading.pids, Some(3));
                assert_eq!(reading.io_bytes, Some((10, 20)));
                assert_eq!(reading.oom_kills, Some(1));
                let expected = Pressure {
                    cpu_some: 100,
                    memory_some: 200,
                    memory_full: 50,
                    io_some: 300,
                };
                assert_eq!(reading.pressure, Some(expected));
            }
            counters.close(&mut budget);
            assert_eq!(budget.left, before);
        }
    }

    #[test]
    fn an_idle_instance_is_read_in_full_now_and_then() {
        let dir = v2_group();
        for name in ["cpu.pressure", "memory.pressure", "io.pressure"] {
            let text = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
            fs::write(dir.path().join(name), text).unwrap();
        }
        let dirs = CounterDirs {
            v2: Some(dir.path()),
            ..CounterDirs::default()
        };
        let mut counters = Counters::new(&dirs, &mut Descriptors { left: 100 });
        let mut buffer = Vec::new();
        let first = counters.tick(&mut buffer);
        fs::write(dir.path().join("memory.current"), "5000\n").unwrap();
        for _ in 1..IDLE_TICKS {
            let again = counters.tick(&mut buffer);
            assert_eq!(again.memory_bytes, first.memory_bytes);
            assert!(again.at >= first.at);
        }
        assert_eq!(counters.tick(&mut buffer).memory_bytes, Some(4700));
        // One that does something is read at once.
        fs::write(dir.path().join("memory.current"), "6000\n").unwrap();
        fs::write(dir.path().join("cpu.stat"), "usage_usec 5001\n").unwrap();
        assert_eq!(counters.tick(&mut buffer).memory_bytes, Some(5700));
        // One that is asked about, too.
        fs::write(dir.path().join("memory.current"), "7000\n").unwrap();
        assert_eq!(counters.read(&mut buffer).memory_bytes, Some(6700));
    }

    #[test]
    fn the_pressure_of_an_idle_instance_is_followed_until_it_has_faded() {
        let dir = v2_group();
        let pressed = |name: &str, some: u32| {
            let text = format!("some avg10=0.{some:02} avg60=0.00\nfull avg10=0.00 avg60=0.00\n");
            fs::write(dir.path().join(name), text).unwrap();
        };
        pressed("memory.pressure", 0);
        let mut counters = Counters::new(
            &CounterDirs {
                v2: Some(dir.path()),
                ..CounterDirs::default()
            },
            &mut Descriptors { left: 100 },
        );
        let mut buffer = Vec::new();
        let first = counters.tick(&mut buffer);
        assert_eq!(first.pressure.unwrap().io_some, 300);
        fs::write(dir.path().join("memory.current"), "5000\n").unwrap();
        for some in [40, 20, 0] {
            pressed("cpu.pressure", some);
            pressed("io.pressure", 0);
            let reading = counters.tick(&mut buffer);
            assert_eq!(reading.pressure.unwrap().cpu_some, some);
            // Nothing else of it is read.
            assert_eq!(reading.memory_bytes, first.memory_bytes);
        }
        // One from which others reclaim is read in full: after the tick that sees it.
        pressed("cpu.pressure", 10);
        pressed("memory.pressure", 10);
        counters.read(&mut buffer);
        fs::write(dir.path().join("memory.current"), "6000\n").unwrap();
        assert_eq!(counters.tick(&mut buffer).memory_bytes, Some(5700));
    }

    #[test]
    fn nothing_to_read_gives_nothing() {
        let mut budget = Descriptors { left: 100 };
        let mut counters = Counters::new(&CounterDirs::default(), &mut budget);
        let reading = counters.read(&mut Vec::new());
        assert_eq!(reading.cpu_usec, None);
        assert_eq!(reading.memory_bytes, None);
        assert_eq!(reading.oom_kills, None);
        assert_eq!(reading.pressure, None);
        assert_eq!(budget.left, 100);
    }
}
