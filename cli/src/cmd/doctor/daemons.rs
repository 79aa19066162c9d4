//! Checks of the daemons: who runs, and what those left that do not.

use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::names::Component;

use super::{Check, fail, ok, warn};
use crate::access::Foreign;
use crate::cmd::orphans::orphans;
use crate::out::Tone;
use crate::view::component::{Found, Presence};
use crate::view::keeper::{self, Keeper, State};
use crate::view::problem;
use crate::view::service::ServiceRow;
use crate::{client, edited, human, offline};

/// What runs in somebody else's deployment.
pub(super) fn unseen(foreign: &Foreign) -> Check {
    fail(
        "daemons",
        format!(
            "permission denied: {} belongs to {}",
            foreign.directory.display(),
            foreign.user()
        ),
        "run this as that user",
    )
}

pub(super) fn daemons(found: &[Found], live: usize) -> Vec<Check> {
    if found
        .iter()
        .all(|one| matches!(one.presence, Presence::Missing { lock_held: false }))
    {
        return vec![if live == 0 {
            ok("daemons", "none run")
        } else {
            warn(
                "daemons",
                format!(
                    "none run, and {} on without them",
                    if live == 1 {
                        "1 instance lives".to_owned()
                    } else {
                        format!("{live} instances live")
                    }
                ),
                "`blackhole up` takes them over, `blackhole down` ends them",
            )
        }];
    }
    let mut checks: Vec<Check> = found
        .iter()
        .map(|one| {
            let what = one.component.to_string();
            match &one.presence {
                Presence::Running(info) => {
                    ok(&what, format!("pid {}, version {}", info.pid, info.version))
                }
                Presence::NotAsked { .. } => ok(&what, "runs"),
                Presence::Missing { lock_held: true } => fail(
                    &what,
                    "holds its lock and does not answer",
                    "is it stopped in a debugger? `blackhole up` restarts one that hangs",
                ),
                Presence::Missing { lock_held: false } => warn(
                    &what,
                    "does not run",
                    format!(
                        "{}; `blackhole up` starts it",
                        problem::consequence(&one.component)
                    ),
                ),
            }
        })
        .collect();
    checks.extend(
        problem::of_components(found)
            .into_iter()
            .filter(|problem| problem.tone == Tone::Warn)
            .map(|problem| warn("daemons", problem.text, "")),
    );
    checks
}

/// Whether somebody restarts the daemons; nothing where no `up` did that, or none runs.
pub(super) fn keeper(keeper: Option<Keeper>, found: &[Found]) -> Option<Check> {
    const WHAT: &str = "keeper";
    if keeper::problem(keeper, found).is_some() {
        return Some(warn(
            WHAT,
            "does not run: nobody starts a daemon again that ends",
            "`blackhole up -d` takes the daemons over, services go on",
        ));
    }
    let pid = keeper.filter(|keeper| keeper.state == State::Running)?.pid;
    let pid = pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
    Some(ok(WHAT, format!("pid {pid}")))
}

/// Whether the daemons, and what they started, go by what the configuration says
/// today; nothing where no daemon runs.
pub(super) fn edited(
    dirs: &Dirs,
    found: &[Found],
    rows: &[ServiceRow],
    keeper: Option<Keeper>,
) -> Vec<Check> {
    const WHAT: &str = "running configuration";
    if found.iter().all(|found| found.info().is_none()) {
        return Vec::new();
    }
    match edited::find(dirs, found, rows) {
        None => vec![ok(WHAT, "the daemons were started with what the file says")],
        Some(edited) => {
            let lines = edited.lines(keeper).into_iter();
            lines
                .map(|(found, advice)| warn(WHAT, found, advice))
                .collect()
        }
    }
}

/// Sockets of daemons that do not live. They do no harm: the next daemon replaces them.
pub(super) fn stale(dirs: &Dirs) -> Check {
    const WHAT: &str = "stale sockets";
    let mut stale = Vec::new();
    for entry in std::fs::read_dir(dirs.run.join("bus"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name
            .rsplit_once('.')
            .map_or(name.as_str(), |(owner, _)| owner);
        let owner: Result<Component, _> = owner.parse();
        if !owner.is_ok_and(|owner| client::lives(dirs, &owner)) {
            stale.push(name);
        }
    }
    for instance in offline::instances(dirs) {
        if dirs.shim_socket(&instance).exists() && !offline::is_held(dirs, &instance) {
            stale.push(instance.to_string());
        }
    }
    if stale.is_empty() {
        ok(WHAT, "none")
    } else {
        warn(
            WHAT,
            format!("left by what was killed: {}", human::list(&stale, 4)),
            "harmless: the next start replaces them, `blackhole down` removes them",
        )
    }
}

/// Services that live and whose process-manager does not.
pub(super) fn orphaned(dirs: &Dirs) -> Vec<Check> {
    let all = orphans(dirs).into_iter();
    all.map(|(name, instances)| {
        let names: Vec<String> = instances.iter().map(ToString::to_string).collect();
        let text = format!(
            "{} run on, and nobody can stop or watch them",
            human::list(&names, 6)
        );
        let who = Component::ProcessManager(Some(name.clone()));
        let advice =
            format!("`blackhole up` starts it, or: blackhole-process-manager --name {name}");
        fail(&format!("services of the {who}"), text, advice)
    })
    .collect()
}
