//! What a service's process is made with besides its user and its limits.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Settings that few services need; each has the usual as its default. What a
/// manager or a shim of an earlier version does not know it does not do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessSettings {
    /// Supplementary groups, by name or number, besides those that the user is in.
    pub groups: Vec<String>,
    /// File mode creation mask, see umask(2); `None` is 022.
    pub umask: Option<u32>,
    /// Niceness, -20 to 19, see setpriority(2); `None` is 0.
    pub nice: Option<i32>,
    /// Resource limits, see setrlimit(2); those left out stay as they are.
    pub rlimits: BTreeMap<Rlimit, RlimitValue>,
    /// Neither the service nor what it executes can gain privileges, see
    /// `PR_SET_NO_NEW_PRIVS` in prctl(2).
    pub no_new_privs: bool,
    /// Which capabilities are left; `None` changes nothing, see capabilities(7).
    pub capabilities: Option<Capabilities>,
    /// A file for its standard input, opened as the service's user; `None` is /dev/null.
    pub stdin: Option<String>,
    /// Files with assignments, read by the process-manager at each spawn; below `env`.
    pub env_files: Vec<EnvFile>,
    /// Sockets that are opened for it and outlive its restarts, by their names
    /// in `LISTEN_FDNAMES`, see sd_listen_fds(3).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sockets: BTreeMap<String, SocketSpec>,
    /// Descriptors that it may store with `FDSTORE=1` to have them again after a
    /// restart, see sd_pid_notify_with_fds(3).
    #[serde(skip_serializing_if = "is_zero")]
    pub fd_store: u32,
    /// Programs that are run at turns of its life, in its own context.
    #[serde(skip_serializing_if = "Hooks::is_empty")]
    pub hooks: Hooks,
    /// How it is told to read its configuration again; `None`: it cannot be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reload: Option<ReloadSpec>,
    /// The successor for a restart by permit waits as a process, in the service's cgroups:
    /// quicker by about an exec's preparation, for the memory of two small processes.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub standby: bool,
}

impl ProcessSettings {
    /// Whether nothing is asked for: it then need not travel.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A file of `KEY=VALUE` lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvFile {
    /// Absolute path.
    pub path: String,
    /// Whether its absence is an error.
    #[serde(default = "yes")]
    pub required: bool,
}

fn yes() -> bool {
    true
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A socket that is opened for a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketSpec {
    /// `ADDRESS:PORT` of TCP (numeric, IPv6 in brackets), or the absolute path of
    /// a Unix socket.
    pub listen: String,
    /// Connections that wait to be taken.
    pub backlog: u32,
    /// Mode of a Unix socket's file, which belongs to the service's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Several replicas share the address (`SO_REUSEPORT`, see socket(7)).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
}

/// A program that is run beside a service's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Time until it is killed with all that it started, in milliseconds.
    pub timeout_ms: u64,
}

/// Programs run at turns of a service's life: as its user, in its cgroups, with
/// its environment and `BLACKHOLE_HOOK`. What one leaves running is killed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hooks {
    /// Before the service; unless it ends with 0 the spawn has failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before_start: Option<Hook>,
    /// Beside the service that has begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_start: Option<Hook>,
    /// Before the stop signal, as part of the grace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before_stop: Option<Hook>,
    /// After every end, before the next start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_exit: Option<Hook>,
}

impl Hooks {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How a service is told to read its configuration again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadSpec {
    /// By what.
    pub action: ReloadAction,
    /// It says `RELOADING=1` and then `READY=1`, which is waited for, see sd_notify(3).
    #[serde(default)]
    pub notify: bool,
    /// Time until it counts as failed, in milliseconds.
    pub timeout_ms: u64,
}

/// By what a service is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReloadAction {
    /// A signal to its main process, see signal(7).
    Signal(i32),
    /// A program in its own context, which has to end with 0.
    Command(Vec<String>),
}

/// Capabilities of a service, by their names in capabilities(7) without `CAP_`,
/// in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capabilities {
    /// These and no others. A service that is not root has them from its start (ambient).
    Keep(Vec<String>),
    /// All that it would have but these.
    Drop(Vec<String>),
}

/// Resource limits of Linux, see setrlimit(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rlimit {
    /// Address space, bytes.
    As,
    /// Core files, bytes.
    Core,
    /// Processor time, seconds.
    Cpu,
    /// Data segment, bytes.
    Data,
    /// Files written, bytes.
    Fsize,
    /// Locks.
    Locks,
    /// Locked memory, bytes.
    Memlock,
    /// POSIX message queues, bytes.
    Msgqueue,
    /// Ceiling of the niceness: 20 minus this.
    Nice,
    /// Open files.
    Nofile,
    /// Processes and threads of the user.
    Nproc,
    /// Resident memory, bytes; without effect on Linux.
    Rss,
    /// Real-time priority.
    Rtprio,
    /// Real-time processor time without a blocking call, microseconds.
    Rttime,
    /// Queued signals.
    Sigpending,
    /// Stack, bytes.
    Stack,
}

impl Rlimit {
    /// All, with their names, their numbers on x86-64 and arm64, and whether
    /// they are in bytes.
    pub const ALL: [(&'static str, Self, u32, bool); 16] = [
        ("as", Self::As, 9, true),
        ("core", Self::Core, 4, true),
        ("cpu", Self::Cpu, 0, false),
        ("data", Self::Data, 2, true),
        ("fsize", Self::Fsize, 1, true),
        ("locks", Self::Locks, 10, false),
        ("memlock", Self::Memlock, 8, true),
        ("msgqueue", Self::Msgqueue, 12, true),
        ("nice", Self::Nice, 13, false),
        ("nofile", Self::Nofile, 7, false),
        ("nproc", Self::Nproc, 6, false),
        ("rss", Self::Rss, 5, true),
        ("rtprio", Self::Rtprio, 14, false),
        ("rttime", Self::Rttime, 15, false),
        ("sigpending", Self::Sigpending, 11, false),
        ("stack", Self::Stack, 3, true),
    ];

    /// Its number for setrlimit(2) on x86-64 and arm64.
    pub fn number(self) -> u32 {
        Self::row(self).map_or(0, |row| row.2)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::row(self).map_or("", |row| row.0)
    }

    fn row(self) -> Option<&'static (&'static str, Self, u32, bool)> {
        Self::ALL.iter().find(|row| row.1 == self)
    }
}

/// A resource limit; `None` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RlimitValue {
    /// What is enforced; the service may raise it up to `hard`.
    pub soft: Option<u64>,
    /// The most that `soft` can be.
    pub hard: Option<u64>,
}

/// The number of a capability by its name, with or without `CAP_`, in any case.
///
/// ```
/// use blackhole_bus_schema::process::{capability_name, capability_number};
/// assert_eq!(capability_number("CAP_NET_BIND_SERVICE"), Some(10));
/// assert_eq!(capability_number("sys_time"), Some(25));
/// assert_eq!(capability_number("everything"), None);
/// assert_eq!(capability_name(0), Some("chown"));
/// ```
pub fn capability_number(text: &str) -> Option<u32> {
    let lower = text.to_ascii_lowercase();
    let name = lower.strip_prefix("cap_").unwrap_or(&lower);
    let index = CAPABILITIES.iter().position(|known| *known == name)?;
    u32::try_from(index).ok()
}

/// The name of a capability without `CAP_`, in lower case, see capabilities(7).
pub fn capability_name(number: u32) -> Option<&'static str> {
    CAPABILITIES.get(usize::try_from(number).ok()?).copied()
}

/// By their numbers; the kernel only ever adds some at the end.
pub const CAPABILITIES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];
