//! The 5-tuple of a packet.

use std::net::IpAddr;

/// Who talks to whom: addresses, ports and protocol, in the order of the wire.
///
/// IPv4 addresses are kept as IPv4-mapped IPv6 (RFC 4291 §2.5.5.2), so that both families take the
/// same way; a true IPv6 packet with such an address is not balanced, since no VIP is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tuple {
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// Source port, destination port.
    pub ports: [u8; 4],
    /// IANA's number.
    pub protocol: u8,
    /// Did it come as IPv6?
    pub is_ipv6: bool,
}

impl Tuple {
    /// Joins the parts; `src` and `dst` are of one family.
    #[must_use]
    pub fn new(src: IpAddr, dst: IpAddr, src_port: u16, dst_port: u16, protocol: u8) -> Self {
        let ([a, b], [c, d]) = (src_port.to_be_bytes(), dst_port.to_be_bytes());
        Self {
            src: address_bytes(src),
            dst: address_bytes(dst),
            ports: [a, b, c, d],
            protocol,
            is_ipv6: dst.is_ipv6(),
        }
    }

    /// The same the other way round.
    #[inline]
    #[must_use]
    pub fn reversed(&self) -> Self {
        let [a, b, c, d] = self.ports;
        Self { src: self.dst, dst: self.src, ports: [c, d, a, b], ..*self }
    }

    /// Source port.
    #[inline]
    #[must_use]
    pub fn src_port(&self) -> u16 {
        u16::from_be_bytes([self.ports[0], self.ports[1]])
    }

    /// Destination port.
    #[inline]
    #[must_use]
    pub fn dst_port(&self) -> u16 {
        u16::from_be_bytes([self.ports[2], self.ports[3]])
    }
}

/// 16 bytes; an IPv4 address as IPv4-mapped.
#[must_use]
pub fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// Is it not an IPv4 address as IPv4-mapped?
#[inline]
#[must_use]
pub fn is_ipv6(address: &[u8; 16]) -> bool {
    !address.starts_with(&mapped([0; 4])[..12])
}

/// The IPv4-mapped form of an address as it lies on the wire.
#[inline]
#[must_use]
pub fn mapped([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    // Made of whole words, to be written and read as such.
    let low = u64::from(u32::from_le_bytes([a, b, c, d])) << 32 | 0xffff_0000;
    (u128::from(low) << 64).to_le_bytes()
}
