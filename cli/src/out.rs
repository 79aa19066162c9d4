//! Standard output and standard error. Results go to the one, everything else
//! to the other; a reader that has gone is not an error; colours appear only
//! on a terminal and without `NO_COLOR` (no-color.org).

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::args::Format;
use crate::error::Error;

/// Colours with a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Good,
    /// On its way, or worth a look.
    Warn,
    /// Wrong.
    Bad,
    /// Less important.
    Dim,
    /// A heading.
    Strong,
    /// One of a few colours to tell instances apart.
    Tag(u8),
}

/// Whether and how to colour one of the two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    on: bool,
}

impl Style {
    /// No colours.
    pub const PLAIN: Style = Style { on: false };
    /// Colours, whatever the output is.
    pub const COLOURED: Style = Style { on: true };

    /// For standard output.
    pub fn stdout() -> Self {
        Self::of(io::stdout().is_terminal())
    }

    /// For standard error.
    pub fn stderr() -> Self {
        Self::of(io::stderr().is_terminal())
    }

    fn of(terminal: bool) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self {
            on: terminal && !refused && !dumb,
        }
    }

    /// `text` in a tone.
    pub fn paint(self, tone: Tone, text: &str) -> String {
        if !self.on {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Warn => "33",
            Tone::Bad => "31;1",
            Tone::Dim => "2",
            Tone::Strong => "1",
            Tone::Tag(number) => {
                ["36", "34", "35", "33", "32", "96", "94", "95"][usize::from(number % 8)]
            }
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// Writes `text` to standard output as it is and flushes it.
pub fn print(text: impl AsRef<[u8]>) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_ref())
        .and_then(|()| out.flush())
        .map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Error::BrokenPipe,
            _ => Error::Output(error),
        })
}

/// Writes `text` and a newline to standard output.
pub fn println(text: impl AsRef<str>) -> Result<(), Error> {
    print(format!("{}\n", text.as_ref()))
}

/// Writes a line to standard error. A closed standard error is no reason to stop.
pub fn note(text: impl AsRef<str>) {
    // In one piece, also where others write to the same terminal or file.
    let line = format!("{}\n", text.as_ref());
    let _ = io::stderr().lock().write_all(line.as_bytes());
}

/// Writes one document in a machine's form, or `table()` for people.
pub fn document<T: Serialize>(
    format: Format,
    value: &T,
    table: impl FnOnce() -> String,
) -> Result<(), Error> {
    match format {
        Format::Table => print(table()),
        Format::Json => println(json(value)?),
        Format::Yaml => print(yaml(value)?),
    }
}

/// Writes one item of a stream: a line of JSON, a YAML document, or `line()`.
pub fn item<T: Serialize>(
    format: Format,
    value: &T,
    line: impl FnOnce() -> String,
) -> Result<(), Error> {
    match format {
        Format::Table => println(line()),
        Format::Json => {
            println(serde_json::to_string(value).map_err(|error| Error::Output(error.into()))?)
        }
        Format::Yaml => print(format!("---\n{}", yaml(value)?)),
    }
}

/// Indented JSON.
pub fn json<T: Serialize>(value: &T) -> Result<String, Error> {
    serde_json::to_string_pretty(value).map_err(|error| Error::Output(error.into()))
}

/// YAML, with a newline at its end.
pub fn yaml<T: Serialize>(value: &T) -> Result<String, Error> {
    let mut text =
        serde_saphyr::to_string(value).map_err(|error| Error::Output(io::Error::other(error)))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_is_plain() {
        assert_eq!(Style::PLAIN.paint(Tone::Bad, "x"), "x");
        assert_eq!(Style::COLOURED.paint(Tone::Bad, "x"), "\x1b[31;1mx\x1b[0m");
    }
}
