//! The network and the supervisor's side of it, modelled as the real link
//! behaves: a request is sent again with the same id until its budget is spent;
//! events are numbered, doubled ones dropped, and after a gap, a new incarnation
//! or a heartbeat that shows a loss the whole state is asked for.

use blackhole_bus_schema::limits::LimitGrant;
use blackhole_bus_schema::process::InstanceRecord;
use blackhole_bus_schema::registry::Drained;
use blackhole_supervisor::core::{Input, RequestFailure};

use super::manager::whose;
use super::plan::{FAULTS_END_MS, manager_name};
use super::world::{Call, Event, Link, Reply, Request, World};

impl World {
    /// Sends something between supervisor and manager: lost, doubled, late.
    pub(crate) fn send(&mut self, event: Event) {
        let faulty = self.now < FAULTS_END_MS;
        let with = match &event {
            Event::Arrives(id) | Event::Answered(id, _) => {
                self.calls.get(id).map_or(0, |call| call.to)
            }
            Event::Change { incarnation, .. } | Event::Heartbeat { incarnation, .. } => {
                whose(*incarnation)
            }
            Event::Probe(of, _) => *of,
            _ => 0,
        };
        if self.now < self.partition_until[with] {
            return;
        }
        let probe = matches!(event, Event::Probe(..));
        for copy in 0..2 {
            let chance = self.below(100);
            let wanted = match copy {
                0 => !(faulty && !probe && chance < self.plan.loss),
                _ => faulty && !probe && chance < self.plan.loss,
            };
            if wanted {
                let most = if faulty && !probe { self.plan.delay } else { 5 };
                let delay = 1 + self.below(most);
                self.at(self.now + delay, event.clone());
            }
        }
    }

    pub(crate) fn call(&mut self, to: usize, request: Request, budget: u64) -> u64 {
        self.counter += 1;
        let id = self.counter;
        let deadline = self.now + budget;
        self.calls.insert(
            id,
            Call {
                request,
                to,
                life: self.life,
                deadline,
                open: true,
            },
        );
        self.at(deadline, Event::TimesOut(id));
        self.transmit(id);
        id
    }

    pub(crate) fn transmit(&mut self, id: u64) {
        let Some(call) = self.calls.get(&id).filter(|call| call.open) else {
            return;
        };
        match call.request {
            Request::Prepare(_) | Request::Release(_) => {
                self.at(self.now + 1, Event::Arrives(id));
            }
            _ => self.send(Event::Arrives(id)),
        }
        self.at(self.now + 300, Event::Retransmit(id));
    }

    /// The request of an open call, which is closed with this. What is still on
    /// its way to a component may arrive there nevertheless.
    fn close(&mut self, id: u64) -> Option<Request> {
        let call = self.calls.get_mut(&id).filter(|call| call.open)?;
        call.open = false;
        Some(call.request.clone())
    }

    pub(crate) fn times_out(&mut self, id: u64) {
        if let Some(request) = self.close(id) {
            let failure = RequestFailure::Unknown("timed out".into());
            self.result(id, request, Err(failure));
        }
        self.calls.remove(&id);
    }

    pub(crate) fn answered_call(&mut self, id: u64, reply: Reply) {
        if let Some(request) = self.close(id) {
            self.result(id, request, Ok(reply));
        }
    }

    pub(crate) fn result(
        &mut self,
        id: u64,
        request: Request,
        reply: Result<Reply, RequestFailure>,
    ) {
        let reply = match reply {
            Ok(Reply::Refused(status)) => Err(RequestFailure::Refused(status)),
            other => other,
        };
        let record = |reply| match reply {
            Ok(Reply::Record(record)) => Ok(record),
            Ok(other) => panic!("{other:?}"),
            Err(failure) => Err(failure),
        };
        let to = self.calls.get(&id).map_or(0, |call| call.to);
        let manager = manager_name(to);
        match request {
            Request::Spawn(spec) => {
                let (instance, generation) = (spec.instance, spec.generation);
                self.tell(Input::SpawnReply {
                    manager,
                    instance,
                    generation,
                    result: record(reply),
                });
            }
            Request::Stop {
                instance,
                generation,
                ..
            } => {
                self.tell(Input::StopReply {
                    manager,
                    instance,
                    generation,
                    result: record(reply),
                });
            }
            Request::Forget(instance) => {
                self.tell(Input::ForgetReply {
                    manager,
                    instance,
                    result: reply.map(|_| ()),
                });
            }
            Request::Prepare(instance) => {
                let result = reply.map(|_| Box::new(LimitGrant::default()));
                self.tell(Input::PrepareReply { instance, result });
            }
            Request::Release(instance) => {
                self.tell(Input::ReleaseReply {
                    instance,
                    result: reply.map(|_| ()),
                });
            }
            Request::Drain {
                instance,
                generation,
                ..
            } => {
                let result = reply.map(|_| Drained::default());
                self.tell(Input::DrainReply {
                    instance,
                    generation,
                    result,
                });
            }
            Request::Permit { .. } => {}
            Request::List if self.link[to].syncing != Some(id) => {}
            Request::List => {
                self.link[to].syncing = None;
                match reply {
                    Ok(Reply::All {
                        incarnation,
                        seq,
                        records,
                    }) if incarnation == self.link[to].incarnation => {
                        self.listed(incarnation, seq, records);
                    }
                    _ if self.link[to].up => self.resync(to),
                    _ => {}
                }
            }
        }
    }

    pub(crate) fn listens(&mut self, life: u64) {
        if life != self.life || self.core.is_none() {
            return;
        }
        self.at(self.now + 500, Event::Listens { life });
        for of in 0..2 {
            if self.link[of].up && self.now > self.link[of].heard + 3000 {
                self.link[of].up = false;
                self.links += 1;
                self.tell(Input::ManagerDown(manager_name(of)));
            }
        }
    }

    pub(crate) fn resync(&mut self, of: usize) {
        if self.link[of].syncing.is_none() {
            let id = self.call(of, Request::List, 2000);
            self.link[of].syncing = Some(id);
        }
    }

    pub(crate) fn heartbeat_arrives(&mut self, incarnation: u64, seq: u64) {
        let of = whose(incarnation);
        if self.core.is_none() || incarnation < self.link[of].incarnation {
            return;
        }
        self.link[of].heard = self.now;
        if !self.link[of].up || incarnation != self.link[of].incarnation {
            let kept = if incarnation == self.link[of].incarnation {
                self.link[of].seq
            } else {
                0
            };
            self.link[of] = Link {
                up: true,
                incarnation,
                heard: self.now,
                seq: kept,
                ..Link::default()
            };
            self.links += 1;
            self.tell(Input::ManagerUp(manager_name(of)));
            self.resync(of);
        } else if seq > self.link[of].seq {
            self.resync(of);
        }
    }

    pub(crate) fn change_arrives(&mut self, incarnation: u64, seq: u64, record: InstanceRecord) {
        let of = whose(incarnation);
        let link = &mut self.link[of];
        if self.core.is_none() || !link.up || incarnation != link.incarnation || seq <= link.seq {
            return;
        }
        if link.syncing.is_some() {
            link.kept.insert(seq, record);
        } else if seq == link.seq + 1 {
            link.seq = seq;
            self.tell(Input::ProcessChanged(manager_name(of), Box::new(record)));
        } else {
            link.kept.insert(seq, record);
            self.resync(of);
        }
    }

    pub(crate) fn listed(&mut self, incarnation: u64, seq: u64, records: Vec<InstanceRecord>) {
        let of = whose(incarnation);
        self.link[of].seq = self.link[of].seq.max(seq);
        self.tell(Input::ManagerSnapshot(manager_name(of), records));
        for (seq, record) in std::mem::take(&mut self.link[of].kept) {
            self.change_arrives(incarnation, seq, record);
        }
    }
}
