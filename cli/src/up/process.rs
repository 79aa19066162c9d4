//! A daemon's process: made in its own session, or found alive; held by a
//! pidfd, so that a signal never meets another process with the same number.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::unix::AsyncFd;

use crate::error::Error;
use crate::sys::{own_session, readable};

/// A process held by a pidfd. Clones hold the same.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pid: Pid,
    fd: Arc<AsyncFd<OwnedFd>>,
}

impl Process {
    /// Starts `program` detached: its own session, nothing on standard input,
    /// output and errors appended to `log`. It goes on when this process ends.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn spawn(
        program: &Path,
        arguments: &[&std::ffi::OsStr],
        log: &File,
    ) -> Result<Self, Error> {
        let failed = |source| Error::io("start", program, source);
        let output = log.try_clone().map_err(failed)?;
        let errors = log.try_clone().map_err(failed)?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            // These are for the keeper, whoever runs it.
            .env_remove("NOTIFY_SOCKET")
            .env_remove("BLACKHOLE_PROCESS_MANAGER_NAME")
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_PID");
        own_session(&mut command);
        // Not waited for here: its end is read from the pidfd.
        let child = command.spawn().map_err(failed)?;
        let pid = Pid::from_child(&child);
        Self::open(pid).map_err(|source| Error::io("hold", program, source))
    }

    /// Holds a process that is known to live by its number. The caller must
    /// check afterwards that the number still means what it meant.
    ///
    /// # Errors
    /// When there is no such process.
    pub(crate) fn open(pid: Pid) -> std::io::Result<Self> {
        let fd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        Ok(Self {
            pid,
            fd: Arc::new(readable(fd)?),
        })
    }

    /// Its number, for people.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Sends a signal. One that has ended already is no error.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Err(error) = pidfd_send_signal(self.fd.get_ref(), signal)
            && error != rustix::io::Errno::SRCH
        {
            tracing::warn!(pid = self.pid(), %error, "cannot send a signal");
        }
    }

    /// Waits until it has ended and tells how, where that can be known: only
    /// of one's own children. Cancel safe.
    pub(crate) async fn ended(&self) -> Option<String> {
        // Readable means ended, for ever, see pidfd_open(2).
        let _ = self.fd.readable().await;
        let status = waitid(
            WaitId::PidFd(self.fd.get_ref().as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        )
        .ok()??;
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Some(format!("exit code {code}")),
            (None, Some(signal)) => Some(
                blackhole_bus_schema::process::signal_name(signal)
                    .map_or_else(|| format!("signal {signal}"), str::to_owned),
            ),
            _ => None,
        }
    }
}

/// Reaps the children that have ended, except those in `own` (their ends are
/// read from their pidfds). For process 1, which inherits all orphans; called
/// after each SIGCHLD.
pub(super) fn reap_orphans(own: &[u32]) {
    let me = std::process::id();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        if own.contains(&pid) || !is_dead_child(&entry.path(), me) {
            continue;
        }
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            let _ = waitid(
                WaitId::Pid(pid),
                WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
            );
        }
    }
}

/// Whether a process is a zombie whose parent is `parent`, see proc_pid_stat(5).
fn is_dead_child(directory: &Path, parent: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(directory.join("stat")) else {
        return false;
    };
    // The name, in parentheses, may hold anything, also parentheses.
    let Some((_, rest)) = stat.rsplit_once(')') else {
        return false;
    };
    let mut fields = rest.split_ascii_whitespace();
    fields.next() == Some("Z") && fields.next().and_then(|field| field.parse().ok()) == Some(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_started_in_its_own_session_and_its_end_is_told() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("log");
        let log = File::create(&path).unwrap();
        let script = "ps -o sid= -p $$ 2>/dev/null || cut -d' ' -f6 /proc/$$/stat; echo $$; exit 3";
        let process = Process::spawn(
            Path::new("/bin/sh"),
            &["-c".as_ref(), script.as_ref()],
            &log,
        )
        .unwrap();
        assert_eq!(process.ended().await.as_deref(), Some("exit code 3"));
        let text = std::fs::read_to_string(path).unwrap();
        let mut lines = text.lines().map(str::trim);
        assert_eq!(
            lines.next(),
            Some(process.pid().to_string().as_str()),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_signal_reaches_it_and_a_late_one_is_no_error() {
        let temp = tempfile::tempdir().unwrap();
        let log = File::create(temp.path().join("log")).unwrap();
        let process = Process::spawn(Path::new("/bin/sleep"), &["1000".as_ref()], &log).unwrap();
        process.signal(Signal::KILL);
        assert_eq!(process.ended().await.as_deref(), Some("SIGKILL"));
        process.signal(Signal::KILL);
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let _guard = runtime.enter();
        let temp = tempfile::tempdir().unwrap();
        let log = File::create(temp.path().join("log")).unwrap();
        let error = Process::spawn(Path::new("/nonexistent/daemon"), &[], &log).unwrap_err();
        assert!(
            error.report().contains("/nonexistent/daemon"),
            "{}",
            error.report()
        );
    }
}
