//! `blackhole-shim`: the fork server, the shims that it forks, and the client
//! that the process-manager holds them with.
//!
//! | module | what it holds |
//! |---|---|
//! | [`protocol`] | what travels between a client and a shim |
//! | [`record`] | what stays on disk of a spawn until the next |
//! | [`client`] | for the process-manager: fork server, handles, events (tokio) |

pub mod client;
pub mod protocol;
pub mod record;

/// Kills what a lost shim left behind: everything in the cgroups of the record's
/// grant, and every process whose environment names the instance's notification
/// socket. Returns how many processes were killed. Blocks; call it from a
/// blocking thread.
///
/// The caller must know that no shim holds the instance (see
/// [`record::instance_lock_held`]).
pub fn sweep(record: &record::Record) -> u32 {
    let _ = record;
    unimplemented!("in the next commit")
}
