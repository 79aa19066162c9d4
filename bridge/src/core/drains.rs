//! Instances that an operator wants to be without calls before they are stopped.

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
    waiting: Vec<Drain>,
}

#[derive(Debug)]
struct Drain {
    ticket: u64,
    instance: InstanceName,
    generation: Generation,
    registered: bool,
    deadline: Instant,
}

impl Drains {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.waiting.iter().map(|drain| drain.deadline).min()
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
        self.drains.waiting.push(Drain {
            ticket,
            instance,
            generation,
            registered: registered.is_some(),
            deadline: now + within.min(MAX_WAIT),
        });
    }

    /// Answers the drains that are over: no call left, or, where the time is
    /// told, their time.
    pub(super) fn finish_drains(&mut self, now: Option<Instant>) {
        let mut index = 0;
        while let Some(drain) = self.drains.waiting.get(index) {
            let outstanding = self.outstanding(&drain.instance, drain.generation);
            if outstanding > 0 && now.is_none_or(|now| now < drain.deadline) {
                index += 1;
                continue;
            }
            let result = Drained {
                registered: drain.registered,
                outstanding: u32::try_from(outstanding).unwrap_or(u32::MAX),
            };
            let ticket = drain.ticket;
            self.drains.waiting.remove(index);
            self.actions.push(Action::Drained { ticket, result });
        }
    }

    /// Calls that a spawn was sent on any of its connections and has not answered.
    fn outstanding(&self, instance: &InstanceName, generation: Generation) -> usize {
        let own = self
            .connections
            .values()
            .filter(|c| c.who.generation == generation && c.who.instance == *instance);
        own.map(|connection| connection.working_on.len()).sum()
    }
}
