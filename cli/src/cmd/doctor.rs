//! `blackhole doctor`: checks this host and says what to do about what is wrong.

mod daemons;
mod files;
mod limits;
mod places;
mod ports;
mod services;
mod subject;
mod user;

use std::path::{Path, PathBuf};

use blackhole_bus_schema::config::Document as ConfigDocument;
use serde::Serialize;

use crate::client::{self, Overview};
use crate::context::Context;
use crate::error::{Error, Exit};
use crate::out::{self, Tone};
use crate::table::{Table, plain, toned};
use crate::view::service;
use crate::{access, host, human, keeper_file, offline};

use daemons::{daemons, edited, keeper, orphaned, stale, unseen};
use limits::{cgroups, open_files, rights};
use places::{directory, room, socket_length};
use services::{isolation, notes};
use subject::{At, Subject};

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
enum Grade {
    Ok,
    Warn,
    Fail,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    grade: Grade,
    what: String,
    found: String,
    /// What to do about it.
    advice: Option<String>,
    /// Where in the configuration it stands.
    at: Option<At>,
}

impl Check {
    /// The same, about this place in the configuration.
    fn at(self, at: At) -> Self {
        Self {
            at: Some(at),
            ..self
        }
    }
}

#[derive(Serialize)]
struct Document {
    checks: Vec<Check>,
}

fn ok(what: &str, found: impl Into<String>) -> Check {
    Check {
        grade: Grade::Ok,
        what: what.to_owned(),
        found: found.into(),
        advice: None,
        at: None,
    }
}

fn warn(what: &str, found: impl Into<String>, advice: impl Into<String>) -> Check {
    Check {
        grade: Grade::Warn,
        what: what.to_owned(),
        found: found.into(),
        advice: Some(advice.into()),
        at: None,
    }
}

fn fail(what: &str, found: impl Into<String>, advice: impl Into<String>) -> Check {
    Check {
        grade: Grade::Fail,
        ..warn(what, found, advice)
    }
}

pub(super) async fn run(context: &Context) -> Result<(), Error> {
    let dirs = &context.dirs;
    let root = rustix::process::geteuid().is_root();
    let (config, config_check) = config(context);
    let mut checks = vec![
        config_check,
        directory("run directory", &dirs.run),
        socket_length(dirs),
    ];
    checks.push(directory("state directory", &dirs.state));
    checks.push(room(&dirs.state));
    let hierarchies = host::own_hierarchies();
    checks.extend(cgroups(&hierarchies, root));
    if let Some((_, document)) = &config {
        let count = host::io_weights_count(Path::new("/sys/block"), &hierarchies);
        checks.extend(limits::weights(&document.config, count));
        checks.extend(limits::refused(&document.config, &checks));
    }
    checks.push(rights(root));
    checks.push(open_files(
        config.as_ref().map(|(_, document)| &document.config),
    ));
    let overview = Overview::open(dirs, context.timeout(client::WAIT)).await?;
    let (answers, found) = overview.ask().await;
    if let Some((path, document)) = &config {
        let subject = Subject::new(path, document, &found);
        let (unknown, runners) = user::users(&subject);
        checks.extend(unknown);
        checks.push(isolation(&runners));
        checks.extend(files::directories(&subject, &runners));
        let (environments, paths) = files::environments(&subject);
        checks.extend(environments);
        checks.extend(files::programs(&subject, &runners, &paths));
        checks.extend(ports::ports(dirs, &subject));
        checks.extend(notes(&subject));
    }
    if let Some(foreign) = access::foreign(dirs) {
        checks.push(unseen(&foreign));
    } else {
        checks.extend(daemons(&found, offline::live(dirs).await.len()));
        let kept = keeper_file::find(dirs);
        checks.extend(keeper(kept, &found));
        let rows = service::rows(human::now_ns(), &answers);
        checks.extend(edited(dirs, &found, &rows, kept));
        checks.push(stale(dirs));
        checks.extend(orphaned(dirs));
    }
    let document = Document { checks };
    out::document(context.format, &document, || {
        table(context, &document.checks)
    })?;
    let worst = document
        .checks
        .iter()
        .map(|check| check.grade)
        .max()
        .unwrap_or(Grade::Ok);
    if worst == Grade::Fail {
        Err(Error::Shown(Exit::Failed))
    } else {
        Ok(())
    }
}

fn table(context: &Context, checks: &[Check]) -> String {
    let mut table = Table::new(context.style, &["", "CHECK", "FOUND", "TO DO"], &[]);
    for check in checks {
        let (word, tone) = match check.grade {
            Grade::Ok => ("OK", Tone::Good),
            Grade::Warn => ("WARN", Tone::Warn),
            Grade::Fail => ("FAIL", Tone::Bad),
        };
        table.row(vec![
            toned(word, tone),
            plain(&check.what),
            plain(match &check.at {
                Some(at) => format!("{}: {}", at.text(), check.found),
                None => check.found.clone(),
            }),
            plain(check.advice.clone().unwrap_or_default()),
        ]);
    }
    table.render()
}

fn config(context: &Context) -> (Option<(PathBuf, ConfigDocument)>, Check) {
    const WHAT: &str = "configuration";
    match context.document() {
        Ok((path, document)) => {
            let found = format!(
                "{}, {}",
                path.display(),
                human::count(document.config.services.len(), "service")
            );
            (Some((path, document)), ok(WHAT, found))
        }
        Err(error @ Error::NoConfig { .. }) => (
            None,
            warn(
                WHAT,
                error.to_string(),
                "name one with -c FILE, to check what it needs of this host",
            ),
        ),
        Err(error) => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default().to_owned();
            (
                None,
                fail(WHAT, first, "`blackhole config validate` shows where"),
            )
        }
    }
}
