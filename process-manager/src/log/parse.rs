//! One line of a log, taken apart.

use std::borrow::Cow;

use serde::Deserialize;

/// Length of the time at the start of a line.
const STAMP: usize = "2026-11-22T23:05:30.123456Z".len();

/// How a line begins that is a JSON object.
const JSON: &[u8] = br#"{"at":""#;

/// One line, in either form. What does not look like a line (a crash in the
/// middle of a write) is all text, without time and stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed<'a> {
    /// When it was read, RFC 3339 in UTC with microseconds; sorts as text.
    pub at: Option<&'a str>,
    /// Whether it came from standard error.
    pub err: bool,
    /// Part of an endless line: the next one goes on with it.
    pub partial: bool,
    /// What the service wrote.
    pub text: Cow<'a, [u8]>,
}

/// A line with `format: json`.
#[derive(Deserialize)]
struct JsonLine<'a> {
    stream: &'a str,
    partial: bool,
    #[serde(borrow)]
    text: Cow<'a, str>,
    base64: Option<&'a str>,
}

impl<'a> Parsed<'a> {
    /// Takes a line apart; without its newline.
    pub fn of(raw: &'a [u8]) -> Self {
        let parsed = match raw.starts_with(JSON) {
            true => Self::json(raw),
            false => Self::text(raw),
        };
        parsed.unwrap_or(Self {
            at: None,
            err: false,
            partial: false,
            text: Cow::Borrowed(raw),
        })
    }

    /// Only the time of a line, which is quicker.
    pub fn time(raw: &'a [u8]) -> Option<&'a str> {
        let stamp = raw.strip_prefix(JSON).unwrap_or(raw).get(..STAMP)?;
        let shape =
            stamp[4] == b'-' && stamp[10] == b'T' && stamp[13] == b':' && stamp[STAMP - 1] == b'Z';
        std::str::from_utf8(stamp).ok().filter(|_| shape)
    }

    fn text(raw: &'a [u8]) -> Option<Self> {
        let at = Self::time(raw)?;
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
            text: Cow::Borrowed(fields.next().unwrap_or_default()),
        })
    }

    fn json(raw: &'a [u8]) -> Option<Self> {
        let at = Self::time(raw)?;
        let line: JsonLine<'a> = serde_json::from_slice(raw).ok()?;
        let text = match line.base64 {
            Some(digits) => Cow::Owned(bytes_of(digits.as_bytes())?),
            None => match line.text {
                Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
                Cow::Owned(text) => Cow::Owned(text.into_bytes()),
            },
        };
        Some(Self {
            at: Some(at),
            err: match line.stream {
                "out" => false,
                "err" => true,
                _ => return None,
            },
            partial: line.partial,
            text,
        })
    }
}

/// The time of a line in Unix nanoseconds.
pub fn stamp_ns(at: &str) -> Option<u64> {
    let time: jiff::Timestamp = at.parse().ok()?;
    u64::try_from(time.as_nanosecond()).ok()
}

/// RFC 4648, section 4.
pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for index in 0..4 {
            text.push(match index <= group.len() {
                true => char::from(DIGITS[(bits >> (18 - 6 * index)) as usize & 63]),
                false => '=',
            });
        }
    }
    text
}

/// The same backwards, with its padding.
fn bytes_of(digits: &[u8]) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(4) {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3);
    for group in digits.chunks_exact(4) {
        let padding = group
            .iter()
            .rev()
            .take_while(|digit| **digit == b'=')
            .count();
        let mut bits = 0_u32;
        for digit in &group[..4 - padding] {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * padding;
        let [_, three @ ..] = bits.to_be_bytes();
        bytes.extend_from_slice(three.get(..3 - padding.min(3))?);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart() {
        let line = Parsed::of(b"2026-11-22T23:05:30.123456Z web.1 err F it  broke ");
        assert_eq!(line.at, Some("2026-11-22T23:05:30.123456Z"));
        assert!(line.err && !line.partial);
        assert_eq!(line.text.as_ref(), b"it  broke ");
        let empty = Parsed::of(b"2026-11-22T23:05:30.123456Z web.1 out P ");
        assert!(empty.partial && empty.text.is_empty());
        assert_eq!(stamp_ns(empty.at.unwrap()), Some(1_795_388_730_123_456_000));
    }

    #[test]
    fn a_json_line_is_taken_apart() {
        let line = Parsed::of(
            br#"{"at":"2026-11-22T23:05:30.123456Z","instance":"web.1","stream":"err","partial":true,"text":"a\"\u001bb"}"#,
        );
        assert_eq!(line.at, Some("2026-11-22T23:05:30.123456Z"));
        assert!(line.err && line.partial);
        assert_eq!(line.text.as_ref(), b"a\"\x1bb");
    }

    #[test]
    fn a_broken_line_is_all_text() {
        for bad in [
            "",
            "half a li",
            "2026-11-22T23:05:30.123456Z web.1 odd F x",
            "\u{fffd}26-11-22T23:05:30.123456Z",
            r#"{"at":"2026-11-22T23:05:30.123456Z","instance":"web.1","str"#,
            r#"{"at":"2026-11-22T23:05:30.123456Z","instance":"web.1","stream":"out","partial":false,"text":"","base64":"="}"#,
        ] {
            let line = Parsed::of(bad.as_bytes());
            assert_eq!(
                (line.at, line.text.as_ref()),
                (None, bad.as_bytes()),
                "{bad:?}"
            );
        }
    }
}
