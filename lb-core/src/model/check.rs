//! What a service has to be by itself.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{
    Backend, ClientAddress, ClientPrefix, Flows, Forward, FullNat, Invalid, Key, MSS_MIN, MssClamp,
    PortRange, Protocol, SYN_RATE_MAX, ServiceSpec, SynBound, Tunnel, TunnelKind, Vip, WEIGHT_MAX,
    is_unicast,
};
use crate::pool;

pub(super) fn check_vip(vip: &Vip, find: &mut impl FnMut(Key, Invalid)) {
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

pub(super) fn check_mode(spec: &ServiceSpec, find: &mut impl FnMut(Key, Invalid)) {
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
    if spec.forward.translates() && !spec.vip.is_one_address() {
        find(Key::Address, Invalid::NatPrefix(spec.vip.address));
    }
    match spec.forward {
        Forward::FullNat(full_nat) => check_pool(spec, full_nat, find),
        Forward::Nat46(prefix) => check_client_prefix(spec, prefix, find),
        _ => {}
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
    if let Some(SynBound { rate, .. }) = spec.syn {
        if !matches!(spec.vip.protocol, Protocol::Tcp | Protocol::Any) {
            find(Key::Syn, Invalid::SynOfTcp);
        }
        if !(1..=SYN_RATE_MAX).contains(&rate) {
            find(Key::SynRate, Invalid::SynRate(rate));
        }
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

fn check_client_prefix(
    spec: &ServiceSpec,
    prefix: ClientPrefix,
    find: &mut impl FnMut(Key, Invalid),
) {
    let net = prefix.net();
    if !is_unicast(net.network().into()) {
        find(Key::ClientPrefix, Invalid::NotUnicast(net.network().into()));
    }
    if spec.vip.address.addr().is_ipv6() {
        find(Key::ClientPrefix, Invalid::PrefixOfIpv4(spec.vip.address));
    }
    for (i, backend) in spec.backends.iter().enumerate() {
        let address = backend.address;
        match address {
            IpAddr::V4(_) => {
                find(Key::BackendAddress(i), Invalid::PrefixFamily { backend: address, net });
            }
            IpAddr::V6(host) if net.contains(&host) => {
                find(Key::BackendAddress(i), Invalid::IsOfClients { backend: address, net });
            }
            IpAddr::V6(_) => {}
        }
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
    if spec.vip.protocol == Protocol::Any {
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

pub(super) fn check_backends(spec: &ServiceSpec, find: &mut impl FnMut(Key, Invalid)) {
    let mut seen = BTreeSet::new();
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
                Forward::Nat | Forward::Nat46(_) if spec.vip.ports.single().is_none() => {
                    find(Key::BackendPort(i), Invalid::NatPorts(spec.vip.ports));
                }
                Forward::Nat | Forward::Nat46(_) | Forward::FullNat(_) => {}
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
