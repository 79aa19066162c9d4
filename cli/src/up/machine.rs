//! One daemon under a keeper, as a core without I/O: when it is started again,
//! when it counts as hung, how it is ended. The caller passes the time in.
//!
//! ```text
//!          spawned            answers            silent
//!   Due ───────────► Starting ───────► Up ◄──────────────► Silent
//!    ▲ exited            │ too long     │ exited              │ too long
//!    ├───────────────────┼──────────────┘                     │
//!    │                   └──────────► Aborting ◄──────────────┘
//!    └──────────────────────────────── │ exited (SIGABRT, then SIGKILL)
//!   any ── end ──► Ending ── exited ──► Gone
//! ```

use std::time::Duration;

use tokio::time::Instant;

/// Longest time from the start of a process to its first answer.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// Longest silence of a process that lives.
const SILENCE_PATIENCE: Duration = Duration::from_secs(10);
/// From SIGABRT (which leaves a core where those are kept) to SIGKILL.
const ABORT_PATIENCE: Duration = Duration::from_secs(1);
/// From SIGTERM to SIGKILL.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// Answering for this long forgets earlier failures.
const STABLE: Duration = Duration::from_secs(30);
/// Waits before a restart, by the number of failures in a row; the last one repeats.
const BACKOFF: [Duration; 7] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
];
/// Failures in a row before it has ever answered that make its start hopeless.
const HOPELESS: u32 = 3;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    /// The process that [`Action::Spawn`] asked for lives.
    Spawned,
    /// It could not be made.
    SpawnFailed,
    /// A process of an earlier keeper was found alive.
    Adopted,
    /// A process of an earlier keeper was found alive and has to be replaced:
    /// it was started with another configuration or version.
    Replaced,
    /// The process ended.
    Exited,
    /// It answers on the bus.
    Answers,
    /// It does not answer on the bus any more.
    Silent,
    /// It is to end and not to be started again.
    End,
    /// It is to end at once.
    Kill,
    /// The deadline has come.
    Tick,
}

/// What the caller has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Start a process; answer with [`Input::Spawned`] or [`Input::SpawnFailed`].
    Spawn,
    /// Send SIGTERM.
    Terminate,
    /// Send SIGABRT: it hangs.
    Abort,
    /// Send SIGKILL.
    Kill,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Due { at: Instant },
    Spawning,
    Starting { since: Instant },
    Up { since: Instant },
    Silent { since: Instant },
    Aborting { since: Instant },
    Killed,
    Replacing { since: Instant },
    Ending { since: Instant },
    Gone,
}

/// One daemon under a keeper.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    state: State,
    failures: u32,
    answered: bool,
    ending: bool,
}

impl Machine {
    /// One that is to be started at once.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            state: State::Due { at: now },
            failures: 0,
            answered: false,
            ending: false,
        }
    }

    /// When [`Input::Tick`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Due { at } => Some(at),
            State::Starting { since } => Some(since + START_PATIENCE),
            State::Silent { since } => Some(since + SILENCE_PATIENCE),
            State::Aborting { since } => Some(since + ABORT_PATIENCE),
            State::Replacing { since } | State::Ending { since } => Some(since + END_PATIENCE),
            State::Up { .. } | State::Spawning | State::Killed | State::Gone => None,
        }
    }

    /// Takes in what happened and tells what to do.
    pub(super) fn handle(&mut self, now: Instant, input: Input) -> Option<Action> {
        match input {
            Input::Spawned | Input::Adopted => {
                self.state = if self.ending {
                    State::Ending { since: now }
                } else {
                    State::Starting { since: now }
                };
                self.ending.then_some(Action::Terminate)
            }
            Input::Replaced => {
                self.state = State::Replacing { since: now };
                Some(Action::Terminate)
            }
            Input::SpawnFailed | Input::Exited => {
                self.ended(now);
                None
            }
            Input::Answers => {
                self.answered = true;
                if matches!(self.state, State::Starting { .. } | State::Silent { .. }) {
                    self.state = State::Up { since: now };
                }
                None
            }
            Input::Silent => {
                if let State::Up { since } = self.state {
                    self.settle(now, since);
                    self.state = State::Silent { since: now };
                }
                None
            }
            Input::End => self.end(now),
            Input::Kill => {
                self.ending = true;
                match self.state {
                    State::Gone => None,
                    State::Due { .. } => {
                        self.state = State::Gone;
                        None
                    }
                    State::Spawning => None,
                    _ => {
                        self.state = State::Killed;
                        Some(Action::Kill)
                    }
                }
            }
            Input::Tick => self.tick(now),
        }
    }

    /// Whether there is no process and there will be none.
    pub(super) fn is_gone(&self) -> bool {
        self.state == State::Gone
    }

    /// Whether it answers.
    pub(super) fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    /// Whether it has failed so often without ever answering that waiting longer is pointless.
    pub(super) fn is_hopeless(&self) -> bool {
        !self.answered && self.failures >= HOPELESS
    }

    /// Whether its process was asked to end, so that its end is no surprise.
    pub(super) fn expects_end(&self) -> bool {
        match self.state {
            State::Replacing { .. } | State::Ending { .. } => true,
            State::Killed => self.ending,
            _ => false,
        }
    }

    /// From now on it is not started again once it ends; nothing is done about
    /// a process that lives.
    pub(super) fn no_restart(&mut self) {
        self.ending = true;
        if matches!(self.state, State::Due { .. }) {
            self.state = State::Gone;
        }
    }

    fn end(&mut self, now: Instant) -> Option<Action> {
        self.ending = true;
        match self.state {
            State::Due { .. } => {
                self.state = State::Gone;
                None
            }
            State::Replacing { since } => {
                self.state = State::Ending { since };
                None
            }
            // Already on its way out, or about to be asked for.
            State::Spawning | State::Killed | State::Ending { .. } | State::Gone => None,
            // Hung: it would not hear SIGTERM either, the abort goes on.
            State::Aborting { .. } => None,
            State::Starting { .. } | State::Up { .. } | State::Silent { .. } => {
                self.state = State::Ending { since: now };
                Some(Action::Terminate)
            }
        }
    }

    fn ended(&mut self, now: Instant) {
        if self.ending {
            self.state = State::Gone;
            return;
        }
        match self.state {
            // A replacement is no failure.
            State::Replacing { .. } => self.state = State::Due { at: now },
            state => {
                if let State::Up { since } = state {
                    self.settle(now, since);
                }
                let step = usize::try_from(self.failures)
                    .unwrap_or(usize::MAX)
                    .min(BACKOFF.len() - 1);
                self.failures = self.failures.saturating_add(1);
                self.state = State::Due {
                    at: now + BACKOFF[step],
                };
            }
        }
    }

    fn settle(&mut self, now: Instant, since: Instant) {
        if now.saturating_duration_since(since) >= STABLE {
            self.failures = 0;
        }
    }

    fn tick(&mut self, now: Instant) -> Option<Action> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return None;
        }
        match self.state {
            State::Due { .. } => {
                self.state = State::Spawning;
                Some(Action::Spawn)
            }
            State::Starting { .. } | State::Silent { .. } => {
                self.state = State::Aborting { since: now };
                Some(Action::Abort)
            }
            State::Aborting { .. } | State::Ending { .. } => {
                self.state = State::Killed;
                Some(Action::Kill)
            }
            State::Replacing { since } => {
                // Asked in vain; what follows its end is still a start.
                self.state = State::Replacing {
                    since: since + END_PATIENCE,
                };
                Some(Action::Kill)
            }
            State::Up { .. } | State::Spawning | State::Killed | State::Gone => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn started() -> (Machine, Instant) {
        let now = Instant::now();
        let mut machine = Machine::new(now);
        assert_eq!(machine.handle(now, Input::Tick), Some(Action::Spawn));
        assert_eq!(machine.handle(now, Input::Spawned), None);
        assert_eq!(machine.handle(now, Input::Answers), None);
        assert!(machine.is_up());
        (machine, now)
    }

    #[test]
    fn one_that_dies_is_started_again_at_once_and_then_later_and_later() {
        let (mut machine, mut now) = started();
        let mut waits = Vec::new();
        for _ in 0..8 {
            machine.handle(now, Input::Exited);
            let at = machine.deadline().unwrap();
            waits.push((at - now).as_millis());
            now = at;
            assert_eq!(machine.handle(now, Input::Tick), Some(Action::Spawn));
            machine.handle(now, Input::Spawned);
            machine.handle(now, Input::Answers);
        }
        assert_eq!(waits, [0, 100, 1000, 2000, 4000, 8000, 16_000, 16_000]);
    }

    #[test]
    fn a_stable_life_forgets_failures() {
        let (mut machine, now) = started();
        machine.handle(now, Input::Exited);
        machine.handle(now, Input::Tick);
        machine.handle(now, Input::Spawned);
        machine.handle(now, Input::Answers);
        let later = now + STABLE;
        machine.handle(later, Input::Exited);
        assert_eq!(machine.deadline(), Some(later), "at once again");
    }

    #[test]
    fn one_that_hangs_is_aborted_then_killed_then_started_again() {
        let (mut machine, now) = started();
        machine.handle(now, Input::Silent);
        assert_eq!(
            machine.handle(now + SILENCE_PATIENCE / 2, Input::Tick),
            None
        );
        let late = now + SILENCE_PATIENCE;
        assert_eq!(machine.handle(late, Input::Tick), Some(Action::Abort));
        assert_eq!(
            machine.handle(late + ABORT_PATIENCE, Input::Tick),
            Some(Action::Kill)
        );
        machine.handle(late + ABORT_PATIENCE, Input::Exited);
        assert_eq!(
            machine.handle(late + ABORT_PATIENCE, Input::Tick),
            Some(Action::Spawn)
        );
    }

    #[test]
    fn a_short_silence_is_forgiven() {
        let (mut machine, now) = started();
        machine.handle(now, Input::Silent);
        machine.handle(now + SILENCE_PATIENCE / 2, Input::Answers);
        assert_eq!(
            machine.handle(now + SILENCE_PATIENCE * 2, Input::Tick),
            None
        );
        assert!(machine.is_up());
    }

    #[test]
    fn one_that_never_answers_is_hopeless_after_a_few_tries() {
        let now = Instant::now();
        let mut machine = Machine::new(now);
        for _ in 0..HOPELESS {
            assert!(!machine.is_hopeless());
            machine.handle(now, Input::SpawnFailed);
        }
        assert!(machine.is_hopeless());
        let (mut machine, now) = started();
        for _ in 0..HOPELESS {
            machine.handle(now, Input::Exited);
        }
        assert!(
            !machine.is_hopeless(),
            "it has answered once: it may come back"
        );
    }

    #[test]
    fn an_end_is_for_good_and_a_replacement_is_not() {
        let (mut machine, now) = started();
        assert_eq!(machine.handle(now, Input::End), Some(Action::Terminate));
        assert_eq!(
            machine.handle(now + END_PATIENCE, Input::Tick),
            Some(Action::Kill)
        );
        machine.handle(now, Input::Exited);
        assert!(machine.is_gone());
        assert_eq!(machine.deadline(), None);

        let mut machine = Machine::new(now);
        assert_eq!(
            machine.handle(now, Input::Replaced),
            Some(Action::Terminate)
        );
        machine.handle(now, Input::Exited);
        assert_eq!(machine.handle(now, Input::Tick), Some(Action::Spawn));
        machine.handle(now, Input::Spawned);
        machine.handle(now, Input::Exited);
        assert_eq!(machine.deadline(), Some(now), "a replacement is no failure");
    }

    #[test]
    fn an_end_while_the_process_is_being_made_ends_that_process() {
        let now = Instant::now();
        let mut machine = Machine::new(now);
        assert_eq!(machine.handle(now, Input::Tick), Some(Action::Spawn));
        assert_eq!(machine.handle(now, Input::End), None);
        assert_eq!(machine.handle(now, Input::Spawned), Some(Action::Terminate));
    }

    fn inputs() -> impl Strategy<Value = Vec<(u64, u8)>> {
        prop::collection::vec((0..40_000_u64, 0..5_u8), 0..200)
    }

    proptest! {
        /// A world that does what it is told: there is never a second process,
        /// one that is asked to end is gone in the end, and nothing is started after it.
        #[test]
        fn never_two_processes_and_an_end_is_reached(steps in inputs(), end_at in 0..200_usize) {
            let mut now = Instant::now();
            let mut machine = Machine::new(now);
            let mut alive = false;
            let mut ended = false;
            let perform = |machine: &mut Machine, alive: &mut bool, ended: bool, now, input| {
                let mut action = machine.handle(now, input);
                while let Some(what) = action {
                    action = match what {
                        Action::Spawn => {
                            assert!(!*alive, "a second process");
                            assert!(!ended, "started after the end");
                            *alive = true;
                            machine.handle(now, Input::Spawned)
                        }
                        Action::Kill => {
                            *alive = false;
                            machine.handle(now, Input::Exited)
                        }
                        Action::Terminate | Action::Abort => None,
                    };
                }
            };
            for (index, (wait, what)) in steps.into_iter().enumerate() {
                now += Duration::from_millis(wait);
                if index == end_at {
                    perform(&mut machine, &mut alive, ended, now, Input::End);
                    ended = true;
                }
                let input = match what {
                    0 if alive => { alive = false; Input::Exited }
                    1 if alive => Input::Answers,
                    2 if alive => Input::Silent,
                    _ => Input::Tick,
                };
                perform(&mut machine, &mut alive, ended, now, input);
            }
            perform(&mut machine, &mut alive, ended, now, Input::End);
            for _ in 0..4 {
                now += END_PATIENCE;
                perform(&mut machine, &mut alive, true, now, Input::Tick);
            }
            prop_assert!(machine.is_gone() && !alive);
        }
    }
}
