//! `blackhole config show`: what a service says about its process.

use blackhole_bus_schema::process::{Capabilities, ProcessSettings};
use serde_json::{Map, Value, json};

/// The keys that are set, in the words of `blackhole.yaml`.
pub(super) fn settings(settings: &ProcessSettings) -> Map<String, Value> {
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
    if !settings.groups.is_empty() {
        put("groups", json!(settings.groups));
    }
    if let Some(umask) = settings.umask {
        put("umask", format!("{umask:04o}").into());
    }
    if let Some(nice) = settings.nice {
        put("nice", nice.into());
    }
    if !settings.rlimits.is_empty() {
        let number = |value: Option<u64>| value.map_or_else(|| "unlimited".into(), Value::from);
        let limits = settings.rlimits.iter().map(|(limit, value)| {
            let value = match value.soft == value.hard {
                true => number(value.soft),
                false => json!([number(value.soft), number(value.hard)]),
            };
            (limit.name().to_owned(), value)
        });
        put("rlimits", limits.collect::<Map<_, _>>().into());
    }
    if settings.no_new_privs {
        put("no_new_privs", true.into());
    }
    match &settings.capabilities {
        Some(Capabilities::Keep(names)) => put("capabilities", json!({ "keep": names })),
        Some(Capabilities::Drop(names)) => put("capabilities", json!({ "drop": names })),
        None => None,
    };
    if let Some(file) = &settings.stdin {
        put("stdin", file.as_str().into());
    }
    if !settings.env_files.is_empty() {
        let files = settings
            .env_files
            .iter()
            .map(|file| json!({ "path": file.path, "required": file.required }));
        put("env_files", files.collect::<Vec<_>>().into());
    }
    map
}
