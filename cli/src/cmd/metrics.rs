//! `blackhole metrics`: what was measured, for Prometheus.

use blackhole_bus_schema::bus::Link;
use blackhole_bus_schema::names::Component;
use blackhole_bus_schema::registry::{CallStats, ListCalls};

use crate::client::{self, Overview};
use crate::context::Context;
use crate::error::Error;
use crate::view::metrics;
use crate::{human, out};

pub(super) async fn run(context: &Context) -> Result<(), Error> {
    let overview = Overview::open(&context.dirs, context.timeout(super::status::LISTS)).await?;
    let (answers, found) = overview.ask().await;
    if found.iter().all(|found| found.info().is_none()) {
        return Err(super::status::nobody(context, "show metrics").await);
    }
    let calls = match overview.link(&Component::Bridge) {
        Some(link) => calls(context, link).await,
        None => Vec::new(),
    };
    out::print(metrics::text(human::now_ns(), &answers, &found, &calls))
}

async fn calls(context: &Context, link: &Link) -> Vec<CallStats> {
    if link.info().is_none() {
        return Vec::new();
    }
    match client::all::<ListCalls>(link, context.timeout(super::status::LISTS)).await {
        Ok(calls) => calls,
        Err(error) => {
            out::note(format!("no figures of calls: {error}"));
            Vec::new()
        }
    }
}
