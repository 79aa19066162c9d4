//! What the kernel says of this host and of single processes.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::readiness::readable;
use rustix::process::{Flock, FlockType, Pid, PidfdFlags, fcntl_getlk, pidfd_open};
use rustix::time::{ClockId, clock_gettime};

/// Wait before a lock whose holder cannot be seen from here is looked at again.
const UNSEEN: Duration = Duration::from_secs(1);

/// Identifies this boot, see random(4).
///
/// # Errors
/// When /proc is not there.
pub fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// When this boot began, Unix time in nanoseconds.
pub fn booted_at() -> u64 {
    let since = clock_gettime(ClockId::Boottime);
    let up = Duration::new(
        u64::try_from(since.tv_sec).unwrap_or(0),
        u32::try_from(since.tv_nsec).unwrap_or(0),
    );
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.saturating_sub(up).as_nanos()).unwrap_or(u64::MAX)
}

/// Whether the process with this pid and this start (clock ticks since boot,
/// field 22 of /proc/pid/stat, see proc_pid_stat(5)) runs; not when it has
/// ended and waits to be reaped.
pub fn runs(pid: u32, start_ticks: u64) -> bool {
    let Ok(stat) = std::fs::read(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // The second field is a name in parentheses that may hold anything.
    let Some(end) = stat.iter().rposition(|byte| *byte == b')') else {
        return false;
    };
    let Ok(rest) = std::str::from_utf8(&stat[end + 1..]) else {
        return false;
    };
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let ended = matches!(fields.first(), Some(&("Z" | "X" | "x")) | None);
    let ticks = fields.get(19).and_then(|ticks| ticks.parse::<u64>().ok());
    !ended && ticks == Some(start_ticks)
}

/// Clock ticks of /proc/pid/stat in a second: `USER_HZ`, which is 100 on all
/// architectures but Alpha and Itanium, see time(7).
const TICKS: u64 = 100;

/// Time since the process started whose start is `start_ticks` after the boot;
/// nothing where that is not known. By the clock since the boot, which nobody sets.
pub fn age(start_ticks: u64) -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let now = Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    );
    match start_ticks {
        0 => Duration::ZERO,
        ticks => now.saturating_sub(Duration::from_millis(ticks.saturating_mul(1000 / TICKS))),
    }
}

/// A descriptor of a process; `None` when there is none of this pid.
pub fn pidfd(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// The pid of the process that holds a record lock, see fcntl_locking(2);
/// `None` when nobody does or there is no such file.
///
/// # Errors
/// When the file cannot be opened or asked about.
pub fn lock_holder(path: &Path) -> io::Result<Option<u32>> {
    let file = match File::options().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let found = fcntl_getlk(&file, &Flock::from(FlockType::WriteLock))?;
    let pid = |lock: Flock| lock.pid.map_or(0, |pid| pid.as_raw_nonzero().get());
    Ok(found.map(|lock| u32::try_from(pid(lock)).unwrap_or(0)))
}

/// Waits until nobody holds the lock that `holder` tells of. Cancel safe.
pub async fn lock_free(holder: impl Fn() -> io::Result<Option<u32>>) {
    loop {
        let process = match holder() {
            Ok(None) => return,
            Ok(Some(pid)) => pidfd(pid),
            Err(_) => None,
        };
        match process.and_then(|pidfd| readable(pidfd).ok()) {
            // Readable when the process has ended, see pidfd_open(2).
            Some(pidfd) => drop(pidfd.readable().await),
            // In another pid namespace, or ended just now.
            None => tokio::time::sleep(UNSEEN).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_ticks() -> u64 {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let rest = &stat[stat.rfind(')').unwrap() + 2..];
        rest.split(' ').nth(19).unwrap().parse().unwrap()
    }

    #[test]
    fn this_process_runs_and_another_of_its_pid_does_not() {
        let pid = std::process::id();
        assert!(runs(pid, own_ticks()));
        assert!(!runs(pid, own_ticks() + 1));
    }

    #[test]
    fn what_waits_to_be_reaped_does_not_run() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let rest = &stat[stat.rfind(')').unwrap() + 2..];
        let ticks: u64 = rest.split(' ').nth(19).unwrap().parse().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        // Waits for the end without reaping.
        rustix::process::waitid(
            rustix::process::WaitId::Pid(pid),
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT,
        )
        .unwrap();
        assert!(!runs(child.id(), ticks));
        child.wait().unwrap();
    }

    #[test]
    fn the_age_of_a_process_is_the_time_since_its_start() {
        let begun = std::time::Instant::now();
        let mut child = std::process::Command::new("/bin/sleep")
            .arg("100")
            .spawn()
            .unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let rest = &stat[stat.rfind(')').unwrap() + 2..];
        let ticks: u64 = rest.split(' ').nth(19).unwrap().parse().unwrap();
        let tick = Duration::from_millis(1000 / TICKS);
        let first = age(ticks);
        assert!(first <= begun.elapsed() + 2 * tick, "{first:?}");
        let between = std::time::Instant::now();
        while between.elapsed() < 3 * tick {
            std::thread::yield_now();
        }
        assert!(age(ticks) >= first + 3 * tick);
        assert_eq!(age(0), Duration::ZERO);
        assert_eq!(age(u64::MAX), Duration::ZERO);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn the_boot_has_a_name_and_a_past() {
        assert_eq!(boot_id().unwrap().len(), 36);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_nanos();
        assert!(u128::from(booted_at()) < now);
    }
}
