//! The task of a link: owns the receiving socket, proves the path, keeps the
//! order of events, and asks for a snapshot whenever something may have been missed.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::life::{Life, SILENCE};
use super::pages::{State, pages};
use super::{Inner, Interest, Link, LinkEvent, Received, Stream};
use crate::bus::counters::{Counter, LinkCounters, is_known_event};
use crate::bus::tails::{Arrival, Tails};
use crate::component::{Bye, ComponentInfo, Heartbeat, Hello, Ping};
use crate::envelope::{self, Envelope, EnvelopeError};
use crate::message::Message;
use crate::reply::{Reply, Verdict};
use crate::topic::{self, Topic};
use crate::transport::{ConnectionWatch, SubSocket, SubscriberWatch};

/// Events of a stream held back while its snapshot is on the way. When full,
/// the snapshot is asked for again afterwards.
const HELD_BACK: usize = 16_384;
#[derive(Debug)]
struct StreamState {
    stream: Stream,
    /// Counts the snapshots asked for; the answer to an older one is void.
    epoch: u64,
    mode: Mode,
    /// Something was missed, and the next snapshot makes it good.
    healing: bool,
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
            healing: false,
        }
    }
}

#[derive(Debug)]
pub(super) struct Fetched {
    index: usize,
    epoch: u64,
    result: Option<State>,
}

pub(super) struct Task {
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
    /// The path was proven at least once.
    was_up: bool,
    /// Kinds and versions that were reported, at most [`REPORTED`] of them.
    reported: Vec<String>,
    #[cfg(test)]
    losses: Option<super::Losses>,
}

/// Strange kinds and versions that are reported by one link, each once.
const REPORTED: usize = 16;

impl Task {
    /// The task of a link, and the channel on which it gets its snapshots: one
    /// place a stream, and a full one only makes the fetching wait.
    pub(super) fn new(
        link: &Arc<Inner>,
        interest: Interest,
        events: mpsc::Sender<LinkEvent>,
    ) -> (Self, mpsc::Receiver<Fetched>) {
        let (snapshots, fetched) = mpsc::channel(interest.streams.len().max(1));
        let task = Self {
            link: Arc::downgrade(link),
            reply_topic: Topic::reply(&link.me).as_str().to_owned(),
            presence: Topic::component(&link.to).as_str().to_owned(),
            prefixes: interest.prefixes,
            streams: interest.streams.into_iter().map(StreamState::new).collect(),
            tails: Tails::default(),
            life: Life::absent(),
            events,
            backlog: VecDeque::new(),
            dropped: 0,
            snapshots,
            was_up: false,
            reported: Vec::new(),
            #[cfg(test)]
            losses: interest.losses,
        };
        (task, fetched)
    }

    pub(super) async fn run(
        mut self,
        socket: SubSocket,
        (mut changes, mut heard): (ConnectionWatch, SubscriberWatch),
        mut fetched: mpsc::Receiver<Fetched>,
    ) {
        let events = self.events.clone();
        loop {
            let wake = self.life.wake();
            tokio::select! {
                // Every arm is cancel safe: nothing is taken before it completes.
                message = socket.recv() => match message {
                    Ok((topic, body)) => self.received(&topic, &body),
                    Err(_) => return,
                },
                made = changes.changed() => if made { self.kick() } else { self.lost() },
                // It hears commands from here on.
                () = heard.subscribed() => self.kick(),
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

    async fn woken(&mut self) {
        match &mut self.life {
            Life::Absent {
                attempt,
                ping,
                looked,
            } => {
                *attempt = attempt.saturating_add(1);
                *looked = Instant::now();
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

    /// A connection was made, or the component hears us: look for it at once, and closely.
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
        self.life = Life::absent();
        for stream in &mut self.streams {
            stream.mode = Mode::Lost;
            stream.epoch += 1;
            stream.healing = false;
        }
    }

    fn count(&self, which: fn(&LinkCounters) -> &Counter) {
        if let Some(link) = self.link.upgrade() {
            link.counters.count(which);
        }
    }

    /// Whether `what` has not been reported before.
    fn first_time(&mut self, what: &str) -> bool {
        // A kind is as long as its sender likes.
        let what = &crate::bus::shortened(what);
        if self.reported.len() >= REPORTED || self.reported.iter().any(|known| known == what) {
            return false;
        }
        self.reported.push(what.to_owned());
        true
    }

    fn not_understood(&mut self, topic: &str, error: &EnvelopeError) {
        let text = error.to_string();
        match error {
            EnvelopeError::Version { .. } => self.count(|all| &all.wrong_version),
            _ => self.count(|all| &all.undecodable),
        }
        if self.first_time(&text) {
            tracing::warn!(topic, error = text, "a message is skipped; reported once");
        }
    }

    fn received(&mut self, topic: &[u8], body: &[u8]) {
        let topic = String::from_utf8_lossy(topic);
        let topic = topic.as_ref();
        let envelope = match Envelope::decode(body) {
            Ok(envelope) => envelope,
            Err(error) => {
                self.not_understood(topic, &error);
                return;
            }
        };
        #[cfg(test)]
        if let Some(losses) = &self.losses
            && (losses.0)(topic, &envelope)
        {
            return;
        }
        let received = Received {
            topic: Topic::received(topic),
            envelope,
        };
        if topic == self.reply_topic {
            self.reply(&received);
            return;
        }
        if topic.starts_with(topic::COMMAND) {
            // A command that the component repeats: its source is the client that sent it,
            // which says nothing of the component's life. Nobody who did not ask gets it.
            if matches!(self.life, Life::Present { .. }) {
                self.offer(received);
            }
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
        // Of others' replies, which come to who follows everything, there are no kinds to know.
        if topic.starts_with(topic::EVENT) && !is_known_event(received.kind()) {
            self.count(|all| &all.unknown);
            if self.first_time(received.kind()) {
                tracing::warn!(
                    topic,
                    kind = received.kind(),
                    "an event of an unknown kind; reported once"
                );
            }
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
                && let Ok(info) = result.parse::<ComponentInfo>()
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
        if std::mem::replace(&mut self.was_up, true) {
            link.counters.count(|all| &all.reconnects);
        }
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
                self.missed(index);
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
                Arrival::Old => self.count(|all| &all.discarded),
                Arrival::Gap => {
                    tracing::info!(topic = %received.topic, "events were missed: asking for a snapshot");
                    self.missed(index);
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
            state.healing = true;
        }
    }

    /// A stream misses something: a snapshot is to make it good.
    fn missed(&mut self, index: usize) {
        self.count(|all| &all.gaps);
        if let Some(state) = self.streams.get_mut(index) {
            state.healing = true;
        }
        self.fetch(index);
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
        link.counters.count(|all| &all.snapshots);
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
        let healed = std::mem::replace(&mut state.healing, false);
        if healed {
            self.count(|all| &all.healed);
        }
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
            self.count(|all| &all.lagged);
            return false;
        }
        match self.events.try_send(LinkEvent::Event(received)) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.dropped += 1;
                self.count(|all| &all.lagged);
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
