//! The flow that an ICMP error is about.
//!
//! Somebody on the way back to a client, or the client, quotes a packet that a backend sent as the
//! VIP: client and VIP have changed sides in it.

use zerocopy::FromBytes;

use crate::tuple::{Tuple, mapped};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::ports::{self, Ports};
use crate::wire::{ICMP, ICMPV6};

pub(crate) mod tunnel;

/// The tuple of the flow, from client to VIP; `None`, if the quote does not tell: eight bytes beyond
/// the IP header are enough (RFC 792), fragments but the first are not. No length in it is believed.
#[must_use]
pub(crate) fn flow(quote: &[u8], is_ipv6: bool) -> Option<Tuple> {
    packet(quote, is_ipv6).map(|(tuple, _)| tuple.reversed())
}

/// The tuple of what is quoted, and where its transport header begins.
fn packet(quote: &[u8], is_ipv6: bool) -> Option<(Tuple, usize)> {
    let (src, dst, protocol, offset) = if is_ipv6 {
        let (ip, _) = Ipv6::ref_from_prefix(quote).ok()?;
        if ip.version_class_flow.get() >> 28 != 6 {
            return None;
        }
        if ipv6::fragment_header(quote)
            .is_some_and(|(header, _)| header.offset_and_more.get() >> 3 != 0)
        {
            return None;
        }
        let upper = ipv6::upper_layer_of_first(quote).ok()?;
        (ip.src, ip.dst, upper.protocol, upper.offset)
    } else {
        let (ip, _) = Ipv4::ref_from_prefix(quote).ok()?;
        if ip.version_ihl >> 4 != 4
            || ip.header_len() < 20
            || ip.fragment.get() & ipv4::OFFSET_MASK != 0
        {
            return None;
        }
        (mapped(ip.src), mapped(ip.dst), ip.protocol, ip.header_len())
    };
    if matches!(protocol, ICMP | ICMPV6) {
        return None; // pings of a VIP are the kernel's
    }
    let segment = quote.get(offset..)?;
    let mut tuple = Tuple { src, dst, ports: [0; 4], protocol, is_ipv6 };
    if ports::header_bytes(protocol).is_some() {
        let (ports, _) = Ports::ref_from_prefix(segment).ok()?;
        let ([a, b], [c, d]) = (ports.src.to_bytes(), ports.dst.to_bytes());
        tuple.ports = [a, b, c, d];
    }
    Some((tuple, offset))
}

#[cfg(test)]
mod tests {
    use etherparse::IpNumber;

    use super::*;
    use crate::sim::packet::Packet;

    const CLIENT: &str = "198.51.100.7:40000";
    const VIP: &str = "10.0.0.100:80";
    const CLIENT_6: &str = "[2001:db8::7]:40000";
    const VIP_6: &str = "[fd00::100]:80";

    fn tuple(client: &str, vip: &str, protocol: u8) -> Tuple {
        let [client, vip] = [client, vip].map(|it| it.parse::<std::net::SocketAddr>().unwrap());
        Tuple::new(client.ip(), vip.ip(), client.port(), vip.port(), protocol)
    }

    #[test]
    fn the_flow_is_found_behind_options_and_extensions() {
        let options = (IpNumber::IPV6_DESTINATION_OPTIONS, vec![0; 14]);
        let portless = Tuple { ports: [0; 4], ..tuple(CLIENT, VIP, 50) };
        for (name, packet, expect) in [
            ("TCP", Packet::tcp(VIP, CLIENT), Some(tuple(CLIENT, VIP, 6))),
            ("UDP", Packet::udp(VIP, CLIENT), Some(tuple(CLIENT, VIP, 17))),
            ("SCTP", Packet::sctp(VIP, CLIENT), Some(tuple(CLIENT, VIP, 132))),
            (
                "options",
                Packet::tcp(VIP, CLIENT).with(|p| p.options = vec![1; 40]),
                Some(tuple(CLIENT, VIP, 6)),
            ),
            ("ESP", Packet::tcp(VIP, CLIENT).with(|p| p.protocol.0 = 50), Some(portless)),
            (
                "a first fragment",
                Packet::udp(VIP, CLIENT).with(|p| p.fragment = Some((0, true))),
                Some(tuple(CLIENT, VIP, 17)),
            ),
            (
                "a later fragment",
                Packet::udp(VIP, CLIENT).with(|p| p.fragment = Some((1, true))),
                None,
            ),
            ("a ping", Packet::ping(VIP, CLIENT), None),
            ("IPv6", Packet::tcp(VIP_6, CLIENT_6), Some(tuple(CLIENT_6, VIP_6, 6))),
            (
                "extensions",
                Packet::udp(VIP_6, CLIENT_6).with(|p| p.extensions = vec![options; 2]),
                Some(tuple(CLIENT_6, VIP_6, 17)),
            ),
            (
                "a first fragment, IPv6",
                Packet::udp(VIP_6, CLIENT_6).with(|p| p.fragment = Some((0, true))),
                Some(tuple(CLIENT_6, VIP_6, 17)),
            ),
            (
                "a later fragment, IPv6",
                Packet::udp(VIP_6, CLIENT_6).with(|p| p.fragment = Some((1, false))),
                None,
            ),
            ("a ping, IPv6", Packet::ping(VIP_6, CLIENT_6), None),
        ] {
            assert_eq!(flow(&packet.ip(), packet.dst.is_ipv6()), expect, "{name}");
        }
    }

    #[test]
    fn a_quote_that_ends_within_its_options_tells_nothing() {
        let ip =
            Packet::tcp(VIP, CLIENT).with(|p| (p.protocol.0, p.options) = (50, vec![1; 40])).ip();
        assert_eq!(flow(&ip[..40], false), None);
        assert!(flow(&ip[..60], false).is_some());
    }

    #[test]
    fn eight_bytes_beyond_the_header_are_enough_and_none_is_needed_to_be_safe() {
        for packet in [
            Packet::tcp(VIP, CLIENT).with(|p| p.options = vec![1; 8]),
            Packet::tcp(VIP_6, CLIENT_6),
        ] {
            let (ip, is_ipv6) = (packet.ip(), packet.dst.is_ipv6());
            let header = if is_ipv6 { 40 } else { 28 };
            for len in 0..ip.len() {
                assert_eq!(flow(&ip[..len], is_ipv6).is_some(), len >= header + 4, "{len}");
            }
            assert_eq!(flow(&ip, !is_ipv6), None);
        }
    }
}
