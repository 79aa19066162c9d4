//! `--watch`: what has no probes counts as ready as soon as it runs, also what dies a
//! moment later. Each end of it within the time is a failure, whatever became of it since.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use blackhole_bus_schema::health::Health;
use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::supervision::{InstanceStatus, Phase};

use crate::view::service::exit_words;

/// The life that is watched.
#[derive(Debug, Clone, Copy)]
struct Life {
    generation: Generation,
    restarts: u32,
    started_at: u64,
}

/// Who is watched and who has ended. Pure: times are passed in, Unix time in nanoseconds.
#[derive(Debug)]
pub(super) struct Watched {
    begun: u64,
    time: Duration,
    lives: BTreeMap<InstanceName, Life>,
    ended: BTreeMap<InstanceName, String>,
    /// Whom the command was about; `None` before it is answered.
    about: Option<BTreeSet<InstanceName>>,
}

impl Watched {
    /// For a command that began at `begun`.
    pub(super) fn new(begun: u64, time: Duration) -> Self {
        Self {
            begun,
            time,
            lives: BTreeMap::new(),
            ended: BTreeMap::new(),
            about: None,
        }
    }

    /// An event. While the command is under way the life before it may end as it wants.
    pub(super) fn heard(&mut self, status: &InstanceStatus) {
        if self
            .about
            .as_ref()
            .is_some_and(|about| !about.contains(&status.instance))
        {
            return;
        }
        match self.lives.get(&status.instance) {
            // A one-shot that is through.
            Some(_) if status.completed => {
                self.lives.remove(&status.instance);
            }
            Some(life) => {
                if let Some(how) = has_ended(life, status) {
                    self.ended.entry(status.instance.clone()).or_insert(how);
                }
            }
            None if status.started_at.is_some_and(|at| at >= self.begun) => self.begin(status),
            None => {}
        }
    }

    /// What the command came to: what runs now is watched, whenever it was started.
    pub(super) fn answered(&mut self, outcome: &[InstanceStatus]) {
        let about: BTreeSet<_> = outcome.iter().map(|one| one.instance.clone()).collect();
        self.lives.retain(|name, _| about.contains(name));
        self.ended.retain(|name, _| about.contains(name));
        self.about = Some(about);
        for status in outcome {
            self.came_to(status);
        }
    }

    fn came_to(&mut self, status: &InstanceStatus) {
        if self.lives.contains_key(&status.instance) {
            return self.heard(status);
        }
        self.begin(status);
        let started = status.started_at.is_some_and(|at| at >= self.begun);
        let exit = status.last_exit.as_ref();
        let through = status.phase == Phase::Idle
            && !status.completed
            && exit.is_some_and(|exit| exit.ended_at >= self.begun);
        // An operator's word begins the count anew, for what it really starts.
        let again = started && status.restarts > 0 && status.health == Health::Unknown;
        if through || again {
            self.ended.insert(status.instance.clone(), how(status));
        }
    }

    fn begin(&mut self, status: &InstanceStatus) {
        if status.phase == Phase::Ready && status.health == Health::Unknown {
            let life = Life {
                generation: status.generation,
                restarts: status.restarts,
                started_at: status.started_at.unwrap_or_default(),
            };
            self.lives.insert(status.instance.clone(), life);
        }
    }

    /// How long is to be watched yet; `None` when the time is over or somebody has ended.
    pub(super) fn left(&self, now: u64) -> Option<Duration> {
        if !self.ended.is_empty() {
            return None;
        }
        let left = self.lives.values().filter_map(|life| {
            let age = Duration::from_nanos(now.saturating_sub(life.started_at));
            self.time.checked_sub(age)
        });
        left.max()
    }

    /// Who has ended, and how.
    pub(super) fn ended(&self) -> Vec<String> {
        let all = self.ended.iter();
        all.map(|(name, how)| format!("{name} ({how})")).collect()
    }
}

fn has_ended(life: &Life, status: &InstanceStatus) -> Option<String> {
    if status.generation < life.generation {
        return None;
    }
    let exit = status.last_exit.as_ref();
    let ended = status.generation > life.generation
        || status.restarts > life.restarts
        || exit.is_some_and(|exit| exit.generation >= life.generation)
        || matches!(
            status.phase,
            Phase::BackingOff { .. } | Phase::CircuitOpen | Phase::GaveUp
        );
    ended.then(|| how(status))
}

fn how(status: &InstanceStatus) -> String {
    match (&status.last_exit, &status.last_error) {
        (Some(exit), _) => exit_words(exit),
        (None, Some(error)) => crate::human::printable(error),
        (None, None) => "it is not known how".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::status::tests::{exit, status};
    use blackhole_bus_schema::process::{ExitResult, ExitStatus};

    const BEGUN: u64 = 1_000_000_000_000;
    const MS: u64 = 1_000_000;
    const TIME: Duration = Duration::from_secs(1);

    fn ready(generation: u64, started_at: u64) -> InstanceStatus {
        let mut one = status("a.1", Phase::Ready);
        one.generation = Generation(generation);
        one.started_at = Some(started_at);
        one
    }

    fn crashed(mut one: InstanceStatus) -> InstanceStatus {
        let mut last = exit(ExitResult::ExitCode, ExitStatus::Exited { code: 3 });
        last.generation = one.generation;
        last.ended_at = BEGUN + 300 * MS;
        one.last_exit = Some(last);
        one
    }

    #[test]
    fn who_runs_again_has_ended_meanwhile() {
        let mut watched = Watched::new(BEGUN, TIME);
        watched.answered(&[ready(4, BEGUN + MS)]);
        let now = BEGUN + 101 * MS;
        assert_eq!(watched.left(now), Some(Duration::from_millis(900)));
        // A status without news.
        watched.heard(&ready(4, BEGUN + MS));
        assert!(watched.ended().is_empty());
        let mut again = crashed(ready(4, BEGUN + MS));
        again.generation = Generation(5);
        again.restarts = 1;
        watched.heard(&again);
        assert_eq!(watched.ended(), ["a.1 (exit code 3)"]);
        assert_eq!(watched.left(now), None, "told at once");
    }

    #[test]
    fn an_end_by_any_way_is_one() {
        for phase in [
            Phase::Idle,
            Phase::CircuitOpen,
            Phase::GaveUp,
            Phase::Stopping,
        ] {
            let mut watched = Watched::new(BEGUN, TIME);
            watched.answered(&[ready(4, BEGUN + MS)]);
            let mut end = crashed(ready(4, BEGUN + MS));
            end.phase = phase;
            watched.heard(&end);
            assert_eq!(watched.ended().len(), 1, "{end:?}");
        }
    }

    #[test]
    fn an_end_before_the_answer_counts_too() {
        // Told while the command was under way.
        let mut watched = Watched::new(BEGUN, TIME);
        watched.heard(&ready(4, BEGUN + MS));
        watched.answered(&[ready(5, BEGUN + 2 * MS)]);
        assert_eq!(watched.ended().len(), 1);
        // Not told at all, but counted.
        let mut watched = Watched::new(BEGUN, TIME);
        let mut again = crashed(ready(5, BEGUN + 2 * MS));
        again.restarts = 1;
        watched.answered(&[again]);
        assert_eq!(watched.ended().len(), 1);
    }

    #[test]
    fn others_are_not_watched() {
        let mut watched = Watched::new(BEGUN, TIME);
        let mut other = ready(4, BEGUN + MS);
        other.instance = "b.1".parse().unwrap();
        watched.heard(&other);
        watched.heard(&crashed(other.clone()));
        watched.answered(&[ready(4, BEGUN + MS)]);
        watched.heard(&crashed(other));
        assert!(watched.ended().is_empty());
    }

    #[test]
    fn a_one_shot_that_is_through_is_not_watched_any_more() {
        let mut watched = Watched::new(BEGUN, TIME);
        watched.heard(&ready(4, BEGUN + MS));
        let mut through = crashed(ready(4, BEGUN + MS));
        through.phase = Phase::Idle;
        through.completed = true;
        watched.answered(&[through]);
        assert!(watched.ended().is_empty());
        assert_eq!(watched.left(BEGUN), None);
    }

    #[test]
    fn what_ended_before_the_command_or_by_it_does_not() {
        let mut watched = Watched::new(BEGUN, TIME);
        // The life that a restart ends.
        watched.heard(&ready(4, BEGUN - MS));
        let mut long = crashed(ready(5, BEGUN + MS));
        long.last_exit.as_mut().unwrap().generation = Generation(4);
        watched.answered(&[long]);
        assert!(watched.ended().is_empty());
        // It ran before, with a past.
        let mut watched = Watched::new(BEGUN, TIME);
        let mut old = crashed(ready(7, BEGUN - 5_000 * MS));
        old.restarts = 3;
        old.last_exit.as_mut().unwrap().generation = Generation(6);
        watched.answered(&[old]);
        assert!(watched.ended().is_empty());
        assert_eq!(watched.left(BEGUN), None, "it is older than the time");
        // With probes it is these that tell.
        let mut probed = ready(4, BEGUN + MS);
        probed.health = Health::Healthy;
        let mut watched = Watched::new(BEGUN, TIME);
        watched.answered(&[probed]);
        assert_eq!(watched.left(BEGUN), None);
    }
}
