//! Frames, and the count of what is queued of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use omq_tokio::message::Payload;

use super::SendError;

/// Bytes of large frames that may be queued towards one peer: four of the largest.
pub const PEER_BYTES: usize = 64 * 1024 * 1024;
/// The same for all peers of a ROUTER together.
pub const ALL_BYTES: usize = 512 * 1024 * 1024;
/// Frames from this size on are counted; the others are bounded by their number.
const COUNTED_BYTES: usize = 1024;
/// One frame of a message. Short ones are held in place, longer ones are shared
/// without a copy.
#[derive(Clone, Default)]
pub struct Frame(pub(super) Payload);

impl Frame {
    /// No bytes.
    pub fn new() -> Self {
        Self::default()
    }

    /// A copy of these bytes.
    pub fn copy_of(bytes: &[u8]) -> Self {
        Self(Payload::from_slice(bytes))
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Its bytes, copied only where they are few.
    pub fn into_bytes(self) -> Bytes {
        self.0.into_bytes()
    }

    /// Counts its bytes until the last copy of it is gone, where they are many.
    pub(super) fn counted(self, ledger: &Ledger) -> Result<Self, SendError> {
        if self.len() < COUNTED_BYTES {
            return Ok(self);
        }
        let bytes = self.into_bytes();
        let counted = ledger.take(bytes)?;
        Ok(Self(Payload::from_bytes(Bytes::from_owner(counted))))
    }
}

impl AsRef<[u8]> for Frame {
    fn as_ref(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl From<Bytes> for Frame {
    fn from(bytes: Bytes) -> Self {
        Self(Payload::from_bytes(bytes))
    }
}

impl From<Vec<u8>> for Frame {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl PartialEq for Frame {
    fn eq(&self, other: &Self) -> bool {
        self.as_ref() == other.as_ref()
    }
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Frame({} bytes)", self.len())
    }
}

/// What is queued towards one peer, in bytes of large frames. Its clones count together.
#[derive(Debug, Clone)]
pub struct Ledger {
    peer: Arc<AtomicUsize>,
    all: Arc<AtomicUsize>,
}

impl Ledger {
    /// An empty one for a peer; all peers of a socket share `all`.
    pub(super) fn new(all: Arc<AtomicUsize>) -> Self {
        Self {
            peer: Arc::default(),
            all,
        }
    }

    /// Bytes queued now.
    pub fn bytes(&self) -> usize {
        self.peer.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: Bytes) -> Result<Counted, SendError> {
        let length = bytes.len();
        if self.peer.load(Ordering::Relaxed) + length > PEER_BYTES {
            return Err(SendError::Full);
        }
        if self.all.load(Ordering::Relaxed) + length > ALL_BYTES {
            return Err(SendError::NoRoom);
        }
        self.peer.fetch_add(length, Ordering::Relaxed);
        self.all.fetch_add(length, Ordering::Relaxed);
        Ok(Counted {
            bytes,
            ledger: self.clone(),
        })
    }
}

/// Bytes that are counted while they live.
struct Counted {
    bytes: Bytes,
    ledger: Ledger,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let length = self.bytes.len();
        self.ledger.peer.fetch_sub(length, Ordering::Relaxed);
        self.ledger.all.fetch_sub(length, Ordering::Relaxed);
    }
}
