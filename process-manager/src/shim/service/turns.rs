//! The turns of a service's life that it has programs for: hooks beside it, and
//! its reload.

use std::time::{Duration, Instant};

use blackhole_bus_schema::dirs::unix_now_ns;
use blackhole_bus_schema::process::{ExitRecord, ExitResult, ExitStatus, Hook, ReloadAction};

use super::Service;
use crate::shim::exec::monotonic_ns;
use crate::shim::hook::Running;
use crate::shim::protocol::ShimMessage;
use crate::shim::server::note;

/// What a hook is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Before a start by permit; the hook before the first start is run before there is a service.
    BeforeStart,
    AfterStart,
    BeforeStop,
    AfterExit,
    Reload,
}

impl Turn {
    /// As it stands in `BLACKHOLE_HOOK`.
    fn name(self) -> &'static str {
        match self {
            Self::BeforeStart => "before_start",
            Self::AfterStart => "after_start",
            Self::BeforeStop => "before_stop",
            Self::AfterExit => "after_exit",
            Self::Reload => "reload",
        }
    }
}

impl Turn {
    /// Whether its hook is run when nothing of the service is left.
    fn follows_the_end(self) -> bool {
        matches!(self, Self::AfterExit | Self::BeforeStart)
    }
}

/// A reload under way.
#[derive(Debug)]
pub(super) struct Reloading {
    /// The client's connection and its request.
    serial: u64,
    id: u64,
    /// When it began, monotonic microseconds.
    since_us: u64,
    deadline: Instant,
    timeout: Duration,
    /// The signal is sent, or the command has ended well.
    told: bool,
    notify: bool,
}

impl Reloading {
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl Service {
    fn hook_of(&self, turn: Turn) -> Option<Hook> {
        let hooks = &self.request.settings.hooks;
        match turn {
            Turn::AfterStart => hooks.after_start.clone(),
            Turn::BeforeStop => hooks.before_stop.clone(),
            Turn::AfterExit => hooks.after_exit.clone(),
            Turn::BeforeStart | Turn::Reload => None,
        }
    }

    /// Runs the hook of a turn, where there is one; tells whether it runs.
    pub(super) fn begin_hook(&mut self, turn: Turn) -> bool {
        let Some(hook) = self.hook_of(turn) else {
            return false;
        };
        match self.run_beside(turn, &hook) {
            Ok(()) => true,
            Err(problem) => {
                self.tell_hook(turn, Some(problem));
                false
            }
        }
    }

    /// Runs a program beside the service.
    fn run_beside(&mut self, turn: Turn, hook: &Hook) -> Result<(), String> {
        let mut more = vec![("BLACKHOLE_PID", self.started.pid.to_string())];
        if let Some(exit) = &self.exit {
            more.push(("BLACKHOLE_EXIT_RESULT", result_name(exit.result).to_owned()));
            match exit.status {
                ExitStatus::Exited { code } => more.push(("BLACKHOLE_EXIT_CODE", code.to_string())),
                ExitStatus::Signaled { signal, .. } => {
                    more.push(("BLACKHOLE_EXIT_SIGNAL", signal.to_string()));
                }
                ExitStatus::Unknown => {}
            }
        }
        let output = self.output.writers().map_err(|error| error.to_string())?;
        self.hooks_run += 1;
        let running = Running::start(
            &self.request,
            hook,
            turn.name(),
            more,
            self.hooks_run,
            output,
        );
        let running = running.map_err(|failure| failure.to_string())?;
        self.hooks.push((turn, running));
        Ok(())
    }

    /// Whether the service has ended and what follows its end still runs.
    pub(super) fn is_after_exit(&self) -> bool {
        self.hooks.iter().any(|(turn, _)| turn.follows_the_end())
    }

    /// Nothing of the service is left: how it ended is known and written, and
    /// what is to follow begins. False when there is nothing.
    pub(super) fn begin_after_exit(&mut self) -> bool {
        if self.exit.is_some() || self.request.settings.hooks.after_exit.is_none() {
            return false;
        }
        self.note_end();
        self.begin_hook(Turn::AfterExit)
    }

    /// How the service ended, told to the record once.
    pub(super) fn note_exit(&mut self) -> ExitRecord {
        if let Some(exit) = &self.exit {
            return exit.clone();
        }
        let oom = self.oom_kills();
        let exit = self.exit_record(unix_now_ns(), oom);
        let written = self.held.record.exited(&exit);
        self.recorded(written);
        self.exit = Some(exit.clone());
        exit
    }

    /// Nothing of the service is left, and hooks follow: how it ended is known, written and
    /// told, and its last words stand before those of the hooks.
    pub(super) fn note_end(&mut self) {
        if self.exit.is_none() {
            let exit = self.note_exit();
            self.output.finish_before(exit.ended_at);
            self.tell(&ShimMessage::Ended);
        }
    }

    /// One of the children that ended was a hook.
    pub(super) fn hook_ended(&mut self, index: usize, status: ExitStatus) {
        let (turn, running) = self.hooks.swap_remove(index);
        let problem = running.ended(&self.request, status);
        // Beside a service that has ended it was killed with the rest.
        let with_the_rest = self.end.is_some() && !turn.follows_the_end();
        let problem = problem.filter(|_| !with_the_rest);
        if turn == Turn::BeforeStart {
            return self.may_start(problem);
        }
        if turn == Turn::Reload {
            match problem {
                Some(problem) => {
                    self.reloaded(Err(format!("its reload command failed: {problem}")))
                }
                None => {
                    if let Some(reload) = &mut self.reload {
                        reload.told = true;
                    }
                    self.look_at_reload();
                }
            }
            return;
        }
        self.tell_hook(turn, problem);
        if turn == Turn::BeforeStop {
            self.send_stop_signal();
        }
    }

    fn tell_hook(&mut self, turn: Turn, problem: Option<String>) {
        if let Some(problem) = &problem {
            let instance = &self.request.instance;
            note(&format!("{instance}: hook {}: {problem}", turn.name()));
        }
        self.tell(&ShimMessage::Hook {
            hook: turn.name().to_owned(),
            problem,
        });
    }

    /// Hooks whose time is over are killed; a reload that takes too long has failed.
    pub(super) fn turns_on_deadline(&mut self, now: Instant) {
        for (_, hook) in &mut self.hooks {
            hook.on_deadline(&self.request, now);
        }
        if let Some(reload) = self.reload.as_ref().filter(|reload| reload.deadline <= now) {
            let millis = reload.timeout.as_millis();
            self.reloaded(Err(format!("not ready again within {millis} ms")));
        }
    }

    /// Ends hooks that belong to a turn that is over.
    pub(super) fn kill_hooks(&mut self, of: Turn) {
        for (turn, hook) in &self.hooks {
            if *turn == of {
                hook.kill(&self.request);
            }
        }
    }

    /// The stop signal that waited for the hook before it.
    fn send_stop_signal(&mut self) {
        let waiting = self
            .stopping
            .as_mut()
            .and_then(|stopping| stopping.signal.take());
        if let Some((signal, group)) = waiting
            && self.end.is_none()
        {
            let _ = self.signal(signal, group);
            self.wake(group);
        }
    }

    /// A client wants the service to read its configuration again. The answer
    /// comes when it has, or at once as an error.
    pub(super) fn begin_reload(&mut self, serial: u64, id: u64) -> Result<(), String> {
        let Some(spec) = self.request.settings.reload.clone() else {
            return Err("it has no `reload`".to_owned());
        };
        if self.stopping.is_some() || self.end.is_some() {
            return Err("it is ending".to_owned());
        }
        if self.reload.is_some() {
            return Err("it is reloading already".to_owned());
        }
        let timeout = Duration::from_millis(spec.timeout_ms);
        let now = Instant::now();
        self.reload = Some(Reloading {
            serial,
            id,
            since_us: monotonic_ns() / 1_000,
            deadline: now.checked_add(timeout).unwrap_or(now),
            timeout,
            told: false,
            notify: spec.notify,
        });
        let done = match spec.action {
            ReloadAction::Signal(signal) => self.signal(signal, false).map(|()| true),
            ReloadAction::Command(command) => {
                let hook = Hook {
                    command,
                    timeout_ms: spec.timeout_ms,
                };
                self.run_beside(Turn::Reload, &hook).map(|()| false)
            }
        };
        match (done, &mut self.reload) {
            (Ok(told), Some(reload)) => {
                reload.told = told;
                self.look_at_reload();
                Ok(())
            }
            (Err(problem), _) => {
                self.reload = None;
                Err(problem)
            }
            (Ok(_), None) => Ok(()),
        }
    }

    /// Answers a reload that is through.
    pub(super) fn look_at_reload(&mut self) {
        let Some(reload) = self.reload.as_ref().filter(|reload| reload.told) else {
            return;
        };
        let since = reload.since_us;
        let notify = self.notify.as_ref();
        if !reload.notify || notify.is_some_and(|notify| notify.has_reloaded(since)) {
            self.reloaded(Ok(()));
        }
    }

    /// A reload is over, one way or the other.
    pub(super) fn reloaded(&mut self, result: Result<(), String>) {
        let Some(reload) = self.reload.take() else {
            return;
        };
        self.kill_hooks(Turn::Reload);
        let client = self
            .connections
            .iter_mut()
            .find(|client| client.serial == reload.serial);
        if let Some(client) = client {
            client.send(&ShimMessage::Answer {
                id: reload.id,
                error: result.err(),
            });
        }
    }
}

/// As it stands in messages.
fn result_name(result: ExitResult) -> &'static str {
    match result {
        ExitResult::Success => "success",
        ExitResult::ExitCode => "exit_code",
        ExitResult::Signal => "signal",
        ExitResult::OomKill => "oom_kill",
        ExitResult::Stopped => "stopped",
        ExitResult::StopTimeout => "stop_timeout",
        ExitResult::Unhealthy => "unhealthy",
        ExitResult::ShimLost => "shim_lost",
        ExitResult::HostRestarted => "host_restarted",
    }
}
