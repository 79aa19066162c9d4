//! Programs that the process-manager itself runs in a service's context: probes.

use std::os::fd::OwnedFd;

use blackhole_bus_schema::process::SpawnFailure;
use rustix::process::Pid;

pub(crate) use super::cgroups::own_groups;
use super::exec::monotonic_ns;
use super::protocol::SpawnRequest;
use super::{prepare, start};

/// Makes a child that runs `command` with all that the service of `request` runs with, in v2
/// cgroups of its own that are called `group`, and returns when it has executed its program.
/// What is the first process's own it has not: see [`crate::probe`].
///
/// The caller's signals are blocked; the child dies with the calling thread, has
/// not been reaped, and leads a session. Blocks, on a file system that hangs for as long as that does.
///
/// # Errors
/// As those of a service's start; then there is no child.
pub(crate) fn probe(
    request: &SpawnRequest,
    command: &[String],
    group: &str,
    output: [OwnedFd; 2],
) -> Result<Pid, SpawnFailure> {
    let stdin = Some("/dev/null");
    let (mut plan, who) = prepare::beside(request, command, &[], group, None, stdin, output)?;
    plan.handlers = true;
    start::run(request, &plan, &who, monotonic_ns(), Vec::new()).map(|(pid, _)| pid)
}
