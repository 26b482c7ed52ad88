//! The world as a configuration file alone says it is: for what is tried without a network.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lb_config::Config;
use lb_core::continuity::Tracker;
use lb_core::model::DesiredState;
use lb_core::tables::Tables;
use lb_core::tables::compile::{Circumstances, compile};
use lb_core::tables::fib::{Fib, RouteWays};
use lb_core::tables::next_hop::{Hops, NextHop, NextHops, Port, PortId, Resolved};
use lb_core::tuple::address_bytes;
use lb_core::wire::ethernet::MacAddr;

/// The tables, and the ways to backends that they are made of.
pub(crate) fn tables(config: &Config, station: Option<MacAddr>) -> (Tables, NextHops) {
    let ports: Arc<[Port]> = ports(config, station).into();
    let next_hops = next_hops(&config.desired, &ports);
    let mut tables = compile(&config.desired, &Circumstances::new(&ports, &next_hops), None);
    tables.tracker = Arc::new(Tracker::new(config.dataplane.flows_max));
    tables.fib = Arc::new(fib(&ports));
    (tables, next_hops)
}

/// The ports. The first one is `station`, if nothing else is written.
pub(crate) fn ports(config: &Config, station: Option<MacAddr>) -> Vec<Port> {
    let ports = config.ports.iter().zip(0..);
    ports
        .map(|(port, place)| Port {
            name: port.name.clone(),
            mac: port
                .mac
                .or(station.filter(|_| place == 0))
                .unwrap_or(MacAddr([2, 0, 0, 0, 0xff, place])),
            mtu: port.mtu,
            addresses: port.addresses.clone(),
            kernel: port.kernel,
            udp_checksums: false,
        })
        .collect()
}

/// Offline there is no kernel to ask: every backend is a station on a port's link.
pub(crate) fn next_hops(desired: &DesiredState, ports: &[Port]) -> NextHops {
    let services = desired.services().iter();
    let backends = services.flat_map(|service| &service.spec().backends);
    backends
        .map(|backend| {
            let is_on_link =
                |port: &Port| port.addresses.iter().any(|n| n.contains(&backend.address));
            let place = ports.iter().position(is_on_link).unwrap_or(0);
            let octets = address_bytes(backend.address);
            let hop = NextHop {
                port: PortId(u8::try_from(place).unwrap_or(0)),
                mac: MacAddr([2, 0, octets[12], octets[13], octets[14], octets[15]]),
                vlan: None,
            };
            (
                backend.address,
                Arc::new(Ok(Resolved { hops: Hops::from_iter([hop]), gateway: None })),
            )
        })
        .collect()
}

/// Nor do clients' neighbours tell their MACs: all of them are behind a router on the first port.
pub(crate) fn fib(ports: &[Port]) -> Fib {
    const ROUTER: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    let default =
        || RouteWays::Gateways(vec![NextHop { port: PortId(0), mac: ROUTER, vlan: None }]);
    let everything = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
    Fib::new(&everything.map(|net| (net, default())).into(), &BTreeMap::new(), ports)
}
