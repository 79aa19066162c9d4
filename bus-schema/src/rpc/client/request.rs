//! A call, put together.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::super::header::{self, Header, MAX_METHOD_BYTES, MAX_WINDOW};
use super::super::trace::TraceContext;
use super::super::{Code, DEFAULT_BUDGET, MAX_BUDGET, Status};
use super::calls::{Answers, DEFAULT_WINDOW};
use super::direct::Direct;
use super::{Client, MAX_PAYLOAD_BYTES, checked, too_large};

/// First wait before an idempotent call is repeated; doubled up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// Longest wait before a call is repeated.
const PAUSE_MAX: Duration = Duration::from_millis(1000);

/// By which way a call goes.
#[derive(Debug, Clone)]
pub(super) enum Way {
    Bridge { client: Client, service: String },
    Direct(Direct),
}

/// A call that is not sent yet; made by [`Client::request`] and [`Direct::request`].
///
/// ```no_run
/// # use std::time::Duration;
/// # async fn example(client: blackhole_bus_schema::rpc::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let price = client
///     .request("pricing", "quote")
///     .payload("apples")
///     .budget(Duration::from_secs(2))
///     .idempotent()
///     .send()
///     .await?;
/// # drop(price);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a call does nothing until it is sent"]
pub struct CallBuilder {
    way: Way,
    method: String,
    payload: Bytes,
    budget: Duration,
    idempotent: bool,
    window: u32,
    trace: Option<TraceContext>,
}

impl CallBuilder {
    pub(super) fn new(way: Way, method: &str) -> Self {
        Self {
            way,
            method: method.to_owned(),
            payload: Bytes::new(),
            budget: DEFAULT_BUDGET,
            idempotent: false,
            window: DEFAULT_WINDOW,
            trace: TraceContext::current().map(TraceContext::child),
        }
    }

    /// What is asked; nothing without it.
    pub fn payload(mut self, payload: impl Into<Bytes>) -> Self {
        self.payload = payload.into();
        self
    }

    /// Longest wait for the whole answer, repetitions included; [`DEFAULT_BUDGET`] without it.
    pub fn budget(mut self, budget: Duration) -> Self {
        self.budget = budget;
        self
    }

    /// The method may be called twice without harm: a call that failed with
    /// `Unavailable` is repeated, after waits that grow from 10 ms to 1 s with
    /// full jitter, while the budget lasts. Without this a call is sent once.
    pub fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    /// Bytes of a streamed answer that may be on their way, 1 to 4 MiB; 256 KiB without it.
    pub fn window(mut self, bytes: u32) -> Self {
        self.window = bytes.clamp(1, MAX_WINDOW);
        self
    }

    /// The tracing context of the call, instead of the current one.
    pub fn trace(mut self, trace: TraceContext) -> Self {
        self.trace = Some(trace);
        self
    }

    /// Calls and waits for the answer. Dropping the future cancels the call.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn send(self) -> Result<Bytes, Status> {
        let deadline = self.check()?;
        let mut pause = PAUSE_MIN;
        loop {
            let status = match self.once(deadline).await {
                Err(status) if self.idempotent && status.code == Code::Unavailable => status,
                result => return result,
            };
            let wait = jittered(pause);
            if Instant::now() + wait >= deadline {
                return Err(status);
            }
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Calls and takes the answer in parts. Not repeated, even when it is
    /// idempotent: parts may have been taken.
    ///
    /// # Errors
    /// As [`Client::call`], before the first part; later ones come as a part.
    pub async fn stream(self) -> Result<Answers, Status> {
        let deadline = self.check()?;
        let calls = self.way.calls(deadline).await?;
        let service = self.way.service();
        let header = |id, left| self.header(id, left, service, Some(self.window));
        calls
            .open(
                deadline,
                self.budget,
                self.window,
                header,
                self.payload.clone(),
            )
            .await
    }

    fn check(&self) -> Result<Instant, Status> {
        let service = match &self.way {
            Way::Bridge { service, .. } => Some(service.as_str()),
            Way::Direct(_) => None,
        };
        check(service, &self.method, &self.payload, self.budget)
    }

    async fn once(&self, deadline: Instant) -> Result<Bytes, Status> {
        let calls = self.way.calls(deadline).await?;
        let service = self.way.service();
        let header = |id, left| self.header(id, left, service, None);
        calls
            .exchange(deadline, self.budget, header, self.payload.clone())
            .await
            .map(|(payload, _)| payload)
    }

    fn header<'a>(
        &'a self,
        id: u64,
        budget_ms: u64,
        service: &'a str,
        window: Option<u32>,
    ) -> Header<'a> {
        Header::Request(header::Request {
            id,
            service: service.into(),
            method: self.method.as_str().into(),
            budget_ms: Some(budget_ms),
            caller: None,
            trace: self.trace.map(|trace| trace.to_string().into()),
            window,
        })
    }
}

/// The request of a plain call, in the current tracing context.
pub(super) fn plain<'a>(service: &'a str, method: &'a str, id: u64, budget_ms: u64) -> Header<'a> {
    let trace = TraceContext::current().map(TraceContext::child);
    Header::Request(header::Request {
        id,
        service: service.into(),
        method: method.into(),
        budget_ms: Some(budget_ms),
        caller: None,
        trace: trace.map(|trace| trace.to_string().into()),
        window: None,
    })
}

/// Checks what a call is made of; when its budget ends. A direct call names no service.
pub(super) fn check(
    service: Option<&str>,
    method: &str,
    payload: &Bytes,
    budget: Duration,
) -> Result<Instant, Status> {
    if let Some(service) = service {
        checked(service)?;
    }
    if method.is_empty() || method.len() > MAX_METHOD_BYTES {
        let message = format!("a method's name has 1 to {MAX_METHOD_BYTES} bytes");
        return Err(Status::new(Code::InvalidArgument, message));
    }
    if payload.len() > MAX_PAYLOAD_BYTES {
        return Err(too_large(payload.len()));
    }
    Ok(Instant::now() + budget.min(MAX_BUDGET))
}

impl Way {
    /// The connection to take, as soon as it is there.
    async fn calls(
        &self,
        deadline: Instant,
    ) -> Result<std::sync::Arc<super::calls::Calls>, Status> {
        match self {
            Self::Bridge { client, .. } => {
                client.standing(deadline).await?;
                Ok(client.inner.shared.calls.clone())
            }
            Self::Direct(direct) => direct.calls(deadline).await,
        }
    }

    fn service(&self) -> &str {
        match self {
            Self::Bridge { service, .. } => service,
            // The callee knows its own name.
            Self::Direct(_) => "",
        }
    }
}

/// Between nothing and `pause`: callers that failed together do not come back together.
pub(super) fn jittered(pause: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(Instant::now()) % 1001;
    pause * u32::try_from(random).unwrap_or(1000) / 1000
}
