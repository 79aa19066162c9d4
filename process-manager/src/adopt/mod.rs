//! What a manager that starts finds in the instances' folders.
//!
//! For each folder the facts are gathered (record, lock, live shim) and
//! [`decide`] tells what they mean; then what has to be killed is killed. All
//! folders at once, a bounded number at a time.
//!
//! Several process-managers may share a state directory; each looks only at
//! what it started itself ([`owner`]).
//!
//! | lock | record | meaning |
//! |---|---|---|
//! | held | any | lives: attach |
//! | free | none | nothing (only a log): not shown |
//! | free | unreadable | FAILED, left on disk |
//! | free | with its end, or why it never ran | that end |
//! | free | without, from an earlier boot | FAILED host_restarted, nothing is signalled |
//! | free | without, from this boot | its shim was lost: what is left is killed, FAILED shim_lost |

mod owner;
mod remains;
mod scan;

use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::process::{
    ExitRecord, ExitResult, ExitStatus, Failure, InstanceRecord, NotifyState, ProcessState,
    SpawnFailure, SpawnStep,
};

pub use owner::{ClaimError, UNNAMED, claim, lives_elsewhere, owner};
pub use remains::{Aftermath, Known, Later, after_shim, erase, kill_shim, left_behind, shim_gone};
pub use scan::{Adopted, Scan, note_told, scan};

use crate::machine;
use crate::shim::record::{Record, RecordError};

/// What is on disk of an instance that no shim holds.
#[derive(Debug)]
pub enum Remains {
    /// Nothing but perhaps a log.
    Nothing,
    /// A record.
    Record(Box<Record>),
    /// Something that is no record.
    Unreadable(RecordError),
}

/// What the remains mean.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// There is no such instance.
    Nothing,
    /// It has ended like this.
    Over(Generation, ProcessState),
    /// Its shim vanished: what is left of it is to be killed, then it is over.
    Lost,
}

/// Judges the remains of an instance that no shim holds, in the boot `boot_id`,
/// which began at `booted_at` (Unix time in nanoseconds).
pub fn decide(remains: &Remains, boot_id: &str, booted_at: u64) -> Verdict {
    let record = match remains {
        Remains::Nothing => return Verdict::Nothing,
        Remains::Unreadable(error) => {
            let failure = SpawnFailure {
                step: SpawnStep::Register,
                operation: crate::launch::chain(error),
                errno: 0,
                hint: "what became of it is not known; the next start replaces the record"
                    .to_owned(),
            };
            return Verdict::Over(
                Generation(0),
                ProcessState::Failed {
                    failure: Failure::Spawn { failure },
                },
            );
        }
        Remains::Record(record) => record,
    };
    let over = |state| Verdict::Over(record.generation, state);
    if let Some(exit) = &record.exit {
        return over(machine::ended(exit.clone()));
    }
    if let Some(failure) = &record.failure {
        return over(ProcessState::Failed {
            failure: Failure::Spawn {
                failure: failure.clone(),
            },
        });
    }
    if record.boot_id == boot_id {
        return Verdict::Lost;
    }
    // It did not outlive its boot; when that ended nobody noted.
    let started_at = record
        .started
        .as_ref()
        .map_or(0, |started| started.started_at);
    over(machine::ended(unseen(
        record,
        ExitResult::HostRestarted,
        started_at.max(booted_at),
        0,
    )))
}

/// The end of an instance that nobody saw.
pub fn unseen(record: &Record, result: ExitResult, ended_at: u64, killed: u32) -> ExitRecord {
    let started = record.started.as_ref();
    ExitRecord {
        generation: record.generation,
        pid: started.map_or(0, |started| started.pid),
        status: ExitStatus::Unknown,
        result,
        started_at: started.map_or(0, |started| started.started_at),
        ended_at,
        killed_leftovers: killed,
    }
}

/// What is shown of an instance whose record was found.
pub fn describe(
    instance: &InstanceName,
    generation: Generation,
    state: ProcessState,
    record: Option<&Record>,
) -> InstanceRecord {
    let spec = record.and_then(|record| record.spec().ok());
    let started = record.and_then(|record| record.started.as_ref());
    InstanceRecord {
        instance: instance.clone(),
        generation,
        state,
        notify: NotifyState::default(),
        steps: started
            .map(|started| started.steps.clone())
            .unwrap_or_default(),
        grant: record.and_then(|record| record.grant.clone()),
        adopted: true,
        lost_log_lines: 0,
        previous_exit: record.and_then(|record| record.previous_exit.clone()),
        restarts: spec.map_or(0, |spec| spec.restarts),
    }
}

#[cfg(test)]
mod tests;
