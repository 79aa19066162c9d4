//! What an instance waits for, as it is now. The supervisor's word on it is as old as the
//! moment when the waiting began.

use std::collections::BTreeMap;

use blackhole_bus_schema::supervision::{InstanceStatus, Phase};

/// The phase of each service that is in the way: of several instances that of the worst.
pub fn phases(all: &[InstanceStatus]) -> BTreeMap<String, &'static str> {
    let mut worst: BTreeMap<String, &Phase> = BTreeMap::new();
    for status in all.iter().filter(|status| !status.completed) {
        let phase = worst.entry(status.service.to_string());
        let phase = phase.or_insert(&status.phase);
        if rank(&status.phase) > rank(phase) {
            *phase = &status.phase;
        }
    }
    worst
        .into_iter()
        .filter(|(_, phase)| **phase != Phase::Ready)
        .map(|(service, phase)| match phase {
            Phase::Idle => (service, "not started yet"),
            phase => (service, phase.word()),
        })
        .collect()
}

fn rank(phase: &Phase) -> u8 {
    match phase {
        Phase::Ready => 0,
        Phase::CircuitOpen | Phase::GaveUp => 3,
        Phase::Refused { .. } => 2,
        _ => 1,
    }
}

/// `db ready (spawning)` with the phase that `db` is in now.
pub fn current(on: &str, phases: &BTreeMap<String, &'static str>) -> String {
    let known = on.split_once(" (").and_then(|(head, said)| {
        let service = head.split(' ').next()?;
        // Anything but a phase is a reason of its own.
        let is_phase = PHASES.contains(&said.strip_suffix(')')?);
        let word = phases.get(service).filter(|_| is_phase)?;
        Some(format!("{head} ({word})"))
    });
    known.unwrap_or_else(|| on.to_owned())
}

/// As [`phases`] has them, and `running` for one that is ready.
const PHASES: [&str; 12] = [
    "running",
    "not started yet",
    "waiting",
    "preparing",
    "refused",
    "spawning",
    "probing",
    "not ready",
    "stopping",
    "backing off",
    "circuit open",
    "gave up",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::status::tests::status;

    #[test]
    fn a_phase_is_brought_up_to_date() {
        let all = [
            status("web.1", Phase::Ready),
            status("web.2", Phase::CircuitOpen),
            status("db.1", Phase::Ready),
        ];
        let phases = phases(&all);
        for (said, now) in [
            ("web ready (spawning)", "web ready (circuit open)"),
            ("web ready (not configured)", "web ready (not configured)"),
            ("web ready", "web ready"),
            ("db ready (probing)", "db ready (probing)"),
            ("other ready (idle)", "other ready (idle)"),
        ] {
            assert_eq!(current(said, &phases), now);
        }
    }
}
