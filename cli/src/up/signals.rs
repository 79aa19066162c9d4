//! The signals that end a keeper.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::Error;

/// SIGINT, SIGTERM and SIGHUP (the terminal has gone). A SIGHUP that was
/// ignored at the start, as nohup(1) does it, stays ignored.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

impl Signals {
    /// From now on these signals do not end the process by themselves.
    ///
    /// # Errors
    /// When a handler cannot be installed.
    pub(super) fn new() -> Result<Self, Error> {
        let install =
            |kind| signal(kind).map_err(|source| Error::io("install", "a signal handler", source));
        Ok(Self {
            interrupt: install(SignalKind::interrupt())?,
            terminate: install(SignalKind::terminate())?,
            hangup: match is_ignored(SignalKind::hangup()) {
                true => None,
                false => Some(install(SignalKind::hangup())?),
            },
        })
    }

    /// Waits for the next one and tells its name. Cancel safe.
    pub(super) async fn next(&mut self) -> &'static str {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => "Ctrl-C",
            _ = self.terminate.recv() => "SIGTERM",
            _ = hangup => "SIGHUP",
        }
    }
}

/// Whether this process ignores a signal now. When that cannot be told it counts
/// as not ignored.
fn is_ignored(signal: SignalKind) -> bool {
    std::fs::read_to_string("/proc/self/status")
        .is_ok_and(|status| ignores(&status, signal.as_raw_value()))
}

/// Reads the mask `SigIgn` of a `/proc/<pid>/status`, see proc_pid_status(5):
/// hexadecimal, signal 1 is the lowest bit.
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    let bit = u32::try_from(signal - 1)
        .ok()
        .and_then(|shift| 1_u64.checked_shl(shift))
        .unwrap_or(0);
    mask & bit != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_of_ignored_signals_is_read_by_number() {
        let status = "Name:\tx\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\n\
                      SigCgt:\tffffffffffffffff\n";
        let ignored: Vec<i32> = (-1..70).filter(|signal| ignores(status, *signal)).collect();
        assert_eq!(ignored, [1, 13]);
        assert!(!ignores("Name:\tx\n", 1) && !ignores("SigIgn:\tnonsense\n", 1));
    }
}
