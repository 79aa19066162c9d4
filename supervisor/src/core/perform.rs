//! Doing a step: state first, then the row that remembers it, then the send.

use blackhole_bus_schema::config::ServiceConfig;
use blackhole_bus_schema::limits::LimitGrant;
use blackhole_bus_schema::names::{Generation, InstanceName, ServiceName};
use blackhole_bus_schema::process::{SpawnSpec, StopSpec};
use blackhole_bus_schema::supervision::{InstanceStatus, Phase};

use super::Core;
use super::deps::Service;
use super::instance::{Fate, Grant, Instance, Retry};
use super::io::{Action, ManagerId, Now};
use super::saved::Change;
use super::step::{Step, seconds};

/// Time for the stop of an instance whose configuration is not known, in milliseconds.
const UNKNOWN_GRACE_MS: u64 = 60_000;

impl Core {
    pub(super) fn perform(&mut self, now: Now, name: &InstanceName, step: Step) {
        if matches!(step, Step::Drop) {
            return self.leave(name);
        }
        let Some(instance) = self.instances.get_mut(name) else {
            return;
        };
        let config = self.services.get(name.service()).and_then(Service::config);
        match step {
            Step::Rest(..) | Step::Drop => {}
            Step::Void => {
                instance.ended = instance.generation;
                instance.refused = None;
                instance.retry.clear();
            }
            Step::Trial => {
                instance.restarts.half_open(now);
                instance.why = Some("cooled down: one trial".to_owned());
            }
            Step::Slot => {
                let slot = self.storm.reserve(now.mono);
                instance.restarts.slot = true;
                if slot > now.mono {
                    let wait = slot.saturating_sub(now.mono);
                    instance.restarts.due = Some(now.after(wait));
                    instance.why = Some(format!(
                        "restart put off by {}: too many restarts on this host",
                        seconds(wait)
                    ));
                }
            }
            Step::Prepare => {
                if let Some(config) = config {
                    instance.grant = Grant::Asking;
                    instance.registered = true;
                    instance.reserved = true;
                    self.actions.push(prepare(name, config));
                }
            }
            Step::Spawn { again } => self.spawn(now, name, again),
            Step::Ask(generation) => {
                instance.asked = instance.asked.max(generation);
                self.save(name, false);
            }
            Step::Drain(generation) => self.drain(now, name, generation),
            Step::Stop {
                generation,
                unhealthy,
            } => self.stop(now, name, generation, unhealthy),
            Step::Recall => {
                let grace_ms = config.map_or(UNKNOWN_GRACE_MS, |config| config.stop.grace_ms);
                self.recall(name, grace_ms);
            }
            Step::Permit(generation, permit) => {
                instance.permit = Some((generation, permit.is_some()));
                let manager = instance.home.clone();
                // What the permit follows from, before it can be used.
                self.save(name, false);
                self.actions.push(Action::Permit {
                    manager,
                    instance: name.clone(),
                    generation,
                    permit,
                });
            }
            Step::Release => {
                instance.grant = Grant::Unasked;
                instance.registered = false;
                instance.reserved = false;
                instance.releasing = true;
                self.actions.push(Action::Release {
                    instance: name.clone(),
                });
            }
            Step::Forget => {
                instance.forgetting = true;
                self.actions.push(Action::Forget {
                    manager: instance.home.clone(),
                    instance: name.clone(),
                });
            }
        }
    }

    fn spawn(&mut self, now: Now, name: &InstanceName, again: bool) {
        let Some(instance) = self.instances.get_mut(name) else {
            return;
        };
        let Some(config) = self.services.get(name.service()).and_then(Service::config) else {
            return;
        };
        let what = if again {
            format!(
                "start again: nothing was heard of generation {}",
                instance.generation
            )
        } else {
            if instance.home != config.manager {
                instance.moves(&config.manager);
            }
            instance.generation = instance.generation.next();
            instance.recall = None;
            if instance.restarts.spawned() {
                let (attempt, most) = (
                    instance.restarts.attempts,
                    config.restart_policy.max_attempts,
                );
                format!("restart {attempt} of {most}")
            } else {
                "start".to_owned()
            }
        };
        // One that follows at once from something keeps that as its reason.
        instance.why.get_or_insert(what);
        instance.fate = Fate::InFlight;
        instance.again = again;
        instance.retry.at = None;
        let grant = match &instance.grant {
            Grant::Granted(grant) => Some((**grant).clone()),
            _ => None,
        };
        if grant.is_none() {
            // Asked for anew at the next start.
            instance.grant = Grant::Unasked;
        }
        let manager = instance.home.clone();
        let mut spec = spec(instance, config, grant);
        spec.permit = self.permit_of(now, name, spec.generation);
        if let Some(instance) = self.instances.get_mut(name) {
            instance.permit = Some((spec.generation, spec.permit.is_some()));
        }
        self.save(name, false);
        self.actions.push(Action::Spawn(manager, Box::new(spec)));
    }

    fn stop(&mut self, now: Now, name: &InstanceName, generation: Generation, unhealthy: bool) {
        let Some(instance) = self.instances.get_mut(name) else {
            return;
        };
        let config = self.services.get(name.service()).and_then(Service::config);
        instance.stopping = Some(generation);
        instance.retry.at = None;
        if unhealthy {
            let detail = instance.probing.detail().unwrap_or("no answer");
            instance.why = Some(format!("unhealthy, stopped to be restarted: {detail}"));
        } else {
            instance.asked = instance.asked.max(generation);
            instance.why.get_or_insert_with(|| "stop".to_owned());
        }
        // One that is in no configuration any more brought its own with its
        // spawn, unknown here: allow for a long one.
        let grace_ms = config.map_or(UNKNOWN_GRACE_MS, |config| config.stop.grace_ms);
        let wanted = self.is_wanted(name);
        let Some(instance) = self.instances.get_mut(name) else {
            return;
        };
        if !wanted {
            instance.let_go = instance.let_go.max(generation);
        }
        // What its calls took is part of the grace.
        let took = instance.drained_for(now, generation);
        let stop = took.zip(config).map(|(took, config)| StopSpec {
            grace_ms: config.stop.grace_ms.saturating_sub(took),
            ..config.stop.clone()
        });
        let manager = instance.home.clone();
        self.save(name, false);
        self.actions.push(Action::Stop {
            manager,
            instance: name.clone(),
            generation,
            unhealthy,
            stop,
            grace_ms,
        });
    }

    /// Whether an instance that ends now is to run again.
    pub fn is_wanted(&self, name: &InstanceName) -> bool {
        let service = self.services.get(name.service());
        let instance = self.instances.get(name);
        service.is_some_and(|service| service.wanted && service.config().is_some())
            && instance.is_some_and(|instance| !instance.surplus)
    }

    /// The process-manager that has an instance.
    pub fn home(&self, name: &InstanceName) -> Option<ManagerId> {
        Some(self.instances.get(name)?.home.clone())
    }

    /// Whether there is a service of this name.
    pub fn knows(&self, service: &ServiceName) -> bool {
        self.services.contains_key(service)
    }

    /// Whether a service of the configuration can be told to read its own again.
    pub fn can_reload(&self, service: &ServiceName) -> bool {
        let config = self.services.get(service).and_then(Service::config);
        config.is_some_and(|config| config.settings.reload.is_some())
    }

    /// The last word about an instance that is forgotten.
    fn leave(&mut self, name: &InstanceName) {
        if let Some(instance) = self.instances.get_mut(name) {
            instance.phase = Phase::Idle;
            instance.why = Some("gone".to_owned());
        }
        self.publish(name);
        self.remove(name);
    }

    /// Writes an instance down, if what is to be remembered of it has changed.
    pub(super) fn save(&mut self, name: &InstanceName, durable: bool) {
        let Some(instance) = self.instances.get_mut(name) else {
            return;
        };
        let row = instance.to_saved();
        let never_started = row.generation == Generation::default() && instance.saved.is_none();
        if never_started || instance.saved.as_ref() == Some(&row) {
            return;
        }
        instance.saved = Some(row.clone());
        self.actions.push(Action::Persist {
            change: Change::Instance(Box::new(row)),
            durable,
        });
    }

    /// Publishes the status of an instance, if it has changed.
    pub(super) fn publish(&mut self, name: &InstanceName) {
        let Some(status) = self.status(name) else {
            return;
        };
        let Some(instance) = self.instances.get_mut(name) else {
            return;
        };
        if instance.published.as_ref() == Some(&status) {
            // Nothing came of it; it must not explain a later change.
            instance.why = None;
            return;
        }
        let why = match instance.why.take() {
            Some(why) => why,
            None => match &instance.published {
                Some(before) if differs_in_words_only(before, &status) => {
                    match status.detail.as_deref() {
                        Some(words) if instance.said() == Some(words) => format!("says: {words}"),
                        // What a probe found, or what is to come.
                        Some(words) => words.to_owned(),
                        None => "says: nothing more".to_owned(),
                    }
                }
                _ => describe(&status),
            },
        };
        if self.cause.is_some() {
            instance.cause = self.cause;
        }
        let cause = instance.cause;
        instance.published = Some(status.clone());
        self.actions.push(Action::Publish {
            status: Box::new(status),
            why,
            cause,
        });
    }
}

/// Whether nothing has changed but what the service says of itself, or is said of it.
fn differs_in_words_only(before: &InstanceStatus, now: &InstanceStatus) -> bool {
    before.detail != now.detail
        && InstanceStatus {
            detail: now.detail.clone(),
            ..before.clone()
        } == *now
}

/// The command that asks for an instance's limits.
pub(super) fn prepare(name: &InstanceName, config: &ServiceConfig) -> Action {
    Action::Prepare {
        instance: name.clone(),
        limits: config.limits.clone(),
        oom_score_adj: config.oom_score_adj,
    }
}

fn spec(instance: &Instance, config: &ServiceConfig, grant: Option<LimitGrant>) -> SpawnSpec {
    SpawnSpec {
        instance: instance.name.clone(),
        generation: instance.generation,
        command: config.command.clone(),
        env: config.env.clone(),
        working_dir: config.working_dir.clone(),
        user: config.user.clone(),
        group: config.group.clone(),
        open_files: config.open_files,
        stop: config.stop.clone(),
        success_codes: config.success_codes.clone(),
        probes: config.probes.clone(),
        logs: config.logs.clone(),
        grant,
        permit: None,
        restarts: instance.restarts.total,
        settings: config.settings.clone(),
    }
}

/// What happened, where no better words were left.
pub(super) fn describe(status: &InstanceStatus) -> String {
    match &status.phase {
        Phase::WaitingForDependency { on } => format!("waits for {}", on.join(", ")),
        Phase::WaitingForComponent { component } => format!("waits for {component}"),
        Phase::Refused { reason } => format!("refused: {reason}"),
        Phase::Probing | Phase::NotReady => match &status.detail {
            Some(detail) => format!("{}: {detail}", status.phase.word()),
            None => status.phase.word().to_owned(),
        },
        phase => phase.word().to_owned(),
    }
}

impl Retry {
    /// Nothing is put off any more, for whoever waits on capacity.
    pub(super) fn at_once(&mut self) {
        self.at = None;
    }
}
