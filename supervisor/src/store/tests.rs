//! The database: written, read back, damaged, too new, full.

use blackhole_bus_schema::process::{ExitRecord, ExitResult, ExitStatus};

use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::supervision::{Circuit, Desired};

use super::*;
use crate::core::{SavedInstance, SavedService};

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
    instance.bounce = Generation(4);
    instance.roll = Generation(3);
    instance.attempts = 2;
    instance.restarts = 9;
    instance.manager = Some("gpu".parse().unwrap());
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
        Change::Command(uuid::Uuid::from_u128(3)),
        Change::Command(uuid::Uuid::from_u128(4)),
        Change::RemoveCommand(uuid::Uuid::from_u128(3)),
    ]
}

#[test]
fn what_was_written_is_read_back() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("db");
    let (mut store, restored) = Store::open(&path).unwrap();
    assert_eq!(restored, Restored::default());
    let mut expected = Restored::default();
    for (durable, change) in [false, true].into_iter().cycle().zip(changes()) {
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
    assert_eq!(store.outstanding(), 1);
    assert!(store.notes()[0].contains("is full"), "{:?}", store.notes());
    store
        .connection
        .pragma_update(None, "max_page_count", 10_000)
        .unwrap();
    store.write(Vec::new(), false).unwrap();
    assert_eq!(store.outstanding(), 0);
    drop(store);
    assert_eq!(Store::open(&path).unwrap().1.instances, vec![row]);
}

#[test]
fn damage_in_the_middle_is_found_at_the_start() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("db");
    let (mut store, _) = Store::open(&path).unwrap();
    let rows = (1..400).map(|index| {
        let mut row = SavedInstance::new(format!("web.{index}").parse().unwrap());
        row.last_error = Some("x".repeat(500));
        Change::Instance(Box::new(row))
    });
    store.write(rows.collect(), true).unwrap();
    store
        .connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
    drop(store);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 8192].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    let (store, restored) = Store::open(&path).unwrap();
    assert_eq!(restored, Restored::default());
    assert!(store.notes()[0].contains("damaged"), "{:?}", store.notes());
}

#[test]
fn what_cannot_be_opened_is_refused_and_stays() {
    let temp = tempfile::tempdir().unwrap();
    // A directory where the file should be: no user can open that.
    let path = temp.path().join("db");
    std::fs::create_dir(&path).unwrap();
    let error = Store::open(&path).unwrap_err().to_string();
    assert!(
        error.contains("cannot open") && error.contains("write"),
        "{error}"
    );
    assert!(path.is_dir());
}

#[test]
fn rows_that_make_no_sense_are_left_out() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("db");
    let (mut store, _) = Store::open(&path).unwrap();
    store.write(changes(), true).unwrap();
    store
        .connection
        .execute_batch(
            "UPDATE instance SET circuit = 'ajar' WHERE name = 'web.1';
             INSERT INTO service VALUES ('No Such Name', 'up', '');",
        )
        .unwrap();
    drop(store);
    let (_, restored) = Store::open(&path).unwrap();
    assert_eq!(restored.instances.len(), 1);
    assert_eq!(restored.services.len(), 1);
}

/// Version 1 knew neither of restarts under way nor of commands.
#[test]
fn the_tables_of_an_earlier_version_are_taken_over() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("db");
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE service (name TEXT PRIMARY KEY, wish TEXT, requires TEXT NOT NULL) STRICT;
             CREATE TABLE instance (
                name TEXT PRIMARY KEY, generation INTEGER NOT NULL, ended INTEGER NOT NULL,
                asked INTEGER NOT NULL, ready INTEGER NOT NULL, attempts INTEGER NOT NULL,
                step INTEGER NOT NULL, restarts INTEGER NOT NULL, circuit TEXT NOT NULL,
                opened_at INTEGER, restart_at INTEGER, spent INTEGER NOT NULL,
                completed INTEGER NOT NULL, last_exit TEXT, last_error TEXT) STRICT;
             CREATE TABLE host (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
             INSERT INTO instance VALUES
                ('web.1', 9, 8, 0, 9, 1, 1, 1, 'closed', NULL, NULL, 0, 0, NULL, NULL);
             PRAGMA user_version = 1;",
        )
        .unwrap();
    drop(connection);
    let (mut store, restored) = Store::open(&path).unwrap();
    assert_eq!(restored.instances[0].generation, Generation(9));
    assert_eq!(restored.instances[0].bounce, Generation(0));
    let mut expected = restored;
    for change in changes() {
        expected.apply(change.clone());
        store.write(vec![change], false).unwrap();
    }
    drop(store);
    assert_eq!(Store::open(&path).unwrap().1, expected);
}

#[test]
fn the_tables_of_the_version_before_are_taken_over() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("db");
    let (mut store, _) = Store::open(&path).unwrap();
    let mut expected = Restored::default();
    for change in changes() {
        expected.apply(change.clone());
        store.write(vec![change], false).unwrap();
    }
    drop(store);
    // Version 2 did not know whose an instance is, and nothing else.
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "ALTER TABLE instance DROP COLUMN manager;
             PRAGMA user_version = 2;",
        )
        .unwrap();
    drop(connection);
    for instance in &mut expected.instances {
        instance.manager = None;
    }
    for _ in 0..2 {
        assert_eq!(Store::open(&path).unwrap().1, expected);
    }
}

/// After a failed fsync the kernel takes the pages for written: wishes are put
/// again, as they are by then.
#[test]
fn wishes_that_were_not_flushed_are_written_again_in_their_latest_form() {
    let wish = |desired| {
        Change::Service(SavedService {
            name: "web".parse().unwrap(),
            wish: Some(desired),
            requires: Vec::new(),
        })
    };
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("db");
    let (mut store, _) = Store::open(&path).unwrap();
    store.write_wish(vec![wish(Desired::Down)]).unwrap();
    store.flushed();
    store.not_flushed();
    assert_eq!(store.outstanding(), 0, "that one is on the disk");

    let other = Change::Command(uuid::Uuid::from_u128(9));
    store
        .write_wish(vec![wish(Desired::Down), other.clone()])
        .unwrap();
    store.write(vec![wish(Desired::Up)], false).unwrap();
    store.not_flushed();
    assert_eq!(store.outstanding(), 2);
    // As if the pages had been lost with the power.
    store
        .connection
        .execute_batch("DELETE FROM service; DELETE FROM command")
        .unwrap();
    store.write(Vec::new(), true).unwrap();
    drop(store);
    let mut expected = Restored::default();
    expected.apply(wish(Desired::Up));
    expected.apply(other);
    assert_eq!(Store::open(&path).unwrap().1, expected);
}
