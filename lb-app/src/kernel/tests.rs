//! The whole kernel side, against this machine's kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use imbl::OrdSet;
use ipnet::IpNet;
use lb_core::tables::next_hop::{NextHop, NextHops, Port, PortId, Resolved, Unresolved};
use lb_core::wire::ethernet::MacAddr;

use lb_core::tuple::address_bytes;

use super::testing::{Host, Wire, block_on_in_namespace, ip, ip_batch, run, vanishes};
use super::{InterfaceState, Kernel, KernelError, Tap};

const LAN0: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const FAR: &str = "02:00:00:00:00:11";

fn port(name: &str, mac: MacAddr, addresses: &[&str]) -> Port {
    Port {
        name: name.into(),
        mac,
        mtu: 1400,
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        kernel: true,
        udp_checksums: false,
    }
}

fn lan0() -> Port {
    port("lan0", LAN0, &["10.0.0.2/24", "fd00::2/64"])
}

fn addresses<const N: usize, All: FromIterator<IpAddr>>(texts: [&str; N]) -> All {
    texts.iter().map(|text| text.parse::<IpAddr>().unwrap()).collect()
}

fn hop(mac: &str) -> NextHop {
    NextHop { port: PortId(0), mac: mac.parse().unwrap(), vlan: None }
}

/// `lan0`, wired to another host that has `10.0.0.11` and `fd00::11`.
struct Lan {
    kernel: Kernel,
    far: Host,
    _wire: Wire,
}

impl Lan {
    async fn new() -> Self {
        let (kernel, mut taps) = Kernel::start(&[lan0()]).await.unwrap();
        let far = Host::new();
        let end = far.run(|| Tap::open("far0").unwrap());
        far.ip(&format!("link set far0 address {FAR} up"));
        far.ip("address add 10.0.0.11/24 dev far0");
        far.ip("address add fd00::11/64 dev far0 nodad");
        let wire = Wire::between(taps.pop().unwrap().1, end);
        Self { kernel, far, _wire: wire }
    }

    /// Resolves until `done`, as the balancer does: when something changed.
    async fn resolve_until(
        &mut self,
        backends: &OrdSet<IpAddr>,
        done: impl Fn(&NextHops) -> bool,
    ) -> NextHops {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let hops = self.kernel.resolve(backends).await.unwrap();
            if done(&hops) {
                return hops;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let changed = tokio::time::timeout(left, self.kernel.changed()).await;
            changed.unwrap_or_else(|_| panic!("no change any more: {hops:?}")).unwrap();
        }
    }
}

impl Lan {
    /// The MAC that answers to `client` go to, by now.
    async fn way(&mut self, client: &str) -> Option<MacAddr> {
        self.kernel.want_fib(true);
        self.kernel.resolve(&OrdSet::new()).await.unwrap();
        let client: IpAddr = client.parse().unwrap();
        let fib = self.kernel.fib(&[lan0()]);
        fib.lookup(&address_bytes(client), client.is_ipv6(), 0).map(|hop| hop.macs[0])
    }

    /// Follows changes until answers to `client` go to `mac`.
    async fn way_until(&mut self, client: &str, mac: Option<&str>) {
        let mac = mac.map(|mac| mac.parse().unwrap());
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let way = self.way(client).await;
            if way == mac {
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let changed = tokio::time::timeout(left, self.kernel.changed()).await;
            changed.unwrap_or_else(|_| panic!("no change any more: {way:?}")).unwrap();
        }
    }
}

fn all_resolved(hops: &NextHops) -> bool {
    hops.values().all(|it| it.is_ok())
}

#[test]
fn a_tap_is_an_interface_with_the_ports_mac_mtu_and_addresses() {
    block_on_in_namespace(async || {
        let (kernel, taps) = Kernel::start(&[lan0()]).await.unwrap();
        assert_eq!(taps.len(), 1);
        let link = ip("link show lan0");
        assert!(
            link.contains("link/ether 02:00:00:00:00:02") && link.contains("mtu 1400"),
            "{link}"
        );
        let shown = ip("address show lan0");
        for address in ["10.0.0.2/24", "fd00::2/64", "fe80::ff:fe00:2/64"] {
            assert!(shown.contains(address), "{address} in {shown}");
        }
        assert!(!shown.contains("tentative"), "{shown}");
        assert_eq!(kernel.interfaces().collect::<Vec<_>>(), [(PortId(0), InterfaceState::Up)]);

        drop((kernel, taps));
        assert!(vanishes("lan0"), "it lives on without the TAP");
    });
}

#[test]
fn ports_without_a_kernel_side_have_no_interface() {
    block_on_in_namespace(async || {
        let closed = Port { kernel: false, ..port("lan0", LAN0, &["10.0.0.2/24"]) };
        let open = port("lan1", MacAddr([2, 0, 0, 0, 1, 2]), &["10.1.0.2/24"]);
        let (mut kernel, taps) = Kernel::start(&[closed, open]).await.unwrap();
        assert_eq!(
            taps.iter().map(|(id, tap)| (*id, tap.name())).collect::<Vec<_>>(),
            [(PortId(1), "lan1")]
        );
        kernel.set_vips(&addresses(["10.0.0.100"])).await.unwrap();
        assert!(ip("address show lan1").contains("10.0.0.100/32"), "the first kernel port's");

        let (mut kernel, _) = Kernel::start(&[]).await.unwrap();
        kernel.set_vips(&addresses(["10.0.0.101"])).await.unwrap();
        let hops = kernel.resolve(&addresses(["10.1.0.11"])).await.unwrap();
        let foreign = Unresolved::ForeignInterface("lan1".into());
        assert_eq!(hops, NextHops::unit("10.1.0.11".parse().unwrap(), Arc::new(Err(foreign))));
    });
}

#[test]
fn an_address_of_another_interface_is_refused_before_anything_changes() {
    block_on_in_namespace(async || {
        ip("link add eth0 type veth peer name eth1");
        ip("address add 10.0.0.2/16 dev eth0");
        ip("address add 10.0.0.100/32 dev eth1");
        let error = Kernel::start(&[lan0()]).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "10.0.0.2 is already an address of eth0; remove it there \
             (`ip address del 10.0.0.2/16 dev eth0`), or use another address"
        );
        assert!(!ip("link show").contains("lan0"));

        ip("address del 10.0.0.2/16 dev eth0");
        let (mut kernel, _taps) = Kernel::start(&[lan0()]).await.unwrap();
        let error = kernel.set_vips(&addresses(["10.0.0.99", "10.0.0.100"])).await.unwrap_err();
        assert!(
            matches!(error, KernelError::AddressTaken { interface, .. } if interface == "eth1")
        );
        assert!(!ip("address show lan0").contains("10.0.0.99"), "all or nothing");
    });
}

#[test]
fn an_interface_of_the_ports_name_is_refused() {
    block_on_in_namespace(async || {
        ip("link add lan0 type veth peer name lan9");
        let error = Kernel::start(&[lan0()]).await.unwrap_err();
        assert!(error.to_string().starts_with("interface lan0 exists already; "), "{error}");
    });
}

#[test]
fn vips_are_added_repaired_and_removed() {
    block_on_in_namespace(async || {
        let lan1 = port("lan1", MacAddr([2, 0, 0, 0, 1, 2]), &["10.1.0.2/24"]);
        let (mut kernel, _taps) = Kernel::start(&[lan0(), lan1]).await.unwrap();
        let vips = addresses(["10.0.0.2", "10.0.0.100", "10.1.0.100", "198.51.100.1", "fd00::100"]);
        for _ in 0..2 {
            kernel.set_vips(&vips).await.unwrap();
            let (lan0, lan1) = (ip("address show lan0"), ip("address show lan1"));
            for vip in ["10.0.0.100/32", "198.51.100.1/32", "fd00::100/128"] {
                assert_eq!(lan0.matches(vip).count(), 1, "{vip} in {lan0}");
            }
            assert!(lan1.contains("10.1.0.100/32"), "{lan1}");
            assert_eq!(lan0.matches("10.0.0.2/").count(), 1, "the port's own: {lan0}");
            // An address of the same prefix length may be nearer, but a VIP is never the source.
            assert!(ip("route get fd00::101").contains("src fd00::2"));
            // Somebody removes one; the second call repairs it.
            ip("address del 10.0.0.100/32 dev lan0");
            kernel.changed().await.unwrap();
        }
        assert!(
            !ip("-6 route show table main").contains("fd00::100"),
            "no route but the local one"
        );

        ip("link delete lan1"); // with its VIP
        kernel.set_vips(&BTreeSet::new()).await.unwrap();
        let lan0 = ip("address show lan0");
        for vip in ["10.0.0.100", "198.51.100.1", "fd00::100"] {
            assert!(!lan0.contains(vip), "{vip} in {lan0}");
        }
        assert!(lan0.contains("10.0.0.2/24") && lan0.contains("fd00::2/64"), "{lan0}");
    });
}

#[test]
fn the_kernel_answers_for_addresses_and_vips() {
    block_on_in_namespace(async || {
        let mut lan = Lan::new().await;
        lan.kernel.set_vips(&addresses(["10.0.0.100", "fd00::100"])).await.unwrap();
        for address in ["10.0.0.2", "10.0.0.100", "fd00::2", "fd00::100"] {
            lan.far.run(move || run("ping", &format!("-c 1 -W 5 {address}")));
        }
        let neighbours = lan.far.ip("neigh show dev far0");
        assert_eq!(neighbours.matches("lladdr 02:00:00:00:00:02").count(), 4, "{neighbours}");
    });
}

#[test]
fn backends_on_the_link_are_found_and_watched() {
    block_on_in_namespace(async || {
        let mut lan = Lan::new().await;
        let backends = addresses(["10.0.0.11", "fd00::11"]);
        let first = lan.kernel.resolve(&backends).await.unwrap();
        assert!(first.values().all(|it| **it == Err(Unresolved::Unknown)), "{first:?}");
        let found = lan.resolve_until(&backends, all_resolved).await;
        let resolved = Resolved { hops: [hop(FAR)].into_iter().collect(), gateway: None };
        assert!(found.values().all(|it| **it == Ok(resolved.clone())), "{found:?}");

        // Another station takes the addresses over.
        let other = "02:00:00:00:00:99";
        lan.far.ip(&format!("link set far0 down address {other}"));
        lan.far.ip("link set far0 up");
        lan.far.ip("address replace fd00::11/64 dev far0 nodad");
        ip("neigh flush dev lan0");
        let resolved = Resolved { hops: [hop(other)].into_iter().collect(), gateway: None };
        lan.resolve_until(&backends, |hops| hops.values().all(|it| **it == Ok(resolved.clone())))
            .await;
    });
}

#[test]
fn a_forgotten_neighbour_keeps_its_mac_until_it_is_silent() {
    block_on_in_namespace(async || {
        let mut lan = Lan::new().await;
        let backend = addresses(["10.0.0.11"]);
        lan.resolve_until(&backend, all_resolved).await;
        lan.far.ip("link set far0 down");
        ip("neigh del 10.0.0.11 dev lan0");
        let silent = Err(Unresolved::NoNeighbour("10.0.0.11".parse().unwrap(), "lan0".into()));
        let forgotten = Instant::now();
        lan.kernel.changed().await.unwrap();
        assert!(all_resolved(&lan.kernel.resolve(&backend).await.unwrap()));
        lan.resolve_until(&backend, |hops| hops.values().all(|it| **it == silent)).await;
        println!("found silent after {:?}", forgotten.elapsed());

        // It comes back, without help from the other side: we keep asking.
        lan.far.ip("link set far0 up arp on");
        lan.resolve_until(&backend, all_resolved).await;
    });
}

#[test]
fn gateways_and_multipath_routes() {
    block_on_in_namespace(async || {
        let mut lan = Lan::new().await;
        ip("route add 192.0.2.0/24 via 10.0.0.11");
        ip("route add 192.0.3.0/24 via inet6 fd00::11 dev lan0");
        ip("neigh add 10.0.0.12 lladdr 02:00:00:00:00:12 dev lan0");
        ip("neigh add fd00::12 lladdr 02:00:00:00:00:12 dev lan0");
        ip("route add 198.51.100.0/24 nexthop via 10.0.0.12 nexthop via 10.0.0.11");
        ip("-6 route add 2001:db8::/64 nexthop via fd00::12 nexthop via fd00::11");
        // Nobody answers at 10.0.0.13.
        ip("route add 203.0.113.0/24 nexthop via 10.0.0.13 nexthop via 10.0.0.12");
        let backends =
            addresses(["192.0.2.1", "192.0.3.1", "198.51.100.1", "2001:db8::1", "203.0.113.1"]);
        let found = lan
            .resolve_until(&backends, |hops| {
                all_resolved(hops)
                    && hops.values().flat_map(|it| &**it).filter(|it| it.hops.len() == 2).count()
                        == 2
            })
            .await;
        let far = hop(FAR);
        let near = hop("02:00:00:00:00:12");
        let expected: BTreeMap<_, (Vec<NextHop>, &str)> = BTreeMap::from([
            ("192.0.2.1", (vec![far], "10.0.0.11")),
            ("192.0.3.1", (vec![far], "fd00::11")),
            ("198.51.100.1", (vec![far, near], "10.0.0.11")),
            ("2001:db8::1", (vec![far, near], "fd00::11")),
            ("203.0.113.1", (vec![near], "10.0.0.12")),
        ]);
        for (backend, (hops, gateway)) in expected {
            let resolved = (*found[&backend.parse::<IpAddr>().unwrap()]).clone().unwrap();
            assert_eq!(resolved.hops.to_vec(), hops, "{backend}");
            assert_eq!(resolved.gateway, Some(gateway.parse().unwrap()), "{backend}");
        }
    });
}

#[test]
fn why_there_is_no_way() {
    block_on_in_namespace(async || {
        let mut lan = Lan::new().await;
        ip("link add eth0 type veth peer name eth1");
        ip("link set eth0 up");
        ip("address add 172.16.0.1/24 dev eth0");
        ip("route add unreachable 192.0.2.0/24");
        ip("route add blackhole 192.0.3.0/24");
        ip("-6 route add prohibit 2001:db8::/64");
        let cases = [
            ("192.0.2.1", Unresolved::NoRoute),
            ("192.0.3.1", Unresolved::NoRoute),
            ("198.51.100.1", Unresolved::NoRoute),
            ("2001:db8::1", Unresolved::NoRoute),
            ("2001:db9::1", Unresolved::NoRoute),
            ("10.0.0.255", Unresolved::NoRoute),
            ("10.0.0.2", Unresolved::Local),
            ("fd00::2", Unresolved::Local),
            ("172.16.0.11", Unresolved::ForeignInterface("eth0".into())),
            ("10.0.0.77", Unresolved::NoNeighbour("10.0.0.77".parse().unwrap(), "lan0".into())),
        ];
        let expected: NextHops = cases
            .into_iter()
            .map(|(text, why)| (text.parse::<IpAddr>().unwrap(), Err(why)))
            .collect();
        let backends = expected.keys().copied().collect();
        lan.resolve_until(&backends, |hops| *hops == expected).await;
    });
}

#[test]
fn changes_of_routes_and_links_are_noticed() {
    block_on_in_namespace(async || {
        let mut lan = Lan::new().await;
        let backend = addresses(["192.0.2.1"]);
        let via = |hops: &NextHops| hops.values().next().unwrap().as_ref().as_ref().ok()?.gateway;
        lan.kernel.resolve(&backend).await.unwrap();

        ip("route add default via 10.0.0.11");
        lan.resolve_until(&backend, |hops| via(hops) == Some("10.0.0.11".parse().unwrap())).await;
        ip("neigh add 10.0.0.12 lladdr 02:00:00:00:00:12 dev lan0");
        ip("route add 192.0.2.0/24 via 10.0.0.12");
        lan.resolve_until(&backend, |hops| via(hops) == Some("10.0.0.12".parse().unwrap())).await;
        ip("rule add to 192.0.2.1 unreachable");
        lan.resolve_until(&backend, |hops| !all_resolved(hops)).await;
        ip("rule del to 192.0.2.1 unreachable");
        lan.resolve_until(&backend, all_resolved).await;

        // A route elsewhere does not concern us.
        while tokio::time::timeout(Duration::from_millis(200), lan.kernel.changed()).await.is_ok() {
        }
        ip("route add 198.51.100.0/24 via 10.0.0.12");
        let quiet = tokio::time::timeout(Duration::from_millis(300), lan.kernel.changed()).await;
        assert!(quiet.is_err(), "a route elsewhere woke us");

        ip("link set lan0 down");
        lan.resolve_until(&backend, |hops| !all_resolved(hops)).await;
        assert_eq!(lan.kernel.interfaces().next(), Some((PortId(0), InterfaceState::Down)));
        ip("link set lan0 up");
        // News that `resolve` came across is not lost.
        tokio::time::sleep(Duration::from_millis(300)).await;
        lan.kernel.resolve(&backend).await.unwrap();
        let news = tokio::time::timeout(Duration::from_millis(300), lan.kernel.changed()).await;
        news.expect("told at once").unwrap();
        assert_eq!(lan.kernel.interfaces().next(), Some((PortId(0), InterfaceState::Up)));
        assert!(ip("address show lan0").contains("fd00::2"), "addresses stay");
        ip("link delete lan0");
        while lan.kernel.interfaces().next() != Some((PortId(0), InterfaceState::Gone)) {
            lan.kernel.changed().await.unwrap();
        }
        lan.resolve_until(&backend, |hops| !all_resolved(hops)).await;
    });
}

#[test]
fn lost_notices_cause_a_new_start() {
    block_on_in_namespace(async || {
        let mut lan = Lan::new().await;
        ip("neigh add 10.0.0.12 lladdr 02:00:00:00:00:12 dev lan0");
        let backends = addresses(["10.0.0.12", "192.0.2.1"]);
        let hops = lan.kernel.resolve(&backends).await.unwrap();
        assert!(hops[&"10.0.0.12".parse::<IpAddr>().unwrap()].is_ok());
        // More than any buffer takes, and what matters at the end.
        let flood = (0..20_000).map(|i| {
            let verb = if i % 2 == 0 { "add" } else { "del" };
            format!("route {verb} 198.51.100.0/24 dev lan0")
        });
        let last = ["neigh replace 10.0.0.12 lladdr 02:00:00:00:00:13 dev lan0".to_owned()];
        ip_batch(flood.chain(last).chain(["route add 192.0.2.0/24 via 10.0.0.12".to_owned()]));
        let moved = hop("02:00:00:00:00:13");
        lan.resolve_until(&backends, |hops| {
            hops.values().all(|it| (**it).as_ref().is_ok_and(|it| it.hops.as_slice() == [moved]))
        })
        .await;
    });
}

#[test]
fn ten_thousand_backends_are_resolved_within_a_second() {
    block_on_in_namespace(async || {
        let far = port("lan0", LAN0, &["10.0.0.2/16"]);
        let (mut kernel, _taps) = Kernel::start(&[far]).await.unwrap();
        let backends: OrdSet<IpAddr> = (1..=10_000u16)
            .map(|i| IpAddr::from([10, 0, 1 + i.to_be_bytes()[0], i.to_be_bytes()[1]]))
            .collect();
        ip_batch(
            backends.iter().map(|b| format!("neigh add {b} lladdr 02:00:00:00:00:11 dev lan0")),
        );
        let start = Instant::now();
        let hops = kernel.resolve(&backends).await.unwrap();
        let first = start.elapsed();
        assert!(all_resolved(&hops));
        let start = Instant::now();
        let again = kernel.resolve(&backends).await.unwrap();
        println!("10,000 backends: {first:?}; again, with nothing changed: {:?}", start.elapsed());
        assert_eq!(again, hops);
        assert!(first < Duration::from_secs(1), "{first:?}");
    });
}

/// Of many backends the kernel is asked by classes, of few one by one: while routes of two tables and rules
/// come and go at random, both find the same.
#[test]
fn asked_by_classes_or_one_by_one_backends_have_the_same_routes() {
    block_on_in_namespace(async || {
        let mut random = fastrand::Rng::with_seed(7);
        for i in 0..4 {
            ip(&format!("tuntap add tap{i} mode tap"));
            ip(&format!("link set tap{i} up"));
            ip(&format!("address add 10.{i}.0.1/16 dev tap{i}"));
            ip(&format!("address add fd00:{i}::1/32 dev tap{i} nodad"));
        }
        let address = |random: &mut fastrand::Rng| -> IpAddr {
            let [a, b, c] = [6, 2, 2].map(|max| random.u8(..max));
            if random.bool() {
                return [10, a, b, random.u8(..)].into();
            }
            let first = if random.u8(..9) > 0 { 0xfd00 } else { 0xfe80 };
            [first, a.into(), b.into(), 0, 0, 0, c.into(), random.u16(..)].into()
        };
        // To be added and deleted, in turns.
        let mut pool = Vec::new();
        for preference in 0..80 {
            let some = address(&mut random);
            let (family, most) = if some.is_ipv4() { (4, 32) } else { (6, 128) };
            let net = IpNet::new(some, random.u8(8..=most)).unwrap().trunc();
            let [table, tap] = [random.u8(100..=101), random.u8(..4)];
            pool.push(match random.u8(..8) {
                0 => format!("-{family} rule VERB to {net} lookup {table} preference {preference}"),
                1 => format!("-{family} rule VERB to {net} unreachable preference {preference}"),
                2 => format!("-{family} route VERB blackhole {net} table main metric {preference}"),
                3..5 => format!(
                    "-{family} route VERB {net} dev tap{tap} table {table} metric {preference}"
                ),
                _ => format!("-{family} route VERB {net} dev tap{tap} metric {preference}"),
            });
        }
        let (mut by_classes, _) = Kernel::start(&[]).await.unwrap();
        let (mut one_by_one, _) = Kernel::start(&[]).await.unwrap();
        let backends: OrdSet<IpAddr> = (0..3_000).map(|_| address(&mut random)).collect();
        let all: Vec<IpAddr> = backends.iter().copied().collect();
        let mut is_there = [false; 80];
        for round in 0..40 {
            let changes: Vec<usize> = (0..4).map(|_| random.usize(..pool.len())).collect();
            for i in changes {
                is_there[i] = !is_there[i];
                ip(&pool[i].replace("VERB", if is_there[i] { "add" } else { "del" }));
            }
            let found = by_classes.resolve(&backends).await.unwrap();
            for some in all.chunks(200) {
                let singly = one_by_one.resolve(&some.iter().copied().collect()).await.unwrap();
                for (backend, answer) in &singly {
                    assert_eq!(&found[backend], answer, "{backend} in round {round}");
                }
            }
        }
    });
}

/// The kernel's limit of neighbours (`net.ipv4.neigh.default.gc_thresh3`) is 1,024 by default.
#[test]
fn more_stations_than_the_kernels_neighbour_limit() {
    block_on_in_namespace(async || {
        let mut lan = Lan::new().await;
        ip("route add 10.2.0.0/16 dev lan0");
        let backends: OrdSet<IpAddr> = (0..3_000u16)
            .map(|i| IpAddr::from([10, 2, i.to_be_bytes()[0], i.to_be_bytes()[1]]))
            .collect();
        lan.far.ip("route add local 10.2.0.0/16 dev lo");
        let start = Instant::now();
        lan.resolve_until(&backends, all_resolved).await;
        println!("3,000 stations found after {:?}", start.elapsed());

        // What is no backend any more is the kernel's alone, and not marked as learned.
        lan.kernel.resolve(&addresses(["10.0.0.11"])).await.unwrap();
        assert!(!ip("neigh show dev lan0").contains("extern_learn"));
    });
}

mod clients;
