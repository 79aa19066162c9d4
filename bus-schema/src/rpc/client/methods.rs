//! What a service serves.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::super::header::{Header, MAX_PART_BYTES, MAX_PARTS};
use super::super::trace::TraceContext;
use super::super::{Code, DEFAULT_CAPACITY, MAX_CAPACITY, Status};
use super::work::Back;
use super::{MAX_PAYLOAD_BYTES, too_large};
use crate::names::InstanceName;

/// A call that this service was sent.
#[derive(Debug, Clone)]
pub struct Request {
    /// Which method.
    pub method: Arc<str>,
    /// Who calls, proven by its token.
    pub caller: Option<InstanceName>,
    /// Opaque to all but the two services.
    pub payload: Bytes,
    /// When the caller stops waiting; the handler is dropped then.
    pub deadline: Instant,
    /// The caller's tracing context. Calls that the handler makes carry it on
    /// by themselves.
    pub trace: Option<TraceContext>,
}

type Answering<T> = Pin<Box<dyn Future<Output = Result<T, Status>> + Send>>;

/// What runs for a call. It is dropped at an await when the caller gives up,
/// its budget is spent, or the connection is lost.
pub type Handler = Arc<dyn Fn(Request) -> Answering<Bytes> + Send + Sync>;

/// What runs for a call with an answer in parts; else as [`Handler`].
pub type StreamHandler = Arc<dyn Fn(Request, Parts) -> Answering<()> + Send + Sync>;

#[derive(Clone)]
pub(super) enum Serving {
    Once(Handler),
    Parts(StreamHandler),
}

/// The methods that a service serves.
#[derive(Clone, Default)]
pub struct Methods {
    pub(super) handlers: BTreeMap<Arc<str>, Serving>,
    pub(super) capacity: Option<u32>,
    pub(super) endpoint: Option<String>,
    pub(super) direct: bool,
}

impl std::fmt::Debug for Methods {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_set().entries(self.handlers.keys()).finish()
    }
}

impl Methods {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a method; one of the same name is replaced. Handlers run
    /// concurrently, on the runtime that the client was made on. On a
    /// current-thread runtime a handler that awaits nothing runs at once.
    #[must_use]
    pub fn on<F, Fut>(mut self, method: impl Into<String>, handler: F) -> Self
    where
        F: Fn(Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, Status>> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |request| Box::pin(handler(request)));
        let method = method.into().into();
        self.handlers.insert(method, Serving::Once(handler));
        self
    }

    /// Adds a method that answers in parts: what it gives to [`Parts::send`], as
    /// far as the caller takes it, and then an end or a status. A caller that
    /// does not ask for parts gets them as one answer.
    ///
    /// ```
    /// use blackhole_bus_schema::rpc::Methods;
    /// let methods = Methods::new().on_stream("count", |_request, parts| async move {
    ///     for number in 0..1_000_000_u32 {
    ///         parts.send(number.to_be_bytes().to_vec()).await?;
    ///     }
    ///     Ok(())
    /// });
    /// # drop(methods);
    /// ```
    #[must_use]
    pub fn on_stream<F, Fut>(mut self, method: impl Into<String>, handler: F) -> Self
    where
        F: Fn(Request, Parts) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let handler: StreamHandler =
            Arc::new(move |request, parts| Box::pin(handler(request, parts)));
        let method = method.into().into();
        self.handlers.insert(method, Serving::Parts(handler));
        self
    }

    /// Calls worked on at one time, 1 to [`MAX_CAPACITY`]; [`DEFAULT_CAPACITY`]
    /// without it. The bridge refuses further ones with `ResourceExhausted`
    /// when no other instance has room.
    #[must_use]
    pub fn capacity(mut self, calls: u32) -> Self {
        self.capacity = Some(calls.clamp(1, MAX_CAPACITY));
        self
    }

    /// An endpoint of the service's own, told to those who resolve it: `ipc://` with a
    /// path below [`super::super::direct_dir`], or `tcp://` with an address of the loopback
    /// and a port; the bridge refuses the registration otherwise. What is spoken there is
    /// the service's business; see [`Methods::direct`].
    #[must_use]
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// Serves these methods to direct callers too, on a socket of the service's
    /// own, which others find by the bridge: [`super::Client::direct`].
    #[must_use]
    pub fn direct(mut self) -> Self {
        self.direct = true;
        self
    }

    pub(super) fn limit(&self) -> usize {
        self.capacity.unwrap_or(DEFAULT_CAPACITY) as usize
    }
}

/// The answer of a call, in parts. Clones speak for the same call.
#[derive(Clone)]
pub struct Parts {
    inner: Arc<Inner>,
}

struct Inner {
    id: u64,
    back: Back,
    flow: Flow,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Parts").finish_non_exhaustive()
    }
}

impl Parts {
    pub(super) fn new(id: u64, window: Option<u32>, back: Back) -> Self {
        let flow = match window {
            Some(window) => Flow::Stream {
                window,
                out: Mutex::default(),
                room: Notify::new(),
            },
            None => Flow::Whole(Mutex::default()),
        };
        Self {
            inner: Arc::new(Inner { id, back, flow }),
        }
    }

    /// Sends a part. Waits while the caller has no room for it; a part that is
    /// larger than its room, or than 1 MiB, is sent in pieces. An empty one is
    /// not sent. When the wait is cancelled, some of the pieces may have been sent.
    ///
    /// # Errors
    /// `Unavailable` when the connection is gone; `ResourceExhausted` when the
    /// caller takes only one answer and this would make it too large.
    pub async fn send(&self, part: impl Into<Bytes>) -> Result<(), Status> {
        let mut part = part.into();
        let Inner { id, back, flow } = &*self.inner;
        let (window, out, room) = match flow {
            Flow::Stream { window, out, room } => (*window, out, room),
            Flow::Whole(whole) => {
                let mut whole = lock(whole);
                if whole.len() + part.len() > MAX_PAYLOAD_BYTES {
                    return Err(too_large(whole.len() + part.len()));
                }
                whole.extend_from_slice(&part);
                return Ok(());
            }
        };
        let most = (window as usize).clamp(1, MAX_PART_BYTES);
        while !part.is_empty() {
            let piece = part.split_to(part.len().min(most));
            let bytes = piece.len() as u32;
            loop {
                // Before the look: credit that comes in between is not missed.
                let more = room.notified();
                if lock(out).take(bytes, window) {
                    break;
                }
                more.await;
            }
            back.send(&Header::Part { id: *id }, piece)
                .await
                .map_err(|error| Status::new(Code::Unavailable, error.to_string()))?;
        }
        Ok(())
    }

    pub(super) fn credit(&self, bytes: u32) {
        if let Flow::Stream { out, room, .. } = &self.inner.flow {
            lock(out).credit(bytes);
            room.notify_waiters();
        }
    }

    /// The payload of the response, when all parts have been given.
    pub(super) fn rest(&self) -> Bytes {
        match &self.inner.flow {
            Flow::Stream { .. } => Bytes::new(),
            Flow::Whole(whole) => std::mem::take(&mut *lock(whole)).freeze(),
        }
    }
}

enum Flow {
    /// The caller takes parts: no more than its window are out.
    Stream {
        window: u32,
        out: Mutex<Out>,
        room: Notify,
    },
    /// The caller takes one answer.
    Whole(Mutex<BytesMut>),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was sent and not acknowledged.
#[derive(Debug, Default)]
pub(super) struct Out {
    bytes: u32,
    parts: VecDeque<u32>,
    credited: u32,
}

impl Out {
    /// Counts a part, if there is room for it.
    pub(super) fn take(&mut self, part: u32, window: u32) -> bool {
        let room = part <= window.saturating_sub(self.bytes) && self.parts.len() < MAX_PARTS;
        if room {
            self.bytes += part;
            self.parts.push_back(part);
        }
        room
    }

    pub(super) fn credit(&mut self, bytes: u32) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.credited += bytes;
        while let Some(part) = self.parts.front().copied()
            && part <= self.credited
        {
            self.credited -= part;
            self.parts.pop_front();
        }
    }
}
