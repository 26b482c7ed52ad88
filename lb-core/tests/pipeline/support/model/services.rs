//! Whose a packet is, and where it goes.

use std::net::IpAddr;

use lb_core::drop_reason::DropReason::{NextHopUnresolved, NoBackend};
use lb_core::model::{Affinity, Backend, Forward, PortRange, Protocol, Service, Tunnel, Vip};
use lb_core::tables::next_hop::{NextHop, Port, PortId};

use super::Verdict;
use super::headers::{Flow, Ip};
use crate::support::world::World;

/// The services that are addressed, whatever the ports, by their place.
pub(super) fn candidates(world: &World, dst: IpAddr, protocol: u8) -> Vec<(usize, &Service)> {
    let services = world.desired.services().iter().map(AsRef::as_ref).enumerate();
    let is_meant = |service: &Service| {
        let vip = service.spec().vip;
        vip.address.contains(&dst) && vip.protocol.number().is_none_or(|number| number == protocol)
    };
    services.filter(|(_, service)| is_meant(service)).collect()
}

pub(super) fn by_precedence(service: &Service) -> (u8, u8, bool) {
    precedence(&service.spec().vip)
}

fn precedence(vip: &Vip) -> (u8, u8, bool) {
    let kind = if vip.ports == PortRange::ANY { 2 } else { u8::from(vip.ports.is_range()) };
    (kind, 255 - vip.address.prefix_len(), vip.protocol == Protocol::Any)
}

/// Whose a flow is.
pub(super) enum Owner<'w> {
    /// A client's, to the service at this place.
    Service(usize, &'w Service),
    /// A `nat` backend's: it answers for the service, whose address it gets, and whose port, if that
    /// is another.
    Station(&'w Service, IpAddr, Option<u16>),
    /// None of those; unless it comes to a pool.
    Nobody,
}

pub(super) fn owner<'w>(world: &'w World, flow: &Flow) -> Owner<'w> {
    if let Some((place, service)) = service_of(world, flow) {
        return Owner::Service(place, service);
    }
    if is_of_a_pool(world, flow.dst) {
        return Owner::Nobody; // whoever sends it
    }
    let mut found: Vec<_> = stations(world, flow.src, flow.protocol)
        .filter(|(_, vip, _)| {
            vip.ports.first() <= flow.ports[0] && flow.ports[0] <= vip.ports.last()
        })
        .collect();
    // Whom it answers tells whose it is; who is behind a prefix, before who is anywhere.
    let Some(best) = found.iter().map(|(_, vip, _)| precedence(vip)).min() else {
        return Owner::Nobody;
    };
    found.retain(|(service, vip, _)| {
        precedence(vip) == best && client_of(service, flow.dst).is_some()
    });
    found.sort_by_key(|(service, ..)| service.spec().forward == Forward::Nat);
    match found.first() {
        None => Owner::Nobody,
        Some((service, _, backend)) => {
            let vip = service.spec().vip;
            let port = backend.port.and(vip.ports.single());
            Owner::Station(service, vip.address.addr(), port)
        }
    }
}

/// Whom an answer of a `nat` service is for, by the address that the backend knows him by.
pub(super) fn client_of(service: &Service, address: IpAddr) -> Option<IpAddr> {
    let Forward::Nat46(prefix) = service.spec().forward else { return Some(address) };
    let IpAddr::V6(address) = address else { return None };
    let [a, b, c, d] = address.octets()[12..].try_into().unwrap();
    prefix.net().contains(&address).then(|| [a, b, c, d].into())
}

/// How a backend knows a client, if not by his own address.
pub(super) fn shown_as(service: &Service, client: IpAddr) -> Option<IpAddr> {
    let Forward::Nat46(prefix) = service.spec().forward else { return None };
    let IpAddr::V4(client) = client else { return None };
    let mut address = prefix.net().network().octets();
    address[12..].copy_from_slice(&client.octets());
    Some(address.into())
}

/// The backends of `nat` at an address, whatever the ports: service, where answers come from, backend.
fn stations(
    world: &World,
    address: IpAddr,
    protocol: u8,
) -> impl Iterator<Item = (&Service, Vip, &Backend)> {
    let services = world.desired.services().iter().map(AsRef::as_ref);
    let is_nat =
        |service: &&Service| matches!(service.spec().forward, Forward::Nat | Forward::Nat46(_));
    services
        .filter(is_nat)
        .flat_map(|service: &Service| {
            let spec = service.spec();
            spec.backends.iter().map(move |backend| (service, spec.answers_of(backend), backend))
        })
        .filter(move |(_, vip, backend)| {
            backend.address == address
                && vip.protocol.number().is_none_or(|number| number == protocol)
        })
}

/// Of the services that a packet matches, the most specific: by ports, then prefix, then protocol.
fn service_of<'w>(world: &'w World, flow: &Flow) -> Option<(usize, &'w Service)> {
    let mut candidates = candidates(world, flow.dst, flow.protocol);
    candidates.retain(|(_, service)| {
        let ports = service.spec().vip.ports;
        ports.first() <= flow.ports[1] && flow.ports[1] <= ports.last()
    });
    candidates.sort_by_key(|(_, service)| by_precedence(service));
    candidates.first().copied()
}

/// Do ports count for where its packets go? Not where clients are kept together, and not where all
/// protocols go by address alone.
pub(super) fn counts_ports(service: &Service) -> bool {
    let spec = service.spec();
    spec.affinity == Affinity::Flow && spec.vip.protocol != Protocol::Any
}

/// What the address of a fragment says.
pub(super) enum Addressed {
    Nobody,
    /// One service, whatever the ports are; are clients kept together there?
    AnyPort {
        by_client: bool,
    },
    ByPort,
}

pub(super) fn addressed(world: &World, ip: &Ip) -> Addressed {
    // Behind a fragment header may be other headers; then only the first fragment knows.
    if matches!(ip.protocol.0, 0 | 43 | 44 | 60) && ip.dst.is_ipv6() {
        let any = [6, 17, 132].iter().any(|number| {
            !candidates(world, ip.dst, *number).is_empty() || is_of_a_backend(world, ip, *number)
        });
        return if any { Addressed::ByPort } else { Addressed::Nobody };
    }
    let mut candidates = candidates(world, ip.dst, ip.protocol.0);
    candidates.sort_by_key(|(_, service)| by_precedence(service));
    match candidates.first() {
        None if is_of_a_backend(world, ip, ip.protocol.0) => Addressed::ByPort,
        None => Addressed::Nobody,
        Some((_, service)) if service.spec().vip.ports == PortRange::ANY => {
            Addressed::AnyPort { by_client: !counts_ports(service) }
        }
        Some(_) => Addressed::ByPort,
    }
}

/// May it be an answer: of a `nat` backend, or to a pool?
fn is_of_a_backend(world: &World, ip: &Ip, protocol: u8) -> bool {
    stations(world, ip.src, protocol).next().is_some() || is_of_a_pool(world, ip.dst)
}

fn is_of_a_pool(world: &World, address: IpAddr) -> bool {
    let mut pools = world.desired.services().iter().filter_map(|service| service.spec().pool());
    pools.any(|pool| pool.contains(&address))
}

/// Where a packet goes.
pub(super) struct Choice<'w> {
    pub(super) backend: &'w Backend,
    pub(super) hash: u64,
    pub(super) way: NextHop,
    /// Of outer headers.
    pub(super) source: Option<IpAddr>,
}

/// The owner of the flow's slot, and one of the ways there.
pub(super) fn choose<'w>(
    world: &'w World,
    place: usize,
    service: &'w Service,
    flow: &Flow,
) -> Result<Choice<'w>, Verdict> {
    let spec = service.spec();
    let mut wanted = spec.backends.iter().filter(|b| b.weight > 0 && !b.drain).peekable();
    if wanted.peek().is_none() {
        return Err(NoBackend.into());
    }
    if !wanted.any(|backend| !ways(world, spec.forward, backend).is_empty()) {
        return Err(NextHopUnresolved.into());
    }
    let hash = world.tables.hasher.hash(&flow.tuple(), counts_ports(service));
    let slots = world.tables.services[place].slots.slots();
    assert_eq!(slots.len(), service.slots() as usize);
    let slot = u128::from(hash) * slots.len() as u128 / (1 << 64);
    let backend = &spec.backends[usize::from(slots[usize::try_from(slot).unwrap()])];
    assert!(backend.weight > 0 && !backend.drain, "a slot is on {backend:?}");
    let ways = ways(world, spec.forward, backend);
    assert!(!ways.is_empty(), "a slot is on {backend:?}, which nobody knows the way to");
    let way = ways[low_half_reduced(hash, ways.len())];
    Ok(Choice {
        backend,
        hash,
        way,
        source: match spec.forward {
            Forward::L2dsr | Forward::Nat | Forward::Nat46(_) | Forward::FullNat(_) => None,
            Forward::Tunnel(tunnel) => outer_source(world, &tunnel, backend, &ways)
                .map(|source| vary(source, &tunnel, hash)),
        },
    })
}

pub(super) fn low_half_reduced(hash: u64, n: usize) -> usize {
    let n = u64::try_from(n).unwrap();
    usize::try_from((hash % (1 << 32)) * n / (1 << 32)).unwrap()
}

/// The way to a client, by the longest of the routes that lead there.
pub(super) fn way_back(world: &World, client: IpAddr, flow: &Flow) -> Option<NextHop> {
    let routes = world.routes.iter().filter(|(net, _)| net.contains(&client));
    let (_, ways) = routes.max_by_key(|(net, _)| net.prefix_len())?;
    let hash = world.tables.hasher.hash(&flow.tuple(), true);
    Some(ways[low_half_reduced(hash, ways.len())])
}

/// The next hops of a backend; none if it cannot be reached in this way.
pub(super) fn ways(world: &World, forward: Forward, backend: &Backend) -> Vec<NextHop> {
    let ports = &world.ports;
    let (ways, gateway) = if let Some(hop) = &backend.static_hop {
        let on_link = |port: &Port| port.addresses.iter().any(|net| net.contains(&backend.address));
        let place = match &hop.interface {
            Some(name) => ports.iter().position(|port| port.name == *name),
            None => ports.iter().position(on_link).or(Some(0)),
        };
        let port = |place| PortId(u8::try_from(place).unwrap());
        let way = |place| NextHop { port: port(place), mac: hop.mac, vlan: None };
        (place.map(way).into_iter().collect(), None)
    } else if let Some(Ok(resolved)) = world.next_hops.get(&backend.address).map(|it| &**it) {
        (resolved.hops.to_vec(), resolved.gateway)
    } else {
        (Vec::new(), None)
    };
    let reachable = match forward {
        Forward::L2dsr => gateway.is_none(),
        Forward::Nat | Forward::Nat46(_) | Forward::FullNat(_) => true,
        Forward::Tunnel(tunnel) => outer_source(world, &tunnel, backend, &ways).is_some(),
    };
    if reachable { ways } else { Vec::new() }
}

/// The tunnel's prefix, if it is of the backend's family; else an address of that family: of the
/// first way's port, else of any.
pub(super) fn outer_source(
    world: &World,
    tunnel: &Tunnel,
    backend: &Backend,
    ways: &[NextHop],
) -> Option<IpAddr> {
    let first = ways.first().map(|way| &world.ports[way.port.index()]);
    let addresses = first.into_iter().chain(&*world.ports).flat_map(|port| &port.addresses);
    tunnel
        .source
        .map(|net| net.network())
        .into_iter()
        .chain(addresses.map(ipnet::IpNet::addr))
        .find(|address| address.is_ipv4() == backend.address.is_ipv4())
}

/// The bits that a prefix leaves open are the flow hash's, at most 64.
pub(super) fn vary(source: IpAddr, tunnel: &Tunnel, hash: u64) -> IpAddr {
    let Some(net) = tunnel.source.filter(|net| net.network() == source) else { return source };
    let open = u32::from(net.max_prefix_len() - net.prefix_len()).min(64);
    let bits = u128::from(hash) % (1 << open);
    match source {
        IpAddr::V4(source) => {
            (source.to_bits() + u32::try_from(bits).unwrap()).to_be_bytes().into()
        }
        IpAddr::V6(source) => (source.to_bits() + bits).to_be_bytes().into(),
    }
}
