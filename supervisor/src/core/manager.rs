//! What process-managers tell, and what follows for an instance.
//!
//! Records of one instance are ordered by generation and, within one, by the
//! way through the states; what is older than what is known changes nothing.
//! So it does not matter whether a state is heard first from a reply, an event
//! or a snapshot, or twice. Only a snapshot can say that something known from
//! the event stream is *not* there.

use std::collections::BTreeSet;

use blackhole_bus_schema::health::ProbeResult;
use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::process::{
    ExitRecord, ExitResult, ExitStatus, InstanceRecord, ProcessNotified, ProcessState, StateName,
};
use blackhole_bus_schema::reply::Code;
use blackhole_bus_schema::supervision::Phase;

use super::deps::{Service, Setup};
use super::end::End;
use super::health::Probing;
use super::instance::{Fate, Grant, Instance, Life, Source};
use super::io::{Action, ManagerId, Now, RequestFailure};
use super::saved::SavedInstance;
use super::{Core, Manager};

impl Core {
    pub(super) fn manager_up(&mut self, manager: ManagerId) {
        for instance in self.homed(&manager) {
            // What the next snapshot does not show is not there, however it was heard of.
            instance.source = Source::Stream;
            // It may be another one than before, whose end nobody saw: what that one would
            // have said is not known.
            instance.probing.deaf();
        }
        self.managers.insert(manager, Manager { synced: false });
        self.touch_all();
    }

    pub(super) fn manager_down(&mut self, manager: &ManagerId) {
        for instance in self.homed(manager) {
            instance.probing.deaf();
        }
        self.managers.remove(manager);
        self.touch_all();
    }

    pub(super) fn manager_snapshot(
        &mut self,
        now: Now,
        manager: &ManagerId,
        records: Vec<InstanceRecord>,
    ) {
        self.managers
            .insert(manager.clone(), Manager { synced: true });
        let mut told = BTreeSet::new();
        for record in records {
            if !self.concerns(now, manager, &record) {
                continue;
            }
            told.insert(record.instance.clone());
            self.missing_from_snapshot(now, &record.instance.clone(), Some(&record));
            self.apply(now, manager, record, Source::Stream);
        }
        let names: Vec<InstanceName> = self
            .homed(manager)
            .map(|instance| instance.name.clone())
            .collect();
        for name in names {
            if !told.contains(&name) {
                self.missing_from_snapshot(now, &name, None);
            }
            let Some(instance) = self.instances.get_mut(&name) else {
                continue;
            };
            if matches!(instance.life(), Life::Sent(Fate::Unknown)) {
                instance.fate = Fate::Absent;
                instance.retry.clear();
            }
            let config = self.services.get(name.service()).and_then(Service::config);
            if let (true, Some(config)) = (instance.is_running(), config) {
                instance.probing.listen(&config.probes, now.mono);
            }
        }
        self.register_alive();
        self.touch_all();
    }

    /// A process that the event stream has told of and that the whole state
    /// does not have: its end was not seen by anybody.
    fn missing_from_snapshot(
        &mut self,
        now: Now,
        name: &InstanceName,
        told: Option<&InstanceRecord>,
    ) {
        let Some(instance) = self.instances.get_mut(name) else {
            return;
        };
        let Some(known) = &instance.record else {
            return;
        };
        if instance.source == Source::Reply
            || told.is_some_and(|told| told.generation >= known.generation)
        {
            // A manager that was restarted may find "running" what its
            // predecessor was stopping: believe it.
            if let Some(told) = told
                && instance.source == Source::Stream
                && told.generation == known.generation
                && known.state.is_live()
                && rank(told) < rank(known)
            {
                instance.record = None;
            }
            return;
        }
        let known = known.clone();
        instance.record = None;
        if !known.state.is_live() {
            return;
        }
        let in_flight = instance.fate == Fate::InFlight && known.generation == instance.generation;
        if in_flight || known.state.name() == StateName::Spawn {
            // A manager died over this spawn. A request that is still on its
            // way goes on to its successor, which may be starting it now: its
            // answer decides. Else it has not run, and the same is sent again.
            return;
        }
        let started_at = match known.state {
            ProcessState::Running { started_at, .. }
            | ProcessState::Stopping { started_at, .. } => started_at,
            _ => now.unix_ns,
        };
        let exit = ExitRecord {
            generation: known.generation,
            pid: known.state.pid().unwrap_or_default(),
            status: ExitStatus::Unknown,
            result: ExitResult::ShimLost,
            started_at,
            ended_at: now.unix_ns,
            killed_leftovers: 0,
        };
        self.ended(now, name, known.generation, End::Exit(exit));
    }

    pub(super) fn process_changed(
        &mut self,
        now: Now,
        manager: &ManagerId,
        record: InstanceRecord,
    ) {
        self.apply(now, manager, record, Source::Stream);
    }

    fn apply(&mut self, now: Now, manager: &ManagerId, record: InstanceRecord, source: Source) {
        let name = record.instance.clone();
        if !self.concerns(now, manager, &record) {
            return;
        }
        if !self.instances.contains_key(&name) && !self.meet(now, manager, &record) {
            return;
        }
        let Some(instance) = self.instances.get_mut(&name) else {
            return;
        };
        let generation = record.generation;
        let known = instance
            .record
            .as_ref()
            .map(|known| (known.generation, rank(known)));
        let stale = known.is_some_and(|known| (generation, rank(&record)) < known)
            || (record.state.is_live() && generation <= instance.ended_at(manager));
        if stale {
            return;
        }
        self.dirty.insert(name.clone());
        let first = known.is_none_or(|(known, _)| known != generation);
        let news = known.is_none_or(|known| known < (generation, rank(&record)));
        if news || source == Source::Stream {
            // A reply that brings news is ahead of the stream, until that tells it too.
            instance.source = source;
        }
        if generation > instance.generation || instance.ran_unseen(&record) {
            self.succeeded(now, &name, &record);
        }
        let Some(instance) = self.instances.get_mut(&name) else {
            return;
        };
        let Some(end) = End::of(&record.state) else {
            return self.lives(now, &name, record, first);
        };
        instance.end_told(manager, generation);
        instance.reserved |= record.grant.is_some() && first;
        instance.record = Some(record);
        self.ended(now, &name, generation, end);
    }

    fn lives(&mut self, now: Now, name: &InstanceName, record: InstanceRecord, first: bool) {
        let Some(instance) = self.instances.get_mut(name) else {
            return;
        };
        let config = self.services.get(name.service()).and_then(Service::config);
        if first {
            instance.probing = Probing::default();
            instance.stable_at = None;
            instance.adopted = false;
            if let (Grant::Unasked, Some(grant)) = (&instance.grant, &record.grant) {
                instance.grant = Grant::Granted(Box::new(grant.clone()));
            }
            if let Some(config) = config {
                if instance.ready_seen == record.generation {
                    // It was ready before this run of the supervisor.
                    instance.probing.adopted_ready();
                    instance.adopted = true;
                }
                instance.probing.begin(&config.probes, now.mono);
            }
        }
        let before = instance.record.as_ref().map(|record| record.state.name());
        if let (StateName::Running, Some(StateName::Spawn), Some(config), false) =
            (record.state.name(), before, config, first)
        {
            // It is probed from now on, however long its spawn took.
            instance.probing.begin(&config.probes, now.mono);
        }
        if record.state.name() == StateName::Running {
            instance.refused = None;
            instance.retry.clear();
            instance.last_error = None;
            if instance.phase == Phase::Spawning {
                instance.why = record.state.pid().map(|pid| format!("runs, pid {pid}"));
            }
            if let Some(config) = config {
                instance.probing.notified(&config.probes, &record.notify);
            }
            if let Some(manager) = instance.left.take() {
                // It is another one's for certain: nothing but the memory of it is forgotten there.
                let instance = name.clone();
                self.actions.push(Action::Forget { manager, instance });
            }
        }
        instance.record = Some(record);
    }

    /// An instance that nobody here knows. Alive it is shown and left alone.
    fn meet(&mut self, now: Now, manager: &ManagerId, record: &InstanceRecord) -> bool {
        if !record.state.is_live() {
            return false;
        }
        let service = record.instance.service().clone();
        let setup = Setup::Left {
            requires: Vec::new(),
            foreign: true,
        };
        self.services
            .entry(service)
            .or_insert_with(|| Service::new(setup, None));
        let row = SavedInstance {
            manager: manager.clone(),
            ..SavedInstance::new(record.instance.clone())
        };
        let mut instance = Instance::new(&row, now, None);
        instance.why = Some("runs, but is in no configuration: left alone".to_owned());
        self.insert(instance);
        self.rewire();
        true
    }

    pub(super) fn process_notified(&mut self, notified: &ProcessNotified) {
        let Some(instance) = self.instances.get_mut(&notified.instance) else {
            return;
        };
        let config = self
            .services
            .get(notified.instance.service())
            .and_then(Service::config);
        if let Some(record) = &mut instance.record
            && record.generation == notified.generation
            && record.state.is_live()
        {
            record.notify = notified.notify.clone();
            if let Some(config) = config {
                instance.probing.notified(&config.probes, &notified.notify);
            }
            self.dirty.insert(notified.instance.clone());
        }
    }

    pub(super) fn probed(&mut self, now: Now, result: &ProbeResult) {
        let Some(instance) = self.instances.get_mut(&result.instance) else {
            return;
        };
        let config = self
            .services
            .get(result.instance.service())
            .and_then(Service::config);
        if let (Life::Live(_, generation), Some(config)) = (instance.life(), config)
            && generation == result.generation
        {
            instance.probing.result(&config.probes, result, now.mono);
            self.dirty.insert(result.instance.clone());
        }
    }

    pub(super) fn spawn_reply(
        &mut self,
        now: Now,
        manager: &ManagerId,
        name: &InstanceName,
        generation: Generation,
        result: Result<Box<InstanceRecord>, RequestFailure>,
    ) {
        let Some(instance) = self.instances.get_mut(name) else {
            return;
        };
        if instance.generation == generation && instance.fate == Fate::InFlight {
            instance.fate = Fate::Unknown;
        }
        if let Err(RequestFailure::Refused(_)) = &result {
            instance.refused_by(manager, generation);
        }
        self.dirty.insert(name.clone());
        match result {
            Ok(record) => {
                self.apply(now, manager, *record, Source::Reply);
                // A reply about another spawn than the one that was asked for.
                if let Some(instance) = self.instances.get_mut(name)
                    && instance.life() == Life::Sent(Fate::Unknown)
                {
                    instance.retry.later(now.mono);
                }
            }
            Err(failure) => {
                if instance.generation != generation || instance.life() != Life::Sent(Fate::Unknown)
                {
                    return;
                }
                instance.retry.later(now.mono);
                match failure {
                    RequestFailure::Refused(status) => {
                        if status.code == Code::FailedPrecondition {
                            // It was stopped before it came, or a later one is known there:
                            // asked again it would be refused for ever. It is over, and the
                            // next try is another one; at once, where this was one of an
                            // earlier day.
                            instance.ended = instance.ended.max(generation);
                            instance.presumed = Some(generation);
                            if instance.again {
                                instance.retry.clear();
                                return;
                            }
                        }
                        instance.why = Some(format!("refused: {}", status.message));
                        instance.last_error = Some(status.message.clone());
                        instance.refused = Some(status);
                    }
                    RequestFailure::Unknown(why) => {
                        instance.why = Some(format!("no answer to the spawn: {why}"));
                    }
                }
            }
        }
    }

    pub(super) fn stop_reply(
        &mut self,
        now: Now,
        manager: &ManagerId,
        name: &InstanceName,
        generation: Generation,
        result: Result<Box<InstanceRecord>, RequestFailure>,
    ) {
        if self.recalled(now, manager, name, generation, &result) {
            return;
        }
        let Some(instance) = self.instances.get_mut(name) else {
            return;
        };
        if instance.stopping != Some(generation) {
            return;
        }
        instance.stopping = None;
        self.dirty.insert(name.clone());
        // Whether the answer proves that this spawn does not run and never will.
        let gone = match &result {
            Ok(record) => record.generation < generation || !record.state.is_live(),
            Err(RequestFailure::Refused(status)) => status.code == Code::NotFound,
            Err(RequestFailure::Unknown(_)) => false,
        };
        match result {
            Ok(record) => self.apply(now, manager, *record, Source::Reply),
            Err(RequestFailure::Refused(status)) if !gone => {
                instance.retry.later(now.mono);
                instance.last_error = Some(format!("stop refused: {}", status.message));
            }
            Err(RequestFailure::Unknown(_)) => {
                instance.retry.later(now.mono);
                instance.let_go = Generation::default();
            }
            Err(RequestFailure::Refused(_)) => {}
        }
        let Some(instance) = self.instances.get_mut(name) else {
            return;
        };
        if gone
            && matches!(instance.life(), Life::Sent(Fate::Unknown | Fate::Absent))
            && instance.generation == generation
            && instance.home == *manager
        {
            instance.fate = Fate::Barred;
        }
    }

    pub(super) fn forget_reply(
        &mut self,
        now: Now,
        manager: &ManagerId,
        name: &InstanceName,
        result: Result<(), RequestFailure>,
    ) {
        let Some(instance) = self.instances.get_mut(name) else {
            return;
        };
        if instance.home != *manager {
            // Where it was before.
            return;
        }
        instance.forgetting = false;
        self.dirty.insert(name.clone());
        let done = match &result {
            Ok(()) => true,
            Err(RequestFailure::Refused(status)) => status.code == Code::NotFound,
            Err(RequestFailure::Unknown(_)) => false,
        };
        if !done {
            instance.retry.later(now.mono);
        } else if instance.surplus && instance.is_gone() {
            instance.why = Some("forgotten: not in the configuration any more".to_owned());
            self.publish(name);
            self.remove(name);
        }
    }
}

/// How far a record is on the way through the states.
fn rank(record: &InstanceRecord) -> u8 {
    match record.state.name() {
        StateName::Spawn => 0,
        StateName::Running => 1,
        StateName::Stopping => 2,
        StateName::Terminated => 3,
        StateName::Failed => 4,
    }
}
