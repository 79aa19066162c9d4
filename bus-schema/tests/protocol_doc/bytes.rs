//! Bytes for people: decoded, in hexadecimal, and taken apart.

use rmpv::Value;

/// Where the explanation begins in a line of annotated bytes.
const COLUMN: usize = 52;
const WIDTH: usize = 116;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn scalar(value: &Value) -> String {
    match value {
        Value::Nil => "nil".to_owned(),
        Value::Binary(bytes) => format!("h'{}'", hex(bytes)),
        Value::F64(number) => format!("{number:?}"),
        Value::String(text) => format!("{:?}", text.as_str().unwrap_or("?")),
        other => other.to_string(),
    }
}

fn inline(value: &Value) -> String {
    match value {
        Value::Map(fields) => {
            let fields = fields
                .iter()
                .map(|(key, value)| format!("{}: {}", scalar(key), inline(value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(inline).collect();
            format!("[{}]", items.join(", "))
        }
        other => scalar(other),
    }
}

/// JSON's notation, with `h'…'` for bytes and nil for null.
fn pretty(value: &Value, indent: usize, before: usize) -> String {
    let short = inline(value);
    if indent + before + short.len() < WIDTH {
        return short;
    }
    let pad = " ".repeat(indent + 2);
    let end = " ".repeat(indent);
    match value {
        Value::Map(fields) => {
            let lines = fields.iter().map(|(key, value)| {
                let key = scalar(key);
                format!("{pad}{key}: {}", pretty(value, indent + 2, key.len() + 3))
            });
            format!("{{\n{}\n{end}}}", lines.collect::<Vec<_>>().join(",\n"))
        }
        Value::Array(items) => {
            let lines = items
                .iter()
                .map(|value| format!("{pad}{}", pretty(value, indent + 2, 1)));
            format!("[\n{}\n{end}]", lines.collect::<Vec<_>>().join(",\n"))
        }
        _ => short,
    }
}

/// A message, decoded and as bytes.
pub(super) fn block(name: &str, bytes: &[u8]) -> String {
    let lines: Vec<String> = bytes.chunks(48).map(hex).collect();
    format!(
        "\n`{name}`, {} bytes:\n\n```text\n{}\n\n{}\n```\n",
        bytes.len(),
        pretty(&super::decode(bytes), 0, 0),
        lines.join("\n")
    )
}

/// One line for each value: its bytes and what they are.
pub(super) fn annotate(bytes: &[u8]) -> String {
    let mut out = String::new();
    value(bytes, 0, &mut out);
    out
}

fn line(bytes: &[u8], depth: usize, text: &str, out: &mut String) {
    let indent = "  ".repeat(depth);
    let digits = format!("{indent}{}", hex(bytes));
    out.push_str(&format!("{digits:<COLUMN$}{text}\n"));
}

/// Writes the value at the beginning of `bytes`; gives back what follows it.
fn value<'a>(bytes: &'a [u8], depth: usize, out: &mut String) -> &'a [u8] {
    let mut rest = bytes;
    let decoded = rmpv::decode::read_value(&mut rest).unwrap();
    let (count, what) = match &decoded {
        Value::Map(fields) => (2 * fields.len(), "a map"),
        Value::Array(items) => (items.len(), "an array"),
        other => {
            let own = &bytes[..bytes.len() - rest.len()];
            line(own, depth, &scalar(other), out);
            return rest;
        }
    };
    // Below sixteen entries the head is one byte.
    let head = if matches!(bytes[0], 0x80..=0x9f) {
        1
    } else {
        3
    };
    let text = format!(
        "{what} of {}",
        if what == "a map" { count / 2 } else { count }
    );
    line(&bytes[..head], depth, &text, out);
    let mut left = &bytes[head..];
    for _ in 0..count {
        left = value(left, depth + 1, out);
    }
    left
}
