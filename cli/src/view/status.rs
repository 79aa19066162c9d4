//! `blackhole status`: the document and the table.

use blackhole_bus_schema::health::Health;
use blackhole_bus_schema::names::Component;
use blackhole_bus_schema::process::StateName;
use blackhole_bus_schema::supervision::Phase;
use serde::Serialize;

use crate::human;
use crate::out::{Style, Tone};
use crate::table::{Field, Table, maybe, plain, toned};
use crate::view::changed::Edited;
use crate::view::component::{self, ComponentRow, Found};
use crate::view::keeper::{self, Keeper};
use crate::view::problem::{self, Problem};
use crate::view::service::{self, Answers, ServiceRow, exit_words};

/// The whole picture. Its serialized form is part of the interface.
#[derive(Debug, Clone, Serialize)]
pub struct StatusView {
    /// The instances.
    pub services: Vec<ServiceRow>,
    /// The daemons.
    pub components: Vec<ComponentRow>,
    /// Who restarts the daemons; `null` where no `up` did that.
    pub keeper: Option<Keeper>,
    /// What the configuration's file says and the daemons do not know; `null`
    /// where they were started with what it says.
    pub edited: Option<Edited>,
    /// What may be the reason of a failure, beyond what the daemons know.
    #[serde(skip)]
    hints: Vec<Problem>,
    #[serde(skip)]
    now: u64,
    #[serde(skip)]
    found: Vec<Found>,
}

impl StatusView {
    /// Brings the answers together; `now` is Unix time in nanoseconds.
    pub fn new(now: u64, answers: &Answers, found: Vec<Found>) -> Self {
        let mut services = service::rows(now, answers);
        for row in &mut services {
            row.away = component::away(&found, row);
            row.why = crate::view::health::why(row);
        }
        Self {
            services,
            components: found.iter().map(ComponentRow::from).collect(),
            keeper: None,
            edited: None,
            hints: Vec::new(),
            now,
            found,
        }
    }

    /// With what is known of the keeper.
    #[must_use]
    pub fn kept_by(self, keeper: Option<Keeper>) -> Self {
        Self { keeper, ..self }
    }

    /// With what was found out of the configuration's file.
    #[must_use]
    pub fn edited(self, edited: Option<Edited>) -> Self {
        Self { edited, ..self }
    }

    /// With these lines below what is wrong with the services.
    #[must_use]
    pub fn with_hints(self, hints: Vec<Problem>) -> Self {
        Self { hints, ..self }
    }

    /// Leaves out the instances that are not wanted.
    #[must_use]
    pub fn only(mut self, wanted: impl Fn(&ServiceRow) -> bool) -> Self {
        self.services.retain(|row| wanted(row));
        self
    }

    /// The daemons, with what they said of themselves.
    pub fn found(&self) -> &[Found] {
        &self.found
    }

    /// What is wrong, with the worst first.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = problem::of_components(&self.found);
        problems.extend(keeper::problem(self.keeper, &self.found));
        problems.extend(problem::of_services(self.now, &self.services));
        problems.extend(self.hints.iter().cloned());
        let lines = self
            .edited
            .iter()
            .flat_map(|edited| edited.lines(self.keeper));
        problems.extend(lines.map(|(found, advice)| Problem {
            tone: Tone::Warn,
            text: format!("{found}: {advice}"),
        }));
        problems
    }

    /// The table for people: instances, what is wrong, daemons.
    pub fn table(&self, style: Style) -> String {
        let mut text = if self.services.is_empty() {
            let known = self.found.iter().any(|found| {
                found.info().is_some()
                    && matches!(
                        found.component,
                        Component::Supervisor | Component::ProcessManager(_)
                    )
            });
            style.paint(
                Tone::Dim,
                if known {
                    "no services"
                } else {
                    "services: unknown, nobody who knows them answers"
                },
            ) + "\n"
        } else {
            services(style, &self.services)
        };
        let problems = self.problems();
        if !problems.is_empty() {
            text.push('\n');
            for problem in problems {
                text.push_str(&style.paint(problem.tone, &problem.text));
                text.push('\n');
            }
        }
        text.push('\n');
        text.push_str(&component::table(style, self.now, &self.found));
        text
    }
}

/// The instances as a table.
pub fn services(style: Style, rows: &[ServiceRow]) -> String {
    let mut headings = vec![
        "INSTANCE",
        "STATE",
        "PHASE",
        "PID",
        "RESTARTS",
        "HEALTH",
        "UPTIME",
        "CPU",
        "MEMORY",
        "LIMITS",
        "LAST EXIT",
    ];
    // Only where there is more than one.
    let managers = rows.iter().any(|row| row.manager.is_some());
    if managers {
        headings.push("MANAGER");
    }
    let mut table = Table::new(style, &headings, &[3, 4, 6, 7, 8]);
    for row in rows {
        let mut cells = vec![
            toned(row.instance.to_string(), Tone::Strong),
            state(row.state),
            phase(row),
            maybe(row.pid.map(|pid| pid.to_string())),
            match row.restarts {
                Some(0) => plain("0"),
                Some(count) => toned(count.to_string(), Tone::Warn),
                None => maybe(None),
            },
            health(row.health),
            maybe(
                row.uptime_ms
                    .map(|ms| human::uptime(std::time::Duration::from_millis(ms))),
            ),
            maybe(row.cpu_percent.map(human::percent)),
            maybe(row.memory_bytes.map(human::bytes)),
            match row.limits {
                Some("yes") => plain("yes"),
                Some(word) => toned(word, Tone::Warn),
                None => maybe(None),
            },
            maybe(row.detail.exit.as_ref().map(exit_words)),
        ];
        if managers {
            cells.push(maybe(row.manager.clone()));
        }
        table.row(cells);
    }
    table.render()
}

fn state(state: Option<StateName>) -> Field {
    match state {
        None => toned("-", Tone::Dim),
        Some(StateName::Running) => toned("RUNNING", Tone::Good),
        Some(StateName::Failed) => toned("FAILED", Tone::Bad),
        Some(StateName::Terminated) => plain("TERMINATED"),
        Some(other) => toned(other.to_string(), Tone::Warn),
    }
}

fn phase(row: &ServiceRow) -> Field {
    match &row.detail.phase {
        None => toned("-", Tone::Dim),
        Some(phase @ (Phase::CircuitOpen | Phase::GaveUp | Phase::Refused { .. })) => {
            toned(phase.word(), Tone::Bad)
        }
        Some(phase @ Phase::Ready) => toned(phase.word(), Tone::Good),
        Some(Phase::Idle) if row.detail.completed => toned("completed", Tone::Good),
        Some(phase @ Phase::Idle) => plain(phase.word()),
        Some(phase) => toned(phase.word(), Tone::Warn),
    }
}

/// A verdict as a table's cell.
pub fn health(health: Option<Health>) -> Field {
    match health {
        None | Some(Health::Unknown) => toned("-", Tone::Dim),
        Some(Health::Healthy) => toned("healthy", Tone::Good),
        Some(Health::Starting) => toned("starting", Tone::Warn),
        Some(Health::NotReady) => toned("not ready", Tone::Bad),
        Some(Health::Unhealthy) => toned("unhealthy", Tone::Bad),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::view::component::Presence;
    use crate::view::component::tests::running;
    use blackhole_bus_schema::limits::{Enforcement, LimitKind, LimitReport};
    use blackhole_bus_schema::names::Generation;
    use blackhole_bus_schema::process::{
        ExitRecord, ExitResult, ExitStatus, InstanceRecord, NotifyState, ProcessState,
    };
    use blackhole_bus_schema::resource::Usage;
    use blackhole_bus_schema::supervision::{Circuit, Desired, InstanceStatus};

    const SECOND: u64 = 1_000_000_000;
    const NOW: u64 = 1_795_388_730 * SECOND;

    pub(crate) fn status(instance: &str, phase: Phase) -> InstanceStatus {
        let instance: blackhole_bus_schema::names::InstanceName = instance.parse().unwrap();
        InstanceStatus {
            service: instance.service().clone(),
            instance,
            desired: Desired::Up,
            state: None,
            phase,
            manager: None,
            generation: Generation(1),
            pid: None,
            started_at: None,
            restarts: 0,
            health: Health::Unknown,
            detail: None,
            circuit: Circuit::Closed,
            last_exit: None,
            last_error: None,
            limits: None,
            completed: false,
        }
    }

    pub(crate) fn record(instance: &str, state: ProcessState) -> InstanceRecord {
        InstanceRecord {
            instance: instance.parse().unwrap(),
            generation: Generation(1),
            state,
            notify: NotifyState::default(),
            steps: Vec::new(),
            grant: None,
            adopted: false,
            lost_log_lines: 0,
            restarts: 0,
            previous_exit: None,
        }
    }

    pub(crate) fn exit(result: ExitResult, status: ExitStatus) -> ExitRecord {
        ExitRecord {
            generation: Generation(1),
            pid: 70,
            status,
            result,
            started_at: NOW - 9 * SECOND,
            ended_at: NOW - 3 * SECOND,
            killed_leftovers: 0,
        }
    }

    fn answers() -> Answers {
        let mut db = status("db.1", Phase::Ready);
        db.health = Health::Healthy;
        db.limits = Some(vec![LimitReport {
            limit: LimitKind::Memory,
            requested: 1 << 20,
            actual: None,
            enforcement: Enforcement::NotEnforced {
                reason: "no memory controller".into(),
            },
        }]);
        let mut flaky = status("flaky.1", Phase::CircuitOpen);
        flaky.state = Some(StateName::Failed);
        flaky.circuit = Circuit::Open;
        flaky.restarts = 5;
        flaky.last_exit = Some(exit(ExitResult::ExitCode, ExitStatus::Exited { code: 1 }));
        let mut later = status(
            "later.1",
            Phase::BackingOff {
                attempt: 2,
                until: NOW + 1_500_000_000,
            },
        );
        later.state = Some(StateName::Failed);
        later.restarts = 1;
        later.last_exit = Some(exit(
            ExitResult::OomKill,
            ExitStatus::Signaled {
                signal: 9,
                core_dumped: false,
            },
        ));
        let waiting = status(
            "web.1",
            Phase::WaitingForDependency {
                on: vec!["flaky ready".into()],
            },
        );
        Answers {
            owners: Default::default(),
            status: Some(vec![db, flaky, later, waiting]),
            processes: Some(vec![record(
                "db.1",
                ProcessState::Running {
                    pid: 71,
                    started_at: NOW - 65 * SECOND,
                },
            )]),
            usage: Some(vec![Usage {
                instance: "db.1".parse().unwrap(),
                cpu_usec: 5,
                cpu_percent: Some(12.345),
                throttled_usec: 0,
                memory_bytes: Some(50 << 20),
                memory_peak_bytes: None,
                memory_limit_bytes: None,
                pids: Some(1),
                io_read_bytes: None,
                io_write_bytes: None,
                oom_kills: 0,
                pressure: None,
            }]),
        }
    }

    #[test]
    fn the_document_is_stable() {
        let view = StatusView::new(NOW, &answers(), vec![running(Component::Supervisor, 11)]);
        insta::assert_snapshot!(crate::out::json(&view).unwrap());
    }

    #[test]
    fn the_table() {
        let view = StatusView::new(
            NOW,
            &answers(),
            vec![
                running(Component::Supervisor, 11),
                Found {
                    component: Component::Bridge,
                    presence: Presence::Missing { lock_held: false },
                },
            ],
        );
        insta::assert_snapshot!(view.table(Style::PLAIN));
    }

    #[test]
    fn without_a_supervisor_the_process_manager_is_enough() {
        let mut answers = answers();
        answers.status = None;
        let view = StatusView::new(
            NOW,
            &answers,
            vec![
                Found {
                    component: Component::Supervisor,
                    presence: Presence::Missing { lock_held: false },
                },
                running(Component::ProcessManager(None), 12),
            ],
        );
        insta::assert_snapshot!(view.table(Style::PLAIN));
        assert_eq!(view.services[0].circuit, None);
        assert_eq!(view.services[0].phase, None);
    }

    #[test]
    fn one_trouble_of_many_instances_is_one_line() {
        let many: Vec<_> = (1..=200)
            .map(|n| {
                status(
                    &format!("many.{n}"),
                    Phase::WaitingForComponent {
                        component: "process-manager".into(),
                    },
                )
            })
            .collect();
        let answers = Answers {
            status: Some(many),
            ..Answers::default()
        };
        let problems = StatusView::new(NOW, &answers, vec![]).problems();
        assert_eq!(problems.len(), 1);
        assert!(
            problems[0]
                .text
                .contains("and 196 more: waits for the process-manager"),
            "{problems:?}"
        );
    }
}
