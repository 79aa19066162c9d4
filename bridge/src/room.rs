//! How many connections there is room for.

use rustix::process::{Resource, getrlimit};

use crate::core::CONNECTIONS;

/// Fewer are of no use.
const LEAST: u64 = 256;
/// What a connection takes when its queues have been full once: 9216 places of 64
/// bytes, and what is read ahead.
const BYTES: u64 = 640 * 1024;

/// Connections of all services together: at most half of the files that may be open,
/// and what a quarter of the host's memory holds.
pub(crate) fn connections() -> usize {
    let memory = rustix::system::sysinfo();
    let bytes = memory.totalram.saturating_mul(memory.mem_unit.into());
    of(getrlimit(Resource::Nofile).current, bytes)
}

fn of(files: Option<u64>, bytes: u64) -> usize {
    let files = files.unwrap_or(u64::MAX) / 2;
    let room = files.min(bytes / 4 / BYTES).max(LEAST);
    usize::try_from(room).map_or(CONNECTIONS, |room| room.min(CONNECTIONS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_what_files_and_memory_hold() {
        const GIB: u64 = 1 << 30;
        assert_eq!(of(None, 64 * GIB), CONNECTIONS);
        assert_eq!(of(Some(1 << 20), 8 * GIB), 3276);
        assert_eq!(of(Some(4096), 64 * GIB), 2048);
        assert_eq!(of(Some(64), GIB / 4), 256);
        assert!((256..=CONNECTIONS).contains(&connections()));
    }
}
