//! The ports that TCP (RFC 9293 §3.1), UDP (RFC 768) and SCTP (RFC 9260 §3.1) all begin with.

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{SCTP, TCP, UDP};
use crate::drop_reason::DropReason;

/// Bytes of a TCP header without options.
pub const TCP_HEADER_BYTES: usize = 20;
/// Bytes of a UDP header.
pub const UDP_HEADER_BYTES: usize = 8;
/// Bytes of SCTP's common header.
pub const SCTP_HEADER_BYTES: usize = 12;

/// Bytes of the header of `protocol`, if it is one that begins with ports.
#[inline]
#[must_use]
pub fn header_bytes(protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(TCP_HEADER_BYTES),
        UDP => Some(UDP_HEADER_BYTES),
        SCTP => Some(SCTP_HEADER_BYTES),
        _ => None,
    }
}

/// Source and destination port.
///
/// Having an `&Ports` tells you that four bytes were there.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ports {
    /// Source port.
    pub src: U16,
    /// Destination port.
    pub dst: U16,
}

impl Ports {
    /// Reads the ports off a segment, which has to begin with a whole header of `header_bytes`.
    ///
    /// # Errors
    /// [`DropReason::Truncated`].
    #[inline]
    pub fn parse(header_bytes: usize, segment: &[u8]) -> Result<&Self, DropReason> {
        if segment.len() < header_bytes {
            return Err(DropReason::Truncated);
        }
        let (ports, _) = Self::ref_from_prefix(segment).map_err(|_| DropReason::Truncated)?;
        Ok(ports)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ICMP;

    #[test]
    fn ports_are_read_off_whole_headers_only() {
        let segment = [&[0x9c, 0x40, 0x00, 0x50][..], &[0; 20]].concat();
        for (protocol, len, is_whole) in [
            (TCP, 24, true),
            (TCP, 20, true),
            (TCP, 19, false),
            (TCP, 0, false),
            (UDP, 8, true),
            (UDP, 7, false),
            (SCTP, 12, true),
            (SCTP, 11, false),
        ] {
            let ports = Ports::parse(header_bytes(protocol).unwrap(), &segment[..len]);
            let found = ports.map(|ports| (ports.src.get(), ports.dst.get()));
            let expect = if is_whole { Ok((40_000, 80)) } else { Err(DropReason::Truncated) };
            assert_eq!(found, expect, "{protocol} {len}");
        }
    }

    #[test]
    fn other_protocols_have_none() {
        assert_eq!(header_bytes(ICMP), None);
    }
}
