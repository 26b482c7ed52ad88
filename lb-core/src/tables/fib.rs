//! The ways to addresses that are no backend's: clients, who answers go back to.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Range;

use ipnet::IpNet;

use super::HopEntry;
use super::next_hop::{NextHop, Port, PortId};
use crate::flow_hash::reduce_low;
use crate::tuple::address_bytes;
use crate::wire::ethernet::MacAddr;

/// Routes that are taken, at most; the rest is left out.
pub const ROUTES_MAX: usize = 1 << 20;
/// Stations that are known, at most.
pub const STATIONS_MAX: usize = 1 << 16;

/// A port's link: the port, and the VLAN of it.
pub type Link = (PortId, Option<u16>);

/// Where packets for a prefix go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteWays {
    /// Nowhere: a blackhole, or an interface that is none of ours, or no gateway is known.
    None,
    /// To one of these gateways.
    Gateways(Vec<NextHop>),
    /// To the station itself.
    OnLink(Link),
}

/// The ways to any address.
///
/// * **Shape**: one sorted list of boundaries a family, and one of stations.
/// * **Cost**: a binary search or two a look-up, no allocation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fib {
    /// IPv4's, then IPv6's.
    families: [Boundaries; 2],
    /// Next hops of routes; targets name ranges of it.
    gateways: Vec<HopEntry>,
    stations: Vec<(Station, HopEntry)>,
}

/// A neighbour: its address, and the link that it is on.
type Station = (u128, Link);

/// Where one stretch of addresses ends and another begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Boundaries {
    /// Sorted; a stretch reaches up to the next.
    starts: Vec<u128>,
    targets: Vec<Target>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    None,
    Gateways(Range<u32>),
    OnLink(Link),
}

impl Fib {
    /// Makes the table of routes, at most one a prefix, and of the stations on the ports' links.
    #[must_use]
    pub fn new(
        routes: &BTreeMap<IpNet, RouteWays>,
        stations: &BTreeMap<(Link, IpAddr), MacAddr>,
        ports: &[Port],
    ) -> Self {
        let mut gateways = Vec::new();
        let mut stretches = [BTreeMap::new(), BTreeMap::new()];
        // Shorter prefixes first, so that longer ones lie over them.
        let mut by_len: Vec<_> = routes.iter().take(ROUTES_MAX).collect();
        by_len.sort_by_key(|(net, _)| net.prefix_len());
        for (net, ways) in by_len {
            let target = match ways {
                RouteWays::None => Target::None,
                RouteWays::OnLink(link) => Target::OnLink(*link),
                RouteWays::Gateways(hops) => {
                    let first = gateways.len();
                    gateways.extend(hops.iter().filter_map(|hop| entry(hop, ports)));
                    target(first..gateways.len())
                }
            };
            let [first, last] = [net.network(), net.broadcast()].map(number);
            cover(&mut stretches[usize::from(net.addr().is_ipv6())], first, last, target);
        }
        let mut stations: Vec<(Station, HopEntry)> = stations
            .iter()
            .take(STATIONS_MAX)
            .filter_map(|(((port, vlan), address), mac)| {
                let hop = NextHop { port: *port, mac: *mac, vlan: *vlan };
                Some(((number(*address), (*port, *vlan)), entry(&hop, ports)?))
            })
            .collect();
        stations.sort_unstable_by_key(|(station, _)| *station);
        let families = stretches.map(|stretches| {
            let (starts, targets) = stretches.into_iter().unzip();
            Boundaries { starts, targets }
        });
        Self { families, gateways, stations }
    }

    /// The way to `dst` (IPv4 as mapped): by the longest prefix; of several gateways by `hash`. `None`
    /// as well for a station on a link whose MAC is not known.
    #[must_use]
    pub fn lookup(&self, dst: &[u8; 16], is_ipv6: bool, hash: u64) -> Option<&HopEntry> {
        let dst = u128::from_be_bytes(*dst);
        let Boundaries { starts, targets } = &self.families[usize::from(is_ipv6)];
        let at = starts.partition_point(|start| *start <= dst).checked_sub(1)?;
        match targets.get(at)? {
            Target::None => None,
            Target::Gateways(range) => {
                let place = range.start + reduce_low(hash, range.end - range.start);
                self.gateways.get(place as usize)
            }
            Target::OnLink(link) => {
                let wanted = (dst, *link);
                let at = self.stations.binary_search_by_key(&wanted, |(station, _)| *station);
                self.stations.get(at.ok()?).map(|(_, hop)| hop)
            }
        }
    }
}

/// As addresses are kept in tuples: IPv4 as mapped.
fn number(address: IpAddr) -> u128 {
    u128::from_be_bytes(address_bytes(address))
}

fn entry(hop: &NextHop, ports: &[Port]) -> Option<HopEntry> {
    let port = ports.get(hop.port.index())?;
    Some(HopEntry { macs: [hop.mac, port.mac], out: hop.port, vlan: hop.vlan, mtu: port.mtu })
}

fn target(gateways: Range<usize>) -> Target {
    let [start, end] = [gateways.start, gateways.end].map(|n| u32::try_from(n).unwrap_or(0));
    if start == end { Target::None } else { Target::Gateways(start..end) }
}

/// Lays `target` over the addresses from `first` to `last`.
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
}
