//! A service's whole tree of processes: finding it, killing it.

use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::path::Path;

use blackhole_bus_schema::limits::LimitGrant;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A line of /proc/pid/stat as far as it matters here, see proc_pid_stat(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    /// `R`, `S`, `Z` …
    pub(crate) state: u8,
    /// The parent's pid.
    pub(crate) parent: i32,
    /// Whose session it is in: the pid of the process that began it.
    pub(crate) session: i32,
    /// Start in clock ticks since boot.
    pub(crate) start_ticks: u64,
}

/// Reads /proc/pid/stat; `None` when there is no such process.
pub(crate) fn stat(pid: i32) -> Option<Stat> {
    // One read: the line has 52 numbers and a name of at most 64 bytes.
    let mut line = [0_u8; 2048];
    let mut file = fs::File::open(format!("/proc/{pid}/stat")).ok()?;
    let bytes = file.read(&mut line).ok()?;
    parse_stat(&line[..bytes])
}

fn parse_stat(line: &[u8]) -> Option<Stat> {
    // The name is in parentheses and may hold anything, parentheses too.
    let end = line.iter().rposition(|byte| *byte == b')')?;
    let text = std::str::from_utf8(line.get(end + 1..)?).ok()?;
    let mut fields = text.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    // Fields 3 to 6 are taken, 22 is wanted.
    let start_ticks = fields.nth(15)?.parse().ok()?;
    Some(Stat {
        state,
        parent,
        session,
        start_ticks,
    })
}

/// Whether `pid` is a descendant of `ancestor`; `None` when it is gone.
pub(crate) fn is_below(pid: Pid, ancestor: Pid) -> Option<bool> {
    let ancestor = ancestor.as_raw_nonzero().get();
    let mut at = pid.as_raw_nonzero().get();
    // A chain cannot be longer than there are processes; a loop cannot be, but
    // pids that come back while this reads might look like one.
    for step in 0..1024 {
        match stat(at) {
            Some(stat) if stat.parent == ancestor => return Some(true),
            Some(stat) if stat.parent <= 1 => return Some(false),
            Some(stat) => at = stat.parent,
            None if step == 0 => return None,
            None => return Some(false),
        }
    }
    Some(false)
}

/// Sends SIGKILL to everything below this process, and returns how many took
/// it. What is born meanwhile has a parent that has just been killed, whose
/// death brings the next SIGCHLD and with it the next pass.
pub(crate) fn kill_descendants() -> u32 {
    kill_below(|_, _| true)
}

/// The same for a hook: the session that it leads, what was started with its
/// `variable` in the environment, and what is below them. A session's number is
/// not given to another while one of its processes lives.
pub(crate) fn kill_hook(leader: Pid, variable: &[u8]) -> u32 {
    let leader = leader.as_raw_nonzero().get();
    kill_below(|pid, stat| stat.session == leader || has_variable(pid, variable))
}

/// Sends SIGKILL to those below this process that are meant, and to all below them.
fn kill_below(meant: impl Fn(i32, &Stat) -> bool) -> u32 {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let mut killed = 0;
    let mut seen = HashSet::new();
    let mut parents = vec![own];
    // Below one that is meant all are. Nobody is killed before all are found: who
    // loses a parent is not seen to be below it any more.
    let mut doomed = HashSet::new();
    let mut found = Vec::new();
    let mut everything = None;
    while let Some(parent) = parents.pop() {
        let children = match children(parent) {
            Some(children) => children,
            // A kernel without CONFIG_PROC_CHILDREN.
            None if parent == own => {
                let all = everything.get_or_insert_with(all_parents);
                children_from(all, parent)
            }
            None => everything
                .as_ref()
                .map(|all| children_from(all, parent))
                .unwrap_or_default(),
        };
        for child in children {
            if !seen.insert(child) {
                continue;
            }
            parents.push(child);
            let is_meant = |stat: &Stat| doomed.contains(&parent) || meant(child, stat);
            if stat(child).is_some_and(|stat| is_meant(&stat)) {
                doomed.insert(child);
                found.push((child, parent));
            }
        }
    }
    for (child, parent) in found {
        killed += u32::from(kill_one(child, |stat| {
            stat.parent == parent || stat.parent == own
        }));
    }
    killed
}

/// The children of all threads of a process; `None` where the kernel does not tell or it is gone.
fn children(pid: i32) -> Option<Vec<i32>> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        match fs::read_to_string(task.path().join("children")) {
            Ok(text) => found.extend(
                text.split_ascii_whitespace()
                    .filter_map(|pid| pid.parse::<i32>().ok()),
            ),
            Err(_) if found.is_empty() => return None,
            Err(_) => {}
        }
    }
    Some(found)
}

fn all_pids() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn all_parents() -> Vec<(i32, i32)> {
    all_pids()
        .filter_map(|pid| Some((pid, stat(pid)?.parent)))
        .collect()
}

fn children_from(all: &[(i32, i32)], parent: i32) -> Vec<i32> {
    all.iter()
        .filter(|(_, of)| *of == parent)
        .map(|(pid, _)| *pid)
        .collect()
}

/// Kills one process that `is_it` recognises once its pid cannot be given to another any more.
fn kill_one(pid: i32, is_it: impl FnOnce(&Stat) -> bool) -> bool {
    let Some(pid) = Pid::from_raw(pid) else {
        return false;
    };
    let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else {
        return false;
    };
    match stat(pid.as_raw_nonzero().get()) {
        Some(stat) if stat.state != b'Z' && is_it(&stat) => {
            pidfd_send_signal(&fd, Signal::KILL).is_ok()
        }
        _ => false,
    }
}

/// Kills all that is in the cgroups of a grant: `cgroup.kill`, else the freezer
/// holds them still while they are killed. Returns whether there was a cgroup to
/// do it with. Errors are not told: a cgroup that is gone holds nothing.
pub(crate) fn kill_cgroups(grant: &LimitGrant) -> bool {
    if let Some(dir) = &grant.kill_cgroup
        && fs::write(Path::new(dir).join("cgroup.kill"), "1").is_ok()
    {
        thaw(grant);
        return true;
    }
    let Some(dir) = &grant.freezer_cgroup else {
        return false;
    };
    let dir = Path::new(dir);
    let _ = fs::write(dir.join("freezer.state"), "FROZEN");
    let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in pids.lines().filter_map(|line| line.parse().ok()) {
        kill_one(pid, |_| in_cgroup(pid, dir));
    }
    // On v1 a frozen process dies when it is thawed.
    thaw(grant);
    true
}

/// Kills all that is in one v2 cgroup: `cgroup.kill`, else one by one.
pub(crate) fn kill_group(dir: &Path) {
    if fs::write(dir.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in pids.lines().filter_map(|line| line.parse().ok()) {
        kill_one(pid, |_| in_cgroup(pid, dir));
    }
}

/// Whether nothing is in the cgroup `dir`, or nothing but that one; true for one that is not there.
pub(crate) fn is_empty(dir: &Path, but: Option<Pid>) -> bool {
    let mut pids = [0; 24];
    let expected = but.map(|pid| format!("{}\n", pid.as_raw_nonzero()));
    let Ok(mut file) = fs::File::open(dir.join("cgroup.procs")) else {
        return true;
    };
    match file.read(&mut pids) {
        Ok(0) => true,
        Ok(count) => expected.is_some_and(|only| pids[..count] == *only.as_bytes()),
        Err(_) => false,
    }
}

fn thaw(grant: &LimitGrant) {
    if let Some(dir) = &grant.freezer_cgroup {
        let _ = fs::write(Path::new(dir).join("freezer.state"), "THAWED");
    }
}

/// Whether a process is still in the cgroup `dir`: its list has it.
fn in_cgroup(pid: i32, dir: &Path) -> bool {
    fs::read_to_string(dir.join("cgroup.procs"))
        .is_ok_and(|pids| pids.lines().any(|line| line.parse() == Ok(pid)))
}

/// The `oom_kill` counter of a cgroup's file; `None` where it cannot be read.
pub(crate) fn oom_kills(file: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// Kills what a lost shim left behind: everything in the cgroups of the grant,
/// and every process whose environment names the notification socket that
/// belongs to the instance's `socket`; then its spawns' groups go. Returns how many processes were killed by the latter. Blocks; call
/// it from a blocking thread.
///
/// The caller must know that no shim holds the instance (see
/// [`super::record::instance_lock_held`]): its service would be killed.
pub fn sweep(socket: &Path, grant: Option<&LimitGrant>) -> u32 {
    let wanted = notify_variable(socket);
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let mut killed = HashSet::new();
    // Again until a pass finds nobody new: what was born during one is met in
    // the next. One that cannot die yet (in a system call) is not waited for.
    loop {
        if let Some(grant) = grant {
            kill_cgroups(grant);
        }
        let before = killed.len();
        for pid in all_pids().filter(|pid| *pid != own) {
            if !has_variable(pid, &wanted) {
                continue;
            }
            let start = stat(pid).map(|stat| stat.start_ticks);
            if !killed.contains(&(pid, start)) && kill_one(pid, |_| has_variable(pid, &wanted)) {
                killed.insert((pid, start));
            }
        }
        if killed.len() == before {
            if let Some(grant) = grant {
                super::cgroups::remove_all_run_groups(grant);
            }
            return u32::try_from(before).unwrap_or(u32::MAX);
        }
    }
}

/// The assignment in a service's environment that names its notification socket.
pub(crate) fn notify_variable(socket: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    [
        b"NOTIFY_SOCKET=",
        super::notify_path(socket).as_os_str().as_bytes(),
    ]
    .concat()
}

fn has_variable(pid: i32, wanted: &[u8]) -> bool {
    fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| {
        environ
            .split(|byte| *byte == 0)
            .any(|variable| variable == wanted)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_with_any_name_are_read() {
        let line = b"42 (a) b (c)) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 1 2";
        assert_eq!(
            parse_stat(line),
            Some(Stat {
                state: b'S',
                parent: 7,
                session: 42,
                start_ticks: 12345
            })
        );
        assert_eq!(parse_stat(b""), None);
        assert_eq!(parse_stat(b"42 (x"), None);
        assert_eq!(parse_stat(b"42 (x) S 1"), None);
    }

    #[test]
    fn this_process_is_below_its_parent_and_not_below_itself() {
        let own = rustix::process::getpid();
        let parent = rustix::process::getppid().unwrap();
        assert_eq!(is_below(own, parent), Some(true));
        assert_eq!(is_below(own, own), Some(false));
        assert_eq!(is_below(Pid::from_raw(i32::MAX).unwrap(), own), None);
    }

    #[test]
    fn children_are_found_with_and_without_the_kernels_list() {
        let mut child = std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .unwrap();
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let pid = i32::try_from(child.id()).unwrap();
        if let Some(children) = children(own) {
            assert!(children.contains(&pid));
        }
        assert!(children_from(&all_parents(), own).contains(&pid));
        assert!(
            !kill_one(pid, |stat| stat.parent != own),
            "not the one that was meant"
        );
        assert!(kill_one(pid, |stat| stat.parent == own));
        child.wait().unwrap();
    }

    #[test]
    fn the_oom_counter_is_its_own_line() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("memory.oom_control");
        fs::write(&file, "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n").unwrap();
        assert_eq!(oom_kills(file.to_str().unwrap()), Some(3));
        assert_eq!(oom_kills("/nowhere"), None);
    }
}
