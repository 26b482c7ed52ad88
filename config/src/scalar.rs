//! The values that a key can have: for each, how it is read, and what the schema says of it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use lb_core::model::{
    AboveRate, Affinity, ClientAddress, ClientPrefix, Flows, HashKey, MSS_MIN, MssClamp, PortRange,
    Protocol, Via,
};
use lb_core::wire::ethernet::MacAddr;
use schemars::{Schema, SchemaGenerator, json_schema};
use toml::de::DeValue;

use crate::diagnostics::Report;
use crate::problem::Problem;
use crate::read::{Node, Read, kind};
use crate::{
    ApiAddress, ChecksumOffload, FeedAddress, FeedKind, Hugepages, Idle, PACE_MAX, PACE_MIN,
    PEER_PORT_DEFAULT, PeerKey,
};

mod health;

pub(crate) use health::{CheckKind, Expect, Payload, Share, UrlPath};

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

/// The ports of a service: one, a range, or all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServicePort(pub(crate) PortRange);

type PortNumber = Within<u16, 1, 65_535>;

/// `low-high`, if those are numbers.
fn range(given: &str) -> Option<(u64, u64)> {
    let (low, high) = given.split_once('-')?;
    Some((low.trim().parse().ok()?, high.trim().parse().ok()?))
}

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
        json_schema!({ "type": "string", "minLength": 1 })
    }
}

/// A directory, by its absolute path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Directory(pub(crate) String);

impl Scalar for Directory {
    const EXPECTED: &'static str = "the absolute path of a directory";
    const EXAMPLE: &'static str = "\"/run/weir/edge-1\"";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        let given = argument::<Self>(value)?;
        if given.starts_with('/') { Ok(Self(given)) } else { Err(malformed::<Self>(&given)) }
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^/" })
    }
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FilePath(pub(crate) String);

impl Scalar for FilePath {
    const EXPECTED: &'static str = "the absolute path of a file";
    const EXAMPLE: &'static str = "\"/etc/weir/ca.pem\"";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        let given = argument::<Self>(value)?;
        if given.starts_with('/') { Ok(Self(given)) } else { Err(malformed::<Self>(&given)) }
    }

    fn schema() -> Schema {
        json_schema!({ "type": "string", "pattern": "^/" })
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
        json_schema!({ "type": "string", "minLength": 1 })
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

impl Word for FeedKind {
    const WORDS: &'static [(&'static str, Self)] = &[("grpc", Self::Grpc), ("xds", Self::Xds)];
    const EXAMPLE: &'static str = "\"grpc\"";
}

/// One of a few words.
pub(crate) trait Word: Copy + 'static {
    /// What may be written, and what it means.
    const WORDS: &'static [(&'static str, Self)];
    /// One of the words in quotes.
    const EXAMPLE: &'static str;

    /// As it is written.
    fn name(self) -> &'static str
    where
        Self: PartialEq,
    {
        Self::WORDS.iter().find(|(_, word)| *word == self).map_or("", |(word, _)| word)
    }
}

impl<T: Word> Scalar for T {
    const EXPECTED: &'static str = "a word in quotes";
    const EXAMPLE: &'static str = T::EXAMPLE;

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        let given = text::<Self>(value)?;
        if let Some((_, meaning)) = T::WORDS.iter().find(|(word, _)| *word == given) {
            return Ok(*meaning);
        }
        let words: Vec<_> = T::WORDS.iter().map(|(word, _)| *word).collect();
        Err(Problem::UnknownWord { given: given.into(), words })
    }

    fn schema() -> Schema {
        let words: Vec<_> = T::WORDS.iter().map(|(word, _)| *word).collect();
        json_schema!({ "type": "string", "enum": words })
    }
}

impl Word for Protocol {
    const WORDS: &'static [(&'static str, Self)] =
        &[("tcp", Self::Tcp), ("udp", Self::Udp), ("sctp", Self::Sctp), ("any", Self::Any)];
    const EXAMPLE: &'static str = "\"tcp\"";
}

/// How packets reach a backend; other keys say more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardMode {
    /// Another destination MAC.
    L2dsr,
    /// Inside another IP packet.
    Ipip,
    /// The same, over UDP.
    Gue,
    /// The same, with a header of its own.
    Gre,
    /// Another destination.
    Nat,
    /// Another source, too.
    FullNat,
}

impl ForwardMode {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        Word::name(self)
    }

    /// Do packets travel inside others?
    pub(crate) fn is_tunnel(self) -> bool {
        matches!(self, Self::Ipip | Self::Gue | Self::Gre)
    }
}

impl Word for ForwardMode {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("l2dsr", Self::L2dsr),
        ("ipip", Self::Ipip),
        ("gue", Self::Gue),
        ("gre", Self::Gre),
        ("nat", Self::Nat),
        ("fullnat", Self::FullNat),
    ];
    const EXAMPLE: &'static str = "\"l2dsr\"";
}

impl Word for ClientAddress {
    const WORDS: &'static [(&'static str, Self)] =
        &[("hidden", Self::Hidden), ("toa", Self::Toa), ("proxy", Self::Proxy)];
    const EXAMPLE: &'static str = "\"proxy\"";
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

impl Word for Flows {
    const WORDS: &'static [(&'static str, Self)] =
        &[("sticky", Self::Sticky), ("datagram", Self::Datagram)];
    const EXAMPLE: &'static str = "\"sticky\"";
}

impl Word for Via {
    const WORDS: &'static [(&'static str, Self)] =
        &[("backend", Self::Backend), ("service", Self::Service)];
    const EXAMPLE: &'static str = "\"service\"";
}

impl Word for AboveRate {
    const WORDS: &'static [(&'static str, Self)] =
        &[("challenge", Self::Challenge), ("drop", Self::Drop)];
    const EXAMPLE: &'static str = "\"challenge\"";
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

impl Word for Affinity {
    const WORDS: &'static [(&'static str, Self)] =
        &[("flow", Self::Flow), ("client", Self::Client)];
    const EXAMPLE: &'static str = "\"flow\"";
}

impl Word for Idle {
    const WORDS: &'static [(&'static str, Self)] =
        &[("adaptive", Self::Adaptive), ("poll", Self::Poll)];
    const EXAMPLE: &'static str = "\"adaptive\"";
}

impl Word for Hugepages {
    const WORDS: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("required", Self::Required), ("off", Self::Off)];
    const EXAMPLE: &'static str = "\"auto\"";
}

impl Word for ChecksumOffload {
    const WORDS: &'static [(&'static str, Self)] = &[("auto", Self::Auto), ("off", Self::Off)];
    const EXAMPLE: &'static str = "\"auto\"";
}

/// Whether a backend takes new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BackendState {
    Active,
    Drain,
}

impl Word for BackendState {
    const WORDS: &'static [(&'static str, Self)] =
        &[("active", Self::Active), ("drain", Self::Drain)];
    const EXAMPLE: &'static str = "\"active\"";
}
