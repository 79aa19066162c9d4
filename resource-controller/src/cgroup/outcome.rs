//! What becomes of a prepare and of a release.

use blackhole_bus_schema::limits::{Enforcement, LimitGrant, LimitKind, LimitReport};
use blackhole_bus_schema::names::InstanceName;

use super::file::CgroupError;

/// The weight of a group that nobody gave one.
const USUAL_WEIGHT: u64 = 100;

/// What became of [`super::Engine::prepare`].
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// For the spawn.
    pub grant: LimitGrant,
    /// Whether the groups were made by this call.
    pub fresh: bool,
}

impl Prepared {
    /// The limits that do not hold at all, for a person; `None` when there are none.
    pub fn not_enforced(&self) -> Option<String> {
        self.missing(|_| true)
    }

    /// The same for a service that requires what it asks for. Everybody has weights;
    /// one that is the kernel's own asks for nothing.
    pub fn not_enforced_as_asked(&self) -> Option<String> {
        self.missing(|line| match line.limit {
            LimitKind::CpuWeight | LimitKind::IoWeight => line.requested != USUAL_WEIGHT,
            LimitKind::Cpu | LimitKind::Memory | LimitKind::Pids => true,
        })
    }

    fn missing(&self, counts: impl Fn(&LimitReport) -> bool) -> Option<String> {
        let lines: Vec<_> = self
            .grant
            .report
            .iter()
            .filter(|line| counts(line))
            .filter_map(|line| match &line.enforcement {
                Enforcement::NotEnforced { reason } => {
                    Some(format!("{}: {reason}", line.limit.key()))
                }
                _ => None,
            })
            .collect();
        (!lines.is_empty()).then(|| lines.join("; "))
    }
}

/// Why groups are still there.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// A process is in them (an empty list: the kernel is not done with the last one).
    #[error("{instance} still has processes in its cgroup: {processes}")]
    Populated {
        /// Whose groups.
        instance: InstanceName,
        /// Which ones, for a person.
        processes: String,
    },
    /// The kernel refused.
    #[error("the groups of {instance} stay")]
    Cgroup {
        /// Whose groups.
        instance: InstanceName,
        /// Why.
        #[source]
        source: CgroupError,
    },
}
