//! What the simulated process-manager does with time and requests.

use blackhole_bus_schema::health::{ProbeKind, ProbeResult};
use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::process::{ExitResult, InstanceRecord, ProcessState, SpawnSpec};
use blackhole_bus_schema::reply::{Code, Status};

use super::host::Manager;
use super::plan::Nature;
use super::world::{Event, Reply, Request, World};

/// The manager that an incarnation is one of.
pub(crate) fn whose(incarnation: u64) -> usize {
    usize::from(!incarnation.is_multiple_of(2))
}

impl World {
    pub(crate) fn manager_returns(&mut self, of: usize) {
        self.managers += 1;
        // Tells whose it is, too.
        let incarnation = self.managers * 2 + of as u64;
        self.manager[of] = Some(Manager::adopt(incarnation, &self.host, of));
        self.at(self.now, Event::Beats { incarnation });
    }

    /// Heartbeat and probes.
    pub(crate) fn beats(&mut self, incarnation: u64) {
        let of = whose(incarnation);
        let Some(manager) = self.manager[of]
            .as_mut()
            .filter(|m| m.incarnation == incarnation)
        else {
            return;
        };
        let seq = manager.seq;
        let mut results = Vec::new();
        for (instance, process) in &self.host.processes {
            if process.of != of {
                continue;
            }
            let ready = process.ready_at <= self.now;
            let told = manager.told_ready.get(instance) == Some(&process.generation);
            if ready && !told {
                manager
                    .told_ready
                    .insert(instance.clone(), process.generation);
                let ready = self.host.was_ready.entry(instance.clone()).or_default();
                ready.push(process.generation);
            }
            if !ready || !told {
                results.push(ProbeResult {
                    instance: instance.clone(),
                    generation: process.generation,
                    probe: ProbeKind::Readiness,
                    error: (!ready).then(|| "not yet".to_owned()),
                    in_a_row: 1,
                    took_us: 1,
                });
            }
        }
        for result in results {
            self.send(Event::Probe(of, result));
        }
        self.send(Event::Heartbeat { incarnation, seq });
        self.at(self.now + 500, Event::Beats { incarnation });
    }

    pub(crate) fn publish(&mut self, of: usize, record: InstanceRecord) {
        if let Some(manager) = &mut self.manager[of] {
            manager.seq += 1;
            let (incarnation, seq) = (manager.incarnation, manager.seq);
            manager
                .records
                .insert(record.instance.clone(), record.clone());
            self.send(Event::Change {
                incarnation,
                seq,
                record: Box::new(record),
            });
        }
    }

    pub(crate) fn answer(&mut self, id: u64, reply: Reply) {
        let of = self.calls.get(&id).map_or(0, |call| call.to);
        if let Some(manager) = &mut self.manager[of] {
            manager.replies.insert(id, Some(reply.clone()));
            self.send(Event::Answered(id, reply));
        }
    }

    /// A request reaches its component, perhaps late, perhaps again, perhaps
    /// from a supervisor that is dead. One whose budget is spent is dropped.
    pub(crate) fn arrives(&mut self, id: u64) {
        let Some(call) = self.calls.get(&id).filter(|call| call.deadline > self.now) else {
            return;
        };
        let request = call.request.clone();
        let of = call.to;
        let orphan = call.life != self.life || self.core.is_none();
        if let Request::Prepare(_) | Request::Release(_) = request {
            if self.controller {
                let reply = if matches!(request, Request::Prepare(_)) {
                    Reply::Grant
                } else {
                    Reply::Done
                };
                self.at(self.now + 1, Event::Answered(id, reply));
            }
            return;
        }
        if let Request::Drain { within, .. } = request {
            return self.drain_arrives(id, within);
        }
        let Some(manager) = &mut self.manager[of] else {
            return;
        };
        match manager.replies.get(&id) {
            Some(Some(reply)) => {
                let reply = reply.clone();
                return self.send(Event::Answered(id, reply));
            }
            Some(None) => return,
            None => {}
        }
        manager.replies.insert(id, None);
        let incarnation = manager.incarnation;
        match request {
            Request::List => {
                let records = manager.records.values().cloned().collect();
                let reply = Reply::All {
                    incarnation,
                    seq: manager.seq,
                    records,
                };
                // Asked again it is answered afresh.
                manager.replies.remove(&id);
                self.send(Event::Answered(id, reply));
            }
            Request::Forget(instance)
                if manager
                    .records
                    .get(&instance)
                    .is_some_and(|record| record.state.is_live()) =>
            {
                let status = Status::new(Code::FailedPrecondition, "it lives");
                self.answer(id, Reply::Refused(status));
            }
            Request::Forget(instance) => {
                manager.records.remove(&instance);
                if self.host.owner.get(&instance) == Some(&of) {
                    self.host.disk.remove(&instance);
                }
                self.answer(id, Reply::Done);
            }
            Request::Spawn(spec) => {
                let known = manager
                    .records
                    .get(&spec.instance)
                    .map(|record| record.generation);
                if known == Some(spec.generation) {
                    let record = Box::new(manager.records[&spec.instance].clone());
                    if record.state == (ProcessState::Spawn {}) {
                        // Answered with the first one: asked again it is looked at again.
                        manager.replies.remove(&id);
                        return self.at(self.now + 5, Event::Arrives(id));
                    }
                    return self.answer(id, Reply::Record(record));
                }
                let stopped = manager.stopped.get(&spec.instance).copied();
                if known.max(stopped) >= Some(spec.generation) {
                    let status = Status::new(Code::FailedPrecondition, "older, or stopped");
                    return self.answer(id, Reply::Refused(status));
                }
                let alive = self.host.processes.get(&spec.instance);
                if alive.is_some_and(|process| process.of != of) {
                    let status = Status::new(Code::AlreadyExists, "it lives elsewhere");
                    return self.answer(id, Reply::Refused(status));
                }
                // Only what a dead supervisor left on the way may be met alive:
                // the living one cannot know of that, and is refused.
                if alive.is_some_and(|process| process.orphan) {
                    let status = Status::new(Code::FailedPrecondition, "a process lives");
                    return self.answer(id, Reply::Refused(status));
                }
                let record = self.host.record(&spec, ProcessState::Spawn {});
                self.publish(of, record);
                let takes = self.below(30);
                self.at(
                    (self.now + takes).max(self.hang_until),
                    Event::Spawned {
                        incarnation,
                        id,
                        orphan,
                        spec,
                    },
                );
            }
            Request::Stop {
                instance,
                generation,
                unhealthy,
            } => {
                self.stop(incarnation, id, &instance, generation, unhealthy);
            }
            Request::Permit {
                instance,
                generation,
                permit,
            } => {
                let process = self.host.processes.get_mut(&instance);
                let meant = |process: &&mut super::host::Process| {
                    process.generation == generation && process.of == of
                };
                let reply = match process.filter(meant) {
                    Some(process) if process.asked.is_none() => {
                        process.permit = permit;
                        Reply::Done
                    }
                    _ => Reply::Refused(Status::new(Code::FailedPrecondition, "not that one")),
                };
                self.answer(id, reply);
            }
            Request::Prepare(_) | Request::Release(_) | Request::Drain { .. } => {}
        }
    }

    pub(crate) fn spawned(&mut self, incarnation: u64, id: u64, orphan: bool, spec: &SpawnSpec) {
        let of = whose(incarnation);
        let manager = self.manager[of].as_ref();
        if manager.is_none_or(|manager| manager.incarnation != incarnation) {
            return;
        }
        if self.now < self.hang_until {
            let event = Event::Spawned {
                incarnation,
                id,
                orphan,
                spec: Box::new(spec.clone()),
            };
            return self.at(self.hang_until, event);
        }
        let index: usize = spec.instance.service().as_str()[1..].parse().unwrap();
        let nature = self.plan.members[index].nature;
        let elsewhere = self.host.processes.get(&spec.instance);
        let record = if elsewhere.is_some_and(|process| process.of != of) {
            // It is claimed already.
            self.host.refuse(spec)
        } else if nature == Nature::Missing {
            self.host.fail_to_start(spec, of)
        } else {
            let ready_at = self.now + self.below(3000);
            let unix = self.clock().unix_ns;
            let record = self.host.start(spec, unix, ready_at, orphan, of);
            self.begins(&record);
            record
        };
        self.publish(of, record.clone());
        self.answer(id, Reply::Record(Box::new(record)));
        let waits = self.manager[of]
            .as_mut()
            .and_then(|m| m.stops.remove(&spec.instance));
        if let Some((id, unhealthy)) = waits {
            self.stop(incarnation, id, &spec.instance, spec.generation, unhealthy);
        }
    }

    /// The life of a process that has just started.
    fn begins(&mut self, record: &InstanceRecord) {
        let index: usize = record.instance.service().as_str()[1..].parse().unwrap();
        let registers = self.now + 1 + self.below(500);
        self.at(registers, Event::Registers(record.instance.clone()));
        if !self.plan.members[index].probed {
            // Without probes it is ready when it runs.
            let ready = self
                .host
                .was_ready
                .entry(record.instance.clone())
                .or_default();
            ready.push(record.generation);
        }
        let life = match self.plan.members[index].nature {
            Nature::Crashing | Nature::BadJob => Some(ExitResult::ExitCode),
            Nature::Job => Some(ExitResult::Success),
            Nature::Good | Nature::Missing => None,
        };
        if let Some(result) = life {
            let (instance, pid) = (record.instance.clone(), record.state.pid().unwrap());
            let at = self.now + 1 + self.below(4000);
            self.at(
                at,
                Event::Ends {
                    instance,
                    pid,
                    result,
                },
            );
        }
    }

    pub(crate) fn stop(
        &mut self,
        incarnation: u64,
        id: u64,
        instance: &InstanceName,
        generation: Generation,
        unhealthy: bool,
    ) {
        let of = whose(incarnation);
        let Some(manager) = &mut self.manager[of] else {
            return;
        };
        let known = manager.records.get(instance).cloned();
        if known
            .as_ref()
            .is_none_or(|known| known.generation < generation)
        {
            manager.stopped.insert(instance.clone(), generation);
        }
        let Some(record) = known else {
            return self.answer(
                id,
                Reply::Refused(Status::new(Code::NotFound, "no such instance")),
            );
        };
        if record.generation > generation {
            let status = Status::new(Code::FailedPrecondition, "an older generation");
            return self.answer(id, Reply::Refused(status));
        }
        let process = self.host.processes.get_mut(instance);
        let Some(process) = process.filter(|process| process.of == of) else {
            if record.state.is_live() {
                // Being started: the stop waits for it, whoever waits for the answer.
                manager.stops.insert(instance.clone(), (id, unhealthy));
                return;
            }
            return self.answer(id, Reply::Record(Box::new(record)));
        };
        process.asked = Some(if unhealthy {
            ExitResult::Unhealthy
        } else {
            ExitResult::Stopped
        });
        process.permit = None;
        let (pid, started_at) = (process.pid, process.started_at);
        let stopping = InstanceRecord {
            state: ProcessState::Stopping { pid, started_at },
            ..record
        };
        let generation = stopping.generation;
        self.publish(of, stopping);
        let end = self.now + 1 + self.below(2500);
        // The shim carries it out, whether the manager lives or not.
        self.at(
            end,
            Event::Ends {
                instance: instance.clone(),
                pid,
                result: ExitResult::Stopped,
            },
        );
        let instance = instance.clone();
        self.at(
            end + 1,
            Event::StopDone {
                incarnation,
                id,
                instance,
                generation,
            },
        );
    }

    pub(crate) fn stop_done(
        &mut self,
        incarnation: u64,
        id: u64,
        instance: &InstanceName,
        generation: Generation,
    ) {
        let Some(manager) = self.manager[whose(incarnation)]
            .as_ref()
            .filter(|m| m.incarnation == incarnation)
        else {
            return;
        };
        if let Some(record) = manager
            .records
            .get(instance)
            .filter(|r| r.generation == generation)
        {
            let record = Box::new(record.clone());
            self.answer(id, Reply::Record(record));
        }
    }

    pub(crate) fn ends(&mut self, instance: &InstanceName, pid: u32, result: ExitResult) {
        if self
            .host
            .processes
            .get(instance)
            .is_none_or(|process| process.pid != pid)
        {
            return;
        }
        let unix = self.clock().unix_ns;
        let permit = self.host.processes.get(instance).and_then(|p| p.permit);
        let of = self.host.processes.get(instance).map_or(0, |p| p.of);
        let Some(ended) = self.host.end(instance, result, unix) else {
            return;
        };
        let failed = matches!(ended.state, ProcessState::Failed { .. });
        let successor = permit.filter(|_| failed).and_then(|generation| {
            let ready_at = self.now + self.below(3000);
            self.host.succeed(&ended, generation, unix, ready_at)
        });
        self.publish(of, ended);
        self.unregister(instance);
        if let Some(record) = successor {
            self.begins(&record);
            self.publish(of, record);
        }
    }
}
