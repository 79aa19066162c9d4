//! The bytes of every message, kept in `tests/golden/`: one file a kind, with the
//! envelope in hexadecimal. A change of a file is a change of the protocol, seen
//! in review. `BLACKHOLE_BLESS=1 cargo nextest run -p blackhole-bus-schema` writes
//! them anew after an intended one.

#![allow(clippy::unwrap_used, clippy::panic)]

mod golden_bytes;

use blackhole_bus_schema::component::{Bye, Heartbeat, Hello, Ping, StreamTail};
use blackhole_bus_schema::envelope::Envelope;
use blackhole_bus_schema::health::{ProbeCheck, ProbeKind, ProbeResult, Probes};
use blackhole_bus_schema::limits::Limits;
use blackhole_bus_schema::message::Snapshot;
use blackhole_bus_schema::names::Generation;
use blackhole_bus_schema::process::{
    Failure, FollowLog, Forget, GrantPermit, ListProcesses, LogChunk, LogCursor, LogFormat,
    LogLines, LogSpec, NotifyState, Permit, ProcessChanged, ProcessForgotten, ProcessNotified,
    ProcessState, ReadLog, Reload, Signal, Spawn, SpawnFailure, SpawnSpec, SpawnStep, StateName,
    Stop, StopSpec,
};
use blackhole_bus_schema::registry::{
    CallStats, Drain, Drained, ListCalls, ListRegistry, Registration, RegistryChanged,
};
use blackhole_bus_schema::reply::{Code, Reply, Status, Verdict};
use blackhole_bus_schema::resource::{
    Capacity, GetCapacity, ListUsage, OomKilled, Prepare, Pressure, Release, Usage, UsageTick,
};
use blackhole_bus_schema::supervision::{
    ListStatus, Phase, ReloadServices, Reloaded, ResetServices, RestartServices, StartServices,
    StopServices, SupervisionChanged, Target,
};
use golden_bytes::*;

#[test]
fn process_messages() {
    check(&Spawn {
        spec: SpawnSpec {
            instance: instance(),
            generation: Generation(4),
            command: vec!["/bin/web".into(), "--port".into(), "80".into()],
            env: [("LOG".to_owned(), "info".to_owned())].into(),
            working_dir: Some("/srv".into()),
            user: Some("www-data".into()),
            group: None,
            open_files: Some(4096),
            stop: StopSpec {
                signal: 15,
                grace_ms: 10_000,
            },
            success_codes: vec![0, 3],
            probes: Probes {
                startup: probe(ProbeCheck::Exec(vec!["/bin/true".into()])),
                liveness: probe(ProbeCheck::Notify),
                readiness: probe(ProbeCheck::Http("http://127.0.0.1:80/".into())),
            },
            logs: LogSpec {
                max_age_ms: Some(86_400_000),
                max_total_bytes: Some(1 << 30),
                format: LogFormat::Json,
                ..LogSpec::default()
            },
            grant: Some(grant()),
            permit: Some(Permit {
                generation: Generation(5),
                expires_after_ms: None,
            }),
            restarts: 1,
            settings: settings(),
        },
    });
    check(&Stop {
        instance: instance(),
        generation: Generation(4),
        stop: Some(StopSpec::default()),
        unhealthy: true,
        again: true,
    });
    check(&GrantPermit {
        instance: instance(),
        generation: Generation(4),
        permit: Some(Permit {
            generation: Generation(5),
            expires_after_ms: Some(60_000),
        }),
    });
    check(&Signal {
        instance: instance(),
        signal: 1,
    });
    check(&Reload {
        instance: instance(),
    });
    check(&Forget {
        instance: instance(),
    });
    check(&ListProcesses {
        after: Some("web.1".into()),
        probes: true,
    });
    let cursor = LogCursor {
        inode: 9,
        offset: 100,
    };
    check(&ReadLog {
        instance: instance(),
        lines: 10,
        cursor: Some(cursor),
        since: Some(5),
        max_bytes: Some(131_072),
    });
    check(&FollowLog {
        instance: instance(),
        cursor: None,
        lease_ms: 10_000,
    });
    check(&LogLines {
        instance: instance(),
        lines: vec![b"one".to_vec(), vec![0xff]],
        dropped: 1,
        cursor,
    });
    check(&ProcessChanged {
        from: Some(StateName::Running),
        record: record(ProcessState::Failed {
            failure: Failure::Exit { exit: exit() },
        }),
    });
    check(&ProcessForgotten {
        instance: instance(),
    });
    check(&ProcessNotified {
        instance: instance(),
        generation: Generation(4),
        notify: NotifyState::default(),
    });
    check_result(
        "result-log-chunk",
        &LogChunk {
            lines: vec![b"x".to_vec()],
            cursor: Some(cursor),
            more: true,
            gap: false,
        },
    );
    let failure = SpawnFailure {
        step: SpawnStep::Exec,
        operation: "exec /bin/nothing".into(),
        errno: 2,
        hint: "there is no such file".into(),
    };
    for (name, state) in [
        ("spawn", ProcessState::Spawn {}),
        (
            "running",
            ProcessState::Running {
                pid: 1,
                started_at: 2,
            },
        ),
        (
            "stopping",
            ProcessState::Stopping {
                pid: 1,
                started_at: 2,
            },
        ),
        (
            "terminated",
            ProcessState::Terminated { exit: Some(exit()) },
        ),
        ("never-ran", ProcessState::Terminated { exit: None }),
        (
            "failed-exit",
            ProcessState::Failed {
                failure: Failure::Exit { exit: exit() },
            },
        ),
        (
            "failed-spawn",
            ProcessState::Failed {
                failure: Failure::Spawn { failure },
            },
        ),
        (
            "cancelled",
            ProcessState::Failed {
                failure: Failure::Cancelled,
            },
        ),
    ] {
        check_result(&format!("state-{name}"), &state);
        check_result(&format!("record-{name}"), &record(state));
    }
}

#[test]
fn resource_messages() {
    let limits = Limits {
        cpu_percent: Some(50),
        cpu_weight: Some(100),
        memory_bytes: Some(1 << 28),
        io_weight: Some(200),
        pids: Some(100),
        cpu_request_percent: Some(20),
        memory_request_bytes: Some(1 << 27),
        required: true,
    };
    check(&Prepare {
        instance: instance(),
        limits,
        oom_score_adj: Some(-500),
    });
    check(&Release {
        instance: instance(),
    });
    check(&ListUsage { after: None });
    check(&GetCapacity {});
    let usage = Usage {
        instance: instance(),
        cpu_usec: 1_000,
        cpu_percent: Some(9.5),
        throttled_usec: 10,
        memory_bytes: Some(4096),
        memory_peak_bytes: None,
        memory_limit_bytes: Some(1 << 28),
        pids: Some(2),
        io_read_bytes: Some(1),
        io_write_bytes: Some(2),
        oom_kills: 0,
        pressure: Some(Pressure {
            cpu_some: 1,
            memory_some: 2,
            memory_full: 3,
            io_some: 4,
        }),
    };
    check(&UsageTick {
        interval_ms: 2000,
        usage: vec![usage],
    });
    check(&OomKilled {
        instance: instance(),
        kills: 1,
        memory_limit_bytes: Some(4096),
    });
    check_result("result-grant", &grant());
    check_result(
        "result-capacity",
        &Capacity {
            cpu_percent: 200,
            memory_bytes: 1 << 34,
            cpu_reserved_percent: 20,
            memory_reserved_bytes: 1 << 27,
            instances: 3,
            cgroups: "hybrid".into(),
            problem: None,
        },
    );
}

#[test]
fn supervision_and_health_messages() {
    let target = Target::Services(vec!["web".parse().unwrap()]);
    check(&StartServices {
        target: target.clone(),
    });
    check(&StopServices {
        target: Target::All,
        transient: true,
    });
    check(&RestartServices {
        target: target.clone(),
    });
    check(&ReloadServices {
        target: target.clone(),
    });
    check_result(
        "result-reloaded",
        &Reloaded {
            instance: instance(),
            code: Code::FailedPrecondition,
            message: "web.1 has no `reload`".into(),
        },
    );
    check(&ResetServices { target });
    check(&ListStatus { after: None });
    check(&SupervisionChanged {
        status: status(),
        why: "restart 2 of 5 in 1.0 s: exit code 1".into(),
    });
    check(&ProbeResult {
        instance: instance(),
        generation: Generation(4),
        probe: ProbeKind::Readiness,
        error: Some("connection refused".into()),
        in_a_row: 2,
        took_us: 120,
    });
    check_result(
        "result-snapshot",
        &Snapshot {
            incarnation: 3,
            watermarks: vec![("evt.supervision.web.".to_owned(), 9)],
            items: vec![status()],
            next: Some("web.1".to_owned()),
        },
    );
    for (name, phase) in [
        (
            "dependency",
            Phase::WaitingForDependency {
                on: vec!["db ready".into()],
            },
        ),
        (
            "component",
            Phase::WaitingForComponent {
                component: "process-manager".into(),
            },
        ),
        (
            "refused",
            Phase::Refused {
                reason: "memory: 3 of 2 GiB".into(),
            },
        ),
        ("circuit", Phase::CircuitOpen),
    ] {
        check_result(&format!("phase-{name}"), &phase);
    }
}

#[test]
fn component_registry_and_reply_messages() {
    check(&Hello { info: info() });
    check(&Heartbeat {
        pid: 77,
        tails: vec![StreamTail {
            prefix: "evt.process.".into(),
            topics: 2,
            hash: u64::MAX,
        }],
    });
    check(&Bye {
        reason: "stopped".into(),
    });
    check(&Ping {});
    check_result("result-info", &info());
    let registration = Registration {
        instance: instance(),
        generation: Generation(4),
        methods: vec!["greet".into()],
        endpoint: None,
        outstanding: 1,
        draining: false,
    };
    check(&RegistryChanged {
        instance: instance(),
        registration: Some(registration),
    });
    check(&ListRegistry { after: None });
    check(&Drain {
        instance: instance(),
        generation: Generation(4),
        within_ms: 10_000,
    });
    check_result(
        "result-drained",
        &Drained {
            registered: true,
            outstanding: 2,
        },
    );
    check(&ListCalls { after: None });
    check_result(
        "result-call-stats",
        &CallStats {
            caller: "shop".into(),
            service: "pricing".into(),
            method: "price".into(),
            calls: 3,
            failed: 1,
            sum_us: 900,
            p50_us: 200,
            p90_us: 400,
            p99_us: 400,
            max_us: 400,
            buckets: vec![0, 2, 3],
        },
    );
    check(&Reply {
        to: ID,
        verdict: Verdict::Failed {
            error: Status::new(Code::ResourceExhausted, "full"),
        },
    });
    check_result(
        "reply-accepted",
        &Reply {
            to: ID,
            verdict: Verdict::Accepted {},
        },
    );
    check_result(
        "reply-done",
        &Reply {
            to: ID,
            verdict: Verdict::Done {
                result: blackhole_bus_schema::raw::Raw::of(&7).unwrap(),
            },
        },
    );
}

#[test]
fn unknown_fields_are_ignored_and_other_versions_are_named() {
    let mut map = vec![
        (rmpv::Value::from("v"), rmpv::Value::from(1)),
        (
            rmpv::Value::from("id"),
            rmpv::Value::Binary(ID.as_bytes().to_vec()),
        ),
        (rmpv::Value::from("at"), rmpv::Value::from(1)),
        (
            rmpv::Value::from("source"),
            rmpv::Value::Map(vec![
                (rmpv::Value::from("component"), rmpv::Value::from("x")),
                (rmpv::Value::from("instance"), rmpv::Value::from("1")),
                (rmpv::Value::from("incarnation"), rmpv::Value::from(0)),
                (rmpv::Value::from("later"), rmpv::Value::from("field")),
            ]),
        ),
        (
            rmpv::Value::from("kind"),
            rmpv::Value::from("component.ping"),
        ),
        (
            rmpv::Value::from("later"),
            rmpv::Value::Array(vec![rmpv::Value::Nil]),
        ),
        (
            rmpv::Value::from("body"),
            rmpv::Value::Map(vec![(rmpv::Value::from("later"), rmpv::Value::from(1))]),
        ),
    ];
    let encode = |map: &Vec<_>| {
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, &rmpv::Value::Map(map.clone())).unwrap();
        bytes
    };
    let envelope = Envelope::decode(&encode(&map)).unwrap();
    envelope.parse::<Ping>().unwrap();
    map[0].1 = rmpv::Value::from(2);
    map.truncate(1);
    let error = Envelope::decode(&encode(&map)).unwrap_err().to_string();
    assert!(error.contains("version 2"), "{error}");
}

proptest::proptest! {
    #[test]
    fn any_bytes_decode_to_an_error_or_an_envelope(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
        if let Ok(envelope) = Envelope::decode(&bytes) {
            let _ = envelope.parse::<Spawn>();
        }
    }

    /// Golden messages with some bytes changed: close to valid, so that the inner decoders are reached.
    #[test]
    fn damaged_messages_do_not_panic(
        changes in proptest::collection::vec((proptest::num::usize::ANY, proptest::num::u8::ANY), 1..8),
        which in proptest::num::usize::ANY,
    ) {
        let files: Vec<_> = std::fs::read_dir(golden("x").parent().unwrap()).unwrap().map(|entry| entry.unwrap().path()).collect();
        let text: String = std::fs::read_to_string(&files[which % files.len()]).unwrap().split_whitespace().collect();
        let mut bytes: Vec<u8> = (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect();
        for (at, value) in changes {
            let length = bytes.len();
            bytes[at % length] = value;
        }
        if let Ok(envelope) = Envelope::decode(&bytes) {
            let _ = envelope.parse::<Spawn>();
            let _ = envelope.parse::<ProcessChanged>();
            let _ = envelope.parse::<SupervisionChanged>();
            let _ = envelope.parse::<Reply>();
            let _ = envelope.parse::<UsageTick>();
            let _ = envelope.parse::<Heartbeat>();
        }
    }
}
