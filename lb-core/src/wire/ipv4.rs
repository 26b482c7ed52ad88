//! IPv4 (RFC 791).

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::Checksum;
use super::part::Part;
use crate::drop_reason::DropReason;

/// Bytes of a header without options.
pub const HEADER_BYTES: usize = 20;
/// Bytes of a packet that every link carries (RFC 791 §3.2).
pub const MTU_MIN: u16 = 68;
/// Don't fragment (RFC 791 §3.1).
pub const DONT_FRAGMENT: u16 = 0x4000;
/// More fragments follow this one.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// Where a fragment begins, in 8 bytes.
pub const OFFSET_MASK: u16 = 0x1fff;
/// More fragments, and the fragment offset: both zero in a whole packet.
const FRAGMENT_MASK: u16 = 0x3fff;

/// An IPv4 header, the part without options, as it lies on the wire (RFC 791 §3.1).
///
/// Having an `&Ipv4` from [`Ipv4::parse`] tells you: version is 4, IHL is 5 or more, and that many
/// words were there; `total_len` covers the header and at most the bytes that were there.
/// It does **not** tell you that the checksum is true.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ipv4 {
    /// Version (4 bits) and header length in words (4).
    pub version_ihl: u8,
    /// DSCP (6 bits) and ECN (2).
    pub tos: u8,
    /// Bytes of header and payload.
    pub total_len: U16,
    /// Groups fragments.
    pub id: U16,
    /// Reserved, DF, MF, and the fragment's offset in 8 bytes.
    pub fragment: U16,
    /// Hops left.
    pub ttl: u8,
    /// What follows.
    pub protocol: u8,
    /// Over the header.
    pub checksum: Checksum,
    /// Source address.
    pub src: [u8; 4],
    /// Destination address.
    pub dst: [u8; 4],
}

impl Ipv4 {
    /// Reads a header off the front of `bytes`, which may be longer than the packet (padding).
    ///
    /// # Errors
    /// [`DropReason::Truncated`], [`DropReason::BadVersion`], [`DropReason::BadHeaderLength`].
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<&Self, DropReason> {
        let (ip, _) = Self::ref_from_prefix(bytes).map_err(|_| DropReason::Truncated)?;
        if ip.version_ihl >> 4 != 4 {
            return Err(DropReason::BadVersion);
        }
        if ip.header_len() < HEADER_BYTES {
            return Err(DropReason::BadHeaderLength);
        }
        let total_len = usize::from(ip.total_len.get());
        if total_len < ip.header_len() || total_len > bytes.len() {
            return Err(DropReason::Truncated);
        }
        Ok(ip)
    }

    /// Bytes of the header with its options.
    #[inline]
    #[must_use]
    pub fn header_len(&self) -> usize {
        usize::from(self.version_ihl & 0x0f) * 4
    }

    /// May a packet come from `address`? RFC 1122 §3.2.1.3: not from this network, loopback,
    /// multicast, reserved and broadcast.
    #[inline]
    #[must_use]
    pub fn is_source([first, ..]: [u8; 4]) -> bool {
        (1..224).contains(&first) && first != 127
    }

    /// Is this a part of a packet?
    #[inline]
    #[must_use]
    pub fn is_fragment(&self) -> bool {
        self.fragment.get() & FRAGMENT_MASK != 0
    }

    /// Which part of a datagram it is; all of it as well.
    #[inline]
    #[must_use]
    pub fn part(&self) -> Part {
        let field = self.fragment.get();
        Part {
            id: self.id.get().into(),
            offset: field & OFFSET_MASK,
            has_more: field & MORE_FRAGMENTS != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_says_why_not() {
        let header = |version_ihl: u8, total_len: u8, present: usize| {
            let mut bytes = vec![0; present];
            for (at, value) in [(0, version_ihl), (3, total_len)] {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            bytes
        };
        for (version_ihl, total_len, present, expect) in [
            (0x45, 20, 19, Err(DropReason::Truncated)),
            (0x65, 20, 20, Err(DropReason::BadVersion)),
            (0x44, 20, 20, Err(DropReason::BadHeaderLength)),
            (0x45, 19, 20, Err(DropReason::Truncated)),
            (0x45, 21, 20, Err(DropReason::Truncated)),
            (0x46, 24, 20, Err(DropReason::Truncated)),
            (0x46, 20, 24, Err(DropReason::Truncated)),
            (0x45, 20, 46, Ok(20)),
            (0x4f, 60, 60, Ok(60)),
        ] {
            let bytes = header(version_ihl, total_len, present);
            assert_eq!(Ipv4::parse(&bytes).map(Ipv4::header_len), expect);
        }
    }
}
