//! `health`: startup, liveness and readiness probes.

use std::path::Path;
use std::time::Duration;

use super::error::Problem;
use super::reference::expand_dir;
use super::section::{Field, Section};
use super::service::argument_list;
use super::tree::Value;
use crate::health::{Probe, ProbeCheck, ProbeKind, Probes};

pub(super) const KINDS: [&str; 3] = ["startup", "liveness", "readiness"];
pub(super) const CHECKS: [&str; 5] = ["http", "tcp", "exec", "rpc", "notify"];
const KEYS: [&str; 10] = [
    "http",
    "tcp",
    "exec",
    "rpc",
    "notify",
    "initial_delay",
    "interval",
    "timeout",
    "failure_threshold",
    "success_threshold",
];

const HOUR: Duration = Duration::from_secs(3_600);

/// Reads `health`.
pub(super) fn probes(field: &Field<'_>, dir: &Path) -> Result<Probes, Problem> {
    let section = field.section(&KINDS)?;
    let read = |key: &str, kind| section.read(key, |field| probe(field, kind, dir));
    Ok(Probes {
        startup: read("startup", ProbeKind::Startup)?,
        liveness: read("liveness", ProbeKind::Liveness)?,
        readiness: read("readiness", ProbeKind::Readiness)?,
    })
}

fn probe(field: &Field<'_>, kind: ProbeKind, dir: &Path) -> Result<Probe, Problem> {
    let section = field.section(&KEYS)?;
    let given: Vec<&str> = CHECKS
        .iter()
        .copied()
        .filter(|key| section.get(key).is_some())
        .collect();
    let key = match given.as_slice() {
        [key] => *key,
        [] => {
            return Err(section.problem("does not say how to ask").hint(
                "give one of http: URL, tcp: HOST:PORT, exec: [program, …], rpc: METHOD, notify: true",
            ));
        }
        several => {
            let message = format!("asks in {} ways: {}", several.len(), several.join(", "));
            return Err(section.problem(message).hint("a probe asks in one way"));
        }
    };
    // A startup probe is patient, it covers the whole start; a liveness probe is lazy.
    let (interval, failures) = match kind {
        ProbeKind::Startup => (1_000, 60),
        ProbeKind::Liveness => (10_000, 3),
        ProbeKind::Readiness => (2_000, 3),
    };
    let millis = |key: &str, from: Duration, to: Duration| {
        section.read(key, |field| {
            field
                .duration(from..=to)
                .map(|value| u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
        })
    };
    let threshold =
        |key: &str| section.read(key, |field: &Field<'_>| field.integer(1..=100_000_u32));
    let check = check(&section, key, dir)?;
    Ok(Probe {
        check,
        initial_delay_ms: millis("initial_delay", Duration::ZERO, 24 * HOUR)?.unwrap_or(0),
        interval_ms: millis("interval", Duration::from_millis(10), 24 * HOUR)?.unwrap_or(interval),
        timeout_ms: millis("timeout", Duration::from_millis(1), HOUR)?.unwrap_or(1_000),
        failure_threshold: threshold("failure_threshold")?.unwrap_or(failures),
        success_threshold: threshold("success_threshold")?.unwrap_or(1),
    })
}

fn check(section: &Section<'_>, key: &str, dir: &Path) -> Result<ProbeCheck, Problem> {
    let Some(field) = section.get(key) else {
        return Err(section.problem("does not say how to ask"));
    };
    match key {
        "http" => http(&field).map(ProbeCheck::Http),
        "tcp" => {
            let text = match &field.node.value {
                Value::Text(_) => field.text()?,
                _ => "",
            };
            match is_host_port(text) {
                true => Ok(ProbeCheck::Tcp(text.to_owned())),
                false => Err(field.expected("HOST:PORT, for instance 127.0.0.1:6379")),
            }
        }
        "exec" => argument_list(&field, "[/usr/bin/check, --quick]", dir).map(ProbeCheck::Exec),
        "rpc" => {
            let method = field.text()?;
            match method.len() <= 200 && method.chars().all(|c| c.is_ascii_graphic()) {
                true => Ok(ProbeCheck::Rpc(method.to_owned())),
                false => Err(field.expected("the name of a method, for instance health.check")),
            }
        }
        _ => match field.boolean()? {
            true => Ok(ProbeCheck::Notify),
            false => Err(field
                .problem("only true makes sense here")
                .hint("leave it out")),
        },
    }
}

/// `http://HOST[:PORT][/PATH]`.
fn http(field: &Field<'_>) -> Result<String, Problem> {
    let url = field.text()?;
    let expected = "an http:// URL, for instance http://127.0.0.1:8080/health";
    if url.starts_with("https://") {
        return Err(field
            .expected(expected)
            .hint("https is not supported; exec: [curl, …] can do it"));
    }
    let Some(rest) = url.strip_prefix("http://") else {
        return Err(field.expected(expected));
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let bracketed_only = authority.starts_with('[') && authority.ends_with(']');
    let fine = !url.chars().any(|c| c.is_whitespace() || c.is_control())
        && !authority.contains('@')
        && if bracketed_only || !authority.contains(':') {
            is_host(authority)
        } else {
            is_host_port(authority)
        };
    if fine {
        Ok(url.to_owned())
    } else {
        Err(field.expected(expected))
    }
}

fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    is_host(host) && !port.starts_with('+') && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// A name, an IPv4 address, or an IPv6 address in brackets.
fn is_host(host: &str) -> bool {
    match host.strip_prefix('[') {
        Some(rest) => rest
            .strip_suffix(']')
            .is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok()),
        None => {
            !host.is_empty()
                && host.len() <= 253
                && host
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        }
    }
}

/// A command's arguments with `${config_dir}` filled in and the program, where
/// it is a relative path with a slash, taken from the configuration's directory.
pub(super) fn resolve_program(arguments: &mut [String], dir: &Path) {
    for argument in arguments.iter_mut() {
        if argument.contains("${config_dir}") {
            *argument = expand_dir(argument, dir);
        }
    }
    if let Some(program) = arguments.first_mut()
        && program.contains('/')
    {
        *program = super::service::below(dir, program);
    }
}
