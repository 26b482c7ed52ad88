//! The ways to reach a backend, one file each.

use zerocopy::IntoBytes;

use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::tables::HopEntry;
use crate::tables::next_hop::PortId;
use crate::wire::ethernet::{HEADER_BYTES, TAG_BYTES, TAGS_MAX, VLAN};

pub mod ipip;
pub mod l2dsr;

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

/// Puts an L2 header, an `EtherType` and `room` more bytes before the packet that begins `frame`
/// now; returns those bytes.
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
    rest.get_mut(..room).ok_or(DropReason::NoHeadroom)
}
