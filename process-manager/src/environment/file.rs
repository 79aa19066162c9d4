//! `env_files`: files of assignments, `KEY=VALUE`, one a line.
//!
//! Empty lines and lines that begin with `#` are skipped, an `export` before a
//! key too. A value in single quotes is taken as it stands; in double quotes
//! `\n`, `\t`, `\"`, `\\` and `\$` stand for what they do in a shell; without
//! quotes it ends where white space and a `#` follow, or at the line's end,
//! white space around it left out. Nothing is expanded: a `$` is a `$`. What is
//! assigned twice has its last value.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use blackhole_bus_schema::process::EnvFile;

use super::Sources;

/// Why a file's assignments cannot be had. Never holds a value.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not text.
    #[error("{} is not UTF-8 text", path.display())]
    NotText {
        /// Which file.
        path: PathBuf,
    },
    /// A line is no assignment.
    #[error("{}:{line}: {problem}", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl FileError {
    /// The error number of errno(3), 0 where there is none.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Read { source, .. } => source.raw_os_error().unwrap_or(libc::EINVAL),
            _ => 0,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Read { source, .. } => match source.kind() {
                ErrorKind::NotFound => {
                    "create the file, or write {path: …, required: false} where it may be missing"
                }
                ErrorKind::PermissionDenied => "the process-manager's user must be able to read it",
                _ => "it must be a regular file of less than 128 KiB",
            },
            Self::NotText { .. } => "encode binary values, for instance as base64",
            Self::Line { .. } => "write KEY=VALUE, a # before a comment",
        }
    }
}

/// Reads one file; one that is missing and need not be there assigns nothing. Blocks.
pub(super) fn read(
    file: &EnvFile,
    sources: &dyn Sources,
) -> Result<Vec<(String, String)>, FileError> {
    let path = Path::new(&file.path);
    let bytes = match sources.file(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound && !file.required => {
            return Ok(Vec::new());
        }
        Err(source) => {
            let path = path.to_owned();
            return Err(FileError::Read { path, source });
        }
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| FileError::NotText {
        path: path.to_owned(),
    })?;
    let mut all = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let failed = |problem| FileError::Line {
            path: path.to_owned(),
            line: index + 1,
            problem,
        };
        all.extend(assignment(line).map_err(failed)?);
    }
    Ok(all)
}

/// What one line assigns, if anything.
fn assignment(line: &str) -> Result<Option<(String, String)>, &'static str> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let line = match line.strip_prefix("export") {
        Some(rest) if rest.starts_with([' ', '\t']) => rest.trim_start(),
        _ => line,
    };
    let (key, value) = line.split_once('=').ok_or("there is no =")?;
    let mut letters = key.chars();
    let first = letters
        .next()
        .is_some_and(|c| c == '_' || c.is_ascii_alphabetic());
    if !first || !letters.all(|c| c == '_' || c.is_ascii_alphanumeric()) {
        return Err("a key has letters, digits and _, and begins with no digit");
    }
    let value = value.trim_start();
    let (value, rest) = match value.chars().next() {
        Some('\'') => {
            let (text, rest) = value[1..]
                .split_once('\'')
                .ok_or("a quote is not closed on its line")?;
            (text.to_owned(), rest)
        }
        Some('"') => double_quoted(&value[1..])?,
        _ => (unquoted(value).to_owned(), ""),
    };
    let rest = rest.trim_start();
    if !rest.is_empty() && !rest.starts_with('#') {
        return Err("something stands behind the closing quote");
    }
    if value.contains('\0') {
        return Err("the value holds a NUL byte");
    }
    Ok(Some((key.to_owned(), value)))
}

/// Up to a comment.
fn unquoted(value: &str) -> &str {
    if value.starts_with('#') {
        return "";
    }
    let comment = value
        .match_indices('#')
        .find(|(at, _)| value[..*at].ends_with([' ', '\t']));
    comment.map_or(value, |(at, _)| &value[..at]).trim_end()
}

/// The text up to the closing quote, and what follows.
fn double_quoted(text: &str) -> Result<(String, &str), &'static str> {
    let mut value = String::with_capacity(text.len());
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match letters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, 't')) => value.push('\t'),
                Some((_, next @ ('"' | '\\' | '$' | '`'))) => value.push(next),
                Some((_, next)) => value.extend(['\\', next]),
                None => break,
            },
            letter => value.push(letter),
        }
    }
    Err("a quote is not closed on its line")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_are_read_as_people_write_them() {
        let said = |line: &str| {
            let (key, value) = assignment(line).unwrap().unwrap();
            format!("{key}|{value}")
        };
        for (line, expected) in [
            ("A=1", "A|1"),
            ("  export B_2 = x", ""),
            ("export B_2=x y  # a comment", "B_2|x y"),
            ("exported=1", "exported|1"),
            ("C=", "C|"),
            ("C= # nothing", "C|"),
            ("C=#nothing", "C|"),
            ("URL=http://x/#top", "URL|http://x/#top"),
            ("D='as $it \\n \"stands\"'  # so", "D|as $it \\n \"stands\""),
            (
                "E=\"a\\tb\\n\\\"c\\\" \\\\ \\$d $e \\x\"",
                "E|a\tb\n\"c\" \\ $d $e \\x",
            ),
            ("F=a=b", "F|a=b"),
            ("G=\"über\"", "G|über"),
        ] {
            if expected.is_empty() {
                assert!(assignment(line).is_err(), "{line}");
            } else {
                assert_eq!(said(line), expected, "{line}");
            }
        }
        for line in ["", "   ", "# A=1", "  # A=1"] {
            assert_eq!(assignment(line), Ok(None));
        }
    }

    #[test]
    fn what_is_wrong_is_told_without_the_value() {
        for line in [
            "hunter2",
            "=hunter2",
            "1A=hunter2",
            "A-B=hunter2",
            "A='hunter2",
            "A=\"hunter2",
            "A=\"hunter2\\",
            "A='x'hunter2",
            "A=hunter2\0",
        ] {
            let problem = assignment(line).unwrap_err();
            assert!(!problem.contains("hunter2"), "{line}: {problem}");
        }
    }

    proptest! {
        #[test]
        fn what_is_quoted_comes_back(value in "[^'\0\n\r]*") {
            let line = format!("A='{value}'");
            prop_assert_eq!(assignment(&line), Ok(Some(("A".to_owned(), value))));
        }

        #[test]
        fn no_line_crashes_the_reader(line in ".*") {
            let _ = assignment(&line);
        }
    }
}
