//! What this host has: the mounted hierarchies and the own place in each, read
//! from `/proc/self/mountinfo` and `/proc/self/cgroup` (proc(5), cgroups(7)).
//! Pure functions of the files' text.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// The controllers that this program uses. `cpuset` and `devices` are not
/// among them: a v1 cpuset group takes no task before its CPUs are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Controller {
    /// CPU bandwidth and weight.
    Cpu,
    /// v1 only: CPU accounting (v2 has it in every group's `cpu.stat`).
    Cpuacct,
    /// Memory.
    Memory,
    /// `blkio` on v1, `io` on v2.
    Io,
    /// Number of processes.
    Pids,
    /// v1 only: freezing (v2 has it in every group).
    Freezer,
}

impl Controller {
    /// Those that are passed on to children on v2.
    pub const V2: [Controller; 4] = [Self::Cpu, Self::Memory, Self::Io, Self::Pids];

    /// Its name on v1: in mount options and `/proc/self/cgroup`.
    pub fn v1_name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Memory => "memory",
            Self::Io => "blkio",
            Self::Pids => "pids",
            Self::Freezer => "freezer",
        }
    }

    /// Its name on v2: in `cgroup.controllers`; `None` where it is none there.
    pub fn v2_name(self) -> Option<&'static str> {
        match self {
            Self::Cpu => Some("cpu"),
            Self::Memory => Some("memory"),
            Self::Io => Some("io"),
            Self::Pids => Some("pids"),
            Self::Cpuacct | Self::Freezer => None,
        }
    }

    fn from_v1(name: &str) -> Option<Self> {
        [
            Self::Cpu,
            Self::Cpuacct,
            Self::Memory,
            Self::Io,
            Self::Pids,
            Self::Freezer,
        ]
        .into_iter()
        .find(|controller| controller.v1_name() == name)
    }

    /// The controllers named in a v2 `cgroup.controllers` or `cgroup.subtree_control`.
    pub fn parse_v2_list(text: &str) -> Vec<Self> {
        text.split_whitespace()
            .filter_map(|name| Self::V2.into_iter().find(|c| c.v2_name() == Some(name)))
            .collect()
    }
}

/// Which hierarchy a mount shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    /// A v1 hierarchy with these of our controllers (several where they are
    /// mounted together, as in `cpu,cpuacct`).
    V1(Vec<Controller>),
    /// The v2 tree.
    V2,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupMount {
    /// The cgroup that the mount point shows, relative to the own cgroup
    /// namespace's root. It holds `..` where it lies outside of the namespace.
    pub root: PathBuf,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Which hierarchy.
    pub kind: MountKind,
}

/// The hierarchies of a `/proc/self/mountinfo` that hold a controller of ours,
/// or are the v2 tree. Lines that are none or are damaged are skipped; where
/// one mount lies over another at the same point, the later one is visible and kept.
pub fn mounts(mountinfo: &str) -> Vec<CgroupMount> {
    let mut found: Vec<CgroupMount> = Vec::new();
    for mount in mountinfo.lines().filter_map(mount_line) {
        found.retain(|earlier| earlier.point != mount.point);
        found.push(mount);
    }
    found
}

/// `36 35 98:0 /root /point opts [optional …] - fstype source superopts`
fn mount_line(line: &str) -> Option<CgroupMount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, point) = (left.next()?, left.next()?);
    let mut right = right.split(' ');
    let (fstype, options) = (right.next()?, right.nth(1)?);
    let kind = match fstype {
        "cgroup2" => MountKind::V2,
        "cgroup" => {
            let controllers: Vec<_> = options.split(',').filter_map(Controller::from_v1).collect();
            if controllers.is_empty() {
                return None;
            }
            MountKind::V1(controllers)
        }
        _ => return None,
    };
    Some(CgroupMount {
        root: unescape(root),
        point: unescape(point),
        kind,
    })
}

/// Undoes the kernel's `\040` (space, tab, newline, backslash), see proc(5).
/// What is no such escape stays as it is.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = match bytes.get(at..at + 4) {
            Some([b'\\', digits @ ..]) if digits.iter().all(|d| (b'0'..=b'7').contains(d)) => {
                digits
                    .iter()
                    .try_fold(0u8, |value, d| value.checked_mul(8)?.checked_add(d - b'0'))
            }
            _ => None,
        };
        match octal {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

/// The own cgroup in each hierarchy, relative to the own cgroup namespace's root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnCgroups {
    /// On v1, by controller.
    pub v1: BTreeMap<Controller, PathBuf>,
    /// On v2.
    pub v2: Option<PathBuf>,
}

/// Parses `/proc/self/cgroup`: lines of `id:controllers:path`, where the path
/// may hold colons and v2's line is `0::path`.
pub fn own_cgroups(text: &str) -> OwnCgroups {
    let mut own = OwnCgroups::default();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        // A cgroup that was removed while the process was in it.
        let path = PathBuf::from(path.strip_suffix(" (deleted)").unwrap_or(path));
        if id == "0" && controllers.is_empty() {
            own.v2 = Some(path);
        } else {
            for controller in controllers.split(',').filter_map(Controller::from_v1) {
                own.v1.insert(controller, path.clone());
            }
        }
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn octal_escapes_are_undone_and_others_left() {
        assert_eq!(unescape(r"/a\040b\011c\134d"), Path::new("/a b\tc\\d"));
        assert_eq!(unescape(r"/a\04"), Path::new(r"/a\04"));
        assert_eq!(unescape(r"/a\999"), Path::new(r"/a\999"));
        assert_eq!(unescape(r"/a\777"), Path::new(r"/a\777"));
        assert_eq!(unescape(r"\"), Path::new(r"\"));
    }

    #[test]
    fn damaged_lines_are_skipped() {
        for line in [
            "",
            " - ",
            "31 23 0:28 / - cgroup2 cgroup2 rw",
            "31 23 0:28 / /sys/fs/cgroup rw - cgroup2",
            "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime cgroup cgroup rw,cpu",
            "40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd",
        ] {
            assert_eq!(mounts(line), [], "{line:?}");
        }
        assert_eq!(own_cgroups("\n:\n::\nx\n4:memory\n"), OwnCgroups::default());
    }

    #[test]
    fn paths_with_colons_and_deleted_groups() {
        let own = own_cgroups("4:memory:/a:b (deleted)\n3:cpu,cpuacct:/c\n0::/d:e\n");
        assert_eq!(own.v1[&Controller::Memory], Path::new("/a:b"));
        assert_eq!(own.v1[&Controller::Cpuacct], Path::new("/c"));
        assert_eq!(own.v2.as_deref(), Some(Path::new("/d:e")));
    }

    #[test]
    fn the_upper_of_two_mounts_at_one_point_counts() {
        let text =
            "1 0 0:1 /low /m rw - cgroup2 cgroup2 rw\n2 1 0:1 /high /m rw - cgroup2 cgroup2 rw\n";
        let found = mounts(text);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].root, Path::new("/high"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in "[ -~\\n\\\\]{0,300}") {
            let _ = mounts(&text);
            let _ = own_cgroups(&text);
        }
    }
}
