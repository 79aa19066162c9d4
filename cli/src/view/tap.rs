//! Messages as they are on the bus, for `blackhole bus tap`.

use blackhole_bus_schema::envelope::Envelope;
use blackhole_bus_schema::names::Component;
use blackhole_bus_schema::raw::Raw;
use blackhole_bus_schema::topic;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::human;
use crate::out::{Style, Tone};

/// Most of a body that is shown on a line for people, in characters.
const SHOWN: usize = 400;
/// Most bytes of something that is no envelope, as hexadecimal digits.
const SHOWN_BYTES: usize = 64;
/// Stands for what may be a secret.
const HIDDEN: &str = "…";

/// A message as it was heard.
pub struct Tapped<'a> {
    /// On whose socket.
    pub socket: &'a Component,
    /// Its first frame.
    pub topic: &'a str,
    /// Its second frame.
    pub body: &'a [u8],
    /// The second frame decoded, or why not.
    pub envelope: Result<&'a Envelope, String>,
    /// Events of its topic that are missing before it.
    pub missed: u64,
    /// Whether the values of environments are shown.
    pub secrets: bool,
}

impl Tapped<'_> {
    fn shown(&self, body: &Raw) -> Value {
        let mut body = json(&body.tree());
        if !self.secrets {
            hide_environments(&mut body);
        }
        body
    }

    /// What cannot be decoded, at most so many bytes of it. A command of another version
    /// may have an environment in it.
    fn digits(&self, most: usize) -> String {
        match self.topic.starts_with(topic::COMMAND) && !self.secrets {
            true => HIDDEN.to_owned(),
            false => hex(self.body.get(..most).unwrap_or(self.body)),
        }
    }
}

/// A message as a document's item. The field names are part of the interface.
#[derive(Debug, Clone, Serialize)]
pub struct TapItem<'a> {
    /// When it was published, RFC 3339 in UTC.
    pub at: Option<String>,
    /// On whose socket it was heard.
    pub socket: String,
    /// Its topic.
    pub topic: &'a str,
    /// Who published it; a command's sender for `cmd.`.
    pub component: Option<&'a str>,
    /// Which life of it.
    pub incarnation: Option<u64>,
    /// Its number on the topic; 0 where they are not counted.
    pub seq: Option<u64>,
    /// Events of the topic that are missing before it.
    pub missed: u64,
    /// Which kind of body.
    pub kind: Option<&'a str>,
    /// Its id.
    pub id: Option<String>,
    /// The message that led to it.
    pub cause: Option<String>,
    /// Who is to be answered, for a command.
    pub reply_to: Option<&'a str>,
    /// Time left for a command.
    pub budget_ms: Option<u64>,
    /// The body; values of environments are `…` unless they are asked for.
    pub body: Value,
    /// Why it is not understood.
    pub error: Option<&'a str>,
    /// Its bytes in hexadecimal digits, where it is not understood.
    pub bytes: Option<String>,
}

/// A message for a program.
pub fn item<'a>(tapped: &'a Tapped<'a>) -> TapItem<'a> {
    let envelope = tapped.envelope.as_ref().ok();
    TapItem {
        at: envelope.map(|envelope| human::timestamp(envelope.at)),
        socket: tapped.socket.to_string(),
        topic: tapped.topic,
        component: envelope.map(|envelope| envelope.source.component.as_str()),
        incarnation: envelope.map(|envelope| envelope.source.incarnation),
        seq: envelope.map(|envelope| envelope.seq),
        missed: tapped.missed,
        kind: envelope.map(|envelope| envelope.kind.as_str()),
        id: envelope.map(|envelope| envelope.id.to_string()),
        cause: envelope.and_then(|envelope| envelope.cause.map(|id| id.to_string())),
        reply_to: envelope.and_then(|envelope| envelope.reply_to.as_ref().map(|to| to.as_str())),
        budget_ms: envelope.and_then(|envelope| envelope.budget_ms),
        body: envelope.map_or(Value::Null, |envelope| tapped.shown(&envelope.body)),
        error: tapped.envelope.as_ref().err().map(String::as_str),
        bytes: match envelope {
            Some(_) => None,
            None => Some(tapped.digits(usize::MAX)),
        },
    }
}

/// A message on one line.
pub fn line(style: Style, tapped: &Tapped<'_>) -> String {
    let missed = match tapped.missed {
        0 => String::new(),
        1 => style.paint(Tone::Bad, " (1 before it is missing)"),
        many => style.paint(Tone::Bad, &format!(" ({many} before it are missing)")),
    };
    let topic = human::printable(tapped.topic);
    let envelope = match &tapped.envelope {
        Ok(envelope) => envelope,
        Err(error) => {
            let shown = tapped.digits(SHOWN_BYTES);
            return format!(
                "{:15} {topic} {} {shown}",
                tapped.socket.to_string(),
                style.paint(Tone::Bad, &human::printable(error)),
            );
        }
    };
    let seq = match envelope.seq {
        0 => String::new(),
        seq => format!(" #{seq}"),
    };
    let cause = envelope.cause.map_or_else(String::new, |id| {
        let text = id.simple().to_string();
        format!(" ←{}", text.get(24..).unwrap_or_default())
    });
    let id = envelope.id.simple().to_string();
    let mut body = tapped.shown(&envelope.body).to_string();
    if let Some((at, _)) = body.char_indices().nth(SHOWN) {
        body.truncate(at);
        body.push('…');
    }
    format!(
        "{} {} {topic}{seq}{missed} {} {}{}",
        style.paint(Tone::Dim, &human::clock(envelope.at)),
        human::printable(&envelope.source.component),
        style.paint(Tone::Strong, &human::printable(&envelope.kind)),
        style.paint(
            Tone::Dim,
            &format!("{}{cause} ", id.get(24..).unwrap_or_default())
        ),
        human::printable(&body),
    )
}

/// Whether a message is an answer to a ping: the echo by which every client
/// proves its path, by the dozen. A reply does not say what it answers.
pub fn answers_ping(envelope: &Envelope) -> bool {
    let field = |value: &rmpv::Value, name: &str| {
        let fields = value.as_map()?;
        let found = fields.iter().find(|(key, _)| key.as_str() == Some(name))?;
        Some(found.1.clone())
    };
    envelope.kind == "reply"
        && field(&envelope.body.tree(), "result").is_some_and(|result| {
            ["component", "pid", "incarnation", "started_at"]
                .iter()
                .all(|name| field(&result, name).is_some())
        })
}

/// An id (UUIDv7, RFC 9562) as text, where the bytes are one.
fn uuid(bytes: &[u8]) -> Option<String> {
    let seventh = bytes.get(6)? >> 4 == 7 && bytes.get(8)? >> 6 == 2 && bytes.len() == 16;
    let text = hex(bytes);
    let part = |from: usize, to: usize| text.get(from..to).unwrap_or_default();
    seventh.then(|| {
        format!(
            "{}-{}-{}-{}-{}",
            part(0, 8),
            part(8, 12),
            part(12, 16),
            part(16, 20),
            part(20, 32)
        )
    })
}

/// A MessagePack value as JSON. Ids and bytes that are text become text, other
/// bytes a map with their hexadecimal digits, so that nothing is changed on the way.
fn json(value: &rmpv::Value) -> Value {
    match value {
        rmpv::Value::Binary(bytes) if uuid(bytes).is_some() => uuid(bytes).into(),
        rmpv::Value::Binary(bytes) | rmpv::Value::Ext(_, bytes) => match std::str::from_utf8(bytes)
        {
            Ok(text) => text.into(),
            Err(_) => serde_json::json!({ "hex": hex(bytes) }),
        },
        rmpv::Value::Array(items) => items.iter().map(json).collect(),
        rmpv::Value::Map(fields) => Value::Object(
            fields
                .iter()
                .map(|(key, value)| {
                    let key = match super::event::json(key) {
                        Value::String(text) => text,
                        other => other.to_string(),
                    };
                    (key, json(value))
                })
                .collect::<Map<_, _>>(),
        ),
        scalar => super::event::json(scalar),
    }
}

/// Puts `…` for the values of every `env` in a body: its names are of use, what a
/// configuration has there literally may be a secret, and what a tap shows is piped on.
fn hide_environments(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(hide_environments),
        Value::Object(fields) => {
            for (key, value) in fields.iter_mut() {
                match (key.as_str(), value) {
                    ("env", Value::Object(variables)) => {
                        for value in variables.values_mut() {
                            *value = HIDDEN.into();
                        }
                    }
                    ("env", value) if !value.is_null() => *value = HIDDEN.into(),
                    (_, value) => hide_environments(value),
                }
            }
        }
        _ => {}
    }
}

fn hex(bytes: &[u8]) -> String {
    blackhole_bus_schema::dirs::hex(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use blackhole_bus_schema::envelope::Source;

    fn envelope(body: rmpv::Value) -> Envelope {
        Envelope {
            v: 1,
            id: "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap(),
            at: 1_700_000_000_123_456_789,
            source: Source {
                component: "bridge".into(),
                instance: "7".into(),
                incarnation: 3,
            },
            seq: 9,
            cause: None,
            reply_to: None,
            budget_ms: None,
            kind: "never.seen".into(),
            body: Raw::from(&body),
        }
    }

    #[test]
    fn an_unknown_kind_with_bytes_and_controls_is_one_line() {
        let body = rmpv::Value::Map(vec![
            ("raw".into(), rmpv::Value::Binary(vec![0xff, 0x00])),
            ("text".into(), rmpv::Value::Binary(b"a\x1b[2J\n".to_vec())),
        ]);
        let envelope = envelope(body);
        let tapped = Tapped {
            socket: &Component::Bridge,
            topic: "evt.x.\u{7}",
            body: b"",
            envelope: Ok(&envelope),
            missed: 2,
            secrets: false,
        };
        let line = line(Style::PLAIN, &tapped);
        assert!(!line.contains(['\n', '\u{7}', '\u{1b}']), "{line:?}");
        assert!(
            line.contains("#9 (2 before it are missing) never.seen"),
            "{line}"
        );
        let item = serde_json::to_value(item(&tapped)).unwrap();
        assert_eq!(item["body"]["raw"]["hex"], "ff00");
        assert_eq!(item["body"]["text"], "a\u{1b}[2J\n");
        assert_eq!((&item["missed"], &item["seq"]), (&2.into(), &9.into()));
        assert_eq!(item["error"], Value::Null);
    }

    #[test]
    fn ids_are_readable_and_answers_to_pings_are_known() {
        let bytes = 0x0189_0a5d_ac96_774b_bcce_b302_099a_8057_u128.to_be_bytes();
        let to = rmpv::Value::Binary(bytes.to_vec());
        assert_eq!(json(&to), "01890a5d-ac96-774b-bcce-b302099a8057");
        let info = ["component", "pid", "incarnation", "started_at"]
            .map(|name| (rmpv::Value::from(name), rmpv::Value::from(1)));
        let mut reply = envelope(rmpv::Value::Map(vec![(
            "result".into(),
            rmpv::Value::Map(info.to_vec()),
        )]));
        assert!(!answers_ping(&reply), "no reply");
        reply.kind = "reply".into();
        assert!(answers_ping(&reply));
        reply.body = Raw::from(&rmpv::Value::Map(vec![("result".into(), rmpv::Value::Nil)]));
        assert!(!answers_ping(&reply));
    }

    #[test]
    fn what_is_no_envelope_is_shown_in_digits() {
        let tapped = Tapped {
            socket: &Component::Supervisor,
            topic: "evt.",
            body: &[0xc1, 0x02],
            envelope: Err("not an envelope".into()),
            missed: 0,
            secrets: false,
        };
        let line = line(Style::PLAIN, &tapped);
        assert!(
            line.contains("not an envelope") && line.ends_with("c102"),
            "{line}"
        );
        let item = serde_json::to_value(item(&tapped)).unwrap();
        assert_eq!(item["bytes"], "c102");
        assert_eq!(item["kind"], Value::Null);
    }

    #[test]
    fn values_of_environments_are_hidden_unless_they_are_asked_for() {
        let map = |fields: Vec<(&str, rmpv::Value)>| {
            let fields = fields.into_iter();
            rmpv::Value::Map(fields.map(|(key, value)| (key.into(), value)).collect())
        };
        let env = map(vec![("DB_PASSWORD", "hunter2".into())]);
        let spec = map(vec![
            ("instance", "web.1".into()),
            ("env", env.clone()),
            ("list", rmpv::Value::Array(vec![map(vec![("env", env)])])),
        ]);
        let envelope = envelope(map(vec![("spec", spec)]));
        let shown = |secrets, envelope: Result<&Envelope, String>| {
            let tapped = Tapped {
                socket: &Component::ProcessManager(None),
                topic: "cmd.process-manager.",
                body: b"hunter2",
                envelope,
                missed: 0,
                secrets,
            };
            let item = serde_json::to_string(&item(&tapped)).unwrap();
            (line(Style::PLAIN, &tapped), item)
        };
        let (line, item) = shown(false, Ok(&envelope));
        for text in [&line, &item] {
            assert!(!text.contains("hunter2"), "{text}");
            assert_eq!(text.matches(r#""DB_PASSWORD":"…""#).count(), 2, "{text}");
            assert!(text.contains(r#""instance":"web.1""#), "{text}");
        }
        let (line, item) = shown(true, Ok(&envelope));
        for text in [line, item] {
            assert_eq!(text.matches("hunter2").count(), 2, "{text}");
        }
        // A command of another version is not taken apart.
        let digits = hex(b"hunter2");
        let (line, item) = shown(false, Err("version 9".to_owned()));
        assert!(
            !line.contains(&digits) && !item.contains(&digits),
            "{line} {item}"
        );
        let (line, item) = shown(true, Err("version 9".to_owned()));
        assert!(
            line.contains(&digits) && item.contains(&digits),
            "{line} {item}"
        );
    }
}
