//! Tests of the real daemons, end to end, and what they share.
//!
//! A [`Deployment`] is a run and a state directory of its own below the
//! temporary directory, a configuration, and real processes: the daemons, the
//! command line, the services. Tests wait for conditions
//! ([`Deployment::wait_until`]), never for time, and a failed wait shows the
//! last status. Whatever a test leaves behind, a passing or a panicking one, is
//! found by its directory's name in environments and cgroups and killed.
//!
//! | module | what it holds |
//! |---|---|
//! | [`attack`] | a ZeroMQ peer that lies, a bridge that is measured, clients that must notice nothing |
//! | [`binaries`] | where the programs under test are |
//! | [`deployment`] | one deployment, from its configuration to its end |
//! | [`daemon`] | one daemon in the foreground, with its output |
//! | [`status`] | `blackhole status -o json`, typed as far as tests look at it |
//! | [`events`] | the bus, recorded: what happened when, by the events' own clocks |
//! | [`processes`] | processes of a deployment, from `/proc` |
//! | [`cgroup`] | a deployment's cgroups, from `/sys/fs/cgroup` |
//! | [`http`] | one request over plain HTTP |
//! | [`observe`] | who lives for which instance, and what is held open, locked or left |
//! | [`ports`] | the examples' fixed ports, one user at a time |
//! | [`wait`] | waiting for a condition, with a limit against hangs |

// A test that cannot go on panics: that is its way to fail.
#![allow(clippy::panic)]

pub mod attack;
pub mod binaries;
pub mod cgroup;
pub mod daemon;
pub mod deployment;
pub mod events;
pub mod http;
pub mod observe;
pub mod ports;
pub mod processes;
pub mod status;
pub mod wait;

pub use daemon::Daemon;
pub use deployment::{Deployment, Output};
pub use ports::Ports;
pub use status::{Instance, Status};
pub use wait::wait_for;

/// Whether this process may do what a service's limits need.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says on standard error why a test does not test here. A test that calls it
/// returns at once afterwards.
pub fn skip(test: &str, reason: &str) {
    eprintln!("SKIPPED {test}: {reason}");
}
