//! Reading the tree: typed getters whose errors name the path, what was found
//! and what is expected.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::error::{Place, Problem};
use super::tree::{Entry, Node, Value, join, shortened};
use super::units;

/// A value with the path of keys that led to it.
#[derive(Debug, Clone)]
pub(super) struct Field<'a> {
    pub(super) node: &'a Node,
    pub(super) path: String,
}

/// A map with a fixed set of keys.
#[derive(Debug, Clone)]
pub(super) struct Section<'a> {
    entries: &'a [Entry],
    path: String,
    place: Place,
}

/// Why a text was refused: what is expected instead.
type Expected = &'static str;

impl<'a> Field<'a> {
    pub(super) fn new(node: &'a Node, path: impl Into<String>) -> Self {
        Self {
            node,
            path: path.into(),
        }
    }

    /// An error about this value.
    pub(super) fn problem(&self, message: impl Into<String>) -> Problem {
        Problem::new(self.node.place.clone(), &self.path, message)
    }

    /// `found …, expected …`.
    pub(super) fn expected(&self, expected: impl std::fmt::Display) -> Problem {
        self.problem(format!("found {}, expected {expected}", self.node))
    }

    /// A text, not empty and without NUL.
    pub(super) fn text(&self) -> Result<&'a str, Problem> {
        let Value::Text(text) = &self.node.value else {
            return Err(self.expected("a text"));
        };
        self.no_nul(text)?;
        if text.trim().is_empty() {
            return Err(self.problem("is empty"));
        }
        Ok(text)
    }

    /// A scalar as it is written: text, number or boolean, possibly empty.
    pub(super) fn word(&self) -> Result<&'a str, Problem> {
        match &self.node.value {
            Value::Text(text)
            | Value::Integer(_, text)
            | Value::Float(_, text)
            | Value::Boolean(_, text) => {
                self.no_nul(text)?;
                Ok(text)
            }
            Value::Nothing => Err(self
                .expected("a value")
                .hint("write \"\" for an empty text")),
            Value::List(_) | Value::Map(_) => Err(self.expected("a text, number, true or false")),
        }
    }

    fn no_nul(&self, text: &str) -> Result<(), Problem> {
        match text.contains('\0') {
            true => Err(self.problem("holds a NUL character, which no argument or path can")),
            false => Ok(()),
        }
    }

    pub(super) fn boolean(&self) -> Result<bool, Problem> {
        match self.node.value {
            Value::Boolean(value, _) => Ok(value),
            _ => Err(self.expected("true or false")),
        }
    }

    /// A whole number in a range.
    pub(super) fn integer<T>(&self, range: RangeInclusive<T>) -> Result<T, Problem>
    where
        T: TryFrom<i128> + PartialOrd + std::fmt::Display,
    {
        let wanted = || format!("a whole number from {} to {}", range.start(), range.end());
        match self.node.value {
            Value::Integer(value, _) => T::try_from(value)
                .ok()
                .filter(|value| range.contains(value))
                .ok_or_else(|| self.expected(wanted())),
            _ => Err(self.unquoted(self.expected(wanted()))),
        }
    }

    /// Adds a hint where a text looks like the number that it should be.
    fn unquoted(&self, problem: Problem) -> Problem {
        match &self.node.value {
            Value::Text(text) if text.parse::<f64>().is_ok() => {
                problem.hint("write it without quotes")
            }
            _ => problem,
        }
    }

    /// A number in a range.
    pub(super) fn number(&self, range: RangeInclusive<f64>) -> Result<f64, Problem> {
        let value = match self.node.value {
            Value::Integer(value, _) => Some(value as f64),
            Value::Float(value, _) => Some(value),
            _ => None,
        };
        value.filter(|value| range.contains(value)).ok_or_else(|| {
            self.expected(format_args!(
                "a number from {} to {}",
                range.start(),
                range.end()
            ))
        })
    }

    fn unit<T>(
        &self,
        read: fn(&str) -> Result<T, Expected>,
        example: &str,
        zero_is_fine: Option<T>,
    ) -> Result<T, Problem> {
        match &self.node.value {
            Value::Text(text) => read(text).map_err(|expected| self.expected(expected)),
            Value::Integer(0, _) if zero_is_fine.is_some() => {
                zero_is_fine.ok_or_else(|| self.expected(example))
            }
            Value::Integer(_, raw) | Value::Float(_, raw) => Err(self
                .problem(format!("{} has no unit", shortened(raw)))
                .hint(format!("write for instance {example}"))),
            _ => read("").map_err(|expected| self.expected(expected)),
        }
    }

    /// A duration in a range. `0` needs no unit where zero is in the range.
    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Result<Duration, Problem> {
        let zero = range.contains(&Duration::ZERO).then_some(Duration::ZERO);
        let raw = match &self.node.value {
            Value::Integer(_, raw) | Value::Float(_, raw) => raw,
            _ => "10",
        };
        let example = format!("{0}s or {0}ms", shortened(raw));
        let value = self.unit(units::duration, &example, zero)?;
        if !range.contains(&value) {
            let (start, end) = (units::show(*range.start()), units::show(*range.end()));
            return Err(self.expected(format_args!("a duration from {start} to {end}")));
        }
        Ok(value)
    }

    /// A size in bytes, in a range.
    pub(super) fn size(&self, range: RangeInclusive<u64>) -> Result<u64, Problem> {
        let value = self.unit(units::size, "16MiB or 10MB", None)?;
        if !range.contains(&value) {
            let (start, end) = (range.start(), range.end());
            return Err(self.expected(format_args!("a size from {start} to {end} bytes")));
        }
        Ok(value)
    }

    /// `10%`.
    pub(super) fn percent(&self) -> Result<u8, Problem> {
        self.unit(units::percent, "10%", None)
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, Problem> {
        let words = choices.iter().map(|(word, _)| *word).collect::<Vec<_>>();
        let Value::Text(text) = &self.node.value else {
            return Err(self.expected(format_args!("one of {}", words.join(", "))));
        };
        choices
            .iter()
            .find(|(word, _)| word == text)
            .map(|(_, value)| *value)
            .ok_or_else(|| {
                let problem = self.expected(format_args!("one of {}", words.join(", ")));
                match nearest(text, &words) {
                    Some(near) => problem.hint(format!("did you mean {near}?")),
                    None => problem,
                }
            })
    }

    /// The items of a list.
    pub(super) fn list(&self, hint: &str) -> Result<Vec<Field<'a>>, Problem> {
        match &self.node.value {
            Value::List(items) => Ok(items
                .iter()
                .enumerate()
                .map(|(index, node)| Field {
                    node,
                    path: format!("{}[{index}]", self.path),
                })
                .collect()),
            _ => Err(self.expected("a list").hint(hint)),
        }
    }

    /// The entries of a map whose keys are free. Nothing is an empty map.
    pub(super) fn entries(&self, expected: &str) -> Result<Vec<(&'a Entry, Field<'a>)>, Problem> {
        match &self.node.value {
            Value::Map(entries) => Ok(entries
                .iter()
                .map(|entry| (entry, Field::new(&entry.node, join(&self.path, &entry.key))))
                .collect()),
            Value::Nothing => Ok(Vec::new()),
            _ => Err(self.expected(expected)),
        }
    }

    /// Where the value that these keys lead to stands, or as much of the way as there is.
    pub(super) fn place_of(&self, keys: &[&str]) -> Place {
        let mut node = self.node;
        for key in keys {
            let Value::Map(entries) = &node.value else {
                break;
            };
            match entries.iter().find(|entry| entry.key == *key) {
                Some(entry) => node = &entry.node,
                None => break,
            }
        }
        node.place.clone()
    }

    /// A map with these keys and no others. Nothing is an empty map.
    pub(super) fn section(&self, known: &[&str]) -> Result<Section<'a>, Problem> {
        let entries: &'a [Entry] = match &self.node.value {
            Value::Map(entries) => entries,
            Value::Nothing => &[],
            _ if known.len() > 8 => return Err(self.expected("a map")),
            _ => return Err(self.expected(format_args!("a map with {}", known.join(", ")))),
        };
        for entry in entries {
            if !known.contains(&entry.key.as_str()) {
                return Err(unknown_key(&self.path, entry, known));
            }
        }
        Ok(Section {
            entries,
            path: self.path.clone(),
            place: self.node.place.clone(),
        })
    }
}

impl<'a> Section<'a> {
    /// The value of a key; one without a value counts as left out.
    pub(super) fn get(&self, key: &str) -> Option<Field<'a>> {
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        if entry.node.value == Value::Nothing {
            return None;
        }
        Some(Field::new(&entry.node, join(&self.path, key)))
    }

    /// Reads the value of a key, where there is one.
    pub(super) fn read<T>(
        &self,
        key: &str,
        read: impl FnOnce(&Field<'a>) -> Result<T, Problem>,
    ) -> Result<Option<T>, Problem> {
        self.get(key).map(|field| read(&field)).transpose()
    }

    /// An error about the map as a whole.
    pub(super) fn problem(&self, message: impl Into<String>) -> Problem {
        Problem::new(self.place.clone(), &self.path, message)
    }
}

fn unknown_key(path: &str, entry: &Entry, known: &[&str]) -> Problem {
    let message = format!("unknown key {:?}", shortened(&entry.key));
    let problem = Problem::new(entry.key_place.clone(), &join(path, &entry.key), message);
    if let Some(near) = nearest(&entry.key, known) {
        return problem.hint(format!("did you mean {near}?"));
    }
    if let Some(home) = super::service::home_of(path, &entry.key) {
        return problem.hint(format!("it belongs under {home}"));
    }
    problem.hint(format!("known here: {}", known.join(", ")))
}

/// The candidate that looks most like a text, where one does.
pub(super) fn nearest<'b>(text: &str, candidates: &[&'b str]) -> Option<&'b str> {
    if text.len() > 200 {
        return None;
    }
    let lower = text.to_lowercase();
    candidates
        .iter()
        .map(|candidate| {
            let distance = strsim::damerau_levenshtein(&lower, &candidate.to_lowercase());
            (distance, *candidate)
        })
        .filter(|(distance, candidate)| *distance <= (candidate.len().max(lower.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
