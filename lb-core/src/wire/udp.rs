//! UDP (RFC 768).

use std::ops::Range;

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::Checksum;

/// Where the length lies in the header.
pub const LEN: Range<usize> = 4..6;
/// Where the checksum lies in the header.
pub const CHECKSUM: Range<usize> = 6..8;

/// A UDP header, as it lies on the wire.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Udp {
    /// Source port.
    pub src: U16,
    /// Destination port.
    pub dst: U16,
    /// Bytes of header and payload.
    pub len: U16,
    /// Over pseudo-header, header and payload; zero: none.
    pub checksum: Checksum,
}
