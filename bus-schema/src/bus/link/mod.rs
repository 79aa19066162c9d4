//! A connection to one component: requests to it, events and snapshots from it.
//!
//! One task a link owns the receiving socket. It proves the path by an echo,
//! tells when the component comes and goes, keeps the order of events, and asks
//! for a snapshot whenever something may have been missed.

pub(super) mod life;
mod pages;
mod task;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use uuid::Uuid;

use task::Task;

use super::counters::LinkCounters;
use super::{BusError, Paged, RequestError};
use crate::component::ComponentInfo;
use crate::dirs::{Dirs, unix_now_ns};
use crate::envelope::{self, Envelope, EnvelopeError, Outgoing, Source};
use crate::message::{Command, Message};
use crate::names::{ClientName, Component};
use crate::raw::Raw;
use crate::reply::Verdict;
use crate::topic::Topic;
use crate::transport::{LOOKED_FOR, PubSocket, SubSocket};

/// Events waiting for the link's user. When full, further events of a stream
/// are dropped and the stream is healed by a snapshot once there is room;
/// other events are dropped and counted.
const EVENTS: usize = 4096;
/// First wait before a command is repeated; doubled up to [`REPEAT_MAX`].
const REPEAT_MIN: Duration = Duration::from_millis(50);
/// Longest wait before a command is repeated.
const REPEAT_MAX: Duration = Duration::from_secs(1);

/// What a link's user wants to receive.
#[derive(Debug, Clone, Default)]
pub struct Interest {
    prefixes: Vec<String>,
    streams: Vec<Stream>,
    /// Messages of the component that are lost on the way, for tests.
    #[cfg(test)]
    losses: Option<Losses>,
}

/// Tells of a message that arrived whether it is to be lost.
#[cfg(test)]
#[derive(Clone)]
pub(super) struct Losses(pub(super) Arc<IsLost>);

#[cfg(test)]
type IsLost = dyn Fn(&str, &Envelope) -> bool + Send + Sync;

#[cfg(test)]
impl std::fmt::Debug for Losses {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Losses")
    }
}

#[derive(Debug, Clone)]
struct Stream {
    prefix: &'static str,
    kind: &'static str,
    page: fn(Option<String>) -> Result<Raw, rmp_serde::encode::Error>,
}

impl Interest {
    /// Nothing but requests and presence.
    pub fn none() -> Self {
        Self::default()
    }

    /// Events whose topic begins with `prefix`, as they come; lost ones are not healed.
    #[must_use]
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefixes.push(prefix.to_owned());
        self
    }

    /// Loses the messages of which `lost` says so, as if they had never arrived.
    #[cfg(test)]
    pub(super) fn lossy(
        mut self,
        lost: impl Fn(&str, &Envelope) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.losses = Some(Losses(Arc::new(lost)));
        self
    }

    /// Events whose topic begins with `prefix`, and a snapshot of the whole
    /// state first and whenever one may have been missed.
    #[must_use]
    pub fn stream<C: Paged>(mut self, prefix: &'static str) -> Self {
        self.streams.push(Stream {
            prefix,
            kind: C::KIND,
            page: |after| Raw::of(&C::stream_page(after)),
        });
        self
    }
}

/// A message as received.
#[derive(Debug, Clone)]
pub struct Received {
    /// Its topic.
    pub topic: Topic,
    /// Everything else.
    pub envelope: Envelope,
}

impl Received {
    /// Which kind of body it has.
    pub fn kind(&self) -> &str {
        &self.envelope.kind
    }

    /// The body as the type of its kind.
    ///
    /// # Errors
    /// When the kind is another, or the body does not fit.
    pub fn parse<M: Message>(&self) -> Result<M, EnvelopeError> {
        self.envelope.parse()
    }
}

/// What a link tells its user, in order.
#[derive(Debug, Clone)]
pub enum LinkEvent {
    /// The component is there and the path to it is proven, for the first time
    /// or again. Its incarnation may be another than before.
    Up(ComponentInfo),
    /// The component said goodbye, its socket closed, or it was silent for 2.8 s.
    Down,
    /// The whole state of a stream: after each `Up` and after each healed loss.
    /// What is not in it does not exist. See [`super::item`].
    Snapshot {
        /// Which stream.
        prefix: &'static str,
        /// Its items.
        items: Vec<Raw>,
    },
    /// A message. Those already in a snapshot do not come again.
    Event(Received),
    /// The user was too slow and events were dropped: so many in the link's
    /// life. The streams among them are healed by snapshots that follow.
    Lagged {
        /// Dropped events.
        dropped: u64,
    },
}

/// A connection to one component. Clones share it; it ends with the last one.
#[derive(Debug, Clone)]
pub struct Link {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    me: ClientName,
    source: Source,
    to: Component,
    topic: Bytes,
    commands: PubSocket,
    pending: Mutex<HashMap<Uuid, mpsc::Sender<Verdict>>>,
    up: watch::Sender<Option<ComponentInfo>>,
    counters: LinkCounters,
    task: Mutex<Option<AbortHandle>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(task) = self
            .task
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            task.abort();
        }
    }
}

impl Link {
    /// Opens a connection to `to`. Returns at once, whether it is there or not;
    /// [`LinkEvent::Up`] tells when, or [`Link::ready`] waits. `me` must be unique
    /// among the clients of that component. The receiver may be dropped when only
    /// requests are made.
    ///
    /// # Errors
    /// When a socket cannot be opened; that nobody listens is no error.
    pub async fn open(
        dirs: &Dirs,
        me: ClientName,
        to: Component,
        interest: Interest,
    ) -> Result<(Self, mpsc::Receiver<LinkEvent>), BusError> {
        // The bridge is left out by some: it is not looked for five times a second for ever.
        let longest = match to {
            Component::Bridge => Duration::from_secs(1),
            _ => LOOKED_FOR,
        };
        // Before the subscriptions: the two connections' handshakes run beside each other.
        let (commands, heard) = PubSocket::connect_watched(&dirs.bus_cmd(&to), longest).await?;
        let events = SubSocket::connect_within(&dirs.bus_evt(&to), longest).await?;
        let changes = events.watch();
        let presence = Topic::component(&to);
        for stream in &interest.streams {
            events.subscribe(stream.prefix).await?;
        }
        for prefix in &interest.prefixes {
            events.subscribe(prefix).await?;
        }
        events.subscribe(presence.as_str()).await?;
        // Last: when an echo comes back on it, the ones before are in force too.
        events.subscribe(Topic::reply(&me).as_str()).await?;
        let (sender, receiver) = mpsc::channel(EVENTS);
        let inner = Arc::new(Inner {
            source: Source {
                component: me.to_string(),
                instance: std::process::id().to_string(),
                incarnation: 0,
            },
            topic: Topic::command(&to).as_str().to_owned().into(),
            commands,
            pending: Mutex::default(),
            up: watch::channel(None).0,
            counters: LinkCounters::default(),
            task: Mutex::default(),
            me,
            to,
        });
        let (task, fetched) = Task::new(&inner, interest, sender);
        let handle = tokio::spawn(task.run(events, (changes, heard), fetched)).abort_handle();
        *inner.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
        Ok((Self { inner }, receiver))
    }

    /// Which component this leads to.
    pub fn component(&self) -> &Component {
        &self.inner.to
    }

    /// What this link has counted since it was opened, by name: see
    /// [`super::Server::counters`], which shows the sum over all links of the process.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        self.inner.counters.read(&mut all);
        all
    }

    /// Who the component is, while it is there.
    pub fn info(&self) -> Option<ComponentInfo> {
        self.inner.up.borrow().clone()
    }

    /// Waits until an echo of the component has come back.
    ///
    /// # Errors
    /// [`RequestError::Unreachable`] when none has within the time.
    pub async fn ready(&self, within: Duration) -> Result<ComponentInfo, RequestError> {
        let mut up = self.inner.up.subscribe();
        let there = tokio::time::timeout(within, up.wait_for(Option::is_some)).await;
        match there {
            Ok(Ok(info)) => match info.clone() {
                Some(info) => Ok(info),
                None => Err(self.unreachable()),
            },
            _ => Err(self.unreachable()),
        }
    }

    fn unreachable(&self) -> RequestError {
        RequestError::Unreachable {
            component: self.inner.to.to_string(),
        }
    }

    /// Sends a command and waits for its result. It is repeated with the same id
    /// until it is answered or the budget is spent, so that it takes effect once
    /// however many messages are lost. Dropping the future stops the repeating;
    /// what was accepted goes on.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn request<C: Command>(
        &self,
        command: &C,
        budget: Duration,
    ) -> Result<C::Reply, RequestError> {
        self.request_caused(command, budget, None).await
    }

    /// [`Link::request`] with the message that led to it.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn request_caused<C: Command>(
        &self,
        command: &C,
        budget: Duration,
        cause: Option<Uuid>,
    ) -> Result<C::Reply, RequestError> {
        let value = self.request_raw(C::KIND, command, budget, cause).await?;
        value.parse().map_err(|source| RequestError::Answer {
            component: self.inner.to.to_string(),
            source,
        })
    }

    async fn request_raw<B: Serialize>(
        &self,
        kind: &'static str,
        body: &B,
        budget: Duration,
        cause: Option<Uuid>,
    ) -> Result<Raw, RequestError> {
        let deadline = Instant::now() + budget;
        let mut up = self.inner.up.subscribe();
        if up.borrow_and_update().is_none() {
            let there = tokio::time::timeout_at(deadline, up.wait_for(Option::is_some)).await;
            if !matches!(there, Ok(Ok(_))) {
                return Err(self.unreachable());
            }
        }
        let id = envelope::fresh_id();
        // Two: an "accepted" may stand before the result; a third would be a repetition.
        let (sender, mut replies) = mpsc::channel(2);
        self.inner.pending().insert(id, sender);
        let _pending = Pending {
            inner: &self.inner,
            id,
        };
        let mut repeat = REPEAT_MIN;
        let mut accepted = false;
        let mut sent = 0_u32;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let component = self.inner.to.to_string();
                return Err(RequestError::TimedOut {
                    component,
                    accepted,
                });
            }
            self.inner.counters.count(match sent {
                0 => |all| &all.requests,
                _ => |all| &all.repeats,
            });
            sent = sent.saturating_add(1);
            let budget_ms = Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
            self.inner
                .send(id, kind, body, budget_ms, cause)
                .await
                .map_err(RequestError::Bus)?;
            let until = (Instant::now() + jittered(repeat)).min(deadline);
            tokio::select! {
                // Cancel safe: a reply is taken only when this arm completes.
                reply = replies.recv() => match reply {
                    Some(Verdict::Done { result }) => return Ok(result),
                    Some(Verdict::Failed { error }) => return Err(RequestError::Status(error)),
                    Some(Verdict::Accepted {}) => {
                        accepted = true;
                        repeat = REPEAT_MAX;
                        // Being worked on: wait for the result, ask again only after a while.
                        let until = (Instant::now() + jittered(repeat)).min(deadline);
                        match tokio::time::timeout_at(until, replies.recv()).await {
                            Ok(Some(Verdict::Done { result })) => return Ok(result),
                            Ok(Some(Verdict::Failed { error })) => return Err(RequestError::Status(error)),
                            _ => {}
                        }
                    }
                    None => return Err(self.unreachable()),
                },
                () = tokio::time::sleep_until(until) => repeat = (repeat * 2).min(REPEAT_MAX),
                // Back again, maybe as another process: ask it without delay.
                () = came_back(&mut up) => {}
            }
        }
    }
}

/// `time` and up to a fifth more or less of it, so that many who lost the same
/// component do not come back to it in step.
pub(super) fn jittered(time: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    // Each `RandomState` has other keys: random enough to be out of step.
    let random = RandomState::new().hash_one(0_u8) % 401;
    time * u32::try_from(800 + random).unwrap_or(1000) / 1000
}

/// Waits until the component has gone and returned. Cancel safe.
async fn came_back(up: &mut watch::Receiver<Option<ComponentInfo>>) {
    let gone = up.wait_for(Option::is_none).await.is_ok();
    let returned = gone && up.wait_for(Option::is_some).await.is_ok();
    if !returned {
        std::future::pending::<()>().await;
    }
}

/// Removes the entry of a request that has ended, however it ended.
struct Pending<'a> {
    inner: &'a Inner,
    id: Uuid,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.inner.pending().remove(&self.id);
    }
}

impl Inner {
    fn pending(&self) -> MutexGuard<'_, HashMap<Uuid, mpsc::Sender<Verdict>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send<B: Serialize>(
        &self,
        id: Uuid,
        kind: &'static str,
        body: &B,
        budget_ms: Option<u64>,
        cause: Option<Uuid>,
    ) -> Result<(), BusError> {
        let envelope = Outgoing {
            v: envelope::VERSION,
            id,
            at: unix_now_ns(),
            source: &self.source,
            seq: 0,
            cause,
            reply_to: Some(&self.me),
            budget_ms,
            kind,
            body,
        };
        let bytes = envelope
            .encode()
            .map_err(|source| BusError::Encode { kind, source })?;
        Ok(self.commands.send(self.topic.clone(), bytes.into()).await?)
    }
}
