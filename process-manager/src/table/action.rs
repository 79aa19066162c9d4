//! What the shell is told to do.

use blackhole_bus_schema::health::Probes;
use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::process::{
    InstanceRecord, Permit, ProcessChanged, ProcessNotified, SpawnSpec,
};
use blackhole_bus_schema::reply::Status;
use uuid::Uuid;

use crate::shim::protocol::StopRequest;

/// Stands for a command that waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// One thing to do. To be carried out in the order given.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Publish a change of state.
    Publish {
        /// The event.
        message: Box<ProcessChanged>,
        /// The command that led to it.
        cause: Option<Uuid>,
    },
    /// Publish what a service said of itself, and look at the probes that wait for it.
    Notified {
        /// The event.
        message: ProcessNotified,
        /// The command that led to it.
        cause: Option<Uuid>,
    },
    /// Begin a spawn. Told back with `launched` or `not_launched`.
    Launch {
        /// What to start.
        spec: Box<SpawnSpec>,
    },
    /// Give a spawn up if its process does not exist yet.
    CancelLaunch {
        /// Which.
        instance: InstanceName,
        /// Which spawn.
        generation: Generation,
    },
    /// Ask the shim to end its service. Told back with `ended`.
    Stop {
        /// Which.
        instance: InstanceName,
        /// Which spawn.
        generation: Generation,
        /// How.
        request: StopRequest,
    },
    /// Have the shim send a signal, and answer the command.
    Signal {
        /// The command.
        ticket: Ticket,
        /// Which.
        instance: InstanceName,
        /// Its number.
        signal: i32,
    },
    /// Have the shim tell its service to read its configuration again, and
    /// answer the command when that has.
    Reload {
        /// The command.
        ticket: Ticket,
        /// Which.
        instance: InstanceName,
        /// How long it may take.
        within_ms: u64,
    },
    /// Have what is kept for the next start of an instance closed.
    LetGo {
        /// Which.
        instance: InstanceName,
    },
    /// Hand a permit to the shim, or take one back, and answer the command.
    Permit {
        /// The command.
        ticket: Ticket,
        /// Which.
        instance: InstanceName,
        /// Which spawn.
        generation: Generation,
        /// The restart; `None` takes an earlier one back.
        permit: Option<Permit>,
    },
    /// Remove what is left of an instance on disk, and answer the command.
    Erase {
        /// The command.
        ticket: Ticket,
        /// Which.
        instance: InstanceName,
    },
    /// Begin to probe.
    Watch {
        /// Which.
        instance: InstanceName,
        /// Which spawn.
        generation: Generation,
        /// How.
        probes: Box<Probes>,
    },
    /// It is over: stop probing, and note that the end was told.
    Over {
        /// Which.
        instance: InstanceName,
        /// Which spawn.
        generation: Generation,
    },
    /// Answer a spawn or stop.
    Reply {
        /// The command.
        ticket: Ticket,
        /// The answer.
        result: Result<Box<InstanceRecord>, Status>,
    },
}
