//! The only clock of the supervisor.

use std::time::{Duration, Instant};

use blackhole_bus_schema::dirs::unix_now_ns;

use crate::core::Now;

/// The core's time begins this long before the process, so that it can name
/// moments of earlier runs (when a circuit opened).
const BEFORE: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Both clocks, monotonic and wall.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    began: Instant,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self {
            began: Instant::now(),
        }
    }

    pub(super) fn now(self) -> Now {
        Now {
            mono: BEFORE.saturating_add(self.began.elapsed()),
            unix_ns: unix_now_ns(),
        }
    }

    /// Waits until a moment of the core's time; for ever without one, or when
    /// it is too far for the clock. Cancel safe.
    pub(super) async fn until(self, moment: Option<Duration>) {
        let wait = moment.map(|moment| moment.saturating_sub(BEFORE));
        match wait.and_then(|wait| self.began.checked_add(wait)) {
            Some(at) => tokio::time::sleep_until(at.into()).await,
            None => std::future::pending().await,
        }
    }
}
