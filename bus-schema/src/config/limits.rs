//! Effective limits: a service's own settings, over its type's profile, over
//! the defaults; weights and OOM score from its priority.

use super::error::Problem;
use super::model::Priority;
use super::section::{Field, Section};
use super::tree::Value;
use crate::limits::Limits;

const MIB: u64 = 1024 * 1024;

/// Keys of `resources` and of a profile.
pub(super) const KEYS: [&str; 9] = [
    "cpu_percent",
    "cpu_weight",
    "memory_mb",
    "io_weight",
    "pids",
    "open_files",
    "cpu_request_percent",
    "memory_request_mb",
    "limits",
];

/// A limit that may be given, given as `none`, or left out.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) enum Setting<T> {
    #[default]
    LeftOut,
    Unlimited,
    At(T),
}

impl<T: Copy> Setting<T> {
    fn or(self, other: Self) -> Self {
        match self {
            Self::LeftOut => other,
            _ => self,
        }
    }

    fn value(self) -> Option<T> {
        match self {
            Self::At(value) => Some(value),
            _ => None,
        }
    }
}

/// What one place (a service, a profile, the defaults) says about limits.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Settings {
    pub(super) cpu_percent: Setting<u32>,
    pub(super) memory_bytes: Setting<u64>,
    pub(super) pids: Setting<u32>,
    pub(super) cpu_weight: Option<u32>,
    pub(super) io_weight: Option<u32>,
    pub(super) open_files: Option<u64>,
    pub(super) cpu_request_percent: Option<u32>,
    pub(super) memory_request_bytes: Option<u64>,
    pub(super) required: Option<bool>,
}

fn limit<T: Copy>(
    field: &Field<'_>,
    read: impl FnOnce(&Field<'_>) -> Result<T, Problem>,
) -> Result<Setting<T>, Problem> {
    match &field.node.value {
        Value::Text(text) if text == "none" => Ok(Setting::Unlimited),
        Value::Integer(0, _) => Err(field
            .problem("0 would let nothing run")
            .hint("write none for no limit")),
        _ => read(field).map(Setting::At),
    }
}

/// Percent of one core; 1024 cores are the most.
pub(super) fn cpu_percent(field: &Field<'_>) -> Result<Setting<u32>, Problem> {
    limit(field, |field| field.integer(1..=102_400))
}

/// MiB, at most 64 TiB.
pub(super) fn memory_mb(field: &Field<'_>) -> Result<Setting<u64>, Problem> {
    limit(field, mebibytes)
}

fn mebibytes(field: &Field<'_>) -> Result<u64, Problem> {
    field
        .integer(1..=64 * MIB)
        .map(|value: u64| value * MIB)
        .map_err(|problem| match &field.node.value {
            Value::Text(_) => problem.hint("a plain number of MiB: the unit is in the key"),
            _ => problem,
        })
}

/// 1 to 10000, 100 is normal.
pub(super) fn weight(field: &Field<'_>) -> Result<u32, Problem> {
    field.integer(1..=10_000)
}

impl Settings {
    /// Reads `resources` or a profile.
    pub(super) fn read(section: &Section<'_>) -> Result<Self, Problem> {
        Ok(Self {
            cpu_percent: section
                .read("cpu_percent", cpu_percent)?
                .unwrap_or_default(),
            memory_bytes: section.read("memory_mb", memory_mb)?.unwrap_or_default(),
            pids: section
                .read("pids", |field| {
                    limit(field, |field| field.integer(1..=4_194_304))
                })?
                .unwrap_or_default(),
            cpu_weight: section.read("cpu_weight", weight)?,
            io_weight: section.read("io_weight", weight)?,
            open_files: section.read("open_files", |field| field.integer(8..=1_073_741_816))?,
            cpu_request_percent: section
                .read("cpu_request_percent", |field| field.integer(1..=102_400))?,
            memory_request_bytes: section.read("memory_request_mb", mebibytes)?,
            required: section.read("limits", |field| {
                field.choice(&[("required", true), ("best-effort", false)])
            })?,
        })
    }

    /// These settings, and `below` where they say nothing.
    pub(super) fn over(self, below: &Self) -> Self {
        Self {
            cpu_percent: self.cpu_percent.or(below.cpu_percent),
            memory_bytes: self.memory_bytes.or(below.memory_bytes),
            pids: self.pids.or(below.pids),
            cpu_weight: self.cpu_weight.or(below.cpu_weight),
            io_weight: self.io_weight.or(below.io_weight),
            open_files: self.open_files.or(below.open_files),
            cpu_request_percent: self.cpu_request_percent.or(below.cpu_request_percent),
            memory_request_bytes: self.memory_request_bytes.or(below.memory_request_bytes),
            required: self.required.or(below.required),
        }
    }

    /// The limits to apply. A weight that neither the service nor its profile
    /// gives is `default_io_weight` (or 100) times what the priority says.
    pub(super) fn effective(self, default_io_weight: Option<u32>, priority: Priority) -> Limits {
        let scaled = |weight: u32| match priority {
            Priority::Critical => (weight * 4).min(10_000),
            Priority::Normal => weight,
            Priority::Background => (weight / 4).max(1),
        };
        Limits {
            cpu_percent: self.cpu_percent.value(),
            cpu_weight: Some(self.cpu_weight.unwrap_or_else(|| scaled(100))),
            memory_bytes: self.memory_bytes.value(),
            io_weight: Some(
                self.io_weight
                    .unwrap_or_else(|| scaled(default_io_weight.unwrap_or(100))),
            ),
            pids: self.pids.value(),
            cpu_request_percent: self.cpu_request_percent,
            memory_request_bytes: self.memory_request_bytes,
            required: self.required.unwrap_or(false),
        }
    }
}

/// OOM score adjustment of a priority, see proc_pid_oom_score_adj(5): a
/// background service is killed before a normal one, a critical one last, but
/// before the shims (-900).
pub(super) fn oom_score_adj(priority: Priority) -> i32 {
    match priority {
        Priority::Critical => -500,
        Priority::Normal => 0,
        Priority::Background => 500,
    }
}

/// A request must fit below its own limit: it could never be used.
pub(super) fn check_requests(limits: &Limits, resources: &Section<'_>) -> Result<(), Problem> {
    let pairs = [
        (
            "cpu_request_percent",
            "cpu_percent",
            limits.cpu_request_percent.map(u64::from),
            limits.cpu_percent.map(u64::from),
            1,
            "%",
        ),
        (
            "memory_request_mb",
            "memory_mb",
            limits.memory_request_bytes,
            limits.memory_bytes,
            MIB,
            " MiB",
        ),
    ];
    for (request_key, limit_key, request, limit, unit, suffix) in pairs {
        let (Some(request), Some(limit)) = (request, limit) else {
            continue;
        };
        if request <= limit {
            continue;
        }
        let message = format!(
            "reserves {}{suffix}, but the service's limit ({limit_key}, its own, its profile's or \
             the default) is {}{suffix}",
            request / unit,
            limit / unit,
        );
        return Err(match resources.get(request_key) {
            Some(field) => field.problem(message),
            None => resources.problem(format!("{request_key} {message}")),
        });
    }
    Ok(())
}
