//! Checks of what the services of the configuration need.

use std::collections::BTreeMap;
use std::path::Path;

use blackhole_bus_schema::config::Config;

use super::{Check, fail, ok, warn};
use crate::view::place::Misplaced;
use crate::{host, human};

/// Services that run as one user can read each other's memory and tokens.
pub(super) fn isolation(config: &Config, passwd: &str) -> Check {
    const WHAT: &str = "isolation";
    let me = rustix::process::geteuid().as_raw();
    let mut users: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    let mut unknown = Vec::new();
    for (name, service) in &config.services {
        match service
            .user
            .as_deref()
            .map(|user| (user, host::uid_of(passwd, user)))
        {
            None => users.entry(me).or_default().push(name.to_string()),
            Some((_, Some(uid))) => users.entry(uid).or_default().push(name.to_string()),
            Some((user, None)) => unknown.push(format!("{name} ({user})")),
        }
    }
    if !unknown.is_empty() {
        return fail(
            WHAT,
            format!("no such user: {}", human::list(&unknown, 4)),
            "create it, or correct `user:`",
        );
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
pub(super) fn directories(misplaced: &[Misplaced]) -> Vec<Check> {
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

/// Programs that a service names by path and that are not there.
pub(super) fn programs(config: &Config) -> Option<Check> {
    let missing: Vec<String> = config
        .services
        .iter()
        .filter_map(|(name, service)| {
            let program = service.command.first()?;
            (!found(program)).then(|| format!("{name} ({program})"))
        })
        .collect();
    (!missing.is_empty()).then(|| {
        fail(
            "programs",
            format!("not found: {}", human::list(&missing, 4)),
            "install or build them, or correct `command:`",
        )
    })
}

fn found(program: &str) -> bool {
    if program.contains('/') {
        return Path::new(program).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::doctor::Grade;

    #[test]
    fn services_of_one_user_are_not_isolated() {
        let shared = "services: {a: {command: [x]}, b: {command: [x]}}";
        let check = isolation(&Config::parse(shared, "t").unwrap(), "");
        assert_eq!(check.grade, Grade::Warn);
        assert!(check.found.contains("a, b run as user"), "{}", check.found);
        let apart = "services: {a: {command: [x], user: 4001}, b: {command: [x], user: 4002}}";
        assert_eq!(
            isolation(&Config::parse(apart, "t").unwrap(), "").grade,
            Grade::Ok
        );
        let nobody = "services: {a: {command: [x], user: ghost}}";
        assert_eq!(
            isolation(&Config::parse(nobody, "t").unwrap(), "").grade,
            Grade::Fail
        );
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let config = Config::parse(
            "services: {a: {command: [/nonexistent/x]}, b: {command: [sh]}}",
            "t",
        )
        .unwrap();
        let check = programs(&config).unwrap();
        assert!(
            check.found.contains("a (/nonexistent/x)") && !check.found.contains("b ("),
            "{}",
            check.found
        );
    }
}
