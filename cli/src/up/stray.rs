//! What runs although the state directory has no trace of it: somebody removed that, or
//! named another one. It is found by its sockets in the run directory.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use blackhole_bus_schema::dirs::Dirs;
use rustix::process::Pid;
use tokio::net::UnixStream;

use crate::error::Error;
use crate::human;

use super::process::Process;

/// What ends just now keeps its socket for a moment. So often, and after such a wait, it
/// is looked again.
const LOOKS: u32 = 40;
const PAUSE: Duration = Duration::from_millis(50);

const FORK_SERVER: &str = "the fork server";

/// A process that listens below the run directory.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stray {
    /// `supervisor`, `a shim`, `the fork server`.
    what: String,
    /// 0 for one of another pid namespace, which cannot be seen from here.
    pid: u32,
}

/// Who listens on a socket, see SO_PEERCRED in unix(7); `None` where nobody does, 0 for a
/// process of another pid namespace.
async fn listener(path: &Path) -> Option<u32> {
    let stream = UnixStream::connect(path).await.ok()?;
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    Some(pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0))
}

/// Whether a process listens on a socket, or keeps it for one that does.
pub(super) async fn is_in_use(path: &Path) -> bool {
    listener(path).await.is_some() || listener(&path.with_extension("")).await.is_some()
}

async fn all(dirs: &Dirs) -> Vec<Stray> {
    let mut found = Vec::new();
    for (folder, name) in [("bus", ""), ("fs", FORK_SERVER), ("i", "a shim")] {
        let entries = std::fs::read_dir(dirs.run.join(folder));
        let mut files: Vec<_> = entries.into_iter().flatten().flatten().collect();
        files.sort_by_key(std::fs::DirEntry::file_name);
        for file in files {
            let path = file.path();
            let end = path.extension().and_then(|end| end.to_str());
            let what = match (folder, end, path.file_stem()) {
                ("bus", Some("cmd"), Some(stem)) => stem.to_string_lossy().into_owned(),
                ("fs" | "i", None, _) => name.to_owned(),
                _ => continue,
            };
            if let Some(pid) = listener(&path).await {
                found.push(Stray { what, pid });
            }
        }
    }
    found
}

/// The keeper of daemons that listen in the run directory: the `blackhole up` that is
/// their parent. Only of daemons that were started for this very state directory.
pub(super) async fn keeper(dirs: &Dirs) -> Option<Process> {
    for stray in all(dirs).await {
        let parent = |pid: u32| status(pid, "PPid:");
        let Some(pid) = parent(stray.pid).filter(|pid| *pid > 1) else {
            continue;
        };
        if !is_for(stray.pid, dirs) || !is_keeper(pid) {
            continue;
        }
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let Some(process) = number.and_then(|number| Process::open(number).ok()) else {
            continue;
        };
        // Had it ended before it was held, its daemons would have another parent by now.
        if parent(stray.pid) == Some(pid) {
            return Some(process);
        }
    }
    None
}

/// Refuses to call it the end while somebody listens in the run directory. A fork server alone
/// holds nothing: whoever calls this ends it.
///
/// # Errors
/// When somebody does; the error has the numbers of the processes.
pub(super) async fn check(dirs: &Dirs) -> Result<(), Error> {
    let mut left = all(dirs).await;
    for _ in 0..LOOKS {
        if left.iter().all(|stray| stray.what == FORK_SERVER) {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
        left = all(dirs).await;
    }
    let foreign = left.iter().find_map(|stray| {
        let other = state_of(stray.pid)?;
        (other != dirs.state.as_os_str().as_encoded_bytes())
            .then(|| String::from_utf8_lossy(&other).into_owned())
    });
    let names: Vec<String> = left
        .iter()
        .map(|stray| match stray.pid {
            0 => format!("{} (of another pid namespace)", stray.what),
            pid => format!("{} (pid {pid})", stray.what),
        })
        .collect();
    let (run, state) = (dirs.run.display(), dirs.state.display());
    let names = human::list(&names, 12);
    Err(match foreign {
        Some(other) => Error::Failed {
            message: format!("{names} in {run} belong to another state directory than {state}"),
            hint: format!("`blackhole down --run-dir {run} --state-dir {other}` ends them"),
        },
        None => Error::Failed {
            message: format!("{names} in {run} go on, and {state} has no trace of them"),
            hint: format!(
                "was it removed while they ran? This ends them and what they started, at once: \
                 kill -9 {}",
                family(left.iter().map(|stray| stray.pid).filter(|pid| *pid > 0))
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(" ")
            ),
        },
    })
}

/// The processes and all that descends from them.
fn family(roots: impl Iterator<Item = u32>) -> BTreeSet<u32> {
    let mut all: BTreeSet<u32> = roots.collect();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pairs: Vec<(u32, u32)> = processes
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            Some((pid, status(pid, "PPid:")?))
        })
        .collect();
    loop {
        let before = all.len();
        for (pid, parent) in &pairs {
            if all.contains(parent) {
                all.insert(*pid);
            }
        }
        if all.len() == before {
            return all;
        }
    }
}

/// A number of a process's status, see proc_pid_status(5).
fn status(pid: u32, key: &str) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().parse().ok()
}

fn arguments(pid: u32) -> Vec<Vec<u8>> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
}

/// The state directory that a daemon was given; `None` where it was not by a flag.
fn state_of(pid: u32) -> Option<Vec<u8>> {
    let all = arguments(pid);
    let flag = all.iter().position(|one| one == b"--state-dir")?;
    all.get(flag + 1).cloned()
}

fn is_for(pid: u32, dirs: &Dirs) -> bool {
    state_of(pid).is_some_and(|state| state == dirs.state.as_os_str().as_encoded_bytes())
}

fn is_keeper(pid: u32) -> bool {
    let all = arguments(pid);
    let program = all
        .first()
        .map(|name| name.rsplit(|byte| *byte == b'/').next());
    program == Some(Some(b"blackhole")) && all.iter().any(|one| one == b"up")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_listens_in_the_run_directory_is_found_and_told() {
        let temp = tempfile::tempdir().unwrap();
        let dirs = Dirs::resolve(Some(temp.path().join("r")), Some(temp.path().join("s"))).unwrap();
        dirs.create().unwrap();
        assert!(check(&dirs).await.is_ok());
        let socket = dirs.run.join("i/0123456789abcdef");
        std::fs::write(dirs.run.join("fs/v2.lock"), "").unwrap();
        let shim = tokio::net::UnixListener::bind(&socket).unwrap();
        let own = std::process::id();
        let found = Stray {
            what: "a shim".to_owned(),
            pid: own,
        };
        assert_eq!(all(&dirs).await, [found]);
        assert!(is_in_use(&socket).await && is_in_use(&socket.with_extension("n")).await);
        // This program is neither a daemon nor a keeper's child.
        assert!(keeper(&dirs).await.is_none());
        let error = check(&dirs).await.unwrap_err();
        assert_eq!(error.exit() as u8, 1);
        assert!(
            error
                .to_string()
                .starts_with(&format!("a shim (pid {own}) in ")),
            "{error}"
        );
        assert!(
            error.hint().contains(&format!("kill -9 {own}")),
            "{}",
            error.hint()
        );
        drop(shim);
        assert!(!is_in_use(&socket).await);
        assert!(check(&dirs).await.is_ok());
    }
}
