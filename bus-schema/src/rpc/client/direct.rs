//! Direct calls: without the bridge on the way.
//!
//! The callee binds a ROUTER of its own, registers its address with the bridge,
//! and is told a key. A caller resolves the service by the bridge and gets
//! addresses and tickets; a ticket is checked by the callee alone. So a direct
//! connection, once made, needs no bridge, and outlives its restarts.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::super::header::{Endpoint, Header};
use super::super::{Code, DirectEndpoint, DirectKey, HEARTBEAT, Status, direct_dir};
use super::calls::{Answers, Calls};
use super::methods::Methods;
use super::request::{CallBuilder, Way, check, jittered, plain};
use super::work::{Back, Work};
use super::{Client, Shared};
use crate::transport::TransportError;
use crate::transport::rpc::{Dealer, DealerEvent, DealerWatch, Frame, FromPeer, PeerEvent, Router};

/// First wait before a service that is not there is looked for again.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// Longest such wait.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// Longest time after which replicas are looked for that are new.
const LOOK: Duration = Duration::from_secs(30);
/// First wait before they are, after a connection is lost or not wanted any more:
/// its successor needs some time to come. Doubled up to [`LOOK`].
const LOOK_SOON: Duration = Duration::from_millis(100);
/// Longest wait for the bridge's answer to that.
const LOOK_BUDGET: Duration = Duration::from_secs(5);
/// Messages taken before anything else has a turn.
const BURST: usize = 64;
/// Messages taken when a caller is gone: of one no more than 1024 are in the queue.
const LAST_WORDS: usize = 4096;

// ---------------------------------------------------------------- the callee

/// What a service's direct socket shares with its connection to the bridge.
pub(super) struct Socket {
    pub(super) endpoint: String,
    key: Arc<RwLock<Option<DirectKey>>>,
    /// Removed with the socket.
    path: Option<PathBuf>,
    farewell: mpsc::Sender<String>,
    task: AbortHandle,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Socket {
    /// Binds a socket near the bridge's: beside its ipc socket, or on a port of
    /// the loopback. Nobody is admitted before the key is known.
    pub(super) async fn bind(
        address: &str,
        work: Work,
        methods: watch::Sender<Methods>,
    ) -> Result<Self, TransportError> {
        let key: Arc<RwLock<Option<DirectKey>>> = Arc::default();
        let checked = key.clone();
        let authenticate = move |username: &str, ticket: &str| {
            let key = checked.read().unwrap_or_else(PoisonError::into_inner);
            let caller = key.as_ref()?.check(username, ticket).ok()?;
            Some(Bytes::from(caller.to_string()))
        };
        let (router, endpoint, path) = match address.strip_prefix("ipc://") {
            Some(bridge) => {
                // Short, as a unix socket's path must be; and random in its last digits.
                let name = uuid::Uuid::now_v7().simple().to_string();
                let path = direct_dir(bridge.as_ref()).join(&name[16..]);
                let router = Router::bind(&path, authenticate).await?;
                (router, format!("ipc://{}", path.display()), Some(path))
            }
            None => {
                let router = Router::unbound(authenticate)?;
                let endpoint = router.also_bind(([127, 0, 0, 1], 0).into()).await?;
                (router, endpoint, None)
            }
        };
        let (farewell, told) = mpsc::channel(4);
        let server = Server {
            peers: router.watch(),
            router: Arc::new(router),
            ledgers: HashMap::new(),
            work,
            methods,
            told,
        };
        let task = tokio::spawn(server.run()).abort_handle();
        Ok(Self {
            endpoint,
            key,
            path,
            farewell,
            task,
        })
    }

    /// The bridge has told with what tickets are checked.
    pub(super) fn admit(&self, key: &str) {
        let mut current = self.key.write().unwrap_or_else(PoisonError::into_inner);
        *current = DirectKey::from_hex(key);
    }

    /// Tells all callers to go elsewhere with what is new.
    pub(super) fn go_away(&self, reason: &str) {
        let _ = self.farewell.try_send(reason.to_owned());
    }
}

/// The task of a direct socket.
struct Server {
    router: Arc<Router>,
    peers: crate::transport::rpc::PeerWatch,
    /// The callers that are connected.
    ledgers: HashMap<u64, Back>,
    work: Work,
    methods: watch::Sender<Methods>,
    told: mpsc::Receiver<String>,
}

impl Server {
    async fn run(mut self) {
        let router = self.router.clone();
        loop {
            // Every arm is cancel safe: it takes something only when it completes.
            tokio::select! {
                message = router.recv() => match message {
                    Ok(message) => {
                        self.message(message).await;
                        for _ in 1..BURST {
                            match router.try_recv() {
                                Some(message) => self.message(message).await,
                                None => break,
                            }
                        }
                    }
                    Err(_) => return,
                },
                () = self.work.finished() => {}
                event = self.peers.next() => match event {
                    PeerEvent::Gone(connection) => self.gone(connection).await,
                    PeerEvent::Admitted(_) => {}
                    PeerEvent::Refused(reason) => tracing::debug!(reason, "a direct caller was refused"),
                    PeerEvent::Missed => {
                        let there = router.connections().await;
                        let lost: Vec<u64> = self.ledgers.keys().copied().filter(|c| !there.contains(c)).collect();
                        for connection in lost {
                            self.ledgers.remove(&connection);
                            self.work.lost(connection);
                        }
                    }
                },
                Some(reason) = self.told.recv() => {
                    let goaway = Header::Goaway { reason: reason.into(), ends: false };
                    for back in self.ledgers.values() {
                        let _ = back.send(&goaway, Bytes::new()).await;
                    }
                }
            }
        }
    }

    /// A caller is gone. What it has said is of no use to anybody, and would make it known again.
    async fn gone(&mut self, connection: u64) {
        for _ in 0..LAST_WORDS {
            let Some(message) = self.router.try_recv() else {
                break;
            };
            if message.peer.connection != connection {
                self.message(message).await;
            }
        }
        self.ledgers.remove(&connection);
        self.work.lost(connection);
    }

    async fn message(&mut self, message: FromPeer) {
        let FromPeer {
            peer,
            header,
            payload,
        } = message;
        let connection = peer.connection;
        let router = &self.router;
        let back = self
            .ledgers
            .entry(connection)
            .or_insert_with(|| Back::Direct {
                router: router.clone(),
                route: peer.route.clone(),
                ledger: router.ledger(),
            });
        match Header::decode(header.as_ref()) {
            Ok(Header::Request(mut request)) => {
                // Who calls is what the ticket proved.
                request.caller = Some(peer.username().into());
                let payload = payload.into_bytes();
                self.work
                    .request(&self.methods, connection, back, request, payload)
                    .await;
            }
            Ok(Header::Cancel { id }) => self.work.cancel(connection, id),
            Ok(Header::Credit { id, bytes }) => self.work.credit(connection, id, bytes),
            Ok(Header::Heartbeat { .. }) => {
                let registered = Some(true);
                let _ = back
                    .send(&Header::Heartbeat { registered }, Bytes::new())
                    .await;
            }
            Ok(_) | Err(_) => {}
        }
    }
}

// ---------------------------------------------------------------- the caller

/// Calls a service without the bridge on the way; made by [`Client::direct`].
/// Clones share its connections. Connections are made at the first call, found
/// by the bridge; after one is lost, and every 30 seconds, it is asked for others.
/// Of several instances the one with the fewest calls of this client is taken; of
/// equals the one that was not taken for the longest time.
#[derive(Clone)]
pub struct Direct {
    client: Client,
    pool: Arc<Pool>,
}

impl fmt::Debug for Direct {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let service = &self.pool.service;
        formatter
            .debug_struct("Direct")
            .field("service", service)
            .finish_non_exhaustive()
    }
}

/// The connections to one service.
pub(super) struct Pool {
    service: String,
    connections: Mutex<Vec<Arc<Connected>>>,
    /// Held by whoever looks for the service; the others wait for what is found.
    looking: tokio::sync::Mutex<()>,
    /// A connection is lost or not wanted any more.
    fewer: Arc<Notify>,
    /// The task that looks for more of them, from the first connection on.
    keeper: OnceLock<AbortHandle>,
    /// Calls that were given a connection.
    picks: AtomicU64,
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.get() {
            keeper.abort();
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    New,
    Up,
    /// Lost, refused, or not wanted any more.
    Closed,
}

struct Connected {
    endpoint: String,
    calls: Arc<Calls>,
    /// The connection's task ends when nobody has one of these and its calls are over.
    path: watch::Receiver<Path>,
    /// When it was last taken, as a count of picks: ties go round.
    picked: AtomicU64,
}

impl Client {
    /// Calls of a service without the bridge on the way. The service must offer
    /// it, see [`Methods::direct`]. Nothing is connected before the first call.
    pub fn direct(&self, service: &str) -> Direct {
        let mut pools = lock(&self.inner.pools);
        let pool = pools.entry(service.to_owned()).or_insert_with(|| {
            Arc::new(Pool {
                service: service.to_owned(),
                connections: Mutex::default(),
                looking: tokio::sync::Mutex::default(),
                fewer: Arc::default(),
                keeper: OnceLock::new(),
                picks: AtomicU64::new(0),
            })
        });
        Direct {
            client: self.clone(),
            pool: pool.clone(),
        }
    }
}

impl Direct {
    /// [`Client::call`], directly.
    ///
    /// # Errors
    /// As [`Client::call`]; `Unavailable` when within the budget no instance was
    /// there that has a socket of its own.
    pub async fn call(
        &self,
        method: &str,
        payload: impl Into<Bytes>,
        budget: Duration,
    ) -> Result<Bytes, Status> {
        let payload = payload.into();
        let deadline = check(None, method, &payload, budget)?;
        let calls = self.calls(deadline).await?;
        let header = |id, left| plain("", method, id, left);
        calls
            .exchange(deadline, budget, header, payload)
            .await
            .map(|(payload, _)| payload)
    }

    /// [`Client::stream`], directly.
    ///
    /// # Errors
    /// As [`Direct::call`].
    pub async fn stream(
        &self,
        method: &str,
        payload: impl Into<Bytes>,
        budget: Duration,
    ) -> Result<Answers, Status> {
        let call = self.request(method).payload(payload).budget(budget);
        call.stream().await
    }

    /// [`Client::request`], directly.
    pub fn request(&self, method: &str) -> CallBuilder {
        CallBuilder::new(Way::Direct(self.clone()), method)
    }

    /// The connection with the fewest calls of this client, as soon as there is one.
    pub(super) async fn calls(&self, deadline: Instant) -> Result<Arc<Calls>, Status> {
        if let Some(calls) = self.pool.best() {
            return Ok(calls);
        }
        let look = async {
            let mut pause = PAUSE_MIN;
            let _looking = self.pool.looking.lock().await;
            loop {
                if let Some(calls) = self.pool.best() {
                    return Ok(calls);
                }
                self.connect(deadline).await?;
                if let Some(calls) = self.pool.best() {
                    return Ok(calls);
                }
                tokio::time::sleep(jittered(pause)).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        };
        tokio::time::timeout_at(deadline, look)
            .await
            .unwrap_or_else(|_| {
                let message = format!("no instance of {} was reached directly", self.pool.service);
                Err(Status::new(Code::Unavailable, message))
            })
    }

    /// Connects to whoever is there, and waits until one has admitted this client
    /// or none will.
    async fn connect(&self, deadline: Instant) -> Result<(), Status> {
        let shared = &self.client.inner.shared;
        let found = find(shared, &self.pool.service, deadline).await?;
        let Some(endpoints) = found else {
            return Ok(()); // Nobody is there now.
        };
        let new = self.pool.add(shared, endpoints).await;
        self.pool.keeper.get_or_init(|| {
            let keep = keep(shared.clone(), Arc::downgrade(&self.pool));
            tokio::spawn(keep).abort_handle()
        });
        let mut paths: FuturesUnordered<_> = new.into_iter().map(settled).collect();
        while let Some(path) = paths.next().await {
            if path == Path::Up {
                break;
            }
        }
        Ok(())
    }
}

/// Looks for replicas that are new, while there is a pool.
async fn keep(shared: Arc<Shared>, pool: Weak<Pool>) {
    let Some(fewer) = pool.upgrade().map(|pool| pool.fewer.clone()) else {
        return;
    };
    let mut pause = LOOK;
    loop {
        // Callers that lost the same replica do not ask for its successor all at once.
        let wait = pause / 2 + jittered(pause / 2);
        tokio::select! {
            () = tokio::time::sleep(wait) => pause = (pause * 2).min(LOOK),
            () = fewer.notified() => {
                pause = LOOK_SOON;
                continue;
            }
        }
        let Some(service) = pool.upgrade().map(|pool| pool.service.clone()) else {
            return;
        };
        let deadline = Instant::now() + LOOK_BUDGET;
        let Ok(Some(endpoints)) = find(&shared, &service, deadline).await else {
            continue;
        };
        let Some(pool) = pool.upgrade() else { return };
        let _looking = pool.looking.lock().await;
        pool.add(&shared, endpoints).await;
    }
}

/// Waits until it is known whether a connection was admitted.
async fn settled(mut path: watch::Receiver<Path>) -> Path {
    match path.wait_for(|path| *path != Path::New).await {
        Ok(path) => *path,
        Err(_) => Path::Closed,
    }
}

impl Pool {
    /// Whether there is a connection to this endpoint that is of use.
    fn has(&self, endpoint: &str) -> bool {
        let connections = lock(&self.connections);
        connections
            .iter()
            .any(|c| c.endpoint == endpoint && c.is_open())
    }

    /// Connects to those that are new; how that goes on. Whoever calls this holds `looking`.
    async fn add(&self, shared: &Shared, endpoints: Vec<Endpoint>) -> Vec<watch::Receiver<Path>> {
        let me = shared.instance.to_string();
        let mut new = Vec::new();
        for endpoint in endpoints {
            if self.has(&endpoint.endpoint) {
                continue;
            }
            match open(&me, endpoint, self.fewer.clone()).await {
                Ok(connected) => new.push(connected),
                Err(status) => tracing::debug!(%status, "a replica is not reached directly"),
            }
        }
        let paths = new.iter().map(|c| c.path.clone()).collect();
        let mut there = lock(&self.connections);
        there.retain(|connection| connection.is_open());
        there.extend(new);
        paths
    }

    fn best(&self) -> Option<Arc<Calls>> {
        let connections = lock(&self.connections);
        let up = connections.iter().filter(|c| *c.path.borrow() == Path::Up);
        let best = up.min_by_key(|c| (c.calls.under_way(), c.picked.load(Ordering::Relaxed)))?;
        let picks = self.picks.fetch_add(1, Ordering::Relaxed) + 1;
        best.picked.store(picks, Ordering::Relaxed);
        Some(best.calls.clone())
    }
}

impl Connected {
    fn is_open(&self) -> bool {
        *self.path.borrow() != Path::Closed
    }
}

/// The endpoints of a service: `None` while nobody is there.
async fn find(
    shared: &Shared,
    service: &str,
    deadline: Instant,
) -> Result<Option<Vec<Endpoint>>, Status> {
    let endpoints = match shared.resolve(service, deadline).await {
        Ok(endpoints) => endpoints,
        // The bridge is away: it comes back, or the budget ends.
        Err(status) if status.code == Code::Unavailable => return Ok(None),
        Err(status) => return Err(status),
    };
    // The bridge has looked at them as well: this side trusts nobody's text.
    let below = shared.direct_dirs.as_deref();
    let ours = endpoints.into_iter().filter(|endpoint| {
        endpoint.ticket.is_some() && DirectEndpoint::parse(&endpoint.endpoint, below).is_ok()
    });
    let ours: Vec<_> = ours.collect();
    Ok((!ours.is_empty()).then_some(ours))
}

async fn open(me: &str, endpoint: Endpoint, fewer: Arc<Notify>) -> Result<Arc<Connected>, Status> {
    let unreachable = |error: TransportError| Status::new(Code::Unavailable, error.to_string());
    let dealer = Dealer::new(me, endpoint.ticket.as_deref().unwrap_or_default());
    let events = dealer.watch();
    dealer
        .connect_to(&endpoint.endpoint)
        .await
        .map_err(unreachable)?;
    let calls = Arc::new(Calls::new(Arc::new(dealer), endpoint.instance.to_string()));
    let (told, path) = watch::channel(Path::New);
    tokio::spawn(caller(calls.clone(), events, told, fewer));
    Ok(Arc::new(Connected {
        endpoint: endpoint.endpoint,
        calls,
        path,
        picked: AtomicU64::new(0),
    }))
}

/// The task of one direct connection, until it is lost, or not wanted any more
/// and without calls.
async fn caller(
    calls: Arc<Calls>,
    mut events: DealerWatch,
    path: watch::Sender<Path>,
    fewer: Arc<Notify>,
) {
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let patience = tokio::time::sleep(HEARTBEAT);
    tokio::pin!(patience);
    let mut wanted = true;
    loop {
        if !wanted && calls.under_way() == 0 {
            break;
        }
        // Every arm is cancel safe: it takes something only when it completes.
        tokio::select! {
            received = calls.dealer.recv() => {
                let Ok(message) = received else { break };
                let mut message = Some(message);
                for _ in 0..BURST {
                    let Some((header, payload)) = message.take().or_else(|| calls.dealer.try_recv()) else { break };
                    take(&calls, header, payload, &path, &fewer);
                }
            }
            event = events.next() => match event {
                DealerEvent::Up => {
                    path.send_if_modified(|path| {
                        let new = *path == Path::New;
                        if new { *path = Path::Up; }
                        new
                    });
                }
                // Its successor has another address: the bridge knows.
                DealerEvent::Down | DealerEvent::Refused(_) => break,
            },
            () = path.closed(), if wanted => wanted = false,
            _ = heartbeat.tick() => {
                // After a goaway it is looked here whether the last call is over.
                wanted = wanted && *path.borrow() != Path::Closed;
                let frame = Frame::copy_of(&Header::Heartbeat { registered: None }.encode());
                let _ = calls.dealer.try_send(frame, Frame::new());
            }
            // A socket file that nobody listens on: connecting goes on for ever.
            () = &mut patience, if !patience.is_elapsed() => {
                if *path.borrow() == Path::New {
                    break;
                }
            }
        }
    }
    close(&path, &fewer);
    // Answers that came before the loss have come.
    while let Some((header, payload)) = calls.dealer.try_recv() {
        take(&calls, header, payload, &path, &fewer);
    }
    calls.fail_all();
}

/// No new calls go there, and another replica is looked for.
fn close(path: &watch::Sender<Path>, fewer: &Notify) {
    if path.send_replace(Path::Closed) != Path::Closed {
        fewer.notify_one();
    }
}

fn take(calls: &Calls, header: Frame, payload: Frame, path: &watch::Sender<Path>, fewer: &Notify) {
    let Ok(header) = Header::decode(header.as_ref()) else {
        return;
    };
    if let Some((Header::Goaway { .. }, _)) = calls.received(header, payload) {
        // Those under way are answered.
        close(path, fewer);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_kept_of_a_caller_that_is_gone() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("router");
        let router = Router::bind(&path, |_, _| Some(Bytes::new()));
        let router = Arc::new(router.await.unwrap());
        let (_farewell, told) = mpsc::channel(1);
        let mut server = Server {
            peers: router.watch(),
            router: router.clone(),
            ledgers: HashMap::new(),
            work: Work::new(
                "back.1".parse().unwrap(),
                watch::Sender::new(0),
                Arc::default(),
            ),
            methods: watch::Sender::default(),
            told,
        };
        let dealer = Dealer::new("front.1", "ticket");
        dealer.connect(&path).await.unwrap();
        let heartbeat = || Frame::copy_of(&Header::Heartbeat { registered: None }.encode());
        for _ in 0..10 {
            dealer.send(heartbeat(), Frame::new()).await.unwrap();
        }
        // One is taken; the others are in the queue when the loss is told.
        let first = router.recv().await.unwrap();
        server.message(first).await;
        assert_eq!(server.ledgers.len(), 1);
        drop(dealer);
        let connection = loop {
            if let PeerEvent::Gone(connection) = server.peers.next().await {
                break connection;
            }
        };
        server.gone(connection).await;
        while let Some(message) = router.try_recv() {
            server.message(message).await;
        }
        assert!(server.ledgers.is_empty());
    }
}
