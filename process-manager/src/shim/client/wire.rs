//! One connection to a shim, frame by frame.

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
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
            match poll_fn(|context| self.poll_read(context)).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Ok(None),
            }
        }
    }

    /// Appends what has come, and tells how many bytes that are. Without memory that waits with
    /// it.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        let mut bytes = [MaybeUninit::uninit(); ROOM];
        let mut buffer = ReadBuf::uninit(&mut bytes);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
        self.received.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(buffer.filled().len()))
    }
}

#[cfg(test)]
mod tests {
    use blackhole_bus_schema::process::NotifyState;

    use super::*;

    #[tokio::test]
    async fn a_message_in_pieces_survives_whoever_stops_waiting_for_it() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut wire = Wire {
            stream: ours,
            received: Vec::new(),
        };
        let message = ShimMessage::Notify {
            notify: NotifyState::default(),
        };
        let mut bytes = Vec::new();
        protocol::encode(&message, MAX_MESSAGE_FRAME, &mut bytes).unwrap();
        for piece in bytes.chunks(5) {
            theirs.write_all(piece).await.unwrap();
            if wire.received.len() + piece.len() == bytes.len() {
                break;
            }
            // Polled until it has taken the piece, and dropped.
            let before = wire.received.len();
            while wire.received.len() == before {
                tokio::select! {
                    biased;
                    got = wire.next() => panic!("{got:?} of a part"),
                    () = tokio::task::yield_now() => {}
                }
            }
        }
        assert_eq!(wire.next().await.unwrap(), Some(message));
        drop(theirs);
        assert_eq!(wire.next().await.unwrap(), None);
        assert_eq!(wire.received.capacity(), 0);
    }
}
