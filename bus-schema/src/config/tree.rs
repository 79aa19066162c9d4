//! The text as a tree in which every value knows its place. Everything that
//! YAML itself can get wrong is found here; what the values mean is not known.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{Location, Spanned};

use super::error::{Place, Problem};

/// Deepest nesting; the configuration itself needs six levels.
const MAX_DEPTH: usize = 24;
/// Most values in a file, aliases counted by the values they stand for.
const MAX_VALUES: usize = 100_000;

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) place: Place,
}

/// What kinds of value there are.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// `null`, `~`, or nothing after the colon.
    Nothing,
    /// `true` or `false`, as written.
    Boolean(bool, String),
    /// A whole number, as written.
    Integer(i128, String),
    /// Another number, as written (`1.10` is not `1.1` in an environment).
    Float(f64, String),
    /// Anything else that is neither list nor map.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A map, in the order of the file, without repeated keys.
    Map(Vec<Entry>),
}

/// One key of a map and its value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_place: Place,
    pub(super) node: Node,
}

impl fmt::Display for Node {
    /// What an error message calls it.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Value::Nothing => formatter.write_str("nothing"),
            Value::Boolean(_, raw) => formatter.write_str(raw),
            Value::Integer(_, raw) | Value::Float(_, raw) => {
                write!(formatter, "the number {}", shortened(raw))
            }
            Value::Text(text) => write!(formatter, "the text {:?}", shortened(text)),
            Value::List(_) => formatter.write_str("a list"),
            Value::Map(_) => formatter.write_str("a map"),
        }
    }
}

/// At most 60 characters, so that a message stays one line.
pub(super) fn shortened(text: &str) -> String {
    if text.chars().count() <= 60 {
        return text.to_owned();
    }
    text.chars().take(59).chain(['…']).collect()
}

/// Parses a text. One without any document is [`Value::Nothing`].
pub(super) fn parse(text: &str) -> Result<Node, Problem> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_VALUES,
            max_events: 4 * MAX_VALUES,
            max_documents: 2,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_merge_keys: 1_000,
            max_total_scalar_bytes: 2 * super::MAX_BYTES as usize,
        },
        // Found by `convert`, which can name the place of both.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_VALUES / 4,
            max_replay_stack_depth: 8,
        },
        // `on`, `yes` and `no` are texts, as in YAML 1.2.
        strict_booleans: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    };
    let raw: Option<Spanned<Raw>> =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| syntax(&error))?;
    match raw {
        Some(raw) => convert(raw, text, ""),
        None => Ok(Node {
            value: Value::Nothing,
            place: Place::Unknown,
        }),
    }
}

/// A scalar as a person may write it in an environment variable.
pub(super) fn scalar(text: &str, place: Place) -> Node {
    let raw = || text.to_owned();
    let value = if let Ok(number) = text.parse::<i64>() {
        Value::Integer(number.into(), raw())
    } else if let Some(number) = text.parse::<f64>().ok().filter(|number| number.is_finite()) {
        Value::Float(number, raw())
    } else {
        match text {
            "true" | "false" => Value::Boolean(text == "true", raw()),
            _ => Value::Text(raw()),
        }
    };
    Node { value, place }
}

fn place(location: Location) -> Place {
    match (location.line(), location.column()) {
        (0, _) => Place::Unknown,
        (line, column) => Place::File {
            line,
            column: column.max(1),
            length: location.span().len().max(1),
        },
    }
}

/// What the YAML library found. Its own text is used, without its rendering.
fn syntax(error: &serde_saphyr::Error) -> Problem {
    use serde_saphyr::Error;
    let error = error.without_snippet();
    let place = error.location().map_or(Place::Unknown, place);
    let rendered = error.render();
    // An alias wraps the limit it hit in an error of its own.
    let beyond = rendered.contains("limit exceeded");
    let message = match error {
        Error::MultipleDocuments { .. } => {
            "a second document begins here; a configuration is one document".to_owned()
        }
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => too_large(),
        _ if beyond => too_large(),
        _ => plain(&rendered),
    };
    let tab = message.contains("tabs disallowed");
    let problem = Problem::new(place, "", message);
    if tab {
        problem.hint("indent with spaces, YAML allows no tabs there")
    } else {
        problem
    }
}

fn too_large() -> String {
    format!(
        "too large or too deep for a configuration (at most {MAX_VALUES} values, \
         nested {MAX_DEPTH} deep, aliases counted by what they stand for)"
    )
}

/// The library's message on one line and without its own account of the place.
fn plain(rendered: &str) -> String {
    let line = rendered
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty());
    let text = line.collect::<Vec<_>>().join(" ");
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let text = match text.find(" at line ") {
        Some(end) => &text[..end],
        None => text,
    };
    format!("not YAML: {text}")
}

fn convert(raw: Spanned<Raw>, text: &str, path: &str) -> Result<Node, Problem> {
    let written = |fallback: String| {
        let span = raw.defined.span();
        let slice = span
            .byte_offset()
            .zip(span.byte_len())
            .and_then(|(offset, length)| {
                let start = usize::try_from(offset).ok()?;
                text.get(start..start.checked_add(usize::try_from(length).ok()?)?)
            });
        match slice.map(str::trim) {
            // Tagged (`!!int "1"`) and quoted ones do not stand as they are meant.
            Some(slice) if !slice.is_empty() && !slice.starts_with(['"', '\'', '!', '&', '*']) => {
                slice.to_owned()
            }
            _ => fallback,
        }
    };
    let node_place = place(raw.referenced);
    let value = match raw.value {
        Raw::Nothing => Value::Nothing,
        Raw::Boolean(value) => Value::Boolean(value, written(value.to_string())),
        Raw::Integer(value) => Value::Integer(value, written(value.to_string())),
        Raw::Float(value) => Value::Float(value, written(value.to_string())),
        Raw::Text(value) => Value::Text(value),
        Raw::List(items) => {
            let items = items.into_iter().enumerate();
            let items = items.map(|(index, item)| convert(item, text, &format!("{path}[{index}]")));
            Value::List(items.collect::<Result<_, _>>()?)
        }
        Raw::Map(pairs) => {
            let mut entries: Vec<Entry> = Vec::with_capacity(pairs.len());
            let mut seen = std::collections::HashMap::with_capacity(pairs.len());
            for (key, value) in pairs {
                let key_place = place(key.referenced);
                let below = join(path, &key.value);
                if let Some(first) = seen.insert(key.value.clone(), key_place.clone()) {
                    let first = match first {
                        Place::File { line, .. } => format!(", first on line {line}"),
                        _ => String::new(),
                    };
                    let message = format!("{:?} stands here twice{first}", shortened(&key.value));
                    return Err(Problem::new(key_place, &below, message)
                        .hint("give one of the two another name, or remove it"));
                }
                let node = convert(value, text, &below)?;
                entries.push(Entry {
                    key: key.value,
                    key_place,
                    node,
                });
            }
            Value::Map(entries)
        }
    };
    Ok(Node {
        value,
        place: node_place,
    })
}

/// `path.key`.
pub(super) fn join(path: &str, key: &str) -> String {
    let key = shortened(key);
    if path.is_empty() {
        key
    } else {
        format!("{path}.{key}")
    }
}

/// A value as the YAML library hands it out.
enum Raw {
    Nothing,
    Boolean(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Nothing)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Nothing)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Boolean(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Integer(value))
    }

    fn visit_u128<E: serde::de::Error>(self, value: u128) -> Result<Raw, E> {
        i128::try_from(value)
            .map(Raw::Integer)
            .map_err(|_| E::custom("this number is too large"))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = access.next_entry()? {
            pairs.push(pair);
        }
        if pairs.len() > MAX_VALUES {
            return Err(A::Error::custom("this map is too large"));
        }
        Ok(Raw::Map(pairs))
    }
}
