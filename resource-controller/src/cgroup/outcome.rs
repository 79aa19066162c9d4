//! What becomes of a prepare and of a release.

use blackhole_bus_schema::limits::{Enforcement, LimitGrant};
use blackhole_bus_schema::names::InstanceName;

use super::file::CgroupError;

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
        let lines: Vec<_> = self
            .grant
            .report
            .iter()
            .filter_map(|line| match &line.enforcement {
                Enforcement::NotEnforced { reason } => Some(format!("{:?}: {reason}", line.limit)),
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
