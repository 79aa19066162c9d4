//! `blackhole down`: ends the keeper, or does its work where there is none.

use blackhole_bus_schema::dirs::Lock;
use rustix::process::Signal;
use tokio::time::{Instant, sleep_until};

use crate::context::Context;
use crate::error::Error;
use crate::keeper_file::LOCK;
use crate::out::{self, Tone};
use crate::watch::Watch;
use crate::{client, offline};

use super::keeper::{Keeper, Takeover, holder_of};
use super::process::Process;
use super::report::Report;
use super::signals::Signals;
use super::{another, leftover, stray, teardown};

/// Ends everything. Nothing running is no error.
///
/// # Errors
/// When something is left, or it takes longer than allowed.
pub async fn down(context: &Context) -> Result<(), Error> {
    let dirs = &context.dirs;
    let mut report = Report::new(context.style_err, Instant::now());
    let keeper = match holder_of(dirs, LOCK) {
        // Its lock may have been removed under it, together with the whole directory.
        None => stray::keeper(dirs).await,
        found => found,
    };
    if let Some(keeper) = &keeper {
        by_keeper(context, &mut report, keeper).await?;
    }
    // Without a keeper, or when it was killed half-way, the rest is done here.
    if anything(context).await {
        by_hand(context, report).await?;
    } else if keeper.is_none() {
        stray::check(dirs).await?;
        teardown::shut_down_fork_server(dirs).await;
        // What was killed to the last process could not clear away after itself.
        leftover::clean(dirs).await;
        out::note(format!("nothing is running in {}", dirs.state.display()));
        return Ok(());
    }
    stray::check(dirs).await?;
    out::note(context.style_err.paint(Tone::Good, "everything has ended"));
    Ok(())
}

async fn anything(context: &Context) -> bool {
    let dirs = &context.dirs;
    let daemons = client::components(dirs)
        .iter()
        .any(|one| client::is_locked(&dirs.lock(&one.to_string())));
    daemons || !offline::live(dirs).await.is_empty()
}

/// Asks the keeper to end everything, and shows how it does.
async fn by_keeper(context: &Context, report: &mut Report, keeper: &Process) -> Result<(), Error> {
    let mut watch = Watch::open(&context.dirs).await?;
    report.say(
        "down",
        Tone::Warn,
        &format!("asking the keeper, pid {}, to end everything", keeper.pid()),
    );
    keeper.signal(Signal::TERM);
    let deadline = context
        .own_timeout()
        .map(|allowed| (allowed, Instant::now() + allowed));
    loop {
        let late = async {
            match deadline {
                Some((_, at)) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Cancel safe, all.
            change = watch.changed() => report.change(&watch.model, &change),
            _ = keeper.ended() => return Ok(()),
            () = late => {
                let after = deadline.map(|(allowed, _)| allowed).unwrap_or_default();
                return Err(Error::TimedOut { operation: "end everything".to_owned(), after });
            }
        }
    }
}

/// Does the keeper's work: for daemons that were started alone, or whose keeper was killed.
async fn by_hand(context: &Context, report: Report) -> Result<(), Error> {
    let dirs = &context.dirs;
    dirs.create()?;
    let Some(_lock) = Lock::try_take(&dirs.lock(LOCK))? else {
        return Err(another(dirs));
    };
    let mut signals = Signals::new()?;
    let mut keeper = Keeper::new(dirs, None, Takeover::Bury, report).await?;
    let work = teardown::run(&mut keeper, dirs, &mut signals);
    match context.own_timeout() {
        None => work.await,
        Some(after) => tokio::time::timeout(after, work).await.unwrap_or_else(|_| {
            Err(Error::TimedOut {
                operation: "end everything".to_owned(),
                after,
            })
        }),
    }
}
