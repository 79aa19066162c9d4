//! Rolling restarts: the replicas of a service, one after the other.
//!
//! Each replica carries the mark up to which its spawns are to be replaced
//! (`Instance::roll`). The next one is taken when nothing is being replaced and
//! whatever has been (or was never marked) is ready, and registered with the
//! bridge where it was before, so that at any time at most one replica is down
//! because of it. The marks are on the disk before the
//! first process is stopped: a supervisor that dies over a rolling restart
//! leaves it to its successor, which goes on with it.
//!
//! It is given up, with the other replicas untouched and the command failed,
//! when a replacement ends before it is ready, when a replica cannot come up
//! (refused, circuit open), when one is not ready in time, and when an operator
//! stops the service. What was given up is told with the answer, by an event of
//! each replica left out, and in the supervisor's notes until the service is
//! restarted or stopped.

use std::collections::BTreeMap;
use std::time::Duration;

use blackhole_bus_schema::config::ServiceConfig;
use blackhole_bus_schema::health::Probe;
use blackhole_bus_schema::names::{Generation, InstanceName, ServiceName};
use blackhole_bus_schema::reply::{Code, Status};
use blackhole_bus_schema::supervision::Desired;

use super::Core;
use super::deps::Service;
use super::instance::Instance;
use super::io::{Action, Now};
use super::step::seconds;

/// How long a replica may take from its turn to readiness, beside its grace and
/// what its probes allow.
const PATIENCE: Duration = Duration::from_secs(60);

/// The rolling restarts under way, and the last one of each service that was given up.
#[derive(Debug, Clone, Default)]
pub(super) struct Rolls {
    under_way: BTreeMap<ServiceName, Roll>,
    given_up: BTreeMap<ServiceName, (u64, Status)>,
    /// Of the latest one.
    number: u64,
}

#[derive(Debug, Clone)]
struct Roll {
    number: u64,
    /// When it is given up; `None` until there is something to wait for.
    until: Option<Duration>,
}

/// What follows for a rolling restart.
enum Turn {
    Wait,
    Next(InstanceName),
    Done,
    GiveUp(Code, String),
}

impl Rolls {
    /// When one of them has taken too long.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.under_way.values().filter_map(|roll| roll.until).min()
    }

    /// The number of the rolling restart of a service, while it is under way.
    pub(super) fn number(&self, service: &ServiceName) -> Option<u64> {
        self.under_way.get(service).map(|roll| roll.number)
    }

    /// Why this one, or a later one that took its place, was given up.
    pub(super) fn failure(&self, service: &ServiceName, number: u64) -> Option<&Status> {
        let (latest, status) = self.given_up.get(service)?;
        (*latest >= number).then_some(status)
    }

    /// An earlier failure of a service says nothing any more.
    pub(super) fn forget(&mut self, service: &ServiceName) {
        self.given_up.remove(service);
    }

    /// What was given up, for a person.
    pub(super) fn notes(&self) -> impl Iterator<Item = String> + '_ {
        self.given_up
            .values()
            .map(|(_, status)| status.message.clone())
    }
}

impl Core {
    /// Whether a restart takes its replicas one after the other.
    pub(super) fn can_roll(&self, service: &ServiceName) -> bool {
        let config = self.services.get(service).and_then(Service::config);
        config.is_some_and(|config| config.replicas > 1 && !config.oneshot)
    }

    /// Marks all replicas of a service.
    pub(super) fn begin_roll(&mut self, service: &ServiceName) {
        self.cancel_roll(service);
        for name in self.members.get(service).into_iter().flatten() {
            if let Some(instance) = self.instances.get_mut(name)
                && !instance.surplus
            {
                instance.roll_answers = self.bridge.knows(instance);
                let alive = instance.current().unwrap_or_default();
                instance.roll = instance.generation.max(alive);
                instance.roll_broken = None;
            }
        }
        self.rolls.number += 1;
        let number = self.rolls.number;
        let roll = Roll {
            number,
            until: None,
        };
        self.rolls.under_way.insert(service.clone(), roll);
    }

    /// An earlier run of the supervisor died over these.
    pub(super) fn resume_rolls(&mut self) {
        let marked = |instance: &&Instance| instance.roll > Generation::default();
        for instance in self.instances.values().filter(marked) {
            let service = instance.name.service().clone();
            let roll = Roll {
                number: 0,
                until: None,
            };
            self.rolls.under_way.entry(service).or_insert(roll);
        }
    }

    /// Something else was decided about a service: it is not rolled any more,
    /// and an earlier failure says nothing.
    pub(super) fn cancel_roll(&mut self, service: &ServiceName) {
        self.rolls.given_up.remove(service);
        if self.rolls.under_way.remove(service).is_some() {
            self.unmark(service);
        }
    }

    /// Takes the marks away; gives back who was not replaced.
    fn unmark(&mut self, service: &ServiceName) -> Vec<InstanceName> {
        let names: Vec<_> = self
            .members
            .get(service)
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        let mut left = Vec::new();
        for name in names {
            if let Some(instance) = self.instances.get_mut(&name) {
                if instance.rolling() && !instance.bouncing() {
                    left.push(name.clone());
                }
                instance.roll = Generation::default();
                instance.roll_broken = None;
                instance.roll_answers = false;
                self.save(&name, false);
            }
        }
        left
    }

    /// Gives the next replicas their turn. They are marked to be looked at.
    pub(super) fn advance_rolls(&mut self, now: Now) {
        let services: Vec<_> = self.rolls.under_way.keys().cloned().collect();
        for service in services {
            match self.turn(now, &service) {
                Turn::Wait => {}
                Turn::Next(name) => self.replace(&name),
                Turn::Done => {
                    self.rolls.under_way.remove(&service);
                    self.unmark(&service);
                }
                Turn::GiveUp(code, why) => self.give_up(&service, code, &why),
            }
        }
    }

    fn replace(&mut self, name: &InstanceName) {
        if let Some(instance) = self.instances.get_mut(name)
            && let Some(current) = instance.current()
        {
            instance.bounce = instance.bounce.max(current);
            instance.retry.at_once();
            instance.why = Some("restarted by an operator, one replica after the other".to_owned());
            self.touch(name);
        }
    }

    fn give_up(&mut self, service: &ServiceName, code: Code, why: &str) {
        let number = self.rolls.number(service).unwrap_or_default();
        self.rolls.under_way.remove(service);
        let left = self.unmark(service);
        let rest: Vec<_> = left.iter().map(ToString::to_string).collect();
        let rest = match rest.is_empty() {
            true => "all replicas had had their turn".to_owned(),
            false => format!("not restarted: {}", rest.join(", ")),
        };
        let text = format!("the rolling restart of {service} was given up: {why}; {rest}");
        for name in left {
            if let (Some(status), Some(instance)) = (self.status(&name), self.instances.get(&name))
            {
                let cause = self.cause.or(instance.cause);
                self.actions.push(Action::Publish {
                    status: Box::new(status),
                    why: text.clone(),
                    cause,
                });
            }
        }
        let status = Status::new(code, text);
        self.rolls
            .given_up
            .insert(service.clone(), (number, status));
    }

    fn turn(&mut self, now: Now, name: &ServiceName) -> Turn {
        let Some(service) = self.services.get(name) else {
            return Turn::Done;
        };
        if service.desired() == Desired::Down {
            return Turn::GiveUp(Code::Aborted, "it was stopped meanwhile".to_owned());
        }
        let Some(config) = service.config() else {
            let why = "it is not in the configuration any more".to_owned();
            return Turn::GiveUp(Code::Aborted, why);
        };
        if !service.wanted {
            let missing = self.missing(service).join(", ");
            return Turn::GiveUp(Code::Aborted, format!("it waits for {missing}"));
        }
        let until = self.rolls.under_way.get(name).and_then(|roll| roll.until);
        let (turn, until) = match self.next_turn(name) {
            // Whoever would tell is not there: time says nothing.
            Turn::Wait if !self.all_synced(name) => (Turn::Wait, None),
            Turn::Wait => {
                let until = until.unwrap_or_else(|| now.mono.saturating_add(patience(config)));
                if until <= now.mono {
                    let why = self.late(name, patience(config));
                    (Turn::GiveUp(Code::DeadlineExceeded, why), None)
                } else {
                    (Turn::Wait, Some(until))
                }
            }
            turn => (turn, Some(now.mono.saturating_add(patience(config)))),
        };
        if let Some(roll) = self.rolls.under_way.get_mut(name) {
            roll.until = until;
        }
        turn
    }

    /// Whose turn it is, by what is known of the replicas alone.
    fn next_turn(&self, service: &ServiceName) -> Turn {
        if !self.all_synced(service) {
            return Turn::Wait;
        }
        let replicas: Vec<&Instance> = self
            .instances_of(service)
            .filter(|one| !one.surplus)
            .collect();
        for one in replicas.iter().filter(|one| !one.rolling()) {
            if let Some(what) = &one.roll_broken {
                let text = format!("{} ended before it was ready: {what}", one.name);
                return Turn::GiveUp(Code::Aborted, text);
            }
            if !one.is_running()
                && let Some(status) = self.obstacle(one)
            {
                return Turn::GiveUp(status.code, status.message);
            }
        }
        // A dependent that is just ending has to be gone first: nothing is begun
        // that could not be gone on with at once, while the others are known to serve.
        let held_up = self
            .services
            .get(service)
            .is_some_and(|service| self.outlived(service));
        if held_up {
            return Turn::Wait;
        }
        let replaced = |one: &&&Instance| !one.rolling();
        let under_way = replicas.iter().any(|one| one.bouncing());
        if under_way || !replicas.iter().filter(replaced).all(|one| self.serves(one)) {
            return Turn::Wait;
        }
        // One that serves nobody first: then there is nothing to lose.
        let marked = || replicas.iter().filter(|one| one.rolling());
        let next = marked().find(|one| !self.serves(one)).or(marked().next());
        next.map_or(Turn::Done, |one| Turn::Next(one.name.clone()))
    }

    /// What answered calls before its turn has to be registered again: without a
    /// readiness probe, ready only means that there is a process.
    fn serves(&self, one: &Instance) -> bool {
        let answers = !one.roll_answers || self.bridge.knows(one) || !self.bridge.is_up();
        self.is_ready(one) && !one.bouncing() && answers
    }

    /// Who is waited for.
    fn late(&self, service: &ServiceName, waited: Duration) -> String {
        let late = self
            .instances_of(service)
            .filter(|one| !one.surplus && !self.serves(one))
            .map(|one| match self.is_ready(one) && !one.bouncing() {
                true => format!("{} (it does not answer calls yet)", one.name),
                false => format!("{} ({})", one.name, one.phase.word()),
            });
        let late: Vec<_> = late.collect();
        format!("after {} not ready: {}", seconds(waited), late.join(", "))
    }
}

/// How long one replica may take.
fn patience(config: &ServiceConfig) -> Duration {
    let probes = [&config.probes.startup, &config.probes.readiness];
    let longest = |probe: &Probe| {
        let round = probe.interval_ms.saturating_add(probe.timeout_ms);
        let rounds = u64::from(
            probe
                .failure_threshold
                .saturating_add(probe.success_threshold),
        );
        probe
            .initial_delay_ms
            .saturating_add(round.saturating_mul(rounds))
    };
    let probes = probes.into_iter().flatten().map(longest);
    let ms = probes.fold(config.stop.grace_ms, u64::saturating_add);
    PATIENCE.saturating_add(Duration::from_millis(ms))
}
