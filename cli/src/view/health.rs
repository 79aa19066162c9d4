//! `blackhole health`: the verdict on each instance.

use blackhole_bus_schema::health::Health;
use blackhole_bus_schema::process::StateName;
use blackhole_bus_schema::supervision::{Circuit, Phase};
use serde::Serialize;

use crate::out::{Style, Tone};
use crate::table::{Table, plain, toned};
use crate::view::component::{Found, Presence};
use crate::view::keeper::Keeper;
use crate::view::problem;
use crate::view::service::{LastExit, ServiceRow};

/// The verdict on one instance, for a person in a hurry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Runs; its probes pass, or it has none. A one-shot that is through is well, too.
    Healthy,
    /// On its way: waiting, starting, stopping.
    Starting,
    /// Nobody wants it to run.
    Down,
    /// Alive, but its probes fail.
    Unhealthy,
    /// It does not run and should.
    Failed,
    /// It ran when its process-manager was last heard of, and that does not answer.
    Unknown,
}

/// One instance. The serialized field names are part of the interface.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HealthRow {
    /// Its service.
    pub service: String,
    /// Its name.
    pub instance: String,
    /// The verdict.
    pub verdict: Verdict,
    /// Its state, where known.
    pub state: Option<StateName>,
    /// What the supervisor makes of its probes.
    pub health: Option<Health>,
    /// Its restart circuit.
    pub circuit: Option<Circuit>,
    /// Restarts after failures.
    pub restarts: Option<u32>,
    /// The last probe's error, the spawn's error or the last exit; `None` when all is well.
    pub why: Option<String>,
    /// How its process last ended.
    pub last_exit: Option<LastExit>,
    /// The process-manager that does not answer: state and health are those last known.
    pub away: Option<String>,
}

/// All verdicts.
#[derive(Debug, Clone, Serialize)]
pub struct HealthView {
    /// Whether none is unhealthy, none has failed, and none is unknown.
    pub healthy: bool,
    /// The daemons that do not answer.
    pub away: Vec<String>,
    /// The instances.
    pub services: Vec<HealthRow>,
    /// Who restarts the daemons; `null` where no `up` did that.
    pub keeper: Option<Keeper>,
}

impl HealthView {
    /// Judges the rows.
    pub fn new(rows: &[ServiceRow], found: &[Found], keeper: Option<Keeper>) -> Self {
        let services: Vec<HealthRow> = rows.iter().map(row).collect();
        let healthy = !services.iter().any(|row| {
            matches!(
                row.verdict,
                Verdict::Unhealthy | Verdict::Failed | Verdict::Unknown
            )
        });
        let missing = |found: &&Found| matches!(found.presence, Presence::Missing { .. });
        let away = found.iter().filter(missing);
        Self {
            healthy,
            away: away.map(|found| found.component.to_string()).collect(),
            services,
            keeper,
        }
    }

    /// The table for people.
    pub fn table(&self, style: Style) -> String {
        let mut table = Table::new(
            style,
            &["INSTANCE", "VERDICT", "STATE", "RESTARTS", "WHY"],
            &[3],
        );
        for row in &self.services {
            let (word, tone) = match row.verdict {
                Verdict::Healthy => ("healthy", Tone::Good),
                Verdict::Starting => ("starting", Tone::Warn),
                Verdict::Down => ("down", Tone::Dim),
                Verdict::Unhealthy => ("unhealthy", Tone::Bad),
                Verdict::Failed => ("failed", Tone::Bad),
                Verdict::Unknown => ("unknown", Tone::Bad),
            };
            table.row(vec![
                toned(&row.instance, Tone::Strong),
                toned(word, tone),
                plain(row.state.map_or("-".to_owned(), |state| state.to_string())),
                plain(
                    row.restarts
                        .map_or("-".to_owned(), |count| count.to_string()),
                ),
                plain(row.why.clone().unwrap_or_default()),
            ]);
        }
        table.render()
    }
}

/// Why an instance is not as it should be; `None` when it is, or is down as it should be.
pub fn why(row: &ServiceRow) -> Option<String> {
    let why = match judge(row) {
        Verdict::Healthy | Verdict::Down => String::new(),
        Verdict::Unknown => format!(
            "last known as {}: the {} does not answer",
            match last_known(row) {
                Verdict::Healthy => "healthy",
                Verdict::Starting => "starting",
                _ => "not healthy",
            },
            row.away.as_deref().unwrap_or("process-manager")
        ),
        _ => match (problem::why(row), row.detail.circuit_open) {
            (why, true) if why.is_empty() => "circuit open".to_owned(),
            (why, true) => format!("circuit open; {why}"),
            (why, false) if why.is_empty() => waiting(row),
            (why, false) => why,
        },
    };
    Some(why).filter(|why| !why.is_empty())
}

fn row(row: &ServiceRow) -> HealthRow {
    HealthRow {
        service: row.service.clone(),
        instance: row.instance.to_string(),
        verdict: judge(row),
        state: row.state,
        health: row.health,
        circuit: row.circuit,
        restarts: row.restarts,
        why: why(row),
        last_exit: row.last_exit.clone(),
        away: row.away.clone(),
    }
}

fn waiting(row: &ServiceRow) -> String {
    match &row.detail.phase {
        Some(Phase::WaitingForDependency { on }) => format!("waits for {}", on.join(", ")),
        Some(Phase::WaitingForComponent { component }) => format!("waits for the {component}"),
        Some(Phase::Refused { reason }) => reason.clone(),
        Some(Phase::Probing) => "no probe of it has passed yet".to_owned(),
        _ => String::new(),
    }
}

fn judge(row: &ServiceRow) -> Verdict {
    match row.away {
        // Nobody can tell.
        Some(_) => Verdict::Unknown,
        None => last_known(row),
    }
}

fn last_known(row: &ServiceRow) -> Verdict {
    // How one ended that was stopped since is history.
    let failed = row.state == Some(StateName::Failed) && !row.detail.off;
    if row.detail.circuit_open || failed {
        return Verdict::Failed;
    }
    match (&row.detail.phase, row.health) {
        (
            Some(
                Phase::CircuitOpen
                | Phase::GaveUp
                | Phase::BackingOff { .. }
                | Phase::Refused { .. },
            ),
            _,
        ) => Verdict::Failed,
        (_, Some(Health::Unhealthy | Health::NotReady)) | (Some(Phase::NotReady), _) => {
            Verdict::Unhealthy
        }
        (Some(Phase::Ready), _) => Verdict::Healthy,
        (Some(Phase::Idle), _) if row.detail.completed => Verdict::Healthy,
        (Some(Phase::Idle), _) => match row.last_exit.as_ref().map(|exit| exit.result) {
            Some(blackhole_bus_schema::process::ExitResult::Success) => Verdict::Healthy,
            _ => Verdict::Down,
        },
        (Some(_), _) => Verdict::Starting,
        // Without a supervisor: what runs is not known to be ill.
        (None, _) => match row.state {
            Some(StateName::Running) => Verdict::Healthy,
            Some(StateName::Terminated) => Verdict::Down,
            _ => Verdict::Starting,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::service::{Answers, rows};
    use crate::view::status::tests::{exit, status};
    use blackhole_bus_schema::process::{ExitResult, ExitStatus};
    use blackhole_bus_schema::supervision::Desired;

    #[test]
    fn verdicts() {
        let mut db = status("db.1", Phase::Ready);
        db.state = Some(StateName::Running);
        db.health = Health::Healthy;
        let mut api = status("api.1", Phase::NotReady);
        api.state = Some(StateName::Running);
        api.health = Health::NotReady;
        api.detail = Some("http://127.0.0.1:1/: status 503".into());
        let mut flaky = status("flaky.1", Phase::CircuitOpen);
        flaky.state = Some(StateName::Failed);
        flaky.circuit = Circuit::Open;
        flaky.restarts = 5;
        flaky.last_exit = Some(exit(ExitResult::ExitCode, ExitStatus::Exited { code: 1 }));
        let mut migrate = status("migrate.1", Phase::Idle);
        migrate.state = Some(StateName::Terminated);
        migrate.last_exit = Some(exit(ExitResult::Success, ExitStatus::Exited { code: 0 }));
        let mut stopped = status("off.1", Phase::Idle);
        stopped.state = Some(StateName::Terminated);
        // It has failed, and was stopped afterwards.
        let mut given_up = status("past.1", Phase::Idle);
        given_up.desired = Desired::Down;
        given_up.state = Some(StateName::Failed);
        given_up.last_exit = Some(exit(ExitResult::ExitCode, ExitStatus::Exited { code: 3 }));
        let mut once = given_up.clone();
        once.instance = "once.1".parse().unwrap();
        once.desired = Desired::Up;
        let web = status(
            "web.1",
            Phase::WaitingForDependency {
                on: vec!["api ready".into()],
            },
        );
        let answers = Answers {
            status: Some(vec![
                db.clone(),
                api,
                flaky,
                migrate,
                stopped,
                given_up,
                once,
                web,
            ]),
            ..Answers::default()
        };
        let view = HealthView::new(&rows(0, &answers), &[], None);
        assert!(!view.healthy);
        insta::assert_snapshot!(view.table(Style::PLAIN), @r"
        INSTANCE   VERDICT    STATE       RESTARTS  WHY
        api.1      unhealthy  RUNNING            0  http://127.0.0.1:1/: status 503
        db.1       healthy    RUNNING            0
        flaky.1    failed     FAILED             5  circuit open; last: exit code 1
        migrate.1  healthy    TERMINATED         0
        off.1      down       TERMINATED         0
        once.1     failed     FAILED             0  last: exit code 3
        past.1     down       FAILED             0
        web.1      starting   -                  0  waits for api ready
        ");
        let well = Answers {
            status: Some(vec![db]),
            ..Answers::default()
        };
        assert!(HealthView::new(&rows(0, &well), &[], None).healthy);
    }

    #[test]
    fn what_nobody_can_tell_is_unknown() {
        use crate::view::status::StatusView;
        let gpu: blackhole_bus_schema::names::Component = "process-manager.gpu".parse().unwrap();
        let at_gpu = |name: &str, phase| {
            let mut one = status(name, phase);
            one.manager = Some("gpu".parse().unwrap());
            one
        };
        let mut train = at_gpu("train.1", Phase::Ready);
        train.state = Some(StateName::Running);
        train.pid = Some(7);
        let mut web = status("web.1", Phase::Ready);
        web.state = Some(StateName::Running);
        web.pid = Some(8);
        let answers = Answers {
            status: Some(vec![train, web, at_gpu("off.1", Phase::Idle)]),
            ..Answers::default()
        };
        let found = vec![Found {
            component: gpu,
            presence: Presence::Missing { lock_held: false },
        }];
        let view = StatusView::new(0, &answers, found);
        let health = HealthView::new(&view.services, view.found(), None);
        assert!(!health.healthy);
        assert_eq!(health.away, ["process-manager.gpu"]);
        insta::assert_snapshot!(health.table(Style::PLAIN), @r"
        INSTANCE  VERDICT  STATE    RESTARTS  WHY
        off.1     down     -               0
        train.1   unknown  RUNNING         0  last known as healthy: the process-manager.gpu does not answer
        web.1     healthy  RUNNING         0
        ");
    }
}
