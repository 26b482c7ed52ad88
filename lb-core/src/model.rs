//! What is wanted: services and their backends, valid by construction.
//!
//! A *spec* is what somebody wrote, field by field. A [`Service`] or a [`DesiredState`] is a spec
//! that was checked, here and nowhere else: whoever has one need not look again. Every finding
//! names the [`Key`] that is wrong, so that a source (a file, an API) can point at it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

mod vip;

pub use vip::{PortRange, Protocol, Vip};

use crate::pool;
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
    /// As `Nat`, and the source becomes an address and port of the balancer's, so that answers come
    /// back whatever the backend's routes are. Backends may be of another family than the VIP.
    FullNat(FullNat),
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
    /// How long a flow may be silent and is still remembered; absent: see
    /// [`ServiceSpec::idle_timeout`].
    pub idle_timeout: Option<Duration>,
    /// Slots of the lookup table, a prime; absent: see [`Service::slots`].
    pub slots: Option<u32>,
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
            idle_timeout: None,
            slots: None,
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

/// The key of a service's spec that a finding is about; a backend's by its place in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the configuration key of that name")]
pub enum Key {
    Name,
    Address,
    Port,
    OuterSource,
    GuePort,
    Pool,
    ClientAddress,
    IdleTimeout,
    Flows,
    Mss,
    Slots,
    Backends,
    Backend(usize),
    BackendAddress(usize),
    BackendPort(usize),
    BackendWeight(usize),
    BackendMac(usize),
}

/// Why a service cannot be. Says what to write instead; [`Finding::key`] says where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Invalid {
    /// The name is empty, long, or has characters that tables and metrics would trip over.
    #[error("a name has 1 to 63 letters, digits, '-', '_' or '.'")]
    Name,
    /// Two services of one name.
    #[error("another service is named {0:?}; names are unique")]
    DuplicateName(String),
    /// Two services for the same packets.
    #[error("service {other:?} already has {vip}; give one of them another address or port")]
    DuplicateVip {
        /// What both claim.
        vip: Vip,
        /// The service that came first.
        other: String,
    },
    /// Two services with ranges that share ports.
    #[error("service {other:?} already has some of the ports of {vip}; let the ranges not overlap")]
    OverlappingPorts {
        /// What the later one claims.
        vip: Vip,
        /// The service that came first.
        other: String,
    },
    /// A prefix with bits behind it.
    #[error("{0} has bits set behind its prefix length; write {net}", net = .0.trunc())]
    HostBits(IpNet),
    /// A protocol that has no ports.
    #[error("protocol \"any\" goes by the address alone; write port = \"any\"")]
    PortsOfAny,
    /// An outer source that no outer header can have.
    #[error("no backend has an address of this family: {0} would never be a source; remove it")]
    SourceFamily(IpNet),
    /// Flows of a protocol that has connections, or nothing that Weir knows of.
    #[error(
        "only UDP's datagrams can go each its own way; remove `flows`, or write protocol = \"udp\""
    )]
    FlowsOfUdp,
    /// Segments of a protocol that has none.
    #[error("only TCP has segments; remove `mss`, or write protocol = \"tcp\"")]
    MssOfTcp,
    /// Smaller than every host has to accept.
    #[error("a segment size of {0} is too small; use at least {MSS_MIN}")]
    MssTooSmall(u16),
    /// More services than there may be.
    #[error("{0} services are too many; at most {SERVICES_MAX}")]
    TooManyServices(usize),
    /// Multicast, loopback, unspecified or broadcast.
    #[error("{0} cannot be a server's address; use a unicast address")]
    NotUnicast(IpAddr),
    /// Port 0.
    #[error("port 0 is not a port; use 1 to 65535")]
    PortZero,
    /// The number of slots is not prime, or out of bounds.
    #[error("{given} slots: the number has to be prime; {next} is the next prime")]
    SlotsNotPrime {
        /// What was asked for.
        given: u32,
        /// The next prime above.
        next: u32,
    },
    /// More slots than a table may have.
    #[error("{0} slots are too many; at most {SLOTS_MAX}")]
    TooManySlots(u32),
    /// Some backend would never be chosen.
    #[error("{backends} backends do not fit {slots} slots; use a prime of at least {}", backends * 100)]
    TooFewSlots {
        /// Slots asked for.
        slots: u32,
        /// Backends listed.
        backends: usize,
    },
    /// More backends than a slot can name.
    #[error("{0} backends are too many for one service; at most {BACKENDS_MAX}")]
    TooManyBackends(usize),
    /// The same server twice.
    #[error("backend {0} is listed twice; raise its weight instead")]
    DuplicateBackend(String),
    /// The backend is the service itself.
    #[error(
        "backend {0} has the service's own address, or one of its prefix; packets would go in a circle"
    )]
    BackendIsVip(IpAddr),
    /// This mode does not rewrite ports.
    #[error("this forwarding mode keeps the port: leave it out; the service's is {0}")]
    PortIsKept(PortRange),
    /// A translated packet stays of its family.
    #[error(
        "{0} is of another family than the service's address, and nat keeps the family; use a \
         backend of the same, or forward = \"fullnat\" with a pool of the backend's family, or a \
         tunnel: \"ipip\", \"gue\" or \"gre\""
    )]
    NatFamily(IpAddr),
    /// The way back would have to guess the VIP.
    #[error("this mode puts the service's address back into answers: write one address, not {0}")]
    NatPrefix(IpNet),
    /// The way back would have to guess the port.
    #[error(
        "nat could not tell which of the service's ports {0} an answer is from; leave the \
         backend's port out (each port is kept), or give the service one port"
    )]
    NatPorts(PortRange),
    /// SCTP's checksum covers the ports, and all of the packet.
    #[error("nat keeps the port of SCTP: leave it out, or write {0}, the service's")]
    NatSctpPort(PortRange),
    /// A pool tells connections apart by ports.
    #[error(
        "fullnat tells connections apart by the ports of TCP and UDP; use one of them, or \
         forward = \"nat\" or a tunnel"
    )]
    PoolProtocol,
    /// More addresses than a pool may have.
    #[error(
        "{0} has more than {max} addresses; a pool has at most {max}, of {ports} connections each: \
         write a longer prefix",
        max = pool::ADDRESSES_MAX, ports = pool::PORTS
    )]
    PoolTooLarge(IpNet),
    /// Backends that packets from the pool cannot be addressed to.
    #[error(
        "{backend} is of another family than the pool {pool}, which its packets come from; use a \
         pool of the backends' family, and a service for each family"
    )]
    PoolFamily {
        /// The backend.
        backend: IpAddr,
        /// The pool.
        pool: IpNet,
    },
    /// An address that is somebody's cannot stand for clients.
    #[error("{address} is in the pool {pool}; a pool needs addresses that are nobody's")]
    TakenByPool {
        /// A service's or a backend's address.
        address: IpAddr,
        /// The pool.
        pool: IpNet,
    },
    /// Two pools that share addresses but not all.
    #[error("the pool {pool} of service {other:?} overlaps this one; let them be equal, or apart")]
    OverlappingPools {
        /// The other pool.
        pool: IpNet,
        /// The service that came first.
        other: String,
    },
    /// Nothing that could carry the client's address.
    #[error(
        "only TCP can carry the client's address; remove `client_address`, or write protocol = \"tcp\""
    )]
    ClientAddressOfTcp,
    /// Longer than is counted.
    #[error("an idle timeout of {}s is not of use; use 4s to 24h", .0.as_secs())]
    IdleTimeout(Duration),
    /// Answers of a backend could be of two services.
    #[error(
        "service {other:?} also translates to {backend}, and an answer from there could be of \
         either; let the backend listen on a port of its own for each service"
    )]
    AmbiguousReturn {
        /// Address and ports of the backend.
        backend: Box<Vip>,
        /// The service that came first.
        other: String,
    },
    /// Weight out of range.
    #[error("weight {0} is too large; at most {WEIGHT_MAX}")]
    Weight(u32),
    /// Group or zero MAC.
    #[error("{0} is not one station's MAC address")]
    NotAStation(MacAddr),
}

/// Something wrong with a service, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which key.
    pub key: Key,
    /// What about it.
    pub invalid: Invalid,
}

/// A service that was checked.
///
/// **Having one tells you**: its addresses are unicast; its port is not 0; its backends are
/// distinct, none of them the VIP, at most [`BACKENDS_MAX`]; weights are at most [`WEIGHT_MAX`];
/// its number of slots is prime and at least the number of backends.
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
        let slots = spec.slots.unwrap_or_else(|| slots_for(spec.backends.len()));
        if slots > SLOTS_MAX {
            find(Key::Slots, Invalid::TooManySlots(slots));
        } else if !is_prime(slots) {
            find(Key::Slots, Invalid::SlotsNotPrime { given: slots, next: next_prime(slots) });
        } else if spec.backends.len() > slots as usize {
            find(Key::Slots, Invalid::TooFewSlots { slots, backends: spec.backends.len() });
        }
        check_backends(&spec, &mut find);
        if findings.is_empty() { Ok(Self { spec, slots }) } else { Err(findings) }
    }

    /// What was asked for.
    #[must_use]
    pub fn spec(&self) -> &ServiceSpec {
        &self.spec
    }

    /// Slots of the lookup table: as asked for, else the first of a few primes that gives each
    /// backend at least 100. They are far apart, because another number of slots moves most flows.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots
    }
}

fn check_vip(vip: &Vip, find: &mut impl FnMut(Key, Invalid)) {
    let net = vip.address;
    if net.trunc() != net {
        find(Key::Address, Invalid::HostBits(net));
    }
    if let Some(bad) = [net.network(), net.broadcast()].into_iter().find(|a| !is_unicast(*a)) {
        find(Key::Address, Invalid::NotUnicast(bad));
    }
    if vip.ports.first() == 0 && vip.ports != PortRange::ANY {
        find(Key::Port, Invalid::PortZero);
    }
    if vip.protocol == Protocol::Any && vip.ports != PortRange::ANY {
        find(Key::Port, Invalid::PortsOfAny);
    }
}

fn check_mode(spec: &ServiceSpec, find: &mut impl FnMut(Key, Invalid)) {
    if let Forward::Tunnel(Tunnel { source: Some(net), .. }) = spec.forward {
        let is_of_family = |b: &Backend| b.address.is_ipv4() == net.addr().is_ipv4();
        if net.trunc() != net {
            find(Key::OuterSource, Invalid::HostBits(net));
        } else if !is_unicast(net.network()) || !is_unicast(net.broadcast()) {
            find(Key::OuterSource, Invalid::NotUnicast(net.network()));
        } else if !spec.backends.is_empty() && !spec.backends.iter().any(is_of_family) {
            find(Key::OuterSource, Invalid::SourceFamily(net));
        }
    }
    let translates = matches!(spec.forward, Forward::Nat | Forward::FullNat(_));
    if translates && !spec.vip.is_one_address() {
        find(Key::Address, Invalid::NatPrefix(spec.vip.address));
    }
    if let Forward::FullNat(full_nat) = spec.forward {
        check_pool(spec, full_nat, find);
    }
    if let Forward::Tunnel(Tunnel { kind: TunnelKind::Gue { port: 0 }, .. }) = spec.forward {
        find(Key::GuePort, Invalid::PortZero);
    }
    if spec.flows == Flows::Datagram && spec.vip.protocol != Protocol::Udp {
        find(Key::Flows, Invalid::FlowsOfUdp);
    }
    if spec.mss != MssClamp::Keep && spec.vip.protocol != Protocol::Tcp {
        find(Key::Mss, Invalid::MssOfTcp);
    }
    if let Some(idle) = spec.idle_timeout
        && !(4..=24 * 3600).contains(&idle.as_secs())
    {
        find(Key::IdleTimeout, Invalid::IdleTimeout(idle));
    }
    if let MssClamp::AtMost(mss) = spec.mss
        && mss < MSS_MIN
    {
        find(Key::Mss, Invalid::MssTooSmall(mss));
    }
}

fn check_pool(spec: &ServiceSpec, full_nat: FullNat, find: &mut impl FnMut(Key, Invalid)) {
    let FullNat { pool: net, client_address } = full_nat;
    if net.trunc() != net {
        find(Key::Pool, Invalid::HostBits(net));
    } else if !is_unicast(net.network()) || !is_unicast(net.broadcast()) {
        find(Key::Pool, Invalid::NotUnicast(net.network()));
    } else if pool::is_larger_than_used(net) {
        find(Key::Pool, Invalid::PoolTooLarge(net));
    }
    if !matches!(spec.vip.protocol, Protocol::Tcp | Protocol::Udp) {
        find(Key::Pool, Invalid::PoolProtocol);
    } else if client_address != ClientAddress::Hidden && spec.vip.protocol != Protocol::Tcp {
        find(Key::ClientAddress, Invalid::ClientAddressOfTcp);
    }
    for (i, backend) in spec.backends.iter().enumerate() {
        let address = backend.address;
        if address.is_ipv4() != net.addr().is_ipv4() {
            find(Key::BackendAddress(i), Invalid::PoolFamily { backend: address, pool: net });
        } else if net.contains(&address) {
            find(Key::BackendAddress(i), Invalid::TakenByPool { address, pool: net });
        }
    }
}

fn check_backends(spec: &ServiceSpec, find: &mut impl FnMut(Key, Invalid)) {
    let mut seen = std::collections::BTreeSet::new();
    for (i, backend) in spec.backends.iter().enumerate() {
        if !is_unicast(backend.address) {
            find(Key::BackendAddress(i), Invalid::NotUnicast(backend.address));
        } else if spec.forward == Forward::Nat
            && backend.address.is_ipv4() != spec.vip.address.addr().is_ipv4()
        {
            find(Key::BackendAddress(i), Invalid::NatFamily(backend.address));
        } else if spec.vip.address.contains(&backend.address) {
            find(Key::BackendAddress(i), Invalid::BackendIsVip(backend.address));
        }
        if let Some(port) = backend.port.filter(|&port| spec.vip.ports.single() != Some(port)) {
            match spec.forward {
                _ if port == 0 => find(Key::BackendPort(i), Invalid::PortZero),
                Forward::Nat if spec.vip.protocol == Protocol::Sctp => {
                    find(Key::BackendPort(i), Invalid::NatSctpPort(spec.vip.ports));
                }
                Forward::Nat if spec.vip.ports.single().is_none() => {
                    find(Key::BackendPort(i), Invalid::NatPorts(spec.vip.ports));
                }
                Forward::Nat | Forward::FullNat(_) => {}
                Forward::L2dsr | Forward::Tunnel(_) => {
                    find(Key::BackendPort(i), Invalid::PortIsKept(spec.vip.ports));
                }
            }
        }
        if backend.weight > WEIGHT_MAX {
            find(Key::BackendWeight(i), Invalid::Weight(backend.weight));
        }
        if let Some(hop) = backend.static_hop.as_ref().filter(|hop| !hop.mac.is_station()) {
            find(Key::BackendMac(i), Invalid::NotAStation(hop.mac));
        }
        if !seen.insert((backend.address, spec.port_of(backend))) {
            find(Key::Backend(i), Invalid::DuplicateBackend(backend.address.to_string()));
        }
    }
}

/// Two services that want the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Place of the later one in the list.
    pub place: usize,
    /// Place of the first one.
    pub first: usize,
    /// Which of its keys wants it.
    pub first_key: Key,
    /// What both want, as a finding about the later one.
    pub finding: Finding,
}

/// Finds services that share a name, a VIP, or ports of ranges. [`DesiredState::new`] refuses them; a source may ask
/// first, while some of its services are not valid yet.
pub fn conflicts<'a>(services: impl IntoIterator<Item = (&'a str, Vip)>) -> Vec<Conflict> {
    /// By the first port: they do not overlap.
    type Ranges<'a> = BTreeMap<u16, (Vip, usize, &'a str)>;

    let mut conflicts = Vec::new();
    let mut names = BTreeMap::new();
    let mut vips = BTreeMap::new();
    let mut ranges: BTreeMap<_, Ranges> = BTreeMap::new(); // by address and protocol
    for (place, (name, vip)) in services.into_iter().enumerate() {
        let mut conflict = |first, key, invalid| {
            conflicts.push(Conflict {
                place,
                first,
                first_key: key,
                finding: Finding { key, invalid },
            });
        };
        let first = *names.entry(name).or_insert(place);
        if first != place {
            conflict(first, Key::Name, Invalid::DuplicateName(name.into()));
        }
        let (first, other) = *vips.entry(vip).or_insert((place, name));
        if first != place {
            conflict(first, Key::Address, Invalid::DuplicateVip { vip, other: other.into() });
        } else if vip.ports.is_range() {
            let ranges = ranges.entry((vip.address, vip.protocol)).or_default();
            let below = ranges.range(..=vip.ports.last()).next_back();
            match below.filter(|(_, (below, ..))| below.ports.last() >= vip.ports.first()) {
                Some((_, &(_, first, other))) => {
                    conflict(
                        first,
                        Key::Port,
                        Invalid::OverlappingPorts { vip, other: other.into() },
                    );
                }
                None => drop(ranges.insert(vip.ports.first(), (vip, place, name))),
            }
        }
    }
    conflicts
}

/// Finds backends of translating services whose answers could be of two services. As [`conflicts`],
/// for services that are valid by themselves.
pub fn ambiguous_returns<'a>(services: impl IntoIterator<Item = &'a ServiceSpec>) -> Vec<Conflict> {
    let mut found = Vec::new();
    let mut returns: BTreeMap<IpAddr, Vec<(Vip, usize, Key)>> = BTreeMap::new();
    let mut names = Vec::new();
    for (place, spec) in services.into_iter().enumerate() {
        let backends = spec.backends.iter().enumerate();
        names.push(&spec.name);
        for (i, backend) in backends.filter(|_| spec.forward == Forward::Nat) {
            let answers = spec.answers_of(backend);
            let others = returns.entry(backend.address).or_default();
            match others.iter().find(|(other, of, _)| *of != place && overlap(other, &answers)) {
                Some(&(_, first, first_key)) => {
                    let (backend, other) = (Box::new(answers), names[first].clone());
                    let invalid = Invalid::AmbiguousReturn { backend, other };
                    let finding = Finding { key: Key::Backend(i), invalid };
                    found.push(Conflict { place, first, first_key, finding });
                }
                None => others.push((answers, place, Key::Backend(i))),
            }
        }
    }
    found
}

/// Finds pools that overlap, and services with an address of a pool. As [`ambiguous_returns`].
pub fn pool_conflicts<'a>(services: impl IntoIterator<Item = &'a ServiceSpec>) -> Vec<Conflict> {
    let services: Vec<&ServiceSpec> = services.into_iter().collect();
    // Disjoint, so that the one that has an address is the last that begins before it.
    let mut pools: BTreeMap<(IpAddr, IpAddr), usize> = BTreeMap::new();
    let mut found = Vec::new();
    let mut conflict = |place, first, (key, first_key), invalid| {
        let finding = Finding { key, invalid };
        found.push(Conflict { place, first, first_key, finding });
    };
    for (place, spec) in services.iter().enumerate() {
        let Some(net) = spec.pool() else { continue };
        let ends = (net.network(), net.broadcast());
        match pools.range(..=(ends.1, ends.1)).next_back() {
            Some((&other, _)) if other == ends => {}
            Some((&(_, last), &first)) if last >= ends.0 => {
                let (pool, other) = (services[first].pool().unwrap_or(net), &services[first].name);
                let invalid = Invalid::OverlappingPools { pool, other: other.clone() };
                conflict(place, first, (Key::Pool, Key::Pool), invalid);
            }
            _ => drop(pools.insert(ends, place)),
        }
    }
    for (place, spec) in services.iter().enumerate() {
        let net = spec.vip.address;
        let last = net.broadcast();
        if let Some((&(_, end), &first)) = pools.range(..=(last, last)).next_back()
            && end >= net.network()
            && let Some(pool) = services[first].pool()
        {
            let invalid = Invalid::TakenByPool { address: net.addr(), pool };
            conflict(place, first, (Key::Address, Key::Pool), invalid);
        }
    }
    found
}

/// Of one address: could a packet be of both?
fn overlap(a: &Vip, b: &Vip) -> bool {
    let protocols =
        a.protocol == b.protocol || a.protocol == Protocol::Any || b.protocol == Protocol::Any;
    protocols && a.ports.first() <= b.ports.last() && b.ports.first() <= a.ports.last()
}

/// The key of the flow hash: equal on all balancers of a site.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HashKey(pub [u8; 16]);

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey(…)") // a secret: who knows it can aim flows at one backend
    }
}

/// All that a source wants, valid as a whole.
///
/// **Having one tells you**: names and VIPs are unique, and there are at most [`SERVICES_MAX`]
/// services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredState {
    hash_key: HashKey,
    services: Vec<Arc<Service>>,
}

impl DesiredState {
    /// Joins services.
    ///
    /// # Errors
    /// Every finding, with the place of the service in the list.
    pub fn new(hash_key: HashKey, services: Vec<Service>) -> Result<Self, Vec<(usize, Finding)>> {
        let specs = services.iter().map(|service| (service.spec.name.as_str(), service.spec.vip));
        let returns = ambiguous_returns(services.iter().map(|service| &service.spec));
        let mut findings: Vec<_> = conflicts(specs)
            .into_iter()
            .chain(returns)
            .chain(pool_conflicts(services.iter().map(|service| &service.spec)))
            .map(|conflict| (conflict.place, conflict.finding))
            .collect();
        if services.len() > SERVICES_MAX {
            let invalid = Invalid::TooManyServices(services.len());
            findings.push((SERVICES_MAX, Finding { key: Key::Name, invalid }));
        }
        if findings.is_empty() {
            Ok(Self { hash_key, services: services.into_iter().map(Arc::new).collect() })
        } else {
            Err(findings)
        }
    }

    /// No services.
    #[must_use]
    pub fn empty(hash_key: HashKey) -> Self {
        Self { hash_key, services: Vec::new() }
    }

    /// The key of the flow hash.
    #[must_use]
    pub fn hash_key(&self) -> HashKey {
        self.hash_key
    }

    /// In the order in which they were given.
    #[must_use]
    pub fn services(&self) -> &[Arc<Service>] {
        &self.services
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

/// At least 100 slots a backend, from primes next to powers of two.
fn slots_for(backends: usize) -> u32 {
    const LADDER: [u32; 8] =
        [65_537, 131_101, 262_147, 524_309, 1_048_583, 2_097_169, 4_194_319, 8_388_617];
    let enough = |&slots: &u32| slots as usize / 100 >= backends;
    LADDER.into_iter().find(enough).unwrap_or(LADDER[LADDER.len() - 1])
}

fn is_prime(n: u32) -> bool {
    n >= 2 && (2..=n.isqrt()).all(|d| !n.is_multiple_of(d))
}

fn next_prime(n: u32) -> u32 {
    (n + 1..=u32::MAX).find(|&n| is_prime(n)).unwrap_or(n)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A backend of weight 1 that the kernel is asked about.
    pub(crate) fn backend(address: &str) -> Backend {
        Backend {
            address: address.parse().unwrap(),
            port: None,
            weight: 1,
            drain: false,
            static_hop: None,
        }
    }

    /// A TCP service on port 80.
    pub(crate) fn spec(name: &str, address: &str, backends: &[&str]) -> ServiceSpec {
        let vip = Vip {
            address: address.parse::<IpAddr>().unwrap().into(),
            ports: PortRange::one(80),
            protocol: Protocol::Tcp,
        };
        let backends = backends.iter().map(|a| backend(a)).collect();
        ServiceSpec { backends, ..ServiceSpec::new(name, vip, Forward::L2dsr) }
    }

    fn tunnel(kind: TunnelKind, source: Option<&str>) -> Forward {
        Forward::Tunnel(Tunnel { kind, source: source.map(|net| net.parse().unwrap()) })
    }

    fn findings(change: impl FnOnce(&mut ServiceSpec)) -> Vec<(Key, String)> {
        let mut spec = spec("web", "10.0.0.100", &["10.0.0.11", "10.0.0.12"]);
        change(&mut spec);
        let findings = Service::new(spec).err().unwrap_or_default();
        findings.into_iter().map(|f| (f.key, f.invalid.to_string())).collect()
    }

    #[test]
    fn a_good_service_is_taken() {
        assert_eq!(findings(|_| ()), []);
        assert_eq!(findings(|s| s.backends.clear()), []);
        assert_eq!(findings(|s| s.backends[0].port = Some(80)), []);
        assert_eq!(findings(|s| s.vip.address = "fd00::64/128".parse().unwrap()), []);
        assert_eq!(findings(|s| s.vip.address = "10.9.0.0/24".parse().unwrap()), []);
        assert_eq!(findings(|s| s.vip.ports = PortRange::ANY), []);
        let sources = Some("172.16.0.0/16");
        assert_eq!(findings(|s| s.forward = tunnel(TunnelKind::Gre, sources)), []);
        assert_eq!(findings(|s| s.mss = MssClamp::AtMost(536)), []);
        assert_eq!(findings(|s| (s.forward, s.backends[0].port) = (Forward::Nat, Some(8080))), []);
        assert_eq!(
            findings(|s| (s.vip.ports, s.vip.protocol) = (PortRange::ANY, Protocol::Any)),
            []
        );
    }

    #[test]
    fn each_rule_names_its_key() {
        type Case = (fn(&mut ServiceSpec), Key, &'static str);
        let cases: [Case; 29] = [
            (|s| s.name.clear(), Key::Name, "a name has"),
            (|s| s.name = "a b".into(), Key::Name, "a name has"),
            (|s| s.vip.address = "224.0.0.1/32".parse().unwrap(), Key::Address, "use a unicast"),
            (|s| s.vip.address = "::/128".parse().unwrap(), Key::Address, "use a unicast"),
            (|s| s.vip.address = "224.0.0.0/4".parse().unwrap(), Key::Address, "use a unicast"),
            (|s| s.vip.address = "10.9.0.1/24".parse().unwrap(), Key::Address, "write 10.9.0.0/24"),
            (|s| s.vip.ports = PortRange::one(0), Key::Port, "port 0"),
            (|s| s.vip.ports = PortRange::new(0, 80).unwrap(), Key::Port, "port 0"),
            (|s| s.vip.protocol = Protocol::Any, Key::Port, "by the address alone"),
            (
                |s| s.forward = tunnel(TunnelKind::Gre, Some("172.16.0.1/16")),
                Key::OuterSource,
                "write 172.16.0.0/16",
            ),
            (
                |s| s.forward = tunnel(TunnelKind::Ipip, Some("224.0.0.0/16")),
                Key::OuterSource,
                "unicast",
            ),
            (
                |s| s.forward = tunnel(TunnelKind::Ipip, Some("fd01::/64")),
                Key::OuterSource,
                "never be a source",
            ),
            (|s| s.forward = tunnel(TunnelKind::Gue { port: 0 }, None), Key::GuePort, "port 0"),
            (|s| s.flows = Flows::Datagram, Key::Flows, "only UDP"),
            (|s| (s.mss, s.vip.protocol) = (MssClamp::Auto, Protocol::Udp), Key::Mss, "only TCP"),
            (|s| s.mss = MssClamp::AtMost(535), Key::Mss, "at least 536"),
            (
                |s| {
                    (s.forward, s.backends[1].address) =
                        (Forward::Nat, "fd00::11".parse().unwrap());
                },
                Key::BackendAddress(1),
                "another family",
            ),
            (
                |s| (s.forward, s.vip.address) = (Forward::Nat, "10.9.0.0/24".parse().unwrap()),
                Key::Address,
                "write one address",
            ),
            (
                |s| {
                    (s.forward, s.vip.ports) = (Forward::Nat, PortRange::ANY);
                    s.backends[1].port = Some(8080);
                },
                Key::BackendPort(1),
                "leave the backend's port out",
            ),
            (
                |s| {
                    (s.forward, s.vip.protocol) = (Forward::Nat, Protocol::Sctp);
                    s.backends[1].port = Some(8080);
                },
                Key::BackendPort(1),
                "keeps the port of SCTP",
            ),
            (|s| s.slots = Some(1000), Key::Slots, "1009 is the next prime"),
            (|s| s.slots = Some(SLOTS_MAX + 1), Key::Slots, "too many"),
            (|s| s.backends = vec![backend("10.0.0.100")], Key::BackendAddress(0), "in a circle"),
            (
                |s| s.backends[1].address = "127.0.0.1".parse().unwrap(),
                Key::BackendAddress(1),
                "unicast",
            ),
            (|s| s.backends[1].port = Some(8080), Key::BackendPort(1), "keeps the port"),
            (|s| s.backends[1].port = Some(0), Key::BackendPort(1), "port 0"),
            (|s| s.backends[1].weight = 65_536, Key::BackendWeight(1), "too large"),
            (|s| s.backends[1] = backend("10.0.0.11"), Key::Backend(1), "listed twice"),
            (
                |s| {
                    s.backends[0].static_hop =
                        Some(StaticHop { mac: MacAddr::BROADCAST, interface: None });
                },
                Key::BackendMac(0),
                "one station's",
            ),
        ];
        for (change, key, text) in cases {
            let found = findings(change);
            assert!(
                matches!(&found[..], [(k, t)] if *k == key && t.contains(text)),
                "{key:?} {text:?}: {found:?}"
            );
        }
    }

    #[test]
    fn several_findings_come_at_once() {
        let found = findings(|s| {
            s.vip.ports = PortRange::one(0);
            s.backends[1].weight = 1 << 20;
        });
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn names_and_vips_are_unique() {
        let service = |name, address| Service::new(spec(name, address, &[])).unwrap();
        let state = |services| DesiredState::new(HashKey([0; 16]), services);
        assert!(state(vec![service("a", "10.0.0.1"), service("b", "10.0.0.2")]).is_ok());
        let twice = state(vec![service("a", "10.0.0.1"), service("a", "10.0.0.1")]).unwrap_err();
        assert_eq!(twice.len(), 2);
        assert!(twice.iter().all(|(place, _)| *place == 1));
        let [a, b] = ["10.0.0.1", "10.0.0.2"].map(|address| spec("", address, &[]).vip);
        let found = conflicts([("x", a), ("y", b), ("z", b), ("x", a), ("x", b)]);
        let places: Vec<_> = found.iter().map(|c| (c.place, c.first, c.finding.key)).collect();
        let (name, vip) = (Key::Name, Key::Address);
        assert_eq!(places, [(2, 1, vip), (3, 0, name), (3, 0, vip), (4, 0, name), (4, 1, vip)]);
    }

    #[test]
    fn an_answer_is_of_one_service() {
        let nat = |name, port: u16, backend_port| {
            let mut spec = spec(name, "10.0.0.100", &["10.0.0.11"]);
            (spec.forward, spec.vip.ports) = (Forward::Nat, PortRange::one(port));
            spec.backends[0].port = backend_port;
            spec
        };
        let mut any = nat("any", 1, None);
        (any.vip.ports, any.vip.protocol) = (PortRange::ANY, Protocol::Any);
        let mut dsr = nat("dsr", 8081, None);
        dsr.forward = Forward::L2dsr;
        let found = ambiguous_returns(&[
            nat("a", 80, Some(8080)),
            nat("b", 81, Some(8081)),
            dsr,
            nat("c", 8080, None),
            any,
        ]);
        let places: Vec<_> = found.iter().map(|c| (c.place, c.first, c.finding.key)).collect();
        assert_eq!(places, [(3, 0, Key::Backend(0)), (4, 0, Key::Backend(0))]);
    }

    #[test]
    fn ranges_do_not_overlap() {
        let of = |ports: (u16, u16), protocol| Vip {
            address: "10.0.0.1/32".parse().unwrap(),
            ports: PortRange::new(ports.0, ports.1).unwrap(),
            protocol,
        };
        let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
        let found = conflicts([
            ("range", of((100, 199), tcp)),
            ("one of it", of((150, 150), tcp)),
            ("all", of((0, 65_535), tcp)),
            ("another protocol", of((100, 198), udp)),
            ("next to it", of((200, 299), tcp)),
            ("from below", of((50, 100), tcp)),
            ("within", of((210, 220), tcp)),
            ("around", of((90, 199), tcp)),
            ("from above", of((299, 300), tcp)),
        ]);
        let places: Vec<_> = found.iter().map(|c| (c.place, c.first, c.finding.key)).collect();
        let port = Key::Port;
        assert_eq!(places, [(5, 0, port), (6, 4, port), (7, 0, port), (8, 4, port)]);
    }

    #[test]
    fn slots_grow_with_the_backends() {
        for (backends, slots) in [(0, 65_537), (655, 65_537), (656, 131_101), (65_535, 8_388_617)] {
            assert_eq!(slots_for(backends), slots);
            assert!(is_prime(slots));
        }
    }
}
