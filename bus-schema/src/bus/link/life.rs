//! Whether the component is there, and when it is looked for next.

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::jittered;
use crate::bus::server::HEARTBEAT;

/// Silence after which a component counts as gone: nearly three heartbeats, so
/// that one that hangs is shown as missing within three seconds.
pub(in crate::bus) const SILENCE: Duration =
    Duration::from_millis(HEARTBEAT.as_millis() as u64 * 28 / 10);

/// The attempt from which on there is time: nothing tells that the component is there. Those
/// before follow each other within tenths of a millisecond.
const UNHURRIED: u32 = 5;

/// Whether the component is there.
#[derive(Debug)]
pub(super) enum Life {
    /// It is being looked for.
    Absent {
        attempt: u32,
        ping: Option<Uuid>,
        /// When it was looked for last: messages that come meanwhile put nothing off.
        looked: Instant,
    },
    /// An echo came back.
    Present { incarnation: u64, heard: Instant },
}

impl Life {
    /// Nothing is known of it; it is looked for at once.
    pub(super) fn absent() -> Self {
        Self::Absent {
            attempt: UNHURRIED,
            ping: None,
            looked: Instant::now(),
        }
    }

    /// When the task has to act by itself: the next ping, or the end of patience. Cancel safe.
    pub(super) fn wake(&self) -> impl Future<Output = ()> + use<> {
        let millis = Duration::from_millis;
        let (spin, until) = match self {
            // Timers round up to a millisecond; an echo takes a tenth of one. Each wait is
            // twice the one before: whoever is slow to answer gets five pings, not fifty.
            Self::Absent {
                attempt,
                ping,
                looked,
            } => match attempt {
                _ if ping.is_none() => (true, *looked),
                0 => (true, *looked),
                ..UNHURRIED => (true, *looked + Duration::from_micros(75 << (attempt - 1))),
                ..=44 => (false, *looked + millis(2)),
                ..=64 => (false, *looked + millis(20)),
                _ => (false, *looked + jittered(millis(200))),
            },
            Self::Present { heard, .. } => (false, *heard + SILENCE),
        };
        async move {
            match spin {
                true => {
                    while Instant::now() < until {
                        tokio::task::yield_now().await;
                    }
                }
                false => tokio::time::sleep_until(until).await,
            }
        }
    }
}
