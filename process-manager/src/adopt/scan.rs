//! Gathering the facts, and killing what a lost shim left behind.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use blackhole_bus_schema::dirs::{Dirs, unix_now_ns};
use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::process::{
    ExitResult, Failure, ProcessState, SpawnFailure, SpawnSpec, SpawnStep,
};
use blackhole_bus_schema::regular;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{Remains, Verdict, decide, describe, unseen};
use crate::host;
use crate::launch::chain;
use crate::machine;
use crate::shim::client::{
    Attached, ClientError, Record, ShimEvents, ShimHandle, ShimPhase, Started, attach,
    instance_lock_held, read_record,
};
use crate::shim::record::{RecordError, shim_was_lost};
use crate::shim::sweep;
use crate::table::Found;

/// Folders looked at at one time: each takes a thread of the blocking pool for
/// a moment and a connection to its shim.
const CONCURRENT: usize = 64;

/// Times that an instance which changes while it is looked at is looked at again.
const ATTEMPTS: usize = 100;

/// Before the next look at one whose shim lives and does not listen: it may just
/// be starting its service, and no event tells when a socket has come to listen.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Name of the file that holds the generation whose end was published.
const TOLD: &str = "told";

/// More bytes than a generation has digits.
const MOST_TOLD: u64 = 64;

/// How long the look at one instance may take. A file system that hangs keeps it
/// from nobody else.
const LOOK: Duration = Duration::from_secs(60);

/// An instance that was found.
#[derive(Debug)]
pub struct Adopted {
    /// For the table.
    pub found: Found,
    /// For one that lives: its first process, and its shim, where that answers.
    pub live: Option<(Started, Option<(ShimHandle, ShimEvents)>)>,
}

/// What a scan found.
#[derive(Debug, Default)]
pub struct Scan {
    /// Instances, in no order.
    pub adopted: Vec<Adopted>,
    /// What could not be looked at, for a person.
    pub problems: Vec<String>,
}

/// Looks at all folders of `dirs` that are the process-manager `owner`'s. Never fails: what goes wrong with one
/// instance is a problem of that one.
pub async fn scan(dirs: &Dirs, owner: &str) -> Scan {
    let mut scan = Scan::default();
    let folder = dirs.state.join("instances");
    let boot = Arc::new(match host::boot_id() {
        Ok(boot) => boot,
        Err(error) => {
            scan.problems
                .push(format!("the boot id is not known: {error}"));
            String::new()
        }
    });
    let names = match list(&folder, &mut scan.problems) {
        Ok(names) => names,
        Err(error) => {
            scan.problems
                .push(format!("cannot list {}: {error}", folder.display()));
            return scan;
        }
    };
    let places = Arc::new(Semaphore::new(CONCURRENT));
    let mut tasks = JoinSet::new();
    for name in names {
        if super::owner(&dirs.instance(&name)) != owner {
            continue;
        }
        let (dirs, boot, places) = (dirs.clone(), boot.clone(), places.clone());
        tasks.spawn(async move {
            let _place = places.acquire_owned().await;
            let looked = tokio::time::timeout(LOOK, look(&dirs, &boot, name.clone())).await;
            looked.unwrap_or_else(|_| {
                let folder = dirs.instance(&name);
                Err(format!(
                    "{name}: {} does not answer: left alone until its next start",
                    folder.display()
                ))
            })
        });
    }
    while let Some(looked) = tasks.join_next().await {
        match looked {
            Ok(Ok(adopted)) => scan.adopted.extend(adopted),
            Ok(Err(problem)) => scan.problems.push(problem),
            Err(error) => scan
                .problems
                .push(format!("an instance could not be looked at: {error}")),
        }
    }
    scan
}

fn list(folder: &Path, problems: &mut Vec<String>) -> std::io::Result<Vec<InstanceName>> {
    let mut names = Vec::new();
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(names),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        match name.to_str().map(str::parse::<InstanceName>) {
            Some(Ok(name)) => names.push(name),
            _ => problems.push(format!(
                "{} is no instance's folder: left alone",
                entry.path().display()
            )),
        }
    }
    Ok(names)
}

/// Whether a file was written last before the host went up.
fn before_boot(path: &Path) -> bool {
    let written = std::fs::metadata(path).and_then(|data| data.modified());
    let since = written.map(|at| at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default());
    since.is_ok_and(|since| since.as_nanos() < u128::from(host::booted_at()))
}

async fn look(dirs: &Dirs, boot: &str, name: InstanceName) -> Result<Option<Adopted>, String> {
    let folder = dirs.instance(&name);
    let mut problem = String::new();
    for _ in 0..ATTEMPTS {
        let at = folder.clone();
        let facts = blocking(move || {
            // The lock first: when it is free, the record does not change any more.
            let held = instance_lock_held(&at);
            let remains = match read_record(&at) {
                Ok(None) => Remains::Nothing,
                Ok(Some(record)) => Remains::Record(Box::new(record)),
                Err(RecordError::Damaged { path, problem }) if before_boot(&path) => {
                    // A loss of power may leave parts of two records: nothing of either lives.
                    tracing::warn!(path = %path.display(), problem, "of an earlier boot, and void");
                    Remains::Nothing
                }
                Err(error) => Remains::Unreadable(error),
            };
            (held, remains, told(&at))
        });
        let (held, remains, told) = facts.await?;
        let held = held.map_err(|error| format!("{name}: cannot examine the lock: {error}"))?;
        if held.is_none() {
            sweep_unrecorded(dirs, boot, &name, &remains).await?;
            return settle(&folder, boot, &name, remains, told).await;
        }
        match attach(dirs, &name).await {
            Ok(attached) => return Ok(Some(living(&name, attached, &remains, told))),
            // It ended meanwhile, or is only just starting: look again.
            Err(error @ ClientError::NoShim { .. }) => problem = chain(&error),
            Err(error) => {
                problem = chain(&error);
                if let Some(adopted) = unreachable(&name, &remains) {
                    tracing::error!(instance = %name, error = problem, "its shim lives and does not answer");
                    return Ok(Some(adopted));
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
    }
    Err(format!("{name}: {problem}"))
}

/// One that lives.
fn living(
    name: &InstanceName,
    attached: Attached,
    remains: &Remains,
    told: Option<(Generation, u64)>,
) -> Adopted {
    let Attached {
        status,
        handle,
        events,
    } = attached;
    let record = match remains {
        Remains::Record(record) if record.generation == status.generation => Some(&**record),
        _ => None,
    };
    let (pid, started_at) = (status.started.pid, status.started.started_at);
    let state = match status.phase {
        ShimPhase::Running => ProcessState::Running { pid, started_at },
        ShimPhase::Stopping => ProcessState::Stopping { pid, started_at },
    };
    let mut shown = describe(name, status.generation, state, record);
    shown.notify = status.notify;
    shown.lost_log_lines = status.loss.log_lines;
    shown.steps.clone_from(&status.started.steps);
    shown.previous_exit = status.previous_exit;
    // A restart by permit that no manager has told of yet.
    let before = shown.previous_exit.as_ref().map(|exit| exit.generation);
    let news = before.is_some_and(|before| told.is_none_or(|(told, _)| told < before));
    let found = Found {
        record: shown,
        spec: spec_of(name, record),
        news,
    };
    Adopted {
        found,
        live: Some((status.started, Some((handle, events)))),
    }
}

/// One whose shim holds the lock and does not answer: it is shown as its
/// record says, and can only be killed.
fn unreachable(name: &InstanceName, remains: &Remains) -> Option<Adopted> {
    let Remains::Record(record) = remains else {
        return None;
    };
    if record.exit.is_some() || record.failure.is_some() {
        // Of the one before: the shim has not come to write its own.
        return None;
    }
    let started = record.started.clone()?;
    let state = ProcessState::Running {
        pid: started.pid,
        started_at: started.started_at,
    };
    let shown = describe(name, record.generation, state, Some(record));
    let found = Found {
        record: shown,
        spec: spec_of(name, Some(record)),
        news: false,
    };
    Some(Adopted {
        found,
        live: Some((started, None)),
    })
}

/// A shim that ends in order leaves its lock empty. Where one is not, beside a record
/// that has its end, or none, that is the lock of a lost shim which could not
/// write: what it left behind is killed. Nothing is after a boot.
async fn sweep_unrecorded(
    dirs: &Dirs,
    boot: &str,
    name: &InstanceName,
    remains: &Remains,
) -> Result<(), String> {
    let grant = match remains {
        Remains::Record(record) if record.boot_id != boot => return Ok(()),
        // Lost as well, and swept as such.
        Remains::Record(record) if record.exit.is_none() && record.failure.is_none() => {
            return Ok(());
        }
        Remains::Record(record) => record.grant.clone(),
        Remains::Nothing | Remains::Unreadable(_) => None,
    };
    if !shim_was_lost(&dirs.instance(name)) {
        return Ok(());
    }
    let socket = dirs.shim_socket(name);
    let killed = blocking(move || sweep(&socket, grant.as_ref())).await?;
    tracing::warn!(instance = %name, killed, "its shim was lost and could not write its record");
    Ok(())
}

/// One that no shim holds.
async fn settle(
    folder: &Path,
    boot: &str,
    name: &InstanceName,
    remains: Remains,
    told: Option<(Generation, u64)>,
) -> Result<Option<Adopted>, String> {
    let (generation, state) = match decide(&remains, boot, host::booted_at()) {
        Verdict::Nothing => return Ok(None),
        Verdict::Over(generation, state) => (generation, state),
        Verdict::Lost => {
            let Remains::Record(record) = &remains else {
                return Ok(None);
            };
            let (generation, lost) = (record.generation, record.clone());
            let state = match told {
                // An earlier manager has killed what was left of it.
                Some((told, at)) if told == generation => lost_state(record, at, 0),
                _ => blocking(move || sweep_lost(&lost)).await?,
            };
            (generation, state)
        }
    };
    let record = match &remains {
        Remains::Record(record) => Some(&**record),
        _ => None,
    };
    if let Remains::Unreadable(error) = &remains {
        tracing::error!(instance = %name, folder = %folder.display(), error = chain(error), "unreadable record");
    }
    let news = told.is_none_or(|(told, _)| told != generation);
    let shown = describe(name, generation, state, record);
    let found = Found {
        record: shown,
        spec: spec_of(name, record),
        news,
    };
    Ok(Some(Adopted { found, live: None }))
}

/// Kills what a lost shim left behind. Blocks.
pub(crate) fn sweep_lost(record: &Record) -> ProcessState {
    let killed = sweep(&record.socket, record.grant.as_ref());
    tracing::warn!(instance = %record.instance, killed, "its shim was lost");
    lost_state(record, unix_now_ns(), killed)
}

fn lost_state(record: &Record, ended_at: u64, killed: u32) -> ProcessState {
    if record.started.is_some() {
        machine::ended(unseen(record, ExitResult::ShimLost, ended_at, killed))
    } else {
        let failure = SpawnFailure {
            step: SpawnStep::Exec,
            operation: "its shim vanished while starting it".to_owned(),
            errno: 0,
            hint: "see log/fork-server.log in the state directory".to_owned(),
        };
        ProcessState::Failed {
            failure: Failure::Spawn { failure },
        }
    }
}

fn spec_of(name: &InstanceName, record: Option<&Record>) -> Option<Box<SpawnSpec>> {
    match record?.spec() {
        Ok(spec) => Some(Box::new(spec)),
        Err(error) => {
            tracing::warn!(instance = %name, %error, "how it was started cannot be read: it is not probed");
            None
        }
    }
}

/// Which generation's end was published, and when (Unix time in nanoseconds).
fn told(folder: &Path) -> Option<(Generation, u64)> {
    let path = folder.join(TOLD);
    let text = String::from_utf8(regular::read(&path, MOST_TOLD).ok()?).ok()?;
    let generation = text.trim().parse().ok().map(Generation)?;
    let modified = std::fs::metadata(&path)
        .and_then(|metadata| metadata.modified())
        .ok()?;
    let at = modified.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some((generation, u64::try_from(at.as_nanos()).ok()?))
}

/// Notes that an end was published, so that the next manager does not tell it
/// again. Blocks. Lost, it is told twice: subscribers go by state and generation.
pub fn note_told(dirs: &Dirs, name: &InstanceName, generation: Generation) {
    let path = dirs.instance(name).join(TOLD);
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    // As long as any, over the one before: ext4 brings a file that was truncated and written
    // to the disk when it is closed (`auto_da_alloc`, see ext4(5)).
    let text = format!("{:<20}\n", generation.0);
    let written = regular::open(&path, &mut options).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        let whole = text.len() as u64;
        match file.metadata()?.len() > whole {
            true => file.set_len(whole),
            false => Ok(()),
        }
    });
    // Something else is in its place.
    let written = written.or_else(|_| regular::write(&path, text.as_bytes()));
    if let Err(error) = written {
        tracing::debug!(path = %path.display(), %error, "an end will be told again");
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| error.to_string())
}
