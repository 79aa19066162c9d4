//! `runtime.orchestrator.process_managers`, and which of them a service names.

use std::collections::BTreeMap;

use super::error::{Place, Problem};
use super::model::{RestartMode, ServiceConfig};
use super::orchestrator::Runtime;
use super::section::{Field, nearest};
use crate::names::{ManagerName, ServiceName};

/// Keys of one of them.
const KEYS: [&str; 1] = ["max_processes"];
/// Most of them: each is a daemon of its own.
const MOST: usize = 64;
/// Most instances of one service.
const MAX_REPLICAS: u32 = 10_000;

/// Reads `process_managers`: the most processes of each, and where that stands.
/// One that says nothing of its own has `usual`.
pub(super) fn declared(
    field: &Field<'_>,
    usual: u32,
) -> Result<BTreeMap<ManagerName, (u32, Place)>, Problem> {
    let mut found = BTreeMap::new();
    for (entry, one) in field.entries("a map of names of process-managers to their settings")? {
        let name: ManagerName = entry.key.parse().map_err(|error| {
            Problem::new(entry.key_place.clone(), &one.path, format!("{error}"))
        })?;
        let section = one.section(&KEYS)?;
        let own = section.read("max_processes", |field| field.integer(1..=100_000))?;
        let place = section
            .get("max_processes")
            .map_or_else(|| entry.key_place.clone(), |field| field.node.place.clone());
        found.insert(name, (own.unwrap_or(usual), place));
    }
    if found.len() > MOST {
        let message = format!("are {}, and there can be at most {MOST}", found.len());
        return Err(field.problem(message));
    }
    Ok(found)
}

/// Reads `manager` of a service.
pub(super) fn of_service(field: &Field<'_>, runtime: &Runtime) -> Result<ManagerName, Problem> {
    let text = field.text()?;
    let known = &runtime.orchestrator.process_managers;
    if let Some((name, _)) = known.iter().find(|(name, _)| name.as_str() == text) {
        return Ok(name.clone());
    }
    let name: ManagerName = text
        .parse()
        .map_err(|error| field.problem(format!("{error}")))?;
    let problem = field.problem(format!("there is no process-manager {name}"));
    let names: Vec<&str> = known.keys().map(ManagerName::as_str).collect();
    Err(match nearest(text, &names) {
        Some(near) => problem.hint(format!("did you mean {near}?")),
        None if names.is_empty() => problem.hint(format!(
            "declare it: runtime: {{orchestrator: {{process_managers: {{{name}: {{}}}}}}}}"
        )),
        None => problem.hint(format!(
            "known in runtime.orchestrator.process_managers: {}",
            names.join(", ")
        )),
    })
}

/// Reads `replicas` of a service of this manager.
pub(super) fn replicas(
    field: &Field<'_>,
    runtime: &Runtime,
    manager: Option<&ManagerName>,
) -> Result<u32, Problem> {
    let replicas = field.integer(0..=MAX_REPLICAS)?;
    let most = runtime.orchestrator.max_processes_of(manager);
    if replicas > most {
        let message = match manager {
            None => format!("is {replicas}, and max_processes is {most}"),
            Some(name) => format!("is {replicas}, and max_processes of {name} is {most}"),
        };
        let key = key(manager);
        return Err(field.problem(message).hint(format!("raise {key}")));
    }
    Ok(replicas)
}

/// What starts with the system and stays has to fit `max_processes` of its
/// manager together; what would not is refused at its start, for ever.
pub(super) fn check_processes(
    services: &BTreeMap<ServiceName, ServiceConfig>,
    runtime: &Runtime,
) -> Result<(), Problem> {
    let mut sums: BTreeMap<Option<&ManagerName>, u64> = BTreeMap::new();
    let stays = |one: &&ServiceConfig| {
        one.autostart && !one.oneshot && one.restart_mode == RestartMode::Always
    };
    for one in services.values().filter(stays) {
        *sums.entry(one.manager.as_ref()).or_default() += u64::from(one.replicas);
    }
    for (manager, sum) in sums {
        let most = runtime.orchestrator.max_processes_of(manager);
        if sum <= u64::from(most) {
            continue;
        }
        let place = match manager {
            None => runtime.max_processes_place.clone(),
            Some(name) => runtime.manager_places.get(name).cloned(),
        };
        let whose = manager.map_or_else(String::new, |name| format!(" of {name}"));
        let message =
            format!("is {most}, and the services{whose} that start with the system are {sum}");
        return Err(
            Problem::new(place.unwrap_or(Place::Unknown), &key(manager), message)
                .hint("raise it, or give some services autostart: false or fewer replicas"),
        );
    }
    Ok(())
}

/// The path of a manager's `max_processes`.
fn key(manager: Option<&ManagerName>) -> String {
    match manager {
        None => "runtime.orchestrator.max_processes".to_owned(),
        Some(name) => format!("runtime.orchestrator.process_managers.{name}.max_processes"),
    }
}
