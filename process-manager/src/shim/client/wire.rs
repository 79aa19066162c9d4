//! One connection to a shim, frame by frame.

use std::io::ErrorKind;
use std::path::Path;

use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::ClientError;
use crate::shim::protocol::{self, FrameError, MAX_MESSAGE_FRAME, MAX_SPAWN_FRAME, ShimMessage};

/// Bytes read at once: most messages have some hundred.
const ROOM: usize = 4096;

/// A connection to one shim.
#[derive(Debug)]
pub(super) struct Wire {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Wire {
    pub(super) async fn connect(path: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(path).await?;
        Ok(Self {
            stream,
            received: Vec::new(),
        })
    }

    /// Pid of the process that listened on the socket; 0 where it cannot be seen from here,
    /// see `SO_PEERCRED` in unix(7).
    pub(super) fn listener(&self) -> u32 {
        let peer = self.stream.peer_cred().ok();
        let pid = peer.and_then(|peer| peer.pid());
        pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0)
    }

    /// Sends a request. The shim always reads, so this does not wait for long.
    /// Not cancel safe: a frame may be cut.
    pub(super) async fn send<T: Serialize>(&mut self, request: &T) -> Result<(), ClientError> {
        let mut bytes = Vec::new();
        protocol::encode(request, MAX_SPAWN_FRAME, &mut bytes).map_err(ClientError::Protocol)?;
        self.stream
            .write_all(&bytes)
            .await
            .map_err(|_| ClientError::Closed)
    }

    /// The next message; `None` at the end. What cannot be understood is noted
    /// and skipped. Cancel safe: what has been read is kept.
    pub(super) async fn next(&mut self) -> Result<Option<ShimMessage>, ClientError> {
        loop {
            match protocol::take(&mut self.received, MAX_MESSAGE_FRAME) {
                Ok(Some(message)) => return Ok(Some(message)),
                Ok(None) => {}
                Err(FrameError::Malformed(error)) => {
                    tracing::warn!(%error, "a shim sent a message that is none");
                    continue;
                }
                Err(error) => return Err(ClientError::Protocol(error)),
            }
            if self.received.is_empty() {
                // A shim has nothing to say for days.
                self.received = Vec::new();
            }
            if self.stream.readable().await.is_err() {
                return Ok(None);
            }
            self.received.reserve(ROOM);
            match self.stream.try_read_buf(&mut self.received) {
                Ok(1..) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return Ok(None),
            }
        }
    }
}
