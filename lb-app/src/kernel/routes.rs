//! The kernel's routes to backends: looked up once, and again when a route changes.

use std::collections::BTreeMap;
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

/// What was looked up, by backend address. Bounded by the backends.
#[derive(Debug, Default)]
pub(super) struct Routes(BTreeMap<IpAddr, Route>);

impl Routes {
    pub(super) fn get(&self, address: IpAddr) -> Option<&Route> {
        self.0.get(&address)
    }

    /// Forgets a backend.
    pub(super) fn remove(&mut self, address: IpAddr) {
        self.0.remove(&address);
    }

    pub(super) fn set(&mut self, address: IpAddr, answer: Answer) {
        self.0.insert(address, parse(answer));
    }

    /// Routes to `prefix` changed; does it concern a backend?
    pub(super) fn forget(&mut self, prefix: IpNet) -> bool {
        let within = self.0.range(prefix.network()..=prefix.broadcast());
        let concerned: Vec<IpAddr> = within.map(|(address, _)| *address).collect();
        for address in &concerned {
            self.0.remove(address);
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

    #[test]
    fn a_changed_route_concerns_the_backends_within_its_prefix() {
        let backends: [IpAddr; 3] =
            ["10.0.0.11", "10.1.0.11", "fd00::11"].map(|text| text.parse().unwrap());
        let mut routes = Routes::default();
        for address in backends {
            routes.set(address, Err(Errno::ENETUNREACH));
        }
        let is_known = |routes: &Routes| backends.map(|address| routes.get(address).is_some());
        assert_eq!(is_known(&routes), [true; 3]);

        assert!(!routes.forget("10.2.0.0/16".parse().unwrap()));
        assert!(routes.forget("10.1.0.0/16".parse().unwrap()));
        assert_eq!(is_known(&routes), [true, false, true]);
        routes.remove(backends[0]);
        assert_eq!(is_known(&routes), [false, false, true]);
        assert!(routes.forget("::/0".parse().unwrap()));
        assert!(!routes.forget_all());
        routes.set(backends[0], Err(Errno::ENETUNREACH));
        assert!(routes.forget_all());
        assert!(!routes.forget_all());
    }
}
