//! `blackhole monitor`: status and usage, live.

use std::io::IsTerminal;
use std::time::Duration;

use blackhole_bus_schema::names::Component;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::args::{self, Format};
use crate::context::Context;
use crate::error::Error;
use crate::out::{self, Tone};
use crate::view::names::Filter;
use crate::view::status::StatusView;
use crate::watch::{Change, Watch};
use crate::{client, human, keeper_file};

use super::{events, status};

/// Shortest time between two pictures, however much happens.
const CALM: Duration = Duration::from_millis(100);

pub(super) async fn run(context: &Context, args: &args::Monitor) -> Result<(), Error> {
    if args.once {
        let view = status::picture(context, &args.names).await?;
        return show(context, &view, false);
    }
    let filter = Filter::parse(&args.names)?;
    let mut watch = Watch::open(&context.dirs).await?;
    first_answers(context, &mut watch).await?;
    let live = std::io::stdout().is_terminal() && context.format == Format::Table;
    let deadline = context.own_timeout().map(|within| Instant::now() + within);
    let pictures = pictures(context, args, &filter, &mut watch, live);
    // The time that it was to be watched for is over.
    events::within(deadline, pictures).await.unwrap_or(Ok(()))
}

/// Shows one picture after the other, until it is dropped.
async fn pictures(
    context: &Context,
    args: &args::Monitor,
    filter: &Filter,
    watch: &mut Watch,
    live: bool,
) -> Result<(), Error> {
    loop {
        let view = StatusView::new(human::now_ns(), &watch.model.answers(), watch.found());
        // A name may come and go while it is watched.
        let view = view
            .only(|row| filter.covers(&row.instance))
            .kept_by(keeper_file::find(&context.dirs));
        show(context, &view, live)?;
        let begin = Instant::now();
        let calm = begin + CALM.min(args.interval);
        let end = begin + args.interval;
        // A change shows at once, but not more often than the eye can follow.
        while let Ok(change) = timeout_at(end, watch.changed()).await {
            if !matches!(change, Change::Usage) {
                while timeout_at(calm, watch.changed()).await.is_ok() {}
                break;
            }
        }
        if !live {
            sleep_until(end).await;
        }
    }
}

/// Waits until the daemons that can answer have, each with its link up and its list, so
/// that none is called missing that was not heard of yet. One that does not in time is missed.
async fn first_answers(context: &Context, watch: &mut Watch) -> Result<(), Error> {
    let end = Instant::now() + context.timeout(client::WAIT);
    let expected: Vec<Component> = watch
        .components()
        .filter(|component| client::lives(&context.dirs, component))
        .cloned()
        .collect();
    if expected.is_empty() {
        return Err(status::nobody(context, "watch").await);
    }
    while !expected.iter().all(|one| watch.model.has_told(one))
        && timeout_at(end, watch.changed()).await.is_ok()
    {}
    if watch.found().iter().all(|found| found.info().is_none()) {
        return Err(status::nobody(context, "watch").await);
    }
    Ok(())
}

fn show(context: &Context, view: &StatusView, live: bool) -> Result<(), Error> {
    if context.format != Format::Table {
        return out::item(context.format, view, String::new);
    }
    let now = human::clock(human::now_ns());
    let (mut cpu, mut memory, mut running) = (0.0, 0, 0);
    for row in &view.services {
        cpu += row.cpu_percent.unwrap_or(0.0);
        memory += row.memory_bytes.unwrap_or(0);
        running += usize::from(row.pid.is_some());
    }
    let head = format!(
        "{}   {running} of {} running   cpu {}   memory {}",
        now.get(..8).unwrap_or(&now),
        human::count(view.services.len(), "instance"),
        human::percent(cpu),
        human::bytes(memory),
    );
    let body = view.table(context.style);
    let head = context.style.paint(Tone::Strong, &head);
    if live {
        // No line folded; home, each line cleared to its end, then the rest of the
        // screen: no flicker.
        let lines = fitting(&format!("{head}\n\n{body}"));
        out::print(format!(
            "\x1b[?7l\x1b[H{}\x1b[J\x1b[?7h",
            lines.replace('\n', "\x1b[K\r\n")
        ))
    } else {
        out::print(format!("{head}\n\n{body}\n"))
    }
}

/// As many lines as the terminal has.
fn fitting(text: &str) -> String {
    let rows = rustix::termios::tcgetwinsize(std::io::stdout())
        .map_or(50, |size| usize::from(size.ws_row));
    let rows = if rows == 0 { 50 } else { rows };
    let total = text.lines().count();
    if total < rows {
        return text.to_owned();
    }
    let mut cut: Vec<&str> = text.lines().take(rows.saturating_sub(2)).collect();
    let more = format!("… {} more lines: `blackhole status`", total - cut.len());
    cut.push(&more);
    cut.join("\n")
}
