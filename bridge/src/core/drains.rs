//! Instances that an operator wants to be without calls before they are stopped.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::registry::Drained;

use super::{Action, Core};

/// Longest wait for the calls of one instance.
const MAX_WAIT: Duration = Duration::from_secs(24 * 3600);

/// Whoever waits for the end of an instance's calls. As many as commands are
/// under way; each has its time.
#[derive(Debug, Default)]
pub(super) struct Drains {
    waiting: BTreeMap<u64, Drain>,
    of_instance: HashMap<InstanceName, Vec<u64>>,
    deadlines: BTreeSet<(Instant, u64)>,
    /// Instances that have fewer calls than when they were looked at, or were not.
    changed: HashSet<InstanceName>,
}

#[derive(Debug)]
struct Drain {
    instance: InstanceName,
    generation: Generation,
    registered: bool,
    deadline: Instant,
}

impl Drains {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// An instance has a call less.
    pub(super) fn fewer(&mut self, instance: &InstanceName) {
        if self.of_instance.contains_key(instance) && !self.changed.contains(instance) {
            self.changed.insert(instance.clone());
        }
    }

    fn remove(&mut self, ticket: u64) -> Option<Drain> {
        let drain = self.waiting.remove(&ticket)?;
        self.deadlines.remove(&(drain.deadline, ticket));
        if let Some(tickets) = self.of_instance.get_mut(&drain.instance) {
            tickets.retain(|other| *other != ticket);
            if tickets.is_empty() {
                self.of_instance.remove(&drain.instance);
            }
        }
        Some(drain)
    }
}

impl Core {
    /// Sends a spawn of an instance no more calls, tells it so, and answers with
    /// [`Action::Drained`] when it has none left or the time is over.
    pub fn drain(
        &mut self,
        now: Instant,
        ticket: u64,
        instance: InstanceName,
        generation: Generation,
        within: Duration,
    ) {
        let registered = self.directory.drain_spawn(&instance, generation);
        if let Some((conn, news)) = registered
            && news
        {
            self.announce(&instance);
            let reason = format!("{instance} is being stopped: finish what you have");
            self.go_away(conn, &reason);
        }
        let drain = Drain {
            instance: instance.clone(),
            generation,
            registered: registered.is_some(),
            deadline: now + within.min(MAX_WAIT),
        };
        let drains = &mut self.drains;
        drains.deadlines.insert((drain.deadline, ticket));
        let tickets = drains.of_instance.entry(instance.clone());
        tickets.or_default().push(ticket);
        drains.waiting.insert(ticket, drain);
        drains.changed.insert(instance);
    }

    /// Answers the drains of instances that have no call left.
    pub(super) fn finish_drains(&mut self) {
        if self.drains.changed.is_empty() {
            return;
        }
        let changed = std::mem::take(&mut self.drains.changed);
        let of_instance = &self.drains.of_instance;
        let tickets = changed.iter().filter_map(|name| of_instance.get(name));
        let mut tickets: Vec<u64> = tickets.flatten().copied().collect();
        tickets.sort_unstable();
        for ticket in tickets {
            if self.outstanding(ticket) == Some(0) {
                self.finish_drain(ticket);
            }
        }
    }

    /// Answers those whose time is over.
    pub(super) fn end_drains(&mut self, now: Instant) {
        while let Some((at, ticket)) = self.drains.deadlines.first().copied()
            && at <= now
        {
            self.finish_drain(ticket);
        }
    }

    fn finish_drain(&mut self, ticket: u64) {
        let outstanding = self.outstanding(ticket).unwrap_or(0);
        if let Some(drain) = self.drains.remove(ticket) {
            let result = Drained {
                registered: drain.registered,
                outstanding: u32::try_from(outstanding).unwrap_or(u32::MAX),
            };
            self.actions.push(Action::Drained { ticket, result });
        }
    }

    /// Calls that a drained spawn was sent on any of its connections and has not answered.
    fn outstanding(&self, ticket: u64) -> Option<usize> {
        let Drain {
            instance,
            generation,
            ..
        } = self.drains.waiting.get(&ticket)?;
        let own = self
            .presence
            .connections(instance)
            .filter_map(|conn| self.connections.get(&conn))
            .filter(|connection| connection.who.generation == *generation);
        Some(own.map(|connection| connection.working_on.len()).sum())
    }
}
