//! Break-glass: without any daemon, from the records on disk and the shims'
//! own sockets. `--offline` and the end of `down` use it.

use std::path::PathBuf;
use std::time::Duration;

use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::names::InstanceName;
use blackhole_bus_schema::process::{Failure, InstanceRecord, NotifyState, ProcessState};
use blackhole_process_manager::shim::client::{
    Attached, ClientError, ShimEvent, ShimEvents, ShimPhase, ShimStatus, StopRequest, attach,
    instance_lock_held, read_record,
};
use blackhole_process_manager::shim::record::Record;
use blackhole_process_manager::shim::{keeps, release_now};
use tokio::task::JoinSet;

use crate::error::Error;

/// Instances that have a folder: all that ever ran here and were not forgotten.
pub fn instances(dirs: &Dirs) -> Vec<InstanceName> {
    let mut names: Vec<InstanceName> = std::fs::read_dir(dirs.state.join("instances"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    names.sort();
    names
}

/// Instances that a live shim holds.
pub async fn live(dirs: &Dirs) -> Vec<InstanceName> {
    instances(dirs)
        .into_iter()
        .filter(|instance| is_held(dirs, instance))
        .collect()
}

/// Whether a live shim holds an instance. When that cannot be told it counts as held.
pub fn is_held(dirs: &Dirs, instance: &InstanceName) -> bool {
    instance_lock_held(&dirs.instance(instance)).map_or(true, |holder| holder.is_some())
}

/// What the shims and the records on disk tell of all instances.
///
/// # Errors
/// When the instances' folder cannot be used.
pub async fn records(dirs: &Dirs) -> Result<Vec<InstanceRecord>, Error> {
    let mut records = Vec::new();
    for instance in instances(dirs) {
        if let Some(record) = record(dirs, &instance).await {
            records.push(record);
        }
    }
    Ok(records)
}

async fn record(dirs: &Dirs, instance: &InstanceName) -> Option<InstanceRecord> {
    let disk = read_record(&dirs.instance(instance)).ok().flatten();
    let attached = if is_held(dirs, instance) {
        attach(dirs, instance).await.ok()
    } else {
        None
    };
    match (attached, disk) {
        (Some(Attached { status, .. }), disk) => {
            let (pid, started_at) = (status.started.pid, status.started.started_at);
            let restarts = restarts_now(&status, disk.as_ref());
            // The record may still be the one of the spawn before.
            let disk = disk.filter(|disk| disk.generation == status.generation);
            Some(InstanceRecord {
                instance: instance.clone(),
                generation: status.generation,
                state: match status.phase {
                    ShimPhase::Running => ProcessState::Running { pid, started_at },
                    ShimPhase::Stopping => ProcessState::Stopping { pid, started_at },
                },
                notify: status.notify,
                steps: status.started.steps,
                grant: disk.and_then(|disk| disk.grant),
                adopted: false,
                lost_log_lines: status.loss.log_lines,
                previous_exit: status.previous_exit,
                restarts,
            })
        }
        // Its shim has the lock and does not answer: it runs as far as anybody knows.
        (None, Some(disk)) if is_held(dirs, instance) => Some(held(disk)),
        (None, Some(disk)) => Some(from_disk(disk)),
        (None, None) => None,
    }
}

/// Restarts so far: those before the spawn, which stand in the record, and those
/// that the shim has made since, which it knows better than the record.
fn restarts_now(status: &ShimStatus, disk: Option<&Record>) -> u32 {
    let at_spawn = disk
        .and_then(|disk| Some(disk.spec().ok()?.restarts.saturating_sub(disk.restarts)))
        .unwrap_or(0);
    at_spawn.saturating_add(status.restarts)
}

fn held(record: Record) -> InstanceRecord {
    let runs = match (&record.started, &record.exit, &record.failure) {
        (Some(started), None, None) => Some(ProcessState::Running {
            pid: started.pid,
            started_at: started.started_at,
        }),
        // Of the spawn before.
        _ => None,
    };
    let mut shown = from_disk(record);
    shown.state = runs.unwrap_or(shown.state);
    shown
}

fn from_disk(record: Record) -> InstanceRecord {
    let restarts = record.spec().map_or(0, |spec| spec.restarts);
    let steps = record.started.as_ref();
    let steps = steps.map_or_else(Vec::new, |started| started.steps.clone());
    let state = match (record.exit, record.failure, record.started) {
        (Some(exit), _, _) if exit.result.is_failure() => ProcessState::Failed {
            failure: Failure::Exit { exit },
        },
        (Some(exit), _, _) => ProcessState::Terminated { exit: Some(exit) },
        (None, Some(failure), _) => ProcessState::Failed {
            failure: Failure::Spawn { failure },
        },
        // It ran, and nobody saw its end.
        (None, None, _) => ProcessState::Terminated { exit: None },
    };
    InstanceRecord {
        instance: record.instance,
        generation: record.generation,
        state,
        notify: NotifyState::default(),
        steps,
        grant: record.grant,
        adopted: false,
        lost_log_lines: 0,
        previous_exit: record.previous_exit,
        restarts,
    }
}

/// How one stop went.
pub type Stopped = (InstanceName, Result<(), Error>);

/// Stops instances through their shims, all at once, and waits until nothing
/// is left of them. `kill` does not wait for their grace.
pub async fn stop(
    dirs: &Dirs,
    instances: Vec<InstanceName>,
    kill: bool,
    within: Option<Duration>,
) -> Vec<Stopped> {
    let mut tasks = JoinSet::new();
    for instance in instances {
        let dirs = dirs.clone();
        tasks.spawn(async move {
            let stopping = stop_one(&dirs, &instance, kill);
            let result = match within {
                None => stopping.await,
                Some(within) => tokio::time::timeout(within, stopping)
                    .await
                    .unwrap_or_else(|_| {
                        Err(Error::TimedOut {
                            operation: format!("stop {instance}"),
                            after: within,
                        })
                    }),
            };
            (instance, result)
        });
    }
    let mut stopped = tasks.join_all().await;
    stopped.sort_by(|(one, _), (other, _)| one.cmp(other));
    stopped
}

async fn stop_one(dirs: &Dirs, instance: &InstanceName, kill: bool) -> Result<(), Error> {
    if let Some(mut attached) = ask_to_end(dirs, instance, kill).await? {
        ended(&mut attached.events).await;
    }
    // What is kept for the successor of one that has ended by itself.
    let socket = dirs.shim_socket(instance);
    if keeps(&socket) && !is_held(dirs, instance) {
        let _ = tokio::task::spawn_blocking(move || release_now(&socket)).await;
    }
    Ok(())
}

/// Asks a shim to end its service with its grace, or to kill it; `None` when none
/// holds the instance any more.
///
/// # Errors
/// When it does not answer.
pub async fn ask_to_end(
    dirs: &Dirs,
    instance: &InstanceName,
    kill: bool,
) -> Result<Option<Attached>, Error> {
    let operation = || format!("stop {instance}");
    let attached = match attach(dirs, instance).await {
        Ok(attached) => attached,
        // It has ended meanwhile.
        Err(ClientError::NoShim { .. }) => return Ok(None),
        Err(error) => return Err(shim_error(operation(), error)),
    };
    let asked = if kill {
        attached.handle.kill(false).await
    } else {
        attached.handle.stop(StopRequest::default()).await
    };
    match asked {
        Ok(()) | Err(ClientError::Closed) => Ok(Some(attached)),
        Err(error) => Err(shim_error(operation(), error)),
    }
}

/// Waits until nothing is left of an instance. Cancel safe.
pub async fn ended(events: &mut ShimEvents) {
    while let Some(event) = events.next().await {
        if matches!(event, ShimEvent::Exited { .. } | ShimEvent::Gone) {
            break;
        }
    }
}

/// Sends a signal to the first process of an instance, through its shim.
///
/// # Errors
/// When no shim holds it or it refuses.
pub async fn signal(dirs: &Dirs, instance: &InstanceName, signal: i32) -> Result<(), Error> {
    let operation = || format!("signal {instance}");
    let attached = attach(dirs, instance)
        .await
        .map_err(|error| shim_error(operation(), error))?;
    attached
        .handle
        .signal(signal)
        .await
        .map_err(|error| shim_error(operation(), error))
}

fn shim_error(operation: String, error: ClientError) -> Error {
    match error {
        ClientError::NoShim { .. } => Error::Failed {
            message: format!("cannot {operation}: it does not run"),
            hint: "`blackhole --offline status` shows what does".to_owned(),
        },
        other => Error::Bus {
            operation,
            source: Box::new(other),
        },
    }
}

/// Folder of an instance's logs.
pub fn log_dir(dirs: &Dirs, instance: &InstanceName) -> PathBuf {
    dirs.instance(instance)
}
