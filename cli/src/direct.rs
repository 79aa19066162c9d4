//! Without a supervisor: start and stop go straight to the process-manager.
//! Nothing is restarted then, and nothing is remembered.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use blackhole_bus_schema::bus::Link;
use blackhole_bus_schema::config::{Config, ServiceConfig};
use blackhole_bus_schema::limits::LimitGrant;
use blackhole_bus_schema::names::{Component, Generation, InstanceName, ManagerName, ServiceName};
use blackhole_bus_schema::process::{InstanceRecord, ListProcesses, Spawn, Stop};
use blackhole_bus_schema::reply::{Code, Status};
use blackhole_bus_schema::resource::Prepare;
use blackhole_bus_schema::supervision::Target;
use tokio::task::JoinSet;

use crate::client::{self, Peer};
use crate::cmd;
use crate::context::Context;
use crate::error::Error;
use crate::view::service::{Answers, rows};
use crate::{human, out};

/// Time for one spawn.
const SPAWN: Duration = Duration::from_secs(30);
/// Time for one stop, on top of nothing: the grace is the operator's.
const STOP: Duration = Duration::from_secs(120);

/// Starts the services' instances that do not live, in the order of their dependencies.
///
/// # Errors
/// When no process-manager answers, the configuration is wrong, or a spawn is refused.
pub async fn start(context: &Context, target: &Target) -> Result<(), Error> {
    let (managers, mut known) = Managers::open(context, "start services").await?;
    let (_, config) = context.config()?;
    let wanted = wanted(&config, target)?;
    out::note(
        "no supervisor: nothing is restarted when it fails, and dependencies are not waited for",
    );
    let resource = Peer::open(&context.dirs, Component::ResourceController).await?;
    let resource_there = resource.found(client::WAIT).await.info().is_some();
    if !resource_there {
        out::note("no resource-controller: limits are not enforced");
    }
    let mut touched = BTreeSet::new();
    for service in order(&config)
        .iter()
        .flatten()
        .filter(|name| wanted.contains(*name))
    {
        let Some(settings) = config.services.get(service) else {
            continue;
        };
        for index in 1..=settings.replicas {
            let Some(instance) = InstanceName::new(service.clone(), index) else {
                continue;
            };
            touched.insert(instance.clone());
            let last = known.get(&instance);
            if last.is_some_and(|record| record.state.is_live()) {
                out::note(format!("{instance}: runs already"));
                continue;
            }
            let generation = last.map_or(Generation(1), |record| record.generation.next());
            let grant = grant(&resource, resource_there, &instance, settings).await?;
            let spec = settings.spawn_spec(instance.clone(), generation, grant, 0);
            let operation = format!("start {instance}");
            let record = managers
                .link(&operation, &settings.manager)?
                .request(&Spawn { spec }, context.timeout(SPAWN))
                .await
                .map_err(|error| {
                    client::request_error(&operation, error, context.timeout(SPAWN))
                })?;
            out::note(format!("{instance}: {}", record.state.name()));
            known.insert(instance, record);
        }
    }
    finish(context, known, &touched)
}

/// Stops and starts the services' instances. What their start needs is looked for
/// before anything is stopped.
///
/// # Errors
/// As [`stop`] and [`start`].
pub async fn restart(context: &Context, target: &Target) -> Result<(), Error> {
    Managers::open(context, "restart services").await?;
    let (_, config) = context.config()?;
    wanted(&config, target)?;
    stop(context, target).await?;
    start(context, target).await
}

/// Stops the services' instances that live: dependents first where the
/// configuration is at hand, else all at once.
///
/// # Errors
/// When no process-manager answers or a stop fails.
pub async fn stop(context: &Context, target: &Target) -> Result<(), Error> {
    let (managers, mut known) = Managers::open(context, "stop services").await?;
    let levels = match context.config() {
        Ok((_, config)) => order(&config),
        Err(_) => Vec::new(),
    };
    let services: BTreeSet<ServiceName> = known
        .keys()
        .map(|instance| instance.service().clone())
        .collect();
    let wanted: BTreeSet<ServiceName> = match target {
        Target::All => services.clone(),
        Target::Services(names) => {
            if let Some(name) = names.iter().find(|name| !services.contains(name)) {
                return Err(unknown(name, services.iter()));
            }
            names.iter().cloned().collect()
        }
    };
    out::note(
        "no supervisor: this is not remembered, the next supervisor starts what the configuration says",
    );
    let mut touched = BTreeSet::new();
    for level in stop_levels(&levels, &wanted) {
        let mut tasks = JoinSet::new();
        for record in known
            .values()
            .filter(|record| level.contains(record.instance.service()))
        {
            touched.insert(record.instance.clone());
            // Also one that has ended: what is kept for its successor is closed by that.
            let (instance, generation) = (record.instance.clone(), record.generation);
            let home = managers.homes.get(&instance).cloned().unwrap_or_default();
            let manager = managers.link(&format!("stop {instance}"), &home)?.clone();
            let budget = context.timeout(STOP);
            tasks.spawn(async move {
                let command = Stop {
                    instance: instance.clone(),
                    generation,
                    stop: None,
                    unhealthy: false,
                    again: false,
                };
                let result = manager.request(&command, budget).await;
                result.map_err(|error| {
                    client::request_error(&format!("stop {instance}"), error, budget)
                })
            });
        }
        let mut first_error = None;
        while let Some(joined) = tasks.join_next().await {
            match joined {
                Ok(Ok(record)) => {
                    out::note(format!("{}: {}", record.instance, record.state.name()));
                    known.insert(record.instance.clone(), record);
                }
                Ok(Err(error)) => first_error = first_error.or(Some(error)),
                Err(_) => {}
            }
        }
        if let Some(error) = first_error {
            return Err(error);
        }
    }
    finish(context, known, &touched)
}

fn finish(
    context: &Context,
    known: BTreeMap<InstanceName, InstanceRecord>,
    touched: &BTreeSet<InstanceName>,
) -> Result<(), Error> {
    let records = known
        .into_values()
        .filter(|record| touched.contains(&record.instance))
        .collect();
    let answers = Answers {
        processes: Some(records),
        ..Answers::default()
    };
    let shown = rows(human::now_ns(), &answers);
    let failed: Vec<String> = shown
        .iter()
        .filter(|row| row.state == Some(blackhole_bus_schema::process::StateName::Failed))
        .map(|row| row.instance.to_string())
        .collect();
    cmd::show_services(context, shown)?;
    if failed.is_empty() {
        return Ok(());
    }
    Err(Error::Failed {
        message: format!("failed: {}", human::list(&failed, 6)),
        hint: "`blackhole status` tells why, `blackhole logs` what they wrote".to_owned(),
    })
}

/// The process-managers that answer, and what each has.
struct Managers {
    links: BTreeMap<Option<ManagerName>, Link>,
    /// Where each instance was started last.
    homes: BTreeMap<InstanceName, Option<ManagerName>>,
}

impl Managers {
    /// Asks all that there may be; with them the latest record of each instance.
    async fn open(
        context: &Context,
        operation: &str,
    ) -> Result<(Self, BTreeMap<InstanceName, InstanceRecord>), Error> {
        let mut links = BTreeMap::new();
        let mut homes = BTreeMap::new();
        let mut known: BTreeMap<InstanceName, InstanceRecord> = BTreeMap::new();
        for component in client::components(&context.dirs) {
            let Component::ProcessManager(name) = component.clone() else {
                continue;
            };
            let peer = Peer::open(&context.dirs, component.clone()).await?;
            let found = peer.found(context.timeout(client::WAIT)).await;
            let (Some(link), Some(_)) = (peer.link, found.info()) else {
                if name.is_some() {
                    out::note(format!(
                        "the {component} does not answer: what it has is left alone"
                    ));
                }
                continue;
            };
            for record in records(&link).await? {
                let instance = record.instance.clone();
                let older = |known: &InstanceRecord| known.generation <= record.generation;
                if known.get(&instance).is_none_or(older) {
                    homes.insert(instance.clone(), name.clone());
                    known.insert(instance, record);
                }
            }
            links.insert(name, link);
        }
        if links.is_empty() {
            return Err(unreachable(
                operation,
                "the supervisor or the process-manager",
            ));
        }
        Ok((Self { links, homes }, known))
    }

    /// The link to one of them.
    fn link(&self, operation: &str, name: &Option<ManagerName>) -> Result<&Link, Error> {
        let component = Component::ProcessManager(name.clone());
        let link = self.links.get(name);
        link.ok_or_else(|| unreachable(operation, &format!("the {component}")))
    }
}

fn unreachable(operation: &str, component: &str) -> Error {
    Error::Unreachable {
        operation: operation.to_owned(),
        component: component.to_owned(),
    }
}

async fn records(manager: &Link) -> Result<Vec<InstanceRecord>, Error> {
    client::all::<ListProcesses>(manager, SPAWN)
        .await
        .map_err(|error| client::request_error("list the instances", error, SPAWN))
}

fn wanted(config: &Config, target: &Target) -> Result<BTreeSet<ServiceName>, Error> {
    match target {
        Target::All => Ok(config.services.keys().cloned().collect()),
        Target::Services(names) => match names
            .iter()
            .find(|name| !config.services.contains_key(name))
        {
            Some(name) => Err(unknown(name, config.services.keys())),
            None => Ok(names.iter().cloned().collect()),
        },
    }
}

fn unknown<'a>(name: &ServiceName, known: impl Iterator<Item = &'a ServiceName>) -> Error {
    Error::NotFound {
        what: "service",
        name: name.to_string(),
        known: known.map(ToString::to_string).collect(),
    }
}

async fn grant(
    resource: &Peer,
    there: bool,
    instance: &InstanceName,
    settings: &ServiceConfig,
) -> Result<Option<LimitGrant>, Error> {
    let operation = format!("start {instance}");
    if !there {
        if settings.limits.required {
            let message =
                "its limits are required and there is no resource-controller to enforce them";
            return Err(Error::Refused {
                operation,
                status: Status::new(Code::FailedPrecondition, message),
            });
        }
        return Ok(None);
    }
    let command = Prepare {
        instance: instance.clone(),
        limits: settings.limits.clone(),
        oom_score_adj: Some(settings.oom_score_adj),
    };
    resource
        .request(&operation, &command, SPAWN)
        .await
        .map(Some)
}

/// The services in levels: each depends on earlier ones only.
pub fn order(config: &Config) -> Vec<BTreeSet<ServiceName>> {
    let mut levels: Vec<BTreeSet<ServiceName>> = Vec::new();
    let mut placed: BTreeSet<ServiceName> = BTreeSet::new();
    // A checked configuration has no cycle; the last condition ends the loop for one that has.
    loop {
        let level: BTreeSet<ServiceName> = config
            .services
            .iter()
            .filter(|(name, service)| {
                !placed.contains(*name) && service.depends_on.keys().all(|on| placed.contains(on))
            })
            .map(|(name, _)| name.clone())
            .collect();
        if level.is_empty() {
            return levels;
        }
        placed.extend(level.iter().cloned());
        levels.push(level);
    }
}

/// The wanted services in the order of stopping; what no level knows goes first.
pub fn stop_levels(
    levels: &[BTreeSet<ServiceName>],
    wanted: &BTreeSet<ServiceName>,
) -> Vec<BTreeSet<ServiceName>> {
    let known: BTreeSet<&ServiceName> = levels.iter().flatten().collect();
    let strangers = wanted
        .iter()
        .filter(|name| !known.contains(name))
        .cloned()
        .collect();
    let ordered = levels
        .iter()
        .rev()
        .map(|level| level.intersection(wanted).cloned().collect());
    std::iter::once(strangers)
        .chain(ordered)
        .filter(|level: &BTreeSet<_>| !level.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> BTreeSet<ServiceName> {
        list.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn dependents_start_later_and_stop_earlier() {
        let text = "services: {db: {command: [a]}, api: {command: [a], depends_on: {db: ready}}, \
                    web: {command: [a], depends_on: {api: ready, db: started}}, cron: {command: [a]}}";
        let config = Config::parse(text, "test").unwrap();
        let levels = order(&config);
        assert_eq!(
            levels,
            [names(&["cron", "db"]), names(&["api"]), names(&["web"])]
        );
        assert_eq!(
            stop_levels(&levels, &names(&["db", "web", "old"])),
            [names(&["old"]), names(&["web"]), names(&["db"])]
        );
        assert_eq!(stop_levels(&[], &names(&["a", "b"])), [names(&["a", "b"])]);
    }
}
