//! Keys of a service about its process: `groups`, `umask`, `nice`, `rlimits`,
//! `no_new_privs`, `capabilities`, `stdin`, `env_files` and `fd_store`.

use std::path::Path;

use super::error::Problem;
use super::reference::expand_dir;
use super::section::{Field, Section, nearest};
use super::service::{account, below};
use super::tree::{Value, shortened};
use super::units;
use crate::process::{
    CAPABILITIES, Capabilities, EnvFile, ProcessSettings, Rlimit, RlimitValue, capability_name,
    capability_number,
};

/// The names of all limits below `rlimits`.
pub(super) fn rlimit_names() -> Vec<&'static str> {
    Rlimit::ALL.iter().map(|row| row.0).collect()
}

/// Reads what a service says about its process. `open_files` is where its
/// `resources` say how many files it may have open.
pub(super) fn settings(
    section: &Section<'_>,
    open_files: Option<&Field<'_>>,
    dir: &Path,
) -> Result<ProcessSettings, Problem> {
    let mut settings = ProcessSettings {
        groups: section.read("groups", groups)?.unwrap_or_default(),
        umask: section.read("umask", |field| octal(field, 0o777))?,
        nice: section.read("nice", |field| field.integer(-20..=19))?,
        no_new_privs: section
            .read("no_new_privs", Field::boolean)?
            .unwrap_or_default(),
        standby: section.read("standby", Field::boolean)?.unwrap_or_default(),
        capabilities: section.read("capabilities", capabilities)?,
        stdin: section.read("stdin", |field| file(field, dir))?,
        env_files: section
            .read("env_files", |field| env_files(field, dir))?
            .unwrap_or_default(),
        fd_store: section
            .read("fd_store", |field| field.integer(0..=4_096))?
            .unwrap_or_default(),
        ..ProcessSettings::default()
    };
    if let Some(field) = section.get("rlimits") {
        let limits = field.section(&rlimit_names())?;
        for (name, limit, _, bytes) in Rlimit::ALL {
            let Some(field) = limits.get(name) else {
                continue;
            };
            if let (Rlimit::Nofile, Some(_)) = (limit, open_files) {
                return Err(field
                    .problem("resources.open_files says the same")
                    .hint("keep one of the two; this one may have a soft and a hard limit"));
            }
            settings.rlimits.insert(limit, rlimit(&field, bytes)?);
        }
    }
    Ok(settings)
}

fn groups(field: &Field<'_>) -> Result<Vec<String>, Problem> {
    let items = field.list("write groups: [audio, 27]")?;
    items.iter().map(account).collect()
}

/// A number in octal, as a person writes file modes: `0027`, `27`, `"027"`, `0o27`.
pub(super) fn octal(field: &Field<'_>, most: u32) -> Result<u32, Problem> {
    let expected = || field.expected(format_args!("an octal number from 0 to {most:o}"));
    let raw = match &field.node.value {
        // One that begins with zeros is no whole number to YAML 1.2.
        Value::Integer(_, raw) | Value::Float(_, raw) => raw.as_str(),
        Value::Text(text) => text.as_str(),
        _ => return Err(expected()),
    };
    let digits = raw.strip_prefix("0o").unwrap_or(raw);
    match u32::from_str_radix(digits, 8) {
        Ok(number) if number <= most && !digits.starts_with('+') => Ok(number),
        _ => Err(expected()),
    }
}

/// A file's path, seen from the configuration's directory.
fn file(field: &Field<'_>, dir: &Path) -> Result<String, Problem> {
    Ok(below(dir, &expand_dir(field.text()?, dir)))
}

fn env_files(field: &Field<'_>, dir: &Path) -> Result<Vec<EnvFile>, Problem> {
    let items = field.list("write env_files: [common.env, {path: local.env, required: false}]")?;
    let mut files = Vec::with_capacity(items.len());
    for item in &items {
        files.push(match &item.node.value {
            Value::Map(_) => {
                let section = item.section(&["path", "required"])?;
                let required = section.read("required", Field::boolean)?;
                let Some(path) = section.get("path") else {
                    return Err(section
                        .problem("has no path")
                        .hint("write {path: local.env, required: false}"));
                };
                EnvFile {
                    path: file(&path, dir)?,
                    required: required.unwrap_or(true),
                }
            }
            Value::Text(_) => EnvFile {
                path: file(item, dir)?,
                required: true,
            },
            _ => return Err(item.expected("a path, or {path: …, required: false}")),
        });
    }
    Ok(files)
}

fn rlimit(field: &Field<'_>, bytes: bool) -> Result<RlimitValue, Problem> {
    let Value::List(items) = &field.node.value else {
        let both = rlimit_number(field, bytes)?;
        return Ok(RlimitValue {
            soft: both,
            hard: both,
        });
    };
    if items.len() != 2 {
        return Err(field
            .problem(format!("is a list of {}", items.len()))
            .hint("write [soft, hard], or one value for both"));
    }
    let items = field.list("")?;
    let mut values = [None; 2];
    for (value, item) in values.iter_mut().zip(&items) {
        *value = rlimit_number(item, bytes)?;
    }
    let [soft, hard] = values;
    let above = match (soft, hard) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(soft), Some(hard)) => soft > hard,
    };
    if above {
        return Err(field
            .problem("its soft limit is above its hard limit")
            .hint("write the lower one first: [soft, hard]"));
    }
    Ok(RlimitValue { soft, hard })
}

fn rlimit_number(field: &Field<'_>, bytes: bool) -> Result<Option<u64>, Problem> {
    let expected = || {
        field.expected(if bytes {
            "a number of bytes (or a size as 64MiB), [soft, hard] or unlimited"
        } else {
            "a whole number, [soft, hard] or unlimited"
        })
    };
    match &field.node.value {
        Value::Text(text) if text == "unlimited" => Ok(None),
        Value::Text(text) if bytes => units::size(text).map(Some).map_err(|_| expected()),
        // The highest number means "unlimited" to the kernel.
        Value::Integer(number, _) => u64::try_from(*number)
            .ok()
            .filter(|number| *number < u64::MAX)
            .map(Some)
            .ok_or_else(expected),
        _ => Err(expected()),
    }
}

fn capabilities(field: &Field<'_>) -> Result<Capabilities, Problem> {
    let hint = "write {keep: [net_bind_service]} or {drop: [sys_admin]}";
    if !matches!(field.node.value, Value::Map(_)) {
        return Err(field.expected("a map with keep or drop").hint(hint));
    }
    let section = field.section(&["keep", "drop"])?;
    match (section.get("keep"), section.get("drop")) {
        (Some(keep), None) => Ok(Capabilities::Keep(capability_list(&keep)?)),
        (None, Some(drop)) => {
            let list = capability_list(&drop)?;
            match list.is_empty() {
                true => Err(drop
                    .problem("is empty: nothing would change")
                    .hint("write keep: [] to take all capabilities away")),
                false => Ok(Capabilities::Drop(list)),
            }
        }
        (None, None) => Err(section.problem("says neither keep nor drop").hint(hint)),
        (Some(_), Some(drop)) => Err(drop
            .problem("keep stands there too")
            .hint("what is not kept is dropped: keep one of the two")),
    }
}

fn capability_list(field: &Field<'_>) -> Result<Vec<String>, Problem> {
    let items = field.list("write [net_bind_service, chown]")?;
    let mut numbers = Vec::with_capacity(items.len());
    for item in &items {
        let text = item.text()?;
        let Some(number) = capability_number(text) else {
            let problem = item.problem(format!(
                "there is no capability {:?}, see capabilities(7)",
                shortened(text)
            ));
            let lower = text.to_lowercase();
            let name = lower.strip_prefix("cap_").unwrap_or(&lower);
            return Err(match nearest(name, &CAPABILITIES) {
                Some(near) => problem.hint(format!("did you mean {near}?")),
                None => problem,
            });
        };
        numbers.push(number);
    }
    numbers.sort_unstable();
    numbers.dedup();
    let names = numbers.into_iter().filter_map(capability_name);
    Ok(names.map(str::to_owned).collect())
}
