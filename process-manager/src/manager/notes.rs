//! What `status` says of this manager beyond its being there.

use std::collections::BTreeMap;

use blackhole_bus_schema::bus::Server;
use blackhole_bus_schema::names::{Generation, InstanceName};

use super::Manager;
use crate::shim::client::Loss;

/// Notes shown at one time; what is more is counted.
const SHOWN: usize = 16;

/// Notes by topic: each says one thing, until it is taken back.
pub(super) struct Notes {
    server: Server,
    notes: BTreeMap<String, String>,
}

impl Notes {
    pub(super) fn new(server: Server) -> Self {
        Self {
            server,
            notes: BTreeMap::new(),
        }
    }

    /// Says something about `topic`, in place of what was said before.
    pub(super) fn set(&mut self, topic: &str, text: String) {
        if self.notes.get(topic) != Some(&text) {
            self.notes.insert(topic.to_owned(), text);
            self.show();
        }
    }

    /// Takes it back.
    pub(super) fn clear(&mut self, topic: &str) {
        if self.notes.remove(topic).is_some() {
            self.show();
        }
    }

    fn show(&self) {
        let mut shown: Vec<String> = self.notes.values().take(SHOWN).cloned().collect();
        if self.notes.len() > SHOWN {
            shown.push(format!("and {} more", self.notes.len() - SHOWN));
        }
        self.server.set_notes(shown);
    }
}

impl Manager {
    /// One that failed is told until it, or the instance, is through once more.
    pub(super) fn hook(&mut self, name: &InstanceName, hook: &str, problem: Option<String>) {
        match problem {
            Some(problem) => {
                let text = format!("{name}: hook {hook}: {problem}");
                tracing::warn!(instance = %name, text, "hook");
                self.notes.set(&format!("{name} {hook}"), text);
            }
            None => self.notes.clear(&format!("{name} {hook}")),
        }
    }

    pub(super) fn loss(&mut self, name: &InstanceName, generation: Generation, loss: &Loss) {
        if *loss == Loss::default() {
            return;
        }
        self.table.lost(name, generation, loss);
        let mut parts = Vec::new();
        if loss.log_lines > 0 {
            let why = loss.log_error.as_deref().unwrap_or("no reason given");
            parts.push(format!("{} log lines lost ({why})", loss.log_lines));
        }
        if let Some(why) = &loss.record_error {
            parts.push(format!("its record cannot be written ({why})"));
        }
        let text = format!("{name}: {}", parts.join(", "));
        if parts.is_empty() {
            return self.notes.clear(&name.to_string());
        }
        tracing::warn!(instance = %name, text, "loss");
        self.notes.set(&name.to_string(), text);
    }
}
