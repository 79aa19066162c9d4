//! PUB and SUB sockets over `ipc://` paths, and with PLAIN over TCP.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use omq_tokio::options::ReconnectPolicy;
use omq_tokio::{
    Authenticator, MechanismSetup, Message, MonitorEvent, MonitorStream, Options, Socket,
    SocketType,
};

use super::MAX_MESSAGE_BYTES;

/// Messages queued for one subscriber before it loses some, and queued at a
/// subscriber before its publisher feels it. A burst of a thousand instances
/// changing state a few times each fits.
const HIGH_WATER_MARK: u32 = 16_384;

/// What can go wrong with a socket.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// A socket could not be opened.
    #[error("cannot {operation} {path}")]
    Open {
        /// `bind` or `connect`.
        operation: &'static str,
        /// The socket's path, or `tcp://ADDRESS`.
        path: PathBuf,
        /// Why.
        #[source]
        source: omq_tokio::Error,
    },
    /// A subscription was refused.
    #[error("cannot subscribe to {prefix:?}")]
    Subscribe {
        /// Its prefix.
        prefix: String,
        /// Why.
        #[source]
        source: omq_tokio::Error,
    },
    /// The socket is closed.
    #[error("the socket is closed")]
    Closed,
}

/// Without PING and PONG (ZMTP 3.1): the kernel tells at once of a connection to a process of this
/// host that has ended, and whether a component that has not lives is told by its own heartbeat. On
/// some twenty connections of idle daemons they were half of all wake-ups.
fn options() -> Options {
    Options::new()
        .send_hwm(HIGH_WATER_MARK)
        .recv_hwm(HIGH_WATER_MARK)
        .max_message_size(MAX_MESSAGE_BYTES)
        .handshake_timeout(Duration::from_secs(5))
        .max_pending_handshakes(512)
        // Lets the last message of a short-lived client out.
        .linger(Duration::from_millis(500))
        .reconnect(looking(LOOKED_FOR))
}

/// Longest wait between two looks for a component that is away.
pub const LOOKED_FOR: Duration = Duration::from_millis(200);

fn looking(longest: Duration) -> ReconnectPolicy {
    ReconnectPolicy::Exponential {
        min: Duration::from_millis(10),
        max: longest,
    }
}

fn endpoint(path: &Path) -> String {
    format!("ipc://{}", path.display())
}

/// A socket on a TCP address of the loopback, which any user of the host can
/// reach: `admit(username, password)` says who may stay (PLAIN, ZMTP RFC 24).
/// It runs on the I/O task and must be quick.
async fn open_tcp<F>(
    kind: SocketType,
    address: SocketAddr,
    admit: F,
) -> Result<Socket, TransportError>
where
    F: Fn(&str, &str) -> bool + Send + Sync + 'static,
{
    let authenticator = Authenticator::new(move |peer| match (&peer.username, &peer.password) {
        (Some(username), Some(password)) => admit(username, password),
        _ => false,
    });
    let socket = Socket::new(
        kind,
        Options {
            mechanism: MechanismSetup::PlainServer { authenticator },
            ..options()
                .heartbeat_interval(Duration::from_secs(5))
                .heartbeat_timeout(Duration::from_secs(15))
        },
    );
    let endpoint = format!("tcp://{address}");
    socket
        .bind(endpoint.as_str())
        .await
        .map_err(|source| TransportError::Open {
            operation: "bind",
            path: endpoint.into(),
            source,
        })?;
    Ok(socket)
}

async fn open(kind: SocketType, path: &Path, bind: bool) -> Result<Socket, TransportError> {
    let socket = Socket::new(kind, options());
    attach(&socket, path, bind).await?;
    Ok(socket)
}

async fn attach(socket: &Socket, path: &Path, bind: bool) -> Result<(), TransportError> {
    let result = if bind {
        socket.bind(endpoint(path).as_str()).await.map(|_| ())
    } else {
        socket.connect(endpoint(path).as_str()).await
    };
    result.map_err(|source| TransportError::Open {
        operation: if bind { "bind" } else { "connect" },
        path: path.to_owned(),
        source,
    })
}

/// A PUB socket.
#[derive(Debug, Clone)]
pub struct PubSocket {
    socket: Socket,
}

impl PubSocket {
    /// Listens at `path`; a stale socket file is replaced.
    ///
    /// # Errors
    /// When the path cannot be bound.
    pub async fn bind(path: &Path) -> Result<Self, TransportError> {
        Ok(Self {
            socket: open(SocketType::Pub, path, true).await?,
        })
    }

    /// Listens at a TCP address of the loopback for whom `admit(username, password)` admits.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind_tcp<F>(address: SocketAddr, admit: F) -> Result<Self, TransportError>
    where
        F: Fn(&str, &str) -> bool + Send + Sync + 'static,
    {
        Ok(Self {
            socket: open_tcp(SocketType::Pub, address, admit).await?,
        })
    }

    /// Connects to a SUB at `path`, for ever: again after each loss.
    ///
    /// # Errors
    /// When the path is not one of a socket. That nobody listens is no error.
    pub async fn connect(path: &Path) -> Result<Self, TransportError> {
        Ok(Self {
            socket: open(SocketType::Pub, path, false).await?,
        })
    }

    /// The same, with a watch that sees whoever subscribes, from the first on. Who is away is
    /// looked for after `longest` at most.
    ///
    /// # Errors
    /// As [`PubSocket::connect`].
    pub async fn connect_watched(
        path: &Path,
        longest: Duration,
    ) -> Result<(Self, SubscriberWatch), TransportError> {
        let socket = Socket::new(SocketType::Pub, options().reconnect(looking(longest)));
        let stream = socket.monitor();
        attach(&socket, path, false).await?;
        Ok((Self { socket }, SubscriberWatch { stream }))
    }

    /// Sends one message to whoever has subscribed to its topic. Dropped for a
    /// subscriber that is past its high-water mark.
    ///
    /// # Errors
    /// When the socket is closed.
    pub async fn send(&self, topic: Bytes, body: Bytes) -> Result<(), TransportError> {
        self.socket
            .send(Message::multipart([topic, body]))
            .await
            .map_err(|_| TransportError::Closed)
    }

    /// Closes the socket after what is queued has been sent, or after the linger of 500 ms.
    pub async fn close(self) {
        let _ = self.socket.close().await;
    }
}

/// A SUB socket.
#[derive(Debug)]
pub struct SubSocket {
    socket: Socket,
}

impl SubSocket {
    /// Listens at `path`; a stale socket file is replaced.
    ///
    /// # Errors
    /// When the path cannot be bound.
    pub async fn bind(path: &Path) -> Result<Self, TransportError> {
        Ok(Self {
            socket: open(SocketType::Sub, path, true).await?,
        })
    }

    /// Listens at a TCP address of the loopback for whom `admit(username, password)` admits.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind_tcp<F>(address: SocketAddr, admit: F) -> Result<Self, TransportError>
    where
        F: Fn(&str, &str) -> bool + Send + Sync + 'static,
    {
        Ok(Self {
            socket: open_tcp(SocketType::Sub, address, admit).await?,
        })
    }

    /// Connects to a PUB at `path`, for ever: again after each loss.
    ///
    /// # Errors
    /// When the path is not one of a socket. That nobody listens is no error.
    pub async fn connect(path: &Path) -> Result<Self, TransportError> {
        Ok(Self {
            socket: open(SocketType::Sub, path, false).await?,
        })
    }

    /// The same; who is away is looked for after `longest` at most.
    ///
    /// # Errors
    /// As [`SubSocket::connect`].
    pub async fn connect_within(path: &Path, longest: Duration) -> Result<Self, TransportError> {
        let socket = Socket::new(SocketType::Sub, options().reconnect(looking(longest)));
        attach(&socket, path, false).await?;
        Ok(Self { socket })
    }

    /// Receives messages whose topic begins with `prefix` from now on.
    ///
    /// # Errors
    /// When the socket is closed.
    pub async fn subscribe(&self, prefix: &str) -> Result<(), TransportError> {
        self.socket
            .subscribe(Bytes::copy_from_slice(prefix.as_bytes()))
            .await
            .map_err(|source| TransportError::Subscribe {
                prefix: prefix.to_owned(),
                source,
            })
    }

    /// The next message's first two frames; further frames are ignored, missing
    /// ones are empty. Cancel safe: a message is taken only when it is returned.
    ///
    /// # Errors
    /// When the socket is closed.
    pub async fn recv(&self) -> Result<(Bytes, Bytes), TransportError> {
        let message = self
            .socket
            .recv()
            .await
            .map_err(|_| TransportError::Closed)?;
        Ok((
            message.part_bytes(0).unwrap_or_default(),
            message.part_bytes(1).unwrap_or_default(),
        ))
    }

    /// Watches this socket's connections.
    pub fn watch(&self) -> ConnectionWatch {
        ConnectionWatch {
            stream: self.socket.monitor(),
        }
    }
}

/// Tells when a connection was made or lost.
#[derive(Debug)]
pub struct ConnectionWatch {
    stream: MonitorStream,
}

impl ConnectionWatch {
    /// Waits for the next change: `true` for a connection made, `false` for one lost.
    /// After the socket has closed it waits for ever. Cancel safe.
    pub async fn changed(&mut self) -> bool {
        loop {
            match self.stream.recv().await {
                Ok(MonitorEvent::HandshakeSucceeded { .. }) => return true,
                Ok(MonitorEvent::Disconnected { .. }) => return false,
                Ok(_) | Err(omq_tokio::MonitorRecvError::Lagged(_)) => {}
                Err(_) => std::future::pending::<()>().await,
            }
        }
    }
}

/// Tells when somebody has subscribed to what a socket sends.
#[derive(Debug)]
pub struct SubscriberWatch {
    stream: MonitorStream,
}

impl SubscriberWatch {
    /// Waits for the next subscription; after the socket has closed for ever. Cancel safe.
    pub async fn subscribed(&mut self) {
        loop {
            match self.stream.recv().await {
                Ok(MonitorEvent::SubscribeReceived { .. })
                | Err(omq_tokio::MonitorRecvError::Lagged(_)) => return,
                Ok(_) => {}
                Err(_) => std::future::pending::<()>().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits between attempts to connect spread, so that a thousand subscribers
    /// do not come back in step.
    #[tokio::test]
    async fn reconnects_are_jittered() {
        let temp = tempfile::tempdir().unwrap();
        let mut waits = std::collections::BTreeSet::new();
        let mut sockets = Vec::new();
        for index in 0..24 {
            let socket = Socket::new(SocketType::Sub, options());
            let mut events = socket.monitor();
            attach(&socket, &temp.path().join(index.to_string()), false)
                .await
                .unwrap();
            sockets.push(socket);
            // The third wait is 40 ms, give or take.
            let mut seen = 0;
            while seen < 3 {
                if let Ok(MonitorEvent::ConnectDelayed { retry_in, .. }) = events.recv().await {
                    seen += 1;
                    if seen == 3 {
                        assert!((35..=45).contains(&retry_in.as_millis()), "{retry_in:?}");
                        waits.insert(retry_in);
                    }
                }
            }
        }
        assert!(waits.len() >= 3, "24 waits, and only these: {waits:?}");
    }
}
