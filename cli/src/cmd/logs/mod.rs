//! `blackhole logs`: what services wrote, merged by time; with `-f` what they
//! write from now on.
//!
//! | file | what it holds |
//! |---|---|
//! | `select` | which lines are meant |
//! | `source` | the lines of one instance, a page at a time, from a manager or the files |
//! | `merge` | the lines of several, by time |
//! | `print` | in which form |
//! | `gaps` | what is said of lines that were rotated away |
//! | `follow` | what is written from now on |
//! | this | who is asked |
//!
//! Memory is bounded however much was written: one page (at most 256 KiB) of
//! each log is held, or the last lines that were asked for.

mod follow;
mod gaps;
mod merge;
mod print;
mod select;
mod source;

use blackhole_bus_schema::names::InstanceName;
use tokio::time::Instant;

use super::events;
use crate::args;
use crate::context::Context;
use crate::error::{Error, Exit};
use crate::human;
use crate::offline_logs;
use crate::out;
use crate::view::names::Filter;
use follow::Follower;

use super::homes::{Homes, configured, unreached};

pub(crate) use merge::print_merged;
pub(crate) use print::Printer;
pub(crate) use select::Selection;
pub(crate) use source::{Mark, Origin, Source};

pub(super) async fn run(context: &Context, args: &args::Logs) -> Result<(), Error> {
    let filter = Filter::parse(&args.names)?;
    let selection = Selection::new(args);
    if context.offline {
        return offline_logs::run(context, &filter, &selection, args.follow, args.raw).await;
    }
    let homes = Homes::ask(context, "read logs").await?;
    let known = homes.known();
    let (all, left) = match homes.select(&filter) {
        Err(Error::NotFound { .. }) => homes.select_with(&filter, &configured(context).await?)?,
        found => found?,
    };
    let (meant, never): (Vec<_>, Vec<_>) = all.into_iter().partition(|one| known.contains_key(one));
    let left = unreached(&left, "read the log of", "logs");
    if let (Some(_), true) = (&left, args.follow && meant.is_empty() && never.is_empty()) {
        return left.map_or(Ok(()), Err);
    }
    not_yet(&never, args.follow);
    let mut sources = Vec::with_capacity(meant.len());
    for instance in &meant {
        let Some((link, record)) = known.get(instance) else {
            continue;
        };
        let origin = Origin::Manager((*link).clone());
        let own = selection.of(Some(record));
        sources.push(Source::open(origin, instance.clone(), own, meant.len()).await?);
    }
    let mut printer = Printer::new(context, args.raw, meant.iter().chain(&never));
    print_merged(&mut sources, &mut printer).await?;
    if !args.follow {
        let found = of_a_run_before(&selection, &sources);
        return left.map_or(found, Err);
    }
    if let Some(error) = left {
        out::note(error.report());
    }
    let marks = meant
        .into_iter()
        .zip(sources.iter().map(|source| source.mark))
        .collect();
    // Those that are away too: their lines follow when they are back.
    let there = homes.there.iter().map(|(link, _)| link.component().clone());
    let managers = there.chain(homes.away.iter().cloned()).collect();
    let deadline = context.own_timeout().map(|within| Instant::now() + within);
    let follower = Follower::new(selection, marks, printer);
    let followed = events::within(deadline, follower.run(context, filter, managers));
    // The time that it was to be followed for is over.
    followed.await.unwrap_or(Ok(()))
}

/// Says which instances have written nothing because they were never started.
pub(crate) fn not_yet(never: &[InstanceName], follow: bool) {
    if never.is_empty() {
        return;
    }
    let names: Vec<String> = never.iter().map(ToString::to_string).collect();
    let (verb, follows) = match (never.len(), follow) {
        (1, true) => ("has", "; what it writes follows when it is"),
        (1, false) => ("has", ""),
        (_, true) => ("have", "; what they write follows when they are"),
        (_, false) => ("have", ""),
    };
    let names = human::list(&names, 6);
    out::note(format!("{names} {verb} not been started yet{follows}"));
}

/// Of whom there was nothing where only runs before were asked for is said: an empty
/// answer could as well be that of a service that wrote nothing.
///
/// # Errors
/// When there was nothing at all.
pub(crate) fn of_a_run_before(selection: &Selection, sources: &[Source]) -> Result<(), Error> {
    if !selection.previous {
        return Ok(());
    }
    let mut nothing = sources.iter().filter(|source| source.taken == 0).peekable();
    let all = sources.iter().all(|source| source.taken == 0);
    if nothing.peek().is_none() && !sources.is_empty() {
        return Ok(());
    }
    for source in nothing {
        out::note(format!(
            "{}: nothing of a run before the latest start is in its log{}",
            source.instance,
            match selection.is_plain() {
                true => "",
                false => " that is meant",
            }
        ));
    }
    match all {
        true => Err(Error::Shown(Exit::Failed)),
        false => Ok(()),
    }
}
