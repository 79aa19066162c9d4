//! References in the values of `env`: `${env:NAME}`, `${file:PATH}` and
//! `${config_dir}`; `$${` is a plain `${`. The last one is filled in when the
//! configuration is read, the others by the process-manager at each spawn, so
//! that a secret is never in a message, a log or a database.

use std::path::Path;

/// A piece of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// As it stands.
    Text(String),
    /// `${env:NAME}`: a variable of the process-manager's own environment.
    Env(String),
    /// `${file:PATH}`: the content of a file, without one newline at its end.
    File(String),
    /// `${config_dir}`: the directory of the configuration file.
    ConfigDir,
}

/// A reference that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// No `}` follows.
    #[error("\"${{\" without a closing \"}}\"; write $${{ for a plain ${{")]
    Open,
    /// Neither `env:`, `file:` nor `config_dir`.
    #[error(
        "unknown reference ${{{0}}}: there are ${{env:NAME}}, ${{file:PATH}} and ${{config_dir}}; \
         write $${{ for a plain ${{"
    )]
    Unknown(String),
    /// `${env:…}` with something that no variable is named.
    #[error("{0:?} is not the name of an environment variable")]
    BadName(String),
    /// `${file:}`.
    #[error("${{file:}} names no file")]
    NoFile,
}

/// Splits a value into its parts.
///
/// ```
/// use blackhole_bus_schema::config::reference::{Part, parse};
/// let parts = parse("postgres://${env:USER}:${file:/run/pw}@db $${x}").unwrap();
/// assert_eq!(parts, [
///     Part::Text("postgres://".into()), Part::Env("USER".into()), Part::Text(":".into()),
///     Part::File("/run/pw".into()), Part::Text("@db ${x}".into()),
/// ]);
/// assert!(parse("${HOME}").is_err());
/// assert!(parse("${env:A").is_err());
/// ```
///
/// # Errors
/// When a `${` begins none of the known references.
pub fn parse(value: &str) -> Result<Vec<Part>, ReferenceError> {
    let mut parts = Vec::new();
    let mut text = String::new();
    let mut rest = value;
    while let Some(start) = rest.find("${") {
        text.push_str(&rest[..start]);
        let after = &rest[start + 2..];
        if text.ends_with('$') {
            text.push('{');
            rest = after;
            continue;
        }
        let end = after.find('}').ok_or(ReferenceError::Open)?;
        let part = reference(&after[..end])?;
        if !text.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut text)));
        }
        parts.push(part);
        rest = &after[end + 1..];
    }
    text.push_str(rest);
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
    Ok(parts)
}

fn reference(inner: &str) -> Result<Part, ReferenceError> {
    let cut = || inner.chars().take(60).collect::<String>();
    if inner == "config_dir" {
        return Ok(Part::ConfigDir);
    }
    match inner.split_once(':') {
        Some(("env", name)) if is_variable(name) => Ok(Part::Env(name.to_owned())),
        Some(("env", name)) => Err(ReferenceError::BadName(name.chars().take(60).collect())),
        Some(("file", "")) => Err(ReferenceError::NoFile),
        Some(("file", path)) => Ok(Part::File(path.to_owned())),
        _ => Err(ReferenceError::Unknown(cut())),
    }
}

/// Whether a text can name an environment variable, see environ(7).
pub(super) fn is_variable(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

/// Fills in `${config_dir}` and makes the paths of `${file:…}` absolute; the
/// other references stay as they are.
pub(super) fn expand(value: &str, dir: &Path) -> Result<String, ReferenceError> {
    if !value.contains("${") {
        return Ok(value.to_owned());
    }
    let escape = |text: &str| text.replace("${", "$${");
    let mut out = String::with_capacity(value.len() + 32);
    for part in parse(value)? {
        match part {
            Part::Text(text) => out.push_str(&escape(&text)),
            Part::Env(name) => out.push_str(&format!("${{env:{name}}}")),
            Part::File(path) => {
                out.push_str(&format!("${{file:{}}}", dir.join(path).to_string_lossy()));
            }
            Part::ConfigDir => out.push_str(&escape(&dir.to_string_lossy())),
        }
    }
    Ok(out)
}

/// Fills in `${config_dir}` where nothing else is a reference (arguments,
/// paths): a shell's own `${HOME}` in an argument stays what it is.
pub(super) fn expand_dir(value: &str, dir: &Path) -> String {
    value.replace("${config_dir}", &dir.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands_only_what_is_known_at_load() {
        let dir = Path::new("/etc/app");
        assert_eq!(expand("plain $ {x}", dir).unwrap(), "plain $ {x}");
        assert_eq!(expand("${config_dir}/a", dir).unwrap(), "/etc/app/a");
        assert_eq!(
            expand("${file:pw}${env:A}", dir).unwrap(),
            "${file:/etc/app/pw}${env:A}"
        );
        assert_eq!(expand("$${x}", dir).unwrap(), "$${x}");
        assert_eq!(
            expand_dir("echo ${HOME} ${config_dir}", dir),
            "echo ${HOME} /etc/app"
        );
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert_eq!(parse("${x}"), Err(ReferenceError::Unknown("x".into())));
        assert_eq!(parse("a ${env:A"), Err(ReferenceError::Open));
        assert_eq!(
            parse("${env:}"),
            Err(ReferenceError::BadName(String::new()))
        );
        assert_eq!(parse("${file:}"), Err(ReferenceError::NoFile));
    }
}
