//! Checks of what the services of the configuration are to each other, and where they run.

use std::collections::BTreeMap;

use super::user::Runner;
use super::{Check, ok, warn};
use crate::human;
use crate::view::place::Misplaced;

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

/// Arguments that are no file where the service runs.
pub(super) fn misplaced(misplaced: &[Misplaced]) -> Vec<Check> {
    let check = |one: &Misplaced| {
        warn(
            "working directory",
            format!(
                "{} runs in {}, where there is no {}",
                one.service,
                one.working_dir.display(),
                one.argument
            ),
            one.text(),
        )
    };
    misplaced.iter().map(check).collect()
}
