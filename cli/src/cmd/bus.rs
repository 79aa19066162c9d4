//! `blackhole bus ping`: the way to a daemon and back.

use std::time::{Duration, Instant};

use blackhole_bus_schema::component::Ping;
use blackhole_bus_schema::names::Component;
use serde::Serialize;

use crate::client::{self, Peer};
use crate::context::Context;
use crate::error::{Error, Exit};
use crate::out::{self, Tone};
use crate::table::{Table, maybe, plain, toned};

#[derive(Serialize)]
struct Row {
    component: String,
    sent: u32,
    answered: u32,
    min_us: Option<u64>,
    median_us: Option<u64>,
    max_us: Option<u64>,
}

#[derive(Serialize)]
struct Document {
    pings: Vec<Row>,
}

pub(super) async fn ping(context: &Context, names: &[String], count: u32) -> Result<(), Error> {
    let components = if names.is_empty() {
        client::components(&context.dirs)
    } else {
        names
            .iter()
            .map(|name| {
                name.parse()
                    .map_err(|error: blackhole_bus_schema::names::NameError| {
                        Error::Usage(error.to_string())
                    })
            })
            .collect::<Result<Vec<Component>, Error>>()?
    };
    let wait = context.timeout(client::WAIT);
    let mut pings = Vec::new();
    for component in components {
        pings.push(one(context, component, count, wait).await?);
    }
    let (answered, silent): (Vec<&Row>, Vec<&Row>) = pings.iter().partition(|row| row.answered > 0);
    let verdict = match (answered.is_empty(), silent.is_empty()) {
        (_, true) => Ok(()),
        (true, false) => Err(Error::Shown(Exit::Unreachable)),
        (false, false) => Err(Error::Shown(Exit::Failed)),
    };
    let document = Document { pings };
    out::document(context.format, &document, || {
        table(context, &document.pings)
    })?;
    verdict
}

async fn one(
    context: &Context,
    component: Component,
    count: u32,
    wait: Duration,
) -> Result<Row, Error> {
    let peer = Peer::open(&context.dirs, component).await?;
    let mut times = Vec::new();
    let mut sent = 0;
    if peer.found(wait).await.info().is_some() {
        for _ in 0..count {
            sent += 1;
            let begin = Instant::now();
            if peer.request("ping", &Ping {}, wait).await.is_ok() {
                times.push(u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX));
            }
        }
    }
    times.sort_unstable();
    Ok(Row {
        component: peer.component.to_string(),
        sent,
        answered: u32::try_from(times.len()).unwrap_or(u32::MAX),
        min_us: times.first().copied(),
        median_us: times.get(times.len() / 2).copied(),
        max_us: times.last().copied(),
    })
}

fn table(context: &Context, rows: &[Row]) -> String {
    let headings = ["COMPONENT", "ANSWERED", "MIN", "MEDIAN", "MAX"];
    let mut table = Table::new(context.style, &headings, &[1, 2, 3, 4]);
    let time = |micros: Option<u64>| maybe(micros.map(|micros| format!("{micros} µs")));
    for row in rows {
        let answered = if row.answered == 0 {
            toned("no answer", Tone::Bad)
        } else {
            plain(format!("{} of {}", row.answered, row.sent))
        };
        table.row(vec![
            plain(&row.component),
            answered,
            time(row.min_us),
            time(row.median_us),
            time(row.max_us),
        ]);
    }
    table.render()
}
