//! Every instance this manager knows, and what follows from each command and
//! each fact about one: a core without I/O. Inputs are method calls, outputs
//! are [`Action`]s that the shell carries out in order. No clock, no socket.
//!
//! Rules kept here: one live process an instance; generations only rise; at
//! most `max_processes` live; each command gets one answer; one event an edge.

mod action;
mod instance;

use std::collections::BTreeMap;

use blackhole_bus_schema::names::{Generation, InstanceName, ManagerName};
use blackhole_bus_schema::process::{
    ExitRecord, Forget, GrantPermit, InstanceRecord, NotifyState, ProcessNotified, ProcessState,
    Signal, SpawnFailure, SpawnSpec, StepTime, Stop,
};
use blackhole_bus_schema::reply::{Code, Status};
use uuid::Uuid;

pub use action::{Action, Ticket};
use instance::Instance;

use crate::machine::Fact;
use crate::shim::protocol::{Loss, StopRequest};

/// Stops remembered for generations whose spawn has not come (it may be late).
/// When full the first in the order of names goes: a spawn that late is then carried out.
const TOMBSTONES: usize = 4096;

/// A stop of this generation or above means "whatever lives": it says nothing
/// of a spawn to come.
const ANY_GENERATION: u64 = u64::MAX / 2;

/// Commands that wait for one instance. Further ones are refused with
/// `ResourceExhausted`: whoever repeats a command does so under its own id.
const WAITERS: usize = 256;

/// A process that has started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launched {
    /// Process id of its first process.
    pub pid: u32,
    /// Unix time in nanoseconds.
    pub started_at: u64,
    /// The steps of its spawn.
    pub steps: Vec<StepTime>,
}

/// An instance found on disk when the manager starts.
#[derive(Debug, Clone)]
pub struct Found {
    /// What is known of it.
    pub record: InstanceRecord,
    /// How it was started; `None` when that cannot be read any more.
    pub spec: Option<Box<SpawnSpec>>,
    /// Its state has not been told to anybody yet.
    pub news: bool,
}

/// All instances. See the module's documentation.
#[derive(Debug)]
pub struct Table {
    instances: BTreeMap<InstanceName, Instance>,
    /// Highest generation stopped, where that is above what is known of the instance.
    tombstones: BTreeMap<InstanceName, Generation>,
    max_processes: u32,
    /// What to raise when they are too few, for a person.
    raise: String,
}

impl Table {
    /// An empty table.
    pub fn new(max_processes: u32) -> Self {
        Self {
            instances: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            max_processes,
            raise: "runtime.orchestrator.max_processes (or \
                    BLACKHOLE_RUNTIME_ORCHESTRATOR_MAX_PROCESSES)"
                .to_owned(),
        }
    }

    /// The table of a process-manager with a name, which has a limit of its own.
    #[must_use]
    pub fn of(mut self, manager: Option<&ManagerName>) -> Self {
        if let Some(name) = manager {
            self.raise = format!("runtime.orchestrator.process_managers.{name}.max_processes");
        }
        self
    }

    /// Instances that live.
    pub fn live(&self) -> usize {
        self.instances
            .values()
            .filter(|instance| instance.record.state.is_live())
            .count()
    }

    /// What is known of one.
    pub fn record(&self, instance: &InstanceName) -> Option<&InstanceRecord> {
        self.instances
            .get(instance)
            .map(|instance| &instance.record)
    }

    /// How one was started last.
    pub fn spec(&self, instance: &InstanceName) -> Option<&SpawnSpec> {
        self.instances.get(instance)?.spec.as_deref()
    }

    /// All records, in the order of their names as text.
    pub fn records(&self) -> Vec<(String, &InstanceRecord)> {
        let mut all: Vec<_> = self
            .instances
            .iter()
            .map(|(name, instance)| (name.to_string(), &instance.record))
            .collect();
        all.sort_unstable_by(|left, right| left.0.cmp(&right.0));
        all
    }

    /// `process.spawn`.
    pub fn spawn(&mut self, ticket: Ticket, cause: Uuid, spec: Box<SpawnSpec>) -> Vec<Action> {
        let mut out = Vec::new();
        match self.admit(&spec) {
            Admission::Start => {
                self.tombstones.remove(&spec.instance);
                let name = spec.instance.clone();
                let entry = self.instances.entry(name);
                let instance = match entry {
                    std::collections::btree_map::Entry::Occupied(entry) => {
                        let instance = entry.into_mut();
                        instance.respawn(&spec, cause, &mut out);
                        instance
                    }
                    std::collections::btree_map::Entry::Vacant(entry) => {
                        entry.insert(Instance::first(&spec, cause, &mut out))
                    }
                };
                instance.spawn_waiters.push(ticket);
                instance.spec = Some(spec.clone());
                out.push(Action::Launch { spec });
            }
            Admission::Repeated => {
                if let Some(instance) = self.instances.get_mut(&spec.instance) {
                    if !matches!(instance.record.state, ProcessState::Spawn {}) {
                        out.push(instance.answer(ticket));
                    } else if instance.spawn_waiters.len() < WAITERS {
                        instance.spawn_waiters.push(ticket);
                    } else {
                        out.push(crowded(ticket, &spec.instance));
                    }
                }
            }
            Admission::Refused(status) => {
                out.push(Action::Reply {
                    ticket,
                    result: Err(status),
                });
            }
        }
        out
    }

    fn admit(&self, spec: &SpawnSpec) -> Admission {
        let name = &spec.instance;
        let generation = spec.generation;
        if let Err(problem) = check(spec) {
            let text = format!("{name} cannot be started: {problem}");
            return Admission::Refused(Status::new(Code::InvalidArgument, text));
        }
        let refuse = |text: String| Admission::Refused(Status::new(Code::FailedPrecondition, text));
        if let Some(instance) = self.instances.get(name) {
            let record = &instance.record;
            if generation == record.generation {
                return Admission::Repeated;
            }
            if generation < record.generation {
                return refuse(format!(
                    "{name}: generation {generation} is older than {}, which was started last",
                    record.generation
                ));
            }
            if record.state.is_live() {
                return refuse(format!(
                    "{name}: generation {} lives ({}): stop it first",
                    record.generation,
                    record.state.name()
                ));
            }
        }
        if let Some(stopped) = self
            .tombstones
            .get(name)
            .filter(|stopped| generation <= **stopped)
        {
            return refuse(format!(
                "{name}: generation {stopped} was stopped already, {generation} comes too late"
            ));
        }
        let live = self.live();
        if live >= self.max_processes as usize {
            let text = format!(
                "{name} is refused: {live} processes live and max_processes is {}; raise {}",
                self.max_processes, self.raise
            );
            return Admission::Refused(Status::new(Code::ResourceExhausted, text));
        }
        Admission::Start
    }

    /// `process.stop`.
    pub fn stop(&mut self, ticket: Ticket, cause: Uuid, stop: Stop) -> Vec<Action> {
        let Stop {
            instance: name,
            generation,
            stop,
            unhealthy,
            again,
        } = stop;
        let request = StopRequest {
            stop,
            unhealthy,
            again,
            ..StopRequest::default()
        };
        let known = self
            .instances
            .get(&name)
            .map(|instance| instance.record.generation);
        if known.is_none_or(|known| generation > known) && generation.0 < ANY_GENERATION {
            self.bury(&name, generation);
        }
        let Some(instance) = self.instances.get_mut(&name) else {
            return vec![refusal(
                ticket,
                Code::NotFound,
                format!("there is no instance {name}"),
            )];
        };
        let current = instance.record.generation;
        if generation < current {
            let text = format!("{name}: generation {generation} is over, {current} is current");
            return vec![refusal(ticket, Code::FailedPrecondition, text)];
        }
        let mut out = Vec::new();
        if !instance.record.state.is_live() {
            if !again {
                out.push(Action::LetGo { instance: name });
            }
            out.push(instance.answer(ticket));
            return out;
        }
        if instance.stop_waiters.len() >= WAITERS {
            return vec![crowded(ticket, &name)];
        }
        instance.stop_waiters.push(ticket);
        if matches!(instance.record.state, ProcessState::Spawn {}) {
            instance.pending_stop = Some((request, cause));
            out.push(Action::CancelLaunch {
                instance: name,
                generation: current,
            });
        } else {
            instance.begin_stop(request, cause, &mut out);
        }
        out
    }

    fn bury(&mut self, name: &InstanceName, generation: Generation) {
        let tombstone = self.tombstones.entry(name.clone()).or_insert(generation);
        *tombstone = (*tombstone).max(generation);
        if self.tombstones.len() > TOMBSTONES {
            self.tombstones.pop_first();
        }
    }

    /// `process.signal`.
    pub fn signal(&mut self, ticket: Ticket, signal: &Signal) -> Vec<Action> {
        let Signal {
            instance: name,
            signal,
        } = signal;
        if !(1..=64).contains(signal) {
            let text = format!("{signal} is no signal: 1 to 64, see signal(7)");
            return vec![refusal(ticket, Code::InvalidArgument, text)];
        }
        match self.record(name) {
            None => vec![refusal(
                ticket,
                Code::NotFound,
                format!("there is no instance {name}"),
            )],
            Some(record) if record.state.pid().is_none() => {
                let text = format!("{name} has no process: it is {}", record.state.name());
                vec![refusal(ticket, Code::FailedPrecondition, text)]
            }
            Some(_) => vec![Action::Signal {
                ticket,
                instance: name.clone(),
                signal: *signal,
            }],
        }
    }

    /// `process.reload`.
    pub fn reload(&self, ticket: Ticket, name: &InstanceName) -> Action {
        let Some(instance) = self.instances.get(name) else {
            let text = format!("there is no instance {name}");
            return refusal(ticket, Code::NotFound, text);
        };
        let refuse = |text: String| refusal(ticket, Code::FailedPrecondition, text);
        if !matches!(instance.record.state, ProcessState::Running { .. }) {
            let state = instance.record.state.name();
            return refuse(format!("{name} does not run: it is {state}"));
        }
        let Some(spec) = &instance.spec else {
            return refuse(format!("how {name} was started cannot be read"));
        };
        let Some(reload) = &spec.settings.reload else {
            let text =
                format!("{name} has no `reload`: add one to its configuration, or restart it");
            return refuse(text);
        };
        Action::Reload {
            ticket,
            instance: name.clone(),
            within_ms: reload.timeout_ms,
        }
    }

    /// `process.forget`. Repeating it is no error.
    pub fn forget(&mut self, ticket: Ticket, forget: &Forget) -> Vec<Action> {
        let name = &forget.instance;
        if let Some(record) = self.record(name).filter(|record| record.state.is_live()) {
            let text = format!("{name} lives ({}): stop it first", record.state.name());
            return vec![refusal(ticket, Code::FailedPrecondition, text)];
        }
        self.instances.remove(name);
        self.tombstones.remove(name);
        vec![Action::Erase {
            ticket,
            instance: name.clone(),
        }]
    }

    /// A spawn has led to a process.
    pub fn launched(
        &mut self,
        name: &InstanceName,
        generation: Generation,
        launched: Launched,
    ) -> Vec<Action> {
        let mut out = Vec::new();
        let Some(instance) = self.current(name, generation) else {
            return out;
        };
        let Launched {
            pid,
            started_at,
            steps,
        } = launched;
        if !matches!(instance.record.state, ProcessState::Spawn {}) {
            return out;
        }
        instance.record.steps = steps;
        instance.advance(Fact::Started { pid, started_at }, &mut out);
        instance.cause = None;
        instance.watch(&mut out);
        if let Some((request, cause)) = instance.pending_stop.take() {
            instance.begin_stop(request, cause, &mut out);
        }
        instance.answer_spawn(&mut out);
        out
    }

    /// A spawn has led to none. `None` when it was given up for a stop.
    pub fn not_launched(
        &mut self,
        name: &InstanceName,
        generation: Generation,
        failure: Option<SpawnFailure>,
    ) -> Vec<Action> {
        let mut out = Vec::new();
        let Some(instance) = self.current(name, generation) else {
            return out;
        };
        if !matches!(instance.record.state, ProcessState::Spawn {}) {
            return out;
        }
        if let Some((_, cause)) = instance.pending_stop.take() {
            instance.cause = Some(cause);
        }
        instance.advance(failure.map_or(Fact::Cancelled, Fact::SpawnFailed), &mut out);
        instance.over(&mut out);
        out
    }

    /// `process.permit`.
    pub fn permit(&self, ticket: Ticket, command: GrantPermit) -> Action {
        let GrantPermit {
            instance: name,
            generation,
            permit,
        } = command;
        let Some(record) = self.record(&name) else {
            return refusal(
                ticket,
                Code::NotFound,
                format!("there is no instance {name}"),
            );
        };
        if record.generation != generation || !record.state.is_live() {
            let text = format!(
                "{name}: generation {} is {}, a permit for {generation} is void",
                record.generation,
                record.state.name()
            );
            return refusal(ticket, Code::FailedPrecondition, text);
        }
        Action::Permit {
            ticket,
            instance: name,
            generation,
            permit,
        }
    }

    /// An instance failed and its shim started the next generation by permit.
    pub fn restarted(
        &mut self,
        name: &InstanceName,
        exit: &ExitRecord,
        generation: Generation,
        restarts: u32,
        outcome: Result<Launched, SpawnFailure>,
    ) -> Vec<Action> {
        let mut out = Vec::new();
        let Some(instance) = self.instances.get_mut(name) else {
            return out;
        };
        if generation <= instance.record.generation {
            return out;
        }
        if exit.generation == instance.record.generation && instance.record.state.pid().is_some() {
            instance.advance(Fact::Ended(exit.clone()), &mut out);
            instance.over(&mut out);
        }
        instance.succeed(exit, generation, restarts, &mut out);
        match outcome {
            Ok(launched) => out.extend(self.launched(name, generation, launched)),
            Err(failure) => out.extend(self.not_launched(name, generation, Some(failure))),
        }
        out
    }

    /// An instance was asked to end by somebody else.
    pub fn stopping(&mut self, name: &InstanceName, generation: Generation) -> Vec<Action> {
        let mut out = Vec::new();
        if let Some(instance) = self.current(name, generation) {
            instance.advance(Fact::StopBegun, &mut out);
        }
        out
    }

    /// An instance ended and nothing of it is left.
    pub fn ended(
        &mut self,
        name: &InstanceName,
        generation: Generation,
        exit: ExitRecord,
    ) -> Vec<Action> {
        let mut out = Vec::new();
        let Some(instance) = self.current(name, generation) else {
            return out;
        };
        if instance.record.state.pid().is_none() {
            return out;
        }
        instance.advance(Fact::Ended(exit), &mut out);
        instance.over(&mut out);
        out
    }

    /// A service said something of itself.
    pub fn notified(
        &mut self,
        name: &InstanceName,
        generation: Generation,
        notify: NotifyState,
    ) -> Vec<Action> {
        let Some(instance) = self.current(name, generation) else {
            return Vec::new();
        };
        if instance.record.state.pid().is_none() {
            return Vec::new();
        }
        instance.record.notify = notify.clone();
        let cause = instance.cause;
        let message = ProcessNotified {
            instance: name.clone(),
            generation,
            notify,
        };
        vec![Action::Notified { message, cause }]
    }

    /// Log lines were lost; counted since the start.
    pub fn lost(&mut self, name: &InstanceName, generation: Generation, loss: &Loss) {
        if let Some(instance) = self.current(name, generation) {
            instance.record.lost_log_lines = loss.log_lines;
        }
    }

    /// Takes in what was found on disk. Only before any command.
    pub fn adopt(&mut self, found: Found) -> Vec<Action> {
        let mut out = Vec::new();
        let name = found.record.instance.clone();
        let instance = self
            .instances
            .entry(name)
            .insert_entry(Instance::adopted(found.record))
            .into_mut();
        instance.spec = found.spec;
        if found.news {
            instance.announce(&mut out);
        }
        if instance.record.state.pid().is_some() {
            instance.watch(&mut out);
        }
        out
    }

    fn current(&mut self, name: &InstanceName, generation: Generation) -> Option<&mut Instance> {
        self.instances
            .get_mut(name)
            .filter(|instance| instance.record.generation == generation)
    }
}

enum Admission {
    Start,
    Repeated,
    Refused(Status),
}

fn refusal(ticket: Ticket, code: Code, text: String) -> Action {
    Action::Reply {
        ticket,
        result: Err(Status::new(code, text)),
    }
}

fn crowded(ticket: Ticket, name: &InstanceName) -> Action {
    let text = format!("{WAITERS} commands wait for {name} already");
    refusal(ticket, Code::ResourceExhausted, text)
}

/// What execve(2) could never take.
fn check(spec: &SpawnSpec) -> Result<(), &'static str> {
    if spec.generation == Generation(0) {
        return Err("generations begin with 1");
    }
    if spec.command.first().is_none_or(String::is_empty) {
        return Err("its command is empty");
    }
    let texts = spec
        .command
        .iter()
        .chain(&spec.working_dir)
        .chain(&spec.user)
        .chain(&spec.group);
    if texts.into_iter().any(|text| text.contains('\0')) {
        return Err("its command, directory, user or group holds a NUL byte");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
