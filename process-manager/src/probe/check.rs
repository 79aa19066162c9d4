//! Asking a service how it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use blackhole_bus_schema::health::{Probe, ProbeCheck};
use blackhole_bus_schema::names::InstanceName;
use tokio::net::TcpStream;

use super::exec::{self, Context};
use super::http;
use super::rpc::Caller;
use super::schedule::Outcome;
use crate::shim::client::ShimHandle;

pub use super::exec::Context as ExecContext;

/// What a probe needs of the instance that it asks.
#[derive(Debug, Clone)]
pub struct Subject {
    /// For `exec`: the service's own context; `None` when it is not known any more.
    pub context: Option<Context>,
    /// For `rpc`: the instance and who calls it.
    pub instance: InstanceName,
    /// See `instance`.
    pub caller: Arc<Caller>,
    /// For the watchdog.
    pub shim: Option<ShimHandle>,
    /// Time since the process started, when the probe began.
    pub age: Duration,
}

/// Runs one probe. Never fails: what goes wrong is its outcome. Dropping the
/// future ends it, and kills the program of an `exec` probe.
pub async fn run(probe: &Probe, subject: Subject) -> Outcome {
    let begun = Instant::now();
    let limit = Duration::from_millis(probe.timeout_ms);
    let mut next_in = None;
    let asked = async {
        match &probe.check {
            ProbeCheck::Http(url) => http::get(url).await,
            ProbeCheck::Tcp(address) => connect(address).await,
            ProbeCheck::Exec(command) => match subject.context {
                Some(context) => exec::run(command, context).await,
                None => Err("how the service was started is not known any more".to_owned()),
            },
            ProbeCheck::Notify => match subject.shim {
                Some(shim) => {
                    let interval = Duration::from_millis(probe.interval_ms);
                    let left = watchdog(&shim, interval, subject.age).await?;
                    next_in = Some(left);
                    Ok(())
                }
                None => Err("its shim does not answer".to_owned()),
            },
            ProbeCheck::Rpc(method) => subject.caller.ask(&subject.instance, method, limit).await,
        }
    };
    let result = match tokio::time::timeout(limit, asked).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {} ms", probe.timeout_ms)),
    };
    Outcome {
        error: result.err(),
        took: begun.elapsed(),
        next_in,
    }
}

async fn connect(address: &str) -> Result<(), String> {
    let connected = TcpStream::connect(address).await;
    connected
        .map(drop)
        .map_err(|error| format!("connect to {address}: {error}"))
}

/// How long the service's last `WATCHDOG=1` holds on. One that has said none
/// yet has the interval from its start, as systemd counts `WatchdogSec=`.
async fn watchdog(
    shim: &ShimHandle,
    interval: Duration,
    age: Duration,
) -> Result<Duration, String> {
    let status = shim
        .status()
        .await
        .map_err(|error| format!("its shim does not answer: {error}"))?;
    let silent = status
        .notify
        .watchdog_age_ms
        .map_or(age, Duration::from_millis);
    match interval.checked_sub(silent) {
        Some(left) => Ok(left),
        None => Err(format!(
            "no WATCHDOG=1 for {} ms, one is due each {} ms",
            silent.as_millis(),
            interval.as_millis()
        )),
    }
}
