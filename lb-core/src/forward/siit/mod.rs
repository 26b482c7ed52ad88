//! A packet becomes one of the other family (RFC 7915, without its fragmentation of what is too big):
//! for clients and backends of different ones. The balancer is a hop: the TTL goes down by one.
//!
//! Checksums are repaired, not made anew, so that they are as true as they were (RFC 1624): the
//! lengths and protocol that they cover are the same in both families.

use std::ops::Range;

use head::{Head, Header};
use segment::{Change, id};
use zerocopy::IntoBytes;

use super::{L2Header, push_front};
use crate::burst::{Meta, Rule};
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::tables::next_hop::PortId;
use crate::tables::{HopEntry, Station};
use crate::wire::{ethernet, ipv4, ipv6};

mod head;
mod icmp;
mod segment;
#[cfg(test)]
mod tests;

/// Bytes by which an IPv6 header is longer.
const LONGER_BYTES: u16 = 20;
const _: () = assert!(ipv6::HEADER_BYTES == ipv4::HEADER_BYTES + LONGER_BYTES as usize);

/// The source and the destination that a packet gets.
type Ends<'a> = (&'a Station, &'a Station);

/// Makes an IPv6 packet of an IPv4 one, or the other way round, between `ends`, which are of the other
/// family, and sends it to the hop. An error gets their addresses, and what it quotes is translated
/// too: there they have changed sides.
///
/// # Errors
/// [`DropReason::TooBig`] for the port that it leaves by; [`DropReason::TtlExceeded`];
/// [`DropReason::Untranslatable`]; [`DropReason::NoHeadroom`]; [`DropReason::FragmentTiny`],
/// [`DropReason::BadChecksum`] (of an error), [`DropReason::Truncated`]. Nothing has changed then.
#[inline(never)]
pub fn forward<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
    ends: Ends<'_>,
) -> Result<(), DropReason> {
    if matches!(meta.rule, Rule::IcmpError | Rule::ReturnError) {
        return icmp::forward(frame, meta, hop, came_by, ends);
    }
    if !meta.tuple.is_ipv6 {
        return forward_packet(frame, meta, hop, came_by, ends, Head::of_ipv4);
    }
    if usize::from(meta.l4_offset) == usize::from(meta.l3_offset) + ipv6::HEADER_BYTES {
        return forward_packet(frame, meta, hop, came_by, ends, Head::of_ipv6);
    }
    forward_extended(frame, meta, hop, came_by, ends)
}

#[cold]
fn forward_extended<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
    ends: Ends<'_>,
) -> Result<(), DropReason> {
    forward_packet(frame, meta, hop, came_by, ends, Head::of_extended_ipv6)
}

/// As [`forward`], of all but errors; compiled for each way to read a header, because then most lengths
/// are known.
#[inline(always)]
fn forward_packet<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
    ends: Ends<'_>,
    read: impl FnOnce(&[u8]) -> Result<Head, DropReason>,
) -> Result<(), DropReason> {
    let (l2_bytes, packet) = split(frame, meta)?;
    let is_untagged = l2_bytes.len() == ethernet::HEADER_BYTES && hop.vlan.is_none();
    let head = read(packet)?;
    let hops = head.one_hop_less()?;
    head.check_protocol()?;
    let segment = packet.get(head.bytes..).ok_or(DropReason::Truncated)?;
    let change = Change::of_packet(&head, packet, segment, ends)?;
    // IPv6 has no place for one.
    let id = if head.is_ipv6 { id(head.protocol, segment, meta.hash) } else { 0 };
    let header = head.translated(segment.len(), ends, hops, id);
    if header.len() + segment.len() > usize::from(hop.mtu) {
        return Err(DropReason::TooBig);
    }
    let old = l2_bytes.len() + head.bytes;
    let end = old + segment.len();
    let segment = if is_untagged {
        replace_untagged_front(frame, old..end, hop, header)?
    } else {
        let l2 = L2Header::new(hop, came_by, l2_bytes);
        replace_front(frame, old..end, &l2, header, 0)?
    };
    change.apply(segment);
    Ok(())
}

/// The MTU that the sender of a packet is told where `hop_mtu` is too little for what has become of
/// it: as its own family counts (RFC 7915 §4.2, §5.2).
#[must_use]
pub fn mtu_before(hop_mtu: u16, is_ipv6_before: bool) -> u16 {
    if is_ipv6_before {
        hop_mtu.saturating_add(LONGER_BYTES).max(ipv6::MTU_MIN)
    } else {
        hop_mtu.saturating_sub(LONGER_BYTES)
    }
}

/// The L2 header, and the packet without padding.
#[inline(always)]
fn split<'a, F: Frame>(frame: &'a F, meta: &Meta) -> Result<(&'a [u8], &'a [u8]), DropReason> {
    let (l2, packet) =
        frame.bytes().split_at_checked(meta.l3_offset.into()).ok_or(DropReason::Truncated)?;
    Ok((l2, packet.get(..meta.packet_len.into()).ok_or(DropReason::Truncated)?))
}

/// As [`replace_front`], where the frame has no tag and gets none.
#[inline(always)]
fn replace_untagged_front<'a, F: Frame>(
    frame: &'a mut F,
    kept: Range<usize>,
    hop: &HopEntry,
    header: Header<'_>,
) -> Result<&'a mut [u8], DropReason> {
    let new = ethernet::HEADER_BYTES + header.len();
    let growth = new.saturating_sub(kept.start);
    frame.prepend(growth).ok_or(DropReason::NoHeadroom)?; // before anything has changed
    frame.truncate(growth + kept.end);
    frame.trim_front((growth + kept.start).saturating_sub(new));
    let bytes = frame.bytes_mut();
    let (l2, rest) = bytes
        .split_first_chunk_mut::<{ ethernet::HEADER_BYTES }>()
        .ok_or(DropReason::NoHeadroom)?;
    let (macs, ether_type) = l2.split_at_mut(12);
    macs.copy_from_slice(hop.macs.as_bytes());
    ether_type.copy_from_slice(&header.ether_type().to_be_bytes());
    header.write(rest)
}

/// Puts an L2 header, an IP header and `room` more bytes before what is `kept` of the frame; returns
/// it from those bytes on.
#[cold]
fn replace_front<'a, F: Frame>(
    frame: &'a mut F,
    kept: Range<usize>,
    l2: &L2Header,
    header: Header<'_>,
    room: usize,
) -> Result<&'a mut [u8], DropReason> {
    let new = l2.len + 2 + header.len() + room;
    let growth = new.saturating_sub(kept.start);
    frame.prepend(growth).ok_or(DropReason::NoHeadroom)?; // before anything has changed
    frame.truncate(growth + kept.end);
    frame.trim_front(growth + kept.start);
    let bytes = push_front(frame, l2, header.ether_type(), header.len() + room)?;
    header.write(bytes)
}
