//! When a failed service is started again, and when no more. Times are read
//! from the events' own stamps: an end and the start that follows it are both
//! stamped beside the process, a wait by the supervisor that decided it.

use std::time::Duration;

use blackhole_bus_schema::supervision::Phase;
use blackhole_tests::events::{Event, Life, Recorder, gaps, lives};
use blackhole_tests::{Deployment, Instance};

/// A service that fails at once, with `restart` as its policy. It starts only
/// when asked, so that the recorder sees it from its first start.
fn flaky(restart: &str) -> String {
    format!(
        r#"
services:
  flaky:
    command: [blackhole-example, exit, --code, "7"]
    autostart: false
    restart: {{{restart}}}
    # It never says so: `start` waits until it has failed for good.
    health: {{readiness: {{notify: true}}}}
    resources: {{cpu_percent: none}}
  steady:
    command: [blackhole-example, idle]
"#
    )
}

struct Case {
    deployment: Deployment,
    recorder: Recorder,
}

#[track_caller]
fn start(yaml: &str) -> Case {
    let deployment = Deployment::new(yaml);
    deployment.up();
    let recorder = Recorder::start(deployment.dirs());
    Case {
        deployment,
        recorder,
    }
}

/// Waits until the circuit of `flaky.1` is open after `count` ends.
#[track_caller]
fn wait_for_open_circuit(case: &Case, count: usize) -> Vec<Life> {
    case.recorder
        .wait_for(&format!("an open circuit after {count} ends"), |events| {
            let open = events.iter().rev().find_map(|event| match event {
                Event::Supervision(changed) if event.instance() == "flaky.1" => {
                    Some(changed.status.phase == Phase::CircuitOpen)
                }
                _ => None,
            });
            let lives = lives(events, "flaky.1");
            let ended = lives.iter().filter(|life| life.exit.is_some()).count();
            (open == Some(true) && ended >= count).then_some(lives)
        })
}

/// The waits that the supervisor decided: in its events, from the event's own
/// stamp to the time of the next start.
fn decided(events: &[Event]) -> Vec<(u32, u64)> {
    let mut waits: Vec<(u32, u64)> = Vec::new();
    for event in events {
        if let Event::Supervision(changed) = event
            && event.instance() == "flaky.1"
            && let Phase::BackingOff { attempt, until } = changed.status.phase
            && !waits.contains(&(attempt, until))
        {
            waits.push((attempt, until));
        }
    }
    waits
}

#[track_caller]
fn assert_open(case: &Case) -> Instance {
    let status = case.deployment.status();
    let flaky = status.instance("flaky.1");
    assert_eq!(flaky.state(), Some("FAILED"), "{flaky:?}");
    assert_eq!(flaky.phase(), Some("circuit_open"), "{flaky:?}");
    assert_eq!(flaky.text("circuit"), Some("open"), "{flaky:?}");
    assert_eq!(flaky.restarts(), Some(5), "{flaky:?}");
    assert_eq!(flaky.pid(), None, "{flaky:?}");
    assert_eq!(flaky.0["last_exit"]["code"], 7, "{flaky:?}");
    assert_eq!(
        status.instance("steady.1").restarts(),
        Some(0),
        "{status:?}"
    );

    // People are told as well, with the last exit, by `status` and by `health`.
    for command in ["status", "health"] {
        let output = case.deployment.cli(&[command]);
        let told = |word: &str| output.stdout.contains(word);
        assert!(
            told("flaky.1") && told("circuit") && told("7"),
            "{command}: {output:#?}"
        );
    }
    case.deployment.cli(&["health"]).exits_with(1);
    flaky
}

/// Checks the waits of one series: at once, then `first`, doubled each time.
#[track_caller]
fn assert_backoff(case: &Case, lives: &[Life], first: Duration) {
    assert_eq!(lives.len(), 6, "one start and five restarts: {lives:#?}");
    let gaps = gaps(lives);
    eprintln!("from each end to the next start: {gaps:?}");
    // No upper limit for what a loaded machine does; that the first restart
    // does not wait at all shows in the decisions below: there is none for it.
    for (index, gap) in gaps.iter().skip(1).enumerate() {
        let wait = first * 2_u32.pow(index as u32);
        assert!(
            *gap >= wait * 9 / 10,
            "restart {} came after {gap:?}: {gaps:?}",
            index + 2
        );
    }
    let waits = decided(&case.recorder.events());
    assert_eq!(waits.len(), 4, "four restarts are waited for: {waits:?}");
    for (index, (_, until)) in waits.iter().enumerate() {
        let wait = first * 2_u32.pow(index as u32);
        let ended = lives[index + 1]
            .exit
            .as_ref()
            .map(|exit| exit.ended_at)
            .expect("an end");
        let next = lives[index + 2].started_at;
        // The decided time lies at most its jitter after the wait, counted from
        // when the supervisor heard of the end, and the start is not before it.
        let decided = Duration::from_nanos(until.saturating_sub(ended));
        eprintln!(
            "restart {}: decided for {decided:?} after the end",
            index + 2
        );
        assert!(decided >= wait * 9 / 10, "{decided:?} for {wait:?}");
        assert!(
            next >= *until,
            "started {} ns before its time",
            until - next
        );
    }
}

#[test]
fn a_failing_service_is_restarted_at_once_then_with_backoff_then_no_more() {
    let case = start(&flaky("policy: always, initial_backoff: 200ms"));
    case.deployment.cli(&["start", "flaky"]).exits_with(6);
    let lives = wait_for_open_circuit(&case, 6);
    assert_backoff(&case, &lives, Duration::from_millis(200));
    assert_open(&case);

    // A reset closes the circuit for one more series. That there are exactly
    // twelve lives after it shows that nobody tried in between.
    case.deployment.cli(&["reset", "flaky"]);
    let lives = wait_for_open_circuit(&case, 12);
    assert_eq!(lives.len(), 12, "{lives:#?}");
    case.deployment.down();
}

/// The policy as it is without a word in the configuration: 1, 2, 4, 8 s.
#[test]
fn the_backoff_of_the_default_policy_is_one_two_four_eight_seconds() {
    let case = start(&flaky("policy: always"));
    case.deployment.cli(&["start", "flaky"]).exits_with(6);
    let lives = wait_for_open_circuit(&case, 6);
    assert_backoff(&case, &lives, Duration::from_secs(1));
    assert_open(&case);
    case.deployment.down();
}

#[test]
fn an_open_circuit_survives_the_supervisor() {
    let case = start(&flaky("policy: always, initial_backoff: 10ms"));
    case.deployment.cli(&["start", "flaky"]).exits_with(6);
    wait_for_open_circuit(&case, 6);
    let old = case.deployment.kill_component("supervisor");
    case.deployment
        .wait_until("the supervisor to be back", |status| {
            status
                .component_pid("supervisor")
                .is_some_and(|new| new != old)
                && status.is_in("flaky.1", "circuit_open")
                && status.is_in("steady.1", "ready")
        });
    assert_open(&case);
    case.deployment.down();
}

/// Which ends are followed by a restart: policy, exit code, and how many lives
/// there are before Blackhole leaves the service alone.
#[test]
fn the_policy_says_which_ends_are_followed_by_a_restart() {
    let table = [
        ("always", 0, "circuit_open", 3),
        ("always", 1, "circuit_open", 3),
        ("on-failure", 0, "idle", 1),
        ("on-failure", 1, "circuit_open", 3),
        ("never", 0, "idle", 1),
        ("never", 1, "gave_up", 1),
    ];
    let mut yaml = "services:\n".to_owned();
    for (policy, code, _, _) in table {
        yaml.push_str(&format!(
            "  {policy}-{code}: {{command: [blackhole-example, exit, --code, \"{code}\"], autostart: false, \
             restart: {{policy: {policy}, max_attempts: 2, initial_backoff: 10ms}}}}\n"
        ));
    }
    let case = start(&yaml);
    for (policy, code, phase, count) in table {
        let instance = format!("{policy}-{code}.1");
        case.deployment.cli(&["start", &format!("{policy}-{code}")]);
        let status = case
            .deployment
            .wait_until(&format!("{instance} to be {phase}"), |status| {
                status.is_in(&instance, phase)
            });
        let lives = case
            .recorder
            .wait_for(&format!("{count} ends of {instance}"), |events| {
                let lives = lives(events, &instance);
                (lives.iter().filter(|life| life.exit.is_some()).count() >= count).then_some(lives)
            });
        assert_eq!(lives.len(), count, "{instance}: {lives:#?}\n{status:?}");
    }
    case.deployment.down();
}

/// A program that cannot be started is not tried again and again at once, and
/// the person is told what is wrong with it.
#[test]
fn a_missing_program_is_named_with_what_to_do() {
    let deployment = Deployment::new(
        "services: {ghost: {command: [/nonexistent/program, --flag], autostart: false, restart: {initial_backoff: 10ms}}}",
    );
    deployment.up();
    let output = deployment.cli(&["start", "ghost"]);
    assert_ne!(output.code, Some(0), "{output:#?}");
    assert!(
        output.stderr.contains("/nonexistent/program"),
        "{output:#?}"
    );
    let status = deployment.wait_until("the failure to show", |status| {
        status.is("ghost.1", "FAILED")
    });
    assert_eq!(status.instance("ghost.1").pid(), None, "{status:?}");
    // While another try is under way there is nothing to tell of the last one.
    blackhole_tests::wait_for("the program to be named", || {
        let shown = deployment.cli(&["status"]);
        match shown.stdout.contains("/nonexistent/program") {
            true => Ok(()),
            false => Err(format!("{shown:#?}")),
        }
    });
    deployment.down();
}
