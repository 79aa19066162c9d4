//! Keeps `docs/protocol.md` true: its tables are compared with the decoders and
//! with the golden bytes, both ways, and its last section is written from the
//! golden bytes. `BLACKHOLE_BLESS=1 cargo nextest run -p blackhole-bus-schema --test
//! protocol_doc` writes that section anew; the tables are written by hand.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "protocol_doc/bytes.rs"]
mod bytes;
#[path = "protocol_doc/check.rs"]
mod check;
#[path = "protocol_doc/decoders.rs"]
mod decoders;
#[path = "protocol_doc/document.rs"]
mod document;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use blackhole_bus_schema::rpc::header::Header;
use rmpv::Value;

use check::Checker;
use document::{Document, Plane, Section, Type};

const BEGIN: &str = "<!-- written by bus-schema/tests/protocol_doc.rs from here -->\n";
const END: &str = "<!-- to here -->\n";
/// Begins a block of bytes that are taken apart; a name follows.
const ANNOTATED: &str = "```text annotated ";

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/protocol.md")
}

fn text() -> String {
    std::fs::read_to_string(path()).unwrap()
}

/// The golden messages, by name.
fn golden() -> BTreeMap<String, Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let files = std::fs::read_dir(directory).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    files
        .map(|file| {
            let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
            let digits: String = std::fs::read_to_string(&file)
                .unwrap()
                .split_whitespace()
                .collect();
            let bytes = (0..digits.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
                .collect();
            (name, bytes)
        })
        .collect()
}

fn decode(mut bytes: &[u8]) -> Value {
    let value = rmpv::decode::read_value(&mut bytes).unwrap();
    assert!(bytes.is_empty(), "bytes are left over");
    value
}

fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    let fields = value.as_map()?;
    let found = fields.iter().find(|(key, _)| key.as_str() == Some(name));
    found.map(|(_, value)| value)
}

#[track_caller]
fn none(errors: &[String]) {
    assert!(
        errors.is_empty(),
        "docs/protocol.md is not true:\n{}",
        errors.join("\n")
    );
}

#[test]
fn the_tables_of_the_bus_say_what_the_bytes_and_the_decoders_do() {
    let text = text();
    let document = Document::parse(&text);
    let mut golden = golden();
    let mut checker = Checker::new(&document);
    for (name, section) in document.sections(Plane::Bus) {
        for file in &section.bytes {
            let Some(bytes) = golden.remove(file) else {
                checker.error(format!("{name}: no golden bytes {file:?}, or named twice"));
                continue;
            };
            let value = decode(&bytes);
            if file == name {
                checker.structure("Envelope", &value, file);
                let body = field(&value, "body").unwrap();
                checker.structure(name, body, file);
            } else if name == "reply" {
                let body = field(&value, "body").unwrap_or(&value);
                checker.structure(name, body, file);
            } else if name == "Snapshot" {
                checker.structure(name, &value, file);
                for item in field(&value, "items").unwrap().as_array().unwrap() {
                    checker.structure("InstanceStatus", item, file);
                }
            } else {
                checker.structure(name, &value, file);
            }
        }
    }
    for file in golden.keys() {
        checker.error(format!("the golden bytes {file:?} are not in the document"));
    }
    for (name, value) in decoders::more() {
        checker.structure(name, &value, "besides");
    }
    checker.unseen();
    for (name, variants) in decoders::enumerations() {
        let listed: BTreeSet<&str> = match document.find(name) {
            Some(section) => section.one_of.iter().map(String::as_str).collect(),
            None => BTreeSet::new(),
        };
        if listed != variants.iter().map(String::as_str).collect() {
            checker.error(format!(
                "{name}: {listed:?} is listed, the decoder knows {variants:?}"
            ));
        }
    }
    for ((name, tag), variants) in decoders::tags() {
        let cell = document
            .find(name)
            .and_then(|section| section.field(tag))
            .map(|field| field.meaning.clone())
            .unwrap_or_default();
        let listed: BTreeSet<&str> = cell.split('`').skip(1).step_by(2).collect();
        if listed != variants.iter().map(String::as_str).collect() {
            checker.error(format!(
                "{name}.{tag}: {listed:?} is listed, the decoder knows {variants:?}"
            ));
        }
    }
    none(&checker.errors);
}

/// A header with every field of its table.
fn sample(kind: &str, section: &Section) -> Value {
    let value = |kind: &Type| match kind {
        Type::Base(base) => match base.as_str() {
            "bool" => Value::from(true),
            "instance" => Value::from("web.1"),
            "service" => Value::from("web"),
            "text" => Value::from("text"),
            "uint" | "ms" | "bytes_count" => Value::from(7),
            other => panic!("{other} in a header"),
        },
        Type::Named(name) if name == "Code" => Value::from("not_found"),
        Type::Named(name) if name == "Endpoint" => Value::Map(
            ["instance", "endpoint", "ticket"]
                .map(|key| (key.into(), "web.1".into()))
                .to_vec(),
        ),
        Type::List(_) => Value::Array(Vec::new()),
        other => panic!("{other:?} in a header"),
    };
    let mut fields = vec![(Value::from("kind"), Value::from(kind))];
    for field in &section.fields {
        let sample = match &field.kind {
            Type::List(item) => Value::Array(vec![value(item)]),
            kind => value(kind),
        };
        fields.push((Value::from(field.name.as_str()), sample));
    }
    Value::Map(fields)
}

fn encode(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, value).unwrap();
    bytes
}

fn keys(value: &Value) -> BTreeSet<&str> {
    let fields = value.as_map().unwrap();
    fields
        .iter()
        .map(|(key, _)| key.as_str().unwrap())
        .collect()
}

#[test]
fn the_tables_of_the_rpc_plane_say_what_its_headers_do() {
    let text = text();
    let document = Document::parse(&text);
    let mut errors = Vec::new();
    let mut documented = BTreeSet::from(["kind".to_owned()]);
    for (kind, section) in document.sections(Plane::Rpc) {
        if kind == "Endpoint" {
            continue;
        }
        let all = sample(kind, section);
        documented.extend(section.fields.iter().map(|field| field.name.clone()));
        match Header::decode(&encode(&all)) {
            Err(error) => errors.push(format!("{kind} with all its fields: {error}")),
            Ok(header) => {
                let again = decode(&header.encode());
                if keys(&again) != keys(&all) {
                    errors.push(format!(
                        "{kind}: the table has {:?}, the library keeps {:?}",
                        keys(&all),
                        keys(&again)
                    ));
                }
            }
        }
        for field in &section.fields {
            let mut fewer = all.as_map().unwrap().clone();
            fewer.retain(|(key, _)| key.as_str() != Some(&field.name));
            let accepted = Header::decode(&encode(&Value::Map(fewer))).is_ok();
            if accepted == (field.required == "yes") {
                errors.push(format!(
                    "{kind} without {}: required is {:?}, accepted {accepted}",
                    field.name, field.required
                ));
            }
        }
    }
    for name in wire_fields() {
        if !documented.contains(&name) {
            errors.push(format!("the header field {name:?} is in no table"));
        }
    }
    none(&errors);
}

/// The fields of all headers, from the source of their one decoder.
fn wire_fields() -> Vec<String> {
    let source = include_str!("../src/rpc/header/mod.rs");
    let wire = source.split_once("struct Wire<'a> {").unwrap().1;
    let wire = wire.split_once("\n}").unwrap().0;
    let lines = wire.lines().map(str::trim);
    lines
        .filter(|line| !line.starts_with(['#', '/']))
        .filter_map(|line| line.split_once(": "))
        .map(|(name, _)| name.to_owned())
        .collect()
}

/// The document with its bytes as they should be.
fn with_bytes(text: &str) -> String {
    let document = Document::parse(text);
    let golden = golden();
    let mut end = String::from("\n### Messages of the bus\n");
    for (name, message) in &golden {
        end.push_str(&bytes::block(name, message));
    }
    end.push_str("\n### Headers of the RPC plane\n\nEach with all its fields.\n");
    for (kind, section) in document.sections(Plane::Rpc) {
        if kind != "Endpoint" {
            end.push_str(&bytes::block(kind, &encode(&sample(kind, section))));
        }
    }
    end.push('\n');
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let mut blocks = before.split(ANNOTATED);
    let mut all = blocks.next().unwrap_or_default().to_owned();
    for block in blocks {
        let (name, _) = block.split_once('\n').unwrap();
        let (_, rest) = block.split_once("\n```").unwrap();
        let lines = bytes::annotate(&golden[name]);
        all.push_str(&format!("{ANNOTATED}{name}\n{lines}```{rest}"));
    }
    format!("{all}{BEGIN}{end}{END}{after}")
}

#[test]
fn the_bytes_are_the_golden_ones() {
    let text = text();
    let written = with_bytes(&text);
    if std::env::var_os("BLACKHOLE_BLESS").is_some() {
        std::fs::write(path(), written).unwrap();
    } else {
        assert!(
            text == written,
            "the bytes in docs/protocol.md are not the golden ones: BLACKHOLE_BLESS=1 writes them"
        );
    }
}

#[test]
fn the_token_of_the_document_is_what_the_library_makes() {
    let key = blackhole_bus_schema::rpc::Key::from_bytes([7; 32]);
    let instance = "web.1".parse().unwrap();
    let token = key.token(&instance, blackhole_bus_schema::names::Generation(3));
    assert!(text().contains(&token), "{token}");
}

/// `docs/protocol.md` shows what the hash of these two topics is.
#[test]
fn the_hash_of_the_document_is_what_the_library_computes() {
    let mut tails = blackhole_bus_schema::bus::tails::Tails::default();
    tails.raise("evt.process.web.1.", 7);
    tails.raise("evt.process.db.1.", 2);
    let (topics, hash) = tails.sum("evt.process.");
    assert_eq!(topics, 2);
    assert!(text().contains(&format!("{hash}")), "{hash}");
}
