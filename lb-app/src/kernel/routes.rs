//! The kernel's routes to backends: looked up once, and again when a route changes. Where many are missing,
//! once for all that the kernel does not tell apart (`classes`).

use std::collections::BTreeMap;
use std::iter;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::{Answer, Request};

/// What says of a next hop that it cannot be used.
const DEAD: RouteNextHopFlags = RouteNextHopFlags::Dead.union(RouteNextHopFlags::Linkdown);

/// One next hop of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// The interface.
    pub(super) index: u32,
    /// Absent: the destination is on the link. An IPv4 route may have an IPv6 gateway (RFC 5549).
    pub(super) gateway: Option<IpAddr>,
}

/// Where the kernel would send packets for an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// To one of these; not empty.
    Ways(Vec<Way>),
    /// To itself.
    Local,
    /// Nowhere.
    None,
}

/// What was looked up: the routes of backends, by ranges that have one each. Bounded by the backends.
#[derive(Debug, Default)]
pub(super) struct Routes(BTreeMap<IpAddr, Range>);

/// From its place in the map on, up to `last`. No two have an address in common.
#[derive(Debug)]
struct Range {
    last: IpAddr,
    route: Route,
}

impl Routes {
    fn range_of(&self, address: IpAddr) -> Option<&Range> {
        let (_, range) = self.0.range(..=address).next_back()?;
        Some(range).filter(|range| range.last >= address)
    }

    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.range_of(address).is_some()
    }

    /// What is to be asked for until these addresses, which are in order, all have a route: ranges of
    /// them, by the first and the last. `last_of` says up to where an address may stand for others.
    pub(super) fn missing(
        &self,
        mut addresses: &[IpAddr],
        last_of: impl Fn(IpAddr) -> IpAddr,
    ) -> Vec<(IpAddr, IpAddr)> {
        let mut missing = Vec::new();
        while let Some(first) = addresses.first().copied() {
            let known = self.range_of(first).map(|range| range.last);
            let last = known.unwrap_or_else(|| last_of(first));
            let (these, rest) = addresses.split_at(addresses.partition_point(|it| *it <= last));
            if known.is_none() {
                missing.push((first, these.last().copied().unwrap_or(first)));
            }
            addresses = rest;
        }
        missing
    }

    /// What the kernel has answered for one that was missing.
    pub(super) fn set(&mut self, (first, last): (IpAddr, IpAddr), answer: Answer) {
        self.0.insert(first, Range { last, route: parse(answer) });
    }

    /// Addresses, which are in order, by their routes. Those without one are left out.
    pub(super) fn groups<'a>(
        &'a self,
        mut addresses: &'a [IpAddr],
    ) -> impl Iterator<Item = (&'a Route, &'a [IpAddr])> {
        iter::from_fn(move || {
            loop {
                let range = self.range_of(*addresses.first()?);
                let len = range
                    .map_or(1, |range| addresses.partition_point(|address| *address <= range.last));
                let (these, rest) = addresses.split_at(len);
                addresses = rest;
                if let Some(range) = range {
                    return Some((&range.route, these));
                }
            }
        })
    }

    /// Forgets what none of `addresses` needs, which are in order.
    pub(super) fn retain(&mut self, addresses: &[IpAddr]) {
        self.0.retain(|first, range| {
            let behind = addresses.partition_point(|address| address < first);
            addresses.get(behind).is_some_and(|address| *address <= range.last)
        });
    }

    /// Routes to `prefix` changed; does it concern a backend?
    pub(super) fn forget(&mut self, prefix: IpNet) -> bool {
        let below = self.0.range(..=prefix.broadcast()).rev();
        let concerned = below.take_while(|(_, range)| range.last >= prefix.network());
        let concerned: Vec<IpAddr> = concerned.map(|(first, _)| *first).collect();
        for first in &concerned {
            self.0.remove(first);
        }
        !concerned.is_empty()
    }

    /// Any route may have changed; does it concern a backend?
    pub(super) fn forget_all(&mut self) -> bool {
        let any = !self.0.is_empty();
        self.0.clear();
        any
    }
}

impl Route {
    /// The next hops, if they are the same for all whose route it is.
    pub(super) fn is_the_same_way(&self) -> bool {
        match self {
            Self::Ways(ways) => ways.iter().all(|way| way.gateway.is_some()),
            Self::Local | Self::None => true,
        }
    }
}

/// Asks for the route, not for one next hop of it as `ip route get` does.
pub(super) fn request(address: IpAddr) -> Request {
    let mut message = RouteMessage::default();
    let (family, len) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    message.header.address_family = family;
    message.header.destination_prefix_length = len;
    message.header.flags = RouteFlags::FibMatch;
    message.attributes.push(RouteAttribute::Destination(address.into()));
    (RouteNetlinkMessage::GetRoute(message), 0)
}

fn parse(answer: Answer) -> Route {
    // Errors are how the kernel reports unreachable, blackhole and prohibit routes, too.
    let Ok(messages) = answer else { return Route::None };
    let route = messages.into_iter().find_map(|message| match message {
        RouteNetlinkMessage::NewRoute(route) => Some(route),
        _ => None,
    });
    let Some(route) = route else { return Route::None };
    match route.header.kind {
        RouteType::Unicast => {
            let ways = ways(&route);
            if ways.is_empty() { Route::None } else { Route::Ways(ways) }
        }
        RouteType::Local => Route::Local,
        _ => Route::None,
    }
}

/// Is there nobody alive among the next hops of the route? The kernel passes over such a route.
pub(super) fn is_dead(route: &RouteMessage) -> bool {
    let hops = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    match hops {
        Some(hops) => hops.iter().all(|hop| hop.flags.intersects(DEAD)),
        None => route.header.flags.intersects(RouteFlags::Dead | RouteFlags::Linkdown),
    }
}

/// The next hops that are alive. Those that would encapsulate (MPLS, segment routing) are left
/// out: the balancer would send the packet without.
pub(super) fn ways(route: &RouteMessage) -> Vec<Way> {
    let mut ways: Vec<Way> = way(None, &route.attributes).into_iter().collect();
    for attribute in &route.attributes {
        if let RouteAttribute::MultiPath(hops) = attribute {
            let alive = hops.iter().filter(|hop| !hop.flags.intersects(DEAD));
            ways.extend(alive.filter_map(|hop| way(Some(hop.interface_index), &hop.attributes)));
        }
    }
    ways
}

fn way(mut index: Option<u32>, attributes: &[RouteAttribute]) -> Option<Way> {
    let mut gateway = None;
    for attribute in attributes {
        match attribute {
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::Gateway(RouteAddress::Inet(address))
            | RouteAttribute::Via(RouteVia::Inet(address)) => gateway = Some((*address).into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(address))
            | RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = Some((*address).into()),
            RouteAttribute::Encap(_) => return None,
            _ => {}
        }
    }
    Some(Way { index: index?, gateway })
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    fn addresses<const N: usize>(texts: [&str; N]) -> [IpAddr; N] {
        texts.map(|text| text.parse().unwrap())
    }

    #[test]
    fn a_changed_route_concerns_the_backends_within_its_prefix() {
        let backends = addresses(["10.0.0.11", "10.1.0.11", "fd00::11"]);
        let mut routes = Routes::default();
        for address in backends {
            routes.set((address, address), Err(Errno::ENETUNREACH));
        }
        let is_known = |routes: &Routes| backends.map(|address| routes.has(address));
        assert_eq!(is_known(&routes), [true; 3]);

        assert!(!routes.forget("10.2.0.0/16".parse().unwrap()));
        assert!(routes.forget("10.1.0.0/16".parse().unwrap()));
        assert_eq!(is_known(&routes), [true, false, true]);
        routes.retain(&backends[1..]);
        assert_eq!(is_known(&routes), [false, false, true]);
        assert!(routes.forget("::/0".parse().unwrap()));
        assert!(!routes.forget_all());
        routes.set((backends[0], backends[0]), Err(Errno::ENETUNREACH));
        assert!(routes.forget_all());
        assert!(!routes.forget_all());
    }

    #[test]
    fn a_range_has_a_route_until_one_to_a_part_of_it_changes() {
        let all = addresses(["10.0.0.1", "10.0.0.5", "10.0.0.9", "10.0.1.1", "fd00::1", "fd00::2"]);
        let one = |place: usize| (all[place], all[place]);
        let first = (all[0], all[2]);
        let mut routes = Routes::default();
        let class_of = |address: IpAddr| match address {
            IpAddr::V4(address) if address.octets()[2] == 0 => "10.0.0.255".parse().unwrap(),
            other => other,
        };
        let missing = |routes: &Routes| routes.missing(&all, class_of);
        assert_eq!(missing(&routes), [first, one(3), one(4), one(5)]);
        for range in [first, one(4)] {
            routes.set(range, Err(Errno::ENETUNREACH));
        }
        assert_eq!(missing(&routes), [one(3), one(5)]);
        let groups =
            |routes: &Routes| routes.groups(&all).map(|(_, group)| group.len()).collect::<Vec<_>>();
        assert_eq!(groups(&routes), [3, 1]);
        assert!(!routes.forget("10.0.0.10/32".parse().unwrap()), "behind the last");
        assert!(routes.forget("10.0.0.8/31".parse().unwrap()));
        assert_eq!(missing(&routes), [first, one(3), one(5)]);
        assert_eq!(groups(&routes), [1]);
    }
}
