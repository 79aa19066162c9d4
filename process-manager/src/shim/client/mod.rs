//! The process-manager's side: start the fork server, spawn through it, hold on
//! to the shims. For tokio; every shim has one task here.

mod handle;
mod server;
mod wire;

use std::path::PathBuf;

use blackhole_bus_schema::process::SpawnFailure;

pub use self::handle::{Attached, ShimEvent, ShimEvents, ShimHandle, attach};
pub use self::server::{ForkServer, ForkServerOptions};
pub use super::protocol::{
    Loss, ShimPermit, ShimPhase, ShimStatus, SpawnRequest, Started, StopRequest,
};
pub use super::record::{Record, RecordError, instance_lock_held, read_record};

/// What can go wrong between the manager and the shims.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// An operation on a path failed.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The fork server's program ran and gave up.
    #[error("{binary} did not start the fork server: {problem}")]
    ForkServer {
        /// The program.
        binary: PathBuf,
        /// What it said.
        problem: String,
    },
    /// Nobody holds the instance: there is no live shim.
    #[error("no shim holds {dir}")]
    NoShim {
        /// The instance's folder.
        dir: PathBuf,
    },
    /// A shim lives but its socket does not answer (deleted, or not its own).
    #[error("shim {shim_pid} holds the instance but {socket} does not answer")]
    Unreachable {
        /// The shim.
        shim_pid: u32,
        /// The socket tried.
        socket: PathBuf,
        /// Why it does not, when an error tells.
        #[source]
        source: Option<std::io::Error>,
    },
    /// A shim is connected and does not answer.
    #[error("shim {shim_pid} has not answered for {after:?}")]
    Mute {
        /// The shim.
        shim_pid: u32,
        /// How long it was waited for.
        after: std::time::Duration,
    },
    /// The fork server, or the idle shim that took the request, does not answer.
    #[error("the fork server has not answered for {after:?}")]
    Hung {
        /// How long it was waited for.
        after: std::time::Duration,
    },
    /// The other side does not speak this protocol.
    #[error("the shim does not speak this protocol")]
    Protocol(#[source] super::protocol::FrameError),
    /// The connection ended before the answer came.
    #[error("the shim went away before it answered")]
    Closed,
    /// The shim refused the request.
    #[error("the shim refused: {0}")]
    Refused(String),
}

/// Why there is no service.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The shim tried: the service's own code did not run.
    #[error("{0}")]
    Failed(SpawnFailure),
    /// Another shim holds the instance.
    #[error("{failure}")]
    Held {
        /// Its pid; 0 when it cannot be seen from here.
        shim_pid: u32,
        /// The same in words.
        failure: SpawnFailure,
    },
    /// The way to a shim failed. After [`ClientError::Closed`] a process may
    /// exist nevertheless: [`instance_lock_held`] tells.
    #[error("no shim took the spawn")]
    Client(#[from] ClientError),
}
