//! Verdicts over probe results. The process-manager probes and counts, here it
//! is judged.
//!
//! A process-manager publishes every failure, but of successes only those up
//! to the threshold. A supervisor that comes back therefore hears nothing of a
//! service that is well: for one that it adopts before having seen it ready it
//! waits for as long as a failure would take to show, and takes silence as
//! success (see [`Probing::listen`]). For one that it started itself it waits
//! half a minute longer, and says so: only a lost message leads there, since a
//! probe that fails is heard of.

use std::time::Duration;

use blackhole_bus_schema::health::{Health, Probe, ProbeCheck, ProbeKind, ProbeResult, Probes};
use blackhole_bus_schema::process::NotifyState;

const KINDS: [ProbeKind; 3] = [
    ProbeKind::Startup,
    ProbeKind::Liveness,
    ProbeKind::Readiness,
];

/// Added to the time after which silence counts as success: clearly longer than
/// it takes to notice that the process-manager itself is silent (3.5 s).
const QUIET_SLACK: Duration = Duration::from_secs(6);

/// Added for an instance whose probes should have been heard from the first.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is known of one probe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Known {
    /// `None` until a threshold was reached.
    passes: Option<bool>,
    /// Without a failure until then it passes.
    quiet_at: Option<Duration>,
    /// The silence that it takes.
    silence: Duration,
}

impl Known {
    fn pass(&mut self) {
        self.passes = Some(true);
        self.quiet_at = None;
    }

    fn wait(&mut self, now: Duration, silence: Duration) {
        self.silence = silence;
        self.quiet_at = Some(now.saturating_add(silence));
    }
}

/// The probes of one running instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Probing {
    startup: Known,
    liveness: Known,
    readiness: Known,
    /// It has been ready in this run of it.
    was_ready: bool,
    /// What the last failing probe said.
    detail: Option<String>,
}

impl Probing {
    fn known(&mut self, kind: ProbeKind) -> &mut Known {
        match kind {
            ProbeKind::Startup => &mut self.startup,
            ProbeKind::Liveness => &mut self.liveness,
            ProbeKind::Readiness => &mut self.readiness,
        }
    }

    /// An adopted instance that was ready when it was last seen: it is believed
    /// until a probe says otherwise.
    pub(super) fn adopted_ready(&mut self) {
        self.startup.passes = Some(true);
        self.readiness.passes = Some(true);
        self.was_ready = true;
    }

    /// Takes in one result.
    pub(super) fn result(&mut self, probes: &Probes, result: &ProbeResult, now: Duration) {
        let Some(probe) = probes.get(result.probe) else {
            return;
        };
        let known = self.known(result.probe);
        match &result.error {
            None => {
                if result.in_a_row >= probe.success_threshold.max(1) {
                    known.pass();
                    let patient = known.silence > PATIENCE;
                    self.detail = patient
                        .then(|| "no result of its probe was heard: taken as passing".to_owned());
                    self.detail = None;
                }
            }
            Some(error) => {
                if result.in_a_row >= probe.failure_threshold.max(1) {
                    known.passes = Some(false);
                }
                if known.quiet_at.is_some() {
                    known.wait(now, known.silence);
                }
                self.detail = Some(error.clone());
            }
        }
    }

    /// Takes in what the service said of itself.
    pub(super) fn notified(&mut self, probes: &Probes, notify: &NotifyState) {
        for kind in [ProbeKind::Startup, ProbeKind::Readiness] {
            let asked = probes
                .get(kind)
                .is_some_and(|probe| probe.check == ProbeCheck::Notify);
            if asked && notify.ready {
                self.known(kind).pass();
            }
        }
    }

    /// It has just been started: its probes are waited for patiently.
    pub(super) fn begin(&mut self, probes: &Probes, now: Duration) {
        self.wait(probes, now, PATIENCE);
    }

    /// What was said before may have been missed: from here on, silence for
    /// long enough counts as success for the probes that are not known to
    /// pass. Not for [`ProbeCheck::Notify`]: what a service said of itself is in
    /// its record.
    pub(super) fn listen(&mut self, probes: &Probes, now: Duration) {
        self.wait(probes, now, Duration::ZERO);
    }

    fn wait(&mut self, probes: &Probes, now: Duration, more: Duration) {
        for kind in KINDS {
            let Some(probe) = probes.get(kind) else {
                continue;
            };
            let known = self.known(kind);
            if probe.check != ProbeCheck::Notify && known.passes != Some(true) {
                known.wait(now, quiet(probe).saturating_add(more));
            }
        }
    }

    /// Who could be heard is not there: silence means nothing.
    pub(super) fn deaf(&mut self) {
        for kind in KINDS {
            self.known(kind).quiet_at = None;
        }
    }

    /// Applies silence. Called before anything is read at `now`.
    pub(super) fn tick(&mut self, now: Duration) {
        for kind in KINDS {
            let known = self.known(kind);
            if known.quiet_at.is_some_and(|at| at <= now) {
                known.pass();
                let patient = known.silence > PATIENCE;
                self.detail = patient
                    .then(|| "no result of its probe was heard: taken as passing".to_owned());
            }
        }
    }

    /// When [`Self::tick`] would change something.
    pub(super) fn wake(&self) -> Option<Duration> {
        [self.startup, self.liveness, self.readiness]
            .iter()
            .filter_map(|known| known.quiet_at)
            .min()
    }

    /// Whether it is ready; remembers that it was.
    pub(super) fn judge_ready(&mut self, probes: &Probes) -> bool {
        let ready = self.ready(probes);
        self.was_ready |= ready;
        ready
    }

    /// Whether startup and readiness pass, as far as they are configured.
    pub(super) fn ready(&self, probes: &Probes) -> bool {
        let passes =
            |probe: &Option<Probe>, known: Known| probe.is_none() || known.passes == Some(true);
        passes(&probes.startup, self.startup) && passes(&probes.readiness, self.readiness)
    }

    /// Whether it has been ready since it started.
    pub(super) fn was_ready(&self) -> bool {
        self.was_ready
    }

    /// Whether its readiness probe has failed to the threshold.
    pub(super) fn refuses(&self) -> bool {
        self.readiness.passes == Some(false)
    }

    /// Whether it has to be restarted for its health.
    pub(super) fn unhealthy(&self) -> bool {
        self.startup.passes == Some(false) || self.liveness.passes == Some(false)
    }

    /// What the last failing probe said.
    pub(super) fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// The verdict over all probes.
    pub(super) fn health(&self, probes: &Probes) -> Health {
        if *probes == Probes::default() {
            return Health::Unknown;
        }
        if self.unhealthy() {
            return Health::Unhealthy;
        }
        match (self.ready(probes), self.was_ready) {
            (false, false) => Health::Starting,
            (false, true) => Health::NotReady,
            (true, _) => {
                let only_liveness = probes.startup.is_none() && probes.readiness.is_none();
                if only_liveness && self.liveness.passes.is_none() {
                    Health::Unknown
                } else {
                    Health::Healthy
                }
            }
        }
    }
}

/// The longest time between two failures of a probe that goes on failing.
fn quiet(probe: &Probe) -> Duration {
    let round = Duration::from_millis(probe.interval_ms.saturating_add(probe.timeout_ms));
    Duration::from_millis(probe.initial_delay_ms)
        .saturating_add(round.saturating_mul(probe.success_threshold.max(1)))
        .saturating_add(QUIET_SLACK)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn probe() -> Probe {
        Probe {
            check: ProbeCheck::Tcp("127.0.0.1:1".into()),
            initial_delay_ms: 0,
            interval_ms: 2000,
            timeout_ms: 1000,
            failure_threshold: 3,
            success_threshold: 2,
        }
    }

    fn result(probe: ProbeKind, error: Option<&str>, in_a_row: u32) -> ProbeResult {
        ProbeResult {
            instance: "a.1".parse().unwrap(),
            generation: Default::default(),
            probe,
            error: error.map(str::to_owned),
            in_a_row,
            took_us: 1,
        }
    }

    #[test]
    fn thresholds_decide() {
        let probes = Probes {
            readiness: Some(probe()),
            ..Probes::default()
        };
        let mut probing = Probing::default();
        assert_eq!(probing.health(&probes), Health::Starting);
        probing.result(&probes, &result(ProbeKind::Readiness, None, 1), S(0));
        assert!(!probing.judge_ready(&probes));
        probing.result(&probes, &result(ProbeKind::Readiness, None, 2), S(0));
        assert!(probing.judge_ready(&probes));
        assert_eq!(probing.health(&probes), Health::Healthy);
        probing.result(
            &probes,
            &result(ProbeKind::Readiness, Some("refused"), 2),
            S(0),
        );
        assert!(probing.judge_ready(&probes));
        probing.result(
            &probes,
            &result(ProbeKind::Readiness, Some("refused"), 3),
            S(0),
        );
        assert!(!probing.judge_ready(&probes));
        assert_eq!(probing.health(&probes), Health::NotReady);
        assert_eq!(probing.detail(), Some("refused"));
        assert!(!probing.unhealthy());
    }

    #[test]
    fn startup_holds_readiness_back_and_kills_when_it_fails() {
        let probes = Probes {
            startup: Some(probe()),
            readiness: Some(probe()),
            ..Probes::default()
        };
        let mut probing = Probing::default();
        probing.result(&probes, &result(ProbeKind::Readiness, None, 2), S(0));
        assert!(!probing.judge_ready(&probes));
        probing.result(&probes, &result(ProbeKind::Startup, None, 2), S(0));
        assert!(probing.judge_ready(&probes));
        let mut late = Probing::default();
        late.result(&probes, &result(ProbeKind::Startup, Some("late"), 3), S(0));
        assert_eq!(late.health(&probes), Health::Unhealthy);
    }

    #[test]
    fn a_failing_liveness_probe_is_unhealthy() {
        let probes = Probes {
            liveness: Some(probe()),
            ..Probes::default()
        };
        let mut probing = Probing::default();
        assert!(
            probing.judge_ready(&probes),
            "without readiness: running is ready"
        );
        assert_eq!(probing.health(&probes), Health::Unknown);
        probing.result(&probes, &result(ProbeKind::Liveness, None, 2), S(0));
        assert_eq!(probing.health(&probes), Health::Healthy);
        probing.result(&probes, &result(ProbeKind::Liveness, Some("no"), 3), S(0));
        assert!(probing.unhealthy());
    }

    #[test]
    fn notify_is_taken_from_the_service_itself() {
        let notify = Probe {
            check: ProbeCheck::Notify,
            ..probe()
        };
        let probes = Probes {
            readiness: Some(notify),
            ..Probes::default()
        };
        let mut probing = Probing::default();
        probing.listen(&probes, S(0));
        assert_eq!(probing.wake(), None, "silence says nothing here");
        probing.notified(
            &probes,
            &NotifyState {
                ready: true,
                ..NotifyState::default()
            },
        );
        assert!(probing.judge_ready(&probes));
    }

    #[test]
    fn one_that_was_just_started_is_waited_for_patiently() {
        let probes = Probes {
            readiness: Some(probe()),
            ..Probes::default()
        };
        let mut probing = Probing::default();
        probing.begin(&probes, S(1000));
        probing.tick(S(1041));
        assert!(!probing.ready(&probes));
        probing.result(
            &probes,
            &result(ProbeKind::Readiness, Some("no"), 1),
            S(1030),
        );
        probing.tick(S(1071));
        assert!(!probing.ready(&probes));
        probing.tick(S(1072));
        assert!(probing.ready(&probes));
        assert!(probing.detail().unwrap().contains("taken as passing"));
    }

    #[test]
    fn silence_is_success_only_when_listening_and_a_failure_prolongs_it() {
        let probes = Probes {
            readiness: Some(probe()),
            ..Probes::default()
        };
        let mut probing = Probing::default();
        probing.tick(S(1000));
        assert!(!probing.ready(&probes));
        probing.listen(&probes, S(1000));
        assert_eq!(probing.wake(), Some(S(1012)));
        probing.result(
            &probes,
            &result(ProbeKind::Readiness, Some("no"), 1),
            S(1003),
        );
        probing.tick(S(1014));
        assert!(!probing.ready(&probes));
        probing.deaf();
        probing.tick(S(2000));
        assert!(!probing.ready(&probes));
        probing.listen(&probes, S(2000));
        probing.tick(S(2012));
        assert!(probing.ready(&probes));
    }
}
