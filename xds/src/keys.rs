//! The keys of a `[[service]]` where xDS has no field for them: in metadata, as a `Struct`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::google::protobuf::value::Kind as ValueKind;
use envoy_types::pb::google::protobuf::{Struct, Value};

use crate::Unfit;

/// Whose metadata it is.
pub(crate) const NAMESPACE: &str = "weir";

/// Keys of a `[[service]]` with their values, as TOML.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys(BTreeMap<String, String>);

impl Keys {
    /// With `key`, whose value is a string.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.0.insert(key.into(), quoted(value));
        self
    }

    /// With `key`, whose value is a number.
    #[must_use]
    pub fn with_number(mut self, key: &str, value: u32) -> Self {
        self.0.insert(key.into(), value.to_string());
        self
    }

    /// Those of the metadata that are ours.
    pub(crate) fn of(metadata: Option<&Metadata>) -> Result<Self, Unfit> {
        let Some(given) = ours(metadata) else { return Ok(Self::default()) };
        if given.fields.contains_key("backends") {
            return Err(Unfit::Backends);
        }
        let entries = given.fields.iter();
        let entries = entries.map(|(key, value)| Ok((key.clone(), toml(key, value)?)));
        entries.collect::<Result<_, _>>().map(Self)
    }

    /// With those of `others`, which win.
    pub(crate) fn and(&self, others: &Self) -> Self {
        let both = self.0.iter().chain(&others.0);
        Self(both.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    /// As the inside of a table.
    pub(crate) fn to_toml(&self) -> String {
        self.0.iter().fold(String::new(), |mut text, (key, value)| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{} = {value}", quoted(key));
            text
        })
    }
}

/// What of the metadata is ours.
pub(crate) fn ours(metadata: Option<&Metadata>) -> Option<&Struct> {
    metadata?.filter_metadata.get(NAMESPACE)
}

/// JSON's strings are TOML's basic ones: the same quotes and escapes.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// `value` as TOML. It was decoded, so that it is not deeper than prost goes (100).
fn toml(key: &str, value: &Value) -> Result<String, Unfit> {
    let kind = value.kind.as_ref().filter(|kind| !matches!(kind, ValueKind::NullValue(_)));
    match kind
        .ok_or_else(|| Unfit::Metadata(format!("`{}` has no value", crate::unfit::short(key))))?
    {
        ValueKind::NullValue(_) => Ok(String::new()),
        ValueKind::NumberValue(number) => Ok(number_of(*number)),
        ValueKind::StringValue(text) => Ok(quoted(text)),
        ValueKind::BoolValue(value) => Ok(value.to_string()),
        ValueKind::ListValue(list) => {
            let values = list.values.iter().map(|value| toml(key, value));
            Ok(format!("[{}]", values.collect::<Result<Vec<_>, _>>()?.join(", ")))
        }
        ValueKind::StructValue(table) => {
            let fields: BTreeMap<_, _> = table.fields.iter().collect();
            let entry = |(key, value): (&String, &Value)| {
                Ok(format!("{} = {}", quoted(key), toml(key, value)?))
            };
            let entries = fields.into_iter().map(entry).collect::<Result<Vec<_>, _>>()?;
            Ok(format!("{{ {} }}", entries.join(", ")))
        }
    }
}

/// A `Struct` knows only one kind of number; a whole one is TOML's integer.
fn number_of(number: f64) -> String {
    /// Up to here every whole number has a double of its own.
    const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() <= WHOLE_MAX {
        format!("{number:.0}")
    } else if number.is_nan() {
        "nan".into()
    } else if number.is_infinite() {
        if number > 0.0 { "inf".into() } else { "-inf".into() }
    } else {
        format!("{number:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{metadata, number, string, table};

    #[test]
    fn a_struct_becomes_a_table() {
        let given = metadata([
            ("forward", string("ipip")),
            ("slots", number(1009.0)),
            ("half", number(0.5)),
            ("odd \"key\"", string("a\nb")),
            ("health", table([("check", string("tcp")), ("rise", number(3.0))])),
        ]);
        let keys = Keys::of(Some(&given)).unwrap();
        assert_eq!(
            keys.to_toml(),
            "\"forward\" = \"ipip\"\n\"half\" = 0.5\n\
             \"health\" = { \"check\" = \"tcp\", \"rise\" = 3 }\n\
             \"odd \\\"key\\\"\" = \"a\\nb\"\n\"slots\" = 1009\n"
        );
    }

    #[test]
    fn what_is_no_value_is_refused() {
        let nothing = metadata([("mss", Value { kind: None })]);
        let says = Keys::of(Some(&nothing)).unwrap_err().to_string();
        assert_eq!(says, "metadata \"weir\": `mss` has no value");
        let backends = metadata([("backends", string(""))]);
        assert_eq!(Keys::of(Some(&backends)), Err(Unfit::Backends));
        assert_eq!(Keys::of(None), Ok(Keys::default()));
    }

    #[test]
    fn numbers_that_no_key_takes_do_not_break_the_rest() {
        for (number, text) in [
            (f64::NAN, "nan"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (1e300, "1e300"),
            (-3.0, "-3"),
        ] {
            assert_eq!(number_of(number), text);
        }
    }
}
