//! RPC as these services use it: JSON payloads over the library's client, and
//! calls that are repeated while there is time, since all methods here are
//! idempotent.

use std::time::Duration;

use anyhow::Context;
use blackhole_bus_schema::rpc::{Client, Code, Methods, Status};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::notify;
use crate::signals::Stop;

/// How long a service waits for a bridge before it ends and leaves the rest to
/// its restart policy.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// Time for the calls under way when a service ends: less than its stop's grace.
const DRAIN: Duration = Duration::from_secs(3);

/// What a call asks, out of its payload.
pub(crate) fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Status> {
    serde_json::from_slice(payload)
        .map_err(|error| Status::new(Code::InvalidArgument, format!("payload: {error}")))
}

/// A payload out of what a call answers.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Bytes, Status> {
    serde_json::to_vec(value)
        .map(Bytes::from)
        .map_err(|error| Status::new(Code::Internal, format!("payload: {error}")))
}

/// The calling side.
pub(crate) struct Caller {
    client: Client,
}

impl Caller {
    /// Connects as the service that this process was started as. That the
    /// bridge is away is no error: a call waits for it.
    pub(crate) async fn connect() -> anyhow::Result<Self> {
        Ok(Self {
            client: Client::from_env().await?,
        })
    }

    /// Calls an idempotent method. A call that met a service's end, which is
    /// answered with `Unavailable`, is repeated while the budget lasts.
    pub(crate) async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        service: &str,
        method: &str,
        question: &Q,
        budget: Duration,
    ) -> Result<A, Status> {
        let call = self
            .client
            .request(service, method)
            .payload(encode(question)?)
            .budget(budget)
            .idempotent();
        decode(&call.send().await?)
    }
}

/// Serves methods until SIGTERM: says that it is ready once the bridge knows
/// it, and finishes its calls before it ends.
pub(crate) async fn serve(methods: Methods, stop: &mut Stop) -> anyhow::Result<()> {
    let client = Client::from_env().await?;
    client.serve(methods);
    notify::status("waiting for the bridge");
    let registration = async {
        // A bridge that is away is waited for; refused credentials are final.
        client.registered(PATIENCE).await.context("cannot serve")
    };
    tokio::select! {
        // Both cancel safe: nothing but waiting.
        registered = registration => registered?,
        () = stop.requested() => return Ok(()),
    }
    notify::ready("serving");
    println!("{} serves", client.instance());
    stop.requested().await;
    notify::stopping();
    client.drain(DRAIN).await;
    Ok(())
}
