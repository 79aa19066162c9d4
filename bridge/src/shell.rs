//! The task around the core: sockets, clock and bus.

use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use blackhole_bus_schema::bus::{self, Incoming, Interest, Link, LinkEvent, Server};
use blackhole_bus_schema::daemon::{Daemon, Shutdown};
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::managers;
use blackhole_bus_schema::message::Message;
use blackhole_bus_schema::names::{ClientName, Component, Generation, InstanceName};
use blackhole_bus_schema::process::{InstanceRecord, ListProcesses, ProcessChanged};
use blackhole_bus_schema::registry::{Drain, ListCalls, ListRegistry, RegistryChanged};
use blackhole_bus_schema::rpc::header::{Header, HeaderError};
use blackhole_bus_schema::rpc::{Credentials, Key, direct_dir, direct_dirs};
use blackhole_bus_schema::supervision::{
    Circuit, Desired, InstanceStatus, ListStatus, Phase, SupervisionChanged,
};
use blackhole_bus_schema::topic::{self, Topic};
use blackhole_bus_schema::transport::rpc::{
    Admitted, Frame, FromPeer, Ledger, Peer, PeerEvent, PeerWatch, Route, Router, SendError,
};
use tokio::sync::mpsc;

use crate::BridgeError;
use crate::core::{Action, Conn, Core, IdMap, Outlook, ProcessReport, Undelivered, What};
use crate::direct::DirectSockets;
use crate::page;
use crate::reports::Reports;
use crate::room;

/// Messages taken from the ROUTER before the other inputs have a turn.
const BURST: usize = 64;
/// Messages taken from the ROUTER when a connection is gone, before its calls
/// fail: of all connections no more than 64 are in the queue, see
/// [`blackhole_bus_schema::transport::rpc`].
const LAST_WORDS: usize = 4096;
/// How long the supervisor is waited for, at the start without a configuration,
/// before a service that nobody has named counts as unknown.
const SETTLE: Duration = Duration::from_secs(3);
/// How long calls under way may take when the bridge is asked to end.
const DRAIN: Duration = Duration::from_secs(2);

pub(crate) struct Shell {
    core: Core,
    router: Router,
    /// How to reach the connections that the core knows.
    routes: IdMap<Conn, (Route, Ledger)>,
    peers: PeerWatch,
    server: Server,
    commands: mpsc::Receiver<Incoming>,
    shutdown: Shutdown,
    /// To the process-managers and the supervisor.
    links: Vec<Link>,
    /// Process-managers that only an instance's folder still names: nobody has to run
    /// them, and what they may still have to tell is the supervisor's to miss.
    undeclared: HashSet<Component>,
    managers: Vec<mpsc::Receiver<LinkEvent>>,
    supervisor: mpsc::Receiver<LinkEvent>,
    dirs: Dirs,
    /// Actions that wait for the end of a burst of messages.
    later: Vec<Action>,
    /// The core's actions while they are carried out; kept for its memory.
    actions: Vec<Action>,
    offences: Reports,
    /// The spawn of each instance whose registration the log was told last, and
    /// whether it was told of an end of it. As many as there are tokens of services.
    told: HashMap<InstanceName, (Generation, bool)>,
    direct: DirectSockets,
    /// Drains to be answered. Bounded by the server's queue of commands and by
    /// their budgets; the core answers each.
    drains: HashMap<u64, Incoming>,
    next_drain: u64,
}

/// What one of the process-managers told. What each says of an instance goes by its
/// generation, so that their order does not matter. Cancel safe.
async fn next_of(managers: &mut [mpsc::Receiver<LinkEvent>]) -> LinkEvent {
    poll_fn(|context| {
        for events in &mut *managers {
            if let Poll::Ready(Some(event)) = events.poll_recv(context) {
                return Poll::Ready(event);
            }
        }
        Poll::Pending
    })
    .await
}

impl Shell {
    pub(crate) async fn open(daemon: Daemon) -> Result<Self, BridgeError> {
        let Daemon {
            dirs,
            config,
            server,
            commands,
            shutdown,
            listen,
            ..
        } = daemon;
        let key = Key::load_or_create(&dirs)?;
        let direct = DirectSockets::open(direct_dir(&dirs.rpc_socket()));
        let refusals = Reports::of("refused connections");
        let tokens = key.clone();
        let router = Router::bind(&dirs.rpc_socket(), move |username, password| {
            match tokens.check(username, password) {
                Ok(who) => Some(who.generation.to_string().into()),
                Err(error) => {
                    if refusals.may() {
                        let username: String = username.chars().take(80).collect();
                        tracing::warn!(username, %error, "a connection was refused");
                    }
                    None
                }
            }
        })
        .await?;
        if let Some(address) = listen.rpc {
            let address = router.also_bind(address).await?;
            tracing::info!(address, "carrying calls over TCP too");
        }
        let peers = router.watch();
        let me = ClientName::fresh("bridge");
        let mut links = Vec::new();
        let mut managers = Vec::new();
        let mut undeclared = HashSet::new();
        for manager in managers::known(&dirs, config.as_ref()) {
            let declared = config.as_ref().is_none_or(|config| {
                let mut all = config.orchestrator.managers();
                all.any(|declared| declared == manager)
            });
            let interest = Interest::none().stream::<ListProcesses>(topic::PROCESS);
            let manager = Component::ProcessManager(manager);
            if !declared {
                undeclared.insert(manager.clone());
            }
            let (link, events) = Link::open(&dirs, me.clone(), manager, interest).await?;
            links.push(link);
            managers.push(events);
        }
        let interest = Interest::none().stream::<ListStatus>(topic::SUPERVISION);
        let (supervisor_link, supervisor) =
            Link::open(&dirs, me, Component::Supervisor, interest).await?;
        links.push(supervisor_link);
        let mut core = Core::new(server.incarnation(), key);
        core.connections_at_most(room::connections());
        core.direct_below(direct_dirs(&dirs.rpc_socket()));
        if let Some(config) = config {
            core.configured(config.services.into_keys());
            core.settled(Instant::now());
        }
        Ok(Self {
            core,
            router,
            routes: IdMap::default(),
            peers,
            server,
            commands,
            shutdown,
            links,
            undeclared,
            managers,
            supervisor,
            dirs,
            later: Vec::new(),
            actions: Vec::new(),
            offences: Reports::of("offences"),
            told: HashMap::new(),
            direct,
            drains: HashMap::new(),
            next_drain: 0,
        })
    }

    /// Works until it is asked to end, and a little longer for the calls under way.
    pub(crate) async fn run(mut self) -> Result<(), BridgeError> {
        tracing::info!(socket = %self.dirs.rpc_socket().display(), "carrying calls");
        let shutdown = self.shutdown.clone();
        let settle = tokio::time::sleep(SETTLE);
        tokio::pin!(settle);
        let clock = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(clock);
        let mut armed = false;
        let mut settled = false;
        let mut end: Option<tokio::time::Instant> = None;
        loop {
            if end.is_some() && self.core.is_idle() {
                break;
            }
            // Moved only towards the past, or when it has passed: a deadline is most often
            // that of a call which was answered in time.
            match self
                .core
                .next_deadline()
                .map(tokio::time::Instant::from_std)
            {
                Some(due) if !armed || due < clock.deadline() => {
                    clock.as_mut().reset(due);
                    armed = true;
                }
                _ => {}
            }
            // Every arm is cancel safe: it takes something only when it completes.
            tokio::select! {
                message = self.router.recv() => {
                    let now = Instant::now();
                    self.message(now, message?);
                    for _ in 1..BURST {
                        match self.router.try_recv() {
                            Some(message) => self.message(now, message),
                            None => break,
                        }
                    }
                }
                event = self.peers.next() => self.peer(event).await,
                Some(incoming) = self.commands.recv() => self.command(incoming).await,
                event = next_of(&mut self.managers) => self.manager(event),
                Some(event) = self.supervisor.recv() => {
                    let snapshot = matches!(event, LinkEvent::Snapshot { .. });
                    self.supervisor(event);
                    if snapshot && !settled {
                        settled = true;
                        self.core.settled(Instant::now());
                    }
                }
                () = &mut settle, if !settle.is_elapsed() => {
                    self.report_missing();
                    if !settled {
                        settled = true;
                        self.core.settled(Instant::now());
                    }
                }
                () = clock.as_mut(), if armed => {
                    armed = false;
                    self.core.tick(Instant::now());
                }
                () = shutdown.requested(), if end.is_none() => {
                    end = Some(tokio::time::Instant::now() + DRAIN);
                    self.core.end();
                }
                () = until(end) => break,
            }
            self.act().await;
        }
        self.act().await;
        self.router.close().await;
        let _ = std::fs::remove_file(self.dirs.rpc_socket());
        Ok(())
    }

    fn message(&mut self, now: Instant, message: FromPeer) {
        let FromPeer {
            peer,
            header,
            payload,
        } = message;
        let known = self.core.knows(peer.connection) && self.routes.contains_key(&peer.connection);
        if !known && !self.connected(now, &peer) {
            return;
        }
        let conn = peer.connection;
        match Header::decode(header.as_ref()) {
            Ok(header) => self.core.message(now, conn, header, payload),
            // From a newer client: not for this version.
            Err(HeaderError::UnknownKind(kind)) => {
                tracing::debug!(instance = peer.username(), kind, "skipped");
            }
            Err(error) => {
                tracing::debug!(instance = peer.username(), %error, "a message is not understood");
                self.core.not_understood(conn);
            }
        }
    }

    /// The first message of a connection. Whether it is taken.
    fn connected(&mut self, now: Instant, peer: &Peer) -> bool {
        let Some(who) = credentials(peer.username(), peer.proven()) else {
            return false;
        };
        let taken = self.core.connected(now, peer.connection, who);
        if taken {
            let route = (peer.route.clone(), self.router.ledger());
            self.routes.insert(peer.connection, route);
        }
        taken
    }

    async fn peer(&mut self, event: PeerEvent) {
        match event {
            PeerEvent::Admitted(peer) => self.admitted(&peer),
            PeerEvent::Gone(conn) => {
                self.last_words();
                self.routes.remove(&conn);
                self.core.disconnected(Instant::now(), conn);
            }
            PeerEvent::Refused(reason) => tracing::debug!(reason, "a handshake failed"),
            PeerEvent::Missed => {
                // Of one that is made meanwhile the list says nothing; its first message
                // may be among the last words.
                let known = self.core.known();
                let admitted = self.router.admitted().await;
                let there = admitted.iter().map(|peer| peer.connection).collect();
                self.last_words();
                self.core.retain(Instant::now(), &known, &there);
                self.routes.retain(|conn, _| self.core.knows(*conn));
                for peer in &admitted {
                    self.admitted(peer);
                }
            }
        }
    }

    /// Counts a connection that may never say anything.
    fn admitted(&mut self, peer: &Admitted) {
        if let Some(who) = credentials(&peer.username, &peer.proven) {
            self.core.connected(Instant::now(), peer.connection, who);
        }
    }

    /// Takes what is queued: of a connection that is gone the answers that it gave
    /// before, which count.
    fn last_words(&mut self) {
        for taken in 1..=LAST_WORDS {
            let Some(message) = self.router.try_recv() else {
                break;
            };
            self.message(Instant::now(), message);
            if taken % BURST == 0 {
                self.send_now();
            }
        }
    }

    async fn command(&mut self, incoming: Incoming) {
        match incoming.kind.as_str() {
            ListRegistry::KIND => {
                let result = incoming.parse::<ListRegistry>().map(|command| {
                    let all = self.core.registrations().into_iter();
                    let page = self
                        .server
                        .snapshot(topic::REGISTRY, all, command.after.as_deref());
                    page::bounded(page)
                });
                incoming.reply::<ListRegistry>(result).await;
            }
            ListCalls::KIND => {
                let result = incoming.parse::<ListCalls>().map(|command| {
                    let all = self.core.call_stats().into_iter();
                    // No topic has them: the watermarks are none.
                    self.server
                        .snapshot("evt.calls.", all, command.after.as_deref())
                });
                incoming.reply::<ListCalls>(result).await;
            }
            Drain::KIND => self.drain(incoming).await,
            _ => incoming.unknown().await,
        }
    }

    async fn drain(&mut self, incoming: Incoming) {
        let drain = match incoming.parse::<Drain>() {
            Ok(drain) => drain,
            Err(status) => return incoming.reply::<Drain>(Err(status)).await,
        };
        self.next_drain += 1;
        let within = Duration::from_millis(drain.within_ms);
        tracing::info!(instance = %drain.instance, generation = %drain.generation, "draining");
        self.drains.insert(self.next_drain, incoming);
        self.core.drain(
            Instant::now(),
            self.next_drain,
            drain.instance,
            drain.generation,
            within,
        );
    }

    fn manager(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Snapshot { items, .. } => {
                for record in items.into_iter().filter_map(|item| bus::item(item).ok()) {
                    self.process(record);
                }
            }
            LinkEvent::Event(received) if received.kind() == ProcessChanged::KIND => {
                if let Ok(changed) = received.parse::<ProcessChanged>() {
                    self.process(changed.record);
                }
            }
            LinkEvent::Up(_) => self.note(),
            LinkEvent::Down => self.report_missing(),
            _ => {}
        }
    }

    fn process(&mut self, record: InstanceRecord) {
        let report = ProcessReport {
            live: record.state.is_live(),
            instance: record.instance,
            generation: record.generation,
        };
        self.core.process(Instant::now(), report);
    }

    fn supervisor(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Snapshot { items, .. } => {
                let told = items.len();
                let all: Vec<_> = items
                    .into_iter()
                    .filter_map(|item| bus::item::<InstanceStatus>(item).ok())
                    .map(|status| (status.instance.clone(), outlook(&status)))
                    .collect();
                let now = Instant::now();
                if all.len() == told {
                    self.core.outlooks(now, all);
                } else {
                    // Of a newer supervisor: what is not understood may exist all the same.
                    for (instance, outlook) in all {
                        self.core.outlook(now, &instance, outlook);
                    }
                }
            }
            LinkEvent::Event(received) if received.kind() == SupervisionChanged::KIND => {
                if let Ok(changed) = received.parse::<SupervisionChanged>() {
                    self.status(&changed.status);
                }
            }
            LinkEvent::Up(_) => self.note(),
            LinkEvent::Down => {
                self.core.unjudged(Instant::now());
                self.report_missing();
            }
            _ => {}
        }
    }

    fn status(&mut self, status: &InstanceStatus) {
        self.core
            .outlook(Instant::now(), &status.instance, outlook(status));
    }

    /// Who should be there and is not.
    fn missing(&self) -> impl Iterator<Item = &Link> {
        let all = self.links.iter().filter(|link| link.info().is_none());
        all.filter(|link| !self.undeclared.contains(link.component()))
    }

    /// Says whom it misses.
    fn note(&self) {
        let notes = self
            .missing()
            .map(|link| format!("waits for {}", link.component()));
        self.server.set_notes(notes.collect());
    }

    /// [`Shell::note`], also to the log.
    fn report_missing(&self) {
        self.note();
        for link in self.missing() {
            tracing::info!(
                "waits for {}: calls are carried, its news of services are missing",
                link.component()
            );
        }
    }

    /// Carries out what the core has decided, in order.
    async fn act(&mut self) {
        self.send_now();
        for action in std::mem::take(&mut self.later) {
            match action {
                Action::Publish(changed) => {
                    self.tell_log(&changed);
                    if changed.registration.is_none() {
                        self.direct.sweep();
                    }
                    let topic = Topic::registry(changed.instance.service());
                    self.server.publish(topic, &changed, None).await;
                }
                Action::Disconnect(conn) => {
                    self.routes.remove(&conn);
                    self.router.disconnect(conn).await;
                }
                Action::Offence { who, what } => {
                    if self.offences.may() {
                        tracing::warn!(instance = %who, "{what}; reported once");
                    }
                }
                Action::Drained { ticket, result } => {
                    if let Some(incoming) = self.drains.remove(&ticket) {
                        incoming.reply::<Drain>(Ok(result)).await;
                    }
                }
                Action::Send { .. } => {}
            }
        }
    }

    /// The first registration of a spawn and its first end are for an operator's eyes:
    /// whatever a service does afterwards, it does not fill the log.
    fn tell_log(&mut self, changed: &RegistryChanged) {
        let instance = &changed.instance;
        let Some(entry) = &changed.registration else {
            let told = self.told.get_mut(instance);
            match told.is_some_and(|(_, ended)| !std::mem::replace(ended, true)) {
                true => tracing::info!(%instance, "unregistered"),
                false => tracing::debug!(%instance, "unregistered again"),
            }
            return;
        };
        let (generation, methods, draining) =
            (entry.generation, entry.methods.len(), entry.draining);
        let told = self.told.get(instance);
        if told.is_some_and(|(told, _)| *told == generation) {
            tracing::debug!(%instance, %generation, methods, draining, "registered again");
        } else {
            self.told.insert(instance.clone(), (generation, false));
            tracing::info!(%instance, %generation, methods, draining, "registered");
        }
    }

    /// Sends what is to be sent, and keeps the rest of the actions for `act`.
    fn send_now(&mut self) {
        let mut actions = std::mem::take(&mut self.actions);
        loop {
            self.core.swap_actions(&mut actions);
            if actions.is_empty() {
                break;
            }
            for action in actions.drain(..) {
                match action {
                    Action::Send {
                        conn,
                        header,
                        payload,
                        what,
                    } => self.send(conn, header, payload, what),
                    other => self.later.push(other),
                }
            }
        }
        self.actions = actions;
    }

    fn send(&mut self, conn: Conn, header: Frame, payload: Frame, what: What) {
        // Only a call that did not leave is sent again, to another.
        let kept = matches!(what, What::Request(_)).then(|| (header.clone(), payload.clone()));
        let sent = match self.routes.get(&conn) {
            Some((route, ledger)) => self.router.send_counted(route, ledger, header, payload),
            None => Err(SendError::Gone),
        };
        let why = match sent {
            Ok(()) => return,
            Err(SendError::Full) => Undelivered::Full,
            Err(SendError::NoRoom) => Undelivered::NoRoom,
            Err(SendError::Gone | SendError::Closed) => Undelivered::Gone,
        };
        let kept = kept.unwrap_or_default();
        self.core.undelivered(Instant::now(), conn, kept, what, why);
    }
}

async fn until(due: Option<tokio::time::Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// What the authenticator proved.
fn credentials(username: &str, proven: &[u8]) -> Option<Credentials> {
    let generation = std::str::from_utf8(proven).ok()?.parse().ok()?;
    Some(Credentials {
        instance: username.parse().ok()?,
        generation: Generation(generation),
    })
}

/// What the supervisor's word on an instance means for calls to it.
fn outlook(status: &InstanceStatus) -> Outlook {
    let hopeless = |reason: &str| Outlook::Hopeless {
        reason: reason.to_owned(),
    };
    if status.circuit == Circuit::Open || status.phase == Phase::CircuitOpen {
        return hopeless("its circuit is open");
    }
    match &status.phase {
        Phase::GaveUp => hopeless("it has failed and is not restarted"),
        Phase::Refused { reason } => hopeless(&format!("it was refused: {reason}")),
        Phase::Idle if status.desired == Desired::Down => hopeless("it is stopped"),
        Phase::Idle => hopeless("it has completed"),
        Phase::Probing | Phase::NotReady | Phase::Stopping => Outlook::Unready,
        _ => Outlook::Coming,
    }
}
