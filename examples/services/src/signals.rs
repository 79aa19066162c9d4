//! The end of a service: SIGTERM and SIGINT.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Both signals that ask for an end in order, caught from here on.
pub(crate) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    /// Catches both. Call it before saying that the service is ready.
    pub(crate) fn install() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Returns when one of them came. Cancel safe.
    pub(crate) async fn requested(&mut self) {
        tokio::select! {
            // Cancel safe: `Signal::recv` keeps a signal that came meanwhile.
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
