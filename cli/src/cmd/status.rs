//! `blackhole status`: what runs, what does not, and why.

use std::time::Duration;

use blackhole_bus_schema::dirs::Lock;
use blackhole_bus_schema::managers;
use blackhole_bus_schema::names::ServiceName;

use crate::args::{self, Format};
use crate::client::{self, Overview};
use crate::context::Context;
use crate::error::Error;
use crate::out::Tone;
use crate::view::component::{Found, Presence};
use crate::view::names::Filter;
use crate::view::problem::{self, Problem};
use crate::view::service::{Answers, ServiceRow};
use crate::view::status::StatusView;
use crate::{edited, host, human, keeper_file, offline, out};

/// Longest time for the lists themselves, once a daemon has answered at all.
pub(super) const LISTS: Duration = Duration::from_secs(5);

pub(super) async fn run(context: &Context, args: &args::Status) -> Result<(), Error> {
    let view = picture(context, &args.names).await?;
    out::document(context.format, &view, || view.table(context.style))
}

/// Asks everybody and brings the answers together.
///
/// # Errors
/// When nobody answers at all, or a name means nothing.
pub(super) async fn picture(context: &Context, names: &[String]) -> Result<StatusView, Error> {
    let filter = Filter::parse(names)?;
    let (mut answers, found) = if context.offline {
        let processes = offline::records(&context.dirs).await?;
        (
            Answers {
                processes: Some(processes),
                ..Answers::default()
            },
            offline_found(context),
        )
    } else {
        let overview = Overview::open(&context.dirs, context.timeout(LISTS)).await?;
        let (answers, found) = overview.ask().await;
        if found.iter().all(|found| found.info().is_none()) {
            return Err(nobody(context, "show the status").await);
        }
        (answers, found)
    };
    if answers.status.is_none() {
        answers.owners = managers::owned(&context.dirs).into_iter().collect();
    }
    let now = human::now_ns();
    let view = StatusView::new(now, &answers, found).kept_by(keeper_file::find(&context.dirs));
    let edited = edited::find(&context.dirs, view.found(), &view.services);
    let mut view = select(view.edited(edited), &filter)?;
    if context.format != Format::Table {
        for row in &mut view.services {
            row.standby = row.pid.and_then(host::successor_waits);
        }
    }
    let hints = hints(context, &view.services);
    Ok(view.with_hints(hints))
}

/// What can be seen from here of the troubles of the services.
fn hints(context: &Context, rows: &[ServiceRow]) -> Vec<Problem> {
    let mut hints: Vec<Problem> = rows
        .iter()
        .filter_map(|row| problem::of_process(row, host::process_state(row.pid?)?))
        .collect();
    let failing = |service: &ServiceName| {
        rows.iter().any(|row| {
            row.service == service.as_str() && row.pid.is_none() && row.last_exit.is_some()
        })
    };
    if rows.iter().any(|row| row.last_exit.is_some())
        && let Ok((path, config)) = context.config()
    {
        let misplaced = Context::misplaced(&path, &config);
        hints.extend(
            misplaced
                .iter()
                .filter(|one| failing(&one.service))
                .map(|one| Problem {
                    tone: Tone::Warn,
                    text: one.text(),
                }),
        );
    }
    hints
}

/// Whose locks are held: without the bus that is all that can be told.
fn offline_found(context: &Context) -> Vec<Found> {
    client::components(&context.dirs)
        .into_iter()
        .map(|component| {
            let lock = context.dirs.lock(&component.to_string());
            let presence = match client::is_locked(&lock) {
                true => Presence::NotAsked {
                    pid: Lock::holder(&lock),
                },
                false => Presence::Missing { lock_held: false },
            };
            Found {
                component,
                presence,
            }
        })
        .collect()
}

/// Leaves only the instances that are meant.
pub(super) fn select(mut view: StatusView, filter: &Filter) -> Result<StatusView, Error> {
    let meant = filter.select(view.services.iter().map(|row| &row.instance))?;
    view.services.retain(|row| meant.contains(&row.instance));
    Ok(view)
}

/// No daemon answers; tells about services that run all the same.
pub(super) async fn nobody(context: &Context, operation: &str) -> Error {
    let live = offline::live(&context.dirs).await.len();
    Error::Nobody {
        operation: operation.to_owned(),
        run: context.dirs.run.clone(),
        live,
    }
}
