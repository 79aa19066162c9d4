//! A process-manager without processes: what it is told to start runs at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use blackhole_bus_schema::bus::{Incoming, Server};
use blackhole_bus_schema::dirs::{Dirs, unix_now_ns};
use blackhole_bus_schema::health::{ProbeKind, ProbeResult};
use blackhole_bus_schema::message::Message;
use blackhole_bus_schema::names::{Component, InstanceName};
use blackhole_bus_schema::process::{
    ExitRecord, ExitResult, ExitStatus, Failure, Forget, InstanceRecord, ListProcesses,
    NotifyState, ProcessChanged, ProcessState, Spawn, SpawnSpec, Stop,
};
use blackhole_bus_schema::reply::{Code, Status};
use blackhole_bus_schema::topic::{self, Topic};

/// What outlives a manager, as shims and records do.
#[derive(Debug, Default)]
pub(crate) struct Host {
    records: BTreeMap<InstanceName, InstanceRecord>,
    /// What was asked for, in words: `spawn web.1 #1`.
    asked: Vec<String>,
    /// These end in failure as soon as they run.
    failing: BTreeSet<InstanceName>,
    pids: u32,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct SharedHost(Arc<Mutex<Host>>);

impl SharedHost {
    fn lock(&self) -> MutexGuard<'_, Host> {
        self.0.lock().unwrap()
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.lock().asked.clone()
    }

    pub(crate) fn fails(&self, instance: &str) {
        self.lock().failing.insert(instance.parse().unwrap());
    }

    /// It ends; nobody is told before a manager looks.
    pub(crate) fn end(&self, instance: &str, result: ExitResult) -> InstanceRecord {
        let mut host = self.lock();
        let record = host.records.get_mut(&instance.parse().unwrap()).unwrap();
        end(record, result);
        record.clone()
    }
}

fn end(record: &mut InstanceRecord, result: ExitResult) {
    let ProcessState::Running { pid, started_at } = record.state else {
        return;
    };
    let exit = ExitRecord {
        generation: record.generation,
        pid,
        status: ExitStatus::Exited {
            code: i32::from(result.is_failure()),
        },
        result,
        started_at,
        ended_at: unix_now_ns(),
        killed_leftovers: 0,
    };
    record.state = if result.is_failure() {
        ProcessState::Failed {
            failure: Failure::Exit { exit },
        }
    } else {
        ProcessState::Terminated { exit: Some(exit) }
    };
}

/// One life of the manager; dropped, it is gone without a word.
pub(crate) struct Manager {
    server: Server,
    host: SharedHost,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Manager {
    pub(crate) async fn start(dirs: &Dirs, host: &SharedHost, incarnation: u64) -> Self {
        let component = Component::ProcessManager(None);
        let (server, mut commands) = Server::bind(dirs, component, incarnation).await.unwrap();
        let serving = (server.clone(), host.clone());
        let task = tokio::spawn(async move {
            while let Some(incoming) = commands.recv().await {
                serve(&serving.0, &serving.1, incoming).await;
            }
        });
        Self {
            server,
            host: host.clone(),
            task,
        }
    }

    /// A process ends, and everybody hears of it.
    pub(crate) async fn end(&self, instance: &str, result: ExitResult) {
        let record = self.host.end(instance, result);
        publish(&self.server, record).await;
    }

    /// A probe has a result.
    pub(crate) async fn probe(&self, instance: &str, probe: ProbeKind, error: Option<&str>) {
        let generation = self.host.lock().records[&instance.parse().unwrap()].generation;
        let result = ProbeResult {
            instance: instance.parse().unwrap(),
            generation,
            probe,
            error: error.map(str::to_owned),
            in_a_row: 3,
            took_us: 1,
        };
        let topic = Topic::health(&result.instance);
        self.server.publish(topic, &result, None).await;
    }
}

async fn publish(server: &Server, record: InstanceRecord) {
    let topic = Topic::process(&record.instance);
    let changed = ProcessChanged { from: None, record };
    server.publish(topic, &changed, None).await;
}

async fn serve(server: &Server, host: &SharedHost, incoming: Incoming) {
    match incoming.kind.as_str() {
        Spawn::KIND => {
            let spec = incoming.parse::<Spawn>().unwrap().spec;
            let result = spawn(&mut host.lock(), &spec);
            if let Ok(record) = &result {
                publish(server, record.clone()).await;
            }
            let failing = host.lock().failing.contains(&spec.instance);
            if result.is_ok() && failing {
                let record = host.end(&spec.instance.to_string(), ExitResult::ExitCode);
                publish(server, record).await;
            }
            incoming.reply::<Spawn>(result).await;
        }
        Stop::KIND => {
            let command = incoming.parse::<Stop>().unwrap();
            let result = {
                let mut host = host.lock();
                let words = if command.unhealthy {
                    "unhealthy"
                } else {
                    "stop"
                };
                let (instance, generation) = (&command.instance, command.generation);
                host.asked.push(format!("{words} {instance} #{generation}"));
                host.records.get_mut(&command.instance).map(|record| {
                    let result = match command.unhealthy {
                        true => ExitResult::Unhealthy,
                        false => ExitResult::Stopped,
                    };
                    end(record, result);
                    record.clone()
                })
            };
            if let Some(record) = &result {
                publish(server, record.clone()).await;
            }
            let unknown = || Status::new(Code::NotFound, "no such instance");
            incoming.reply::<Stop>(result.ok_or_else(unknown)).await;
        }
        Forget::KIND => {
            let command = incoming.parse::<Forget>().unwrap();
            {
                let mut host = host.lock();
                host.records.remove(&command.instance);
                host.asked.push(format!("forget {}", command.instance));
            }
            incoming.reply::<Forget>(Ok(())).await;
        }
        ListProcesses::KIND => {
            let command = incoming.parse::<ListProcesses>().unwrap();
            let records: BTreeMap<String, InstanceRecord> = host
                .lock()
                .records
                .values()
                .map(|record| (record.instance.to_string(), record.clone()))
                .collect();
            let after = command.after.as_deref();
            let page = server.snapshot(topic::PROCESS, records.into_iter(), after);
            incoming.reply::<ListProcesses>(Ok(page)).await;
        }
        _ => incoming.unknown().await,
    }
}

fn spawn(host: &mut Host, spec: &SpawnSpec) -> Result<InstanceRecord, Status> {
    host.asked
        .push(format!("spawn {} #{}", spec.instance, spec.generation));
    if let Some(known) = host.records.get(&spec.instance) {
        assert!(
            !known.state.is_live() || known.generation >= spec.generation,
            "a second process of {} is asked for while one lives",
            spec.instance
        );
        if known.generation >= spec.generation {
            return Err(Status::new(Code::FailedPrecondition, "not newer"));
        }
    }
    host.pids += 1;
    let record = InstanceRecord {
        instance: spec.instance.clone(),
        generation: spec.generation,
        state: ProcessState::Running {
            pid: 100_000 + host.pids,
            started_at: unix_now_ns(),
        },
        notify: NotifyState::default(),
        steps: Vec::new(),
        grant: spec.grant.clone(),
        adopted: false,
        lost_log_lines: 0,
        previous_exit: None,
        restarts: spec.restarts,
    };
    host.records.insert(spec.instance.clone(), record.clone());
    Ok(record)
}
