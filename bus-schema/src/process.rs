//! Processes: how one is started, what states it passes, how it ended.
//! Commands go to a process-manager (`cmd.process-manager.`), events come from
//! it (`evt.process.<instance>.`).

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::health::Probes;
use crate::limits::LimitGrant;
use crate::message::{Command, Message, Snapshot};
use crate::names::{Generation, InstanceName};

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
    /// A file is rotated when it would grow past this many bytes.
    pub max_bytes: u64,
    /// Rotated files kept besides the current one.
    pub max_files: u32,
}

impl Default for LogSpec {
    fn default() -> Self {
        Self {
            max_bytes: 16 * 1024 * 1024,
            max_files: 4,
        }
    }
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
}

/// Exit codes that count as success where nothing else is configured.
pub fn default_success_codes() -> Vec<i32> {
    vec![0]
}

/// How a process ended, as wait(2) tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum ExitStatus {
    /// By itself.
    Exited {
        /// 0 to 255.
        code: i32,
    },
    /// By a signal.
    Signaled {
        /// Its number.
        signal: i32,
        /// Whether a core was dumped.
        core_dumped: bool,
    },
    /// Nobody saw it: the shim was gone, or the host was restarted.
    Unknown,
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited { code } => write!(formatter, "exit code {code}"),
            Self::Signaled {
                signal,
                core_dumped,
            } => {
                match signal_name(*signal) {
                    Some(name) => write!(formatter, "signal {signal} ({name})")?,
                    None => write!(formatter, "signal {signal}")?,
                }
                if *core_dumped {
                    formatter.write_str(", core dumped")?;
                }
                Ok(())
            }
            Self::Unknown => formatter.write_str("unknown"),
        }
    }
}

/// Why an instance ended: the verdict over its [`ExitStatus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitResult {
    /// It exited with a success code.
    Success,
    /// It exited with another code.
    ExitCode,
    /// A signal ended it that nobody here sent.
    Signal,
    /// The kernel's OOM killer ended it inside its own cgroup.
    OomKill,
    /// It was asked to stop and ended within its grace.
    Stopped,
    /// It was asked to stop, its grace ran out and it was killed.
    StopTimeout,
    /// It was killed because its health checks or its watchdog failed.
    Unhealthy,
    /// Its shim vanished; its processes were killed.
    ShimLost,
    /// The host was restarted while it ran.
    HostRestarted,
}

impl ExitResult {
    /// Whether this end is a failure for the restart policy.
    pub fn is_failure(self) -> bool {
        !matches!(self, Self::Success | Self::Stopped | Self::StopTimeout)
    }
}

/// What is kept of an instance's end until its next spawn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Which spawn ended.
    pub generation: Generation,
    /// Process id of its first process.
    pub pid: u32,
    /// How it ended.
    pub status: ExitStatus,
    /// Why.
    pub result: ExitResult,
    /// Start, Unix time in nanoseconds.
    pub started_at: u64,
    /// End, Unix time in nanoseconds.
    pub ended_at: u64,
    /// Processes of its tree that were killed after its end.
    #[serde(default)]
    pub killed_leftovers: u32,
}

/// The five steps of a spawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpawnStep {
    /// Environment, working directory, log and lock.
    PrepareEnvironment,
    /// Joining cgroups, rlimits, user.
    ApplyLimits,
    /// Until exec succeeded.
    Exec,
    /// Record written, probes and watch set up.
    Register,
    /// First verification that it runs.
    HealthCheck,
}

/// One step of a spawn and how long it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTime {
    /// Which step.
    pub step: SpawnStep,
    /// Time it took, in nanoseconds.
    pub took_ns: u64,
}

/// Why a spawn failed before the service's own code ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnFailure {
    /// The step that failed.
    pub step: SpawnStep,
    /// The operation, with its path: `exec /usr/bin/nothing`.
    pub operation: String,
    /// The error number of errno(3); 0 where none belongs to it.
    pub errno: i32,
    /// What to do about it.
    pub hint: String,
}

impl fmt::Display for SpawnFailure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.operation)?;
        if self.errno != 0 {
            write!(
                formatter,
                ": {}",
                std::io::Error::from_raw_os_error(self.errno)
            )?;
        }
        if !self.hint.is_empty() {
            write!(formatter, " ({})", self.hint)?;
        }
        Ok(())
    }
}

/// Why an instance is in [`ProcessState::Failed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Failure {
    /// It never ran.
    Spawn {
        /// What went wrong.
        failure: SpawnFailure,
    },
    /// It ran and ended in failure.
    Exit {
        /// Its end.
        exit: ExitRecord,
    },
    /// It was stopped before its process existed.
    Cancelled,
}

/// The state of an instance, with what exists only in that state.
///
/// Edges: SPAWN → RUNNING → STOPPING → TERMINATED; RUNNING → FAILED;
/// TERMINATED → FAILED; SPAWN → FAILED; FAILED → SPAWN; TERMINATED → SPAWN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "UPPERCASE")]
pub enum ProcessState {
    /// Being started; there is no process yet.
    Spawn {},
    /// Its first process runs.
    Running {
        /// Process id.
        pid: u32,
        /// Start, Unix time in nanoseconds.
        started_at: u64,
    },
    /// It was asked to end, or ended by itself and its rest is being cleared.
    Stopping {
        /// Process id.
        pid: u32,
        /// Start, Unix time in nanoseconds.
        started_at: u64,
    },
    /// It ended, and that was no failure.
    Terminated {
        /// Its end; `None` for one that never ran.
        exit: Option<ExitRecord>,
    },
    /// It failed.
    Failed {
        /// Why.
        #[serde(flatten)]
        failure: Failure,
    },
}

/// The name of a [`ProcessState`], for tables and filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum StateName {
    /// Being started.
    Spawn,
    /// Runs.
    Running,
    /// Ends.
    Stopping,
    /// Ended well.
    Terminated,
    /// Failed.
    Failed,
}

impl fmt::Display for StateName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Spawn => "SPAWN",
            Self::Running => "RUNNING",
            Self::Stopping => "STOPPING",
            Self::Terminated => "TERMINATED",
            Self::Failed => "FAILED",
        })
    }
}

impl StateName {
    /// Whether the user's drawing has an edge from `self` to `next`.
    pub fn may_become(self, next: StateName) -> bool {
        use StateName::{Failed, Running, Spawn, Stopping, Terminated};
        matches!(
            (self, next),
            (Spawn, Running | Failed)
                | (Running, Stopping | Failed)
                | (Stopping, Terminated)
                | (Terminated, Failed | Spawn)
                | (Failed, Spawn)
        )
    }
}

impl ProcessState {
    /// The state's name.
    pub fn name(&self) -> StateName {
        match self {
            Self::Spawn {} => StateName::Spawn,
            Self::Running { .. } => StateName::Running,
            Self::Stopping { .. } => StateName::Stopping,
            Self::Terminated { .. } => StateName::Terminated,
            Self::Failed { .. } => StateName::Failed,
        }
    }

    /// The process id, where there is a process.
    pub fn pid(&self) -> Option<u32> {
        match self {
            Self::Running { pid, .. } | Self::Stopping { pid, .. } => Some(*pid),
            _ => None,
        }
    }

    /// How the last process ended, where that is known.
    pub fn exit(&self) -> Option<&ExitRecord> {
        match self {
            Self::Terminated { exit } => exit.as_ref(),
            Self::Failed {
                failure: Failure::Exit { exit },
            } => Some(exit),
            _ => None,
        }
    }

    /// Whether a process exists or may exist.
    pub fn is_live(&self) -> bool {
        matches!(
            self,
            Self::Spawn {} | Self::Running { .. } | Self::Stopping { .. }
        )
    }
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
}

/// Start an instance. Refused with `FailedPrecondition` when the generation is
/// not newer than the last one, when a process lives, or when `max_processes`
/// is reached. Answered when the process runs or has failed to.
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
}

/// Lines of an instance's log, from its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadLog {
    /// Which.
    pub instance: InstanceName,
    /// At most this many of the last lines, when `cursor` is not given.
    pub lines: u32,
    /// Go on from here: the last answer's `cursor`.
    #[serde(default)]
    pub cursor: Option<LogCursor>,
}

/// A place in an instance's log: file identity and offset in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogCursor {
    /// Inode number of the file.
    pub inode: u64,
    /// Offset of the next byte.
    pub offset: u64,
}

/// Answer to [`ReadLog`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogChunk {
    /// Whole lines as they stand in the file, without the newline.
    #[serde(with = "bytes_list")]
    pub lines: Vec<Vec<u8>>,
    /// Where to go on.
    pub cursor: Option<LogCursor>,
    /// Whether more lines stand there already.
    pub more: bool,
    /// Lines or files between the cursor asked for and the first line are gone (rotated away).
    pub gap: bool,
}

/// Have an instance's new log lines published on `log.<instance>.` (the
/// manager's log socket) until the lease ends. Repeat to go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowLog {
    /// Which.
    pub instance: InstanceName,
    /// Where to begin; `None` is the end.
    #[serde(default)]
    pub cursor: Option<LogCursor>,
    /// Lease in milliseconds.
    pub lease_ms: u64,
}

/// A batch of log lines on `log.<instance>.`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLines {
    /// Whose.
    pub instance: InstanceName,
    /// Lines, as in [`LogChunk`].
    #[serde(with = "bytes_list")]
    pub lines: Vec<Vec<u8>>,
    /// Lines skipped since the last batch because the reader was too slow.
    pub dropped: u64,
    /// Where the batch ends.
    pub cursor: LogCursor,
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

command!(Spawn, "process.spawn", InstanceRecord);
command!(Stop, "process.stop", InstanceRecord);
command!(Signal, "process.signal", ());
command!(Forget, "process.forget", ());
command!(ListProcesses, "process.list", Snapshot<InstanceRecord>);
command!(ReadLog, "process.read_log", LogChunk);
command!(FollowLog, "process.follow_log", ());

/// The usual name of a signal of Linux on x86-64 and arm64, see signal(7).
pub fn signal_name(signal: i32) -> Option<&'static str> {
    SIGNALS
        .iter()
        .find(|(number, _)| *number == signal)
        .map(|(_, name)| *name)
}

/// The number of a signal by name, with or without `SIG`, in any case, or by number (1 to 64).
///
/// ```
/// use blackhole_bus_schema::process::signal_number;
/// assert_eq!(signal_number("SIGTERM"), Some(15));
/// assert_eq!(signal_number("hup"), Some(1));
/// assert_eq!(signal_number("9"), Some(9));
/// assert_eq!(signal_number("SIGNOPE"), None);
/// assert_eq!(signal_number("0"), None);
/// ```
pub fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    SIGNALS
        .iter()
        .find(|(_, known)| known.strip_prefix("SIG") == Some(name))
        .map(|(number, _)| *number)
}

const SIGNALS: [(i32, &str); 31] = [
    (1, "SIGHUP"),
    (2, "SIGINT"),
    (3, "SIGQUIT"),
    (4, "SIGILL"),
    (5, "SIGTRAP"),
    (6, "SIGABRT"),
    (7, "SIGBUS"),
    (8, "SIGFPE"),
    (9, "SIGKILL"),
    (10, "SIGUSR1"),
    (11, "SIGSEGV"),
    (12, "SIGUSR2"),
    (13, "SIGPIPE"),
    (14, "SIGALRM"),
    (15, "SIGTERM"),
    (16, "SIGSTKFLT"),
    (17, "SIGCHLD"),
    (18, "SIGCONT"),
    (19, "SIGSTOP"),
    (20, "SIGTSTP"),
    (21, "SIGTTIN"),
    (22, "SIGTTOU"),
    (23, "SIGURG"),
    (24, "SIGXCPU"),
    (25, "SIGXFSZ"),
    (26, "SIGVTALRM"),
    (27, "SIGPROF"),
    (28, "SIGWINCH"),
    (29, "SIGIO"),
    (30, "SIGPWR"),
    (31, "SIGSYS"),
];

/// A list of byte strings as MessagePack `bin` values.
mod bytes_list {
    use serde::{Deserialize, Deserializer, Serializer, ser::SerializeSeq};
    use serde_bytes::{ByteBuf, Bytes};

    pub(super) fn serialize<S: Serializer>(
        list: &[Vec<u8>],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let mut sequence = serializer.serialize_seq(Some(list.len()))?;
        for item in list {
            sequence.serialize_element(Bytes::new(item))?;
        }
        sequence.end()
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Vec<u8>>, D::Error> {
        let list = Vec::<ByteBuf>::deserialize(deserializer)?;
        Ok(list.into_iter().map(ByteBuf::into_vec).collect())
    }
}
