//! What stays on disk of a spawn until the next one: who ran, as what, and how it ended.
//!
//! The file `record` in an instance's folder is a sequence of frames as in
//! [`super::protocol`]: one at the spawn, one when the program runs, one at the
//! end. The first is written, with the second (a start does not wait for a file),
//! over the record before the last one, which then changes places with the last
//! (`RENAME_EXCHANGE`, see rename(2)); the others are appended with one write each.
//! So there is a whole record at any time, and no file is made or removed: that takes
//! ext4 longer than all the rest, and so does a rename in the place of another file,
//! which begins to write out its data. Nothing is synced: a record has to outlive
//! processes, and the boot id tells when the host went down. (After a loss of power the
//! name may be that of the record before the last, or the file a mixture of two: what is
//! damaged and of an earlier boot is void.) The end still fits when the disk is full,
//! since the space for it is taken with the first frame.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use blackhole_bus_schema::limits::LimitGrant;
use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::process::{ExitRecord, SpawnFailure, SpawnSpec};
use blackhole_bus_schema::regular;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};

use super::protocol::{self, FrameError, MAX_SPAWN_FRAME, SpawnRequest, Started};

const NAME: &str = "record";
const NEW: &str = "record.new";
const LOCK: &str = "lock";

/// Disk space comes in blocks of this size nearly everywhere.
const BLOCK: usize = 4096;

/// Room kept in the last block for the frames that follow the first.
const RESERVE: usize = 1536;

/// A record that restarts by permit have made longer than this is begun anew.
const MOST_APPENDED: u64 = 64 * 1024;

/// A record is never longer than this many bytes.
const MAX_BYTES: u64 = 2 * MAX_SPAWN_FRAME as u64;

/// Everything recorded of the latest spawn of an instance.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The instance.
    pub instance: InstanceName,
    /// Which spawn.
    pub generation: Generation,
    /// The boot during which it ran, see [`boot_id`].
    pub boot_id: String,
    /// Pid of its shim.
    pub shim_pid: u32,
    /// The instance's socket.
    pub socket: PathBuf,
    /// The limits it was started with: also how to kill what a lost shim left behind.
    pub grant: Option<LimitGrant>,
    /// The specification as the manager sent it; see [`Record::spec`].
    pub spec: Vec<u8>,
    /// The first process; `None` when it was never started, or the shim died before it could tell.
    pub started: Option<Started>,
    /// Why it was never started.
    pub failure: Option<SpawnFailure>,
    /// How it ended.
    pub exit: Option<ExitRecord>,
    /// How the generation before it ended, where it was started by permit.
    pub previous_exit: Option<ExitRecord>,
    /// Permits used since the spawn that the manager asked for.
    pub restarts: u32,
}

/// What can go wrong with a record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// An operation on a path failed.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{path} is damaged: {problem}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl Record {
    /// The specification as the manager sent it, secrets unresolved.
    ///
    /// # Errors
    /// When it was written by a version whose specification cannot be read.
    pub fn spec(&self) -> Result<SpawnSpec, rmp_serde::decode::Error> {
        let mut spec: SpawnSpec = rmp_serde::from_slice(&self.spec)?;
        if self.restarts > 0 {
            // What was asked for, of the generation that permits have led to.
            spec.generation = self.generation;
            spec.restarts = spec.restarts.saturating_add(self.restarts);
            spec.permit = None;
        }
        Ok(spec)
    }
}

/// One frame of the file.
// One at a time is written or read, and none is kept.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Entry {
    Spawn {
        instance: InstanceName,
        generation: Generation,
        boot_id: String,
        shim_pid: u32,
        socket: PathBuf,
        #[serde(default)]
        grant: Option<LimitGrant>,
        #[serde(default, with = "serde_bytes")]
        spec: Vec<u8>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        previous_exit: Option<ExitRecord>,
        #[serde(default)]
        restarts: u32,
    },
    Started {
        started: Started,
    },
    Failed {
        failure: SpawnFailure,
    },
    Exited {
        exit: ExitRecord,
    },
    /// Of a later version.
    #[serde(other)]
    Unknown,
}

/// Names this boot of the host: /proc/sys/kernel/random/boot_id, see proc_sys_kernel(5).
/// Empty where it cannot be read.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// Who holds the lock of the instance whose folder is `dir`: the pid of the live
/// shim, `None` when there is none. The lock is not touched by asking.
///
/// # Errors
/// When the lock file exists but cannot be examined.
pub fn instance_lock_held(dir: &Path) -> io::Result<Option<u32>> {
    super::lock::holder(&lock_path(dir))
}

/// Whether the shim that had the instance's lock last did not give it up in order.
pub(crate) fn shim_was_lost(dir: &Path) -> bool {
    super::lock::was_lost(&lock_path(dir))
}

/// The file that a shim locks.
pub(crate) fn lock_path(dir: &Path) -> PathBuf {
    dir.join(LOCK)
}

/// Reads the record of the instance whose folder is `dir`; `None` when there is
/// none. Blocks on the disk.
///
/// # Errors
/// When it cannot be read or is damaged. A record cut short by a full disk or a
/// kill is no error: what was written is returned.
pub fn read_record(dir: &Path) -> Result<Option<Record>, RecordError> {
    // A shim of an earlier version, killed between its two steps, leaves only the new file.
    for name in [NAME, NEW] {
        let path = dir.join(name);
        let bytes = match regular::read(&path, MAX_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::FileTooLarge | io::ErrorKind::InvalidInput
                ) =>
            {
                let problem = error.to_string();
                return Err(RecordError::Damaged { path, problem });
            }
            Err(source) => {
                return Err(RecordError::Io {
                    operation: "read",
                    path,
                    source,
                });
            }
        };
        return match parse(bytes) {
            Ok(Some(record)) => Ok(Some(record)),
            // Cut short within the first frame: nothing was started by it.
            Ok(None) => Ok(None),
            Err(error) => {
                let problem = match std::error::Error::source(&error) {
                    Some(source) => format!("{error}: {source}"),
                    None => error.to_string(),
                };
                Err(RecordError::Damaged { path, problem })
            }
        };
    }
    Ok(None)
}

fn parse(mut bytes: Vec<u8>) -> Result<Option<Record>, FrameError> {
    let mut record: Option<Record> = None;
    loop {
        // Room kept for later frames is filled with zeros.
        let zeros = bytes
            .chunks_exact(4)
            .take_while(|chunk| *chunk == [0; 4])
            .count();
        bytes.drain(..zeros * 4);
        let entry = match protocol::take::<Entry>(&mut bytes, MAX_SPAWN_FRAME) {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(record),
            // The first frame makes the record; a damaged later one leaves it incomplete.
            Err(FrameError::Malformed(_)) if record.is_some() => continue,
            Err(_) if record.is_some() => return Ok(record),
            Err(error) => return Err(error),
        };
        match (entry, &mut record) {
            (
                Entry::Spawn {
                    instance,
                    generation,
                    boot_id,
                    shim_pid,
                    socket,
                    grant,
                    spec,
                    previous_exit,
                    restarts,
                },
                _,
            ) => {
                record = Some(Record {
                    instance,
                    generation,
                    boot_id,
                    shim_pid,
                    socket,
                    grant,
                    spec,
                    started: None,
                    failure: None,
                    exit: None,
                    previous_exit,
                    restarts,
                });
            }
            (Entry::Started { started }, Some(record)) => record.started = Some(started),
            (Entry::Failed { failure }, Some(record)) => record.failure = Some(failure),
            (Entry::Exited { exit }, Some(record)) => record.exit = Some(exit),
            _ => {}
        }
    }
}

fn spawn_entry(
    request: &SpawnRequest,
    boot_id: &str,
    shim_pid: u32,
    previous_exit: Option<ExitRecord>,
    restarts: u32,
) -> Entry {
    Entry::Spawn {
        instance: request.instance.clone(),
        generation: request.generation,
        boot_id: boot_id.to_owned(),
        shim_pid,
        socket: request.socket.clone(),
        grant: request.grant.clone(),
        spec: request.spec.clone(),
        previous_exit,
        restarts,
    }
}

/// Writes one record, frame by frame. Belongs to the shim that holds the lock.
#[derive(Debug)]
pub(crate) struct Writer {
    path: PathBuf,
    file: Option<File>,
    length: u64,
    /// What could not be written yet: three frames at most.
    pending: Vec<u8>,
}

impl Writer {
    /// Begins a new record in the place of the last one: with the next frame,
    /// which tells how the spawn went. Nothing is written before the program
    /// runs: it would wait for it. A shim that dies before leaves its lock's file,
    /// which tells that there is more than the record says.
    ///
    /// When the write has failed it is tried again with the frame after; the last
    /// record is gone nevertheless (an unlink needs no space): its end is not the
    /// end of this spawn.
    pub(crate) fn begin(request: &SpawnRequest, boot_id: &str, shim_pid: u32) -> Self {
        let mut writer = Self {
            path: request.instance_dir.join(NAME),
            file: None,
            length: 0,
            pending: Vec::with_capacity(BLOCK),
        };
        let entry = spawn_entry(request, boot_id, shim_pid, None, 0);
        if writer.encode(&entry).is_ok() {
            writer.reserve();
        }
        writer
    }

    /// Notes that the program runs.
    pub(crate) fn started(&mut self, started: &Started) -> io::Result<()> {
        self.append(&Entry::Started {
            started: started.clone(),
        })
    }

    /// Notes that it never did.
    pub(crate) fn failed(&mut self, failure: &SpawnFailure) -> io::Result<()> {
        self.append(&Entry::Failed {
            failure: failure.clone(),
        })
    }

    /// Notes the end.
    pub(crate) fn exited(&mut self, exit: &ExitRecord) -> io::Result<()> {
        self.append(&Entry::Exited { exit: exit.clone() })
    }

    /// Notes that the service ended with `exit` and that its successor, which
    /// `request` now describes, was started by permit, or why it was not.
    pub(crate) fn restarted(
        &mut self,
        exit: &ExitRecord,
        request: &SpawnRequest,
        boot_id: &str,
        restarts: u32,
        outcome: Result<&Started, &SpawnFailure>,
    ) -> io::Result<()> {
        if self.length > MOST_APPENDED || self.is_behind() {
            // A new file in the place of this one, which tells all that is of use.
            self.file = None;
            self.pending.clear();
        } else {
            self.encode(&Entry::Exited { exit: exit.clone() })?;
        }
        let shim_pid = std::process::id();
        let entry = spawn_entry(request, boot_id, shim_pid, Some(exit.clone()), restarts);
        self.encode(&entry)?;
        self.reserve();
        self.append(&match outcome {
            Ok(started) => Entry::Started {
                started: started.clone(),
            },
            Err(failure) => Entry::Failed {
                failure: failure.clone(),
            },
        })
    }

    /// Whether there is something that could not be written.
    pub(crate) fn is_behind(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Tries once more to write what could not be written.
    pub(crate) fn again(&mut self) -> io::Result<()> {
        match self.pending.is_empty() {
            true => Ok(()),
            false => self.write(),
        }
    }

    fn append(&mut self, entry: &Entry) -> io::Result<()> {
        self.encode(entry)?;
        self.write()
    }

    fn encode(&mut self, entry: &Entry) -> io::Result<()> {
        protocol::encode(entry, MAX_SPAWN_FRAME, &mut self.pending).map_err(io::Error::other)
    }

    /// Leaves room in the last block for the frames of this generation that follow.
    fn reserve(&mut self) {
        let at = if self.file.is_some() { self.length } else { 0 };
        let taken = usize::try_from(at).unwrap_or(0) + self.pending.len();
        let left = BLOCK - taken % BLOCK;
        if left < RESERVE {
            // Zeros in whole fours up to the next block and four into it.
            self.pending
                .resize(self.pending.len() + (left / 4 + 1) * 4, 0);
        }
    }

    fn write(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            let created = self.create();
            if created.is_err() {
                // It does not tell of this spawn; the new one does, where it is whole.
                let _ = std::fs::remove_file(&self.path);
            }
            return created;
        };
        if let Err(error) = file.write_all_at(&self.pending, self.length) {
            // Half a frame would hide those after it.
            let _ = file.set_len(self.length);
            return Err(error);
        }
        self.length += self.pending.len() as u64;
        self.pending = Vec::new();
        Ok(())
    }

    fn create(&mut self) -> io::Result<()> {
        let new = self.path.with_file_name(NEW);
        let file = self.fill(&new).inspect_err(|_| {
            let _ = std::fs::remove_file(&new);
        })?;
        take_place(&new, &self.path)?;
        self.length = self.pending.len() as u64;
        self.pending = Vec::new();
        self.file = Some(file);
        Ok(())
    }

    /// Writes all that is pending over what `path` has, and nothing stays behind it.
    fn fill(&mut self, path: &Path) -> io::Result<File> {
        let file = regular::overwrite(path)?;
        let frames = self.pending.len();
        // Whole blocks: nothing of the old ones has to be read for it.
        self.pending.resize(frames.next_multiple_of(BLOCK), 0);
        let written = file.write_all_at(&self.pending, 0);
        let whole = self.pending.len() as u64;
        self.pending.truncate(frames);
        written?;
        if file.metadata()?.len() > whole {
            file.set_len(whole)?;
        }
        Ok(file)
    }
}

/// Gives the file `new` the name `path`, and the one that was there its name.
fn take_place(new: &Path, path: &Path) -> io::Result<()> {
    match renameat_with(CWD, new, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        // The first record of this instance, or a file system or sandbox that cannot do it,
        // which they say by many errors.
        Err(_) => {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            std::fs::rename(new, path)
        }
    }
}

#[cfg(test)]
mod tests;
