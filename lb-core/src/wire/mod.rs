//! Headers as they lie on the wire. No policy here: a view says what is written, not what it means.
#![deny(clippy::indexing_slicing)]

pub mod checksum;
pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod part;
pub mod ports;
pub mod sctp;
pub mod tcp;
pub mod udp;

/// IANA's protocol number of TCP.
pub const TCP: u8 = 6;
/// IANA's protocol number of UDP.
pub const UDP: u8 = 17;
/// IANA's protocol number of SCTP.
pub const SCTP: u8 = 132;
/// IANA's protocol number of GRE.
pub const GRE: u8 = 47;
/// IANA's protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IANA's protocol number of `ICMPv6`.
pub const ICMPV6: u8 = 58;
/// IANA's protocol number of IPv4 in another packet (RFC 2003).
pub const IPV4_IN_IP: u8 = 4;
/// IANA's protocol number of IPv6 in another packet (RFC 2473).
pub const IPV6_IN_IP: u8 = 41;
