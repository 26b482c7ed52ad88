//! IPv6 (RFC 8200).

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::part::Part;
use crate::drop_reason::DropReason;

/// Bytes of a packet that every link carries (RFC 8200 §5).
pub const MTU_MIN: u16 = 1280;
/// Bytes of the fixed header.
pub const HEADER_BYTES: usize = 40;
/// Extension headers that are walked, at most.
pub const EXTENSIONS_MAX: usize = 8;

const HOP_BY_HOP: u8 = 0;
/// The routing header's number among next headers.
pub const ROUTING: u8 = 43;
/// The fragment header's number among next headers.
pub const FRAGMENT: u8 = 44;
/// Bytes of a fragment header.
pub const FRAGMENT_BYTES: usize = 8;
const DESTINATION_OPTIONS: u8 = 60;

/// The fixed IPv6 header, as it lies on the wire (RFC 8200 §3).
///
/// Having an `&Ipv6` from [`Ipv6::parse`] tells you: version is 6, and header and payload were there.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ipv6 {
    /// Version (4 bits), traffic class (8), flow label (20).
    pub version_class_flow: U32,
    /// Bytes behind this header, extension headers included.
    pub payload_len: U16,
    /// What follows.
    pub next_header: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
}

/// What is behind the extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpperLayer {
    /// Protocol of the upper layer; whatever a fragment that is not the first begins with, if
    /// `is_fragment`.
    pub protocol: u8,
    /// Bytes from the start of the IPv6 header.
    pub offset: usize,
    /// Is there a fragment header that says there is more than this packet (RFC 8200 §4.5)? One
    /// that says the opposite ("atomic", RFC 6946) does not count.
    pub is_fragment: bool,
}

impl Ipv6 {
    /// Reads a header off the front of `bytes`, which may be longer than the packet (padding).
    ///
    /// # Errors
    /// [`DropReason::Truncated`], [`DropReason::BadVersion`].
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<&Self, DropReason> {
        let (ip, payload) = Self::ref_from_prefix(bytes).map_err(|_| DropReason::Truncated)?;
        if !ip.has_version() {
            return Err(DropReason::BadVersion);
        }
        if usize::from(ip.payload_len.get()) > payload.len() {
            return Err(DropReason::Truncated);
        }
        Ok(ip)
    }

    /// Is the version 6?
    #[inline]
    #[must_use]
    pub fn has_version(&self) -> bool {
        self.version_class_flow.get() >> 28 == 6
    }

    /// May a packet come from `address`? RFC 4291 §2.5.2, §2.5.3, §2.7: not from the unspecified
    /// address, loopback, multicast.
    #[inline]
    #[must_use]
    pub fn is_source(address: [u8; 16]) -> bool {
        address[0] != 0xff && (address[..15] != [0; 15] || address[15] > 1)
    }

    /// Bytes of the packet.
    #[inline]
    #[must_use]
    pub fn total_len(&self) -> usize {
        HEADER_BYTES + usize::from(self.payload_len.get())
    }

    /// DSCP and ECN, as in IPv4's `tos`.
    #[inline]
    #[must_use]
    pub fn traffic_class(&self) -> u8 {
        let [.., class] = (self.version_class_flow.get() >> 20).to_be_bytes();
        class
    }

    /// Walks the extension headers of `packet`, which begins with this header and ends with the
    /// packet.
    ///
    /// # Errors
    /// [`DropReason::Truncated`], [`DropReason::TooManyExtensions`].
    #[inline]
    pub fn upper_layer(&self, packet: &[u8]) -> Result<UpperLayer, DropReason> {
        let here =
            UpperLayer { protocol: self.next_header, offset: HEADER_BYTES, is_fragment: false };
        if is_extension(self.next_header) { walk(packet, here) } else { Ok(here) }
    }
}

/// Is this the number of an extension header that is walked?
#[inline]
#[must_use]
pub fn is_extension(next_header: u8) -> bool {
    matches!(next_header, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
}

#[cold]
fn walk(packet: &[u8], here: UpperLayer) -> Result<UpperLayer, DropReason> {
    walk_while(packet, here, |here| !here.is_fragment) // behind a fragment header may be anything
}

/// As [`Ipv6::upper_layer`], of a packet that may be a first fragment: the headers behind its
/// fragment header are walked, too.
///
/// # Errors
/// [`DropReason::Truncated`], also of a fragment's fragment: who knows what the rest begins with;
/// [`DropReason::TooManyExtensions`].
pub fn upper_layer_of_first(packet: &[u8]) -> Result<UpperLayer, DropReason> {
    let &protocol = packet.get(NEXT_HEADER).ok_or(DropReason::Truncated)?;
    walk_while(packet, UpperLayer { protocol, offset: HEADER_BYTES, is_fragment: false }, |_| true)
}

/// Walks extension headers as long as `goes_on` says so.
fn walk_while(
    packet: &[u8],
    mut here: UpperLayer,
    goes_on: impl Fn(&UpperLayer) -> bool,
) -> Result<UpperLayer, DropReason> {
    for walked in 0..=EXTENSIONS_MAX {
        if !is_extension(here.protocol) || !goes_on(&here) {
            return Ok(here);
        }
        if walked == EXTENSIONS_MAX {
            break;
        }
        let header = packet.get(here.offset..).ok_or(DropReason::Truncated)?;
        // RFC 8200 §4: next header, then the length in 8 bytes without the first 8 (but for the
        // fragment header, which is 8 bytes: offset and M flag in bytes 2 and 3).
        let &[next_header, len, third, fourth, ..] = header else {
            return Err(DropReason::Truncated);
        };
        let len = match here.protocol {
            FRAGMENT => {
                let is_fragment = is_fragment(u16::from_be_bytes([third, fourth]));
                if is_fragment && here.is_fragment {
                    return Err(DropReason::Truncated);
                }
                here.is_fragment |= is_fragment;
                8
            }
            _ => 8 + usize::from(len) * 8,
        };
        here.protocol = next_header;
        here.offset += len;
        if here.offset > packet.len() {
            return Err(DropReason::Truncated);
        }
    }
    Err(DropReason::TooManyExtensions)
}

/// Is there more of the packet than what is behind this fragment header?
fn is_fragment(offset_and_more: u16) -> bool {
    offset_and_more & 0xfff9 != 0
}

/// Where the first `next_header` lies in a packet.
const NEXT_HEADER: usize = 6;

/// A fragment header, as it lies on the wire (RFC 8200 §4.5).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct FragmentHeader {
    /// The protocol of what is in pieces: its first header.
    pub next_header: u8,
    /// Zero.
    pub reserved: u8,
    /// The offset in 8 bytes (13 bits), reserved (2), M flag (1).
    pub offset_and_more: U16,
    /// Groups fragments.
    pub id: U32,
}

impl FragmentHeader {
    /// Which part of a datagram is behind it; all of it as well.
    #[inline]
    #[must_use]
    pub fn part(&self) -> Part {
        let field = self.offset_and_more.get();
        Part { id: self.id.get(), offset: field >> 3, has_more: field & 1 != 0 }
    }
}

/// Finds the fragment header of `packet` that says that there is more than this packet, and where it
/// begins.
#[must_use]
pub fn fragment_header(packet: &[u8]) -> Option<(&FragmentHeader, usize)> {
    let mut protocol = *packet.get(NEXT_HEADER)?;
    let mut offset = HEADER_BYTES;
    for _ in 0..EXTENSIONS_MAX {
        let header = packet.get(offset..)?;
        match protocol {
            FRAGMENT => {
                let (header, _) = FragmentHeader::ref_from_prefix(header).ok()?;
                if is_fragment(header.offset_and_more.get()) {
                    return Some((header, offset));
                }
                (protocol, offset) = (header.next_header, offset + FRAGMENT_BYTES);
            }
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                let &[next_header, len, ..] = header else { return None };
                (protocol, offset) = (next_header, offset + 8 + usize::from(len) * 8);
            }
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(next_header: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0, 0, payload.len().try_into().unwrap(), next_header, 64];
        bytes.extend([1; 32]);
        bytes.extend(payload);
        bytes
    }

    fn upper(bytes: &[u8]) -> Result<(u8, usize, bool), DropReason> {
        let found = Ipv6::parse(bytes)?.upper_layer(bytes)?;
        Ok((found.protocol, found.offset, found.is_fragment))
    }

    #[test]
    fn extension_headers_are_walked() {
        let options = |next| [next, 0, 0, 0, 0, 0, 0, 0];
        let fragment = |next, offset_flags: u16| {
            let [high, low] = offset_flags.to_be_bytes();
            [next, 0, high, low, 0, 0, 0, 9]
        };
        let chain = |parts: &[[u8; 8]]| parts.concat();
        for (next, payload, expect) in [
            (6, vec![], Ok((6, 40, false))),
            (0, chain(&[options(6)]), Ok((6, 48, false))),
            (0, chain(&[options(43), options(60), options(17)]), Ok((17, 64, false))),
            (44, chain(&[fragment(6, 0)]), Ok((6, 48, false))),
            (44, chain(&[fragment(6, 1)]), Ok((6, 48, true))),
            (44, chain(&[fragment(60, 8 << 3)]), Ok((60, 48, true))),
            (60, vec![6, 0, 0], Err(DropReason::Truncated)),
            (60, vec![6, 1, 0, 0, 0, 0, 0, 0], Err(DropReason::Truncated)),
            (60, chain(&[options(60); 8]), Err(DropReason::TooManyExtensions)),
            (60, chain(&[&[options(60); 7][..], &[options(6)]].concat()), Ok((6, 104, false))),
        ] {
            assert_eq!(upper(&packet(next, &payload)), expect, "{next} {payload:?}");
        }
    }

    /// One that does not count may stand before the one that does; a second that does makes it a
    /// fragment's fragment.
    #[test]
    fn the_fragment_header_that_counts_is_found() {
        let header = |next, field: u16| {
            let [high, low] = field.to_be_bytes();
            [next, 0, high, low, 0, 0, 0, 9]
        };
        let ports = [7; 8];
        let later = packet(FRAGMENT, &[header(FRAGMENT, 0), header(17, 5 << 3), ports].concat());
        let (found, at) = fragment_header(&later).unwrap();
        assert_eq!((found.next_header, found.offset_and_more.get(), at), (17, 5 << 3, 48));
        let whole = packet(FRAGMENT, &[header(17, 0), ports].concat());
        assert!(fragment_header(&whole).is_none());
        let first = packet(FRAGMENT, &[header(FRAGMENT, 0), header(17, 1), ports].concat());
        assert_eq!(upper_layer_of_first(&first).unwrap().offset, 56);
        for inner in [1, 5 << 3] {
            let nested =
                packet(FRAGMENT, &[header(FRAGMENT, 1), header(17, inner), ports].concat());
            assert_eq!(upper_layer_of_first(&nested).unwrap_err(), DropReason::Truncated);
        }
    }

    #[test]
    fn parse_says_why_not() {
        let good = packet(6, &[0; 4]);
        assert_eq!(Ipv6::parse(&good[..43]).unwrap_err(), DropReason::Truncated);
        assert_eq!(Ipv6::parse(&good[..39]).unwrap_err(), DropReason::Truncated);
        let mut version = good.clone();
        version[0] = 0x40;
        assert_eq!(Ipv6::parse(&version).unwrap_err(), DropReason::BadVersion);
        let mut class = good;
        class[..2].copy_from_slice(&[0x6b, 0x90]);
        assert_eq!(Ipv6::parse(&class).unwrap().traffic_class(), 0xb9);
    }
}
