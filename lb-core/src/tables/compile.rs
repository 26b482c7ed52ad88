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
pub(crate) mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::model::tests::{backend, spec};
    use crate::model::{HashKey, ServiceSpec, TunnelKind};
    use crate::wire::ethernet::MacAddr;

    /// Two ports; the second one's link has backends, too.
    pub(crate) fn ports() -> Arc<[Port]> {
        let port = |n: u8, mtu, addresses: &[&str]| Port {
            name: format!("lan{n}"),
            mac: MacAddr([2, 0, 0, 0, 0, 2 + n]),
            mtu,
            addresses: addresses.iter().map(|net| net.parse().unwrap()).collect(),
            kernel: true,
        };
        [port(0, 1500, &["10.0.0.2/24", "fd00::2/64"]), port(1, 1600, &["10.1.0.2/24"])].into()
    }

    fn hop(port: u8, host: u8) -> NextHop {
        NextHop { port: PortId(port), mac: MacAddr([2, 0, 0, 1, port, host]), vlan: None }
    }

    /// Backends on both links, and some behind gateways.
    pub(crate) fn next_hops() -> NextHops {
        let on_link = |hop| Ok(Resolved { hops: [hop].into_iter().collect(), gateway: None });
        let behind = |gateway: &str, hops: &[NextHop]| {
            let gateway = Some(gateway.parse().unwrap());
            Ok(Resolved { hops: hops.iter().copied().collect(), gateway })
        };
        let silent = Unresolved::NoNeighbour([10, 0, 0, 98].into(), "lan0".into());
        [
            ("10.0.0.11", on_link(hop(0, 11))),
            ("10.0.0.12", on_link(hop(0, 12))),
            ("10.0.0.13", on_link(hop(0, 13))),
            ("10.1.0.11", on_link(hop(1, 11))),
            ("fd00::11", on_link(hop(0, 21))),
            ("10.2.0.1", behind("10.0.0.1", &[hop(0, 1), hop(1, 1)])),
            ("10.2.0.2", behind("10.1.0.1", &[hop(1, 1)])),
            ("fd02::1", behind("fd00::1", &[hop(0, 1)])),
            ("10.0.0.98", Err(silent)),
        ]
        .map(|(address, hops)| (address.parse().unwrap(), hops))
        .into()
    }

    /// IP in IPv6.
    fn ipv6_path(src: Ipv6Addr, dst: &str) -> Path {
        let dst: Ipv6Addr = dst.parse().unwrap();
        let ends = Ends::Ipv6 { src: src.octets(), dst: dst.octets(), vary_bits: 0 };
        Path::Tunnel(TunnelKind::Ipip, ends)
    }

    fn small(name: &str, address: &str, backends: &[&str]) -> ServiceSpec {
        ServiceSpec { slots: Some(251), ..spec(name, address, backends) }
    }

    fn desired(specs: &[ServiceSpec]) -> DesiredState {
        let services = specs.iter().map(|spec| Service::new(spec.clone()).unwrap()).collect();
        DesiredState::new(HashKey([7; 16]), services).unwrap()
    }

    fn compile_all(specs: &[ServiceSpec], previous: Option<&Tables>) -> Tables {
        compile(&desired(specs), &ports(), &next_hops(), previous)
    }

    /// Slots of each backend of the first service.
    fn shares(tables: &Tables) -> Vec<usize> {
        let table = &tables.services[0];
        let mut shares = vec![0; table.backends.len()];
        for &owner in table.slots.slots() {
            shares[usize::from(owner)] += 1;
        }
        shares
    }

    #[test]
    fn only_backends_that_may_take_traffic_take_slots() {
        type Case = (&'static str, fn(&mut ServiceSpec), [bool; 3], DropReason);

        let four = || small("web", "10.0.0.100", &["10.0.0.11", "10.0.0.12", "10.0.0.13"]);
        let cases: [Case; 6] = [
            ("all", |_| (), [true; 3], DropReason::NextHopUnresolved),
            (
                "drained",
                |s| s.backends[1].drain = true,
                [true, false, true],
                DropReason::NextHopUnresolved,
            ),
            (
                "weight 0",
                |s| s.backends[0].weight = 0,
                [false, true, true],
                DropReason::NextHopUnresolved,
            ),
            (
                "unresolved",
                |s| s.backends[2] = backend("10.0.0.98"),
                [true, true, false],
                DropReason::NextHopUnresolved,
            ),
            (
                "none resolved",
                |s| {
                    ["10.0.0.97", "10.0.0.98", "10.0.0.99"]
                        .iter()
                        .zip(&mut s.backends)
                        .for_each(|(a, b)| *b = backend(a));
                },
                [false; 3],
                DropReason::NextHopUnresolved,
            ),
            (
                "none wanted",
                |s| s.backends.iter_mut().for_each(|b| b.drain = true),
                [false; 3],
                DropReason::NoBackend,
            ),
        ];
        for (name, change, takes, without_slots) in cases {
            let mut spec = four();
            change(&mut spec);
            let tables = compile_all(&[spec], None);
            let shares = shares(&tables);
            assert_eq!(shares.iter().map(|&share| share > 0).collect::<Vec<_>>(), takes, "{name}");
            let table = &tables.services[0];
            let expect = if takes.contains(&true) { 251 } else { 0 };
            assert_eq!(
                (shares.iter().sum::<usize>(), table.slots.len()),
                (expect, u32::try_from(expect).unwrap())
            );
            assert_eq!(table.without_slots, without_slots, "{name}");
        }
    }

    #[test]
    fn slots_follow_weights() {
        let mut spec = spec("web", "10.0.0.100", &["10.0.0.11", "10.0.0.12", "10.0.0.13"]);
        (spec.backends[1].weight, spec.backends[2].weight) = (2, 5);
        let tables = compile_all(&[spec], None);
        let unit = 65_537 / 8;
        for (share, due) in shares(&tables).into_iter().zip([unit, 2 * unit, 5 * unit]) {
            assert!(share.abs_diff(due) <= due / 100 + 1, "{share} of {due}");
        }
    }

    #[test]
    fn the_order_of_the_list_does_not_matter() {
        let backends = ["10.0.0.11", "10.0.0.12", "10.0.0.13", "10.1.0.11"];
        let mut turned = backends;
        turned.reverse();
        let one = compile_all(&[small("web", "10.0.0.100", &backends)], None);
        let other = compile_all(&[small("web", "10.0.0.100", &turned)], None);
        let owners = |tables: &Tables, list: [&'static str; 4]| -> Vec<&str> {
            let slots = tables.services[0].slots.slots();
            slots.iter().map(|&owner| list[usize::from(owner)]).collect()
        };
        assert_eq!(owners(&one, backends), owners(&other, turned));
    }

    #[test]
    fn each_way_to_a_backend_or_why_there_is_none() {
        use Unresolved::{BehindGateway, NoSource, Unknown};
        let silent = Unresolved::NoNeighbour([10, 0, 0, 98].into(), "lan0".into());
        let [v4, v4_1] = [ports()[0].ipv4().unwrap(), ports()[1].ipv4().unwrap()];
        let v6 = ports()[0].ipv6().unwrap();
        let outer4 = |src: Ipv4Addr, dst: &str| {
            let dst: Ipv4Addr = dst.parse().unwrap();
            let ends = Ends::Ipv4 { src: src.octets(), dst: dst.octets(), vary_bits: 0 };
            Path::Tunnel(TunnelKind::Ipip, ends)
        };
        let outer6 = |dst: &str| ipv6_path(v6, dst);
        let both = vec![hop(0, 1), hop(1, 1)];
        for (address, l2dsr, ipip) in [
            (
                "10.0.0.11",
                Ok((vec![hop(0, 11)], Path::Plain)),
                Ok((vec![hop(0, 11)], outer4(v4, "10.0.0.11"))),
            ),
            (
                "10.2.0.1",
                Err(BehindGateway([10, 0, 0, 1].into())),
                Ok((both, outer4(v4, "10.2.0.1"))),
            ),
            // The source is an address of the port that it leaves by.
            (
                "10.2.0.2",
                Err(BehindGateway([10, 1, 0, 1].into())),
                Ok((vec![hop(1, 1)], outer4(v4_1, "10.2.0.2"))),
            ),
            (
                "fd02::1",
                Err(BehindGateway("fd00::1".parse().unwrap())),
                Ok((vec![hop(0, 1)], outer6("fd02::1"))),
            ),
            ("10.0.0.98", Err(silent.clone()), Err(silent)),
            ("10.0.0.99", Err(Unknown), Err(Unknown)),
        ] {
            for (forward, expect) in [(Forward::L2dsr, l2dsr), (Forward::IPIP, ipip)] {
                let found = ways(&backend(address), forward, &ports(), &next_hops());
                let found = found.map(|(hops, outer)| (hops.to_vec(), outer));
                assert_eq!(found, expect, "{address} {forward:?}");
            }
        }
        let only_v4 = &ports()[1..];
        let found = ways(&backend("fd02::1"), Forward::IPIP, only_v4, &next_hops());
        assert_eq!(found, Err(NoSource));
    }

    /// Of a port without an address of the family, any other port's is taken.
    #[test]
    fn outer_headers_borrow_a_source() {
        let next_hops = [(
            "fd03::1".parse().unwrap(),
            Ok(Resolved { hops: [hop(1, 9)].into_iter().collect(), gateway: None }),
        )];
        let found = ways(&backend("fd03::1"), Forward::IPIP, &ports(), &next_hops.into());
        assert_eq!(found.unwrap().1, ipv6_path("fd00::2".parse().unwrap(), "fd03::1"));
    }

    #[test]
    fn outer_sources_are_drawn_from_a_prefix_of_the_family() {
        for (source, backend_address, expect) in [
            ("172.16.0.0/16", "10.2.0.1", Some(([172, 16, 0, 0], 16))),
            ("172.16.0.7/32", "10.2.0.1", Some(([172, 16, 0, 7], 0))),
            ("fd07::/48", "10.2.0.1", Some(([10, 0, 0, 2], 0))),
            ("fd07::/48", "fd02::1", None),
        ] {
            let net: IpNet = source.parse().unwrap();
            let forward = Forward::Tunnel(Tunnel { kind: TunnelKind::Gre, source: Some(net) });
            let found = ways(&backend(backend_address), forward, &ports(), &next_hops());
            let Ok((_, Path::Tunnel(TunnelKind::Gre, ends))) = found else { panic!("{found:?}") };
            match (ends, expect) {
                (Ends::Ipv4 { src, vary_bits, .. }, Some(expect)) => {
                    assert_eq!((src, vary_bits), expect);
                }
                (Ends::Ipv6 { src, vary_bits, .. }, None) => {
                    assert_eq!(
                        (src, vary_bits),
                        ("fd07::".parse::<Ipv6Addr>().unwrap().octets(), 64)
                    );
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_static_mac_leaves_by_the_named_port_its_subnet_s_or_the_first() {
        let mac = MacAddr([2, 0, 0, 9, 9, 9]);
        for (address, interface, expect) in [
            ("10.0.0.11", None, Some(0)),
            ("10.1.0.50", None, Some(1)),
            ("10.9.0.1", None, Some(0)),
            ("10.0.0.11", Some("lan1"), Some(1)),
            ("10.0.0.11", Some("lan7"), None),
        ] {
            let hop = StaticHop { mac, interface: interface.map(Into::into) };
            let mut spec = small("web", "10.0.0.100", &[address]);
            spec.backends[0].static_hop = Some(hop);
            let tables = compile_all(&[spec], None);
            let hops = &tables.services[0].backends[0].hops;
            let expect = expect.map(|port: u8| HopEntry {
                macs: [mac, ports()[usize::from(port)].mac],
                out: PortId(port),
                vlan: None,
                mtu: ports()[usize::from(port)].mtu,
            });
            assert_eq!(hops.first().copied(), expect, "{address} {interface:?}");
            assert_eq!(tables.services[0].slots.is_empty(), expect.is_none());
        }
    }

    fn is_shared(old: &Tables, new: &Tables, place: usize) -> [bool; 2] {
        let [old, new] = [old, new].map(|tables| &tables.services[place]);
        [Arc::ptr_eq(&old.slots, &new.slots), Arc::ptr_eq(&old.backends, &new.backends)]
    }

    #[test]
    fn what_did_not_change_is_shared() {
        type Case = (&'static str, fn(&mut ServiceSpec), [bool; 2]);

        let web = || small("web", "10.0.0.100", &["10.0.0.11", "10.0.0.12"]);
        let dns = || small("dns", "10.0.0.101", &["10.0.0.11", "10.0.0.13"]);
        let first = compile_all(&[web(), dns()], None);
        let again = compile_all(&[web(), dns()], Some(&first));
        assert_eq!((first.version, again.version), (1, 2));
        assert_eq!([0, 1].map(|place| is_shared(&first, &again, place)), [[true; 2]; 2]);
        assert!(again.decides_like(&first));

        // What of "web" is new, if this changes?
        let cases: [Case; 6] = [
            ("a weight", |s| s.backends[0].weight = 2, [false, true]),
            ("a drain", |s| s.backends[0].drain = true, [false, true]),
            ("the slots", |s| s.slots = Some(257), [false, true]),
            ("a backend", |s| s.backends[0] = backend("10.1.0.11"), [false, false]),
            ("the mode", |s| s.forward = Forward::IPIP, [true, false]),
            ("the VIP", |s| s.vip.address = "10.0.0.102/32".parse().unwrap(), [true, true]),
        ];
        for (name, change, expect) in cases {
            let mut changed = web();
            change(&mut changed);
            let next = compile_all(&[changed, dns()], Some(&again));
            assert_eq!(is_shared(&again, &next, 0), expect, "{name}");
            assert_eq!(is_shared(&again, &next, 1), [true; 2], "{name}");
            assert_eq!(next.decides_like(&again), expect == [true; 2], "{name}");
            assert_eq!(next.version, 3);
        }
    }

    #[test]
    fn a_backend_that_resolves_takes_its_slots() {
        let specs = [small("web", "10.0.0.100", &["10.0.0.11", "10.0.0.99"])];
        let first = compile_all(&specs, None);
        assert_eq!(shares(&first), [251, 0]);
        let mut known = next_hops();
        let hops = [hop(0, 99)].into_iter().collect();
        known.insert([10, 0, 0, 99].into(), Ok(Resolved { hops, gateway: None }));
        let second = compile(&desired(&specs), &ports(), &known, Some(&first));
        let expect = compile(&desired(&specs), &ports(), &known, None);
        assert_eq!(second.services[0].slots, expect.services[0].slots, "not of history");
        assert!(shares(&second)[1] > 100);
        // Its MAC changes: other bytes to write, but no other slots.
        let hops = [hop(0, 77)].into_iter().collect();
        known.insert([10, 0, 0, 99].into(), Ok(Resolved { hops, gateway: None }));
        let third = compile(&desired(&specs), &ports(), &known, Some(&second));
        assert_eq!(is_shared(&second, &third, 0), [true, false]);
    }

    #[test]
    fn ids_stay_with_their_services_and_are_used_again_one_version_later() {
        let [a, b, c, d] = ["a", "b", "c", "d"];
        let ids = |tables: &Tables| -> Vec<(String, u32)> {
            let id = |table: &ServiceTable| (table.source.spec().name.clone(), table.id.0);
            tables.services.iter().map(id).collect()
        };
        let mut tables: Option<Tables> = None;
        for (names, expect) in [
            (&[a, b, c][..], &[0, 1, 2][..]),
            (&[c, a, b], &[2, 0, 1]),
            (&[c, b], &[2, 1]),
            (&[c, b, d], &[2, 1, 0]), // the version before did not have 0
            (&[b, a, d], &[1, 3, 0]), // 2 was c's
            (&[b, c, a, d], &[1, 2, 3, 0]),
            (&[], &[]),
            (&[d], &[0]),
        ] {
            let address = |name: &str| format!("10.0.9.{}", name.as_bytes()[0]);
            let specs: Vec<_> = names.iter().map(|name| small(name, &address(name), &[])).collect();
            let next = compile_all(&specs, tables.as_ref());
            let expect: Vec<_> =
                names.iter().map(|&name| name.to_owned()).zip(expect.iter().copied()).collect();
            assert_eq!(ids(&next), expect);
            assert_eq!(next.version, tables.map_or(1, |tables| tables.version + 1));
            tables = Some(next);
        }
    }

    #[test]
    fn a_service_that_is_removed_is_not_found_any_more() {
        let web = small("web", "10.0.0.100", &["10.0.0.11"]);
        let dns = small("dns", "10.0.0.101", &["10.0.0.11"]);
        let client = [198, 51, 100, 7].into();
        let place = |tables: &Tables, host| {
            let vip = [10, 0, 0, host].into();
            tables.vips.lookup(&crate::tuple::Tuple::new(client, vip, 40_000, 80, 6))
        };
        let first = compile_all(&[web, dns.clone()], None);
        assert_eq!((place(&first, 100), place(&first, 101)), (Some(0), Some(1)));
        let second = compile_all(&[dns], Some(&first));
        assert_eq!((place(&second, 100), place(&second, 101)), (None, Some(0)));
        assert!(Arc::ptr_eq(&first.services[1].slots, &second.services[0].slots));
        assert!(!second.decides_like(&first));
    }
}
