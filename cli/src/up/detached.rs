//! `up -d`: leaves a keeper behind and watches it until all is ready.

use std::ffi::OsStr;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::context::Context;
use crate::error::Error;
use crate::keeper_file::LOCK;
use crate::out;
use crate::watch::{Change, Watch};

use super::process::Process;
use super::report::Report;
use super::settle::Settle;
use super::{Plan, Reminder, daemon_log, summary, verdict};

/// Time to be ready when the operator does not say: enough for the usual
/// restart policy to come to its end.
const READY: Duration = Duration::from_secs(120);
/// Lines of the keeper's log that are shown when it fails.
const QUOTED: usize = 12;

pub(super) async fn run(context: &Context, plan: &Plan) -> Result<(), Error> {
    let dirs = &context.dirs;
    let path = dirs.daemon_log(LOCK);
    let log = daemon_log::open(&path)?;
    let mark = daemon_log::length(&path);
    let own = std::env::current_exe()
        .map_err(|source| Error::io("find", "the running program", source))?;
    let arguments: [&OsStr; 8] = [
        "up".as_ref(),
        "--keeper".as_ref(),
        "-c".as_ref(),
        plan.launch.config.as_os_str(),
        "--run-dir".as_ref(),
        dirs.run.as_os_str(),
        "--state-dir".as_ref(),
        dirs.state.as_os_str(),
    ];
    let mut report = Report::new(context.style_err, Instant::now());
    let mut watch = Watch::of(dirs, &plan.launch.managers).await?;
    let keeper = Process::spawn(&own, &arguments, &log)?;
    let allowed = context.timeout(READY);
    let deadline = Instant::now() + allowed;
    let mut settle = Settle::default();
    let mut remind = Reminder::new();
    loop {
        tokio::select! {
            // Cancel safe, all.
            () = settle.due() => {}
            () = remind.due() => out::note(report.short(&plan.missing(&watch))),
            change = watch.changed() => {
                told(&mut report, &watch, &change);
            }
            how = keeper.ended() => {
                let lines = daemon_log::last_lines(&path, mark, QUOTED);
                report.quote("up", &lines);
                return Err(Error::Failed {
                    message: format!("the keeper has ended: {}", how.unwrap_or_else(|| "unknown".to_owned())),
                    hint: format!("its log is {}", path.display()),
                });
            }
            () = sleep_until(deadline) => {
                out::note(report.short(&plan.missing(&watch)));
                return Err(Error::TimedOut { operation: "get all services ready".to_owned(), after: allowed });
            }
        }
        let assessment = if watch.all_there() {
            plan.assess(&watch.model)
        } else {
            None
        };
        if settle.look(Instant::now(), assessment.as_ref())
            && let Some(assessment) = assessment
        {
            summary(context, &report, &settle, &assessment, false).await?;
            out::note(format!(
                "the keeper stays (pid {}), its log is {}; `blackhole down` ends everything",
                keeper.pid(),
                path.display()
            ));
            return verdict(&assessment);
        }
    }
}

fn told(report: &mut Report, watch: &Watch, change: &Change) {
    match change {
        Change::Presence {
            component,
            info: Some(info),
        } => {
            report.say(
                &component.to_string(),
                out::Tone::Good,
                &format!("answers: pid {}", info.pid),
            );
        }
        Change::Presence {
            component,
            info: None,
        } => {
            report.say(
                &component.to_string(),
                out::Tone::Bad,
                "does not answer any more",
            );
        }
        other => report.change(&watch.model, other),
    }
}
