//! The form of a line, see [`LogFormat`].

use std::time::{SystemTime, UNIX_EPOCH};

use blackhole_bus_schema::process::LogFormat;

use crate::log::base64;

/// Longest text of a line, in bytes: what is longer comes in pieces.
pub(super) const MAX_TEXT: usize = 16 * 1024;

/// Longest line that can come of it: JSON writes a control character with six
/// bytes, and the bytes that are no text a second time in base64.
pub(super) const MAX_LINE: usize = MAX_TEXT * 6 + MAX_TEXT * 4 / 3 + 1024;

/// `2026-11-22T23:05:30.123456Z`.
const STAMP: usize = 27;

/// The time as text. The part down to the second is made once a second.
#[derive(Debug)]
pub(super) struct Stamp {
    second: u64,
    text: [u8; STAMP],
    /// No later than this.
    until: Option<SystemTime>,
}

impl Stamp {
    pub(super) fn new() -> Self {
        Self {
            second: 0,
            text: *b"1970-01-01T00:00:00.000000Z",
            until: None,
        }
    }

    /// What is written from now on is of this time at the latest.
    pub(super) fn until(&mut self, until: Option<SystemTime>) {
        self.until = until;
    }

    /// Sets it to the clock's time.
    pub(super) fn update(&mut self) {
        let now = SystemTime::now();
        self.set(self.until.map_or(now, |until| until.min(now)));
    }

    fn set(&mut self, now: SystemTime) {
        // A clock before 1970 stays there.
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        if since.as_secs() != self.second {
            let text = i64::try_from(since.as_secs())
                .ok()
                .and_then(|second| jiff::Timestamp::from_second(second).ok())
                .map(|time| time.to_string());
            // `2026-11-22T23:05:30Z`, in every year that has four digits.
            if let Some(text) = text.filter(|text| text.len() == 20) {
                self.text[..19].copy_from_slice(&text.as_bytes()[..19]);
            }
            self.second = since.as_secs();
        }
        let mut micros = since.subsec_micros();
        for digit in self.text[20..26].iter_mut().rev() {
            *digit = b'0' + (micros % 10) as u8;
            micros /= 10;
        }
    }
}

/// What stands before the text of a stream's lines: for whole lines and for pieces.
#[derive(Debug)]
pub(super) struct Heads {
    format: LogFormat,
    whole: Vec<u8>,
    piece: Vec<u8>,
    /// Where the time stands in both.
    time_at: usize,
}

impl Heads {
    /// For `stream` (`out` or `err`) of `instance`, whose name needs no escapes.
    pub(super) fn new(format: LogFormat, instance: &str, stream: &str) -> Self {
        let stamp = "_".repeat(STAMP);
        let head = |partial: bool| match format {
            LogFormat::Text => {
                let kind = if partial { 'P' } else { 'F' };
                format!("{stamp} {instance} {stream} {kind} ")
            }
            LogFormat::Json => format!(
                r#"{{"at":"{stamp}","instance":"{instance}","stream":"{stream}","partial":{partial},"text":""#
            ),
        };
        let whole = head(false);
        Self {
            format,
            time_at: whole.find(&stamp).unwrap_or(0),
            whole: whole.into_bytes(),
            piece: head(true).into_bytes(),
        }
    }

    /// All lines from here on have this time.
    pub(super) fn stamp(&mut self, stamp: &Stamp) {
        for head in [&mut self.whole, &mut self.piece] {
            head[self.time_at..self.time_at + STAMP].copy_from_slice(&stamp.text);
        }
    }

    /// Writes one line, its text in two parts, to the start of `to` (at least
    /// [`MAX_LINE`] bytes), and tells how long it is.
    #[inline]
    pub(super) fn write(&self, to: &mut [u8], first: &[u8], rest: &[u8], partial: bool) -> usize {
        let head = if partial { &self.piece } else { &self.whole };
        match self.format {
            LogFormat::Text => {
                let (text_at, rest_at) = (head.len(), head.len() + first.len());
                let end = rest_at + rest.len();
                to[..text_at].copy_from_slice(head);
                to[text_at..rest_at].copy_from_slice(first);
                to[rest_at..end].copy_from_slice(rest);
                to[end] = b'\n';
                end + 1
            }
            LogFormat::Json if first.is_empty() => json(to, head, rest),
            LogFormat::Json => json(to, head, &[first, rest].concat()),
        }
    }
}

/// A cursor over a slice that is known to be long enough.
struct Out<'a> {
    to: &'a mut [u8],
    at: usize,
}

impl Out<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.to[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    /// The inside of a JSON string, see RFC 8259, section 7.
    fn escaped(&mut self, text: &str) {
        let bytes = text.as_bytes();
        let mut from = 0;
        for (index, byte) in bytes.iter().enumerate() {
            if *byte >= 0x20 && *byte != b'"' && *byte != b'\\' {
                continue;
            }
            self.put(&bytes[from..index]);
            from = index + 1;
            match byte {
                b'"' => self.put(b"\\\""),
                b'\\' => self.put(b"\\\\"),
                b'\t' => self.put(b"\\t"),
                b'\r' => self.put(b"\\r"),
                control => {
                    let hex = |digit: u8| b"0123456789abcdef"[usize::from(digit & 15)];
                    self.put(&[b'\\', b'u', b'0', b'0', hex(control >> 4), hex(*control)]);
                }
            }
        }
        self.put(&bytes[from..]);
    }
}

fn json(to: &mut [u8], head: &[u8], text: &[u8]) -> usize {
    let mut out = Out { to, at: 0 };
    out.put(head);
    match std::str::from_utf8(text) {
        Ok(text) => out.escaped(text),
        Err(_) => {
            for chunk in text.utf8_chunks() {
                out.escaped(chunk.valid());
                if !chunk.invalid().is_empty() {
                    out.put("\u{fffd}".as_bytes());
                }
            }
            out.put(br#"","base64":""#);
            out.put(base64(text).as_bytes());
        }
    }
    out.put(b"\"}\n");
    out.at
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn line(format: LogFormat, first: &[u8], rest: &[u8], partial: bool) -> Vec<u8> {
        let mut heads = Heads::new(format, "web.1", "err");
        let mut stamp = Stamp::new();
        stamp.set(UNIX_EPOCH + Duration::from_micros(1_795_388_730_123_456));
        heads.stamp(&stamp);
        let mut to = vec![0; MAX_LINE];
        let length = heads.write(&mut to, first, rest, partial);
        to.truncate(length);
        to
    }

    #[test]
    fn a_line_of_each_form() {
        assert_eq!(
            line(LogFormat::Text, b"half ", b"and half", false),
            b"2026-11-22T23:05:30.123456Z web.1 err F half and half\n"
        );
        assert_eq!(
            line(LogFormat::Text, b"", b"piece", true),
            b"2026-11-22T23:05:30.123456Z web.1 err P piece\n"
        );
        assert_eq!(
            String::from_utf8(line(LogFormat::Json, b"a\"", b"b\\\t\x1b", false)).unwrap(),
            concat!(
                r#"{"at":"2026-11-22T23:05:30.123456Z","instance":"web.1","stream":"err","#,
                r#""partial":false,"text":"a\"b\\\t\u001b"}"#,
                "\n"
            )
        );
        assert_eq!(
            String::from_utf8(line(LogFormat::Json, b"", b"a\xffb", true)).unwrap(),
            concat!(
                r#"{"at":"2026-11-22T23:05:30.123456Z","instance":"web.1","stream":"err","#,
                "\"partial\":true,\"text\":\"a\u{fffd}b\",\"base64\":\"Yf9i\"}\n"
            )
        );
    }

    #[test]
    fn the_longest_text_of_every_kind_fits() {
        for byte in [0_u8, b'x', 0xff, b'"', 0x1b] {
            let text = vec![byte; MAX_TEXT];
            for format in [LogFormat::Text, LogFormat::Json] {
                assert!(line(format, &text[..9], &text[9..], true).len() <= MAX_LINE);
            }
        }
    }

    #[test]
    fn the_time_is_the_clocks() {
        let mut stamp = Stamp::new();
        for micros in [0, 1, 999_999, 1_000_000, 4_102_444_799_000_007_u64, 5] {
            stamp.set(UNIX_EPOCH + Duration::from_micros(micros));
            let text = std::str::from_utf8(&stamp.text).unwrap();
            let time: jiff::Timestamp = text.parse().unwrap();
            assert_eq!(u64::try_from(time.as_microsecond()).unwrap(), micros);
        }
    }

    proptest! {
        #[test]
        fn json_gives_the_bytes_back(
            bytes in proptest::collection::vec(prop_oneof![0..128_u8, any::<u8>()], 0..200)
        ) {
            let written = line(LogFormat::Json, b"", &bytes, false);
            let parsed = crate::log::Parsed::of(&written[..written.len() - 1]);
            prop_assert_eq!(parsed.text.as_ref(), bytes.as_slice());
            prop_assert!(parsed.err && !parsed.partial && parsed.at.is_some());
        }
    }
}
