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

mod connection;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::header::{self, Callee, Endpoint, Header, MAX_HEADER_BYTES, MAX_METHOD_BYTES, Response};
use super::{Code, DEFAULT_CAPACITY, Key, MAX_BUDGET, MAX_CALLS, MAX_CAPACITY, Status};
use crate::dirs::Dirs;
use crate::names::{Generation, InstanceName, NameError};
use crate::transport::rpc::Dealer;
use crate::transport::{MAX_MESSAGE_BYTES, TransportError};

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
    /// The bridge's socket.
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
            None if endpoint.starts_with('/') => PathBuf::from(&endpoint),
            None => {
                return Err(ClientError::BadVariable {
                    variable: "BLACKHOLE_RPC",
                    value: endpoint,
                    expected: "ipc:// and a path",
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

/// A call that this service was sent.
#[derive(Debug, Clone)]
pub struct Request {
    /// Which method.
    pub method: String,
    /// Who calls, proven by its token.
    pub caller: Option<InstanceName>,
    /// Opaque to all but the two services.
    pub payload: Bytes,
    /// When the caller stops waiting; the handler is dropped then.
    pub deadline: Instant,
}

/// What runs for a call. It is dropped at an await when the caller gives up,
/// its budget is spent, or the connection is lost.
pub type Handler = Arc<
    dyn Fn(Request) -> Pin<Box<dyn Future<Output = Result<Bytes, Status>> + Send>> + Send + Sync,
>;

/// The methods that a service serves.
#[derive(Clone, Default)]
pub struct Methods {
    handlers: BTreeMap<String, Handler>,
    capacity: Option<u32>,
    endpoint: Option<String>,
}

impl std::fmt::Debug for Methods {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_set().entries(self.handlers.keys()).finish()
    }
}

impl Methods {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a method; one of the same name is replaced. Handlers run
    /// concurrently, on the runtime that the client was made on.
    #[must_use]
    pub fn on<F, Fut>(mut self, method: impl Into<String>, handler: F) -> Self
    where
        F: Fn(Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, Status>> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |request| Box::pin(handler(request)));
        self.handlers.insert(method.into(), handler);
        self
    }

    /// Calls worked on at one time, 1 to [`MAX_CAPACITY`]; [`DEFAULT_CAPACITY`]
    /// without it. The bridge refuses further ones with `ResourceExhausted`
    /// when no other instance has room.
    #[must_use]
    pub fn capacity(mut self, calls: u32) -> Self {
        self.capacity = Some(calls.clamp(1, MAX_CAPACITY));
        self
    }

    /// An endpoint of the service's own, told to those who resolve it.
    #[must_use]
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    fn limit(&self) -> usize {
        self.capacity.unwrap_or(DEFAULT_CAPACITY) as usize
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

type Answer = Result<(Bytes, Vec<Endpoint>), Status>;

/// What the client's handles and its connection task share.
struct Shared {
    dealer: Dealer,
    instance: InstanceName,
    standing: watch::Sender<Standing>,
    methods: watch::Sender<Methods>,
    /// Calls under way by id; bounded by `permits`.
    pending: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
    permits: Semaphore,
    next_id: AtomicU64,
    /// Handlers at work, for `drain`.
    working: watch::Sender<usize>,
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Answer>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, header: &Header<'_>, payload: Bytes) -> Result<(), TransportError> {
        self.dealer.send(header.encode(), payload).await
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
    /// Ids of calls that were given up. When full the notice is dropped: the
    /// bridge ends the call by its budget.
    cancels: mpsc::Sender<u64>,
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
        let dealer = Dealer::new(&options.instance.to_string(), &options.token);
        let events = dealer.watch();
        dealer.connect(&options.socket).await?;
        let shared = Arc::new(Shared {
            dealer,
            instance: options.instance,
            standing: watch::Sender::new(Standing::Away),
            methods: watch::Sender::default(),
            pending: Mutex::default(),
            permits: Semaphore::new(MAX_CALLS),
            next_id: AtomicU64::new(1),
            working: watch::Sender::new(0),
        });
        let (cancels, cancelled) = mpsc::channel(MAX_CALLS);
        let task = connection::Connection::new(shared.clone(), events, cancelled);
        let task = tokio::spawn(task.run()).abort_handle();
        Ok(Self {
            inner: Arc::new(Inner {
                shared,
                cancels,
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
        let mut standing = self.inner.shared.standing.subscribe();
        let settled = standing.wait_for(|standing| *standing != Standing::Away);
        let settled = tokio::time::timeout_at(deadline, settled).await;
        match settled {
            Ok(Ok(standing)) => match &*standing {
                Standing::Refused(reason) => Err(Status::new(
                    Code::Unauthenticated,
                    format!("the bridge refused this service's token: {reason}"),
                )),
                _ => Ok(()),
            },
            Ok(Err(_)) => Err(Status::new(Code::Unavailable, "this client is closed")),
            Err(_) => Err(Status::new(Code::Unavailable, "the bridge is not there")),
        }
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
        checked(service)?;
        if method.is_empty() || method.len() > MAX_METHOD_BYTES {
            let message = format!("a method's name has 1 to {MAX_METHOD_BYTES} bytes");
            return Err(Status::new(Code::InvalidArgument, message));
        }
        if payload.len() > MAX_PAYLOAD_BYTES {
            return Err(too_large(payload.len()));
        }
        let (service, method) = (service.to_owned(), method.to_owned());
        let request = |id, budget_ms| {
            let budget_ms = Some(budget_ms);
            Header::Request(header::Request {
                id,
                service: service.into(),
                method: method.into(),
                budget_ms,
                ..header::Request::default()
            })
        };
        self.exchange(request, payload, budget)
            .await
            .map(|(payload, _)| payload)
    }

    /// The endpoints of their own that the instances of a service offer for
    /// direct calls; empty when it offers none.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn resolve(&self, service: &str, budget: Duration) -> Result<Vec<Endpoint>, Status> {
        checked(service)?;
        let service = service.to_owned();
        let request = |id, _| Header::Resolve { id, service: service.into() };
        self.exchange(request, Bytes::new(), budget)
            .await
            .map(|(_, endpoints)| endpoints)
    }

    async fn exchange(
        &self,
        header: impl FnOnce(u64, u64) -> Header<'static>,
        payload: Bytes,
        budget: Duration,
    ) -> Answer {
        let deadline = Instant::now() + budget.min(MAX_BUDGET);
        let shared = &self.inner.shared;
        let _permit = shared.permits.try_acquire().map_err(|_| {
            let message = format!("{MAX_CALLS} calls of this client are under way");
            Status::new(Code::ResourceExhausted, message)
        })?;
        self.standing(deadline).await?;
        let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        shared.pending().insert(id, sender);
        // Dropped with this future, it takes the entry back and tells the bridge.
        let _call = Call {
            inner: &self.inner,
            id,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
        let exchanged = async {
            let sent = shared.send(&header(id, left), payload).await;
            sent.map_err(|error| Status::new(Code::Unavailable, error.to_string()))?;
            let lost = || Status::new(Code::Unavailable, "the connection to the bridge was lost");
            answer.await.unwrap_or_else(|_| Err(lost()))
        };
        tokio::time::timeout_at(deadline, exchanged)
            .await
            .unwrap_or_else(|_| {
                let message = format!("no answer within {} ms", budget.as_millis());
                Err(Status::new(Code::DeadlineExceeded, message))
            })
    }

    /// Asks the bridge for no more calls and waits until those under way are
    /// answered, at most for the time. Called before a service ends.
    pub async fn drain(&self, within: Duration) {
        let goaway = Header::Goaway {
            reason: "the service ends".into(),
            ends: false,
        };
        let drained = async {
            let _ = self.inner.shared.send(&goaway, Bytes::new()).await;
            let _ = self
                .inner
                .shared
                .working
                .subscribe()
                .wait_for(|working| *working == 0)
                .await;
        };
        let _ = tokio::time::timeout(within, drained).await;
    }
}

/// A call under way.
struct Call<'a> {
    inner: &'a Inner,
    id: u64,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        // Still there: it was not answered.
        if self.inner.shared.pending().remove(&self.id).is_some() {
            let _ = self.inner.cancels.try_send(self.id);
        }
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
