//! `blackhole config`: check and show.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::args::Format;
use crate::context::Context;
use crate::error::Error;
use crate::view::config;
use crate::{human, notes, out};

#[derive(Serialize)]
struct Verdict {
    valid: bool,
    config: PathBuf,
    services: usize,
    instances: usize,
    /// What is right and probably not meant, in the order of the file.
    notes: Vec<String>,
}

/// A configuration that is wrong.
#[derive(Serialize)]
struct Refusal<'a> {
    valid: bool,
    config: PathBuf,
    mistakes: Vec<Mistake<'a>>,
}

/// One mistake. The field names are part of the interface.
#[derive(Serialize)]
struct Mistake<'a> {
    /// Line, from 1; `null` where it is in no place of the file.
    line: Option<u64>,
    /// Column in characters, from 1.
    column: Option<u64>,
    /// The environment variable that holds it, where it is not in the file.
    variable: Option<&'a str>,
    /// Keys that lead to it, joined with dots.
    path: &'a str,
    /// What was found and what is expected.
    message: &'a str,
    /// What to do about it.
    hint: Option<&'a str>,
}

/// What is wrong as a document for programs; people read it on standard error.
fn refused(context: &Context, error: &Error) -> Result<(), Error> {
    let all = match error {
        Error::Config(one) => std::slice::from_ref(one),
        Error::Mistakes(all) => all.as_slice(),
        _ => return Ok(()),
    };
    if context.format == Format::Table {
        return Ok(());
    }
    let refusal = Refusal {
        valid: false,
        config: context.config_path()?,
        mistakes: all
            .iter()
            .filter_map(|one| one.invalid())
            .map(|one| Mistake {
                line: one.line,
                column: one.column,
                variable: one.variable.as_deref(),
                path: &one.path,
                message: &one.message,
                hint: one.hint.as_deref(),
            })
            .collect(),
    };
    out::document(context.format, &refusal, String::new)
}

pub(super) fn validate(context: &Context) -> Result<(), Error> {
    let (path, document) = match context.document() {
        Ok(read) => read,
        Err(error) => {
            refused(context, &error)?;
            return Err(error);
        }
    };
    let verdict = Verdict {
        valid: true,
        services: document.config.services.len(),
        instances: document.config.instances().count(),
        notes: notes::of(&path, &document)
            .iter()
            .map(ToString::to_string)
            .collect(),
        config: path,
    };
    if context.format == Format::Table {
        for text in &verdict.notes {
            out::note(format!("note: {text}"));
        }
    }
    out::document(context.format, &verdict, || {
        format!(
            "{}: valid, {}, {}\n",
            verdict.config.display(),
            human::count(verdict.services, "service"),
            human::count(verdict.instances, "instance"),
        )
    })
}

pub(super) fn show(context: &Context) -> Result<(), Error> {
    let (_, document) = context.document()?;
    let shown = config::show(&document);
    match context.format {
        Format::Json => out::println(out::json(&shown)?),
        Format::Table | Format::Yaml => out::print(out::yaml(&shown)?),
    }
}

/// A configuration to begin with.
const STARTER: &str = include_str!("starter.yaml");

/// Writes [`STARTER`] to a file that is not there yet, or to standard output.
pub(super) fn init(context: &Context, file: Option<&Path>) -> Result<(), Error> {
    let path = file
        .or(context.named_config())
        .unwrap_or(Path::new("blackhole.yaml"));
    if path == Path::new("-") {
        return out::print(STARTER);
    }
    let made = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path);
    match made {
        Ok(mut file) => file
            .write_all(STARTER.as_bytes())
            .map_err(|source| Error::io("write", path, source))?,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Error::Forbidden {
                message: format!("{} is there already", path.display()),
                hint: "name another FILE, or - for standard output".to_owned(),
            });
        }
        Err(source) => return Err(Error::io("create", path, source)),
    }
    out::note(format!(
        "{} is written: `blackhole config validate -c {0}` checks it, `blackhole up -c {0}` starts it",
        path.display()
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use blackhole_bus_schema::config::Config;

    use super::*;

    /// As it is, and with every comment that holds a setting taken off.
    #[test]
    fn the_starter_is_valid_with_and_without_its_comments() {
        let config = Config::parse(STARTER, "starter").unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(config.services.len(), 1);
        let whole: String = STARTER
            .lines()
            .map(|line| match line.split_once("#: ") {
                Some((indent, setting)) => format!("{indent}{setting}\n"),
                None => format!("{line}\n"),
            })
            .collect();
        let config = Config::parse(&whole, "starter").unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(config.services.len(), 2);
    }
}
