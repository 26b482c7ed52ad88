mod history;

use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::continuity::Flow;
use crate::continuity::tracker::{Phase, Seen};
use crate::model::tests::{backend, spec};
use crate::model::{AboveRate, HashKey, ServiceSpec, StaticHop, SynBound, Tunnel, TunnelKind};
use crate::tables::next_hop::{NextHop, PortId, Resolved};
use crate::tables::{Ends, Path};
use crate::tuple::Tuple;
use crate::wire::TCP;
use crate::wire::ethernet::MacAddr;

/// Two ports; the second one's link has backends, too.
pub(crate) fn ports() -> Arc<[Port]> {
    let port = |n: u8, mtu, addresses: &[&str]| Port {
        name: format!("lan{n}"),
        mac: MacAddr([2, 0, 0, 0, 0, 2 + n]),
        mtu,
        addresses: addresses.iter().map(|net| net.parse().unwrap()).collect(),
        kernel: true,
        udp_checksums: false,
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
    .into_iter()
    .map(|(address, hops)| (address.parse::<IpAddr>().unwrap(), Arc::new(hops)))
    .collect()
}

/// IP in IPv6.
fn ipv6_path(src: Ipv6Addr, dst: &str) -> Path {
    let dst: Ipv6Addr = dst.parse().unwrap();
    let ends = Ends::ipv6(src.octets(), dst.octets(), 0);
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
    compile(&desired(specs), &Circumstances::new(&ports(), &next_hops()), previous)
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

/// Whatever is remembered of services.
#[test]
fn answers_are_known_after_a_restart() {
    let nat = [ServiceSpec { forward: Forward::Nat, ..small("a", "10.9.0.1", &["10.0.0.11"]) }];
    let before = compile_all(&nat, None);
    let source = Tuple::new("10.0.0.11".parse().unwrap(), [10, 9, 9, 9].into(), 80, 1, TCP);
    assert!(before.answers.find(&source).is_some());
    let begun = compile_all(&[], None).with_services(before.services.clone());
    assert!(compile_all(&nat, Some(&begun)).answers.find(&source).is_some());
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
    let unit = 4_099 / 8;
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
        ("10.2.0.1", Err(BehindGateway([10, 0, 0, 1].into())), Ok((both, outer4(v4, "10.2.0.1")))),
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
        "fd03::1".parse::<IpAddr>().unwrap(),
        Arc::new(Ok(Resolved { hops: [hop(1, 9)].into_iter().collect(), gateway: None })),
    )];
    let found =
        ways(&backend("fd03::1"), Forward::IPIP, &ports(), &next_hops.into_iter().collect());
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
                assert_eq!((src, vary_bits), ("fd07::".parse::<Ipv6Addr>().unwrap().octets(), 64));
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
        let hops = tables.services[0].backends[0].hops();
        let expect = expect.map(|port: u8| HopEntry {
            macs: [mac, ports()[usize::from(port)].mac],
            out: PortId(port),
            vlan: None,
            mtu: ports()[usize::from(port)].mtu,
            udp_checksums: false,
        });
        assert_eq!(hops.first().copied(), expect, "{address} {interface:?}");
        assert_eq!(tables.services[0].slots.is_empty(), expect.is_none());
    }
}

fn is_shared(old: &Tables, new: &Tables, place: usize) -> [bool; 2] {
    let [old, new] = [old, new].map(|tables| &tables.services[place]);
    [old.slots.is_shared_with(&new.slots), Arc::ptr_eq(&old.backends, &new.backends)]
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
        ("the VIP", |s| s.vip.address = "10.0.0.102/32".parse().unwrap(), [false, false]),
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
    known.insert([10, 0, 0, 99].into(), Arc::new(Ok(Resolved { hops, gateway: None })));
    let second = compile(&desired(&specs), &Circumstances::new(&ports(), &known), Some(&first));
    let expect = compile(&desired(&specs), &Circumstances::new(&ports(), &known), None);
    assert_eq!(second.services[0].slots, expect.services[0].slots, "not of history");
    assert!(shares(&second)[1] > 100);
    // Its MAC changes: other bytes to write, but no other slots.
    let hops = [hop(0, 77)].into_iter().collect();
    known.insert([10, 0, 0, 99].into(), Arc::new(Ok(Resolved { hops, gateway: None })));
    let third = compile(&desired(&specs), &Circumstances::new(&ports(), &known), Some(&second));
    assert_eq!(is_shared(&second, &third, 0), [true, false]);
}

#[test]
fn ids_stay_with_their_services_and_are_used_again_one_version_later() {
    let [a, b, c, d] = ["a", "b", "c", "d"];
    let ids = |tables: &Tables| -> Vec<(String, u32)> {
        let id = |table: &Arc<ServiceTable>| (table.source.spec().name.clone(), table.id.0);
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
    assert!(first.services[1].slots.is_shared_with(&second.services[0].slots));
    assert!(!second.decides_like(&first));
}

#[test]
fn a_backend_that_begins_gets_its_share_slowly() {
    let with = |backends: &[&str]| {
        let slow_start = Some(std::time::Duration::from_secs(10));
        desired(&[ServiceSpec { slow_start, ..small("web", "10.0.0.100", backends) }])
    };
    let (ports, hops) = (ports(), next_hops());
    let at = |desired: &DesiredState, previous: Option<&Tables>, seconds: u64| {
        let now = Tick(seconds * 1000);
        compile(desired, &Circumstances { now, ..Circumstances::new(&ports, &hops) }, previous)
    };
    let share = |tables: &Tables, place: u16| {
        tables.services[0].slots.slots().iter().filter(|slot| **slot == place).count()
    };
    let first = at(&with(&["10.0.0.11"]), None, 0);
    assert_eq!((share(&first, 0), first.next_change()), (251, None));
    let two = with(&["10.0.0.11", "10.0.0.12"]);
    let mut tables = at(&two, Some(&first), 100);
    let mut before = 0;
    for step in 1..=10 {
        let due = 251 * step / (10 + step);
        assert!(share(&tables, 1).abs_diff(due) <= 2, "{step}: {} of {due}", share(&tables, 1));
        assert!(share(&tables, 1) > before);
        before = share(&tables, 1);
        // Who compiles for another reason changes nothing.
        assert!(at(&two, Some(&tables), 99 + step as u64).decides_like(&tables));
        tables = at(&two, Some(&tables), 100 + step as u64);
    }
    assert_eq!(tables.services[0].slots.weights(), [1, 1]);
    assert_eq!(tables.services[0].growth, Growth::default());
}

#[test]
fn who_was_let_in_outlives_versions() {
    let bounded = |rate| ServiceSpec {
        syn: Some(SynBound { rate, above: AboveRate::Challenge }),
        ..small("web", "10.0.0.100", &["10.0.0.11"])
    };
    let other = small("other", "10.0.0.101", &["10.0.0.12"]);
    let first = compile_all(&[other.clone(), bounded(10)], None);
    let gate = |tables: &Tables, place: usize| tables.services[place].gate.clone().unwrap();
    let admission = |tables: &Tables| tables.admission.clone().unwrap();
    assert!(first.services[0].gate.is_none());
    // The place in the list, and the others, do not matter; the rate is the gate's.
    let second = compile_all(&[bounded(10)], Some(&first));
    assert!(Arc::ptr_eq(&gate(&first, 1), &gate(&second, 0)));
    assert!(Arc::ptr_eq(&admission(&first), &admission(&second)));
    let third = compile_all(&[bounded(11)], Some(&second));
    assert!(!Arc::ptr_eq(&gate(&second, 0), &gate(&third, 0)));
    assert_eq!(gate(&third, 0).bound().rate, 11);
    assert!(Arc::ptr_eq(&admission(&second), &admission(&third)));
    // Another key makes other numbers.
    let services = vec![Service::new(bounded(11)).unwrap()];
    let desired = DesiredState::new(HashKey([8; 16]), services).unwrap();
    let fourth = compile(&desired, &Circumstances::new(&ports(), &next_hops()), Some(&third));
    assert!(!Arc::ptr_eq(&admission(&third), &admission(&fourth)));
    assert!(compile_all(&[other], Some(&fourth)).admission.is_none());
}

/// Flows of all the others are not looked up.
#[test]
fn touched_are_the_slots_that_move_and_those_that_peers_tell_of() {
    let web = |backends: &[&str]| small("web", "10.0.0.100", backends);
    let first = compile_all(&[web(&["10.0.0.11", "10.0.0.12"])], None);
    let touched = |tables: &Tables| -> Vec<u32> {
        let service = &tables.services[0];
        (0..service.slots.len()).filter(|it| service.may_track_of(*it, &tables.tracker)).collect()
    };
    assert_eq!(touched(&first), []);
    let three = web(&["10.0.0.11", "10.0.0.12", "10.0.0.13"]);
    let second = compile_all(std::slice::from_ref(&three), Some(&first));
    let service = &second.services[0];
    let mut moved: Vec<u32> = service.transitions.as_ref().unwrap().slots().collect();
    assert!((60..100).contains(&moved.len()), "a third of 251: {}", moved.len());
    assert_eq!(touched(&second), moved);

    // By a flow of a slot that has not moved here.
    let (flow, slot) = (0..1000)
        .map(|port| {
            let flow = Flow::with_key([port, 0, 0, 0, 0], service, &second.hasher);
            (flow, crate::flow_hash::reduce(flow.hash(), service.slots.len()))
        })
        .find(|(_, slot)| !moved.contains(slot))
        .unwrap();
    let seen = Seen { service: service.id, backend: 0, age: 0, phase: Phase::Established };
    assert!(second.tracker.tell(&flow, seen, service, Tick(0)));
    moved.push(slot);
    moved.sort_unstable();
    assert_eq!(touched(&second), moved);

    // As long as it is tracked, also when the transitions are over.
    let (ports, hops) = (ports(), next_hops());
    let later = Circumstances { now: Tick(1 << 40), ..Circumstances::new(&ports, &hops) };
    let wanted = desired(&[three]);
    let third = compile(&wanted, &later, Some(&second));
    assert!(third.services[0].transitions.is_none());
    assert_eq!(touched(&third), moved);
    third.tracker.sweep((0, 1), Tick(0), |_| true);
    let two = web(&["10.0.0.12", "10.0.0.13"]);
    let fourth = compile(&desired(std::slice::from_ref(&two)), &later, Some(&third));
    let moved: Vec<u32> = fourth.services[0].transitions.as_ref().unwrap().slots().collect();
    assert_eq!(touched(&fourth), moved);

    // Who finds flows that somebody has left behind does not know which slots are theirs; nor does
    // one whose slots are other ones.
    let mut unknown = second.clone();
    Arc::make_mut(&mut unknown.services[0]).touched = None;
    let all: Vec<u32> = (0..251).collect();
    assert_eq!(touched(&unknown), all);
    assert_eq!(touched(&compile_all(std::slice::from_ref(&two), Some(&unknown))), all);
    let resized = compile_all(&[ServiceSpec { slots: Some(241), ..two }], Some(&second));
    assert_eq!(touched(&resized), (0..241).collect::<Vec<u32>>());
}
