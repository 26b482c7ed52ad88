//! Layer-2 direct server return: another destination MAC, and nothing else.

use zerocopy::IntoBytes;

use super::{L2Header, push_front};
use crate::burst::Meta;
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::tables::HopEntry;
use crate::tables::next_hop::PortId;
use crate::wire::ethernet::{HEADER_BYTES, IPV4, IPV6};

/// Sends the frame to the hop's MAC.
///
/// # Errors
/// [`DropReason::TooBig`] for the port that it leaves by; [`DropReason::NoHeadroom`].
#[inline(always)]
pub fn forward<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
) -> Result<(), DropReason> {
    if meta.packet_len > hop.mtu {
        return Err(DropReason::TooBig);
    }
    let l3_offset = usize::from(meta.l3_offset);
    let keeps_tags = hop.vlan.is_none() && (hop.out == came_by || l3_offset == HEADER_BYTES);
    if !keeps_tags {
        return retag(frame, meta, hop, came_by);
    }
    let macs = frame.bytes_mut().get_mut(..12).ok_or(DropReason::Truncated)?;
    macs.copy_from_slice(hop.macs.as_bytes());
    Ok(())
}

#[cold]
fn retag<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
) -> Result<(), DropReason> {
    let l3_offset = usize::from(meta.l3_offset);
    let old = frame.bytes().get(..l3_offset).ok_or(DropReason::Truncated)?;
    let l2 = L2Header::new(hop, came_by, old);
    frame.trim_front(l3_offset);
    push_front(frame, &l2, if meta.tuple.is_ipv6 { IPV6 } else { IPV4 }, 0)?;
    Ok(())
}
