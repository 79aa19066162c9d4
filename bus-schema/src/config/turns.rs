//! Keys of a service about the turns of its life: `hooks`, `reload` and `sockets`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::error::Problem;
use super::reference::expand_dir;
use super::section::{Field, Section};
use super::service::argument_list;
use super::settings::octal;
use super::tree::Value;
use crate::process::{Hook, Hooks, ReloadAction, ReloadSpec, SocketSpec, StopSpec, signal_number};

pub(super) const HOOKS: [&str; 4] = ["before_start", "after_start", "before_stop", "after_exit"];

/// Time that a hook or a reload has where nothing else is said.
const USUAL: Duration = Duration::from_secs(30);
/// The longest that can be said.
const LONGEST: Duration = Duration::from_secs(3_600);
/// Connections that wait, where nothing else is said; the kernel takes as many
/// of them as net.core.somaxconn allows.
const BACKLOG: u32 = 4_096;
/// A Unix socket's path, without the NUL that ends it, see unix(7).
const MAX_PATH: usize = 107;
/// Sockets of one service.
const MAX_SOCKETS: usize = 256;

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Reads `hooks`. The one before a stop is part of the grace of `stop`.
pub(super) fn hooks(section: &Section<'_>, stop: &StopSpec, dir: &Path) -> Result<Hooks, Problem> {
    let Some(field) = section.get("hooks") else {
        return Ok(Hooks::default());
    };
    let hooks = field.section(&HOOKS)?;
    let read = |key: &str| hooks.read(key, |field| hook(field, millis(USUAL), dir));
    let grace = stop.grace_ms;
    let before_stop = hooks.read("before_stop", |field| {
        let hook = hook(field, millis(USUAL).min(grace / 2).max(1), dir)?;
        match hook.timeout_ms > grace {
            true => Err(field
                .problem(format!(
                    "may take {} ms, and the grace of the stop that it is part of is {grace} ms",
                    hook.timeout_ms
                ))
                .hint("lower its timeout, or raise stop.grace")),
            false => Ok(hook),
        }
    })?;
    Ok(Hooks {
        before_start: read("before_start")?,
        after_start: read("after_start")?,
        before_stop,
        after_exit: read("after_exit")?,
    })
}

fn timeout(section: &Section<'_>) -> Result<Option<u64>, Problem> {
    section.read("timeout", |field| {
        field
            .duration(Duration::from_millis(1)..=LONGEST)
            .map(millis)
    })
}

fn hook(field: &Field<'_>, usual: u64, dir: &Path) -> Result<Hook, Problem> {
    let example = "[/usr/bin/prepare, --quick]";
    if !matches!(field.node.value, Value::Map(_)) {
        return Ok(Hook {
            command: argument_list(field, example, dir)?,
            timeout_ms: usual,
        });
    }
    let section = field.section(&["command", "timeout"])?;
    let timeout_ms = timeout(&section)?.unwrap_or(usual);
    let Some(command) = section.get("command") else {
        return Err(section
            .problem("has no command")
            .hint(format!("write {{command: {example}, timeout: 10s}}")));
    };
    Ok(Hook {
        command: argument_list(&command, example, dir)?,
        timeout_ms,
    })
}

/// Reads `reload`.
pub(super) fn reload(field: &Field<'_>, dir: &Path) -> Result<ReloadSpec, Problem> {
    let hint = "write {signal: SIGHUP} or {command: [/usr/bin/web, --reload]}";
    if !matches!(field.node.value, Value::Map(_)) {
        return Err(field.expected("a map with signal or command").hint(hint));
    }
    let section = field.section(&["signal", "command", "notify", "timeout"])?;
    let notify = section.read("notify", Field::boolean)?.unwrap_or(false);
    let timeout_ms = timeout(&section)?.unwrap_or(millis(USUAL));
    let action = match (section.get("signal"), section.get("command")) {
        (Some(signal), None) => ReloadAction::Signal(
            signal_number(signal.word()?)
                .ok_or_else(|| signal.expected("a signal, for instance SIGHUP or 1"))?,
        ),
        (None, Some(command)) => {
            let example = "[/usr/bin/web, --reload]";
            ReloadAction::Command(argument_list(&command, example, dir)?)
        }
        (None, None) => {
            return Err(section
                .problem("says neither signal nor command")
                .hint(hint));
        }
        (Some(_), Some(command)) => {
            return Err(command
                .problem("signal stands there too")
                .hint("a command can send the signal itself: keep one of the two"));
        }
    };
    Ok(ReloadSpec {
        action,
        notify,
        timeout_ms,
    })
}

/// Reads `sockets` of a service with so many replicas.
pub(super) fn sockets(
    field: &Field<'_>,
    replicas: u32,
    dir: &Path,
) -> Result<BTreeMap<String, SocketSpec>, Problem> {
    let mut sockets = BTreeMap::new();
    let entries = field.entries("a map of names to sockets")?;
    if entries.len() > MAX_SOCKETS {
        let message = format!("has {} sockets, {MAX_SOCKETS} are the most", entries.len());
        return Err(field.problem(message));
    }
    for (entry, field) in entries {
        let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let name = &entry.key;
        if name.is_empty() || name.len() > 255 || !name.chars().all(letter) {
            let message = "a socket's name has letters, digits, \".\", \"_\" and \"-\"";
            return Err(Problem::new(entry.key_place.clone(), &field.path, message)
                .hint("the service finds it in LISTEN_FDNAMES"));
        }
        sockets.insert(name.clone(), socket(&field, replicas, dir)?);
    }
    Ok(sockets)
}

fn socket(field: &Field<'_>, replicas: u32, dir: &Path) -> Result<SocketSpec, Problem> {
    let example = "{listen: \"127.0.0.1:8080\"}";
    let (listen, backlog, mode) = if matches!(field.node.value, Value::Text(_)) {
        (field.clone(), None, None)
    } else {
        let section = field.section(&["listen", "backlog", "mode"])?;
        let backlog = section.read("backlog", |field| field.integer(1..=65_535))?;
        let mode = section.get("mode");
        if let Some(field) = &mode {
            octal(field, 0o777)?;
        }
        let Some(listen) = section.get("listen") else {
            return Err(section
                .problem("does not say where to listen")
                .hint(format!("write {example}")));
        };
        (listen, backlog, mode)
    };
    let text = expand_dir(listen.text()?, dir);
    let is_path = text.starts_with('/');
    if is_path && text.len() > MAX_PATH {
        let message = format!(
            "is {} bytes long, {MAX_PATH} are the most, see unix(7)",
            text.len()
        );
        return Err(listen.problem(message));
    }
    if !is_path
        && !text
            .parse::<SocketAddr>()
            .is_ok_and(|address| address.port() > 0)
    {
        return Err(listen
            .expected("ADDRESS:PORT with a numeric address, or an absolute path")
            .hint("for instance 127.0.0.1:8080, [::1]:8080 or /run/web.sock"));
    }
    if is_path && replicas > 1 {
        return Err(listen
            .problem(format!("{replicas} replicas cannot share a path"))
            .hint("listen on a TCP address, which they share"));
    }
    let mode = match mode {
        Some(field) if !is_path => {
            return Err(field
                .problem("only a Unix socket's file has a mode")
                .hint("leave it out"));
        }
        Some(field) => Some(octal(&field, 0o777)?),
        None => None,
    };
    Ok(SocketSpec {
        listen: text,
        backlog: backlog.unwrap_or(BACKLOG),
        mode,
        shared: !is_path && replicas > 1,
    })
}
