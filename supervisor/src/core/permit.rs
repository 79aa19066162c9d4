//! Restarts granted ahead: the shim makes one by itself, without a message in
//! between and whether any daemon lives or not.
//!
//! A permit is granted only where the policy would restart at once whatever else
//! is going on: the next failure is the first in a row, nothing the service
//! depends on has to be looked at first, and the host-wide bucket has a token.
//! Its generation is always the next one. So a supervisor that hears of the
//! failure before it hears of the successor decides the very same spawn, and the
//! process-manager, which has it already, answers that one; no generation means
//! two things, and what was on the disk before the permit was sent is enough.

use std::time::Duration;

use blackhole_bus_schema::config::{Condition, RestartMode};
use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::process::{InstanceRecord, Permit};

use super::Core;
use super::deps::Service;
use super::end::End;
use super::instance::Instance;
use super::io::Now;

/// Whether an instance should have a permit.
pub(super) enum Due {
    /// No.
    Never,
    /// From this moment on, if the host-wide bucket has a token then. What it has stays.
    At(Duration),
    /// This one.
    Now(Permit),
}

impl Core {
    /// The permit that an instance whose generation `generation` lives should have.
    pub(super) fn permit(
        &self,
        now: Now,
        instance: &Instance,
        service: &Service,
        generation: Generation,
    ) -> Due {
        let Some(config) = service.config() else {
            return Due::Never;
        };
        let policy = &config.restart_policy;
        let at_once = config.restart_mode != RestartMode::Never
            && !config.oneshot
            && policy.max_attempts > 0
            && instance.restarts.is_pristine();
        let on_its_own = service.wanted
            && !instance.surplus
            && instance.home == config.manager
            && generation > instance.bounce.max(instance.asked)
            && service
                .dependencies()
                .iter()
                .all(|(_, on)| on.condition == Condition::Completed);
        // One that was granted stays: its token is taken when it is used.
        let granted = instance.permit == Some((generation, true));
        let token_at = self.storm.next_token(now.mono);
        match at_once && on_its_own {
            false => Due::Never,
            true if !granted && token_at > now.mono => Due::At(token_at),
            true => Due::Now(Permit {
                generation: generation.next(),
                expires_after_ms: None,
            }),
        }
    }

    /// The permit that goes with a spawn.
    pub(super) fn permit_of(
        &self,
        now: Now,
        name: &InstanceName,
        generation: Generation,
    ) -> Option<Permit> {
        let instance = self.instances.get(name)?;
        let service = self.services.get(name.service())?;
        match self.permit(now, instance, service, generation) {
            Due::Now(permit) => Some(permit),
            Due::At(_) | Due::Never => None,
        }
    }

    /// A generation lives (or has lived) that nobody here decided on, or that was decided
    /// again in ignorance of it: a permit was used, or this memory is older than the world.
    /// The failure that led to it counts as any other.
    pub(super) fn succeeded(&mut self, now: Now, name: &InstanceName, record: &InstanceRecord) {
        if let Some(exit) = &record.previous_exit {
            if let Some(instance) = self.instances.get_mut(name)
                && instance.ran_unseen(record)
            {
                instance.presumed = None;
                instance.ended = Generation(exit.generation.0.saturating_sub(1));
            }
            let under_way = self
                .instances
                .get_mut(name)
                .map(|instance| (instance.stopping, instance.drain.take()));
            self.ended(now, name, exit.generation, End::Exit(exit.clone()));
            // What was begun about the one that lives goes on.
            if let (Some(instance), Some((stopping, drain))) =
                (self.instances.get_mut(name), under_way)
            {
                let later = |of: &Generation| *of > exit.generation;
                instance.stopping = instance.stopping.or(stopping.filter(later));
                instance.drain = drain.filter(|_| stopping.is_some_and(|of| later(&of)));
            }
        }
        let Some(instance) = self.instances.get_mut(name) else {
            return;
        };
        if instance.restarts.due.is_some() {
            if !instance.restarts.slot {
                // The token that the permit was granted upon.
                self.storm.reserve(now.mono);
            }
            instance.restarts.spawned();
        }
        instance.generation = record.generation;
        instance.restarts.total = instance.restarts.total.max(record.restarts);
        instance.permit = Some((record.generation, false));
        // The spawn that was decided in its place was the same, or is void.
        instance.retry.clear();
    }
}

impl Instance {
    /// Whether what a record follows upon ran and ended, and counts as never begun here.
    pub(super) fn ran_unseen(&self, record: &InstanceRecord) -> bool {
        let before = record.previous_exit.as_ref().map(|exit| exit.generation);
        self.presumed.is_some() && before == self.presumed && self.presumed == Some(self.ended)
    }
}
