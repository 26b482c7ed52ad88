//! The values that a key can have: for each, how it is read, and what the schema says of it.

use std::time::Duration;

use schemars::{Schema, SchemaGenerator, json_schema};
use toml::de::DeValue;

use crate::diagnostics::Report;
use crate::problem::Problem;
use crate::read::{Node, Read, kind};
use crate::{PACE_MAX, PACE_MIN};

mod health;
mod keys;
mod machine;
mod network;
mod words;

pub(crate) use health::{CheckKind, Expect, Payload, Share, UrlPath};
pub(crate) use machine::{Device, Directory, EalArgument, FilePath, InterfaceName};
pub(crate) use network::{Mss, PeerAddress, ServiceAddress, ServicePort};
pub use words::ForwardMode;
pub(crate) use words::{BackendState, Word};

/// One value, not a table or a list.
pub(crate) trait Scalar: Sized {
    /// What it is, as in "expected …".
    const EXPECTED: &'static str;
    /// How it is written.
    const EXAMPLE: &'static str;

    /// Reads `value`.
    fn parse(value: &DeValue<'_>) -> Result<Self, Problem>;

    /// What may be written.
    fn schema() -> Schema;
}

impl<T: Scalar> Read for T {
    const EXAMPLE: &'static str = T::EXAMPLE;

    fn read(node: &Node<'_>, report: &mut Report) -> Option<Self> {
        T::parse(node.get_ref()).map_err(|problem| report.add(node.span().into(), problem)).ok()
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        T::schema()
    }
}

fn wrong_type<T: Scalar>(value: &DeValue<'_>) -> Problem {
    Problem::WrongType { expected: T::EXPECTED, found: kind(value), example: T::EXAMPLE }
}

fn not_a_number<T: Scalar>(value: &DeValue<'_>) -> Problem {
    match value.as_str() {
        Some(text) if text.parse::<i64>().is_ok() => Problem::QuotedNumber { given: text.into() },
        _ => wrong_type::<T>(value),
    }
}

fn malformed<T: Scalar>(given: &str) -> Problem {
    Problem::Malformed { given: given.into(), expected: T::EXPECTED, example: T::EXAMPLE }
}

/// The string that a value of type `T` is written as.
fn text<'v, T: Scalar>(value: &'v DeValue<'_>) -> Result<&'v str, Problem> {
    value.as_str().ok_or_else(|| wrong_type::<T>(value))
}

/// `low-high`, if those are numbers.
fn range(given: &str) -> Option<(u64, u64)> {
    let (low, high) = given.split_once('-')?;
    Some((low.trim().parse().ok()?, high.trim().parse().ok()?))
}

impl Scalar for bool {
    const EXPECTED: &'static str = "true or false";
    const EXAMPLE: &'static str = "true";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        value.as_bool().ok_or_else(|| wrong_type::<Self>(value))
    }

    fn schema() -> Schema {
        json_schema!({ "type": "boolean" })
    }
}

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Within<T, const MIN: i64, const MAX: i64>(pub(crate) T);

impl<T: TryFrom<i64>, const MIN: i64, const MAX: i64> Scalar for Within<T, MIN, MAX> {
    const EXPECTED: &'static str = "a whole number";
    const EXAMPLE: &'static str = "1";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        let Some(integer) = value.as_integer() else {
            return Err(not_a_number::<Self>(value));
        };
        i64::from_str_radix(integer.as_str(), integer.radix())
            .ok()
            .filter(|number| (MIN..=MAX).contains(number))
            .and_then(|number| T::try_from(number).ok())
            .map(Self)
            .ok_or_else(|| Problem::OutOfRange { given: integer.to_string(), min: MIN, max: MAX })
    }

    fn schema() -> Schema {
        json_schema!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

impl Scalar for String {
    const EXPECTED: &'static str = "a name in quotes";
    const EXAMPLE: &'static str = "\"web\"";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        text::<Self>(value).map(Into::into)
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string" })
    }
}

/// Time between two states that are taken from a feed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace(pub(crate) Duration);

impl Scalar for Pace {
    const EXPECTED: &'static str = <Duration as Scalar>::EXPECTED;
    const EXAMPLE: &'static str = "\"100ms\"";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        let pace = Duration::parse(value)?;
        let is_sound = (PACE_MIN..=PACE_MAX).contains(&pace);
        if is_sound { Ok(Self(pace)) } else { Err(Problem::PaceOfNoUse) }
    }

    fn schema() -> Schema {
        <Duration as Scalar>::schema()
    }
}

impl Scalar for Duration {
    const EXPECTED: &'static str = "a time with its unit";
    const EXAMPLE: &'static str = "\"15m\"";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        let given = text::<Self>(value)?;
        humantime::parse_duration(given).map_err(|_| malformed::<Self>(given))
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^([0-9]+ ?[a-z]+ ?)+$" })
    }
}
