//! When which probe is due, and what its result means for its next one: a core
//! without I/O. Time comes in with each call.
//!
//! One heap of deadlines for all instances, so that a thousand idle services
//! cost one timer. At most a given number of probes run at once; others wait
//! in the order they became due, and their timeout begins when they do.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use blackhole_bus_schema::health::{Probe, ProbeCheck, ProbeKind, ProbeResult, Probes};
use blackhole_bus_schema::names::{Generation, InstanceName};

/// Shortest time between two runs of one probe, whatever is configured.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

const KINDS: [ProbeKind; 3] = [
    ProbeKind::Startup,
    ProbeKind::Liveness,
    ProbeKind::Readiness,
];

/// How many times what its startup probe allows a service that is coming up may have in all by
/// asking for more time, as one that is being stopped has of its grace.
const MOST_STARTS: u32 = 10;

/// One run of one probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(u64);

/// A probe to be run now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Comes back with its outcome.
    pub id: RunId,
    /// Which instance.
    pub instance: InstanceName,
    /// Which spawn of it.
    pub generation: Generation,
    /// Which probe.
    pub kind: ProbeKind,
    /// How it asks, how long.
    pub probe: Probe,
}

/// What a run gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// `None` is success.
    pub error: Option<String>,
    /// Time it took.
    pub took: Duration,
    /// When to look again, where that is not after the interval: a watchdog is
    /// looked at when it would run out.
    pub next_in: Option<Duration>,
}

#[derive(Debug)]
struct Streak {
    error: Option<String>,
    count: u32,
    took: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The startup probe has not passed.
    Gated,
    /// To be run at this time.
    Due(Instant),
    /// Due, but too many run already.
    Queued,
    Running(RunId),
    /// For `READY=1`, since the first and until the second time.
    Waiting(Instant, Instant),
    /// A startup probe that has passed.
    Passed,
}

#[derive(Debug)]
struct Track {
    probe: Probe,
    phase: Phase,
    streak: Option<Streak>,
}

#[derive(Debug)]
struct Watched {
    generation: Generation,
    begun: Instant,
    ready: bool,
    /// Until then its startup probe has not failed for good.
    extended: Option<Instant>,
    tracks: [Option<Track>; 3],
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    instance: InstanceName,
    kind: usize,
}

/// All probes of all instances. See the module's documentation.
#[derive(Debug)]
pub struct Schedule {
    watched: HashMap<InstanceName, Watched>,
    /// Deadlines; one that its track does not wait for any more is skipped.
    deadlines: BinaryHeap<Reverse<(Instant, Key)>>,
    queue: VecDeque<Key>,
    running: HashMap<RunId, Key>,
    limit: usize,
    next_run: u64,
}

impl Schedule {
    /// Nothing to probe; later at most `limit` at once.
    pub fn new(limit: usize) -> Self {
        Self {
            watched: HashMap::new(),
            deadlines: BinaryHeap::new(),
            queue: VecDeque::new(),
            running: HashMap::new(),
            limit: limit.max(1),
            next_run: 0,
        }
    }

    /// Begins to probe a process that has run for `age`. What was known of an
    /// earlier one is forgotten: [`Schedule::remove`] it first, to end its runs.
    pub fn add(
        &mut self,
        now: Instant,
        instance: &InstanceName,
        generation: Generation,
        probes: &Probes,
        age: Duration,
    ) {
        let begun = now.checked_sub(age).unwrap_or(now);
        let gated = probes.startup.is_some();
        let mut tracks = KINDS.map(|kind| {
            let probe = probes.get(kind)?.clone();
            Some(Track {
                probe,
                phase: Phase::Gated,
                streak: None,
            })
        });
        for (kind, track) in tracks.iter_mut().enumerate() {
            let Some(track) = track else { continue };
            if !gated || KINDS[kind] == ProbeKind::Startup {
                let due = first_due(begun, now, &track.probe);
                track.phase = Phase::Due(due);
                let key = Key {
                    instance: instance.clone(),
                    kind,
                };
                self.deadlines.push(Reverse((due, key)));
            }
        }
        if tracks.iter().any(Option::is_some) {
            let watched = Watched {
                generation,
                begun,
                ready: false,
                extended: None,
                tracks,
            };
            self.watched.insert(instance.clone(), watched);
        }
    }

    /// Ends the probing of an instance. Its runs, which count no more, are to be given up.
    pub fn remove(&mut self, instance: &InstanceName) -> Vec<RunId> {
        if self.watched.remove(instance).is_none() {
            return Vec::new();
        }
        self.queue.retain(|key| key.instance != *instance);
        let ended: Vec<RunId> = self
            .running
            .iter()
            .filter(|(_, key)| key.instance == *instance)
            .map(|(id, _)| *id)
            .collect();
        for id in &ended {
            self.running.remove(id);
        }
        ended
    }

    /// A service said `READY=1`, or a new manager learned that it had.
    pub fn ready(&mut self, now: Instant, instance: &InstanceName) -> Vec<ProbeResult> {
        let Some(watched) = self.watched.get_mut(instance) else {
            return Vec::new();
        };
        if std::mem::replace(&mut watched.ready, true) {
            return Vec::new();
        }
        let mut results = Vec::new();
        for kind in 0..KINDS.len() {
            let Some(track) = self.track(instance, kind) else {
                continue;
            };
            if let Phase::Waiting(since, _) = track.phase {
                let took = now.saturating_duration_since(since);
                let outcome = Outcome {
                    error: None,
                    took,
                    next_in: None,
                };
                let key = Key {
                    instance: instance.clone(),
                    kind,
                };
                results.extend(self.conclude(now, &key, outcome));
            }
        }
        results
    }

    /// A service that is coming up has asked for time, see `EXTEND_TIMEOUT_USEC` in sd_notify(3):
    /// until `left` is over its startup probe does not fail for good. That can go on for ten
    /// times as long as the probe allows, counted from the start of the process. It means nothing
    /// to one that has no such probe, or has passed it.
    pub fn extend(&mut self, now: Instant, instance: &InstanceName, left: Duration) {
        let Some(watched) = self.watched.get_mut(instance) else {
            return;
        };
        let startup = KINDS.iter().position(|kind| *kind == ProbeKind::Startup);
        let Some(track) = startup.and_then(|kind| watched.tracks[kind].as_ref()) else {
            return;
        };
        let most = allowed(&track.probe).saturating_mul(MOST_STARTS);
        let latest = watched.begun.checked_add(most);
        let until = now.checked_add(left).or(latest);
        let until = latest.map_or(until, |latest| until.map(|until| until.min(latest)));
        watched.extended = watched.extended.max(until);
    }

    /// When [`Schedule::poll`] has something to do.
    pub fn next_deadline(&mut self) -> Option<Instant> {
        loop {
            let Reverse((at, key)) = self.deadlines.peek()?;
            if self.waits_for(*at, key) {
                return Some(*at);
            }
            self.deadlines.pop();
        }
    }

    fn waits_for(&self, at: Instant, key: &Key) -> bool {
        let track = self
            .watched
            .get(&key.instance)
            .and_then(|watched| watched.tracks[key.kind].as_ref());
        track.is_some_and(|track| match track.phase {
            Phase::Due(due) => due == at,
            Phase::Waiting(_, until) => until == at,
            _ => false,
        })
    }

    /// What is due: probes to run, and results that need no run. To be called
    /// at each deadline, and after each `finished`, which may make room.
    pub fn poll(&mut self, now: Instant) -> (Vec<Run>, Vec<ProbeResult>) {
        let mut results = Vec::new();
        while let Some(Reverse((at, key))) = self.deadlines.peek() {
            if *at > now {
                break;
            }
            let (at, key) = (*at, key.clone());
            self.deadlines.pop();
            if self.waits_for(at, &key) {
                results.extend(self.come(now, key));
            }
        }
        let mut runs = Vec::new();
        while self.running.len() < self.limit {
            let Some(key) = self.queue.pop_front() else {
                break;
            };
            runs.extend(self.start(key));
        }
        (runs, results)
    }

    /// A deadline of a track has come.
    fn come(&mut self, now: Instant, key: Key) -> Option<ProbeResult> {
        let watched = self.watched.get_mut(&key.instance)?;
        let track = watched.tracks[key.kind].as_mut()?;
        if let Phase::Waiting(since, _) = track.phase {
            let took = now.saturating_duration_since(since);
            let error = format!("no READY=1 within {} ms", track.probe.timeout_ms);
            return self.conclude(
                now,
                &key,
                Outcome {
                    error: Some(error),
                    took,
                    next_in: None,
                },
            );
        }
        let waits_for_ready =
            track.probe.check == ProbeCheck::Notify && KINDS[key.kind] != ProbeKind::Liveness;
        if !waits_for_ready {
            track.phase = Phase::Queued;
            self.queue.push_back(key);
            return None;
        }
        if watched.ready {
            let outcome = Outcome {
                error: None,
                took: Duration::ZERO,
                next_in: None,
            };
            return self.conclude(now, &key, outcome);
        }
        let until = now + Duration::from_millis(track.probe.timeout_ms).max(MIN_INTERVAL);
        track.phase = Phase::Waiting(now, until);
        self.deadlines.push(Reverse((until, key)));
        None
    }

    fn start(&mut self, key: Key) -> Option<Run> {
        let id = RunId(self.next_run);
        let watched = self.watched.get_mut(&key.instance)?;
        let generation = watched.generation;
        let track = watched.tracks[key.kind].as_mut()?;
        self.next_run += 1;
        track.phase = Phase::Running(id);
        let run = Run {
            id,
            instance: key.instance.clone(),
            generation,
            kind: KINDS[key.kind],
            probe: track.probe.clone(),
        };
        self.running.insert(id, key);
        Some(run)
    }

    /// A run has ended. `None` where the result is not to be published, or
    /// counts no more.
    pub fn finished(&mut self, now: Instant, id: RunId, outcome: Outcome) -> Option<ProbeResult> {
        let key = self.running.remove(&id)?;
        self.conclude(now, &key, outcome)
    }

    fn track(&mut self, instance: &InstanceName, kind: usize) -> Option<&mut Track> {
        self.watched.get_mut(instance)?.tracks[kind].as_mut()
    }

    /// Takes in a result and plans the next one.
    fn conclude(&mut self, now: Instant, key: &Key, mut outcome: Outcome) -> Option<ProbeResult> {
        let watched = self.watched.get_mut(&key.instance)?;
        let startup = KINDS[key.kind] == ProbeKind::Startup;
        let extended = startup && watched.extended.is_some_and(|until| now < until);
        let track = watched.tracks[key.kind].as_mut()?;
        let good = outcome.error.is_none();
        let before = track
            .streak
            .as_ref()
            .filter(|streak| streak.error.is_none() == good);
        let mut count = before.map_or(1, |streak| streak.count.saturating_add(1));
        let last = track.probe.failure_threshold.max(1);
        if extended && !good && count >= last {
            // The one that would be the last is told, and does not count.
            count = last - 1;
            outcome.error = outcome
                .error
                .map(|error| format!("{error} (it has asked for time)"));
        }
        let wanted = track.probe.success_threshold.max(1);
        let interval = Duration::from_millis(track.probe.interval_ms);
        track.streak = Some(Streak {
            error: outcome.error,
            count,
            took: outcome.took,
        });
        let passed = good && count >= wanted;
        if KINDS[key.kind] == ProbeKind::Startup && passed {
            track.phase = Phase::Passed;
            self.open(now, &key.instance);
        } else {
            let due = now + outcome.next_in.unwrap_or(interval).max(MIN_INTERVAL);
            track.phase = Phase::Due(due);
            self.deadlines.push(Reverse((due, key.clone())));
        }
        let published = !good || count <= wanted;
        published
            .then(|| self.result(&key.instance, key.kind))
            .flatten()
    }

    /// The startup probe has passed: the others begin.
    fn open(&mut self, now: Instant, instance: &InstanceName) {
        let Some(watched) = self.watched.get_mut(instance) else {
            return;
        };
        for (kind, track) in watched.tracks.iter_mut().enumerate() {
            let Some(track) = track.as_mut().filter(|track| track.phase == Phase::Gated) else {
                continue;
            };
            let due = first_due(watched.begun, now, &track.probe);
            track.phase = Phase::Due(due);
            self.deadlines.push(Reverse((
                due,
                Key {
                    instance: instance.clone(),
                    kind,
                },
            )));
        }
    }

    fn result(&self, instance: &InstanceName, kind: usize) -> Option<ProbeResult> {
        let watched = self.watched.get(instance)?;
        let streak = watched.tracks[kind].as_ref()?.streak.as_ref()?;
        Some(ProbeResult {
            instance: instance.clone(),
            generation: watched.generation,
            probe: KINDS[kind],
            error: streak.error.clone(),
            in_a_row: streak.count,
            took_us: u64::try_from(streak.took.as_micros()).unwrap_or(u64::MAX),
        })
    }

    /// The latest result of each probe of an instance: for whoever was not
    /// there when it was published.
    pub fn latest(&self, instance: &InstanceName) -> impl Iterator<Item = ProbeResult> {
        (0..KINDS.len()).filter_map(|kind| self.result(instance, kind))
    }
}

/// How long a service has until its probe has failed for good.
fn allowed(probe: &Probe) -> Duration {
    let round = Duration::from_millis(probe.interval_ms.saturating_add(probe.timeout_ms));
    let rounds = round.saturating_mul(probe.failure_threshold.max(1));
    Duration::from_millis(probe.initial_delay_ms).saturating_add(rounds)
}

/// The initial delay counts from the start of the process.
fn first_due(begun: Instant, now: Instant, probe: &Probe) -> Instant {
    let delay = Duration::from_millis(probe.initial_delay_ms);
    begun.checked_add(delay).unwrap_or(now).max(now)
}

#[cfg(test)]
mod tests;
