//! Slot → backend.

use crate::burst::Burst;
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::prefetch::prefetch;
use crate::tables::Tables;

/// Chooses the backend of each frame's slot. Reads `meta.service`, `meta.slot`; writes
/// `meta.backend`.
///
/// Drops: [`DropReason::NoBackend`].
#[inline(always)]
pub fn select<F: Frame>(burst: &mut Burst<F>, tables: &Tables) {
    burst.for_each_live(|_, meta| {
        let service = tables.services.get(meta.service as usize).ok_or(DropReason::NoBackend)?;
        let slots = service.slots.slots();
        meta.backend = *slots.get(meta.slot as usize).ok_or(DropReason::NoBackend)?;
        if let Some(backend) = service.backends.get(usize::from(meta.backend)) {
            prefetch(backend);
        }
        Ok(())
    });
}
