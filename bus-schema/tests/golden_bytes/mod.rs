//! The golden bytes: comparing with them, and what the messages of the tests are made of.

#![allow(missing_docs, unreachable_pub)]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;

use blackhole_bus_schema::component::ComponentInfo;
use blackhole_bus_schema::dirs::hex;
use blackhole_bus_schema::envelope::{Envelope, Outgoing, Source, VERSION};
use blackhole_bus_schema::health::{Health, Probe, ProbeCheck};
use blackhole_bus_schema::limits::{
    CgroupDir, CgroupVersion, Enforcement, JoinMethod, LimitGrant, LimitKind, LimitReport,
};
use blackhole_bus_schema::message::Message;
use blackhole_bus_schema::names::{Component, Generation, InstanceName};
use blackhole_bus_schema::process::{
    Capabilities, EnvFile, ExitRecord, ExitResult, ExitStatus, Hook, Hooks, InstanceRecord,
    NotifyState, ProcessSettings, ProcessState, ReloadAction, ReloadSpec, Rlimit, RlimitValue,
    SocketSpec, SpawnStep, StateName, StepTime,
};
use blackhole_bus_schema::supervision::{Circuit, Desired, InstanceStatus, Phase};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

pub const ID: Uuid = Uuid::from_u128(0x0193_5a1e_0000_7000_8000_0000_0000_0001);

pub fn golden(name: &str) -> PathBuf {
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
pub fn check<M: Message + PartialEq + Debug>(message: &M) {
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
pub fn check_result<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, result: &T) {
    let kept = compare(name, &rmp_serde::to_vec_named(result).unwrap());
    assert_eq!(&rmp_serde::from_slice::<T>(&kept).unwrap(), result);
    let value = rmpv::decode::read_value(&mut kept.as_slice()).unwrap();
    assert_eq!(
        &blackhole_bus_schema::value::from_value::<T>(&value).unwrap(),
        result,
        "by way of a value"
    );
}

pub fn instance() -> InstanceName {
    "web.1".parse().unwrap()
}

pub fn exit() -> ExitRecord {
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

pub fn grant() -> LimitGrant {
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

pub fn probe(check: ProbeCheck) -> Option<Probe> {
    Some(Probe {
        check,
        initial_delay_ms: 0,
        interval_ms: 2000,
        timeout_ms: 1000,
        failure_threshold: 3,
        success_threshold: 1,
    })
}

pub fn settings() -> ProcessSettings {
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

pub fn hook(program: &str) -> Option<Hook> {
    Some(Hook {
        command: vec![program.to_owned()],
        timeout_ms: 5_000,
    })
}

pub fn record(state: ProcessState) -> InstanceRecord {
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

pub fn status() -> InstanceStatus {
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

pub fn info() -> ComponentInfo {
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
