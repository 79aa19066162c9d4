//! The socket that a service's direct callers connect to.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::super::super::header::Header;
use super::super::super::{DirectKey, direct_dir};
use super::super::methods::Methods;
use super::super::work::{Back, Work};
use super::BURST;
use super::presence::Presence;
use crate::transport::TransportError;
use crate::transport::rpc::{FromPeer, PeerEvent, Router};

/// Messages taken when a caller is gone: of one no more than 1024 are in the queue.
const LAST_WORDS: usize = 4096;

/// What a service's direct socket shares with its connection to the bridge.
pub(in crate::rpc::client) struct Socket {
    pub(in crate::rpc::client) endpoint: String,
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
    pub(in crate::rpc::client) async fn bind(
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
            presence: Presence::new(),
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
    pub(in crate::rpc::client) fn admit(&self, key: &str) {
        let mut current = self.key.write().unwrap_or_else(PoisonError::into_inner);
        *current = DirectKey::from_hex(key);
    }

    /// Tells all callers to go elsewhere with what is new.
    pub(in crate::rpc::client) fn go_away(&self, reason: &str) {
        let _ = self.farewell.try_send(reason.to_owned());
    }
}

/// The task of a direct socket.
struct Server {
    router: Arc<Router>,
    peers: crate::transport::rpc::PeerWatch,
    presence: Presence,
    /// The callers that have said something.
    ledgers: HashMap<u64, Back>,
    work: Work,
    methods: watch::Sender<Methods>,
    told: mpsc::Receiver<String>,
}

impl Server {
    async fn run(mut self) {
        let router = self.router.clone();
        loop {
            let silence = self.presence.next_deadline();
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
                    PeerEvent::Admitted(peer) => {
                        self.enter(peer.connection, &peer.username).await;
                    }
                    PeerEvent::Refused(reason) => tracing::debug!(reason, "a direct caller was refused"),
                    PeerEvent::Missed => self.missed().await,
                },
                () = at(silence) => {
                    for connection in self.presence.silent(Instant::now()) {
                        tracing::debug!(connection, "said nothing on a direct connection: ended");
                        self.router.disconnect(connection).await;
                    }
                }
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
        self.forget(connection);
    }

    fn forget(&mut self, connection: u64) {
        self.presence.leave(connection);
        self.ledgers.remove(&connection);
        self.work.lost(connection);
    }

    /// Counts a connection, or ends it: there are too many. Whether it may stay.
    async fn enter(&mut self, connection: u64, caller: &str) -> bool {
        let stays = self.presence.enter(Instant::now(), connection, caller);
        if !stays {
            tracing::debug!(caller, "too many direct connections: ended");
            self.router.disconnect(connection).await;
        }
        stays
    }

    /// Some have come or gone, and it was not told who.
    async fn missed(&mut self) {
        // Before it is asked who is there: who is not then, is gone.
        let mut words = Vec::new();
        while words.len() < LAST_WORDS
            && let Some(message) = self.router.try_recv()
        {
            words.push(message);
        }
        let there = self.router.admitted().await;
        let there: HashMap<u64, String> = there
            .into_iter()
            .map(|peer| (peer.connection, peer.username))
            .collect();
        for connection in self.presence.connections() {
            if !there.contains_key(&connection) {
                self.forget(connection);
            }
        }
        for (connection, caller) in &there {
            self.enter(*connection, caller).await;
        }
        for message in words {
            if there.contains_key(&message.peer.connection) {
                self.message(message).await;
            }
        }
    }

    async fn message(&mut self, message: FromPeer) {
        let FromPeer {
            peer,
            header,
            payload,
        } = message;
        let connection = peer.connection;
        // A message may be here before it is told that its connection is.
        if !self.enter(connection, peer.username()).await {
            return;
        }
        self.presence.spoke(connection);
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

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::rpc::{Dealer, Frame};

    async fn server() -> (Server, std::path::PathBuf, tempfile::TempDir) {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("router");
        let router = Router::bind(&path, |_, _| Some(Bytes::new()));
        let router = Arc::new(router.await.unwrap());
        let (_, told) = mpsc::channel(1);
        let server = Server {
            peers: router.watch(),
            router: router.clone(),
            presence: Presence::new(),
            ledgers: HashMap::new(),
            work: Work::new(
                "back.1".parse().unwrap(),
                watch::Sender::new(0),
                Arc::default(),
            ),
            methods: watch::Sender::default(),
            told,
        };
        (server, path, temp)
    }

    fn heartbeat() -> Frame {
        Frame::copy_of(&Header::Heartbeat { registered: None }.encode())
    }

    async fn sent(path: &std::path::Path, messages: usize) -> Dealer {
        let dealer = Dealer::new("front.1", "ticket");
        dealer.connect(path).await.unwrap();
        for _ in 0..messages {
            dealer.send(heartbeat(), Frame::new()).await.unwrap();
        }
        dealer
    }

    #[tokio::test]
    async fn nothing_is_kept_of_a_caller_that_is_gone() {
        let (mut server, path, _temp) = server().await;
        let router = server.router.clone();
        let dealer = sent(&path, 10).await;
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

    /// As [`nothing_is_kept_of_a_caller_that_is_gone`], when nobody told of it.
    #[tokio::test]
    async fn nothing_is_kept_of_a_caller_whose_end_was_missed() {
        let (mut server, path, _temp) = server().await;
        let router = server.router.clone();
        let gone = sent(&path, 10).await;
        let first = router.recv().await.unwrap();
        server.message(first).await;
        drop(gone);
        while !matches!(server.peers.next().await, PeerEvent::Gone(_)) {}
        let _there = sent(&path, 1).await;
        while !matches!(server.peers.next().await, PeerEvent::Admitted(_)) {}
        server.missed().await;
        while let Some(message) = router.try_recv() {
            server.message(message).await;
        }
        // The other one is, by its message or without one.
        assert!(server.ledgers.len() <= 1);
        assert_eq!(server.presence.connections(), router.connections().await);
    }
}
