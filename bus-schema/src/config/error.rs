//! One clear error: where, what, and what to do about it.

use std::fmt;
use std::path::PathBuf;

/// Where a value stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// In the text; line and column in characters from 1, length in characters.
    File { line: u64, column: u64, length: u64 },
    /// In an environment variable of this name.
    Environment(String),
    /// Nowhere: something is missing from the whole.
    Unknown,
}

/// An error while it travels up, before the text is known.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) place: Place,
    pub(super) path: String,
    message: String,
    hint: Option<String>,
}

impl Problem {
    pub(super) fn new(place: Place, path: &str, message: impl Into<String>) -> Self {
        Self {
            place,
            path: path.to_owned(),
            message: message.into(),
            hint: None,
        }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Gives it the name and the text it is about.
    pub(super) fn locate(self, name: &str, text: &str) -> ConfigError {
        let (position, snippet, variable) = match self.place {
            Place::File {
                line,
                column,
                length,
            } => {
                let snippet = snippet(text, line, column, length);
                (Some((line, column)), snippet, None)
            }
            Place::Environment(variable) => (None, String::new(), Some(variable)),
            Place::Unknown => (None, String::new(), None),
        };
        ConfigError::Invalid(Box::new(Invalid {
            name: name.to_owned(),
            variable,
            line: position.map(|(line, _)| line),
            column: position.map(|(_, column)| column),
            path: self.path,
            message: self.message,
            hint: self.hint,
            snippet,
        }))
    }
}

/// Widest part of a source line that is shown.
const SNIPPET_CHARS: usize = 100;

/// The source line with a caret below it, cut around the column where it is long.
fn snippet(text: &str, line: u64, column: u64, length: u64) -> String {
    let index = usize::try_from(line.saturating_sub(1)).unwrap_or(usize::MAX);
    let Some(source) = text.lines().nth(index) else {
        return String::new();
    };
    let column = usize::try_from(column.saturating_sub(1)).unwrap_or(usize::MAX);
    let skip = column.saturating_sub(SNIPPET_CHARS - 30);
    // Tabs and other controls would move the caret, or the terminal's cursor.
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let shown: String = source
        .chars()
        .skip(skip)
        .take(SNIPPET_CHARS)
        .map(printable)
        .collect();
    let shown = shown.trim_end();
    let before = column - skip;
    let room = shown.chars().count().saturating_sub(before).max(1);
    let length = usize::try_from(length).unwrap_or(usize::MAX).clamp(1, room);
    let margin = line.to_string().len();
    format!(
        "\n{line} | {shown}\n{:margin$} | {:before$}{}",
        "",
        "",
        "^".repeat(length)
    )
}

/// A value that is not as it has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The file, as it was named.
    pub name: String,
    /// The environment variable that holds the value, where it is not in the file.
    pub variable: Option<String>,
    /// Line, from 1; `None` where the error is about no place in the text.
    pub line: Option<u64>,
    /// Column in characters, from 1.
    pub column: Option<u64>,
    /// Keys that lead to the value, joined with dots; empty at the root.
    pub path: String,
    /// What was found and what is expected.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The source line with a caret; begins with a newline, or is empty.
    snippet: String,
}

impl fmt::Display for Invalid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.variable {
            Some(variable) => formatter.write_str(variable)?,
            None => formatter.write_str(&self.name)?,
        }
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(formatter, ":{line}:{column}")?;
        }
        if !self.path.is_empty() {
            write!(formatter, ": {}", self.path)?;
        }
        write!(formatter, ": {}", self.message)?;
        if let Some(hint) = &self.hint {
            write!(formatter, " ({hint})")?;
        }
        formatter.write_str(&self.snippet)
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is a directory.
    #[error("{path} is a directory, a configuration is a file: give {path}/blackhole.yaml")]
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// It is larger than any configuration.
    #[error(
        "{path}:{line}:{column}: the file goes on beyond {limit} bytes, which no configuration does: is this the right file?"
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Line at which the limit is reached, from 1.
        line: u64,
        /// Its column in bytes, from 1.
        column: u64,
        /// The largest possible.
        limit: u64,
    },
    /// It is not text.
    #[error("{path}:{line}:{column}: not UTF-8 text (byte {byte:#04x})")]
    NotText {
        /// The file.
        path: PathBuf,
        /// Line of the first wrong byte, from 1.
        line: u64,
        /// Its column in bytes, from 1.
        column: u64,
        /// The byte.
        byte: u8,
    },
    /// Something in it, or in an environment variable over it, is wrong.
    #[error("{0}")]
    Invalid(Box<Invalid>),
}

impl ConfigError {
    /// The details, where the text itself is wrong.
    pub fn invalid(&self) -> Option<&Invalid> {
        match self {
            Self::Invalid(invalid) => Some(invalid),
            _ => None,
        }
    }
}
