//! The core, driven by hand through the situations that have a rule of their own.

mod deps;
mod drain;
mod limits;
mod manager;
mod managers;
mod ops;
mod permit;
mod repeat;
mod restart;
mod roll;
mod start;

use std::collections::BTreeMap;
use std::time::Duration;

use blackhole_bus_schema::config::{
    Condition, Config, Dependency, Orchestrator, Priority, RestartMode, RestartPolicy,
    ServiceConfig,
};
use blackhole_bus_schema::health::{Probe, ProbeCheck, ProbeKind, ProbeResult, Probes};
use blackhole_bus_schema::limits::{LimitGrant, Limits};
use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::process::{
    ExitRecord, ExitResult, ExitStatus, Failure, InstanceRecord, LogSpec, NotifyState,
    ProcessState, SpawnFailure, SpawnSpec, SpawnStep, StopSpec,
};
use blackhole_bus_schema::registry::{Drained, Registration, RegistryChanged};
use blackhole_bus_schema::reply::{Code, Status};
use blackhole_bus_schema::supervision::{InstanceStatus, Outcome, Phase, Target};

use super::*;

const T0: u64 = 1_700_000_000_000_000_000;

/// Takes one input in, and all that follows from it.
fn handle(core: &mut Core, now: Now, input: Input, cause: Option<Uuid>) -> Vec<Action> {
    let mut actions = core.take(now, input, cause);
    // What only looks at those whom an input concerns comes to what a look at all would.
    let mut twin = core.clone();
    twin.touch_all();
    assert_eq!(twin.take(now, Input::Tick, cause), []);
    actions.extend(core.settle(now));
    let mut twin = core.clone();
    twin.alarm = true;
    assert_eq!(twin.settle(now), []);
    let mut wanted = BTreeMap::new();
    for (name, service) in &core.services {
        let found = core.find_wanted(name, &mut wanted);
        assert_eq!(service.wanted, found, "{name}");
    }
    actions
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn service() -> ServiceConfig {
    ServiceConfig {
        command: vec!["/bin/true".into()],
        service_type: None,
        manager: None,
        priority: Priority::Normal,
        replicas: 1,
        env: BTreeMap::new(),
        working_dir: None,
        user: None,
        group: None,
        open_files: None,
        oneshot: false,
        autostart: true,
        restart_mode: RestartMode::Always,
        restart_policy: RestartPolicy {
            jitter_percent: 0,
            ..RestartPolicy::default()
        },
        probes: Probes::default(),
        limits: Limits::default(),
        oom_score_adj: 0,
        stop: StopSpec::default(),
        success_codes: vec![0],
        depends_on: BTreeMap::new(),
        logs: LogSpec::default(),
        settings: Default::default(),
    }
}

fn oneshot() -> ServiceConfig {
    ServiceConfig {
        oneshot: true,
        restart_mode: RestartMode::OnFailure,
        ..service()
    }
}

fn probed() -> ServiceConfig {
    let probe = Probe {
        check: ProbeCheck::Tcp("127.0.0.1:1".into()),
        initial_delay_ms: 0,
        interval_ms: 1000,
        timeout_ms: 1000,
        failure_threshold: 3,
        success_threshold: 1,
    };
    let probes = Probes {
        readiness: Some(probe.clone()),
        liveness: Some(probe),
        ..Probes::default()
    };
    ServiceConfig {
        probes,
        ..service()
    }
}

fn needs(mut service: ServiceConfig, on: &[(&str, Condition)]) -> ServiceConfig {
    for (name, condition) in on {
        let dependency = Dependency {
            condition: *condition,
            required: true,
        };
        service.depends_on.insert(name.parse().unwrap(), dependency);
    }
    service
}

fn prefers(mut service: ServiceConfig, on: &str, condition: Condition) -> ServiceConfig {
    service.depends_on.insert(
        on.parse().unwrap(),
        Dependency {
            condition,
            required: false,
        },
    );
    service
}

fn config(services: &[(&str, ServiceConfig)]) -> Config {
    Config {
        orchestrator: Orchestrator {
            max_processes: 50,
            restart_policy: RestartPolicy::default(),
            usage_interval: secs(1),
            restart_burst: 100,
            restart_refill: secs(1),
            cgroup_parent: None,
            process_managers: services
                .iter()
                .filter_map(|(_, service)| Some((service.manager.clone()?, 50)))
                .collect(),
        },
        services: services
            .iter()
            .map(|(name, s)| (name.parse().unwrap(), s.clone()))
            .collect(),
    }
}

/// Where an action goes, in words; nothing for the one without a name.
fn at(manager: &ManagerId) -> String {
    manager
        .as_ref()
        .map_or_else(String::new, |name| format!(" at {name}"))
}

/// The core with a clock, and all that came out of it.
struct Bench {
    core: Core,
    now: Now,
    /// What was written, as a database would have it.
    disk: Restored,
    /// What was sent to the two other components and not taken yet.
    sent: Vec<Action>,
    answers: Vec<(Ticket, Result<Outcome, Status>)>,
    /// `<instance> <phase>: <why>`.
    said: Vec<String>,
    /// Permits granted and taken back after a spawn: `a.1 #1: #2`, `a.1 #1: none`.
    permits: Vec<String>,
    tickets: u64,
}

impl Bench {
    fn bare(config: Option<&Config>, restored: Restored) -> Self {
        let now = Now {
            mono: secs(1_000_000),
            unix_ns: T0,
        };
        Self::at(config, restored, now)
    }

    fn at(config: Option<&Config>, disk: Restored, now: Now) -> Self {
        let core = Core::new(config, &disk, Random::new(1), now);
        let (sent, answers, said) = (Vec::new(), Vec::new(), Vec::new());
        let mut bench = Self {
            core,
            now,
            disk,
            sent,
            answers,
            said,
            permits: Vec::new(),
            tickets: 0,
        };
        bench.input(Input::Tick);
        bench
    }

    /// With both components up, nothing running, and every limit granted at once.
    fn new(services: &[(&str, ServiceConfig)]) -> Self {
        let mut bench = Self::bare(Some(&config(services)), Restored::default());
        bench.input(Input::ControllerUp);
        bench.sync(&[]);
        bench.grant_all();
        bench
    }

    /// The supervisor dies; another begins with what is on the disk.
    fn reborn(&mut self, services: Option<&[(&str, ServiceConfig)]>) {
        let config = services.map(config);
        *self = Self::at(config.as_ref(), self.disk.clone(), self.now);
    }

    fn sync(&mut self, records: &[InstanceRecord]) {
        self.input(Input::ManagerUp(None));
        self.input(Input::ManagerSnapshot(None, records.to_vec()));
    }

    fn input(&mut self, input: Input) {
        for action in handle(&mut self.core, self.now, input, None) {
            match action {
                Action::Persist { change, .. } => self.disk.apply(change),
                Action::Publish { status, why, .. } => {
                    self.said.push(format!(
                        "{} {}: {why}",
                        status.instance,
                        status.phase.word()
                    ));
                }
                Action::Answer { ticket, result } => self.answers.push((ticket, result)),
                Action::Permit {
                    instance,
                    generation,
                    permit,
                    ..
                } => {
                    let next = permit.map(|permit| format!("#{}", permit.generation));
                    let next = next.unwrap_or_else(|| "none".to_owned());
                    self.permits
                        .push(format!("{instance} #{generation}: {next}"));
                }
                action => {
                    if let Action::Spawn(_, spec) = &action {
                        let row = self
                            .disk
                            .instances
                            .iter()
                            .find(|row| row.instance == spec.instance);
                        let saved = row.map(|row| row.generation);
                        assert_eq!(saved, Some(spec.generation), "persist first, then send");
                    }
                    self.sent.push(action);
                }
            }
        }
    }

    /// Lets time pass, waking the core whenever it asks for it.
    fn pass(&mut self, time: Duration) {
        let end = self.now.after(time);
        while let Some(at) = self.core.next_deadline()
            && at <= end.mono
        {
            self.now = self.now.after(at.saturating_sub(self.now.mono));
            self.input(Input::Tick);
        }
        self.now = end;
        self.input(Input::Tick);
    }

    fn grant_all(&mut self) {
        while let Some(index) = self
            .sent
            .iter()
            .position(|a| matches!(a, Action::Prepare { .. }))
        {
            if let Action::Prepare { instance, .. } = self.sent.remove(index) {
                let result = Ok(Box::new(LimitGrant::default()));
                self.input(Input::PrepareReply { instance, result });
            }
        }
    }

    /// Takes what was sent, in words: `spawn a.1 #1`. Limits are granted and
    /// taken back at once and not told of.
    fn take(&mut self) -> Vec<String> {
        self.grant_all();
        let mut taken = Vec::new();
        while !self.sent.is_empty() {
            let action = self.sent.remove(0);
            taken.push(match action {
                Action::Spawn(manager, spec) => {
                    format!(
                        "spawn {} #{}{}",
                        spec.instance,
                        spec.generation,
                        at(&manager)
                    )
                }
                Action::Stop {
                    manager,
                    instance,
                    generation,
                    unhealthy: false,
                    ..
                } => {
                    format!("stop {instance} #{generation}{}", at(&manager))
                }
                Action::Stop {
                    instance,
                    generation,
                    ..
                } => format!("unhealthy {instance} #{generation}"),
                Action::Drain {
                    instance,
                    generation,
                    ..
                } => format!("drain {instance} #{generation}"),
                Action::Forget { manager, instance } => {
                    format!("forget {instance}{}", at(&manager))
                }
                Action::Release { instance } => {
                    self.input(Input::ReleaseReply {
                        instance,
                        result: Ok(()),
                    });
                    self.grant_all();
                    continue;
                }
                other => unreachable!("{other:?}"),
            });
        }
        taken
    }

    fn spec(&mut self, instance: &str) -> SpawnSpec {
        self.grant_all();
        let found = self.sent.iter().rev().find_map(|action| match action {
            Action::Spawn(_, spec) if spec.instance.to_string() == instance => {
                Some((**spec).clone())
            }
            _ => None,
        });
        found.unwrap_or_else(|| panic!("no spawn of {instance} in {:?}", self.sent))
    }

    fn status(&self, instance: &str) -> InstanceStatus {
        self.core.status(&instance.parse().unwrap()).unwrap()
    }

    fn phase(&self, instance: &str) -> String {
        match self.status(instance).phase {
            Phase::WaitingForDependency { on } => format!("waiting for {}", on.join(", ")),
            Phase::WaitingForComponent { component } => format!("waiting for {component}"),
            Phase::Refused { reason } => format!("refused: {reason}"),
            phase => phase.word().to_owned(),
        }
    }

    fn generation(&self, instance: &str) -> u64 {
        self.status(instance).generation.0
    }

    fn tell(&mut self, record: InstanceRecord) {
        self.input(Input::ProcessChanged(None, Box::new(record)));
        self.grant_all();
    }

    /// Its latest spawn runs.
    fn runs(&mut self, instance: &str) {
        let record = running(instance, self.generation(instance), self.now.unix_ns);
        let generation = record.generation;
        let instance = record.instance.clone();
        let result = Ok(Box::new(record.clone()));
        self.tell(record);
        self.input(Input::SpawnReply {
            manager: None,
            instance,
            generation,
            result,
        });
    }

    /// Its latest spawn ends, with this verdict.
    fn ends(&mut self, instance: &str, result: ExitResult) {
        let generation = self.generation(instance);
        let record = ended(instance, generation, result, self.now.unix_ns);
        self.tell(record);
    }

    /// A stop that was sent is carried out and answered.
    fn stopped(&mut self, name: &str) {
        let instance: InstanceName = name.parse().unwrap();
        let record = self.core.instances[&instance].record.clone().unwrap();
        let record = ended(
            name,
            record.generation.0,
            ExitResult::Stopped,
            self.now.unix_ns,
        );
        let generation = record.generation;
        self.tell(record.clone());
        let result = Ok(Box::new(record));
        self.input(Input::StopReply {
            manager: None,
            instance,
            generation,
            result,
        });
    }

    fn probe(&mut self, name: &str, probe: ProbeKind, error: Option<&str>, in_a_row: u32) {
        let result = ProbeResult {
            instance: name.parse().unwrap(),
            generation: Generation(self.generation(name)),
            probe,
            error: error.map(str::to_owned),
            in_a_row,
            took_us: 100,
        };
        self.input(Input::Probe(result));
    }

    fn ready(&mut self, name: &str) {
        self.probe(name, ProbeKind::Readiness, None, 1);
    }

    /// It answers calls.
    fn registered(&mut self, name: &str) {
        let (instance, generation) = (name.parse().unwrap(), Generation(self.generation(name)));
        let registration = Registration {
            instance,
            generation,
            methods: Vec::new(),
            endpoint: None,
            outstanding: 1,
            draining: false,
        };
        let changed = RegistryChanged {
            instance: name.parse().unwrap(),
            registration: Some(registration),
        };
        self.input(Input::RegistryChanged(Box::new(changed)));
    }

    /// A drain that was sent is answered.
    fn drained(&mut self, name: &str, generation: u64) {
        self.input(Input::DrainReply {
            instance: name.parse().unwrap(),
            generation: Generation(generation),
            result: Ok(Drained {
                registered: true,
                outstanding: 0,
            }),
        });
    }

    fn command(&mut self, command: Operator) -> Ticket {
        self.command_within(command, secs(30))
    }

    fn command_within(&mut self, command: Operator, time: Duration) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let deadline = self.now.mono + time;
        self.input(Input::Command {
            ticket,
            deadline,
            command,
        });
        self.grant_all();
        ticket
    }

    /// The answer to a command, which may come once only.
    fn answer(&mut self, ticket: Ticket) -> Option<Result<Outcome, (Code, String)>> {
        let mut found = self.answers.iter().filter(|(other, _)| *other == ticket);
        let answer = found.next().map(|(_, result)| result.clone());
        assert!(found.next().is_none(), "answered twice");
        answer.map(|result| result.map_err(|status| (status.code, status.message)))
    }

    fn refused(&mut self, ticket: Ticket) -> (Code, String) {
        match self.answer(ticket) {
            Some(Err(refusal)) => refusal,
            other => panic!("not refused: {other:?}"),
        }
    }
}

fn target(services: &[&str]) -> Target {
    Target::Services(services.iter().map(|name| name.parse().unwrap()).collect())
}

fn start(services: &[&str]) -> Operator {
    Operator::Start(target(services))
}

fn stop(services: &[&str]) -> Operator {
    Operator::Stop {
        target: target(services),
        transient: false,
    }
}

fn record(instance: &str, generation: u64, state: ProcessState) -> InstanceRecord {
    InstanceRecord {
        instance: instance.parse().unwrap(),
        generation: Generation(generation),
        state,
        notify: NotifyState::default(),
        steps: Vec::new(),
        grant: None,
        adopted: false,
        lost_log_lines: 0,
        previous_exit: None,
        restarts: 0,
    }
}

fn running(instance: &str, generation: u64, started_at: u64) -> InstanceRecord {
    record(
        instance,
        generation,
        ProcessState::Running {
            pid: 1000,
            started_at,
        },
    )
}

fn ended(instance: &str, generation: u64, result: ExitResult, ended_at: u64) -> InstanceRecord {
    let exit = ExitRecord {
        generation: Generation(generation),
        pid: 1000,
        status: ExitStatus::Exited {
            code: i32::from(result.is_failure()),
        },
        result,
        started_at: ended_at,
        ended_at,
        killed_leftovers: 0,
    };
    let state = if result.is_failure() {
        ProcessState::Failed {
            failure: Failure::Exit { exit },
        }
    } else {
        ProcessState::Terminated { exit: Some(exit) }
    };
    record(instance, generation, state)
}

fn not_started(instance: &str, generation: u64) -> InstanceRecord {
    let failure = SpawnFailure {
        step: SpawnStep::Exec,
        operation: "exec /usr/bin/nothing".into(),
        errno: 2,
        hint: "install it".into(),
    };
    record(
        instance,
        generation,
        ProcessState::Failed {
            failure: Failure::Spawn { failure },
        },
    )
}
