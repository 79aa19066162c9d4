//! What survives the supervisor, in SQLite.
//!
//! WAL and `synchronous=NORMAL`: a commit outlives a killed process without an
//! fsync on the way of a spawn; an operator's wish is written with
//! `synchronous=FULL`, so that it outlives the power too
//! (<https://www.sqlite.org/pragma.html#pragma_synchronous>).
//!
//! When the disk is full the supervisor goes on with what it has in memory, says
//! so, and writes what is outstanding as soon as it can.
//!
//! A damaged database is moved aside rather than refused: without a supervisor
//! nothing on the host is restarted, which is worse than beginning with the
//! wishes of the configuration. It is said in the log and in `status` for as
//! long as this supervisor lives. A database that is merely not accessible, or
//! of a newer version, is refused: nothing is wrong with it.

mod rows;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use blackhole_bus_schema::dirs::unix_now_ns;
use rusqlite::{Connection, ErrorCode};

use crate::core::{Change, Restored};
use rows::{apply, key, read};

/// Version of the tables, in `PRAGMA user_version`.
const SCHEMA: i64 = 3;

const TABLES: &str = "
    CREATE TABLE service (
        name TEXT PRIMARY KEY,
        wish TEXT,
        requires TEXT NOT NULL
    ) STRICT;
    CREATE TABLE instance (
        name TEXT PRIMARY KEY,
        generation INTEGER NOT NULL,
        ended INTEGER NOT NULL,
        asked INTEGER NOT NULL,
        ready INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        step INTEGER NOT NULL,
        restarts INTEGER NOT NULL,
        circuit TEXT NOT NULL,
        opened_at INTEGER,
        restart_at INTEGER,
        spent INTEGER NOT NULL,
        completed INTEGER NOT NULL,
        last_exit TEXT,
        last_error TEXT,
        bounce INTEGER NOT NULL DEFAULT 0,
        roll INTEGER NOT NULL DEFAULT 0,
        manager TEXT
    ) STRICT;
    CREATE TABLE command (id TEXT PRIMARY KEY) STRICT;
    CREATE TABLE host (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    PRAGMA user_version = 3;
";

/// From the tables of version 1: restarts under way and commands that have taken
/// effect are remembered since.
const FROM_1: &str = "
    ALTER TABLE instance ADD COLUMN bounce INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE instance ADD COLUMN roll INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE command (id TEXT PRIMARY KEY) STRICT;
    PRAGMA user_version = 2;
";

/// From the tables of version 2: whose an instance is is remembered since.
const FROM_2: &str = "
    ALTER TABLE instance ADD COLUMN manager TEXT;
    PRAGMA user_version = 3;
";

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite refused.
    #[error(
        "cannot {operation} {path} (it has to be a file that this user can write, in a directory that this user can write)"
    )]
    Database {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<rusqlite::Error>,
    },
    /// A change could not be written; it is kept and tried again.
    #[error("cannot write to {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<rusqlite::Error>,
    },
    /// A newer supervisor wrote it.
    #[error(
        "{path} was written by a newer version (tables {found}, known here {SCHEMA}): \
         update Blackhole, or move the file away to begin anew"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
    /// A damaged database could not be put aside.
    #[error("{path} is damaged and cannot be moved aside")]
    Aside {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The database, and what could not be written to it yet.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    connection: Connection,
    outstanding: BTreeMap<String, Change>,
    /// Something outstanding has to be flushed.
    flush_due: bool,
    /// Wishes that are written and may not be on the disk yet, in their latest form.
    unflushed: BTreeMap<String, Change>,
    /// Why the last write failed.
    trouble: Option<String>,
    /// A damaged predecessor was put aside: for people.
    warning: Option<String>,
}

impl Store {
    /// Opens or creates the database and reads what an earlier run left. One
    /// that SQLite calls damaged is moved aside to `<name>.damaged-<seconds>`,
    /// loudly: desired state is then that of the configuration, and generations
    /// come from the process-manager's records.
    ///
    /// # Errors
    /// When it cannot be opened, created or read, or is of a newer version.
    pub fn open(path: &Path) -> Result<(Self, Restored), StoreError> {
        match Self::try_open(path, None) {
            Err(StoreError::Database { source, .. }) if is_damage(&source) => {
                let aside = put_aside(path)?;
                let warning = format!(
                    "the database was damaged and is now {}: what operators had stopped or started \
                     is forgotten, the configuration counts",
                    aside.display()
                );
                tracing::error!(damage = %source, "{warning}");
                Self::try_open(path, Some(warning))
            }
            opened => opened,
        }
    }

    fn try_open(path: &Path, warning: Option<String>) -> Result<(Self, Restored), StoreError> {
        let error = |operation| {
            let path = path.to_owned();
            move |source| StoreError::Database {
                operation,
                path,
                source: Box::new(source),
            }
        };
        let connection = Connection::open(path).map_err(error("open"))?;
        let set = |name, value: &str| connection.pragma_update(None, name, value);
        set("journal_mode", "WAL").map_err(error("set up"))?;
        set("synchronous", "NORMAL").map_err(error("set up"))?;
        check(&connection).map_err(error("read"))?;
        let found: i64 = connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(error("read"))?;
        match found {
            0 => connection
                .execute_batch(&format!("BEGIN; {TABLES} COMMIT;"))
                .map_err(error("create"))?,
            1 => connection
                .execute_batch(&format!("BEGIN; {FROM_1} {FROM_2} COMMIT;"))
                .map_err(error("bring to this version's tables"))?,
            2 => connection
                .execute_batch(&format!("BEGIN; {FROM_2} COMMIT;"))
                .map_err(error("bring to this version's tables"))?,
            SCHEMA => {}
            found => {
                return Err(StoreError::Newer {
                    path: path.to_owned(),
                    found,
                });
            }
        }
        let restored = read(&connection).map_err(error("read"))?;
        let store = Self {
            path: path.to_owned(),
            connection,
            outstanding: BTreeMap::new(),
            flush_due: false,
            unflushed: BTreeMap::new(),
            trouble: None,
            warning,
        };
        Ok((store, restored))
    }

    /// Writes changes, in one transaction, with whatever is outstanding.
    /// `durable` waits until they are on the disk. What could not be written is
    /// kept and tried again with the next call.
    ///
    /// # Errors
    /// When they could not be written; the changes are not lost.
    pub fn write(&mut self, changes: Vec<Change>, durable: bool) -> Result<(), StoreError> {
        for change in changes {
            self.outstanding.insert(key(&change), change);
        }
        if self.outstanding.is_empty() {
            return Ok(());
        }
        self.flush_due |= durable;
        match self.commit(self.flush_due) {
            Ok(()) => {
                let written = std::mem::take(&mut self.outstanding);
                if self.flush_due {
                    self.unflushed.retain(|key, _| !written.contains_key(key));
                } else {
                    for (key, change) in written {
                        // What a wish has become is what is put again, not what it was.
                        if let Some(known) = self.unflushed.get_mut(&key) {
                            *known = change;
                        }
                    }
                }
                self.flush_due = false;
                self.trouble = None;
                Ok(())
            }
            Err(source) => {
                self.trouble = Some(source.to_string());
                Err(StoreError::Write {
                    path: self.path.clone(),
                    source: Box::new(source),
                })
            }
        }
    }

    /// Writes an operator's wish without waiting for the disk; the caller sees to
    /// the fsync of [`Store::wal`], and tells how it went with [`Store::flushed`] or
    /// [`Store::not_flushed`]: after a failure the kernel counts its pages as
    /// written all the same, and a second fsync would find nothing to do (fsync(2), NOTES).
    ///
    /// # Errors
    /// As [`Store::write`].
    pub fn write_wish(&mut self, changes: Vec<Change>) -> Result<(), StoreError> {
        let kept: Vec<_> = changes
            .iter()
            .map(|change| (key(change), change.clone()))
            .collect();
        self.write(changes, false)?;
        self.unflushed.extend(kept);
        Ok(())
    }

    /// All wishes written so far are on the disk.
    pub fn flushed(&mut self) {
        self.unflushed.clear();
    }

    /// An fsync failed: all wishes that it should have brought to the disk are
    /// outstanding again, in the form that they have by now, and the next write flushes.
    pub fn not_flushed(&mut self) {
        self.flush_due = true;
        for (key, change) in std::mem::take(&mut self.unflushed) {
            self.outstanding.entry(key).or_insert(change);
        }
    }

    fn commit(&mut self, durable: bool) -> rusqlite::Result<()> {
        if durable {
            self.connection.pragma_update(None, "synchronous", "FULL")?;
        }
        let result = (|| {
            let transaction = self.connection.transaction()?;
            for change in self.outstanding.values() {
                apply(&transaction, change)?;
            }
            transaction.commit()
        })();
        if durable {
            self.connection
                .pragma_update(None, "synchronous", "NORMAL")?;
        }
        result
    }

    /// The file that commits are in until the next checkpoint. What has been
    /// written is on the disk when this is: a commit with `synchronous=FULL` does
    /// no more (<https://www.sqlite.org/wal.html>), and a checkpoint syncs it first.
    pub fn wal(&self) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push("-wal");
        path.into()
    }

    /// How many changes wait for the disk.
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// What a person should know of the database.
    pub fn notes(&self) -> Vec<String> {
        let stuck = self.trouble.as_ref().map(|trouble| {
            format!(
                "{} changes cannot be written to {} ({trouble}) and are kept in memory only",
                self.outstanding(),
                self.path.display()
            )
        });
        self.warning.clone().into_iter().chain(stuck).collect()
    }
}

/// Looks through the whole file, which is small, so that damage is found now
/// and not at some later write.
fn check(connection: &Connection) -> rusqlite::Result<()> {
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict == "ok" {
        return Ok(());
    }
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    Err(rusqlite::Error::SqliteFailure(code, Some(verdict)))
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

fn put_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let suffix = format!(".damaged-{}", unix_now_ns() / 1_000_000_000);
    let with = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let aside = with(&suffix);
    std::fs::rename(path, &aside).map_err(|source| StoreError::Aside {
        path: path.to_owned(),
        source,
    })?;
    for part in ["-wal", "-shm"] {
        // Missing is fine; left in place they would damage the new database.
        let _ = std::fs::rename(with(part), with(&format!("{suffix}{part}")));
    }
    Ok(aside)
}
