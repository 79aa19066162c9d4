//! What is right in a configuration and probably not meant, with its places.

use std::fmt;
use std::path::Path;

use blackhole_bus_schema::config::{Document, Places};

use crate::context::Context;

/// A note, for a person. Its text is one line: place, keys, what it means, what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noted {
    /// Line and column, from 1, where there are any.
    pub place: Option<(u64, u64)>,
    /// The keys that lead to it.
    pub keys: Vec<String>,
    /// What it means.
    pub message: String,
    /// What to do about it; may be empty.
    pub hint: String,
    name: String,
}

/// All notes on the configuration in the file at `path`, in the order of the file.
pub fn of(path: &Path, document: &Document) -> Vec<Noted> {
    let places = Places::load(path).ok();
    let noted = |keys: Vec<String>, message, hint| {
        let parts: Vec<&str> = keys.iter().map(String::as_str).collect();
        Noted {
            place: places.as_ref().and_then(|places| places.of(&parts)),
            keys,
            message,
            hint,
            name: path.display().to_string(),
        }
    };
    let notes = document.notes().into_iter();
    let mut all: Vec<Noted> = notes
        .map(|note| noted(note.keys, note.message, note.hint))
        .collect();
    let misplaced = Context::misplaced(path, &document.config);
    all.extend(misplaced.iter().map(|one| {
        let keys = ["services", one.service.as_str(), "command"];
        let keys = keys.map(str::to_owned).to_vec();
        noted(keys, one.text(), String::new())
    }));
    all.sort_by_key(|one| one.place);
    all
}

impl fmt::Display for Noted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name)?;
        if let Some((line, column)) = self.place {
            write!(formatter, ":{line}:{column}")?;
        }
        write!(formatter, ": {}: {}", self.keys.join("."), self.message)?;
        match self.hint.as_str() {
            "" => Ok(()),
            hint => write!(formatter, " ({hint})"),
        }
    }
}
