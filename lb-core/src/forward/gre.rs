//! Generic Routing Encapsulation (RFC 2784; over IPv6: RFC 7676), without checksum and key.

use super::outer;
use crate::burst::Meta;
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::model::TunnelKind;
use crate::tables::next_hop::PortId;
use crate::tables::{Ends, HopEntry};
use crate::wire::GRE;

/// Puts the packet behind a GRE header into an outer one and sends it to the hop.
///
/// # Errors
/// [`DropReason::TooBig`], [`DropReason::NoHeadroom`].
#[inline(always)]
pub fn forward<F: Frame>(
    frame: &mut F,
    meta: &Meta,
    hop: &HopEntry,
    came_by: PortId,
    ends: &Ends,
) -> Result<(), DropReason> {
    let shim_bytes = TunnelKind::Gre.shim_bytes();
    let inside = outer::put(frame, meta, hop, came_by, ends, (GRE, shim_bytes))?;
    let header = inside.bytes.first_chunk_mut::<4>().ok_or(DropReason::NoHeadroom)?;
    let [high, low] = outer::inner_ether_type(meta).to_be_bytes();
    *header = [0, 0, high, low]; // no checksum, reserved bits and version are 0 (RFC 2784 §2)
    Ok(())
}
