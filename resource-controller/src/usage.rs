//! From counters to usage: differences between ticks, and OOM kills that are
//! new. Pure; the moments come with the readings.

use std::collections::BTreeMap;
use std::time::Instant;

use blackhole_bus_schema::names::InstanceName;
use blackhole_bus_schema::resource::{OomKilled, Usage};

use crate::cgroup::Reading;

/// What one tick says.
#[derive(Debug, Default, PartialEq)]
pub struct Tick {
    /// Time since the tick before, in milliseconds; 0 on the first.
    pub interval_ms: u64,
    /// All instances, in the order of their names.
    pub usage: Vec<Usage>,
    /// Kills since the tick before.
    pub killed: Vec<OomKilled>,
}

#[derive(Debug, Default)]
struct Entry {
    /// Moment and CPU time of the last reading.
    cpu: Option<(Instant, u64)>,
    /// OOM kills that are reported or were there before.
    kills: Option<u64>,
    usage: Option<Usage>,
}

/// The instances and their last usage.
#[derive(Debug, Default)]
pub struct UsageBook {
    entries: BTreeMap<InstanceName, Entry>,
    last_tick: Option<Instant>,
}

impl UsageBook {
    /// An instance whose groups were just made: each kill from now on is new.
    /// One that turns up in a tick without this was found at the start; what
    /// happened to it before is in its totals, but no event.
    /// `first` puts it on the list before the first tick.
    pub fn begin(&mut self, instance: &InstanceName, first: &Reading) {
        let mut entry = Entry {
            kills: Some(0),
            ..Entry::default()
        };
        entry.take_in(instance, first);
        self.entries.insert(instance.clone(), entry);
    }

    /// Whether there is no instance.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes in the readings of all instances. Entries without a reading are forgotten.
    pub fn tick(&mut self, now: Instant, readings: Vec<(InstanceName, Reading)>) -> Tick {
        let since = self.last_tick.replace(now);
        let interval = since
            .map(|last| now.saturating_duration_since(last))
            .unwrap_or_default();
        let mut tick = Tick {
            interval_ms: u64::try_from(interval.as_millis()).unwrap_or(u64::MAX),
            ..Tick::default()
        };
        let mut old = std::mem::take(&mut self.entries);
        for (instance, reading) in readings {
            let mut entry = old.remove(&instance).unwrap_or_default();
            tick.killed.extend(entry.take_in(&instance, &reading));
            tick.usage.extend(entry.usage.clone());
            self.entries.insert(instance, entry);
        }
        tick
    }

    /// The instance is gone; its last reading may bring a kill that no tick has seen.
    pub fn end(&mut self, instance: &InstanceName, last: Option<&Reading>) -> Option<OomKilled> {
        let mut entry = self.entries.remove(instance)?;
        entry.take_in(instance, last?)
    }

    /// The usage at the last tick, in the order of the names.
    pub fn latest(&self) -> impl Iterator<Item = (String, Usage)> {
        // As texts: `web.10` comes before `web.2`, and that is the order of the pages.
        let mut all: Vec<_> = self
            .entries
            .iter()
            .filter_map(|(name, entry)| Some((name.to_string(), entry.usage.clone()?)))
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all.into_iter()
    }
}

impl Entry {
    fn take_in(&mut self, instance: &InstanceName, reading: &Reading) -> Option<OomKilled> {
        let cpu = reading.cpu_usec.map(|usec| (reading.at, usec));
        let cpu_percent = match (self.cpu, cpu) {
            (Some((before, used)), Some((now, total))) if now > before && total >= used => {
                let elapsed = (now - before).as_secs_f64() * 1e6;
                Some((total - used) as f64 / elapsed * 100.0)
            }
            _ => None,
        };
        self.cpu = cpu;
        let known = self.kills;
        let kills = reading.oom_kills.or(known).unwrap_or(0);
        self.kills = Some(kills);
        let (io_read_bytes, io_write_bytes) = reading.io_bytes.unzip();
        self.usage = Some(Usage {
            instance: instance.clone(),
            cpu_usec: reading.cpu_usec.unwrap_or(0),
            cpu_percent,
            throttled_usec: reading.throttled_usec,
            memory_bytes: reading.memory_bytes,
            memory_peak_bytes: reading.memory_peak_bytes,
            memory_limit_bytes: reading.memory_limit_bytes,
            pids: reading.pids,
            io_read_bytes,
            io_write_bytes,
            oom_kills: kills,
            pressure: reading.pressure,
        });
        // A counter that fell belongs to groups made anew; it counts from there.
        (kills > known?).then(|| OomKilled {
            instance: instance.clone(),
            kills,
            memory_limit_bytes: reading.memory_limit_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn name(text: &str) -> InstanceName {
        text.parse().unwrap()
    }

    fn reading(at: Instant, cpu_usec: u64, oom_kills: u64) -> Reading {
        Reading {
            at,
            cpu_usec: Some(cpu_usec),
            throttled_usec: 0,
            periods: 0,
            throttled_periods: 0,
            memory_bytes: Some(5),
            memory_peak_bytes: None,
            memory_limit_bytes: Some(10),
            pids: Some(1),
            io_bytes: Some((1, 2)),
            oom_kills: Some(oom_kills),
            pressure: None,
        }
    }

    #[test]
    fn cpu_is_the_difference_over_the_time_between_the_readings() {
        let start = Instant::now();
        let mut book = UsageBook::default();
        let web = name("web.1");
        book.begin(&web, &reading(start, 1_000_000, 0));
        let tick = book.tick(start, vec![(web.clone(), reading(start, 1_000_000, 0))]);
        assert_eq!(tick.interval_ms, 0);
        assert_eq!(tick.usage[0].cpu_percent, None);
        let later = start + Duration::from_secs(2);
        let tick = book.tick(later, vec![(web.clone(), reading(later, 1_500_000, 0))]);
        assert_eq!(tick.interval_ms, 2000);
        assert_eq!(tick.usage[0].cpu_percent, Some(25.0));
        assert_eq!(tick.usage[0].io_write_bytes, Some(2));
        // Groups made anew count from zero: no share instead of a negative one.
        let again = later + Duration::from_secs(2);
        let tick = book.tick(again, vec![(web.clone(), reading(again, 10, 0))]);
        assert_eq!(tick.usage[0].cpu_percent, None);
        // The same moment twice gives no infinite share.
        let tick = book.tick(again, vec![(web, reading(again, 20, 0))]);
        assert_eq!(tick.usage[0].cpu_percent, None);
    }

    #[test]
    fn each_rise_of_the_counter_is_one_event() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let mut book = UsageBook::default();
        let (new, old) = (name("new.1"), name("old.1"));
        book.begin(&new, &reading(start, 0, 0));
        let mut tick = |second, kills| {
            book.tick(
                at(second),
                vec![
                    (new.clone(), reading(at(second), 0, kills)),
                    (old.clone(), reading(at(second), 0, kills)),
                ],
            )
            .killed
        };
        // The one found at the start had its kills before this process was there.
        let killed = tick(0, 2);
        assert_eq!(killed.len(), 1);
        assert_eq!((&killed[0].instance, killed[0].kills), (&new, 2));
        assert_eq!(killed[0].memory_limit_bytes, Some(10));
        assert_eq!(tick(1, 2), []);
        assert_eq!(tick(2, 3).len(), 2);
        assert_eq!(tick(3, 0), []);
        assert_eq!(tick(4, 1).len(), 2);
        assert_eq!(
            book.end(&new, Some(&reading(at(5), 0, 2)))
                .map(|event| event.kills),
            Some(2)
        );
        assert_eq!(book.end(&new, Some(&reading(at(5), 0, 3))), None);
        assert_eq!(book.end(&old, None), None);
        assert!(book.is_empty());
    }

    #[test]
    fn pages_are_in_the_order_of_the_texts() {
        let now = Instant::now();
        let mut book = UsageBook::default();
        let readings = ["web.2", "web.10", "api.1"].map(|text| (name(text), reading(now, 0, 0)));
        book.tick(now, readings.to_vec());
        let names: Vec<_> = book.latest().map(|(name, _)| name).collect();
        assert_eq!(names, ["api.1", "web.10", "web.2"]);
        // One whose groups were removed by someone else is forgotten.
        book.tick(now, vec![]);
        assert!(book.is_empty());
    }
}
