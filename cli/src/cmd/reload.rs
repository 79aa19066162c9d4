//! `blackhole reload`: services read their own configuration again.

use std::time::Duration;

use blackhole_bus_schema::names::Component;
use blackhole_bus_schema::supervision::{ReloadServices, Target};
use serde::Serialize;

use crate::args::Reload;
use crate::client::Peer;
use crate::context::Context;
use crate::error::Error;
use crate::view::names;
use crate::{human, out};

/// Time for all of them when the operator does not say: each may take as long as
/// its `reload.timeout` allows, and they go one after the other.
const BUDGET: Duration = Duration::from_secs(120);

#[derive(Serialize)]
struct Document {
    reloaded: Vec<String>,
}

pub(super) async fn run(context: &Context, args: &Reload) -> Result<(), Error> {
    let (target, operation) = match args.all {
        true => (Target::All, "reload all services".to_owned()),
        false => (
            Target::Services(names::services(&args.services)?),
            format!("reload {}", human::list(&args.services, 6)),
        ),
    };
    let supervisor = Peer::open(&context.dirs, Component::Supervisor).await?;
    let command = ReloadServices { target };
    let budget = context.timeout(BUDGET);
    let outcome = supervisor.request(&operation, &command, budget).await?;
    let document = Document {
        reloaded: outcome
            .iter()
            .map(|status| status.instance.to_string())
            .collect(),
    };
    out::document(context.format, &document, || {
        let lines = document.reloaded.iter();
        lines.map(|name| format!("{name}: reloaded\n")).collect()
    })
}
