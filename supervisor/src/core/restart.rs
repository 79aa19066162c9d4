//! When a failed instance is started again: waits and circuit.

use std::time::Duration;

use blackhole_bus_schema::config::RestartPolicy;
use blackhole_bus_schema::supervision::Circuit;

use super::io::Now;
use super::random::Random;

/// How an instance failed, as far as the waits care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// It ran and ended. May be a passing fault: the first restart is immediate.
    Ended,
    /// It never ran: its program is missing, its user unknown. Trying again at
    /// once cannot help.
    NotStarted,
}

/// What follows from a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Restart number `attempt` in a row is due after `wait`.
    Again {
        /// From 1.
        attempt: u32,
        /// Zero for the first.
        wait: Duration,
    },
    /// The circuit is open (again).
    Opened,
}

/// The restarts of one instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Restarts {
    /// Restarts in a row, without a stable run between them.
    pub(super) attempts: u32,
    /// Position in the row of waits: 0 is "at once", 1 the initial backoff …
    pub(super) step: u32,
    /// Restarts after failures since an operator last started or reset it.
    pub(super) total: u32,
    /// Its circuit.
    pub(super) circuit: Circuit,
    /// When the circuit opened.
    pub(super) opened: Option<Now>,
    /// The next spawn is a restart after a failure, due at this moment.
    pub(super) due: Option<Now>,
    /// The host-wide bucket has given this restart its slot.
    pub(super) slot: bool,
}

impl Restarts {
    /// Judges a failure.
    pub(super) fn failed(
        &mut self,
        policy: &RestartPolicy,
        kind: FailureKind,
        now: Now,
        random: &mut Random,
    ) -> Verdict {
        self.slot = false;
        if self.circuit != Circuit::Closed || self.attempts >= policy.max_attempts {
            self.circuit = Circuit::Open;
            self.opened = Some(now);
            self.due = None;
            return Verdict::Opened;
        }
        if kind == FailureKind::NotStarted {
            self.step = self.step.max(1);
        }
        let wait = random.jitter(backoff(policy, self.step), policy.jitter_percent);
        self.step = self.step.saturating_add(1);
        self.attempts = self.attempts.saturating_add(1);
        self.due = Some(now.after(wait));
        Verdict::Again {
            attempt: self.attempts,
            wait,
        }
    }

    /// It has run stably for `reset_after`: earlier failures are forgotten.
    /// Tells whether there were any.
    pub(super) fn stable(&mut self) -> bool {
        let any = self.attempts > 0 || self.step > 0 || self.circuit != Circuit::Closed;
        self.attempts = 0;
        self.step = 0;
        self.circuit = Circuit::Closed;
        self.opened = None;
        any
    }

    /// Whether the next failure is the first, so that a restart follows at once.
    pub(super) fn is_pristine(&self) -> bool {
        self.attempts == 0 && self.step == 0 && self.circuit == Circuit::Closed
    }

    /// An operator wants it to begin anew.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// When an open circuit allows a trial; `None`: never.
    pub(super) fn trial_at(&self, policy: &RestartPolicy) -> Option<Now> {
        let opened = self.opened?;
        (self.circuit == Circuit::Open).then_some(opened.after(policy.cool_down?))
    }

    /// Begins the trial of an open circuit.
    pub(super) fn half_open(&mut self, now: Now) {
        self.circuit = Circuit::HalfOpen;
        self.due = Some(now);
        self.slot = false;
    }

    /// A spawn was decided. Tells whether it is a restart after a failure.
    pub(super) fn spawned(&mut self) -> bool {
        self.slot = false;
        let restart = self.due.take().is_some();
        if restart {
            self.total = self.total.saturating_add(1);
        }
        restart
    }
}

/// The wait at a position of the row: nothing, then `initial_backoff` times
/// `backoff_multiplier`ⁿ, never more than `max_backoff`.
pub(super) fn backoff(policy: &RestartPolicy, step: u32) -> Duration {
    let Some(exponent) = step.checked_sub(1) else {
        return Duration::ZERO;
    };
    let most = policy.max_backoff.as_secs_f64();
    let exponent = i32::try_from(exponent).unwrap_or(i32::MAX);
    let seconds = policy.initial_backoff.as_secs_f64() * policy.backoff_multiplier.powi(exponent);
    // `min` also takes care of infinity; a NaN (0 × ∞) becomes `most`.
    Duration::try_from_secs_f64(seconds.min(most)).unwrap_or(policy.max_backoff)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> RestartPolicy {
        RestartPolicy {
            jitter_percent: 0,
            ..RestartPolicy::default()
        }
    }

    fn at(seconds: u64) -> Now {
        Now {
            mono: Duration::from_secs(seconds),
            unix_ns: 1_000_000_000 * (1000 + seconds),
        }
    }

    fn waits(policy: &RestartPolicy, kind: FailureKind) -> (Vec<u64>, Restarts) {
        let mut restarts = Restarts::default();
        let mut waits = Vec::new();
        let mut random = Random::new(1);
        while let Verdict::Again { wait, .. } = restarts.failed(policy, kind, at(0), &mut random) {
            assert!(restarts.spawned());
            waits.push(wait.as_secs());
            assert!(waits.len() < 100);
        }
        (waits, restarts)
    }

    #[test]
    fn at_once_then_doubling_then_the_circuit_opens() {
        let (waits, restarts) = waits(&policy(), FailureKind::Ended);
        assert_eq!(waits, [0, 1, 2, 4, 8]);
        assert_eq!(restarts.circuit, Circuit::Open);
        assert_eq!(restarts.total, 5);
        assert_eq!(restarts.trial_at(&policy()), None);
    }

    #[test]
    fn what_never_ran_is_not_tried_at_once() {
        let (waits, _) = waits(&policy(), FailureKind::NotStarted);
        assert_eq!(waits, [1, 2, 4, 8, 16]);
    }

    #[test]
    fn waits_never_exceed_their_maximum() {
        let policy = RestartPolicy {
            max_attempts: 50,
            ..policy()
        };
        let (waits, _) = waits(&policy, FailureKind::Ended);
        assert_eq!(waits[..9], [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(waits[49], 60);
        assert_eq!(backoff(&policy, u32::MAX), Duration::from_secs(60));
    }

    #[test]
    fn strange_policies_do_no_harm() {
        for multiplier in [0.0, -3.0, f64::INFINITY, f64::NAN, 1e300] {
            let policy = RestartPolicy {
                backoff_multiplier: multiplier,
                ..policy()
            };
            for step in [0, 1, 2, 3, 40, u32::MAX] {
                assert!(backoff(&policy, step) <= policy.max_backoff);
            }
        }
        let none = RestartPolicy {
            max_attempts: 0,
            ..policy()
        };
        assert_eq!(waits(&none, FailureKind::Ended).0, Vec::<u64>::new());
    }

    #[test]
    fn a_stable_run_forgets() {
        let mut restarts = Restarts::default();
        let mut random = Random::new(1);
        for _ in 0..4 {
            restarts.failed(&policy(), FailureKind::Ended, at(0), &mut random);
        }
        assert!(restarts.stable());
        assert!(!restarts.stable());
        assert_eq!(
            restarts.failed(&policy(), FailureKind::Ended, at(0), &mut random),
            Verdict::Again {
                attempt: 1,
                wait: Duration::ZERO
            }
        );
    }

    #[test]
    fn a_failed_trial_opens_at_once_and_a_stable_one_closes() {
        let policy = RestartPolicy {
            cool_down: Some(Duration::from_secs(30)),
            ..policy()
        };
        let (_, mut restarts) = waits(&policy, FailureKind::Ended);
        assert_eq!(restarts.trial_at(&policy), Some(at(30)));
        restarts.half_open(at(30));
        let mut random = Random::new(1);
        let verdict = restarts.failed(&policy, FailureKind::Ended, at(31), &mut random);
        assert_eq!(verdict, Verdict::Opened);
        assert_eq!(restarts.trial_at(&policy), Some(at(61)));
        restarts.half_open(at(61));
        assert!(restarts.stable());
        assert_eq!(restarts.circuit, Circuit::Closed);
    }
}
