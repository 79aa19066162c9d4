//! A connection to one component: requests to it, events and snapshots from it.
//!
//! One task a link owns the receiving socket. It proves the path by an echo,
//! tells when the component comes and goes, keeps the order of events, and asks
//! for a snapshot whenever something may have been missed.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use uuid::Uuid;

use super::server::HEARTBEAT;
use super::tails::{Arrival, Tails};
use super::{BusError, Paged, RequestError};
use crate::component::{Bye, ComponentInfo, Heartbeat, Hello, Ping};
use crate::dirs::{Dirs, unix_now_ns};
use crate::envelope::{self, Envelope, EnvelopeError, Outgoing, Source};
use crate::message::{Command, Message, Snapshot};
use crate::names::{ClientName, Component};
use crate::reply::{Reply, Verdict};
use crate::topic::Topic;
use crate::transport::{ConnectionWatch, PubSocket, SubSocket};
use crate::value::{from_value, to_value};

/// Events waiting for the link's user. When full, further events of a stream
/// are dropped and the stream is healed by a snapshot once there is room;
/// other events are dropped and counted.
const EVENTS: usize = 4096;
/// Events of a stream held back while its snapshot is on the way. When full,
/// the snapshot is asked for again afterwards.
const HELD_BACK: usize = 16_384;
/// Silence after which a component counts as gone: three heartbeats and a half.
const SILENCE: Duration = Duration::from_millis(HEARTBEAT.as_millis() as u64 * 7 / 2);
/// Budget of one page of a snapshot.
const PAGE_BUDGET: Duration = Duration::from_secs(10);
/// First wait before a command is repeated; doubled up to [`REPEAT_MAX`].
const REPEAT_MIN: Duration = Duration::from_millis(50);
/// Longest wait before a command is repeated.
const REPEAT_MAX: Duration = Duration::from_secs(1);

/// What a link's user wants to receive.
#[derive(Debug, Clone, Default)]
pub struct Interest {
    prefixes: Vec<String>,
    streams: Vec<Stream>,
}

#[derive(Debug, Clone)]
struct Stream {
    prefix: &'static str,
    kind: &'static str,
    page: fn(Option<String>) -> Result<rmpv::Value, String>,
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

    /// Events whose topic begins with `prefix`, and a snapshot of the whole
    /// state first and whenever one may have been missed.
    #[must_use]
    pub fn stream<C: Paged>(mut self, prefix: &'static str) -> Self {
        self.streams.push(Stream {
            prefix,
            kind: C::KIND,
            page: |after| to_value(&C::page(after)),
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
    /// The component said goodbye, its socket closed, or it was silent for 3.5 s.
    Down,
    /// The whole state of a stream: after each `Up` and after each healed loss.
    /// What is not in it does not exist. See [`super::item`].
    Snapshot {
        /// Which stream.
        prefix: &'static str,
        /// Its items.
        items: Vec<rmpv::Value>,
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
        let events = SubSocket::connect(&dirs.bus_evt(&to)).await?;
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
            commands: PubSocket::connect(&dirs.bus_cmd(&to)).await?,
            pending: Mutex::default(),
            up: watch::channel(None).0,
            task: Mutex::default(),
            me,
            to,
        });
        let (snapshots, fetched) = mpsc::channel(interest.streams.len().max(1));
        let task = Task {
            link: Arc::downgrade(&inner),
            reply_topic: Topic::reply(&inner.me).as_str().to_owned(),
            presence: presence.as_str().to_owned(),
            prefixes: interest.prefixes,
            streams: interest.streams.into_iter().map(StreamState::new).collect(),
            tails: Tails::default(),
            life: Life::Absent {
                attempt: 0,
                ping: None,
            },
            events: sender,
            backlog: VecDeque::new(),
            dropped: 0,
            snapshots,
        };
        let handle = tokio::spawn(task.run(events, changes, fetched)).abort_handle();
        *inner.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
        Ok((Self { inner }, receiver))
    }

    /// Which component this leads to.
    pub fn component(&self) -> &Component {
        &self.inner.to
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
        from_value(&value).map_err(|source| RequestError::Answer {
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
    ) -> Result<rmpv::Value, RequestError> {
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
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let component = self.inner.to.to_string();
                return Err(RequestError::TimedOut {
                    component,
                    accepted,
                });
            }
            let budget_ms = Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
            self.inner
                .send(id, kind, body, budget_ms, cause)
                .await
                .map_err(RequestError::Bus)?;
            let until = (Instant::now() + repeat).min(deadline);
            tokio::select! {
                // Cancel safe: a reply is taken only when this arm completes.
                reply = replies.recv() => match reply {
                    Some(Verdict::Done { result }) => return Ok(result),
                    Some(Verdict::Failed { error }) => return Err(RequestError::Status(error)),
                    Some(Verdict::Accepted {}) => {
                        accepted = true;
                        repeat = REPEAT_MAX;
                        // Being worked on: wait for the result, ask again only after a while.
                        let until = (Instant::now() + repeat).min(deadline);
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

/// Whether the component is there.
#[derive(Debug)]
enum Life {
    /// It is being looked for.
    Absent { attempt: u32, ping: Option<Uuid> },
    /// An echo came back.
    Present { incarnation: u64, heard: Instant },
}

#[derive(Debug)]
struct StreamState {
    stream: Stream,
    /// Counts the snapshots asked for; the answer to an older one is void.
    epoch: u64,
    mode: Mode,
}

#[derive(Debug)]
enum Mode {
    /// Nothing is known; deltas are worthless.
    Lost,
    /// A snapshot is on the way; deltas are held back.
    Fetching { held: Vec<Received>, overflow: bool },
    /// Deltas are handed on.
    InStep,
}

impl StreamState {
    fn new(stream: Stream) -> Self {
        Self {
            stream,
            epoch: 0,
            mode: Mode::Lost,
        }
    }
}

/// A whole snapshot: watermarks and items.
type State = (Vec<(String, u64)>, Vec<rmpv::Value>);

#[derive(Debug)]
struct Fetched {
    index: usize,
    epoch: u64,
    result: Option<State>,
}

struct Task {
    link: std::sync::Weak<Inner>,
    reply_topic: String,
    presence: String,
    prefixes: Vec<String>,
    streams: Vec<StreamState>,
    tails: Tails,
    life: Life,
    events: mpsc::Sender<LinkEvent>,
    /// Must-deliver events that found the queue full; bounded by the number of
    /// streams and changes of presence, since deltas never enter it.
    backlog: VecDeque<LinkEvent>,
    dropped: u64,
    snapshots: mpsc::Sender<Fetched>,
}

impl Task {
    async fn run(
        mut self,
        socket: SubSocket,
        mut changes: ConnectionWatch,
        mut fetched: mpsc::Receiver<Fetched>,
    ) {
        let events = self.events.clone();
        loop {
            let wake = self.wake();
            tokio::select! {
                // Every arm is cancel safe: nothing is taken before it completes.
                message = socket.recv() => match message {
                    Ok((topic, body)) => self.received(&topic, &body),
                    Err(_) => return,
                },
                made = changes.changed() => if made { self.kick() } else { self.lost() },
                Some(fetched) = fetched.recv() => self.fetched(fetched),
                permit = events.reserve(), if !self.backlog.is_empty() => {
                    match (permit, self.backlog.pop_front()) {
                        (Ok(permit), Some(event)) => permit.send(event),
                        // Nobody listens any more: only requests go on.
                        _ => self.backlog.clear(),
                    }
                    if self.backlog.is_empty() {
                        self.heal();
                    }
                }
                () = wake => self.woken().await,
            }
        }
    }

    /// When the task has to act by itself: the next ping, or the end of patience.
    fn wake(&self) -> impl Future<Output = ()> + use<> {
        let (spin, until) = match &self.life {
            Life::Absent { ping: None, .. } => (None, Some(Instant::now())),
            Life::Absent { attempt, .. } => match attempt {
                // Timers round up to a millisecond; an echo takes a tenth of one.
                0..=20 => (Some(Duration::from_micros(150)), None),
                21..=60 => (None, Some(Instant::now() + Duration::from_millis(2))),
                61..=80 => (None, Some(Instant::now() + Duration::from_millis(20))),
                _ => (None, Some(Instant::now() + Duration::from_millis(200))),
            },
            Life::Present { heard, .. } => (None, Some(*heard + SILENCE)),
        };
        async move {
            if let Some(spin) = spin {
                let begin = Instant::now();
                while begin.elapsed() < spin {
                    tokio::task::yield_now().await;
                }
            } else if let Some(until) = until {
                tokio::time::sleep_until(until).await;
            }
        }
    }

    async fn woken(&mut self) {
        match &mut self.life {
            Life::Absent { attempt, ping } => {
                *attempt = attempt.saturating_add(1);
                let id = *ping.get_or_insert_with(envelope::fresh_id);
                if let Some(link) = self.link.upgrade() {
                    let _ = link.send(id, Ping::KIND, &Ping {}, Some(1000), None).await;
                }
            }
            Life::Present { heard, .. } => {
                if heard.elapsed() >= SILENCE {
                    tracing::debug!("silent for too long");
                    self.lost();
                }
            }
        }
    }

    /// A connection was made: look for the component at once.
    fn kick(&mut self) {
        if let Life::Absent { attempt, .. } = &mut self.life {
            *attempt = 0;
        }
    }

    fn lost(&mut self) {
        if matches!(self.life, Life::Present { .. }) {
            if let Some(link) = self.link.upgrade() {
                link.up.send_replace(None);
            }
            self.must_deliver(LinkEvent::Down);
        }
        self.life = Life::Absent {
            attempt: 0,
            ping: None,
        };
        for stream in &mut self.streams {
            stream.mode = Mode::Lost;
            stream.epoch += 1;
        }
    }

    fn received(&mut self, topic: &[u8], body: &[u8]) {
        let (Ok(topic), Ok(envelope)) = (std::str::from_utf8(topic), Envelope::decode(body)) else {
            tracing::debug!("a message is not understood");
            return;
        };
        let received = Received {
            topic: Topic::received(topic),
            envelope,
        };
        if topic == self.reply_topic {
            self.reply(&received);
            return;
        }
        match &mut self.life {
            Life::Present { incarnation, heard } => {
                if received.envelope.source.incarnation == *incarnation {
                    *heard = Instant::now();
                } else {
                    // Another life of the component: everything is proven anew.
                    self.lost();
                    return;
                }
            }
            Life::Absent { .. } => {
                if topic == self.presence && received.kind() == Hello::KIND {
                    self.kick();
                }
                return;
            }
        }
        if topic == self.presence {
            match received.kind() {
                Bye::KIND => self.lost(),
                Heartbeat::KIND => self.heartbeat(&received),
                _ => {}
            }
            if self.wants(topic) {
                self.offer(received);
            }
            return;
        }
        match self
            .streams
            .iter()
            .position(|stream| topic.starts_with(stream.stream.prefix))
        {
            Some(index) => self.delta(index, received),
            None => {
                self.offer(received);
            }
        }
    }

    fn wants(&self, topic: &str) -> bool {
        self.prefixes
            .iter()
            .any(|prefix| topic.starts_with(prefix.as_str()))
    }

    fn reply(&mut self, received: &Received) {
        let Ok(reply) = received.parse::<Reply>() else {
            tracing::debug!("a reply is not understood");
            return;
        };
        let Some(link) = self.link.upgrade() else {
            return;
        };
        if let Life::Absent {
            ping: Some(ping), ..
        } = &self.life
            && *ping == reply.to
        {
            if let Verdict::Done { result } = reply.verdict
                && let Ok(info) = from_value::<ComponentInfo>(&result)
            {
                self.present(&link, info);
            }
            return;
        }
        let sender = link.pending().get(&reply.to).cloned();
        if let Some(sender) = sender {
            // Full only with repetitions, which say nothing new.
            let _ = sender.try_send(reply.verdict);
        }
    }

    fn present(&mut self, link: &Arc<Inner>, info: ComponentInfo) {
        self.life = Life::Present {
            incarnation: info.incarnation,
            heard: Instant::now(),
        };
        self.tails.clear();
        link.up.send_replace(Some(info.clone()));
        self.must_deliver(LinkEvent::Up(info));
        for index in 0..self.streams.len() {
            self.fetch(index);
        }
    }

    fn heartbeat(&mut self, received: &Received) {
        let Ok(heartbeat) = received.parse::<Heartbeat>() else {
            return;
        };
        for index in 0..self.streams.len() {
            let Some(state) = self.streams.get(index) else {
                continue;
            };
            if !matches!(state.mode, Mode::InStep) {
                continue;
            }
            let prefix = state.stream.prefix;
            let told = heartbeat.tails.iter().find(|tail| tail.prefix == prefix);
            let told = told.map_or((0, 0), |tail| (tail.topics, tail.hash));
            if told != self.tails.sum(prefix) {
                tracing::info!(prefix, "events were missed: asking for a snapshot");
                self.fetch(index);
            }
        }
    }

    fn delta(&mut self, index: usize, received: Received) {
        let Some(state) = self.streams.get_mut(index) else {
            return;
        };
        match &mut state.mode {
            Mode::Lost => {}
            Mode::Fetching { held, overflow } => {
                if held.len() < HELD_BACK {
                    held.push(received);
                } else {
                    *overflow = true;
                }
            }
            Mode::InStep => match self
                .tails
                .arrived(received.topic.as_str(), received.envelope.seq)
            {
                Arrival::Next => {
                    if !self.offer(received) {
                        self.lose(index);
                    }
                }
                Arrival::Old => {}
                Arrival::Gap => {
                    tracing::info!(topic = %received.topic, "events were missed: asking for a snapshot");
                    self.fetch(index);
                    self.delta(index, received);
                }
            },
        }
    }

    /// The user is too slow: what comes now is dropped until there is room for a snapshot.
    fn lose(&mut self, index: usize) {
        if let Some(state) = self.streams.get_mut(index) {
            state.mode = Mode::Lost;
            state.epoch += 1;
        }
    }

    /// Asks again for the streams that were given up while the queue was full.
    fn heal(&mut self) {
        if !matches!(self.life, Life::Present { .. }) {
            return;
        }
        for index in 0..self.streams.len() {
            if self
                .streams
                .get(index)
                .is_some_and(|state| matches!(state.mode, Mode::Lost))
            {
                self.fetch(index);
            }
        }
    }

    fn fetch(&mut self, index: usize) {
        let Some(link) = self.link.upgrade() else {
            return;
        };
        let Some(state) = self.streams.get_mut(index) else {
            return;
        };
        state.epoch += 1;
        state.mode = Mode::Fetching {
            held: Vec::new(),
            overflow: false,
        };
        let (stream, epoch, snapshots) =
            (state.stream.clone(), state.epoch, self.snapshots.clone());
        tokio::spawn(async move {
            let result = pages(&Link { inner: link }, &stream).await;
            let _ = snapshots
                .send(Fetched {
                    index,
                    epoch,
                    result,
                })
                .await;
        });
    }

    fn fetched(&mut self, fetched: Fetched) {
        let Fetched {
            index,
            epoch,
            result,
        } = fetched;
        let Some(state) = self.streams.get_mut(index) else {
            return;
        };
        if state.epoch != epoch {
            return;
        }
        let Mode::Fetching { held, overflow } = std::mem::replace(&mut state.mode, Mode::InStep)
        else {
            return;
        };
        let prefix = state.stream.prefix;
        let Some((watermarks, items)) = result else {
            self.fetch(index);
            return;
        };
        for (topic, seq) in watermarks {
            self.tails.raise(&topic, seq);
        }
        self.must_deliver(LinkEvent::Snapshot { prefix, items });
        for received in held {
            self.delta(index, received);
        }
        if overflow {
            self.fetch(index);
        }
    }

    /// Hands on an event that may be dropped; tells whether it was not.
    fn offer(&mut self, received: Received) -> bool {
        if !self.backlog.is_empty() {
            self.dropped += 1;
            return false;
        }
        match self.events.try_send(LinkEvent::Event(received)) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.dropped += 1;
                tracing::warn!(
                    dropped = self.dropped,
                    "events come faster than they are taken"
                );
                // Once it is delivered there is room, and the streams are healed.
                self.backlog.push_back(LinkEvent::Lagged {
                    dropped: self.dropped,
                });
                false
            }
        }
    }

    fn must_deliver(&mut self, event: LinkEvent) {
        if self.backlog.is_empty() {
            match self.events.try_send(event) {
                Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
                Err(mpsc::error::TrySendError::Full(event)) => self.backlog.push_back(event),
            }
        } else {
            self.backlog.push_back(event);
        }
    }
}

/// All pages of a stream. The watermarks are those of the first page: what
/// changed while the later ones were read comes again as an event.
async fn pages(link: &Link, stream: &Stream) -> Option<State> {
    let mut after = None;
    let mut first: Option<(u64, Vec<(String, u64)>)> = None;
    let mut items = Vec::new();
    loop {
        let body = (stream.page)(after).ok()?;
        let value = match link
            .request_raw(stream.kind, &body, PAGE_BUDGET, None)
            .await
        {
            Ok(value) => value,
            Err(error) => {
                tracing::info!(prefix = stream.prefix, %error, "no snapshot");
                // The owner answers and refuses: do not ask it without end at full speed.
                tokio::time::sleep(Duration::from_millis(200)).await;
                return None;
            }
        };
        let page: Snapshot<rmpv::Value> = match from_value(&value) {
            Ok(page) => page,
            Err(error) => {
                tracing::warn!(prefix = stream.prefix, %error, "a snapshot is not understood");
                tokio::time::sleep(Duration::from_secs(1)).await;
                return None;
            }
        };
        match &first {
            None => first = Some((page.incarnation, page.watermarks)),
            Some((incarnation, _)) if *incarnation != page.incarnation => return None,
            Some(_) => {}
        }
        items.extend(page.items);
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    first.map(|(_, watermarks)| (watermarks, items))
}
