//! From a request to a child that is ready to be made: step one of a spawn.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use blackhole_bus_schema::process::{
    Capabilities, ProcessSettings, SpawnFailure, SpawnStep, capability_number,
};
use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, pipe_with};

use super::capabilities;
use super::cgroups;
use super::connection::Connection;
use super::exec::{Identity, Plan};
use super::hint::Who;
use super::identity::{identity, program};
use super::lock::Lock;
use super::logs::Pipes;
use super::notify::Notify;
use super::passed::{Copies, Passed};
use super::protocol::{Loss, SpawnRequest};
use super::record::{self, Writer};

/// Of a service that asks for no other.
const DEFAULT_UMASK: u32 = 0o022;

/// The last capability of Linux 5.9 and later, where the kernel does not tell.
const LAST_CAPABILITY: u32 = 40;

/// The instance's lock and record: held from here to the end.
#[derive(Debug)]
pub(crate) struct Held {
    /// Given up when this is dropped.
    pub(crate) lock: Lock,
    /// What the next one will read.
    pub(crate) record: Writer,
}

/// Makes a failure of the spawn.
pub(crate) fn failure(
    step: SpawnStep,
    operation: impl Into<String>,
    errno: i32,
    hint: impl Into<String>,
) -> SpawnFailure {
    SpawnFailure {
        step,
        operation: operation.into(),
        errno,
        hint: hint.into(),
    }
}

/// Why an instance could not be taken.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) failure: SpawnFailure,
    /// The shim that holds it already, where that is why.
    pub(crate) held_by: Option<u32>,
}

impl From<SpawnFailure> for Refusal {
    fn from(failure: SpawnFailure) -> Self {
        Self {
            failure,
            held_by: None,
        }
    }
}

pub(super) fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(0)
}

/// Takes the instance's lock and begins its record, for a client that is still
/// there: a request that waited here longer than its client lived is nobody's,
/// and the service would be held by none. The client is looked for once more
/// under the lock, so that one which left and finds the lock free may rely on
/// nothing coming of its request.
pub(crate) fn hold(
    request: &SpawnRequest,
    client: &Connection,
    boot_id: &str,
) -> Result<Held, Refusal> {
    let step = SpawnStep::PrepareEnvironment;
    let present = || match client.is_gone() {
        true => Err(failure(step, "wait for a shim", 0, "the client went away")),
        false => Ok(()),
    };
    present()?;
    let dir = &request.instance_dir;
    let path = record::lock_path(dir);
    let operation = || format!("lock {}", path.display());
    let taken = match Lock::take(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.map_err(|error| {
                let operation = format!("create directory {}", dir.display());
                failure(step, operation, errno(&error), "")
            })?;
            Lock::take(&path)
        }
        other => other,
    };
    let lock = match taken {
        Ok(Ok(lock)) => lock,
        Ok(Err(holder)) => {
            let hint = format!("the instance is alive: shim {holder} holds it");
            return Err(Refusal {
                failure: failure(step, operation(), libc::EAGAIN, hint),
                held_by: Some(holder),
            });
        }
        Err(error) => return Err(failure(step, operation(), errno(&error), "").into()),
    };
    if let Err(failure) = present() {
        lock.remove();
        return Err(failure.into());
    }
    let record = Writer::begin(request, boot_id, std::process::id());
    Ok(Held { lock, record })
}

/// Counts a write of the record that failed.
pub(crate) fn note_record(loss: &mut Loss, written: io::Result<()>) {
    if let Err(error) = written {
        loss.record_writes += 1;
        loss.record_error = Some(error.to_string());
    }
}

/// Everything around a child that is ready to be made.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) plan: Plan,
    /// Ends of the pipes to read the service's output and errors from.
    pub(crate) output: [OwnedFd; 2],
    pub(crate) notify: Option<Notify>,
    /// What it finds open.
    pub(crate) passed: Passed,
    /// As whom it will run, for hints.
    pub(crate) who: Who,
    pub(crate) warnings: Vec<String>,
}

/// What a successor by permit needs; the sockets are those of the one before.
#[derive(Debug)]
pub(crate) struct Successor {
    pub(crate) plan: Plan,
    pub(crate) output: [OwnedFd; 2],
    pub(crate) who: Who,
}

impl Successor {
    /// Its process has been made.
    pub(crate) fn pipes(self) -> Pipes {
        Pipes {
            read: self.output,
            write: Some(self.plan.output),
        }
    }
}

/// Looks up users and programs and makes pipes and strings for a successor whose
/// notification socket is at `notify`.
pub(crate) fn successor(
    request: &SpawnRequest,
    notify: Option<&Path>,
    passed: &mut Passed,
) -> Result<Successor, SpawnFailure> {
    let mut environment = request.env.clone();
    let (identity, who) = identity(request, &mut environment)?;
    let (plan, output) = service_plan(request, environment, identity, &who, notify, passed)?;
    Ok(Successor { plan, output, who })
}

/// What runs `command` in the context of the service: a child like that, with
/// `more` in its environment, in v2 cgroups of its own that are called `group`. It is told of
/// the socket at `notify`, and its standard input is the file `stdin` where that is not the
/// caller's own.
pub(crate) fn beside(
    request: &SpawnRequest,
    command: &[String],
    more: &[(&str, String)],
    group: &str,
    notify: Option<&Path>,
    stdin: Option<&str>,
    output: [OwnedFd; 2],
) -> Result<(Plan, Who), SpawnFailure> {
    let mut environment = request.env.clone();
    let (identity, who) = identity(request, &mut environment)?;
    let own = more
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone()));
    environment.extend(own);
    let context = Context {
        command,
        environment,
        identity,
        who: &who,
        notify,
        group,
        stdin,
        copies: Copies::default(),
        watchdog_us: None,
    };
    Ok((plan(request, context, output)?, who))
}

/// Looks up users and programs, makes sockets, pipes and strings.
/// Descriptors that were kept for this instance are left in `kept` on failure.
pub(crate) fn prepare(
    request: &SpawnRequest,
    kept: &mut Option<Passed>,
) -> Result<Prepared, SpawnFailure> {
    let mut warnings = Vec::new();
    let mut environment = request.env.clone();
    let (identity, who) = identity(request, &mut environment)?;
    let notify_path = super::notify_path(&request.socket);
    let bind = || Notify::bind(&notify_path, who.uid);
    let notify = match in_folder(&notify_path, bind) {
        Ok(notify) => Some(notify),
        Err(error) => {
            warnings.push(format!(
                "no notification socket {}: {error}",
                notify_path.display()
            ));
            None
        }
    };
    let socket = notify.as_ref().map(Notify::path);
    let opened = Passed::open(request, &who);
    let mut passed = opened.map_err(|(failure, had)| {
        *kept = Some(had);
        failure
    })?;
    match service_plan(request, environment, identity, &who, socket, &mut passed) {
        Ok((plan, output)) => Ok(Prepared {
            plan,
            output,
            notify,
            passed,
            who,
            warnings,
        }),
        Err(failure) => {
            *kept = Some(passed);
            Err(failure)
        }
    }
}

/// What the service itself does, and the ends of its pipes that stay here.
fn service_plan(
    request: &SpawnRequest,
    environment: BTreeMap<String, String>,
    identity: Option<Identity>,
    who: &Who,
    notify: Option<&Path>,
    passed: &mut Passed,
) -> Result<(Plan, [OwnedFd; 2]), SpawnFailure> {
    let step = SpawnStep::PrepareEnvironment;
    let copies = passed
        .copies()
        .map_err(|error| failure(step, "copy the descriptors to pass on", errno(&error), ""))?;
    let ([out_read, err_read], output) = pipes()?;
    let context = Context {
        command: &request.command,
        environment,
        identity,
        who,
        notify,
        group: &cgroups::run_group_name(request.generation),
        stdin: request.settings.stdin.as_deref(),
        copies,
        watchdog_us: request.watchdog_us,
    };
    Ok((plan(request, context, output)?, [out_read, err_read]))
}

/// Those of a start that was only rehearsed.
static PIPES: Mutex<Option<TwoPipes>> = Mutex::new(None);

/// Keeps the pipes of a successor that is never to be made for the next start.
pub(super) fn set_pipes_aside(successor: Successor) {
    let pipes = (successor.output, successor.plan.output);
    *PIPES.lock().unwrap_or_else(PoisonError::into_inner) = Some(pipes);
}

type TwoPipes = ([OwnedFd; 2], [OwnedFd; 2]);

/// Ends of two pipes: to read from without waiting, and to write to.
pub(crate) fn pipes() -> Result<TwoPipes, SpawnFailure> {
    let aside = PIPES.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(pipes) = aside {
        return Ok(pipes);
    }
    let step = SpawnStep::PrepareEnvironment;
    let pipe = || {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)
            .map_err(|error| failure(step, "make a pipe", error.raw_os_error(), ""))?;
        // Only this end: the service's must block, as programs expect.
        rustix::fs::fcntl_setfl(&read, OFlags::NONBLOCK)
            .map_err(|error| failure(step, "set up a pipe", error.raw_os_error(), ""))?;
        Ok((read, write))
    };
    let ((out_read, out_write), (err_read, err_write)) = (pipe()?, pipe()?);
    Ok(([out_read, err_read], [out_write, err_write]))
}

/// What tells one child of an instance from another.
struct Context<'a> {
    command: &'a [String],
    environment: BTreeMap<String, String>,
    identity: Option<Identity>,
    who: &'a Who,
    notify: Option<&'a Path>,
    /// Of its v2 cgroups, below the instance's own.
    group: &'a str,
    stdin: Option<&'a str>,
    copies: Copies,
    /// Within which it has to give a sign of life, in microseconds.
    watchdog_us: Option<u64>,
}

/// Set where there is something to say, and never taken from the configuration.
const OWN_VARIABLES: [&str; 6] = [
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
];

/// What the child does, which writes to `output`.
fn plan(
    request: &SpawnRequest,
    context: Context<'_>,
    output: [OwnedFd; 2],
) -> Result<Plan, SpawnFailure> {
    let Context {
        command,
        mut environment,
        identity,
        who,
        notify,
        group,
        stdin,
        copies,
        watchdog_us,
    } = context;
    for name in OWN_VARIABLES {
        environment.remove(name);
    }
    let mut pid_variables = Vec::new();
    if !copies.descriptors.is_empty() {
        let count = copies.descriptors.len().to_string();
        environment.insert("LISTEN_FDS".to_owned(), count);
        environment.insert("LISTEN_FDNAMES".to_owned(), copies.names);
        pid_variables.push("LISTEN_PID");
    }
    if let Some(within) = watchdog_us {
        environment.insert("WATCHDOG_USEC".to_owned(), within.to_string());
        pid_variables.push("WATCHDOG_PID");
    }
    let directory = request
        .working_dir
        .clone()
        .unwrap_or_else(|| "/".to_owned());
    let program = program(command, &environment, who)?;
    let mut variables = Vec::with_capacity(environment.len() + 1);
    for (name, value) in &environment {
        if name.is_empty() || name.contains('=') {
            let hint = "a variable's name is neither empty nor has a '='";
            return Err(failure(
                SpawnStep::PrepareEnvironment,
                format!("set variable {name:?}"),
                0,
                hint,
            ));
        }
        let what = || format!("set variable {name}");
        variables.push(c_string(
            format!("{name}={value}"),
            SpawnStep::PrepareEnvironment,
            what,
        )?);
    }
    if let Some(notify) = notify {
        let text = [b"NOTIFY_SOCKET=", notify.as_os_str().as_bytes()].concat();
        variables.push(c_string(text, SpawnStep::PrepareEnvironment, || {
            "set NOTIFY_SOCKET".into()
        })?);
    }
    let mut arguments = Vec::with_capacity(command.len());
    for argument in command {
        arguments.push(c_string(argument.as_str(), SpawnStep::Exec, || {
            "pass an argument".into()
        })?);
    }
    let step = SpawnStep::PrepareEnvironment;
    let settings = &request.settings;
    let grant = request.grant.as_ref();
    let (join, born_in, born_in_procs) = cgroups::ways_in(grant, group)?;
    let score = grant.and_then(|grant| grant.oom_score_adj).unwrap_or(0);
    Ok(Plan {
        join,
        born_in,
        born_in_procs,
        oom_score_adj: score.to_string().into_bytes(),
        nofile: request.nofile,
        rlimits: rlimits(settings),
        nice: settings.nice,
        output,
        identity,
        capabilities: capability_sets(settings, who)?,
        umask: settings.umask.unwrap_or(DEFAULT_UMASK),
        stdin: match stdin {
            Some(file) => Some(c_string(file, step, || {
                "use the file for standard input".into()
            })?),
            None => None,
        },
        no_new_privs: settings.no_new_privs,
        handlers: false,
        passed: copies.descriptors,
        pid_variables,
        directory: c_string(directory, step, || "use the working directory".into())?,
        program: c_string(program.into_os_string().as_bytes(), SpawnStep::Exec, || {
            "use the program's path".into()
        })?,
        arguments,
        environment: variables,
    })
}

/// In the numbers of setrlimit(2).
fn rlimits(settings: &ProcessSettings) -> Vec<(u32, u64, u64)> {
    let number = |value: Option<u64>| value.unwrap_or(u64::MAX);
    let limits = settings.rlimits.iter();
    limits
        .map(|(limit, value)| (limit.number(), number(value.soft), number(value.hard)))
        .collect()
}

/// As sets of bits. One that is not root has those that are kept as ambient ones.
fn capability_sets(
    settings: &ProcessSettings,
    who: &Who,
) -> Result<Option<capabilities::Capabilities>, SpawnFailure> {
    let Some(capabilities) = &settings.capabilities else {
        return Ok(None);
    };
    let (Capabilities::Keep(names) | Capabilities::Drop(names)) = capabilities;
    let mut bits = 0_u64;
    for name in names {
        let Some(number) = capability_number(name) else {
            let operation = format!("look up capability {name}");
            let hint = "correct `capabilities`, see capabilities(7)";
            return Err(failure(SpawnStep::ApplyLimits, operation, 0, hint));
        };
        bits |= 1_u64.wrapping_shl(number);
    }
    let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap")
        .ok()
        .and_then(|text| text.trim().parse().ok());
    Ok(Some(match capabilities {
        Capabilities::Keep(_) => capabilities::Capabilities {
            left: bits,
            ambient: if who.uid == 0 { 0 } else { bits },
            last: last.unwrap_or(LAST_CAPABILITY),
        },
        Capabilities::Drop(_) => capabilities::Capabilities {
            left: !bits,
            ambient: 0,
            last: last.unwrap_or(LAST_CAPABILITY),
        },
    }))
}

pub(super) fn c_string(
    text: impl Into<Vec<u8>>,
    step: SpawnStep,
    operation: impl FnOnce() -> String,
) -> Result<CString, SpawnFailure> {
    CString::new(text).map_err(|_| failure(step, operation(), libc::EINVAL, "it holds a NUL byte"))
}

/// Binds the instance's socket in the place of a stale one. The caller holds the
/// lock. Done when the program runs: until then there is nothing to answer.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    let listener = in_folder(path, || match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        other => other,
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Does what needs the folder of `path`; makes that where it is missing.
fn in_folder<T>(path: &Path, work: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match (work(), path.parent()) {
        (Err(error), Some(dir)) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o711).create(dir)?;
            work()
        }
        (other, _) => other,
    }
}
