//! `ticker`: a service that speaks sd_notify(3): STATUS=… and READY=1 when it is
//! up, WATCHDOG=1 while it works. Told to, it falls silent like a
//! service that hangs.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::notify;
use crate::signals::Stop;

/// Ticks each second when nobody set `WATCHDOG_USEC`.
const DEFAULT_TICK: Duration = Duration::from_secs(1);

/// Half of what the supervisor allows, as sd_watchdog_enabled(3) recommends.
fn tick_interval() -> Duration {
    std::env::var("WATCHDOG_USEC")
        .ok()
        .and_then(|text| text.parse().ok())
        .map(|micros: u64| Duration::from_micros(micros / 2))
        .filter(|half| !half.is_zero())
        .unwrap_or(DEFAULT_TICK)
}

/// Ticks until SIGTERM.
pub(crate) async fn tick(ready_after_ms: u64, hang_after_ms: Option<u64>) -> anyhow::Result<()> {
    let mut stop = Stop::install()?;
    let start = Instant::now();
    notify::status("warming up");
    tokio::select! {
        () = sleep_until(start + Duration::from_millis(ready_after_ms)) => {}
        () = stop.requested() => return Ok(()),
    }
    notify::ready("ticking");
    println!("ready");

    let mut ticks = interval(tick_interval());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut count = 0_u64;
    let hang = async {
        match hang_after_ms {
            Some(after) => sleep_until(start + Duration::from_millis(after)).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(hang);
    loop {
        tokio::select! {
            // All three cancel safe: interval, pinned timer, signal stream.
            _ = ticks.tick() => {
                count += 1;
                notify::watchdog();
            }
            () = &mut hang => {
                println!("falls silent after {count} ticks");
                stop.requested().await;
                return Ok(());
            }
            () = stop.requested() => {
                notify::stopping();
                println!("ends after {count} ticks");
                return Ok(());
            }
        }
    }
}
