//! `blackhole kill` and `blackhole signal`: a signal to first processes.

use std::time::Duration;

use blackhole_bus_schema::bus::Link;
use blackhole_bus_schema::names::InstanceName;
use blackhole_bus_schema::process::{InstanceRecord, Signal, signal_name};
use serde::Serialize;

use crate::client;
use crate::context::Context;
use crate::error::Error;
use crate::view::names::Filter;
use crate::{human, offline, out};

use super::homes::{Homes, Left, unreached};

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
    let name = signal_name(signal).map_or_else(|| format!("signal {signal}"), str::to_owned);
    let (known, left) = if context.offline {
        let records = offline::records(&context.dirs).await?;
        let meant = filter.select(records.iter().map(|record| &record.instance))?;
        let known = records
            .into_iter()
            .filter(|record| meant.contains(&record.instance))
            .map(|record| (None, record))
            .collect();
        (known, Left::new())
    } else {
        let homes = Homes::ask(context, "send a signal").await?;
        let (meant, left) = homes.select(&filter)?;
        let known: Vec<(Option<Link>, InstanceRecord)> = homes
            .known()
            .into_iter()
            .filter(|(instance, _)| meant.contains(instance))
            .map(|(_, (link, record))| (Some(link.clone()), record.clone()))
            .collect();
        (known, left)
    };
    let mut signalled = Vec::new();
    let mut without = Vec::new();
    for (link, record) in &known {
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
    // The others have been sent it.
    let command = match signal {
        9 => "kill".to_owned(),
        _ => format!("kill -s {}", name.trim_start_matches("signal ")),
    };
    if let Some(error) = unreached(&left, &format!("send {name} to"), &command) {
        return Err(error);
    }
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
