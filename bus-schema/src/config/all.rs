//! All mistakes of a configuration at once.
//!
//! Reading ends at the first mistake. Here its key is cut out of the tree and
//! the rest is read again, until nothing is wrong any more. What is only wrong
//! because of a cut (a probe whose way of asking was cut, a dependency on a
//! service that was cut) is not a mistake and is not told.

use std::path::Path;

use super::environment;
use super::error::{ConfigError, Place, Problem};
use super::model::Document;
use super::tree::{self, Entry, Node, Value, join, shortened};

/// Most mistakes that are told: whoever has more has something else to do first.
const MOST: usize = 50;
/// Most readings; some cuts are no mistakes of their own.
const MOST_READINGS: usize = 4 * MOST;

impl Document {
    /// All mistakes in a file, with the process's environment variables over
    /// it; empty when it is right. At most fifty, by their places; what hides
    /// behind another mistake comes to light when that is mended.
    pub fn mistakes(path: &Path) -> Vec<ConfigError> {
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        match Self::load(path) {
            Ok(_) => Vec::new(),
            Err(ConfigError::Invalid(first)) => {
                let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
                let dir = absolute.parent().unwrap_or(Path::new("/"));
                let name = path.display().to_string();
                match super::read(path) {
                    Ok(text) => Self::mistakes_in(&text, &name, dir, variables),
                    Err(_) => vec![ConfigError::Invalid(first)],
                }
            }
            Err(other) => vec![other],
        }
    }

    /// All mistakes in a text, see [`Document::mistakes`] and [`Document::parse_in`].
    pub fn mistakes_in(
        text: &str,
        name: &str,
        dir: &Path,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Vec<ConfigError> {
        let mut found = Vec::new();
        collect(text, dir, variables.into_iter().collect(), &mut found);
        let mut all: Vec<ConfigError> = found
            .into_iter()
            .take(MOST)
            .map(|problem| problem.locate(name, text))
            .collect();
        all.sort_by_key(|error| {
            let invalid = error.invalid();
            invalid.map(|invalid| (invalid.line, invalid.column))
        });
        all
    }
}

fn collect(text: &str, dir: &Path, mut variables: Vec<(String, String)>, found: &mut Vec<Problem>) {
    let whole = match tree::parse(text) {
        Ok(root) => root,
        Err(problem) => return found.push(problem),
    };
    let mut root = loop {
        let mut root = whole.clone();
        let Err(problem) = environment::apply(&mut root, variables.iter().cloned()) else {
            break root;
        };
        let before = variables.len();
        variables.retain(|(name, _)| problem.place != Place::Environment(shortened(name)));
        found.push(problem);
        if variables.len() == before {
            return;
        }
    };
    let mut cuts: Vec<String> = Vec::new();
    for _ in 0..MOST_READINGS {
        let Err(problem) = Document::read(&root, dir) else {
            return;
        };
        if stand_in(&mut root, &problem.path).is_some() {
            if !follows(&problem, None, &cuts) {
                found.push(problem);
            }
            continue;
        }
        let cut = cut(&mut root, "", &problem.path);
        if !follows(&problem, cut.as_ref(), &cuts) {
            found.push(problem);
        }
        match cut {
            Some((path, _)) if found.len() < MOST => cuts.push(path),
            _ => return,
        }
    }
}

/// Puts something right where a service has no command, or a probe no way of
/// asking, so that the rest of it can be read.
fn stand_in(root: &mut Node, path: &str) -> Option<()> {
    let parts: Vec<&str> = path.split('.').collect();
    let place = || Place::Unknown;
    let (key, value, others): (_, _, &[&str]) = match parts.as_slice() {
        ["services", _] => {
            let program = Node {
                value: Value::Text("true".to_owned()),
                place: place(),
            };
            ("command", Value::List(vec![program]), &["command"])
        }
        ["services", _, "health", _] => {
            let value = Value::Boolean(true, "true".to_owned());
            ("notify", value, &super::probe::CHECKS)
        }
        _ => return None,
    };
    let mut node = root;
    for part in parts {
        let Value::Map(entries) = &mut node.value else {
            return None;
        };
        node = &mut entries.iter_mut().find(|entry| entry.key == part)?.node;
    }
    let Value::Map(entries) = &mut node.value else {
        return None;
    };
    if entries
        .iter()
        .any(|entry| others.contains(&entry.key.as_str()) && entry.node.value != Value::Nothing)
    {
        return None;
    }
    entries.retain(|entry| entry.key != key);
    entries.push(Entry {
        key: key.to_owned(),
        key_place: place(),
        node: Node {
            value,
            place: place(),
        },
    });
    Some(())
}

/// Takes the entry that `target` leads to out of a tree; for an item of a list
/// the whole list, since the others would change their numbers.
fn cut(node: &mut Node, path: &str, target: &str) -> Option<(String, Entry)> {
    match &mut node.value {
        Value::Map(entries) => {
            let mut at = None;
            for (index, entry) in entries.iter_mut().enumerate() {
                let below = join(path, &entry.key);
                let Some(rest) = target.strip_prefix(&below) else {
                    continue;
                };
                if rest.starts_with(['.', '['])
                    && let Some(deeper) = cut(&mut entry.node, &below, target)
                {
                    return Some(deeper);
                }
                if rest.is_empty() || rest.starts_with('[') {
                    at = Some((index, below));
                    break;
                }
            }
            let (index, below) = at?;
            Some((below, entries.remove(index)))
        }
        Value::List(items) => items
            .iter_mut()
            .enumerate()
            .find_map(|(index, item)| cut(item, &format!("{path}[{index}]"), target)),
        _ => None,
    }
}

/// Whether something is perhaps only wrong because of what was cut out before.
fn follows(problem: &Problem, now: Option<&(String, Entry)>, cuts: &[String]) -> bool {
    let path = problem.path.as_str();
    let was_cut = |begin: &str| {
        cuts.iter().any(|cut| {
            cut.strip_prefix(begin)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    };
    // Something below it is missing now.
    if !path.is_empty() && was_cut(path) {
        return true;
    }
    let parts: Vec<&str> = path.split('.').collect();
    match parts.as_slice() {
        // What is wrong with the dependency itself stands at its value.
        ["services", _, "depends_on", on]
            if now.is_some_and(|(_, entry)| entry.key_place == problem.place) =>
        {
            cuts.contains(&format!("services.{on}"))
                || was_cut(&format!("services.{on}.oneshot"))
                || was_cut(&format!("services.{on}.restart"))
        }
        ["services", name, "resources", key] if key.contains("_request_") => {
            was_cut("runtime")
                || was_cut("runtime.orchestrator.profiles")
                || was_cut("runtime.orchestrator.resource_limits")
                || was_cut(&format!("services.{name}.type"))
                || was_cut(&format!("services.{name}.resources"))
        }
        ["services", name, "logs", "max_total_size"] => {
            was_cut(&format!("services.{name}.logs.max_size"))
        }
        ["services", _, "manager"] => {
            was_cut("runtime.orchestrator.process_managers")
                || cuts
                    .iter()
                    .any(|cut| cut == "runtime" || cut == "runtime.orchestrator")
        }
        ["services", _, "replicas"] => was_cut("runtime.orchestrator.max_processes"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines and paths of what is found.
    fn found(text: &str) -> Vec<String> {
        Document::mistakes_in(text, "test", Path::new("/etc"), [])
            .iter()
            .map(|error| {
                let invalid = error.invalid().expect("a mistake");
                format!("{} {}", invalid.line.unwrap_or(0), invalid.path)
            })
            .collect()
    }

    #[test]
    fn all_mistakes_are_found_at_once_and_nothing_else() {
        let text = "\
runtime:
  orchestrator:
    max_processes: many
    max_proceses: 5
    restart_policy: {jitter: 10, max_backoff: soon}
services:
  web:
    comand: [web]
    replicas: 2000
    oneshot: yes
  api:
    command: [api]
    health: {readiness: {htpp: x}, liveness: {tcp: 5, interval: 3}}
    depends_on: {web: ready, nobody: ready, store: reddy}
    stop: {signal: NOPE, grace: 5}
  store:
    command: [store]
    oneshot: maybe
    success_codes: [0, x, y]
    resources: {memory_mb: 1GB, memory_request_mb: 800}
  last:
    command: last --now
    priority: hihg
    depends_on: {store: completed, last: ready}
";
        assert_eq!(
            found(text),
            [
                "3 runtime.orchestrator.max_processes",
                "4 runtime.orchestrator.max_proceses",
                "5 runtime.orchestrator.restart_policy.jitter",
                "5 runtime.orchestrator.restart_policy.max_backoff",
                "8 services.web.comand",
                "10 services.web.oneshot",
                "13 services.api.health.readiness.htpp",
                "13 services.api.health.liveness.tcp",
                "13 services.api.health.liveness.interval",
                "14 services.api.depends_on.nobody",
                "14 services.api.depends_on.store",
                "15 services.api.stop.signal",
                "15 services.api.stop.grace",
                "18 services.store.oneshot",
                "19 services.store.success_codes[1]",
                "20 services.store.resources.memory_mb",
                "22 services.last.command",
                "23 services.last.priority",
                "24 services.last.depends_on.last",
            ]
        );
    }

    #[test]
    fn what_is_right_has_none_and_what_is_no_yaml_has_one() {
        assert!(found("services: {a: {command: [x]}}").is_empty());
        assert_eq!(found("services: {a: {command: [x]").len(), 1);
        assert_eq!(found("- a\n- b\n").len(), 1, "nothing can be cut out of it");
    }

    #[test]
    fn a_manager_whose_declaration_is_wrong_is_no_second_mistake() {
        let text = "\
runtime: {orchestrator: {process_managers: {gpu: {max_process: 1}, GPU: {}}}}
services:
  a: {command: [x], manager: gpu}
  b: {command: [x], manager: GPU}
";
        assert_eq!(
            found(text),
            [
                "1 runtime.orchestrator.process_managers.gpu.max_process",
                "1 runtime.orchestrator.process_managers.GPU"
            ]
        );
    }

    #[test]
    fn variables_that_set_nothing_are_all_found() {
        let variables = ["BLACKHOLE_RUNTIME_A", "BLACKHOLE_RUNTIME_B"]
            .map(|name| (name.to_owned(), "1".to_owned()));
        let wrong = (
            "BLACKHOLE_RUNTIME_ORCHESTRATOR_MAX_PROCESSES".to_owned(),
            "x".to_owned(),
        );
        let all = variables.into_iter().chain([wrong]);
        let found = Document::mistakes_in("services: {}", "test", Path::new("/"), all);
        assert_eq!(found.len(), 3, "{found:?}");
    }

    #[test]
    fn there_is_an_end_to_it() {
        let keys: String = (0..200).map(|n| format!("  wrong{n}x: 1\n")).collect();
        assert_eq!(found(&format!("runtime:\n{keys}")).len(), MOST);
    }
}
