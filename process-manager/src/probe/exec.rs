//! The `exec` probe: a program in the service's own context, which is its
//! environment, working directory, user and groups, limit of open files, OOM
//! score and cgroups. It is a child of the process-manager, in a session of its
//! own, and is killed with its process group when it takes too long.
//!
//! The child joins the cgroups itself, by writing `0` to files that were opened
//! before the fork, like a service's own first process.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Write as _};
use std::process::Stdio;
use std::sync::Arc;

use blackhole_bus_schema::limits::JoinMethod;
use blackhole_bus_schema::process::SpawnSpec;
use rustix::process::{Pid, Signal};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use crate::launch::Environs;
use crate::users::{self, Identity};

/// Output of a failing probe that is kept for its message, in bytes.
const KEPT_OUTPUT: usize = 4096;
/// Characters of it that are shown.
const SHOWN_OUTPUT: usize = 200;

/// How the service that is probed was started.
#[derive(Debug, Clone)]
pub struct Context {
    /// Its specification, secrets unresolved.
    pub spec: Arc<SpawnSpec>,
    /// Makes its environment.
    pub environs: Arc<Environs>,
}

/// Runs `command`; healthy when it exits with 0.
pub(super) async fn run(command: &[String], context: Context) -> Result<(), String> {
    let program = command.first().ok_or("its command is empty")?.clone();
    let command = command.to_vec();
    // References may read files, users may be looked up over the network, and a fork copies tables.
    let started = tokio::task::spawn_blocking(move || start(&command, &context)).await;
    let mut group = match started {
        Ok(started) => started?,
        Err(error) => return Err(format!("exec {program}: {error}")),
    };
    let mut output = Vec::with_capacity(256);
    if let Some(mut pipe) = group.child.stderr.take() {
        let mut buffer = [0; 1024];
        // Ends when the last descriptor of it is closed; what is too much is read and left out.
        while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
            let room = KEPT_OUTPUT - output.len();
            output.extend_from_slice(&buffer[..read.min(room)]);
        }
    }
    let status = group
        .child
        .wait()
        .await
        .map_err(|error| format!("exec {program}: {error}"))?;
    if status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output);
    let last = text
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default();
    let shown: String = last
        .chars()
        .filter(|character| !character.is_control())
        .take(SHOWN_OUTPUT)
        .collect();
    let separator = if shown.is_empty() { "" } else { ": " };
    Err(format!("exec {program}: {status}{separator}{shown}"))
}

/// A running probe, with everything that it started in its process group.
struct Group {
    child: Child,
}

impl Drop for Group {
    fn drop(&mut self) {
        // While the child is not reaped its number belongs to nobody else.
        let leader = self
            .child
            .id()
            .and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(leader) = leader {
            let _ = rustix::process::kill_process_group(leader, Signal::KILL);
        }
    }
}

fn start(command: &[String], context: &Context) -> Result<Group, String> {
    let (program, arguments) = command.split_first().ok_or("its command is empty")?;
    let spec = &context.spec;
    let identity = users::find(spec.user.as_deref(), spec.group.as_deref())
        .map_err(|error| error.to_string())?;
    let environment = context
        .environs
        .build(spec, identity.as_ref())
        .map_err(|failure| failure.to_string())?;
    let cgroups = open_cgroups(spec)?;
    let nofile = spec
        .open_files
        .map_or(context.environs.inherited_nofile, |files| (files, files));
    let oom_score = spec.grant.as_ref().and_then(|grant| grant.oom_score_adj);
    let mut child = Command::new(program);
    child
        .args(arguments)
        .env_clear()
        .envs(environment.into_map())
        .current_dir(spec.working_dir.as_deref().unwrap_or("/"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let oom_score = oom_score.map(|score| score.to_string());
    // SAFETY: `become_part` makes only async-signal-safe calls and allocates
    // nothing; everything it uses was made above and is moved into the closure.
    unsafe {
        child.pre_exec(move || {
            become_part(&cgroups, oom_score.as_deref(), nofile, identity.as_ref())
        });
    }
    match child.spawn() {
        Ok(child) => Ok(Group { child }),
        Err(error) => Err(format!("exec {program}: {error}")),
    }
}

/// Opens what the child writes `0` to.
fn open_cgroups(spec: &SpawnSpec) -> Result<Vec<File>, String> {
    let directories = spec.grant.iter().flat_map(|grant| &grant.cgroups);
    directories
        .map(|directory| {
            let file = match directory.join {
                JoinMethod::V1Tasks => "tasks",
                JoinMethod::V2 => "cgroup.procs",
            };
            let path = format!("{}/{file}", directory.path);
            File::options()
                .write(true)
                .open(&path)
                .map_err(|error| format!("open {path}: {error}"))
        })
        .collect()
}

/// In the child: joins cgroups, sets limits, then the user.
fn become_part(
    cgroups: &[File],
    oom_score: Option<&str>,
    nofile: (u64, u64),
    identity: Option<&Identity>,
) -> io::Result<()> {
    for mut cgroup in cgroups {
        cgroup.write_all(b"0")?;
    }
    // SAFETY: system calls with numbers and with memory that outlives them.
    unsafe {
        if let Some(text) = oom_score {
            let file = libc::open(
                c"/proc/self/oom_score_adj".as_ptr(),
                libc::O_WRONLY | libc::O_CLOEXEC,
            );
            // Lowering it takes a privilege; a probe is none the worse without.
            libc::write(file, text.as_ptr().cast(), text.len());
            libc::close(file);
        }
        if libc::setsid() < 0 {
            return Err(io::Error::last_os_error());
        }
        let limit = libc::rlimit {
            rlim_cur: nofile.0,
            rlim_max: nofile.1,
        };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &limit) != 0 {
            return Err(io::Error::last_os_error());
        }
        if let Some(identity) = identity {
            set_identity(identity)?;
        }
    }
    Ok(())
}

/// Groups, group, user, in this order: each step takes away the right to undo it.
///
/// # Safety
/// Only between fork and exec: the calls go to the kernel and change this one thread.
unsafe fn set_identity(identity: &Identity) -> io::Result<()> {
    let checked = |result: libc::c_long| {
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    // SAFETY: numbers, and an array that `identity` owns.
    unsafe {
        let root = libc::geteuid() == 0;
        if root {
            let groups = &identity.groups;
            checked(libc::syscall(
                libc::SYS_setgroups,
                groups.len(),
                groups.as_ptr(),
            ))?;
        }
        let gid = identity.gid;
        checked(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        if let Some(uid) = identity.uid {
            checked(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
        }
    }
    Ok(())
}
