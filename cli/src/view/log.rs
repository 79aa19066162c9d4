//! Log lines: reading the file format, merging several instances by time,
//! showing them.
//!
//! A line is `2026-11-22T23:05:30.123456Z <instance> <out|err> <F|P> <text>`.

use blackhole_bus_schema::names::InstanceName;
use serde::Serialize;

use crate::out::{Style, Tone};

/// Length of the time stamp at the start of a line.
const STAMP: usize = "2026-11-22T23:05:30.123456Z".len();

/// One line, taken apart. What does not look like a line of the format (a
/// crash in the middle of a write) is all text, without time and stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<'a> {
    /// The time stamp; sorts as bytes.
    pub at: Option<&'a str>,
    /// Whether it came from standard error.
    pub err: bool,
    /// Part of an endless line: the next one goes on with it.
    pub partial: bool,
    /// What the service wrote.
    pub text: &'a [u8],
}

impl<'a> Line<'a> {
    /// Takes a line apart.
    pub fn parse(raw: &'a [u8]) -> Self {
        Self::try_parse(raw).unwrap_or(Self {
            at: None,
            err: false,
            partial: false,
            text: raw,
        })
    }

    fn try_parse(raw: &'a [u8]) -> Option<Self> {
        let at = std::str::from_utf8(raw.get(..STAMP)?).ok()?;
        let stamp = at.as_bytes();
        let shape =
            stamp[4] == b'-' && stamp[10] == b'T' && stamp[13] == b':' && stamp[STAMP - 1] == b'Z';
        if !shape {
            return None;
        }
        let mut fields = raw.get(STAMP + 1..)?.splitn(4, |byte| *byte == b' ');
        let _instance = fields.next()?;
        let err = match fields.next()? {
            b"out" => false,
            b"err" => true,
            _ => return None,
        };
        let partial = match fields.next()? {
            b"F" => false,
            b"P" => true,
            _ => return None,
        };
        Some(Self {
            at: Some(at),
            err,
            partial,
            text: fields.next().unwrap_or_default(),
        })
    }
}

/// A raw line and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Whose.
    pub instance: InstanceName,
    /// As it stands in the file, without the newline.
    pub raw: Vec<u8>,
}

/// Merges the lines of several instances by time. Lines of one instance keep
/// their order; one without a time stands with the line before it.
pub fn merge(sources: Vec<Vec<Entry>>) -> Vec<Entry> {
    let mut keyed: Vec<(String, Entry)> = Vec::with_capacity(sources.iter().map(Vec::len).sum());
    for source in sources {
        let mut last = String::new();
        for entry in source {
            if let Some(at) = Line::parse(&entry.raw).at
                && at > last.as_str()
            {
                at.clone_into(&mut last);
            }
            keyed.push((last.clone(), entry));
        }
    }
    keyed.sort_by(|(one, _), (other, _)| one.cmp(other));
    keyed.into_iter().map(|(_, entry)| entry).collect()
}

/// One line as a document's item. The field names are part of the interface.
#[derive(Debug, Clone, Serialize)]
pub struct LogItem<'a> {
    /// When it was written, RFC 3339 in UTC; `None` for a broken line.
    pub at: Option<&'a str>,
    /// Whose.
    pub instance: String,
    /// `out` or `err`.
    pub stream: &'static str,
    /// The text; what is not UTF-8 is replaced.
    pub text: String,
    /// The next line of this instance and stream goes on with it.
    pub partial: bool,
}

/// A line for a program.
pub fn item(entry: &Entry) -> LogItem<'_> {
    let line = Line::parse(&entry.raw);
    LogItem {
        at: line.at,
        instance: entry.instance.to_string(),
        stream: if line.err { "err" } else { "out" },
        text: String::from_utf8_lossy(line.text).into_owned(),
        partial: line.partial,
    }
}

/// A line for a person, with its newline. `terminal` tells that control
/// characters must not get through; colours of the service's own do.
pub fn show(style: Style, terminal: bool, width: usize, entry: &Entry) -> Vec<u8> {
    let line = Line::parse(&entry.raw);
    let time = line
        .at
        .and_then(|at| at.get(11..23))
        .unwrap_or("--:--:--.---");
    let name = format!("{:<width$}", entry.instance.to_string());
    let bar = if line.err {
        style.paint(Tone::Warn, "!")
    } else {
        style.paint(Tone::Dim, "|")
    };
    let mut out = format!(
        "{} {} {bar} ",
        style.paint(Tone::Dim, time),
        style.paint(Tone::Tag(tag(&entry.instance)), &name),
    )
    .into_bytes();
    if terminal {
        out.extend_from_slice(safe(line.text).as_bytes());
        if style != Style::PLAIN && line.text.contains(&0x1b) {
            out.extend_from_slice(b"\x1b[0m");
        }
    } else {
        out.extend_from_slice(line.text);
    }
    out.push(b'\n');
    out
}

fn tag(instance: &InstanceName) -> u8 {
    instance
        .to_string()
        .bytes()
        .fold(0_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte))
}

/// Text without control characters, except tabs and colours (`ESC [ … m`).
fn safe(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_ref();
    while let Some(character) = rest.chars().next() {
        if let Some(length) = colour(rest) {
            out.push_str(&rest[..length]);
            rest = &rest[length..];
            continue;
        }
        if character == '\t' || !character.is_control() {
            out.push(character);
        } else if character != '\r' {
            out.extend(character.escape_default());
        }
        rest = &rest[character.len_utf8()..];
    }
    out
}

/// Length of the colour sequence at the start of `text`, see ECMA-48, 8.3.117.
fn colour(text: &str) -> Option<usize> {
    let body = text.strip_prefix("\x1b[")?;
    let end = body.find(|character: char| !character.is_ascii_digit() && character != ';')?;
    (body.as_bytes()[end] == b'm').then_some(end + 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(instance: &str, raw: &str) -> Entry {
        Entry {
            instance: instance.parse().unwrap(),
            raw: raw.as_bytes().to_vec(),
        }
    }

    #[test]
    fn a_line_is_taken_apart() {
        let line = Line::parse(b"2026-11-22T23:05:30.123456Z web.1 err F it  broke ");
        assert_eq!(line.at, Some("2026-11-22T23:05:30.123456Z"));
        assert!(line.err && !line.partial);
        assert_eq!(line.text, b"it  broke ");
        let empty = Line::parse(b"2026-11-22T23:05:30.123456Z web.1 out P ");
        assert!(empty.partial && empty.text.is_empty());
    }

    #[test]
    fn a_broken_line_is_all_text() {
        for bad in [
            "",
            "half a li",
            "2026-11-22T23:05:30.123456Z web.1 odd F x",
            "\u{fffd}26-11-22T23:05:30.123456Z",
        ] {
            let line = Line::parse(bad.as_bytes());
            assert_eq!((line.at, line.text), (None, bad.as_bytes()), "{bad:?}");
        }
    }

    #[test]
    fn several_instances_are_merged_by_time() {
        let web = vec![
            entry("web.1", "2026-11-22T23:05:30.000001Z web.1 out F one"),
            entry("web.1", "torn"),
            entry("web.1", "2026-11-22T23:05:30.000003Z web.1 out F three"),
        ];
        let db = vec![entry("db.1", "2026-11-22T23:05:30.000002Z db.1 out F two")];
        let merged: Vec<String> = merge(vec![db, web])
            .iter()
            .map(|entry| String::from_utf8_lossy(Line::parse(&entry.raw).text).into_owned())
            .collect();
        assert_eq!(merged, ["one", "torn", "two", "three"]);
    }

    #[test]
    fn a_terminal_is_safe_from_what_services_write() {
        let line = entry(
            "web.1",
            "2026-11-22T23:05:30.123456Z web.1 out F a\x1b[2Jb\x1b[31mred\x1b]0;title\x07\tc\r",
        );
        let shown = String::from_utf8(show(Style::PLAIN, true, 6, &line)).unwrap();
        assert_eq!(
            shown,
            "23:05:30.123 web.1  | a\\u{1b}[2Jb\x1b[31mred\\u{1b}]0;title\\u{7}\tc\n"
        );
        let piped = show(Style::PLAIN, false, 6, &line);
        assert!(
            piped.ends_with(b"\x07\tc\r\n"),
            "bytes are kept as they are in a pipe"
        );
    }
}
