//! The end of what lives through its shims, without the supervisor and the
//! process-managers: each gets its grace, and no longer. What does not end then,
//! or cannot be asked, is killed together with its shim.

use std::time::Duration;

use blackhole_bus_schema::config::{Config, ServiceConfig};
use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::names::InstanceName;
use blackhole_bus_schema::process::{ProcessSettings, StopSpec};
use blackhole_process_manager::shim::client::{Record, instance_lock_held, read_record};
use blackhole_process_manager::shim::sweep;
use rustix::process::{Pid, Signal};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;

use crate::error::Error;
use crate::keeper_file::KeeperFile;
use crate::out::{self, Tone};
use crate::{direct, human, offline};

use super::keeper::Keeper;
use super::process::Process;
use super::signals::Signals;

/// What a shim may need on top of a grace, to kill what is left and to write it
/// down; and a kernel, to end what was killed.
const OVERDUE: Duration = Duration::from_secs(10);

/// What lives still is stopped through its shims: dependents first where the
/// configuration can be read. Returns whether everything is to be killed from now on.
pub(super) async fn end_all(
    keeper: &mut Keeper,
    dirs: &Dirs,
    signals: &mut Signals,
    mut killing: bool,
) -> bool {
    let levels = config(dirs)
        .map(|config| direct::order(&config))
        .unwrap_or_default();
    loop {
        let live = offline::live(dirs).await;
        if live.is_empty() {
            return killing;
        }
        let services = live
            .iter()
            .map(|instance| instance.service().clone())
            .collect();
        let first = direct::stop_levels(&levels, &services)
            .into_iter()
            .next()
            .unwrap_or_default();
        let batch: Vec<InstanceName> = live
            .iter()
            .filter(|instance| killing || first.contains(instance.service()))
            .cloned()
            .collect();
        let verb = if killing { "killing" } else { "stopping" };
        let names: Vec<String> = batch.iter().map(ToString::to_string).collect();
        keeper.report.say(verb, Tone::Warn, &human::list(&names, 8));
        let before = live.len();
        let failed = tokio::select! {
            failed = end(dirs, batch, killing) => failed,
            name = signals.next(), if !killing => {
                out::note(format!("{name} again: killing everything at once"));
                killing = true;
                continue;
            }
        };
        if failed && offline::live(dirs).await.len() >= before {
            // No progress: what is left is told at the end.
            return killing;
        }
    }
}

/// The longest time that an instance which lives, or one of the configuration, may
/// take to end.
pub(super) async fn longest(dirs: &Dirs) -> Duration {
    let mut all = Vec::new();
    for instance in offline::live(dirs).await {
        all.push(allowance(dirs, &instance));
    }
    let config = config(dirs);
    let services = config.iter().flat_map(|config| config.services.values());
    all.extend(services.map(|ServiceConfig { stop, settings, .. }| sum(stop, settings)));
    all.into_iter().max().unwrap_or_default()
}

fn config(dirs: &Dirs) -> Option<Config> {
    Config::load(&KeeperFile::read(dirs)?.config).ok()
}

/// How long one may take to end, by how it was started. Blocks for one small read.
fn allowance(dirs: &Dirs, instance: &InstanceName) -> Duration {
    let record = read_record(&dirs.instance(instance)).ok().flatten();
    let spec = record.and_then(|record: Record| record.spec().ok());
    spec.map_or_else(
        || sum(&StopSpec::default(), &ProcessSettings::default()),
        |spec| sum(&spec.stop, &spec.settings),
    )
}

fn sum(stop: &StopSpec, settings: &ProcessSettings) -> Duration {
    let hook = settings.hooks.after_exit.as_ref();
    let after = hook.map_or(0, |hook| hook.timeout_ms);
    Duration::from_millis(stop.grace_ms.saturating_add(after))
}

/// Ends instances, all at once, whatever it takes. Tells whether one could not be ended.
async fn end(dirs: &Dirs, instances: Vec<InstanceName>, kill: bool) -> bool {
    let mut tasks = JoinSet::new();
    for instance in instances {
        let dirs = dirs.clone();
        tasks.spawn(async move {
            let Err(why) = ask(&dirs, &instance, kill).await else {
                return Ok(());
            };
            out::note(format!(
                "{why}: {instance} is killed together with its shim"
            ));
            take_down(&dirs, &instance).await
        });
    }
    let mut failed = false;
    while let Some(joined) = tasks.join_next().await {
        if let Ok(Err(error)) = joined {
            failed = true;
            out::note(error.report());
        }
    }
    failed
}

/// Has the shim end its service, within its grace. The error is why it did not.
async fn ask(dirs: &Dirs, instance: &InstanceName, kill: bool) -> Result<(), String> {
    let asked = offline::ask_to_end(dirs, instance, kill).await;
    let Some(mut attached) = asked.map_err(|error| error.report())? else {
        return Ok(());
    };
    let mut within = match kill {
        true => OVERDUE,
        false => allowance(dirs, instance).saturating_add(OVERDUE),
    };
    while timeout(within, offline::ended(&mut attached.events))
        .await
        .is_err()
    {
        let status = attached.handle.status().await.ok();
        match status.and_then(|status| status.kill_in_ms) {
            // The service has asked its shim for more time.
            Some(left) if left > 0 && !kill => {
                within = Duration::from_millis(left).saturating_add(OVERDUE);
            }
            _ => return Err(format!("{instance} has not ended in time")),
        }
    }
    Ok(())
}

/// Kills the shim that holds an instance, and what it leaves behind.
async fn take_down(dirs: &Dirs, instance: &InstanceName) -> Result<(), Error> {
    let (folder, socket) = (dirs.instance(instance), dirs.shim_socket(instance));
    let failed = |source| Error::io("kill the shim that holds", &folder, source);
    let Some(pid) = instance_lock_held(&folder).map_err(failed)? else {
        return Ok(());
    };
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    // Of another pid namespace: it cannot be seen from here.
    let number = number.ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
    let process = Process::open(number).map_err(failed)?;
    // Only if it is still the holder is the descriptor known to be its own.
    if instance_lock_held(&folder).map_err(failed)? == Some(pid) {
        process.signal(Signal::KILL);
    }
    if timeout(OVERDUE, process.ended()).await.is_err() {
        return Err(failed(std::io::ErrorKind::TimedOut.into()));
    }
    let at = folder.clone();
    let swept = spawn_blocking(move || {
        if matches!(instance_lock_held(&at), Ok(None)) {
            let grant = read_record(&at).ok().flatten().and_then(|one| one.grant);
            sweep(&socket, grant.as_ref());
        }
    });
    swept.await.map_err(|error| failed(error.into()))
}
