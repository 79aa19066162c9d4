//! `blackhole component`: the daemons.

use std::collections::BTreeMap;
use std::time::Duration;

use blackhole_bus_schema::bus::{Interest, LinkEvent};
use blackhole_bus_schema::config::{Document as Configuration, Kept};
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::names::{Component, NameError};
use rustix::process::Signal;
use serde::Serialize;
use tokio::time::Instant;

use crate::client::{self, Overview};
use crate::context::Context;
use crate::error::Error;
use crate::keeper_file::{KeeperFile, LOCK};
use crate::out::Tone;
use crate::up::holder_of;
use crate::view::component::{self, ComponentRow, Found};
use crate::view::keeper::Keeper;
use crate::view::{keeper, problem};
use crate::{human, keeper_file, out};

/// Time for a daemon's end and its next start when the operator does not say:
/// more than the keeper waits between two starts.
const RESTART: Duration = Duration::from_secs(30);

#[derive(Serialize)]
struct Document {
    components: Vec<Row>,
    /// Who restarts them; `null` where no `up` did that.
    keeper: Option<Keeper>,
}

/// One daemon. The field names are part of the interface.
#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    row: ComponentRow,
    /// Age of its process, in milliseconds.
    uptime_ms: Option<u64>,
    /// What it misses or what limits it.
    notes: Vec<String>,
    /// What it has counted since its start; empty when it does not answer.
    counters: BTreeMap<String, u64>,
}

impl Row {
    fn new(now: u64, found: &Found) -> Self {
        let info = found.info();
        Self {
            row: ComponentRow::from(found),
            uptime_ms: info.map(|info| now.saturating_sub(info.started_at) / 1_000_000),
            notes: info.map(|info| info.notes.clone()).unwrap_or_default(),
            counters: info.map(|info| info.counters.clone()).unwrap_or_default(),
        }
    }
}

pub(super) async fn list(context: &Context) -> Result<(), Error> {
    let overview = Overview::open(&context.dirs, context.timeout(client::WAIT)).await?;
    let found = overview.who().await;
    let now = human::now_ns();
    let document = Document {
        components: found.iter().map(|found| Row::new(now, found)).collect(),
        keeper: keeper_file::find(&context.dirs),
    };
    out::document(context.format, &document, || {
        let mut text = component::table(context.style, now, &found);
        let problems = problem::of_components(&found).into_iter();
        for problem in problems.chain(keeper::problem(document.keeper, &found)) {
            text.push_str(&context.style.paint(problem.tone, &problem.text));
            text.push('\n');
        }
        let counted: String = document
            .components
            .iter()
            .map(|row| component::counters(context.style, &row.row.instance, &row.counters))
            .collect();
        if !counted.is_empty() {
            let head = "\nCounted since each one's start:\n";
            text.push_str(&context.style.paint(Tone::Strong, head));
            text.push_str(&counted);
        }
        text
    })
}

/// Whether a daemon's next life could read its configuration: the keeper's file as it
/// is now, with the environment that the living one was started with.
///
/// # Errors
/// When it could not: it would end again and again.
fn check_configuration(dirs: &Dirs, component: &Component) -> Result<(), Error> {
    let given = KeeperFile::read(dirs).map(|kept| kept.config);
    let (path, checked) = match (Kept::read(dirs, component), given) {
        (Some(mut kept), given) => {
            kept.path = given.unwrap_or(kept.path);
            let checked = kept.document();
            (kept.path, checked)
        }
        (None, Some(path)) => {
            let checked = Configuration::load(&path);
            (path, checked)
        }
        (None, None) => return Ok(()),
    };
    let checked = checked.map(|_| ());
    checked.map_err(|first| Error::of_config(&path, first))
}

/// Ends a daemon in order and waits until its next life answers. The keeper
/// starts it; without one nobody would.
pub(super) async fn restart(context: &Context, name: &str) -> Result<(), Error> {
    let component: Component = name
        .parse()
        .map_err(|error: NameError| Error::Usage(error.to_string()))?;
    let budget = context.timeout(RESTART);
    let deadline = Instant::now() + budget;
    let operation = format!("restart the {component}");
    let Some(process) = holder_of(&context.dirs, &component.to_string()) else {
        return Err(Error::Unreachable {
            operation,
            component: format!("the {component}"),
        });
    };
    let (link, mut events) =
        client::open(&context.dirs, component.clone(), Interest::none()).await?;
    // One that hangs has no word on its life; its process counts then.
    let before = link.ready(client::WAIT).await.ok();
    if !client::is_locked(&context.dirs.lock(LOCK)) {
        return Err(Error::Forbidden {
            message: format!(
                "cannot {operation}: no `blackhole up` runs that would start it again"
            ),
            hint: format!(
                "`kill {}` ends it; whatever started it starts it again, or `blackhole up` does",
                process.pid()
            ),
        });
    }
    check_configuration(&context.dirs, &component)?;
    process.signal(Signal::TERM);
    let late = || Error::TimedOut {
        operation: operation.clone(),
        after: budget,
    };
    if tokio::time::timeout_at(deadline, process.ended())
        .await
        .is_err()
    {
        return Err(late());
    }
    let next = loop {
        match tokio::time::timeout_at(deadline, events.recv()).await {
            Ok(Some(LinkEvent::Up(info)))
                if info.pid != process.pid()
                    && before
                        .as_ref()
                        .is_none_or(|before| info.incarnation > before.incarnation) =>
            {
                break info;
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return Err(late()),
        }
    };
    let found = [Found {
        component: component.clone(),
        presence: component::Presence::Running(next.clone()),
    }];
    let now = human::now_ns();
    let document = Document {
        components: found.iter().map(|found| Row::new(now, found)).collect(),
        keeper: keeper_file::find(&context.dirs),
    };
    out::document(context.format, &document, || {
        let ended = context.style.paint(Tone::Dim, &process.pid().to_string());
        format!(
            "{component}: pid {ended} has ended, pid {} answers, incarnation {}\n",
            next.pid, next.incarnation
        )
    })
}
