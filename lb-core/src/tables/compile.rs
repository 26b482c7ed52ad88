//! Desired state, and what is true of the network → tables. Pure, and for the control thread.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use arrayvec::ArrayVec;
use rapidhash::v3::{RapidSecrets, rapidhash_v3_nano_inline};

use super::next_hop::{Hops, NextHop, NextHops, Port, PortId, Resolved, Unresolved};
use super::{BackendEntry, HopEntry, Outer, ServiceId, ServiceTable, SlotTable, Tables, VipIndex};
use crate::drop_reason::DropReason;
use crate::flow_hash::FlowHasher;
use crate::maglev;
use crate::model::{Backend, DesiredState, Forward, Service, StaticHop};
use crate::tuple::address_bytes;

/// Makes the next version of the tables. What did not change since `previous` is shared with it.
///
/// A backend without a way to it takes no slots until it has one. The result depends on `previous`
/// in nothing but its version, the ids of services, and what is shared.
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
    let services: Vec<ServiceTable> = desired
        .services()
        .iter()
        .map(|service| {
            let old = old.get(service.spec().name.as_str()).copied();
            let id = old.map_or_else(|| ids.next_free(), |old| old.id);
            service_table(service, id, ports, next_hops, old)
        })
        .collect();
    let vips = desired.services().iter().map(|service| {
        let vip = service.spec().vip;
        (vip.address, vip.port, vip.protocol as u8)
    });
    Tables {
        version: previous.map_or(1, |tables| tables.version + 1),
        hasher: FlowHasher::new(desired.hash_key()),
        ports: Arc::clone(ports),
        vips: VipIndex::new(vips),
        services,
    }
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
    ports: &[Port],
    next_hops: &NextHops,
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
    let identities = spec.backends.iter().map(|b| identity(b, spec.vip.port)).collect();
    let someone_wanted = spec.backends.iter().any(|backend| backend.effective_weight() > 0);
    ServiceTable {
        id,
        affinity: spec.affinity,
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

/// What a backend is to its table: its address and port, on every balancer alike.
fn identity(backend: &Backend, service_port: u16) -> u64 {
    let mut bytes = [0; 18];
    bytes[..16].copy_from_slice(&address_bytes(backend.address));
    bytes[16..].copy_from_slice(&backend.port.unwrap_or(service_port).to_be_bytes());
    rapidhash_v3_nano_inline::<true, false>(&bytes, const { &RapidSecrets::seed_cpp(0) })
}

fn entry(
    backend: &Backend,
    forward: Forward,
    ports: &[Port],
    next_hops: &NextHops,
) -> BackendEntry {
    let Ok((hops, outer)) = ways(backend, forward, ports, next_hops) else {
        return BackendEntry { hops: ArrayVec::new(), outer: Outer::None };
    };
    let hops = hops
        .iter()
        .filter_map(|hop| {
            let port = ports.get(hop.port.index())?;
            let macs = [hop.mac, port.mac];
            Some(HopEntry { macs, out: hop.port, vlan: hop.vlan, mtu: port.mtu })
        })
        .collect();
    BackendEntry { hops, outer }
}

/// The ways to a backend and the outer header on them, or why there is none.
///
/// # Errors
/// [`Unresolved`], in words for the operator.
pub fn ways(
    backend: &Backend,
    forward: Forward,
    ports: &[Port],
    next_hops: &NextHops,
) -> Result<(Hops, Outer), Unresolved> {
    let (hops, gateway) = match (&backend.static_hop, next_hops.get(&backend.address)) {
        (Some(hop), _) => (static_way(backend.address, hop, ports).into_iter().collect(), None),
        (None, Some(Ok(Resolved { hops, gateway }))) => (hops.clone(), *gateway),
        (None, Some(Err(unresolved))) => return Err(unresolved.clone()),
        (None, None) => return Err(Unresolved::Unknown),
    };
    match (forward, gateway) {
        (Forward::L2dsr, Some(gateway)) => Err(Unresolved::BehindGateway(gateway)),
        (Forward::L2dsr, None) => Ok((hops, Outer::None)),
        (Forward::Ipip, _) => {
            let outer = tunnel(backend.address, ports, &hops).ok_or(Unresolved::NoSource)?;
            Ok((hops, outer))
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

/// The outer header from the balancer to a backend. Its source is an address of the port that it
/// leaves by; of any other port, if that one has none of the family.
fn tunnel(backend: IpAddr, ports: &[Port], hops: &Hops) -> Option<Outer> {
    let out = hops.first().and_then(|hop| ports.get(hop.port.index()));
    let mut candidates = out.into_iter().chain(ports);
    match backend {
        IpAddr::V4(dst) => candidates.find_map(Port::ipv4).map(|src| Outer::Ipv4 { src, dst }),
        IpAddr::V6(dst) => candidates.find_map(Port::ipv6).map(|src| Outer::Ipv6 { src, dst }),
    }
}
