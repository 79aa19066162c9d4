//! What `status` says of this manager beyond its being there.

use std::collections::BTreeMap;

use blackhole_bus_schema::bus::Server;

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
