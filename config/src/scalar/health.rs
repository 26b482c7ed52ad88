//! The values of health checks.

use schemars::{Schema, SchemaGenerator, json_schema};
use toml::de::DeValue;

use super::{Scalar, Word, malformed, text, wrong_type};
use crate::diagnostics::Report;
use crate::problem::Problem;
use crate::read::{At, Node, Read};

/// What a backend is asked; other keys say more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CheckKind {
    None,
    Tcp,
    Http,
    Https,
    Grpc,
    Udp,
    Icmp,
}

impl Word for CheckKind {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("none", Self::None),
        ("tcp", Self::Tcp),
        ("http", Self::Http),
        ("https", Self::Https),
        ("grpc", Self::Grpc),
        ("udp", Self::Udp),
        ("icmp", Self::Icmp),
    ];
    const EXAMPLE: &'static str = "\"http\"";
}

/// A path with its query; the model says which are good.
#[derive(Clone, Debug)]
pub(crate) struct UrlPath(pub(crate) String);

impl Scalar for UrlPath {
    const EXPECTED: &'static str = "a path";
    const EXAMPLE: &'static str = "\"/healthz\"";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        text::<Self>(value).map(|path| Self(path.into()))
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^/" })
    }
}

/// The bytes of a datagram.
#[derive(Clone, Debug)]
pub(crate) struct Payload(pub(crate) Vec<u8>);

impl Scalar for Payload {
    const EXPECTED: &'static str = "a text, or bytes as hexadecimal digits";
    const EXAMPLE: &'static str = "\"0x00ff\"";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        let given = text::<Self>(value)?;
        payload(given).map(Self)
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string" })
    }
}

/// A text is its own bytes, unless it says otherwise.
fn payload(given: &str) -> Result<Vec<u8>, Problem> {
    match given.strip_prefix("0x") {
        None => Ok(given.into()),
        Some(digits) => bytes(digits).ok_or_else(|| malformed::<Payload>(given)),
    }
}

fn bytes(digits: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = digits
        .chars()
        .map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect();
    let (pairs, rest) = digits.as_deref()?.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

/// A part of all, in percent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share(pub(crate) u8);

impl Scalar for Share {
    const EXPECTED: &'static str = "a share from 0% to 100%";
    const EXAMPLE: &'static str = "\"50%\"";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        let given = text::<Self>(value)?;
        given
            .strip_suffix('%')
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok())
            .filter(|&percent| percent <= 100)
            .map(Self)
            .ok_or_else(|| malformed::<Self>(given))
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]{1,3}%$" })
    }
}

/// What a good answer is: a value, or a list of them. What they mean depends on the check.
#[derive(Debug)]
pub(crate) struct Expect(pub(crate) Vec<At<ExpectItem>>);

/// One good answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ExpectItem {
    /// A number.
    Number(u16),
    /// A range of numbers, or a text.
    Text(String),
}

impl Scalar for ExpectItem {
    const EXPECTED: &'static str = "a status code, a range of them, or a text";
    const EXAMPLE: &'static str = "\"200-299\"";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        match value {
            DeValue::String(text) => Ok(Self::Text(text.to_string())),
            DeValue::Integer(_) => {
                super::Within::<u16, 100, 599>::parse(value).map(|code| Self::Number(code.0))
            }
            _ => Err(wrong_type::<Self>(value)),
        }
    }

    fn schema() -> Schema {
        json_schema!({
            "anyOf": [<super::Within<u16, 100, 599> as Scalar>::schema(), { "type": "string" }],
        })
    }
}

impl ExpectItem {
    /// As status codes, ends included.
    pub(crate) fn statuses(&self) -> Result<(u16, u16), Problem> {
        let given = match self {
            Self::Number(code) => return Ok((*code, *code)),
            Self::Text(given) => given,
        };
        let range = super::range(given).or_else(|| given.parse().ok().map(|code| (code, code)));
        range
            .and_then(|(low, high)| Some((low.try_into().ok()?, high.try_into().ok()?)))
            .ok_or_else(|| Problem::Malformed {
                given: given.clone(),
                expected: "a status code or a range of them",
                example: "\"200-299\"",
            })
    }

    /// As the bytes of a datagram.
    pub(crate) fn payload(&self) -> Result<Vec<u8>, Problem> {
        match self {
            Self::Number(number) => Err(malformed::<Payload>(&number.to_string())),
            Self::Text(given) => payload(given),
        }
    }
}

impl Read for Expect {
    const EXAMPLE: &'static str = "[200, \"300-399\"]";

    fn read(node: &Node<'_>, report: &mut Report) -> Option<Self> {
        let items = match node.get_ref() {
            DeValue::Array(items) => items.iter().collect(),
            _ => vec![node],
        };
        let items = items.into_iter().filter_map(|item| At::read(item, report));
        Some(Self(items.collect()))
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        let item = <ExpectItem as Scalar>::schema();
        json_schema!({ "anyOf": [item, { "type": "array", "items": item, "minItems": 1 }] })
    }
}
