//! Which addresses the kernel does not tell apart: no route and no rule is about one of them and not about
//! the others. So they have the same route, whichever that is, and one question answers for all.
//!
//! What is no question of the destination (metrics, tables, marks) is the same in all our questions.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use netlink_packet_core::{NetlinkBuffer, NlaBuffer};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;

/// Of `sys/socket.h`.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `RTM_F_CLONED`: a cached route, which no lookup of ours gives.
const CLONED: u32 = 0x200;
/// `FIB_RULE_FIND_SADDR`: goes by the source that the destination would get.
const FIND_SOURCE: u32 = 0x1_0000;
/// `RTA_DST`, and `FRA_DST`.
const DESTINATION: u16 = 1;
/// Bytes of `struct rtmsg`, and of `struct fib_rule_hdr`, which are alike in what counts here.
const HEADER_LEN: usize = 12;

/// The destinations of a route or a rule. `None`: they cannot be told.
pub(super) type Destinations = Option<IpNet>;

/// The addresses at which a class begins, in order.
#[derive(Debug)]
pub(super) struct Classes(Vec<IpAddr>);

impl Classes {
    /// From the destinations of all routes of all tables, and of all rules.
    pub(super) fn new(destinations: impl IntoIterator<Item = Destinations>) -> Option<Self> {
        // The kernel looks up link-local addresses by interface.
        let link_local =
            IpNet::V6(Ipv6Net::new(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10).ok()?);
        let mut edges = vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        for net in destinations.into_iter().chain([Some(link_local)]) {
            let net = net?;
            edges.push(net.network());
            edges.extend(behind(net.broadcast()));
        }
        edges.sort_unstable();
        edges.dedup();
        Some(Self(edges))
    }

    /// The last address of the class that has this one.
    pub(super) fn last_of(&self, address: IpAddr) -> IpAddr {
        let next = self.0.get(self.0.partition_point(|edge| *edge <= address));
        match (address, next) {
            (IpAddr::V4(_), Some(IpAddr::V4(next))) => Ipv4Addr::from(u32::from(*next) - 1).into(),
            (IpAddr::V4(_), _) => Ipv4Addr::BROADCAST.into(),
            (IpAddr::V6(_), Some(IpAddr::V6(next))) => Ipv6Addr::from(u128::from(*next) - 1).into(),
            (IpAddr::V6(_), _) => Ipv6Addr::from(u128::MAX).into(),
        }
    }
}

fn behind(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => {
            u32::from(address).checked_add(1).map(|it| Ipv4Addr::from(it).into())
        }
        IpAddr::V6(address) => {
            u128::from(address).checked_add(1).map(|it| Ipv6Addr::from(it).into())
        }
    }
}

/// The requests whose answers [`read`] takes.
pub(super) fn requests() -> [RouteNetlinkMessage; 2] {
    [
        RouteNetlinkMessage::GetRoute(RouteMessage::default()),
        RouteNetlinkMessage::GetRule(RuleMessage::default()),
    ]
}

/// What the message of a route or a rule says; nothing, if it is not about packets of ours. Not by the decoder
/// of messages: there may be a million routes, and none may be passed over because of an unknown attribute.
pub(super) fn read(message: &[u8]) -> Option<Destinations> {
    let payload = NetlinkBuffer::new_checked(message).map(|buffer| buffer.payload());
    let split = payload.ok().and_then(<[u8]>::split_first_chunk::<HEADER_LEN>);
    let Some((header, mut attributes)) = split else {
        return Some(None);
    };
    let [family, prefix_len, _, _, _, _, _, _, flags @ ..] = *header;
    let flags = u32::from_ne_bytes(flags);
    let any: IpAddr = match family {
        _ if flags & CLONED != 0 => return None,
        _ if flags & FIND_SOURCE != 0 => return Some(None),
        AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let mut address = (prefix_len == 0).then_some(any);
    while let Ok(attribute) = NlaBuffer::new_checked(attributes) {
        if attribute.kind() == DESTINATION {
            address = match family {
                AF_INET => <[u8; 4]>::try_from(attribute.value()).ok().map(IpAddr::from),
                _ => <[u8; 16]>::try_from(attribute.value()).ok().map(IpAddr::from),
            };
        }
        let len = usize::from(attribute.length()).next_multiple_of(4);
        attributes = attributes.get(len..).unwrap_or_default();
    }
    Some(address.and_then(|address| IpNet::new(address, prefix_len).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_ends_where_any_prefix_begins_or_ends() {
        let nets = ["10.0.0.0/8", "10.1.0.0/16", "255.0.0.0/8", "0.0.0.0/0", "fd00::/16", "::/0"];
        let nets = nets.map(|net| Some(net.parse().unwrap()));
        let classes = Classes::new(nets).unwrap();
        for (address, last) in [
            ("0.0.0.0", "9.255.255.255"),
            ("10.0.0.0", "10.0.255.255"),
            ("10.1.2.3", "10.1.255.255"),
            ("10.2.0.0", "10.255.255.255"),
            ("11.0.0.0", "254.255.255.255"),
            ("255.255.255.255", "255.255.255.255"),
            ("::1", "fcff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("fd00::1", "fd00:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("fe80::1", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            let found = classes.last_of(address.parse().unwrap());
            assert_eq!(found, last.parse::<IpAddr>().unwrap(), "{address}");
        }
        assert!(Classes::new([nets[0], None]).is_none(), "one that cannot be told");
    }

    #[test]
    fn what_routes_and_rules_are_about() {
        let message = |family, prefix_len, flags: u32, address: &[u8]| {
            let mut bytes = vec![0; 16];
            bytes.extend([family, prefix_len, 0, 0, 254, 4, 0, 1]);
            bytes.extend(flags.to_ne_bytes());
            bytes.extend([5, 0, 7, 0, 1, 0, 0, 0]); // an unknown attribute of one byte, and its padding
            if !address.is_empty() {
                bytes.extend(u16::try_from(4 + address.len()).unwrap().to_ne_bytes());
                bytes.extend(DESTINATION.to_ne_bytes());
                bytes.extend(address);
            }
            let len = u32::try_from(bytes.len()).unwrap();
            bytes[..4].copy_from_slice(&len.to_ne_bytes());
            read(&bytes)
        };
        let net = |text: &str| Some(Some(text.parse().unwrap()));
        let v6 = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        assert_eq!(message(AF_INET, 16, 0, &[10, 1, 0, 0]), net("10.1.0.0/16"));
        assert_eq!(message(AF_INET6, 128, 0, &v6), net("fd00::1/128"));
        assert_eq!(message(AF_INET, 0, 0, &[]), net("0.0.0.0/0"));
        assert_eq!(message(AF_INET6, 0, 0, &[]), net("::/0"));
        assert_eq!(message(AF_INET, 32, CLONED, &[10, 1, 0, 1]), None);
        assert_eq!(message(28, 20, 0, &[0, 0, 1, 0]), None, "MPLS");
        for (prefix_len, flags, address) in
            [(16, 0, &[][..]), (16, 0, &[10, 1]), (33, 0, &[10, 1, 0, 0]), (0, FIND_SOURCE, &[])]
        {
            assert_eq!(message(AF_INET, prefix_len, flags, address), Some(None));
        }
        assert_eq!(read(&[0; 20]), Some(None), "too short");
    }
}
