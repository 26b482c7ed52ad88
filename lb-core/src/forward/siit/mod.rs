//! A packet becomes one of the other family (RFC 7915, without its fragmentation of what is too big):
//! for clients and backends of different ones. The balancer is a hop: the TTL goes down by one.
//!
//! Checksums are repaired, not made anew, so that they are as true as they were (RFC 1624): the
//! lengths and protocol that they cover are the same in both families.

use std::ops::Range;

use head::{Head, Header};
use segment::{Change, id};

use super::{L2Header, push_front};
use crate::burst::{Meta, Rule};
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::tables::next_hop::PortId;
use crate::tables::{HopEntry, Station};
use crate::wire::checksum::Sum;
use crate::wire::{ipv4, ipv6};

mod head;
mod icmp;
mod plain;
mod segment;
#[cfg(test)]
mod tests;

/// Bytes by which an IPv6 header is longer.
const LONGER_BYTES: u16 = 20;
const _: () = assert!(ipv6::HEADER_BYTES == ipv4::HEADER_BYTES + LONGER_BYTES as usize);

/// The source and the destination that a packet gets.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    src: Station,
    dst: Station,
    /// Over both addresses, each as long as its family has it.
    addresses: Sum,
}

impl Ends {
    /// Of IPv6.
    #[inline(always)]
    #[must_use]
    pub fn ipv6(src: Station, dst: Station) -> Self {
        let addresses = Sum::default().plus(&src.address).plus(&dst.address);
        Self { src, dst, addresses }
    }

    /// Of IPv4.
    #[inline(always)]
    #[must_use]
    pub fn ipv4(src: Station, dst: Station) -> Self {
        let addresses = Sum::default().plus(&src.ipv4()).plus(&dst.ipv4());
        Self { src, dst, addresses }
    }

    /// Where the sum over both addresses is known.
    #[inline(always)]
    #[must_use]
    pub fn of_sum(src: Station, dst: Station, addresses: Sum) -> Self {
        Self { src, dst, addresses }
    }

    /// In a packet that is quoted, they have changed sides.
    fn swapped(&self) -> Self {
        Self { src: self.dst, dst: self.src, ..*self }
    }
}

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
    ends: Ends,
) -> Result<(), DropReason> {
    if meta.tuple.is_ipv6 {
        to_ipv4(frame, meta, hop, came_by, ends)
    } else {
        to_ipv6(frame, meta, hop, came_by, ends)
    }
}

/// As [`forward`], of an IPv4 packet.
///
/// # Errors
/// As [`forward`].
#[inline(always)]
pub fn to_ipv6<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
    ends: Ends,
) -> Result<(), DropReason> {
    const OLD: usize = ipv4::HEADER_BYTES;
    const NEW: usize = ipv6::HEADER_BYTES;
    match plain::translate::<F, OLD, NEW>(frame, meta, hop, &ends, Head::of_plain_ipv4) {
        Some(()) => Ok(()),
        None => forward_any(frame, meta, hop, came_by, ends),
    }
}

/// As [`forward`], of an IPv6 packet.
///
/// # Errors
/// As [`forward`].
#[inline(always)]
pub fn to_ipv4<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
    ends: Ends,
) -> Result<(), DropReason> {
    const OLD: usize = ipv6::HEADER_BYTES;
    const NEW: usize = ipv4::HEADER_BYTES;
    let read = |header: &_| Some(Head::of_plain_ipv6(header));
    match plain::translate::<F, OLD, NEW>(frame, meta, hop, &ends, read) {
        Some(()) => Ok(()),
        None => forward_any(frame, meta, hop, came_by, ends),
    }
}

/// As [`forward`], of whatever packet.
#[inline(never)]
fn forward_any<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
    ends: Ends,
) -> Result<(), DropReason> {
    let ends = &ends;
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
    ends: &Ends,
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
    ends: &Ends,
    read: impl FnOnce(&[u8]) -> Result<Head, DropReason>,
) -> Result<(), DropReason> {
    let (l2_bytes, packet) = split(frame, meta)?;
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
    let l2 = L2Header::new(hop, came_by, l2_bytes);
    change.apply(replace_front(frame, old..end, &l2, header, 0)?);
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

/// Puts an L2 header, an IP header and `room` more bytes before what is `kept` of the frame; returns
/// it from those bytes on.
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
