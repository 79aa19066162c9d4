//! The simulated host: processes, which nothing but their own end or a stop
//! ends, and the process-manager with its records.
//!
//! The real process-manager refuses a spawn while a process lives. This one
//! looks at nothing but the generation, so that a second live process would be
//! the supervisor's fault and is seen.

use std::collections::BTreeMap;

use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::process::{
    ExitRecord, ExitResult, ExitStatus, Failure, InstanceRecord, NotifyState, ProcessState,
    SpawnFailure, SpawnSpec, SpawnStep,
};

/// A live process.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) generation: Generation,
    /// The manager that started it.
    pub(crate) of: usize,
    pub(crate) pid: u32,
    pub(crate) started_at: u64,
    pub(crate) ready_at: u64,
    /// What its end will be called when somebody stops it.
    pub(crate) asked: Option<ExitResult>,
    /// Started by a request whose sender was dead when it arrived.
    pub(crate) orphan: bool,
    /// Started by its shim.
    pub(crate) by_permit: bool,
    /// The generation that its shim may start by itself when it fails.
    pub(crate) permit: Option<Generation>,
}

/// What survives the process-manager: processes, and records on the disk.
#[derive(Debug, Default)]
pub(crate) struct Host {
    pub(crate) processes: BTreeMap<InstanceName, Process>,
    pub(crate) disk: BTreeMap<InstanceName, InstanceRecord>,
    /// Whose each record is.
    pub(crate) owner: BTreeMap<InstanceName, usize>,
    next_pid: u32,
    /// Permits used.
    pub(crate) permits_used: u32,
    /// All starts (and failures to start) of an instance.
    pub(crate) starts: BTreeMap<InstanceName, u32>,
    /// Spawns that were ready at some time.
    pub(crate) was_ready: BTreeMap<InstanceName, Vec<Generation>>,
    /// One-shots that were through at some time.
    pub(crate) was_through: Vec<InstanceName>,
}

impl Host {
    pub(crate) fn record(&self, spec: &SpawnSpec, state: ProcessState) -> InstanceRecord {
        InstanceRecord {
            instance: spec.instance.clone(),
            generation: spec.generation,
            state,
            notify: NotifyState::default(),
            steps: Vec::new(),
            grant: spec.grant.clone(),
            adopted: false,
            lost_log_lines: 0,
            previous_exit: None,
            restarts: spec.restarts,
        }
    }

    /// Starts a process; panics when one lives.
    pub(crate) fn start(
        &mut self,
        spec: &SpawnSpec,
        unix: u64,
        ready_at: u64,
        orphan: bool,
        of: usize,
    ) -> InstanceRecord {
        self.next_pid += 1;
        *self.starts.entry(spec.instance.clone()).or_default() += 1;
        let process = Process {
            generation: spec.generation,
            of,
            pid: self.next_pid,
            started_at: unix,
            ready_at,
            asked: None,
            orphan,
            by_permit: false,
            permit: spec.permit.as_ref().map(|permit| permit.generation),
        };
        let before = self.processes.insert(spec.instance.clone(), process);
        assert!(
            before.is_none(),
            "two live processes of {}: {before:?} and {spec:?}",
            spec.instance
        );
        let state = ProcessState::Running {
            pid: self.next_pid,
            started_at: unix,
        };
        let record = self.record(spec, state);
        self.disk.insert(spec.instance.clone(), record.clone());
        self.owner.insert(spec.instance.clone(), of);
        record
    }

    /// A program that cannot be executed.
    pub(crate) fn fail_to_start(&mut self, spec: &SpawnSpec, of: usize) -> InstanceRecord {
        *self.starts.entry(spec.instance.clone()).or_default() += 1;
        let record = self.refuse(spec);
        self.disk.insert(spec.instance.clone(), record.clone());
        self.owner.insert(spec.instance.clone(), of);
        record
    }

    /// A start that leads to nothing, and leaves nothing.
    pub(crate) fn refuse(&self, spec: &SpawnSpec) -> InstanceRecord {
        let failure = SpawnFailure {
            step: SpawnStep::Exec,
            operation: "exec /nothing".into(),
            errno: 2,
            hint: String::new(),
        };
        let state = ProcessState::Failed {
            failure: Failure::Spawn { failure },
        };
        self.record(spec, state)
    }

    /// What the shim does with a permit, whoever lives beside it: its service has
    /// just ended with `ended`; what is on the disk afterwards.
    pub(crate) fn succeed(
        &mut self,
        ended: &InstanceRecord,
        generation: Generation,
        unix: u64,
        ready_at: u64,
    ) -> Option<InstanceRecord> {
        self.next_pid += 1;
        self.permits_used += 1;
        let name = &ended.instance;
        *self.starts.entry(name.clone()).or_default() += 1;
        let process = Process {
            generation,
            of: self.owner.get(name).copied().unwrap_or_default(),
            pid: self.next_pid,
            started_at: unix,
            ready_at,
            asked: None,
            orphan: false,
            by_permit: true,
            permit: None,
        };
        let before = self.processes.insert(name.clone(), process);
        assert!(before.is_none(), "two live processes of {name}: {before:?}");
        let record = self.disk.get_mut(name)?;
        record.generation = generation;
        record.restarts += 1;
        record.previous_exit = ended.state.exit().cloned();
        record.state = ProcessState::Running {
            pid: self.next_pid,
            started_at: unix,
        };
        Some(record.clone())
    }

    /// Ends a process; what is on the disk afterwards.
    pub(crate) fn end(
        &mut self,
        instance: &InstanceName,
        result: ExitResult,
        unix: u64,
    ) -> Option<InstanceRecord> {
        let process = self.processes.remove(instance)?;
        let record = self.disk.get_mut(instance)?;
        let result = process.asked.unwrap_or(result);
        let exit = ExitRecord {
            generation: process.generation,
            pid: process.pid,
            status: ExitStatus::Exited {
                code: i32::from(result.is_failure()),
            },
            result,
            started_at: process.started_at,
            ended_at: unix,
            killed_leftovers: 0,
        };
        if result == ExitResult::Success {
            self.was_through.push(instance.clone());
        }
        record.state = if result.is_failure() {
            ProcessState::Failed {
                failure: Failure::Exit { exit },
            }
        } else {
            ProcessState::Terminated { exit: Some(exit) }
        };
        Some(record.clone())
    }
}

/// A running process-manager.
#[derive(Debug)]
pub(crate) struct Manager {
    pub(crate) incarnation: u64,
    pub(crate) records: BTreeMap<InstanceName, InstanceRecord>,
    /// Number of the last event.
    pub(crate) seq: u64,
    /// Requests by id: `None` while one is being worked on.
    pub(crate) replies: BTreeMap<u64, Option<super::world::Reply>>,
    /// Highest generation of an instance that was stopped before it came.
    pub(crate) stopped: BTreeMap<InstanceName, Generation>,
    /// Stops that wait for a spawn to lead to a process.
    pub(crate) stops: BTreeMap<InstanceName, (u64, bool)>,
    /// Spawns that were told to be ready.
    pub(crate) told_ready: BTreeMap<InstanceName, Generation>,
}

impl Manager {
    /// Starts and adopts.
    pub(crate) fn adopt(incarnation: u64, host: &Host, of: usize) -> Self {
        let mut records = host.disk.clone();
        records.retain(|instance, _| host.owner.get(instance) == Some(&of));
        for record in records.values_mut() {
            record.adopted = record.state.is_live();
        }
        Self {
            incarnation,
            records,
            seq: 0,
            replies: BTreeMap::new(),
            stopped: BTreeMap::new(),
            stops: BTreeMap::new(),
            told_ready: BTreeMap::new(),
        }
    }
}
