//! How far a start is: pure judgement over the instances' status.

use std::collections::{BTreeMap, BTreeSet};

use blackhole_bus_schema::names::ServiceName;
use blackhole_bus_schema::process::{ExitResult, StateName};
use blackhole_bus_schema::supervision::{Desired, InstanceStatus, Phase};

use crate::human;
use crate::view::service::exit_words;

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
    Down,
    Pending(String),
    /// Waits for services by name.
    Blocked(Vec<String>),
    Failed(String),
}

/// Judges how far a start is. What waits for something that has failed for
/// good counts as failed, too.
pub fn assess(all: &[InstanceStatus]) -> Assessment {
    let stages: Vec<(&InstanceStatus, Stage)> =
        all.iter().map(|status| (status, stage(status))).collect();
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
                    .or_insert_with(|| format!("waits for {culprit}"));
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
            Stage::Down => assessment.down += 1,
            Stage::Pending(what) => assessment.pending.push((name, what)),
            Stage::Failed(why) => assessment.failed.push((name, why)),
            Stage::Blocked(on) => match blocked.remove(&name) {
                Some(why) => assessment.failed.push((name, why)),
                None => assessment
                    .pending
                    .push((name, format!("waits for {}", human::list(&on, 4)))),
            },
        }
    }
    assessment
}

fn stage(status: &InstanceStatus) -> Stage {
    if status.desired == Desired::Down {
        return Stage::Down;
    }
    match &status.phase {
        Phase::Ready => Stage::Ready,
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
    use blackhole_bus_schema::process::ExitStatus;

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
        let done = assess(&[status("db.1", Phase::Ready), migrate, off]);
        assert!(done.is_ready());
        assert_eq!((done.ready, done.down, done.wanted()), (2, 1, 2));
    }

    /// Before a supervisor has looked at what an earlier `down` stopped.
    #[test]
    fn what_was_stopped_and_should_run_is_pending() {
        let mut web = status("web.1", Phase::Idle);
        web.state = Some(StateName::Terminated);
        web.last_exit = Some(exit(ExitResult::Stopped, ExitStatus::Exited { code: 0 }));
        let assessment = assess(&[status("db.1", Phase::Ready), web]);
        assert!(!assessment.is_settled(), "{assessment:?}");
    }

    #[test]
    fn what_waits_for_a_failure_has_failed() {
        let mut db = status("db.1", Phase::CircuitOpen);
        db.last_exit = Some(exit(ExitResult::ExitCode, ExitStatus::Exited { code: 3 }));
        let list = [
            waiting("web.1", "api ready"),
            waiting("api.1", "db ready"),
            db,
        ];
        let assessment = assess(&list);
        assert!(assessment.is_settled() && !assessment.is_ready());
        assert_eq!(
            assessment.failed,
            [
                ("web.1".to_owned(), "waits for api ready".to_owned()),
                ("api.1".to_owned(), "waits for db ready".to_owned()),
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
        let assessment = assess(&list);
        assert!(!assessment.is_settled());
        assert_eq!(assessment.pending.len(), 2);
    }

    #[test]
    fn a_dependency_cycle_in_the_answers_ends() {
        let assessment = assess(&[waiting("a.1", "b ready"), waiting("b.1", "a ready")]);
        assert_eq!(assessment.pending.len(), 2);
    }
}
