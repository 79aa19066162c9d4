//! Rows of the tables, out of changes and back.

use blackhole_bus_schema::names::{Generation, ManagerName};
use blackhole_bus_schema::supervision::{Circuit, Desired};
use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use crate::core::{Change, Restored, SavedInstance, SavedService};

/// Two changes of one thing have the same key: the later one counts.
pub(super) fn key(change: &Change) -> String {
    match change {
        Change::Service(row) => format!("service {}", row.name),
        Change::RemoveService(name) => format!("service {name}"),
        Change::Instance(row) => format!("instance {}", row.instance),
        Change::RemoveInstance(name) => format!("instance {name}"),
        Change::Command(id) | Change::RemoveCommand(id) => format!("command {id}"),
    }
}

/// Writes one change. A row that is there is changed where it stands: replaced, it would go
/// to the end of its table, and with its index three or four pages instead of one
/// into the write-ahead log.
pub(super) fn apply(connection: &Connection, change: &Change) -> rusqlite::Result<()> {
    match change {
        Change::Service(row) => {
            let requires: Vec<&str> = row.requires.iter().map(|name| name.as_str()).collect();
            connection
                .prepare_cached(
                    "INSERT INTO service VALUES (?1, ?2, ?3) ON CONFLICT (name) DO UPDATE
                     SET wish = excluded.wish, requires = excluded.requires",
                )?
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
                    "INSERT INTO instance
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15,
                             ?16, ?17, ?18)
                     ON CONFLICT (name) DO UPDATE
                     SET generation = excluded.generation, ended = excluded.ended,
                         asked = excluded.asked, ready = excluded.ready,
                         attempts = excluded.attempts, step = excluded.step,
                         restarts = excluded.restarts, circuit = excluded.circuit,
                         opened_at = excluded.opened_at, restart_at = excluded.restart_at,
                         spent = excluded.spent, completed = excluded.completed,
                         last_exit = excluded.last_exit, last_error = excluded.last_error,
                         bounce = excluded.bounce, roll = excluded.roll, manager = excluded.manager",
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
                    row.bounce.0.cast_signed(),
                    row.roll.0.cast_signed(),
                    row.manager.as_ref().map(ManagerName::as_str),
                ])?;
        }
        Change::RemoveInstance(name) => {
            connection
                .prepare_cached("DELETE FROM instance WHERE name = ?1")?
                .execute([name.to_string()])?;
        }
        Change::Command(id) => {
            connection
                .prepare_cached("INSERT OR REPLACE INTO command VALUES (?1)")?
                .execute([id.to_string()])?;
        }
        Change::RemoveCommand(id) => {
            connection
                .prepare_cached("DELETE FROM command WHERE id = ?1")?
                .execute([id.to_string()])?;
        }
    }
    Ok(())
}

/// Reads everything, and tells whether the host was restarted since the last time.
pub(super) fn read(connection: &Connection) -> rusqlite::Result<Restored> {
    let mut services =
        connection.prepare("SELECT name, wish, requires FROM service ORDER BY name")?;
    let services = services.query_map([], |row| Ok(service(row)))?;
    let mut instances = connection.prepare("SELECT * FROM instance ORDER BY name")?;
    let instances = instances.query_map([], |row| Ok(instance(row)))?;
    let mut commands = connection.prepare("SELECT id FROM command ORDER BY rowid")?;
    let commands = commands.query_map([], |row| {
        let id: String = row.get(0)?;
        Ok(id.parse::<Uuid>().map_err(text))
    })?;
    let mut restored = Restored {
        services: rows(services)?,
        instances: rows(instances)?,
        commands: rows(commands)?,
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
    let manager: Option<String> = row.get("manager").map_err(text)?;
    let exit: Option<String> = row.get("last_exit").map_err(text)?;
    Ok(SavedInstance {
        instance: name.parse().map_err(text)?,
        manager: manager.map(|name| name.parse().map_err(text)).transpose()?,
        generation: generation("generation")?,
        ended: generation("ended")?,
        asked: generation("asked")?,
        bounce: generation("bounce")?,
        roll: generation("roll")?,
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
