//! `blackhole reload`: services read their own configuration again.

use std::time::Duration;

use blackhole_bus_schema::reply::{Code, Status};
use blackhole_bus_schema::supervision::{ReloadServices, Reloaded, Target};
use serde::Serialize;

use crate::args::Reload;
use crate::client;
use crate::context::Context;
use crate::error::{Error, exit_of};
use crate::view::names;
use crate::{human, out};

use super::services::supervisor;

/// Time for all of them when the operator does not say: each may take as long as
/// its `reload.timeout` allows, and they go one after the other.
const BUDGET: Duration = Duration::from_secs(120);

#[derive(Serialize)]
struct Document {
    reloaded: Vec<String>,
    failed: Vec<Failed>,
}

#[derive(Serialize)]
struct Failed {
    instance: String,
    code: Code,
    message: String,
}

pub(super) async fn run(context: &Context, args: &Reload) -> Result<(), Error> {
    let (target, operation) = match args.all {
        true => (Target::All, "reload all services".to_owned()),
        false => (
            Target::Services(names::services(&args.services)?),
            format!("reload {}", human::list(&args.services, 6)),
        ),
    };
    let Some((link, _events)) = supervisor(context).await? else {
        return Err(Error::Unreachable {
            operation,
            component: "the supervisor".to_owned(),
        });
    };
    let command = ReloadServices { target };
    let budget = context.timeout(BUDGET);
    let asked = link.request(&command, budget).await;
    let outcome = asked.map_err(|error| client::request_error(&operation, error, budget))?;
    let (done, failed): (Vec<Reloaded>, Vec<Reloaded>) =
        outcome.into_iter().partition(|one| one.code == Code::Ok);
    let document = Document {
        reloaded: done.iter().map(|one| one.instance.to_string()).collect(),
        failed: failed
            .iter()
            .map(|one| Failed {
                instance: one.instance.to_string(),
                code: one.code,
                message: one.message.clone(),
            })
            .collect(),
    };
    out::document(context.format, &document, || {
        let lines = document.reloaded.iter();
        lines.map(|name| format!("{name}: reloaded\n")).collect()
    })?;
    let mut errors = failed.into_iter().map(|one| Error::Refused {
        operation: format!("reload {}", one.instance),
        status: Status::new(one.code, one.message),
    });
    // All are told; the first one is also the exit code.
    let Some(first) = errors.next() else {
        return Ok(());
    };
    let code = match &first {
        Error::Refused { status, .. } => exit_of(status.code),
        other => other.exit(),
    };
    out::note(first.report());
    for error in errors {
        out::note(error.report());
    }
    Err(Error::Shown(code))
}
