//! The end of everything: services in order, then the daemons, then what they
//! left. Each stage has a way that works when the one before has failed.

use std::time::Duration;

use blackhole_bus_schema::bus::Link;
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::names::{Component, InstanceName};
use blackhole_bus_schema::resource::{ListUsage, Release};
use blackhole_bus_schema::supervision::{StopServices, Target};
use blackhole_process_manager::shim::client::ForkServer;
use blackhole_process_manager::shim::release_all;
use tokio::time::Instant;

use crate::error::Error;
use crate::keeper_file::KeeperFile;
use crate::out;
use crate::watch::Change;
use crate::{client, human, offline};

use super::keeper::{Happening, Keeper};
use super::leftover;
use super::patience::{Over, Patience};
use super::shims;
use super::signals::Signals;

/// A bound on one request. How long is waited is another matter, see [`Patience`].
const STOP: Duration = Duration::from_secs(3600);
/// How long a supervisor that lives is given to answer at all.
const SUPERVISOR: Duration = Duration::from_secs(5);
/// How long the resource-controller is given to give back one instance's groups.
const RELEASE: Duration = Duration::from_secs(3);

/// Stops all services and ends all daemons. A signal meanwhile kills at once.
///
/// # Errors
/// When something is left; the error says what.
pub(super) async fn run(
    keeper: &mut Keeper,
    dirs: &Dirs,
    signals: &mut Signals,
) -> Result<(), Error> {
    mark_stopping(dirs);
    keeper.no_restarts();
    let mut killing = false;
    if keeper.lives(&Component::Supervisor) {
        match by_supervisor(keeper, dirs, signals).await {
            Way::Done => {}
            Way::Over => out::note("nothing lives any more: the supervisor is not waited for"),
            Way::Failed(why) => {
                out::note(format!(
                    "{why}: the services are stopped through their shims, without the supervisor"
                ));
            }
            Way::Signal => killing = true,
        }
        if killing || !offline::live(dirs).await.is_empty() {
            // It must not start again what is stopped behind its back.
            keeper.end(&Component::Supervisor, killing).await;
        }
    }
    killing = shims::end_all(keeper, dirs, signals, killing).await;
    for component in keeper.end_order() {
        // With the services gone nothing of value is in the first two any more.
        // The others have groups and sockets to clear away, which is quick.
        let at_once = killing
            && matches!(
                component,
                Component::Supervisor | Component::ProcessManager(_)
            );
        if component == Component::ResourceController {
            shut_down_fork_server(dirs).await;
            // A process-manager that was killed in the midst of a start may have
            // left a shim that took it only now; with the fork server none is left.
            killing = shims::end_all(keeper, dirs, signals, killing).await;
            release_groups(keeper).await;
        }
        tokio::select! {
            () = keeper.end(&component, at_once) => continue,
            name = signals.next() => {
                out::note(format!("{name} again: killing"));
                killing = true;
            }
        }
        keeper.end(&component, true).await;
    }
    leftover::clean(dirs).await;
    leftover::check(dirs).await
}

/// Tells the next keeper, should this one be killed now, that the supervisor
/// was told to stop everything.
fn mark_stopping(dirs: &Dirs) {
    if let Some(mut file) = KeeperFile::read(dirs) {
        file.stopping = true;
        let _ = file.write(dirs);
    }
}

enum Way {
    Done,
    /// Nothing lives, and the supervisor waits for somebody who does not say so.
    Over,
    Failed(String),
    Signal,
}

/// The usual way: the supervisor stops everything in reverse order of dependencies.
async fn by_supervisor(keeper: &mut Keeper, dirs: &Dirs, signals: &mut Signals) -> Way {
    let Some(link) = keeper.watch.link(&Component::Supervisor).cloned() else {
        return Way::Failed("the supervisor cannot be asked".to_owned());
    };
    // None is started any more: the supervisor would wait for one for ever.
    if let Some(missing) = keeper.missing_manager() {
        return Way::Failed(format!("there is no {missing}"));
    }
    let mut patience = Patience::new(Instant::now(), shims::longest(dirs).await);
    let request = stop_all(link);
    tokio::pin!(request);
    loop {
        tokio::select! {
            // Cancel safe: the request is kept, a step takes nothing half.
            happening = keeper.step() => match happening {
                Happening::Ended(component @ (Component::Supervisor | Component::ProcessManager(_))) => {
                    return Way::Failed(format!("the {component} has ended"));
                }
                Happening::Change(Change::Presence { .. } | Change::Told { .. }) | Happening::Time => {}
                Happening::Change(_) | Happening::Ended(_) => {}
            },
            result = &mut request => return match result {
                Ok(()) => Way::Done,
                Err(error) => Way::Failed(error.to_string()),
            },
            () = patience.due() => match patience.look(Instant::now(), live(dirs).await) {
                None => {}
                Some(Over::Nothing) => return Way::Over,
                Some(Over::Stuck(within)) => {
                    let within = human::duration(within);
                    return Way::Failed(format!("nothing has ended for {within}"));
                }
            },
            name = signals.next() => {
                out::note(format!("{name} again: killing everything at once"));
                return Way::Signal;
            }
        }
    }
}

/// What a shim holds; `None` where the folder that tells is gone.
async fn live(dirs: &Dirs) -> Option<Vec<InstanceName>> {
    match dirs.state.join("instances").is_dir() {
        true => Some(offline::live(dirs).await),
        false => None,
    }
}

async fn stop_all(link: Link) -> Result<(), Error> {
    let operation = "stop all services";
    link.ready(SUPERVISOR)
        .await
        .map_err(|error| client::request_error(operation, error, SUPERVISOR))?;
    let command = StopServices {
        target: Target::All,
        transient: true,
    };
    link.request(&command, STOP)
        .await
        .map_err(|error| client::request_error(operation, error, STOP))?;
    Ok(())
}

/// Ends the fork server and its idle shims, and whoever keeps sockets and descriptors for
/// a service that will not come back; there may be none.
pub(super) async fn shut_down_fork_server(dirs: &Dirs) {
    let run = dirs.run.clone();
    let _ = tokio::task::spawn_blocking(move || release_all(&run)).await;
    if let Err(error) = ForkServer::shutdown(dirs).await {
        let error = Error::Bus {
            operation: "end the fork server".to_owned(),
            source: Box::new(error),
        };
        out::note(error.report());
    }
}

/// Has the resource-controller remove the groups of instances that are gone:
/// when it ends, it leaves those that it thinks are in use.
async fn release_groups(keeper: &Keeper) {
    let Some(link) = keeper.watch.link(&Component::ResourceController) else {
        return;
    };
    if link.info().is_none() {
        return;
    }
    let Ok(usage) = client::all::<ListUsage>(link, RELEASE).await else {
        return;
    };
    for one in usage {
        // One that is refused shows up among what is left.
        let _ = link
            .request(
                &Release {
                    instance: one.instance,
                },
                RELEASE,
            )
            .await;
    }
}
