//! Time, and everything that happens in it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use blackhole_bus_schema::config::Config;
use blackhole_bus_schema::health::ProbeResult;
use blackhole_bus_schema::names::{Generation, InstanceName, ServiceName};
use blackhole_bus_schema::process::{ExitResult, InstanceRecord, SpawnSpec};
use blackhole_bus_schema::reply::Status;
use blackhole_bus_schema::supervision::{Phase, Target};
use blackhole_supervisor::core::{Core, Input, Now, Operator, Random, Restored, Ticket};
use uuid::Uuid;

use super::host::{Host, Manager};
use super::plan::{Fault, Plan, manager_name, name};

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
    Permit {
        instance: InstanceName,
        generation: Generation,
        permit: Option<Generation>,
    },
    Forget(InstanceName),
    List,
    Drain {
        instance: InstanceName,
        generation: Generation,
        within: u64,
    },
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
pub(crate) enum Event {
    /// A request reaches its component.
    Arrives(u64),
    /// A reply reaches the supervisor.
    Answered(u64, Reply),
    Retransmit(u64),
    TimesOut(u64),
    Change {
        incarnation: u64,
        seq: u64,
        record: Box<InstanceRecord>,
    },
    /// Of this process-manager.
    Probe(usize, ProbeResult),
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
        orphan: bool,
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
    /// A process registers with the bridge.
    Registers(InstanceName),
    BridgeMissed,
    BridgeReturns,
    ManagerReturns(usize),
    SupervisorReturns,
    ControllerReturns,
}

pub(crate) struct Call {
    pub(crate) request: Request,
    /// The process-manager that it goes to, where it goes to one.
    pub(crate) to: usize,
    pub(crate) life: u64,
    pub(crate) deadline: u64,
    /// Its sender lives and waits for the answer.
    pub(crate) open: bool,
}

/// A command of an operator that has not been answered.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) id: Uuid,
    pub(crate) command: Operator,
}

/// When a drain was begun, and what must be as it was for its stop to follow in time.
pub(crate) struct Begun {
    pub(crate) at: u64,
    pub(crate) links: u64,
    pub(crate) life: u64,
}

/// The supervisor's link to the manager.
#[derive(Default)]
pub(crate) struct Link {
    pub(crate) up: bool,
    pub(crate) incarnation: u64,
    pub(crate) heard: u64,
    pub(crate) seq: u64,
    /// The request for the whole state that is waited for; changes meanwhile
    /// are kept, answers to earlier requests are void.
    pub(crate) syncing: Option<u64>,
    pub(crate) kept: BTreeMap<u64, InstanceRecord>,
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) config: Config,
    pub(crate) now: u64,
    pub(crate) queue: BinaryHeap<Reverse<(u64, u64)>>,
    pub(crate) events: BTreeMap<u64, Event>,
    pub(crate) counter: u64,
    pub(crate) random: Random,
    pub(crate) host: Host,
    pub(crate) manager: [Option<Manager>; 2],
    /// Incarnations so far.
    pub(crate) managers: u64,
    pub(crate) controller: bool,
    pub(crate) core: Option<Core>,
    pub(crate) disk: Restored,
    pub(crate) life: u64,
    pub(crate) link: [Link; 2],
    pub(crate) calls: BTreeMap<u64, Call>,
    pub(crate) partition_until: [u64; 2],
    pub(crate) trace: bool,
    /// The supervisor dies after so many more actions.
    pub(crate) die_after: Option<(usize, u64)>,
    /// Inputs that a supervisor was told.
    pub(crate) inputs_told: u64,
    pub(crate) tickets: u64,
    pub(crate) open: BTreeMap<Ticket, Asked>,
    pub(crate) answered: u64,
    /// Commands that may have started an instance anew.
    pub(crate) commands: u32,
    /// Services given to another process-manager.
    pub(crate) moves: u32,
    pub(crate) kills: BTreeSet<InstanceName>,
    pub(crate) bridge: bool,
    pub(crate) registered: BTreeMap<InstanceName, Generation>,
    /// Spawns wait for the fork server until then.
    pub(crate) hang_until: u64,
    /// How often the link to the manager came and went.
    pub(crate) links: u64,
    pub(crate) drains: BTreeMap<(InstanceName, Generation), Begun>,
    /// Those that a stop has followed.
    pub(crate) drained: BTreeSet<(InstanceName, Generation)>,
    /// Spawns whose end has been begun.
    pub(crate) begun: BTreeSet<(InstanceName, Generation)>,
    /// Services of which a command took all replicas at once.
    pub(crate) whole: BTreeSet<ServiceName>,
    /// What the supervisor last said of each instance.
    pub(crate) believed: BTreeMap<InstanceName, Phase>,
    /// Up to which spawn an earlier life of it had decided to stop.
    pub(crate) committed: BTreeMap<InstanceName, Generation>,
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
            manager: [None, None],
            managers: 0,
            controller: true,
            core: None,
            disk: Restored::default(),
            life: 0,
            link: [Link::default(), Link::default()],
            calls: BTreeMap::new(),
            partition_until: [0; 2],
            trace: std::env::var_os("SIM_TRACE").is_some(),
            die_after: None,
            inputs_told: 0,
            tickets: 0,
            open: BTreeMap::new(),
            answered: 0,
            commands: 0,
            moves: 0,
            kills: BTreeSet::new(),
            bridge: true,
            registered: BTreeMap::new(),
            hang_until: 0,
            links: 0,
            drains: BTreeMap::new(),
            drained: BTreeSet::new(),
            begun: BTreeSet::new(),
            whole: BTreeSet::new(),
            believed: BTreeMap::new(),
            committed: BTreeMap::new(),
        };
        for (at, fault) in &plan.faults {
            world.at(*at, Event::Fault(fault.clone()));
        }
        let first = world.below(4000);
        world.at(first, Event::ManagerReturns(0));
        let first = world.below(4000);
        world.at(first, Event::SupervisorReturns);
        if plan.needs_second() {
            let first = world.below(4000);
            world.at(first, Event::ManagerReturns(1));
        }
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
                let due = self.core.as_ref().and_then(Core::next_deadline);
                let now = self.clock().mono;
                assert!(due.is_none_or(|due| due > now), "due for ever: {due:?}");
            }
        }
    }

    pub(crate) fn at(&mut self, at: u64, event: Event) {
        self.counter += 1;
        self.events.insert(self.counter, event);
        self.queue.push(Reverse((at.max(self.now), self.counter)));
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.random.number() % limit.max(1)
    }

    pub(crate) fn clock(&self) -> Now {
        Now {
            mono: EPOCH_MONO + Duration::from_millis(self.now),
            unix_ns: EPOCH_UNIX + self.now * MS,
        }
    }

    pub(crate) fn happens(&mut self, event: Event) {
        if self.trace {
            eprintln!("{:>7} {event:?}", self.now);
        }
        match event {
            Event::Arrives(id) => self.arrives(id),
            Event::Answered(id, reply) => self.answered_call(id, reply),
            Event::Retransmit(id) => self.transmit(id),
            Event::TimesOut(id) => self.times_out(id),
            Event::Change {
                incarnation,
                seq,
                record,
            } => self.change_arrives(incarnation, seq, *record),
            Event::Probe(of, result) => {
                if self.link[of].up {
                    self.tell(Input::Probe(result));
                }
            }
            Event::Heartbeat { incarnation, seq } => self.heartbeat_arrives(incarnation, seq),
            Event::Beats { incarnation } => self.beats(incarnation),
            Event::Spawned {
                incarnation,
                id,
                orphan,
                spec,
            } => self.spawned(incarnation, id, orphan, &spec),
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
            Event::Registers(instance) => self.registers(&instance),
            Event::BridgeMissed => self.tell(Input::BridgeDown),
            Event::BridgeReturns => self.bridge_returns(),
            Event::ManagerReturns(of) => self.manager_returns(of),
            Event::SupervisorReturns => self.supervisor_returns(),
            Event::ControllerReturns => {
                self.controller = true;
                self.tell(Input::ControllerUp);
            }
        }
    }

    pub(crate) fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::ManagerDies(of, back) => {
                if self.manager[of].take().is_some() {
                    self.at(self.now + back, Event::ManagerReturns(of));
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
            Fault::BridgeDies(back) => self.bridge_dies(back),
            Fault::Hang(time) => self.hang_until = self.hang_until.max(self.now + time),
            Fault::Partition(of, time) => self.partition_until[of] = self.now + time,
            Fault::Reassign(index) => {
                let service = name(index % self.plan.members.len());
                if let Some(service) = self.config.services.get_mut(&service) {
                    let of = usize::from(service.manager.is_none());
                    service.manager = manager_name(of);
                }
                // A spawn that is on its way to the one before is called back: it may
                // just have begun.
                self.moves += 1;
                if self.core.is_some() {
                    self.supervisor_dies(100);
                }
            }
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
            Fault::Command(which, index) => self.operator(which, index % self.plan.members.len()),
        }
    }

    fn operator(&mut self, which: u8, index: usize) {
        let target = Target::Services(vec![name(index)]);
        let command = match which {
            0 | 1 => Operator::Start(target),
            2 => Operator::Stop {
                target,
                transient: false,
            },
            3 | 4 => Operator::Restart(target),
            _ => Operator::Reset(target),
        };
        if self.core.is_none() {
            return;
        }
        let rolls = self.plan.rolls(index) && matches!(command, Operator::Restart(_));
        if matches!(command, Operator::Stop { .. } | Operator::Restart(_)) && !rolls {
            let whole = self.plan.with_dependents(index);
            self.whole.extend(whole.into_iter().map(name));
        }
        self.commands += 1;
        let id = Uuid::from_u128(u128::from(self.commands));
        self.ask(Asked { id, command });
    }

    pub(crate) fn unanswered(&self) -> usize {
        self.open.len()
    }
}
