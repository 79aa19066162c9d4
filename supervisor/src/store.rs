//! What survives the supervisor, in SQLite.
//!
//! WAL and `synchronous=NORMAL`: a commit outlives a killed process without an
//! fsync on the way of a spawn; an operator's wish is written with
//! `synchronous=FULL`, so that it outlives the power too
//! (<https://www.sqlite.org/pragma.html#pragma_synchronous>).
//!
//! When the disk is full the supervisor goes on with what it has in memory, says
//! so, and writes what is outstanding as soon as it can.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use blackhole_bus_schema::dirs::unix_now_ns;
use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::supervision::{Circuit, Desired};
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, params};

use crate::core::{Change, Restored, SavedInstance, SavedService};

/// Version of the tables, in `PRAGMA user_version`.
const SCHEMA: i64 = 1;

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
        last_error TEXT
    ) STRICT;
    CREATE TABLE host (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    PRAGMA user_version = 1;
";

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite refused.
    #[error("cannot {operation} {path}")]
    Database {
        /// What was tried.
        operation: &'static str,
        /// On which file.
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
        let found: i64 = connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(error("read"))?;
        match found {
            0 => connection
                .execute_batch(&format!("BEGIN; {TABLES} COMMIT;"))
                .map_err(error("create"))?,
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
        self.commit(durable)
            .map_err(|source| StoreError::Database {
                operation: "write to",
                path: self.path.clone(),
                source: Box::new(source),
            })?;
        self.outstanding.clear();
        Ok(())
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

    /// How many changes wait for the disk.
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// What a person should know of the database.
    pub fn notes(&self) -> Vec<String> {
        let waiting = self.outstanding();
        let full = (waiting > 0).then(|| {
            format!(
                "{waiting} changes cannot be written to {}: is the disk full?",
                self.path.display()
            )
        });
        self.warning.clone().into_iter().chain(full).collect()
    }
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

fn key(change: &Change) -> String {
    match change {
        Change::Service(row) => format!("service {}", row.name),
        Change::RemoveService(name) => format!("service {name}"),
        Change::Instance(row) => format!("instance {}", row.instance),
        Change::RemoveInstance(name) => format!("instance {name}"),
    }
}

fn apply(connection: &Connection, change: &Change) -> rusqlite::Result<()> {
    match change {
        Change::Service(row) => {
            let requires: Vec<&str> = row.requires.iter().map(|name| name.as_str()).collect();
            connection
                .prepare_cached("INSERT OR REPLACE INTO service VALUES (?1, ?2, ?3)")?
                .execute(params![
                    row.name.as_str(),
                    row.wish.map(wish_text),
                    requires.join(" ")
                ])?;
        }
        Change::RemoveService(name) => {
            connection
                .prepare_cached("DELETE FROM service WHERE name = ?1")?
                .execute([name.as_str()])?;
        }
        Change::Instance(row) => {
            connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO instance
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
                )?
                .execute(params![
                    row.instance.to_string(),
                    row.generation.0.cast_signed(),
                    row.ended.0.cast_signed(),
                    row.asked.0.cast_signed(),
                    row.ready.0.cast_signed(),
                    row.attempts,
                    row.step,
                    row.restarts,
                    circuit_text(row.circuit),
                    row.opened_at.map(u64::cast_signed),
                    row.restart_at.map(u64::cast_signed),
                    row.spent,
                    row.completed,
                    row.last_exit
                        .as_ref()
                        .and_then(|exit| serde_json::to_string(exit).ok()),
                    row.last_error,
                ])?;
        }
        Change::RemoveInstance(name) => {
            connection
                .prepare_cached("DELETE FROM instance WHERE name = ?1")?
                .execute([name.to_string()])?;
        }
    }
    Ok(())
}

fn read(connection: &Connection) -> rusqlite::Result<Restored> {
    let mut services =
        connection.prepare("SELECT name, wish, requires FROM service ORDER BY name")?;
    let services = services.query_map([], |row| Ok(service(row)))?;
    let mut instances = connection.prepare("SELECT * FROM instance ORDER BY name")?;
    let instances = instances.query_map([], |row| Ok(instance(row)))?;
    let mut restored = Restored {
        services: rows(services)?,
        instances: rows(instances)?,
        rebooted: false,
    };
    let now = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let before: Option<String> = connection
        .query_row("SELECT value FROM host WHERE key = 'boot_id'", [], |row| {
            row.get(0)
        })
        .optional()?;
    restored.rebooted = before.as_deref().is_some_and(|before| before != now.trim());
    // On a full disk it is the old one again next time, which only repeats one-shots.
    let _ = connection.execute(
        "INSERT OR REPLACE INTO host VALUES ('boot_id', ?1)",
        [now.trim()],
    );
    Ok(restored)
}

/// Rows that can be understood. One that cannot (edited by hand) is reported and left out.
fn rows<T>(
    found: impl Iterator<Item = rusqlite::Result<Result<T, String>>>,
) -> rusqlite::Result<Vec<T>> {
    let mut understood = Vec::new();
    for row in found {
        match row? {
            Ok(row) => understood.push(row),
            Err(why) => {
                tracing::error!(why, "a row of the database is not understood and left out")
            }
        }
    }
    Ok(understood)
}

fn text<E: std::fmt::Display>(error: E) -> String {
    error.to_string()
}

fn service(row: &Row<'_>) -> Result<SavedService, String> {
    let name: String = row.get(0).map_err(text)?;
    let wish: Option<String> = row.get(1).map_err(text)?;
    let requires: String = row.get(2).map_err(text)?;
    Ok(SavedService {
        name: name.parse().map_err(text)?,
        wish: match wish.as_deref() {
            None => None,
            Some("up") => Some(Desired::Up),
            Some("down") => Some(Desired::Down),
            Some(other) => return Err(format!("{name}: wish {other:?}")),
        },
        requires: requires
            .split_whitespace()
            .map(|name| name.parse().map_err(text))
            .collect::<Result<_, _>>()?,
    })
}

fn instance(row: &Row<'_>) -> Result<SavedInstance, String> {
    let name: String = row.get("name").map_err(text)?;
    let generation = |column| {
        row.get::<_, i64>(column)
            .map(|n| Generation(n.cast_unsigned()))
            .map_err(text)
    };
    let moment = |column| {
        row.get::<_, Option<i64>>(column)
            .map(|n| n.map(i64::cast_unsigned))
            .map_err(text)
    };
    let circuit: String = row.get("circuit").map_err(text)?;
    let exit: Option<String> = row.get("last_exit").map_err(text)?;
    Ok(SavedInstance {
        instance: name.parse().map_err(text)?,
        generation: generation("generation")?,
        ended: generation("ended")?,
        asked: generation("asked")?,
        ready: generation("ready")?,
        attempts: row.get("attempts").map_err(text)?,
        step: row.get("step").map_err(text)?,
        restarts: row.get("restarts").map_err(text)?,
        circuit: match circuit.as_str() {
            "closed" => Circuit::Closed,
            "open" => Circuit::Open,
            "half_open" => Circuit::HalfOpen,
            other => return Err(format!("{name}: circuit {other:?}")),
        },
        opened_at: moment("opened_at")?,
        restart_at: moment("restart_at")?,
        spent: row.get("spent").map_err(text)?,
        completed: row.get("completed").map_err(text)?,
        last_exit: exit
            .map(|json| serde_json::from_str(&json).map_err(text))
            .transpose()?,
        last_error: row.get("last_error").map_err(text)?,
    })
}

fn wish_text(wish: Desired) -> &'static str {
    match wish {
        Desired::Up => "up",
        Desired::Down => "down",
    }
}

fn circuit_text(circuit: Circuit) -> &'static str {
    match circuit {
        Circuit::Closed => "closed",
        Circuit::Open => "open",
        Circuit::HalfOpen => "half_open",
    }
}

#[cfg(test)]
mod tests {
    use blackhole_bus_schema::process::{ExitRecord, ExitResult, ExitStatus};

    use super::*;

    fn changes() -> Vec<Change> {
        let exit = ExitRecord {
            generation: Generation(3),
            pid: 7,
            status: ExitStatus::Signaled {
                signal: 9,
                core_dumped: false,
            },
            result: ExitResult::OomKill,
            started_at: 1,
            ended_at: 2,
            killed_leftovers: 0,
        };
        let mut instance = SavedInstance::new("web.1".parse().unwrap());
        instance.generation = Generation(4);
        instance.ended = Generation(3);
        instance.attempts = 2;
        instance.restarts = 9;
        instance.circuit = Circuit::Open;
        instance.opened_at = Some(unix_now_ns());
        instance.completed = true;
        instance.last_exit = Some(exit);
        instance.last_error = Some("exec /bin/web: no such file".to_owned());
        vec![
            Change::Service(SavedService {
                name: "web".parse().unwrap(),
                wish: Some(Desired::Down),
                requires: vec!["db".parse().unwrap(), "cache".parse().unwrap()],
            }),
            Change::Instance(Box::new(instance)),
            Change::Instance(Box::new(SavedInstance::new("web.2".parse().unwrap()))),
        ]
    }

    #[test]
    fn what_was_written_is_read_back() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("db");
        let (mut store, restored) = Store::open(&path).unwrap();
        assert_eq!(restored, Restored::default());
        let mut expected = Restored::default();
        for (durable, change) in [false, true, false].into_iter().zip(changes()) {
            expected.apply(change.clone());
            store.write(vec![change], durable).unwrap();
        }
        // The process is killed: nothing is closed in order.
        std::mem::forget(store);
        let (mut store, restored) = Store::open(&path).unwrap();
        assert_eq!(restored, expected);
        let gone = Change::RemoveInstance("web.2".parse().unwrap());
        expected.apply(gone.clone());
        store.write(vec![gone], true).unwrap();
        drop(store);
        assert_eq!(Store::open(&path).unwrap().1, expected);
    }

    #[test]
    fn a_damaged_database_is_put_aside_and_said_so() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("db");
        std::fs::write(&path, vec![b'x'; 9000]).unwrap();
        let (store, restored) = Store::open(&path).unwrap();
        assert_eq!(restored, Restored::default());
        assert!(
            store.notes().iter().any(|note| note.contains("damaged")),
            "{:?}",
            store.notes()
        );
        let aside = std::fs::read_dir(temp.path())
            .unwrap()
            .filter(|entry| {
                entry
                    .as_ref()
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .contains(".damaged-")
            })
            .count();
        assert!(aside >= 1);
    }

    #[test]
    fn a_newer_database_is_refused_untouched() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("db");
        let (store, _) = Store::open(&path).unwrap();
        store
            .connection
            .pragma_update(None, "user_version", 99)
            .unwrap();
        drop(store);
        let error = Store::open(&path).unwrap_err().to_string();
        assert!(error.contains("newer") && error.contains("99"), "{error}");
    }

    #[test]
    fn a_full_disk_loses_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("db");
        let (mut store, _) = Store::open(&path).unwrap();
        let pages: i64 = store
            .connection
            .pragma_query_value(None, "page_count", |row| row.get(0))
            .unwrap();
        store
            .connection
            .pragma_update(None, "max_page_count", pages)
            .unwrap();
        let mut row = SavedInstance::new("web.1".parse().unwrap());
        row.last_error = Some("x".repeat(100_000));
        let error = store
            .write(vec![Change::Instance(Box::new(row.clone()))], true)
            .unwrap_err();
        assert!(error.to_string().contains("write to"), "{error}");
        assert_eq!((store.outstanding(), store.notes().len()), (1, 1));
        store
            .connection
            .pragma_update(None, "max_page_count", 10_000)
            .unwrap();
        store.write(Vec::new(), false).unwrap();
        assert_eq!(store.outstanding(), 0);
        drop(store);
        assert_eq!(Store::open(&path).unwrap().1.instances, vec![row]);
    }
}
