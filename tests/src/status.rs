//! `blackhole status -o json`, typed as far as tests look at it. The design
//! fixes the fields; what is not known is `null`.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

/// A whole status.
#[derive(Clone, PartialEq)]
pub struct Status(pub Value);

impl fmt::Debug for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:#}", self.0)
    }
}

impl Status {
    /// All instances.
    pub fn instances(&self) -> Vec<Instance> {
        let all = self.0.get("services").and_then(Value::as_array);
        all.into_iter().flatten().cloned().map(Instance).collect()
    }

    /// One instance.
    pub fn find(&self, instance: &str) -> Option<Instance> {
        self.instances()
            .into_iter()
            .find(|candidate| candidate.text("instance") == Some(instance))
    }

    /// One instance that is there.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn instance(&self, instance: &str) -> Instance {
        self.find(instance)
            .unwrap_or_else(|| panic!("no {instance} in {self:?}"))
    }

    /// Whether an instance is shown in a state.
    pub fn is(&self, instance: &str, state: &str) -> bool {
        self.find(instance)
            .is_some_and(|found| found.state() == Some(state))
    }

    /// Whether an instance is shown in a phase.
    pub fn is_in(&self, instance: &str, phase: &str) -> bool {
        self.find(instance)
            .is_some_and(|found| found.phase() == Some(phase))
    }

    /// What must not change when a daemon dies: pid and restarts of each
    /// instance that runs.
    pub fn running(&self) -> BTreeMap<String, (u64, u64)> {
        let running = self
            .instances()
            .into_iter()
            .filter(|one| one.state() == Some("RUNNING"));
        running
            .filter_map(|one| Some((one.name()?.to_owned(), (one.pid()?.into(), one.restarts()?))))
            .collect()
    }

    /// The process id of a daemon.
    pub fn component_pid(&self, component: &str) -> Option<u32> {
        let found = self.component(component)?;
        found
            .get("pid")
            .and_then(Value::as_u64)
            .and_then(|pid| pid.try_into().ok())
    }

    /// One daemon as shown.
    pub fn component(&self, component: &str) -> Option<&Value> {
        let all = self.0.get("components").and_then(Value::as_array)?;
        all.iter().find(|one| {
            one.get("instance").and_then(Value::as_str) == Some(component)
                || one.get("component").and_then(Value::as_str) == Some(component)
        })
    }
}

/// One instance of a service.
#[derive(Clone, PartialEq)]
pub struct Instance(pub Value);

impl fmt::Debug for Instance {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:#}", self.0)
    }
}

impl Instance {
    /// A field that is a text.
    pub fn text(&self, field: &str) -> Option<&str> {
        self.0.get(field).and_then(Value::as_str)
    }

    /// `web.1`.
    pub fn name(&self) -> Option<&str> {
        self.text("instance")
    }

    /// `RUNNING` …
    pub fn state(&self) -> Option<&str> {
        self.text("state")
    }

    /// The phase's word.
    pub fn phase(&self) -> Option<&str> {
        self.text("phase")
    }

    /// The process id, where there is a process.
    pub fn pid(&self) -> Option<u32> {
        self.0
            .get("pid")
            .and_then(Value::as_u64)
            .and_then(|pid| pid.try_into().ok())
    }

    /// Restarts after failures.
    pub fn restarts(&self) -> Option<u64> {
        self.0.get("restarts").and_then(Value::as_u64)
    }

    /// How it last ended, as text: whatever form it has, a test looks for words in it.
    pub fn last_exit(&self) -> Option<String> {
        match self.0.get("last_exit")? {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        }
    }
}
