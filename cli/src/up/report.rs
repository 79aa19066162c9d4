//! What a keeper says while it works: one line for each thing worth a line.

use std::collections::{BTreeMap, BTreeSet};

use blackhole_bus_schema::names::{InstanceName, ServiceName};
use blackhole_bus_schema::supervision::{Desired, InstanceStatus, Phase};
use tokio::time::Instant;

use super::said::Said;
use crate::human;
use crate::out::{self, Style, Tone};
use crate::view::progress::{Assessment, assess};
use crate::watch::{Change, Model};

/// Writes progress to standard error.
#[derive(Debug)]
pub(super) struct Report {
    style: Style,
    begin: Instant,
    /// Whether times are told from the beginning, or by the clock.
    starting: bool,
    /// The phase of each instance as last heard.
    phases: BTreeMap<InstanceName, Phase>,
    said: Said,
}

impl Report {
    /// Times are told from now on.
    pub(super) fn new(style: Style, begin: Instant) -> Self {
        Self {
            style,
            begin,
            starting: true,
            phases: BTreeMap::new(),
            said: Said::default(),
        }
    }

    /// From now on times are told by the clock.
    pub(super) fn settled(&mut self) {
        self.starting = false;
        self.said.forget();
    }

    /// From now on times are told from `begin`.
    pub(super) fn restart(&mut self, begin: Instant) {
        self.begin = begin;
        self.starting = true;
    }

    /// Time from the beginning to `end` (or now), for people.
    pub(super) fn elapsed(&self, end: Option<Instant>) -> String {
        let end = end.unwrap_or_else(Instant::now);
        human::duration(end.saturating_duration_since(self.begin))
    }

    /// One line.
    pub(super) fn say(&self, about: &str, tone: Tone, text: &str) {
        let time = if self.starting {
            format!("+{:>7.2} s", self.begin.elapsed().as_secs_f64())
        } else {
            human::clock(human::now_ns())
        };
        out::note(format!(
            "{} {} {}",
            self.style.paint(Tone::Dim, &time),
            self.style.paint(Tone::Strong, &format!("{about:<20}")),
            self.style.paint(tone, text)
        ));
    }

    /// Lines of a daemon's own log, with its name in front.
    pub(super) fn quote(&self, about: &str, lines: &[String]) {
        for line in lines {
            out::note(format!(
                "{} {line}",
                self.style.paint(Tone::Dim, &format!("    {about} |"))
            ));
        }
    }

    /// A change, if it is worth a line.
    pub(super) fn change(&mut self, model: &Model, change: &Change) {
        let Change::Told {
            told, supervision, ..
        } = change
        else {
            return;
        };
        let Some(instance) = &told.instance else {
            return;
        };
        let worth = if *supervision {
            model
                .status_of(instance)
                .is_some_and(|status| self.worth(&status.phase, instance))
        } else {
            !told.text.ends_with("SPAWN")
        };
        if worth {
            let status = model.status_of(instance);
            let reason = status.and_then(|status| status.last_error.as_deref());
            let reason = reason.map(human::printable);
            let text = self
                .said
                .event(Instant::now(), &told.text, reason.as_deref());
            self.say(&told.about, told.tone, &text);
        }
    }

    /// A text without the reasons that were told before.
    pub(super) fn short(&self, text: &str) -> String {
        self.said.short(Instant::now(), text)
    }

    /// Whether a phase is worth a line: what an instance came to, and troubles,
    /// but not each step on the way, and nothing twice (a service that tells
    /// its status each second does not change its phase).
    fn worth(&mut self, phase: &Phase, instance: &InstanceName) -> bool {
        let before = self.phases.insert(instance.clone(), phase.clone());
        before.as_ref() != Some(phase)
            && matches!(
                phase,
                Phase::Ready
                    | Phase::NotReady
                    | Phase::BackingOff { .. }
                    | Phase::CircuitOpen
                    | Phase::GaveUp
                    | Phase::Refused { .. }
                    | Phase::WaitingForComponent { .. }
            )
    }
}

/// [`assess`], with the instances that the configuration has and the supervisor
/// has not told of yet as pending.
/// A one-shot that runs is not through yet.
pub(super) fn assess_all(
    begun: u64,
    all: &[InstanceStatus],
    expected: &BTreeSet<InstanceName>,
    oneshots: &BTreeSet<ServiceName>,
) -> Assessment {
    // What an earlier configuration left does not count.
    let all = all
        .iter()
        .filter(|status| expected.contains(&status.instance));
    let told: BTreeSet<&InstanceName> = all.clone().map(|status| &status.instance).collect();
    let (running, rest): (Vec<_>, Vec<_>) = all.cloned().partition(|status| {
        status.phase == Phase::Ready
            && status.desired == Desired::Up
            && oneshots.contains(&status.service)
    });
    let mut assessment = assess(begun, human::now_ns(), &rest);
    for status in &running {
        let name = status.instance.to_string();
        assessment
            .pending
            .push((name, "runs, is not through yet".to_owned()));
    }
    let silent = expected.iter().filter(|instance| !told.contains(instance));
    assessment
        .pending
        .extend(silent.map(|instance| (instance.to_string(), "not told of yet".to_owned())));
    assessment
}

/// The outcome of a start in a line.
pub(super) fn outcome(assessment: &Assessment, elapsed: &str) -> String {
    let wanted = assessment.wanted();
    let down = match assessment.down {
        0 => String::new(),
        count => format!(
            " ({} stopped by an operator or not started automatically)",
            human::count(count, "instance")
        ),
    };
    if wanted == 0 {
        return format!("nothing to run{down}");
    }
    if assessment.is_ready() {
        return format!("{} ready in {elapsed}{down}", all_of(wanted));
    }
    format!(
        "{} of {} ready after {elapsed}{down}: {}",
        assessment.ready,
        human::count(wanted, "instance"),
        reasons(assessment)
    )
}

fn all_of(count: usize) -> String {
    if count == 1 {
        "the only instance is".to_owned()
    } else {
        format!("all {count} instances are")
    }
}

/// Why not all is ready.
pub(super) fn reasons(assessment: &Assessment) -> String {
    let all: Vec<String> = assessment
        .failed
        .iter()
        .chain(&assessment.pending)
        .map(|(name, why)| format!("{name} {why}"))
        .collect();
    let shown = all.iter().take(6).cloned().collect::<Vec<_>>().join("; ");
    match all.len().saturating_sub(6) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::status::tests::status;

    #[test]
    fn what_is_expected_and_not_told_of_is_pending() {
        let expected = BTreeSet::from(["a.1".parse().unwrap(), "b.1".parse().unwrap()]);
        let none = BTreeSet::new();
        let assessment = assess_all(0, &[status("a.1", Phase::Ready)], &expected, &none);
        assert!(!assessment.is_settled());
        let both = [status("a.1", Phase::Ready), status("b.1", Phase::Ready)];
        assert!(assess_all(0, &both, &expected, &none).is_ready());
        let running = assess_all(0, &both, &expected, &BTreeSet::from(["b".parse().unwrap()]));
        assert_eq!(
            (running.ready, running.pending.len()),
            (1, 1),
            "a one-shot has to end"
        );
    }

    #[test]
    fn a_phase_is_told_once_until_it_changes() {
        let mut report = Report::new(Style::PLAIN, Instant::now());
        let web: InstanceName = "web.1".parse().unwrap();
        let backing_off = Phase::BackingOff {
            attempt: 1,
            until: 5,
        };
        let seen = [
            Phase::Spawning,
            Phase::Ready,
            Phase::Ready,
            backing_off,
            Phase::Spawning,
            Phase::Ready,
        ]
        .map(|phase| report.worth(&phase, &web));
        assert_eq!(seen, [false, true, false, true, false, true]);
    }

    #[test]
    fn outcomes() {
        let ready = assess(
            0,
            0,
            &[status("a.1", Phase::Ready), status("a.2", Phase::Ready)],
        );
        assert_eq!(
            outcome(&ready, "1.2 s"),
            "all 2 instances are ready in 1.2 s"
        );
        let failed = assess(
            0,
            0,
            &[status("a.1", Phase::Ready), status("b.1", Phase::GaveUp)],
        );
        assert_eq!(
            outcome(&failed, "1.2 s"),
            "1 of 2 instances ready after 1.2 s: b.1 no reason known"
        );
        assert_eq!(outcome(&assess(0, 0, &[]), "1.2 s"), "nothing to run");
    }
}
