//! Log lines: showing them.

use std::borrow::Cow;

use blackhole_bus_schema::names::InstanceName;
use blackhole_process_manager::log::{Parsed, base64};
use jiff::Timestamp;
use serde::Serialize;

use crate::human::Clock;
use crate::out::{Style, Tone};

/// A raw line and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Whose.
    pub instance: InstanceName,
    /// As it stands in the file, without the newline.
    pub raw: Vec<u8>,
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
    pub text: Cow<'a, str>,
    /// The bytes of the text in base64, where they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
    /// The next line of this instance and stream goes on with it.
    pub partial: bool,
}

/// A line for a program.
pub fn item(entry: &Entry) -> LogItem<'_> {
    let line = Parsed::of(&entry.raw);
    let exact = std::str::from_utf8(&line.text).is_ok();
    let base64 = (!exact).then(|| base64(&line.text));
    let text = match line.text {
        Cow::Borrowed(text) => String::from_utf8_lossy(text),
        Cow::Owned(text) => Cow::Owned(String::from_utf8_lossy(&text).into_owned()),
    };
    LogItem {
        at: line.at,
        instance: entry.instance.to_string(),
        stream: if line.err { "err" } else { "out" },
        text,
        base64,
        partial: line.partial,
    }
}

/// A line for a person, with its newline: its time of day, and its date where that
/// is not today, both by `clock`. `terminal` tells that control
/// characters must not get through; colours of the service's own do.
pub fn show(style: Style, terminal: bool, width: usize, clock: &Clock, entry: &Entry) -> Vec<u8> {
    let line = Parsed::of(&entry.raw);
    let at: Option<Timestamp> = line.at.and_then(|at| at.parse().ok());
    let time = at.map_or_else(|| "--:--:--.---".to_owned(), |at| clock.moment(at));
    let name = format!("{:<width$}", entry.instance.to_string());
    let bar = if line.err {
        style.paint(Tone::Warn, "!")
    } else {
        style.paint(Tone::Dim, "|")
    };
    let mut out = format!(
        "{} {} {bar} ",
        style.paint(Tone::Dim, &time),
        style.paint(Tone::Tag(tag(&entry.instance)), &name),
    )
    .into_bytes();
    if terminal {
        out.extend_from_slice(safe(&line.text).as_bytes());
        if style != Style::PLAIN && line.text.contains(&0x1b) {
            out.extend_from_slice(b"\x1b[0m");
        }
    } else {
        out.extend_from_slice(&line.text);
    }
    out.push(b'\n');
    out
}

/// Only what the service wrote; a part of an endless line without a newline.
pub fn raw(terminal: bool, entry: &Entry) -> Vec<u8> {
    let line = Parsed::of(&entry.raw);
    let mut out = match terminal {
        true => safe(&line.text).into_bytes(),
        false => line.text.into_owned(),
    };
    if !line.partial {
        out.push(b'\n');
    }
    out
}

/// A service has one colour, whatever its instances are called.
fn tag(instance: &InstanceName) -> u8 {
    instance
        .service()
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

    fn utc(today: &str) -> Clock {
        let date: jiff::civil::Date = today.parse().unwrap();
        Clock::of(date.to_zoned(jiff::tz::TimeZone::UTC).unwrap())
    }

    fn entry(instance: &str, raw: &str) -> Entry {
        Entry {
            instance: instance.parse().unwrap(),
            raw: raw.as_bytes().to_vec(),
        }
    }

    #[test]
    fn a_program_gets_every_byte() {
        let text = entry(
            "web.1",
            "2026-11-22T23:05:30.123456Z web.1 err P café \"x\"",
        );
        assert_eq!(
            serde_json::to_string(&item(&text)).unwrap(),
            concat!(
                r#"{"at":"2026-11-22T23:05:30.123456Z","instance":"web.1","stream":"err","#,
                r#""text":"café \"x\"","partial":true}"#
            )
        );
        let bytes = Entry {
            raw: b"2026-11-22T23:05:30.123456Z web.1 out F a\xffb".to_vec(),
            ..text
        };
        let item = item(&bytes);
        assert_eq!(
            (item.text.as_ref(), item.base64.as_deref()),
            ("a\u{fffd}b", Some("Yf9i"))
        );
    }

    #[test]
    fn raw_is_what_the_service_wrote() {
        let part = entry(
            "web.1",
            "2026-11-22T23:05:30.123456Z web.1 err P half \x07a ",
        );
        let rest = entry("web.1", "2026-11-22T23:05:30.123456Z web.1 err F line");
        let whole = [raw(false, &part), raw(false, &rest)].concat();
        assert_eq!(whole, b"half \x07a line\n");
        assert_eq!(raw(true, &part), b"half \\u{7}a ");
    }

    #[test]
    fn instances_of_a_service_have_its_colour() {
        let tag_of = |name: &str| tag(&name.parse().unwrap());
        assert_eq!(tag_of("web.1"), tag_of("web.12"));
        assert_ne!(tag_of("web.1"), tag_of("db.1"));
    }

    #[test]
    fn a_terminal_is_safe_from_what_services_write() {
        let line = entry(
            "web.1",
            "2026-11-22T23:05:30.123456Z web.1 out F a\x1b[2Jb\x1b[31mred\x1b]0;title\x07\tc\r",
        );
        let show = |terminal| show(Style::PLAIN, terminal, 6, &utc("2026-11-22"), &line);
        let shown = String::from_utf8(show(true)).unwrap();
        assert_eq!(
            shown,
            "23:05:30.123 web.1  | a\\u{1b}[2Jb\x1b[31mred\\u{1b}]0;title\\u{7}\tc\n"
        );
        let piped = show(false);
        assert!(
            piped.ends_with(b"\x07\tc\r\n"),
            "bytes are kept as they are in a pipe"
        );
    }

    #[test]
    fn a_line_is_shown_by_the_clock_of_who_reads_it() {
        let line = entry("web.1", "2026-11-22T23:05:30.123456Z web.1 out F x");
        let zone = jiff::tz::TimeZone::fixed(jiff::tz::offset(2));
        let now: Timestamp = "2026-11-22T23:30:00Z".parse().unwrap();
        let clock = Clock::of(now.to_zoned(zone));
        let shown = show(Style::PLAIN, false, 5, &clock, &line);
        assert_eq!(shown, b"01:05:30.123 web.1 | x\n");
    }

    #[test]
    fn a_line_of_another_day_has_its_date() {
        let line = entry("web.1", "2026-11-22T23:05:30.123456Z web.1 out F x");
        for (today, shown) in [
            ("2026-11-22", "23:05:30.123 web.1 | x\n"),
            ("2026-11-23", "2026-11-22 23:05:30.123 web.1 | x\n"),
        ] {
            assert_eq!(
                show(Style::PLAIN, false, 5, &utc(today), &line),
                shown.as_bytes()
            );
        }
        let torn = entry("web.1", "torn");
        let clock = utc("2026-11-22");
        assert!(show(Style::PLAIN, false, 5, &clock, &torn).starts_with(b"--:--:--.--- "));
    }
}
