//! What the golden frames of the shims' protocol say.

#![allow(missing_docs, unreachable_pub)]

use std::collections::BTreeMap;

use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::process::{
    ExitRecord, ExitResult, ExitStatus, NotifyState, Permit, SpawnFailure, SpawnStep, StepTime,
};
use blackhole_process_manager::shim::protocol::{
    Loss, RequestBody, ShimMessage, ShimPermit, ShimPhase, ShimStatus, Started, StopRequest,
};

fn started() -> Started {
    Started {
        pid: 4711,
        start_ticks: 123_456,
        started_at: 1_764_000_000_000_000_000,
        shim_pid: 4710,
        steps: vec![StepTime {
            step: SpawnStep::Exec,
            took_ns: 250_000,
        }],
        warnings: vec!["OOM score 5 not set".to_owned()],
    }
}

fn exit() -> ExitRecord {
    ExitRecord {
        generation: Generation(7),
        pid: 4711,
        status: ExitStatus::Signaled {
            signal: 15,
            core_dumped: false,
        },
        result: ExitResult::Stopped,
        started_at: 1_764_000_000_000_000_000,
        ended_at: 1_764_000_001_000_000_000,
        killed_leftovers: 2,
    }
}

fn failure() -> SpawnFailure {
    SpawnFailure {
        step: SpawnStep::Exec,
        operation: "exec /no/such".to_owned(),
        errno: 2,
        hint: "is it installed?".to_owned(),
    }
}

fn status() -> ShimStatus {
    ShimStatus {
        instance: "web.1".parse().unwrap(),
        generation: Generation(7),
        phase: ShimPhase::Running,
        started: started(),
        notify: NotifyState {
            ready: true,
            status: Some("well".to_owned()),
            ..NotifyState::default()
        },
        loss: Loss::default(),
        previous_exit: Some(exit()),
        restarts: 1,
        kill_in_ms: None,
    }
}

/// One message of each kind that version 1 knew, with the names of its frames.
pub fn messages() -> Vec<(&'static str, ShimMessage)> {
    let generation = Generation(8);
    let status = Box::new(status());
    vec![
        ("hello", ShimMessage::Hello { v: 1, status }),
        ("started", ShimMessage::Started { started: started() }),
        (
            "spawn-failed",
            ShimMessage::SpawnFailed {
                failure: failure(),
                held_by: Some(4710),
            },
        ),
        ("answer", ShimMessage::Answer { id: 3, error: None }),
        (
            "refusal",
            ShimMessage::Answer {
                id: 4,
                error: Some("it is ending".to_owned()),
            },
        ),
        (
            "notify",
            ShimMessage::Notify {
                notify: NotifyState {
                    ready: true,
                    ..NotifyState::default()
                },
            },
        ),
        (
            "loss",
            ShimMessage::Loss {
                loss: Loss {
                    log_lines: 9,
                    log_error: Some("No space left on device".to_owned()),
                    ..Loss::default()
                },
            },
        ),
        ("stopping", ShimMessage::Stopping),
        (
            "restarted",
            ShimMessage::Restarted {
                exit: exit(),
                generation,
                started: started(),
                restarts: 1,
            },
        ),
        (
            "not-restarted",
            ShimMessage::NotRestarted {
                exit: exit(),
                generation,
                failure: failure(),
            },
        ),
        (
            "exited",
            ShimMessage::Exited {
                exit: exit(),
                loss: Loss::default(),
            },
        ),
    ]
}

/// And one request.
pub fn requests() -> Vec<(&'static str, RequestBody)> {
    let permit = ShimPermit {
        permit: Permit {
            generation: Generation(8),
            expires_after_ms: Some(60_000),
        },
        env: BTreeMap::from([("BLACKHOLE_TOKEN".to_owned(), "abc".to_owned())]),
    };
    vec![
        ("request-status", RequestBody::Status),
        ("request-watch", RequestBody::Watch),
        (
            "request-permit",
            RequestBody::Permit {
                generation: Generation(7),
                permit: Some(permit),
            },
        ),
        ("request-signal", RequestBody::Signal { signal: 18 }),
        (
            "request-stop",
            RequestBody::Stop {
                stop: StopRequest::default(),
            },
        ),
        ("request-kill", RequestBody::Kill { unhealthy: false }),
    ]
}
