//! The ways to addresses that are no backend's: the kernel's routes and neighbours on our interfaces.
//!
//! The stations of [`super::neighbours`] are asked about again and again, [`Clients`] are not: they
//! have asked for the VIP's MAC themselves, and so the kernel knows theirs.

use std::collections::{BTreeMap, BTreeSet};
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
use super::routes::{Way, ways};

/// How often a table is made, at most: neighbours come and go all the time.
const FIB_INTERVAL: Duration = Duration::from_millis(250);
/// Making it leaves most of the time for others, however many routes there are: so many times as
/// long as it took.
const FIB_REST: u32 = 10;

/// What is mirrored.
#[derive(Debug, Default)]
pub(super) struct Reach {
    pub(super) clients: Clients,
    /// Of each prefix the ways of the best route.
    routes: BTreeMap<IpNet, Vec<Way>>,
    /// The routes have to be read again.
    pub(super) routes_are_stale: bool,
    /// The neighbours have never been read.
    pub(super) is_new: bool,
    /// The table that was made last, and whether it would be another now.
    fib: Arc<Fib>,
    pub(super) fib_is_stale: bool,
    /// When changes are looked at again, at the earliest; absent until the first table is made.
    due: Option<Instant>,
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
    pub(super) fn replace_routes(&mut self, dump: &[RouteNetlinkMessage]) {
        let mut best: BTreeMap<IpNet, (u32, Vec<Way>)> = BTreeMap::new();
        for message in dump {
            let RouteNetlinkMessage::NewRoute(route) = message else { continue };
            let Some((net, metric)) = of_main_table(route) else { continue };
            let is_unicast = route.header.kind == RouteType::Unicast;
            let ways = if is_unicast { ways(route) } else { Vec::new() };
            match best.get_mut(&net) {
                Some((lowest, _)) if *lowest < metric => {}
                // IPv6 tells routes of equal cost one by one.
                Some((lowest, known)) if *lowest == metric => known.extend(ways),
                _ => drop(best.insert(net, (metric, ways))),
            }
        }
        let routes = best.into_iter().map(|(net, (_, ways))| (net, ways)).collect();
        self.fib_is_stale |= routes != self.routes;
        self.routes = routes;
        self.routes_are_stale = false;
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

    /// The gateways of the routes by our interfaces.
    pub(super) fn gateways(&self, links: &Links) -> BTreeSet<Key> {
        let ways = self.routes.values().flatten();
        ways.filter(|way| links.port(way.index).is_some())
            .filter_map(|way| Some((way.index, way.gateway?)))
            .collect()
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
            self.due = Some(Instant::now() + FIB_INTERVAL.max(start.elapsed() * FIB_REST));
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

/// Prefix and metric of a route that ordinary packets are looked up in.
fn of_main_table(route: &RouteMessage) -> Option<(IpNet, u32)> {
    let mut table = u32::from(route.header.table);
    let mut metric = 0;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    let kinds =
        [RouteType::Unicast, RouteType::BlackHole, RouteType::Unreachable, RouteType::Prohibit];
    let is_main = table == u32::from(RouteHeader::RT_TABLE_MAIN);
    (is_main && kinds.contains(&route.header.kind)).then(|| Some((prefix(route)?, metric)))?
}
