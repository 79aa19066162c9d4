//! What a simulation is about: services, faults, commands; made up by proptest.

use std::collections::BTreeMap;
use std::time::Duration;

use blackhole_bus_schema::config::{
    Condition, Config, Dependency, Orchestrator, Priority, RestartMode, RestartPolicy,
    ServiceConfig,
};
use blackhole_bus_schema::health::{Probe, ProbeCheck, Probes};
use blackhole_bus_schema::limits::Limits;
use blackhole_bus_schema::names::{ManagerName, ServiceName};
use blackhole_bus_schema::process::{LogSpec, StopSpec};
use proptest::prelude::*;

/// How the processes of a service behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nature {
    /// Runs until it is stopped.
    Good,
    /// Fails soon after each start.
    Crashing,
    /// Cannot be executed.
    Missing,
    /// A one-shot that succeeds.
    Job,
    /// A one-shot that fails always.
    BadJob,
}

#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) nature: Nature,
    pub(crate) replicas: u32,
    /// Which process-manager it is configured to have at first, 0 or 1.
    pub(crate) manager: usize,
    pub(crate) probed: bool,
    /// Index of an earlier service, condition by number, required.
    pub(crate) needs: Vec<(usize, u8, bool)>,
}

#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// A process-manager dies and returns after so many milliseconds.
    ManagerDies(usize, u64),
    /// The supervisor dies after so many further actions and returns after so many milliseconds.
    SupervisorDies(usize, u64),
    /// The resource-controller dies and returns.
    ControllerDies(u64),
    /// Nothing passes between supervisor and a process-manager for so many milliseconds.
    Partition(usize, u64),
    /// The bridge dies and returns.
    BridgeDies(u64),
    /// The fork server takes no spawn for so many milliseconds.
    Hang(u64),
    /// Somebody kills a process of this service.
    Kill(usize),
    /// The configuration gives this service to the other process-manager, and the
    /// supervisor is started anew with it.
    Reassign(usize),
    /// An operator's command: which, of which service.
    Command(u8, usize),
}

#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) members: Vec<Member>,
    /// When, in milliseconds, and what.
    pub(crate) faults: Vec<(u64, Fault)>,
    /// Part of messages lost and doubled, in percent.
    pub(crate) loss: u64,
    /// Longest delay of a message, in milliseconds.
    pub(crate) delay: u64,
}

/// Faults happen before this time; from then on the network is good.
pub(crate) const FAULTS_END_MS: u64 = 60_000;
/// Of each service, in milliseconds.
pub(crate) const GRACE_MS: u64 = 2000;
pub(crate) const MAX_ATTEMPTS: u32 = 3;

/// What the process-managers are called.
pub(crate) fn manager_name(of: usize) -> Option<ManagerName> {
    (of > 0).then(|| "second".parse().unwrap())
}

pub(crate) fn name(index: usize) -> ServiceName {
    format!("s{index}").parse().unwrap()
}

fn nature() -> impl Strategy<Value = Nature> {
    prop_oneof![
        6 => Just(Nature::Good),
        2 => Just(Nature::Crashing),
        1 => Just(Nature::Missing),
        2 => Just(Nature::Job),
        1 => Just(Nature::BadJob),
    ]
}

fn member() -> impl Strategy<Value = Member> {
    let needs = prop::collection::vec((0usize..6, 0u8..3, prop::bool::weighted(0.8)), 0..3);
    (nature(), 1u32..3, 0usize..2, any::<bool>(), needs).prop_map(
        |(nature, replicas, manager, probed, needs)| Member {
            nature,
            replicas,
            manager,
            probed,
            needs,
        },
    )
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        (0usize..2, 100u64..8000).prop_map(|(of, back)| Fault::ManagerDies(of, back)),
        (0usize..12, 50u64..8000).prop_map(|(after, back)| Fault::SupervisorDies(after, back)),
        (100u64..8000).prop_map(Fault::ControllerDies),
        (0usize..2, 100u64..9000).prop_map(|(of, time)| Fault::Partition(of, time)),
        (0usize..6).prop_map(Fault::Reassign),
        (100u64..8000).prop_map(Fault::BridgeDies),
        (1000u64..20_000).prop_map(Fault::Hang),
        (0usize..6).prop_map(Fault::Kill),
        (0u8..6, 0usize..6).prop_map(|(which, service)| Fault::Command(which, service)),
    ]
}

pub(crate) fn plan() -> impl Strategy<Value = Plan> {
    let faults = prop::collection::vec((0..FAULTS_END_MS, fault()), 0..14);
    (
        any::<u64>(),
        prop::collection::vec(member(), 1..6),
        faults,
        0u64..30,
        1u64..1500,
    )
        .prop_map(|(seed, members, faults, loss, delay)| Plan {
            seed,
            members,
            faults,
            loss,
            delay,
        })
}

impl Plan {
    pub(crate) fn config(&self) -> Config {
        let services = (0..self.members.len())
            .map(|index| (name(index), self.service(index)))
            .collect();
        Config {
            orchestrator: Orchestrator {
                max_processes: 50,
                restart_policy: RestartPolicy::default(),
                usage_interval: Duration::from_secs(1),
                restart_burst: 3,
                restart_refill: Duration::from_millis(500),
                cgroup_parent: None,
                process_managers: manager_name(1).into_iter().map(|name| (name, 50)).collect(),
            },
            services,
        }
    }

    /// Whether there is anything for the second process-manager to do.
    pub(crate) fn needs_second(&self) -> bool {
        self.members.iter().any(|member| member.manager > 0)
            || self
                .faults
                .iter()
                .any(|(_, fault)| matches!(fault, Fault::Reassign(_)))
    }

    /// What service `index` requires: earlier ones only, so there are no cycles.
    pub(crate) fn needs(&self, index: usize) -> BTreeMap<usize, Dependency> {
        let mut needs = BTreeMap::new();
        for (on, condition, required) in &self.members[index].needs {
            let Some(on) = (index > 0).then(|| on % index) else {
                continue;
            };
            let job = matches!(self.members[on].nature, Nature::Job | Nature::BadJob);
            let condition = match condition {
                _ if job => Condition::Completed,
                0 => Condition::Started,
                _ => Condition::Ready,
            };
            needs.insert(
                on,
                Dependency {
                    condition,
                    required: *required,
                },
            );
        }
        needs
    }

    /// Service `index` and all that require it.
    pub(crate) fn with_dependents(&self, index: usize) -> Vec<usize> {
        let mut found = vec![index];
        for later in index + 1..self.members.len() {
            let needs = self.needs(later);
            if found
                .iter()
                .any(|on| needs.get(on).is_some_and(|on| on.required))
            {
                found.push(later);
            }
        }
        found
    }

    /// Whether a restart takes its replicas one after the other.
    pub(crate) fn rolls(&self, index: usize) -> bool {
        let member = &self.members[index];
        member.replicas > 1 && !matches!(member.nature, Nature::Job | Nature::BadJob)
    }

    fn service(&self, index: usize) -> ServiceConfig {
        let member = &self.members[index];
        let job = matches!(member.nature, Nature::Job | Nature::BadJob);
        let probe = Probe {
            check: ProbeCheck::Tcp("127.0.0.1:1".into()),
            initial_delay_ms: 0,
            interval_ms: 500,
            timeout_ms: 500,
            failure_threshold: 3,
            success_threshold: 1,
        };
        let readiness = (member.probed && !job).then_some(probe);
        // What is killed or caught in faults must not run out of attempts:
        // that would be right, but say nothing about reaching what is wanted.
        let lasting = matches!(member.nature, Nature::Good | Nature::Job);
        ServiceConfig {
            command: vec!["/bin/true".into()],
            service_type: None,
            manager: manager_name(member.manager),
            priority: Priority::Normal,
            replicas: member.replicas,
            env: BTreeMap::new(),
            working_dir: None,
            user: None,
            group: None,
            open_files: None,
            oneshot: job,
            autostart: true,
            restart_mode: if job {
                RestartMode::OnFailure
            } else {
                RestartMode::Always
            },
            restart_policy: RestartPolicy {
                max_attempts: if lasting { 1000 } else { MAX_ATTEMPTS },
                max_backoff: Duration::from_secs(4),
                ..RestartPolicy::default()
            },
            probes: Probes {
                readiness,
                ..Probes::default()
            },
            limits: Limits::default(),
            oom_score_adj: 0,
            stop: StopSpec {
                signal: 15,
                grace_ms: GRACE_MS,
            },
            success_codes: vec![0],
            depends_on: self
                .needs(index)
                .into_iter()
                .map(|(on, dep)| (name(on), dep))
                .collect(),
            logs: LogSpec::default(),
            settings: Default::default(),
        }
    }
}
