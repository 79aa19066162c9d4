//! `runtime.orchestrator`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::error::{Place, Problem};
use super::limits::{self, Settings};
use super::listen::{self, Listen};
use super::managers;
use super::model::{Orchestrator, RestartPolicy};
use super::section::{Field, Section};
use super::tree::Value;
use crate::names::ManagerName;

pub(super) const POLICY_KEYS: [&str; 7] = [
    "max_attempts",
    "initial_backoff",
    "backoff_multiplier",
    "max_backoff",
    "jitter",
    "reset_after",
    "cool_down",
];
const KEYS: [&str; 10] = [
    "max_processes",
    "process_managers",
    "restart_policy",
    "resource_limits",
    "profiles",
    "usage_interval",
    "restart_burst",
    "restart_refill",
    "cgroup_parent",
    "listen",
];
const LIMIT_KEYS: [&str; 3] = [
    "default_cpu_percent",
    "default_memory_mb",
    "default_io_weight",
];

/// The settings that an environment variable can override: the scalars below
/// `runtime`, by their path.
pub(super) const OVERRIDABLE: [&[&str]; 20] = [
    &["orchestrator", "max_processes"],
    &["orchestrator", "usage_interval"],
    &["orchestrator", "restart_burst"],
    &["orchestrator", "restart_refill"],
    &["orchestrator", "cgroup_parent"],
    &["orchestrator", "restart_policy", "max_attempts"],
    &["orchestrator", "restart_policy", "initial_backoff"],
    &["orchestrator", "restart_policy", "backoff_multiplier"],
    &["orchestrator", "restart_policy", "max_backoff"],
    &["orchestrator", "restart_policy", "jitter"],
    &["orchestrator", "restart_policy", "reset_after"],
    &["orchestrator", "restart_policy", "cool_down"],
    &["orchestrator", "resource_limits", "default_cpu_percent"],
    &["orchestrator", "resource_limits", "default_memory_mb"],
    &["orchestrator", "resource_limits", "default_io_weight"],
    &["orchestrator", "listen", "supervisor"],
    &["orchestrator", "listen", "process-manager"],
    &["orchestrator", "listen", "resource-controller"],
    &["orchestrator", "listen", "bridge"],
    &["orchestrator", "listen", "rpc"],
];

const DAY: Duration = Duration::from_secs(86_400);

/// What `runtime` says, with what the services need of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Runtime {
    pub(super) orchestrator: Orchestrator,
    /// `default_cpu_percent` and `default_memory_mb`.
    pub(super) defaults: Settings,
    /// `default_io_weight`.
    pub(super) default_io_weight: Option<u32>,
    /// By type of service.
    pub(super) profiles: BTreeMap<String, Settings>,
    /// `listen`.
    pub(super) listen: Listen,
    /// Where `max_processes` stands.
    pub(super) max_processes_place: Option<Place>,
    /// Where the named process-managers' own stand.
    pub(super) manager_places: BTreeMap<ManagerName, Place>,
}

/// The section that a key belongs to, for the hint about a misplaced one.
pub(super) fn home_of(key: &str) -> Option<&'static str> {
    if key == "orchestrator" {
        Some("runtime")
    } else if KEYS.contains(&key) {
        Some("runtime.orchestrator")
    } else if LIMIT_KEYS.contains(&key) {
        Some("runtime.orchestrator.resource_limits")
    } else if POLICY_KEYS.contains(&key) {
        Some("runtime.orchestrator.restart_policy")
    } else {
        None
    }
}

/// Reads `runtime`.
pub(super) fn runtime(field: &Field<'_>) -> Result<Runtime, Problem> {
    let section = field.section(&["orchestrator"])?;
    match section.get("orchestrator") {
        Some(field) => orchestrator(&field),
        None => Ok(Runtime::default()),
    }
}

fn orchestrator(field: &Field<'_>) -> Result<Runtime, Problem> {
    let section = field.section(&KEYS)?;
    let usual = Orchestrator::default();
    let restart_policy = section.read("restart_policy", |field| {
        policy(&field.section(&POLICY_KEYS)?, &usual.restart_policy)
    })?;
    let max_processes = section
        .read("max_processes", |field| field.integer(1..=100_000))?
        .unwrap_or(usual.max_processes);
    let managers = section
        .read("process_managers", |field| {
            managers::declared(field, max_processes)
        })?
        .unwrap_or_default();
    let orchestrator = Orchestrator {
        max_processes,
        restart_policy: restart_policy.unwrap_or(usual.restart_policy),
        usage_interval: section
            .read("usage_interval", |field| {
                field.duration(Duration::from_millis(100)..=Duration::from_secs(3_600))
            })?
            .unwrap_or(usual.usage_interval),
        restart_burst: section
            .read("restart_burst", |field| field.integer(1..=100_000))?
            .unwrap_or(usual.restart_burst),
        restart_refill: section
            .read("restart_refill", |field| {
                field.duration(Duration::from_millis(1)..=Duration::from_secs(3_600))
            })?
            .unwrap_or(usual.restart_refill),
        cgroup_parent: section.read("cgroup_parent", cgroup_parent)?,
        process_managers: managers
            .iter()
            .map(|(name, one)| (name.clone(), one.0))
            .collect(),
    };
    let mut runtime = Runtime {
        orchestrator,
        listen: section.read("listen", listen::listen)?.unwrap_or_default(),
        max_processes_place: section
            .get("max_processes")
            .map(|field| field.node.place.clone()),
        manager_places: managers
            .into_iter()
            .map(|(name, one)| (name, one.1))
            .collect(),
        ..Runtime::default()
    };
    if let Some(field) = section.get("resource_limits") {
        let limits = field.section(&LIMIT_KEYS)?;
        runtime.defaults.cpu_percent = limits
            .read("default_cpu_percent", limits::cpu_percent)?
            .unwrap_or_default();
        runtime.defaults.memory_bytes = limits
            .read("default_memory_mb", limits::memory_mb)?
            .unwrap_or_default();
        runtime.default_io_weight = limits.read("default_io_weight", limits::weight)?;
    }
    if let Some(field) = section.get("profiles") {
        for (entry, field) in field.entries("a map of types of service to limits")? {
            if let Err(error) = entry.key.parse::<crate::names::ServiceName>() {
                return Err(Problem::new(
                    entry.key_place.clone(),
                    &field.path,
                    error.to_string(),
                ));
            }
            let profile = Settings::read(&field.section(&limits::KEYS)?)?;
            runtime.profiles.insert(entry.key.clone(), profile);
        }
    }
    Ok(runtime)
}

/// Reads the keys of a restart policy over another one.
pub(super) fn policy(
    section: &Section<'_>,
    usual: &RestartPolicy,
) -> Result<RestartPolicy, Problem> {
    let wait = |field: &Field<'_>| field.duration(Duration::from_millis(1)..=DAY);
    let initial = section.read("initial_backoff", wait)?;
    let max = section.read("max_backoff", wait)?;
    let (initial_backoff, max_backoff) = match (initial, max) {
        (Some(initial), Some(max)) if max < initial => {
            let problem = match section.get("max_backoff") {
                Some(field) => field.problem("is shorter than initial_backoff"),
                None => section.problem("max_backoff is shorter than initial_backoff"),
            };
            return Err(problem);
        }
        // Only one of them given: the other one follows where it would contradict.
        (Some(initial), None) => (initial, usual.max_backoff.max(initial)),
        (None, Some(max)) => (usual.initial_backoff.min(max), max),
        (Some(initial), Some(max)) => (initial, max),
        (None, None) => (usual.initial_backoff, usual.max_backoff),
    };
    let cool_down = section.read("cool_down", |field| match &field.node.value {
        Value::Text(text) if text == "never" => Ok(None),
        _ => wait(field).map(Some),
    })?;
    Ok(RestartPolicy {
        max_attempts: section
            .read("max_attempts", |field| field.integer(1..=10_000))?
            .unwrap_or(usual.max_attempts),
        initial_backoff,
        backoff_multiplier: section
            .read("backoff_multiplier", |field| field.number(1.0..=100.0))?
            .unwrap_or(usual.backoff_multiplier),
        max_backoff,
        jitter_percent: section
            .read("jitter", Field::percent)?
            .unwrap_or(usual.jitter_percent),
        reset_after: section
            .read("reset_after", wait)?
            .unwrap_or(usual.reset_after),
        cool_down: cool_down.unwrap_or(usual.cool_down),
    })
}

/// A path below the root of each cgroup hierarchy.
fn cgroup_parent(field: &Field<'_>) -> Result<String, Problem> {
    let text = field.text()?;
    let path = text.trim_matches('/');
    let fine = path.split('/').all(|part| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part.len() <= 255
            && !part.chars().any(|c| c.is_control() || c.is_whitespace())
    });
    match fine {
        true => Ok(path.to_owned()),
        false => {
            Err(field.expected("a cgroup below the root, for instance system.slice/blackhole"))
        }
    }
}
