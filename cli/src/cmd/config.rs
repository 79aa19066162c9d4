//! `blackhole config`: check and show.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::args::Format;
use crate::context::Context;
use crate::error::Error;
use crate::view::config;
use crate::{human, out};

#[derive(Serialize)]
struct Verdict {
    valid: bool,
    config: PathBuf,
    services: usize,
    instances: usize,
}

pub(super) fn validate(context: &Context) -> Result<(), Error> {
    let (path, config) = context.config()?;
    let verdict = Verdict {
        valid: true,
        services: config.services.len(),
        instances: config.instances().count(),
        config: path,
    };
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
pub(super) fn init(file: Option<&Path>) -> Result<(), Error> {
    let path = file.unwrap_or(Path::new("blackhole.yaml"));
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
