//! Backend → the frame that leaves.

use crate::burst::Burst;
use crate::counters::Counters;
use crate::drop_reason::DropReason;
use crate::flow_hash::reduce_low;
use crate::forward::{ipip, l2dsr};
use crate::frame::Frame;
use crate::tables::{Outer, Tables};

/// Rewrites each frame for its backend's next hop. Reads all of `meta`; writes `meta.out`; counts
/// the service's traffic.
///
/// Drops: [`DropReason::NextHopUnresolved`], [`DropReason::TooBig`], [`DropReason::NoHeadroom`].
#[inline(always)]
pub fn forward<F: Frame>(burst: &mut Burst<F>, tables: &Tables, counters: &Counters) {
    let came_by = burst.port();
    burst.for_each_live(|frame, meta| {
        let service = tables.services.get(meta.service as usize).ok_or(DropReason::NoBackend)?;
        let backend =
            service.backends.get(usize::from(meta.backend)).ok_or(DropReason::NoBackend)?;
        #[expect(clippy::cast_possible_truncation, reason = "at most HOPS_MAX")]
        let ways = backend.hops.len() as u32;
        let hop = backend
            .hops
            .get(reduce_low(meta.hash, ways) as usize)
            .ok_or(DropReason::NextHopUnresolved)?;
        meta.out = hop.out;
        match &backend.outer {
            Outer::None => l2dsr::forward(frame, meta, hop, came_by)?,
            outer => ipip::forward(frame, meta, hop, came_by, outer)?,
        }
        if let Some(traffic) = counters.service(service.id) {
            traffic.frames.add(1);
            traffic.bytes.add(u64::from(meta.packet_len));
        }
        Ok(())
    });
}
