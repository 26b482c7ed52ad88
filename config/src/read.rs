//! From a TOML tree to typed fields, without stopping at the first mistake.
//!
//! Serde's derived readers stop at their first error. Here a mistake is noted in the [`Report`],
//! its field stays empty, and reading goes on. [`table!`] declares the keys of a table once: the
//! struct, its reader, the known keys in messages and the JSON schema all come from that list.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostics::{Report, Span};
use crate::problem::{Problem, similar};

/// A value in the tree.
pub(crate) type Node<'i> = Spanned<DeValue<'i>>;

/// Something that stands as a value in the file.
pub(crate) trait Read: Sized {
    /// How it is written, for messages.
    const EXAMPLE: &'static str;

    /// Reads `node`. `None`: it cannot be read, and `report` has the reason.
    fn read(node: &Node<'_>, report: &mut Report) -> Option<Self>;

    /// What may be written.
    fn schema(generator: &mut SchemaGenerator) -> Schema;
}

/// A value that was read, and where it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) span: Span,
    /// Nothing was wrong within it.
    pub(crate) sound: bool,
}

impl<T: Read> At<T> {
    pub(crate) fn read(node: &Node<'_>, report: &mut Report) -> Option<Self> {
        let before = report.count();
        let value = T::read(node, report)?;
        Some(Self { value, span: node.span().into(), sound: report.count() == before })
    }
}

/// The table that is being read.
pub(crate) struct Table<'a, 'i> {
    entries: &'a DeTable<'i>,
    span: Span,
    /// How messages call it.
    called: &'static str,
    /// Keys that unknown ones were probably meant to be: not to be called missing, too.
    meant: Vec<&'static str>,
}

impl<'a, 'i> Table<'a, 'i> {
    /// Notes every key that is not `known`.
    pub(crate) fn new(
        entries: &'a DeTable<'i>,
        span: Span,
        called: &'static str,
        known: &'static [&'static str],
        report: &mut Report,
    ) -> Self {
        let mut meant = Vec::new();
        for key in entries.keys().filter(|key| !known.contains(&key.get_ref().as_ref())) {
            meant.extend(similar(key.get_ref(), known));
            let given = key.get_ref().to_string();
            let problem = Problem::UnknownKey { key: given, table: called, known };
            report.add(key.span().into(), problem);
        }
        Self { entries, span, called, meant }
    }
}

/// A key's place in its table: required, optional, or a list.
pub(crate) trait Field: Sized {
    /// Must the key be there?
    const REQUIRED: bool = false;

    /// Reads what `table` has for `key`.
    fn read(table: &Table<'_, '_>, key: &'static str, report: &mut Report) -> Self;

    /// What may be written.
    fn schema(generator: &mut SchemaGenerator) -> Schema;
}

/// What a key has that must be there; `None` if it is not, or cannot be read.
#[derive(Debug)]
pub(crate) struct Required<T>(pub(crate) Option<At<T>>);

impl<T> Default for Required<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Read> Field for Required<T> {
    const REQUIRED: bool = true;

    fn read(table: &Table<'_, '_>, key: &'static str, report: &mut Report) -> Self {
        let Some(node) = table.entries.get(key) else {
            if !table.meant.contains(&key) {
                let missing = Problem::MissingKey { key, table: table.called, example: T::EXAMPLE };
                report.add(table.span, missing);
            }
            return Self(None);
        };
        Self(At::read(node, report))
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        T::schema(generator)
    }
}

/// What a key has that may be absent; `None` as well if it cannot be read.
pub(crate) type Optional<T> = Option<At<T>>;

impl<T: Read> Field for Optional<T> {
    fn read(table: &Table<'_, '_>, key: &'static str, report: &mut Report) -> Self {
        At::read(table.entries.get(key)?, report)
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        T::schema(generator)
    }
}

/// What cannot be read either is there, for those to whom absence says something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given<T>(pub(crate) Option<T>);

impl<T: Read> Read for Given<T> {
    const EXAMPLE: &'static str = T::EXAMPLE;

    fn read(node: &Node<'_>, report: &mut Report) -> Option<Self> {
        Some(Self(T::read(node, report)))
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        T::schema(generator)
    }
}

/// A list that may be absent, which is the same as empty. Entries that cannot be read are left out.
#[derive(Debug)]
pub(crate) struct List<T> {
    pub(crate) items: Vec<At<T>>,
    /// Nothing was wrong within it.
    pub(crate) sound: bool,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { items: Vec::new(), sound: true }
    }
}

impl<T: Read> Field for List<T> {
    fn read(table: &Table<'_, '_>, key: &'static str, report: &mut Report) -> Self {
        let before = report.count();
        let items = match table.entries.get(key).map(|node| (node, node.get_ref())) {
            None => Vec::new(),
            Some((_, DeValue::Array(array))) => {
                array.iter().filter_map(|node| At::read(node, report)).collect()
            }
            Some((node, other)) => {
                let problem = Problem::NotAList { found: kind(other), example: T::EXAMPLE };
                report.add(node.span().into(), problem);
                Vec::new()
            }
        };
        Self { items, sound: report.count() == before }
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "array", "items": T::schema(generator) })
    }
}

/// As [`List`], of tables; and one alone may be written without being a list.
#[derive(Debug)]
pub(crate) struct OneOrMore<T> {
    pub(crate) items: Vec<At<T>>,
}

impl<T> Default for OneOrMore<T> {
    fn default() -> Self {
        Self { items: Vec::new() }
    }
}

impl<T: Read> Field for OneOrMore<T> {
    fn read(table: &Table<'_, '_>, key: &'static str, report: &mut Report) -> Self {
        let items = match table.entries.get(key) {
            Some(node) if node.get_ref().is_table() => At::read(node, report).into_iter().collect(),
            _ => List::read(table, key, report).items,
        };
        Self { items }
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [T::schema(generator), List::<T>::schema(generator)] })
    }
}

/// What a value is, for people.
pub(crate) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// The schema of a table, key by key.
#[derive(Debug, Default)]
pub(crate) struct TableSchema {
    properties: Map<String, Value>,
    required: Vec<Value>,
}

impl TableSchema {
    pub(crate) fn add<F: Field>(
        &mut self,
        generator: &mut SchemaGenerator,
        key: &str,
        doc: &[&str],
        default: Option<Value>,
    ) {
        let mut schema = F::schema(generator);
        schema.insert("description".into(), paragraph(doc).into());
        if let Some(default) = default {
            schema.insert("default".into(), default);
        }
        self.properties.insert(key.into(), schema.into());
        if F::REQUIRED {
            self.required.push(key.into());
        }
    }

    pub(crate) fn finish(self, doc: &[&str]) -> Schema {
        let mut schema = json_schema!({
            "description": paragraph(doc),
            "type": "object",
            "properties": self.properties,
            "additionalProperties": false,
        });
        if !self.required.is_empty() {
            schema.insert("required".into(), self.required.into());
        }
        schema
    }
}

/// The lines of a documentation comment as one.
fn paragraph(doc: &[&str]) -> String {
    doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

/// Declares a table of the file: how messages call it, an example, and its keys, each with its
/// [`Field`] type and, for the schema, its default.
macro_rules! table {
    (
        $(#[doc = $about:literal])+
        $name:ident ($called:literal, $example:literal) {
            $( $(#[doc = $doc:literal])+ $key:ident: $field:ty $(= $default:expr)?, )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Default)]
        pub(crate) struct $name {
            $( $(#[doc = $doc])+ pub(crate) $key: $field, )+
        }

        impl $name {
            /// Reads every key, whatever is wrong with the others.
            pub(crate) fn read_entries(
                entries: &toml::de::DeTable<'_>,
                span: $crate::diagnostics::Span,
                report: &mut $crate::diagnostics::Report,
            ) -> Self {
                const KEYS: &[&str] = &[$( stringify!($key) ),+];
                let table = $crate::read::Table::new(entries, span, $called, KEYS, report);
                Self {
                    $( $key: $crate::read::Field::read(&table, stringify!($key), report), )+
                }
            }
        }

        impl $crate::read::Read for $name {
            const EXAMPLE: &'static str = $example;

            fn read(
                node: &$crate::read::Node<'_>,
                report: &mut $crate::diagnostics::Report,
            ) -> Option<Self> {
                let span = node.span().into();
                match node.get_ref() {
                    toml::de::DeValue::Table(entries) => {
                        Some(Self::read_entries(entries, span, report))
                    }
                    other => {
                        report.add(span, $crate::problem::Problem::WrongType {
                            expected: $called,
                            found: $crate::read::kind(other),
                            example: $example,
                        });
                        None
                    }
                }
            }

            fn schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                generator.subschema_for::<Self>()
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let mut table = $crate::read::TableSchema::default();
                $(
                    let default = None $( .or(Some(serde_json::json!($default))) )?;
                    table.add::<$field>(generator, stringify!($key), &[$($doc),+], default);
                )+
                table.finish(&[$($about),+])
            }
        }
    };
}
pub(crate) use table;
