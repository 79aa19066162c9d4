//! The command loop. It owns the ledger and the usage book; one command is
//! worked on at a time, in the order of arrival.

use std::collections::BTreeMap;
use std::time::Duration;

use blackhole_bus_schema::bus::{Incoming, Server};
use blackhole_bus_schema::daemon::Daemon;
use blackhole_bus_schema::limits::{CgroupVersion, LimitGrant};
use blackhole_bus_schema::message::{Command, Message, PAGE_ITEMS};
use blackhole_bus_schema::names::InstanceName;
use blackhole_bus_schema::pulse::Pulse;
use blackhole_bus_schema::reply::{Code, Status};
use blackhole_bus_schema::resource::{
    Capacity, GetCapacity, ListUsage, Prepare, Release, UsageTick,
};
use blackhole_bus_schema::topic::{self, Topic};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::admission::{Ledger, Request};
use crate::cgroup::{ReleaseError, Settings, chain};
use crate::usage::UsageBook;
use crate::worker::{Worker, WorkerGone};

/// Usage is sampled at this interval where no configuration says otherwise.
const USAGE_INTERVAL: Duration = Duration::from_secs(2);

/// Processes that were just killed leave their groups some moments later; v1
/// has no event for it. A release tries again after this time, then twice it, …
const FIRST_RETRY: Duration = Duration::from_millis(5);
/// … but at most this.
const LONGEST_RETRY: Duration = Duration::from_millis(100);
/// A group that holds processes for this long is in use, and the release refused.
const EMPTYING: Duration = Duration::from_secs(1);

/// Why the daemon ends by itself.
#[derive(Debug, thiserror::Error)]
pub enum ResourceError {
    /// No thread could be made.
    #[error("cannot start the thread that works on cgroups")]
    Thread(#[source] std::io::Error),
    /// It died.
    #[error(transparent)]
    Worker(#[from] WorkerGone),
}

/// Runs the resource-controller until it is asked to end. Groups with processes stay.
///
/// # Errors
/// When the thread of the cgroups cannot be made or has died; never for want of cgroups.
pub async fn serve(mut daemon: Daemon) -> Result<(), ResourceError> {
    let orchestrator = daemon.config.as_ref().map(|config| &config.orchestrator);
    let every = orchestrator.map_or(USAGE_INTERVAL, |orchestrator| orchestrator.usage_interval);
    let worker = Worker::start(Settings {
        subtree: daemon.dirs.cgroup_name(),
        parent: orchestrator.and_then(|orchestrator| orchestrator.cgroup_parent.clone()),
        record: Some(daemon.dirs.state.join("cgroups.json")),
    })
    .map_err(ResourceError::Thread)?;
    let mut service = Service {
        server: daemon.server.clone(),
        worker,
        ledger: Ledger::default(),
        book: UsageBook::default(),
        emptying: BTreeMap::new(),
        limited: false,
    };
    service.look_around().await?;

    let mut ticks = Pulse::new(every.max(Duration::from_millis(10)));
    loop {
        let retry = service
            .emptying
            .values()
            .map(|emptying| emptying.next_try)
            .min();
        // Each arm is cancel safe: the signal and the ticks keep their state
        // outside, recv takes nothing when it is cancelled, and the retry's
        // deadline is computed anew in each round.
        tokio::select! {
            biased;
            () = daemon.shutdown.requested() => break,
            command = daemon.commands.recv() => match command {
                Some(command) => service.command(command).await?,
                None => break,
            },
            () = sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => {
                service.retry_releases().await?;
            }
            // Without instances there is nothing to sample, and no wake-up.
            _ = ticks.tick(), if !service.book.is_empty() => service.tick().await?,
        }
    }
    service.end().await
}

/// A release that waits for the last processes to be gone.
#[derive(Debug)]
struct Emptying {
    /// Those who asked; bounded by the queue of commands, since each asks once.
    asked: Vec<Incoming>,
    next_try: Instant,
    wait: Duration,
    until: Instant,
}

#[derive(Debug)]
struct Service {
    server: Server,
    worker: Worker,
    ledger: Ledger,
    book: UsageBook,
    emptying: BTreeMap<InstanceName, Emptying>,
    /// Whether the notes say that limits cannot be enforced.
    limited: bool,
}

impl Service {
    /// The first look at the host: takes over groups, says what is missing.
    async fn look_around(&mut self) -> Result<(), ResourceError> {
        let (found, version) = self
            .worker
            .run(|engine| (engine.sample(), engine.version()))
            .await?;
        let count = found.len();
        // On the list from now on; the first tick that is published comes in its time.
        self.book.tick(std::time::Instant::now(), found);
        let problem = self.note_problem().await?;
        tracing::info!(
            cgroups = version_text(version),
            found = count,
            problem,
            "ready to limit and measure: waits for commands, needs no other component"
        );
        Ok(())
    }

    async fn note_problem(&mut self) -> Result<Option<String>, ResourceError> {
        let problem = self.worker.run(|engine| engine.problem()).await?;
        self.limited = problem.is_some();
        let notes = problem
            .iter()
            .map(|problem| format!("limits: not enforced: {problem}"));
        self.server.set_notes(notes.collect());
        Ok(problem)
    }

    async fn command(&mut self, command: Incoming) -> Result<(), ResourceError> {
        match command.kind.as_str() {
            Prepare::KIND => match parsed::<Prepare>(command).await {
                Some((command, body)) => {
                    let result = self.prepare(body).await?;
                    command.reply::<Prepare>(result).await;
                }
                None => return Ok(()),
            },
            Release::KIND => {
                if let Some((command, body)) = parsed::<Release>(command).await {
                    self.release(command, body.instance).await?;
                }
            }
            ListUsage::KIND => {
                if let Some((command, body)) = parsed::<ListUsage>(command).await {
                    let page = self.server.snapshot(
                        topic::RESOURCE,
                        self.book.latest(),
                        body.after.as_deref(),
                    );
                    command.reply::<ListUsage>(Ok(page)).await;
                }
            }
            GetCapacity::KIND => {
                if let Some((command, GetCapacity {})) = parsed::<GetCapacity>(command).await {
                    let capacity = self.capacity().await?;
                    command.reply::<GetCapacity>(Ok(capacity)).await;
                }
            }
            _ => command.unknown().await,
        }
        Ok(())
    }

    async fn prepare(
        &mut self,
        body: Prepare,
    ) -> Result<Result<LimitGrant, Status>, ResourceError> {
        let Prepare {
            instance,
            limits,
            oom_score_adj,
        } = body;
        // A new start outranks the end that is still being cleared away.
        if let Some(emptying) = self.emptying.remove(&instance) {
            let text = format!("{instance} was prepared anew before its cgroup was empty");
            for asked in emptying.asked {
                asked
                    .reply::<Release>(Err(Status::new(Code::Aborted, text.clone())))
                    .await;
            }
        }
        let name = instance.clone();
        let (capacity, running) = self
            .worker
            .run(move |engine| (engine.capacity(), engine.populated(&name)))
            .await?;
        let request = Request::of(&limits);
        let earlier = match self.ledger.admit(&instance, request, capacity, running) {
            Ok(earlier) => earlier,
            Err(refused) => {
                tracing::info!(instance = %instance, reason = %refused, "not admitted");
                return Ok(Err(Status::new(
                    Code::ResourceExhausted,
                    refused.to_string(),
                )));
            }
        };
        let (name, required) = (instance.clone(), limits.required);
        let (prepared, first) = self
            .worker
            .run(move |engine| {
                let prepared = engine.prepare(&name, &limits, oom_score_adj);
                let first = prepared.fresh.then(|| engine.read(&name)).flatten();
                (prepared, first)
            })
            .await?;
        if let Some(first) = &first {
            self.book.begin(&instance, first);
        }
        let missing = prepared.not_enforced();
        if missing.is_some() != self.limited {
            self.note_problem().await?;
        }
        if let Some(missing) = &missing {
            tracing::debug!(instance = %instance, missing, "not every limit is enforced");
        }
        let missing = match required {
            true => prepared.not_enforced_as_asked(),
            false => None,
        };
        let Some(missing) = missing else {
            return Ok(Ok(prepared.grant));
        };
        self.ledger.restore(&instance, earlier);
        if prepared.fresh {
            self.book.end(&instance, None);
            let name = instance.clone();
            if let Err(error) = self.worker.run(move |engine| engine.release(&name)).await? {
                tracing::warn!(error = chain(&error), "a refused instance's groups stay");
            }
        }
        let text =
            format!("{instance} requires its limits, but not all can be enforced: {missing}");
        Ok(Err(Status::new(Code::FailedPrecondition, text)))
    }

    async fn release(
        &mut self,
        command: Incoming,
        instance: InstanceName,
    ) -> Result<(), ResourceError> {
        let now = Instant::now();
        let emptying = self
            .emptying
            .entry(instance.clone())
            .or_insert_with(|| Emptying {
                asked: Vec::new(),
                next_try: now,
                wait: FIRST_RETRY,
                until: now + EMPTYING,
            });
        emptying.until = emptying.until.min(command.deadline);
        emptying.asked.push(command);
        self.try_release(instance).await
    }

    async fn retry_releases(&mut self) -> Result<(), ResourceError> {
        let now = Instant::now();
        let due: Vec<_> = self
            .emptying
            .iter()
            .filter(|(_, emptying)| emptying.next_try <= now)
            .map(|(instance, _)| instance.clone())
            .collect();
        for instance in due {
            self.try_release(instance).await?;
        }
        Ok(())
    }

    async fn try_release(&mut self, instance: InstanceName) -> Result<(), ResourceError> {
        let name = instance.clone();
        let result = self.worker.run(move |engine| engine.release(&name)).await?;
        let Some(mut emptying) = self.emptying.remove(&instance) else {
            return Ok(());
        };
        let result = match result {
            Ok(last) => {
                self.ledger.remove(&instance);
                if let Some(killed) = self.book.end(&instance, last.as_ref()) {
                    let cause = emptying.asked.first().map(|asked| asked.id);
                    self.publish_kill(killed, cause).await;
                }
                tracing::debug!(instance = %instance, "released");
                Ok(())
            }
            Err(ReleaseError::Populated { .. }) if Instant::now() < emptying.until => {
                emptying.next_try = (Instant::now() + emptying.wait).min(emptying.until);
                emptying.wait = (emptying.wait * 2).min(LONGEST_RETRY);
                self.emptying.insert(instance, emptying);
                return Ok(());
            }
            Err(error) => {
                let code = match &error {
                    ReleaseError::Populated { .. } => Code::FailedPrecondition,
                    ReleaseError::Cgroup { .. } => Code::Internal,
                };
                Err(Status::new(code, chain(&error)))
            }
        };
        for asked in emptying.asked {
            asked.reply::<Release>(result.clone()).await;
        }
        Ok(())
    }

    async fn capacity(&mut self) -> Result<Capacity, ResourceError> {
        let (capacity, version) = self
            .worker
            .run(|engine| (engine.capacity(), engine.version()))
            .await?;
        let reserved = self.ledger.sum();
        Ok(Capacity {
            cpu_percent: capacity.cpu_percent,
            memory_bytes: capacity.memory_bytes,
            cpu_reserved_percent: reserved.cpu_percent,
            memory_reserved_bytes: reserved.memory_bytes,
            instances: u32::try_from(self.ledger.instances()).unwrap_or(u32::MAX),
            cgroups: version_text(version).to_owned(),
            problem: self.note_problem().await?,
        })
    }

    /// Samples all instances and publishes what was found.
    async fn tick(&mut self) -> Result<(), ResourceError> {
        let readings = self.worker.run(|engine| engine.sample()).await?;
        let tick = self.book.tick(std::time::Instant::now(), readings);
        for killed in tick.killed {
            self.publish_kill(killed, None).await;
        }
        for page in tick.usage.chunks(PAGE_ITEMS) {
            let message = UsageTick {
                interval_ms: tick.interval_ms,
                usage: page.to_vec(),
            };
            self.server.publish(Topic::resource(), &message, None).await;
        }
        Ok(())
    }

    async fn publish_kill(
        &self,
        killed: blackhole_bus_schema::resource::OomKilled,
        cause: Option<Uuid>,
    ) {
        tracing::warn!(
            instance = %killed.instance,
            kills = killed.kills,
            limit_bytes = killed.memory_limit_bytes,
            "killed for want of memory"
        );
        self.server.publish(Topic::resource(), &killed, cause).await;
    }

    /// Groups with services stay; without any, nothing is left behind.
    async fn end(self) -> Result<(), ResourceError> {
        for (instance, emptying) in self.emptying {
            let text =
                format!("the resource-controller ends before the cgroup of {instance} is empty");
            for asked in emptying.asked {
                asked
                    .reply::<Release>(Err(Status::new(Code::Unavailable, text.clone())))
                    .await;
            }
        }
        let clean = self.worker.close().await?;
        if clean {
            tracing::info!("no cgroup is left");
        } else {
            tracing::info!("the cgroups of services stay");
        }
        Ok(())
    }
}

/// The body of a command; one that cannot be read is answered with the reason.
async fn parsed<C: Command>(command: Incoming) -> Option<(Incoming, C)> {
    match command.parse::<C>() {
        Ok(body) => Some((command, body)),
        Err(status) => {
            command.reply::<C>(Err(status)).await;
            None
        }
    }
}

fn version_text(version: Option<CgroupVersion>) -> &'static str {
    match version {
        Some(CgroupVersion::V1) => "v1",
        Some(CgroupVersion::Hybrid) => "hybrid",
        Some(CgroupVersion::V2) => "v2",
        None => "none",
    }
}
