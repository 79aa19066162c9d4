//! `blackhole kill` and `blackhole signal`: a signal to first processes.

use std::time::Duration;

use blackhole_bus_schema::bus::Link;
use blackhole_bus_schema::names::{Component, InstanceName};
use blackhole_bus_schema::process::{InstanceRecord, ListProcesses, Signal, signal_name};
use serde::Serialize;

use crate::client::{self, Peer};
use crate::context::Context;
use crate::error::Error;
use crate::view::names::Filter;
use crate::{human, offline, out};

/// Time for one signal to be sent.
const BUDGET: Duration = Duration::from_secs(5);

#[derive(Serialize)]
struct Row {
    instance: InstanceName,
    pid: Option<u32>,
    signal: i32,
}

#[derive(Serialize)]
struct Document {
    signalled: Vec<Row>,
}

pub(super) async fn run(context: &Context, names: &[String], signal: i32) -> Result<(), Error> {
    let filter = Filter::parse(names)?;
    let known = if context.offline {
        offline::records(&context.dirs)
            .await?
            .into_iter()
            .map(|record| (None, record))
            .collect()
    } else {
        processes(context).await?
    };
    let meant = filter.select(known.iter().map(|(_, record)| &record.instance))?;
    let mut signalled = Vec::new();
    let mut without = Vec::new();
    for (link, record) in known
        .iter()
        .filter(|(_, record)| meant.contains(&record.instance))
    {
        let instance = &record.instance;
        let Some(pid) = record.state.pid() else {
            without.push(format!("{instance} ({})", record.state.name()));
            continue;
        };
        match link {
            None => offline::signal(&context.dirs, instance, signal).await?,
            Some(link) => {
                let command = Signal {
                    instance: instance.clone(),
                    signal,
                };
                let budget = context.timeout(BUDGET);
                link.request(&command, budget).await.map_err(|error| {
                    client::request_error(&format!("signal {instance}"), error, budget)
                })?;
            }
        }
        signalled.push(Row {
            instance: instance.clone(),
            pid: Some(pid),
            signal,
        });
    }
    let name = signal_name(signal).map_or_else(|| format!("signal {signal}"), str::to_owned);
    let document = Document { signalled };
    out::document(context.format, &document, || {
        document
            .signalled
            .iter()
            .map(|row| {
                format!(
                    "{}: {name} sent to pid {}\n",
                    row.instance,
                    row.pid.unwrap_or_default()
                )
            })
            .collect()
    })?;
    // Some of several instances without a process are as good as signalled.
    if document.signalled.is_empty() {
        return Err(Error::Failed {
            message: format!(
                "cannot send {name}: no process: {}",
                human::list(&without, 6)
            ),
            hint: "`blackhole status` tells why".to_owned(),
        });
    }
    Ok(())
}

type Known = Vec<(Option<Link>, InstanceRecord)>;

/// All instances that a process-manager knows, with the way to it.
async fn processes(context: &Context) -> Result<Known, Error> {
    let mut known: Known = Vec::new();
    let mut answered = false;
    for component in client::components(&context.dirs) {
        if !matches!(component, Component::ProcessManager(_)) {
            continue;
        }
        let peer = Peer::open(&context.dirs, component).await?;
        if peer
            .found(context.timeout(client::WAIT))
            .await
            .info()
            .is_none()
        {
            continue;
        }
        let Some(link) = peer.link else { continue };
        let records = client::all::<ListProcesses>(&link, BUDGET)
            .await
            .map_err(|error| client::request_error("list the instances", error, BUDGET))?;
        answered = true;
        for record in records {
            // One that has moved may be remembered where it was.
            let same =
                |(_, one): &&mut (Option<Link>, InstanceRecord)| one.instance == record.instance;
            match known.iter_mut().find(same) {
                Some((_, before)) if before.generation > record.generation => {}
                Some(before) => *before = (Some(link.clone()), record),
                None => known.push((Some(link.clone()), record)),
            }
        }
    }
    if !answered {
        return Err(Error::Unreachable {
            operation: "send a signal".to_owned(),
            component: "the process-manager".to_owned(),
        });
    }
    Ok(known)
}
