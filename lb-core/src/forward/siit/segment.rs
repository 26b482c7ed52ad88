//! What changes behind IP headers.

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, IntoBytes};

use super::Ends;
use super::head::Head;
use crate::drop_reason::DropReason;
use crate::wire::checksum::{Checksum, Sum};
use crate::wire::ports::{self, Ports};
use crate::wire::udp::{self, Udp};
use crate::wire::{SCTP, TCP, UDP, sctp, tcp};

/// What changes in a transport header.
#[derive(Debug, Default)]
pub(super) struct Change {
    ports: Option<Ports>,
    /// Where it begins, and what it is.
    checksum: Option<(usize, Checksum)>,
    /// Is it a whole packet of SCTP, whose checksum covers no address, but all of the packet?
    is_whole_sctp: bool,
}

impl Change {
    /// Of a whole packet, or of a fragment: the first has all of the header, and a checksum that covers
    /// all of the datagram; the others have nothing.
    #[inline(always)]
    pub(super) fn of_packet(
        head: &Head,
        packet: &[u8],
        segment: &[u8],
        ends: &Ends,
    ) -> Result<Self, DropReason> {
        if head.fragment.is_some_and(|part| part.offset != 0) {
            return Ok(Self::default());
        }
        if ports::header_bytes(head.protocol).is_some_and(|needed| segment.len() < needed) {
            return Err(match head.fragment {
                Some(_) => DropReason::FragmentTiny,
                None => DropReason::Truncated,
            });
        }
        let mut change = Self::new(head, packet, segment, ends);
        if head.protocol == SCTP {
            if head.fragment.is_some_and(|part| part.has_more) {
                return Err(DropReason::Untranslatable); // nobody has all that its checksum covers
            }
            change.is_whole_sctp = true;
        }
        if head.protocol == UDP && !head.is_ipv6 && change.checksum.is_none() {
            change.checksum = Some(change.udp_checksum(head, segment, ends)?);
        }
        Ok(change)
    }

    /// Is there a checksum that covers addresses?
    #[inline(always)]
    pub(super) fn has_checksum(&self) -> bool {
        self.checksum.is_some()
    }

    /// As far as ports and checksum are there: a quote may end anywhere.
    #[inline(always)]
    pub(super) fn new(head: &Head, packet: &[u8], segment: &[u8], ends: &Ends) -> Self {
        if ports::header_bytes(head.protocol).is_none() {
            return Self::default();
        }
        let Ok((old, _)) = Ports::ref_from_prefix(segment) else { return Self::default() };
        let new = Ports {
            src: ends.src.port.map_or(old.src, U16::from_bytes),
            dst: ends.dst.port.map_or(old.dst, U16::from_bytes),
        };
        let mut change = Self { ports: Some(new), ..Self::default() };
        let Some(place) = checksum_place(head.protocol) else { return change };
        let bytes = segment.get(place..).and_then(<[u8]>::first_chunk);
        let Some(&[high, low]) = bytes else { return change };
        let sum = Checksum::from([high, low]);
        if head.protocol == UDP && sum == Checksum::ZERO {
            return change; // none (RFC 768)
        }
        let old = head.addresses(packet).plus(old.as_bytes());
        let new = ends.addresses.plus(new.as_bytes());
        let sum = sum.changed_by(new.minus(old));
        change.checksum = Some((place, if head.protocol == UDP { sum.never_zero() } else { sum }));
        change
    }

    /// The checksum of a datagram that came without: IPv6 has to have one (RFC 7915 §4.5). Of a part
    /// of a datagram nobody can tell it.
    #[cold]
    fn udp_checksum(
        &self,
        head: &Head,
        segment: &[u8],
        ends: &Ends,
    ) -> Result<(usize, Checksum), DropReason> {
        if head.fragment.is_some() {
            return Err(DropReason::Untranslatable);
        }
        let (udp, _) = Udp::ref_from_prefix(segment).map_err(|_| DropReason::Truncated)?;
        let len = udp.len.get();
        let behind_ports = segment.get(4..len.into()).ok_or(DropReason::Truncated)?;
        if usize::from(len) < ports::UDP_HEADER_BYTES {
            return Err(DropReason::Truncated);
        }
        let sum = Sum::default()
            .pseudo_header(&ends.src.address, &ends.dst.address, len, UDP)
            .plus(self.ports.as_ref().map_or(&[][..], IntoBytes::as_bytes))
            .plus(behind_ports);
        Ok((udp::CHECKSUM.start, sum.checksum().never_zero()))
    }

    #[inline(always)]
    pub(super) fn apply(self, segment: &mut [u8]) {
        // Both are there: that is where they came from.
        let set_ports = |segment: &mut [u8]| {
            if let Some(ports) = self.ports {
                let _ = ports.write_to_prefix(segment);
            }
        };
        if self.is_whole_sctp {
            sctp::change(segment, set_ports);
            return;
        }
        set_ports(segment);
        if let Some((place, sum)) = self.checksum
            && let Some(place) = segment.get_mut(place..)
        {
            let _ = sum.write_to_prefix(place);
        }
    }
}

/// A name for a packet that may be cut. Nothing counts packets here; but a checksum covers all of one,
/// so that two of the same ends hardly ever have the same name. The flow hash, which is keyed, hides it
/// from those who would send other pieces (RFC 7739).
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the low bits are what is wanted")]
pub(super) fn id(protocol: u8, segment: &[u8], hash: u64) -> u16 {
    let place =
        if protocol == SCTP { Some(sctp::CHECKSUM_START) } else { checksum_place(protocol) };
    let checksum = place.and_then(|place| segment.get(place..)?.first_chunk());
    let distinct = if let Some(&[high, low]) = checksum {
        u16::from_be_bytes([high, low])
    } else {
        // ESP's sequence number, for example.
        zerocopy::transmute!(Checksum::of(segment.get(..8).unwrap_or(segment)))
    };
    distinct ^ hash as u16
}

/// Where the checksum of a transport header begins that covers addresses.
#[inline(always)]
fn checksum_place(protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(tcp::CHECKSUM.start),
        UDP => Some(udp::CHECKSUM.start),
        _ => None,
    }
}
