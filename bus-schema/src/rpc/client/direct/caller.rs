//! The connections of a client to services that it calls directly.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::super::super::header::{Endpoint, Header};
use super::super::super::{Code, DirectEndpoint, HEARTBEAT, Status};
use super::super::calls::{Answers, Calls};
use super::super::request::{CallBuilder, Way, check, jittered, plain};
use super::super::{Client, Shared};
use super::BURST;
use super::patience::{FIRST, LONGEST, Patience};
use crate::transport::TransportError;
use crate::transport::rpc::{Dealer, DealerEvent, DealerWatch, Frame};

/// First wait before a service that is not there is looked for again.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// Longest such wait.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// Longest time after which replicas are looked for that are new.
const LOOK: Duration = LONGEST;
/// First wait before they are, after a connection is lost or not wanted any more:
/// its successor needs some time to come. Doubled up to [`LOOK`].
const LOOK_SOON: Duration = FIRST;
/// Longest wait for the bridge's answer to that.
const LOOK_BUDGET: Duration = Duration::from_secs(5);

/// Calls a service without the bridge on the way; made by [`Client::direct`].
/// Clones share its connections. Connections are made at the first call, found
/// by the bridge; after one is lost, and every 30 seconds, it is asked for others.
/// Of several instances the one with the fewest calls of this client is taken; of
/// equals the one that was not taken for the longest time. One that has refused a
/// call for want of room comes after the others for 50 ms.
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
pub(in crate::rpc::client) struct Pool {
    service: String,
    connections: Mutex<Vec<Arc<Connected>>>,
    /// Held by whoever looks for the service; the others wait for what is found.
    looking: tokio::sync::Mutex<()>,
    news: Arc<News>,
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

/// What connections that are over leave behind.
#[derive(Default)]
struct News {
    patience: Mutex<Patience>,
    /// One that was up is lost, or not wanted any more.
    fewer: AtomicBool,
    /// Wakes the keeper after either has changed.
    changed: Notify,
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
    /// it, see [`crate::rpc::Methods::direct`]. Nothing is connected before the first call.
    pub fn direct(&self, service: &str) -> Direct {
        let mut pools = lock(&self.inner.pools);
        let pool = pools.entry(service.to_owned()).or_insert_with(|| {
            Arc::new(Pool {
                service: service.to_owned(),
                connections: Mutex::default(),
                looking: tokio::sync::Mutex::default(),
                news: Arc::default(),
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
    pub(in crate::rpc::client) async fn calls(
        &self,
        deadline: Instant,
    ) -> Result<Arc<Calls>, Status> {
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
    let Some(news) = pool.upgrade().map(|pool| pool.news.clone()) else {
        return;
    };
    let mut pause = LOOK;
    loop {
        // Callers that lost the same replica do not ask for its successor all at once.
        let now = Instant::now();
        let usual = now + pause / 2 + jittered(pause / 2);
        let again = lock(&news.patience).next(now);
        tokio::select! {
            () = tokio::time::sleep_until(again.map_or(usual, |again| again.min(usual))) => {
                pause = (pause * 2).min(LOOK);
            }
            () = news.changed.notified() => {
                // One that never was admitted is looked for no sooner than it may be tried.
                if news.fewer.swap(false, Ordering::Relaxed) {
                    pause = LOOK_SOON;
                }
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
        let known: HashSet<&str> = endpoints.iter().map(|e| e.endpoint.as_str()).collect();
        lock(&self.news.patience).retain(|endpoint| known.contains(endpoint));
        for endpoint in endpoints {
            let allowed = lock(&self.news.patience).allows(Instant::now(), &endpoint.endpoint);
            if !allowed || self.has(&endpoint.endpoint) {
                continue;
            }
            match open(&me, endpoint, self.news.clone()).await {
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
        let best = up.min_by_key(|c| {
            let picked = c.picked.load(Ordering::Relaxed);
            (c.calls.is_full(), c.calls.under_way(), picked)
        })?;
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

async fn open(me: &str, endpoint: Endpoint, news: Arc<News>) -> Result<Arc<Connected>, Status> {
    let unreachable = |error: TransportError| Status::new(Code::Unavailable, error.to_string());
    let dealer = Dealer::new(me, endpoint.ticket.as_deref().unwrap_or_default());
    let events = dealer.watch();
    dealer
        .connect_to(&endpoint.endpoint)
        .await
        .map_err(unreachable)?;
    let calls = Arc::new(Calls::new(Arc::new(dealer), endpoint.instance.to_string()));
    let (told, path) = watch::channel(Path::New);
    let end = End {
        endpoint: endpoint.endpoint.clone(),
        path: told,
        up: None,
        news,
    };
    tokio::spawn(caller(calls.clone(), events, end));
    Ok(Arc::new(Connected {
        endpoint: endpoint.endpoint,
        calls,
        path,
        picked: AtomicU64::new(0),
    }))
}

/// The task of one direct connection, until it is lost, or not wanted any more
/// and without calls.
async fn caller(calls: Arc<Calls>, mut events: DealerWatch, mut end: End) {
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
                    take(&calls, header, payload, &end);
                }
            }
            event = events.next() => match event {
                DealerEvent::Up => {
                    if *end.path.borrow() == Path::New {
                        end.up = Some(Instant::now());
                        end.path.send_replace(Path::Up);
                    }
                }
                // Its successor has another address: the bridge knows.
                DealerEvent::Down | DealerEvent::Refused(_) => break,
            },
            () = end.path.closed(), if wanted => wanted = false,
            _ = heartbeat.tick() => {
                // After a goaway it is looked here whether the last call is over.
                wanted = wanted && *end.path.borrow() != Path::Closed;
                let frame = Frame::copy_of(&Header::Heartbeat { registered: None }.encode());
                let _ = calls.dealer.try_send(frame, Frame::new());
            }
            // A socket file that nobody listens on: connecting goes on for ever.
            () = &mut patience, if !patience.is_elapsed() => {
                if *end.path.borrow() == Path::New {
                    break;
                }
            }
        }
    }
    end.close();
    // Answers that came before the loss have come.
    while let Some((header, payload)) = calls.dealer.try_recv() {
        take(&calls, header, payload, &end);
    }
    calls.fail_all();
}

/// How a connection ends.
struct End {
    endpoint: String,
    path: watch::Sender<Path>,
    /// When it was admitted.
    up: Option<Instant>,
    news: Arc<News>,
}

impl End {
    /// No new calls go there, and another replica is looked for: soon, if there was one here.
    fn close(&self) {
        let news = &self.news;
        if *self.path.borrow() == Path::Closed {
            return;
        }
        // Before it can be seen that it is closed: who sees it may try again at once.
        lock(&news.patience).closed(Instant::now(), &self.endpoint, self.up);
        self.path.send_replace(Path::Closed);
        if self.up.is_some() {
            news.fewer.store(true, Ordering::Relaxed);
        }
        news.changed.notify_one();
    }
}

fn take(calls: &Calls, header: Frame, payload: Frame, end: &End) {
    let Ok(header) = Header::decode(header.as_ref()) else {
        return;
    };
    if let Some((Header::Goaway { .. }, _)) = calls.received(header, payload) {
        // Those under way are answered.
        end.close();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::header::Response;

    fn up(name: &str) -> Arc<Connected> {
        let dealer = Arc::new(Dealer::new("front.1", "ticket"));
        Arc::new(Connected {
            endpoint: name.to_owned(),
            calls: Arc::new(Calls::new(dealer, name.to_owned())),
            path: watch::Sender::new(Path::Up).subscribe(),
            picked: AtomicU64::new(0),
        })
    }

    #[tokio::test]
    async fn who_refused_for_want_of_room_comes_after_the_others() {
        let (full, free) = (up("full"), up("free"));
        let pool = Pool {
            service: "back".to_owned(),
            connections: Mutex::new(vec![full.clone(), free.clone()]),
            looking: tokio::sync::Mutex::default(),
            news: Arc::default(),
            keeper: OnceLock::new(),
            picks: AtomicU64::new(0),
        };
        let taken = || Arc::ptr_eq(&pool.best().unwrap(), &full.calls);
        let answer = |code| {
            let status = Status::new(code, "");
            Header::Response(Response::new(1, Err(status)))
        };
        // They take turns.
        let turns = || [taken(), taken(), taken(), taken()];
        assert_eq!(turns(), [true, false, true, false]);
        full.calls.received(answer(Code::Internal), Frame::new());
        assert_eq!(turns(), [true, false, true, false]);
        // A machine that stands still for 50 ms in between has waited for its end.
        loop {
            let start = Instant::now();
            full.calls
                .received(answer(Code::ResourceExhausted), Frame::new());
            let turns = turns();
            if start.elapsed() < Duration::from_millis(50) {
                assert_eq!(turns, [false; 4]);
                break;
            }
        }
        while full.calls.is_full() {
            tokio::task::yield_now().await;
        }
        assert!(taken());
        // Full as they all are, one is taken.
        for one in [&full, &free] {
            one.calls
                .received(answer(Code::ResourceExhausted), Frame::new());
        }
        assert!(pool.best().is_some());
    }
}
