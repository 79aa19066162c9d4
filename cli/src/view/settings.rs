//! `blackhole config show`: what a service says about its process.

use blackhole_bus_schema::process::{
    Capabilities, Hooks, ProcessSettings, ReloadAction, ReloadSpec, signal_name,
};
use serde_json::{Map, Value, json};

use super::config::millis;

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
    if settings.standby {
        put("standby", true.into());
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
    if !settings.sockets.is_empty() {
        let sockets = settings.sockets.iter().map(|(name, socket)| {
            let mut shown = Map::new();
            shown.insert("listen".into(), socket.listen.as_str().into());
            shown.insert("backlog".into(), socket.backlog.into());
            if let Some(mode) = socket.mode {
                shown.insert("mode".into(), format!("{mode:04o}").into());
            }
            (name.clone(), shown.into())
        });
        put("sockets", sockets.collect::<Map<_, _>>().into());
    }
    if settings.fd_store > 0 {
        put("fd_store", settings.fd_store.into());
    }
    let hooks = hooks(&settings.hooks);
    if !hooks.is_empty() {
        put("hooks", hooks.into());
    }
    if let Some(reload) = &settings.reload {
        put("reload", self::reload(reload));
    }
    map
}

fn hooks(hooks: &Hooks) -> Map<String, Value> {
    let all = [
        ("before_start", &hooks.before_start),
        ("after_start", &hooks.after_start),
        ("before_stop", &hooks.before_stop),
        ("after_exit", &hooks.after_exit),
    ];
    let shown = all.into_iter().filter_map(|(name, hook)| {
        let hook = hook.as_ref()?;
        let timeout = millis(hook.timeout_ms);
        let value = json!({ "command": hook.command, "timeout": timeout });
        Some((name.to_owned(), value))
    });
    shown.collect()
}

fn reload(reload: &ReloadSpec) -> Value {
    let (key, by) = match &reload.action {
        ReloadAction::Signal(signal) => (
            "signal",
            signal_name(*signal).map_or_else(|| json!(signal), |name| json!(name)),
        ),
        ReloadAction::Command(command) => ("command", json!(command)),
    };
    json!({ key: by, "notify": reload.notify, "timeout": millis(reload.timeout_ms) })
}
