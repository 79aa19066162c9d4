//! The daemons: who answers, who is missing.

use std::collections::BTreeMap;

use blackhole_bus_schema::component::ComponentInfo;
use blackhole_bus_schema::names::Component;
use serde::{Serialize, Serializer};

use crate::human;
use crate::out::{Style, Tone};
use crate::table::{Table, maybe, plain, toned};
use crate::view::service::ServiceRow;

/// Whether a daemon answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// It answered.
    Running(ComponentInfo),
    /// It was not asked (`--offline`); a process holds its lock.
    NotAsked {
        /// Its process, where the lock tells.
        pid: Option<u32>,
    },
    /// It did not; `lock_held` tells that a process holds its lock all the
    /// same, so it starts, hangs or is stopped in a debugger.
    Missing {
        /// Whether its lock is held.
        lock_held: bool,
    },
}

/// One daemon, with what was found out about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Who was asked.
    pub component: Component,
    /// What became of it.
    pub presence: Presence,
}

impl Found {
    /// What it said of itself, where it answered.
    pub fn info(&self) -> Option<&ComponentInfo> {
        match &self.presence {
            Presence::Running(info) => Some(info),
            Presence::NotAsked { .. } | Presence::Missing { .. } => None,
        }
    }

    /// Its process id, where known.
    pub fn pid(&self) -> Option<u32> {
        match &self.presence {
            Presence::Running(info) => Some(info.pid),
            Presence::NotAsked { pid } => *pid,
            Presence::Missing { .. } => None,
        }
    }
}

/// One daemon as a document's item. The field names are part of the interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ComponentRow {
    /// `supervisor`, `process-manager`, …
    pub component: String,
    /// Its full name; differs from `component` for a named process-manager.
    pub instance: String,
    /// `RUNNING` or `MISSING`.
    #[serde(serialize_with = "upper")]
    pub state: bool,
    /// Process id.
    pub pid: Option<u32>,
    /// Raised with each start.
    pub incarnation: Option<u64>,
    /// Version of its build.
    pub version: Option<String>,
}

fn upper<S: Serializer>(running: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(if *running { "RUNNING" } else { "MISSING" })
}

impl From<&Found> for ComponentRow {
    fn from(found: &Found) -> Self {
        let info = found.info();
        Self {
            component: kind(&found.component).to_owned(),
            instance: found.component.to_string(),
            state: !matches!(found.presence, Presence::Missing { .. }),
            pid: found.pid(),
            incarnation: info.map(|info| info.incarnation),
            version: info.map(|info| info.version.clone()),
        }
    }
}

/// The process-manager of an instance that has a process, where it does not answer.
pub fn away(found: &[Found], row: &ServiceRow) -> Option<String> {
    row.pid?;
    let name = row.manager.as_ref().map(|name| name.parse()).transpose();
    let manager = Component::ProcessManager(name.ok()?);
    let missing = |found: &&Found| {
        found.component == manager && matches!(found.presence, Presence::Missing { .. })
    };
    let found = found.iter().find(missing)?;
    Some(found.component.to_string())
}

/// The component's name without that of a single process-manager.
pub fn kind(component: &Component) -> &'static str {
    match component {
        Component::Supervisor => "supervisor",
        Component::ProcessManager(_) => "process-manager",
        Component::ResourceController => "resource-controller",
        Component::Bridge => "bridge",
    }
}

/// The daemons as a table.
pub fn table(style: Style, now: u64, components: &[Found]) -> String {
    let mut table = Table::new(
        style,
        &[
            "COMPONENT",
            "STATE",
            "PID",
            "INCARNATION",
            "UPTIME",
            "VERSION",
        ],
        &[2, 3, 4],
    );
    for found in components {
        let info = found.info();
        let state = match &found.presence {
            Presence::Running(_) | Presence::NotAsked { .. } => toned("running", Tone::Good),
            Presence::Missing { .. } => toned("missing", Tone::Bad),
        };
        table.row(vec![
            plain(found.component.to_string()),
            state,
            maybe(found.pid().map(|pid| pid.to_string())),
            maybe(info.map(|info| info.incarnation.to_string())),
            maybe(info.map(|info| {
                human::uptime(std::time::Duration::from_nanos(
                    now.saturating_sub(info.started_at),
                ))
            })),
            maybe(info.map(|info| info.version.clone())),
        ]);
    }
    table.render()
}

/// What a daemon has counted, on lines of their own; what is zero is left out.
pub fn counters(style: Style, name: &str, counters: &BTreeMap<String, u64>) -> String {
    let words: Vec<String> = counters
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    if words.is_empty() {
        return String::new();
    }
    let mut text = String::new();
    for (index, some) in words.chunks(5).enumerate() {
        let head = if index == 0 { name } else { "" };
        let line = format!("{head:20} {}", some.join(", "));
        text.push_str(&style.paint(Tone::Dim, line.trim_end()));
        text.push('\n');
    }
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn running(component: Component, pid: u32) -> Found {
        Found {
            component: component.clone(),
            presence: Presence::Running(ComponentInfo {
                component,
                pid,
                incarnation: 3,
                version: "0.1.0".into(),
                started_at: 1_000_000_000,
                notes: Vec::new(),
                counters: std::collections::BTreeMap::default(),
            }),
        }
    }

    #[test]
    fn counters_are_shown_where_they_are_not_zero() {
        let counted = BTreeMap::from([
            ("commands.taken".to_owned(), 3),
            ("link.gaps".to_owned(), 0),
            ("published.process".to_owned(), 12),
        ]);
        insta::assert_snapshot!(counters(Style::PLAIN, "supervisor", &counted), @"supervisor           commands.taken 3, published.process 12");
        assert_eq!(counters(Style::PLAIN, "bridge", &BTreeMap::new()), "");
    }

    #[test]
    fn a_missing_daemon_is_shown_as_missing() {
        let found = [
            running(Component::Supervisor, 11),
            Found {
                component: Component::Bridge,
                presence: Presence::Missing { lock_held: false },
            },
        ];
        insta::assert_snapshot!(table(Style::PLAIN, 66_000_000_000, &found), @"
        COMPONENT   STATE    PID  INCARNATION  UPTIME  VERSION
        supervisor  running   11            3   1m05s  0.1.0
        bridge      missing    -            -       -  -
        ");
        let row = serde_json::to_string(&ComponentRow::from(&found[1])).unwrap();
        assert_eq!(
            row,
            r#"{"component":"bridge","instance":"bridge","state":"MISSING","pid":null,"incarnation":null,"version":null}"#
        );
    }
}
