//! Limits and admission: what the resource-controller grants, refuses, or
//! cannot be asked for.
//!
//! A grant outlives the controller: its cgroup is the kernel's. So a restart
//! without a controller keeps its limits, and only a first start goes without.

use blackhole_bus_schema::limits::LimitGrant;
use blackhole_bus_schema::names::InstanceName;
use blackhole_bus_schema::reply::Code;

use super::deps::Service;
use super::instance::{Fate, Grant, Life};
use super::io::{Now, RequestFailure};
use super::perform::prepare;
use super::{CONTROLLER_GRACE, Core};

impl Core {
    /// It is there, perhaps with an empty memory: everything alive is told to
    /// it again (which changes nothing where nothing was lost), before anything new.
    pub(super) fn controller_up(&mut self) {
        self.controller.up = true;
        for instance in self.instances.values_mut() {
            instance.registered = false;
        }
        self.forget_grants();
        self.register_alive();
        self.touch_all();
    }

    /// Limits of what does not run are asked for anew.
    pub(super) fn forget_grants(&mut self) {
        for instance in self.instances.values_mut() {
            let alive = matches!(instance.life(), Life::Live(..) | Life::Sent(Fate::InFlight));
            if !alive && instance.grant != Grant::Asking {
                instance.grant = Grant::Unasked;
            }
        }
    }

    /// Tells the controller of everything alive that it has not been told of in
    /// its present life.
    pub(super) fn register_alive(&mut self) {
        if !self.controller.up {
            return;
        }
        for (name, instance) in &mut self.instances {
            let config = self.services.get(name.service()).and_then(Service::config);
            let alive = matches!(instance.life(), Life::Live(..) | Life::Sent(Fate::InFlight));
            if let Some(config) = config
                && alive
                && !instance.surplus
                && !instance.registered
                && instance.grant != Grant::Asking
            {
                instance.registered = true;
                instance.reserved = true;
                self.actions.push(prepare(name, config));
            }
        }
    }

    pub(super) fn controller_down(&mut self, now: Now) {
        if self.controller.up {
            self.controller.grace_until = now.mono.saturating_add(CONTROLLER_GRACE);
        }
        self.controller.up = false;
        for instance in self.instances.values_mut() {
            // Made ahead; a controller that ends in order takes them along.
            if instance.is_gone()
                && instance.restarts.due.is_none()
                && instance.grant != Grant::Asking
            {
                instance.grant = Grant::Unasked;
            }
        }
        self.touch_all();
    }

    pub(super) fn prepare_reply(
        &mut self,
        name: &InstanceName,
        result: Result<Box<LimitGrant>, RequestFailure>,
    ) {
        let Some(instance) = self.instances.get_mut(name) else {
            return;
        };
        self.dirty.insert(name.clone());
        let asked = instance.grant == Grant::Asking;
        match result {
            Ok(grant) => {
                if asked || !instance.is_gone() {
                    instance.grant = Grant::Granted(grant);
                }
            }
            // Its process runs already, and goes on running.
            Err(RequestFailure::Refused(status)) if !asked => {
                instance.why = Some(format!("limits refused while it runs: {}", status.message));
            }
            Err(RequestFailure::Refused(status)) => {
                instance.grant = match status.code {
                    Code::ResourceExhausted | Code::FailedPrecondition => Grant::Refused(status),
                    _ => Grant::Unavailable(status.message),
                };
            }
            Err(RequestFailure::Unknown(why)) => {
                if asked {
                    // When it is away it is waited for; when it is there and
                    // does not answer, its silence must not keep services down.
                    instance.grant = if self.controller.up {
                        Grant::Unavailable(why)
                    } else {
                        Grant::Unasked
                    };
                }
            }
        }
    }

    pub(super) fn release_reply(
        &mut self,
        now: Now,
        name: &InstanceName,
        result: Result<(), RequestFailure>,
    ) {
        let Some(instance) = self.instances.get_mut(name) else {
            return;
        };
        instance.releasing = false;
        self.dirty.insert(name.clone());
        let done = match &result {
            Ok(()) => true,
            Err(RequestFailure::Refused(status)) => status.code == Code::NotFound,
            Err(RequestFailure::Unknown(_)) => false,
        };
        if !done {
            instance.retry.later(now.mono);
            instance.reserved = true;
        }
        if result.is_ok() {
            self.room_was_made();
        }
    }

    /// Something was released: who was refused may ask again.
    pub(super) fn room_was_made(&mut self) {
        for (name, instance) in &mut self.instances {
            if matches!(instance.grant, Grant::Refused(_)) {
                instance.grant = Grant::Unasked;
                self.dirty.insert(name.clone());
            }
        }
    }
}
