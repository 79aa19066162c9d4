//! The document, as far as the tests read it: a section for each heading of the
//! fourth level that is a name in backticks, with its table.

/// Which plane a section belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plane {
    Bus,
    Rpc,
}

/// A type as the tables write it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Type {
    Base(String),
    Named(String),
    List(Box<Type>),
    Map(Box<Type>),
    Pair(Box<Type>, Box<Type>),
    OrNil(Box<Type>),
    /// The fields of another table stand in the same map.
    Fields(String),
}

impl Type {
    fn parse(text: &str) -> Self {
        let text = text.trim();
        let boxed = |text: &str| Box::new(Self::parse(text));
        if let Some(rest) = text.strip_prefix("fields of ") {
            return Self::Fields(rest.trim_matches('`').to_owned());
        }
        if let Some(rest) = text.strip_suffix(" or nil") {
            return Self::OrNil(boxed(rest));
        }
        if let Some(rest) = text.strip_prefix("list of ") {
            return Self::List(boxed(rest));
        }
        if let Some(rest) = text.strip_prefix("map of ") {
            return Self::Map(boxed(rest));
        }
        if let Some(rest) = text.strip_prefix("pair of ") {
            let (first, second) = rest.split_once(", ").unwrap();
            return Self::Pair(boxed(first), boxed(second));
        }
        match text.strip_prefix('`') {
            Some(name) => Self::Named(name.trim_end_matches('`').to_owned()),
            None => Self::Base(text.to_owned()),
        }
    }
}

/// A row of a table.
#[derive(Debug, Clone)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) kind: Type,
    pub(super) required: String,
    pub(super) meaning: String,
}

/// One heading with what stands below it.
#[derive(Debug, Default)]
pub(super) struct Section {
    pub(super) fields: Vec<Field>,
    /// The values of an enumeration.
    pub(super) one_of: Vec<String>,
    /// The text that may stand instead of the map.
    pub(super) or_text: Option<String>,
    /// Names of golden bytes.
    pub(super) bytes: Vec<String>,
    pub(super) is_rpc: bool,
}

impl Section {
    pub(super) fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

fn backticked(text: &str) -> Vec<String> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

pub(super) struct Document {
    sections: Vec<(String, Section)>,
}

impl Document {
    pub(super) fn parse(text: &str) -> Self {
        let mut sections: Vec<(String, Section)> = Vec::new();
        let (mut open, mut rpc) = (false, false);
        for paragraph in text.split("\n\n") {
            let paragraph = paragraph.trim();
            if let Some(heading) = paragraph.strip_prefix("#### `") {
                open = true;
                let section = Section {
                    is_rpc: rpc,
                    ..Section::default()
                };
                sections.push((heading.trim_end_matches('`').to_owned(), section));
                continue;
            }
            if paragraph.starts_with('#') {
                open = false;
                if let Some(chapter) = paragraph.strip_prefix("## ") {
                    rpc = chapter.starts_with("RPC");
                }
            }
            let Some((_, section)) = sections.last_mut().filter(|_| open) else {
                continue;
            };
            if paragraph.starts_with("| field |") {
                section.fields.extend(paragraph.lines().skip(2).map(row));
            } else if paragraph.starts_with("One of:") {
                // A remark may follow in sentences of its own.
                let list = paragraph.split(". ").next().unwrap_or_default();
                section.one_of = backticked(list);
            } else if paragraph.starts_with("The text `") {
                section.or_text = backticked(paragraph).into_iter().next();
            } else if paragraph.starts_with("Bytes:") {
                section.bytes = backticked(paragraph);
            }
        }
        Self { sections }
    }

    pub(super) fn sections(&self, plane: Plane) -> impl Iterator<Item = (&str, &Section)> {
        self.sections
            .iter()
            .filter(move |(_, section)| section.is_rpc == (plane == Plane::Rpc))
            .map(|(name, section)| (name.as_str(), section))
    }

    pub(super) fn find(&self, name: &str) -> Option<&Section> {
        let mut found = self.sections.iter().filter(|(other, _)| other == name);
        let first = found.next().map(|(_, section)| section);
        assert!(found.next().is_none(), "{name} stands there twice");
        first
    }
}

fn row(line: &str) -> Field {
    let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
    let [name, kind, required, meaning] = cells[..] else {
        panic!("not four cells: {line}");
    };
    Field {
        name: name.trim_matches('`').to_owned(),
        kind: Type::parse(kind),
        required: required.to_owned(),
        meaning: meaning.to_owned(),
    }
}
