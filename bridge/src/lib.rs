//! The bridge: carries calls between the services of a host and knows who
//! serves what.
//!
//! ```text
//!  services ──DEALER──► ROUTER ─► message ─┐
//!                         │                │      ┌──────┐   Send ───────► ROUTER
//!                         └ gone ──────────┼─────►│ core │── Publish ────► bus (evt.registry)
//!  process-manager ─ evt.process ──────────┤      └──────┘   Disconnect ─► ROUTER
//!  supervisor ─ evt.supervision ───────────┤         ▲
//!  cmd.bridge. (registry.*) ───────────────┘         └── the clock: budgets, silences
//! ```
//!
//! One task owns everything (`shell`); what it decides is in [`core`], which
//! knows neither sockets nor clocks. Queues: the ROUTER's own (see the
//! transport), 4096 events of each link, 1024 commands; bounds of calls are in
//! [`core`]. It needs nobody: without process-manager and supervisor it carries
//! calls, and learns of ends by the loss of connections.

pub mod core;
mod direct;
mod page;
mod reports;
mod room;
mod shell;

use blackhole_bus_schema::bus::BusError;
use blackhole_bus_schema::daemon::Daemon;
use blackhole_bus_schema::secret::SecretError;
use blackhole_bus_schema::transport::TransportError;

/// Why the bridge cannot work.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// No key to check tokens with.
    #[error("no key for tokens")]
    Key(#[from] SecretError),
    /// The services' socket.
    #[error("the services' socket")]
    Transport(#[from] TransportError),
    /// A connection to another component.
    #[error("a connection to another component")]
    Bus(#[from] BusError),
}

/// The daemon's work, until it is asked to end.
///
/// # Errors
/// When its key or a socket is not to be had; later faults are answered or logged.
pub async fn run(daemon: Daemon) -> Result<(), BridgeError> {
    // In a task of its own: whenever the future that a runtime blocks on is woken by a
    // task, the runtime looks at all its descriptors once more before it polls it.
    let work = tokio::spawn(async move { shell::Shell::open(daemon).await?.run().await });
    match work.await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Ok(()),
    }
}
