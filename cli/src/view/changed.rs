//! Whether the configuration's file says something else than what the daemons
//! were started with, and what makes it hold.

use std::path::{Path, PathBuf};

use blackhole_bus_schema::config::Changed;
use blackhole_bus_schema::names::ServiceName;
use serde::Serialize;

use crate::human;
use crate::view::keeper::{Keeper, State};

/// A file that was edited. The serialized field names are part of the interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Edited {
    /// The file.
    pub file: PathBuf,
    /// What it has that the daemons have not.
    #[serde(flatten)]
    pub changed: Changed,
    /// Why no daemon could be started with it.
    pub wrong: Option<String>,
    /// Services of which processes run that were started with other settings
    /// than the supervisor has.
    pub older: Vec<ServiceName>,
}

impl Edited {
    /// What differs and what to do about it, each a line; none is empty.
    pub fn lines(&self, keeper: Option<Keeper>) -> Vec<(String, String)> {
        let mut lines = Vec::new();
        let file = self.file.display();
        if let Some(why) = &self.wrong {
            lines.push((
                format!(
                    "{file} was changed since the daemons were started, and none of them could be \
                     started with it: {}",
                    human::printable(why)
                ),
                format!("`blackhole config validate -c {file}` shows what to mend"),
            ));
        } else if !self.changed.is_empty() {
            lines.push((
                format!(
                    "{file} was changed since the daemons were started with it, and that has no \
                     effect yet: {}",
                    self.what()
                ),
                self.advice(keeper),
            ));
        }
        if !self.older.is_empty() {
            lines.push((
                format!(
                    "{}: what runs has settings from before the configuration was changed",
                    human::list(&texts(&self.older), 8)
                ),
                restart(&self.older),
            ));
        }
        lines
    }

    fn what(&self) -> String {
        let Changed {
            runtime,
            services,
            added,
            removed,
        } = &self.changed;
        let mut parts = Vec::new();
        for (names, one, many) in [
            (services, "differs", "differ"),
            (added, "is new", "are new"),
            (removed, "is gone", "are gone"),
        ] {
            let verb = if names.len() == 1 { one } else { many };
            if !names.is_empty() {
                parts.push(format!("{} {verb}", human::list(&texts(names), 8)));
            }
        }
        if *runtime {
            parts.push("the settings below `runtime` differ".to_owned());
        }
        parts.join(", ")
    }

    fn advice(&self, keeper: Option<Keeper>) -> String {
        let kept = keeper.is_some_and(|keeper| keeper.state == State::Running);
        if self.changed.runtime {
            return match keeper {
                Some(_) => format!("`blackhole down`, then `{}`", up(&self.file)),
                None => "stop the daemons and start them again".to_owned(),
            };
        }
        let supervisor = match (kept, keeper) {
            (true, _) => "`blackhole component restart supervisor`".to_owned(),
            (false, Some(_)) => format!("`{}`", up(&self.file)),
            (false, None) => "a restart of the supervisor".to_owned(),
        };
        let mut effects = Vec::new();
        if !self.changed.added.is_empty() {
            effects.push("starts what is new");
        }
        if !self.changed.removed.is_empty() {
            effects.push("stops what is gone");
        }
        if effects.is_empty() {
            effects.push("reads it");
        }
        let mut text = format!("{supervisor} {}", effects.join(" and "));
        if !self.changed.services.is_empty() {
            text.push_str(&format!(", then {}", restart(&self.changed.services)));
        }
        text
    }
}

fn up(file: &Path) -> String {
    format!("blackhole up -d -c {}", file.display())
}

fn restart(services: &[ServiceName]) -> String {
    let names = texts(services);
    match names.len() <= 8 {
        true => format!("`blackhole restart {}`", names.join(" ")),
        false => "`blackhole restart --all`".to_owned(),
    }
}

fn texts(names: &[ServiceName]) -> Vec<&str> {
    names.iter().map(ServiceName::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<ServiceName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn what_to_do_depends_on_what_differs_and_who_keeps_the_daemons() {
        let keeper = |state| Some(Keeper { state, pid: None });
        let mut edited = Edited {
            file: "/b.yaml".into(),
            changed: Changed {
                services: names(&["db", "web"]),
                ..Changed::default()
            },
            wrong: None,
            older: Vec::new(),
        };
        let line = |edited: &Edited, keeper| {
            let lines = edited.lines(keeper);
            assert_eq!(lines.len(), 1);
            lines.into_iter().next().unwrap()
        };
        let (found, advice) = line(&edited, keeper(State::Running));
        assert!(found.ends_with("no effect yet: db, web differ"), "{found}");
        assert_eq!(
            advice,
            "`blackhole component restart supervisor` reads it, then `blackhole restart db web`"
        );
        let (_, advice) = line(&edited, keeper(State::Missing));
        assert!(
            advice.starts_with("`blackhole up -d -c /b.yaml` reads it, then"),
            "{advice}"
        );
        edited.changed.added = names(&["new"]);
        edited.changed.removed = names(&["old"]);
        let (found, advice) = line(&edited, None);
        assert!(
            found.ends_with("db, web differ, new is new, old is gone"),
            "{found}"
        );
        assert!(
            advice.starts_with(
                "a restart of the supervisor starts what is new and stops what is gone, then"
            ),
            "{advice}"
        );
        edited.changed.runtime = true;
        let (found, advice) = line(&edited, keeper(State::Running));
        assert!(
            found.ends_with("the settings below `runtime` differ"),
            "{found}"
        );
        assert_eq!(
            advice,
            "`blackhole down`, then `blackhole up -d -c /b.yaml`"
        );
    }
}
