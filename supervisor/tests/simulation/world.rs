//! Time, network and the parts on both sides of it.
//!
//! The supervisor's side of the bus is modelled as the real link behaves: a
//! request is sent again with the same id until its budget is spent; events
//! are numbered, doubled ones dropped, and after a gap, a new incarnation or a
//! heartbeat that shows a loss the whole state is asked for.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use blackhole_bus_schema::config::Config;
use blackhole_bus_schema::health::{ProbeKind, ProbeResult};
use blackhole_bus_schema::limits::LimitGrant;
use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::process::{ExitResult, InstanceRecord, ProcessState, SpawnSpec};
use blackhole_bus_schema::reply::{Code, Status};
use blackhole_bus_schema::supervision::Target;
use blackhole_supervisor::core::{
    Action, Core, Input, Now, Operator, Random, RequestFailure, Restored, Ticket,
};

use super::host::{Host, Manager};
use super::plan::{FAULTS_END_MS, Fault, Nature, Plan, name};

const EPOCH_UNIX: u64 = 1_700_000_000_000_000_000;
const MS: u64 = 1_000_000;
/// Monotonic time begins here, so that earlier moments can be told.
const EPOCH_MONO: Duration = Duration::from_secs(1_000_000);

#[derive(Debug, Clone)]
pub(crate) enum Request {
    Spawn(Box<SpawnSpec>),
    Stop {
        instance: InstanceName,
        generation: Generation,
        unhealthy: bool,
    },
    Forget(InstanceName),
    List,
    Prepare(InstanceName),
    Release(InstanceName),
}

#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Record(Box<InstanceRecord>),
    All {
        incarnation: u64,
        seq: u64,
        records: Vec<InstanceRecord>,
    },
    Grant,
    Done,
    Refused(Status),
}

#[derive(Debug, Clone)]
enum Event {
    /// A request (id, supervisor's life) reaches its component.
    Arrives(u64, u64),
    /// A reply reaches the supervisor.
    Answered(u64, Reply),
    Retransmit(u64),
    TimesOut(u64),
    Change {
        incarnation: u64,
        seq: u64,
        record: Box<InstanceRecord>,
    },
    Probe(ProbeResult),
    Heartbeat {
        incarnation: u64,
        seq: u64,
    },
    /// The manager does these by itself.
    Beats {
        incarnation: u64,
    },
    Spawned {
        incarnation: u64,
        id: u64,
        spec: Box<SpawnSpec>,
    },
    StopDone {
        incarnation: u64,
        id: u64,
        instance: InstanceName,
        generation: Generation,
    },
    Ends {
        instance: InstanceName,
        pid: u32,
        result: ExitResult,
    },
    /// The supervisor looks whether it still hears the manager.
    Listens {
        life: u64,
    },
    Fault(Fault),
    ManagerReturns,
    SupervisorReturns,
    ControllerReturns,
}

struct Call {
    request: Request,
    life: u64,
    deadline: u64,
}

/// The supervisor's link to the manager.
#[derive(Default)]
struct Link {
    up: bool,
    incarnation: u64,
    heard: u64,
    seq: u64,
    /// The request for the whole state that is waited for; changes meanwhile
    /// are kept, answers to earlier requests are void.
    syncing: Option<u64>,
    kept: BTreeMap<u64, InstanceRecord>,
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    config: Config,
    pub(crate) now: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    counter: u64,
    random: Random,
    pub(crate) host: Host,
    pub(crate) manager: Option<Manager>,
    managers: u64,
    controller: bool,
    pub(crate) core: Option<Core>,
    pub(crate) disk: Restored,
    life: u64,
    link: Link,
    calls: BTreeMap<u64, Call>,
    partition_until: u64,
    trace: bool,
    /// The supervisor dies after so many more actions.
    die_after: Option<(usize, u64)>,
    tickets: u64,
    open: BTreeMap<Ticket, Operator>,
    pub(crate) answered: u64,
    /// Commands that may have started an instance anew.
    pub(crate) commands: u32,
    pub(crate) kills: BTreeSet<InstanceName>,
}

impl World {
    pub(crate) fn new(plan: &Plan) -> Self {
        let mut world = Self {
            plan: plan.clone(),
            config: plan.config(),
            now: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            counter: 0,
            random: Random::new(plan.seed),
            host: Host::default(),
            manager: None,
            managers: 0,
            controller: true,
            core: None,
            disk: Restored::default(),
            life: 0,
            link: Link::default(),
            calls: BTreeMap::new(),
            partition_until: 0,
            trace: std::env::var_os("SIM_TRACE").is_some(),
            die_after: None,
            tickets: 0,
            open: BTreeMap::new(),
            answered: 0,
            commands: 0,
            kills: BTreeSet::new(),
        };
        for (at, fault) in &plan.faults {
            world.at(*at, Event::Fault(fault.clone()));
        }
        let first = world.below(4000);
        world.at(first, Event::ManagerReturns);
        let first = world.below(4000);
        world.at(first, Event::SupervisorReturns);
        world
    }

    /// Runs until `end`, in milliseconds.
    pub(crate) fn run(&mut self, end: u64) {
        loop {
            let event = self.queue.peek().map(|Reverse((at, _))| *at);
            let timer = self.core.as_ref().and_then(Core::next_deadline).map(|at| {
                let wait = at.saturating_sub(EPOCH_MONO);
                // Up to the next whole millisecond, as timers do.
                u64::try_from(wait.as_nanos().div_ceil(u128::from(MS))).unwrap_or(u64::MAX)
            });
            let next = event.into_iter().chain(timer).min().unwrap_or(end);
            if next > end {
                self.now = end;
                return;
            }
            self.now = self.now.max(next);
            if event == Some(next) {
                if let Some(Reverse((_, number))) = self.queue.pop()
                    && let Some(event) = self.events.remove(&number)
                {
                    self.happens(event);
                }
            } else {
                self.tell(Input::Tick);
            }
        }
    }

    fn at(&mut self, at: u64, event: Event) {
        self.counter += 1;
        self.events.insert(self.counter, event);
        self.queue.push(Reverse((at.max(self.now), self.counter)));
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random.number() % limit.max(1)
    }

    fn clock(&self) -> Now {
        Now {
            mono: EPOCH_MONO + Duration::from_millis(self.now),
            unix_ns: EPOCH_UNIX + self.now * MS,
        }
    }

    /// Sends something between supervisor and manager: lost, doubled, late.
    fn send(&mut self, event: Event) {
        let faulty = self.now < FAULTS_END_MS;
        if self.now < self.partition_until {
            return;
        }
        let probe = matches!(event, Event::Probe(_));
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

    fn happens(&mut self, event: Event) {
        if self.trace {
            eprintln!("{:>7} {event:?}", self.now);
        }
        match event {
            Event::Arrives(id, life) => self.arrives(id, life),
            Event::Answered(id, reply) => self.answered_call(id, reply),
            Event::Retransmit(id) => self.transmit(id),
            Event::TimesOut(id) => self.times_out(id),
            Event::Change {
                incarnation,
                seq,
                record,
            } => self.change_arrives(incarnation, seq, *record),
            Event::Probe(result) => {
                if self.link.up {
                    self.tell(Input::Probe(result));
                }
            }
            Event::Heartbeat { incarnation, seq } => self.heartbeat_arrives(incarnation, seq),
            Event::Beats { incarnation } => self.beats(incarnation),
            Event::Spawned {
                incarnation,
                id,
                spec,
            } => self.spawned(incarnation, id, &spec),
            Event::StopDone {
                incarnation,
                id,
                instance,
                generation,
            } => {
                self.stop_done(incarnation, id, &instance, generation);
            }
            Event::Ends {
                instance,
                pid,
                result,
            } => self.ends(&instance, pid, result),
            Event::Listens { life } => self.listens(life),
            Event::Fault(fault) => self.fault(fault),
            Event::ManagerReturns => self.manager_returns(),
            Event::SupervisorReturns => self.supervisor_returns(),
            Event::ControllerReturns => {
                self.controller = true;
                self.tell(Input::ControllerUp);
            }
        }
    }

    fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::ManagerDies(back) => {
                if self.manager.take().is_some() {
                    self.at(self.now + back, Event::ManagerReturns);
                }
            }
            Fault::SupervisorDies(after, back) => {
                if after == 0 && self.core.is_some() {
                    self.supervisor_dies(back);
                } else if self.core.is_some() {
                    self.die_after = Some((after, back));
                }
            }
            Fault::ControllerDies(back) => {
                if std::mem::replace(&mut self.controller, false) {
                    self.tell(Input::ControllerDown);
                    self.at(self.now + back, Event::ControllerReturns);
                }
            }
            Fault::Partition(time) => self.partition_until = self.now + time,
            Fault::Kill(index) => {
                let service = name(index % self.plan.members.len());
                let victim = self
                    .host
                    .processes
                    .iter()
                    .find(|(i, _)| *i.service() == service);
                if let Some((instance, pid)) = victim.map(|(i, process)| (i.clone(), process.pid)) {
                    self.kills.insert(instance.clone());
                    self.ends(&instance, pid, ExitResult::Signal);
                }
            }
            Fault::Command(which, index) => {
                let target = Target::Services(vec![name(index % self.plan.members.len())]);
                let command = match which {
                    0 | 1 => Operator::Start(target),
                    2 => Operator::Stop {
                        target,
                        transient: false,
                    },
                    3 => Operator::Restart(target),
                    _ => Operator::Reset(target),
                };
                if self.core.is_some() {
                    self.commands += 1;
                    self.tickets += 1;
                    let ticket = Ticket(self.tickets);
                    self.open.insert(ticket, command.clone());
                    let deadline = self.clock().mono + Duration::from_secs(20);
                    self.tell(Input::Command {
                        ticket,
                        deadline,
                        command,
                    });
                }
            }
        }
    }

    // --- the supervisor ---

    fn supervisor_returns(&mut self) {
        self.life += 1;
        self.link = Link::default();
        let seed = self.random.number();
        self.core = Some(Core::new(
            Some(&self.config),
            &self.disk,
            Random::new(seed),
            self.clock(),
        ));
        self.tell(Input::Tick);
        if self.controller {
            self.tell(Input::ControllerUp);
        }
        self.at(self.now + 500, Event::Listens { life: self.life });
    }

    fn supervisor_dies(&mut self, back: u64) {
        self.core = None;
        self.die_after = None;
        // Whoever waits for an answer notices and asks again; not modelled.
        self.open.clear();
        let life = self.life;
        self.calls.retain(|_, call| call.life != life);
        self.at(self.now + back, Event::SupervisorReturns);
    }

    fn tell(&mut self, input: Input) {
        let now = self.clock();
        let Some(core) = &mut self.core else {
            return;
        };
        let trace = self.trace && input_is_news(&input);
        let told = trace.then(|| format!("{input:?}"));
        let actions = core.handle(now, input, None);
        if let Some(told) = told {
            eprintln!("{:>7}   tell {told}\n        -> {actions:?}", self.now);
        }
        for action in actions {
            if let Some((left, back)) = &mut self.die_after {
                if *left == 0 {
                    let back = *back;
                    return self.supervisor_dies(back);
                }
                *left -= 1;
            }
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Persist { change, .. } => self.disk.apply(change),
            Action::Prepare { instance, .. } => {
                self.call(Request::Prepare(instance), 5000);
            }
            Action::Release { instance } => {
                self.call(Request::Release(instance), 5000);
            }
            Action::Spawn(spec) => {
                self.check_dependencies(&spec);
                self.call(Request::Spawn(spec), 5000);
            }
            Action::Stop {
                instance,
                generation,
                unhealthy,
                grace_ms,
            } => {
                self.call(
                    Request::Stop {
                        instance,
                        generation,
                        unhealthy,
                    },
                    grace_ms + 5000,
                );
            }
            Action::Forget { instance } => {
                self.call(Request::Forget(instance), 5000);
            }
            Action::Publish { .. } => {}
            Action::Answer { ticket, result } => {
                let command = self.open.remove(&ticket);
                assert!(
                    command.is_some(),
                    "{ticket:?} answered twice, or never asked: {result:?}"
                );
                self.answered += 1;
            }
        }
    }

    /// No start before what is required holds, as far as anybody could know:
    /// the dependency was truly ready (or through) in the very run that the
    /// supervisor now believes to be so.
    fn check_dependencies(&self, spec: &SpawnSpec) {
        let Some(core) = &self.core else { return };
        let service = &self.config.services[spec.instance.service()];
        for (on, dependency) in service.depends_on.iter().filter(|(_, on)| on.required) {
            for status in core.statuses().filter(|status| status.service == *on) {
                let through = self.host.was_through.contains(&status.instance);
                let started = status.state.is_some();
                let ready = self
                    .host
                    .was_ready
                    .get(&status.instance)
                    .is_some_and(|ready| ready.contains(&status.generation));
                use blackhole_bus_schema::config::Condition::{Completed, Ready, Started};
                let holds = match dependency.condition {
                    Started => started,
                    Ready => ready || through,
                    Completed => through,
                };
                assert!(
                    holds,
                    "{} is started before {dependency:?} of {status:#?}",
                    spec.instance
                );
            }
        }
    }

    fn call(&mut self, request: Request, budget: u64) -> u64 {
        self.counter += 1;
        let id = self.counter;
        let deadline = self.now + budget;
        self.calls.insert(
            id,
            Call {
                request,
                life: self.life,
                deadline,
            },
        );
        self.at(deadline, Event::TimesOut(id));
        self.transmit(id);
        id
    }

    fn transmit(&mut self, id: u64) {
        let Some(call) = self.calls.get(&id) else {
            return;
        };
        let life = call.life;
        match call.request {
            Request::Prepare(_) | Request::Release(_) => {
                self.at(self.now + 1, Event::Arrives(id, life))
            }
            _ => self.send(Event::Arrives(id, life)),
        }
        self.at(self.now + 300, Event::Retransmit(id));
    }

    fn times_out(&mut self, id: u64) {
        if let Some(call) = self.calls.remove(&id) {
            self.result(
                id,
                call.request,
                Err(RequestFailure::Unknown("timed out".into())),
            );
        }
    }

    fn answered_call(&mut self, id: u64, reply: Reply) {
        let Some(call) = self.calls.remove(&id) else {
            return;
        };
        self.result(id, call.request, Ok(reply));
    }

    fn result(&mut self, id: u64, request: Request, reply: Result<Reply, RequestFailure>) {
        let reply = match reply {
            Ok(Reply::Refused(status)) => Err(RequestFailure::Refused(status)),
            other => other,
        };
        let record = |reply| match reply {
            Ok(Reply::Record(record)) => Ok(record),
            Ok(other) => panic!("{other:?}"),
            Err(failure) => Err(failure),
        };
        match request {
            Request::Spawn(spec) => {
                let (instance, generation) = (spec.instance, spec.generation);
                self.tell(Input::SpawnReply {
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
                    instance,
                    generation,
                    result: record(reply),
                });
            }
            Request::Forget(instance) => {
                self.tell(Input::ForgetReply {
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
            Request::List if self.link.syncing != Some(id) => {}
            Request::List => {
                self.link.syncing = None;
                match reply {
                    Ok(Reply::All {
                        incarnation,
                        seq,
                        records,
                    }) if incarnation == self.link.incarnation => {
                        self.listed(incarnation, seq, records);
                    }
                    _ if self.link.up => self.resync(),
                    _ => {}
                }
            }
        }
    }

    // --- the link ---

    fn listens(&mut self, life: u64) {
        if life != self.life || self.core.is_none() {
            return;
        }
        self.at(self.now + 500, Event::Listens { life });
        if self.link.up && self.now > self.link.heard + 3000 {
            self.link.up = false;
            self.tell(Input::ManagerDown);
        }
    }

    fn resync(&mut self) {
        if self.link.syncing.is_none() {
            let id = self.call(Request::List, 2000);
            self.link.syncing = Some(id);
        }
    }

    fn heartbeat_arrives(&mut self, incarnation: u64, seq: u64) {
        if self.core.is_none() || incarnation < self.link.incarnation {
            return;
        }
        self.link.heard = self.now;
        if !self.link.up || incarnation != self.link.incarnation {
            let kept = if incarnation == self.link.incarnation {
                self.link.seq
            } else {
                0
            };
            self.link = Link {
                up: true,
                incarnation,
                heard: self.now,
                seq: kept,
                ..Link::default()
            };
            self.tell(Input::ManagerUp);
            self.resync();
        } else if seq > self.link.seq {
            self.resync();
        }
    }

    fn change_arrives(&mut self, incarnation: u64, seq: u64, record: InstanceRecord) {
        let link = &mut self.link;
        if self.core.is_none() || !link.up || incarnation != link.incarnation || seq <= link.seq {
            return;
        }
        if link.syncing.is_some() {
            link.kept.insert(seq, record);
        } else if seq == link.seq + 1 {
            link.seq = seq;
            self.tell(Input::ProcessChanged(Box::new(record)));
        } else {
            link.kept.insert(seq, record);
            self.resync();
        }
    }

    fn listed(&mut self, incarnation: u64, seq: u64, records: Vec<InstanceRecord>) {
        self.link.seq = self.link.seq.max(seq);
        self.tell(Input::ManagerSnapshot(records));
        for (seq, record) in std::mem::take(&mut self.link.kept) {
            self.change_arrives(incarnation, seq, record);
        }
    }

    // --- the process-manager ---

    fn manager_returns(&mut self) {
        self.managers += 1;
        self.manager = Some(Manager::adopt(self.managers, &self.host));
        self.at(
            self.now,
            Event::Beats {
                incarnation: self.managers,
            },
        );
    }

    /// Heartbeat and probes.
    fn beats(&mut self, incarnation: u64) {
        let Some(manager) = self
            .manager
            .as_mut()
            .filter(|m| m.incarnation == incarnation)
        else {
            return;
        };
        let seq = manager.seq;
        let mut results = Vec::new();
        for (instance, process) in &self.host.processes {
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
            self.send(Event::Probe(result));
        }
        self.send(Event::Heartbeat { incarnation, seq });
        self.at(self.now + 500, Event::Beats { incarnation });
    }

    fn publish(&mut self, record: InstanceRecord) {
        if let Some(manager) = &mut self.manager {
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

    fn answer(&mut self, id: u64, reply: Reply) {
        if let Some(manager) = &mut self.manager {
            manager.replies.insert(id, Some(reply.clone()));
            self.send(Event::Answered(id, reply));
        }
    }

    fn arrives(&mut self, id: u64, life: u64) {
        // What a dead supervisor sent may still arrive, but then nobody knows
        // its content here: its calls are gone with it, as are late ones.
        let Some(call) = self
            .calls
            .get(&id)
            .filter(|call| call.life == life && call.deadline > self.now)
        else {
            return;
        };
        let request = call.request.clone();
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
        let Some(manager) = &mut self.manager else {
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
            Request::Forget(instance) => {
                manager.records.remove(&instance);
                self.host.disk.remove(&instance);
                self.answer(id, Reply::Done);
            }
            Request::Spawn(spec) => {
                let known = manager
                    .records
                    .get(&spec.instance)
                    .map(|record| record.generation);
                if known.is_some_and(|known| known >= spec.generation) {
                    let status = Status::new(Code::FailedPrecondition, "not newer");
                    return self.answer(id, Reply::Refused(status));
                }
                let record = self.host.record(&spec, ProcessState::Spawn {});
                self.publish(record);
                let takes = self.below(30);
                self.at(
                    self.now + takes,
                    Event::Spawned {
                        incarnation,
                        id,
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
            Request::Prepare(_) | Request::Release(_) => {}
        }
    }

    fn spawned(&mut self, incarnation: u64, id: u64, spec: &SpawnSpec) {
        if self
            .manager
            .as_ref()
            .is_none_or(|manager| manager.incarnation != incarnation)
        {
            return;
        }
        let index: usize = spec.instance.service().as_str()[1..].parse().unwrap();
        let nature = self.plan.members[index].nature;
        let record = if nature == Nature::Missing {
            self.host.fail_to_start(spec)
        } else {
            let ready_at = self.now + self.below(3000);
            let unix = self.clock().unix_ns;
            let record = self.host.start(spec, unix, ready_at);
            if !self.plan.members[index].probed {
                // Without probes it is ready when it runs.
                let ready = self
                    .host
                    .was_ready
                    .entry(spec.instance.clone())
                    .or_default();
                ready.push(spec.generation);
            }
            let life = match nature {
                Nature::Crashing | Nature::BadJob => Some(ExitResult::ExitCode),
                Nature::Job => Some(ExitResult::Success),
                Nature::Good | Nature::Missing => None,
            };
            if let Some(result) = life {
                let (instance, pid) = (spec.instance.clone(), record.state.pid().unwrap());
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
            record
        };
        self.publish(record.clone());
        self.answer(id, Reply::Record(Box::new(record)));
    }

    fn stop(
        &mut self,
        incarnation: u64,
        id: u64,
        instance: &InstanceName,
        generation: Generation,
        unhealthy: bool,
    ) {
        let Some(record) = self
            .manager
            .as_ref()
            .and_then(|m| m.records.get(instance))
            .cloned()
        else {
            return self.answer(
                id,
                Reply::Refused(Status::new(Code::NotFound, "no such instance")),
            );
        };
        if record.generation > generation {
            let status = Status::new(Code::FailedPrecondition, "an older generation");
            return self.answer(id, Reply::Refused(status));
        }
        let Some(process) = self.host.processes.get_mut(instance) else {
            if record.state.is_live() {
                // Being started: the stop waits for it.
                let event = Event::Arrives(id, self.life);
                if let Some(manager) = &mut self.manager {
                    manager.replies.remove(&id);
                }
                return self.at(self.now + 5, event);
            }
            return self.answer(id, Reply::Record(Box::new(record)));
        };
        process.asked = Some(if unhealthy {
            ExitResult::Unhealthy
        } else {
            ExitResult::Stopped
        });
        let (pid, started_at) = (process.pid, process.started_at);
        let stopping = InstanceRecord {
            state: ProcessState::Stopping { pid, started_at },
            ..record
        };
        let generation = stopping.generation;
        self.publish(stopping);
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

    fn stop_done(
        &mut self,
        incarnation: u64,
        id: u64,
        instance: &InstanceName,
        generation: Generation,
    ) {
        let Some(manager) = self
            .manager
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

    fn ends(&mut self, instance: &InstanceName, pid: u32, result: ExitResult) {
        if self
            .host
            .processes
            .get(instance)
            .is_none_or(|process| process.pid != pid)
        {
            return;
        }
        let unix = self.clock().unix_ns;
        if let Some(record) = self.host.end(instance, result, unix) {
            self.publish(record);
        }
    }

    pub(crate) fn unanswered(&self) -> usize {
        self.open.len()
    }
}

fn input_is_news(input: &Input) -> bool {
    !matches!(input, Input::Tick)
}
