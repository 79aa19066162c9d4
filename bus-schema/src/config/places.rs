//! Where a key stands, for who finds out later that its value does not fit the host.

use std::path::Path;

use super::error::{ConfigError, Place};
use super::tree::{self, Node, Value};

/// The places of all keys of a configuration file.
#[derive(Debug, Clone)]
pub struct Places {
    root: Node,
}

impl Places {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or is no YAML.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&super::read(path)?, &path.display().to_string())
    }

    /// Parses a text; `name` is what errors call it.
    ///
    /// # Errors
    /// When it is no YAML.
    pub fn parse(text: &str, name: &str) -> Result<Self, ConfigError> {
        let root = tree::parse(text).map_err(|problem| problem.locate(name, text))?;
        Ok(Self { root })
    }

    /// Line and column, from 1, of the value that these keys lead to; of its key
    /// where it is a map or a list. An item of a list is named by its number,
    /// from 0. Where a key is missing (its value is a default, or an environment
    /// variable's), the place of the nearest one above it.
    ///
    /// ```
    /// use blackhole_bus_schema::config::Places;
    /// let text = "services:\n  web:\n    command: [a]\n    env_files: [x, y]\n";
    /// let places = Places::parse(text, "test").unwrap();
    /// assert_eq!(places.of(&["services", "web"]), Some((2, 3)));
    /// assert_eq!(places.of(&["services", "web", "env_files", "1"]), Some((4, 20)));
    /// assert_eq!(places.of(&["services", "web", "user"]), Some((2, 3)));
    /// assert_eq!(places.of(&["runtime"]), None);
    /// ```
    pub fn of(&self, keys: &[&str]) -> Option<(u64, u64)> {
        let mut node = &self.root;
        let mut place = None;
        for key in keys {
            let next = match &node.value {
                Value::Map(entries) => entries
                    .iter()
                    .find(|entry| entry.key == *key)
                    .map(|entry| (&entry.node, &entry.key_place)),
                Value::List(items) => {
                    let index = key.parse::<usize>().ok();
                    let item = index.and_then(|index| items.get(index));
                    item.map(|item| (item, &item.place))
                }
                _ => None,
            };
            let Some((below, at)) = next else { break };
            let at = match below.value {
                Value::Map(_) | Value::List(_) | Value::Nothing => at,
                _ => &below.place,
            };
            if let Place::File { line, column, .. } = at {
                place = Some((*line, *column));
            }
            node = below;
        }
        place
    }
}
