//! Processes of a deployment, as `/proc` shows them, whoever started them.

use std::fs;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its arguments, separated by blanks.
    pub command: String,
}

/// All processes but this one that have `mark` in their environment or
/// arguments, or `cgroup` in the path of one of their cgroups. A zombie has none
/// of them and is not found.
pub fn marked(mark: &str, cgroup: &str) -> Vec<Process> {
    let own = std::process::id();
    let entries = fs::read_dir("/proc").expect("/proc is readable");
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut found: Vec<Process> = pids
        .filter(|pid| *pid != own)
        .filter(|pid| belongs(*pid, mark, cgroup))
        .map(|pid| Process {
            pid,
            command: command(pid),
        })
        .collect();
    found.sort();
    found
}

fn belongs(pid: u32, mark: &str, cgroup: &str) -> bool {
    let contains = |file: &str, text: &str| {
        let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        bytes
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    };
    contains("environ", mark) || contains("cmdline", mark) || contains("cgroup", cgroup)
}

fn command(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes)
        .replace('\0', " ")
        .trim_end()
        .to_owned()
}

/// Whether a process of this id exists and is no zombie.
pub fn is_alive(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let state = status.lines().find_map(|line| line.strip_prefix("State:"));
    state.is_some_and(|state| !state.trim_start().starts_with(['Z', 'X']))
}

/// The start of a process in clock ticks since boot: with its id it is unique, see proc(5).
pub fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

/// The id of a process's parent.
pub fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// The descendants of a process, in no order.
pub fn descendants(of: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("/proc is readable");
    let all: Vec<(u32, u32)> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, parent(pid)?)))
        .collect();
    let mut found = vec![of];
    let mut next = 0;
    while let Some(above) = found.get(next).copied() {
        found.extend(
            all.iter()
                .filter(|(_, parent)| *parent == above)
                .map(|(pid, _)| *pid),
        );
        next += 1;
    }
    found.remove(0);
    found
}

/// Kills exactly the process that `verify` approves: the descriptor is opened
/// first, so that an id that is reused meanwhile hits nobody. `false` when it is
/// gone or not approved.
pub fn kill(pid: u32, signal: Signal, verify: impl FnOnce(u32) -> bool) -> bool {
    let Some(id) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return false;
    };
    let Ok(descriptor) = pidfd_open(id, PidfdFlags::empty()) else {
        return false;
    };
    verify(pid) && pidfd_send_signal(&descriptor, signal).is_ok()
}

/// Kills every process that carries the marks, until none is left. Processes
/// that were started meanwhile by those that are being killed are found in the
/// next round.
pub fn kill_all(mark: &str, cgroup: &str) {
    crate::wait::wait_for("all processes of the deployment to be gone", || {
        let left = marked(mark, cgroup);
        for process in &left {
            kill(process.pid, Signal::KILL, |pid| belongs(pid, mark, cgroup));
        }
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:#?}"))
        }
    });
}

/// The text in a process's environment that marks it as one of `directory`'s.
pub fn mark(directory: &Path) -> String {
    format!("{}/", directory.display())
}
