//! The lane of log lines: a second PUB socket of a process-manager.

use super::BusError;
use super::link::Received;
use crate::dirs::Dirs;
use crate::envelope::Envelope;
use crate::names::{Component, InstanceName};
use crate::topic::Topic;
use crate::transport::SubSocket;

/// A subscriber to a process-manager's log lines. What is published there is
/// asked for with [`crate::process::FollowLog`].
#[derive(Debug)]
pub struct LogLane {
    socket: SubSocket,
}

impl LogLane {
    /// Connects to the log lane of a process-manager, for ever: again after each loss.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    pub async fn open(dirs: &Dirs, manager: &Component) -> Result<Self, BusError> {
        Ok(Self {
            socket: SubSocket::connect(&dirs.bus_log(manager)).await?,
        })
    }

    /// Receives the lines of an instance from now on.
    ///
    /// # Errors
    /// When the socket is closed.
    pub async fn subscribe(&self, instance: &InstanceName) -> Result<(), BusError> {
        Ok(self.socket.subscribe(Topic::log(instance).as_str()).await?)
    }

    /// The next batch ([`crate::process::LogLines`]). What is not an envelope is skipped. Cancel safe.
    ///
    /// # Errors
    /// When the socket is closed.
    pub async fn recv(&self) -> Result<Received, BusError> {
        loop {
            let (topic, body) = self.socket.recv().await?;
            if let Ok(envelope) = Envelope::decode(&body) {
                let topic = Topic::received(&String::from_utf8_lossy(&topic));
                return Ok(Received { topic, envelope });
            }
        }
    }
}
