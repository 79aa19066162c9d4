//! A shim as the manager sees it.

use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::names::InstanceName;
use blackhole_bus_schema::process::{ExitRecord, NotifyState};
use tokio::sync::mpsc;

use super::{ClientError, Loss, ShimStatus, StopRequest};

/// What happens to a held instance.
#[derive(Debug, Clone, PartialEq)]
pub enum ShimEvent {
    /// The connection was lost and made again; this is how things stand.
    Status(Box<ShimStatus>),
    /// The service said something of itself.
    Notify(NotifyState),
    /// Log lines or record writes were lost; counts since the start.
    Loss(Loss),
    /// It was asked to end, or ended and its rest is being killed.
    Stopping,
    /// It ended, nothing of it is left, its lock is free. The last event.
    Exited {
        /// How.
        exit: ExitRecord,
        /// What was lost in its life.
        loss: Loss,
    },
    /// The shim vanished without recording an end: its first process was killed
    /// by the kernel, others may live (see [`crate::shim::sweep`]). The last event.
    Gone,
}

/// The events of one shim, in order.
#[derive(Debug)]
pub struct ShimEvents {
    receiver: mpsc::Receiver<ShimEvent>,
}

impl ShimEvents {
    /// The next event; `None` after `Exited` or `Gone`. Cancel safe.
    pub async fn next(&mut self) -> Option<ShimEvent> {
        self.receiver.recv().await
    }
}

/// Sends requests to one shim. Cheap to clone. The service goes on when all are dropped.
#[derive(Debug, Clone)]
pub struct ShimHandle {
    shim_pid: u32,
}

impl ShimHandle {
    /// Pid of the shim.
    pub fn shim_pid(&self) -> u32 {
        self.shim_pid
    }

    /// Asks the service to end. Returns when the shim has sent the signal and
    /// holds the timer; the end comes as [`ShimEvent::Exited`]. A second stop can
    /// only shorten the grace.
    ///
    /// # Errors
    /// When the shim is gone.
    pub async fn stop(&self, stop: StopRequest) -> Result<(), ClientError> {
        let _ = stop;
        unimplemented!("in the next commit")
    }

    /// Kills the whole tree. Returns when the shim has begun; the end comes as
    /// [`ShimEvent::Exited`].
    ///
    /// # Errors
    /// When the shim is gone.
    pub async fn kill(&self, unhealthy: bool) -> Result<(), ClientError> {
        let _ = unhealthy;
        unimplemented!("in the next commit")
    }

    /// Sends a signal to the first process.
    ///
    /// # Errors
    /// When the shim is gone, or the signal's number is none.
    pub async fn signal(&self, signal: i32) -> Result<(), ClientError> {
        let _ = signal;
        unimplemented!("in the next commit")
    }

    /// Asks how things stand.
    ///
    /// # Errors
    /// When the shim is gone.
    pub async fn status(&self) -> Result<ShimStatus, ClientError> {
        unimplemented!("in the next commit")
    }
}

/// A shim that was found alive.
#[derive(Debug)]
pub struct Attached {
    /// How things stand.
    pub status: ShimStatus,
    /// To ask it.
    pub handle: ShimHandle,
    /// What happens from now on.
    pub events: ShimEvents,
}

/// Connects to the live shim of an instance.
///
/// # Errors
/// [`ClientError::NoShim`] when none holds the instance: its record tells the
/// rest. [`ClientError::Unreachable`] when one does and does not answer.
pub async fn attach(dirs: &Dirs, instance: &InstanceName) -> Result<Attached, ClientError> {
    let _ = instance;
    Err(ClientError::NoShim { dir: dirs.state.clone() })
}
