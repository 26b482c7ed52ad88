//! The ways to addresses that are no backend's: the kernel's routes, and neighbours on our links.
//!
//! The stations of [`super::neighbours`] are asked about again and again, [`Clients`] are not: they
//! have asked for the VIP's MAC themselves, and so the kernel knows theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::successors;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use lb_core::tables::fib::{Fib, RouteWays};
use lb_core::tables::next_hop::{HOPS_MAX, NextHop, Port};
use lb_core::wire::ethernet::MacAddr;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};
use tokio::time::Instant;

use super::clients::Clients;
use super::links::Links;
use super::neighbours::{Key, key};
use super::notices::prefix;
use super::routes::{Way, is_dead, ways};

/// How often a table is made, at most: neighbours come and go all the time.
const FIB_INTERVAL: Duration = Duration::from_millis(250);
/// After a silence some may follow each other at once: a route comes, and then its gateway's MAC.
const FIB_AHEAD: Duration = FIB_INTERVAL.saturating_mul(4);
/// Making it leaves most of the time for others, however many routes there are: so many times as
/// long as it took.
const FIB_REST: u32 = 10;

/// Gateways that are asked about, at most. Of more, those whose MACs the kernel knows by itself are
/// used.
const GATEWAYS_MAX: usize = 1024;

/// `linux/rtnetlink.h`.
const RT_TABLE_DEFAULT: u8 = 253;

/// What is mirrored.
#[derive(Debug, Default)]
pub(super) struct Reach {
    pub(super) clients: Clients,
    /// Of each prefix the ways of the best route.
    routes: BTreeMap<IpNet, Vec<Way>>,
    /// How many gateways these have.
    gateways_len: usize,
    /// The routes have to be read again.
    pub(super) routes_are_stale: bool,
    /// The neighbours have never been read.
    pub(super) is_new: bool,
    /// The table that was made last, and whether it would be another now.
    fib: Arc<Fib>,
    pub(super) fib_is_stale: bool,
    /// When changes are looked at again, at the earliest; absent until the first table is made.
    due: Option<Instant>,
    /// When as many tables as were made would have been due, one every [`FIB_INTERVAL`].
    paced: Option<Instant>,
}

impl Reach {
    /// Nothing is known yet.
    pub(super) fn new() -> Self {
        Self { routes_are_stale: true, is_new: true, fib_is_stale: true, ..Self::default() }
    }

    /// When changes are to be looked at, if there are any and a table was made before.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due.filter(|_| self.routes_are_stale || self.fib_is_stale)
    }

    /// Are the routes to be read now?
    pub(super) fn wants_routes(&self, now: Instant) -> bool {
        self.routes_are_stale && self.due.is_none_or(|due| due <= now)
    }

    /// The request whose answer [`Self::replace_routes`] takes: all routes, of both families.
    pub(super) fn request() -> RouteNetlinkMessage {
        RouteNetlinkMessage::GetRoute(RouteMessage::default())
    }

    /// Takes a dump of routes.
    pub(super) fn replace_routes(&mut self, dump: &[RouteNetlinkMessage], links: &Links) {
        let routes = best_routes(dump);
        self.fib_is_stale |= routes != self.routes;
        self.routes = routes;
        self.routes_are_stale = false;
        let gateways = self.all_gateways(links).collect::<BTreeSet<_>>().len();
        if gateways > GATEWAYS_MAX && self.gateways_len <= GATEWAYS_MAX {
            tracing::warn!(
                "the routes have {gateways} gateways; only {GATEWAYS_MAX} are asked for their MAC"
            );
        }
        self.gateways_len = gateways;
    }

    /// Takes a dump of neighbours; what is known of stations that are not in it stays.
    pub(super) fn learn_all(&mut self, dump: &[RouteNetlinkMessage], links: &Links) {
        for message in dump {
            if let RouteNetlinkMessage::NewNeighbour(message) = message {
                self.learn(message, links);
            }
        }
        self.is_new = false;
    }

    /// Takes a notice.
    pub(super) fn learn(&mut self, message: &NeighbourMessage, links: &Links) {
        if let Some(key) = key(message).filter(|key| links.port(key.0).is_some()) {
            self.fib_is_stale |= self.clients.learn(key, message, Instant::now());
        }
    }

    /// Takes the notice that the kernel has forgotten a neighbour.
    pub(super) fn forget(&mut self, message: &NeighbourMessage) {
        if let Some(key) = key(message) {
            self.fib_is_stale |= self.clients.forget(key, Instant::now());
        }
    }

    /// The gateways to ask about; at most [`GATEWAYS_MAX`], those of the lowest addresses.
    pub(super) fn gateways(&self, links: &Links) -> BTreeSet<Key> {
        let mut gateways: BTreeSet<Key> = self.all_gateways(links).collect();
        if let Some(first_beyond) = gateways.iter().nth(GATEWAYS_MAX).copied() {
            gateways.split_off(&first_beyond);
        }
        gateways
    }

    /// The gateways of the routes by our interfaces, over and over.
    fn all_gateways(&self, links: &Links) -> impl Iterator<Item = Key> {
        let ways = self.routes.values().flatten();
        ways.filter(|way| links.port(way.index).is_some())
            .filter_map(|way| Some((way.index, way.gateway?)))
    }

    /// The table for the data plane; `station` tells the MACs of gateways. The same one while
    /// nothing has changed, or only just.
    pub(super) fn fib(
        &mut self,
        links: &Links,
        ports: &[Port],
        station: impl Fn(Key) -> Option<MacAddr>,
    ) -> Arc<Fib> {
        let start = Instant::now();
        if self.fib_is_stale && self.due.is_none_or(|due| due <= start) {
            let fib = self.make(links, ports, station);
            if fib != *self.fib {
                self.fib = Arc::new(fib);
            }
            self.fib_is_stale = false;
            let now = Instant::now();
            let paced = self.paced.map_or(now, |paced| paced.max(now)) + FIB_INTERVAL;
            self.paced = Some(paced);
            self.due = Some((paced - FIB_AHEAD).max(now + start.elapsed() * FIB_REST));
        }
        Arc::clone(&self.fib)
    }

    fn make(&self, links: &Links, ports: &[Port], station: impl Fn(Key) -> Option<MacAddr>) -> Fib {
        let routes = self.routes.iter().map(|(net, ways)| {
            let mut gateways = Vec::new();
            let mut on_link = None;
            for way in ways {
                let Some((port, vlan)) = links.port(way.index) else { continue };
                match way.gateway {
                    None => on_link = Some((port, vlan)),
                    Some(gateway) => {
                        let mac = station((way.index, gateway))
                            .or_else(|| self.clients.mac((way.index, gateway)));
                        gateways.extend(mac.map(|mac| NextHop { port, mac, vlan }));
                    }
                }
            }
            gateways.sort_unstable();
            gateways.dedup();
            gateways.truncate(HOPS_MAX);
            let ways = match (gateways.is_empty(), on_link) {
                (false, _) => RouteWays::Gateways(gateways),
                (true, Some(link)) => RouteWays::OnLink(link),
                (true, None) => RouteWays::None,
            };
            (*net, ways)
        });
        let stations = self
            .clients
            .iter()
            .filter_map(|((index, address), mac)| Some(((links.port(index)?, address), mac)));
        let stations: BTreeMap<(_, IpAddr), _> = stations.collect();
        Fib::new(&routes.collect(), &stations, ports)
    }
}

/// Of each prefix the ways of the best route. The kernel looks in the main table first, and where
/// that has no route at all, in the default one.
fn best_routes(dump: &[RouteNetlinkMessage]) -> BTreeMap<IpNet, Vec<Way>> {
    let mut routes = of_table(dump, RouteHeader::RT_TABLE_MAIN);
    let mut fallback = of_table(dump, RT_TABLE_DEFAULT);
    fallback.retain(|net, _| {
        let within = |main: &IpNet| routes.contains_key(main);
        net.addr().is_ipv4() && !successors(Some(*net), IpNet::supernet).any(|net| within(&net))
    });
    routes.append(&mut fallback);
    routes.into_iter().map(|(net, (_, ways))| (net, ways)).collect()
}

/// Of each prefix the lowest metric, and the ways by it.
fn of_table(dump: &[RouteNetlinkMessage], table: u8) -> BTreeMap<IpNet, (u32, Vec<Way>)> {
    let mut best: BTreeMap<IpNet, (u32, Vec<Way>)> = BTreeMap::new();
    for message in dump {
        let RouteNetlinkMessage::NewRoute(route) = message else { continue };
        let Some((net, metric)) = plain(route, table) else { continue };
        let is_unicast = route.header.kind == RouteType::Unicast;
        let ways = if is_unicast { ways(route) } else { Vec::new() };
        match best.get_mut(&net) {
            Some((lowest, _)) if *lowest < metric => {}
            // IPv6 tells routes of equal cost one by one.
            Some((lowest, known)) if *lowest == metric => known.extend(ways),
            _ => drop(best.insert(net, (metric, ways))),
        }
    }
    best
}

/// Prefix and metric of a route of `table` that is alive, and goes by nothing but the destination.
fn plain(route: &RouteMessage, table: u8) -> Option<(IpNet, u32)> {
    let header = &route.header;
    let mut found_in = u32::from(header.table);
    let mut metric = 0;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(number) => found_in = *number,
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    let kinds =
        [RouteType::Unicast, RouteType::BlackHole, RouteType::Unreachable, RouteType::Prohibit];
    let is_special = header.tos != 0 || header.source_prefix_length != 0;
    let is_taken = found_in == u32::from(table)
        && kinds.contains(&header.kind)
        && !is_special
        && !is_dead(route);
    is_taken.then(|| Some((prefix(route)?, metric)))?
}

#[cfg(test)]
mod tests {
    use lb_core::tables::next_hop::PortId;
    use netlink_packet_route::AddressFamily;
    use netlink_packet_route::route::{RouteFlags, RouteNextHop, RouteNextHopFlags};

    use super::*;

    /// A route by the interface `index`.
    fn route(net: &str, index: u32, change: impl FnOnce(&mut RouteMessage)) -> RouteNetlinkMessage {
        let net: IpNet = net.parse().unwrap();
        let mut route = RouteMessage::default();
        let is_ipv6 = net.addr().is_ipv6();
        route.header.address_family =
            if is_ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        route.header.destination_prefix_length = net.prefix_len();
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.kind = RouteType::Unicast;
        route.attributes =
            vec![RouteAttribute::Destination(net.addr().into()), RouteAttribute::Oif(index)];
        change(&mut route);
        RouteNetlinkMessage::NewRoute(route)
    }

    /// The interfaces by which the best routes go.
    fn found(dump: &[RouteNetlinkMessage]) -> Vec<(String, Vec<u32>)> {
        let routes = best_routes(dump).into_iter();
        let indices = |ways: Vec<Way>| ways.into_iter().map(|way| way.index).collect();
        routes.map(|(net, ways)| (net.to_string(), indices(ways))).collect()
    }

    #[test]
    fn routes_that_packets_to_clients_do_not_take() {
        let net = "10.1.0.0/16";
        let plain = || route(net, 7, |_| {});
        let only_plain = [(net.to_owned(), vec![7])];
        assert_eq!(found(&[plain()]), only_plain);
        let better = |change: fn(&mut RouteMessage)| {
            let priority = RouteAttribute::Priority(1);
            let cost =
                |route: &mut RouteMessage| route.attributes.push(RouteAttribute::Priority(2));
            let other = route(net, 8, |route| {
                route.attributes.push(priority);
                change(route);
            });
            found(&[route(net, 7, cost), other])
        };
        assert_eq!(better(|_| {}), [(net.to_owned(), vec![8])]);
        assert_eq!(better(|it| it.header.tos = 0x10), only_plain);
        assert_eq!(better(|it| it.header.source_prefix_length = 8), only_plain);
        assert_eq!(better(|it| it.header.flags = RouteFlags::Dead), only_plain);
        assert_eq!(better(|it| it.header.flags = RouteFlags::Linkdown), only_plain);
        assert_eq!(better(|it| it.header.table = 100), only_plain);
        assert_eq!(better(|it| it.header.kind = RouteType::Local), only_plain);
        let paths = |flags: [RouteNextHopFlags; 2]| {
            let hop = |(index, flags)| {
                let mut hop = RouteNextHop::default();
                (hop.interface_index, hop.flags) = (index, flags);
                hop
            };
            let hops = [8, 9].into_iter().zip(flags).map(hop).collect();
            found(&[
                route("10.0.0.0/8", 7, |_| {}),
                route(net, 0, |it| {
                    it.attributes.retain(|it| !matches!(it, RouteAttribute::Oif(_)));
                    it.attributes.push(RouteAttribute::MultiPath(hops));
                }),
            ])
        };
        let (alive, dead) = (RouteNextHopFlags::empty(), RouteNextHopFlags::Dead);
        let around = ("10.0.0.0/8".to_owned(), vec![7]);
        assert_eq!(paths([dead, alive]), [around.clone(), (net.to_owned(), vec![9])]);
        assert_eq!(paths([dead, dead]), [around], "the route around it");
    }

    #[test]
    fn the_default_table_is_for_what_the_main_one_does_not_have() {
        let fallback = |net| route(net, 9, |it| it.header.table = RT_TABLE_DEFAULT);
        let dump = [
            fallback("0.0.0.0/0"),
            fallback("10.0.0.0/8"),
            fallback("10.1.0.0/16"),
            fallback("10.1.2.0/24"),
            fallback("::/0"), // IPv6 has no such table
            route("10.1.0.0/16", 7, |_| {}),
        ];
        let expected = [("0.0.0.0/0", 9), ("10.0.0.0/8", 9), ("10.1.0.0/16", 7)];
        assert_eq!(found(&dump), expected.map(|(net, index)| (net.to_owned(), vec![index])));
    }

    #[test]
    fn gateways_are_bounded() {
        let links = Links::new(BTreeMap::from([(7, PortId(0))]));
        let dump: Vec<_> = (0..=u32::try_from(GATEWAYS_MAX).unwrap())
            .map(|n| {
                let gateway = IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + n));
                let net = format!("11.{}.{}.0/24", n >> 8, n & 0xff);
                let via = RouteAttribute::Gateway(gateway.into());
                route(&net, 7, |it| it.attributes.push(via))
            })
            .collect();
        let mut reach = Reach::new();
        reach.replace_routes(&dump, &links);
        assert_eq!(reach.gateways_len, GATEWAYS_MAX + 1);
        assert_eq!(reach.gateways(&links).len(), GATEWAYS_MAX);
    }
}
