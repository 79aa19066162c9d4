//! The configuration after checking: every default filled in, every duration a
//! [`Duration`], every limit in its base unit. This is what the daemons use.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::listen::Listen;
use crate::health::Probes;
use crate::limits::{LimitGrant, Limits};
use crate::names::{Generation, InstanceName, ManagerName, ServiceName};
use crate::process::{LogSpec, ProcessSettings, SpawnSpec, StopSpec};

/// All that a file says: what is to run, and what only the edges need to know.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Document {
    /// What the deciding parts work with.
    pub config: Config,
    /// `runtime.orchestrator.listen`: where the parts listen over TCP.
    pub listen: Listen,
    /// `description` of the services that have one.
    pub descriptions: BTreeMap<ServiceName, String>,
}

/// A configuration, as it is decided and acted upon. The default one has no services.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Config {
    /// `runtime.orchestrator`.
    pub orchestrator: Orchestrator,
    /// `services`, with every default and profile applied. Free of cycles.
    pub services: BTreeMap<ServiceName, ServiceConfig>,
}

impl Config {
    /// The instances of all services, in the order of their names and indices.
    pub fn instances(&self) -> impl Iterator<Item = InstanceName> {
        self.services.iter().flat_map(|(name, service)| {
            (1..=service.replicas).filter_map(|index| InstanceName::new(name.clone(), index))
        })
    }
}

/// Settings of the orchestrator itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Orchestrator {
    /// Most processes (instances) of one process-manager that live at one time; more are refused by it.
    pub max_processes: u32,
    /// Restart policy of services that have none of their own.
    pub restart_policy: RestartPolicy,
    /// Interval at which usage is sampled.
    pub usage_interval: Duration,
    /// Host-wide restarts: at most this many at once …
    pub restart_burst: u32,
    /// … and then one in this time.
    pub restart_refill: Duration,
    /// Parent cgroup to work below, relative to the root of each hierarchy;
    /// `None` is the daemon's own cgroup.
    pub cgroup_parent: Option<String>,
    /// The named process-managers, besides the one without a name, and the most
    /// processes of each.
    pub process_managers: BTreeMap<ManagerName, u32>,
}

impl Orchestrator {
    /// The process-managers, the one without a name first.
    pub fn managers(&self) -> impl Iterator<Item = Option<ManagerName>> {
        let named = self.process_managers.keys().cloned().map(Some);
        std::iter::once(None).chain(named)
    }

    /// Most processes of one of them; a name that is not configured gets what
    /// the one without a name has.
    pub fn max_processes_of(&self, manager: Option<&ManagerName>) -> u32 {
        manager
            .and_then(|name| self.process_managers.get(name))
            .copied()
            .unwrap_or(self.max_processes)
    }
}

impl Default for Orchestrator {
    fn default() -> Self {
        Self {
            max_processes: 1_000,
            restart_policy: RestartPolicy::default(),
            usage_interval: Duration::from_secs(1),
            restart_burst: 32,
            restart_refill: Duration::from_millis(250),
            cgroup_parent: None,
            process_managers: BTreeMap::new(),
        }
    }
}

/// When a failed service is started again.
#[derive(Debug, Clone, PartialEq)]
pub struct RestartPolicy {
    /// Restarts in a row that may fail before the circuit opens.
    pub max_attempts: u32,
    /// Wait before the second restart; the first is immediate.
    pub initial_backoff: Duration,
    /// Factor between one wait and the next.
    pub backoff_multiplier: f64,
    /// Longest wait.
    pub max_backoff: Duration,
    /// Waits vary by this part of themselves in both directions, in percent.
    pub jitter_percent: u8,
    /// Running stably for this long forgets earlier failures.
    pub reset_after: Duration,
    /// An open circuit allows one trial after this time; `None`: only an operator closes it.
    pub cool_down: Option<Duration>,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            initial_backoff: Duration::from_secs(1),
            backoff_multiplier: 2.0,
            max_backoff: Duration::from_secs(60),
            jitter_percent: 10,
            reset_after: Duration::from_secs(60),
            cool_down: None,
        }
    }
}

/// Which ends are followed by a restart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartMode {
    /// Every end that nobody asked for.
    #[default]
    Always,
    /// Ends that are failures.
    OnFailure,
    /// None.
    Never,
}

/// How important a service is: weights and OOM score follow from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Kept alive before all others.
    Critical,
    /// The usual.
    #[default]
    Normal,
    /// Gets what is left, is the first to go.
    Background,
}

/// What has to hold of a dependency before its dependent starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// Its process runs.
    Started,
    /// It is ready (without probes: it runs).
    Ready,
    /// It is through: it exited with success.
    Completed,
}

/// One dependency of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dependency {
    /// What has to hold.
    pub condition: Condition,
    /// Soft dependencies only order the start: when one has failed or is down, it is not waited for.
    pub required: bool,
}

/// One service, with every default filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceConfig {
    /// Program and arguments, at least one.
    pub command: Vec<String>,
    /// `type`: identity, storage, networking, … ; selects a resource profile.
    pub service_type: Option<String>,
    /// The process-manager that starts it; `None`: the one without a name.
    pub manager: Option<ManagerName>,
    /// See [`Priority`].
    pub priority: Priority,
    /// Number of instances; 0 is allowed.
    pub replicas: u32,
    /// Environment; values may hold `${env:NAME}` and `${file:PATH}`, resolved at the spawn.
    pub env: BTreeMap<String, String>,
    /// Working directory.
    pub working_dir: Option<String>,
    /// User to run as.
    pub user: Option<String>,
    /// Group to run as.
    pub group: Option<String>,
    /// `RLIMIT_NOFILE`.
    pub open_files: Option<u64>,
    /// A one-shot is meant to exit: success is its goal, and it is not restarted after it.
    pub oneshot: bool,
    /// Whether it is started with the system; an operator's word outranks it.
    pub autostart: bool,
    /// Which ends are followed by a restart.
    pub restart_mode: RestartMode,
    /// How.
    pub restart_policy: RestartPolicy,
    /// Its probes.
    pub probes: Probes,
    /// Its effective limits: own, over its type's profile, over the defaults; weights by priority.
    pub limits: Limits,
    /// OOM score adjustment, from its priority.
    pub oom_score_adj: i32,
    /// How it is stopped.
    pub stop: StopSpec,
    /// Exit codes that count as success.
    pub success_codes: Vec<i32>,
    /// What it needs before it starts.
    pub depends_on: BTreeMap<ServiceName, Dependency>,
    /// Its log.
    pub logs: LogSpec,
    /// What its process is made with besides: `groups`, `umask`, `nice`, `rlimits` …
    pub settings: ProcessSettings,
}

impl ServiceConfig {
    /// What to start an instance of the service with. No immediate restart is
    /// permitted by it. `restarts` is the number of restarts so far.
    pub fn spawn_spec(
        &self,
        instance: InstanceName,
        generation: Generation,
        grant: Option<LimitGrant>,
        restarts: u32,
    ) -> SpawnSpec {
        SpawnSpec {
            instance,
            generation,
            command: self.command.clone(),
            env: self.env.clone(),
            working_dir: self.working_dir.clone(),
            user: self.user.clone(),
            group: self.group.clone(),
            open_files: self.open_files,
            stop: self.stop.clone(),
            success_codes: self.success_codes.clone(),
            probes: self.probes.clone(),
            logs: self.logs.clone(),
            grant,
            permit: None,
            restarts,
            settings: self.settings.clone(),
        }
    }
}
