//! Ethernet II, with 802.1Q and 802.1ad tags.

use std::fmt;
use std::str::FromStr;

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::drop_reason::DropReason;

/// A MAC address (EUI-48), in the order of the wire.
#[derive(
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Every station of the link.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// The group bit: broadcast and multicast.
    #[must_use]
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// May one station carry this address? Not a group, and not all zero.
    #[must_use]
    pub fn is_station(self) -> bool {
        !self.is_group() && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, rest @ ..] = self.0;
        write!(f, "{first:02x}")?;
        rest.iter().try_for_each(|octet| write!(f, ":{octet:02x}"))
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not six pairs of hexadecimal digits with colons between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a MAC address is six pairs of hexadecimal digits, as in 02:00:00:00:00:0c")]
pub struct MacAddrSyntax;

impl FromStr for MacAddr {
    type Err = MacAddrSyntax;

    fn from_str(text: &str) -> Result<Self, MacAddrSyntax> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or(MacAddrSyntax)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(MacAddrSyntax);
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| MacAddrSyntax)?;
        }
        if parts.next().is_some() { Err(MacAddrSyntax) } else { Ok(Self(octets)) }
    }
}

/// `EtherType` of IPv4.
pub const IPV4: u16 = 0x0800;
/// `EtherType` of IPv6.
pub const IPV6: u16 = 0x86dd;
/// `EtherType` of a customer VLAN tag (IEEE 802.1Q).
pub const VLAN: u16 = 0x8100;
/// `EtherType` of a service VLAN tag (IEEE 802.1ad, `QinQ`).
pub const SERVICE_VLAN: u16 = 0x88a8;

/// Bytes of an Ethernet header without tags.
pub const HEADER_BYTES: usize = 14;
/// Bytes that one VLAN tag adds.
pub const TAG_BYTES: usize = 4;
/// Tags that are walked: one, or two of `QinQ`.
pub const TAGS_MAX: usize = 2;

/// An Ethernet header without tags.
///
/// Having an `&Ethernet` tells you that 14 bytes were there, and nothing more.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ethernet {
    /// Destination.
    pub dst: MacAddr,
    /// Source.
    pub src: MacAddr,
    /// What follows.
    pub ether_type: U16,
}

/// A VLAN tag: it follows an `EtherType` of [`VLAN`] or [`SERVICE_VLAN`].
#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct VlanTag {
    /// Priority (3 bits), drop eligible (1), VLAN id (12).
    pub control: U16,
    /// What follows the tag.
    pub ether_type: U16,
}

/// Where the network header of a frame begins, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// Bytes before the network header: 14, and 4 a tag.
    pub offset: usize,
    /// The innermost `EtherType`. A third tag is not walked: its `EtherType` is told as it is.
    pub ether_type: u16,
}

/// Walks the Ethernet header and up to [`TAGS_MAX`] tags.
///
/// # Errors
/// [`DropReason::Truncated`], if the frame ends within them.
#[inline]
pub fn parse(frame: &[u8]) -> Result<(&Ethernet, Payload), DropReason> {
    let (ethernet, mut rest) =
        Ethernet::ref_from_prefix(frame).map_err(|_| DropReason::Truncated)?;
    let mut payload = Payload { offset: HEADER_BYTES, ether_type: ethernet.ether_type.get() };
    for _ in 0..TAGS_MAX {
        if payload.ether_type != VLAN && payload.ether_type != SERVICE_VLAN {
            break;
        }
        let (tag, after) = VlanTag::ref_from_prefix(rest).map_err(|_| DropReason::Truncated)?;
        payload = Payload { offset: payload.offset + TAG_BYTES, ether_type: tag.ether_type.get() };
        rest = after;
    }
    Ok((ethernet, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_are_read_and_written() {
        let mac: MacAddr = "02:00:00:0A:00:0c".parse().unwrap();
        assert_eq!(mac, MacAddr([2, 0, 0, 10, 0, 12]));
        assert_eq!(mac.to_string(), "02:00:00:0a:00:0c");
        for wrong in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:0c:",
            "2:0:0:0:0:c",
            "0x:00:00:00:00:0c",
            "02-00-00-00-00-0c",
            "+2:00:00:00:00:0c",
        ] {
            assert_eq!(wrong.parse::<MacAddr>(), Err(MacAddrSyntax), "{wrong:?}");
        }
    }

    #[test]
    fn tags_are_walked_up_to_two() {
        let frame = |tags: &[u16], inner: u16| {
            let mut bytes = vec![0; 12];
            for tag in tags {
                bytes.extend(tag.to_be_bytes());
                bytes.extend([0, 7]);
            }
            bytes.extend(inner.to_be_bytes());
            bytes
        };
        for (tags, inner, expect) in [
            (&[][..], IPV4, (14, IPV4)),
            (&[VLAN][..], IPV6, (18, IPV6)),
            (&[SERVICE_VLAN, VLAN][..], IPV4, (22, IPV4)),
            (&[VLAN, VLAN][..], IPV4, (22, IPV4)),
            (&[VLAN, VLAN, VLAN][..], IPV4, (22, VLAN)),
        ] {
            let bytes = frame(tags, inner);
            let (_, payload) = parse(&bytes).unwrap();
            assert_eq!((payload.offset, payload.ether_type), expect);
            assert_eq!(parse(&bytes[..payload.offset - 1]).unwrap_err(), DropReason::Truncated);
        }
    }
}
