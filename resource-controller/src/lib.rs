//! The resource-controller: admission, cgroups made ahead, limits applied and
//! read back, usage, pressure and OOM kills measured. It knows instances by name
//! and limits, and nothing of services, restarts or processes' states.
//!
//! ```text
//!     cmd.resource-controller.                        evt.resource., rep.<client>.
//!        │ prepare, release,                                 ▲ usage (one batch a tick),
//!        │ list, capacity                                    │ oom_killed, replies
//!        ▼                                                   │
//!   ┌─────────┐  commands (the bus's bound)  ┌───────────────┴──────────────┐
//!   │ Server  ├─────────────────────────────►│ command loop (service)       │
//!   └─────────┘                              │  Ledger      who reserves it │
//!     SIGTERM ──────────────────────────────►│  UsageBook   what was used   │
//!     tick, retry of a release (timers) ────►│  emptying    releases waiting│
//!                                            └───────┬──────────────▲───────┘
//!                                       jobs (8)     ▼              │ one answer a job
//!                                            ┌──────────────────────┴───────┐
//!                                            │ thread "cgroups": Engine     │
//!                                            └───────┬──────────────────────┘
//!                                                    ▼
//!                                            /sys/fs/cgroup, /proc
//! ```
//!
//! | task | in | out | bound, and when full |
//! |---|---|---|---|
//! | [`service`] | commands from the bus; SIGTERM; ticks; retries | replies, events | the server's queues: the dispatcher waits, or the loop waits to publish |
//! | thread `cgroups` ([`worker`]) | jobs | one answer each | 8; the command loop waits for each answer anyway |
//!
//! [`admission`] and [`usage`] are pure; [`cgroup`] is the only module that
//! knows the kernel's interfaces. OOM kills are found by sampling: at each tick
//! and at the release, so that none of a running controller's time is missed.
//!
//! **Life of the groups.** `prepare` makes them, repeated it changes the limits
//! in place. `release` removes them once they are empty. When the daemon ends,
//! in order or not, the groups of instances stay, and the next one finds them;
//! when it ends in order and no instance has groups, nothing is left.
//!
//! **Where services live.** Below the daemon's own cgroup, unless
//! `runtime.orchestrator.cgroup_parent` names another place. So a service manager
//! that runs this daemon as a unit of its own must not end the unit's whole
//! group with it (systemd: `KillMode=process`, `Delegate=yes`), or the parent be
//! configured. On v2 the daemons and shims that share the base are moved to the
//! leaf `_control` beside the services by this daemon itself, at its start and
//! with each `prepare` as long as that is not done; nobody has to ask for it.
//!
//! **What `limits: required` means.** A limit that is not enforced at all is a
//! refusal; one that holds in part (an I/O weight that no disk's scheduler looks
//! at, a value the kernel cut) is not, and is shown.

use blackhole_bus_schema::daemon::{DaemonArgs, DaemonError, run as run_daemon};
use blackhole_bus_schema::names::Component;

pub mod admission;
pub mod cgroup;
pub mod service;
pub mod usage;
pub mod worker;

pub use service::ResourceError;

/// Runs the daemon; called once, by `main`.
///
/// # Errors
/// See [`DaemonError`].
pub fn run(args: DaemonArgs) -> Result<(), DaemonError<ResourceError>> {
    run_daemon(Component::ResourceController, args, service::serve)
}
