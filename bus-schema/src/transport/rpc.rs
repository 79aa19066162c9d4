//! ROUTER and DEALER sockets of the RPC plane, with PLAIN authentication.
//!
//! The ROUTER never sends to a routing id that a peer chose without its being
//! that peer's: an id in use stays with its username (the library refuses
//! another principal's claim), and the ids it gives out itself begin with a
//! zero byte, which no peer may choose.
//!
//! What a ROUTER holds for a peer is bounded: 8192 messages, and of frames of at
//! least 1 KiB together [`PEER_BYTES`] (so 72 MiB in all), and [`ALL_BYTES`] for
//! the large frames of all peers together; see [`Ledger`].
//!
//! What it holds from a peer: one message of at most 16 MiB that is still coming in,
//! and at most 256 that the I/O has read ahead, which is a number of the library's;
//! and of all peers together 64 for its user. The library counts none of them in bytes.
//! Both run on one thread: with few connections that send large messages hardly more
//! than one of each is there. So who needs a bound in bytes bounds connections.

mod frame;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use bytes::Bytes;
use omq_tokio::options::ReconnectPolicy;
use omq_tokio::{
    AuthenticationResult, Authenticator, DisconnectReason, Endpoint, Error, Identity,
    IdentitySocket, MechanismSetup, Message, MonitorEvent, MonitorRecvError, MonitorStream,
    Options, Socket, SocketType, TrySendError,
};

use super::{MAX_MESSAGE_BYTES, TransportError};

/// Messages queued towards one peer. A caller has at most 1024 calls under way
/// and a callee at most 4096, so that this is full only when a peer has stopped
/// reading; then further messages to it are refused, see [`SendError::Full`].
const SEND_HIGH_WATER_MARK: u32 = 8_192;
/// Messages queued from a DEALER's peer. When full, its socket is not read.
const RECV_HIGH_WATER_MARK: u32 = 1_024;
/// Messages queued from all peers of a ROUTER together, behind the library's 256 of
/// each: as many as it hands over in one go. When full, those are not emptied, and when
/// they are full too their sockets are not read: a peer feels it as a slow ROUTER.
const ROUTER_RECV_HIGH_WATER_MARK: u32 = 64;
/// Connection events kept for a slow watcher; it is told when it missed some.
const EVENTS: usize = 4_096;

pub use frame::{ALL_BYTES, Frame, Ledger, PEER_BYTES};

fn options() -> Options {
    Options {
        monitor_capacity: EVENTS,
        ..Options::new()
            .send_hwm(SEND_HIGH_WATER_MARK)
            .recv_hwm(RECV_HIGH_WATER_MARK)
            .max_message_size(MAX_MESSAGE_BYTES)
            .handshake_timeout(Duration::from_secs(5))
            .heartbeat_interval(Duration::from_secs(5))
            .heartbeat_timeout(Duration::from_secs(15))
            // Anybody can begin one: at most 0.9 MB each until its token is checked. Of a
            // thousand services that start at once the rest comes in at the next attempt.
            .max_pending_handshakes(512)
            .linger(Duration::from_millis(500))
    }
}

fn open_error(
    operation: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(Error) -> TransportError {
    let path = path.into();
    move |source| TransportError::Open {
        operation,
        path,
        source,
    }
}

/// Where to send what is for a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route(Identity);

impl AsRef<[u8]> for Route {
    fn as_ref(&self) -> &[u8] {
        self.0.as_ref()
    }
}

/// Where a message came from, as the handshake proved it. A clone is cheap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Number of the connection, never used again by this socket.
    pub connection: u64,
    /// Routing id to answer to.
    pub route: Route,
}

impl Peer {
    /// PLAIN username.
    pub fn username(&self) -> &str {
        let authentication = &self.route.0.peer_info().authentication;
        authentication.username.as_deref().unwrap_or_default()
    }

    /// What the authenticator said of it.
    pub fn proven(&self) -> &[u8] {
        let authentication = &self.route.0.peer_info().authentication;
        authentication.user_id.as_deref().unwrap_or_default()
    }
}

/// A message from a peer.
#[derive(Debug, Clone)]
pub struct FromPeer {
    /// Who sent it.
    pub peer: Peer,
    /// First frame.
    pub header: Frame,
    /// Second frame; empty where there is none.
    pub payload: Frame,
}

/// Why a message was not queued for a peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The peer has stopped reading.
    #[error("the peer's queue is full")]
    Full,
    /// All peers together have too much queued.
    #[error("too much is queued for all peers")]
    NoRoom,
    /// The peer is gone.
    #[error("the peer is gone")]
    Gone,
    /// The socket is closed.
    #[error("the socket is closed")]
    Closed,
}

/// A ROUTER that admits peers by username and password.
#[derive(Debug)]
pub struct Router {
    socket: IdentitySocket,
    /// Bytes queued for all peers, see [`Ledger`].
    queued: Arc<AtomicUsize>,
}

impl Router {
    /// Listens at `path`; a stale socket file is replaced. Everybody on the host
    /// may connect, `authenticate(username, password)` decides who is admitted
    /// and what is proven of them. It must be quick: it runs on the I/O task.
    ///
    /// # Errors
    /// When the path cannot be bound.
    pub async fn bind<F>(path: &Path, authenticate: F) -> Result<Self, TransportError>
    where
        F: Fn(&str, &str) -> Option<Bytes> + Send + Sync + 'static,
    {
        let router = Self::unbound(authenticate)?;
        router
            .socket
            .bind(format!("ipc://{}", path.display()).as_str())
            .await
            .map_err(open_error("bind", path))?;
        // Services run as other users; the token is what admits them.
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o666))
            .map_err(|source| open_error("open to all users", path)(Error::Io(source)))?;
        Ok(router)
    }

    /// A socket that listens nowhere yet, see [`Router::also_bind`].
    ///
    /// # Errors
    /// When the library refuses it.
    pub fn unbound<F>(authenticate: F) -> Result<Self, TransportError>
    where
        F: Fn(&str, &str) -> Option<Bytes> + Send + Sync + 'static,
    {
        let authenticator = Authenticator::new_with_result(move |peer| {
            let (Some(username), Some(password)) = (&peer.username, &peer.password) else {
                return AuthenticationResult::deny();
            };
            match authenticate(username, password) {
                Some(proven) => AuthenticationResult::allow().with_user_id(proven),
                None => AuthenticationResult::deny(),
            }
        });
        let options = Options {
            mechanism: MechanismSetup::PlainServer { authenticator },
            recv_hwm: ROUTER_RECV_HIGH_WATER_MARK,
            // A send to a peer that is gone or full is an error, not a silent loss.
            router_mandatory: true,
            ..options()
        };
        let socket = Socket::new(SocketType::Router, options);
        let socket = IdentitySocket::try_from(socket).map_err(open_error("make", "a ROUTER"))?;
        Ok(Self {
            socket,
            queued: Arc::default(),
        })
    }

    /// Listens at a TCP address too; port 0 is any. Returns the address. Whether
    /// others than this host can reach it is the caller's to decide.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn also_bind(&self, address: SocketAddr) -> Result<String, TransportError> {
        let endpoint = format!("tcp://{address}");
        let bound = self
            .socket
            .bind(endpoint.as_str())
            .await
            .map_err(open_error("bind", &endpoint))?;
        Ok(bound.to_string())
    }

    /// A count of what is queued towards one peer, for [`Router::send_counted`].
    pub fn ledger(&self) -> Ledger {
        Ledger::new(self.queued.clone())
    }

    /// The next message, fairly from all peers. Cancel safe.
    ///
    /// # Errors
    /// When the socket is closed.
    pub async fn recv(&self) -> Result<FromPeer, TransportError> {
        loop {
            let received = self
                .socket
                .recv_from()
                .await
                .map_err(|_| TransportError::Closed)?;
            if let Some(message) = from_peer(received) {
                return Ok(message);
            }
        }
    }

    /// The next message, if one is there already.
    pub fn try_recv(&self) -> Option<FromPeer> {
        loop {
            let received = self.socket.try_recv_from().ok()?;
            if let Some(message) = from_peer(received) {
                return Some(message);
            }
        }
    }

    /// Queues a message for a peer. Never waits; a queued message is not delivered yet.
    ///
    /// # Errors
    /// See [`SendError`]; the message is dropped.
    pub fn send(
        &self,
        route: &[u8],
        header: impl Into<Frame>,
        payload: impl Into<Frame>,
    ) -> Result<(), SendError> {
        let message = Message::multipart_payloads([header.into().0, payload.into().0]);
        match self.socket.try_send_to(route, message) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => Err(SendError::Full),
            Err(TrySendError::Closed) => Err(SendError::Closed),
            Err(TrySendError::Error(_)) => Err(SendError::Gone),
        }
    }

    /// [`Router::send`] for a peer whose queue is bounded in bytes too.
    ///
    /// # Errors
    /// See [`SendError`]; the message is dropped.
    pub fn send_counted(
        &self,
        route: &Route,
        ledger: &Ledger,
        header: Frame,
        payload: Frame,
    ) -> Result<(), SendError> {
        self.send(
            route.as_ref(),
            header.counted(ledger)?,
            payload.counted(ledger)?,
        )
    }

    /// Watches connections come and go. Call it before messages are received.
    pub fn watch(&self) -> PeerWatch {
        PeerWatch {
            stream: self.socket.monitor(),
        }
    }

    /// The numbers of the connections there are now.
    pub async fn connections(&self) -> Vec<u64> {
        let all = self.socket.connections().await.unwrap_or_default();
        all.iter().map(|status| status.connection_id).collect()
    }

    /// The peers that are admitted now.
    pub async fn admitted(&self) -> Vec<Admitted> {
        let all = self.socket.connections().await.unwrap_or_default();
        let admitted = all.iter().filter_map(|status| status.peer_info.as_ref());
        admitted.map(Admitted::of).collect()
    }

    /// Ends a connection. Its peer will connect again unless it is refused.
    pub async fn disconnect(&self, connection: u64) {
        let _ = self.socket.disconnect_peer(connection).await;
    }

    /// Closes the socket after what is queued has been sent, or after 500 ms.
    pub async fn close(self) {
        let _ = self.socket.into_inner().close().await;
    }
}

fn from_peer((identity, mut message): (Identity, Message)) -> Option<FromPeer> {
    let info = identity.peer_info();
    // Without both it has not come through the handshake of this socket.
    if info.authentication.username.is_none() || info.authentication.user_id.is_none() {
        return None;
    }
    let peer = Peer {
        connection: info.connection_id,
        route: Route(identity),
    };
    let header = Frame(message.pop_front_payload()?);
    let payload = Frame(message.pop_front_payload().unwrap_or_default());
    Some(FromPeer {
        peer,
        header,
        payload,
    })
}

/// A peer that came through the handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// Number of the connection.
    pub connection: u64,
    /// PLAIN username.
    pub username: String,
    /// What the authenticator said of it.
    pub proven: Bytes,
}

impl Admitted {
    fn of(peer: &omq_tokio::PeerInfo) -> Self {
        Self {
            connection: peer.connection_id,
            username: peer.authentication.username.clone().unwrap_or_default(),
            proven: peer.authentication.user_id.clone().unwrap_or_default(),
        }
    }
}

/// What became of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerEvent {
    /// A peer was admitted; it may never send anything.
    Admitted(Admitted),
    /// This connection was lost.
    Gone(u64),
    /// A peer was not admitted, or did not get through the handshake.
    Refused(String),
    /// Some events were missed: see [`Router::connections`].
    Missed,
}

/// Tells of the connections of a [`Router`].
#[derive(Debug)]
pub struct PeerWatch {
    stream: MonitorStream,
}

impl PeerWatch {
    /// The next event. After the socket has closed it waits for ever. Cancel safe.
    pub async fn next(&mut self) -> PeerEvent {
        loop {
            match self.stream.recv().await {
                Ok(MonitorEvent::HandshakeSucceeded { peer, .. }) => {
                    return PeerEvent::Admitted(Admitted::of(&peer));
                }
                Ok(MonitorEvent::Disconnected { peer, .. }) => {
                    return PeerEvent::Gone(peer.connection_id);
                }
                Ok(MonitorEvent::HandshakeFailed { reason, .. }) => {
                    return PeerEvent::Refused(reason);
                }
                Ok(_) => {}
                Err(MonitorRecvError::Lagged(_)) => return PeerEvent::Missed,
                Err(_) => std::future::pending::<()>().await,
            }
        }
    }
}

/// A DEALER that proves itself by username and password.
#[derive(Debug)]
pub struct Dealer {
    socket: Socket,
}

impl Dealer {
    /// A socket that is not connected yet: [`Dealer::watch`] it first.
    pub fn new(username: &str, password: &str) -> Self {
        let options =
            options()
                .plain_client(username, password)
                .reconnect(ReconnectPolicy::Exponential {
                    min: Duration::from_millis(10),
                    max: Duration::from_millis(200),
                });
        Self {
            socket: Socket::new(SocketType::Dealer, options),
        }
    }

    /// Connects to the ROUTER at `path`, for ever: again after each loss, but
    /// not after a refusal of the credentials.
    ///
    /// # Errors
    /// When the path is not one of a socket. That nobody listens is no error.
    pub async fn connect(&self, path: &Path) -> Result<(), TransportError> {
        self.connect_to(&format!("ipc://{}", path.display())).await
    }

    /// [`Dealer::connect`] to an address such as `ipc:///run/x` or `tcp://127.0.0.1:7400`.
    ///
    /// # Errors
    /// When it is no address. That nobody listens is no error.
    pub async fn connect_to(&self, address: &str) -> Result<(), TransportError> {
        self.socket
            .connect(address)
            .await
            .map(|_| ())
            .map_err(open_error("connect", address))
    }

    /// Queues a message. Waits while the queue is full. Cancelling the wait sends nothing.
    ///
    /// # Errors
    /// When the socket is closed.
    pub async fn send(
        &self,
        header: impl Into<Frame>,
        payload: impl Into<Frame>,
    ) -> Result<(), TransportError> {
        let message = Message::multipart_payloads([header.into().0, payload.into().0]);
        self.socket
            .send(message)
            .await
            .map_err(|_| TransportError::Closed)
    }

    /// Queues a message if there is room for it now; gives the payload back if not.
    ///
    /// # Errors
    /// The payload, when the queue is full or the socket is closed.
    pub fn try_send(
        &self,
        header: impl Into<Frame>,
        payload: impl Into<Frame>,
    ) -> Result<(), Bytes> {
        let message = Message::multipart_payloads([header.into().0, payload.into().0]);
        match self.socket.try_send(message) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(message)) => Err(frames(message).1.into_bytes()),
            Err(_) => Err(Bytes::new()),
        }
    }

    /// The next message's two frames. Cancel safe.
    ///
    /// # Errors
    /// When the socket is closed.
    pub async fn recv(&self) -> Result<(Frame, Frame), TransportError> {
        let message = self
            .socket
            .recv()
            .await
            .map_err(|_| TransportError::Closed)?;
        Ok(frames(message))
    }

    /// The next message's two frames, if one is there already.
    pub fn try_recv(&self) -> Option<(Frame, Frame)> {
        self.socket.try_recv().ok().map(frames)
    }

    /// Watches this socket's connection.
    pub fn watch(&self) -> DealerWatch {
        DealerWatch {
            stream: self.socket.monitor(),
            socket: self.socket.clone(),
            refused: None,
        }
    }
}

fn frames(mut message: Message) -> (Frame, Frame) {
    let header = message.pop_front_payload().unwrap_or_default();
    let payload = message.pop_front_payload().unwrap_or_default();
    (Frame(header), Frame(payload))
}

/// What became of a [`Dealer`]'s connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DealerEvent {
    /// Connected and admitted.
    Up,
    /// Lost; it is being made again.
    Down,
    /// The ROUTER refused the credentials; nothing is tried any more.
    Refused(String),
}

/// How the library calls what libzmq up to 4.3.5 sends instead of PLAIN's ERROR
/// (RFC 24): `^RROR`, whose first byte is taken for the length of a name that is
/// not there. No ROUTER sends the like for another reason.
const MISSPELLED_REFUSAL: &str = "command truncated in name";

/// Tells of the connection of a [`Dealer`].
#[derive(Debug)]
pub struct DealerWatch {
    stream: MonitorStream,
    socket: Socket,
    /// Refused there, and the library goes on trying.
    refused: Option<Endpoint>,
}

impl DealerWatch {
    /// The next event. After the socket has closed it waits for ever. Cancel safe.
    pub async fn next(&mut self) -> DealerEvent {
        loop {
            if let Some(endpoint) = &self.refused {
                // Cancelled here, it is done again: that is no error.
                let _ = self.socket.disconnect(endpoint.clone()).await;
                self.refused = None;
                return DealerEvent::Refused("by a ROUTER of libzmq".to_owned());
            }
            match self.stream.recv().await {
                Ok(MonitorEvent::HandshakeSucceeded { .. }) => return DealerEvent::Up,
                Ok(MonitorEvent::Disconnected { .. }) => return DealerEvent::Down,
                Ok(MonitorEvent::ConnectStopped {
                    reason: DisconnectReason::HandshakeRefused(refusal),
                    ..
                }) => return DealerEvent::Refused(refusal.reason.clone()),
                // Here the library does not know that it has been refused, and would go on.
                Ok(MonitorEvent::HandshakeFailed {
                    endpoint, reason, ..
                }) if reason.contains(MISSPELLED_REFUSAL) => self.refused = Some(endpoint),
                // A connection that comes and goes a thousand times while nobody looks is down or up
                // again at the end; the events after the gap tell.
                Ok(_) | Err(MonitorRecvError::Lagged(_)) => {}
                Err(_) => std::future::pending::<()>().await,
            }
        }
    }
}
