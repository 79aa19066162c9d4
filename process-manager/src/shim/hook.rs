//! A program that is run beside a service, in its context: a child of the shim
//! in a session of its own, on v2 in a cgroup of its own below the instance's.
//! When it ends, or is not through in time, all that it has started is killed.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::process::{ExitStatus, Hook, SpawnFailure, SpawnStep};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, WaitOptions};

use super::cgroups;
use super::connection::Connection;
use super::logs::{Output, Pipes};
use super::prepare::{self, failure};
use super::protocol::SpawnRequest;
use super::service::exit_status;
use super::{exec, start, sys, tree};

/// The variable that tells a hook which one it is.
const HOOK: &str = "BLACKHOLE_HOOK";

/// A hook that runs.
#[derive(Debug)]
pub(crate) struct Running {
    pid: Pid,
    /// Of its v2 cgroups.
    group: String,
    /// What all that it starts has in the environment.
    variable: Vec<u8>,
    deadline: Option<Instant>,
    timed_out: bool,
    timeout: Duration,
}

impl Running {
    /// Runs `hook`, the one with this number of its generation, with its name and
    /// `more` in its environment.
    pub(crate) fn start(
        request: &SpawnRequest,
        hook: &Hook,
        name: &str,
        mut more: Vec<(&str, String)>,
        number: u32,
        output: [OwnedFd; 2],
    ) -> Result<Self, SpawnFailure> {
        let group = group(request.generation, number);
        more.push((HOOK, name.to_owned()));
        let notify = super::notify_path(&request.socket);
        let notify = Some(notify.as_path());
        let (plan, who) =
            prepare::beside(request, &hook.command, &more, &group, notify, None, output)?;
        let begun = exec::monotonic_ns();
        match start::run(request, &plan, &who, begun, Vec::new()) {
            Ok((pid, _)) => {
                let timeout = Duration::from_millis(hook.timeout_ms);
                Ok(Self {
                    pid,
                    group,
                    variable: format!("{HOOK}={name}").into_bytes(),
                    deadline: Instant::now().checked_add(timeout),
                    timed_out: false,
                    timeout,
                })
            }
            Err(failure) => {
                remove_group(request, &group);
                Err(failure)
            }
        }
    }

    /// Its pid.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// When it is to be killed.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.deadline
    }

    /// Kills it where its time is over.
    pub(crate) fn on_deadline(&mut self, request: &SpawnRequest, now: Instant) {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.deadline = None;
            self.timed_out = true;
            self.kill(request);
        }
    }

    /// Kills all of it.
    pub(crate) fn kill(&self, request: &SpawnRequest) {
        for dir in request
            .grant
            .iter()
            .flat_map(|grant| cgroups::own_groups(grant, &self.group))
        {
            let _ = std::fs::write(dir.join("cgroup.kill"), "1");
        }
        tree::kill_hook(self.pid, &self.variable);
    }

    /// It has ended and was reaped: what it left behind goes, and what went wrong is told.
    pub(crate) fn ended(self, request: &SpawnRequest, status: ExitStatus) -> Option<String> {
        self.kill(request);
        remove_group(request, &self.group);
        match status {
            _ if self.timed_out => {
                let millis = self.timeout.as_millis();
                Some(format!(
                    "killed, since it was not through within {millis} ms"
                ))
            }
            ExitStatus::Exited { code: 0 } => None,
            status => Some(status.to_string()),
        }
    }
}

fn group(generation: Generation, number: u32) -> String {
    format!("h{generation}.{number}")
}

/// One that cannot be removed yet goes with the instance's own group.
fn remove_group(request: &SpawnRequest, group: &str) {
    for dir in request
        .grant
        .iter()
        .flat_map(|grant| cgroups::own_groups(grant, group))
    {
        let _ = std::fs::remove_dir(dir);
    }
}

/// Why there is no service after its first hook.
#[derive(Debug)]
pub(crate) enum Before {
    /// The hook failed.
    Failed(SpawnFailure),
    /// Whoever wanted the service has gone.
    Unwanted,
}

impl From<SpawnFailure> for Before {
    fn from(failure: SpawnFailure) -> Self {
        Self::Failed(failure)
    }
}

/// Runs the hook `before_start` to its end, and returns the log that it wrote
/// to. Its client's going away ends it: the spawn is nobody's then.
pub(crate) fn before_start(
    request: &SpawnRequest,
    hook: &Hook,
    client: &Connection,
    signals: &OwnedFd,
) -> Result<Output, Before> {
    let (read, write) = prepare::pipes()?;
    let mut output = Output::new(
        &request.instance_dir,
        &request.instance,
        request.logs.clone(),
        Pipes { read, write: None },
    );
    let running = Running::start(request, hook, "before_start", Vec::new(), 0, write);
    let mut running = running.map_err(named)?;
    let mut wanted = true;
    let status = loop {
        if let Some(status) = reap(running.pid()) {
            break status;
        }
        let (ready, gone) = wait(&output, client, signals, running.due(), wanted);
        output.pump(ready);
        sys::drain_signals(signals, |signal| {
            wanted &= !sys::asks_to_end(signal);
        });
        wanted &= !gone;
        running.on_deadline(request, Instant::now());
        if !wanted {
            running.kill(request);
        }
    };
    let problem = running.ended(request, status);
    while !matches!(
        rustix::process::wait(WaitOptions::NOHANG),
        Ok(None) | Err(_)
    ) {}
    output.finish();
    match problem {
        _ if !wanted => Err(Before::Unwanted),
        None => Ok(output),
        Some(problem) => Err(not_passed(&problem).into()),
    }
}

/// A spawn whose first hook has failed.
pub(crate) fn not_passed(problem: &str) -> SpawnFailure {
    let operation = format!("run hook before_start: {problem}");
    let hint = "what it wrote is in the log of the instance";
    failure(SpawnStep::PrepareEnvironment, operation, 0, hint)
}

/// A failure to run the first hook, with its name.
pub(crate) fn named(failure: SpawnFailure) -> SpawnFailure {
    SpawnFailure {
        operation: format!("run hook before_start: {}", failure.operation),
        ..failure
    }
}

/// Takes children that have ended, until it is this one.
fn reap(pid: Pid) -> Option<ExitStatus> {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((child, status))) if child == pid => return Some(exit_status(status)),
            Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
            Ok(None) => return None,
            Err(_) => return Some(ExitStatus::Unknown),
        }
    }
}

/// Sleeps until something happens: which pipes are ready, whether the client has gone.
fn wait(
    output: &Output,
    client: &Connection,
    signals: &OwnedFd,
    due: Option<Instant>,
    wanted: bool,
) -> ([bool; 2], bool) {
    let timeout = due.map(|due| {
        let left = due.saturating_duration_since(Instant::now());
        Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        }
    });
    let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
    let client = wanted.then(|| {
        // HUP and ERR are told unasked, see poll(2).
        fds.push(PollFd::from_borrowed_fd(client.as_fd(), PollFlags::empty()));
        fds.len() - 1
    });
    let outputs = output.pipes().map(|pipe| {
        fds.push(PollFd::from_borrowed_fd(pipe?, PollFlags::IN));
        Some(fds.len() - 1)
    });
    if super::wait::wait(&mut fds, timeout.as_ref()).is_err() {
        return ([false; 2], false);
    }
    let is_ready =
        |index: Option<usize>| index.is_some_and(|index| !fds[index].revents().is_empty());
    (outputs.map(is_ready), is_ready(client))
}
