//! One row of the table.

use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::process::{
    ExitRecord, InstanceRecord, NotifyState, ProcessChanged, ProcessState, SpawnSpec, StateName,
};
use uuid::Uuid;

use super::action::{Action, Ticket};
use crate::machine::{Fact, edges};
use crate::shim::protocol::StopRequest;

/// One instance, with who waits for what to become of it.
#[derive(Debug)]
pub(super) struct Instance {
    /// What is known of it.
    pub(super) record: InstanceRecord,
    /// How it was started last.
    pub(super) spec: Option<Box<SpawnSpec>>,
    /// Spawns to be answered when it runs or has failed to. As many as clients repeat.
    pub(super) spawn_waiters: Vec<Ticket>,
    /// Stops to be answered when nothing is left. As many as clients ask.
    pub(super) stop_waiters: Vec<Ticket>,
    /// A stop that came before there was a process.
    pub(super) pending_stop: Option<(StopRequest, Uuid)>,
    /// The command that the next edges follow from.
    pub(super) cause: Option<Uuid>,
}

impl Instance {
    fn new(record: InstanceRecord) -> Self {
        Self {
            record,
            spec: None,
            spawn_waiters: Vec::new(),
            stop_waiters: Vec::new(),
            pending_stop: None,
            cause: None,
        }
    }

    /// One that is started for the first time.
    pub(super) fn first(spec: &SpawnSpec, cause: Uuid, out: &mut Vec<Action>) -> Self {
        let mut instance = Self::new(fresh(spec));
        instance.cause = Some(cause);
        instance.announce(out);
        instance
    }

    /// One that was found on disk.
    pub(super) fn adopted(record: InstanceRecord) -> Self {
        Self::new(record)
    }

    /// One that ended is started again.
    pub(super) fn respawn(&mut self, spec: &SpawnSpec, cause: Uuid, out: &mut Vec<Action>) {
        let state = self.record.state.clone();
        self.record = InstanceRecord {
            state,
            ..fresh(spec)
        };
        self.cause = Some(cause);
        self.pending_stop = None;
        self.advance(Fact::Spawn, out);
    }

    /// One that failed is started again by permit.
    pub(super) fn succeed(
        &mut self,
        exit: &ExitRecord,
        generation: Generation,
        restarts: u32,
        out: &mut Vec<Action>,
    ) {
        if let Some(spec) = &mut self.spec {
            spec.generation = generation;
            spec.restarts = restarts;
            spec.permit = None;
        }
        self.record.generation = generation;
        self.record.notify = NotifyState::default();
        self.record.steps = Vec::new();
        self.record.lost_log_lines = 0;
        self.record.restarts = restarts;
        self.record.previous_exit = Some(exit.clone());
        self.advance(Fact::Spawn, out);
    }

    /// Takes the edges of a fact, one event each.
    pub(super) fn advance(&mut self, fact: Fact, out: &mut Vec<Action>) {
        for edge in edges(&self.record.state, fact) {
            self.record.state = edge.to;
            out.push(self.event(Some(edge.from)));
        }
    }

    /// Tells of an instance for the first time.
    pub(super) fn announce(&self, out: &mut Vec<Action>) {
        out.push(self.event(None));
    }

    fn event(&self, from: Option<StateName>) -> Action {
        let message = ProcessChanged {
            from,
            record: self.record.clone(),
        };
        Action::Publish {
            message: Box::new(message),
            cause: self.cause,
        }
    }

    /// Asks the shim to end it, whether that is the first time or not: a second
    /// stop may shorten the grace.
    pub(super) fn begin_stop(&mut self, request: StopRequest, cause: Uuid, out: &mut Vec<Action>) {
        if matches!(self.record.state, ProcessState::Running { .. }) {
            self.cause = Some(cause);
        }
        self.advance(Fact::StopBegun, out);
        out.push(Action::Stop {
            instance: self.record.instance.clone(),
            generation: self.record.generation,
            request,
        });
    }

    /// Begins to probe, where there is something to probe.
    pub(super) fn watch(&self, out: &mut Vec<Action>) {
        if let Some(spec) = &self.spec {
            out.push(Action::Watch {
                instance: self.record.instance.clone(),
                generation: self.record.generation,
                probes: Box::new(spec.probes.clone()),
            });
        }
    }

    /// Everybody gets an answer: there is no process any more.
    pub(super) fn over(&mut self, out: &mut Vec<Action>) {
        self.cause = None;
        self.pending_stop = None;
        out.push(Action::Over {
            instance: self.record.instance.clone(),
            generation: self.record.generation,
        });
        self.answer_spawn(out);
        for ticket in std::mem::take(&mut self.stop_waiters) {
            out.push(self.answer(ticket));
        }
    }

    /// Answers those who wait for the spawn.
    pub(super) fn answer_spawn(&mut self, out: &mut Vec<Action>) {
        for ticket in std::mem::take(&mut self.spawn_waiters) {
            out.push(self.answer(ticket));
        }
    }

    /// The current record as an answer.
    pub(super) fn answer(&self, ticket: Ticket) -> Action {
        Action::Reply {
            ticket,
            result: Ok(Box::new(self.record.clone())),
        }
    }
}

/// The record of a spawn that begins.
fn fresh(spec: &SpawnSpec) -> InstanceRecord {
    InstanceRecord {
        instance: spec.instance.clone(),
        generation: spec.generation,
        state: ProcessState::Spawn {},
        notify: NotifyState::default(),
        steps: Vec::new(),
        grant: spec.grant.clone(),
        adopted: false,
        lost_log_lines: 0,
        previous_exit: None,
        restarts: spec.restarts,
    }
}
