//! A spawn that is on its way to one process-manager while the same lives at another.
//!
//! A shim used its permit at the one, which had not told it yet, and the same restart
//! was decided for the other, to which the configuration has given the service. As long
//! as the first one lives, the second refuses: the instance's lock tells it. But the
//! first may end while the request is still on its way, or waits for a fork server. So
//! nothing is started in its place before the second manager has answered: either that
//! spawn was refused, or a stop of it was answered, after which this manager does not begin
//! it. Should it live in spite of that (that manager, or the supervisor, was replaced
//! meanwhile), it is met as what it is: see [`Instance::ended_at`].

use blackhole_bus_schema::names::{Generation, InstanceName};
use blackhole_bus_schema::process::InstanceRecord;
use blackhole_bus_schema::reply::Code;
use blackhole_bus_schema::supervision::Phase;

use super::Core;
use super::instance::{Fate, Instance, Life};
use super::io::{Action, ManagerId, Now, RequestFailure};
use super::step::Step;

/// A spawn that is to be called back before another one is decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Recall {
    manager: ManagerId,
    generation: Generation,
    /// Its stop is on its way.
    asked: bool,
}

impl Instance {
    /// It lives, or has lived, at another manager than its home, which may have a spawn of
    /// it on the way.
    pub(super) fn remember_sent(&mut self) {
        if let Life::Sent(Fate::InFlight | Fate::Unknown) = self.life() {
            self.recall = Some(Recall {
                manager: self.home.clone(),
                generation: self.generation,
                asked: false,
            });
        }
    }

    /// A manager has refused a spawn: that one is not on its way any more.
    pub(super) fn refused_by(&mut self, manager: &ManagerId, generation: Generation) {
        self.recall
            .take_if(|recall| recall.manager == *manager && recall.generation == generation);
    }
}

impl Core {
    /// What has to be done about a spawn on its way elsewhere, while `instance` is not alive
    /// and whether it is wanted or not. Where that manager is away nothing is waited for:
    /// the lock keeps two apart, and what it has begun it tells when it is back.
    pub(super) fn decide_recall(&self, now: Now, instance: &Instance) -> Option<Step> {
        let recall = instance.recall.as_ref()?;
        if !self.synced(&recall.manager) {
            return None;
        }
        let at = instance.retry.pending(now.mono);
        Some(match recall.asked || at.is_some() {
            true => Step::Rest(Phase::Stopping, at),
            false => Step::Recall,
        })
    }

    /// Has the spawn stopped, or never begun.
    pub(super) fn recall(&mut self, name: &InstanceName, grace_ms: u64) {
        let Some(instance) = self.instances.get_mut(name) else {
            return;
        };
        let Some(recall) = &mut instance.recall else {
            return;
        };
        recall.asked = true;
        let (manager, generation) = (recall.manager.clone(), recall.generation);
        instance.retry.at = None;
        self.save(name, false);
        self.actions.push(Action::Stop {
            manager,
            instance: name.clone(),
            generation,
            unhealthy: false,
            stop: None,
            grace_ms,
        });
    }

    /// The answer to the stop of a spawn that was called back. Tells whether it is one.
    pub(super) fn recalled(
        &mut self,
        now: Now,
        manager: &ManagerId,
        name: &InstanceName,
        generation: Generation,
        result: &Result<Box<InstanceRecord>, RequestFailure>,
    ) -> bool {
        let Some(instance) = self.instances.get_mut(name) else {
            return false;
        };
        let ours = |recall: &&mut Recall| {
            recall.asked && recall.manager == *manager && recall.generation == generation
        };
        let Some(recall) = instance.recall.as_mut().filter(ours) else {
            return false;
        };
        recall.asked = false;
        // Whether the answer proves that it does not run there.
        let gone = match result {
            Ok(record) => record.generation != generation || !record.state.is_live(),
            Err(RequestFailure::Refused(status)) => {
                matches!(status.code, Code::NotFound | Code::FailedPrecondition)
            }
            Err(RequestFailure::Unknown(_)) => false,
        };
        if gone {
            instance.recall = None;
            instance.retry.clear();
        } else {
            instance.retry.later(now.mono);
        }
        self.dirty.insert(name.clone());
        true
    }
}
