//! What the machine has: devices, interfaces, files.

use schemars::{Schema, json_schema};
use toml::de::DeValue;

use super::{Scalar, malformed, text};
use crate::problem::Problem;

/// A DPDK device with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device(pub(crate) String);

impl Scalar for Device {
    const EXPECTED: &'static str = "a DPDK device";
    const EXAMPLE: &'static str = "\"0000:01:00.0\"";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        argument::<Self>(value).map(Self)
    }

    fn schema() -> Schema {
        argument_schema()
    }
}

/// A directory, by its absolute path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Directory(pub(crate) String);

impl Scalar for Directory {
    const EXPECTED: &'static str = "the absolute path of a directory";
    const EXAMPLE: &'static str = "\"/run/weir/edge-1\"";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        absolute::<Self>(value).map(Self)
    }

    fn schema() -> Schema {
        absolute_schema()
    }
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FilePath(pub(crate) String);

impl Scalar for FilePath {
    const EXPECTED: &'static str = "the absolute path of a file";
    const EXAMPLE: &'static str = "\"/etc/weir/ca.pem\"";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        absolute::<Self>(value).map(Self)
    }

    fn schema() -> Schema {
        absolute_schema()
    }
}

/// An argument for DPDK's environment layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EalArgument(pub(crate) String);

impl Scalar for EalArgument {
    const EXPECTED: &'static str = "an argument for DPDK";
    const EXAMPLE: &'static str = "\"--log-level=lib.eal:debug\"";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        argument::<Self>(value).map(Self)
    }

    fn schema() -> Schema {
        argument_schema()
    }
}

/// DPDK takes C strings: nothing empty, and no control characters.
fn argument<T: Scalar>(value: &DeValue<'_>) -> Result<String, Problem> {
    let given = text::<T>(value)?;
    if given.trim().is_empty() || given.contains(char::is_control) {
        return Err(malformed::<T>(given));
    }
    Ok(given.into())
}

fn argument_schema() -> Schema {
    json_schema!({ "type": "string", "minLength": 1 })
}

/// The same, of paths that do not depend on where the process runs.
fn absolute<T: Scalar>(value: &DeValue<'_>) -> Result<String, Problem> {
    let given = argument::<T>(value)?;
    if given.starts_with('/') { Ok(given) } else { Err(malformed::<T>(&given)) }
}

fn absolute_schema() -> Schema {
    json_schema!({ "type": "string", "pattern": "^/" })
}

/// The name of a Linux network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InterfaceName(pub(crate) String);

impl Scalar for InterfaceName {
    const EXPECTED: &'static str = "an interface's name";
    const EXAMPLE: &'static str = "\"lan0\"";

    /// The kernel takes more (`dev_valid_name` in net/core/dev.c: 15 bytes, no '/', ':' or space);
    /// these are the names that no tool trips over. "all" and "default" are directories beside
    /// the interfaces in /proc/sys/net.
    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        let given = text::<Self>(value)?;
        let taken = ["lo", "all", "default", ".", ".."].contains(&given);
        let plain = given.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if taken || !plain || given.is_empty() || given.len() > 15 {
            return Err(Problem::InterfaceName { given: given.into() });
        }
        Ok(Self(given.into()))
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^[A-Za-z0-9._-]{1,15}$" })
    }
}
