//! A deployment as the kernel shows it: who lives for which instance, who is
//! nobody's, and whether two lives of one instance were ever there at one time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::processes::{self, Process};

/// Between two looks of a [`Watcher`]: short against the life of a service, long
/// against what a look costs.
const LOOK: Duration = Duration::from_millis(10);

/// A process that has an instance's name in its environment: the service
/// itself or a descendant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub pid: u32,
    /// Its start, see [`processes::started`].
    pub started: Option<u64>,
    /// Its instance.
    pub instance: String,
    /// Its token of the calls between services: another one for each generation.
    pub token: String,
}

/// A process's environment variable.
fn variable(environment: &[u8], name: &str) -> Option<String> {
    let mut all = environment.split(|byte| *byte == 0);
    let value = all.find_map(|one| one.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
    Some(String::from_utf8_lossy(value).into_owned())
}

fn member(pid: u32, mark: &str) -> Option<Member> {
    let started = processes::started(pid);
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mark = mark.as_bytes();
    if !environment.windows(mark.len()).any(|window| window == mark) {
        return None;
    }
    Some(Member {
        pid,
        started,
        instance: variable(&environment, "BLACKHOLE_INSTANCE")?,
        token: variable(&environment, "BLACKHOLE_TOKEN").unwrap_or_default(),
    })
}

/// Whether it is still the process it was and not about to end: one that was
/// sent SIGKILL executes nothing any more, see signal(7).
fn lives(member: &Member, mark: &str) -> bool {
    const KILL: u64 = 1 << 8;
    let status = fs::read_to_string(format!("/proc/{}/status", member.pid)).unwrap_or_default();
    let pending = |name: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix(name));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .unwrap_or(0)
    };
    (pending("SigPnd:") | pending("ShdPnd:")) & KILL == 0
        && processes::is_alive(member.pid)
        && self::member(member.pid, mark).as_ref() == Some(member)
}

/// All processes of all instances of the deployment with this mark.
pub fn members(mark: &str) -> Vec<Member> {
    let entries = fs::read_dir("/proc").expect("/proc is readable").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| member(pid, mark)).collect()
}

/// Instances of which two generations lived at one time: all those named were
/// seen alive by two looks, and so lived in between.
fn doubles(mark: &str) -> Vec<Vec<Member>> {
    let mut by_instance: BTreeMap<String, Vec<Member>> = BTreeMap::new();
    for member in members(mark) {
        let all = by_instance.entry(member.instance.clone()).or_default();
        all.push(member);
    }
    let tokens = |all: &[Member]| {
        let tokens: BTreeSet<&str> = all.iter().map(|one| one.token.as_str()).collect();
        tokens.len()
    };
    let several = by_instance.into_values().filter(|all| tokens(all) > 1);
    several
        .map(|mut all| {
            all.retain(|one| lives(one, mark));
            all
        })
        .filter(|all| tokens(all) > 1)
        .collect()
}

/// Looks all the time for an instance that lives twice.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    end: AtomicBool,
    looks: AtomicU64,
    seen: Mutex<Vec<Vec<Member>>>,
}

impl Watcher {
    /// Begins to look.
    pub fn start(mark: String) -> Self {
        let shared = Arc::new(Shared::default());
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                while !shared.end.load(Ordering::Relaxed) {
                    let found = doubles(&mark);
                    let mut seen = shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.extend(found);
                    drop(seen);
                    shared.looks.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(LOOK);
                }
            }
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// How often it has looked.
    pub fn looks(&self) -> u64 {
        self.shared.looks.load(Ordering::Relaxed)
    }

    /// Instances that were seen to live twice.
    pub fn doubles(&self) -> Vec<Vec<Member>> {
        let seen = self.shared.seen.lock();
        seen.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The shims among a deployment's processes, whatever each of them does now.
pub fn shims(all: &[Process]) -> Vec<u32> {
    let program = |one: &Process| {
        let first = one.command.split(' ').next().unwrap_or_default();
        first.ends_with("/blackhole-shim")
    };
    let shims = all.iter().filter(|one| program(one));
    shims.map(|one| one.pid).collect()
}

/// Locks below a directory by the kernel's account: the file and who holds it.
/// A file has as many entries as it has locks.
pub fn locks(below: &Path) -> Vec<(PathBuf, u32)> {
    let files: BTreeMap<u64, PathBuf> = files(below)
        .into_iter()
        .filter_map(|path| Some((fs::symlink_metadata(&path).ok()?.ino(), path)))
        .collect();
    let text = fs::read_to_string("/proc/locks").expect("/proc/locks is readable");
    let held = text.lines().filter_map(|line| {
        // `1: POSIX  ADVISORY  WRITE 5459 fe:00:10013121 0 EOF`, see proc_locks(5).
        // One that waits has `->` in its second column.
        let mut words = line.split_whitespace().skip(1);
        let _kind = words.next().filter(|kind| *kind != "->")?;
        let pid = words.nth(2)?.parse().ok()?;
        let inode = words.next()?.rsplit(':').next()?.parse().ok()?;
        Some((files.get(&inode)?.clone(), pid))
    });
    let mut held: Vec<(PathBuf, u32)> = held.collect();
    held.sort();
    held
}

/// The fork server: the holder of the lock beside its socket.
pub fn fork_server(run: &Path) -> Option<u32> {
    let holders = locks(&run.join("fs")).into_iter();
    holders
        .map(|(_, pid)| pid)
        .find(|pid| processes::is_alive(*pid))
}

/// All files, sockets and links below a directory.
pub fn files(below: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(below).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            _ => found.push(entry.path()),
        }
    }
    found.sort();
    found
}

/// All directories below the given ones.
pub fn directories(below: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for base in below {
        for entry in fs::read_dir(base).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.path());
                found.extend(directories(&[entry.path()]));
            }
        }
    }
    found.sort();
    found
}

/// Children of these processes that ended and were not waited for.
pub fn zombies(of: &BTreeSet<u32>) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("/proc is readable").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| processes::parent(*pid).is_some_and(|parent| of.contains(&parent)))
        .filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
            state.is_some_and(|state| state.starts_with('Z'))
        })
        .collect()
}

/// Open descriptors of a process.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Resident memory of a process that is its own, in KiB: what it shares with
/// others, or has from files, is not counted.
pub fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}
