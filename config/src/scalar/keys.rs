//! Keys, as hexadecimal digits.

use lb_core::model::HashKey;
use schemars::{Schema, json_schema};
use toml::de::DeValue;

use super::{Scalar, malformed, text};
use crate::PeerKey;
use crate::problem::Problem;

impl Scalar for HashKey {
    const EXPECTED: &'static str = "a key of 32 hexadecimal digits";
    const EXAMPLE: &'static str = "\"8f0c4a5be2d91733a6c05ef9b4127d68\"";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        let given = text::<Self>(value)?;
        if given.len() != 32 || !given.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Problem::HashKey { digits: given.chars().count() });
        }
        let key = u128::from_str_radix(given, 16).map_err(|_| malformed::<Self>(given))?;
        Ok(Self(key.to_be_bytes()))
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9A-Fa-f]{32}$" })
    }
}

impl Scalar for PeerKey {
    const EXPECTED: &'static str = "a key of 64 hexadecimal digits";
    const EXAMPLE: &'static str =
        "\"2f6c0b1e94d75a38c1f20e7bd8495a630f9be2c47158d6a3e07c1b94f25d8a6e\"";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        let given = text::<Self>(value)?;
        let key = given.as_bytes().chunks(2).map(|pair| {
            let is_hex = pair.len() == 2 && pair.iter().all(u8::is_ascii_hexdigit);
            let digits = std::str::from_utf8(pair).ok().filter(|_| is_hex)?;
            u8::from_str_radix(digits, 16).ok()
        });
        let key: Option<Vec<u8>> = key.collect();
        let key = key.and_then(|key| key.try_into().ok());
        key.map(Self).ok_or_else(|| Problem::PeerKey { digits: given.chars().count() })
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9A-Fa-f]{64}$" })
    }
}
