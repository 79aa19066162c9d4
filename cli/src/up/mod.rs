//! `blackhole up` and `blackhole down`.
//!
//! ```text
//!   up (foreground)                      up -d            down
//!     │ keeper                             │ starts         │ SIGTERM by pidfd
//!     │   machine: decides                 ▼                ▼
//!     │   process: pidfds            up --keeper ◄──────────┘
//!     │   watch:   presence, status        (the same, in its own session)
//!     └ teardown: services, daemons, rest
//! ```
//!
//! The daemons are not bound to the keeper's life: killed with -9 it leaves
//! all as it is, and the next `up` takes it over. An `up` that has to be given
//! up because a daemon does not come up ends what it began: services that ran
//! before it go on, with those daemons that work.

mod binaries;
mod daemon_log;
mod detached;
mod down;
mod keeper;
mod leftover;
mod machine;
mod patience;
mod process;
mod report;
mod said;
mod settle;
mod shims;
mod signals;
mod stray;
mod teardown;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use blackhole_bus_schema::config::{Config, Document};
use blackhole_bus_schema::dirs::{Dirs, Lock};
use blackhole_bus_schema::managers;
use blackhole_bus_schema::names::{Component, InstanceName, ManagerName, ServiceName};
use blackhole_process_manager::shim::client::instance_lock_held;
use tokio::time::Instant;

pub use down::down;
pub(crate) use keeper::holder_of;

use crate::args;
use crate::client::{self, Overview};
use crate::context::Context;
use crate::error::{Error, Exit};
use crate::keeper_file::{self, KeeperFile, LOCK, fingerprint};
use crate::out::{self, Tone};
use crate::view::progress::Assessment;
use crate::view::status::StatusView;
use crate::watch::Model;
use crate::{human, notes, offline, watch};

use binaries::Binaries;
use keeper::{Keeper, Launch, Takeover};
use report::{Report, assess_all, outcome, reasons};
use settle::Settle;
use signals::Signals;

/// What is to be run, checked before anything is started.
#[derive(Debug, Clone)]
struct Plan {
    /// When the start began, Unix time in nanoseconds.
    begun: u64,
    launch: Launch,
    expected: BTreeSet<InstanceName>,
    oneshots: BTreeSet<ServiceName>,
    /// What is right in the configuration and probably not meant.
    notes: Vec<String>,
}

impl Plan {
    fn new(context: &Context) -> Result<Self, Error> {
        let path: PathBuf = context.config_path_for_up()?;
        let document = Document::load(&path).map_err(|first| Error::of_config(&path, first))?;
        let notes = notes::of(&path, &document);
        let config = document.config;
        Ok(Self {
            begun: human::now_ns(),
            notes: notes.iter().map(ToString::to_string).collect(),
            expected: config.instances().collect(),
            oneshots: config
                .services
                .iter()
                .filter(|(_, service)| service.oneshot)
                .map(|(name, _)| name.clone())
                .collect(),
            launch: Launch {
                binaries: Binaries::find()?,
                config: path,
                managers: kept_managers(&context.dirs, &config),
            },
        })
    }

    /// What a start that takes long still lacks.
    fn missing(&self, watch: &watch::Watch) -> String {
        let away: Vec<String> = watch
            .found()
            .iter()
            .filter(|found| found.info().is_none())
            .map(|found| format!("the {}", found.component))
            .collect();
        let pending = self
            .assess(&watch.model)
            .map(|assessment| reasons(&assessment))
            .unwrap_or_default();
        match (away.is_empty(), pending.is_empty()) {
            (false, _) => format!("still waiting for {} to answer", away.join(", ")),
            (true, false) => format!("not ready yet: {pending}"),
            (true, true) => "still waiting for the supervisor's list".to_owned(),
        }
    }

    /// How far a start is, as far as the supervisor has told.
    fn assess(&self, model: &Model) -> Option<Assessment> {
        Some(assess_all(
            self.begun,
            &model.status()?,
            &self.expected,
            &self.oneshots,
        ))
    }
}

/// The named process-managers to run: those of the configuration, and those that
/// still have something alive, which nobody else may start.
fn kept_managers(dirs: &Dirs, config: &Config) -> Vec<ManagerName> {
    let declared = config.orchestrator.process_managers.keys().cloned();
    let all: BTreeSet<_> = declared.chain(alive_managers(dirs)).collect();
    all.into_iter().collect()
}

/// The named process-managers that started something which lives.
fn alive_managers(dirs: &Dirs) -> BTreeSet<ManagerName> {
    let alive = |instance: &InstanceName| {
        let held = instance_lock_held(&dirs.instance(instance));
        held.is_ok_and(|held| held.is_some())
    };
    let owned = managers::owned(dirs).into_iter();
    owned
        .filter(|(instance, _)| alive(instance))
        .map(|(_, name)| name)
        .collect()
}

/// Starts everything and stays, or leaves a keeper behind.
///
/// # Errors
/// When the configuration is wrong, another keeper runs, a daemon does not
/// come up, or (detached) a service does not.
pub async fn run(context: &Context, args: &args::Up) -> Result<(), Error> {
    let plan = Plan::new(context)?;
    refuse_foreign(&context.dirs)?;
    context.dirs.create()?;
    if !args.keeper {
        for text in &plan.notes {
            out::note(format!("note: {text}"));
        }
    }
    if args.detach && !args.keeper {
        refuse_second(&context.dirs)?;
        return detached::run(context, &plan).await;
    }
    let lock = match Lock::try_take(&context.dirs.lock(LOCK))? {
        Some(lock) => lock,
        None => {
            refuse_second(&context.dirs)?;
            // It was free again a moment later: somebody only looked.
            Lock::try_take(&context.dirs.lock(LOCK))?.ok_or_else(|| another(&context.dirs))?
        }
    };
    let result = keep(context, &plan, args.keeper).await;
    drop(lock);
    result
}

fn refuse_second(dirs: &Dirs) -> Result<(), Error> {
    if client::is_locked(&dirs.lock(LOCK)) {
        Err(another(dirs))
    } else {
        Ok(())
    }
}

/// Daemons of another state directory would have their sockets taken away.
fn refuse_foreign(dirs: &Dirs) -> Result<(), Error> {
    let foreign = client::components(dirs).into_iter().find(|component| {
        !client::is_locked(&dirs.lock(&component.to_string())) && client::listens(dirs, component)
    });
    match foreign {
        None => Ok(()),
        Some(component) => Err(Error::Forbidden {
            message: format!(
                "{} is in use: a {component} with another state directory than {} listens there",
                dirs.run.display(),
                dirs.state.display()
            ),
            hint: "give each deployment its own --run-dir and --state-dir".to_owned(),
        }),
    }
}

fn another(dirs: &Dirs) -> Error {
    let pid =
        Lock::holder(&dirs.lock(LOCK)).map_or_else(String::new, |pid| format!(" (pid {pid})"));
    Error::Forbidden {
        message: format!(
            "another `blackhole up`{pid} already keeps {}",
            dirs.state.display()
        ),
        hint: "`blackhole status` shows what it runs, `blackhole down` ends it; \
               a second deployment needs its own --run-dir and --state-dir"
            .to_owned(),
    }
}

/// How to take what an earlier keeper left; and the note for the one after this.
fn takeover(dirs: &Dirs, plan: &Plan) -> Result<Takeover, Error> {
    let mine = KeeperFile {
        config: plan.launch.config.clone(),
        fingerprint: fingerprint(&plan.launch.config),
        version: blackhole_bus_schema::VERSION.to_owned(),
        stopping: false,
        managers: plan.launch.managers.clone(),
    };
    let takeover = match KeeperFile::read(dirs) {
        // A half-done stop: only a fresh supervisor starts the services again.
        Some(last) if !last.is_like(&mine) => Takeover::Replace,
        _ => Takeover::Adopt,
    };
    mine.write(dirs)?;
    Ok(takeover)
}

async fn keep(context: &Context, plan: &Plan, background: bool) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    // Before anything is started: what lives now is not this start's to end.
    let before = offline::live(&context.dirs).await;
    let takeover = takeover(&context.dirs, plan)?;
    let report = Report::new(context.style_err, Instant::now());
    out::note(format!(
        "configuration {}, state {}, daemons' logs {}",
        plan.launch.config.display(),
        context.dirs.state.display(),
        context.dirs.state.join("log").display()
    ));
    let mut keeper =
        Keeper::new(&context.dirs, Some(plan.launch.clone()), takeover, report).await?;
    let mut settle = Settle::default();
    let mut settled = false;
    let mut remind = Reminder::new();
    let end = loop {
        tokio::select! {
            // Cancel safe, all.
            happening = keeper.step() => if happening.is_of_supervision() {
                keeper.run_awaited().await;
            },
            name = signals.next() => break Ok(name),
            () = remind.due(), if !settled => out::note(keeper.report.short(&plan.missing(&keeper.watch))),
            () = settle.due(), if !settled => {}
        }
        match keeper.hopeless() {
            // Services that ran before get the other daemons first.
            Some(component) if before.is_empty() || keeper.all_decided() => {
                break Err(given_up(&context.dirs, component, &before));
            }
            _ => {}
        }
        if settled {
            continue;
        }
        let assessment = if keeper.all_up() {
            plan.assess(&keeper.watch.model)
        } else {
            None
        };
        if settle.look(Instant::now(), assessment.as_ref())
            && let Some(assessment) = assessment
        {
            settled = true;
            if let Err(error) =
                summary(context, &keeper.report, &settle, &assessment, background).await
            {
                // The services go on, whoever wanted to read of them.
                if !error.is_quiet() {
                    out::note(error.report());
                }
            }
            keeper.report.settled();
            if !background {
                out::note("Ctrl-C stops everything in order");
            }
        }
    };
    keeper.report.restart(Instant::now());
    if end.is_err() && !before.is_empty() {
        keeper.end_hopeless().await;
        return end.map(|_| ());
    }
    if let Ok(name) = end {
        keeper.report.say(
            name,
            Tone::Warn,
            "stopping all services in order; once more kills at once",
        );
    }
    let torn = teardown::run(&mut keeper, &context.dirs, &mut signals).await;
    if torn.is_ok() {
        keeper
            .report
            .say("down", Tone::Good, "everything has ended");
    }
    end.map(|_| ()).and(torn)
}

/// Why a start is given up, and what becomes of the services that ran before it.
fn given_up(dirs: &Dirs, component: &Component, before: &[InstanceName]) -> Error {
    let log = dirs.daemon_log(&component.to_string());
    let mut hint = format!(
        "the last lines of its log are above, all of it is in {}",
        log.display()
    );
    if !before.is_empty() {
        let names: Vec<String> = before.iter().map(ToString::to_string).collect();
        hint.push_str(&format!(
            "; the services that ran before go on ({}): `blackhole up` takes them over again, \
             `blackhole down` ends them",
            human::list(&names, 8)
        ));
    }
    Error::Failed {
        message: format!("the {component} does not come up"),
        hint,
    }
}

/// Tells when a start that takes long is worth another word: after 10 s, then
/// after twice that, and so on.
struct Reminder {
    at: Instant,
    wait: Duration,
}

impl Reminder {
    fn new() -> Self {
        let wait = Duration::from_secs(10);
        Self {
            at: Instant::now() + wait,
            wait,
        }
    }

    /// Waits until a word is due. Cancel safe.
    async fn due(&mut self) {
        tokio::time::sleep_until(self.at).await;
        self.wait *= 2;
        self.at += self.wait;
    }
}

/// The outcome of a start: the table (not from the background), then a line.
async fn summary(
    context: &Context,
    report: &Report,
    settle: &Settle,
    assessment: &Assessment,
    background: bool,
) -> Result<(), Error> {
    let tone = if assessment.is_ready() {
        Tone::Good
    } else {
        Tone::Bad
    };
    let line = report.short(&outcome(assessment, &report.elapsed(settle.ready_since())));
    let shown = if background {
        Ok(())
    } else {
        show(context).await
    };
    out::note(context.style_err.paint(tone, &line));
    shown
}

/// The status as a command of its own would show it now.
async fn show(context: &Context) -> Result<(), Error> {
    let overview = Overview::open(&context.dirs, client::WAIT).await?;
    let (answers, found) = overview.ask().await;
    let view =
        StatusView::new(human::now_ns(), &answers, found).kept_by(keeper_file::find(&context.dirs));
    out::document(context.format, &view, || view.table(context.style))
}

/// The exit code of a start that is through.
fn verdict(assessment: &Assessment) -> Result<(), Error> {
    if assessment.is_ready() {
        Ok(())
    } else {
        Err(Error::Shown(Exit::Failed))
    }
}
