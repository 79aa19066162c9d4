//! The supervisor's decisions, without a clock, a random source, a socket or a
//! file: inputs go in with the time, actions come out.
//!
//! ```text
//!   Input ──► take(now, input, cause) ──► Vec<Action>
//!                │                           Persist … before the send it belongs to
//!                ├ takes the input in        Prepare, Release   → resource-controller
//!                ├ marks instances dirty     Spawn, Stop, Forget → process-manager
//!                ├ steps each dirty one      Drain              → bridge
//!                └ advances rolling restarts Publish            → everybody
//!   settle(now) looks after tickets ──►      Answer             → an operator
//!   next_deadline() ──► when to send Input::Tick at the latest
//! ```
//!
//! It is driven by levels, not by edges: each instance is compared with what is
//! wanted of it and the next step is derived (`step.rs`), so that a message
//! that was lost, doubled or late changes when something happens, but not what.
//!
//! | file | what it decides |
//! |---|---|
//! | `configure.rs` | what there is: configuration and earlier runs |
//! | `deps.rs` | who waits for whom |
//! | `step.rs`, `perform.rs` | the next step of one instance |
//! | `managers.rs` | whose an instance is, where there are several process-managers |
//! | `recall.rs` | a spawn on its way to one of them while the same lives at another |
//! | `manager.rs`, `end.rs` | what records of processes mean, and their ends |
//! | `restart.rs`, `storm.rs` | waits, circuit, host-wide brake |
//! | `permit.rs` | restarts granted ahead, and what they count as |
//! | `health.rs` | probe results |
//! | `controller.rs` | limits and admission |
//! | `drain.rs` | calls that are finished before a stop |
//! | `roll.rs` | rolling restarts |
//! | `ops.rs`, `repeat.rs`, `tickets.rs` | an operator's commands, their repetitions, and when they are answered |

mod configure;
mod controller;
mod deps;
mod drain;
mod end;
mod health;
mod instance;
mod io;
mod manager;
mod managers;
mod ops;
mod perform;
mod permit;
mod random;
mod recall;
mod repeat;
mod restart;
mod roll;
mod saved;
mod step;
mod storm;
#[cfg(test)]
mod tests;
mod tickets;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use blackhole_bus_schema::config::Config;
use blackhole_bus_schema::health::Probes;
use blackhole_bus_schema::names::{InstanceName, ServiceName};
use blackhole_bus_schema::supervision::{Desired, InstanceStatus};
use uuid::Uuid;

pub use io::{Action, Input, ManagerId, Now, Operator, RequestFailure, Ticket};
pub use random::Random;
pub use saved::{Change, Restored, SavedInstance, SavedService};

use deps::{Service, Setup};
use drain::Bridge;
use instance::Instance;
use repeat::Remembered;
use roll::Rolls;
use storm::Storm;
use tickets::Pending;

/// How long a start waits for a resource-controller that is not there: from
/// the supervisor's own start and from the controller's last sign of life.
pub const CONTROLLER_GRACE: Duration = Duration::from_secs(3);

/// What is known of a process-manager.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Manager {
    /// Its snapshot has been seen since it is up: what is not known is not there.
    synced: bool,
}

/// What is known of the resource-controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Controller {
    up: bool,
    /// Starts without it wait until then.
    grace_until: Duration,
}

/// The supervisor's state and policy.
#[derive(Debug, Clone)]
pub struct Core {
    services: BTreeMap<ServiceName, Service>,
    instances: BTreeMap<InstanceName, Instance>,
    members: BTreeMap<ServiceName, BTreeSet<InstanceName>>,
    managers: BTreeMap<ManagerId, Manager>,
    /// Those of the configuration.
    declared: BTreeSet<ManagerId>,
    controller: Controller,
    bridge: Bridge,
    rolls: Rolls,
    /// Commands that have taken effect.
    commands: Remembered,
    storm: Storm,
    random: Random,
    tickets: BTreeMap<Ticket, Pending>,
    /// Something has come that may stand in the way of a command that waits.
    alarm: bool,
    /// To be looked at before `take` returns.
    dirty: BTreeSet<InstanceName>,
    /// To be looked at later: the same moments as in each instance's `wake`.
    timers: BTreeSet<(Duration, InstanceName)>,
    actions: Vec<Action>,
    cause: Option<Uuid>,
}

impl Core {
    /// Begins with what an earlier run left. Without a configuration nothing
    /// is started and nothing that runs is stopped, since nobody said what
    /// should be. Nothing is sent before the components are reported up, but
    /// the first `take` may write and publish.
    pub fn new(config: Option<&Config>, restored: &Restored, random: Random, now: Now) -> Self {
        let mut core = Self {
            services: BTreeMap::new(),
            instances: BTreeMap::new(),
            members: BTreeMap::new(),
            managers: BTreeMap::new(),
            declared: BTreeSet::from([None]),
            controller: Controller {
                up: false,
                grace_until: now.mono.saturating_add(CONTROLLER_GRACE),
            },
            bridge: Bridge::default(),
            rolls: Rolls::default(),
            commands: Remembered::new(restored.commands.iter().copied()),
            storm: Storm::new(1, Duration::ZERO),
            random,
            tickets: BTreeMap::new(),
            alarm: true,
            dirty: BTreeSet::new(),
            timers: BTreeSet::new(),
            actions: Vec::new(),
            cause: None,
        };
        core.restore(config, restored, now);
        core
    }

    /// Takes in one thing that happened and tells what to do, in order. Once all that has
    /// happened by now is taken in, [`Core::settle`] tells which commands can be answered.
    /// `cause` is the id of the message that brought it. `now` never goes back.
    pub fn take(&mut self, now: Now, input: Input, cause: Option<Uuid>) -> Vec<Action> {
        self.cause = cause;
        self.take_in(now, input);
        while let Some((at, _)) = self.timers.first()
            && *at <= now.mono
            && let Some((_, name)) = self.timers.pop_first()
        {
            if let Some(instance) = self.instances.get_mut(&name) {
                instance.wake = None;
            }
            self.dirty.insert(name);
        }
        loop {
            while let Some(name) = self.dirty.pop_first() {
                self.step(now, &name);
            }
            self.advance_rolls(now);
            if self.dirty.is_empty() {
                break;
            }
        }
        std::mem::take(&mut self.actions)
    }

    /// The answers to commands that have become due by what was taken in. It looks at all that
    /// any command is about, so it is called once for many inputs.
    pub fn settle(&mut self, now: Now) -> Vec<Action> {
        self.look_after_tickets(now);
        std::mem::take(&mut self.actions)
    }

    fn take_in(&mut self, now: Now, input: Input) {
        match input {
            Input::Configured(config) => {
                // Limits made ahead may be others now.
                self.forget_grants();
                self.configure(&config, now);
            }
            Input::Command {
                ticket,
                deadline,
                command,
            } => {
                self.command(ticket, deadline, command);
            }
            Input::ManagerUp(manager) => self.manager_up(manager),
            Input::ManagerDown(manager) => self.manager_down(&manager),
            Input::ManagerSnapshot(manager, records) => {
                self.manager_snapshot(now, &manager, records);
            }
            Input::ProcessChanged(manager, record) => self.process_changed(now, &manager, *record),
            Input::ProcessNotified(notified) => self.process_notified(&notified),
            Input::Probe(result) => self.probed(now, &result),
            Input::SpawnReply {
                manager,
                instance,
                generation,
                result,
            } => {
                self.spawn_reply(now, &manager, &instance, generation, result);
            }
            Input::StopReply {
                manager,
                instance,
                generation,
                result,
            } => {
                self.stop_reply(now, &manager, &instance, generation, result);
            }
            Input::ForgetReply {
                manager,
                instance,
                result,
            } => self.forget_reply(now, &manager, &instance, result),
            Input::ControllerUp => self.controller_up(),
            Input::ControllerDown => self.controller_down(now),
            Input::PrepareReply { instance, result } => self.prepare_reply(&instance, result),
            Input::ReleaseReply { instance, result } => self.release_reply(now, &instance, result),
            Input::BridgeUp => self.bridge_up(),
            Input::BridgeDown => self.bridge_down(),
            Input::RegistrySnapshot(all) => self.registry_snapshot(all),
            Input::RegistryChanged(changed) => self.registry_changed(*changed),
            Input::DrainReply {
                instance,
                generation,
                result,
            } => self.drain_reply(&instance, generation, &result),
            Input::Tick => {}
        }
    }

    /// When [`Input::Tick`] is due; `None`: only when something else happens.
    pub fn next_deadline(&self) -> Option<Duration> {
        let timer = self.timers.first().map(|(at, _)| *at);
        let ticket = self.tickets.values().map(|pending| pending.deadline).min();
        timer
            .into_iter()
            .chain(ticket)
            .chain(self.rolls.deadline())
            .min()
    }

    /// The status of every instance, in the order of their names, as last published.
    pub fn statuses(&self) -> impl Iterator<Item = InstanceStatus> + '_ {
        self.instances
            .values()
            .map(|instance| self.status_of(instance))
    }

    /// The status of one instance.
    pub fn status(&self, name: &InstanceName) -> Option<InstanceStatus> {
        self.instances
            .get(name)
            .map(|instance| self.status_of(instance))
    }

    /// What limits the supervisor now, for a person.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        self.note_managers(&mut notes);
        if !self.controller.up {
            notes.push("waits for resource-controller: new limits are not enforced".to_owned());
        }
        notes.extend(self.rolls.notes());
        let left = |foreign: bool| {
            let names: Vec<&str> = self
                .services
                .iter()
                .filter(|(_, service)| matches!(service.setup, Setup::Left { foreign: f, .. } if f == foreign))
                .map(|(name, _)| name.as_str())
                .collect();
            (!names.is_empty()).then(|| names.join(", "))
        };
        if let Some(names) = left(true) {
            notes.push(format!(
                "runs, but is in no configuration, left alone: {names}"
            ));
        }
        if let Some(names) = left(false) {
            notes.push(format!("no configuration to judge by, left alone: {names}"));
        }
        notes
    }

    fn status_of(&self, instance: &Instance) -> InstanceStatus {
        let none = Probes::default();
        match self.services.get(instance.name.service()) {
            Some(service) => {
                let config = service.config();
                let probes = config.map_or(&none, |config| &config.probes);
                let planned = config.map(|config| &config.manager);
                instance.status(service.desired(), probes, planned)
            }
            None => instance.status(Desired::Down, &none, None),
        }
    }

    fn touch(&mut self, name: &InstanceName) {
        self.dirty.insert(name.clone());
    }

    fn touch_all(&mut self) {
        self.dirty.extend(self.instances.keys().cloned());
    }
}
