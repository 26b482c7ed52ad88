//! Desired state, and what is true of the network → tables. Pure, and for the control thread.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use arrayvec::ArrayVec;
use ipnet::IpNet;
use rapidhash::v3::{RapidSecrets, rapidhash_v3_nano_inline};

use super::next_hop::{Hops, NextHop, NextHops, Port, PortId, Resolved, Unresolved};
use super::{
    BackendEntry, Ends, HopEntry, Path, Pooled, Return, ServiceId, ServiceTable, SlotTable,
    Station, Tables, VipIndex,
};
use crate::drop_reason::DropReason;
use crate::flow_hash::FlowHasher;
use crate::maglev;
use crate::model::{
    Affinity, Backend, DesiredState, Forward, FullNat, PortRange, Protocol, Service, ServiceSpec,
    StaticHop, Tunnel, Vip,
};
use crate::pool::{self, Pool};
use crate::rate::Tick;
use crate::tuple::address_bytes;

/// Makes the next version of the tables. What did not change since `previous` is shared with it.
///
/// A backend without a way to it takes no slots until it has one. The result depends on `previous`
/// in nothing but its version, the ids of services, what is shared, and the ways to clients, which
/// are the caller's to change.
#[must_use]
pub fn compile(
    desired: &DesiredState,
    ports: &Arc<[Port]>,
    next_hops: &NextHops,
    previous: Option<&Tables>,
) -> Tables {
    let old: BTreeMap<&str, &ServiceTable> = previous
        .iter()
        .flat_map(|tables| &tables.services)
        .map(|table| (table.source.spec().name.as_str(), table))
        .collect();
    let mut ids = Ids::new(previous);
    let pools = pools(desired, previous);
    let services: Vec<ServiceTable> = desired
        .services()
        .iter()
        .map(|service| {
            let old = old.get(service.spec().name.as_str()).copied();
            let id = old.map_or_else(|| ids.next_free(), |old| old.id);
            service_table(service, id, (ports, next_hops, &pools), old)
        })
        .collect();
    let vips = desired.services().iter().map(|service| service.spec().vip);
    let (stations, returns) = returns(desired);
    Tables {
        fib: previous.map(|tables| Arc::clone(&tables.fib)).unwrap_or_default(),
        stations: VipIndex::new(stations.into_iter()),
        returns,
        pool_index: VipIndex::new(pools.iter().map(|pool| whole(pool.net()))),
        pools,
        version: previous.map_or(1, |tables| tables.version + 1),
        hasher: FlowHasher::new(desired.hash_key()),
        ports: Arc::clone(ports),
        vips: VipIndex::new(vips),
        services,
    }
}

/// The pools of all services, once each; those that were there before with their connections.
fn pools(desired: &DesiredState, previous: Option<&Tables>) -> Vec<Arc<Pool>> {
    let old: BTreeMap<IpNet, &Arc<Pool>> =
        previous.iter().flat_map(|tables| &tables.pools).map(|pool| (pool.net(), pool)).collect();
    let wanted: BTreeSet<IpNet> =
        desired.services().iter().filter_map(|service| service.spec().pool()).collect();
    wanted
        .into_iter()
        .map(|net| old.get(&net).map_or_else(|| Arc::new(Pool::new(net)), |pool| Arc::clone(pool)))
        .collect()
}

fn pooled(spec: &ServiceSpec, pools: &[Arc<Pool>]) -> Option<Pooled> {
    let Forward::FullNat(FullNat { pool, client_address }) = spec.forward else { return None };
    let pool = pools.iter().find(|known| known.net() == pool)?;
    let idle = spec.idle_timeout();
    let idle = Tick(u64::try_from(idle.as_millis()).unwrap_or(u64::MAX));
    // Rounded up.
    let idle_max = (pool::units(idle) + 1).min(pool::IDLE_MAX);
    Some(Pooled { pool: Arc::clone(pool), client_address, idle_max })
}

/// Every packet to a prefix.
fn whole(net: IpNet) -> Vip {
    Vip { address: net, ports: PortRange::ANY, protocol: Protocol::Any }
}

/// Where answers come from that the balancer translates back, and what they become.
fn returns(desired: &DesiredState) -> (Vec<Vip>, Vec<Return>) {
    let services = (0..).zip(desired.services());
    let translating = services.filter(|(_, service)| service.spec().forward == Forward::Nat);
    translating
        .flat_map(|(place, service)| {
            let spec = service.spec();
            spec.backends.iter().map(move |backend| {
                let port = backend.port.and(spec.vip.ports.single());
                let vip = station(spec.vip.address.addr(), port);
                (spec.answers_of(backend), Return { service: place, vip })
            })
        })
        .unzip()
}

fn station(address: IpAddr, port: Option<u16>) -> Station {
    Station { address: address_bytes(address), port: port.map(u16::to_be_bytes) }
}

/// Hands out the lowest ids that the previous version did not use: counters of a service that is
/// gone are not another's as long as a worker may still add to them.
struct Ids {
    used: Vec<bool>,
    next: usize,
}

impl Ids {
    fn new(previous: Option<&Tables>) -> Self {
        let mut used = Vec::new();
        for table in previous.iter().flat_map(|tables| &tables.services) {
            let id = table.id.0 as usize;
            used.resize(used.len().max(id + 1), false);
            used[id] = true;
        }
        Self { used, next: 0 }
    }

    #[expect(clippy::cast_possible_truncation, reason = "at most twice SERVICES_MAX")]
    fn next_free(&mut self) -> ServiceId {
        while self.used.get(self.next).copied().unwrap_or(false) {
            self.next += 1;
        }
        self.next += 1;
        ServiceId((self.next - 1) as u32)
    }
}

fn service_table(
    service: &Arc<Service>,
    id: ServiceId,
    (ports, next_hops, pools): (&[Port], &NextHops, &[Arc<Pool>]),
    old: Option<&ServiceTable>,
) -> ServiceTable {
    let spec = service.spec();
    let backends: Vec<BackendEntry> = spec
        .backends
        .iter()
        .map(|backend| entry(backend, spec.forward, ports, next_hops))
        .collect();
    let backends = match old {
        Some(old) if *old.backends == *backends => Arc::clone(&old.backends),
        _ => backends.into(),
    };
    let weights: Box<[u32]> = spec
        .backends
        .iter()
        .zip(&*backends)
        .map(|(spec, entry)| if entry.hops.is_empty() { 0 } else { spec.effective_weight() })
        .collect();
    let identities = spec.backends.iter().map(|b| identity(b.address, spec.port_of(b))).collect();
    let someone_wanted = spec.backends.iter().any(|backend| backend.effective_weight() > 0);
    ServiceTable {
        id,
        // By address alone means that ports do not count.
        affinity: match spec.vip.protocol {
            Protocol::Any => Affinity::Client,
            _ => spec.affinity,
        },
        mss: spec.mss,
        pooled: pooled(spec, pools),
        slots: slot_table(identities, weights, service.slots(), old),
        without_slots: if someone_wanted {
            DropReason::NextHopUnresolved
        } else {
            DropReason::NoBackend
        },
        backends,
        source: Arc::clone(service),
    }
}

fn slot_table(
    identities: Box<[u64]>,
    weights: Box<[u32]>,
    slots: u32,
    old: Option<&ServiceTable>,
) -> Arc<SlotTable> {
    let len = if weights.iter().any(|&weight| weight > 0) { slots } else { 0 };
    match old.map(|old| &old.slots) {
        Some(old) if old.identities == identities && old.weights == weights && old.len == len => {
            Arc::clone(old)
        }
        _ => {
            let slots = maglev::build(&identities, &weights, slots);
            Arc::new(SlotTable { identities, weights, len, slots })
        }
    }
}

/// What a backend is to its table: its address and port (0: the one that the client used), on
/// every balancer alike.
fn identity(address: IpAddr, port: Option<u16>) -> u64 {
    let mut bytes = [0; 18];
    bytes[..16].copy_from_slice(&address_bytes(address));
    bytes[16..].copy_from_slice(&port.unwrap_or(0).to_be_bytes());
    rapidhash_v3_nano_inline::<true, false>(&bytes, const { &RapidSecrets::seed_cpp(0) })
}

fn entry(
    backend: &Backend,
    forward: Forward,
    ports: &[Port],
    next_hops: &NextHops,
) -> BackendEntry {
    let Ok((hops, path)) = ways(backend, forward, ports, next_hops) else {
        // Connections know it by its path, while it has no way as well.
        let path = match forward {
            Forward::Nat | Forward::FullNat(_) => translation(backend),
            Forward::L2dsr | Forward::Tunnel(_) => Path::Plain,
        };
        return BackendEntry { hops: ArrayVec::new(), path };
    };
    let hops = hops.iter().filter_map(|hop| HopEntry::new(hop, ports)).collect();
    BackendEntry { hops, path }
}

/// Packets become the backend's.
fn translation(backend: &Backend) -> Path {
    Path::Nat(station(backend.address, backend.port))
}

/// The next hops to a backend and how packets travel there, or why there is no way.
///
/// # Errors
/// [`Unresolved`], in words for the operator.
pub fn ways(
    backend: &Backend,
    forward: Forward,
    ports: &[Port],
    next_hops: &NextHops,
) -> Result<(Hops, Path), Unresolved> {
    let (hops, gateway) = match (&backend.static_hop, next_hops.get(&backend.address)) {
        (Some(hop), _) => (static_way(backend.address, hop, ports).into_iter().collect(), None),
        (None, Some(Ok(Resolved { hops, gateway }))) => (hops.clone(), *gateway),
        (None, Some(Err(unresolved))) => return Err(unresolved.clone()),
        (None, None) => return Err(Unresolved::Unknown),
    };
    match (forward, gateway) {
        (Forward::L2dsr, Some(gateway)) => Err(Unresolved::BehindGateway(gateway)),
        (Forward::L2dsr, None) => Ok((hops, Path::Plain)),
        (Forward::Nat | Forward::FullNat(_), _) => Ok((hops, translation(backend))),
        (Forward::Tunnel(tunnel), _) => {
            let ends = ends(backend.address, &tunnel, ports, &hops).ok_or(Unresolved::NoSource)?;
            Ok((hops, Path::Tunnel(tunnel.kind, ends)))
        }
    }
}

/// By the named port, else by the one whose subnet has the address, else by the first.
fn static_way(address: IpAddr, hop: &StaticHop, ports: &[Port]) -> Option<NextHop> {
    let place = if let Some(name) = &hop.interface {
        ports.iter().position(|port| port.name == *name)?
    } else {
        let is_on_link = |port: &Port| port.addresses.iter().any(|net| net.contains(&address));
        ports.iter().position(is_on_link).unwrap_or(0)
    };
    let port = PortId(u8::try_from(place).ok()?);
    Some(NextHop { port, mac: hop.mac, vlan: None })
}

/// The outer addresses from the balancer to a backend. The source is of the tunnel's prefix, if it has
/// one of the family; else an address of the port that it leaves by; of any other port, if that one
/// has none.
fn ends(backend: IpAddr, tunnel: &Tunnel, ports: &[Port], hops: &Hops) -> Option<Ends> {
    let out = hops.first().and_then(|hop| ports.get(hop.port.index()));
    let mut candidates = out.into_iter().chain(ports);
    match backend {
        IpAddr::V4(dst) => {
            let (src, vary_bits) = match tunnel.source {
                Some(IpNet::V4(net)) => (net.network(), 32 - net.prefix_len()),
                _ => (candidates.find_map(Port::ipv4)?, 0),
            };
            Some(Ends::Ipv4 { src: src.octets(), dst: dst.octets(), vary_bits })
        }
        IpAddr::V6(dst) => {
            let (src, vary_bits) = match tunnel.source {
                Some(IpNet::V6(net)) => (net.network(), (128 - net.prefix_len()).min(64)),
                _ => (candidates.find_map(Port::ipv6)?, 0),
            };
            Some(Ends::Ipv6 { src: src.octets(), dst: dst.octets(), vary_bits })
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
