//! A component's own side of the bus: its two sockets, its events, its replies.

mod dispatch;
mod incoming;
mod replies;
pub mod tcp;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use uuid::Uuid;

use dispatch::dispatcher;
pub use incoming::Incoming;
use replies::ReplyCache;

use super::BusError;
use super::counters::{ServerCounters, read_all_links};
use super::tails::Tails;
use crate::component::{Bye, ComponentInfo, Heartbeat, Hello, StreamTail};
use crate::config::Listen;
use crate::dirs::{Dirs, unix_now_ns};
use crate::envelope::{self, Outgoing, Source};
use crate::memory;
use crate::message::{Message, PAGE_ITEMS, Snapshot};
use crate::names::{ClientName, Component};
use crate::process::LogLines;
use crate::pulse::Pulse;
use crate::reply::{Reply, Status, Verdict};
use crate::topic::{self, Topic};
use crate::transport::{PubSocket, SubSocket};

/// Messages waiting for the publisher task. When full, `publish` waits: the
/// publisher only hands to the I/O and never waits for a subscriber.
const OUTGOING: usize = 4096;
/// Commands waiting for the component. When full, further ones are dropped and
/// repeated by their clients.
const COMMANDS: usize = 1024;
/// How long an event may wait for the next one, see [`Server::publish_patiently`]. Timers
/// round up to the next millisecond.
const PATIENCE: Duration = Duration::from_millis(1);
/// Time between heartbeats.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(1);

/// A component's side of the bus. Clones speak for the same component.
#[derive(Debug, Clone)]
pub struct Server {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    component: Component,
    source: Source,
    started_at: u64,
    outgoing: mpsc::Sender<Frames>,
    log: Option<PubSocket>,
    state: Mutex<State>,
    counters: ServerCounters,
    tasks: Mutex<Vec<AbortHandle>>,
}

#[derive(Debug, Default)]
struct State {
    tails: Tails,
    notes: Vec<String>,
    replies: ReplyCache,
    unknown_kinds: Vec<String>,
    /// What the component counts beyond the bus, see [`Server::count`].
    own: BTreeMap<&'static str, u64>,
    /// Why it is not there over TCP, where it should be.
    no_tcp: Option<String>,
    /// It has said goodbye: an answer after that would be a sign of life.
    closing: bool,
}

#[derive(Debug)]
struct Frames {
    topic: Bytes,
    body: Bytes,
    /// Told when the frames are with the I/O.
    sent: Option<tokio::sync::oneshot::Sender<()>>,
    /// It may go with what comes next, at the latest after [`PATIENCE`].
    patient: bool,
}

/// When an event leaves, and who is told.
struct When {
    sent: Option<tokio::sync::oneshot::Sender<()>>,
    patient: bool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        for task in self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

impl Server {
    /// Binds the component's sockets, says hello and begins to send heartbeats.
    /// Called once, under the component's lock, within a tokio runtime. Commands
    /// come out of the receiver; `component.ping` and repeated ids are answered inside.
    ///
    /// # Errors
    /// When a socket cannot be bound.
    pub async fn bind(
        dirs: &Dirs,
        component: Component,
        incarnation: u64,
    ) -> Result<(Self, mpsc::Receiver<Incoming>), BusError> {
        Self::bind_with(dirs, component, incarnation, &Listen::default()).await
    }

    /// [`Server::bind`], also at the component's addresses in `listen`. When those
    /// cannot be bound (another program has the port) the component works without
    /// them and says so in its notes: services do not hang on a port.
    ///
    /// # Errors
    /// When a socket in the run directory cannot be bound.
    pub async fn bind_with(
        dirs: &Dirs,
        component: Component,
        incarnation: u64,
        listen: &Listen,
    ) -> Result<(Self, mpsc::Receiver<Incoming>), BusError> {
        let evt = PubSocket::bind(&dirs.bus_evt(&component)).await?;
        let log = match component {
            Component::ProcessManager(_) => Some(PubSocket::bind(&dirs.bus_log(&component)).await?),
            _ => None,
        };
        let cmd = SubSocket::bind(&dirs.bus_cmd(&component)).await?;
        cmd.subscribe("").await?;
        let (outgoing, queue) = mpsc::channel(OUTGOING);
        let (commands, incoming) = mpsc::channel(COMMANDS);
        let server = Self {
            inner: Arc::new(Inner {
                source: Source {
                    component: component.to_string(),
                    instance: std::process::id().to_string(),
                    incarnation,
                },
                component,
                started_at: unix_now_ns(),
                outgoing,
                log,
                state: Mutex::default(),
                counters: ServerCounters::default(),
                tasks: Mutex::default(),
            }),
        };
        let weak = Arc::downgrade(&server.inner);
        let mut sockets = vec![evt];
        // The publisher is not among them: it ends by itself when all is sent.
        let mut tasks = Vec::new();
        match tcp::bind(&weak, dirs, listen).await {
            Ok(Some((evt, cmd))) => {
                sockets.push(evt);
                tasks.push(tokio::spawn(dispatcher(
                    weak.clone(),
                    cmd,
                    commands.clone(),
                )));
            }
            Ok(None) => {}
            Err(error) => {
                let text = format!("not reachable over TCP: {}", chain(&error));
                tracing::error!("{text}");
                server.inner.lock().no_tcp = Some(text);
            }
        }
        tokio::spawn(publisher(sockets, queue));
        tasks.push(tokio::spawn(dispatcher(weak.clone(), cmd, commands)));
        tasks.push(tokio::spawn(heartbeats(weak)));
        server
            .inner
            .tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(tasks.iter().map(tokio::task::JoinHandle::abort_handle));
        let hello = Hello {
            info: server.info(),
        };
        server
            .publish(Topic::component(server.component()), &hello, None)
            .await;
        Ok((server, incoming))
    }

    /// Which component this is.
    pub fn component(&self) -> &Component {
        &self.inner.component
    }

    /// This life of the component.
    pub fn incarnation(&self) -> u64 {
        self.inner.source.incarnation
    }

    /// What a ping is answered with.
    pub fn info(&self) -> ComponentInfo {
        // Before the literal: a guard inside it would be held to its end.
        let notes = {
            let state = self.inner.lock();
            state.notes.iter().chain(&state.no_tcp).cloned().collect()
        };
        ComponentInfo {
            component: self.inner.component.clone(),
            pid: std::process::id(),
            incarnation: self.inner.source.incarnation,
            version: crate::VERSION.to_owned(),
            started_at: self.inner.started_at,
            notes,
            counters: self.counters(),
        }
    }

    /// All that this process has counted since its start, by name: the bus's own
    /// counters (`published.…`, `commands.…`, `log.…`, and `link.…`, the sum over
    /// all links of the process), and what [`Server::count`] added.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        self.inner.counters.read(&mut all);
        read_all_links(&mut all);
        for (name, count) in &self.inner.lock().own {
            all.insert((*name).to_owned(), *count);
        }
        all
    }

    /// Adds to a counter of the component's own, shown with those of the bus.
    /// `name` has the form `noun.what`, for instance `calls.refused`.
    pub fn count(&self, name: &'static str, by: u64) {
        *self.inner.lock().own.entry(name).or_insert(0) += by;
    }

    /// What the component misses or what limits it, shown by `status`; replaces what was said before.
    pub fn set_notes(&self, notes: Vec<String>) {
        self.inner.lock().notes = notes;
    }

    /// Publishes an event. Its `seq` follows the order of the calls. Waits only
    /// while the queue to the publisher is full. Cancelling the wait publishes nothing.
    pub async fn publish<M: Message>(&self, topic: Topic, message: &M, cause: Option<Uuid>) {
        let urgent = When {
            sent: None,
            patient: false,
        };
        self.inner.publish(topic, message, cause, urgent).await;
    }

    /// [`Server::publish`] of what is no news to anybody who has to act at once: it
    /// leaves together with the next message, or after about a millisecond. Sending
    /// wakes every subscriber, and on a small host these would be in the way of the
    /// very work that the event announces.
    pub async fn publish_patiently<M: Message>(
        &self,
        topic: Topic,
        message: &M,
        cause: Option<Uuid>,
    ) {
        let patient = When {
            sent: None,
            patient: true,
        };
        self.inner.publish(topic, message, cause, patient).await;
    }

    /// Publishes log lines on their own lane. They are not counted by `seq`
    /// (the message says what was dropped) and never delay an event. Only a
    /// process-manager has the lane; elsewhere nothing happens.
    pub async fn publish_log(&self, topic: Topic, lines: &LogLines) {
        let Some(socket) = &self.inner.log else {
            return;
        };
        let counters = &self.inner.counters;
        counters.log_lines.add(lines.lines.len() as u64);
        counters.log_dropped.add(lines.dropped);
        if let Some(body) = self.inner.encode(0, None, lines) {
            let _ = socket.send(topic.as_str().to_owned().into(), body).await;
        }
    }

    /// The last `seq` of each topic below `prefix`.
    pub fn watermarks(&self, prefix: &str) -> Vec<(String, u64)> {
        self.inner.lock().tails.with_prefix(prefix)
    }

    /// Counts a message that is never sent, as if it had been lost.
    #[cfg(test)]
    pub(super) fn skip_for_test(&self, topic: &Topic) {
        self.inner.lock().tails.next(topic.as_str());
    }

    /// One page of a snapshot: the items after `after` out of all, which come in
    /// the order of their names. Call it without an await between reading the
    /// state and this, so that items and watermarks belong together.
    pub fn snapshot<T>(
        &self,
        prefix: &str,
        all_sorted: impl Iterator<Item = (String, T)>,
        after: Option<&str>,
    ) -> Snapshot<T> {
        let mut items = Vec::new();
        let mut last = None;
        let mut next = None;
        for (name, item) in all_sorted {
            if after.is_some_and(|after| name.as_str() <= after) {
                continue;
            }
            if items.len() == PAGE_ITEMS {
                next = last;
                break;
            }
            items.push(item);
            last = Some(name);
        }
        Snapshot {
            incarnation: self.incarnation(),
            watermarks: self.watermarks(prefix),
            items,
            next,
        }
    }

    /// Says goodbye and waits until that is with the I/O. The last thing a daemon does.
    pub async fn bye(&self, reason: &str) {
        let (sent, wait) = tokio::sync::oneshot::channel();
        self.inner.lock().closing = true;
        let bye = Bye {
            reason: reason.to_owned(),
        };
        let topic = Topic::component(self.component());
        let when = When {
            sent: Some(sent),
            patient: false,
        };
        self.inner.publish(topic, &bye, None, when).await;
        let _ = wait.await;
        // The I/O task writes in its own time; give it turns before the runtime ends.
        for _ in 0..64 {
            tokio::task::yield_now().await;
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn encode<M: Message>(&self, seq: u64, cause: Option<Uuid>, body: &M) -> Option<Bytes> {
        self.encode_as(M::KIND, seq, cause, body)
    }

    fn encode_as<B: Serialize>(
        &self,
        kind: &'static str,
        seq: u64,
        cause: Option<Uuid>,
        body: &B,
    ) -> Option<Bytes> {
        let envelope = Outgoing {
            v: envelope::VERSION,
            id: envelope::fresh_id(),
            at: unix_now_ns(),
            source: &self.source,
            seq,
            cause,
            reply_to: None,
            budget_ms: None,
            kind,
            body,
        };
        match envelope.encode() {
            Ok(bytes) => Some(bytes.into()),
            Err(error) => {
                tracing::error!(kind, %error, "message cannot be encoded");
                None
            }
        }
    }

    async fn publish<M: Message>(
        &self,
        topic: Topic,
        message: &M,
        cause: Option<Uuid>,
        When { sent, patient }: When,
    ) {
        let Ok(permit) = self.outgoing.reserve().await else {
            return;
        };
        // Counted, encoded and queued without an await in between: seq is the order of sending.
        let seq = self.lock().tails.next(topic.as_str());
        self.counters.published(topic.as_str());
        if let Some(body) = self.encode(seq, cause, message) {
            permit.send(Frames {
                topic: topic.as_str().to_owned().into(),
                body,
                sent,
                patient,
            });
        }
    }

    async fn send_reply(&self, client: &ClientName, body: Bytes) {
        self.counters.replies.up();
        let topic = Topic::reply(client).as_str().to_owned().into();
        let _ = self
            .outgoing
            .send(Frames {
                topic,
                body,
                sent: None,
                patient: false,
            })
            .await;
    }

    /// Answers with a status, without a handler.
    async fn refuse(&self, client: &ClientName, to: Uuid, error: Status) {
        if let Some(body) = self.encode(
            0,
            Some(to),
            &Reply {
                to,
                verdict: Verdict::Failed { error },
            },
        ) {
            self.lock().replies.finish(to, body.clone());
            self.send_reply(client, body).await;
        }
    }
}

/// Hands queued messages to the I/O, in order. Patient ones stay in the queue
/// until there is one that is not, until it is full, or for [`PATIENCE`].
async fn publisher(sockets: Vec<PubSocket>, mut queue: mpsc::Receiver<Frames>) {
    let mut sends = 0_u32;
    // Patient ones: as many as the queue holds, taken out to see what is behind them.
    let mut held = Vec::new();
    let mut until = None;
    let mut open = true;
    while open || !held.is_empty() {
        let next = match until {
            None => queue.recv().await,
            Some(deadline) => match tokio::time::timeout_at(deadline, queue.recv()).await {
                Ok(next) => next,
                Err(_) => {
                    hand_on(&sockets, &mut held, &mut sends).await;
                    until = None;
                    continue;
                }
            },
        };
        match next {
            Some(frames) => {
                let patient = frames.patient && held.len() < OUTGOING;
                held.push(frames);
                if patient {
                    until = until.or_else(|| Some(Instant::now() + PATIENCE));
                    continue;
                }
            }
            None => open = false,
        }
        hand_on(&sockets, &mut held, &mut sends).await;
        until = None;
    }
    for socket in sockets {
        socket.close().await;
    }
}

async fn hand_on(sockets: &[PubSocket], held: &mut Vec<Frames>, sends: &mut u32) {
    for frames in held.drain(..) {
        for socket in sockets {
            // Closed only with the runtime: then there is nobody to tell.
            let _ = socket.send(frames.topic.clone(), frames.body.clone()).await;
        }
        if let Some(sent) = frames.sent {
            let _ = sent.send(());
        }
        *sends = sends.wrapping_add(1);
        if sends.is_multiple_of(16) {
            // A PUB's send never waits: without this a burst fills the high-water mark and is dropped.
            tokio::task::yield_now().await;
        }
    }
}

/// An error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

async fn heartbeats(inner: std::sync::Weak<Inner>) {
    let mut tick = Pulse::new(HEARTBEAT);
    loop {
        tick.tick().await;
        let Some(inner) = inner.upgrade() else { return };
        if inner.lock().replies.beat() {
            memory::give_back();
        }
        let Ok(permit) = inner.outgoing.reserve().await else {
            return;
        };
        let topic = Topic::component(&inner.component);
        let body = {
            // Taken in the order of publishing, like every seq: the tails are those of
            // exactly the messages that precede this one.
            let mut state = inner.lock();
            let seq = state.tails.next(topic.as_str());
            inner.counters.published(topic.as_str());
            let tails = [
                topic::PROCESS,
                topic::HEALTH,
                topic::SUPERVISION,
                topic::RESOURCE,
                topic::REGISTRY,
            ]
            .into_iter()
            .filter_map(|prefix| {
                let (topics, hash) = state.tails.sum(prefix);
                (topics > 0).then(|| StreamTail {
                    prefix: prefix.to_owned(),
                    topics,
                    hash,
                })
            })
            .collect();
            drop(state);
            inner.encode(
                seq,
                None,
                &Heartbeat {
                    pid: std::process::id(),
                    tails,
                },
            )
        };
        if let Some(body) = body {
            permit.send(Frames {
                topic: topic.as_str().to_owned().into(),
                body,
                sent: None,
                patient: false,
            });
        }
    }
}
