//! The keeper: holds the daemons' processes, starts those that end again, and
//! follows what they tell. [`super::machine`] decides, this acts.

mod awaited;

use std::ffi::OsStr;
use std::path::PathBuf;

use blackhole_bus_schema::dirs::{Dirs, Lock};
use blackhole_bus_schema::names::{Component, ManagerName};
use rustix::process::{Pid, Signal};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::error::Error;
use crate::keeper_file::KeeperFile;
use crate::out::Tone;
use crate::watch::{Change, Watch};

use super::alive_managers;
use super::binaries::Binaries;
use super::daemon_log;
use super::machine::{Action, Input, Machine};
use super::process::{Process, reap_orphans};
use super::report::Report;

/// Ends of processes on their way to the keeper: one a daemon at a time.
const ENDS: usize = 16;
/// Lines of a failed daemon's log that are shown.
const QUOTED: usize = 8;

/// What a daemon is started with.
#[derive(Debug, Clone)]
pub(super) struct Launch {
    /// The programs.
    pub binaries: Binaries,
    /// The configuration, absolute.
    pub config: PathBuf,
    /// The named process-managers that are kept: those of the configuration, and
    /// those at which something lives.
    pub managers: Vec<ManagerName>,
}

/// One daemon.
struct Daemon {
    component: Component,
    /// It is started, and started again; a named process-manager that is in no
    /// configuration is somebody else's to start.
    kept: bool,
    /// It is kept for what it still has to tell: nobody's start depends on it.
    awaited: bool,
    machine: Machine,
    process: Option<Process>,
    /// Where its log ended when its process was started.
    log_mark: u64,
}

/// What happened in a step.
pub(super) enum Happening {
    /// A daemon told something.
    Change(Change),
    /// A daemon's process ended.
    Ended(Component),
    /// A deadline passed.
    Time,
}

impl Happening {
    /// Whether the supervisor's view of an instance may have changed.
    pub(super) fn is_of_supervision(&self) -> bool {
        matches!(
            self,
            Self::Change(
                Change::Snapshot
                    | Change::Told {
                        supervision: true,
                        ..
                    }
            )
        )
    }
}

/// What an earlier keeper left, and how to take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takeover {
    /// Living daemons go on as they are.
    Adopt,
    /// Living daemons are ended and started again: they have another
    /// configuration or version. Services do not notice.
    Replace,
    /// Living daemons are held only to be ended.
    Bury,
}

/// Holds the daemons.
pub(super) struct Keeper {
    /// What the daemons tell.
    pub watch: Watch,
    /// Where to say what happens.
    pub report: Report,
    dirs: Dirs,
    launch: Option<Launch>,
    daemons: Vec<Daemon>,
    ends: mpsc::Receiver<(Component, u32, Option<String>)>,
    ends_sender: mpsc::Sender<(Component, u32, Option<String>)>,
    children: Option<SignalStream>,
}

impl Keeper {
    /// Takes hold of the daemons that live; the others will be started by the
    /// next [`Keeper::step`] (never with [`Takeover::Bury`]).
    ///
    /// # Errors
    /// When a socket or a signal handler cannot be had.
    pub(super) async fn new(
        dirs: &Dirs,
        launch: Option<Launch>,
        takeover: Takeover,
        report: Report,
    ) -> Result<Self, Error> {
        let managers = match &launch {
            Some(launch) => launch.managers.clone(),
            None => KeeperFile::read(dirs)
                .map(|kept| kept.managers)
                .unwrap_or_default(),
        };
        let managers: Vec<_> = managers.into_iter().chain(alive_managers(dirs)).collect();
        let watch = Watch::of(dirs, &managers).await?;
        let (ends_sender, ends) = mpsc::channel(ENDS);
        let children = match std::process::id() {
            1 => Some(
                signal(SignalKind::child())
                    .map_err(|source| Error::io("install", "a signal handler", source))?,
            ),
            _ => None,
        };
        let mut keeper = Self {
            watch,
            report,
            dirs: dirs.clone(),
            launch,
            daemons: Vec::new(),
            ends,
            ends_sender,
            children,
        };
        // The order of a start.
        let mut components = Component::ALL.to_vec();
        let all = keeper.watch.components();
        components.extend(all.filter(|one| !Component::ALL.contains(one)).cloned());
        for component in components {
            let kept = match &component {
                Component::ProcessManager(Some(name)) => managers.contains(name),
                _ => true,
            };
            keeper.take(component, kept, takeover);
        }
        Ok(keeper)
    }

    fn take(&mut self, component: Component, kept: bool, takeover: Takeover) {
        let now = Instant::now();
        let mut machine = Machine::new(now);
        let process = holder(&self.dirs, &component);
        let input = match (&process, takeover) {
            (None, Takeover::Bury) => Some(Input::End),
            (None, _) if !kept => Some(Input::End),
            (None, _) => None,
            (Some(_), Takeover::Replace) if kept => Some(Input::Replaced),
            (Some(_), _) => Some(Input::Adopted),
        };
        if let Some(process) = &process {
            let what = if takeover == Takeover::Replace {
                "found running, is replaced"
            } else {
                "found running"
            };
            self.report.say(
                &component.to_string(),
                Tone::Dim,
                &format!("{what}: pid {}", process.pid()),
            );
            self.await_end(&component, process);
        }
        let action = input.and_then(|input| machine.handle(now, input));
        self.daemons.push(Daemon {
            component,
            kept,
            awaited: false,
            machine,
            process,
            log_mark: 0,
        });
        let index = self.daemons.len() - 1;
        self.perform(index, action);
    }

    fn await_end(&self, component: &Component, process: &Process) {
        let (component, process, sender) =
            (component.clone(), process.clone(), self.ends_sender.clone());
        tokio::spawn(async move {
            let how = process.ended().await;
            // The keeper has gone: nobody is interested.
            let _ = sender.send((component, process.pid(), how)).await;
        });
    }

    /// Waits for the next thing to happen and does what follows from it. Cancel safe.
    pub(super) async fn step(&mut self) -> Happening {
        loop {
            let deadline = self
                .daemons
                .iter()
                .filter_map(|daemon| daemon.machine.deadline())
                .min();
            let wake = async {
                match deadline {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let child = async {
                match &mut self.children {
                    Some(children) => children.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Cancel safe, all: nothing is taken before an arm completes.
                change = self.watch.changed() => {
                    self.told(&change);
                    return Happening::Change(change);
                }
                Some((component, pid, how)) = self.ends.recv() => {
                    self.ended(&component, pid, how);
                    return Happening::Ended(component);
                }
                () = wake => {
                    self.tick();
                    return Happening::Time;
                }
                _ = child => {
                    let own: Vec<u32> =
                        self.daemons.iter().filter_map(|daemon| Some(daemon.process.as_ref()?.pid())).collect();
                    reap_orphans(&own);
                }
            }
        }
    }

    fn told(&mut self, change: &Change) {
        if let Change::Presence { component, info } = change {
            let Some(index) = self.index(component) else {
                return;
            };
            let input = match (&self.daemons[index].process, info) {
                (Some(process), Some(info)) if process.pid() != info.pid => {
                    if !self.change_horses(index, info.pid) {
                        // An older one on its way out.
                        return;
                    }
                    Input::Answers
                }
                (_, Some(_)) => Input::Answers,
                (_, None) => Input::Silent,
            };
            if let (Input::Answers, Some(info)) = (input, info)
                && !self.daemons[index].machine.expects_end()
            {
                self.report.say(
                    &component.to_string(),
                    Tone::Good,
                    &format!(
                        "answers: pid {}, incarnation {}",
                        info.pid, info.incarnation
                    ),
                );
            }
            self.input(index, input);
        } else {
            self.report.change(&self.watch.model, change);
        }
    }

    /// Another process than the one held answers. When it has the lock, ours
    /// only stands by behind it: then that one is held, and ours ended.
    fn change_horses(&mut self, index: usize, pid: u32) -> bool {
        let daemon = &mut self.daemons[index];
        let Some(active) = holder(&self.dirs, &daemon.component) else {
            return false;
        };
        if active.pid() != pid {
            return false;
        }
        if let Some(standby) = daemon.process.replace(active.clone()) {
            standby.signal(Signal::TERM);
        }
        let component = daemon.component.clone();
        self.await_end(&component, &active);
        true
    }

    fn ended(&mut self, component: &Component, pid: u32, how: Option<String>) {
        let Some(index) = self.index(component) else {
            return;
        };
        let daemon = &mut self.daemons[index];
        if daemon.process.as_ref().map(Process::pid) != Some(pid) {
            return;
        }
        daemon.process = None;
        let how = how.map_or_else(String::new, |how| format!(": {how}"));
        let log = self.dirs.daemon_log(&component.to_string());
        // What it wrote before somebody else killed it explains nothing.
        let lines = if how.contains("SIGKILL") {
            Vec::new()
        } else {
            daemon_log::last_lines(&log, daemon.log_mark, QUOTED)
        };
        let expected = daemon.machine.expects_end();
        self.input(index, Input::Exited);
        let machine = &self.daemons[index].machine;
        if expected {
            self.report
                .say(&component.to_string(), Tone::Dim, &format!("ended{how}"));
            return;
        }
        let wait = machine.deadline().map_or_else(String::new, |at| {
            let wait = at.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                ", started again".to_owned()
            } else {
                format!(", started again in {}", crate::human::duration(wait))
            }
        });
        self.report.say(
            &component.to_string(),
            Tone::Bad,
            &format!("ended{how}{wait} (log: {})", log.display()),
        );
        self.report.quote(&component.to_string(), &lines);
    }

    fn tick(&mut self) {
        for index in 0..self.daemons.len() {
            self.input(index, Input::Tick);
        }
    }

    /// Gives an input to one daemon's machine and does what it says.
    fn input(&mut self, index: usize, input: Input) {
        let action = self.daemons[index].machine.handle(Instant::now(), input);
        self.perform(index, action);
    }

    fn perform(&mut self, index: usize, action: Option<Action>) {
        let mut next = action;
        while let Some(action) = next.take() {
            let daemon = &self.daemons[index];
            let name = daemon.component.to_string();
            let signal = match action {
                Action::Spawn => {
                    let input = self.spawn(index);
                    next = self.daemons[index].machine.handle(Instant::now(), input);
                    continue;
                }
                Action::Terminate => Signal::TERM,
                Action::Abort => {
                    self.report.say(
                        &name,
                        Tone::Bad,
                        "does not answer: it hangs, and is aborted",
                    );
                    Signal::ABORT
                }
                Action::Kill => Signal::KILL,
            };
            if let Some(process) = &daemon.process {
                process.signal(signal);
            }
        }
    }

    fn spawn(&mut self, index: usize) -> Input {
        let component = self.daemons[index].component.clone();
        let Some(launch) = self.launch.clone() else {
            return Input::SpawnFailed;
        };
        // Somebody else may have started one meanwhile: then that one is held.
        if let Some(process) = holder(&self.dirs, &component) {
            self.await_end(&component, &process);
            self.daemons[index].process = Some(process);
            return Input::Spawned;
        }
        let name = component.to_string();
        let path = self.dirs.daemon_log(&name);
        let started = daemon_log::open(&path).and_then(|log| {
            self.daemons[index].log_mark = daemon_log::length(&path);
            let mut arguments = vec![
                "-c".as_ref(),
                launch.config.as_os_str(),
                "--run-dir".as_ref(),
                self.dirs.run.as_os_str(),
                "--state-dir".as_ref(),
                self.dirs.state.as_os_str(),
            ];
            if let Component::ProcessManager(Some(name)) = &component {
                arguments.extend([OsStr::new("--name"), OsStr::new(name.as_str())]);
            }
            Process::spawn(&launch.binaries.of(&component), &arguments, &log)
        });
        match started {
            Ok(process) => {
                self.await_end(&component, &process);
                self.daemons[index].process = Some(process);
                Input::Spawned
            }
            Err(error) => {
                self.report.say(&name, Tone::Bad, &error.report());
                Input::SpawnFailed
            }
        }
    }

    fn index(&self, component: &Component) -> Option<usize> {
        self.daemons
            .iter()
            .position(|daemon| daemon.component == *component)
    }

    /// Whether all daemons that are kept answer.
    pub(super) fn all_up(&self) -> bool {
        self.daemons
            .iter()
            .all(|daemon| daemon.awaited || daemon.machine.is_up() || daemon.machine.is_gone())
    }

    /// Whether a daemon's process lives.
    pub(super) fn lives(&self, component: &Component) -> bool {
        self.index(component)
            .is_some_and(|index| self.daemons[index].process.is_some())
    }

    /// A process-manager that should be there and is not: what it has can only be
    /// stopped without it.
    pub(super) fn missing_manager(&self) -> Option<&Component> {
        let missing = |daemon: &&Daemon| {
            let manager = matches!(daemon.component, Component::ProcessManager(_));
            manager && daemon.kept && daemon.process.is_none()
        };
        self.daemons.iter().find(missing).map(|one| &one.component)
    }

    /// A daemon that has failed again and again without ever answering.
    pub(super) fn hopeless(&self) -> Option<&Component> {
        self.daemons
            .iter()
            .find(|daemon| !daemon.awaited && daemon.machine.is_hopeless())
            .map(|daemon| &daemon.component)
    }

    /// Whether each daemon either answers or is hopeless: waiting longer would
    /// not change what there is.
    pub(super) fn all_decided(&self) -> bool {
        self.daemons.iter().all(|daemon| {
            let machine = &daemon.machine;
            daemon.awaited || machine.is_up() || machine.is_gone() || machine.is_hopeless()
        })
    }

    /// Ends the hopeless daemons and waits until they are gone; none is started
    /// any more. The others and all services are left as they are.
    pub(super) async fn end_hopeless(&mut self) {
        let hopeless: Vec<Component> = self
            .daemons
            .iter()
            .filter(|daemon| daemon.machine.is_hopeless())
            .map(|daemon| daemon.component.clone())
            .collect();
        self.no_restarts();
        for component in hopeless {
            self.end(&component, false).await;
        }
    }

    /// From now on a daemon that ends is not started again.
    pub(super) fn no_restarts(&mut self) {
        self.launch = None;
        for daemon in &mut self.daemons {
            daemon.machine.no_restart();
        }
    }

    /// The components that are kept, in the order of an end: whoever decides
    /// goes first, the bridge last, so that services could finish their calls.
    pub(super) fn end_order(&self) -> Vec<Component> {
        let mut all: Vec<Component> = self
            .daemons
            .iter()
            .map(|daemon| daemon.component.clone())
            .collect();
        all.sort_by_key(|component| match component {
            Component::Supervisor => 0,
            Component::ProcessManager(_) => 1,
            Component::ResourceController => 2,
            Component::Bridge => 3,
        });
        all
    }

    /// Ends a daemon, with patience or at once, and waits until it is gone.
    pub(super) async fn end(&mut self, component: &Component, at_once: bool) {
        let Some(index) = self.index(component) else {
            return;
        };
        self.input(index, if at_once { Input::Kill } else { Input::End });
        while !self.daemons[index].machine.is_gone() {
            self.step().await;
        }
    }
}

/// The process that holds a component's lock, held by a pidfd.
fn holder(dirs: &Dirs, component: &Component) -> Option<Process> {
    holder_of(dirs, &component.to_string())
}

/// The process that holds the lock of this name, held by a pidfd.
pub(crate) fn holder_of(dirs: &Dirs, name: &str) -> Option<Process> {
    let path = dirs.lock(name);
    let pid = Lock::holder(&path)?;
    let process = Process::open(Pid::from_raw(i32::try_from(pid).ok()?)?).ok()?;
    // Had it ended before it was held, the number could be another's by now.
    (Lock::holder(&path) == Some(pid)).then_some(process)
}
