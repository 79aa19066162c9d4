//! An instance whose shim ended, does not answer, or is to be forgotten.

use std::io;
use std::path::{Path, PathBuf};

use blackhole_bus_schema::dirs::{Dirs, unix_now_ns};
use blackhole_bus_schema::limits::LimitGrant;
use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::process::{ExitRecord, ExitResult, ExitStatus, ProcessState};
use rustix::process::{Signal, pidfd_send_signal};

use super::scan::sweep_lost;
use super::{Remains, Verdict, decide};
use crate::host;
use crate::machine;
use crate::shim::client::{Started, instance_lock_held, read_record};
use crate::shim::record::shim_was_lost;
use crate::shim::{release, sweep};

/// Waits until no shim holds the instance in `folder`. Cancel safe.
pub async fn shim_gone(folder: &Path) {
    host::lock_free(|| instance_lock_held(folder)).await;
}

/// Whether the last shim of the instance in `folder` was lost, and nobody has
/// taken its place: something of its service, or of its hooks, may live. Costs
/// a look at the lock, and a second one where it was lost.
pub fn left_behind(folder: &Path) -> bool {
    shim_was_lost(folder) && matches!(instance_lock_held(folder), Ok(None))
}

/// Kills the shim that holds the instance in `folder`; its first process goes
/// with it. Nothing to do when none does. Blocks.
///
/// # Errors
/// When it cannot be signalled.
pub fn kill_shim(folder: &Path) -> io::Result<()> {
    let Some(pid) = instance_lock_held(folder)? else {
        return Ok(());
    };
    let pidfd = host::pidfd(pid).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    // Only if it is still the holder is the descriptor known to be its own.
    if instance_lock_held(folder)? == Some(pid) {
        pidfd_send_signal(&pidfd, Signal::KILL)?;
    }
    Ok(())
}

/// What is known of a process without its record.
#[derive(Debug)]
pub struct Known {
    /// Which spawn it was.
    pub generation: Generation,
    /// Its first process.
    pub started: Started,
    /// The instance's socket.
    pub socket: PathBuf,
    /// The limits it was started with.
    pub grant: Option<LimitGrant>,
}

/// What became of an instance.
#[derive(Debug)]
pub struct Aftermath {
    /// Where its shim had gone on by permit, unseen: the generation that its state is of.
    pub later: Option<Later>,
    /// Its state.
    pub state: ProcessState,
}

/// A generation that a permit led to, which has ended by now.
#[derive(Debug)]
pub struct Later {
    /// Which.
    pub generation: Generation,
    /// Its first process; `None` where it could not be started.
    pub started: Option<Started>,
    /// How the one before it ended.
    pub before: Option<ExitRecord>,
    /// Permits used since the spawn.
    pub restarts: u32,
}

/// What became of the instance in `folder`, which no shim holds any more; what
/// is left of it is killed. Its record tells, where there is one of this spawn, or of what
/// permits have led to since (on a full disk there may be none, or an earlier one). Blocks.
pub fn after_shim(folder: &Path, known: &Known) -> Aftermath {
    recorded(folder, known.generation).unwrap_or_else(|| {
        let killed = sweep(&known.socket, known.grant.as_ref());
        tracing::warn!(folder = %folder.display(), killed, "its shim was lost, without a record");
        let state = machine::ended(ExitRecord {
            generation: known.generation,
            pid: known.started.pid,
            status: ExitStatus::Unknown,
            result: ExitResult::ShimLost,
            started_at: known.started.started_at,
            ended_at: unix_now_ns(),
            killed_leftovers: killed,
        });
        Aftermath { later: None, state }
    })
}

fn recorded(folder: &Path, generation: Generation) -> Option<Aftermath> {
    let record = match read_record(folder) {
        Ok(record) => record.filter(|record| record.generation >= generation)?,
        Err(error) => {
            tracing::error!(folder = %folder.display(), error = crate::launch::chain(&error), "record");
            return None;
        }
    };
    let later = (record.generation > generation).then(|| Later {
        generation: record.generation,
        started: record.started.clone(),
        before: record.previous_exit.clone(),
        restarts: record.restarts,
    });
    let boot = host::boot_id().unwrap_or_default();
    let remains = Remains::Record(Box::new(record));
    let state = match (decide(&remains, &boot, host::booted_at()), &remains) {
        (Verdict::Over(_, state), Remains::Record(record)) => {
            if left_behind(folder) {
                // Behind the end that it saw: what a hook had begun.
                sweep(&record.socket, record.grant.as_ref());
            }
            state
        }
        (Verdict::Lost, Remains::Record(record)) => sweep_lost(record),
        _ => return None,
    };
    Some(Aftermath { later, state })
}

/// Removes everything of an instance of `owner`'s that no shim holds but its log:
/// record, lock, sockets. Of one that another manager started since nothing is
/// removed. Blocks for a few unlinks.
///
/// # Errors
/// When a shim holds it, or a file cannot be removed; the others are gone then.
pub fn erase(dirs: &Dirs, name: &InstanceName, owner: &str) -> io::Result<()> {
    let folder = dirs.instance(name);
    if super::owner(&folder) != owner {
        return Ok(());
    }
    if instance_lock_held(&folder)?.is_some() {
        return Err(io::Error::from(io::ErrorKind::ResourceBusy));
    }
    let mut result = Ok(());
    let mut remove = |path: &Path| match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => result = Err(error),
        _ => {}
    };
    let socket = dirs.shim_socket(name);
    remove(&socket.with_extension("n"));
    remove(&socket);
    release(&socket);
    // Before the record: without that it would be taken for it.
    remove(&folder.join("record.new"));
    let entries = match std::fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let is_log = name.to_str().is_some_and(|name| {
            name == crate::log::CURRENT || name.starts_with(&format!("{}.", crate::log::CURRENT))
        });
        if !is_log {
            remove(&entry.path());
        }
    }
    // Only when no log is left in it.
    let _ = std::fs::remove_dir(&folder);
    result
}
