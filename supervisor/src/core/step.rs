//! The next step of one instance: what is wanted, compared with what is.

use std::time::Duration;

use blackhole_bus_schema::config::ServiceConfig;
use blackhole_bus_schema::names::{Component, Generation, InstanceName};
use blackhole_bus_schema::process::{Permit, StateName};
use blackhole_bus_schema::reply::{Code, Status};
use blackhole_bus_schema::supervision::{Circuit, Phase};

use super::Core;
use super::deps::{Service, Setup, failed};
use super::instance::{Fate, Grant, Instance, Life, Visible};
use super::io::{ManagerId, Now};
use super::permit::Due;

/// What to do with an instance now.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// Nothing, until something happens or until `wake`.
    Rest(Phase, Option<Duration>),
    /// A spawn that never arrived and is not wanted any more: count it as over.
    Void,
    /// An open circuit has cooled down: allow one trial.
    Trial,
    /// Take a slot of the host-wide bucket.
    Slot,
    /// Ask for limits.
    Prepare,
    /// Start it: a new decision, or the last one again.
    Spawn {
        /// The last one never arrived.
        again: bool,
    },
    /// Note that its end is asked for, whatever ends it.
    Ask(Generation),
    /// Have its calls finished, before it is stopped.
    Drain(Generation),
    /// Stop it.
    Stop {
        /// Which spawn.
        generation: Generation,
        /// For its health.
        unhealthy: bool,
    },
    /// Call back the spawn that is on its way to another manager.
    Recall,
    /// Grant the living generation one restart ahead, or take it back.
    Permit(Generation, Option<Permit>),
    /// It is at rest: give its reservation back.
    Release,
    /// It is gone from the configuration: have its record forgotten.
    Forget,
    /// Forget it here.
    Drop,
}

impl Core {
    /// Does all that can be done with one instance now, publishes what became
    /// of it and marks those who may have waited for it.
    pub(super) fn step(&mut self, now: Now, name: &InstanceName) {
        self.refresh(now, name);
        let (phase, wake) = loop {
            let Some(instance) = self.instances.get(name) else {
                return;
            };
            match self.decide(now, instance) {
                Step::Rest(phase, wake) => break (phase, wake),
                step => self.perform(now, name, step),
            }
        };
        let Some(instance) = self.instances.get_mut(name) else {
            return;
        };
        instance.phase = phase;
        if instance.wake != wake {
            if let Some(at) = instance.wake.take() {
                self.timers.remove(&(at, name.clone()));
            }
            instance.wake = wake;
            if let Some(at) = wake {
                self.timers.insert((at, name.clone()));
            }
        }
        let stuck = |one: &Instance| !one.is_running() && self.obstacle(one).is_some();
        self.alarm |= self.instances.get(name).is_some_and(stuck);
        self.save(name, false);
        self.publish(name);
        self.tell_neighbours(name);
    }

    /// Marks those who may wait for this instance, when something they can see has changed.
    fn tell_neighbours(&mut self, name: &InstanceName) {
        let Some(instance) = self.instances.get(name) else {
            return;
        };
        let visible = Visible {
            phase: instance.phase.clone(),
            life: instance.life(),
            ready: self.is_ready(instance),
            completed: instance.completed,
            bouncing: instance.bouncing(),
        };
        if let Some(instance) = self.instances.get_mut(name)
            && instance.visible.as_ref() != Some(&visible)
        {
            instance.visible = Some(visible);
            self.touch_neighbours(name);
        }
    }

    pub(super) fn touch_neighbours(&mut self, name: &InstanceName) {
        let Some(service) = self.services.get(name.service()) else {
            return;
        };
        let neighbours: Vec<InstanceName> = service
            .foundations
            .iter()
            .chain(&service.dependents)
            .filter_map(|service| self.members.get(service))
            .flatten()
            .cloned()
            .collect();
        self.dirty.extend(neighbours);
    }

    /// Applies what time alone has changed.
    fn refresh(&mut self, now: Now, name: &InstanceName) {
        let Some(instance) = self.instances.get_mut(name) else {
            return;
        };
        let config = self.services.get(name.service()).and_then(Service::config);
        let (true, Some(config)) = (instance.is_running(), config) else {
            instance.stable_at = None;
            return;
        };
        instance.probing.tick(now.mono);
        if !instance.probing.judge_ready(&config.probes) {
            instance.stable_at = None;
            instance.adopted = false;
            return;
        }
        let record = instance.record.as_ref();
        instance.ready_seen = record.map_or(instance.ready_seen, |record| record.generation);
        instance.start_failed = false;
        let reset_after = config.restart_policy.reset_after;
        // One that was adopted has run for a while already.
        let started_at = instance.status_started_at().filter(|_| instance.adopted);
        let ran = Duration::from_nanos(started_at.map_or(0, |at| now.unix_ns.saturating_sub(at)));
        let left = reset_after.saturating_sub(ran);
        let stable_at = *instance
            .stable_at
            .get_or_insert(now.mono.saturating_add(left));
        if stable_at <= now.mono && instance.restarts.stable() {
            instance.why = Some(format!(
                "stable for {}: earlier failures forgotten",
                seconds(reset_after)
            ));
        }
    }

    fn decide(&self, now: Now, instance: &Instance) -> Step {
        let Some(service) = self.services.get(instance.name.service()) else {
            return Step::Drop;
        };
        let wanted = service.wanted && !instance.surplus;
        match instance.life() {
            Life::Live(state, generation) => {
                self.decide_live(now, instance, service, wanted, state, generation)
            }
            Life::Sent(Fate::InFlight) => Step::Rest(Phase::Spawning, None),
            Life::Sent(fate) => {
                if !self.synced(&instance.home) {
                    return Step::Rest(waiting_for_manager(&instance.home), None);
                }
                match (service.config(), wanted && !instance.bouncing(), fate) {
                    (_, _, Fate::Barred) => Step::Void,
                    // Another one is to start it: not before it is certain that this one does not.
                    (Some(config), _, _) if config.manager != instance.home => {
                        self.decide_stop(now, instance, instance.generation, false)
                    }
                    (Some(config), true, _) => {
                        self.decide_start(now, instance, service, config, true)
                    }
                    (_, _, Fate::Absent) => Step::Void,
                    (None, true, _) => Step::Rest(Phase::Idle, None),
                    _ if self.outlived(service) => Step::Rest(Phase::Stopping, None),
                    _ => self.decide_stop(now, instance, instance.generation, false),
                }
            }
            Life::None => self
                .decide_recall(now, instance)
                .unwrap_or_else(|| self.decide_down(now, instance, service, wanted)),
        }
    }

    fn decide_live(
        &self,
        now: Now,
        instance: &Instance,
        service: &Service,
        wanted: bool,
        state: StateName,
        generation: Generation,
    ) -> Step {
        let asked = !wanted || generation <= instance.bounce;
        if asked {
            // One whose calls were finished is of no use any more to whom it would wait for.
            if self.outlived(service) && !instance.drain_begun(generation) {
                return Step::Rest(Phase::Stopping, None);
            }
            if instance.asked < generation && instance.stopping == Some(generation) {
                return Step::Ask(generation);
            }
            return self.decide_stop(now, instance, generation, false);
        }
        if instance.probing.unhealthy() && state == StateName::Running {
            return self.decide_stop(now, instance, generation, true);
        }
        let mut token_at = None;
        if state == StateName::Running && self.synced(&instance.home) && service.config().is_some()
        {
            let permit = match self.permit(now, instance, service, generation) {
                Due::Now(permit) => Some(Some(permit)),
                Due::Never => Some(None),
                Due::At(moment) => {
                    token_at = Some(moment);
                    None
                }
            };
            if let Some(permit) = permit
                && instance.permit != Some((generation, permit.is_some()))
            {
                return Step::Permit(generation, permit);
            }
        }
        let probing = &instance.probing;
        let phase = match state {
            StateName::Spawn => Phase::Spawning,
            StateName::Running if self.is_ready(instance) => Phase::Ready,
            StateName::Running if probing.was_ready() => Phase::NotReady,
            StateName::Running => Phase::Probing,
            StateName::Stopping | StateName::Terminated | StateName::Failed => Phase::Stopping,
        };
        let stable_at = instance.stable_at.filter(|at| *at > now.mono);
        // Silence says nothing of what does not run, nor does it ever pass there.
        let quiet_at = probing.wake().filter(|_| state == StateName::Running);
        let wake = quiet_at.into_iter().chain(stable_at).chain(token_at).min();
        Step::Rest(phase, wake)
    }

    fn decide_stop(
        &self,
        now: Now,
        instance: &Instance,
        generation: Generation,
        unhealthy: bool,
    ) -> Step {
        if instance.stopping == Some(generation) {
            return Step::Rest(Phase::Stopping, None);
        }
        if !self.synced(&instance.home) {
            return Step::Rest(waiting_for_manager(&instance.home), None);
        }
        if let Some(at) = instance.retry.pending(now.mono) {
            return Step::Rest(Phase::Stopping, Some(at));
        }
        if !unhealthy && let Some(step) = self.decide_drain(now, instance, generation) {
            return step;
        }
        Step::Stop {
            generation,
            unhealthy,
        }
    }

    fn decide_down(&self, now: Now, instance: &Instance, service: &Service, wanted: bool) -> Step {
        match (&service.setup, wanted) {
            (Setup::Managed(config), true) => {
                self.decide_start(now, instance, service, config, false)
            }
            (Setup::Managed(_), false) if !instance.surplus => {
                let phase = if service.desired() == blackhole_bus_schema::supervision::Desired::Down
                {
                    Phase::Idle
                } else {
                    Phase::WaitingForDependency {
                        on: self.missing(service),
                    }
                };
                if let Some(step) = self.let_go(now, instance, service, &phase) {
                    return step;
                }
                match service.config() {
                    Some(config) if reserves_nothing(config) => self.limits_ahead(instance, phase),
                    _ => self.at_rest(now, instance, phase),
                }
            }
            (Setup::Left { foreign: true, .. }, _) => Step::Drop,
            (Setup::Left { .. }, _) => Step::Rest(Phase::Idle, None),
            (Setup::Managed(_) | Setup::Removed { .. }, _) => self.decide_leave(now, instance),
        }
    }

    /// What is kept of one that has ended by itself, for a successor that will not come,
    /// is closed by a stop.
    fn let_go(
        &self,
        now: Now,
        instance: &Instance,
        service: &Service,
        phase: &Phase,
    ) -> Option<Step> {
        let settings = &service.config()?.settings;
        let keeps = !settings.sockets.is_empty() || settings.fd_store > 0;
        let generation = instance.generation;
        if !keeps || instance.let_go >= generation || !self.synced(&instance.home) {
            return None;
        }
        Some(match instance.retry.pending(now.mono) {
            Some(at) => Step::Rest(phase.clone(), Some(at)),
            None => Step::Stop {
                generation,
                unhealthy: false,
            },
        })
    }

    /// Gone from the configuration and not alive: its limits and its record go.
    fn decide_leave(&self, now: Now, instance: &Instance) -> Step {
        if instance.generation == Generation::default() && instance.record.is_none() {
            return Step::Drop;
        }
        if instance.forgetting {
            return Step::Rest(Phase::Idle, None);
        }
        match instance.retry.pending(now.mono) {
            Some(at) => Step::Rest(Phase::Idle, Some(at)),
            None if self.holds_room(instance) => Step::Release,
            None if !self.synced(&instance.home) => {
                Step::Rest(waiting_for_manager(&instance.home), None)
            }
            None => Step::Forget,
        }
    }

    /// It may be started at any time and takes nothing from others until then: its
    /// limits are made ahead, so that its start does not wait for them.
    fn limits_ahead(&self, instance: &Instance, phase: Phase) -> Step {
        let ask = self.controller.up && !instance.releasing && instance.grant == Grant::Unasked;
        match ask {
            true => Step::Prepare,
            false => Step::Rest(phase, None),
        }
    }

    /// It will not run until somebody does something: its reservation is free for others.
    fn at_rest(&self, now: Now, instance: &Instance, phase: Phase) -> Step {
        if !self.holds_room(instance) {
            return Step::Rest(phase, None);
        }
        match instance.retry.pending(now.mono) {
            Some(at) => Step::Rest(phase, Some(at)),
            None => Step::Release,
        }
    }

    /// Whether the resource-controller keeps a reservation that can be given
    /// back now: not while an answer is on its way, lest the two pass each other.
    fn holds_room(&self, instance: &Instance) -> bool {
        self.controller.up
            && !instance.releasing
            && instance.grant != Grant::Asking
            && (instance.reserved || matches!(instance.grant, Grant::Granted(_)))
    }

    fn decide_start(
        &self,
        now: Now,
        instance: &Instance,
        service: &Service,
        config: &ServiceConfig,
        again: bool,
    ) -> Step {
        if instance.completed {
            return self.at_rest(now, instance, Phase::Idle);
        }
        if instance.restarts.circuit == Circuit::Open && !again {
            return match instance.restarts.trial_at(&config.restart_policy) {
                Some(at) if at.mono <= now.mono => Step::Trial,
                Some(at) => Step::Rest(Phase::CircuitOpen, Some(at.mono)),
                None => self.at_rest(now, instance, Phase::CircuitOpen),
            };
        }
        if instance.spent {
            let phase = if failed(instance) {
                Phase::GaveUp
            } else {
                Phase::Idle
            };
            return self.at_rest(now, instance, phase);
        }
        let due = instance.restarts.due;
        if let Some(due) = due
            && due.mono > now.mono
        {
            let phase = Phase::BackingOff {
                attempt: instance.restarts.attempts,
                until: due.unix_ns,
            };
            return Step::Rest(phase, Some(due.mono));
        }
        let missing = self.missing(service);
        if !missing.is_empty() {
            let phase = Phase::WaitingForDependency { on: missing };
            return match reserves_nothing(config) {
                true => self.limits_ahead(instance, phase),
                false => Step::Rest(phase, None),
            };
        }
        if !self.synced(&config.manager) {
            return Step::Rest(waiting_for_manager(&config.manager), None);
        }
        if let Some(at) = instance.retry.pending(now.mono) {
            let phase = match &instance.refused {
                Some(status) => Phase::Refused {
                    reason: status.message.clone(),
                },
                None => Phase::Spawning,
            };
            return Step::Rest(phase, Some(at));
        }
        if due.is_some() && !instance.restarts.slot && !again {
            return Step::Slot;
        }
        self.decide_limits(now, instance, config)
            .unwrap_or(Step::Spawn { again })
    }

    /// What is still to be done about limits before it can be started.
    fn decide_limits(&self, now: Now, instance: &Instance, config: &ServiceConfig) -> Option<Step> {
        let required = config.limits.required;
        match &instance.grant {
            Grant::Granted(_) => None,
            Grant::Asking => Some(Step::Rest(Phase::Preparing, None)),
            Grant::Refused(status) => Some(Step::Rest(
                Phase::Refused {
                    reason: status.message.clone(),
                },
                None,
            )),
            Grant::Unavailable(reason) if required => {
                let reason = format!("limits are required and could not be made: {reason}");
                Some(Step::Rest(Phase::Refused { reason }, None))
            }
            Grant::Unavailable(_) => None,
            Grant::Unasked if instance.releasing => Some(Step::Rest(Phase::Preparing, None)),
            Grant::Unasked if self.controller.up => Some(Step::Prepare),
            Grant::Unasked if now.mono < self.controller.grace_until => {
                let phase = waiting_for(Component::ResourceController);
                Some(Step::Rest(phase, Some(self.controller.grace_until)))
            }
            Grant::Unasked if required => Some(Step::Rest(
                Phase::Refused {
                    reason: REQUIRED_WITHOUT_CONTROLLER.to_owned(),
                },
                None,
            )),
            Grant::Unasked => None,
        }
    }
}

/// Whether admission has nothing to count for it.
fn reserves_nothing(config: &ServiceConfig) -> bool {
    let limits = &config.limits;
    limits.cpu_request_percent.is_none() && limits.memory_request_bytes.is_none()
}

/// Shown where a service with `limits: required` cannot be started.
const REQUIRED_WITHOUT_CONTROLLER: &str =
    "limits are required and the resource-controller is not there: start it";

impl Instance {
    /// Why it is refused, as an answer to an operator.
    pub(super) fn refusal(&self) -> Option<Status> {
        let Phase::Refused { reason } = &self.phase else {
            return None;
        };
        let code = match (&self.grant, &self.refused) {
            (Grant::Refused(status), _) | (_, Some(status)) => status.code,
            _ => Code::FailedPrecondition,
        };
        Some(Status::new(
            code,
            format!("{} was refused: {reason}", self.name),
        ))
    }

    fn status_started_at(&self) -> Option<u64> {
        match self.record.as_ref()?.state {
            blackhole_bus_schema::process::ProcessState::Running { started_at, .. } => {
                Some(started_at)
            }
            _ => None,
        }
    }
}

/// What a start, a stop or a word of its end waits for.
fn waiting_for_manager(manager: &ManagerId) -> Phase {
    waiting_for(Component::ProcessManager(manager.clone()))
}

pub(super) fn waiting_for(component: Component) -> Phase {
    Phase::WaitingForComponent {
        component: component.to_string(),
    }
}

/// A duration for a person: `1.0 s`.
pub(super) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
