//! IP in IP: nothing but the outer header. RFC 2003 (4 in 4), RFC 2473 (any in 6), RFC 4213 §3 (6 in 4).

use super::outer;
use crate::burst::Meta;
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::tables::next_hop::PortId;
use crate::tables::{Ends, HopEntry};

/// Puts the packet into an outer one and sends it to the hop.
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
    outer::put(frame, meta, hop, came_by, ends, (outer::inner_protocol(meta), 0))?;
    Ok(())
}
