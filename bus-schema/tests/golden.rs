//! The bytes of every message, kept in `tests/golden/`: one file a kind, with the
//! envelope in hexadecimal. A change of a file is a change of the protocol, seen
//! in review. `BLACKHOLE_BLESS=1 cargo nextest run -p blackhole-bus-schema` writes
//! them anew after an intended one.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;

use blackhole_bus_schema::component::{Bye, ComponentInfo, Heartbeat, Hello, Ping, StreamTail};
use blackhole_bus_schema::dirs::hex;
use blackhole_bus_schema::envelope::{Envelope, Outgoing, Source, VERSION};
use blackhole_bus_schema::health::{Health, Probe, ProbeCheck, ProbeKind, ProbeResult, Probes};
use blackhole_bus_schema::limits::{
    CgroupDir, CgroupVersion, Enforcement, JoinMethod, LimitGrant, LimitKind, LimitReport, Limits,
};
use blackhole_bus_schema::message::{Message, Snapshot};
use blackhole_bus_schema::names::{Component, Generation, InstanceName};
use blackhole_bus_schema::process::{
    Capabilities, EnvFile, ExitRecord, ExitResult, ExitStatus, Failure, FollowLog, Forget,
    GrantPermit, Hook, Hooks, InstanceRecord, ListProcesses, LogChunk, LogCursor, LogFormat,
    LogLines, LogSpec, NotifyState, Permit, ProcessChanged, ProcessForgotten, ProcessNotified,
    ProcessSettings, ProcessState, ReadLog, Reload, ReloadAction, ReloadSpec, Rlimit, RlimitValue,
    Signal, SocketSpec, Spawn, SpawnFailure, SpawnSpec, SpawnStep, StateName, StepTime, Stop,
    StopSpec,
};
use blackhole_bus_schema::registry::{
    CallStats, Drain, Drained, ListCalls, ListRegistry, Registration, RegistryChanged,
};
use blackhole_bus_schema::reply::{Code, Reply, Status, Verdict};
use blackhole_bus_schema::resource::{
    Capacity, GetCapacity, ListUsage, OomKilled, Prepare, Pressure, Release, Usage, UsageTick,
};
use blackhole_bus_schema::supervision::{
    Circuit, Desired, InstanceStatus, ListStatus, Phase, ReloadServices, Reloaded, ResetServices,
    RestartServices, StartServices, StopServices, SupervisionChanged, Target,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

const ID: Uuid = Uuid::from_u128(0x0193_5a1e_0000_7000_8000_0000_0000_0001);

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(format!("{name}.hex"))
}

fn compare(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = golden(name);
    let lines: Vec<String> = bytes.chunks(32).map(hex).collect();
    let text = lines.join("\n") + "\n";
    if std::env::var_os("BLACKHOLE_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; BLACKHOLE_BLESS=1 writes it", path.display()));
    assert_eq!(kept, text, "the bytes of {name} have changed");
    let digits: String = kept.split_whitespace().collect();
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
        .collect()
}

/// The message encodes to its golden bytes, and these decode to the message.
fn check<M: Message + PartialEq + Debug>(message: &M) {
    let source = Source {
        component: "supervisor".into(),
        instance: "77".into(),
        incarnation: 3,
    };
    let client = "cli-0000000a".parse().unwrap();
    let outgoing = Outgoing {
        v: VERSION,
        id: ID,
        at: 1_763_852_730_000_000_000,
        source: &source,
        seq: 12,
        cause: Some(ID),
        reply_to: Some(&client),
        budget_ms: Some(5000),
        kind: M::KIND,
        body: message,
    };
    let kept = compare(M::KIND, &outgoing.encode().unwrap());
    let envelope = Envelope::decode(&kept).unwrap();
    assert_eq!(
        (envelope.id, envelope.seq, &envelope.source),
        (ID, 12, &source)
    );
    assert_eq!(
        (
            envelope.cause,
            envelope.reply_to.clone(),
            envelope.budget_ms
        ),
        (Some(ID), Some(client), Some(5000))
    );
    assert_eq!(&envelope.parse::<M>().unwrap(), message);
}

/// A result of a command, as it stands in a reply.
fn check_result<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, result: &T) {
    let kept = compare(name, &rmp_serde::to_vec_named(result).unwrap());
    assert_eq!(&rmp_serde::from_slice::<T>(&kept).unwrap(), result);
    let value = rmpv::decode::read_value(&mut kept.as_slice()).unwrap();
    assert_eq!(
        &blackhole_bus_schema::value::from_value::<T>(&value).unwrap(),
        result,
        "by way of a value"
    );
}

fn instance() -> InstanceName {
    "web.1".parse().unwrap()
}

fn exit() -> ExitRecord {
    ExitRecord {
        generation: Generation(4),
        pid: 4242,
        status: ExitStatus::Signaled {
            signal: 9,
            core_dumped: false,
        },
        result: ExitResult::OomKill,
        started_at: 1_000,
        ended_at: 2_000,
        killed_leftovers: 2,
    }
}

fn grant() -> LimitGrant {
    LimitGrant {
        version: Some(CgroupVersion::Hybrid),
        cgroups: vec![
            CgroupDir {
                path: "/cg/memory/web.1".into(),
                join: JoinMethod::V1Tasks,
            },
            CgroupDir {
                path: "/cg/unified/web.1".into(),
                join: JoinMethod::V2,
            },
        ],
        kill_cgroup: Some("/cg/unified/web.1".into()),
        freezer_cgroup: Some("/cg/freezer/web.1".into()),
        oom_file: Some("/cg/memory/web.1/memory.oom_control".into()),
        oom_score_adj: Some(-100),
        report: vec![
            LimitReport {
                limit: LimitKind::Cpu,
                requested: 10,
                actual: Some(10),
                enforcement: Enforcement::Enforced,
            },
            LimitReport {
                limit: LimitKind::IoWeight,
                requested: 100,
                actual: None,
                enforcement: Enforcement::NotEnforced {
                    reason: "no blkio controller".into(),
                },
            },
        ],
    }
}

fn probe(check: ProbeCheck) -> Option<Probe> {
    Some(Probe {
        check,
        initial_delay_ms: 0,
        interval_ms: 2000,
        timeout_ms: 1000,
        failure_threshold: 3,
        success_threshold: 1,
    })
}

fn settings() -> ProcessSettings {
    ProcessSettings {
        groups: vec!["audio".into()],
        umask: Some(0o027),
        nice: Some(-5),
        rlimits: BTreeMap::from([(
            Rlimit::Nproc,
            RlimitValue {
                soft: Some(64),
                hard: None,
            },
        )]),
        no_new_privs: true,
        standby: true,
        capabilities: Some(Capabilities::Keep(vec!["net_bind_service".into()])),
        stdin: Some("/srv/in".into()),
        env_files: vec![EnvFile {
            path: "/etc/web.env".into(),
            required: false,
        }],
        sockets: BTreeMap::from([(
            "http".to_owned(),
            SocketSpec {
                listen: "127.0.0.1:80".into(),
                backlog: 128,
                mode: Some(0o660),
                shared: true,
            },
        )]),
        fd_store: 4,
        hooks: Hooks {
            before_start: hook("/bin/before"),
            after_start: hook("/bin/started"),
            before_stop: hook("/bin/drain"),
            after_exit: hook("/bin/clean"),
        },
        reload: Some(ReloadSpec {
            action: ReloadAction::Signal(1),
            notify: true,
            timeout_ms: 30_000,
        }),
    }
}

fn hook(program: &str) -> Option<Hook> {
    Some(Hook {
        command: vec![program.to_owned()],
        timeout_ms: 5_000,
    })
}

fn record(state: ProcessState) -> InstanceRecord {
    InstanceRecord {
        instance: instance(),
        generation: Generation(4),
        state,
        notify: NotifyState {
            ready: true,
            stopping: false,
            status: Some("serving".into()),
            watchdog_age_ms: Some(5),
            reloading: true,
            main_pid: Some(4243),
        },
        steps: vec![StepTime {
            step: SpawnStep::Exec,
            took_ns: 400_000,
        }],
        grant: Some(grant()),
        adopted: true,
        lost_log_lines: 1,
        previous_exit: None,
        restarts: 2,
    }
}

fn status() -> InstanceStatus {
    InstanceStatus {
        service: "web".parse().unwrap(),
        instance: instance(),
        desired: Desired::Up,
        state: Some(StateName::Failed),
        phase: Phase::BackingOff {
            attempt: 2,
            until: 9_000,
        },
        manager: Some("gpu".parse().unwrap()),
        generation: Generation(4),
        pid: None,
        started_at: Some(5),
        restarts: 2,
        health: Health::Unhealthy,
        detail: Some("connection refused".into()),
        circuit: Circuit::Closed,
        last_exit: Some(exit()),
        last_error: None,
        limits: Some(grant().report),
        completed: true,
    }
}

fn info() -> ComponentInfo {
    ComponentInfo {
        component: Component::ProcessManager(Some("gpu".parse().unwrap())),
        pid: 77,
        incarnation: 3,
        version: "0.1.0".into(),
        started_at: 1,
        notes: vec!["waits for the supervisor".into()],
        counters: BTreeMap::from([("commands".to_owned(), 7)]),
    }
}

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
