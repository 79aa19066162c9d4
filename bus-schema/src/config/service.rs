//! `services`: one entry of it.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::error::Problem;
use super::graph::Places;
use super::limits::{self, Settings};
use super::model::{Condition, Dependency, Priority, RestartMode, ServiceConfig};
use super::orchestrator::{POLICY_KEYS, Runtime, policy};
use super::probe::{KINDS, probes, resolve_program};
use super::reference::{expand, expand_dir, is_variable};
use super::section::{Field, Section};
use super::tree::{Entry, Value};
use crate::names::ServiceName;
use crate::process::{LogFormat, LogSpec, StopSpec, default_success_codes, signal_number};

const KEYS: [&str; 32] = [
    "command",
    "type",
    "manager",
    "priority",
    "replicas",
    "env",
    "working_dir",
    "user",
    "group",
    "groups",
    "umask",
    "nice",
    "rlimits",
    "no_new_privs",
    "capabilities",
    "stdin",
    "env_files",
    "sockets",
    "fd_store",
    "hooks",
    "reload",
    "standby",
    "oneshot",
    "autostart",
    "restart",
    "health",
    "resources",
    "stop",
    "depends_on",
    "logs",
    "success_codes",
    "description",
];
const STOP_KEYS: [&str; 2] = ["signal", "grace"];
const LOG_KEYS: [&str; 6] = [
    "max_size",
    "max_files",
    "max_age",
    "max_total_size",
    "compress",
    "format",
];

/// Set by Blackhole itself, see the design of the RPC plane, sd_notify(3) and sd_listen_fds(3).
const RESERVED_ENV: [&str; 10] = [
    "BLACKHOLE_SERVICE",
    "BLACKHOLE_INSTANCE",
    "BLACKHOLE_RPC",
    "BLACKHOLE_TOKEN",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
];

/// What the parts of Blackhole call themselves, towards services too.
const RESERVED_NAMES: [&str; 5] = [
    "supervisor",
    "process-manager",
    "resource-controller",
    "bridge",
    "cli",
];

const CONDITIONS: [(&str, Condition); 3] = [
    ("started", Condition::Started),
    ("ready", Condition::Ready),
    ("completed", Condition::Completed),
];

/// Where a key that is unknown at `path` belongs, for the hint.
pub(super) fn home_of(path: &str, key: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('.').collect();
    let has = |keys: &[&str]| keys.contains(&key);
    match parts.as_slice() {
        ["services", name] => {
            let section = if has(&limits::KEYS) {
                "resources"
            } else if has(&STOP_KEYS) {
                "stop"
            } else if has(&LOG_KEYS) {
                "logs"
            } else if has(&POLICY_KEYS) || key == "policy" {
                "restart"
            } else if has(&KINDS) {
                "health"
            } else if has(&super::turns::HOOKS) {
                "hooks"
            } else if has(&super::settings::rlimit_names()) {
                "rlimits"
            } else {
                return None;
            };
            Some(format!("services.{name}.{section}"))
        }
        ["services", name, _] if has(&KEYS) => Some(format!("services.{name}")),
        [""] | ["runtime"] => {
            let section = super::orchestrator::home_of(key)?;
            (section != path).then(|| section.to_owned())
        }
        _ => None,
    }
}

/// What `services` says.
#[derive(Debug, Default)]
pub(super) struct Services {
    pub(super) services: BTreeMap<ServiceName, ServiceConfig>,
    pub(super) descriptions: BTreeMap<ServiceName, String>,
}

/// Reads `services`.
pub(super) fn services(
    field: &Field<'_>,
    runtime: &Runtime,
    dir: &Path,
) -> Result<Services, Problem> {
    let mut services = BTreeMap::new();
    let mut descriptions = BTreeMap::new();
    let mut places = Places::new();
    for (entry, field) in field.entries("a map of services by name")? {
        let name: ServiceName = entry.key.parse().map_err(|error| {
            Problem::new(entry.key_place.clone(), &field.path, format!("{error}"))
        })?;
        if RESERVED_NAMES.contains(&name.as_str()) {
            let message = format!("{name} is the name of a part of Blackhole itself");
            return Err(Problem::new(entry.key_place.clone(), &field.path, message)
                .hint("choose another name"));
        }
        let service = service(&name, entry, &field, runtime, dir, &mut places)?;
        if let Some(text) = field.section(&KEYS)?.read("description", Field::text)? {
            descriptions.insert(name.clone(), text.to_owned());
        }
        services.insert(name, service);
    }
    super::graph::check(&services, &places)?;
    check_sockets(&services, field)?;
    super::managers::check_processes(&services, runtime)?;
    Ok(Services {
        services,
        descriptions,
    })
}

/// Two sockets on one address: the second could not be opened.
fn check_sockets(
    services: &BTreeMap<ServiceName, ServiceConfig>,
    field: &Field<'_>,
) -> Result<(), Problem> {
    let mut known: BTreeMap<&str, (&ServiceName, &str)> = BTreeMap::new();
    for (service, config) in services {
        for (name, socket) in &config.settings.sockets {
            let Some((other, first)) = known.insert(&socket.listen, (service, name)) else {
                continue;
            };
            let path = format!("{}.{service}.sockets.{name}", field.path);
            let place = field.place_of(&[service.as_str(), "sockets", name]);
            let message = format!("{} is {other}'s socket {first} already", socket.listen);
            return Err(Problem::new(place, &path, message).hint("give each an address of its own"));
        }
    }
    Ok(())
}

fn service(
    name: &ServiceName,
    entry: &Entry,
    field: &Field<'_>,
    runtime: &Runtime,
    dir: &Path,
    places: &mut Places,
) -> Result<ServiceConfig, Problem> {
    let section = field.section(&KEYS)?;
    let command = match section.get("command") {
        Some(field) => argument_list(&field, "[/usr/bin/program, --flag]", dir)?,
        None => {
            return Err(
                Problem::new(entry.key_place.clone(), &field.path, "has no command")
                    .hint("every service needs one: command: [/usr/bin/program, --flag]"),
            );
        }
    };
    let priority = section
        .read("priority", |field| {
            field.choice(&[
                ("critical", Priority::Critical),
                ("normal", Priority::Normal),
                ("background", Priority::Background),
            ])
        })?
        .unwrap_or_default();
    let service_type = section.read("type", type_name)?;
    let oneshot = section.read("oneshot", Field::boolean)?.unwrap_or(false);
    let (restart_mode, restart_policy) = restart(&section, oneshot, runtime)?;

    let empty = super::tree::Node {
        value: Value::Nothing,
        place: field.node.place.clone(),
    };
    let resources = section
        .get("resources")
        .unwrap_or_else(|| Field::new(&empty, format!("{}.resources", field.path)))
        .section(&limits::KEYS)?;
    let mut settings = Settings::read(&resources)?;
    let open_files = resources.get("open_files");
    let mut process = super::settings::settings(&section, open_files.as_ref(), dir)?;
    let manager = section.read("manager", |field| {
        super::managers::of_service(field, runtime)
    })?;
    let replicas = section
        .read("replicas", |field| {
            super::managers::replicas(field, runtime, manager.as_ref())
        })?
        .unwrap_or(1);
    let stop = section.read("stop", stop)?.unwrap_or_default();
    process.hooks = super::turns::hooks(&section, &stop, dir)?;
    process.reload = section.read("reload", |field| super::turns::reload(field, dir))?;
    process.sockets = section
        .read("sockets", |field| {
            super::turns::sockets(field, replicas, dir)
        })?
        .unwrap_or_default();
    if let Some(profile) = service_type
        .as_ref()
        .and_then(|name| runtime.profiles.get(name))
    {
        settings = settings.over(profile);
    }
    settings = settings.over(&runtime.defaults);
    let effective = settings.effective(runtime.default_io_weight, priority);
    limits::check_requests(&effective, &resources)?;

    Ok(ServiceConfig {
        command,
        service_type,
        manager,
        priority,
        replicas,
        env: section
            .read("env", |field| environment(field, dir))?
            .unwrap_or_default(),
        working_dir: section.read("working_dir", |field| {
            Ok(below(dir, &expand_dir(field.text()?, dir)))
        })?,
        user: section.read("user", account)?,
        group: section.read("group", account)?,
        open_files: settings.open_files,
        oneshot,
        autostart: section.read("autostart", Field::boolean)?.unwrap_or(true),
        restart_mode,
        restart_policy,
        probes: section
            .read("health", |field| probes(field, dir))?
            .unwrap_or_default(),
        limits: effective,
        oom_score_adj: limits::oom_score_adj(priority),
        stop,
        success_codes: section
            .read("success_codes", success_codes)?
            .unwrap_or_else(default_success_codes),
        depends_on: section
            .read("depends_on", |field| dependencies(name, field, places))?
            .unwrap_or_default(),
        logs: section.read("logs", logs)?.unwrap_or_default(),
        settings: process,
    })
}

/// A path as seen from the configuration's directory. A text that is `.` or
/// holds `./` is tidied, `..` is left alone (it may lead through a symlink).
pub(super) fn below(dir: &Path, path: &str) -> String {
    let joined = dir.join(path);
    let tidy: PathBuf = joined
        .components()
        .filter(|part| !matches!(part, Component::CurDir))
        .collect();
    tidy.to_string_lossy().into_owned()
}

/// A program with its arguments.
pub(super) fn argument_list(
    field: &Field<'_>,
    example: &str,
    dir: &Path,
) -> Result<Vec<String>, Problem> {
    let items = match &field.node.value {
        Value::Text(text) if !text.trim().is_empty() => {
            let words = text.split_whitespace().take(6).collect::<Vec<_>>();
            let guess =
                match words.len() < 6 && !text.contains(['"', '\'', '|', '>', '&', ';', ',']) {
                    true => format!("[{}]", words.join(", ")),
                    false => format!("{example}, or [sh, -c, \"…\"] for a shell's own words"),
                };
            return Err(field
                .expected("a list of program and arguments")
                .hint(format!("write {guess}")));
        }
        _ => field.list(&format!("write {example}"))?,
    };
    let mut arguments = Vec::with_capacity(items.len());
    for item in &items {
        arguments.push(item.word()?.to_owned());
    }
    match arguments.first() {
        None => return Err(field.problem("is empty").hint(format!("write {example}"))),
        Some(program) if program.trim().is_empty() => {
            return Err(field.problem("its first item, the program, is empty"));
        }
        Some(_) => resolve_program(&mut arguments, dir),
    }
    Ok(arguments)
}

/// A type, as it also names a profile.
pub(super) fn type_name(field: &Field<'_>) -> Result<String, Problem> {
    let text = field.text()?;
    match text.parse::<ServiceName>() {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(field.problem(error.to_string())),
    }
}

/// A user or group, by name or number.
pub(super) fn account(field: &Field<'_>) -> Result<String, Problem> {
    let expected = || field.expected("a name or a number");
    match &field.node.value {
        Value::Integer(id, _) => {
            // The highest id means "leave it" to setresuid(2).
            let id = u32::try_from(*id)
                .ok()
                .filter(|id| *id < u32::MAX)
                .ok_or_else(expected)?;
            Ok(id.to_string())
        }
        Value::Text(_) => {
            let name = field.text()?;
            match name.len() <= 256 && !name.contains([':', '/', '\n', ' ']) {
                true => Ok(name.to_owned()),
                false => Err(expected()),
            }
        }
        _ => Err(expected()),
    }
}

fn restart(
    section: &Section<'_>,
    oneshot: bool,
    runtime: &Runtime,
) -> Result<(RestartMode, super::RestartPolicy), Problem> {
    let usual = if oneshot {
        RestartMode::OnFailure
    } else {
        RestartMode::Always
    };
    let Some(field) = section.get("restart") else {
        return Ok((usual, runtime.orchestrator.restart_policy.clone()));
    };
    if let Value::Text(text) = &field.node.value {
        return Err(field.expected("a map").hint(format!(
            "write restart: {{policy: {}}}",
            super::tree::shortened(text)
        )));
    }
    let mut keys = vec!["policy"];
    keys.extend(POLICY_KEYS);
    let restart = field.section(&keys)?;
    let mode = restart.read("policy", |field| {
        let mode = field.choice(&[
            ("always", RestartMode::Always),
            ("on-failure", RestartMode::OnFailure),
            ("never", RestartMode::Never),
        ])?;
        if oneshot && mode == RestartMode::Always {
            return Err(field
                .problem("a one-shot is meant to end, always would start it again and again")
                .hint("write on-failure or never, or remove oneshot"));
        }
        Ok(mode)
    })?;
    Ok((
        mode.unwrap_or(usual),
        policy(&restart, &runtime.orchestrator.restart_policy)?,
    ))
}

fn environment(field: &Field<'_>, dir: &Path) -> Result<BTreeMap<String, String>, Problem> {
    let mut env = BTreeMap::new();
    for (entry, field) in field.entries("a map of names to values")? {
        let at_key = |message: String| Problem::new(entry.key_place.clone(), &field.path, message);
        if !is_variable(&entry.key) {
            return Err(at_key(
                "a variable's name is not empty and holds no \"=\"".to_owned(),
            ));
        }
        if RESERVED_ENV.contains(&entry.key.as_str()) {
            return Err(at_key(format!("{} is set by Blackhole itself", entry.key)));
        }
        let value = expand(field.word()?, dir).map_err(|error| field.problem(error.to_string()))?;
        env.insert(entry.key.clone(), value);
    }
    Ok(env)
}

fn stop(field: &Field<'_>) -> Result<StopSpec, Problem> {
    let section = field.section(&STOP_KEYS)?;
    let usual = StopSpec::default();
    let signal = section.read("signal", |field| {
        signal_number(field.word()?)
            .ok_or_else(|| field.expected("a signal, for instance SIGTERM, SIGINT or 15"))
    })?;
    let grace = section.read("grace", |field| {
        field.duration(Duration::ZERO..=Duration::from_secs(3_600))
    })?;
    Ok(StopSpec {
        signal: signal.unwrap_or(usual.signal),
        grace_ms: grace
            .map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX))
            .unwrap_or(usual.grace_ms),
    })
}

fn logs(field: &Field<'_>) -> Result<LogSpec, Problem> {
    let section = field.section(&LOG_KEYS)?;
    let usual = LogSpec::default();
    let max_bytes = section
        .read("max_size", |field| field.size(4_096..=1 << 40))?
        .unwrap_or(usual.max_bytes);
    let max_files = section
        .read("max_files", |field| {
            field.integer(0..=1_000).map_err(|problem| {
                problem.hint("the number of rotated files kept beside the current one")
            })
        })?
        .unwrap_or(usual.max_files);
    let longest = Duration::from_secs(366 * 86_400);
    let max_age = section.read("max_age", |field| {
        field.duration(Duration::from_secs(1)..=longest)
    })?;
    let max_total_bytes = section.read("max_total_size", |field| {
        let total = field.size(4_096..=1 << 50)?;
        match total < max_bytes {
            true => Err(field
                .problem(format!(
                    "is {total} bytes, and the current file alone may have {max_bytes} (max_size)"
                ))
                .hint("it is for all files of an instance together: raise it, or lower max_size")),
            false => Ok(total),
        }
    })?;
    Ok(LogSpec {
        max_bytes,
        max_files,
        max_age_ms: max_age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        max_total_bytes,
        compress: section
            .read("compress", Field::boolean)?
            .unwrap_or(usual.compress),
        format: section
            .read("format", |field| {
                field.choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)])
            })?
            .unwrap_or(usual.format),
    })
}

fn success_codes(field: &Field<'_>) -> Result<Vec<i32>, Problem> {
    let items = field.list("write [0] or [0, 3]")?;
    if items.is_empty() {
        return Err(field.problem("is empty: every end would be a failure"));
    }
    items.iter().map(|item| item.integer(0..=255)).collect()
}

fn dependencies(
    name: &ServiceName,
    field: &Field<'_>,
    places: &mut Places,
) -> Result<BTreeMap<ServiceName, Dependency>, Problem> {
    let expected = "a map of services to started, ready or completed";
    if let Value::List(items) = &field.node.value {
        let problem = field.expected(expected);
        return Err(match items.first().map(|item| &item.value) {
            Some(Value::Text(first)) => problem.hint(format!(
                "write depends_on: {{{}: ready}}",
                super::tree::shortened(first)
            )),
            _ => problem,
        });
    }
    let mut dependencies = BTreeMap::new();
    for (entry, field) in field.entries(expected)? {
        let on: ServiceName = entry.key.parse().map_err(|error| {
            Problem::new(entry.key_place.clone(), &field.path, format!("{error}"))
        })?;
        places.insert((name.clone(), on.clone()), entry.key_place.clone());
        dependencies.insert(on, dependency(&field)?);
    }
    Ok(dependencies)
}

fn dependency(field: &Field<'_>) -> Result<Dependency, Problem> {
    match &field.node.value {
        Value::Map(_) => {
            let section = field.section(&["condition", "required"])?;
            let Some(condition) = section.get("condition") else {
                return Err(section
                    .problem("has no condition")
                    .hint("write {condition: ready, required: false}"));
            };
            Ok(Dependency {
                condition: condition.choice(&CONDITIONS)?,
                required: section.read("required", Field::boolean)?.unwrap_or(true),
            })
        }
        _ => Ok(Dependency {
            condition: field.choice(&CONDITIONS)?,
            required: true,
        }),
    }
}
