//! The lines below a table: what is wrong, why, and what to do about it.

use std::collections::BTreeMap;

use blackhole_bus_schema::limits::{Enforcement, LimitReport};
use blackhole_bus_schema::names::Component;
use blackhole_bus_schema::process::StateName;
use blackhole_bus_schema::supervision::Phase;

use crate::human;
use crate::out::Tone;
use crate::view::component::{Found, Presence};
use crate::view::service::{ServiceRow, exit_words};

/// One line: how bad, and the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// [`Tone::Bad`], [`Tone::Warn`] or [`Tone::Dim`].
    pub tone: Tone,
    /// For a person.
    pub text: String,
}

fn problem(tone: Tone, text: impl Into<String>) -> Problem {
    Problem {
        tone,
        text: text.into(),
    }
}

/// What is wrong with the services.
pub fn of_services(now: u64, rows: &[ServiceRow]) -> Vec<Problem> {
    // Two hundred instances with one trouble are one line.
    let mut grouped: BTreeMap<(u8, String), Vec<String>> = BTreeMap::new();
    let mut tones: BTreeMap<u8, Tone> = BTreeMap::new();
    for row in rows {
        for (rank, tone, text) in of_one(now, row) {
            tones.insert(rank, tone);
            grouped
                .entry((rank, text))
                .or_default()
                .push(row.instance.to_string());
        }
    }
    grouped
        .into_iter()
        .map(|((rank, text), names)| {
            let tone = tones.get(&rank).copied().unwrap_or(Tone::Warn);
            problem(tone, format!("{}: {}", human::list(&names, 4), text))
        })
        .collect()
}

/// Rank (for the order of the lines), tone and text of what is wrong with one.
fn of_one(now: u64, row: &ServiceRow) -> Vec<(u8, Tone, String)> {
    let mut found = Vec::new();
    let why = why(row);
    let because = if why.is_empty() {
        String::new()
    } else {
        format!(" ({why})")
    };
    let service = &row.service;
    let look = match wrote_nothing(row) {
        true => "it was not started and has no log of that, mend what is named here".to_owned(),
        false => format!("`blackhole logs {service}`"),
    };
    match &row.detail.phase {
        Some(Phase::CircuitOpen) => found.push((
            0,
            Tone::Bad,
            format!("circuit open, it is not restarted any more{because}: {look}, then `blackhole reset {service}`"),
        )),
        _ if row.detail.circuit_open => found.push((
            0,
            Tone::Bad,
            format!("circuit open{because}: `blackhole reset {service}`"),
        )),
        Some(Phase::GaveUp) => found.push((
            1,
            Tone::Bad,
            format!("failed and its policy does not restart it{because}: {look}, then `blackhole start {service}`"),
        )),
        Some(Phase::Refused { reason }) => {
            found.push((2, Tone::Bad, format!("refused: {}", human::printable(reason))));
        }
        Some(Phase::BackingOff { attempt, until }) => {
            let wait = std::time::Duration::from_nanos(until.saturating_sub(now));
            found.push((
                3,
                Tone::Warn,
                format!("restart {attempt} follows in {}{because}", human::duration(wait)),
            ));
        }
        Some(Phase::NotReady) => found.push((4, Tone::Warn, format!("runs, but is not ready{because}"))),
        Some(Phase::Probing) => {
            let because = match why.is_empty() {
                true => " (no probe of it has passed yet)",
                false => &because,
            };
            found.push((5, Tone::Warn, format!("runs, but is not ready yet{because}")));
        }
        Some(Phase::WaitingForDependency { on }) => {
            found.push((6, Tone::Warn, format!("waits for {}", human::list(on, 6))));
        }
        Some(Phase::WaitingForComponent { component }) => {
            found.push((5, Tone::Warn, format!("waits for the {}", human::printable(component))));
        }
        None if row.state == Some(StateName::Failed) => {
            found.push((1, Tone::Bad, format!("failed{because}")));
        }
        _ => {}
    }
    found.extend(limits(row.detail.limits.as_deref().unwrap_or_default()));
    if row.detail.lost_log_lines > 0 {
        found.push((
            9,
            Tone::Warn,
            format!(
                "{} could not be written: is the disk full?",
                human::count(row.detail.lost_log_lines as usize, "log line")
            ),
        ));
    }
    found
}

/// Whether its latest start failed without a word of it in its log.
fn wrote_nothing(row: &ServiceRow) -> bool {
    // What a hook wrote stands there.
    let hook = |error: &String| error.starts_with("run hook ");
    row.detail.never_ran && !row.detail.error.as_ref().is_some_and(hook)
}

/// What the kernel's word on a process means, where that is a trouble that no
/// daemon sees. `state` is the letter of proc_pid_stat(5).
pub fn of_process(row: &ServiceRow, state: char) -> Option<Problem> {
    let (instance, pid) = (&row.instance, row.pid?);
    let text = match state {
        'Z' => format!(
            "{instance}: its process {pid} has ended (a zombie) and is not reaped: its shim is \
             stopped or hangs; `kill -CONT` to the shim, its parent, lets it go on"
        ),
        'T' | 't' => format!(
            "{instance}: its process {pid} is stopped: `blackhole signal CONT {instance}` lets it \
             go on"
        ),
        _ => return None,
    };
    Some(problem(Tone::Warn, text))
}

/// What is wrong with the limits of one instance. Where none holds at all
/// (an ordinary user without delegation) that is one line, not five.
fn limits(report: &[LimitReport]) -> Vec<(u8, Tone, String)> {
    let missing: Vec<(&str, String)> = report
        .iter()
        .filter_map(|line| match &line.enforcement {
            Enforcement::NotEnforced { reason } => {
                Some((line.limit.key(), human::printable(reason)))
            }
            _ => None,
        })
        .collect();
    let mut found = Vec::new();
    match missing.as_slice() {
        [(_, reason), _, ..] if missing.len() == report.len() => {
            found.push((7, Tone::Warn, format!("no limit is enforced: {reason}")));
        }
        some => found
            .extend(some.iter().map(|(name, reason)| {
                (7, Tone::Warn, format!("{name} is not enforced: {reason}"))
            })),
    }
    for line in report {
        if let Enforcement::Partly { reason } = &line.enforcement {
            let text = format!(
                "{} holds only in part: {}",
                line.limit.key(),
                human::printable(reason)
            );
            found.push((8, Tone::Dim, text));
        }
    }
    found
}

/// The latest reason for the trouble of an instance; empty when none is known.
pub fn why(row: &ServiceRow) -> String {
    let detail = &row.detail;
    if row.state == Some(StateName::Running)
        && let Some(text) = &detail.health
    {
        return human::printable(text);
    }
    if let Some(text) = &detail.error {
        return human::printable(text);
    }
    if let Some(exit) = &detail.exit {
        return format!("last: {}", exit_words(exit));
    }
    detail
        .health
        .as_deref()
        .map(human::printable)
        .unwrap_or_default()
}

/// What is wrong with the daemons, and what follows from it.
pub fn of_components(components: &[Found]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for found in components {
        match &found.presence {
            Presence::Missing { lock_held } => {
                let mut text = format!("no {}: {}", found.component, consequence(&found.component));
                if *lock_held {
                    text.push_str(" (its process is there: it is starting, hangs or is stopped)");
                }
                problems.push(problem(Tone::Bad, text));
            }
            Presence::NotAsked { .. } => {}
            Presence::Running(info) => {
                for note in &info.notes {
                    problems.push(problem(
                        Tone::Warn,
                        format!("{}: {}", found.component, human::printable(note)),
                    ));
                }
            }
        }
    }
    let mut versions: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for info in components.iter().filter_map(Found::info) {
        versions
            .entry(&info.version)
            .or_default()
            .push(info.component.to_string());
    }
    if versions.len() > 1 {
        let list: Vec<String> = versions
            .iter()
            .map(|(version, names)| format!("{} {version}", names.join(", ")))
            .collect();
        problems.push(problem(
            Tone::Warn,
            format!("the daemons are of different versions: {}", list.join("; ")),
        ));
    }
    problems
}

/// What does not work without a component.
pub fn consequence(component: &Component) -> &'static str {
    match component {
        Component::Supervisor => "nothing is restarted",
        Component::ProcessManager(Some(_)) => {
            "its services run on, but none of them can be started, stopped or watched; their states are those last known"
        }
        Component::ProcessManager(None) => {
            "services run on, but none can be started, stopped or watched; states are those last known"
        }
        Component::ResourceController => "limits of new starts are not enforced, usage is unknown",
        Component::Bridge => "services cannot call each other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::component::tests::running;

    #[test]
    fn a_missing_supervisor_is_said_with_its_consequence() {
        let found = [
            Found {
                component: Component::Supervisor,
                presence: Presence::Missing { lock_held: true },
            },
            running(Component::Bridge, 1),
        ];
        let problems = of_components(&found);
        assert_eq!(problems.len(), 1);
        assert!(
            problems[0]
                .text
                .starts_with("no supervisor: nothing is restarted"),
            "{problems:?}"
        );
        assert!(problems[0].text.contains("its process is there"));
    }

    #[test]
    fn limits_that_hold_nowhere_are_one_line() {
        use blackhole_bus_schema::limits::LimitKind;
        let line = |limit, enforcement| LimitReport {
            limit,
            requested: 1,
            actual: None,
            enforcement,
        };
        let no = || Enforcement::NotEnforced {
            reason: "rootless".into(),
        };
        let none = limits(&[line(LimitKind::Cpu, no()), line(LimitKind::Memory, no())]);
        assert_eq!(none.len(), 1);
        assert_eq!(none[0].2, "no limit is enforced: rootless");
        let some = limits(&[
            line(LimitKind::Cpu, Enforcement::Enforced),
            line(LimitKind::Memory, no()),
        ]);
        assert_eq!(some[0].2, "memory_mb is not enforced: rootless");
    }

    #[test]
    fn who_was_never_started_is_not_sent_to_a_log() {
        use crate::view::service::{Answers, rows};
        use crate::view::status::tests::status;
        let text = |error: &str| {
            let mut one = status("web.1", Phase::CircuitOpen);
            one.state = Some(StateName::Failed);
            one.last_error = Some(error.to_owned());
            let answers = Answers {
                status: Some(vec![one]),
                ..Answers::default()
            };
            let problems = of_services(0, &rows(0, &answers));
            assert_eq!(problems.len(), 1);
            problems[0].text.clone()
        };
        let spawn = text("exec /no/program: No such file or directory (os error 2)");
        assert_eq!(
            spawn,
            "web.1: circuit open, it is not restarted any more (exec /no/program: No such file or \
             directory (os error 2)): it was not started and has no log of that, mend what is \
             named here, then `blackhole reset web`"
        );
        let hook = text("run hook before_start: exit code 1");
        assert!(hook.contains("`blackhole logs web`, then"), "{hook}");
    }

    #[test]
    fn different_versions_are_noticed() {
        let mut other = running(Component::Bridge, 1);
        if let Presence::Running(info) = &mut other.presence {
            info.version = "9.9.9".into();
        }
        let problems = of_components(&[running(Component::Supervisor, 2), other]);
        assert!(
            problems[0].text.contains("supervisor 0.1.0; bridge 9.9.9"),
            "{problems:?}"
        );
    }
}
