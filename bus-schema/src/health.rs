//! Probes: what is asked of a running service, and what came back. A
//! process-manager runs them, the supervisor judges.

use serde::{Deserialize, Serialize};

use crate::message::Message;
use crate::names::{Generation, InstanceName};

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeKind {
    /// Has it come up? Until it has, the others wait.
    Startup,
    /// Is it alive? If not it is restarted.
    Liveness,
    /// Can it serve? If not its dependents wait and no calls are sent to it.
    Readiness,
}

/// How a probe asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeCheck {
    /// `GET` of an `http://` URL: healthy on status 200 to 399.
    Http(String),
    /// A TCP connect to `HOST:PORT`: healthy when it is accepted.
    Tcp(String),
    /// A program run in the service's own context: healthy when it exits with 0.
    Exec(Vec<String>),
    /// A call of this RPC method of the service: healthy on status OK.
    Rpc(String),
    /// `READY=1` over `NOTIFY_SOCKET` (readiness), `WATCHDOG=1` within the interval (liveness).
    Notify,
}

/// One probe of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// How it asks.
    pub check: ProbeCheck,
    /// Time before the first one, in milliseconds.
    pub initial_delay_ms: u64,
    /// Time from the end of one to the start of the next, in milliseconds.
    pub interval_ms: u64,
    /// Time until one without an answer counts as failed, in milliseconds.
    pub timeout_ms: u64,
    /// Failures in a row that make the service unhealthy.
    pub failure_threshold: u32,
    /// Successes in a row that make it healthy again.
    pub success_threshold: u32,
}

/// The probes of a service; each may be missing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Probes {
    /// See [`ProbeKind::Startup`].
    pub startup: Option<Probe>,
    /// See [`ProbeKind::Liveness`].
    pub liveness: Option<Probe>,
    /// See [`ProbeKind::Readiness`].
    pub readiness: Option<Probe>,
}

impl Probes {
    /// The probe of one kind.
    pub fn get(&self, kind: ProbeKind) -> Option<&Probe> {
        match kind {
            ProbeKind::Startup => self.startup.as_ref(),
            ProbeKind::Liveness => self.liveness.as_ref(),
            ProbeKind::Readiness => self.readiness.as_ref(),
        }
    }
}

/// A result of a probe, on `evt.health.<instance>.`. Every failure is
/// published; a success is published until `success_threshold` in a row are
/// reached and then only after a failure, so that healthy services are silent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeResult {
    /// Which instance.
    pub instance: InstanceName,
    /// Which spawn of it.
    pub generation: Generation,
    /// Which probe.
    pub probe: ProbeKind,
    /// `None` is success; otherwise what went wrong, for a person.
    pub error: Option<String>,
    /// Equal results in a row up to this one.
    pub in_a_row: u32,
    /// Time it took, in microseconds.
    pub took_us: u64,
}

impl Message for ProbeResult {
    const KIND: &'static str = "health.probe";
}

/// The supervisor's verdict on an instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// No probe is configured, or none has answered.
    #[default]
    Unknown,
    /// Its startup probe has not passed, or it is not ready yet.
    Starting,
    /// All probes pass.
    Healthy,
    /// Alive, but not ready.
    NotReady,
    /// Its liveness probe failed; it is restarted by the policy.
    Unhealthy,
}
