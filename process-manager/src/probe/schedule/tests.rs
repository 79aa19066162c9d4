use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const MS: fn(u64) -> Duration = Duration::from_millis;

fn name(text: &str) -> InstanceName {
    text.parse().unwrap()
}

fn probe(check: ProbeCheck) -> Probe {
    Probe {
        check,
        initial_delay_ms: 100,
        interval_ms: 1000,
        timeout_ms: 300,
        failure_threshold: 3,
        success_threshold: 2,
    }
}

fn tcp() -> Probe {
    probe(ProbeCheck::Tcp("127.0.0.1:1".to_owned()))
}

fn good() -> Outcome {
    Outcome {
        error: None,
        took: MS(1),
        next_in: None,
    }
}

fn bad() -> Outcome {
    Outcome {
        error: Some("refused".to_owned()),
        took: MS(1),
        next_in: None,
    }
}

/// A schedule and the time on it.
struct Bench {
    schedule: Schedule,
    start: Instant,
    now: Instant,
}

impl Bench {
    fn new(limit: usize) -> Self {
        let now = Instant::now();
        Self {
            schedule: Schedule::new(limit),
            start: now,
            now,
        }
    }

    fn add(&mut self, instance: &str, probes: &Probes) {
        self.schedule.add(
            self.now,
            &name(instance),
            Generation(1),
            probes,
            Duration::ZERO,
        );
    }

    /// Goes to the next deadline and returns what is due there.
    fn step(&mut self) -> (Vec<Run>, Vec<ProbeResult>) {
        self.now = self
            .schedule
            .next_deadline()
            .expect("nothing is due")
            .max(self.now);
        self.schedule.poll(self.now)
    }

    fn only(&mut self) -> Run {
        let (mut runs, results) = self.step();
        assert!(results.is_empty(), "{results:?}");
        assert_eq!(runs.len(), 1, "{runs:?}");
        runs.remove(0)
    }

    fn finish(&mut self, run: &Run, outcome: Outcome) -> Option<ProbeResult> {
        self.schedule.finished(self.now, run.id, outcome)
    }

    fn at(&self) -> Duration {
        self.now - self.start
    }
}

fn readiness(probe: Probe) -> Probes {
    Probes {
        readiness: Some(probe),
        ..Probes::default()
    }
}

#[test]
fn a_probe_runs_after_its_delay_and_then_an_interval_after_each_end() {
    let mut bench = Bench::new(8);
    bench.add("web.1", &readiness(tcp()));
    let first = bench.only();
    assert_eq!(bench.at(), MS(100));
    // While it runs nothing else is due.
    assert_eq!(bench.schedule.next_deadline(), None);
    bench.now += MS(50);
    bench.finish(&first, good());
    bench.only();
    assert_eq!(bench.at(), MS(1150));
}

#[test]
fn healthy_services_are_silent() {
    let mut bench = Bench::new(8);
    bench.add("web.1", &readiness(tcp()));
    let published: Vec<Option<u32>> =
        [good(), good(), good(), bad(), bad(), good(), good(), good()]
            .into_iter()
            .map(|outcome| {
                let run = bench.only();
                bench.finish(&run, outcome).map(|result| result.in_a_row)
            })
            .collect();
    assert_eq!(
        published,
        [
            Some(1),
            Some(2),
            None,
            Some(1),
            Some(2),
            Some(1),
            Some(2),
            None
        ]
    );
    // Who asks is told all the same.
    let latest: Vec<ProbeResult> = bench.schedule.latest(&name("web.1")).collect();
    assert_eq!(latest.len(), 1);
    assert_eq!((latest[0].in_a_row, &latest[0].error), (3, &None));
}

#[test]
fn the_startup_probe_gates_the_others() {
    let mut bench = Bench::new(8);
    let mut startup = tcp();
    startup.initial_delay_ms = 0;
    let probes = Probes {
        startup: Some(startup),
        liveness: Some(tcp()),
        readiness: Some(tcp()),
    };
    bench.add("web.1", &probes);
    for outcome in [bad(), good(), bad(), good(), good()] {
        let run = bench.only();
        assert_eq!(run.kind, ProbeKind::Startup);
        bench.finish(&run, outcome);
    }
    // The delays of the others were over meanwhile.
    let (runs, _) = bench.step();
    let kinds: Vec<ProbeKind> = runs.iter().map(|run| run.kind).collect();
    assert_eq!(kinds, [ProbeKind::Liveness, ProbeKind::Readiness]);
    for run in runs {
        bench.finish(&run, good());
    }
    // It never runs again.
    assert!(
        bench
            .step()
            .0
            .iter()
            .all(|run| run.kind != ProbeKind::Startup)
    );
}

#[test]
fn ready_is_waited_for_without_a_run() {
    let mut bench = Bench::new(8);
    bench.add("web.1", &readiness(probe(ProbeCheck::Notify)));
    assert_eq!(bench.step(), (vec![], vec![]));
    let (runs, results) = bench.step();
    assert!(runs.is_empty());
    assert_eq!(bench.at(), MS(400));
    assert_eq!(
        results[0].error.as_deref(),
        Some("no READY=1 within 300 ms")
    );
    bench.step();
    bench.now += MS(7);
    let told = bench.schedule.ready(bench.now, &name("web.1"));
    assert_eq!(
        (told[0].in_a_row, &told[0].error, told[0].took_us),
        (1, &None, 7000)
    );
    assert!(bench.schedule.ready(bench.now, &name("web.1")).is_empty());
    // From then on each look finds it ready.
    assert_eq!(bench.step().1[0].in_a_row, 2);
    assert!(bench.step().1.is_empty());
}

#[test]
fn a_watchdog_is_looked_at_when_it_would_run_out() {
    let mut bench = Bench::new(8);
    let probes = Probes {
        liveness: Some(probe(ProbeCheck::Notify)),
        ..Probes::default()
    };
    bench.add("web.1", &probes);
    let run = bench.only();
    assert_eq!(run.kind, ProbeKind::Liveness);
    let before = bench.at();
    bench.finish(
        &run,
        Outcome {
            next_in: Some(MS(420)),
            ..good()
        },
    );
    bench.only();
    assert_eq!(bench.at() - before, MS(420));
}

#[test]
fn no_more_run_at_once_than_allowed_and_none_is_forgotten() {
    let mut bench = Bench::new(3);
    for index in 1..=10 {
        bench.add(&format!("web.{index}"), &readiness(tcp()));
    }
    let mut pending = bench.step().0;
    assert_eq!(pending.len(), 3);
    let mut seen = BTreeSet::new();
    while let Some(run) = pending.pop() {
        assert!(seen.insert(run.instance.clone()));
        bench.finish(&run, good());
        pending.extend(bench.schedule.poll(bench.now).0);
        assert!(pending.len() <= 3);
    }
    assert_eq!(seen.len(), 10);
}

#[test]
fn what_has_ended_is_not_probed_and_its_runs_count_no_more() {
    let mut bench = Bench::new(1);
    bench.add("web.1", &readiness(tcp()));
    bench.add("web.2", &readiness(tcp()));
    let (runs, _) = bench.step();
    assert_eq!(runs.len(), 1);
    let ended = runs[0].instance.clone();
    assert_eq!(bench.schedule.remove(&ended), [runs[0].id]);
    // Its place is free again.
    let (next, _) = bench.schedule.poll(bench.now);
    assert_eq!(next.len(), 1);
    assert_ne!(next[0].instance, ended);
    assert_eq!(bench.finish(&runs[0], bad()), None);
    // A later spawn of the same instance is not touched by the earlier one's runs.
    bench.schedule.add(
        bench.now,
        &ended,
        Generation(2),
        &readiness(tcp()),
        Duration::ZERO,
    );
    assert_eq!(bench.finish(&runs[0], bad()), None);
    assert_eq!(bench.schedule.latest(&ended).count(), 0);
}

#[test]
fn the_delay_of_an_adopted_instance_is_over() {
    let mut bench = Bench::new(1);
    bench.schedule.add(
        bench.now,
        &name("web.1"),
        Generation(1),
        &readiness(tcp()),
        MS(60_000),
    );
    bench.only();
    assert_eq!(bench.at(), Duration::ZERO);
}

#[test]
fn without_probes_there_is_nothing_to_do() {
    let mut bench = Bench::new(1);
    bench.add("web.1", &Probes::default());
    assert_eq!(bench.schedule.next_deadline(), None);
    assert!(bench.schedule.remove(&name("web.1")).is_empty());
}

proptest! {
    #[test]
    fn every_probe_goes_on_and_the_limit_holds(
        outcomes in proptest::collection::vec((any::<bool>(), 0u64..400), 1..200),
        limit in 1usize..4,
    ) {
        let mut bench = Bench::new(limit);
        let probes = Probes { startup: Some(tcp()), liveness: Some(tcp()), readiness: Some(tcp()) };
        for index in 1..=5 {
            bench.add(&format!("web.{index}"), &probes);
        }
        let mut running: Vec<Run> = Vec::new();
        for (success, took) in outcomes {
            if let Some(at) = bench.schedule.next_deadline() {
                bench.now = bench.now.max(at);
            }
            running.extend(bench.schedule.poll(bench.now).0);
            prop_assert!(running.len() <= limit);
            let keys: BTreeSet<_> =
                running.iter().map(|run| (run.instance.clone(), run.kind)).collect();
            prop_assert_eq!(keys.len(), running.len(), "one probe runs twice at once");
            prop_assert!(!running.is_empty(), "all probes have stopped");
            let run = running.remove(0);
            bench.now += MS(took);
            let result = bench.finish(&run, if success { good() } else { bad() });
            prop_assert!(success || result.is_some(), "a failure was not published");
        }
    }
}

fn startup(probe: Probe) -> Probes {
    Probes {
        startup: Some(probe),
        ..Probes::default()
    }
}

#[test]
fn a_start_that_asks_for_time_does_not_fail_for_good_meanwhile() {
    let mut bench = Bench::new(8);
    bench.add("web.1", &startup(tcp()));
    let fail = |bench: &mut Bench| {
        let run = bench.only();
        let result = bench.finish(&run, bad()).unwrap();
        (result.in_a_row, result.error.unwrap())
    };
    assert_eq!(fail(&mut bench), (1, "refused".to_owned()));
    // The third would be at 2.1 s, and counts at 4.1 s.
    bench.schedule.extend(bench.now, &name("web.1"), MS(3500));
    assert_eq!(fail(&mut bench).0, 2);
    let held = (2, "refused (it has asked for time)".to_owned());
    assert_eq!(fail(&mut bench), held);
    // A wish for less takes nothing away.
    bench.schedule.extend(bench.now, &name("web.1"), MS(1));
    assert_eq!((fail(&mut bench), bench.at()), (held, MS(3100)));
    assert_eq!(fail(&mut bench), (3, "refused".to_owned()));
    assert_eq!(bench.at(), MS(4100));
}

#[test]
fn a_start_cannot_ask_for_time_for_ever() {
    let mut bench = Bench::new(8);
    bench.add(
        "web.1",
        &startup(Probe {
            failure_threshold: 1,
            ..tcp()
        }),
    );
    loop {
        let run = bench.only();
        bench
            .schedule
            .extend(bench.now, &name("web.1"), Duration::MAX);
        let result = bench.finish(&run, bad()).unwrap();
        if result.in_a_row > 0 {
            break;
        }
        assert!(bench.at() < MS(20_000));
    }
    // Ten times its delay, one round and the time for its answer.
    assert!(bench.at() >= MS(14_000), "{:?}", bench.at());
}

#[test]
fn time_that_is_asked_for_means_nothing_to_other_probes() {
    let mut bench = Bench::new(8);
    bench.add("web.1", &readiness(tcp()));
    bench.schedule.extend(bench.now, &name("web.1"), MS(60_000));
    for count in 1..5 {
        let run = bench.only();
        assert_eq!(bench.finish(&run, bad()).unwrap().in_a_row, count);
    }
}
