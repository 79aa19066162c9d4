//! How many connections there is room for.

use std::fs;
use std::path::Path;

use blackhole_bus_schema::transport::MAX_MESSAGE_BYTES;
use rustix::process::{Resource, getrlimit};

use crate::core::{CONNECTIONS, Room};

/// Fewer are of no use.
const LEAST: u64 = 256;
/// What a connection takes when its queues have been full once (9216 places of 64
/// bytes, and what is read ahead), and holds of a message that never ends.
const BYTES: u64 = 640 * 1024 + MAX_MESSAGE_BYTES as u64;
/// Where cgroups are.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Connections of all services together: at most half of the files that may be open. At
/// most a quarter of them, and what a quarter of the memory holds, go to instances that
/// have one already.
pub(crate) fn connections() -> Room {
    let host = rustix::system::sysinfo();
    let bytes = host.totalram.saturating_mul(host.mem_unit.into());
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let bytes = limit(&own, Path::new(CGROUPS)).map_or(bytes, |limit| limit.min(bytes));
    of(getrlimit(Resource::Nofile).current, bytes)
}

fn of(files: Option<u64>, bytes: u64) -> Room {
    let files = files.unwrap_or(u64::MAX) / 2;
    let all = usize::try_from(files.max(LEAST)).map_or(CONNECTIONS, |all| all.min(CONNECTIONS));
    let further = usize::try_from(bytes / 4 / BYTES).unwrap_or(CONNECTIONS);
    Room {
        all,
        further: further.min(all / 4),
    }
}

/// The least memory that the own cgroup or one above it may use, as the text of
/// `/proc/self/cgroup` names it (cgroups(7)): of the unified hierarchy, or the memory
/// controller's.
fn limit(own: &str, mount: &Path) -> Option<u64> {
    let limits = own.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let path = path.trim_start_matches('/');
        let (mount, file) = match controllers {
            "" => (mount.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (mount.join(controllers), "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let group = mount.join(path);
        let groups = group.ancestors().take_while(|dir| dir.starts_with(&mount));
        // "max", where there is none.
        let limits = groups.filter_map(|dir| fs::read_to_string(dir.join(file)).ok());
        limits
            .filter_map(|text| text.trim().parse::<u64>().ok())
            .min()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn there_is_room_for_what_files_and_memory_hold() {
        let room = |all, further| Room { all, further };
        assert_eq!(of(None, 640 * GIB), room(CONNECTIONS, CONNECTIONS / 4));
        assert_eq!(of(Some(1 << 20), 4 * GIB), room(CONNECTIONS, 61));
        assert_eq!(of(Some(4096), 640 * GIB), room(2048, 512));
        assert_eq!(of(Some(64), GIB / 4), room(256, 3));
        assert!((256..=CONNECTIONS).contains(&connections().all));
    }

    #[test]
    fn a_cgroup_has_less_memory_than_the_host() {
        let temp = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = temp.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("a/b/memory.max", "max\n");
        write("a/memory.max", "536870912\n");
        write("memory/c/memory.limit_in_bytes", "1024\n");
        assert_eq!(limit("0::/a/b\n", temp.path()), Some(GIB / 2));
        assert_eq!(limit("0::/\n1:cpu:/c\n", temp.path()), None);
        assert_eq!(limit("4:memory:/c\n0::/a\n", temp.path()), Some(1024));
        assert_eq!(limit("", temp.path()), None);
    }
}
