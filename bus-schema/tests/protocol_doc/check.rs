//! Values against tables.

use std::collections::{BTreeMap, BTreeSet};

use rmpv::Value;

use super::decoders;
use super::document::{Document, Field, Plane, Type};

/// The fields of a map.
type Fields = Vec<(Value, Value)>;

pub(super) struct Checker<'a> {
    document: &'a Document,
    decoders: BTreeMap<&'static str, decoders::Decodes>,
    /// Tables, and fields of tables, that some bytes have shown.
    seen: BTreeSet<(String, String)>,
    pub(super) errors: Vec<String>,
}

impl<'a> Checker<'a> {
    pub(super) fn new(document: &'a Document) -> Self {
        Self {
            document,
            decoders: decoders::structures(),
            seen: BTreeSet::new(),
            errors: Vec::new(),
        }
    }

    pub(super) fn error(&mut self, text: String) {
        if !self.errors.contains(&text) {
            self.errors.push(text);
        }
    }

    fn see(&mut self, table: &str, field: &str) {
        self.seen.insert((table.to_owned(), field.to_owned()));
    }

    /// A value against the table of this name.
    pub(super) fn structure(&mut self, name: &str, value: &Value, at: &str) {
        let Some(section) = self.document.find(name) else {
            return self.error(format!("{at}: there is no table {name:?}"));
        };
        self.see(name, "");
        if let Some(text) = value.as_str() {
            let known = section.one_of.iter().any(|one| one == text)
                || section.or_text.as_deref() == Some(text);
            if !known {
                self.error(format!("{at}: {text:?} is none of {name}"));
            }
            return;
        }
        let Some(map) = value.as_map() else {
            return self.error(format!("{at}: {value} is no {name}"));
        };
        let rows = self.rows(name);
        for (key, _) in map {
            let key = key.as_str().unwrap_or_default();
            if !rows.iter().any(|(_, field)| field.name == key) {
                self.error(format!(
                    "{at}: the field {key:?} is not in the table {name}"
                ));
            }
        }
        let ones = rows.iter().filter(|(_, field)| field.required == "one");
        if ones.clone().count() > 0
            && ones
                .filter(|(_, field)| super::field(value, &field.name).is_some())
                .count()
                != 1
        {
            self.error(format!("{at}: not exactly one of the fields of {name}"));
        }
        for (table, field) in &rows {
            self.field(name, table, field, value, at);
        }
    }

    /// The rows of a table, with those whose fields stand in the same map.
    fn rows(&mut self, name: &str) -> Vec<(String, Field)> {
        let Some(section) = self.document.find(name) else {
            self.error(format!("there is no table {name:?}"));
            return Vec::new();
        };
        let mut rows = Vec::new();
        for field in &section.fields {
            match &field.kind {
                Type::Fields(other) => {
                    self.see(name, &field.name);
                    self.see(other, "");
                    rows.extend(self.rows(other));
                }
                _ => rows.push((name.to_owned(), field.clone())),
            }
        }
        rows
    }

    fn field(&mut self, name: &str, table: &str, field: &Field, map: &Value, at: &str) {
        let at = format!("{at}: {name}.{}", field.name);
        let Some(value) = super::field(map, &field.name) else {
            let missing = match field.required.as_str() {
                "yes" => true,
                condition => condition
                    .strip_prefix("when ")
                    .is_some_and(|condition| holds(condition, map)),
            };
            if missing {
                self.error(format!("{at} is required and not there"));
            }
            return;
        };
        if let Some(condition) = field.required.strip_prefix("when ")
            && !holds(condition, map)
        {
            self.error(format!("{at} is there, but not {}", field.required));
        }
        self.see(table, &field.name);
        self.value(&field.kind, value, &at);
        self.leave_out(name, field, map, &at);
    }

    /// What the decoder says to a map without the field, and with nil in it.
    fn leave_out(&mut self, name: &str, field: &Field, map: &Value, at: &str) {
        let Some(decodes) = self.decoders.get(name).copied() else {
            return self.error(format!("no decoder for {name}"));
        };
        if !decodes(map) {
            return self.error(format!("{at}: {name} does not decode"));
        }
        let changed = |change: &dyn Fn(&mut Fields)| {
            let mut fields = map.as_map().cloned().unwrap_or_default();
            change(&mut fields);
            Value::Map(fields)
        };
        let without =
            changed(&|fields| fields.retain(|(key, _)| key.as_str() != Some(&field.name)));
        let may_be_nil = matches!(field.kind, Type::OrNil(_));
        let needed = match field.required.as_str() {
            "no" => false,
            "yes" | "one" => true,
            // Where it may be nil in one case it may not be in another.
            _ if may_be_nil => return,
            _ => true,
        };
        if decodes(&without) == needed {
            self.error(format!(
                "{at}: required is {:?}, but a map without it is {}",
                field.required,
                if needed { "accepted" } else { "refused" }
            ));
        }
        if may_be_nil {
            let nil = changed(&|fields| {
                for (key, value) in fields {
                    if key.as_str() == Some(&field.name) {
                        *value = Value::Nil;
                    }
                }
            });
            if !decodes(&nil) {
                self.error(format!("{at}: nil is refused"));
            }
        }
    }

    fn value(&mut self, kind: &Type, value: &Value, at: &str) {
        let fits = match kind {
            Type::OrNil(_) if value.is_nil() => true,
            Type::OrNil(inner) => return self.value(inner, value, at),
            Type::Named(name) => return self.structure(name, value, at),
            Type::List(item) => match value.as_array() {
                Some(items) => {
                    for value in items {
                        self.value(item, value, at);
                    }
                    true
                }
                None => false,
            },
            Type::Map(item) => match value.as_map() {
                Some(items) => {
                    for (key, value) in items {
                        self.value(&Type::Base("text".to_owned()), key, at);
                        self.value(item, value, at);
                    }
                    true
                }
                None => false,
            },
            Type::Pair(first, second) => match value.as_array().map(Vec::as_slice) {
                Some([one, two]) => {
                    self.value(first, one, at);
                    self.value(second, two, at);
                    true
                }
                _ => false,
            },
            Type::Base(base) => is(base, value),
            Type::Fields(_) => true,
        };
        if !fits {
            self.error(format!("{at}: {value} is no {kind:?}"));
        }
    }

    /// Tables and fields that no golden bytes show.
    pub(super) fn unseen(&mut self) {
        let mut unseen = Vec::new();
        for (name, section) in self.document.sections(Plane::Bus) {
            if !self.seen.contains(&(name.to_owned(), String::new())) {
                unseen.push(format!("{name} is in no golden bytes"));
            }
            for field in &section.fields {
                if !self.seen.contains(&(name.to_owned(), field.name.clone())) {
                    unseen.push(format!("{name}.{} is in no golden bytes", field.name));
                }
            }
        }
        for text in unseen {
            self.error(text);
        }
    }
}

/// `a = b or c, or d = e`.
fn holds(condition: &str, map: &Value) -> bool {
    condition.split(", or ").any(|clause| {
        let Some((name, values)) = clause.split_once(" = ") else {
            panic!("not a condition: {condition}");
        };
        let value = super::field(map, name).and_then(Value::as_str);
        values.split(" or ").any(|expected| value == Some(expected))
    })
}

fn is(base: &str, value: &Value) -> bool {
    let parses = |valid: fn(&str) -> bool| value.as_str().is_some_and(valid);
    match base {
        "any" => true,
        "bool" => value.is_bool(),
        "bytes" => value.is_bin(),
        "id" => value.as_slice().is_some_and(|bytes| bytes.len() == 16) && value.is_bin(),
        "float" => value.is_f64(),
        "int" => value.is_i64() || value.is_u64(),
        "uint" | "generation" | "unix_ns" | "ns" | "us" | "ms" | "bytes_count" | "percent" => {
            value.is_u64()
        }
        "text" => value.is_str(),
        "instance" => parses(|text| {
            text.parse::<blackhole_bus_schema::names::InstanceName>()
                .is_ok()
        }),
        "service" => parses(|text| {
            text.parse::<blackhole_bus_schema::names::ServiceName>()
                .is_ok()
        }),
        "component" => parses(|text| {
            text.parse::<blackhole_bus_schema::names::Component>()
                .is_ok()
        }),
        "client" => parses(|text| {
            text.parse::<blackhole_bus_schema::names::ClientName>()
                .is_ok()
        }),
        other => panic!("{other:?} is no type"),
    }
}
