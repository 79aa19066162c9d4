//! `docs/configuration.md` against the code: its list of keys is the one that is
//! taken, its examples are accepted, its mistakes print what it says.
//!
//! The keys are not listed here. They are found by asking: a key that nobody
//! knows is refused with all those that are known at its place.

#![allow(clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};

use blackhole_bus_schema::config::{Config, Document};
use blackhole_cli::view::config::show;
use serde_json::{Map, Value, json};

const DOCUMENT: &str = include_str!("../../docs/configuration.md");

/// A key and a name that nothing is called.
const NOBODY: &str = "qzxjqzxjqz";

/// A configuration with `value` at `path`, and what else is needed for that to
/// be the only thing that can be wrong. JSON is YAML.
fn configuration(path: &[String], value: Value) -> String {
    let mut root = json!({"services": {}, "runtime": {}});
    let mut at = &mut root;
    for (depth, key) in path.iter().enumerate() {
        if !at.is_object() {
            *at = json!({});
        }
        let Value::Object(map) = at else {
            panic!("{path:?} leads through something else than a map");
        };
        at = match key.strip_suffix("[]") {
            None => map.entry(key.clone()).or_insert_with(|| json!({})),
            Some(list) => {
                map.insert(list.to_owned(), json!([{}]));
                &mut map[list][0]
            }
        };
        let is = |pattern: &[&str]| {
            depth + 1 == pattern.len()
                && pattern
                    .iter()
                    .zip(path)
                    .all(|(one, other)| *one == "*" || one == other)
        };
        if is(&["services", "*"])
            && let Value::Object(service) = at
        {
            service.insert("command".into(), json!(["true"]));
        }
    }
    match (at, value) {
        (Value::Object(at), Value::Object(value)) => at.extend(value),
        (at, value) => *at = value,
    }
    complete(&mut root);
    root.to_string()
}

/// Fills in what a probe, a dependency, a manager and a map of services cannot do without.
fn complete(root: &mut Value) {
    let mut missing = BTreeSet::new();
    let services = root["services"].as_object();
    if services.is_some_and(|all| all.values().any(|one| one.get("manager").is_some())) {
        root["runtime"]["orchestrator"]["process_managers"] = json!({"gpu": {}});
    }
    if let Some(services) = root["services"].as_object_mut() {
        for service in services.values_mut() {
            let Some(service) = service.as_object_mut() else {
                continue;
            };
            if let Some(probes) = service.get_mut("health").and_then(Value::as_object_mut) {
                for probe in probes.values_mut().filter_map(Value::as_object_mut) {
                    let asks = ["http", "tcp", "exec", "rpc", "notify"];
                    // An empty one is a mistake that is meant.
                    if !probe.is_empty() && !asks.iter().any(|ask| probe.contains_key(*ask)) {
                        probe.insert("notify".into(), json!(true));
                    }
                }
            }
            if let Some(on) = service.get_mut("depends_on").and_then(Value::as_object_mut) {
                for (name, one) in on.iter_mut() {
                    missing.insert(name.clone());
                    if let Some(one) = one.as_object_mut() {
                        one.entry("condition").or_insert(json!("ready"));
                    }
                }
            }
        }
        for name in missing {
            services.entry(name).or_insert(json!({"command": ["true"]}));
        }
    }
}

/// What is wrong with a configuration; empty when it is accepted.
fn refusal(text: &str) -> String {
    match Config::parse(text, "test") {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    }
}

/// The keys that are known below `path`, as the refusal of an unknown one tells them.
fn known_below(path: &[String]) -> Option<Vec<String>> {
    let text = configuration(path, json!({ NOBODY: 1 }));
    let refused = refusal(&text);
    let place = [path, &[NOBODY.to_owned()]].concat().join(".");
    let place = place.replace("[]", "[0]");
    let begin = format!("{place}: unknown key {NOBODY:?} (known here: ");
    let (_, rest) = refused.split_once(&begin)?;
    let (keys, _) = rest.split_once(')')?;
    Some(keys.split(", ").map(str::to_owned).collect())
}

/// All keys below a path. Names that a person chooses are `*`.
fn keys_below(path: &[String], found: &mut BTreeSet<String>) {
    if let Some(keys) = known_below(path) {
        for key in keys {
            let below = [path, std::slice::from_ref(&key)].concat();
            found.insert(below.join(".").replace(NOBODY, "*"));
            keys_below(&below, found);
        }
        return;
    }
    let Some((last, before)) = path.split_last() else {
        return;
    };
    if last == NOBODY || last.ends_with("[]") {
        return;
    }
    // Perhaps a map whose keys are names, each with keys of its own, or a list of maps.
    let named = [path, &[NOBODY.to_owned()]].concat();
    let listed = [before, &[format!("{last}[]")]].concat();
    for below in [named, listed] {
        if known_below(&below).is_some() {
            keys_below(&below, found);
        }
    }
}

fn keys_of_the_code() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    // The root tells its keys as everybody else does.
    keys_below(&[], &mut found);
    found
}

/// A row of a table: for each place that the heading names, key, example, mistake.
struct Row {
    places: Vec<Vec<String>>,
    key: String,
    example: Value,
    wrong: Value,
    printed: String,
}

/// The texts between backticks.
fn code(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

fn yaml(text: &str) -> Value {
    // As the configuration is read: `yes` and `no` are texts.
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_str_with_options(text, options)
        .unwrap_or_else(|error| panic!("{text:?} is no YAML: {error}"))
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut places = Vec::new();
    for line in DOCUMENT.lines() {
        if line.starts_with('#') {
            let name = |part: &str| match part {
                "<name>" => "web".to_owned(),
                "<service>" => "db".to_owned(),
                "<type>" => "storage".to_owned(),
                "<socket>" => "public".to_owned(),
                other => other.to_owned(),
            };
            places = code(line)
                .into_iter()
                .map(|path| path.split('.').map(name).collect())
                .collect();
            if places.is_empty() {
                places.push(Vec::new());
            }
            continue;
        }
        if !line.starts_with("| `") {
            continue;
        }
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [key, _, default, meaning, example, mistake] = cells.as_slice() else {
            panic!("not six cells: {line}");
        };
        assert!(!default.is_empty() && !meaning.is_empty(), "{line}");
        let (wrong, printed) = mistake
            .split_once(" → ")
            .unwrap_or_else(|| panic!("no arrow in {mistake:?}"));
        rows.push(Row {
            places: places.clone(),
            key: code(key)[0].to_owned(),
            example: yaml(code(example)[0]),
            wrong: yaml(code(wrong)[0]),
            printed: printed.to_owned(),
        });
    }
    rows
}

fn path_of(place: &[String], key: &str) -> String {
    let names: BTreeMap<&str, &str> = ["web", "db", "storage", "public"]
        .map(|name| (name, "*"))
        .into();
    let mut path: Vec<&str> = place
        .iter()
        .map(|part| names.get(part.as_str()).copied().unwrap_or(part))
        .collect();
    path.push(key);
    path.join(".")
}

#[test]
fn the_keys_are_those_that_the_code_takes() {
    let code = keys_of_the_code();
    // Were the search blind on one of its ways, these would not be there.
    for seen in [
        "services",
        "runtime.orchestrator.restart_policy.jitter",
        "runtime.orchestrator.profiles.*.memory_mb",
        "services.*.command",
        "services.*.health.readiness.http",
        "services.*.depends_on.*.condition",
        "services.*.logs.max_total_size",
    ] {
        assert!(code.contains(seen), "{seen} was not found: {code:#?}");
    }
    let mut document = BTreeSet::new();
    for row in rows() {
        for place in &row.places {
            let path = path_of(place, &row.key);
            assert!(document.insert(path.clone()), "{path} stands there twice");
        }
    }
    let missing: Vec<_> = code.difference(&document).collect();
    let unknown: Vec<_> = document.difference(&code).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "docs/configuration.md lacks {missing:#?} and has what is not taken: {unknown:#?}"
    );
}

#[test]
fn each_example_is_accepted_and_is_about_its_key() {
    for row in rows() {
        assert!(
            row.example.get(&row.key).is_some(),
            "{}: {}",
            row.key,
            row.example
        );
        for place in &row.places {
            let text = configuration(place, row.example.clone());
            let refused = refusal(&text);
            assert_eq!(refused, "", "{}: {text}", path_of(place, &row.key));
        }
    }
}

#[test]
fn each_mistake_prints_what_the_document_says() {
    for row in rows() {
        assert!(
            row.wrong.get(&row.key).is_some(),
            "{}: {}",
            row.key,
            row.wrong
        );
        for place in &row.places {
            let text = configuration(place, row.wrong.clone());
            let refused = refusal(&text);
            assert!(
                refused.contains(&row.printed),
                "{}: {text}\nprints    {refused}\nand not   {}",
                path_of(place, &row.key),
                row.printed
            );
        }
    }
}

/// What goes into the services' own limits, and the long form of a dependency.
const SHOWN_OTHERWISE: [&str; 3] = [
    "runtime.orchestrator.resource_limits",
    "runtime.orchestrator.profiles",
    "services.*.depends_on.*",
];

/// `config show` leaves no key out, and what it prints is the same configuration.
#[test]
fn each_key_is_shown_and_reads_back() {
    for row in rows() {
        for place in &row.places {
            let text = configuration(place, row.example.clone());
            let document = Document::parse(&text, "test").unwrap_or_else(|error| panic!("{error}"));
            let shown = show(&document);
            let yaml = blackhole_cli::out::yaml(&shown).unwrap_or_else(|error| panic!("{error}"));
            let again = Document::parse(&yaml, "shown").unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(again, document, "{text} is shown as\n{yaml}");
            let path = path_of(place, &row.key);
            if SHOWN_OTHERWISE.iter().any(|begin| path.starts_with(begin)) {
                continue;
            }
            let mut at = &shown;
            for part in place.iter().chain([&row.key]) {
                at = match part.strip_suffix("[]") {
                    None => &at[part.as_str()],
                    Some(list) => &at[list][0],
                };
            }
            assert!(!at.is_null(), "{path} is not in\n{yaml}");
        }
    }
}

/// The fenced example of a message is a message.
#[test]
fn the_message_that_is_shown_is_printed() {
    let text = "services:\n  web:\n    comand: [/usr/bin/web]\n";
    let Err(error) = Config::parse(text, "blackhole.yaml") else {
        panic!("{text} was accepted");
    };
    assert!(DOCUMENT.contains(&format!("error: {error}\n")), "{error}");
}

/// So that an empty table cannot pass.
#[test]
fn the_document_has_rows() {
    let rows = rows();
    let places: Map<String, Value> = rows
        .iter()
        .map(|row| (row.key.clone(), json!(row.places.len())))
        .collect();
    assert!(places.len() > 60, "{places:?}");
}
