//! `blackhole events`: what happens, as it happens.

use blackhole_bus_schema::bus::{Interest, Link, LinkEvent};
use blackhole_bus_schema::names::Component;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::args;
use crate::client::{self, Overview};
use crate::context::Context;
use crate::error::Error;
use crate::view::event::{self, Told};
use crate::view::names::Filter;
use crate::view::service::{Answers, rows};
use crate::{human, out};

/// Events of all links waiting to be printed. When full the links hold theirs
/// back, drop when they are full too, and say how many.
const QUEUE: usize = 1024;

pub(super) async fn run(context: &Context, args: &args::Events) -> Result<(), Error> {
    let filter = Filter::parse(&args.names)?;
    known(context, &filter).await?;
    let deadline = context.own_timeout().map(|within| Instant::now() + within);
    let (sender, mut events) = mpsc::channel(QUEUE);
    let mut links: Vec<Link> = Vec::new();
    for component in client::components(&context.dirs) {
        let (link, receiver) = client::open(
            &context.dirs,
            component.clone(),
            Interest::none().prefix("evt."),
        )
        .await?;
        tokio::spawn(forward(component, receiver, sender.clone()));
        links.push(link);
    }
    drop(sender);
    // A component's first `Up` is how the stream begins, not an event.
    let mut seen: Vec<Component> = Vec::new();
    let mut printed = 0;
    while args.count.is_none_or(|count| printed < count) {
        let Some(Some((component, happened))) = within(deadline, events.recv()).await else {
            return time_is_over(context, args.count, "see so many events");
        };
        match happened {
            LinkEvent::Up(info) => {
                out::note(format!("listening to the {component}, pid {}", info.pid));
                if seen.contains(&component) {
                    presence(
                        context,
                        &filter,
                        &event::presence(&component, Some(info.pid)),
                    );
                } else {
                    seen.push(component);
                }
            }
            LinkEvent::Down => presence(context, &filter, &event::presence(&component, None)),
            LinkEvent::Lagged { dropped } => {
                out::note(format!(
                    "{} of the {component} lost: this reader is too slow",
                    human::count(dropped as usize, "event")
                ));
            }
            LinkEvent::Snapshot { .. } => {}
            LinkEvent::Event(received) => {
                let told = event::tell(&received);
                if wanted(&told, &filter, args.all) {
                    out::item(context.format, &event::item(&received), || {
                        event::line(context.style, received.envelope.at, &told)
                    })?;
                    printed += 1;
                }
            }
        }
    }
    Ok(())
}

/// Whether anybody is there to listen to, and knows the names.
async fn known(context: &Context, filter: &Filter) -> Result<(), Error> {
    let overview = Overview::open(&context.dirs, client::WAIT).await?;
    let (answers, found) = if filter.is_all() {
        (Answers::default(), overview.who().await)
    } else {
        overview.ask().await
    };
    if found.iter().all(|found| found.info().is_none()) {
        return Err(super::status::nobody(context, "listen to events").await);
    }
    // Where nobody knows the instances, any of them may still come.
    if answers.status.is_some() || answers.processes.is_some() {
        let rows = rows(human::now_ns(), &answers);
        filter.select(rows.iter().map(|row| &row.instance))?;
    }
    Ok(())
}

/// What comes before the deadline; `None` when it passes. Without one it waits.
pub(super) async fn within<T>(
    deadline: Option<Instant>,
    next: impl Future<Output = T>,
) -> Option<T> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, next).await.ok(),
        None => Some(next.await),
    }
}

/// The end of a stream by `--timeout`: as it should be, unless so many were wanted.
pub(super) fn time_is_over(
    context: &Context,
    count: Option<u64>,
    operation: &str,
) -> Result<(), Error> {
    match (count, context.own_timeout()) {
        (Some(_), Some(after)) => Err(Error::TimedOut {
            operation: operation.to_owned(),
            after,
        }),
        _ => Ok(()),
    }
}

fn wanted(told: &Told, filter: &Filter, all: bool) -> bool {
    if told.noise && !all {
        return false;
    }
    match &told.instance {
        Some(instance) => filter.covers(instance),
        None => filter.is_all(),
    }
}

/// Presence as a link sees it is no event of the bus: it goes to standard error.
fn presence(context: &Context, filter: &Filter, told: &Told) {
    if filter.is_all() {
        out::note(event::line(context.style_err, human::now_ns(), told));
    }
}

async fn forward(
    component: Component,
    mut from: mpsc::Receiver<LinkEvent>,
    to: mpsc::Sender<(Component, LinkEvent)>,
) {
    while let Some(event) = from.recv().await {
        if to.send((component.clone(), event)).await.is_err() {
            return;
        }
    }
}
