//! How far a start is: pure judgement over the instances' status.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use blackhole_bus_schema::health::Health;
use blackhole_bus_schema::names::ServiceName;
use blackhole_bus_schema::process::{ExitResult, StateName};
use blackhole_bus_schema::supervision::{Desired, InstanceStatus, Phase};

use crate::human;
use crate::view::service::exit_words;
use crate::view::waits;

/// Without a probe a service counts as ready as soon as it runs. One that dies of its
/// own start mostly does so within this time.
const WATCHED: Duration = Duration::from_millis(1500);

/// One that has failed during the start and runs again counts as ready when it has done so
/// for twice as long as before, and for at least this time …
const AGAIN_LEAST: Duration = Duration::from_secs(2);
/// … and at most this: then it is no crash loop that anybody would wait for.
const AGAIN_MOST: Duration = Duration::from_secs(5);

/// How far a start is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assessment {
    /// Instances that are ready, or one-shots that are through.
    pub ready: usize,
    /// Instances that nobody wants to run.
    pub down: usize,
    /// Instances on their way, with what they wait for.
    pub pending: Vec<(String, String)>,
    /// Instances that will not get there without help, with the reason.
    pub failed: Vec<(String, String)>,
    /// How long those that are ready have to be watched yet.
    pub watched: Duration,
    /// When what has failed and runs again will count as ready, at the earliest.
    pub again: Option<Duration>,
}

impl Assessment {
    /// Whether nothing more will happen by itself.
    pub fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether all that should run is ready.
    pub fn is_ready(&self) -> bool {
        self.pending.is_empty() && self.failed.is_empty()
    }

    /// Instances that should run.
    pub fn wanted(&self) -> usize {
        self.ready + self.pending.len() + self.failed.len()
    }
}

enum Stage {
    Ready,
    /// Ready, if it lives for so long.
    Young(Duration),
    /// It has failed, and runs again: ready if it lives for so long.
    Again(Duration, String),
    Down,
    Pending(String),
    /// Waits for services by name.
    Blocked(Vec<String>),
    Failed(String),
}

/// Judges how far a start that began at `begun` is at `now`, both Unix time in nanoseconds.
/// What waits for something that has failed for good counts as failed, too. What failed
/// before the start and runs is as ready as the supervisor says.
pub fn assess(begun: u64, now: u64, all: &[InstanceStatus]) -> Assessment {
    let stages: Vec<(&InstanceStatus, Stage)> = all
        .iter()
        .map(|status| (status, stage(begun, now, status)))
        .collect();
    let phases = waits::phases(all);
    let mut stuck: BTreeSet<&ServiceName> = stages
        .iter()
        .filter(|(_, stage)| matches!(stage, Stage::Failed(_) | Stage::Down))
        .map(|(status, _)| &status.service)
        .collect();
    let mut blocked: BTreeMap<String, String> = BTreeMap::new();
    // At most one round for each instance: each round but the last adds one.
    loop {
        let before = blocked.len();
        for (status, stage) in &stages {
            let Stage::Blocked(on) = stage else { continue };
            let culprit = on.iter().find(|text| {
                text.split(' ')
                    .next()
                    .is_some_and(|name| stuck.iter().any(|service| service.as_str() == name))
            });
            if let Some(culprit) = culprit {
                blocked
                    .entry(status.instance.to_string())
                    .or_insert_with(|| format!("waits for {}", waits::current(culprit, &phases)));
                stuck.insert(&status.service);
            }
        }
        if blocked.len() == before {
            break;
        }
    }
    let mut assessment = Assessment::default();
    for (status, stage) in stages {
        let name = status.instance.to_string();
        match stage {
            Stage::Ready => assessment.ready += 1,
            Stage::Young(left) => {
                assessment.ready += 1;
                assessment.watched = assessment.watched.max(left);
            }
            Stage::Again(left, why) => {
                assessment.pending.push((name, why));
                let first = assessment.again.map_or(left, |again| again.min(left));
                assessment.again = Some(first);
            }
            Stage::Down => assessment.down += 1,
            Stage::Pending(what) => assessment.pending.push((name, what)),
            Stage::Failed(why) => assessment.failed.push((name, why)),
            Stage::Blocked(on) => match blocked.remove(&name) {
                Some(why) => assessment.failed.push((name, why)),
                None => {
                    let on: Vec<String> = on.iter().map(|on| waits::current(on, &phases)).collect();
                    let text = format!("waits for {}", human::list(&on, 4));
                    assessment.pending.push((name, text));
                }
            },
        }
    }
    assessment
}

fn stage(begun: u64, now: u64, status: &InstanceStatus) -> Stage {
    if status.desired == Desired::Down {
        return Stage::Down;
    }
    match &status.phase {
        Phase::Ready => running(begun, now, status),
        Phase::Idle if status.completed => Stage::Ready,
        Phase::Probing | Phase::NotReady => Stage::Pending(format!(
            "is not ready: {}",
            status.detail.as_deref().map_or_else(
                || "no probe of it has passed yet".to_owned(),
                human::printable
            )
        )),
        Phase::Idle => match (&status.last_exit, status.state) {
            (Some(exit), _) if exit.result == ExitResult::Success => Stage::Ready,
            // Stopped, by an earlier `down` for instance: it is started yet.
            (Some(exit), Some(StateName::Terminated))
                if matches!(exit.result, ExitResult::Stopped | ExitResult::StopTimeout) =>
            {
                Stage::Pending("not started yet".to_owned())
            }
            (_, Some(StateName::Terminated)) => Stage::Ready,
            (_, Some(StateName::Failed)) => Stage::Failed(reason(status)),
            _ => Stage::Pending("not looked at yet".to_owned()),
        },
        Phase::WaitingForDependency { on } => Stage::Blocked(on.clone()),
        Phase::WaitingForComponent { component } => {
            Stage::Pending(format!("waits for the {component}"))
        }
        Phase::Refused { reason } => {
            Stage::Failed(format!("refused: {}", human::printable(reason)))
        }
        Phase::CircuitOpen => Stage::Failed(format!("circuit open, {}", reason(status))),
        Phase::GaveUp => Stage::Failed(reason(status)),
        Phase::BackingOff { attempt, .. } => {
            Stage::Pending(format!("restart {attempt} follows, {}", reason(status)))
        }
        other => Stage::Pending(other.word().to_owned()),
    }
}

/// One whose phase is ready. A flash of that between two failures is not meant.
fn running(begun: u64, now: u64, status: &InstanceStatus) -> Stage {
    let since = |at: u64| Duration::from_nanos(now.saturating_sub(at));
    let Some(age) = status.started_at.map(since) else {
        return Stage::Ready;
    };
    let failed = status.last_exit.as_ref().filter(|exit| {
        status.restarts > 0
            && exit.generation < status.generation
            && exit.ended_at >= begun
            && exit.result.is_failure()
            && exit.result != ExitResult::HostRestarted
    });
    if let Some(exit) = failed {
        let ran = Duration::from_nanos(exit.ended_at.saturating_sub(exit.started_at));
        let long = ran.saturating_mul(2).clamp(AGAIN_LEAST, AGAIN_MOST);
        if age < long {
            let text = format!(
                "runs again after {} ({}), and counts as ready when it has for {}",
                human::count(
                    usize::try_from(status.restarts).unwrap_or(usize::MAX),
                    "failure"
                ),
                exit_words(exit),
                human::duration(long)
            );
            return Stage::Again(long.saturating_sub(age), text);
        }
    }
    match status.health {
        Health::Unknown if age < WATCHED => Stage::Young(WATCHED.saturating_sub(age)),
        _ => Stage::Ready,
    }
}

fn reason(status: &InstanceStatus) -> String {
    if let Some(error) = &status.last_error {
        return human::printable(error);
    }
    match &status.last_exit {
        Some(exit) => format!("last: {}", exit_words(exit)),
        None => "no reason known".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::status::tests::{exit, status};
    use blackhole_bus_schema::names::Generation;
    use blackhole_bus_schema::process::ExitStatus;

    const NOW: u64 = 1_000_000_000_000_000;
    const MS: u64 = 1_000_000;
    const BEGUN: u64 = NOW - 10_000_000 * MS;

    fn waiting(name: &str, on: &str) -> InstanceStatus {
        status(
            name,
            Phase::WaitingForDependency {
                on: vec![on.to_owned()],
            },
        )
    }

    #[test]
    fn all_ready() {
        let mut migrate = status("migrate.1", Phase::Idle);
        migrate.last_exit = Some(exit(ExitResult::Success, ExitStatus::Exited { code: 0 }));
        let mut off = status("off.1", Phase::Idle);
        off.desired = Desired::Down;
        let done = assess(BEGUN, NOW, &[status("db.1", Phase::Ready), migrate, off]);
        assert!(done.is_ready());
        assert_eq!((done.ready, done.down, done.wanted()), (2, 1, 2));
    }

    /// Before a supervisor has looked at what an earlier `down` stopped.
    #[test]
    fn what_was_stopped_and_should_run_is_pending() {
        let mut web = status("web.1", Phase::Idle);
        web.state = Some(StateName::Terminated);
        web.last_exit = Some(exit(ExitResult::Stopped, ExitStatus::Exited { code: 0 }));
        let assessment = assess(BEGUN, NOW, &[status("db.1", Phase::Ready), web]);
        assert!(!assessment.is_settled(), "{assessment:?}");
    }

    #[test]
    fn what_waits_for_a_failure_has_failed() {
        let mut db = status("db.1", Phase::CircuitOpen);
        db.last_exit = Some(exit(ExitResult::ExitCode, ExitStatus::Exited { code: 3 }));
        let list = [
            waiting("web.1", "api ready"),
            waiting("api.1", "db ready (spawning)"),
            db,
        ];
        let assessment = assess(BEGUN, NOW, &list);
        assert!(assessment.is_settled() && !assessment.is_ready());
        assert_eq!(
            assessment.failed,
            [
                ("web.1".to_owned(), "waits for api ready".to_owned()),
                (
                    "api.1".to_owned(),
                    "waits for db ready (circuit open)".to_owned()
                ),
                (
                    "db.1".to_owned(),
                    "circuit open, last: exit code 3".to_owned()
                ),
            ]
        );
    }

    #[test]
    fn what_waits_for_something_on_its_way_is_pending() {
        let list = [
            waiting("web.1", "db ready"),
            status(
                "db.1",
                Phase::BackingOff {
                    attempt: 1,
                    until: 0,
                },
            ),
        ];
        let assessment = assess(BEGUN, NOW, &list);
        assert!(!assessment.is_settled());
        assert_eq!(assessment.pending.len(), 2);
    }

    #[test]
    fn a_dependency_cycle_in_the_answers_ends() {
        let assessment = assess(
            BEGUN,
            NOW,
            &[waiting("a.1", "b ready"), waiting("b.1", "a ready")],
        );
        assert_eq!(assessment.pending.len(), 2);
    }

    /// Ready, `age` ms after it failed for the `restarts`th time, and ran for `ran` ms before.
    fn again(age: u64, restarts: u32, ran: u64) -> InstanceStatus {
        let mut one = status("a.1", Phase::Ready);
        let mut last = exit(ExitResult::ExitCode, ExitStatus::Exited { code: 1 });
        last.ended_at = NOW - age * MS;
        last.started_at = last.ended_at - ran * MS;
        one.started_at = Some(NOW - age * MS);
        one.last_exit = Some(last);
        one.restarts = restarts;
        one.generation = Generation(2);
        one
    }

    #[test]
    fn a_flash_of_readiness_in_a_crash_loop_is_not_ready() {
        let looping = assess(BEGUN, NOW, &[again(700, 3, 1000)]);
        assert_eq!((looping.ready, looping.is_settled()), (0, false));
        assert_eq!(looping.again, Some(Duration::from_millis(1300)));
        insta::assert_snapshot!(looping.pending[0].1, @"runs again after 3 failures (exit code 1), and counts as ready when it has for 2.0 s");
        // With a probe that passes as well.
        let mut probed = again(4_500, 1, 5_000);
        probed.health = Health::Healthy;
        assert_eq!(assess(BEGUN, NOW, &[probed.clone()]).ready, 0);
        for long in [again(2_000, 3, 1000), again(5_000, 9, 1_000_000)] {
            assert!(assess(BEGUN, NOW, &[long]).is_ready());
        }
        // Before an operator started it, or the whole host went down.
        assert!(assess(BEGUN, NOW, &[again(1_500, 0, 1000)]).is_ready());
        probed.last_exit = probed.last_exit.map(|mut exit| {
            exit.result = ExitResult::HostRestarted;
            exit
        });
        assert!(assess(BEGUN, NOW, &[probed]).is_ready());
    }

    #[test]
    fn what_failed_before_the_start_is_ready_when_the_supervisor_says_so() {
        let mut before = again(4_000, 3, 3_600_000);
        assert!(!assess(NOW - 4_000 * MS, NOW, &[before.clone()]).is_ready());
        let taken = assess(NOW - 3_999 * MS, NOW, &[before.clone()]);
        assert!(taken.is_ready() && taken.watched.is_zero(), "{taken:?}");
        // It was started by this start, and has no probe.
        before.started_at = Some(NOW - 500 * MS);
        let young = assess(NOW - 3_000 * MS, NOW, &[before]);
        assert_eq!((young.ready, young.watched), (1, Duration::from_secs(1)));
    }

    #[test]
    fn what_has_no_probe_is_watched_for_a_moment() {
        let mut plain = status("a.1", Phase::Ready);
        plain.started_at = Some(NOW - 500 * MS);
        let young = assess(BEGUN, NOW, &[plain.clone()]);
        assert_eq!((young.ready, young.watched), (1, Duration::from_secs(1)));
        plain.health = Health::Healthy;
        assert_eq!(assess(BEGUN, NOW, &[plain]).watched, Duration::ZERO);
    }

    #[test]
    fn what_is_waited_for_is_told_with_the_reason() {
        let mut probing = status("a.1", Phase::Probing);
        let text = |status: &InstanceStatus| {
            assess(BEGUN, NOW, std::slice::from_ref(status)).pending[0]
                .1
                .clone()
        };
        assert_eq!(
            text(&probing),
            "is not ready: no probe of it has passed yet"
        );
        probing.detail = Some("connection refused".to_owned());
        assert_eq!(text(&probing), "is not ready: connection refused");
    }
}
