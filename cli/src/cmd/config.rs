//! `blackhole config`: check and show.

use std::path::PathBuf;

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
    let (_, config) = context.config()?;
    let shown = config::show(&config);
    match context.format {
        Format::Json => out::println(out::json(&shown)?),
        Format::Table | Format::Yaml => out::print(out::yaml(&shown)?),
    }
}
