//! How packets get to a backend.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::{Backend, Forward, StaticHop, Tunnel};
use crate::tables::next_hop::{Hops, NextHop, NextHops, Port, PortId, Resolved, Unresolved};
use crate::tables::{Embedding, Ends, Path, Station};

/// How packets travel to a backend, if not in a tunnel.
pub(super) fn untunnelled(backend: &Backend, forward: Forward) -> Path {
    if !forward.translates() {
        return Path::Plain;
    }
    let station = Station::new(backend.address, backend.port);
    let embedding = forward.client_prefix().map(|it| Embedding::new(it, station.address));
    Path::Nat(station, embedding)
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
    let (hops, gateway) =
        match (&backend.static_hop, next_hops.get(&backend.address).map(Arc::as_ref)) {
            (Some(hop), _) => (static_way(backend.address, hop, ports).into_iter().collect(), None),
            (None, Some(Ok(Resolved { hops, gateway }))) => (hops.clone(), *gateway),
            (None, Some(Err(unresolved))) => return Err(unresolved.clone()),
            (None, None) => return Err(Unresolved::Unknown),
        };
    match (forward, gateway) {
        (Forward::L2dsr, Some(gateway)) => Err(Unresolved::BehindGateway(gateway)),
        (Forward::Tunnel(tunnel), _) => {
            let ends = ends(backend.address, &tunnel, ports, &hops).ok_or(Unresolved::NoSource)?;
            Ok((hops, Path::Tunnel(tunnel.kind, ends)))
        }
        _ => Ok((hops, untunnelled(backend, forward))),
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
            Some(Ends::ipv6(src.octets(), dst.octets(), vary_bits))
        }
    }
}
