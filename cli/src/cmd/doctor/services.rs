//! Checks of what the services of the configuration are to each other, and what is noted of them.

use std::collections::BTreeMap;

use super::subject::Subject;
use super::user::Runner;
use super::{Check, ok, warn};
use crate::{human, notes};

/// Services that run as one user can read each other's memory and tokens.
pub(super) fn isolation(runners: &[(String, Runner)]) -> Check {
    const WHAT: &str = "isolation";
    let mut users: BTreeMap<u32, Vec<&String>> = BTreeMap::new();
    for (name, runner) in runners {
        users.entry(runner.who.uid).or_default().push(name);
    }
    let shared: Vec<String> = users
        .iter()
        .filter(|(_, names)| names.len() > 1)
        .map(|(uid, names)| format!("{} run as user {uid}", human::list(names, 4)))
        .collect();
    if shared.is_empty() {
        ok(WHAT, "each service has its own user")
    } else {
        warn(
            WHAT,
            shared.join("; "),
            "they are not isolated from each other (memory, RPC tokens): give each its own `user:`",
        )
    }
}

/// What is right in the configuration and probably not meant.
pub(super) fn notes(subject: &Subject<'_>) -> Vec<Check> {
    let notes = notes::of(subject.path, subject.document).into_iter();
    notes
        .map(|note| {
            let keys: Vec<&str> = note.keys.iter().map(String::as_str).collect();
            warn("note", note.message, note.hint).at(subject.at(&keys))
        })
        .collect()
}
