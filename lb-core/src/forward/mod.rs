//! The ways to reach a backend, one file each.

use zerocopy::IntoBytes;

use crate::burst::Meta;
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::model::TunnelKind;
use crate::tables::next_hop::PortId;
use crate::tables::{Ends, HopEntry};
use crate::wire::ethernet::{HEADER_BYTES, IPV4, IPV6, TAG_BYTES, TAGS_MAX, VLAN};

pub mod answer;
pub mod challenge;
mod client_address;
pub mod fullnat;
pub mod gre;
pub mod gue;
pub mod ipip;
pub mod l2dsr;
pub mod mss;
pub mod nat;
pub mod nat46;
mod outer;
pub mod siit;
mod split;
pub mod too_big;
pub mod tunnel_error;

/// Puts the packet into a tunnel's outer one and sends it to the hop.
///
/// # Errors
/// [`DropReason::TooBig`], [`DropReason::NoHeadroom`].
#[inline(always)]
pub fn tunnel<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
    (kind, ends): (TunnelKind, &Ends),
) -> Result<(), DropReason> {
    match kind {
        TunnelKind::Ipip => ipip::forward(frame, meta, hop, came_by, ends),
        TunnelKind::Gue { port } => gue::forward(frame, meta, hop, came_by, ends, port),
        TunnelKind::Gre => gre::forward(frame, meta, hop, came_by, ends),
    }
}

/// An Ethernet header without its `EtherType`, which belongs to what follows: MACs and tags.
struct L2Header {
    bytes: [u8; L2Header::BYTES_MAX],
    len: usize,
}

impl L2Header {
    const BYTES_MAX: usize = HEADER_BYTES - 2 + TAGS_MAX * TAG_BYTES;

    /// The header for `hop`. A frame that leaves by the port that it came by keeps the tags that it
    /// has in `old`, its L2 header, unless the hop is in a VLAN of its own.
    #[inline]
    fn new(hop: &HopEntry, came_by: PortId, old: &[u8]) -> Self {
        let mut header = Self { bytes: [0; Self::BYTES_MAX], len: 12 };
        header.bytes[..12].copy_from_slice(hop.macs.as_bytes());
        if let Some(vlan) = hop.vlan {
            header.push(&VLAN.to_be_bytes());
            header.push(&vlan.to_be_bytes());
        } else if hop.out == came_by
            && let Some(tags) = old.get(12..old.len().saturating_sub(2))
        {
            header.push(tags);
        }
        header
    }

    #[inline]
    fn push(&mut self, bytes: &[u8]) {
        if let Some(room) = self.bytes.get_mut(self.len..self.len + bytes.len()) {
            room.copy_from_slice(bytes);
            self.len += bytes.len();
        }
    }

    #[inline]
    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// Addresses the frame to the hop, and leaves its packet as it is.
#[inline(always)]
fn readdress<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
) -> Result<(), DropReason> {
    if keeps_tags(meta, hop, came_by) {
        return write_macs(frame.bytes_mut(), hop);
    }
    let ether_type = if meta.tuple.is_ipv6 { IPV6 } else { IPV4 };
    retag(frame, meta, (hop, came_by), ether_type, 0).map(|_| ())
}

/// Does all of the L2 header stay but the MACs?
#[inline(always)]
fn keeps_tags(meta: &Meta, hop: &HopEntry, came_by: PortId) -> bool {
    let is_untagged = usize::from(meta.l3_offset) == HEADER_BYTES;
    hop.vlan.is_none() && (hop.out == came_by || is_untagged)
}

#[inline(always)]
fn write_macs(frame: &mut [u8], hop: &HopEntry) -> Result<(), DropReason> {
    let macs = frame.first_chunk_mut::<12>().ok_or(DropReason::Truncated)?;
    macs.copy_from_slice(hop.macs.as_bytes());
    Ok(())
}

/// Addresses the frame to the hop, with an `EtherType` and `room` bytes between the L2 header and the
/// packet; returns the frame from those bytes on.
#[inline(always)]
fn replace_l2<'a, F: Frame>(
    frame: &'a mut F,
    meta: &Meta,
    (hop, came_by): (&HopEntry, PortId),
    ether_type: u16,
    room: usize,
) -> Result<&'a mut [u8], DropReason> {
    if hop.vlan.is_some() || usize::from(meta.l3_offset) != HEADER_BYTES {
        return retag(frame, meta, (hop, came_by), ether_type, room);
    }
    // The new header is as long as the old one, whose place is a part of the room.
    let bytes = frame.prepend(room).ok_or(DropReason::NoHeadroom)?;
    let (l2, rest) = bytes.split_first_chunk_mut().ok_or(DropReason::Truncated)?;
    write_l2(l2, hop, ether_type);
    Ok(rest)
}

/// An L2 header without tags.
#[inline(always)]
fn write_l2(place: &mut [u8; HEADER_BYTES], hop: &HopEntry, ether_type: u16) {
    let (macs, tail) = place.split_at_mut(12);
    macs.copy_from_slice(hop.macs.as_bytes());
    tail.copy_from_slice(&ether_type.to_be_bytes());
}

/// As [`replace_l2`], where there are tags, or have to be.
#[cold]
fn retag<'a, F: Frame>(
    frame: &'a mut F,
    meta: &Meta,
    (hop, came_by): (&HopEntry, PortId),
    ether_type: u16,
    room: usize,
) -> Result<&'a mut [u8], DropReason> {
    let l3_offset = usize::from(meta.l3_offset);
    let old = frame.bytes().get(..l3_offset).ok_or(DropReason::Truncated)?;
    let l2 = L2Header::new(hop, came_by, old);
    frame.trim_front(l3_offset);
    push_front(frame, &l2, ether_type, room)
}

/// Puts an L2 header, an `EtherType` and `room` more bytes before the packet that begins `frame`
/// now; returns the frame from those bytes on.
fn push_front<'a, F: Frame>(
    frame: &'a mut F,
    l2: &L2Header,
    ether_type: u16,
    room: usize,
) -> Result<&'a mut [u8], DropReason> {
    let l2_len = l2.len + 2;
    let bytes = frame.prepend(l2_len + room).ok_or(DropReason::NoHeadroom)?;
    let (front, rest) = bytes.split_at_mut_checked(l2_len).ok_or(DropReason::NoHeadroom)?;
    let (macs, tail) = front.split_at_mut_checked(l2.len).ok_or(DropReason::NoHeadroom)?;
    macs.copy_from_slice(l2.as_bytes());
    tail.copy_from_slice(&ether_type.to_be_bytes());
    Ok(rest)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::sim::SimFrame;
    use crate::sim::packet::{Packet, SERVICE_VLAN, VLAN};
    use crate::wire::ethernet::MacAddr;

    pub(crate) const SERVER: MacAddr = MacAddr([2, 0, 0, 0, 1, 11]);
    pub(crate) const OURS: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
    /// Where the frames of these tests come from.
    pub(crate) const LAN: PortId = PortId(0);

    /// The way to [`SERVER`] through a port.
    pub(crate) fn hop(out: u8, vlan: Option<u16>, mtu: u16) -> HopEntry {
        HopEntry { macs: [SERVER, OURS], out: PortId(out), vlan, mtu, udp_checksums: false }
    }

    /// Tags that a frame has, the way that it takes, and the tags that it leaves with.
    pub(crate) type TagCase = (&'static [(u16, u16)], HopEntry, &'static [(u16, u16)]);

    /// One-armed use keeps the tags, unless the hop has one of its own.
    pub(crate) fn tag_cases() -> [TagCase; 9] {
        const NONE: &[(u16, u16)] = &[];
        const ONE: &[(u16, u16)] = &[(VLAN, 7)];
        const TWO: &[(u16, u16)] = &[(SERVICE_VLAN, 7), (VLAN, 8)];
        const OWN: &[(u16, u16)] = &[(VLAN, 9)];
        let [same, other] = [0, 1].map(|out| hop(out, None, 1500));
        let [same_tagged, other_tagged] = [0, 1].map(|out| hop(out, Some(9), 1500));
        [
            (NONE, same, NONE),
            (ONE, same, ONE),
            (TWO, same, TWO),
            (NONE, other, NONE),
            (ONE, other, NONE),
            (TWO, other, NONE),
            (NONE, same_tagged, OWN),
            (TWO, same_tagged, OWN),
            (ONE, other_tagged, OWN),
        ]
    }

    /// Ethernet header, with MACs to [`SERVER`] and from [`OURS`].
    pub(crate) fn front(tags: &[(u16, u16)], ether_type: u16) -> Vec<u8> {
        let mut bytes = [SERVER.0, OURS.0].concat();
        for (tag, vlan) in tags {
            bytes.extend([tag.to_be_bytes(), vlan.to_be_bytes()].concat());
        }
        [bytes, ether_type.to_be_bytes().to_vec()].concat()
    }

    #[test]
    fn l2_headers_have_the_hops_tag_or_the_frames_own() {
        for (tags, hop, expect) in tag_cases() {
            let packet = Packet::tcp("198.51.100.7:1", "10.0.0.100:80");
            let old = packet.with(|p| p.tags = tags.to_vec()).l2_header();
            let header = L2Header::new(&hop, LAN, &old);
            assert_eq!([header.as_bytes(), &[8, 0]].concat(), front(expect, IPV4));
        }
    }

    #[test]
    fn nothing_is_put_where_there_is_no_room() {
        let l2 = L2Header::new(&hop(0, None, 1500), LAN, &[]);
        let mut frame = SimFrame::with_headroom(b"packet", 33);
        assert_eq!(push_front(&mut frame, &l2, IPV4, 20).unwrap_err(), DropReason::NoHeadroom);
        assert_eq!(frame.bytes(), b"packet");
        let room = push_front(&mut frame, &l2, IPV4, 19).unwrap();
        room[..19].fill(7);
        assert_eq!(frame.bytes(), [&front(&[], IPV4)[..], &[7; 19], b"packet"].concat());
    }
}
