use std::path::PathBuf;

use blackhole_bus_schema::process::StateName;

use super::*;
use crate::shim::protocol::Started;

const BOOT: &str = "11111111-2222-3333-4444-555555555555";

fn record() -> Record {
    Record {
        instance: "web.1".parse().unwrap(),
        generation: Generation(4),
        boot_id: BOOT.to_owned(),
        shim_pid: 10,
        socket: PathBuf::from("/run/i/x"),
        grant: None,
        spec: Vec::new(),
        started: Some(Started {
            pid: 11,
            start_ticks: 1,
            started_at: 5_000,
            shim_pid: 10,
            steps: Vec::new(),
            warnings: Vec::new(),
        }),
        failure: None,
        exit: None,
        previous_exit: None,
        restarts: 0,
    }
}

fn judge(record: Record, boot: &str) -> Verdict {
    decide(&Remains::Record(Box::new(record)), boot, 9_000)
}

fn exit_of(verdict: Verdict) -> (StateName, ExitRecord) {
    let Verdict::Over(generation, state) = verdict else {
        panic!("not over: {verdict:?}")
    };
    assert_eq!(generation, Generation(4));
    (state.name(), state.exit().unwrap().clone())
}

#[test]
fn an_end_on_record_is_that_end_in_any_boot() {
    for boot in [BOOT, "another"] {
        for (result, expected) in [
            (ExitResult::Success, StateName::Terminated),
            (ExitResult::ExitCode, StateName::Failed),
        ] {
            let exit = ExitRecord {
                status: ExitStatus::Exited { code: 3 },
                ..unseen(&record(), result, 6_000, 0)
            };
            let ended = Record {
                exit: Some(exit.clone()),
                ..record()
            };
            assert_eq!(exit_of(judge(ended, boot)), (expected, exit));
        }
    }
}

#[test]
fn without_an_end_it_was_lost_in_this_boot() {
    assert_eq!(judge(record(), BOOT), Verdict::Lost);
    // Also when the shim died before it could tell that it started anything.
    assert_eq!(
        judge(
            Record {
                started: None,
                ..record()
            },
            BOOT
        ),
        Verdict::Lost
    );
}

#[test]
fn without_an_end_it_went_down_with_an_earlier_boot() {
    let (state, exit) = exit_of(judge(record(), "another"));
    assert_eq!(state, StateName::Failed);
    assert_eq!(
        (exit.result, exit.status),
        (ExitResult::HostRestarted, ExitStatus::Unknown)
    );
    assert_eq!(
        (exit.pid, exit.started_at, exit.ended_at),
        (11, 5_000, 9_000)
    );
}

#[test]
fn what_never_ran_says_why() {
    let failure = SpawnFailure {
        step: SpawnStep::Exec,
        operation: "exec /nope".to_owned(),
        errno: 2,
        hint: String::new(),
    };
    let failed = Record {
        started: None,
        failure: Some(failure.clone()),
        ..record()
    };
    assert_eq!(
        judge(failed, "another"),
        Verdict::Over(
            Generation(4),
            ProcessState::Failed {
                failure: Failure::Spawn { failure }
            }
        )
    );
}

#[test]
fn an_unreadable_record_is_a_failure_with_its_reason() {
    let error = RecordError::Damaged {
        path: PathBuf::from("/state/instances/web.1/record"),
        problem: "no magic".to_owned(),
    };
    let Verdict::Over(generation, state) = decide(&Remains::Unreadable(error), BOOT, 0) else {
        panic!("not over")
    };
    // Any next generation is newer.
    assert_eq!(generation, Generation(0));
    let ProcessState::Failed {
        failure: Failure::Spawn { failure },
    } = state
    else {
        panic!("not failed: {state:?}")
    };
    assert!(
        failure.operation.contains("/state/instances/web.1/record"),
        "{failure}"
    );
}

#[test]
fn an_empty_folder_is_nothing() {
    assert_eq!(decide(&Remains::Nothing, BOOT, 0), Verdict::Nothing);
}
