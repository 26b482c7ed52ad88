//! The ports that TCP (RFC 9293 §3.1) and UDP (RFC 768) both begin with.

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::drop_reason::DropReason;

/// Bytes of a TCP header without options.
pub const TCP_HEADER_BYTES: usize = 20;
/// Bytes of a UDP header.
pub const UDP_HEADER_BYTES: usize = 8;

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
    /// Reads the ports off a segment of `protocol`, TCP or UDP, whose header has to be whole.
    ///
    /// # Errors
    /// [`DropReason::Truncated`].
    #[inline]
    pub fn parse(protocol: u8, segment: &[u8]) -> Result<&Self, DropReason> {
        let header_bytes = if protocol == super::TCP { TCP_HEADER_BYTES } else { UDP_HEADER_BYTES };
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
    use crate::wire::{TCP, UDP};

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
        ] {
            let ports = Ports::parse(protocol, &segment[..len]);
            let found = ports.map(|ports| (ports.src.get(), ports.dst.get()));
            let expect = if is_whole { Ok((40_000, 80)) } else { Err(DropReason::Truncated) };
            assert_eq!(found, expect, "{protocol} {len}");
        }
    }
}
