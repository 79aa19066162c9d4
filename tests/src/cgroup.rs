//! A deployment's cgroups, read from the kernel and not from Blackhole: v1,
//! hybrid and v2 hosts alike.

use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// Deepest level below a hierarchy's root at which a subtree is looked for:
/// `<hierarchy>/<own cgroup, a few levels>/<subtree>`.
const MAX_DEPTH: usize = 8;

/// All directories named `name`, in all hierarchies.
pub fn subtrees(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    collect(Path::new(ROOT), name, MAX_DEPTH, &mut found);
    found.sort();
    found
}

fn collect(directory: &Path, name: &str, depth: usize, found: &mut Vec<PathBuf>) {
    for child in children(directory) {
        if child.file_name().is_some_and(|file| file == name) {
            found.push(child);
        } else if depth > 0 {
            collect(&child, name, depth - 1, found);
        }
    }
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Removes the directories named `name` from all hierarchies. They are empty of
/// processes: a cgroup with one in it cannot be removed.
pub fn remove(name: &str) {
    for subtree in subtrees(name) {
        remove_tree(&subtree);
    }
}

fn remove_tree(directory: &Path) {
    for child in children(directory) {
        remove_tree(&child);
    }
    // What cannot be removed is found by the test's own check.
    let _ = fs::remove_dir(directory);
}

/// A file of the cgroup `<subtree>/<instance>` in whichever hierarchy has it.
pub fn read(subtree: &str, instance: &str, file: &str) -> Option<String> {
    subtrees(subtree)
        .into_iter()
        .find_map(|base| fs::read_to_string(base.join(instance).join(file)).ok())
}

/// CPU time used by an instance so far, in microseconds, by the kernel's account.
pub fn cpu_usec(subtree: &str, instance: &str) -> Option<u64> {
    if let Some(text) = read(subtree, instance, "cpuacct.usage") {
        return text
            .trim()
            .parse::<u64>()
            .ok()
            .map(|nanoseconds| nanoseconds / 1000);
    }
    field(&read(subtree, instance, "cpu.stat")?, "usage_usec")
}

/// Periods in which an instance was throttled.
pub fn throttled_periods(subtree: &str, instance: &str) -> Option<u64> {
    field(&read(subtree, instance, "cpu.stat")?, "nr_throttled")
}

/// OOM kills inside an instance's cgroup.
pub fn oom_kills(subtree: &str, instance: &str) -> Option<u64> {
    let text = read(subtree, instance, "memory.events")
        .or_else(|| read(subtree, instance, "memory.oom_control"))?;
    field(&text, "oom_kill")
}

/// The memory limit of an instance, in bytes.
pub fn memory_limit(subtree: &str, instance: &str) -> Option<u64> {
    let text = read(subtree, instance, "memory.max")
        .or_else(|| read(subtree, instance, "memory.limit_in_bytes"))?;
    text.trim().parse().ok()
}

/// The ids of the processes in an instance's cgroups.
pub fn processes(subtree: &str, instance: &str) -> Vec<u32> {
    let mut pids: Vec<u32> = subtrees(subtree)
        .into_iter()
        .filter_map(|base| fs::read_to_string(base.join(instance).join("cgroup.procs")).ok())
        .flat_map(|text| {
            text.lines()
                .filter_map(|line| line.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}
