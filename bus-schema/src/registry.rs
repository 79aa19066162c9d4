//! The bridge's registry: which instances of a service answer RPC. Events come
//! on `evt.registry.<service>.`, commands go to `cmd.bridge.`.

use serde::{Deserialize, Serialize};

use crate::message::{Command, Message, Snapshot};
use crate::names::{Generation, InstanceName};
use crate::process::query;

/// One registered instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Who.
    pub instance: InstanceName,
    /// Which spawn of it.
    pub generation: Generation,
    /// Methods it serves.
    pub methods: Vec<String>,
    /// Its own endpoint for direct calls, where it offers one.
    pub endpoint: Option<String>,
    /// Calls sent to it and not answered.
    pub outstanding: u32,
    /// It finishes its calls and takes no more.
    pub draining: bool,
}

/// An instance registered, changed or went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryChanged {
    /// Who.
    pub instance: InstanceName,
    /// `None` when it is gone.
    pub registration: Option<Registration>,
}

/// Ask for all registrations, in pages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListRegistry {
    /// Where to go on: the last answer's `next`.
    pub after: Option<String>,
}

/// Ask the bridge to send an instance no more calls and to tell when those under
/// way are answered. Sent by the supervisor before it has an instance stopped;
/// the instance is told with a `goaway` too. The reply comes when no call is left
/// or `within_ms` is over, whichever is first; an instance that is not registered
/// is drained at once. Lasts until that generation is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Who.
    pub instance: InstanceName,
    /// Which spawn of it; another one's registration is left alone.
    pub generation: Generation,
    /// Longest wait, in milliseconds.
    pub within_ms: u64,
}

/// Reply to [`Drain`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Drained {
    /// Whether that generation was registered when it was asked for.
    pub registered: bool,
    /// Calls still under way at the end of the wait.
    pub outstanding: u32,
}

/// Ask for what the bridge has measured, in pages: one item for each caller,
/// service and method.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListCalls {
    /// Where to go on: the last answer's `next`.
    pub after: Option<String>,
}

/// How the calls of one caller to one method of one service went, since the
/// bridge was started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CallStats {
    /// Service that called.
    pub caller: String,
    /// Service that was called.
    pub service: String,
    /// Method; empty for all calls beyond the number of routes that are told apart.
    pub method: String,
    /// Calls that ended, well or not.
    pub calls: u64,
    /// Those of them that did not end with `ok`.
    pub failed: u64,
    /// Sum of their durations, in microseconds.
    pub sum_us: u64,
    /// Median of their durations, in microseconds; so are the next three.
    pub p50_us: u64,
    /// 90th percentile.
    pub p90_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// Longest.
    pub max_us: u64,
    /// Calls that took at most [`CALL_BUCKETS_US`]`[n]`, cumulative.
    pub buckets: Vec<u64>,
}

/// Upper bounds of [`CallStats::buckets`], in microseconds.
pub const CALL_BUCKETS_US: [u64; 12] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000, 10_000_000,
];

impl Message for RegistryChanged {
    const KIND: &'static str = "registry.changed";
}

query!(ListRegistry, "registry.list", Snapshot<Registration>);
query!(Drain, "registry.drain", Drained);
query!(ListCalls, "registry.calls", Snapshot<CallStats>);
