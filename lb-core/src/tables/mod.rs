//! What workers read: immutable, made by [`compile()`](compile::compile), published as a whole.

use std::mem::offset_of;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use zerocopy::IntoBytes;

use crate::admission::{Admission, Gate};
use crate::continuity::tracker::Shape;
use crate::continuity::transition::Moved;
use crate::continuity::{Growth, Roster, Touched, Tracker, Transitions};
use crate::drop_reason::DropReason;
use crate::estimate::Estimates;
use crate::flow_hash::{FlowHasher, reduce, reduce_low};
use crate::maglev;
use crate::model::{
    Affinity, ClientAddress, DesiredState, Forward, MssClamp, PortRange, Protocol, Service,
    ServiceSpec, TunnelKind, Vip,
};
use crate::pool::Pool;
use crate::rate::Tick;
use crate::tuple::{Tuple, address_bytes, mapped};
use crate::wire::checksum::{Checksum, Sum};
use crate::wire::ethernet::MacAddr;
use crate::wire::{ipv4, ipv6};

mod answers;
pub mod compile;
pub mod fib;
pub mod next_hop;
mod vip_index;

pub use answers::{Answers, Return};
use compile::{Basis, Outlook};
use next_hop::{HOPS_MAX, NextHop, Port, PortId};
pub use vip_index::{ByAddress, VipIndex};

/// Names a service from one version of the tables to the next; a small number, used again after
/// the service is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(pub u32);

/// One version of everything that a worker needs to know.
#[derive(Clone, Debug)]
pub struct Tables {
    /// Counts up from 1.
    pub version: u64,
    /// The flow hash with its key.
    pub hasher: FlowHasher,
    /// By [`PortId`].
    pub ports: Arc<[Port]>,
    /// Destination → place in `services`.
    pub vips: VipIndex,
    /// In the order of the desired state.
    pub services: Vec<Arc<ServiceTable>>,
    /// The ports' own addresses, IPv4 as mapped.
    pub own: Vec<[u8; 16]>,
    /// The ways to clients.
    pub fib: Arc<fib::Fib>,
    /// Source of a packet from a backend → what becomes of it.
    pub answers: Answers,
    /// What clients of `fullnat` stand behind. They outlive versions, and have a memory: see
    /// [`Pool`].
    pub pools: Arc<[Arc<Pool>]>,
    /// Destination of an answer → place in `pools`.
    pub pool_index: VipIndex,
    /// The flows that changes touch. It outlives versions, and has a memory.
    pub tracker: Arc<Tracker>,
    /// Who may open connections to services with a bound; absent: no service has one. It outlives
    /// versions, and has a memory.
    pub admission: Option<Arc<Admission>>,
    /// Is a slot of any service in transition?
    pub in_transition: bool,
    /// Not for workers: what all this was made from.
    basis: Option<Basis>,
}

impl Tables {
    /// Would a worker do the same by `other`, its predecessor for the same desired state? Looks at
    /// what is shared, not inside.
    #[must_use]
    pub fn decides_like(&self, other: &Self) -> bool {
        let alike = |(a, b): (&Arc<ServiceTable>, &Arc<ServiceTable>)| {
            Arc::ptr_eq(a, b) || a.decides_like(b)
        };
        self.fib == other.fib
            && self.services.len() == other.services.len()
            && self.services.iter().zip(&other.services).all(alike)
    }
}

impl Tables {
    /// The service at a place.
    #[inline]
    #[must_use]
    pub fn service(&self, place: u32) -> Option<&ServiceTable> {
        self.services.get(place as usize).map(Arc::as_ref)
    }

    /// May a flow of any service be tracked, or become so?
    #[inline]
    #[must_use]
    pub fn may_track(&self) -> bool {
        self.in_transition || !self.tracker.is_empty()
    }

    /// What they were made of; `None`, if they were remembered.
    #[must_use]
    pub fn made_of(&self) -> Option<&DesiredState> {
        self.basis.as_ref().map(Basis::desired)
    }

    /// The services with backends that are leaving; or all, if they were remembered.
    pub fn leaving(&self) -> impl Iterator<Item = &ServiceTable> {
        self.with_outlook(|outlook| outlook.has_leaving)
    }

    /// The services with backends that there is no way to; or all, if they were remembered.
    pub fn awaiting_ways(&self) -> impl Iterator<Item = &ServiceTable> {
        self.with_outlook(|outlook| outlook.awaits_ways)
    }

    fn with_outlook(&self, has: fn(&Outlook) -> bool) -> impl Iterator<Item = &ServiceTable> {
        let outlook = move |place| self.basis.as_ref().and_then(|basis| basis.outlook(place));
        let services = self.services.iter().enumerate();
        let services = services.filter(move |(place, _)| outlook(*place).is_none_or(has));
        services.map(|(_, service)| &**service)
    }

    /// These, with other services, whose tables were not made of anything that is known.
    pub(crate) fn with_services(&self, services: Vec<Arc<ServiceTable>>) -> Self {
        Self { answers: Answers::new(&services), services, basis: None, ..self.clone() }
    }

    /// When the tables change by themselves, if nothing else changes before.
    #[must_use]
    pub fn next_change(&self) -> Option<Tick> {
        match &self.basis {
            Some(basis) => basis.next_change(),
            None => self.services.iter().filter_map(|service| service.next_change()).min(),
        }
    }
}

/// One service, as workers see it. What each packet needs is in the first cache line: among many services, each
/// line more would be waited for.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct ServiceTable {
    /// Slot → backend; empty if no backend takes traffic.
    pub slots: SlotTable,
    /// By place; some are nobody's.
    pub backends: Arc<[BackendEntry]>,
    /// For counters.
    pub id: ServiceId,
    /// Does the flow hash cover the ports?
    pub affinity: Affinity,
    /// Has one of the backends several ways?
    pub has_equal_ways: bool,
    /// What becomes of the segment size in a SYN.
    pub mss: MssClamp,
    /// The slots that a flow may be tracked of, where it is known. It outlives versions, and has a memory.
    pub touched: Option<Arc<Touched>>,
    /// Why packets are dropped if there are no slots.
    pub without_slots: DropReason,
    /// What its clients stand behind.
    pub pooled: Option<Pooled>,
    /// What bounds its new connections. It outlives versions, and has a memory.
    pub gate: Option<Arc<Gate>>,
    /// Who has which place.
    pub roster: Arc<Roster>,
    /// About how much they have got. They outlive versions, and have a memory.
    pub estimates: Estimates,
    /// Whose share is not whole yet.
    pub growth: Growth,
    /// The slots that have moved.
    pub transitions: Option<Arc<Transitions>>,
    /// What the keys of its tracked flows hold.
    pub key_shape: Shape,
    /// Do packets open flows? Else a packet says nothing about whether there is one already.
    pub has_openings: bool,
    /// How long a tracked flow that is silent is remembered, in [`crate::pool::units`].
    pub idle_max: u16,
    /// What this was made from.
    pub source: Arc<Service>,
}

const _: () = assert!(offset_of!(ServiceTable, touched) + size_of::<usize>() <= 64);

impl ServiceTable {
    /// A service that nobody addresses, with nobody behind it.
    pub(crate) fn nothing() -> Option<Self> {
        let ports = PortRange::one(1);
        let address = IpNet::from(IpAddr::from([192, 0, 2, 1]));
        let vip = Vip { address, ports, protocol: Protocol::Tcp };
        Some(Self {
            id: ServiceId(0),
            affinity: Affinity::Flow,
            slots: SlotTable::new(Box::default(), Box::default(), 0),
            mss: MssClamp::Keep,
            without_slots: DropReason::NoBackend,
            pooled: None,
            gate: None,
            backends: Arc::default(),
            has_equal_ways: false,
            roster: Arc::default(),
            estimates: Arc::default(),
            growth: Growth::default(),
            transitions: None,
            touched: None,
            key_shape: Shape::Short,
            has_openings: true,
            idle_max: 0,
            source: Arc::new(Service::new(ServiceSpec::new("-", vip, Forward::L2dsr)).ok()?),
        })
    }

    /// Do all flows of a client stay together?
    #[inline]
    #[must_use]
    pub fn keeps_clients(&self) -> bool {
        self.affinity == Affinity::Client
    }

    /// The backend of the slot of a flow, by its hash, if the slot is not in transition.
    #[inline]
    #[must_use]
    pub fn settled(&self, hash: u64) -> Option<u16> {
        let moved = self.transitions.as_ref().map_or(Moved::No, |it| it.of(hash));
        let slot = reduce(hash, self.slots.len()) as usize;
        self.slots.slots().get(slot).copied().filter(|_| moved == Moved::No)
    }

    /// May a flow of the service be tracked, or become so?
    #[inline]
    #[must_use]
    pub fn may_track(&self, tracker: &Tracker) -> bool {
        self.transitions.is_some() || tracker.tracks(self.id)
    }

    /// See [`Tables::decides_like`].
    pub(crate) fn decides_like(&self, other: &Self) -> bool {
        self.slots.is_shared_with(&other.slots)
            && Arc::ptr_eq(&self.backends, &other.backends)
            && self.without_slots == other.without_slots
            && self.roster == other.roster
            && self.growth == other.growth
            && self.transitions.as_ref().map(Arc::as_ptr)
                == other.transitions.as_ref().map(Arc::as_ptr)
    }

    /// When it changes by itself, if nothing else changes before.
    pub(crate) fn next_change(&self) -> Option<Tick> {
        let transition = self.transitions.as_ref().map(|it| it.next_end());
        let others = self.roster.next_change().into_iter().chain(self.growth.next_step());
        transition.into_iter().chain(others).min()
    }

    /// May a flow of this slot be tracked, or become so?
    #[inline]
    #[must_use]
    pub fn may_track_of(&self, slot: u32, tracker: &Tracker) -> bool {
        match &self.touched {
            Some(touched) => touched.has(slot),
            None => self.may_track(tracker),
        }
    }

    /// A flow with this hash is about to be tracked, whose slot may not be in transition.
    #[inline]
    pub fn touch(&self, hash: u64) {
        if let Some(touched) = &self.touched {
            touched.add(reduce(hash, self.slots.len()));
        }
    }

    /// May the backend at `place` serve?
    #[inline]
    #[must_use]
    pub fn may_serve(&self, place: u16) -> bool {
        self.backends.get(usize::from(place)).is_some_and(|entry| entry.may_serve)
    }

    /// Is the backend at a place one that new flows are led to?
    #[must_use]
    pub fn takes_flows(&self, place: u16) -> bool {
        self.slots.weights().get(usize::from(place)).is_some_and(|weight| *weight > 0)
    }
}

/// A pool, as a service uses it.
#[derive(Clone, Debug)]
pub struct Pooled {
    /// One of [`Tables::pools`].
    pub pool: Arc<Pool>,
    /// How backends learn who the client is.
    pub client_address: ClientAddress,
    /// How long a connection may be silent, in [`crate::pool::units`].
    pub idle_max: u16,
}

/// Slot → backend, and what it was made from. Cheap to clone. Slots are found without a step in between: among
/// many services each step would be waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotTable {
    /// A prime number of them, or none.
    slots: Arc<[u16]>,
    made_of: Arc<Racers>,
}

/// Whom a table is made of, by place.
#[derive(Debug, PartialEq, Eq)]
struct Racers {
    identities: Box<[u64]>,
    /// 0: takes no slot.
    weights: Box<[u32]>,
}

impl SlotTable {
    /// Of backends by place, with `slots` slots, a prime; none, if no weight is above zero.
    #[must_use]
    pub fn new(identities: Box<[u64]>, weights: Box<[u32]>, slots: u32) -> Self {
        let slots = maglev::build(&identities, &weights, slots).into();
        Self { slots, made_of: Arc::new(Racers { identities, weights }) }
    }

    /// Are both one?
    #[must_use]
    pub fn is_shared_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.made_of, &other.made_of)
    }

    /// Is it what [`SlotTable::new`] makes of these?
    #[must_use]
    pub fn is_of(&self, identities: &[u64], weights: &[u32], slots: u32) -> bool {
        *self.made_of.identities == *identities
            && *self.made_of.weights == *weights
            && (self.len() == slots || self.is_empty())
    }

    /// Weights that count, by place.
    #[must_use]
    pub fn weights(&self) -> &[u32] {
        &self.made_of.weights
    }

    /// The number of slots.
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "made of a u32")]
    pub fn len(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Does no backend take traffic?
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Slot → backend.
    #[inline]
    #[must_use]
    pub fn slots(&self) -> &[u16] {
        &self.slots
    }
}

/// How one backend is reached. As large as two cache lines, and begins on one. What a packet needs is all in the
/// first, if there is only one way.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct BackendEntry {
    /// How packets travel.
    pub path: Path,
    /// May it serve? Also while it is not known whether there is a way to it: its flows wait.
    pub may_serve: bool,
    /// So many of `hops` are ways.
    ways: u8,
    hops: [HopEntry; HOPS_MAX],
}

const _: () = assert!(size_of::<BackendEntry>() <= 128);
const _: () = assert!(offset_of!(BackendEntry, hops) + size_of::<HopEntry>() <= 64);

impl BackendEntry {
    /// Nobody's, or of one who may not serve.
    pub const NONE: Self =
        Self { path: Path::Plain, may_serve: false, ways: 0, hops: [HopEntry::NONE; HOPS_MAX] };

    /// Of one who serves, if there is a way to it.
    #[must_use]
    pub fn new(path: Path, ways: impl IntoIterator<Item = HopEntry>) -> Self {
        let mut entry = Self { path, ..Self::NONE };
        for (hop, way) in entry.hops.iter_mut().zip(ways) {
            *hop = way;
            entry.ways += 1;
        }
        entry.may_serve = entry.ways > 0;
        entry
    }

    /// Of one to which there is no way.
    #[must_use]
    pub fn without_ways(path: Path, may_serve: bool) -> Self {
        Self { path, may_serve, ..Self::NONE }
    }

    /// The way of a flow.
    #[inline(always)]
    #[must_use]
    pub fn hop(&self, hash: u64) -> Option<&HopEntry> {
        match self.ways {
            0 => None,
            1 => Some(&self.hops[0]),
            // (The remainder, which it is anyway, needs no check.)
            ways => Some(&self.hops[reduce_low(hash, ways.into()) as usize % HOPS_MAX]),
        }
    }

    /// The ways; none: not resolved yet.
    #[inline]
    #[must_use]
    pub fn hops(&self) -> &[HopEntry] {
        self.hops.get(..self.ways.into()).unwrap_or_default()
    }

    /// What is in the second cache line: ways that only some backends have.
    #[inline]
    pub(crate) fn further(&self) -> &HopEntry {
        let [.., last] = &self.hops;
        last
    }
}

/// A next hop, ready to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HopEntry {
    /// Destination and source of the frame, as they lie on the wire.
    pub macs: [MacAddr; 2],
    /// The port that the frame leaves by.
    pub out: PortId,
    /// The tag that it gets; absent: see [`next_hop::NextHop::vlan`].
    pub vlan: Option<u16>,
    /// Largest packet, in bytes.
    pub mtu: u16,
    /// See [`Port::udp_checksums`].
    pub udp_checksums: bool,
}

impl HopEntry {
    /// Nobody's.
    const NONE: Self = Self {
        macs: [MacAddr([0; 6]); 2],
        out: PortId(0),
        vlan: None,
        mtu: 0,
        udp_checksums: false,
    };

    /// The way to a next hop; `None`, if its port is not among `ports`.
    #[must_use]
    pub fn new(hop: &NextHop, ports: &[Port]) -> Option<Self> {
        let port = ports.get(hop.port.index())?;
        Some(Self {
            macs: [hop.mac, port.mac],
            out: hop.port,
            vlan: hop.vlan,
            mtu: port.mtu,
            udp_checksums: port.udp_checksums,
        })
    }
}

/// How packets travel to a backend. With a tag of its own, which is looked at for each packet: else it
/// would have to be worked out of what is inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Path {
    /// As they are.
    Plain,
    /// Inside another packet.
    Tunnel(TunnelKind, Ends),
    /// With another destination; of an IPv4 client as an IPv6 packet, if its address is embedded.
    Nat(Station, Option<Embedding>),
}

/// How the addresses of IPv4 clients become those of IPv6, for one backend (RFC 6052 §2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Embedding {
    /// What they get in front.
    pub prefix: [u8; 12],
    /// The sum over that and the backend's address, folded: checksums cover both.
    pub sum: Checksum,
}

impl Embedding {
    /// For the backend of this address.
    #[must_use]
    pub fn new(prefix: [u8; 12], backend: [u8; 16]) -> Self {
        let sum = Sum::default().plus(&prefix).plus(&backend).partial();
        Self { prefix, sum }
    }

    /// A client's address as the backend sees it, and the sum over both addresses.
    #[inline(always)]
    #[must_use]
    pub fn embed(&self, client: [u8; 4]) -> ([u8; 16], Sum) {
        let mut address = [0; 16];
        let (front, back) = address.split_at_mut(self.prefix.len());
        front.copy_from_slice(&self.prefix);
        back.copy_from_slice(&client);
        (address, Sum::default().plus(self.sum.as_bytes()).plus(&client))
    }
}

/// An address and port that packets get instead of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Station {
    /// IPv4 as mapped.
    pub address: [u8; 16],
    /// As it lies on the wire; absent: the port stays.
    pub port: Option<[u8; 2]>,
}

impl Station {
    pub(super) fn new(address: IpAddr, port: Option<u16>) -> Self {
        Self { address: address_bytes(address), port: port.map(u16::to_be_bytes) }
    }

    /// Its address, where that is IPv4's.
    #[inline]
    #[must_use]
    pub fn ipv4(&self) -> [u8; 4] {
        let [.., a, b, c, d] = self.address;
        [a, b, c, d]
    }
}

impl Path {
    /// Bytes that it adds to a packet.
    #[inline]
    #[must_use]
    pub fn overhead(&self) -> usize {
        match self {
            Self::Plain | Self::Nat(_, None) => 0,
            Self::Nat(_, Some(_)) => ipv6::HEADER_BYTES - ipv4::HEADER_BYTES,
            Self::Tunnel(kind, ends) => ends.header_bytes() + kind.shim_bytes(),
        }
    }
}

impl TunnelKind {
    /// Bytes between the outer header and the packet.
    #[inline]
    #[must_use]
    pub fn shim_bytes(&self) -> usize {
        match self {
            Self::Ipip => 0,
            Self::Gue { .. } => 8,
            Self::Gre => 4,
        }
    }
}

/// The addresses of an outer header, from the balancer to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// RFC 791.
    Ipv4 {
        /// The balancer; with `vary_bits`, the prefix of sources.
        src: [u8; 4],
        /// The backend.
        dst: [u8; 4],
        /// How many low bits of the source are the flow hash's; at most 32.
        vary_bits: u8,
    },
    /// RFC 8200.
    Ipv6 {
        /// The balancer; with `vary_bits`, the prefix of sources.
        src: [u8; 16],
        /// The backend.
        dst: [u8; 16],
        /// How many low bits of the source are the flow hash's; at most 64.
        vary_bits: u8,
        /// The sum over both addresses, folded: checksums behind the header cover them.
        sum: Checksum,
    },
}

impl Ends {
    /// Those of an outer IPv6 header.
    #[must_use]
    pub fn ipv6(src: [u8; 16], dst: [u8; 16], vary_bits: u8) -> Self {
        let sum = Sum::default().plus(&src).plus(&dst).partial();
        Self::Ipv6 { src, dst, vary_bits, sum }
    }

    /// Could `outer` be the tuple of a packet between them?
    #[must_use]
    pub fn are_of(&self, outer: &Tuple) -> bool {
        let (src, dst, vary_bits) = match *self {
            Self::Ipv4 { src, dst, vary_bits } => (mapped(src), mapped(dst), vary_bits),
            Self::Ipv6 { src, dst, vary_bits, .. } => (src, dst, vary_bits),
        };
        let [src, given] =
            [src, outer.src].map(|address| u128::from_be_bytes(address) >> vary_bits);
        src == given && dst == outer.dst
    }

    /// Bytes of the outer header.
    #[inline]
    #[must_use]
    pub fn header_bytes(&self) -> usize {
        match self {
            Self::Ipv4 { .. } => ipv4::HEADER_BYTES,
            Self::Ipv6 { .. } => ipv6::HEADER_BYTES,
        }
    }
}
