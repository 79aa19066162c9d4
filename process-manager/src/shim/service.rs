//! The life of one service: one loop, one thread, woken only by what happens.
//!
//! ```text
//!   SIGCHLD ──► reap ──► first process gone? ──► kill the rest ──► nothing left? ──► end,
//!                                                     or, by permit, the successor
//!   deadlines ─► grace over: kill all; notification or loss due: tell
//!   stdout, stderr ─► log files
//!   NOTIFY_SOCKET ──► state, told to watchers
//!   sockets ────────► requests, answers
//! ```

mod clients;
mod losses;
mod restart;
mod turns;
mod wishes;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use blackhole_bus_schema::memory;
use blackhole_bus_schema::process::{ExitRecord, ExitStatus};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, WaitOptions, WaitStatus};

use super::connection::Connection;
use super::hook;
use super::logs::{Output, Pipes};
use super::notify::{Change, Notify};
use super::passed::Passed;
use super::prepare::Held;
use super::protocol::{Loss, ShimMessage, SpawnRequest, Started};
use super::start::Running;
use super::verdict::{Facts, verdict};
use super::wait::wait;
use super::{sys, tree};
use restart::{Again, Before, Permitted};
use turns::{Reloading, Turn};
use wishes::{Asked, Main, Refused};

/// Status texts and signs of life are told at most this often.
const NOTIFY_INTERVAL: Duration = Duration::from_millis(20);

/// How long after a start the shim gives back the memory that it took: seldom while others start.
const SETTLED: Duration = Duration::from_secs(3);

/// A stop that was asked for.
#[derive(Debug)]
struct Stopping {
    /// When everything is killed; `None` when it has been, or never will be.
    deadline: Option<Instant>,
    /// How far the service may put that off.
    latest: Option<Instant>,
    /// The signal, and whether it goes to the process group, while the hook
    /// before it runs.
    signal: Option<(i32, bool)>,
    unhealthy: bool,
    timed_out: bool,
}

/// One running service and all that belongs to it.
#[derive(Debug)]
pub(crate) struct Service {
    request: SpawnRequest,
    held: Held,
    signals: OwnedFd,
    pid: Pid,
    started: Started,
    /// When it started, for the expiry of a permit.
    began: Instant,
    boot_id: String,
    permit: Option<Permitted>,
    /// When a successor is made ready, so that it costs a start nothing.
    successor_due: Option<Instant>,
    /// Permits used.
    restarts: u32,
    previous_exit: Option<ExitRecord>,
    oom_before: Option<u64>,
    output: Output,
    notify: Option<Notify>,
    passed: Passed,
    refused: Refused,
    /// What is passed is kept for a successor.
    keep: bool,
    /// The process that is the service's main one, where that is not the first.
    main: Option<Main>,
    /// How the first one ended that has left the main one behind.
    first_end: Option<ExitStatus>,
    hooks: Vec<(Turn, hook::Running)>,
    /// The time that it has asked for to come up.
    asked: Option<Asked>,
    /// The hook before a start by permit.
    before: Option<Before>,
    /// Hooks run in this generation.
    hooks_run: u32,
    reload: Option<Reloading>,
    /// How it ended, once that is settled.
    exit: Option<ExitRecord>,
    listener: Option<UnixListener>,
    connections: Vec<Connection>,
    stopping: Option<Stopping>,
    end: Option<ExitStatus>,
    told_stopping: bool,
    killed_leftovers: u32,
    /// Losses of the record; those of the log are counted there.
    loss: Loss,
    loss_told: Loss,
    loss_due: Option<Instant>,
    /// When a record that could not be written is tried again.
    record_due: Option<Instant>,
    /// The wait before that.
    record_wait: Duration,
    notify_due: Option<Instant>,
    notify_told: Option<Instant>,
    accept_after: Option<Instant>,
    /// When what its start has taken is given back.
    settles: Option<Instant>,
}

impl Service {
    /// Takes over a service that has just been started, and the connection that asked for it.
    pub(crate) fn new(
        mut request: SpawnRequest,
        held: Held,
        signals: OwnedFd,
        running: Running,
        first: Connection,
        boot_id: String,
        output: Option<Output>,
    ) -> Self {
        let prepared = running.prepared;
        let permit = request.permit.take();
        if permit.is_none() {
            // What the record holds.
            request.spec = Vec::new();
        }
        let pipes = Pipes {
            read: prepared.output,
            write: Some(prepared.plan.output),
        };
        let output = match output {
            Some(mut output) => {
                output.follow(pipes);
                output
            }
            None => Output::new(
                &request.instance_dir,
                &request.instance,
                request.logs.clone(),
                pipes,
            ),
        };
        let mut service = Self {
            output,
            request,
            held,
            signals,
            pid: running.pid,
            started: running.started,
            began: Instant::now(),
            boot_id,
            permit: None,
            successor_due: None,
            restarts: 0,
            previous_exit: None,
            oom_before: running.oom_before,
            notify: prepared.notify,
            passed: prepared.passed,
            refused: Refused::default(),
            keep: true,
            main: None,
            first_end: None,
            hooks: Vec::new(),
            asked: None,
            before: None,
            hooks_run: 0,
            reload: None,
            exit: None,
            listener: None,
            connections: vec![first],
            stopping: None,
            end: None,
            told_stopping: false,
            killed_leftovers: 0,
            loss_told: Loss::default(),
            loss: Loss::default(),
            loss_due: None,
            record_due: None,
            record_wait: Duration::ZERO,
            notify_due: None,
            notify_told: None,
            accept_after: None,
            settles: None,
        };
        service.settle_later();
        service.permit(permit);
        service
    }

    /// Runs until nothing of the service is left, its end is recorded and its lock is free.
    pub(crate) fn run(mut self: Box<Self>) {
        match super::prepare::listen(&self.request.socket) {
            Ok(listener) => self.listener = Some(listener),
            Err(error) => {
                // It runs without: the manager's own connection is there.
                let socket = self.request.socket.display();
                let warning = format!("no socket {socket}: {error}");
                self.started.warnings.push(warning);
            }
        }
        let written = self.held.record.started(&self.started);
        self.recorded(written);
        self.tell(&ShimMessage::Started {
            started: self.started.clone(),
        });
        self.begin_hook(Turn::AfterStart);
        // What came in one piece with the spawn.
        self.serve(&[PollFlags::IN]);
        loop {
            self.note_loss();
            let ready = self.wait();
            if ready.signals && self.on_signals() && !self.begin_after_exit() {
                match self.restart() {
                    Again::Runs => {
                        // What is ready is asked anew: some of it belonged to the one before.
                        continue;
                    }
                    // The hook before it runs.
                    Again::Waits => {}
                    Again::No => break,
                    Again::Failed(exit, failure) => return self.not_restarted(exit, failure),
                }
            }
            self.on_deadlines();
            self.output.pump(ready.outputs);
            if ready.notify {
                self.on_notify();
            }
            if ready.listener {
                self.accept();
            }
            self.serve(&ready.connections);
        }
        self.finish();
    }

    /// Sleeps until something happens or is due.
    fn wait(&self) -> Ready {
        let due = [
            self.stopping
                .as_ref()
                .and_then(|stopping| stopping.deadline),
            self.loss_due,
            self.record_due,
            self.notify_due,
            self.accept_after,
            self.output.due(),
            self.successor_due,
            self.settles,
            self.reload.as_ref().map(Reloading::deadline),
            self.hooks.iter().filter_map(|(_, hook)| hook.due()).min(),
        ];
        let timeout = due.into_iter().flatten().min().map(|due| {
            let left = due.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        let [out, err] = self.output.pipes();
        let notify = self.notify.as_ref().map(AsFd::as_fd);
        let listener = self
            .listener
            .as_ref()
            .filter(|_| self.accept_after.is_none())
            .map(AsFd::as_fd);
        // After that it stays readable.
        let main = self.main.as_ref().filter(|_| self.end.is_none());
        let main = main.map(AsFd::as_fd);
        let [out, err, notify, listener, main] = [out, err, notify, listener, main].map(|fd| {
            fds.push(PollFd::from_borrowed_fd(fd?, PollFlags::IN));
            Some(fds.len() - 1)
        });
        let first = fds.len();
        for connection in &self.connections {
            let mut flags = PollFlags::IN;
            if connection.is_waiting() {
                flags |= PollFlags::OUT;
            }
            fds.push(PollFd::from_borrowed_fd(connection.as_fd(), flags));
        }
        // After an error each is tried: nothing here blocks.
        let failed = wait(&mut fds, timeout.as_ref()).is_err();
        let is_ready = |index: Option<usize>| {
            index.is_some_and(|index| failed || !fds[index].revents().is_empty())
        };
        let asked = |fd: &PollFd<'_>| match failed {
            true => PollFlags::IN | PollFlags::OUT,
            false => fd.revents(),
        };
        Ready {
            // Its end is told by no signal where it is not this process's child.
            signals: is_ready(Some(0)) || is_ready(main),
            outputs: [out, err].map(is_ready),
            notify: is_ready(notify),
            listener: is_ready(listener),
            connections: fds[first..].iter().map(asked).collect(),
        }
    }

    /// Children that ended, and requests by signal to the shim itself. Returns
    /// true when nothing of the service is left.
    fn on_signals(&mut self) -> bool {
        let (mut asked, mut listen) = (false, false);
        sys::drain_signals(&self.signals, |signal| {
            asked |= sys::asks_to_end(signal);
            listen |= signal == libc::SIGHUP;
        });
        if listen {
            self.listen_again();
        }
        if asked {
            // Whoever ends the shim in order (the host going down) means the service.
            self.asked_to_end();
        }
        if self.reap() {
            return true;
        }
        if self.end.is_some() && !self.is_after_exit() {
            // What outlives the first process is killed, pass after pass.
            self.tell_stopping();
            self.kill_all();
            return self.reap();
        }
        false
    }

    /// Takes the children that have ended; true when there is none left.
    fn reap(&mut self) -> bool {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.pid && self.end.is_none() => {
                    self.first_ended(exit_status(status));
                }
                Ok(Some((pid, status))) if self.is_main(pid) && self.end.is_none() => {
                    // It may have named another one, as its last word.
                    self.on_notify();
                    if self.is_main(pid) {
                        self.end = Some(exit_status(status));
                    }
                }
                Ok(Some((pid, status))) => {
                    let hook = self.hooks.iter().position(|(_, hook)| hook.pid() == pid);
                    if let Some(index) = hook {
                        self.hook_ended(index, exit_status(status));
                        continue;
                    }
                    if self.end.is_some() && status.terminating_signal() == Some(libc::SIGKILL) {
                        self.killed_leftovers += 1;
                    }
                }
                Ok(None) if self.main_ended_unseen() => {}
                Ok(None) => return false,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => {
                    // Nobody saw the end of a main process that had another parent.
                    let unseen = self.main.is_some().then_some(ExitStatus::Unknown);
                    self.end = self.end.or(unseen).or(self.first_end);
                    return true;
                }
            }
        }
    }

    /// Whether the main process has ended and whoever is its parent has learnt how:
    /// then that is settled here. True also when there is more to reap.
    fn main_ended_unseen(&mut self) -> bool {
        let ended = |this: &Self| this.main.as_ref().is_some_and(|main| !main.lives());
        if self.end.is_some() || !ended(self) {
            return false;
        }
        // It may have named another one, as its last word.
        self.on_notify();
        if self.main.as_ref().is_some_and(Main::is_to_be_reaped) {
            // It has ended since the last look.
            return true;
        }
        if ended(self) {
            self.end = Some(ExitStatus::Unknown);
        }
        false
    }

    fn is_main(&self, pid: Pid) -> bool {
        self.main.as_ref().is_some_and(|main| main.pid == pid)
    }

    /// The first process has ended. Where it has named another one that lives the
    /// service goes on.
    fn first_ended(&mut self, status: ExitStatus) {
        // Its last words, which came before its end.
        self.on_notify();
        if self.main.as_ref().is_some_and(Main::lives) {
            self.first_end = Some(status);
        } else {
            self.end = Some(status);
        }
    }

    fn kill_all(&mut self) {
        // A group that was killed in cannot be born into.
        self.drop_successor();
        if let Some(grant) = &self.request.grant {
            tree::kill_cgroups(grant);
        }
        tree::kill_descendants();
    }

    fn on_deadlines(&mut self) {
        let now = Instant::now();
        let is_due = |due: Option<Instant>| due.is_some_and(|due| due <= now);
        if let Some(stopping) = &mut self.stopping
            && is_due(stopping.deadline)
        {
            stopping.deadline = None;
            stopping.timed_out = true;
            self.kill_all();
        }
        self.turns_on_deadline(now);
        if is_due(self.notify_due) {
            self.tell_notify(now);
        }
        self.losses_on_deadline(now);
        if is_due(self.accept_after) {
            self.accept_after = None;
        }
        self.output.on_deadline(now);
        if is_due(self.successor_due) {
            self.make_successor();
        }
        if is_due(self.settles) {
            self.settles = None;
            memory::give_back();
            sys::give_back_stack();
        }
    }

    /// It has begun to run: once that is over no memory is held for it.
    fn settle_later(&mut self) {
        self.settles = Instant::now().checked_add(SETTLED);
    }

    fn on_notify(&mut self) {
        let Some(notify) = &mut self.notify else {
            return;
        };
        let change = notify.take();
        self.grant_wishes();
        self.look_at_reload();
        let now = Instant::now();
        match change {
            Change::None => {}
            Change::Major => self.tell_notify(now),
            Change::Minor if self.notify_due.is_none() => {
                let earliest = self
                    .notify_told
                    .and_then(|last| last.checked_add(NOTIFY_INTERVAL));
                match earliest {
                    Some(earliest) if earliest > now => self.notify_due = Some(earliest),
                    _ => self.tell_notify(now),
                }
            }
            Change::Minor => {}
        }
    }

    fn tell_notify(&mut self, now: Instant) {
        self.notify_due = None;
        self.notify_told = Some(now);
        if let Some(notify) = &self.notify {
            let notify = notify.state();
            self.tell(&ShimMessage::Notify { notify });
        }
        self.tell_asked(now);
    }

    /// Nothing is left of the service: the rest of its output, its verdict, its
    /// record; then sockets and lock go, in this order, so that whoever hears of
    /// the end can start the next generation at once.
    fn finish(mut self: Box<Self>) {
        let exit = self.note_exit();
        self.output.finish();
        self.permit(None);
        self.reloaded(Err("it has ended".to_owned()));
        if let Some(grant) = &self.request.grant {
            // Others may have been put there: a probe in the service's own context.
            tree::kill_cgroups(grant);
            super::cgroups::remove_all_run_groups(grant);
        }
        let last_words = self
            .notify
            .take()
            .map(|mut notify| (notify.take(), notify.state()));
        super::remove_sockets(&self.request.socket);
        let loss = self.all_loss();
        let keeper = match self.keep {
            true => self.passed.keep(&self.request.socket),
            false => {
                self.passed.close();
                None
            }
        };
        self.held.lock.leave();
        for mut client in self.connections {
            if client.watching
                && let Some((Change::Minor | Change::Major, notify)) = &last_words
            {
                client.send(&ShimMessage::Notify {
                    notify: notify.clone(),
                });
            }
            client.send(&ShimMessage::Exited {
                exit: exit.clone(),
                loss: loss.clone(),
            });
        }
        // Whoever was told goes on, and not after the end of this process.
        sys::give_way();
        if let Some(keeper) = keeper {
            drop((self.output, self.listener, self.request));
            keeper.run(&self.signals);
        }
    }
}

impl Service {
    /// The OOM counter of its cgroup now.
    fn oom_kills(&self) -> Option<u64> {
        let file = self.request.grant.as_ref()?.oom_file.as_ref()?;
        tree::oom_kills(file)
    }

    /// How the process that has ended did so.
    fn exit_record(&self, ended_at: u64, oom_after: Option<u64>) -> ExitRecord {
        let status = self.end.unwrap_or(ExitStatus::Unknown);
        let stopping = self.stopping.as_ref();
        ExitRecord {
            generation: self.request.generation,
            pid: self.started.pid,
            status,
            result: verdict(Facts {
                status,
                stop_asked: stopping.is_some(),
                unhealthy: stopping.is_some_and(|stopping| stopping.unhealthy),
                timed_out: stopping.is_some_and(|stopping| stopping.timed_out),
                oom_rose: matches!((self.oom_before, oom_after), (Some(before), Some(after)) if after > before),
                success_codes: &self.request.success_codes,
            }),
            started_at: self.started.started_at,
            ended_at,
            killed_leftovers: self.killed_leftovers,
        }
    }
}

/// What happened.
#[derive(Debug)]
struct Ready {
    signals: bool,
    outputs: [bool; 2],
    notify: bool,
    listener: bool,
    connections: Vec<PollFlags>,
}

pub(super) fn exit_status(status: WaitStatus) -> ExitStatus {
    if let Some(code) = status.exit_status() {
        ExitStatus::Exited { code }
    } else if let Some(signal) = status.terminating_signal() {
        ExitStatus::Signaled {
            signal,
            core_dumped: libc::WCOREDUMP(status.as_raw()),
        }
    } else {
        ExitStatus::Unknown
    }
}
