//! What decisions depend on, besides the packet.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;
use lb_core::admission::{Admission, Gate};
use lb_core::model::{
    AboveRate, Affinity, Backend, ClientAddress, ClientPrefix, DesiredState, Forward, FullNat,
    HashKey, MssClamp, PortRange, Protocol, Service, ServiceSpec, StaticHop, SynBound, Tunnel,
    TunnelKind, Vip,
};
use lb_core::pool::{Found, State};
use lb_core::tables::Tables;
use lb_core::tables::compile::{Circumstances, compile};
use lb_core::tables::fib::{Fib, RouteWays};
use lb_core::tables::next_hop::{NextHop, NextHops, Port, PortId, Resolved, Unresolved};
use lb_core::tuple::address_bytes;
use lb_core::wire::ethernet::MacAddr;

use super::model::Known;
use super::packet::BALANCER;

pub(crate) const HASH_KEY: HashKey = HashKey(*b"weir test vector");

/// A balancer's configuration, what is known of its network, and the tables made of both.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) ports: Arc<[Port]>,
    pub(crate) desired: DesiredState,
    pub(crate) next_hops: NextHops,
    /// The ways to clients.
    pub(crate) routes: BTreeMap<IpNet, Vec<NextHop>>,
    pub(crate) tables: Arc<Tables>,
}

impl World {
    pub(crate) fn new(ports: Vec<Port>, services: Vec<ServiceSpec>, next_hops: NextHops) -> Self {
        let ports = ports.into();
        let services = services.into_iter().map(|spec| Service::new(spec).unwrap()).collect();
        let desired = DesiredState::new(HASH_KEY, services).unwrap();
        let mut tables = compile(&desired, &Circumstances::new(&ports, &next_hops), None);
        let routes = fixed_routes();
        let ways = routes.iter().map(|(net, ways)| (*net, RouteWays::Gateways(ways.clone())));
        tables.fib = Arc::new(Fib::new(&ways.collect(), &BTreeMap::new(), &ports));
        Self { ports, desired, next_hops, routes, tables: Arc::new(tables) }
    }

    /// Pools are as if nobody had ever come.
    pub(crate) fn forget(&self, known: &[Known]) {
        for connection in known {
            let (address, port) = (connection.stand.ip(), connection.stand.port());
            let pools = self.tables.pools.iter().filter(|pool| pool.net().contains(&address));
            for pool in pools {
                let mut found = Found::default();
                assert!(pool.at(&address_bytes(address), port.to_be_bytes(), &mut found));
                pool.update(&found, State::default());
            }
        }
    }

    /// The tables, with bounds on SYNs that nobody has used yet.
    pub(crate) fn untouched(&self) -> Arc<Tables> {
        let mut tables = Tables::clone(&self.tables);
        tables.admission = Some(Arc::new(Admission::new(self.desired.hash_key())));
        for service in tables.services.iter_mut().map(Arc::make_mut) {
            service.gate = service.gate.as_ref().map(|gate| Arc::new(Gate::new(gate.bound())));
        }
        Arc::new(tables)
    }

    /// The same on every run: each way to forward, and each reason not to.
    pub(crate) fn fixed() -> Self {
        Self::new(fixed_ports(), fixed_services(), fixed_next_hops())
    }
}

/// Three ports; the NIC of the second completes checksums; the last is narrow and has neither addresses nor a kernel side.
fn fixed_ports() -> Vec<Port> {
    let port = |n: u8, mtu, addresses: &[&str], kernel| Port {
        name: format!("port{n}"),
        mac: MacAddr([2, 0, 0, 0, 0, BALANCER[5] + n]),
        mtu,
        addresses: addresses.iter().map(|net| net.parse().unwrap()).collect(),
        kernel,
        udp_checksums: n == 1,
    };
    vec![
        port(0, 1500, &["10.0.0.2/24", "fd00::2/64"], true),
        port(1, 1600, &["10.1.0.2/24", "fd01::2/64"], true),
        port(2, 1280, &[], false),
    ]
}

fn fixed_services() -> Vec<ServiceSpec> {
    let drained = Backend { drain: true, ..backend("10.0.0.13") };
    let heavy = Backend { weight: 2, ..backend("10.0.0.12") };
    let web = [backend("10.0.0.11"), heavy, drained, backend("10.0.0.14"), backend("10.1.0.11")];
    let narrow = StaticHop { mac: MacAddr([2, 0, 0, 0, 9, 9]), interface: Some("port2".into()) };
    let narrow = Backend { static_hop: Some(narrow), ..backend("10.9.0.1") };
    let plain = |addresses: &[&str]| addresses.iter().map(|a| backend(a)).collect::<Vec<_>>();
    let l2dsr = |name, vip, backends: &[Backend]| service(name, vip, Forward::L2dsr, backends);
    let ipip = |name, vip, addresses: &[&str]| service(name, vip, Forward::IPIP, &plain(addresses));
    let gue = TunnelKind::Gue { port: 6080 };
    let tunnel = |name, vip, kind, source: Option<&str>, addresses: &[&str]| {
        let source = source.map(|net| net.parse().unwrap());
        service(name, vip, Forward::Tunnel(Tunnel { kind, source }), &plain(addresses))
    };
    vec![
        l2dsr("web", "tcp 10.0.0.100:80", &web),
        l2dsr("web6", "tcp [fd00::100]:80", &plain(&["fd00::11", "fd00::12"])),
        ipip("4in4", "tcp 10.0.0.101:80", &["10.2.0.1", "10.2.0.2"]),
        ipip("4in6", "tcp 10.0.0.101:81", &["fd02::1"]),
        ipip("6in4", "tcp [fd00::101]:80", &["10.2.0.1"]),
        ipip("6in6", "tcp [fd00::101]:81", &["fd02::1", "fd02::2"]),
        ServiceSpec {
            affinity: Affinity::Client,
            ..ipip("dns", "udp 10.0.0.101:53", &["10.2.0.1", "10.2.0.2", "fd02::1"])
        },
        tunnel("gue", "tcp 10.0.0.105:80", gue, None, &["10.2.0.1", "fd02::1"]),
        ServiceSpec {
            mss: MssClamp::Auto,
            ..tunnel(
                "gue6",
                "tcp [fd00::105]:80",
                gue,
                Some("172.16.0.0/16"),
                &["10.2.0.1", "fd02::2"],
            )
        },
        ServiceSpec {
            mss: MssClamp::AtMost(1000),
            ..tunnel(
                "gre",
                "tcp 10.0.0.106:80",
                TunnelKind::Gre,
                Some("fd07::/56"),
                &["10.2.0.2", "fd02::1"],
            )
        },
        tunnel("gre6", "udp [fd00::106]:53", TunnelKind::Gre, None, &["10.2.0.1", "fd02::1"]),
        many(l2dsr("sctp", "sctp 10.0.0.107:80", &web[..2]), None, 8000..=8099),
        many(l2dsr("all", "tcp 10.0.0.107:80", &web[..2]), Some(Protocol::Any), 0..=65_535),
        many(
            l2dsr("all6", "tcp [fd00::107]:80", &plain(&["fd00::11"])),
            Some(Protocol::Any),
            0..=65_535,
        ),
        many(ipip("prefix", "tcp 10.9.0.0/24:1", &["10.2.0.2"]), None, 0..=65_535),
        ipip("one-of-it", "tcp 10.9.0.7:80", &["10.2.0.2"]),
        l2dsr("vlan", "udp 10.0.0.102:53", &plain(&["10.3.0.1"])),
        l2dsr("narrow", "udp [fd00::102]:53", &[narrow]),
        l2dsr("empty", "tcp 10.0.0.103:80", &[]),
        l2dsr("waiting", "tcp 10.0.0.104:80", &plain(&["10.0.0.14", "10.4.0.1"])),
    ]
    .into_iter()
    .chain(fixed_translators())
    .chain(fixed_nat46())
    .chain(fixed_bounded())
    .collect()
}

/// Services of all kinds that take few SYNs.
fn fixed_bounded() -> Vec<ServiceSpec> {
    let plain = |addresses: &[&str]| addresses.iter().map(|a| backend(a)).collect::<Vec<_>>();
    let bounded = |name, vip, forward, rate, addresses: &[&str]| ServiceSpec {
        syn: Some(SynBound { rate, above: AboveRate::Challenge }),
        ..service(name, vip, forward, &plain(addresses))
    };
    let pool = "10.0.0.200/31".parse().unwrap();
    let full_nat = Forward::FullNat(FullNat { pool, client_address: ClientAddress::Hidden });
    let gre = Forward::Tunnel(Tunnel { kind: TunnelKind::Gre, source: None });
    let dropped = bounded("syn-drop", "tcp 10.0.0.114:82", Forward::L2dsr, 10, &["10.0.0.11"]);
    vec![
        bounded("syn", "tcp 10.0.0.114:80", Forward::L2dsr, 1, &["10.0.0.11", "10.0.0.12"]),
        bounded("syn6", "tcp [fd00::114]:80", gre, 10, &["fd02::1"]),
        bounded("syn-44", "tcp 10.0.0.114:81", full_nat, 1, &["10.0.0.41"]),
        bounded("syn-64", "tcp [fd00::114]:81", full_nat, 1, &["10.0.0.41"]),
        ServiceSpec { syn: Some(SynBound { rate: 10, above: AboveRate::Drop }), ..dropped },
        ServiceSpec {
            affinity: Affinity::Client,
            ..bounded("syn-nat", "tcp 10.0.0.114:83", Forward::Nat, 1, &["10.0.0.34"])
        },
        many(
            bounded("syn-any", "tcp 10.9.1.0/24:1", Forward::IPIP, 1, &["10.2.0.2"]),
            Some(Protocol::Any),
            0..=65_535,
        ),
    ]
}

/// IPv4 clients behind a prefix; and those of IPv6, of one of the same stations.
fn fixed_nat46() -> Vec<ServiceSpec> {
    let at = |address: &str, port: u16| Backend { port: Some(port), ..backend(address) };
    let narrow = StaticHop { mac: MacAddr([2, 0, 0, 0, 9, 8]), interface: Some("port2".into()) };
    let narrow = Backend { static_hop: Some(narrow), ..at("fd09::5", 53) };
    let prefix = ClientPrefix::new("64:ff9b::/96".parse().unwrap()).unwrap();
    let nat46 =
        |name, vip, backends: &[Backend]| service(name, vip, Forward::Nat46(prefix), backends);
    let auto = nat46("nat46-auto", "tcp 10.0.0.115:81", &[backend("fd00::54")]);
    vec![
        nat46("nat46", "tcp 10.0.0.115:80", &[at("fd00::51", 8080), at("fd01::51", 8080)]),
        nat46("nat46-udp", "udp 10.0.0.115:53", &[backend("fd00::52"), narrow]),
        nat46("nat46-sctp", "sctp 10.0.0.115:80", &[backend("fd00::53")]),
        ServiceSpec { mss: MssClamp::Auto, ..auto },
        many(
            nat46("nat46-any", "tcp 10.0.0.116:80", &[backend("fd00::55")]),
            Some(Protocol::Any),
            0..=65_535,
        ),
        service("nat66-too", "tcp [fd00::115]:80", Forward::Nat, &[at("fd00::51", 8080)]),
    ]
}

/// The services whose packets get other ends.
fn fixed_translators() -> Vec<ServiceSpec> {
    let at = |address: &str, port: u16| Backend { port: Some(port), ..backend(address) };
    let nat = |name, vip, backends: &[Backend]| service(name, vip, Forward::Nat, backends);
    let full_nat = |name, vip, pool: &str, client_address, backends: &[Backend]| {
        let pool = pool.parse().unwrap();
        service(name, vip, Forward::FullNat(FullNat { pool, client_address }), backends)
    };
    // A pool of one address, one of several.
    let [pool4, pool6] = ["10.0.0.200/31", "fd00::200/128"];
    let near4 = [at("10.0.0.41", 8080), at("10.1.0.41", 8081)];
    let near6 = [at("fd00::41", 8080), at("fd01::41", 8081)];
    let narrow = StaticHop { mac: MacAddr([2, 0, 0, 0, 9, 8]), interface: Some("port2".into()) };
    let narrow4 = Backend { static_hop: Some(narrow.clone()), ..at("10.9.0.2", 53) };
    let narrow6 = Backend { static_hop: Some(narrow), ..at("fd09::2", 53) };
    let (hidden, toa, proxy) = (ClientAddress::Hidden, ClientAddress::Toa, ClientAddress::Proxy);
    let clamped = |mss, spec| ServiceSpec { mss, ..spec };
    vec![
        nat("nat", "tcp 10.0.0.110:80", &[at("10.0.0.31", 8080), at("10.1.0.31", 8080)]),
        nat("nat6", "udp [fd00::110]:53", &[at("fd00::31", 5300), backend("fd01::31")]),
        clamped(MssClamp::Auto, nat("nat-auto", "tcp [fd00::110]:80", &[backend("fd00::32")])),
        nat("nat-sctp", "sctp 10.0.0.110:80", &[backend("10.0.0.32"), backend("10.1.0.32")]),
        nat("nat-narrow", "udp 10.0.0.110:53", std::slice::from_ref(&narrow4)),
        many(
            nat("nat-any", "tcp 10.0.0.111:80", &[backend("10.0.0.33")]),
            Some(Protocol::Any),
            0..=65_535,
        ),
        full_nat("44", "tcp 10.0.0.112:80", pool4, hidden, &near4),
        full_nat("44-udp", "udp 10.0.0.112:53", pool4, hidden, &near4),
        clamped(
            MssClamp::AtMost(1200),
            full_nat("44-toa", "tcp 10.0.0.112:81", pool4, toa, &near4),
        ),
        full_nat("44-proxy", "tcp 10.0.0.112:82", pool4, proxy, &near4),
        full_nat(
            "44-sctp",
            "sctp 10.0.0.112:80",
            pool4,
            hidden,
            &wide_and_narrow(&near4, &narrow4),
        ),
        full_nat(
            "64-sctp",
            "sctp [fd00::112]:80",
            pool4,
            hidden,
            &wide_and_narrow(&near4, &narrow4),
        ),
        full_nat("64", "tcp [fd00::112]:80", pool4, hidden, &near4),
        ServiceSpec {
            affinity: Affinity::Client,
            ..full_nat(
                "64-udp",
                "udp [fd00::112]:53",
                pool4,
                hidden,
                std::slice::from_ref(&narrow4),
            )
        },
        full_nat("64-toa", "tcp [fd00::112]:81", pool4, toa, &near4),
        full_nat(
            "64-proxy",
            "tcp [fd00::112]:82",
            pool4,
            proxy,
            &wide_and_narrow(&near4, &narrow4),
        ),
        full_nat("46", "tcp 10.0.0.113:80", pool6, hidden, &near6),
        full_nat(
            "46-sctp",
            "sctp 10.0.0.113:80",
            pool6,
            hidden,
            &wide_and_narrow(&near6, &narrow6),
        ),
        full_nat(
            "66-sctp",
            "sctp [fd00::113]:80",
            pool6,
            hidden,
            &wide_and_narrow(&near6, &narrow6),
        ),
        full_nat("46-udp", "udp 10.0.0.113:53", pool6, hidden, std::slice::from_ref(&narrow6)),
        clamped(MssClamp::Auto, full_nat("46-toa", "tcp 10.0.0.113:81", pool6, toa, &near6)),
        full_nat("46-proxy", "tcp 10.0.0.113:82", pool6, proxy, &near6),
        full_nat("66", "tcp [fd00::113]:80", pool6, hidden, &near6),
        full_nat("66-udp", "udp [fd00::113]:53", pool6, hidden, &near6),
        full_nat("66-toa", "tcp [fd00::113]:81", pool6, toa, &near6),
        clamped(
            MssClamp::Auto,
            full_nat(
                "66-proxy",
                "tcp [fd00::113]:82",
                pool6,
                proxy,
                &wide_and_narrow(&near6, &narrow6),
            ),
        ),
    ]
}

fn wide_and_narrow([wide, _]: &[Backend; 2], narrow: &Backend) -> [Backend; 2] {
    [wide.clone(), narrow.clone()]
}

/// By two gateways, by one on the narrow port, and from some nobody can go back.
fn fixed_routes() -> BTreeMap<IpNet, Vec<NextHop>> {
    let hop = |port, mac| NextHop { port: PortId(port), mac: MacAddr(mac), vlan: None };
    let both = vec![hop(0, [2, 0, 0, 0, 0, 1]), hop(1, [2, 0, 0, 0, 1, 1])];
    let narrow = vec![hop(2, [2, 0, 0, 0, 2, 1])];
    let tagged = vec![NextHop { vlan: Some(9), ..hop(0, [2, 0, 0, 3, 0, 1]) }];
    [
        ("198.51.100.0/24", both.clone()),
        ("198.51.100.64/26", narrow.clone()),
        ("198.51.100.128/27", tagged.clone()),
        ("2001:db8::/64", both),
        ("2001:db8::40/122", narrow),
        ("2001:db8::80/123", tagged),
    ]
    .map(|(net, ways)| (net.parse().unwrap(), ways))
    .into()
}

fn fixed_next_hops() -> NextHops {
    let hop = |port, mac| NextHop { port: PortId(port), mac: MacAddr(mac), vlan: None };
    let resolved = |hops: &[NextHop], gateway: Option<&str>| {
        let gateway = gateway.map(|gateway| gateway.parse().unwrap());
        Ok(Resolved { hops: hops.iter().copied().collect(), gateway })
    };
    let on_link = |port, host| resolved(&[hop(port, [2, 0, 0, 1, port, host])], None);
    let [gateway, other] = [hop(0, [2, 0, 0, 0, 0, 1]), hop(1, [2, 0, 0, 0, 1, 1])];
    let tagged = NextHop { vlan: Some(7), ..hop(0, [2, 0, 0, 3, 0, 1]) };
    [
        ("10.0.0.11", on_link(0, 11)),
        ("10.0.0.12", on_link(0, 12)),
        ("10.0.0.13", on_link(0, 13)),
        ("10.0.0.14", Err(Unresolved::NoNeighbour([10, 0, 0, 14].into(), "port0".into()))),
        ("10.1.0.11", on_link(1, 11)),
        ("fd00::11", on_link(0, 21)),
        ("fd00::12", on_link(0, 22)),
        ("10.2.0.1", resolved(&[gateway, other], Some("10.0.0.1"))),
        ("10.2.0.2", resolved(&[other], Some("10.1.0.1"))),
        ("fd02::1", resolved(&[gateway], Some("fd00::1"))),
        ("fd02::2", resolved(&[gateway, other], Some("fd00::1"))),
        ("10.3.0.1", resolved(&[tagged], None)),
        ("10.4.0.1", resolved(&[gateway], Some("10.0.0.1"))), // l2dsr cannot go through a gateway
        ("10.0.0.31", on_link(0, 31)),
        ("10.1.0.31", on_link(1, 31)),
        ("fd00::31", on_link(0, 36)),
        ("fd01::31", on_link(1, 36)),
        ("fd00::32", on_link(0, 37)),
        ("10.0.0.32", on_link(0, 32)),
        ("10.1.0.32", on_link(1, 32)),
        ("10.0.0.33", resolved(&[tagged], None)),
        ("10.0.0.34", on_link(0, 34)),
        ("fd00::51", on_link(0, 51)),
        ("fd01::51", on_link(1, 51)),
        ("fd00::52", on_link(0, 52)),
        ("fd00::53", on_link(0, 53)),
        ("fd00::54", on_link(0, 54)),
        ("fd00::55", on_link(0, 55)),
        ("10.0.0.41", on_link(0, 41)),
        ("10.1.0.41", on_link(1, 41)),
        ("fd00::41", on_link(0, 46)),
        ("fd01::41", resolved(&[gateway, other], Some("fd00::1"))),
    ]
    .into_iter()
    .map(|(address, hops)| (address.parse::<IpAddr>().unwrap(), Arc::new(hops)))
    .collect()
}

/// A backend of weight 1 that the kernel is asked about.
pub(crate) fn backend(address: &str) -> Backend {
    let address: IpAddr = address.parse().unwrap();
    Backend { address, port: None, weight: 1, drain: false, static_hop: None }
}

/// The service with other ports, and another protocol.
fn many(
    mut service: ServiceSpec,
    protocol: Option<Protocol>,
    ports: RangeInclusive<u16>,
) -> ServiceSpec {
    service.vip.ports = PortRange::new(*ports.start(), *ports.end()).unwrap();
    service.vip.protocol = protocol.unwrap_or(service.vip.protocol);
    service
}

/// `vip` as it is shown: `tcp 10.0.0.100:80`, or with a prefix: `tcp 10.0.0.0/24:80`.
pub(crate) fn service(
    name: &str,
    vip: &str,
    forward: Forward,
    backends: &[Backend],
) -> ServiceSpec {
    let (protocol, socket) = vip.split_once(' ').unwrap();
    let (address, port) = socket.rsplit_once(':').unwrap();
    let address = address.trim_matches(['[', ']']);
    let address = match address.parse::<IpNet>() {
        Ok(net) => net,
        Err(_) => address.parse::<IpAddr>().unwrap().into(),
    };
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => Protocol::Sctp,
    };
    let vip = Vip { address, ports: PortRange::one(port.parse().unwrap()), protocol };
    ServiceSpec {
        slots: Some(251),
        backends: backends.to_vec(),
        ..ServiceSpec::new(name, vip, forward)
    }
}
