//! The ways to addresses that are no backend's: clients, who answers go back to.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

use ipnet::IpNet;

use super::HopEntry;
use super::next_hop::{HOPS_MAX, NextHop, Port, PortId};
use crate::flow_hash::reduce_low;
use crate::tuple::address_bytes;
use crate::wire::ethernet::MacAddr;

/// Routes (prefixes) that are taken, at most: room for all of the Internet's. Of more, the shortest
/// prefixes are taken, so that what is left out goes by the route around it.
pub const ROUTES_MAX: usize = 1 << 20;
/// Stations whose MACs are known, at most.
pub const STATIONS_MAX: usize = 1 << 16;

/// A port's link: the port, and the VLAN of it.
pub type Link = (PortId, Option<u16>);

/// Where packets for a prefix go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteWays {
    /// Nowhere: a blackhole, or an interface that is none of ours, or no gateway is known.
    None,
    /// To one of these gateways, by the flow hash; the first [`HOPS_MAX`] are used.
    Gateways(Vec<NextHop>),
    /// To the station itself.
    OnLink(Link),
}

/// The ways to any address: longest prefix, then the neighbour.
///
/// * **Shape**: for each family a sorted list of the addresses where another route begins, so that
///   nested prefixes are flattened; routes by the same gateways share them. One sorted list of
///   stations. A route takes at most 56 bytes and its gateways, a station 36.
/// * **Promise**: equal ways make equal tables, however the routes that lead there are cut.
/// * **Cost**: a look-up is a binary search, and another one if the address is on a link; it
///   allocates nothing: 4 ns with a default route alone, 20 with a thousand routes and stations, 160
///   when both tables are full. Not a hash: whoever is on the link chooses the addresses of
///   stations, and must not be able to make the search long. Building is `O(n · log n)`, for the
///   control thread: 0.2 s for a hundred thousand routes, 3 s for a million.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fib {
    ipv4: Boundaries<u32>,
    ipv6: Boundaries<u128>,
    /// Next hops of routes; targets name ranges of it.
    gateways: Vec<HopEntry>,
    /// Has a route several of them, among which a hash chooses?
    has_equal_ways: bool,
    stations: Stations,
}

/// Where one stretch of addresses (as numbers) ends and another begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Boundaries<A> {
    /// Sorted; a stretch reaches up to the next.
    starts: Vec<A>,
    targets: Vec<Target>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    None,
    /// Not empty.
    Gateways(Range<u32>),
    OnLink(Link),
}

/// The neighbours. Addresses lie apart, so that a search touches few cache lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Stations {
    /// Sorted; more than once where several links have the address (link-local ones).
    addresses: Vec<u128>,
    hops: Vec<HopEntry>,
}

impl Fib {
    /// Makes the table of routes, at most one a prefix, and of the stations on the ports' links.
    /// What is on a port that is not among `ports` is no way.
    #[must_use]
    pub fn new(
        routes: &BTreeMap<IpNet, RouteWays>,
        stations: &BTreeMap<(Link, IpAddr), MacAddr>,
        ports: &[Port],
    ) -> Self {
        let mut gateways = Gateways { entries: Vec::new(), known: BTreeMap::new(), ports };
        let mut stretches = [BTreeMap::new(), BTreeMap::new()];
        // Shorter prefixes first, so that longer ones lie over them.
        let mut by_len: Vec<_> = routes.iter().collect();
        by_len.sort_by_key(|(net, _)| net.prefix_len());
        for (net, ways) in by_len.into_iter().take(ROUTES_MAX) {
            let target = match ways {
                RouteWays::None => Target::None,
                RouteWays::OnLink(link) => Target::OnLink(*link),
                RouteWays::Gateways(hops) => gateways.target(hops),
            };
            let [first, last] = [net.network(), net.broadcast()].map(number);
            cover(&mut stretches[usize::from(net.addr().is_ipv6())], first, last, target);
        }
        let [ipv4, ipv6] = stretches;
        Self {
            has_equal_ways: gateways.known.keys().any(|hops| hops.len() > 1),
            ipv4: Boundaries::new(ipv4, ipv4_number),
            ipv6: Boundaries::new(ipv6, Some),
            gateways: gateways.entries,
            stations: Stations::new(stations, ports),
        }
    }

    /// Does the hash count for [`Fib::lookup`]?
    #[inline]
    #[must_use]
    pub fn has_equal_ways(&self) -> bool {
        self.has_equal_ways
    }

    /// The way to `dst` (IPv4 as mapped): by the longest prefix; of several gateways by the low bits
    /// of `hash`. `None` where no route is, or none that leads anywhere, and for a station on a link
    /// whose MAC is not known.
    #[inline]
    #[must_use]
    pub fn lookup(&self, dst: &[u8; 16], is_ipv6: bool, hash: u64) -> Option<&HopEntry> {
        let number = u128::from_be_bytes(*dst);
        let target = if is_ipv6 {
            self.ipv6.find(number)
        } else {
            let [.., a, b, c, d] = *dst;
            self.ipv4.find(u32::from_be_bytes([a, b, c, d]))
        };
        match target? {
            Target::None => None,
            Target::Gateways(range) => {
                let place = range.start + reduce_low(hash, range.end - range.start);
                self.gateways.get(place as usize)
            }
            Target::OnLink(link) => self.stations.find(number, *link),
        }
    }
}

impl<A: Copy + Ord> Boundaries<A> {
    /// Joins stretches that lead to the same. `number`: an address of the family's, if it is one.
    fn new(stretches: BTreeMap<u128, Target>, number: impl Fn(u128) -> Option<A>) -> Self {
        let mut boundaries = Self { starts: Vec::new(), targets: Vec::new() };
        for (start, target) in stretches {
            let Some(start) = number(start) else { break }; // what ends with the address space
            if *boundaries.targets.last().unwrap_or(&Target::None) != target {
                boundaries.starts.push(start);
                boundaries.targets.push(target);
            }
        }
        boundaries
    }

    #[inline(always)]
    fn find(&self, address: A) -> Option<&Target> {
        let at = self.starts.partition_point(|start| *start <= address).checked_sub(1)?;
        self.targets.get(at)
    }
}

impl Stations {
    fn new(stations: &BTreeMap<(Link, IpAddr), MacAddr>, ports: &[Port]) -> Self {
        let mut found: Vec<(u128, HopEntry)> = stations
            .iter()
            .take(STATIONS_MAX)
            .filter_map(|(((port, vlan), address), mac)| {
                let hop = NextHop { port: *port, mac: *mac, vlan: *vlan };
                Some((number(*address), HopEntry::new(&hop, ports)?))
            })
            .collect();
        found.sort_by_key(|(address, _)| *address);
        let (addresses, hops) = found.into_iter().unzip();
        Self { addresses, hops }
    }

    #[inline(never)]
    fn find(&self, address: u128, (port, vlan): Link) -> Option<&HopEntry> {
        let first = self.addresses.partition_point(|other| *other < address);
        let same = self.addresses.get(first..)?.iter().zip(self.hops.get(first..)?);
        same.take_while(|(other, _)| **other == address)
            .map(|(_, hop)| hop)
            .find(|hop| (hop.out, hop.vlan) == (port, vlan))
    }
}

/// The gateways of routes, each set of them once.
struct Gateways<'r> {
    entries: Vec<HopEntry>,
    known: BTreeMap<&'r [NextHop], Target>,
    ports: &'r [Port],
}

impl<'r> Gateways<'r> {
    fn target(&mut self, hops: &'r [NextHop]) -> Target {
        let hops = &hops[..hops.len().min(HOPS_MAX)];
        let Self { entries, known, ports } = self;
        let target = known.entry(hops).or_insert_with(|| {
            let first = entries.len();
            entries.extend(hops.iter().filter_map(|hop| HopEntry::new(hop, ports)));
            // At most `ROUTES_MAX * HOPS_MAX`: they fit.
            let [start, end] = [first, entries.len()].map(|n| u32::try_from(n).unwrap_or(0));
            if start == end { Target::None } else { Target::Gateways(start..end) }
        });
        target.clone()
    }
}

/// As addresses are kept in tuples: IPv4 as mapped.
fn number(address: IpAddr) -> u128 {
    u128::from_be_bytes(address_bytes(address))
}

/// Of an IPv4 address as mapped: as it is.
fn ipv4_number(address: u128) -> Option<u32> {
    let first = number(Ipv4Addr::UNSPECIFIED.into());
    address.checked_sub(first).and_then(|number| u32::try_from(number).ok())
}

/// Lays `target` over the addresses from `first` to `last`. What lay there before ends, and goes on
/// behind it.
fn cover(stretches: &mut BTreeMap<u128, Target>, first: u128, last: u128, target: Target) {
    let behind = last.checked_add(1);
    let before = stretches.range(..=last).next_back().map_or(Target::None, |(_, t)| t.clone());
    let within: Vec<u128> = stretches.range(first..=last).map(|(start, _)| *start).collect();
    for start in within {
        stretches.remove(&start);
    }
    stretches.insert(first, target);
    if let Some(behind) = behind {
        stretches.entry(behind).or_insert(before);
    }
}

const _: () = assert!(ROUTES_MAX * HOPS_MAX <= u32::MAX as usize);
const _: () = assert!(size_of::<HopEntry>() <= 20 && size_of::<Target>() <= 12);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ports() -> Vec<Port> {
        let port = |n: u8| Port {
            name: format!("lan{n}"),
            mac: MacAddr([2, 0, 0, 0, 0, n]),
            mtu: 1500 + u16::from(n),
            addresses: Vec::new(),
            kernel: true,
            udp_checksums: false,
        };
        vec![port(0), port(1)]
    }

    fn hop(n: u8) -> NextHop {
        NextHop { port: PortId(n % 2), mac: MacAddr([2, 1, 0, 0, 0, n]), vlan: None }
    }

    fn net() -> impl Strategy<Value = IpNet> {
        (any::<u8>(), 0_u8..=32, prop::bool::ANY).prop_map(|(host, len, is_ipv6)| {
            let text = if is_ipv6 {
                format!("fd00::{host:x}/{}", if len < 24 { len } else { len + 96 })
            } else {
                format!("10.0.0.{host}/{len}")
            };
            text.parse::<IpNet>().unwrap().trunc()
        })
    }

    proptest! {
        /// The longest prefix that has the address says.
        #[test]
        fn the_longest_prefix_wins(
            routes in proptest::collection::btree_map(net(), 0_u8..5, 0..40),
            hosts in proptest::collection::vec((any::<u8>(), prop::bool::ANY), 40),
        ) {
            let link = (PortId(1), Some(7));
            let ways = |kind: u8| match kind {
                0 => RouteWays::None,
                1 => RouteWays::OnLink(link),
                n => RouteWays::Gateways(vec![hop(n)]),
            };
            let known = |n: u8| MacAddr([2, 2, 0, 0, 0, n]);
            let address = |host: u8, is_ipv6| -> IpAddr {
                if is_ipv6 { [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(host)].into() } else { [10, 0, 0, host].into() }
            };
            // Every second station is known.
            let stations: BTreeMap<(Link, IpAddr), MacAddr> = (0..=254).step_by(2)
                .flat_map(|n| [false, true].map(|v6| ((link, address(n, v6)), known(n))))
                .collect();
            let given = routes.iter().map(|(net, kind)| (*net, ways(*kind))).collect();
            let fib = Fib::new(&given, &stations, &ports());
            for (host, is_ipv6) in hosts {
                let address = address(host, is_ipv6);
                let best = routes.iter().filter(|(net, _)| net.contains(&address)).max_by_key(|(net, _)| net.prefix_len());
                let expect = match best.map(|(_, kind)| *kind) {
                    None | Some(0) => None,
                    Some(1) => (host % 2 == 0).then(|| known(host)),
                    Some(n) => Some(hop(n).mac),
                };
                let found = fib.lookup(&address_bytes(address), is_ipv6, 0);
                prop_assert_eq!(found.map(|hop| hop.macs[0]), expect);
            }
        }
    }

    #[test]
    fn equal_ways_share_by_hash() {
        let routes = [("0.0.0.0/0".parse().unwrap(), RouteWays::Gateways(vec![hop(0), hop(1)]))];
        let fib = Fib::new(&routes.into(), &BTreeMap::new(), &ports());
        let dst = address_bytes([192, 0, 2, 1].into());
        let by = |hash| fib.lookup(&dst, false, hash).map(|hop| (hop.out, hop.mtu));
        assert_eq!(by(0), Some((PortId(0), 1500)));
        assert_eq!(by(u64::MAX), Some((PortId(1), 1501)));
        assert_eq!(fib.lookup(&[1; 16], true, 0), None, "of the other family nothing is known");
    }

    #[test]
    fn ways_by_ports_that_are_not_there_are_none() {
        let far = NextHop { port: PortId(7), ..hop(0) };
        let routes = [("0.0.0.0/0".parse().unwrap(), RouteWays::Gateways(vec![far]))];
        let fib = Fib::new(&routes.into(), &BTreeMap::new(), &ports());
        assert_eq!(fib.lookup(&address_bytes([192, 0, 2, 1].into()), false, 0), None);
    }

    /// A packet for a station must not leave by a link that merely has the same address.
    #[test]
    fn stations_are_found_on_the_link_of_the_route() {
        let links: [Link; 3] = [(PortId(0), None), (PortId(1), None), (PortId(1), Some(7))];
        let address: IpAddr = [10, 0, 0, 9].into();
        let mac = |place: u8| MacAddr([2, 3, 0, 0, 0, place]);
        let stations = links.into_iter().zip(0..).map(|(link, n)| ((link, address), mac(n)));
        let stations: BTreeMap<_, _> = stations.collect();
        for (link, n) in links.into_iter().zip(0..) {
            let routes = [("10.0.0.0/24".parse().unwrap(), RouteWays::OnLink(link))].into();
            let fib = Fib::new(&routes, &stations, &ports());
            let found = fib.lookup(&address_bytes(address), false, 0).unwrap();
            assert_eq!((found.macs, found.out), ([mac(n), ports()[link.0.index()].mac], link.0));
            assert_eq!(found.vlan, link.1);
        }
        let elsewhere = [("10.0.0.0/24".parse().unwrap(), RouteWays::OnLink((PortId(0), Some(9))))];
        let fib = Fib::new(&elsewhere.into(), &stations, &ports());
        assert_eq!(fib.lookup(&address_bytes(address), false, 0), None);
    }

    /// A change that makes no difference is none, so nothing is published for it.
    #[test]
    fn equal_ways_make_equal_tables() {
        let table = |nets: &[&str]| {
            let ways = |net: &&str| (net.parse().unwrap(), RouteWays::Gateways(vec![hop(0)]));
            Fib::new(&nets.iter().map(ways).collect(), &BTreeMap::new(), &ports())
        };
        let whole = table(&["10.0.0.0/8", "::/0"]);
        assert_eq!(table(&["10.0.0.0/9", "10.128.0.0/9", "::/1", "8000::/1"]), whole);
        assert_eq!(table(&["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "::/0"]), whole);
        assert_ne!(table(&["10.0.0.0/7", "::/0"]), whole);
        let mut dark: BTreeMap<IpNet, RouteWays> = BTreeMap::new();
        dark.insert("10.0.0.0/8".parse().unwrap(), RouteWays::None);
        assert_eq!(Fib::new(&dark, &BTreeMap::new(), &ports()), Fib::default());
    }

    #[test]
    fn the_ends_of_the_address_space() {
        let nets = ["0.0.0.0/0", "::/0"].map(|net| net.parse::<IpNet>().unwrap());
        let routes = nets.map(|net| (net, RouteWays::Gateways(vec![hop(0)]))).into();
        let fib = Fib::new(&routes, &BTreeMap::new(), &ports());
        for address in
            ["0.0.0.0", "255.255.255.255", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
        {
            let address: IpAddr = address.parse().unwrap();
            assert!(fib.lookup(&address_bytes(address), address.is_ipv6(), 0).is_some());
        }
        assert_eq!(Fib::default().lookup(&[0; 16], true, 0), None);
    }

    #[test]
    fn more_gateways_than_are_used() {
        let hops: Vec<NextHop> = (0..9).map(hop).collect();
        let routes = [("0.0.0.0/0".parse().unwrap(), RouteWays::Gateways(hops))].into();
        let fib = Fib::new(&routes, &BTreeMap::new(), &ports());
        let dst = address_bytes([192, 0, 2, 1].into());
        let macs: std::collections::BTreeSet<_> =
            (0..64_u64).filter_map(|n| Some(fib.lookup(&dst, false, n << 26)?.macs[0])).collect();
        assert_eq!(macs, (0..4).map(|n| hop(n).mac).collect());
    }
}
