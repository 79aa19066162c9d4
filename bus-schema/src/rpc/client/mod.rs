//! The RPC client of services in Rust: calls others and serves methods.
//!
//! ```no_run
//! use std::time::Duration;
//! use blackhole_bus_schema::rpc::{Client, Methods};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::from_env().await?;
//! client.serve(Methods::new().on("echo", |request| async move { Ok(request.payload) }));
//! let price = client.call("pricing", "quote", "apples", Duration::from_secs(2)).await?;
//! # drop(price);
//! # Ok(())
//! # }
//! ```

mod calls;
mod connection;
mod direct;
mod methods;
mod request;
mod work;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::header::{Callee, Endpoint, Header, MAX_HEADER_BYTES, Response};
use super::{Code, Key, MAX_BUDGET, Status, direct_dirs};
use crate::dirs::Dirs;
use crate::names::{Generation, InstanceName, NameError};
use crate::transport::rpc::Dealer;
use crate::transport::{MAX_MESSAGE_BYTES, TransportError};

use calls::Calls;
pub use calls::{Answers, DEFAULT_WINDOW};
pub use direct::Direct;
use direct::Pool;
pub use methods::{Handler, Methods, Parts, Request, StreamHandler};
pub use request::CallBuilder;
use request::{Way, check, plain};

/// Largest payload of a call or an answer, in bytes.
pub(super) const MAX_PAYLOAD_BYTES: usize = MAX_MESSAGE_BYTES - MAX_HEADER_BYTES;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The process was not started by Blackhole.
    #[error("{variable} is not set: only services that Blackhole started can use its RPC")]
    NotAService {
        /// The variable that is missing.
        variable: &'static str,
    },
    /// A variable does not hold what it should.
    #[error("{variable} holds {value:?}, expected {expected}")]
    BadVariable {
        /// Which variable.
        variable: &'static str,
        /// What it holds.
        value: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// The socket could not be opened.
    #[error("cannot open the connection to the bridge")]
    Transport(#[from] TransportError),
    /// The bridge has not registered this client.
    #[error("not registered with the bridge: {0}")]
    NotRegistered(String),
}

/// Where and as whom to connect.
#[derive(Clone)]
pub struct ConnectOptions {
    /// The bridge's socket, or `tcp://` and an address where it listens on one.
    pub socket: PathBuf,
    /// Who this is.
    pub instance: InstanceName,
    /// What proves it.
    pub token: String,
}

impl std::fmt::Debug for ConnectOptions {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ConnectOptions")
            .field("socket", &self.socket)
            .field("instance", &self.instance)
            .finish_non_exhaustive()
    }
}

impl ConnectOptions {
    /// For a part of Blackhole itself that has the key: a process-manager that
    /// runs an `rpc` probe, `blackhole call`. It appears to the callee as
    /// `<part>.1`; no service can have the name of a part.
    ///
    /// # Errors
    /// When `part` is no name.
    pub fn of_part(dirs: &Dirs, key: &Key, part: &str) -> Result<Self, NameError> {
        let instance: InstanceName = format!("{part}.1").parse()?;
        let token = key.token(&instance, Generation::default());
        Ok(Self {
            socket: dirs.rpc_socket(),
            instance,
            token,
        })
    }

    /// The address as ZeroMQ writes it.
    fn address(&self) -> String {
        match self
            .socket
            .to_str()
            .filter(|text| text.starts_with("tcp://"))
        {
            Some(address) => address.to_owned(),
            None => format!("ipc://{}", self.socket.display()),
        }
    }

    /// Reads `BLACKHOLE_RPC`, `BLACKHOLE_INSTANCE` and `BLACKHOLE_TOKEN`.
    ///
    /// # Errors
    /// When one is missing or malformed.
    pub fn from_env() -> Result<Self, ClientError> {
        let read = |variable: &'static str| match std::env::var(variable) {
            Ok(value) if !value.is_empty() => Ok(value),
            _ => Err(ClientError::NotAService { variable }),
        };
        let endpoint = read("BLACKHOLE_RPC")?;
        let socket = match endpoint.strip_prefix("ipc://") {
            Some(path) => PathBuf::from(path),
            // The address of the bridge on a TCP port is kept as it is.
            None if endpoint.starts_with('/') || endpoint.starts_with("tcp://") => {
                PathBuf::from(&endpoint)
            }
            None => {
                return Err(ClientError::BadVariable {
                    variable: "BLACKHOLE_RPC",
                    value: endpoint,
                    expected: "ipc:// and a path, or tcp:// and an address",
                });
            }
        };
        let instance = read("BLACKHOLE_INSTANCE")?;
        let instance = instance.parse().map_err(|_| ClientError::BadVariable {
            variable: "BLACKHOLE_INSTANCE",
            value: instance,
            expected: "an instance such as web.1",
        })?;
        Ok(Self {
            socket,
            instance,
            token: read("BLACKHOLE_TOKEN")?,
        })
    }
}

/// How things stand with the bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    /// Not connected, or not registered yet.
    Away,
    /// Registered.
    Registered,
    /// The credentials were refused, for good.
    Refused(String),
    /// The connection's task is over: nothing will come of anything.
    Ended,
}

impl Standing {
    /// Becomes `new` if it is `old`; whether it did.
    fn replace(&mut self, old: &Self, new: Self) -> bool {
        let changes = self == old;
        if changes {
            *self = new;
        }
        changes
    }
}

/// What the client's handles and its connection task share.
struct Shared {
    /// The calls made by way of the bridge.
    calls: Arc<Calls>,
    instance: InstanceName,
    address: String,
    /// Where others' sockets for direct calls are, unless the bridge is known by a port.
    direct_dirs: Option<Vec<PathBuf>>,
    standing: watch::Sender<Standing>,
    methods: watch::Sender<Methods>,
    /// Handlers at work for the bridge and for direct callers, for `drain`.
    working: [watch::Sender<usize>; 2],
    /// Handlers that have not answered, of both together: what the capacity bounds.
    busy: Arc<AtomicUsize>,
}

impl Shared {
    /// Waits for the registration.
    async fn standing(&self, deadline: Instant) -> Result<(), Status> {
        if *self.standing.borrow() == Standing::Registered {
            return Ok(());
        }
        let mut standing = self.standing.subscribe();
        let settled = standing.wait_for(|standing| *standing != Standing::Away);
        let settled = tokio::time::timeout_at(deadline, settled).await;
        match settled {
            Ok(Ok(standing)) => match &*standing {
                Standing::Refused(reason) => Err(Status::new(
                    Code::Unauthenticated,
                    format!("the bridge refused this service's token: {reason}"),
                )),
                Standing::Ended => Err(Status::new(Code::Unavailable, "this client is closed")),
                _ => Ok(()),
            },
            Ok(Err(_)) => Err(Status::new(Code::Unavailable, "this client is closed")),
            Err(_) => Err(Status::new(Code::Unavailable, "the bridge is not there")),
        }
    }

    /// [`Client::resolve`].
    async fn resolve(&self, service: &str, deadline: Instant) -> Result<Vec<Endpoint>, Status> {
        self.standing(deadline).await?;
        let budget = deadline.saturating_duration_since(Instant::now());
        let service = service.into();
        let header = |id, _| Header::Resolve { id, service };
        self.calls
            .exchange(deadline, budget, header, Bytes::new())
            .await
            .map(|(_, endpoints)| endpoints)
    }
}

/// A connection to the bridge. Clones share it; it ends with the last one. It
/// connects and registers again by itself whenever the bridge was away.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    /// The connections of direct calls, by service.
    pools: Mutex<HashMap<String, Arc<Pool>>>,
    /// Says to direct callers that this service ends.
    ending: mpsc::Sender<oneshot::Sender<()>>,
    task: AbortHandle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let instance = &self.inner.shared.instance;
        formatter
            .debug_struct("Client")
            .field("instance", instance)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Connects as the service that this process was started as.
    ///
    /// # Errors
    /// When the environment does not say so; that the bridge is away is no error.
    pub async fn from_env() -> Result<Self, ClientError> {
        Self::connect(ConnectOptions::from_env()?).await
    }

    /// Connects. Returns at once, whether the bridge is there or not.
    ///
    /// # Errors
    /// When the socket cannot be opened; that the bridge is away is no error.
    pub async fn connect(options: ConnectOptions) -> Result<Self, ClientError> {
        let dealer = Arc::new(Dealer::new(&options.instance.to_string(), &options.token));
        let events = dealer.watch();
        let address = options.address();
        dealer.connect_to(&address).await?;
        let shared = Arc::new(Shared {
            calls: Arc::new(Calls::new(dealer, "the bridge".to_owned())),
            instance: options.instance,
            direct_dirs: address
                .strip_prefix("ipc://")
                .map(|socket| direct_dirs(socket.as_ref())),
            address,
            standing: watch::Sender::new(Standing::Away),
            methods: watch::Sender::default(),
            working: Default::default(),
            busy: Arc::default(),
        });
        let (ending, ends) = mpsc::channel(1);
        let task = connection::Connection::new(shared.clone(), events, ends);
        let task = tokio::spawn(task.run()).abort_handle();
        Ok(Self {
            inner: Arc::new(Inner {
                shared,
                pools: Mutex::default(),
                ending,
                task,
            }),
        })
    }

    /// Who this is.
    pub fn instance(&self) -> &InstanceName {
        &self.inner.shared.instance
    }

    /// Serves these methods from now on, instead of any before. Registers them
    /// with the bridge as soon as it is there.
    pub fn serve(&self, methods: Methods) {
        let shared = &self.inner.shared;
        shared.methods.send_modify(|current| {
            *current = methods;
            // Only who is registered with these is. Before the connection's task can see
            // them: it says so again after they are confirmed.
            shared.standing.send_if_modified(|standing| {
                standing.replace(&Standing::Registered, Standing::Away)
            });
        });
    }

    /// Waits until the bridge has registered this client with its methods.
    ///
    /// # Errors
    /// When it has not within the time, or refuses the credentials.
    pub async fn registered(&self, within: Duration) -> Result<(), ClientError> {
        self.standing(Instant::now() + within)
            .await
            .map_err(|status| ClientError::NotRegistered(status.message))
    }

    /// Waits for the registration.
    async fn standing(&self, deadline: Instant) -> Result<(), Status> {
        self.inner.shared.standing(deadline).await
    }

    /// Calls a method of a service (`pricing`, the bridge picks an instance) or
    /// of one instance (`pricing.2`) and waits for the result, at most for `budget`. While the bridge is away it waits for it. Dropping the future
    /// cancels the call. A failed call may or may not have had its effect.
    ///
    /// # Errors
    /// What the method answered, or: `DeadlineExceeded` when the budget is spent,
    /// `Unavailable` when bridge or callee are away or were lost meanwhile,
    /// `NotFound` for an unknown service, `Unimplemented` for a method that it
    /// does not serve, `ResourceExhausted` when a queue is full or the payload
    /// too large.
    pub async fn call(
        &self,
        service: &str,
        method: &str,
        payload: impl Into<Bytes>,
        budget: Duration,
    ) -> Result<Bytes, Status> {
        let payload = payload.into();
        let deadline = check(Some(service), method, &payload, budget)?;
        self.standing(deadline).await?;
        let header = |id, left| plain(service, method, id, left);
        let calls = &self.inner.shared.calls;
        calls
            .exchange(deadline, budget, header, payload)
            .await
            .map(|(payload, _)| payload)
    }

    /// [`Client::call`] for an answer in parts, taken one by one: the callee is
    /// held back while they are not taken. It may be any method; one that does
    /// not answer in parts gives one.
    ///
    /// # Errors
    /// As [`Client::call`], before the first part; later ones come as a part.
    pub async fn stream(
        &self,
        service: &str,
        method: &str,
        payload: impl Into<Bytes>,
        budget: Duration,
    ) -> Result<Answers, Status> {
        let call = self.request(service, method);
        call.payload(payload).budget(budget).stream().await
    }

    /// A call to be put together: with repetitions, a window, a tracing context.
    pub fn request(&self, service: &str, method: &str) -> CallBuilder {
        let way = Way::Bridge {
            client: self.clone(),
            service: service.to_owned(),
        };
        CallBuilder::new(way, method)
    }

    /// The endpoints of their own that the instances of a service offer for
    /// direct calls; empty when it offers none.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn resolve(&self, service: &str, budget: Duration) -> Result<Vec<Endpoint>, Status> {
        checked(service)?;
        let deadline = Instant::now() + budget.min(MAX_BUDGET);
        self.inner.shared.resolve(service, deadline).await
    }

    /// Asks the bridge and direct callers for no more calls and waits until those
    /// under way are answered, at most for the time. Called before a service ends.
    pub async fn drain(&self, within: Duration) {
        let shared = &self.inner.shared;
        let drained = async {
            // The connection's task says so, in its turn.
            let (told, wait) = oneshot::channel();
            let _ = self.inner.ending.send(told).await;
            let _ = wait.await;
            // Whatever the bridge had sent before it heard that is here when it answers this.
            if *shared.standing.borrow() == Standing::Registered {
                let own = shared.instance.service().as_str();
                let _ = self.resolve(own, within).await;
            }
            for working in &shared.working {
                let none = |working: &usize| *working == 0;
                let _ = working.subscribe().wait_for(none).await;
            }
        };
        let _ = tokio::time::timeout(within, drained).await;
    }
}

fn checked(service: &str) -> Result<(), Status> {
    match service.parse::<Callee>() {
        Ok(_) => Ok(()),
        Err(error) => Err(Status::new(Code::InvalidArgument, error.to_string())),
    }
}

fn too_large(bytes: usize) -> Status {
    let message = format!("a payload of {bytes} bytes, at most {MAX_PAYLOAD_BYTES} are carried");
    Status::new(Code::ResourceExhausted, message)
}

/// The response to a call with what its handler came to.
fn response(id: u64, result: Result<Bytes, Status>) -> (Header<'static>, Bytes) {
    let result = match result {
        Ok(payload) if payload.len() > MAX_PAYLOAD_BYTES => Err(too_large(payload.len())),
        result => result,
    };
    let (result, payload) = match result {
        Ok(payload) => (Ok(()), payload),
        Err(status) => (Err(cut(status)), Bytes::new()),
    };
    (Header::Response(Response::new(id, result)), payload)
}

/// A status whose text fits in a header.
fn cut(mut status: Status) -> Status {
    const MAX: usize = 16 * 1024;
    // An error that says it is none would be taken for a result.
    if status.code == Code::Ok {
        status.code = Code::Unknown;
    }
    if status.message.len() > MAX {
        let end = (0..=MAX)
            .rev()
            .find(|end| status.message.is_char_boundary(*end));
        status.message.truncate(end.unwrap_or(0));
    }
    status
}
