//! What there is to give: the host's cores and memory, or less where the own
//! cgroup or one above it is limited.

use std::path::Path;

use super::convert::cpu_percent;
use super::detect::Controller;
use super::file;
use super::layout::Layout;
use super::parse::{self, Amount};

/// What can be promised in sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostCapacity {
    /// In percent of one core.
    pub cpu_percent: u64,
    /// In bytes.
    pub memory_bytes: u64,
}

/// Reads the capacity: cores this process may run on (which takes its cpuset
/// into account), `MemTotal`, and the limits from the base up to the mount point.
pub(super) fn read(layout: &Layout) -> HostCapacity {
    let cores = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count());
    let memory = file::read_as(Path::new("/proc/meminfo"), mem_total).unwrap_or(0);
    let mut capacity = HostCapacity {
        cpu_percent: u64::from(cores) * 100,
        memory_bytes: memory,
    };
    for tree in &layout.trees {
        for group in tree
            .base
            .ancestors()
            .take_while(|dir| dir.starts_with(&tree.mount))
        {
            let (cpu, memory) = if tree.v2 {
                (v2_cpu(group), limit(&group.join("memory.max")))
            } else {
                let has = |controller| tree.controllers.contains(&controller);
                (
                    has(Controller::Cpu).then(|| v1_cpu(group)).flatten(),
                    has(Controller::Memory)
                        .then(|| limit(&group.join("memory.limit_in_bytes")))
                        .flatten(),
                )
            };
            capacity.cpu_percent = capacity.cpu_percent.min(cpu.unwrap_or(u64::MAX));
            capacity.memory_bytes = capacity.memory_bytes.min(memory.unwrap_or(u64::MAX));
        }
    }
    capacity
}

fn limit(path: &Path) -> Option<u64> {
    file::read_as(path, parse::amount)
        .ok()
        .and_then(Amount::limited)
}

fn v1_cpu(group: &Path) -> Option<u64> {
    let quota = limit(&group.join("cpu.cfs_quota_us"))?;
    let period = file::read_as(&group.join("cpu.cfs_period_us"), parse::number).ok()?;
    Some(cpu_percent(quota, period))
}

fn v2_cpu(group: &Path) -> Option<u64> {
    let (quota, period) = file::read_as(&group.join("cpu.max"), parse::cpu_max).ok()?;
    Some(cpu_percent(quota.limited()?, period))
}

fn mem_total(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    parse::number(line.trim().strip_suffix(" kB")?)?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::layout::Tree;
    use std::fs;

    #[test]
    fn the_smallest_limit_on_the_way_up_counts() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("slice/unit");
        fs::create_dir_all(&base).unwrap();
        let host = read(&Layout::default());
        assert!(
            host.cpu_percent >= 100 && host.memory_bytes > 1 << 20,
            "{host:?}"
        );

        fs::write(base.join("memory.max"), "max\n").unwrap();
        fs::write(dir.path().join("slice/memory.max"), "1048576\n").unwrap();
        fs::write(base.join("cpu.max"), "50000 100000\n").unwrap();
        fs::write(dir.path().join("slice/cpu.max"), "max 100000\n").unwrap();
        let tree = Tree {
            v2: true,
            controllers: vec![],
            mount: dir.path().to_owned(),
            base,
        };
        let limited = read(&Layout {
            trees: vec![tree],
            problems: vec![],
        });
        assert_eq!(
            limited,
            HostCapacity {
                cpu_percent: 50,
                memory_bytes: 1 << 20
            }
        );
    }

    #[test]
    fn meminfo() {
        assert_eq!(
            mem_total("MemTotal:       24684000 kB\nMemFree: 1 kB\n"),
            Some(24_684_000 << 10)
        );
        assert_eq!(mem_total("MemFree: 1 kB\n"), None);
    }
}
