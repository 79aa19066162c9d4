//! `blackhole-shim`: the fork server, the shims that it forks, and the client
//! that the process-manager holds them with.
//!
//! ```text
//!   process-manager ── client ──► <run>/fs/v2 ──► idle shims, forked ahead by the
//!        ▲                                        fork server (server, idle)
//!        │ protocol                                  │ takes a spawn request:
//!        ▼                                           │ prepare, start, exec
//!   <run>/i/<hash> ◄────────────── service ◄─────────┘
//!   (connection)                   │  one loop: reaps, stops, kills (tree),
//!                                  │  pumps output (logs), hears NOTIFY_SOCKET (notify)
//!                                  ▼
//!                    <state>/instances/<instance>/{lock,record,log,log.00000001,…}
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`protocol`] | what travels between a client and a shim |
//! | [`record`] | what stays on disk of a spawn until the next |
//! | [`client`] | for the process-manager: fork server, handles, events (tokio) |
//! | [`server`] | the fork server: the program `blackhole-shim` |
//! | `idle`, `prepare`, `identity`, `start`, `exec`, `report`, `birth`, `capabilities`, `cgroups` | from a waiting shim to a running program |
//! | `rehearsal` | what an idle shim does ahead |
//! | `standby` | a child that waits before exec |
//! | `service`, `connection`, `logs`, `notify`, `verdict` | the life of a service and its end |
//! | `hook`, `beside`, `passed`, `keeper` | programs beside it; sockets and descriptors that outlive it |
//! | `tree` | finding and killing processes |
//! | `lock`, `hint`, `sys` | locks with a holder, advice after failures, system calls |
//!
//! The program never has a second thread and never uses tokio. A shim sleeps in
//! poll(2) without any periodic wake-up (but see `keeper`), keeps bounded buffers only, and goes on
//! when the manager, the fork server, the run directory or the disk space are gone.

pub(crate) mod beside;
mod birth;
mod capabilities;
mod cgroups;
pub mod client;
mod connection;
mod exec;
pub mod hint;
mod hook;
mod identity;
mod idle;
mod keeper;
mod lock;
mod logs;
mod notify;
mod passed;
mod prepare;
pub mod protocol;
pub mod record;
mod rehearsal;
mod report;
pub mod server;
mod service;
mod standby;
mod start;
pub(crate) mod sys;
mod tree;
mod verdict;
mod wait;

use std::path::{Path, PathBuf};

pub use self::keeper::{keeps, release, release_all, release_now};
pub use self::tree::sweep;

/// The notification socket that belongs to an instance's socket.
fn notify_path(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".n");
    path.into()
}

/// Removes an instance's sockets. Only under its lock.
fn remove_sockets(socket: &Path) {
    let _ = std::fs::remove_file(socket);
    let _ = std::fs::remove_file(notify_path(socket));
}
