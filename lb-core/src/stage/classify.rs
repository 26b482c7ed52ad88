//! Destination → service.

use crate::burst::{Burst, Exit, Meta};
use crate::drop_reason::DropReason;
use crate::flow_hash::reduce;
use crate::frame::Frame;
use crate::model::Affinity;
use crate::prefetch::prefetch;
use crate::tables::Tables;

/// Names the service that each frame is for, and the slot of its flow. Reads `meta.tuple`; writes
/// `meta.service`, `meta.hash`, `meta.slot`.
///
/// Punts what no service has.
///
/// Drops: [`DropReason::Fragment`] for a service's address, and the service's
/// [`without_slots`](crate::tables::ServiceTable::without_slots).
#[inline(always)]
pub fn classify<F: Frame>(burst: &mut Burst<F>, tables: &Tables) {
    burst.for_each_live(|_, meta| {
        let Some(place) = tables.vips.lookup(&meta.tuple) else {
            return Err(no_service(meta, tables));
        };
        let Some(service) = tables.services.get(place as usize) else {
            return Err(Exit::Punt);
        };
        meta.service = place;
        meta.hash = tables.hasher.hash(&meta.tuple, service.affinity == Affinity::Flow);
        meta.slot = reduce(meta.hash, service.slots.len());
        match service.slots.slots().get(meta.slot as usize) {
            Some(slot) => prefetch(slot),
            None => return Err(service.without_slots.into()),
        }
        Ok(())
    });
}

/// A fragment has no port to be looked up by: its address says whether the kernel may have it.
#[cold]
fn no_service(meta: &Meta, tables: &Tables) -> Exit {
    if meta.is_fragment && tables.vips.has_address(&meta.tuple) {
        DropReason::Fragment.into()
    } else {
        Exit::Punt
    }
}
