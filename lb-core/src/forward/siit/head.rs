//! What IP headers say in both families.

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

use super::{Ends, LONGER_BYTES};
use crate::drop_reason::DropReason;
use crate::wire::checksum::{Checksum, Sum};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, FragmentHeader, Ipv6};
use crate::wire::part::Part;
use crate::wire::{ICMP, ICMPV6, ethernet};

/// An IPv4 packet of more bytes was made of one that IPv6's least link could not carry: its sender
/// looks for the MTU, so routers may not cut it (RFC 7915 §5.1).
const CUT_BYTES_MAX: u16 = ipv6::MTU_MIN - LONGER_BYTES;

/// What the headers of a packet say in both families.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) is_ipv6: bool,
    /// Bytes of the headers, with options or extension headers.
    pub(super) bytes: usize,
    /// Bytes behind them, as they say.
    pub(super) payload_len: usize,
    pub(super) traffic_class: u8,
    pub(super) hops: u8,
    pub(super) protocol: u8,
    pub(super) fragment: Option<Part>,
}

impl Head {
    /// Reads what `packet` begins with, which may be cut short behind its headers. Options are of no
    /// consequence (RFC 7915 §4.1), but for a route.
    #[inline(always)]
    pub(super) fn of_ipv4(packet: &[u8]) -> Result<Self, DropReason> {
        let (ip, _) = Ipv4::ref_from_prefix(packet).map_err(|_| DropReason::Truncated)?;
        let bytes = ip.header_len();
        if bytes != ipv4::HEADER_BYTES {
            check_options(packet.get(ipv4::HEADER_BYTES..bytes).ok_or(DropReason::Truncated)?)?;
        }
        let fragment = ip.is_fragment().then(|| ip.part());
        Ok(Self { bytes, fragment, ..Self::new_ipv4(ip) })
    }

    /// As [`Head::of_ipv4`], of a whole packet without options, if it is one.
    #[inline(always)]
    pub(super) fn of_plain_ipv4(header: &[u8; ipv4::HEADER_BYTES]) -> Option<Self> {
        let ip: &Ipv4 = zerocopy::transmute_ref!(header);
        let is_plain = ip.header_len() == ipv4::HEADER_BYTES && !ip.is_fragment();
        is_plain.then(|| Self::new_ipv4(ip))
    }

    /// As [`Head::of_ipv6`].
    #[inline(always)]
    pub(super) fn of_plain_ipv6(header: &[u8; ipv6::HEADER_BYTES]) -> Self {
        Self::new_ipv6(zerocopy::transmute_ref!(header))
    }

    #[inline(always)]
    fn new_ipv4(ip: &Ipv4) -> Self {
        Self {
            is_ipv6: false,
            bytes: ipv4::HEADER_BYTES,
            payload_len: usize::from(ip.total_len.get()).saturating_sub(ip.header_len()),
            traffic_class: ip.tos,
            hops: ip.ttl,
            protocol: ip.protocol,
            fragment: None,
        }
    }

    /// As [`Head::of_ipv4`], without extension headers: one would be taken for the protocol.
    #[inline(always)]
    pub(super) fn of_ipv6(packet: &[u8]) -> Result<Self, DropReason> {
        let (ip, _) = Ipv6::ref_from_prefix(packet).map_err(|_| DropReason::Truncated)?;
        Ok(Self::new_ipv6(ip))
    }

    #[inline(always)]
    fn new_ipv6(ip: &Ipv6) -> Self {
        Self {
            is_ipv6: true,
            bytes: ipv6::HEADER_BYTES,
            payload_len: ip.payload_len.get().into(),
            traffic_class: ip.traffic_class(),
            hops: ip.hop_limit,
            protocol: ip.next_header,
            fragment: None,
        }
    }

    /// As [`Head::of_ipv4`]. All extension headers go, but for what a fragment header says (RFC 7915
    /// §5.1, §5.1.1).
    pub(super) fn of_extended_ipv6(packet: &[u8]) -> Result<Self, DropReason> {
        let (ip, _) = Ipv6::ref_from_prefix(packet).map_err(|_| DropReason::Truncated)?;
        let upper = ip.upper_layer(packet)?;
        let mut rest = packet.get(ipv6::HEADER_BYTES..upper.offset).ok_or(DropReason::Truncated)?;
        let (mut kind, mut fragment) = (ip.next_header, None);
        while let &[next, len, _, segments_left, ..] = rest {
            let mut bytes = 8 + usize::from(len) * 8;
            match kind {
                ipv6::ROUTING if segments_left != 0 => return Err(DropReason::Untranslatable),
                ipv6::FRAGMENT => {
                    let (header, _) =
                        FragmentHeader::ref_from_prefix(rest).map_err(|_| DropReason::Truncated)?;
                    fragment = Some(header.part());
                    bytes = ipv6::FRAGMENT_BYTES;
                }
                _ => {}
            }
            (kind, rest) = (next, rest.get(bytes..).unwrap_or_default());
        }
        let payload_len = ip.total_len().saturating_sub(upper.offset);
        let (bytes, protocol) = (upper.offset, upper.protocol);
        Ok(Self { bytes, payload_len, protocol, fragment, ..Self::of_ipv6(packet)? })
    }

    /// RFC 7915 §4.1, §5.1.
    #[inline(always)]
    pub(super) fn one_hop_less(&self) -> Result<u8, DropReason> {
        match self.hops {
            0 | 1 => Err(DropReason::TtlExceeded),
            hops => Ok(hops - 1),
        }
    }

    /// Is it a protocol that is the same in both families? An extension header that comes behind a
    /// fragment's (RFC 7915 §5.1.1) or in IPv4's clothes is none, and ICMP is only as an error.
    #[inline(always)]
    pub(super) fn check_protocol(&self) -> Result<(), DropReason> {
        if matches!(self.protocol, ICMP | ICMPV6) || ipv6::is_extension(self.protocol) {
            return Err(DropReason::Untranslatable);
        }
        Ok(())
    }

    /// The sum of the addresses of the `packet` that this was read from.
    #[inline(always)]
    pub(super) fn addresses(&self, packet: &[u8]) -> Sum {
        let place = if self.is_ipv6 { 8..ipv6::HEADER_BYTES } else { 12..ipv4::HEADER_BYTES };
        Sum::default().plus(packet.get(place).unwrap_or_default())
    }

    /// The header of the other family before `payload_len` bytes. `id` names an IPv4 packet that
    /// brought no name and that routers may cut.
    #[inline(always)]
    pub(super) fn translated<'a>(
        &'a self,
        payload_len: usize,
        ends: &'a Ends,
        hops: u8,
        id: u16,
    ) -> Header<'a> {
        Header { head: self, payload_len, ends, hops, id }
    }
}

/// An unexpired source route (RFC 791 §3.1) leads to where the address does not.
#[cold]
fn check_options(mut options: &[u8]) -> Result<(), DropReason> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE_ROUTE: u8 = 131;
    const STRICT_ROUTE: u8 = 137;
    while let [kind, after @ ..] = options {
        options = match (*kind, after) {
            (NO_OPERATION, _) => after,
            (LOOSE_ROUTE | STRICT_ROUTE, [len, pointer, ..]) if pointer <= len => {
                return Err(DropReason::Untranslatable);
            }
            (END, _) => return Ok(()),
            (_, [len, ..]) if *len >= 2 => options.get(usize::from(*len)..).unwrap_or_default(),
            _ => return Ok(()),
        };
    }
    Ok(())
}

/// What a packet begins with from now on: the header of the other family. Made where it is written, field
/// by field, because a copy of it would have to wait for all of them.
#[derive(Clone, Copy)]
pub(super) struct Header<'a> {
    head: &'a Head,
    payload_len: usize,
    ends: &'a Ends,
    hops: u8,
    id: u16,
}

impl Header<'_> {
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        match (self.head.is_ipv6, self.head.fragment) {
            (true, _) => ipv4::HEADER_BYTES,
            (false, None) => ipv6::HEADER_BYTES,
            (false, Some(_)) => ipv6::HEADER_BYTES + ipv6::FRAGMENT_BYTES,
        }
    }

    #[inline(always)]
    pub(super) fn ether_type(&self) -> u16 {
        if self.head.is_ipv6 { ethernet::IPV4 } else { ethernet::IPV6 }
    }

    /// Writes it to the front of `bytes`; returns the rest.
    #[inline(always)]
    pub(super) fn write(self, bytes: &mut [u8]) -> Result<&mut [u8], DropReason> {
        let (place, rest) = bytes.split_at_mut_checked(self.len()).ok_or(DropReason::NoHeadroom)?;
        let written =
            if self.head.is_ipv6 { self.write_ipv4(place) } else { self.write_ipv6(place) };
        written.ok_or(DropReason::NoHeadroom)?;
        Ok(rest)
    }

    #[inline(always)]
    fn write_ipv4(self, place: &mut [u8]) -> Option<()> {
        let Self { head, payload_len, ends, hops, id } = self;
        let total_len = len(ipv4::HEADER_BYTES + payload_len);
        let (id, flags) = match head.fragment {
            #[expect(clippy::cast_possible_truncation, reason = "RFC 7915 §5.1.1")]
            Some(part) => {
                let more = if part.has_more { ipv4::MORE_FRAGMENTS } else { 0 };
                (part.id as u16, more | part.offset)
            }
            None if total_len > CUT_BYTES_MAX => (0, ipv4::DONT_FRAGMENT), // RFC 6864 §4.1
            None => (id, 0),
        };
        let mut header = Ipv4 {
            version_ihl: 0x45,
            tos: head.traffic_class,
            total_len: U16::new(total_len),
            id: U16::new(id),
            fragment: U16::new(flags),
            ttl: hops,
            protocol: head.protocol,
            checksum: Checksum::ZERO,
            src: ends.src.ipv4(),
            dst: ends.dst.ipv4(),
        };
        header.checksum = Checksum::of(header.as_bytes());
        header.write_to(place).ok()
    }

    /// RFC 7915 §4.1
    #[inline(always)]
    fn write_ipv6(self, place: &mut [u8]) -> Option<()> {
        let Self { head, payload_len, ends, hops, .. } = self;
        let (next_header, extra) = match head.fragment {
            Some(_) => (ipv6::FRAGMENT, ipv6::FRAGMENT_BYTES),
            None => (head.protocol, 0),
        };
        let header = Ipv6 {
            version_class_flow: U32::new(6 << 28 | u32::from(head.traffic_class) << 20),
            payload_len: U16::new(len(extra + payload_len)),
            next_header,
            hop_limit: hops,
            src: ends.src.address,
            dst: ends.dst.address,
        };
        header.write_to_prefix(place).ok()?;
        let Some(part) = head.fragment else { return Some(()) };
        let fragment = FragmentHeader {
            next_header: head.protocol,
            reserved: 0,
            offset_and_more: U16::new(part.offset << 3 | u16::from(part.has_more)),
            id: U32::new(part.id),
        };
        fragment.write_to_suffix(place).ok()
    }
}

fn len(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}
