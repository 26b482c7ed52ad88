//! Slot → backend.

use crate::burst::Burst;
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::prefetch::prefetch;
use crate::tables::Tables;

/// Chooses the backend of each frame's slot. Reads `meta.service`, `meta.slot`; writes
/// `meta.backend`.
///
/// Answers of backends go past.
///
/// Drops: [`DropReason::NoBackend`].
#[inline(always)]
pub fn select<F: Frame>(burst: &mut Burst<F>, tables: &Tables) {
    burst.for_each_live(|_, meta| {
        if meta.rule.is_return() {
            return Ok(());
        }
        let service = tables.services.get(meta.service as usize).ok_or(DropReason::NoBackend)?;
        let slots = service.slots.slots();
        meta.backend = *slots.get(meta.slot as usize).ok_or(DropReason::NoBackend)?;
        if let Some(backend) = service.backends.get(usize::from(meta.backend)) {
            prefetch(backend);
        }
        Ok(())
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::burst::tests::burst_of;
    use crate::model::tests::spec;
    use crate::sim::SimFrame;
    use crate::stage::classify::tests::tables;

    #[test]
    fn the_slot_s_owner_is_the_backend() {
        let backends = ["10.0.0.11", "10.0.0.12"];
        let mut web = spec("web", "10.0.0.100", &backends);
        web.slots = Some(251);
        let tables = tables([spec("empty", "10.0.0.101", &[]), web]);
        let slots = tables.services[1].slots.slots();
        for (service, slot, expect) in [
            (1, 0, Some(slots[0])),
            (1, 1, Some(slots[1])),
            (1, 250, Some(slots[250])),
            (1, 251, None),
            (0, 0, None),
            (2, 0, None),
        ] {
            let mut burst = burst_of([SimFrame::new(&[])]);
            burst.for_each_live(|_, meta| {
                (meta.service, meta.slot) = (service, slot);
                Ok(())
            });
            select(&mut burst, &tables);
            let is_live = burst.live_and_punted().0 == 1;
            assert_eq!(is_live.then(|| burst.meta(0).backend), expect, "{service} {slot}");
            assert_eq!(burst.drops()[DropReason::NoBackend as usize], u16::from(!is_live));
        }
    }
}
