//! What a stop takes along: services that cannot do without one that is stopped.

use std::collections::{BTreeMap, BTreeSet};

use blackhole_bus_schema::bus::Link;
use blackhole_bus_schema::config::ServiceConfig;
use blackhole_bus_schema::names::ServiceName;
use blackhole_bus_schema::process::StateName;
use blackhole_bus_schema::supervision::ListStatus;

use crate::args::Targets;
use crate::context::Context;
use crate::{client, human};

/// What is to be said of those that run and will be stopped, too; as far as the configuration
/// at hand and the supervisor's list tell.
pub(super) async fn words(context: &Context, link: &Link, targets: &Targets) -> Option<String> {
    if targets.all {
        return None;
    }
    let (_, config) = context.config().ok()?;
    let all = of(&config.services, &targets.services);
    if all.is_empty() {
        return None;
    }
    let list = client::all::<ListStatus>(link, client::WAIT).await.ok()?;
    let running: BTreeSet<String> = list
        .iter()
        .filter(|status| {
            let live = [StateName::Spawn, StateName::Running, StateName::Stopping];
            all.contains(&status.service) && status.state.is_some_and(|state| live.contains(&state))
        })
        .map(|status| status.service.to_string())
        .collect();
    let running: Vec<String> = running.into_iter().collect();
    (!running.is_empty()).then(|| {
        format!(
            "{} cannot do without {}, and will be stopped too; what is stopped with it starts again with it",
            human::list(&running, 8),
            human::list(&targets.services, 6)
        )
    })
}

/// All that depend on the targets, hard, by whatever chain; without the targets.
fn of(
    services: &BTreeMap<ServiceName, ServiceConfig>,
    targets: &[String],
) -> BTreeSet<ServiceName> {
    let is_target = |name: &ServiceName| targets.iter().any(|target| target == name.as_str());
    let mut found: BTreeSet<ServiceName> = BTreeSet::new();
    // At most one round for each service: each but the last finds one.
    loop {
        let next: Vec<ServiceName> = services
            .iter()
            .filter(|(name, _)| !is_target(name) && !found.contains(*name))
            .filter(|(_, service)| {
                let mut on = service.depends_on.iter();
                on.any(|(on, how)| how.required && (is_target(on) || found.contains(on)))
            })
            .map(|(name, _)| name.clone())
            .collect();
        if next.is_empty() {
            return found;
        }
        found.extend(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blackhole_bus_schema::config::Config;

    #[test]
    fn chains_are_followed_and_soft_ones_are_not() {
        let text = "services:\n  \
            db: {command: [x]}\n  \
            api: {command: [x], depends_on: {db: ready}}\n  \
            web: {command: [x], depends_on: {api: ready}}\n  \
            other: {command: [x]}\n";
        let config = Config::parse(text, "test").unwrap();
        let found = |name: &str| -> Vec<String> {
            let found = of(&config.services, &[name.to_owned()]);
            found.iter().map(ToString::to_string).collect()
        };
        assert_eq!(found("db"), ["api", "web"]);
        assert!(found("web").is_empty());
        let mut soft = config.clone();
        let api: ServiceName = "api".parse().unwrap();
        for on in soft.services.get_mut(&api).unwrap().depends_on.values_mut() {
            on.required = false;
        }
        assert!(of(&soft.services, &["db".to_owned()]).is_empty());
    }
}
