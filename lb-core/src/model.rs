//! What is wanted: services and their backends, valid by construction.
//!
//! A *spec* is what somebody wrote, field by field. A [`Service`] or a [`DesiredState`] is a spec
//! that was checked, here and nowhere else: whoever has one need not look again. Every finding
//! names the [`Key`] that is wrong, so that a source (a file, an API) can point at it.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::{IpNet, Ipv6Net};

mod check;
mod conflicts;
mod desired;
mod finding;
mod health;
mod health_check;
mod vip;

pub use conflicts::{Conflict, ambiguous_returns, conflicts, pool_conflicts};
pub use desired::DesiredState;
pub use finding::{Finding, Invalid, Key};
pub use health::Health;
pub use health_check::{
    CHECK_INTERVAL_MAX, CHECK_INTERVAL_MIN, CHECK_PAYLOAD_MAX, CHECK_RUN_MAX, CHECK_STATUSES_MAX,
    CHECK_TEXT_MAX, CHECK_TIMEOUT_MIN, CheckKey, HealthCheck, HttpProbe, Probe, Via,
};
pub use vip::{PortRange, Protocol, Vip};

use check::{check_backends, check_mode, check_vip};
use health_check::check_health;

use crate::wire::ethernet::MacAddr;

/// Services in a [`DesiredState`], at most.
pub const SERVICES_MAX: usize = 65_536;
/// Backends of one service, at most: a slot holds a `u16`.
pub const BACKENDS_MAX: usize = 65_535;
/// Slots of one service, at most.
pub const SLOTS_MAX: u32 = 1 << 24;
/// A backend's weight, at most.
pub const WEIGHT_MAX: u32 = 65_535;
/// A segment size that a service may impose, at least: what RFC 879 takes for granted.
pub const MSS_MIN: u16 = 536;
/// SYNs in a second that a service may be bounded to, at most.
pub const SYN_RATE_MAX: u32 = 100_000_000;
/// Ports of one balancer, at most.
pub const PORTS_MAX: usize = 16;

/// How a packet reaches its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// The frame gets the backend's MAC and is else untouched; the backend has the VIP on a
    /// loopback interface and answers the client directly.
    L2dsr,
    /// The packet travels untouched in another one; the backend unpacks it.
    Tunnel(Tunnel),
    /// The destination becomes the backend's address and port; the way back leads through the
    /// balancer, which puts the VIP in its place again.
    Nat,
    /// As `Nat`, from IPv4 clients to IPv6 backends, which see the client's address behind a prefix.
    Nat46(ClientPrefix),
    /// As `Nat`, and the source becomes an address and port of the balancer's, so that answers come
    /// back whatever the backend's routes are. Backends may be of another family than the VIP.
    FullNat(FullNat),
}

/// The prefix of 96 bits that IPv4 clients have as IPv6 addresses: those end with their own (RFC 6052
/// §2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientPrefix(Ipv6Net);

impl ClientPrefix {
    /// Of the prefix of another length: none.
    #[must_use]
    pub fn new(net: Ipv6Net) -> Option<Self> {
        (net.prefix_len() == 96).then_some(Self(net.trunc()))
    }

    /// The prefix.
    #[must_use]
    pub fn net(&self) -> Ipv6Net {
        self.0
    }

    /// The first bytes of its addresses.
    #[must_use]
    pub fn bytes(&self) -> [u8; 12] {
        let [bytes @ .., _, _, _, _] = self.0.network().octets();
        bytes
    }
}

/// Where clients stand behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FullNat {
    /// The addresses that backends see; services may share them.
    pub pool: IpNet,
    /// How backends learn of the client's own.
    pub client_address: ClientAddress,
}

/// How a backend is told who the client is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAddress {
    /// It is not.
    #[default]
    Hidden,
    /// By a TCP option of kind 254 in the first segments: port and address.
    Toa,
    /// By a PROXY protocol header, version 2, before the first byte of the stream.
    Proxy,
}

impl Forward {
    /// Does a packet get other ends?
    #[must_use]
    pub fn translates(&self) -> bool {
        matches!(self, Self::Nat | Self::Nat46(_) | Self::FullNat(_))
    }

    /// Are the answers of backends known by where they come from?
    #[must_use]
    pub fn has_stations(&self) -> bool {
        matches!(self, Self::Nat | Self::Nat46(_))
    }

    /// What IPv4 clients have in front of their addresses, for backends of IPv6.
    #[must_use]
    pub fn client_prefix(&self) -> Option<[u8; 12]> {
        match self {
            Self::Nat46(prefix) => Some(prefix.bytes()),
            _ => None,
        }
    }

    /// IP in IP, from the address of the port.
    pub const IPIP: Self = Self::Tunnel(Tunnel { kind: TunnelKind::Ipip, source: None });
}

/// What packets travel in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// What is between the outer header and the packet.
    pub kind: TunnelKind,
    /// Where outer sources are drawn from, by flow hash, so that the backends' RSS and the network's
    /// ECMP spread flows; absent, and for backends of the other family: the port's address.
    pub source: Option<IpNet>,
}

/// The encapsulations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelKind {
    /// Nothing: RFC 2003, RFC 2473, RFC 4213.
    Ipip,
    /// UDP: Generic UDP Encapsulation, variant 1 (draft-ietf-intarea-gue §4).
    Gue {
        /// The backends' UDP port.
        port: u16,
    },
    /// RFC 2784, without key and checksum.
    Gre,
}

/// GUE's UDP port (IANA).
pub const GUE_PORT: u16 = 6080;

/// What becomes of the largest segment size that a SYN announces (RFC 9293 §3.7.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MssClamp {
    /// It stays.
    #[default]
    Keep,
    /// It is at most this.
    AtMost(u16),
    /// It is at most what fits the way to the backend.
    Auto,
}

/// How many connections may be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynBound {
    /// SYNs in a second that pass, whoever sends them; over all workers. At most a tenth of it at once,
    /// and at least one.
    pub rate: u32,
    /// What becomes of the others.
    pub above: AboveRate,
}

/// What becomes of SYNs above the rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AboveRate {
    /// Their senders have to show that their addresses are theirs: [`crate::admission`].
    #[default]
    Challenge,
    /// They are dropped.
    Drop,
}

/// What belongs together of a protocol without connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flows {
    /// The datagrams of a flow.
    #[default]
    Sticky,
    /// Nothing: each datagram goes by what is in force when it comes.
    Datagram,
}

/// What of a packet decides where it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Affinity {
    /// Addresses, ports and protocol: each flow for itself.
    #[default]
    Flow,
    /// Addresses and protocol: all flows of a client together.
    Client,
}

/// One server behind a service, as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its address: where the next hop is looked up, and where tunnels end.
    pub address: IpAddr,
    /// Its port, where it is not the service's.
    pub port: Option<u16>,
    /// Its share relative to the others; 0 takes no slot.
    pub weight: u32,
    /// Takes no slot whatever its weight.
    pub drain: bool,
    /// Where its frames go, if the kernel is not to be asked.
    pub static_hop: Option<StaticHop>,
}

impl Backend {
    /// The weight that counts: 0 while draining.
    #[must_use]
    pub fn effective_weight(&self) -> u32 {
        if self.drain { 0 } else { self.weight }
    }
}

/// A next hop that was written down, not learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticHop {
    /// Destination MAC.
    pub mac: MacAddr,
    /// Name of the port that the frame leaves by. Absent: the port whose subnet has the backend's
    /// address, else the first.
    pub interface: Option<String>,
}

/// A service, as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Unique among services.
    pub name: String,
    /// What clients address.
    pub vip: Vip,
    /// How packets reach backends.
    pub forward: Forward,
    /// What keeps together.
    pub affinity: Affinity,
    /// UDP only: do datagrams keep together?
    pub flows: Flows,
    /// TCP only: are segments kept small?
    pub mss: MssClamp,
    /// TCP only, and TCP's part of any protocol: how many connections may be opened; absent: any
    /// number.
    pub syn: Option<SynBound>,
    /// How long a flow may be silent and is still remembered; absent: see
    /// [`ServiceSpec::idle_timeout`].
    pub idle_timeout: Option<Duration>,
    /// How long a backend that is no longer wanted may keep its flows; absent: see
    /// [`ServiceSpec::grace`].
    pub grace: Option<Duration>,
    /// How long a backend that begins to serve, or to serve again, takes to get its whole share; absent:
    /// it has it at once.
    pub slow_start: Option<Duration>,
    /// Slots of the lookup table, a prime; absent: see [`Service::slots`].
    pub slots: Option<u32>,
    /// How it is found out which backends may serve; absent: all may.
    pub health: Option<HealthCheck>,
    /// The servers; may be empty (then packets are dropped, and counted).
    pub backends: Vec<Backend>,
}

impl ServiceSpec {
    /// A service with no backends yet, and otherwise as most are.
    #[must_use]
    pub fn new(name: &str, vip: Vip, forward: Forward) -> Self {
        Self {
            name: name.into(),
            vip,
            forward,
            affinity: Affinity::default(),
            flows: Flows::default(),
            mss: MssClamp::default(),
            syn: None,
            idle_timeout: None,
            grace: None,
            slow_start: None,
            slots: None,
            health: None,
            backends: Vec::new(),
        }
    }

    /// How long a flow may be silent and is still remembered: a quarter of an hour for TCP, a minute
    /// for what has no connections, if nothing else was asked for.
    #[must_use]
    pub fn idle_timeout(&self) -> Duration {
        let seconds = if self.vip.protocol == Protocol::Udp { 60 } else { 15 * 60 };
        self.idle_timeout.unwrap_or(Duration::from_secs(seconds))
    }

    /// How long a backend that is no longer wanted may keep its flows: a day, if nothing else was
    /// asked for. It leaves earlier when it has none any more.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.grace.unwrap_or(Duration::from_hours(24))
    }

    /// The addresses that backends see instead of the client's, if there are any.
    #[must_use]
    pub fn pool(&self) -> Option<IpNet> {
        match self.forward {
            Forward::FullNat(FullNat { pool, .. }) => Some(pool),
            _ => None,
        }
    }

    /// Where the answers of a backend come from.
    #[must_use]
    pub fn answers_of(&self, backend: &Backend) -> Vip {
        Vip {
            address: backend.address.into(),
            ports: backend.port.map_or(self.vip.ports, PortRange::one),
            protocol: self.vip.protocol,
        }
    }

    /// The one port that a backend listens on: its own, else the service's; `None` where the service
    /// has several.
    #[must_use]
    pub fn port_of(&self, backend: &Backend) -> Option<u16> {
        backend.port.or(self.vip.ports.single())
    }
}

/// A service that was checked.
///
/// **Having one tells you**: its addresses are unicast; its port is not 0; its backends are
/// distinct, none of them the VIP, at most [`BACKENDS_MAX`]; weights are at most [`WEIGHT_MAX`];
/// its number of slots is prime and at least the number of backends; if there are health checks,
/// every backend has a port for them, and their texts and times are fit for use as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    spec: ServiceSpec,
    slots: u32,
}

impl Service {
    /// Checks `spec`.
    ///
    /// # Errors
    /// Every finding, not only the first.
    pub fn new(spec: ServiceSpec) -> Result<Self, Vec<Finding>> {
        let mut findings = Vec::new();
        let mut find = |key, invalid| findings.push(Finding { key, invalid });
        if !is_name(&spec.name) {
            find(Key::Name, Invalid::Name);
        }
        check_vip(&spec.vip, &mut find);
        check_mode(&spec, &mut find);
        if spec.backends.len() > BACKENDS_MAX {
            find(Key::Backends, Invalid::TooManyBackends(spec.backends.len()));
        }
        let slots = spec.slots.unwrap_or_else(|| slots_for(&spec.backends));
        if slots > SLOTS_MAX {
            find(Key::Slots, Invalid::TooManySlots(slots));
        } else if !is_prime(slots) {
            find(Key::Slots, Invalid::SlotsNotPrime { given: slots, next: next_prime(slots) });
        } else if spec.backends.len() > slots as usize {
            find(Key::Slots, Invalid::TooFewSlots { slots, backends: spec.backends.len() });
        }
        check_backends(&spec, &mut find);
        check_health(&spec, &mut find);
        if findings.is_empty() { Ok(Self { spec, slots }) } else { Err(findings) }
    }

    /// What was asked for.
    #[must_use]
    pub fn spec(&self) -> &ServiceSpec {
        &self.spec
    }

    /// Slots of the lookup table: as asked for, else the first of a few primes that has enough for the
    /// backends.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots
    }
}

/// The key of the flow hash: equal on all balancers of a site.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HashKey(pub [u8; 16]);

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey(…)") // a secret: who knows it can aim flows at one backend
    }
}

/// Has `name` 1 to 63 letters, digits, '-', '_' or '.'?
#[must_use]
pub fn is_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// May a server have this address? Not multicast, loopback, unspecified or broadcast, and not an
/// IPv4 address in IPv6 clothes (RFC 4291 §2.5.5.2), which no packet carries.
#[must_use]
pub fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            !(a.is_multicast() || a.is_loopback() || a.is_unspecified() || a.octets()[0] >= 240)
                && a.octets()[0] != 0
        }
        IpAddr::V6(a) => {
            !(a.is_multicast() || a.is_loopback() || a.is_unspecified())
                && a.to_ipv4_mapped().is_none()
        }
    }
}

/// At least 100 slots a backend, from primes next to powers of two. Small services have fewer slots, but
/// 400 a backend, and 100 for the one with the least weight: the fewer there are, the more of them move beyond
/// a share when a backend leaves, and the less exact is a share. Steps are far apart, because each of them
/// moves most flows.
fn slots_for(backends: &[Backend]) -> u32 {
    const SMALL: [u32; 2] = [4_099, 16_411];
    const LARGE: [u32; 8] =
        [65_537, 131_101, 262_147, 524_309, 1_048_583, 2_097_169, 4_194_319, 8_388_617];
    let weights = || backends.iter().map(|backend| u64::from(backend.weight)).filter(|it| *it > 0);
    let lightest = weights().min().unwrap_or(1);
    let shares = weights().sum::<u64>().div_ceil(lightest);
    let count = backends.len();
    let is_enough = |slots: u32| slots as usize / 400 >= count && u64::from(slots) / 100 >= shares;
    let small = SMALL.into_iter().find(|slots| is_enough(*slots));
    let large = || LARGE.into_iter().find(|slots| *slots as usize / 100 >= count);
    small.or_else(large).unwrap_or(LARGE[LARGE.len() - 1])
}

fn is_prime(n: u32) -> bool {
    n >= 2 && (2..=n.isqrt()).all(|d| !n.is_multiple_of(d))
}

fn next_prime(n: u32) -> u32 {
    (n + 1..=u32::MAX).find(|&n| is_prime(n)).unwrap_or(n)
}

#[cfg(test)]
pub(crate) mod tests;
