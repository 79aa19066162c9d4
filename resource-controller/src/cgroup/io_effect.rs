//! Whether I/O weights have an effect on this host: the kernel takes a weight
//! whether or not a block device's scheduler looks at it.

use std::path::{Path, PathBuf};

use super::file;
use super::parse;

/// Which mechanisms are at work on which disks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct IoEffect {
    /// Disks whose scheduler is BFQ.
    bfq: Vec<String>,
    /// Disks whose scheduler is CFQ.
    cfq: Vec<String>,
    /// Disks without either.
    others: Vec<String>,
    /// Whether io.cost is switched on for some device.
    cost: bool,
}

impl IoEffect {
    /// Looks at `/sys/block` and, where its root is visible, the v2 tree.
    pub(super) fn of_this_host(v2_mount: Option<&Path>) -> Self {
        Self::read(Path::new("/sys/block"), v2_mount)
    }

    fn read(sys_block: &Path, v2_mount: Option<&Path>) -> Self {
        let mut effect = Self::default();
        let mut disks: Vec<PathBuf> = std::fs::read_dir(sys_block)
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        disks.sort();
        for disk in disks {
            let name = disk
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            // Loop devices and RAM disks: the disks below them schedule.
            if ["loop", "ram", "zram"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
            {
                continue;
            }
            let Ok(text) = file::read(&disk.join("queue/scheduler")) else {
                continue;
            };
            let list = if parse::scheduler_selected(&text, "bfq") {
                &mut effect.bfq
            } else if parse::scheduler_selected(&text, "cfq") {
                &mut effect.cfq
            } else {
                &mut effect.others
            };
            list.push(name);
        }
        effect.cost = v2_mount.is_some_and(|mount| {
            file::read(&mount.join("io.cost.qos")).is_ok_and(|text| text.contains("enable=1"))
        });
        effect
    }

    /// Whether the interface file `name` decides anything on some disk.
    pub(super) fn works(&self, name: &str) -> bool {
        match name {
            "io.weight" => self.cost,
            "blkio.weight" => !self.cfq.is_empty(),
            _ => !self.bfq.is_empty(),
        }
    }

    /// Why a weight in `name` holds only in part; `None` where it holds on all disks.
    pub(super) fn reserve(&self, name: &str) -> Option<String> {
        let (scheduler, with, without) = match name {
            "io.weight" if self.cost => return None,
            "io.weight" => {
                return Some("without effect: io.cost is switched on for no disk".to_owned());
            }
            "blkio.weight" => ("CFQ", &self.cfq, [&self.bfq[..], &self.others[..]].concat()),
            _ => ("BFQ", &self.bfq, [&self.cfq[..], &self.others[..]].concat()),
        };
        if with.is_empty() {
            Some(format!(
                "without effect: no disk uses the {scheduler} scheduler"
            ))
        } else if without.is_empty() {
            None
        } else {
            Some(format!(
                "without effect on {}, not scheduled by {scheduler}",
                without.join(", ")
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn disk(dir: &Path, name: &str, scheduler: &str) {
        fs::create_dir_all(dir.join(name).join("queue")).unwrap();
        fs::write(dir.join(name).join("queue/scheduler"), scheduler).unwrap();
    }

    #[test]
    fn a_weight_needs_a_scheduler_that_looks_at_it() {
        let dir = tempfile::tempdir().unwrap();
        disk(dir.path(), "loop0", "[bfq] none");
        disk(dir.path(), "sda", "none [mq-deadline] bfq");
        let effect = IoEffect::read(dir.path(), None);
        assert!(!effect.works("blkio.bfq.weight"));
        assert!(
            effect
                .reserve("blkio.bfq.weight")
                .unwrap()
                .contains("no disk uses the BFQ")
        );
        assert!(effect.reserve("io.weight").unwrap().contains("io.cost"));

        disk(dir.path(), "sdb", "none mq-deadline [bfq]");
        let effect = IoEffect::read(dir.path(), None);
        assert!(effect.works("io.bfq.weight"));
        assert!(effect.reserve("io.bfq.weight").unwrap().contains("sda"));

        disk(dir.path(), "sda", "none [bfq]");
        assert_eq!(
            IoEffect::read(dir.path(), None).reserve("io.bfq.weight"),
            None
        );
    }

    #[test]
    fn io_cost_counts_where_it_is_switched_on() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("io.cost.qos"), "8:0 enable=0 ctrl=auto\n").unwrap();
        let read = || IoEffect::read(&dir.path().join("none"), Some(dir.path()));
        assert!(!read().works("io.weight"));
        fs::write(dir.path().join("io.cost.qos"), "8:0 enable=1 ctrl=auto\n").unwrap();
        assert!(read().works("io.weight"));
        assert_eq!(read().reserve("io.weight"), None);
    }
}
