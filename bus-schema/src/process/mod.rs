//! Processes: how one is started, what states it passes, how it ended.
//! Commands go to a process-manager (`cmd.process-manager.`), events come from
//! it (`evt.process.<instance>.`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::health::Probes;
use crate::limits::LimitGrant;
use crate::message::{Command, Message, Snapshot};
use crate::names::{Generation, InstanceName};

mod exit;
mod log;
mod settings;
mod signal;
mod state;

pub use exit::{ExitRecord, ExitResult, ExitStatus};
pub use log::{FollowLog, LogChunk, LogCursor, LogLines, ReadLog};
pub use settings::{
    CAPABILITIES, Capabilities, EnvFile, Hook, Hooks, ProcessSettings, ReloadAction, ReloadSpec,
    Rlimit, RlimitValue, SocketSpec, capability_name, capability_number,
};
pub use signal::{signal_name, signal_number};
pub use state::{Failure, ProcessState, SpawnFailure, SpawnStep, StateName, StepTime};

/// Time to wait between the stop signal and the kill of the whole tree, in
/// milliseconds, when nothing else is configured.
pub const DEFAULT_GRACE_MS: u64 = 10_000;

/// How an instance is asked to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StopSpec {
    /// Number of the stop signal, see signal(7).
    pub signal: i32,
    /// Time between the signal and the kill of the whole tree, in milliseconds.
    pub grace_ms: u64,
}

impl Default for StopSpec {
    fn default() -> Self {
        Self {
            signal: 15,
            grace_ms: DEFAULT_GRACE_MS,
        }
    }
}

/// Where the output of an instance goes and how much of it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogSpec {
    /// The current file is rotated when it would grow past this many bytes.
    pub max_bytes: u64,
    /// Rotated files kept besides the current one: with 4 there are at most
    /// five files, with 0 only the current one.
    pub max_files: u32,
    /// A rotated file goes when its last line is older than this, in
    /// milliseconds; a current file whose first line is older is rotated with
    /// the next line.
    pub max_age_ms: Option<u64>,
    /// Most bytes of all files together, the current one included (at its
    /// largest, so at least `max_bytes`): the oldest go first.
    pub max_total_bytes: Option<u64>,
    /// Whether rotated files are compressed (gzip), by the process-manager.
    pub compress: bool,
    /// How lines are written.
    pub format: LogFormat,
}

impl Default for LogSpec {
    fn default() -> Self {
        Self {
            max_bytes: 16 * 1024 * 1024,
            max_files: 4,
            max_age_ms: None,
            max_total_bytes: None,
            compress: true,
            format: LogFormat::Text,
        }
    }
}

/// The form of a line in a log file. Readers take both, in one file too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// `<time> <instance> <out|err> <F|P> <text>`, the bytes as they came.
    #[default]
    Text,
    /// One JSON object a line: `time`, `instance`, `stream`, `partial`, `text`,
    /// and `base64` (the bytes as they came) where they are not UTF-8.
    Json,
}

/// One immediate restart, granted ahead: the shim uses it without a message in
/// between when the service fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permit {
    /// The generation of the successor.
    pub generation: Generation,
    /// The permit is void when the service has run for longer than this, in milliseconds.
    pub expires_after_ms: Option<u64>,
}

/// Everything needed to start one instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpawnSpec {
    /// The instance to start.
    pub instance: InstanceName,
    /// The supervisor's decision this belongs to.
    pub generation: Generation,
    /// Program and arguments. The program is an absolute path or looked up in `PATH`.
    pub command: Vec<String>,
    /// Environment, over a minimal base (`PATH`, `LANG`) and below `BLACKHOLE_…`.
    /// Values may hold `${env:NAME}` and `${file:PATH}`, which the
    /// process-manager resolves at the spawn.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory; `None` is `/`.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// User to run as, by name or number; `None` keeps the manager's.
    #[serde(default)]
    pub user: Option<String>,
    /// Group to run as, by name or number; `None` is the user's own.
    #[serde(default)]
    pub group: Option<String>,
    /// Soft and hard `RLIMIT_NOFILE`; `None` restores what the manager was started with.
    #[serde(default)]
    pub open_files: Option<u64>,
    /// How it is stopped.
    #[serde(default)]
    pub stop: StopSpec,
    /// Exit codes that count as success.
    #[serde(default = "default_success_codes")]
    pub success_codes: Vec<i32>,
    /// What is asked of it while it runs.
    #[serde(default)]
    pub probes: Probes,
    /// Its log.
    #[serde(default)]
    pub logs: LogSpec,
    /// Limits granted ahead; `None` where no resource-controller answered.
    #[serde(default)]
    pub grant: Option<LimitGrant>,
    /// One restart granted ahead.
    #[serde(default)]
    pub permit: Option<Permit>,
    /// Restarts so far, for display.
    #[serde(default)]
    pub restarts: u32,
    /// What its process is made with besides.
    #[serde(default, skip_serializing_if = "ProcessSettings::is_default")]
    pub settings: ProcessSettings,
}

/// Exit codes that count as success where nothing else is configured.
pub fn default_success_codes() -> Vec<i32> {
    vec![0]
}

/// What a service said of itself over `NOTIFY_SOCKET`, see sd_notify(3).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NotifyState {
    /// It said `READY=1`.
    pub ready: bool,
    /// It said `STOPPING=1`.
    pub stopping: bool,
    /// Its last `STATUS=`.
    pub status: Option<String>,
    /// Monotonic age of its last `WATCHDOG=1`, in milliseconds.
    pub watchdog_age_ms: Option<u64>,
    /// It said `RELOADING=1`, and no `READY=1` since.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub reloading: bool,
    /// Its last `MAINPID=`, where that is a process of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub main_pid: Option<u32>,
}

/// Everything a process-manager knows of one instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// The instance.
    pub instance: InstanceName,
    /// Its latest spawn.
    pub generation: Generation,
    /// Its state.
    #[serde(flatten)]
    pub state: ProcessState,
    /// What it said of itself.
    #[serde(default)]
    pub notify: NotifyState,
    /// Steps of the latest spawn.
    #[serde(default)]
    pub steps: Vec<StepTime>,
    /// The limits it was started with.
    #[serde(default)]
    pub grant: Option<LimitGrant>,
    /// Whether a manager that did not start it holds it now.
    #[serde(default)]
    pub adopted: bool,
    /// Lines of its log that could not be written (disk full), since its start.
    #[serde(default)]
    pub lost_log_lines: u64,
    /// Restarts as told with the spawn plus permits used since.
    #[serde(default)]
    pub restarts: u32,
    /// How the generation before this one ended, where this one was started by
    /// permit: without a decision of the supervisor in between, perhaps while
    /// nobody was there to hear of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_exit: Option<ExitRecord>,
}

/// Start an instance. Refused with `FailedPrecondition` when the generation is
/// not newer than the last one or when a process lives, with `ResourceExhausted`
/// when `max_processes` is reached. Answered when the process runs or has failed to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spawn {
    /// What to start.
    pub spec: SpawnSpec,
}

/// Stop an instance: signal, grace, then the whole tree is killed. Answered
/// when nothing of it is left. Succeeds at once for one that does not live.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Which.
    pub instance: InstanceName,
    /// The generation meant; an older one than the current is refused.
    pub generation: Generation,
    /// Overrides what came with the spawn.
    #[serde(default)]
    pub stop: Option<StopSpec>,
    /// Counted as [`ExitResult::Unhealthy`] rather than as a stop.
    #[serde(default)]
    pub unhealthy: bool,
    /// It is to be started again: its sockets and stored descriptors are kept
    /// for its successor, so that no connection is refused meanwhile.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
}

/// Grant an instance that lives one restart ahead, or take it back. It stays
/// with its shim, whatever becomes of the daemons. A stop takes it back too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantPermit {
    /// Which.
    pub instance: InstanceName,
    /// The generation that lives; refused with `FailedPrecondition` when another does.
    pub generation: Generation,
    /// The restart; `None` takes an earlier one back.
    pub permit: Option<Permit>,
}

/// Tell an instance to read its configuration again, as its `reload` says.
/// Answered when it has: with a signal alone when that is sent, with a command
/// when that has ended, with `notify` when it is ready again. Refused with
/// `FailedPrecondition` when it has no `reload` or does not run, `Internal` tells
/// what went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reload {
    /// Which.
    pub instance: InstanceName,
}

/// Send a signal to the first process, through the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// Which.
    pub instance: InstanceName,
    /// Number, see signal(7).
    pub signal: i32,
}

/// Forget an instance that does not live: its record and its socket go, its
/// log stays unless asked otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forget {
    /// Which.
    pub instance: InstanceName,
}

/// Ask for the records of all instances, in pages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListProcesses {
    /// Where to go on: the last answer's `next`.
    pub after: Option<String>,
    /// Publish the latest probe results of these instances once more: healthy
    /// services are silent, and whoever judges them begins without any.
    pub probes: bool,
}

/// A change of state: the only event of `evt.process.<instance>.` that moves it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessChanged {
    /// The state before; `None` for an instance seen for the first time.
    pub from: Option<StateName>,
    /// All that is known now.
    pub record: InstanceRecord,
}

/// A service said something of itself (READY, STATUS, STOPPING).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessNotified {
    /// Which.
    pub instance: InstanceName,
    /// Which spawn.
    pub generation: Generation,
    /// All it said so far.
    pub notify: NotifyState,
}

/// An instance was forgotten: it is no longer part of the owner's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessForgotten {
    /// Which.
    pub instance: InstanceName,
}

impl Message for ProcessForgotten {
    const KIND: &'static str = "process.forgotten";
}
impl Message for ProcessChanged {
    const KIND: &'static str = "process.changed";
}
impl Message for ProcessNotified {
    const KIND: &'static str = "process.notified";
}
impl Message for LogLines {
    const KIND: &'static str = "log.lines";
}

macro_rules! command {
    ($type:ty, $kind:literal, $reply:ty) => {
        impl Message for $type {
            const KIND: &'static str = $kind;
        }
        impl Command for $type {
            type Reply = $reply;
        }
    };
}
pub(crate) use command;

/// A command that only reads.
macro_rules! query {
    ($type:ty, $kind:literal, $reply:ty) => {
        impl Message for $type {
            const KIND: &'static str = $kind;
        }
        impl Command for $type {
            type Reply = $reply;
            const READS: bool = true;
        }
    };
}
pub(crate) use query;

command!(Spawn, "process.spawn", InstanceRecord);
command!(Stop, "process.stop", InstanceRecord);
command!(GrantPermit, "process.permit", ());
command!(Signal, "process.signal", ());
command!(Reload, "process.reload", ());
command!(Forget, "process.forget", ());
query!(ListProcesses, "process.list", Snapshot<InstanceRecord>);
query!(ReadLog, "process.read_log", LogChunk);
command!(FollowLog, "process.follow_log", ());
