//! `blackhole start`, `stop`, `restart`, `reset`.

use std::collections::BTreeMap;
use std::time::Duration;

use blackhole_bus_schema::bus::{Link, LinkEvent};
use blackhole_bus_schema::message::Command;
use blackhole_bus_schema::names::Component;
use blackhole_bus_schema::reply::Code;
use blackhole_bus_schema::supervision::{
    Desired, InstanceStatus, ListStatus, Outcome, Phase, ResetServices, RestartServices,
    StartServices, StopServices, SupervisionChanged, Target,
};
use blackhole_bus_schema::topic;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::args::Targets;
use crate::client;
use crate::context::Context;
use crate::direct;
use crate::error::{Error, Exit};
use crate::view::names::{self, Filter};
use crate::view::service::{Answers, ServiceRow, exit_words, rows};
use crate::view::status;
use crate::view::{event, health};
use crate::{human, offline, out};

use super::dependents;
use super::waiting::{Managers, Word};
use super::watched::Watched;

/// Time for a whole command when the operator does not say: longer than the
/// usual grace, and than the first restarts of something that fails.
const BUDGET: Duration = Duration::from_secs(120);

/// The result of a command to services.
#[derive(Serialize)]
pub(crate) struct Document {
    pub(crate) services: Vec<ServiceRow>,
}

pub(super) async fn start(context: &Context, targets: &Targets) -> Result<(), Error> {
    let target = target(targets)?;
    match supervisor(context).await? {
        Some(way) => {
            let begun = human::now_ns();
            let outcome = supervised(
                context,
                way,
                &words("start", targets),
                targets.watch,
                StartServices { target },
            )
            .await?;
            for text in outcome.iter().filter_map(|one| through_before(begun, one)) {
                out::note(text);
            }
            Ok(())
        }
        None => direct::start(context, &target).await,
    }
}

pub(super) async fn stop(context: &Context, targets: &Targets) -> Result<(), Error> {
    if context.offline {
        return stop_offline(context, targets).await;
    }
    let target = target(targets)?;
    match supervisor(context).await? {
        Some(way) => {
            if let Some(text) = dependents::words(context, &way.0, targets).await {
                out::note(text);
            }
            supervised(
                context,
                way,
                &words("stop", targets),
                None,
                StopServices {
                    target,
                    transient: false,
                },
            )
            .await
            .map(|_| ())
        }
        None => direct::stop(context, &target).await,
    }
}

pub(super) async fn restart(context: &Context, targets: &Targets) -> Result<(), Error> {
    let target = target(targets)?;
    match supervisor(context).await? {
        Some(way) => supervised(
            context,
            way,
            &words("restart", targets),
            targets.watch,
            RestartServices { target },
        )
        .await
        .map(|_| ()),
        None => direct::restart(context, &target).await,
    }
}

pub(super) async fn reset(context: &Context, targets: &Targets) -> Result<(), Error> {
    let target = target(targets)?;
    match supervisor(context).await? {
        Some(way) => supervised(
            context,
            way,
            &words("reset", targets),
            targets.watch,
            ResetServices { target },
        )
        .await
        .map(|_| ()),
        None => Err(Error::Unreachable {
            operation: words("reset", targets),
            component: "the supervisor".to_owned(),
        }),
    }
}

fn target(targets: &Targets) -> Result<Target, Error> {
    if targets.all {
        Ok(Target::All)
    } else {
        names::services(&targets.services).map(Target::Services)
    }
}

fn words(verb: &str, targets: &Targets) -> String {
    if targets.all {
        format!("{verb} all services")
    } else {
        format!("{verb} {}", human::list(&targets.services, 6))
    }
}

type Way = (Link, mpsc::Receiver<LinkEvent>);

/// The way to the supervisor, if it answers.
pub(super) async fn supervisor(context: &Context) -> Result<Option<Way>, Error> {
    let component = Component::Supervisor;
    if !client::lives(&context.dirs, &component) {
        return Ok(None);
    }
    let interest = blackhole_bus_schema::bus::Interest::none().prefix(topic::SUPERVISION);
    let (link, events) = client::open(&context.dirs, component, interest).await?;
    // A moment more than for a question: going past a living supervisor would
    // be undone by it.
    match link.ready(client::WAIT * 3).await {
        Ok(_) => Ok(Some((link, events))),
        Err(_) => Err(Error::Unreachable {
            operation: "give it the command".to_owned(),
            component: "the supervisor (it holds its lock)".to_owned(),
        }),
    }
}

async fn supervised<C>(
    context: &Context,
    way: Way,
    operation: &str,
    watch: Option<Duration>,
    command: C,
) -> Result<Outcome, Error>
where
    C: Command<Reply = Outcome>,
{
    let (link, mut events) = way;
    let budget = context.timeout(BUDGET);
    let mut last = BTreeMap::new();
    let mut told = BTreeMap::new();
    let mut watched = watch.map(|time| Watched::new(human::now_ns(), time));
    let mut managers = Managers::new(&context.dirs);
    let request = link.request(&command, budget);
    tokio::pin!(request);
    // The command is with the supervisor and goes on there, which has to be said.
    let interrupt = tokio::signal::ctrl_c();
    tokio::pin!(interrupt);
    let interrupted = || Error::Interrupted {
        operation: operation.to_owned(),
    };
    let result = loop {
        tokio::select! {
            // Events first: the last one tells what the result is about.
            biased;
            event = events.recv() => {
                if let Some(LinkEvent::Event(received)) = &event
                    && let Ok(changed) = received.parse::<SupervisionChanged>()
                {
                    if let Some(watched) = &mut watched {
                        watched.heard(&changed.status);
                    }
                    told.insert(changed.status.instance.to_string(), changed.status);
                }
                progress(context, &mut last, event);
            }
            result = &mut request => break result,
            word = managers.word() => out::note(waiting_words(word, budget)),
            Ok(()) = &mut interrupt => return Err(interrupted()),
        }
    };
    let mut outcome = result.map_err(|error| {
        let late = error.code() == Code::DeadlineExceeded;
        match late && managers.are_silent() {
            true => Error::Waited {
                operation: operation.to_owned(),
                after: budget,
                component: "process-manager",
            },
            false => client::request_error(operation, error, budget),
        }
    })?;
    if let Some(watched) = &mut watched {
        // Events are taken first, so that those behind the answer may be here before it.
        for known in &mut outcome {
            if let Some(told) = told.remove(&known.instance.to_string())
                && (told.generation > known.generation
                    || told.generation == known.generation && has_failed(&told))
            {
                *known = told;
            }
        }
        watched.answered(&outcome);
        let held = hold(
            context,
            watched,
            &link,
            &mut last,
            &mut outcome,
            &mut events,
        );
        tokio::select! {
            () = held => {}
            Ok(()) = &mut interrupt => return Err(interrupted()),
        }
    }
    let ended: Vec<String> = outcome
        .iter()
        .filter(|status| has_failed(status))
        .map(|status| status.instance.to_string())
        .collect();
    show(
        context,
        rows(
            human::now_ns(),
            &Answers {
                status: Some(outcome.clone()),
                ..Answers::default()
            },
        ),
    )?;
    let watched = watched.map(|watched| watched.ended()).unwrap_or_default();
    if !watched.is_empty() {
        return Err(Error::Failed {
            message: format!(
                "cannot {operation}: ended while it was watched: {}",
                human::list(&watched, 6)
            ),
            hint: "`blackhole logs` tells what it wrote".to_owned(),
        });
    }
    if ended.is_empty() {
        return Ok(outcome);
    }
    Err(Error::Failed {
        message: format!(
            "cannot {operation}: failed right after the start: {}",
            human::list(&ended, 6)
        ),
        hint: "`blackhole logs` tells what they wrote; a readiness probe tells when a service is \
               really up"
            .to_owned(),
    })
}

/// A one-shot that was through before it was to be started is not started again.
fn through_before(begun: u64, status: &InstanceStatus) -> Option<String> {
    let exit = status.last_exit.as_ref()?;
    (status.completed && exit.ended_at < begun).then(|| {
        format!(
            "{} has completed already ({}), and is not run again: `blackhole restart {}` does that",
            status.instance,
            exit_words(exit),
            status.service
        )
    })
}

/// What is said while a command waits.
fn waiting_words(word: Word, budget: Duration) -> String {
    match word {
        Word::Silent => format!(
            "the process-manager does not answer: services go on running, none is started or \
             stopped; waiting up to {} for it",
            human::duration(budget)
        ),
        Word::Back => "the process-manager answers".to_owned(),
    }
}

/// Watches what has no probes, until the time is over or somebody has ended.
async fn hold(
    context: &Context,
    watched: &mut Watched,
    link: &Link,
    last: &mut BTreeMap<String, String>,
    outcome: &mut Outcome,
    events: &mut mpsc::Receiver<LinkEvent>,
) {
    let mut heard = |watched: &mut Watched, status: InstanceStatus| {
        watched.heard(&status);
        let same = |known: &&mut InstanceStatus| known.instance == status.instance;
        if let Some(known) = outcome.iter_mut().find(same) {
            *known = status;
        }
    };
    while let Some(left) = watched.left(human::now_ns()) {
        match tokio::time::timeout(left, events.recv()).await {
            Ok(Some(event)) => {
                if let LinkEvent::Event(received) = &event
                    && let Ok(changed) = received.parse::<SupervisionChanged>()
                {
                    heard(watched, changed.status);
                }
                progress(context, last, Some(event));
            }
            _ => {
                // What was told while the supervisor was away from here, or is on its way.
                let now = client::all::<ListStatus>(link, client::WAIT).await;
                for status in now.unwrap_or_default() {
                    heard(watched, status);
                }
                return;
            }
        }
    }
}

/// Whether it should run and has failed instead.
fn has_failed(status: &InstanceStatus) -> bool {
    status.desired == Desired::Up
        && matches!(
            status.phase,
            Phase::BackingOff { .. } | Phase::CircuitOpen | Phase::GaveUp
        )
}

/// Shows what the supervisor says meanwhile, but not again what it said last.
fn progress(context: &Context, last: &mut BTreeMap<String, String>, event: Option<LinkEvent>) {
    match event {
        Some(LinkEvent::Event(received)) => {
            let told = event::tell(&received);
            let before = last.insert(told.about.clone(), told.text.clone());
            // A phase told again without a reason adds nothing.
            if !before.is_some_and(|before| before.starts_with(&told.text)) {
                out::note(event::line(context.style_err, received.envelope.at, &told));
            }
        }
        Some(LinkEvent::Down) => {
            out::note("the supervisor is away; the command is repeated when it is back")
        }
        _ => {}
    }
}

/// Prints the instances a command was about.
pub(crate) fn show(context: &Context, mut services: Vec<ServiceRow>) -> Result<(), Error> {
    for row in &mut services {
        row.why = health::why(row);
    }
    let document = Document { services };
    out::document(context.format, &document, || {
        status::services(context.style, &document.services)
    })
}

async fn stop_offline(context: &Context, targets: &Targets) -> Result<(), Error> {
    let filter = Filter::parse(&targets.services)?;
    let known = offline::instances(&context.dirs);
    let meant = filter.select(&known)?;
    if client::lives(&context.dirs, &Component::Supervisor) {
        out::note("a supervisor runs: it may start them again (without --offline it would not)");
    }
    let mut failed = false;
    for (instance, result) in
        offline::stop(&context.dirs, meant.clone(), false, context.own_timeout()).await
    {
        match result {
            Ok(()) => out::note(format!("{instance}: stopped")),
            Err(error) => {
                failed = true;
                out::note(error.report());
            }
        }
    }
    let records = offline::records(&context.dirs).await?;
    let all = rows(
        human::now_ns(),
        &Answers {
            processes: Some(records),
            ..Answers::default()
        },
    );
    show(
        context,
        all.into_iter()
            .filter(|row| meant.contains(&row.instance))
            .collect(),
    )?;
    if failed {
        Err(Error::Shown(Exit::Failed))
    } else {
        Ok(())
    }
}
