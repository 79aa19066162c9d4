//! The fork server as the manager sees it.

use std::path::PathBuf;

use blackhole_bus_schema::dirs::Dirs;

use super::{ClientError, ShimEvents, ShimHandle, SpawnError, SpawnRequest, Started};

/// How a fork server is started.
#[derive(Debug, Clone)]
pub struct ForkServerOptions {
    /// The program `blackhole-shim`.
    pub binary: PathBuf,
    /// Idle shims kept waiting.
    pub pool: usize,
    /// `cgroup.procs` or `tasks` files of the leaves to move it to; one that
    /// cannot be joined is noted in its log and left out.
    pub cgroups: Vec<PathBuf>,
}

impl ForkServerOptions {
    /// The defaults for a program: four idle shims, no cgroups.
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self { binary: binary.into(), pool: 4, cgroups: Vec::new() }
    }
}

/// A live fork server. Cheap to clone; no connection is kept.
#[derive(Debug, Clone)]
pub struct ForkServer {
    socket: PathBuf,
}

impl ForkServer {
    /// Finds the fork server of `dirs`, or starts one: detached, in its own
    /// session, its output in `<state>/log/fork-server.log`. Returns when it listens.
    ///
    /// # Errors
    /// When none lives and none could be started.
    pub async fn ensure(dirs: &Dirs, options: &ForkServerOptions) -> Result<Self, ClientError> {
        let _ = options;
        Ok(Self { socket: dirs.fork_server_dir() })
    }

    /// Starts a service and returns when its program runs. Call
    /// [`ForkServer::ensure`] again after [`ClientError::Io`] and try once more.
    ///
    /// Cancelling it does not cancel the spawn: the service may run and can then
    /// be had with [`super::attach`].
    ///
    /// # Errors
    /// [`SpawnError::Failed`] says why the program did not run; also when the
    /// instance is held by another shim.
    pub async fn spawn(
        &self,
        request: &SpawnRequest,
    ) -> Result<(Started, ShimHandle, ShimEvents), SpawnError> {
        let _ = (request, &self.socket);
        unimplemented!("in the next commit")
    }

    /// Ends the fork server of `dirs` and its idle shims, if one lives. Services
    /// and their shims are not touched. Returns when it is gone.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub async fn shutdown(dirs: &Dirs) -> Result<(), ClientError> {
        let _ = dirs;
        unimplemented!("in the next commit")
    }
}
