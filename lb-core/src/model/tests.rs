use std::sync::Arc;

use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

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

fn nat46(prefix: &str) -> Forward {
    Forward::Nat46(ClientPrefix::new(prefix.parse().unwrap()).unwrap())
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
    assert_eq!(findings(|s| (s.vip.ports, s.vip.protocol) = (PortRange::ANY, Protocol::Any)), []);
    let sctp = |s: &mut ServiceSpec| {
        (s.forward, s.vip.protocol) = (Forward::Nat, Protocol::Sctp);
        s.backends[1].port = Some(8080);
    };
    assert_eq!(findings(sctp), []);
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        assert_eq!(full_nat_findings(protocol, ClientAddress::Hidden), []);
    }
}

fn full_nat_findings(protocol: Protocol, client_address: ClientAddress) -> Vec<(Key, String)> {
    let mut spec = spec("web", "10.0.0.100", &["10.0.0.11", "10.0.0.12"]);
    let pool = "10.0.0.64/30".parse().unwrap();
    spec.forward = Forward::FullNat(FullNat { pool, client_address });
    spec.vip.protocol = protocol;
    if protocol == Protocol::Any {
        spec.vip.ports = PortRange::ANY;
    }
    let findings = Service::new(spec).err().unwrap_or_default();
    findings.into_iter().map(|f| (f.key, f.invalid.to_string())).collect()
}

#[test]
fn fullnat_needs_ports_and_tells_of_clients_over_tcp_only() {
    for how in [ClientAddress::Toa, ClientAddress::Proxy] {
        assert_eq!(full_nat_findings(Protocol::Tcp, how), []);
        for protocol in [Protocol::Udp, Protocol::Sctp] {
            let found = full_nat_findings(protocol, how);
            assert_eq!(found[0].0, Key::ClientAddress);
            assert!(found[0].1.contains("remove `client_address`"), "{found:?}");
        }
    }
    let found = full_nat_findings(Protocol::Any, ClientAddress::Hidden);
    assert_eq!(found[0].0, Key::Pool);
    assert!(found[0].1.contains("TCP, UDP and SCTP"), "{found:?}");
}

/// What is wrong, the key that is told of it, and a part of the text.
type Case = (fn(&mut ServiceSpec), Key, &'static str);

fn assert_told(cases: &[Case]) {
    for (change, key, text) in cases {
        let found = findings(change);
        assert!(
            matches!(&found[..], [(k, t)] if k == key && t.contains(text)),
            "{key:?} {text:?}: {found:?}"
        );
    }
}

#[test]
fn each_rule_of_a_client_prefix_names_its_key() {
    assert_told(&[
        (
            |s| {
                s.forward = nat46("64:ff9b::/96");
                s.backends[1].address = "fd00::11".parse().unwrap();
            },
            Key::BackendAddress(0),
            "use IPv6 backends",
        ),
        (
            |s| {
                s.forward = nat46("ff00::/96");
                s.backends.clear();
            },
            Key::ClientPrefix,
            "unicast",
        ),
        (
            |s| {
                s.forward = nat46("fd00::/96");
                s.backends = vec![backend("fd01::11"), backend("fd00::11")];
            },
            Key::BackendAddress(1),
            "use another prefix",
        ),
        (
            |s| {
                s.forward = nat46("64:ff9b::/96");
                s.backends.clear();
                s.vip.address = "fd00::100".parse::<IpAddr>().unwrap().into();
            },
            Key::ClientPrefix,
            "only IPv4 clients",
        ),
    ]);
}

#[test]
fn each_rule_names_its_key() {
    assert_told(&[
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
                (s.forward, s.backends[1].address) = (Forward::Nat, "fd00::11".parse().unwrap());
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
    ]);
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

/// Clients of both families may have the same servers: whom an answer is for tells whose it is. But of one
/// port and of a range that has it, only one would be looked at.
#[test]
fn an_answer_to_a_prefix_is_of_its_service() {
    let prefix = ClientPrefix::new("64:ff9b::/96".parse().unwrap()).unwrap();
    let of = |name, forward, vip, ports| {
        let mut spec = spec(name, vip, &["fd00::11"]);
        (spec.forward, spec.vip.ports) = (forward, ports);
        spec
    };
    let (one, any) = (PortRange::one(80), PortRange::ANY);
    let plain = |ports| of("plain", Forward::Nat, "fd00::100", ports);
    let behind = |ports| of("behind", Forward::Nat46(prefix), "10.0.0.100", ports);
    for (services, is_ambiguous) in [
        ([plain(one), behind(one)], false),
        ([plain(any), behind(any)], false),
        ([plain(one), behind(any)], true),
        ([behind(one), behind(one)], true),
    ] {
        assert_eq!(!ambiguous_returns(&services).is_empty(), is_ambiguous, "{services:?}");
    }
}

/// A pool's addresses are nobody's: what comes to one is an answer.
#[test]
fn nobody_has_an_address_of_a_pool() {
    let pooled = |name, address, pool: &str, backends: &[&str]| {
        let pool = pool.parse().unwrap();
        let full_nat = FullNat { pool, client_address: ClientAddress::Hidden };
        ServiceSpec { forward: Forward::FullNat(full_nat), ..spec(name, address, backends) }
    };
    let found = pool_conflicts(&[
        pooled("a", "10.0.0.100", "10.0.0.64/30", &["10.0.0.11"]),
        spec("behind one of it", "10.0.0.101", &["10.0.0.63", "10.0.0.64", "10.0.0.68"]),
        spec("one of it", "10.0.0.67", &["10.0.0.11"]),
        pooled("shares it", "10.0.0.102", "10.0.0.64/30", &["10.0.0.65"]), // its own finding
        pooled("overlaps", "10.0.0.103", "10.0.0.64/31", &[]),
        pooled("behind the other", "10.0.0.104", "fd00::64/126", &["fd00::11", "10.0.0.66"]),
        spec("of all", "fd00::100", &["fd00::67"]),
        pooled("the first of it", "10.0.0.64", "10.0.0.64/32", &[]),
    ]);
    let places: Vec<_> = found.iter().map(|c| (c.place, c.first, c.finding.key)).collect();
    let backend = Key::BackendAddress;
    let pools = [4, 7].map(|place| (place, 0, Key::Pool));
    let taken = [(1, 0, backend(1)), (2, 0, Key::Address), (5, 0, backend(1)), (6, 5, backend(0))];
    assert_eq!(places, [&pools[..], &taken, &[(7, 0, Key::Address)]].concat());
    assert!(found.iter().all(|conflict| conflict.first_key == Key::Pool));
}

proptest! {
    /// What is not checked again because it was before is refused all the same.
    #[test]
    fn what_follows_is_checked_as_what_is_new(
        changes in vec((0..3_usize, 0..3_u8, vec((0..5_usize, of(Just(8080)), 0..3_u32), 0..4)), 1..20),
    ) {
        let hash_key = HashKey([0; 16]);
        let made = |number: usize, mode: u8, backends: &[(usize, Option<u16>, u32)]| {
            let address = ["10.0.0.100", "10.0.0.101", "10.0.0.102"][number];
            let mut spec = spec(["a", "b", "c"][number], address, &[]);
            let pool = ["10.0.1.0/30", "10.0.1.0/30", "10.0.2.0/30"][number].parse().unwrap();
            let client_address = ClientAddress::Hidden;
            spec.forward = match mode {
                0 => Forward::L2dsr,
                1 => Forward::Nat,
                _ => Forward::FullNat(FullNat { pool, client_address }),
            };
            let addresses = ["10.0.0.11", "10.0.0.12", "10.0.1.1", "10.0.2.1", "10.0.0.13"];
            spec.backends = backends
                .iter()
                .map(|&(at, port, weight)| Backend { port, weight, ..backend(addresses[at]) })
                .collect();
            Service::new(spec).ok()
        };
        let mut state = DesiredState::empty(hash_key);
        for (number, mode, backends) in changes {
            let Some(service) = made(number, mode, &backends) else { continue };
            let mut wanted = state.services().to_vec();
            match wanted.iter_mut().find(|it| it.spec().name == service.spec().name) {
                Some(old) => *old = Arc::new(service),
                None => wanted.push(Arc::new(service)),
            }
            let new = wanted.iter().map(|it| Service::clone(it)).collect();
            let followed = state.followed_by(wanted);
            prop_assert_eq!(&followed, &DesiredState::new(hash_key, new));
            if let Ok(followed) = followed {
                state = followed;
            }
        }
    }
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
fn slots_grow_with_the_backends_and_with_how_their_weights_differ() {
    let weighing = |weights: &[u32]| -> Vec<Backend> {
        let of = |weight: &u32| Backend { weight: *weight, ..backend("10.0.0.11") };
        weights.iter().map(of).collect()
    };
    for (weights, slots) in [
        (vec![], 4_099),
        (vec![7; 10], 4_099),
        (vec![1; 11], 16_411),
        (vec![1, 2, 7], 4_099),
        (vec![1, 2, 3, 4, 5, 6, 7, 7, 4, 1], 4_099),
        (vec![2, 4, 0, 75], 16_411),
        (vec![2, 4, 0, 74], 4_099),
        (vec![1, 163], 16_411),
        (vec![1, 164], 65_537),
        (vec![1, 1000], 65_537),
        (vec![1; 41], 16_411),
        (vec![1; 42], 65_537),
        (vec![1; 655], 65_537),
        (vec![1; 656], 131_101),
        (vec![1; 65_535], 8_388_617),
    ] {
        assert_eq!(slots_for(&weighing(&weights)), slots);
        assert!(is_prime(slots));
    }
}
