//! `BLACKHOLE_RUNTIME_…`: environment variables over the scalars below
//! `runtime` of the file. `BLACKHOLE_RUNTIME_ORCHESTRATOR_MAX_PROCESSES=80`
//! stands over `runtime.orchestrator.max_processes`.

use super::error::{Place, Problem};
use super::orchestrator::OVERRIDABLE;
use super::section::nearest;
use super::tree::{Entry, Node, Value, scalar, shortened};

pub(super) const PREFIX: &str = "BLACKHOLE_RUNTIME_";

fn variable(path: &[&str]) -> String {
    format!(
        "{PREFIX}{}",
        path.join("_").replace('-', "_").to_uppercase()
    )
}

/// Puts the variables over the tree. Others than `BLACKHOLE_RUNTIME_…` are not looked at.
pub(super) fn apply(
    root: &mut Node,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<(), Problem> {
    let mut variables: Vec<(String, String)> = variables
        .into_iter()
        .filter(|(name, _)| name.starts_with(PREFIX))
        .collect();
    variables.sort();
    for (name, value) in variables {
        let place = Place::Environment(name.clone());
        let Some(path) = OVERRIDABLE.iter().find(|path| variable(path) == name) else {
            let known: Vec<String> = OVERRIDABLE.iter().map(|path| variable(path)).collect();
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            let problem = Problem::new(
                Place::Environment(shortened(&name)),
                "",
                "sets nothing: there is no such setting",
            );
            return Err(match nearest(&name, &known) {
                Some(near) => problem.hint(format!("did you mean {near}?")),
                None => problem,
            });
        };
        // An empty variable is one that is not set, as usual in shells.
        if !value.is_empty() {
            let mut keys = vec!["runtime"];
            keys.extend(*path);
            set(root, &keys, scalar(&value, place));
        }
    }
    Ok(())
}

/// Sets a value below `node`, making maps on the way. Where something else than
/// a map stands in the way it is left: reading the tree finds it wrong.
fn set(node: &mut Node, keys: &[&str], value: Node) {
    let Some((key, rest)) = keys.split_first() else {
        *node = value;
        return;
    };
    if node.value == Value::Nothing {
        node.value = Value::Map(Vec::new());
    }
    let Value::Map(entries) = &mut node.value else {
        return;
    };
    let index = match entries.iter().position(|entry| entry.key == *key) {
        Some(index) => index,
        None => {
            entries.push(Entry {
                key: (*key).to_owned(),
                key_place: value.place.clone(),
                node: Node {
                    value: Value::Nothing,
                    place: value.place.clone(),
                },
            });
            entries.len() - 1
        }
    };
    if let Some(entry) = entries.get_mut(index) {
        set(&mut entry.node, rest, value);
    }
}
