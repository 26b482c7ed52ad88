//! Addresses, ports and sizes of a network.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use lb_core::model::{ClientPrefix, MSS_MIN, MssClamp, PortRange};
use lb_core::wire::ethernet::MacAddr;
use schemars::{Schema, json_schema};
use toml::de::DeValue;

use super::{Scalar, Within, malformed, not_a_number, range, text, wrong_type};
use crate::problem::Problem;
use crate::{ApiAddress, FeedAddress, PEER_PORT_DEFAULT};

/// The ports of a service: one, a range, or all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServicePort(pub(crate) PortRange);

type PortNumber = Within<u16, 1, 65_535>;

impl Scalar for ServicePort {
    const EXPECTED: &'static str = "a port, a range or \"any\"";
    const EXAMPLE: &'static str = "80";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        let given = match value {
            DeValue::String(given) => given.as_ref(),
            DeValue::Integer(_) => {
                return PortNumber::parse(value).map(|port| Self(PortRange::one(port.0)));
            }
            _ => return Err(wrong_type::<Self>(value)),
        };
        if given == "any" {
            return Ok(Self(PortRange::ANY));
        }
        let Some((low, high)) = range(given) else {
            return Err(not_a_number::<Self>(value));
        };
        let port = |number: u64| u16::try_from(number).ok().filter(|&port| port > 0);
        port(low)
            .zip(port(high))
            .and_then(|(low, high)| PortRange::new(low, high))
            .map(Self)
            .ok_or_else(|| Problem::PortRange { given: given.into() })
    }

    fn schema() -> Schema {
        json_schema!({
            "anyOf": [
                <PortNumber as Scalar>::schema(),
                { "const": "any" },
                { "type": "string", "pattern": "^[0-9]{1,5}-[0-9]{1,5}$" },
            ],
        })
    }
}

impl Scalar for IpAddr {
    const EXPECTED: &'static str = "an IP address";
    const EXAMPLE: &'static str = "\"10.0.0.11\"";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        let given = text::<Self>(value)?;
        given.parse().map_err(|_| match given.parse::<SocketAddr>() {
            Ok(socket) => Problem::AddressWithPort {
                given: given.into(),
                address: socket.ip(),
                port: socket.port(),
            },
            Err(_) => Problem::NotAnAddress { given: given.into() },
        })
    }

    fn schema() -> Schema {
        json_schema!({
            "type": "string",
            "anyOf": [{ "format": "ipv4" }, { "format": "ipv6" }],
        })
    }
}

/// The address of a service, or its pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServiceAddress(pub(crate) IpNet);

impl Scalar for ServiceAddress {
    const EXPECTED: &'static str = "an address or a prefix";
    const EXAMPLE: &'static str = "\"10.0.0.100\"";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        match value.as_str().and_then(|text| text.parse::<IpNet>().ok()) {
            Some(prefix) => Ok(Self(prefix)),
            None => <IpAddr as Scalar>::parse(value).map(|address| Self(address.into())),
        }
    }

    fn schema() -> Schema {
        json_schema!({
            "anyOf": [<IpAddr as Scalar>::schema(), <IpNet as Scalar>::schema()],
        })
    }
}

impl Scalar for ClientPrefix {
    const EXPECTED: &'static str = "an IPv6 prefix of 96 bits";
    const EXAMPLE: &'static str = "\"64:ff9b::/96\"";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        let given = text::<Self>(value)?;
        let net = given.parse().ok().and_then(Self::new);
        net.ok_or_else(|| malformed::<Self>(given))
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9A-Fa-f.:]+/96$" })
    }
}

impl Scalar for IpNet {
    const EXPECTED: &'static str = "an address with its prefix length";
    const EXAMPLE: &'static str = "\"10.0.0.2/24\"";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        let given = text::<Self>(value)?;
        given.parse().map_err(|_| match given.parse() {
            Ok(given @ IpAddr::V4(_)) => Problem::NoPrefixLength { given, usual: 24 },
            Ok(given @ IpAddr::V6(_)) => Problem::NoPrefixLength { given, usual: 64 },
            Err(_) => malformed::<Self>(given),
        })
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9A-Fa-f.:]+/[0-9]{1,3}$" })
    }
}

impl Scalar for MacAddr {
    const EXPECTED: &'static str = "a MAC address";
    const EXAMPLE: &'static str = "\"02:00:00:00:00:0c\"";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        let given = text::<Self>(value)?;
        given.parse().map_err(|_| malformed::<Self>(given))
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}$" })
    }
}

/// Where a balancer is reached by its peers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerAddress(pub(crate) SocketAddr);

impl Scalar for PeerAddress {
    const EXPECTED: &'static str = "an IP address, with or without a port";
    const EXAMPLE: &'static str = "\"10.0.0.3\"";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        let given = text::<Self>(value)?;
        let alone = given.parse().map(|ip| SocketAddr::new(ip, PEER_PORT_DEFAULT));
        let address = alone.or_else(|_| given.parse()).ok().filter(|it| it.port() != 0);
        address.map(Self).ok_or_else(|| malformed::<Self>(given))
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string" })
    }
}

impl Scalar for ApiAddress {
    const EXPECTED: &'static str = "a Unix socket's path, or an IP address with a port";
    const EXAMPLE: &'static str = "\"unix:/run/weir/weir.sock\"";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        let given = text::<Self>(value)?;
        given.parse().map_err(|_| malformed::<Self>(given))
    }

    fn schema() -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "string", "pattern": "^unix:/" },
                { "type": "string", "pattern": "^[0-9A-Fa-f.:\\[\\]]+:[0-9]{1,5}$" },
            ],
        })
    }
}

impl Scalar for FeedAddress {
    const EXPECTED: &'static str = "a control plane's address";
    const EXAMPLE: &'static str = "\"https://control.example:9310\"";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        let given = text::<Self>(value)?;
        given.parse().map_err(|_| malformed::<Self>(given))
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^(unix:/|http://|https://)" })
    }
}

/// A largest segment size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mss(pub(crate) MssClamp);

type MssNumber = Within<u16, { MSS_MIN as i64 }, 65_495>;

impl Scalar for Mss {
    const EXPECTED: &'static str = "a segment size or \"auto\"";
    const EXAMPLE: &'static str = "\"auto\"";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        match value {
            DeValue::String(given) if given == "auto" => Ok(Self(MssClamp::Auto)),
            DeValue::Integer(_) => MssNumber::parse(value).map(|mss| Self(MssClamp::AtMost(mss.0))),
            _ => Err(not_a_number::<Self>(value)),
        }
    }

    fn schema() -> Schema {
        json_schema!({ "anyOf": [<MssNumber as Scalar>::schema(), { "const": "auto" }] })
    }
}
