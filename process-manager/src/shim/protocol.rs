//! What travels between a client (the process-manager, the CLI's break-glass
//! commands) and a shim.
//!
//! A frame is a length (4 bytes, little endian) and that many bytes of one
//! MessagePack map with named fields. The protocol is append-only: fields and
//! kinds are added, never changed; unknown fields are ignored, unknown requests
//! are answered with an error and unknown messages skipped. A change that could
//! not be made so raises [`PROTOCOL`], which is part of the fork server's socket
//! name: a new manager then starts a new fork server beside the old one and
//! still speaks to the shims of the old one.
//!
//! ```text
//!   client                                    shim
//!     ── Request{id, spawn} ─────────────────►      (fork server's socket, first frame)
//!     ◄──────────────────────── Started | SpawnFailed
//!     ── Request{id, stop | kill | signal | permit | reload | status | watch} ─►
//!     ◄──────────────────────── Answer{id, error}
//!     ◄──────────────────────── Notify, Hook, Loss, Stopping, Restarted, Exited   (to watchers)
//!   on the instance's own socket the shim speaks first:
//!     ◄──────────────────────── Hello{v, status}
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;

use blackhole_bus_schema::dirs::Dirs;
use blackhole_bus_schema::health::ProbeCheck;
use blackhole_bus_schema::limits::LimitGrant;
use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::process::{
    ExitRecord, LogSpec, NotifyState, Permit, ProcessSettings, SpawnFailure, SpawnSpec, StepTime,
    StopSpec,
};
use serde::{Deserialize, Serialize};

/// Version of this protocol; part of the fork server's socket name. 2: the
/// settings of a process in a spawn request, which a shim must not leave out.
pub const PROTOCOL: u16 = 2;

/// Longest frame of a spawn request, in bytes: Linux passes at most 2 MiB of
/// arguments and environment to a program with the usual stack limit, see
/// execve(2); the rest is the specification beside it.
pub const MAX_SPAWN_FRAME: usize = 8 * 1024 * 1024;

/// Longest frame of any other request, in bytes.
pub const MAX_REQUEST_FRAME: usize = 64 * 1024;

/// Longest frame that a shim sends, in bytes.
pub const MAX_MESSAGE_FRAME: usize = 1024 * 1024;

/// Everything a shim needs to start one instance.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct SpawnRequest {
    /// The instance.
    pub instance: InstanceName,
    /// The decision this belongs to.
    pub generation: Generation,
    /// Folder of lock, record and log; made if missing.
    pub instance_dir: PathBuf,
    /// The socket to answer on; `<socket>.n` is the notification socket.
    pub socket: PathBuf,
    /// Program and arguments. A program without a slash is looked up in the `PATH` of `env`.
    pub command: Vec<String>,
    /// The whole environment, secrets resolved; the shim adds `NOTIFY_SOCKET`.
    pub env: BTreeMap<String, String>,
    /// Working directory; `None` is `/`.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// User by name or number; `None` keeps the shim's.
    #[serde(default)]
    pub user: Option<String>,
    /// Group by name or number; `None` is the user's own.
    #[serde(default)]
    pub group: Option<String>,
    /// Soft and hard `RLIMIT_NOFILE` of the service.
    #[serde(default)]
    pub nofile: Option<(u64, u64)>,
    /// Exit codes that count as success.
    #[serde(default = "blackhole_bus_schema::process::default_success_codes")]
    pub success_codes: Vec<i32>,
    /// How it is stopped when a request does not say.
    #[serde(default)]
    pub stop: StopSpec,
    /// The log.
    #[serde(default)]
    pub logs: LogSpec,
    /// Limits granted ahead.
    #[serde(default)]
    pub grant: Option<LimitGrant>,
    /// The specification as the manager got it, secrets unresolved, kept in the
    /// record for whoever adopts the instance. The shim does not look into it.
    #[serde(default, with = "serde_bytes")]
    pub spec: Vec<u8>,
    /// One restart granted ahead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permit: Option<ShimPermit>,
    /// What its process is made with besides.
    #[serde(default, skip_serializing_if = "ProcessSettings::is_default")]
    pub settings: ProcessSettings,
    /// Within how many microseconds it has to say `WATCHDOG=1`; told to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog_us: Option<u64>,
}

/// One restart that a shim makes by itself when its service fails.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimPermit {
    /// Generation and expiry.
    #[serde(flatten)]
    pub permit: Permit,
    /// What is different in the successor's environment: its token. A permit that
    /// does not come with the spawn carries the whole environment, since a shim
    /// forgets the one that it does not need any more.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// Values of the environment may be secrets: only their names are shown.
impl std::fmt::Debug for ShimPermit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ShimPermit")
            .field("permit", &self.permit)
            .field("env", &self.env.keys())
            .finish()
    }
}

/// Values of the environment may be secrets: only their names are shown.
impl std::fmt::Debug for SpawnRequest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("SpawnRequest")
            .field("instance", &self.instance)
            .field("generation", &self.generation)
            .field("program", &self.command.first())
            .field("env", &self.env.keys())
            .finish_non_exhaustive()
    }
}

impl SpawnRequest {
    /// A request for `spec` with the resolved environment `env` (which replaces
    /// `spec.env`) and, where the specification asks for no other, the limit of
    /// open files `inherited_nofile` (soft, hard) that the manager was started with.
    ///
    /// # Errors
    /// When the specification cannot be encoded.
    pub fn from_spec(
        dirs: &Dirs,
        spec: &SpawnSpec,
        env: BTreeMap<String, String>,
        inherited_nofile: (u64, u64),
    ) -> Result<Self, rmp_serde::encode::Error> {
        Ok(Self {
            instance: spec.instance.clone(),
            generation: spec.generation,
            instance_dir: dirs.instance(&spec.instance),
            socket: dirs.shim_socket(&spec.instance),
            command: spec.command.clone(),
            env,
            working_dir: spec.working_dir.clone(),
            user: spec.user.clone(),
            group: spec.group.clone(),
            nofile: Some(
                spec.open_files
                    .map_or(inherited_nofile, |files| (files, files)),
            ),
            success_codes: spec.success_codes.clone(),
            stop: spec.stop.clone(),
            logs: spec.logs.clone(),
            grant: spec.grant.clone(),
            spec: rmp_serde::to_vec_named(spec)?,
            permit: None,
            settings: spec.settings.clone(),
            watchdog_us: spec
                .probes
                .liveness
                .as_ref()
                .filter(|probe| probe.check == ProbeCheck::Notify)
                .map(|probe| probe.interval_ms.saturating_mul(1_000)),
        })
    }
}

/// Ask the instance to end: signal, grace, then the whole tree is killed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StopRequest {
    /// Signal and grace; `None` takes those of the spawn.
    pub stop: Option<StopSpec>,
    /// The end counts as `Unhealthy` rather than as a stop.
    pub unhealthy: bool,
    /// The signal goes to the first process's whole process group.
    pub process_group: bool,
    /// It is to be started again: its sockets and stored descriptors are kept.
    pub again: bool,
}

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RequestBody {
    /// Start a service. Only as the first frame on the fork server's socket.
    Spawn {
        /// What to start.
        spawn: Box<SpawnRequest>,
    },
    /// Stop it.
    Stop {
        /// How.
        #[serde(default)]
        stop: StopRequest,
    },
    /// Kill the whole tree at once. The end counts as a stop.
    Kill {
        /// The end counts as `Unhealthy`.
        #[serde(default)]
        unhealthy: bool,
    },
    /// Send a signal to the first process; what becomes of it counts as the service's own doing.
    Signal {
        /// Number, see signal(7).
        signal: i32,
    },
    /// Grant a restart ahead, or take it back.
    Permit {
        /// The generation that lives; another one is refused.
        generation: Generation,
        /// The restart; `None` takes an earlier one back.
        #[serde(default)]
        permit: Option<ShimPermit>,
    },
    /// Have the service read its configuration again, as its settings say.
    /// Answered when it has, or has not in time.
    Reload,
    /// Send a [`ShimMessage::Hello`] again.
    Status,
    /// Send changes from now on, after a [`ShimMessage::Hello`].
    Watch,
    /// A request of a later version.
    #[serde(other)]
    Unknown,
}

/// A [`Request`] for a spawn, written without a copy of what it holds.
#[derive(Debug, Serialize)]
pub struct SpawnFrame<'a> {
    id: u64,
    request: SpawnBody<'a>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum SpawnBody<'a> {
    Spawn { spawn: &'a SpawnRequest },
}

impl<'a> SpawnFrame<'a> {
    /// The frame for a request.
    pub fn of(spawn: &'a SpawnRequest) -> Self {
        Self {
            id: 0,
            request: SpawnBody::Spawn { spawn },
        }
    }
}

/// The first frame from a client, where it is a request for a spawn: decoded as it stands there.
/// (The type of a request may follow what it is about, so that [`Request`] has to be taken in
/// whole before it is known what it is: three times the work.)
#[derive(Debug, Deserialize)]
pub struct FirstRequest {
    /// See [`Request::id`].
    pub id: u64,
    /// What is asked.
    pub request: FirstBody,
}

/// See [`FirstRequest`].
#[derive(Debug, Deserialize)]
pub struct FirstBody {
    /// What kind of request it is.
    pub r#type: String,
    /// What to start, in a request of the type `spawn`.
    #[serde(default)]
    pub spawn: Option<Box<SpawnRequest>>,
}

impl FirstBody {
    /// What to start, where that is asked.
    pub fn into_spawn(self) -> Option<Box<SpawnRequest>> {
        self.spawn.filter(|_| self.r#type == "spawn")
    }
}

/// A frame from a client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Comes back in the answer; chosen by the client.
    pub id: u64,
    /// What is asked.
    pub request: RequestBody,
}

/// Where the life of an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShimPhase {
    /// The first process runs.
    Running,
    /// It was asked to end, or it has ended and what is left of its tree is being killed.
    Stopping,
}

/// A service has started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Pid of the first process.
    pub pid: u32,
    /// Its start in clock ticks since boot, field 22 of /proc/pid/stat: with the
    /// pid and the boot id it names one process for ever.
    pub start_ticks: u64,
    /// Its start, Unix time in nanoseconds.
    pub started_at: u64,
    /// Pid of its shim.
    pub shim_pid: u32,
    /// `PrepareEnvironment`, `ApplyLimits` and `Exec`; the manager adds the rest.
    pub steps: Vec<StepTime>,
    /// What was not done as asked and did not keep it from starting, for a person.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// All that a shim knows of its instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimStatus {
    /// The instance.
    pub instance: InstanceName,
    /// Which spawn.
    pub generation: Generation,
    /// Where it is.
    pub phase: ShimPhase,
    /// Pid and times.
    pub started: Started,
    /// What the service said of itself.
    #[serde(default)]
    pub notify: NotifyState,
    /// What was lost.
    #[serde(default)]
    pub loss: Loss,
    /// How the generation before this one ended, where this one was started by permit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_exit: Option<ExitRecord>,
    /// Permits used since the spawn.
    #[serde(default)]
    pub restarts: u32,
    /// Time until it is killed, where it is being stopped; it may ask for more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill_in_ms: Option<u64>,
}

/// What could not be written, since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Loss {
    /// Log lines that were dropped.
    pub log_lines: u64,
    /// Why the last one was, for a person.
    pub log_error: Option<String>,
    /// Writes of the record that failed.
    pub record_writes: u32,
    /// Why the last one did, for a person.
    pub record_error: Option<String>,
}

/// What a shim says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ShimMessage {
    /// First message on an instance's socket, and the answer to `status` and `watch`.
    Hello {
        /// [`PROTOCOL`] of the shim.
        v: u16,
        /// All it knows.
        status: Box<ShimStatus>,
    },
    /// The spawn succeeded.
    Started {
        /// Pid and times.
        started: Started,
    },
    /// The spawn failed; the shim ends.
    SpawnFailed {
        /// Why.
        failure: SpawnFailure,
        /// The shim that holds the instance already, where that is why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        held_by: Option<u32>,
    },
    /// A request was taken up, or not.
    Answer {
        /// The request's.
        id: u64,
        /// Why not; `None` when it was.
        #[serde(default)]
        error: Option<String>,
    },
    /// The service said something of itself.
    Notify {
        /// All it said so far.
        notify: NotifyState,
    },
    /// It runs, and has asked for time to come up: what waits for it is to wait longer.
    Extended {
        /// How much, from now on, in milliseconds.
        left_ms: u64,
    },
    /// A hook beside the service has ended, or could not be run.
    Hook {
        /// Its name: `after_start`, `before_stop`, `after_exit`.
        hook: String,
        /// What went wrong, for a person; `None` is nothing.
        #[serde(default)]
        problem: Option<String>,
    },
    /// Something could not be written.
    Loss {
        /// All of it so far.
        loss: Loss,
    },
    /// It was asked to end, or ended and its rest is being killed.
    Stopping,
    /// It has ended, and hooks run that follow: what becomes of it is told after them.
    Ended,
    /// It failed, and its successor runs by permit; everything before it is of
    /// the generation that ended.
    Restarted {
        /// How the one before ended.
        exit: ExitRecord,
        /// The successor.
        generation: Generation,
        /// Its pid and times.
        started: Started,
        /// Permits used since the spawn.
        #[serde(default)]
        restarts: u32,
    },
    /// It failed, and its successor could not be started; the shim has given up
    /// its lock and ends.
    NotRestarted {
        /// How the one before ended.
        exit: ExitRecord,
        /// The successor that was to be.
        generation: Generation,
        /// Why it is not.
        failure: SpawnFailure,
    },
    /// It ended and nothing of it is left; the shim has given up its lock and ends.
    Exited {
        /// How.
        exit: ExitRecord,
        /// What was lost.
        #[serde(default)]
        loss: Loss,
    },
    /// A message of a later version.
    #[serde(other)]
    Unknown,
}

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length is beyond what is allowed here.
    #[error("a frame of {bytes} bytes where at most {max} are allowed")]
    TooLong {
        /// The length announced.
        bytes: usize,
        /// The longest allowed.
        max: usize,
    },
    /// The bytes are not the MessagePack map that was expected.
    #[error("a frame that is no message of this protocol")]
    Malformed(#[source] rmp_serde::decode::Error),
    /// A message could not be encoded.
    #[error("cannot encode a frame")]
    Encode(#[source] rmp_serde::encode::Error),
}

/// Appends one frame to `out`.
///
/// # Errors
/// When the message cannot be encoded or is longer than `max`; `out` is then as before.
pub fn encode<T: Serialize>(message: &T, max: usize, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    if let Err(error) = rmp_serde::encode::write_named(out, message) {
        out.truncate(start);
        return Err(FrameError::Encode(error));
    }
    let bytes = out.len() - start - 4;
    match u32::try_from(bytes) {
        Ok(length) if bytes <= max => {
            out[start..start + 4].copy_from_slice(&length.to_le_bytes());
            Ok(())
        }
        _ => {
            out.truncate(start);
            Err(FrameError::TooLong { bytes, max })
        }
    }
}

/// Takes the first whole frame off `buffer`; `None` while more bytes are needed.
///
/// # Errors
/// `TooLong` cannot be recovered from; after `Malformed` the frame is off the
/// buffer and the next one can be taken.
pub fn take<T: serde::de::DeserializeOwned>(
    buffer: &mut Vec<u8>,
    max: usize,
) -> Result<Option<T>, FrameError> {
    let Some(head) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let bytes = u32::from_le_bytes(*head) as usize;
    if bytes > max {
        return Err(FrameError::TooLong { bytes, max });
    }
    let Some(frame) = buffer.get(4..4 + bytes) else {
        return Ok(None);
    };
    let parsed = rmp_serde::from_slice(frame).map_err(FrameError::Malformed);
    buffer.drain(..4 + bytes);
    parsed.map(Some)
}
