//! The `rpc` probe: a call of a method of the very instance, by way of the bridge.

use std::time::Duration;

use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::names::InstanceName;
use blackhole_bus_schema::rpc::{Client, ConnectOptions, Key};
use tokio::sync::OnceCell;

/// As whom the manager calls: a part of Blackhole, which no service can be named as.
const PART: &str = "process-manager";

/// Calls services. One connection for all probes, made at the first.
#[derive(Debug)]
pub struct Caller {
    dirs: Dirs,
    key: Option<Key>,
    client: OnceCell<Client>,
}

impl Caller {
    /// A caller with the key of RPC tokens; without one every call fails.
    pub fn new(dirs: Dirs, key: Option<Key>) -> Self {
        Self {
            dirs,
            key,
            client: OnceCell::new(),
        }
    }

    /// Calls `method` of `instance` with an empty payload. Healthy on status OK.
    /// While the bridge is away, or the instance has not registered, it waits, for
    /// at most `budget`. Dropping the future cancels the call.
    pub(super) async fn ask(
        &self,
        instance: &InstanceName,
        method: &str,
        budget: Duration,
    ) -> Result<(), String> {
        let key = self
            .key
            .as_ref()
            .ok_or("there is no key for RPC: see status of this daemon")?;
        let connect = async {
            let options =
                ConnectOptions::of_part(&self.dirs, key, PART).map_err(|e| e.to_string())?;
            Client::connect(options)
                .await
                .map_err(|error| crate::launch::chain(&error))
        };
        let client = self.client.get_or_try_init(|| connect).await?;
        let answer = client.call(&instance.to_string(), method, "", budget).await;
        answer
            .map(drop)
            .map_err(|status| format!("call {method}: {}: {status}", status.code))
    }
}
